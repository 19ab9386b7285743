//! The loop that carries a cluster through enable, rotate and switch. It runs in the one agent
//! of a cluster that holds the lease: look, plan, do one step, commit it, look again.
//!
//! | module | what it does |
//! |---|---|
//! | [`lease`] | who may run the loop, and until when |
//! | [`steps`] | one step, and its commit |
//! | [`rewrite`] | every stale record stored again, through the API server |
//! | [`verify`] | the proof from etcd's bytes and by a fresh plugin |
//! | [`jobs`] | what an operator asked for: census, verify, scrub |
//! | [`kube`] | the plain HTTPS calls to a kube-apiserver |

use crate::contact::wall;
use crate::node::{Node, Part};
use crate::run::with_causes;
use claviger_domain::cluster::Cluster;
use claviger_domain::cluster::commit::{Commit, NOT_RESTORED};
use claviger_domain::cluster::plan::{Facts, Step, Why, plan};
use claviger_etcd::census::{Census, Keep};
use claviger_etcd::resource::Resource;
use claviger_wire::agent::{State, code};
use lease::Lease;
use std::sync::Arc;
use std::time::{Duration, Instant};
use steps::{StepError, Steps};

pub mod jobs;
pub mod kube;
pub mod lease;
pub mod rewrite;
pub mod steps;
pub mod verify;

/// Pause between two looks while an operation is open: its events are seconds apart.
const BUSY: Duration = Duration::from_millis(500);
/// Pause between two looks at rest. A nudge of the server cuts it short.
const IDLE: Duration = Duration::from_secs(2);
/// How long a step may fail before the cluster says that it is stuck.
const PATIENCE: Duration = Duration::from_secs(30);
/// The cluster is told another reason after so long only: each is a line in the audit log.
const TELLS_EACH: Duration = Duration::from_secs(60);
/// Longest pause after a failure.
const BACK_OFF_MAX: Duration = Duration::from_secs(15);
/// How long steps may fail without a break before another agent is to try: the trouble may be this
/// node's own.
const GIVES_WAY: Duration = Duration::from_secs(180);

/// Runs the loop whenever this agent holds `lease`, which another task keeps. Never returns.
pub async fn run(node: Arc<Node>, lease: Lease) {
    let mut steps = Steps::new(Arc::clone(&node), lease.clone());
    let mut jobs = jobs::Jobs::new(Arc::clone(&node), lease.clone());
    let mut trouble = Trouble::default();
    let mut news = node.watch_latest();
    loop {
        let pause = if lease.held() {
            match look(&node, &mut steps, &mut jobs).await {
                Ok(Outcome::Moved(state)) => {
                    trouble.over(&mut steps, &state).await;
                    Duration::ZERO
                }
                Ok(Outcome::Waits { state, why, counting }) => {
                    trouble.waits(&mut steps, &state, &why).await;
                    pause_for(&why, counting)
                }
                Ok(Outcome::Rests) => {
                    trouble.none(&node);
                    IDLE
                }
                Ok(Outcome::Apart) => {
                    trouble.none(&node);
                    BACK_OFF_MAX
                }
                Ok(Outcome::GivesWay) => {
                    trouble.none(&node);
                    lease.give_way();
                    BUSY
                }
                Err(error) => {
                    let pause = trouble.met(&mut steps, &error).await;
                    if trouble.gives_way(Instant::now(), others(&node)) {
                        tracing::warn!("steps fail all the time here; another agent is to try");
                        lease.give_way();
                    }
                    pause
                }
            }
        } else {
            trouble.none(&node);
            IDLE
        };
        if pause.is_zero() {
            continue;
        }
        // What we have just read ourselves is no news.
        news.mark_unchanged();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // Only at rest: during work the pace is ours.
            _ = news.changed(), if pause >= IDLE => {}
        }
    }
}

enum Outcome {
    /// A step was done and committed.
    Moved(Box<State>),
    /// Somebody else must move first.
    Waits {
        state: Box<State>,
        why: Why,
        /// How long it took to count etcd, where the answer needed that.
        counting: Duration,
    },
    /// Nothing to do.
    Rests,
    /// The server and this node do not agree, and only an operator can mend it.
    Apart,
    /// Another node holds KEKs that the server lacks, and needs the lease to give them back.
    GivesWay,
}

