//! What goes on record of access: what policies, groups, identities and credentials say.

use crate::http::admin::facts;
use claviger_domain::access::Scope;
use claviger_domain::audit::Facts;
use claviger_domain::policy::{Policy, Role, Subject, Target};
use claviger_store::access::Stored;
use claviger_store::iam::ApiKey;
use claviger_wire::iam::TrustedIssuer;

/// What a policy says.
pub(crate) fn said(policy: &Policy) -> Facts {
    let roles: Vec<&str> = policy.roles().iter().map(|role: &Role| role.name()).collect();
    let subject = match policy.subject() {
        Subject::Principal(iam_id) => iam_id.clone(),
        Subject::Group(group) => format!("group {group}"),
        Subject::Clusters(None) => "all clusters".to_owned(),
        Subject::Clusters(Some(cluster)) => format!("cluster {cluster}"),
    };
    let on = match policy.target() {
        Target::Account => "account".to_owned(),
        Target::Services => "all services".to_owned(),
        Target::Keys(Scope::Everywhere) => "keys".to_owned(),
        Target::Keys(Scope::Instance(instance)) => format!("keys of instance {instance}"),
        Target::Keys(Scope::Ring(instance, ring)) => {
            format!("keys of instance {instance}, ring {ring}")
        }
        Target::Keys(Scope::Key(root)) => format!("key {} of instance {}", root.key, root.instance),
        Target::Clusters(None) => "clusters".to_owned(),
        Target::Clusters(Some(cluster)) => format!("cluster {cluster}"),
    };
    facts([("subject", subject), ("roles", roles.join(" ")), ("on", on)])
}

/// What policies say, where all of them come or go with what they are about.
pub(super) fn said_of_all(policies: &[Stored]) -> String {
    let one = |stored: &Stored| {
        let said = said(&stored.policy);
        let part = |name: &str| said.get(name).map_or("", String::as_str).to_owned();
        format!("{} on {}", part("roles"), part("on"))
    };
    policies.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// What an API key is.
pub(super) fn said_of_key(key: &ApiKey) -> Facts {
    facts([
        ("id", key.id.to_string()),
        ("of", key.iam_id.clone()),
        ("name", key.name.clone()),
        ("description", key.description.clone()),
    ])
}

/// What an issuer is trusted with.
pub(super) fn said_of_issuer(issuer: &TrustedIssuer) -> Facts {
    let keys = issuer.jwks["keys"].as_array().into_iter().flatten();
    let kids: Vec<&str> = keys.filter_map(|key| key["kid"].as_str()).collect();
    let subject = |s: &claviger_wire::iam::TrustedSubject| format!("{}={}", s.subject, s.iam_id);
    let subjects: Vec<String> = issuer.subjects.iter().map(subject).collect();
    facts([
        ("audience", issuer.audience.clone()),
        ("keys", kids.join(" ")),
        ("subjects", subjects.join(" ")),
    ])
}
