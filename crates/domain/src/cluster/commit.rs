//! The only ways in which a cluster's durable truth changes.

use super::ring::{Kek, Role};
use super::{
    Cluster, Finished, HISTORY_MAX, Operation, OperationKind, Residue, Rewrite, Stage, TakeUp,
    Tally, Target, Verified,
};
use crate::id::{AgentName, JobId, OperationId, RestoreId, Serial, UnixMs};
use crate::key::RootKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One durable change of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "commit", rename_all = "kebab-case")]
pub enum Commit {
    /// An agent joined: its API server belongs to the cluster now.
    Joined {
        /// Who.
        agent: AgentName,
    },
    /// A machine is gone for good: its API server does not belong to the cluster any longer.
    Left {
        /// Who.
        agent: AgentName,
    },
    /// An operation begins.
    Opened {
        /// Its identifier.
        id: OperationId,
        /// Why.
        kind: OperationKind,
        /// The root key to move to.
        target: RootKey,
        /// How API servers take files up.
        take_up: TakeUp,
        /// Whether agents use the public name of the key service; kept as it is if none.
        public_endpoint: Option<bool>,
        /// Who asked.
        by: String,
    },
    /// Agents are to use the public name of the key service, or no longer.
    Endpoint {
        /// Whether the public one.
        public: bool,
    },
    /// Every agent proved the target.
    Preflighted,
    /// The operation ends before it changed anything.
    Rejected {
        /// Why, and what to do.
        reason: String,
    },
    /// The cluster is registered on the target key.
    Registered,
    /// A KEK was made, wrapped under the target and unwrapped again.
    Minted {
        /// The KEK, its role Staged.
        kek: Kek,
    },
    /// An API server is to have this stage.
    TakeUp {
        /// Which.
        agent: AgentName,
        /// The stage.
        stage: Stage,
    },
    /// The operation's KEK seals from now on.
    Promoted,
    /// The rewrite got this far.
    Rewriting {
        /// How far.
        rewrite: Rewrite,
    },
    /// etcd's bytes were counted and all was under the write KEK.
    Verified {
        /// The proof.
        verified: Verified,
    },
    /// History is compacted at this revision, every member defragmented.
    Compacted {
        /// etcd's revision.
        revision: i64,
    },
    /// etcd's bytes were counted for an operator while the cluster was at rest.
    Counted {
        /// The job that asked for it.
        job: JobId,
        /// What was found.
        tally: Tally,
    },
    /// An operator said that plaintext which nothing explains is to be read, and rewritten.
    PlaintextAccepted,
    /// etcd's files were searched for plaintext.
    Residue {
        /// What was found.
        residue: Residue,
    },
    /// No progress for this reason; `None` takes it back.
    Stuck {
        /// Why.
        reason: Option<String>,
    },
    /// The operation is done.
    Finished,
    /// The operation is given up before its KEK sealed anything.
    Cancelled {
        /// Who decided that.
        by: String,
    },
    /// The operation is given up though its KEK seals already: another one takes its place and
    /// goes back to the root key that wrote before. Where the operation goes to `target` already,
    /// only `without` changes.
    Reversed {
        /// Identifier of the operation that goes back.
        id: OperationId,
        /// The root key that wrote before, or that the operation goes to already.
        target: RootKey,
        /// A root key that is not active and that the cluster is to go on without.
        without: Option<RootKey>,
        /// Who decided that.
        by: String,
    },
    /// Every API server is fenced for the root key that the operation goes on without. Its KEKs
    /// are lost from now on, and where one of them sealed, the operation's KEK does.
    WentWithout {
        /// The root key.
        root: RootKey,
    },
    /// The server was restored from a backup that lacks KEKs which agents hold: what an agent
    /// holds is the cluster's truth again.
    Recovered {
        /// The restore after which it lacks them.
        restore: RestoreId,
        /// The cluster as the agent knows it.
        held: Box<Cluster>,
    },
    /// The root key of a lost KEK is active again, so that live records can be read.
    Readmitted {
        /// Which KEK.
        serial: Serial,
    },
}

