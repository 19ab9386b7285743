//! Makes clusters known, and hands out what leads to them.

use super::fault::Fault;
use super::joining::{keep_token, new_token};
use super::limits::{CA_MAX, CLUSTERS_MAX, KUBECONFIG_MAX, URL_MAX};
use super::state::Whole;
use crate::app::App;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claviger_crypto::SecretBytes;
use claviger_domain::cluster::Cluster;
use claviger_domain::id::{AgentName, ClusterId, UnixMs};
use claviger_store::Tx;
use claviger_store::clusters::{self, ClusterRow};
use claviger_wire::ks::{RegisterCluster, Registered};
use zeroize::Zeroizing;

/// Checks what an operator wants to register.
pub fn checked(request: &RegisterCluster, admin: Option<&str>) -> Result<(), Fault> {
    let bad = |why: String| Err(Fault::Bad(why));
    // The same form as an agent's name, a DNS label.
    if request.name.parse::<AgentName>().is_err() {
        return bad(format!(
            "{:?} is no cluster name: 1 to 63 characters of a-z, 0-9 and -, not at either end",
            request.name.chars().take(64).collect::<String>()
        ));
    }
    if request.name.parse::<ClusterId>().is_ok() {
        return bad("a cluster's name must not look like an id (20 characters of a-z, 0-9)".into());
    }
    let url = &request.server_url;
    let host = url.strip_prefix("https://").unwrap_or_default();
    let plain = url.len() <= URL_MAX && url.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
    if !plain || host.is_empty() || host.starts_with('/') {
        return bad(format!("server_url must be an https URL of at most {URL_MAX} characters"));
    }
    let ca = &request.ca;
    if ca.len() > CA_MAX || !holds_certificates(ca) {
        return bad(format!("ca must be one or more PEM certificates, at most {CA_MAX} bytes"));
    }
    match admin {
        Some(text) if text.len() > KUBECONFIG_MAX => {
            bad(format!("admin_kubeconfig has at most {KUBECONFIG_MAX} bytes"))
        }
        Some(text) if !text.contains("clusters") || !text.contains("server") => {
            bad("admin_kubeconfig is no kubeconfig: it names no cluster and no server".into())
        }
        _ => Ok(()),
    }
}

fn holds_certificates(pem: &str) -> bool {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    read.is_ok_and(|found| !found.is_empty())
}

/// Adds a cluster, with a token for its first agent. `admin` is a kubeconfig to hand out.
pub fn register(
    app: &App,
    tx: &Tx<'_>,
    request: &RegisterCluster,
    admin: Option<&str>,
    by: &str,
    now: UnixMs,
) -> Result<Registered, Fault> {
    if clusters::how_many(tx)? >= CLUSTERS_MAX {
        return Err(Fault::TooMany("this server has as many clusters as it may have"));
    }
    let id = ClusterId::random();
    let row = ClusterRow {
        cluster: Cluster::new(id.clone(), request.name.clone(), now),
        crn: app.account.cluster_crn(&id),
        server_url: request.server_url.clone(),
        ca: request.ca.clone(),
        registered_by: by.to_owned(),
        master_status: "Ready".to_owned(),
        master_status_since: now,
        restored: None,
    };
    let sealed = admin.map(|text| app.custodian.seal_column(&place(&id), text.as_bytes()));
    match clusters::insert(tx, &row, sealed.as_deref()) {
        Err(e) if clusters::name_taken(&e) => return Err(Fault::NameTaken(request.name.clone())),
        other => other?,
    }
    token(tx, &row, by, now)
}

/// A token for one more agent of a cluster.
pub fn token(tx: &Tx<'_>, row: &ClusterRow, by: &str, now: UnixMs) -> Result<Registered, Fault> {
    let token = new_token();
    keep_token(tx, &row.cluster.id, &token, by, now)?;
    Ok(Registered {
        id: row.cluster.id.clone(),
        name: row.cluster.name.clone(),
        join_token: token.as_str().to_owned(),
    })
}

fn place(id: &ClusterId) -> [&str; 3] {
    ["clusters", "admin_kubeconfig", id.as_str()]
}

/// The kubeconfig of a cluster: the one that was stored with it, or one without credentials.
/// None while its root key is suspended or its control plane is fenced.
pub fn kubeconfig(app: &App, tx: &Tx<'_>, whole: &Whole) -> Result<SecretBytes, Fault> {
    if let Some(why) = whole.closed() {
        return Err(Fault::Suspended(why));
    }
    let id = &whole.row.cluster.id;
    match clusters::admin_kubeconfig(tx, id)? {
        Some(sealed) => app
            .custodian
            .open_column(&place(id), &sealed)
            .map_err(|e| Fault::Bug(format!("admin kubeconfig of {id}: {e}"))),
        None => Ok(SecretBytes::new(without_credentials(&whole.row).into_bytes())),
    }
}

/// Names the API server and its CA. Strings are in JSON's form, which YAML reads too.
fn without_credentials(row: &ClusterRow) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let name = quoted(&row.cluster.name);
    let ca = Zeroizing::new(STANDARD.encode(&row.ca));
    format!(
        "apiVersion: v1\nkind: Config\n\
         # No credentials were stored with this cluster: add a user of your own.\n\
         clusters:\n- name: {name}\n  cluster:\n    server: {}\n    \
         certificate-authority-data: {}\n\
         contexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: {name}\n\
         current-context: {name}\nusers: []\n",
        quoted(&row.server_url),
        ca.as_str(),
    )
}
