//! Makes the cluster known to the key server and gives each agent its settings and its one-time
//! token, as an operator would.

use crate::error::DevError;
use crate::files;
use crate::layout;
use crate::parts::{Dev, Part};
use claviger_client::{Config, Error, Operator, Proof};
use claviger_crypto::SecretBytes;
use claviger_wire::ks::RegisterCluster;
use serde::{Deserialize, Serialize};

/// What the key server wrote at its first start.
#[derive(Deserialize)]
pub struct Bootstrap {
    /// PEM of its CA.
    pub ca: String,
    /// The administrator's API key.
    pub api_key: String,
    /// The instances, two of them.
    pub instances: Vec<Instance>,
}

/// An instance of the key service.
#[derive(Deserialize)]
pub struct Instance {
    /// Its id.
    pub id: String,
}

/// `cluster.json`: marks that every agent has its settings and its token.
#[derive(Serialize, Deserialize)]
struct Known {
    id: String,
}

/// What the key server's first start left; none before.
pub fn bootstrap(dev: &Dev) -> Result<Option<Bootstrap>, DevError> {
    files::read_json(&dev.layout.bootstrap())
}

/// Puts the server's CA where other programs find it.
pub fn take_over(dev: &Dev) -> Result<(), DevError> {
    match bootstrap(dev)? {
        Some(found) => files::write_if_new(&dev.layout.server_ca(), found.ca.as_bytes()),
        None => Ok(()),
    }
}

/// Whether the agents have all that they need.
pub fn done(dev: &Dev) -> bool {
    dev.binaries.is_none() || dev.layout.registration().is_file()
}

/// Registers the cluster, or finds it registered by a keeper that was killed, and writes the
/// agents' files. Safe to repeat.
pub async fn register(dev: &Dev) -> Result<(), DevError> {
    let answer = |text: String| DevError::Answer { part: Part::Server.to_string(), answer: text };
    let Some(found) = bootstrap(dev)? else { return Ok(()) };
    let operator = Operator::connect(&Config {
        url: dev.server_url(),
        iam_url: None,
        ca_file: dev.layout.server_ca(),
        proof: Proof::ApiKey(SecretBytes::new(found.api_key.into_bytes())),
    })
    .map_err(|e| answer(e.to_string()))?;
    let wanted = RegisterCluster {
        name: dev.spec.name.clone(),
        server_url: dev.apiserver_url(1),
        ca: files::read_text(&dev.layout.certificate("ca"))?,
        admin_kubeconfig: Some(files::read_text(&dev.layout.kubeconfig())?),
    };
    let mut registered = match operator.clusters.register(&wanted).await {
        Err(Error::Refused { status: 409, .. }) => {
            operator.clusters.join_token(&dev.spec.name).await
        }
        other => other,
    }
    .map_err(|e| answer(e.to_string()))?;
    for number in 1..=dev.spec.apiservers {
        files::write(&dev.layout.join_token(number), registered.join_token.as_bytes())?;
        files::write(&dev.layout.agent_config(number), settings(dev, number)?.as_bytes())?;
        if number < dev.spec.apiservers {
            registered = operator
                .clusters
                .join_token(&dev.spec.name)
                .await
                .map_err(|e| answer(e.to_string()))?;
        }
    }
    let known = Known { id: registered.id.to_string() };
    files::write_json(&dev.layout.registration(), &known)
}

/// The settings of one agent. Paths hold no quotes or backslashes: they are checked here.
fn settings(dev: &Dev, number: u32) -> Result<String, DevError> {
    let l = &dev.layout;
    let etcdutl = dev.binaries.as_ref().map(|b| b.etcdutl.clone()).unwrap_or_default();
    let others: Vec<String> = (1..=dev.spec.apiservers)
        .filter(|other| *other != number)
        .map(|other| format!("\"{}\"", l.unit(&Part::ApiServer(other).to_string()).display()))
        .collect();
    let text = format!(
        r#"server = "{server}"
ca = "{server_ca}"
state_dir = "{state}"
name = "control-plane-{number}"
join_token_file = "{token}"
socket = "{socket}"

[kube]
url = "{kube}"
ca = "{kube_ca}"
cert = "{kube_cert}"
key = "{kube_key}"

[etcd]
endpoints = ["{etcd}"]
ca = "{etcd_ca}"
cert = "{etcd_cert}"
key = "{etcd_key}"
data_dir = "{etcd_data}"
unit_dir = "{etcd_unit}"
etcdutl = "{etcdutl}"
api_server_units = [{others}]
scrub_after_enable = true

[api_server]
unit_dir = "{unit}"
encryption_config = "{encryption}"
"#,
        server = dev.server_url(),
        server_ca = l.server_ca().display(),
        state = l.agent(number).join("state").display(),
        token = l.join_token(number).display(),
        socket = layout::socket(&dev.spec.sockets, number)?.display(),
        kube = dev.apiserver_url(number),
        kube_ca = l.certificate("ca").display(),
        kube_cert = l.certificate("agent").display(),
        kube_key = l.key("agent").display(),
        etcd = dev.etcd_url(),
        etcd_ca = l.certificate("etcd-ca").display(),
        etcd_cert = l.certificate("etcd-agent").display(),
        etcd_key = l.key("etcd-agent").display(),
        etcd_data = l.etcd_data().display(),
        etcd_unit = l.unit(&Part::Etcd.to_string()).display(),
        etcdutl = etcdutl.display(),
        others = others.join(", "),
        unit = l.unit(&Part::ApiServer(number).to_string()).display(),
        encryption = l.encryption_config(number).display(),
    );
    if text.contains('\\') || text.matches('"').count() % 2 != 0 {
        return Err(DevError::refused(
            format!("{} has a quote or a backslash in its path", l.dir.display()),
            "choose another --dir",
        ));
    }
    Ok(text)
}
