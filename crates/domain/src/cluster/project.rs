//! The cluster's state in the words of the public API: four fields and a text.

use super::plan::{must_fence, unattended};
use super::{Access, Cluster, RootStatus, Seen, Stage};
use crate::id::{AgentName, UnixMs};
use crate::key::KeyState;
use std::collections::BTreeMap;

/// What `cluster get` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// `normal`, `warning` or `critical`.
    pub state: &'static str,
    /// `deployed` or `updating`.
    pub master_state: &'static str,
    /// `normal`, `unavailable` or `error`.
    pub master_health: &'static str,
    /// For people; exactly `Ready` when all is well.
    pub master_status: String,
    /// Whether encryption is enabled and was proven.
    pub enabled: bool,
}

/// The text while an operation changes the control plane.
pub const IN_PROGRESS: &str = "Key management service feature enablement in progress.";

/// The text while what was proven is to be proven anew, since a machine has joined or left.
pub const TO_BE_PROVEN: &str =
    "API servers have joined or left since the proof; etcd is to be counted again.";

/// The text while the key server lacks keys that nodes hold.
pub const FORGOTTEN: &str = "The key server has forgotten keys that the nodes hold. Restore a newer backup of it; restart no agent before that, or its Secrets are lost.";

/// The first API server of the cluster that does not serve, and why, as its agent said.
pub fn down<'a>(
    cluster: &'a Cluster,
    seen: &'a BTreeMap<AgentName, Seen>,
) -> Option<(&'a AgentName, &'a str)> {
    let why = |agent| seen.get(agent)?.observation.down.as_deref();
    cluster.servers.keys().find_map(|agent| Some((agent, why(agent)?)))
}

/// Projects the cluster's truth and what its agents said.
pub fn project(
    cluster: &Cluster,
    seen: &BTreeMap<AgentName, Seen>,
    roots: &[RootStatus],
    now: UnixMs,
) -> Projection {
    let enabled = cluster.is_proven();
    let calm = |master_status: &str| Projection {
        state: "normal",
        master_state: "deployed",
        master_health: "normal",
        master_status: master_status.to_owned(),
        enabled,
    };
    if let Some(root) = must_fence(cluster, roots) {
        let text = match root.state {
            KeyState::Destroyed => "Root key was deleted; restore it to regain access.",
            KeyState::Deactivated => "Root key expired; encrypted data cannot be read.",
            _ => "Root key is disabled. Re-enable the root key to restore access.",
        };
        return Projection {
            state: "warning",
            master_state: "deployed",
            master_health: "unavailable",
            ..calm(text)
        };
    }
    // What it says of itself is older than what its nodes hold, so nothing of it can be believed.
    if seen.iter().any(|(a, s)| cluster.servers.contains_key(a) && s.observation.ahead.is_some()) {
        return Projection { state: "critical", ..calm(FORGOTTEN) };
    }
    let fenced =
        |s: &Seen| matches!(s.observation.access, Access::Fenced { .. } | Access::Closing { .. });
    if seen.iter().any(|(a, s)| cluster.servers.contains_key(a) && fenced(s)) {
        return Projection {
            state: "warning",
            master_health: "unavailable",
            ..calm("Root key is enabled again; the control plane is returning.")
        };
    }
    if let Some(op) = &cluster.operation {
        if let Some(reason) = &op.stuck {
            return Projection {
                state: "warning",
                ..calm(&format!("Secret rewrite stopped: {reason}"))
            };
        }
        // Until the rewrite, the control plane changes; afterwards it serves as ever. A first
        // enablement counts as in progress until nobody can read plaintext.
        if op.promoted.is_none() || cluster.verified.is_none() || op.rewrite.is_none() {
            return Projection { master_state: "updating", ..calm(IN_PROGRESS) };
        }
        if op.kind == super::OperationKind::Enable {
            return Projection { master_state: "updating", enabled: false, ..calm(IN_PROGRESS) };
        }
    }
    let silent = cluster.servers.keys().find(|a| seen.get(*a).is_none_or(|s| !s.is_fresh(now)));
    if let Some(agent) = silent
        && !cluster.ring.keks.is_empty()
    {
        return Projection {
            state: "warning",
            ..calm(&format!("No word from agent {agent}; its API server may serve cached keys."))
        };
    }
    let said = |a: &AgentName| seen.get(a).map(|s| &s.observation);
    // The words of a silent agent are no longer about now; that it is silent was said above.
    if let Some((agent, why)) = down(cluster, seen) {
        return Projection {
            state: "warning",
            master_health: "unavailable",
            ..calm(&format!("API server {agent} does not serve: {why}."))
        };
    }
    if let Some(tally) = &cluster.disproof {
        let then = if cluster.unexplained() > 0 {
            "No change of machines explains the plaintext, and nobody reads it: see `claviger census` and `claviger ks kms status`."
        } else if tally.rewritable() > 0 {
            "They are to be rewritten."
        } else {
            "`claviger census` names them; nothing touches them."
        };
        return Projection { state: "warning", ..calm(&format!("A count found: {tally}. {then}")) };
    }
    // A machine joined or left since, or an operator let plaintext be read.
    if cluster.operation.is_none()
        && cluster.verified.is_some()
        && cluster.servers.values().any(|target| target.stage < Stage::Only)
    {
        return Projection { state: "warning", ..calm(TO_BE_PROVEN) };
    }
    let trouble =
        cluster.servers.keys().find_map(|a| said(a)?.troubles.first().map(|trouble| (a, trouble)));
    if let Some((agent, trouble)) = trouble {
        return Projection { state: "warning", ..calm(&format!("{agent}: {trouble}.")) };
    }
    if let Some(unattended) = unattended(cluster, seen)
        && !cluster.ring.keks.is_empty()
    {
        return Projection { state: "warning", ..calm(&format!("{unattended}.")) };
    }
    calm("Ready")
}
