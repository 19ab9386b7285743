//! The next step of a cluster, in words for people.

use claviger_domain::cluster::plan::{Facts, Step, Why, must_fence, plan, unattended};
use claviger_domain::cluster::project::down;
use claviger_domain::cluster::ring::Role;
use claviger_domain::cluster::{Cluster, RootStatus, Seen, Tally};
use claviger_domain::id::{AgentName, UnixMs};
use claviger_wire::ks::AgentView;
use std::collections::BTreeMap;

/// What happens next and why, as far as the server can tell: it never reads etcd itself. Where a
/// proof was committed, its count stands for a fresh one.
pub fn next(
    cluster: &Cluster,
    seen: &BTreeMap<AgentName, Seen>,
    roots: &[RootStatus],
    now: UnixMs,
) -> String {
    if seen.values().any(|s| s.observation.ahead.is_some()) {
        return "restore a newer backup of the key server: docs/runbooks/server-lost.md".to_owned();
    }
    let verified = cluster.operation.as_ref().and_then(|op| op.verified);
    let tally = verified.map(|proof| Tally {
        revision: proof.revision,
        at: proof.at,
        total: proof.records,
        current: proof.records,
        stale: 0,
        plaintext: 0,
        unknown: 0,
    });
    let step = plan(&Facts { cluster, seen, roots, tally: tally.as_ref(), now });
    const COUNTS: &str = "an agent counts etcd and rewrites what is not under the new key";
    let Some(op) = &cluster.operation else {
        return match (&step, unattended(cluster, seen)) {
            (Step::Wait(Why::NoTally), _) => COUNTS.to_owned(),
            (Step::Rest, Some(unattended)) => unattended.to_string(),
            (Step::Rest, None) => match (&cluster.disproof, down(cluster, seen)) {
                (Some(tally), _) => of(&Step::Wait(match cluster.unexplained() {
                    0 => Why::Unknown(tally.unknown),
                    plaintext => Why::Plaintext(plaintext),
                })),
                (None, Some((agent, why))) => {
                    format!("wait: API server {agent} does not serve: {why}")
                }
                (None, None) => of(&step),
            },
            _ => of(&step),
        };
    };
    let text = match (&step, op.rewrite) {
        (Step::Wait(Why::NoTally), Some(r)) if r.done < r.total => format!(
            "rewrite every record that is not under the new key: {} of {} done, {} a second",
            r.done, r.total, r.per_second
        ),
        (Step::Wait(Why::NoTally), _) => COUNTS.to_owned(),
        _ => of(&step),
    };
    let text = match &op.stuck {
        Some(reason) => format!("{text}; stopped: {reason}"),
        None => text,
    };
    // A list of all Secrets fails on one that cannot be read, and an API server may not become
    // ready for it: whatever is waited for, this is the likely cause.
    match cluster.ring.keks.iter().find(|k| k.role == Role::Lost) {
        Some(kek) => format!(
            "{text}; Secrets under KEK {} cannot be read before root key {} is active again or they are gone: `claviger census` counts them",
            kek.serial, kek.root.root.key
        ),
        None => text,
    }
}

/// What happens next while a root key closes the cluster; none while none does, and while an
/// operation goes on without it. From the same facts as the acknowledgement: what an agent only
/// says of itself fences nothing.
pub fn closed(cluster: &Cluster, roots: &[RootStatus], agents: &[AgentView]) -> Option<String> {
    let root = must_fence(cluster, roots)?;
    if cluster.operation.as_ref().is_some_and(|op| op.without.is_some()) {
        return None;
    }
    let open: Vec<&str> =
        agents.iter().filter(|a| a.unfenced_since.is_some()).map(|a| a.agent.as_str()).collect();
    Some(if open.is_empty() {
        format!("every API server is fenced; root key {} is {}", root.root.key, root.state)
    } else {
        format!(
            "wait: not confirmed by {} that the API server is fenced; until then it may serve what it holds",
            open.join(", ")
        )
    })
}

/// A step in words.
pub fn of(step: &Step) -> String {
    match step {
        Step::Rest => "nothing to do".into(),
        Step::Wait(why) => format!("wait: {why}"),
        Step::Open { target } => {
            format!("begin a rotation: root key {} has a newer version", target.key)
        }
        Step::CommitPreflighted => "note that every agent can use the root key".into(),
        Step::Reject { reason } => format!("give up, nothing was changed: {reason}"),
        Step::Register { target } => {
            format!("register the cluster as a user of root key {}", target.key)
        }
        Step::Mint { target, serial } => format!("make KEK {serial} under root key {}", target.key),
        Step::TakeUp { agent, stage } => {
            format!("let the API server of {agent} take up {stage}")
        }
        Step::Promote { serial } => format!("let KEK {serial} seal"),
        Step::Rewrite { left } => format!("rewrite {left} records that are not under the new key"),
        Step::Verify => "count etcd's bytes and open a sample with a fresh plugin".into(),
        Step::Compact { revision } => {
            format!("compact etcd's history at revision {revision} and defragment every member")
        }
        Step::GoWithout { root } => {
            format!("go on without root key {}: every API server is fenced", root.key)
        }
        Step::Readmit { serial } => {
            format!("read what is under KEK {serial} again: its root key is active")
        }
        Step::Finish => "point the registration at the version in use and end".into(),
    }
}
