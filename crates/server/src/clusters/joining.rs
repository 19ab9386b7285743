//! How a node comes into a cluster: a one-time token, then certificates.

use super::commits;
use super::fault::Fault;
use super::limits::{
    AGENTS_MAX, CERTIFICATE_MS, JOIN_TOKEN_MS, JOIN_TOKEN_REMEMBERED_MS, JOIN_TOKENS_OPEN_MAX,
    REISSUE_AHEAD_MS, REISSUE_MS,
};
use super::node_ca::{Issued, Proven, issue};
use super::state::row_of;
use crate::app::App;
use crate::authority::Authority;
use crate::http::auth::Node;
use claviger_crypto::SecretBytes;
use claviger_crypto::digest::{MacKey, hex, sha256};
use claviger_domain::cluster::commit::Commit;
use claviger_domain::id::{AgentName, ClusterId, UnixMs};
use claviger_store::clusters::{self, TokenUse};
use claviger_store::{StoreError, Tx};
use claviger_wire::agent::{ReissueRequest, reissue_name};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::sync::Arc;
use std::time::Duration;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

/// What a join token begins with, so that people and secret scanners know one.
const PREFIX: &str = "cvj1-";

/// A new join token: 256 random bits.
pub fn new_token() -> Zeroizing<String> {
    let random = Zeroizing::new(hex(SecretBytes::random(32).expose()));
    Zeroizing::new(format!("{PREFIX}{}", random.as_str()))
}

/// What is kept of a join token. Its 256 random bits cannot be guessed, so the hash needs no
/// secret; the cluster service's name keeps it apart from other hashes.
pub fn tag(token: &str) -> [u8; 32] {
    MacKey::new(&sha256(b"claviger join token 1")).tag(token.as_bytes())
}

/// Keeps a new join token of a cluster.
pub fn keep_token(
    tx: &Tx<'_>,
    cluster: &ClusterId,
    token: &str,
    by: &str,
    now: UnixMs,
) -> Result<(), Fault> {
    if clusters::open_join_tokens(tx, cluster, now)? >= JOIN_TOKENS_OPEN_MAX {
        return Err(Fault::TooMany(
            "too many unused join tokens; use one, or wait until their hour is over",
        ));
    }
    let (expires, forget) = (now.0 + JOIN_TOKEN_MS, now.0 - JOIN_TOKEN_REMEMBERED_MS);
    clusters::insert_join_token(tx, &tag(token), cluster, by, UnixMs(expires), UnixMs(forget))?;
    Ok(())
}

/// Lets an agent in: uses the token up (the same key may ask again while its hour lasts), commits
/// that its API server belongs to the cluster, signs its certificate. A token of another cluster than
/// `of`, where the agent belongs to one, is not used up. A name that joined before gets a new certificate, and the old one
/// counts no longer, nor does what was proven: its machine may have been reinstalled.
pub fn join(
    app: &App,
    tx: &Tx<'_>,
    token: &str,
    agent: &AgentName,
    of: Option<&ClusterId>,
    key: &Proven,
    now: UnixMs,
) -> Result<Issued, Fault> {
    let used = clusters::use_join_token(tx, &tag(token), agent, &key.hash(), now)?;
    let cluster = match used {
        TokenUse::Good(cluster) => cluster,
        // The answer did not arrive. Whoever holds that key is who joined, unless the node was
        // removed since, or another joined under its name.
        TokenUse::Again { cluster, joined }
            if clusters::agent(tx, &cluster, agent)?.is_some_and(|a| a.joined == joined) =>
        {
            cluster
        }
        TokenUse::Unknown => return Err(Fault::JoinToken("is unknown; ask for a new one")),
        TokenUse::Expired => return Err(Fault::JoinToken("is past its hour; ask for a new one")),
        TokenUse::Again { .. } | TokenUse::Used { .. } => {
            return Err(Fault::JoinToken("was used before; ask for a new one"));
        }
    };
    if of.is_some_and(|of| *of != cluster) {
        return Err(Fault::JoinToken(
            "is of another cluster than this node; ask for one of its own",
        ));
    }
    let row = row_of(tx, &cluster)?;
    let known = row.cluster.servers.contains_key(agent);
    if !known && row.cluster.servers.len() >= AGENTS_MAX {
        return Err(Fault::TooMany("the cluster has as many API servers as it may have"));
    }
    commits::store(tx, row, &Commit::Joined { agent: agent.clone() }, now)?;
    let last = clusters::agent(tx, &cluster, agent)?;
    let issued = issue(&app.authority, &cluster, agent, key, now)?;
    let not_after = issued.certificate.not_after;
    // Not before the last certificate of the name, if the clock was set back since.
    let joined = last.map_or(now, |a| now.max(UnixMs(a.not_after.0 - CERTIFICATE_MS)));
    clusters::agent_joined(tx, &cluster, agent, &issued.fingerprint, not_after, joined)?;
    Ok(issued)
}