/// Why a commit was refused. Nothing was changed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// Another operation is in progress.
    #[error(
        "{kind} operation {id} is in progress; wait for it to end, or follow it with `ks kms status`"
    )]
    Busy {
        /// Its identifier.
        id: OperationId,
        /// Its kind.
        kind: OperationKind,
    },
    /// The commit needs an operation and there is none.
    #[error("no operation is in progress")]
    Idle,
    /// A root key is used once in the life of a cluster.
    #[error(
        "root key {0} was used by this cluster before and cannot be used again; create a new root key, or rotate the current one"
    )]
    Reused(RootKey),
    /// No such API server in the cluster.
    #[error("API server {0} does not belong to this cluster")]
    UnknownServer(AgentName),
    /// Nobody would be left who knows at which stage the cluster is.
    #[error(
        "API server {0} is the last one of a cluster that has keys; let another join before it leaves"
    )]
    LastServer(AgentName),
    /// A step came out of order: a fault in the agent.
    #[error("commit out of order: {0}")]
    OutOfOrder(&'static str),
}

/// Applies `commit` to `cluster`. On success its revision has risen by one; on refusal it is
/// unchanged. Keeps these, whatever the order of calls: at most one KEK has the role Write;
/// serials rise and are never reused; a KEK is Staged before it is Write; a stage falls
/// only from `[kms]` to `[kms, identity]`, when a machine joins or leaves or by an operator's word;
/// a root key that sealed is never asked for a second time, and gone back to only while records
/// may be under it; no KEK is removed once it has sealed. [`Commit::Recovered`] takes over a truth
/// for which they held.
pub fn apply(cluster: &mut Cluster, commit: &Commit, now: UnixMs) -> Result<(), Refusal> {
    let mut next = cluster.clone();
    change(&mut next, commit, now)?;
    next.revision += 1;
    *cluster = next;
    Ok(())
}

