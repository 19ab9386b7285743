//! Asks the parts whether they are ready, and sets up what only a running cluster can hold.

use crate::error::DevError;
use crate::files;
use crate::layout;
use crate::parts::{Dev, Part};
use crate::pki::AGENT_USER;
use reqwest::{Certificate, Client, Identity};
use std::fmt;
use std::time::Duration;

/// How long one question may take. A part that is busy answers later; it is asked again.
const ASK: Duration = Duration::from_secs(2);
/// What is said of a part that does not answer.
const WAITS: &str = "does not answer yet";
/// How much of an answer is shown to people.
const SHOWN: usize = 200;

/// HTTPS clients with the cluster's certificates.
pub struct Probe {
    kube: Option<Client>,
    etcd: Option<Client>,
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probe")
    }
}

impl Probe {
    /// Reads the certificates, which must have been made.
    pub fn new(dev: &Dev) -> Result<Self, DevError> {
        // Whoever was first in this process chose the same one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let whole = dev.binaries.is_some();
        Ok(Self {
            kube: whole.then(|| client(dev, "ca", Some("admin"))).transpose()?,
            etcd: whole.then(|| client(dev, "etcd-ca", Some("etcd-client"))).transpose()?,
        })
    }

    /// Whether a part whose process lives does its work; if not, what it says.
    pub async fn ready(&self, dev: &Dev, part: Part) -> Result<(), String> {
        match part {
            Part::Etcd => {
                let url = format!("{}/health", dev.etcd_url());
                let body = get(self.etcd.as_ref(), &url).await?;
                if body.contains("\"true\"") { Ok(()) } else { Err(shown(&body)) }
            }
            Part::Server => {
                let ca = files::read_text(&dev.layout.server_ca()).map_err(|_| WAITS.to_owned())?;
                let client = build(&ca, None).map_err(|e| chain(&e))?;
                // Whatever it answers, it answers.
                let asked = client.get(dev.server_url()).send().await;
                asked.map(|_| ()).map_err(|e| silent(&e))
            }
            Part::Agent(n) => {
                let path = layout::socket(&dev.spec.sockets, n).map_err(|e| e.to_string())?;
                let socket = tokio::net::UnixStream::connect(&path).await;
                socket.map(|_| ()).map_err(|_| WAITS.to_owned())
            }
            Part::ApiServer(n) => {
                let url = format!("{}/readyz", dev.apiserver_url(n));
                get(self.kube.as_ref(), &url).await.map(|_| ())
            }
        }
    }

    /// Gives the agents' user its rights. Safe to repeat.
    pub async fn apply_rights(&self, dev: &Dev) -> Result<(), DevError> {
        let Some(kube) = &self.kube else { return Ok(()) };
        for (kind, object) in rights() {
            let url = format!(
                "{}/apis/rbac.authorization.k8s.io/v1/{kind}/{AGENT_USER}\
                 ?fieldManager=claviger-dev&force=true",
                dev.apiserver_url(1)
            );
            let request = kube
                .patch(&url)
                .header("content-type", "application/apply-patch+yaml")
                .body(object);
            let answer =
                |text: String| DevError::Answer { part: "apiserver-1".into(), answer: text };
            let response = request.send().await.map_err(|e| answer(chain(&e)))?;
            let status = response.status();
            if !status.is_success() {
                let body = response.text().await.unwrap_or_default();
                return Err(answer(format!("{status}: {}", shown(&body))));
            }
        }
        Ok(())
    }
}

/// What an agent may do in the cluster: the manifest that operators apply, too.
const RIGHTS: &str = include_str!("../../../deploy/kubernetes/agent-rights.yaml");

/// Its objects, each with the name of its kind in a path.
fn rights() -> impl Iterator<Item = (&'static str, &'static str)> {
    ["clusterroles", "clusterrolebindings"].into_iter().zip(RIGHTS.split("---\n"))
}

fn client(dev: &Dev, ca: &str, identity: Option<&str>) -> Result<Client, DevError> {
    let path = dev.layout.certificate(ca);
    let pem = files::read_text(&path)?;
    build(
        &pem,
        identity
            .map(|name| -> Result<String, DevError> {
                let certificate = files::read_text(&dev.layout.certificate(name))?;
                Ok(certificate + &files::read_text(&dev.layout.key(name))?)
            })
            .transpose()?
            .as_deref(),
    )
    .map_err(|e| DevError::io("use", &path)(std::io::Error::other(e)))
}

fn build(ca: &str, identity: Option<&str>) -> reqwest::Result<Client> {
    let mut builder = Client::builder()
        .tls_certs_only([Certificate::from_pem(ca.as_bytes())?])
        .https_only(true)
        .no_proxy()
        .timeout(ASK);
    if let Some(pem) = identity {
        builder = builder.identity(Identity::from_pem(pem.as_bytes())?);
    }
    builder.build()
}

async fn get(client: Option<&Client>, url: &str) -> Result<String, String> {
    let client = client.ok_or("this cluster has only a key server")?;
    let response = client.get(url).send().await.map_err(|e| silent(&e))?;
    let status = response.status();
    let body = response.text().await.map_err(|e| silent(&e))?;
    if status.is_success() { Ok(body) } else { Err(format!("{status}: {}", shown(&body))) }
}

/// Why there is no answer. How a starting program does not answer changes from round to round
/// and tells people nothing.
fn silent(error: &reqwest::Error) -> String {
    let text = chain(error);
    if text.contains("os error") || error.is_timeout() { WAITS.to_owned() } else { text }
}

/// The last cause: reqwest's own text only repeats the URL.
fn chain(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// The failing lines of a health answer, or its beginning.
fn shown(body: &str) -> String {
    let failing: Vec<&str> = body.lines().filter(|line| line.starts_with("[-]")).collect();
    let text = if failing.is_empty() { body.trim().to_owned() } else { failing.join(" ") };
    text.chars().take(SHOWN).collect()
}
