//! A node leaves its cluster: what an operator decides when a machine is gone for good.
//!
//! What is taken away is what the server can take away: its certificate counts no longer, its API
//! server belongs to the cluster no longer, so nothing waits for it. What it holds in memory the
//! server cannot reach. If the machine runs after all, cut off, its API server goes on with the
//! keys that it has opened until `coast_max` is over: no suspension fences it, it writes under the
//! KEK that it knows, and plaintext if it was not encrypted yet. So nobody leaves unless a person
//! says that the machine is off.

use super::commits;
use super::fault::Fault;
use super::state::Whole;
use claviger_domain::cluster::commit::Commit;
use claviger_domain::cluster::{FRESH_MS, Stage};
use claviger_domain::id::{AgentName, UnixMs};
use claviger_store::{Tx, clusters};
use claviger_wire::ks::NodeRemoved;

/// Removes a node, in the caller's transaction. Refused while its agent is heard, and without
/// `force`: the operator's word that the machine is off for good.
pub fn remove(
    tx: &Tx<'_>,
    whole: Whole,
    agent: &AgentName,
    force: bool,
    now: UnixMs,
) -> Result<NodeRemoved, Fault> {
    let id = whole.row.cluster.id.clone();
    let row = clusters::agent(tx, &id, agent)?;
    let (Some(row), Some(target)) = (row, whole.row.cluster.servers.get(agent).copied()) else {
        return Err(Fault::NoNode(agent.clone()));
    };
    let spoke = whole.seen.get(agent).map_or(row.last_contact, |s| s.at.max(row.last_contact));
    let silent_ms = now.apart(spoke);
    if silent_ms < FRESH_MS {
        return Err(Fault::NodeAlive { agent: agent.clone(), heard_s: silent_ms / 1000 });
    }
    if !force {
        return Err(Fault::NodeMayRun(agent.clone(), silent_ms / 1000));
    }
    commits::store(tx, whole.row, &Commit::Left { agent: agent.clone() }, now)?;
    clusters::agent_left(tx, &id, agent)?;
    let mut notes = vec![format!(
        "The certificate of agent {agent} counts no longer. Should its machine still run, its API server goes on with the keys in its memory until coast_max is over, and no suspension reaches it: keep it off."
    )];
    if target.stage < Stage::Only {
        notes.push("Its API server may write plaintext while it runs.".to_owned());
    }
    notes.push(
        "To bring it back: `claviger ks cluster join-token`, with its agent's state directory emptied."
            .to_owned(),
    );
    Ok(NodeRemoved { agent: agent.clone(), notes })
}
