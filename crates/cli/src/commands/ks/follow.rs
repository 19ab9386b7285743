//! Follows work on a cluster until it ends. The cluster does the work whether or not anybody
//! follows: Ctrl-C only stops looking.

use crate::connect::Link;
use crate::exit::Failure;
use crate::render::{Look, Progress};
use claviger_domain::cluster::{Cluster, Operation, Stage};
use claviger_domain::id::{JobId, OperationId};
use claviger_wire::agent::JobReport;
use claviger_wire::ks::KmsStatus;
use std::time::{Duration, Instant};

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A server that does not answer for this long is given up; one that is being restarted is back
/// well before.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long a new key version may take to become an operation: an event comes within a second,
/// a poll within fifteen.
const OPENING_MAX: Duration = Duration::from_secs(30);

/// A verification or a scrub of any cluster that fits one machine ends well before.
const JOB_MAX: Duration = Duration::from_secs(1800);

/// Until when to follow.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// Until this operation ended.
    Operation(OperationId),
    /// Until nothing is left to do: no operation, all under the current root key version.
    Rest,
}

/// How following ended.
pub enum Ended {
    /// The goal is reached.
    Reached(Box<KmsStatus>),
    /// The person does not want to look any longer.
    Detached,
}

/// Follows. Fails when the operation was rejected or given up, or the server is silent for a minute.
pub async fn follow(cluster: &str, goal: Goal, look: Look, link: &Link) -> Result<Ended, Failure> {
    let mut progress = Progress::new(look);
    tokio::select! {
        ended = until(cluster, goal, &mut progress, link) => ended.map(Ended::Reached),
        _ = tokio::signal::ctrl_c() => {
            progress.end();
            eprintln!("detached; the cluster goes on by itself. Look again: claviger ks kms follow -c {cluster}");
            Ok(Ended::Detached)
        }
    }
}

async fn until(
    cluster: &str,
    goal: Goal,
    progress: &mut Progress,
    link: &Link,
) -> Result<Box<KmsStatus>, Failure> {
    let started = Instant::now();
    let mut heard = Instant::now();
    loop {
        match link.clusters.kms_status(cluster).await {
            Ok(status) => {
                heard = Instant::now();
                show(&status, progress);
                if reached(&status, goal, started.elapsed())? {
                    return Ok(Box::new(status));
                }
            }
            Err(error) => {
                let failure = Failure::from(error);
                if failure.code != crate::exit::UNREACHABLE || heard.elapsed() > SILENCE_MAX {
                    return Err(failure);
                }
                progress.phase("the key server does not answer; trying again");
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn reached(status: &KmsStatus, goal: Goal, waited: Duration) -> Result<bool, Failure> {
    let cluster = &status.state.cluster;
    match goal {
        Goal::Operation(id) => {
            let Some(ended) = cluster.history.iter().find(|f| f.id == id) else {
                if cluster.operation.as_ref().is_some_and(|op| op.id == id) {
                    return Ok(false);
                }
                return Err(Failure::new(
                    crate::exit::UNKNOWN,
                    format!(
                        "operation {id} is no longer known: the key server was restored, or many came after it"
                    ),
                    "how the cluster stands: claviger ks kms status",
                ));
            };
            match &ended.rejected {
                None => Ok(true),
                Some(reason) => Err(Failure::new(
                    crate::exit::NO,
                    format!("the {} did not come about: {reason}", ended.kind),
                    "how the cluster stands: claviger ks kms status; mend the cause and ask again",
                )),
            }
        }
        Goal::Rest => {
            if cluster.operation.is_some() {
                return Ok(false);
            }
            if is_current(status) || waited > OPENING_MAX {
                return Ok(true);
            }
            Ok(false)
        }
    }
}

/// Whether the write KEK is under the current version of its root key.
pub fn is_current(status: &KmsStatus) -> bool {
    let Some(write) = status.state.cluster.ring.write() else { return true };
    let root = status.state.roots.iter().find(|r| r.root == write.root.root);
    root.is_none_or(|r| r.current.is_none_or(|current| current == write.root.version))
}

fn show(status: &KmsStatus, progress: &mut Progress) {
    let cluster = &status.state.cluster;
    let Some(op) = &cluster.operation else { return };
    if let Some(reason) = &op.stuck {
        progress.phase(&format!("stopped: {reason}"));
        return;
    }
    progress.phase(phase(op, cluster));
    if op.promoted.is_some()
        && op.verified.is_none()
        && let Some(r) = &op.rewrite
    {
        progress.count("rewriting Secrets", r.done, r.total, r.per_second);
    }
}

/// The operation's phase in words.
pub fn phase(op: &Operation, cluster: &Cluster) -> &'static str {
    let least = cluster.servers.values().map(|target| target.stage).min().unwrap_or_default();
    if !op.preflighted {
        "trying the root key on every control-plane node"
    } else if !op.registered {
        "registering the cluster on the root key, so that the key cannot be deleted"
    } else if op.serial.is_none() {
        "making the cluster's key and wrapping it under the root key"
    } else if least == Stage::Bare {
        "API servers learn to read under the key"
    } else if op.promoted.is_none() {
        "every agent opens the key before the first write under it"
    } else if least < Stage::WriteFirst {
        "API servers learn to write under the key"
    } else if op.rewrite.is_none() {
        "proving by a canary that each API server writes under the key"
    } else if op.verified.is_none() {
        "rewriting Secrets under the key, then counting etcd's bytes"
    } else if least < Stage::Only {
        "API servers unlearn to read plaintext"
    } else if op.compacted.is_none() {
        "compacting and defragmenting etcd"
    } else {
        "finishing"
    }
}

/// Waits for a job and gives its result.
pub async fn job(
    cluster: &str,
    id: JobId,
    progress: &mut Progress,
    link: &Link,
) -> Result<serde_json::Value, Failure> {
    let started = Instant::now();
    let mut heard = Instant::now();
    loop {
        match link.clusters.job(cluster, id).await {
            Ok(view) => {
                heard = Instant::now();
                match view.report {
                    Some(JobReport::Done { result }) => return Ok(result),
                    Some(JobReport::Failed { reason }) => {
                        return Err(Failure::new(crate::exit::UNKNOWN, reason, ""));
                    }
                    Some(JobReport::Running { note }) => progress.phase(&note),
                    None => progress.phase("waiting for an agent of the cluster"),
                }
            }
            Err(error) => {
                let failure = Failure::from(error);
                if failure.code != crate::exit::UNREACHABLE || heard.elapsed() > SILENCE_MAX {
                    return Err(failure);
                }
            }
        }
        if started.elapsed() > JOB_MAX {
            return Err(Failure::new(
                crate::exit::UNKNOWN,
                "no agent finished the job within half an hour",
                format!("see whether agents are there: claviger ks kms status -c {cluster}"),
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