fn change(cluster: &mut Cluster, commit: &Commit, now: UnixMs) -> Result<(), Refusal> {
    match commit {
        Commit::Joined { agent } => {
            let stage = first_stage(cluster);
            let target =
                cluster.servers.entry(agent.clone()).or_insert(Target { stage, since: now });
            // A known name may be another machine, or the same one reinstalled: nothing that was
            // seen of it before counts.
            target.since = now;
            void_proof(cluster);
        }
        Commit::Left { agent } => {
            if !cluster.servers.contains_key(agent) {
                return Err(Refusal::UnknownServer(agent.clone()));
            }
            // Who joins next to nobody is taken for unencrypted.
            if cluster.servers.len() == 1 && !cluster.ring.keks.is_empty() {
                return Err(Refusal::LastServer(agent.clone()));
            }
            cluster.servers.remove(agent);
            void_proof(cluster);
        }
        Commit::Opened { id, kind, target, take_up, public_endpoint, by } => {
            if let Some(op) = &cluster.operation {
                return Err(Refusal::Busy { id: op.id, kind: op.kind });
            }
            let write = cluster.ring.write().map(|k| k.root.root);
            let consistent = match kind {
                OperationKind::Enable => write.is_none(),
                OperationKind::Rotate => write == Some(*target),
                OperationKind::Switch => write.is_some() && write != Some(*target),
                OperationKind::Reverse => false,
            };
            if !consistent {
                return Err(Refusal::OutOfOrder("the kind does not fit the key in use"));
            }
            if *kind != OperationKind::Rotate && cluster.used.contains(target) {
                return Err(Refusal::Reused(*target));
            }
            if let Some(public) = public_endpoint {
                cluster.public_endpoint = *public;
            }
            cluster.operation = Some(Operation {
                id: *id,
                kind: *kind,
                target: *target,
                take_up: *take_up,
                requested: now,
                requested_by: by.clone(),
                preflighted: false,
                registered: false,
                serial: None,
                promoted: None,
                rewrite: None,
                verified: None,
                first_verified: None,
                compacted: None,
                stuck: None,
                without: None,
            });
        }
        Commit::Endpoint { public } => cluster.public_endpoint = *public,
        Commit::Preflighted => operation(cluster)?.preflighted = true,
        Commit::Rejected { reason } => {
            let op = operation(cluster)?;
            if op.serial.is_some() {
                return Err(Refusal::OutOfOrder(
                    "a KEK exists already; the operation goes forward",
                ));
            }
            if op.kind == OperationKind::Reverse {
                return Err(Refusal::OutOfOrder("records are under several keys; it goes on"));
            }
            finish(cluster, now, Some(reason.clone()))?;
        }
        Commit::Registered => {
            let op = operation(cluster)?;
            if !op.preflighted {
                return Err(Refusal::OutOfOrder("registered before the preflight"));
            }
            op.registered = true;
        }
        Commit::Minted { kek } => {
            let expected = cluster.ring.next_serial();
            let op = operation(cluster)?;
            if !op.registered {
                return Err(Refusal::OutOfOrder("minted before the registration"));
            }
            if op.serial.is_some() {
                return Err(Refusal::OutOfOrder("this operation has its KEK"));
            }
            if kek.role != Role::Staged || kek.serial != expected || kek.root.root != op.target {
                return Err(Refusal::OutOfOrder("not a staged KEK of the target, next in line"));
            }
            op.serial = Some(kek.serial);
            // One that was kept for API servers whose file names the provider: this one is
            // reported in its place, and nothing is under it.
            cluster.ring.keks.retain(|k| k.role != Role::Staged);
            cluster.ring.keks.push(kek.clone());
            cluster.ring.minted = kek.serial.0;
        }
        Commit::TakeUp { agent, stage } => {
            if cluster.ring.reported().is_none() {
                return Err(Refusal::OutOfOrder("no KEK that a configuration could name"));
            }
            if *stage >= Stage::WriteFirst && cluster.ring.write().is_none() {
                return Err(Refusal::OutOfOrder("no KEK that seals"));
            }
            let proof = cluster.operation.as_ref().map_or(cluster.verified, |op| op.verified);
            if *stage == Stage::Only && proof.is_none() {
                return Err(Refusal::OutOfOrder("plaintext may be left"));
            }
            let target = cluster
                .servers
                .get_mut(agent)
                .ok_or_else(|| Refusal::UnknownServer(agent.clone()))?;
            if *stage < target.stage {
                return Err(Refusal::OutOfOrder("a stage falls only with its proof"));
            }
            *target = Target { stage: *stage, since: now };
            // At rest this comes after a count that found nothing to rewrite.
            if *stage == Stage::Only && cluster.operation.is_none() {
                let left = cluster.disproof.map(|t| Tally { stale: 0, plaintext: 0, ..t });
                cluster.disproof = left.filter(|t| t.unknown > 0);
            }
        }
        Commit::Promoted => {
            let serial = operation(cluster)?
                .serial
                .ok_or(Refusal::OutOfOrder("promoted before it was minted"))?;
            promote(cluster, serial, now)?;
        }
        Commit::Rewriting { rewrite } => {
            let op = operation(cluster)?;
            if op.promoted.is_none() {
                return Err(Refusal::OutOfOrder("rewritten before the KEK was promoted"));
            }
            op.rewrite = Some(*rewrite);
            // Records changed since the proof, so it proves nothing, and what they were before
            // is in the history that has grown since the compaction.
            op.verified = None;
            op.compacted = None;
        }
        Commit::Verified { verified } => {
            let op = operation(cluster)?;
            if op.promoted.is_none() {
                return Err(Refusal::OutOfOrder("verified before the KEK was promoted"));
            }
            op.verified = Some(*verified);
            op.first_verified.get_or_insert(now);
            cluster.verified = Some(*verified);
            cluster.disproof = None;
        }
        Commit::Counted { tally, .. } => {
            if cluster.operation.is_some() || cluster.ring.write().is_none() {
                return Err(Refusal::OutOfOrder("counted where nothing is proven yet"));
            }
            // It says what is there and lets nobody read it: whoever can write to etcd could plant
            // a Secret so.
            cluster.disproof = Some(*tally).filter(|t| t.rewritable() + t.unknown > 0);
        }
        Commit::PlaintextAccepted => {
            if cluster.reads_plaintext() {
                return Err(Refusal::OutOfOrder("plaintext is read already"));
            }
            void_proof(cluster);
        }
        Commit::Compacted { revision } => {
            let op = operation(cluster)?;
            if op.verified.is_none() {
                return Err(Refusal::OutOfOrder("compacted before it was verified"));
            }
            op.compacted = Some(*revision);
        }
        Commit::Residue { residue } => cluster.residue = Some(*residue),
        Commit::Stuck { reason } => operation(cluster)?.stuck.clone_from(reason),
        Commit::Finished => {
            if operation(cluster)?.verified.is_none() {
                return Err(Refusal::OutOfOrder("finished before it was verified"));
            }
            finish(cluster, now, None)?;
        }
        Commit::Cancelled { by } => {
            let op = operation(cluster)?;
            if op.promoted.is_some() || op.kind == OperationKind::Reverse {
                return Err(Refusal::OutOfOrder("records are under several keys; it goes on"));
            }
            // At first enablement API servers may name the provider already, though nothing is
            // written through it. Without a KEK to report they would not be ready, nor start.
            let named = cluster.servers.values().any(|t| t.stage > Stage::Bare);
            if cluster.ring.write().is_some() || !named {
                cluster.ring.keks.retain(|k| k.role != Role::Staged);
            }
            finish(cluster, now, Some(format!("cancelled by {by}; nothing was changed")))?;
        }
        Commit::Reversed { id, target, without, by } => {
            let former = cluster.ring.former();
            let op = operation(cluster)?;
            if without.is_some_and(|root| root == *target) {
                return Err(Refusal::OutOfOrder("it cannot go without the key that it goes to"));
            }
            let freed = op.promoted.is_some() && without.is_some();
            let forward = op.kind == OperationKind::Reverse || freed;
            if forward && op.target == *target {
                op.without = *without;
                return Ok(());
            }
            if op.promoted.is_none() {
                return Err(Refusal::OutOfOrder("its KEK seals nothing yet; it can be cancelled"));
            }
            if former != Some(*target) {
                return Err(Refusal::OutOfOrder("not the root key that wrote before"));
            }
            let back = Operation {
                id: *id,
                kind: OperationKind::Reverse,
                target: *target,
                // It goes on with the work of the one before: what that one changed since it was
                // asked for is to be cleaned up by this one.
                take_up: op.take_up,
                requested: op.requested,
                requested_by: by.clone(),
                // Every node has used this key.
                preflighted: true,
                registered: false,
                serial: None,
                promoted: None,
                rewrite: None,
                verified: None,
                first_verified: None,
                compacted: None,
                stuck: None,
                without: *without,
            };
            let reason = format!("{by} went back to root key {}", target.key);
            finish(cluster, now, Some(reason))?;
            cluster.operation = Some(back);
        }
        Commit::WentWithout { root } => {
            let op = operation(cluster)?;
            if op.without != Some(*root) {
                return Err(Refusal::OutOfOrder("nobody decided to go on without this root key"));
            }
            let serial = op.serial;
            if cluster.ring.write().is_some_and(|k| k.root.root == *root) {
                let serial = serial.ok_or(Refusal::OutOfOrder("no KEK that could seal instead"))?;
                promote(cluster, serial, now)?;
            }
            for kek in &mut cluster.ring.keks {
                if kek.root.root == *root && kek.role == Role::Read {
                    kek.role = Role::Lost;
                }
            }
        }
        Commit::Recovered { held, .. } => recover(cluster, held)?,
        Commit::Readmitted { serial } => {
            operation(cluster)?;
            let lost = |k: &&mut Kek| k.serial == *serial && k.role == Role::Lost;
            let kek = cluster.ring.keks.iter_mut().find(lost);
            kek.ok_or(Refusal::OutOfOrder("only a lost KEK can be readmitted"))?.role = Role::Read;
        }
    }
    Ok(())
}