/// Signs a new certificate for a node that shows a good one.
pub fn renew(
    app: &App,
    tx: &Tx<'_>,
    node: &Node,
    key: &Proven,
    now: UnixMs,
) -> Result<Issued, Fault> {
    let Node { cluster, agent, fingerprint: shown, .. } = node;
    let issued = issue(&app.authority, cluster, agent, key, now)?;
    let not_after = issued.certificate.not_after;
    clusters::agent_renewed(tx, cluster, agent, shown, &issued.fingerprint, not_after)?;
    Ok(issued)
}

/// Signs a new certificate for a node of `cluster` that cannot ask for it itself: by its written
/// request, which its key has signed, and the certificate that it has, expired or not.
pub fn reissue(
    app: &App,
    tx: &Tx<'_>,
    cluster: &ClusterId,
    request: &ReissueRequest,
    now: UnixMs,
) -> Result<Issued, Fault> {
    let no = |why: &str| Fault::Reissue(why.to_owned());
    let shown = signed_by_us(&app.authority, &request.certificate).ok_or_else(|| {
        no("shows a certificate that this server did not sign: it is of another server, or was changed")
    })?;
    let node = crate::listen::node(&shown).ok_or_else(|| no("shows no certificate of a node"))?;
    if node.cluster != *cluster {
        return Err(Fault::Reissue(format!(
            "is of cluster {}, not of {cluster}; name that one with -c",
            node.cluster
        )));
    }
    let key = Proven::read(&request.csr)
        .map_err(|e| Fault::Reissue(format!("was changed or is none of a node: {e}")))?;
    let (_, certificate) =
        X509Certificate::from_der(&shown).map_err(|_| no("shows no certificate"))?;
    if !key.is_of(&certificate) {
        return Err(no("is signed by another key than that of the certificate it shows"));
    }
    let asked = key.uris().iter().find_map(|uri| {
        let at = UnixMs(uri.rsplit_once('/')?.1.parse().ok()?);
        (*uri == reissue_name(&node.cluster, &node.agent, at)).then_some(at)
    });
    let asked = asked.ok_or_else(|| no("was made for another node, or for another purpose"))?;
    if now.since(asked) > REISSUE_MS {
        return Err(no("is older than 7 days"));
    }
    if asked.since(now) > REISSUE_AHEAD_MS {
        return Err(no("is dated more than a day ahead; set the node's clock"));
    }
    if clusters::agent(tx, cluster, &node.agent)?.is_none() {
        return Err(Fault::NoNode(node.agent));
    }
    if !counts(tx, &node)? {
        return Err(Fault::Replaced(node.agent));
    }
    renew(app, tx, &node, &key, now)
}

/// The certificate of `pem`, if this authority signed it for a client, whenever that was.
fn signed_by_us(authority: &Authority, pem: &str) -> Option<CertificateDer<'static>> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let end = crate::listen::node(&der)?.not_after;
    // A moment at which it was good.
    let then = Duration::from_millis(u64::try_from(end.0 - 1000).ok()?);
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).ok()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = verifier.build().ok()?;
    verifier.verify_client_cert(&der, &[], UnixTime::since_unix_epoch(then)).ok()?;
    Some(der)
}

/// Whether the certificate that a node showed counts: any that was issued since the last join
/// under its name. So a renewal needs no row of its own to count, and none is lost when the
/// server comes back from a backup; a join under the same name ends all before it.
pub fn admits(tx: &Tx<'_>, node: &Node, now: UnixMs) -> Result<bool, StoreError> {
    Ok(counts(tx, node)? && node.not_after > now)
}

/// The same of a certificate that may have expired.
fn counts(tx: &Tx<'_>, node: &Node) -> Result<bool, StoreError> {
    let Some(row) = clusters::agent(tx, &node.cluster, &node.agent)? else { return Ok(false) };
    // Certificates tell time in seconds; within the second of a join the fingerprint decides.
    let issued_s = (node.not_after.0 - CERTIFICATE_MS).div_euclid(1000);
    let newer = issued_s > row.joined.0.div_euclid(1000);
    let known = row.fingerprint == node.fingerprint
        || row.previous.as_deref() == Some(node.fingerprint.as_str());
    Ok(newer || known)
}

/// Like [`admits`], as an answer.
pub fn admitted(tx: &Tx<'_>, node: &Node, now: UnixMs) -> Result<(), Fault> {
    if admits(tx, node, now)? { Ok(()) } else { Err(Fault::Replaced(node.agent.clone())) }
}
