//! The cluster service.

use crate::app::App;
use axum::Router;
use claviger_domain::id::ClusterId;
use claviger_domain::key::RootKey;
use claviger_store::{StoreError, Tx};
use std::sync::Arc;

/// Paths of the cluster service and of the agents' API.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
}

/// The root keys that a cluster uses or is about to use: those of its ring and of its
/// operation. Its service identity may wrap, unwrap and register on these and no others.
pub fn scope_of(tx: &Tx<'_>, cluster: &ClusterId) -> Result<Vec<RootKey>, StoreError> {
    let Some(row) = claviger_store::clusters::get(tx, cluster)? else {
        return Ok(Vec::new());
    };
    let mut roots: Vec<RootKey> = row.cluster.ring.keks.iter().map(|kek| kek.root.root).collect();
    roots.extend(row.cluster.operation.map(|operation| operation.target));
    roots.sort();
    roots.dedup();
    Ok(roots)
}

/// Whether a node's certificate still counts: its cluster has an agent of that name with that
/// certificate.
pub fn admits(
    tx: &Tx<'_>,
    node: &crate::http::auth::Node,
    now: claviger_domain::id::UnixMs,
) -> Result<bool, StoreError> {
    let agent = claviger_store::clusters::agent(tx, &node.cluster, &node.agent)?;
    let counts = |agent: claviger_store::clusters::AgentRow| {
        agent.fingerprint == node.fingerprint || agent.previous.as_ref() == Some(&node.fingerprint)
    };
    Ok(node.not_after > now && agent.is_some_and(counts))
}