/// What is said to a node that would give KEKs back to a server which was not restored, as far as
/// that server knows.
pub const NOT_RESTORED: &str = "the server does not know that it was restored from a backup; if its database was put back by other means, stop it, make a backup of it with `claviger server backup`, and bring that back with `claviger server restore`";

/// Numbers of KEKs that may be missing at the end of a ring: of operations that were cancelled.
const GAP_MAX: u64 = 1_000;

/// Takes over what an agent holds of a cluster whose truth fell back. Nothing that may have
/// sealed is dropped: a KEK that only this truth knows may be Staged at most.
fn recover(cluster: &mut Cluster, held: &Cluster) -> Result<(), Refusal> {
    let out_of_order = |why| Err(Refusal::OutOfOrder(why));
    if held.id != cluster.id {
        return out_of_order("another cluster's truth");
    }
    for kek in &cluster.ring.keks {
        let same = held.ring.get(kek.serial).is_some_and(|k| k.wrapped == kek.wrapped);
        if !same && kek.role != Role::Staged {
            return out_of_order("a KEK here may have sealed, and the agent does not hold it");
        }
        if let Some(now) = held.ring.get(kek.serial)
            && !may_become(kek.role, now.role)
        {
            return out_of_order("a KEK here was further than the agent says");
        }
    }
    let serials: Vec<Serial> = held.ring.keks.iter().map(|k| k.serial).collect();
    let writes = held.ring.keks.iter().filter(|k| k.role == Role::Write).count();
    if writes > 1 || !serials.is_sorted_by(|a, b| a < b) {
        return out_of_order("not a ring");
    }
    // Numbers are given one by one, so a true ring has few gaps; the last number would be the end.
    let newest = serials.last().map_or(0, |s| s.0);
    if held.ring.minted < newest || held.ring.minted - newest > GAP_MAX {
        return out_of_order("not a ring: its count of KEKs is not theirs");
    }
    let write = |c: &Cluster| c.ring.write().map(|k| k.serial);
    let lacks = held.ring.keks.iter().any(|k| cluster.ring.get(k.serial) != Some(k));
    if !lacks || write(held) < write(cluster) {
        return out_of_order("the agent holds nothing that is missing here");
    }
    let minted = held.ring.minted.max(cluster.ring.minted);
    cluster.ring = held.ring.clone();
    cluster.ring.minted = minted;
    for (agent, target) in &mut cluster.servers {
        if let Some(known) = held.servers.get(agent).filter(|known| known.stage > target.stage) {
            *target = *known;
        }
    }
    for root in &held.used {
        if !cluster.used.contains(root) {
            cluster.used.push(*root);
        }
    }
    cluster.operation.clone_from(&held.operation);
    void_proof(cluster);
    Ok(())
}

