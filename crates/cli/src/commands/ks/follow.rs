//! Follows work on a cluster until it ends. The cluster does the work whether or not anybody
//! follows: Ctrl-C only stops looking.

use super::view;
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

/// Longest time that somebody may want to follow, in seconds: a week.
const PATIENCE_MAX: u64 = 7 * 24 * 3600;

/// A verification or a scrub of any cluster that fits one machine ends well before.
const JOB_MAX: Duration = Duration::from_secs(1800);

/// How long a job may wait before it is asked whether there are agents at all: they hear of it
/// within a second, or ask within fifteen.
const TAKEN_AFTER: Duration = Duration::from_secs(20);

/// An agent that has not called in for so long is not there: it does every few seconds.
const AGENT_SILENT_MS: i64 = 60_000;

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

/// `90s`, `30m` or `12h`, to a week.
pub fn patience(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a time from 1s to 168h, such as 90s, 30m or 12h".to_owned();
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    match number.checked_mul(unit) {
        Some(seconds @ 1..=PATIENCE_MAX) => Ok(Duration::from_secs(seconds)),
        _ => Err(wrong()),
    }
}

/// Follows, for at most `patience` if that is given. Fails when the operation was rejected or given
/// up, time is up, or the server is silent for a minute.
pub async fn follow(
    cluster: &str,
    goal: Goal,
    patience: Option<Duration>,
    look: Look,
    link: &Link,
) -> Result<Ended, Failure> {
    let mut progress = Progress::new(look);
    let up = async {
        match patience {
            Some(patience) => tokio::time::sleep(patience).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = until(cluster, goal, &mut progress, link) => ended.map(Ended::Reached),
        () = up => Err(Failure::new(
            crate::exit::UNKNOWN,
            format!("cluster {cluster} is not done yet, and time is up; it goes on by itself"),
            format!("look again: claviger ks kms follow -c {cluster}"),
        )),
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
        Goal::Rest => match rest(cluster.operation.is_some(), is_current(status), waited) {
            Rest::Reached => Ok(true),
            Rest::Working => Ok(false),
            Rest::NotBegun => Err(Failure::new(
                crate::exit::UNKNOWN,
                "the cluster's key is under an older version of its root key, and no operation has begun",
                format!(
                    "are agents there, and the root key active? claviger ks kms status -c {}",
                    cluster.name
                ),
            )),
        },
    }
}

/// How near [`Goal::Rest`] is.
#[derive(Debug, PartialEq, Eq)]
enum Rest {
    Reached,
    Working,
    /// There is work, and nobody does it.
    NotBegun,
}

fn rest(operation: bool, current: bool, waited: Duration) -> Rest {
    match (operation, current) {
        (false, true) => Rest::Reached,
        (false, false) if waited > OPENING_MAX => Rest::NotBegun,
        _ => Rest::Working,
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
    for warning in view::warnings(status) {
        progress.warn(&warning);
    }
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
                    None if started.elapsed() > TAKEN_AFTER => {
                        somebody_there(cluster, link).await?;
                        progress.phase("waiting for an agent of the cluster to have time");
                    }
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

/// Fails if no agent of the cluster calls in.
async fn somebody_there(cluster: &str, link: &Link) -> Result<(), Failure> {
    let status = link.clusters.kms_status(cluster).await?;
    let since = status.state.now.0.saturating_sub(AGENT_SILENT_MS);
    if status.agents.iter().any(|agent| agent.last_contact.0 >= since) {
        return Ok(());
    }
    let hint = format!(
        "start the agents; who called in last, and when: claviger ks kms status -c {cluster}"
    );
    Err(Failure::new(crate::exit::UNKNOWN, "no agent of the cluster calls in", hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_has_units_and_bounds() {
        for (text, seconds) in [("1s", 1), ("90s", 90), ("30m", 1800), ("168h", 604_800)] {
            assert_eq!(patience(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "s", "0s", "5", "5d", "169h", "-1m", "1 m", "ü", "99999999999999999999h"] {
            assert!(patience(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn work_that_does_not_begin_is_not_done() {
        let late = OPENING_MAX + Duration::from_secs(1);
        for (operation, current, waited, want) in [
            (false, true, Duration::ZERO, Rest::Reached),
            (false, true, late, Rest::Reached),
            (true, true, late, Rest::Working),
            (true, false, late, Rest::Working),
            (false, false, OPENING_MAX, Rest::Working),
            (false, false, late, Rest::NotBegun),
        ] {
            assert_eq!(rest(operation, current, waited), want, "{operation} {current} {waited:?}");
        }
    }
}
