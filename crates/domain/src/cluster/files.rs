//! What plaintext is left in etcd's files, over all members: each agent counts those of its machine.

use super::{Cluster, Residue, Seen};
use crate::id::AgentName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The files of one etcd member, as an agent on its machine sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EtcdFiles {
    /// Which: the same text from every agent that names the same directory, at most 64 characters.
    pub place: String,
    /// Plaintext found in them at the last look, `live` left at 0; none before the first.
    pub residue: Option<Residue>,
}

/// What is left in all files that agents can see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The sum; `at` is that of the oldest count. None where nobody has counted.
    pub sum: Option<Residue>,
    /// Members in the sum.
    pub members: usize,
    /// Agents that have files and have not counted them yet.
    pub not_counted: Vec<AgentName>,
    /// Agents that have no files, by their settings.
    pub without: Vec<AgentName>,
}

/// Adds up what the cluster's agents counted. Several agents of a machine share a member, of which
/// the newest count is taken; so is that of the cluster itself, where there is but one member.
pub fn left(cluster: &Cluster, seen: &BTreeMap<AgentName, Seen>) -> Left {
    let mut places: BTreeMap<&str, Option<Residue>> = BTreeMap::new();
    let (mut not_counted, mut without) = (Vec::new(), Vec::new());
    for agent in cluster.servers.keys() {
        let Some(files) = seen.get(agent).map(|s| &s.observation.files) else {
            not_counted.push(agent.clone());
            continue;
        };
        let Some(files) = files else {
            without.push(agent.clone());
            continue;
        };
        let newest = places.entry(&files.place).or_default();
        if files.residue.map(|r| r.at) > newest.map(|r| r.at) {
            *newest = files.residue;
        }
    }
    if places.len() <= 1 {
        let only = places.keys().next().copied().unwrap_or_default();
        let newest = places.entry(only).or_default();
        if cluster.residue.map(|r| r.at) > newest.map(|r| r.at) {
            *newest = cluster.residue;
        }
    }
    // One that shares a member which was counted owes nothing.
    for agent in cluster.servers.keys() {
        let files = seen.get(agent).and_then(|s| s.observation.files.as_ref());
        if files.is_some_and(|f| places.get(f.place.as_str()).is_none_or(Option::is_none)) {
            not_counted.push(agent.clone());
        }
    }
    let counted: Vec<Residue> = places.into_values().flatten().collect();
    let sum = counted.iter().copied().reduce(|a, b| Residue {
        live: a.live.max(b.live),
        db: a.db.saturating_add(b.db),
        wal: a.wal.saturating_add(b.wal),
        at: a.at.min(b.at),
    });
    let live = cluster.residue.map_or(0, |r| r.live);
    let sum = sum.map(|r| Residue { live: r.live.max(live), ..r });
    Left { sum, members: counted.len(), not_counted, without }
}
