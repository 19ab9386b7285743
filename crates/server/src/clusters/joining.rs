//! How a node comes into a cluster: a one-time token, then certificates.

use super::commits;
use super::fault::Fault;
use super::limits::{
    AGENTS_MAX, CERTIFICATE_MS, JOIN_TOKEN_MS, JOIN_TOKEN_REMEMBERED_MS, JOIN_TOKENS_OPEN_MAX,
};
use super::node_ca::{Issued, Proven, issue};
use super::state::row_of;
use crate::app::App;
use crate::http::auth::Node;
use claviger_crypto::SecretBytes;
use claviger_crypto::digest::{MacKey, hex, sha256};
use claviger_domain::cluster::commit::Commit;
use claviger_domain::id::{AgentName, ClusterId, UnixMs};
use claviger_store::clusters::{self, TokenUse};
use claviger_store::{StoreError, Tx};
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

/// Lets an agent in: uses the token up, commits that its API server belongs to the cluster,
/// signs its certificate. A name that joined before gets a new certificate, and the old one
/// counts no longer.
pub fn join(
    app: &App,
    tx: &Tx<'_>,
    token: &str,
    agent: &AgentName,
    key: &Proven,
    now: UnixMs,
) -> Result<Issued, Fault> {
    let cluster = match clusters::use_join_token(tx, &tag(token), agent, now)? {
        TokenUse::Good(cluster) => cluster,
        TokenUse::Unknown => return Err(Fault::JoinToken("is unknown; ask for a new one")),
        TokenUse::Expired => return Err(Fault::JoinToken("is past its hour; ask for a new one")),
        TokenUse::Used { .. } => {
            return Err(Fault::JoinToken("was used before; ask for a new one"));
        }
    };
    let row = row_of(tx, &cluster)?;
    if !row.cluster.servers.contains_key(agent) {
        if row.cluster.servers.len() >= AGENTS_MAX {
            return Err(Fault::TooMany("the cluster has as many API servers as it may have"));
        }
        commits::store(tx, row, &Commit::Joined { agent: agent.clone() }, now)?;
    }
    let issued = issue(&app.authority, &cluster, agent, key, now)?;
    let not_after = issued.certificate.not_after;
    clusters::agent_joined(tx, &cluster, agent, &issued.fingerprint, not_after, now)?;
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

/// Whether the certificate that a node showed counts: any that was issued since the last join
/// under its name. So a renewal needs no row of its own to count, and none is lost when the
/// server comes back from a backup; a join under the same name ends all before it.
pub fn admits(tx: &Tx<'_>, node: &Node, now: UnixMs) -> Result<bool, StoreError> {
    let Some(row) = clusters::agent(tx, &node.cluster, &node.agent)? else { return Ok(false) };
    // Certificates tell time in seconds; within the second of a join the fingerprint decides.
    let issued_s = (node.not_after.0 - CERTIFICATE_MS).div_euclid(1000);
    let newer = issued_s > row.joined.0.div_euclid(1000);
    let known = row.fingerprint == node.fingerprint
        || row.previous.as_deref() == Some(node.fingerprint.as_str());
    Ok((newer || known) && node.not_after > now)
}

/// Like [`admits`], as an answer.
pub fn admitted(tx: &Tx<'_>, node: &Node, now: UnixMs) -> Result<(), Fault> {
    if admits(tx, node, now)? { Ok(()) } else { Err(Fault::Replaced(node.agent.clone())) }
}