/// Whether a KEK that had role `was` may have role `is` later.
fn may_become(was: Role, is: Role) -> bool {
    match was {
        Role::Staged => true,
        Role::Write => matches!(is, Role::Write | Role::Read | Role::Lost | Role::Retained),
        Role::Read | Role::Lost => matches!(is, Role::Read | Role::Lost | Role::Retained),
        Role::Retained => is == Role::Retained,
    }
}

/// What an API server that joins is to have: enough to read what the others may write, and no
/// more than all of them can read. Who was told to write may not have taken it up yet, so a
/// newcomer beside it writes plaintext still; where plaintext is read no more, it must not.
fn first_stage(cluster: &Cluster) -> Stage {
    match cluster.servers.values().map(|t| t.stage).max() {
        None | Some(Stage::Bare) => Stage::Bare,
        // Everybody wrote by the time of the first proof.
        Some(Stage::WriteFirst) if cluster.verified.is_some() => Stage::WriteFirst,
        Some(Stage::ReadFirst | Stage::WriteFirst) => Stage::ReadFirst,
        Some(Stage::Only) => Stage::WriteFirst,
    }
}

/// A proof did not know of the requests of an API server that came since, nor of the last ones of
/// an API server that was silent and is gone. Either may have written plaintext, which an API server
/// at `[kms]` can neither read nor rewrite; an operator may know of other plaintext. So all read it
/// again, and write none, until etcd was counted anew.
fn void_proof(cluster: &mut Cluster) {
    for target in cluster.servers.values_mut() {
        target.stage = target.stage.min(Stage::WriteFirst);
    }
    if let Some(op) = &mut cluster.operation {
        op.verified = None;
        op.first_verified = None;
        op.compacted = None;
    }
}

fn operation(cluster: &mut Cluster) -> Result<&mut Operation, Refusal> {
    cluster.operation.as_mut().ok_or(Refusal::Idle)
}

fn promote(cluster: &mut Cluster, serial: Serial, now: UnixMs) -> Result<(), Refusal> {
    let staged = cluster.ring.get(serial).filter(|k| k.role == Role::Staged);
    let root = staged.ok_or(Refusal::OutOfOrder("only a staged KEK can be promoted"))?.root.root;
    operation(cluster)?.promoted = Some(now);
    if !cluster.used.contains(&root) {
        cluster.used.push(root);
    }
    for kek in &mut cluster.ring.keks {
        if kek.serial == serial {
            kek.role = Role::Write;
        } else if kek.role == Role::Write {
            kek.role = Role::Read;
        }
    }
    Ok(())
}

fn finish(cluster: &mut Cluster, now: UnixMs, rejected: Option<String>) -> Result<(), Refusal> {
    let op = cluster.operation.take().ok_or(Refusal::Idle)?;
    if rejected.is_none() {
        for kek in &mut cluster.ring.keks {
            if matches!(kek.role, Role::Read | Role::Lost) {
                kek.role = Role::Retained;
            }
        }
    }
    let done = Finished {
        id: op.id,
        kind: op.kind,
        target: op.target,
        requested: op.requested,
        requested_by: op.requested_by,
        ended: now,
        rejected,
        serial: op.serial,
    };
    cluster.history.insert(0, done);
    cluster.history.truncate(HISTORY_MAX);
    Ok(())
}
