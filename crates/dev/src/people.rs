//! The people and services that suites of clients need beside the administrator. Only where
//! there is a key server alone.

use crate::error::DevError;
use crate::files;
use crate::parts::{Dev, Part};
use crate::registration;
use claviger_client::{Config, Operator, Proof};
use claviger_crypto::SecretBytes;
use claviger_domain::access::{PlatformRole, ServiceRole};
use claviger_wire::iam::{NewPrincipal, RoleOn};
use std::collections::BTreeMap;

/// API keys by the names of their variables, mode 0600.
type Keys = BTreeMap<String, String>;

fn person(name: &str, roles: &[ServiceRole]) -> NewPrincipal {
    let on = |role: &ServiceRole| RoleOn { role: *role, instance: None, ring: None, key: None };
    NewPrincipal {
        name: name.to_owned(),
        email: format!("{name}@claviger.local"),
        roles: roles.iter().map(on).collect(),
        ..NewPrincipal::default()
    }
}

/// Each variable, and who has its API key.
pub(crate) fn wanted() -> [(&'static str, NewPrincipal); 5] {
    let service = NewPrincipal {
        service: true,
        email: String::new(),
        ..person("service", &[ServiceRole::Reader])
    };
    let suite = NewPrincipal {
        platform: vec![PlatformRole::Editor],
        ..person("suite", &[ServiceRole::Manager, ServiceRole::KeyPurge])
    };
    [
        ("CLAVIGER_API_KEY_2", person("second-manager", &[ServiceRole::Manager])),
        ("CLAVIGER_SERVICE_API_KEY", service),
        ("CLAVIGER_READER_API_KEY", person("reader", &[ServiceRole::Reader])),
        ("CLAVIGER_PURGE_API_KEY", person("purger", &[ServiceRole::KeyPurge])),
        ("CLAVIGER_SUITE_API_KEY", suite),
    ]
}

fn known(dev: &Dev) -> Result<Keys, DevError> {
    Ok(files::read_json(&dev.layout.people())?.unwrap_or_default())
}

/// Whether everybody who is wanted has an API key.
pub fn done(dev: &Dev) -> Result<bool, DevError> {
    if !dev.spec.only_key_service {
        return Ok(true);
    }
    let known = known(dev)?;
    Ok(wanted().iter().all(|(variable, _)| known.contains_key(*variable)))
}

/// The API keys that are known, in the order of [`wanted`].
pub fn api_keys(dev: &Dev) -> Result<Vec<(&'static str, String)>, DevError> {
    let known = known(dev)?;
    let found = wanted()
        .into_iter()
        .filter_map(|(variable, _)| known.get(variable).map(|api_key| (variable, api_key.clone())));
    Ok(found.collect())
}

/// Lets in who is missing, as the administrator. Each key is kept as soon as it is known; a kill
/// before that leaves a principal whose key nobody has, and makes another.
pub async fn let_in(dev: &Dev) -> Result<(), DevError> {
    let answer = |e: claviger_client::Error| DevError::Answer {
        part: Part::Server.to_string(),
        answer: e.to_string(),
    };
    let Some(found) = registration::bootstrap(dev)? else { return Ok(()) };
    let operator = Operator::connect(&Config {
        url: dev.server_url(),
        iam_url: None,
        ca_file: dev.layout.server_ca(),
        proof: Proof::ApiKey(SecretBytes::new(found.api_key.into_bytes())),
    })
    .map_err(answer)?;
    let mut known = known(dev)?;
    for (variable, new) in wanted() {
        if known.contains_key(variable) {
            continue;
        }
        let made = operator.admin.create_principal(&new).await.map_err(answer)?;
        known.insert(variable.to_owned(), made.apikey.unwrap_or_default());
        files::write_json(&dev.layout.people(), &known)?;
    }
    Ok(())
}