async fn look(node: &Node, steps: &mut Steps, jobs: &mut jobs::Jobs) -> Result<Outcome, StepError> {
    let state = node.clients().api.state().await?;
    node.took(state.clone())?;
    if node.ahead().is_some()
        && let Some(held) = node.cluster_truth()
    {
        // Nothing can be planned on a truth that lacks KEKs, and nothing counted by it.
        let Some(restore) = state.restored else { return Ok(apart(node, NOT_RESTORED.into())) };
        let recovered = Commit::Recovered { restore, held: Box::new(held) };
        return match steps.commit(&state, recovered).await {
            Ok(state) => {
                tracing::warn!("the server had forgotten KEKs of this cluster; it has them again");
                Ok(Outcome::Moved(Box::new(state)))
            }
            Err(StepError::Server(error)) if error.reason() == Some(code::REFUSED) => {
                Ok(apart(node, error.to_string()))
            }
            Err(error) => Err(error),
        };
    }
    jobs.look(&state).await;
    let (mut tally, mut counting) = (None, Duration::ZERO);
    let mut step = next(&state, None);
    if step == Step::Wait(Why::NoTally) {
        let begun = Instant::now();
        let census = count(node).await?;
        counting = begun.elapsed();
        tally = Some(census.tally(&state.cluster.id, &state.cluster.ring));
        step = next(&state, tally.as_ref());
        if let Step::Rewrite { left } = step {
            tracing::info!(left, "rewriting");
            let state = steps.rewrite(state, &census).await?;
            return Ok(Outcome::Moved(Box::new(state)));
        }
    }
    match step {
        Step::Rest => Ok(Outcome::Rests),
        Step::Wait(Why::Ahead(_)) => Ok(Outcome::GivesWay),
        Step::Wait(why) => Ok(Outcome::Waits { state: Box::new(state), why, counting }),
        step => {
            tracing::info!(?step, "next");
            let state = steps.take(state, step, tally).await?;
            Ok(Outcome::Moved(Box::new(state)))
        }
    }
}

/// The pause before the next look at what is waited for. A count reads every record, so it takes a
/// tenth of the time at most; and what only an operator can mend takes its time.
fn pause_for(why: &Why, counting: Duration) -> Duration {
    if matches!(why, Why::Unknown(_) | Why::Plaintext(_)) {
        return BACK_OFF_MAX;
    }
    (counting * 9).clamp(BUSY, BACK_OFF_MAX)
}

/// Whether the cluster has other agents.
fn others(node: &Node) -> bool {
    node.cluster_truth().is_some_and(|cluster| cluster.servers.len() > 1)
}

fn apart(node: &Node, why: String) -> Outcome {
    if node.note_not_taken_back(why.clone()) {
        tracing::error!(%why, "the server does not take back what this node holds");
    }
    Outcome::Apart
}

fn next(state: &State, tally: Option<&claviger_domain::cluster::Tally>) -> Step {
    plan(&Facts {
        cluster: &state.cluster,
        seen: &state.seen,
        roots: &state.roots,
        tally,
        now: state.now,
    })
}

/// The resources that are encrypted.
pub(crate) fn resources() -> [Resource; 1] {
    [Resource::secrets()]
}

/// Counts etcd, every key remembered.
async fn count(node: &Node) -> Result<Census, StepError> {
    Ok(Census::take(&node.local.etcd(), &resources(), Keep::Keys, wall()).await?)
}

/// Trouble in a row, and whether the cluster was told.
#[derive(Default)]
struct Trouble {
    since: Option<Instant>,
    /// When the first of the steps failed that have failed without a break since.
    failing: Option<Instant>,
    times: u32,
    said: Option<(String, Instant)>,
}

impl Trouble {
    /// There is none, or it is somebody else's.
    fn none(&mut self, node: &Node) {
        node.note(Part::Loop, None);
        *self = Trouble::default();
    }

    /// A step was done: whatever was in the way is gone.
    async fn over(&mut self, steps: &mut Steps, state: &State) {
        self.none(steps.node());
        if is_stuck(&state.cluster) {
            let _ = steps.commit(state, Commit::Stuck { reason: None }).await;
        }
    }

    /// Whether steps have failed for so long that another agent is to try, where there are `others`.
    /// If so, this agent begins anew when the lease comes back to it.
    fn gives_way(&mut self, now: Instant, others: bool) -> bool {
        let failing = self.failing.is_some_and(|since| now - since >= GIVES_WAY);
        if failing && others {
            self.failing = None;
        }
        failing && others
    }

    /// Nothing failed, but nothing moves. Only what no agent can mend counts as stuck.
    async fn waits(&mut self, steps: &mut Steps, state: &State, why: &Why) {
        tracing::debug!(%why, "waiting");
        self.failing = None;
        let operators = matches!(
            why,
            Why::Unknown(_)
                | Why::Plaintext(_)
                | Why::PreflightFailed(..)
                | Why::Root(..)
                | Why::Unattended(_)
        );
        // At rest the server says by itself what is waited for.
        if !operators || state.cluster.operation.is_none() {
            if is_stuck(&state.cluster) {
                let _ = steps.commit(state, Commit::Stuck { reason: None }).await;
            }
            self.none(steps.node());
            return;
        }
        self.tell(steps, why.to_string()).await;
    }

    /// A step failed. How long to pause.
    async fn met(&mut self, steps: &mut Steps, error: &StepError) -> Duration {
        if error.is_stale() {
            // Somebody else moved; look again at once, but not for ever.
            self.times += 1;
            return if self.times < 20 { Duration::from_millis(50) } else { BUSY };
        }
        self.failing.get_or_insert_with(Instant::now);
        let text = with_causes(error);
        tracing::warn!(error = %text, "a step failed and will be tried again");
        self.tell(steps, text).await;
        self.times += 1;
        let pause = BUSY * 2u32.pow(self.times.min(5));
        pause.min(BACK_OFF_MAX)
    }

    async fn tell(&mut self, steps: &mut Steps, reason: String) {
        let since = *self.since.get_or_insert_with(Instant::now);
        // A reason that names another Secret at each pass is not told at each pass.
        let told = |(said, at): &(String, Instant)| *said == reason || at.elapsed() < TELLS_EACH;
        if since.elapsed() < PATIENCE || self.said.as_ref().is_some_and(told) {
            return;
        }
        let Some(latest) = steps.node().latest() else { return };
        if latest.state.cluster.operation.is_none() {
            steps.node().note(Part::Loop, Some(format!("the cluster's loop is stopped: {reason}")));
            return;
        }
        let stuck = Commit::Stuck { reason: Some(reason.clone()) };
        // An answer that this node cannot keep was given all the same.
        if matches!(steps.commit(&latest.state, stuck).await, Ok(_) | Err(StepError::File(_))) {
            self.said = Some((reason, Instant::now()));
        }
    }
}

fn is_stuck(cluster: &Cluster) -> bool {
    cluster.operation.as_ref().is_some_and(|op| op.stuck.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_behind_a_count_is_as_long_as_the_count_is_dear() {
        let ms = Duration::from_millis;
        let agent = || "n1".parse().unwrap();
        for (why, counting, pause) in [
            (Why::NoCanary(agent()), ms(0), BUSY),
            (Why::NoCanary(agent()), ms(20), BUSY),
            (Why::NoCanary(agent()), ms(1_000), ms(9_000)),
            (Why::NoCanary(agent()), ms(60_000), BACK_OFF_MAX),
            (Why::Unknown(1), ms(1), BACK_OFF_MAX),
            (Why::Plaintext(1), ms(1), BACK_OFF_MAX),
        ] {
            assert_eq!(pause_for(&why, counting), pause, "{why} {counting:?}");
        }
    }

    #[test]
    fn a_node_whose_steps_fail_all_the_time_lets_another_try() {
        let start = Instant::now();
        let failing = |since| Trouble { failing: since, ..Trouble::default() };
        assert!(!failing(None).gives_way(start + GIVES_WAY, true));
        assert!(!failing(Some(start)).gives_way(start + GIVES_WAY, false), "nobody else is there");
        let mut trouble = failing(Some(start));
        assert!(!trouble.gives_way(start + GIVES_WAY - Duration::from_secs(1), true));
        assert!(trouble.gives_way(start + GIVES_WAY, true));
        assert!(!trouble.gives_way(start + GIVES_WAY * 2, true), "it begins anew");
    }
}
