//! The next step of enable, rotate, switch and reverse: a pure function of what is seen.
//!
//! Order, for N API servers: prove the target on every node; register; mint a KEK; let every
//! plugin open with it; (first enablement, N > 1) let every API server read our records; let it
//! write; see a canary of every API server under it; rewrite; prove from etcd's bytes; (first
//! enablement) let nobody read plaintext, compact, defragment; done. Each step is safe to
//! repeat, and every answer carries its reason.
//!
//! Three promises of the agents carry it. An agent writes a ring to its disk before its plugin
//! takes it, and never goes back to an older one, so that what it once reported as opened stays
//! opened. By `restart` it ends the process that ran when the file was written, whatever that
//! process has loaded meanwhile. And it starts an API server only with the file of its target.

use super::ring::{Kek, Role};
use super::{
    Access, Cluster, Operation, OperationKind, REQUEST_TIMEOUT_MS, RootStatus, Seen, Stage, TakeUp,
    Tally, Target,
};
use crate::id::{AgentName, OperationId, Serial, UnixMs};
use crate::key::{KeyState, RootKey};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

/// Everything a decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The last durable commit.
    pub cluster: &'a Cluster,
    /// The newest observation of each agent.
    pub seen: &'a BTreeMap<AgentName, Seen>,
    /// What the key service says of the cluster's root keys and of the operation's target.
    pub roots: &'a [RootStatus],
    /// A count of etcd, taken after the observations. It costs a read of all records, so leave
    /// it out at first: where it decides, the answer is [`Why::NoTally`].
    pub tally: Option<&'a Tally>,
    /// The server's clock.
    pub now: UnixMs,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do.
    Rest,
    /// Look again later: somebody else must move first.
    Wait(Why),
    /// Begin a rotation: the root key has a version newer than the one in use.
    Open {
        /// The root key.
        target: RootKey,
    },
    /// Commit that every agent proved the target.
    CommitPreflighted,
    /// End the operation, nothing was changed.
    Reject {
        /// Why, and what to do.
        reason: String,
    },
    /// Register the cluster as a user of the target, deletion prevented.
    Register {
        /// The root key.
        target: RootKey,
    },
    /// Make a KEK, wrap it under the target, unwrap it again, commit it as Staged.
    Mint {
        /// The root key.
        target: RootKey,
        /// Its number.
        serial: Serial,
    },
    /// Give this API server this stage.
    TakeUp {
        /// Which.
        agent: AgentName,
        /// The stage.
        stage: Stage,
    },
    /// Make the operation's KEK the one that seals.
    Promote {
        /// Which.
        serial: Serial,
    },
    /// Store every record again that is not under the write KEK; plaintext only where it is read
    /// ([`Cluster::reads_plaintext`]).
    Rewrite {
        /// How many are left.
        left: u64,
    },
    /// Count etcd's bytes again and open a sample with a fresh plugin; commit the proof.
    Verify,
    /// Compact history at the proven revision, defragment every member, leader last.
    Compact {
        /// etcd's revision.
        revision: i64,
    },
    /// Point the registration at the version in use, commit the end.
    Finish,
    /// Commit that the cluster goes on without this root key: every API server is fenced.
    GoWithout {
        /// The root key.
        root: RootKey,
    },
    /// Commit that this lost KEK can be opened again.
    Readmit {
        /// Which.
        serial: Serial,
    },
}

/// Why a step must wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// No API server has joined.
    NoServer,
    /// No word from this agent yet, or too long ago.
    Silent(AgentName),
    /// The node is fenced or cannot open the ring.
    Closed(AgentName),
    /// The agent has not tried the target yet.
    Preflight(AgentName),
    /// The agent tried the target in vain, and the operation must go on all the same.
    PreflightFailed(AgentName, String),
    /// The plugin has not opened the new KEK yet.
    NotOpened(AgentName),
    /// The API server has not taken the file up yet.
    NotTaken(AgentName, Stage),
    /// The plugin does not report the new `key_id` yet.
    NotReported(AgentName),
    /// No canary of this process under the write KEK yet.
    NoCanary(AgentName),
    /// etcd must be counted, or could not be.
    NoTally,
    /// Requests that an API server began before its take-up may still write plaintext.
    Requests {
        /// For so many more milliseconds.
        left_ms: u64,
    },
    /// Records that nobody can decode, or whose key is lost; they are left byte for byte.
    Unknown(u64),
    /// Records in plaintext that nothing explains; they are not read before an operator's word.
    Plaintext(u64),
    /// The API server must be down, since its caches hold what was read under a root key that
    /// the cluster is to go on without.
    NotFenced(AgentName),
    /// The root key does not wrap now.
    Root(RootKey, KeyState),
    /// The node holds KEKs that the server's truth lacks; nothing can be planned on that truth.
    Ahead(AgentName),
    /// More API servers live than agents speak for.
    Unattended(Unattended),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::NoServer => f.write_str("no agent has joined this cluster yet"),
            Why::Silent(a) => write!(f, "no fresh word from agent {a}"),
            Why::Closed(a) => write!(f, "agent {a} cannot open the key ring now"),
            Why::Preflight(a) => write!(f, "agent {a} is still trying the root key"),
            Why::PreflightFailed(a, failure) => write!(f, "agent {a}: {failure}"),
            Why::NotOpened(a) => write!(f, "the plugin of {a} has not opened the new KEK yet"),
            Why::NotTaken(a, stage) => write!(f, "API server {a} has not taken up {stage} yet"),
            Why::NotReported(a) => {
                write!(f, "the plugin of {a} does not report the new key id yet")
            }
            Why::NoCanary(a) => {
                write!(f, "API server {a} has not yet written a record under the new KEK")
            }
            Why::NoTally => f.write_str("etcd's records are to be counted"),
            Why::Requests { left_ms } => write!(
                f,
                "requests begun before the last take-up may still write plaintext for {} s",
                left_ms.div_ceil(1000)
            ),
            Why::Unknown(n) => {
                write!(f, "{n} records cannot be read; `census` names them; nothing touches them")
            }
            Why::Plaintext(n) => write!(
                f,
                "{n} records are plaintext, with no change of machines to explain them: whoever writes to etcd could plant Secrets so, and nobody reads or rewrites them; `census` names them: delete them from etcd or, if they are yours, `ks kms enable --accept-plaintext` with the same key"
            ),
            Why::NotFenced(a) => write!(f, "agent {a} has not yet fenced its API server"),
            Why::Root(root, state) => write!(f, "root key {} is {state}", root.key),
            Why::Ahead(a) => {
                write!(
                    f,
                    "agent {a} holds keys that the server has forgotten; it is to give them back"
                )
            }
            Why::Unattended(unattended) => unattended.fmt(f),
        }
    }
}

/// API servers that live beside those of the cluster's agents. Such a one cannot read what is
/// encrypted, and what it writes is plaintext, which nobody reads any more once `identity` is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unattended {
    /// Hosts of all API servers that live.
    pub hosts: Vec<String>,
    /// How many of them have an agent.
    pub agents: usize,
}

impl fmt::Display for Unattended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} API servers live ({}) and {} have an agent: let one join beside each other, or stop those; a stopped one counts for a minute",
            self.hosts.len(),
            self.hosts.join(", "),
            self.agents
        )
    }
}

/// Whether more API servers live than the cluster has agents.
pub fn unattended(cluster: &Cluster, seen: &BTreeMap<AgentName, Seen>) -> Option<Unattended> {
    let agents = cluster.servers.len();
    let said = cluster.servers.keys().filter_map(|agent| seen.get(agent));
    let hosts = said.map(|s| &s.observation.api_servers).max_by_key(|hosts| hosts.len())?;
    (hosts.len() > agents).then(|| Unattended { hosts: hosts.clone(), agents })
}

/// The step, unless an API server lives that it would cut off from Secrets.
fn if_attended(facts: &Facts<'_>, step: Step) -> Step {
    match unattended(facts.cluster, facts.seen) {
        Some(unattended) => Step::Wait(Why::Unattended(unattended)),
        None => step,
    }
}

/// The next step.
pub fn plan(facts: &Facts<'_>) -> Step {
    if let Some((agent, _)) = servers(facts).find(|(_, s)| s.observation.ahead.is_some()) {
        return Step::Wait(Why::Ahead(agent));
    }
    let Some(op) = &facts.cluster.operation else { return idle(facts) };
    if let Some(wait) = everybody_speaks(facts) {
        return Step::Wait(wait);
    }
    let lost =
        |k: &&Kek| k.role == Role::Lost && root_state(facts, k.root.root) == Some(KeyState::Active);
    if let Some(kek) = facts.cluster.ring.keks.iter().find(lost) {
        return Step::Readmit { serial: kek.serial };
    }
    let Some(serial) = op.serial else { return before_the_kek(facts) };
    if let Some(step) = go_without(facts, op) {
        return step;
    }
    if let Some(wait) = everybody_open(facts) {
        return Step::Wait(wait);
    }
    // Read before write: every plugin opens with the new KEK before any seals with it.
    for (agent, seen) in servers(facts) {
        if !seen.observation.opened.contains(&serial) {
            return Step::Wait(Why::NotOpened(agent));
        }
    }
    // One API server alone switches from plaintext to KMS at once. Of several, all must be able
    // to read before the first writes; one that joins later is told to write from the start.
    let targets = || facts.cluster.servers.values();
    if targets().len() > 1
        && targets().all(|t| t.stage < Stage::WriteFirst)
        && let Some(step) = bring_to(facts, Stage::ReadFirst)
    {
        return step;
    }
    let Some(promoted) = op.promoted else {
        // Promotion cannot be taken back, and makes the cluster depend on the target.
        let state = root_state(facts, op.target).unwrap_or(KeyState::Destroyed);
        if state != KeyState::Active {
            return Step::Wait(Why::Root(op.target, state));
        }
        return if_attended(facts, Step::Promote { serial });
    };
    let key_id = facts.cluster.ring.get(serial).map(|k| k.key_id(&facts.cluster.id));
    for (agent, seen) in servers(facts) {
        if seen.observation.key_id != key_id || seen.at < promoted {
            return Step::Wait(Why::NotReported(agent));
        }
    }
    if let Some(step) = bring_to(facts, Stage::WriteFirst) {
        return step;
    }
    for (agent, seen) in servers(facts) {
        let o = &seen.observation;
        let proven = o.canary.is_some_and(|c| {
            c.serial == Some(serial) && Some(c.process) == o.process && c.stage >= Stage::WriteFirst
        });
        if !proven {
            return Step::Wait(Why::NoCanary(agent));
        }
    }
    let Some(tally) = facts.tally else { return Step::Wait(Why::NoTally) };
    let plaintext = if facts.cluster.reads_plaintext() { tally.plaintext } else { 0 };
    // Whoever rewrites reads first, and a stage that fell takes a poll to be taken up.
    if plaintext > 0
        && let Some(agent) = reads_no_plaintext(facts)
    {
        return Step::Wait(Why::NotTaken(agent, Stage::WriteFirst));
    }
    if tally.stale + plaintext > 0 {
        return Step::Rewrite { left: tally.stale + plaintext };
    }
    if tally.plaintext > 0 {
        return Step::Wait(Why::Plaintext(tally.plaintext));
    }
    if tally.unknown > 0 {
        return Step::Wait(Why::Unknown(tally.unknown));
    }
    let Some(verified) = op.verified else { return Step::Verify };
    if targets().any(|t| t.stage < Stage::Only) {
        // Before nobody reads plaintext any more, whoever wrote it must be gone, and the proof be
        // newer. A restart ends the requests of the old process; a reload does not. They can
        // only have begun before the first proof, for which every API server had taken up.
        if op.take_up == TakeUp::Reload {
            let first = op.first_verified.unwrap_or(verified.at);
            let since = facts.now.since(first);
            if since < REQUEST_TIMEOUT_MS {
                return Step::Wait(Why::Requests { left_ms: REQUEST_TIMEOUT_MS - since });
            }
            if verified.at.since(first) < REQUEST_TIMEOUT_MS {
                return Step::Verify;
            }
        }
    }
    if let Some(step) = bring_to(facts, Stage::Only) {
        return if_attended(facts, step);
    }
    // Where this operation ended the reading of plaintext, etcd's history holds some.
    let ended_plaintext = targets().any(|t| t.since >= op.requested);
    if op.compacted.is_none() && (op.kind == OperationKind::Enable || ended_plaintext) {
        return Step::Compact { revision: verified.revision };
    }
    Step::Finish
}

fn idle(facts: &Facts<'_>) -> Step {
    let Some(write) = facts.cluster.ring.write() else { return Step::Rest };
    let target = write.root.root;
    let root = facts.roots.iter().find(|r| r.root == target);
    if root.is_none_or(|r| r.state != KeyState::Active) {
        return Step::Rest;
    }
    if root.and_then(|r| r.current).is_some_and(|current| current != write.root.version) {
        return Step::Open { target };
    }
    let reached = facts.cluster.servers.values().map(|t| t.stage).max().unwrap_or_default();
    if reached < Stage::WriteFirst {
        return Step::Rest;
    }
    newcomers(facts, write.serial, target)
}

/// Brings the API servers of a cluster at rest to where nobody reads plaintext, after one has joined
/// or left, or an operator has said that plaintext is to be read: that, or records under an older key,
/// take a whole rewrite.
fn newcomers(facts: &Facts<'_>, serial: Serial, target: RootKey) -> Step {
    let behind = || facts.cluster.servers.iter().filter(|(_, t)| t.stage < Stage::Only);
    for (agent, has) in behind() {
        let Some(seen) = facts.seen.get(agent).filter(|s| s.is_fresh(facts.now)) else {
            return Step::Wait(Why::Silent(agent.clone()));
        };
        let o = &seen.observation;
        if o.access != Access::Open {
            return Step::Wait(Why::Closed(agent.clone()));
        }
        if !o.opened.contains(&serial) {
            return Step::Wait(Why::NotOpened(agent.clone()));
        }
        if has.stage < Stage::WriteFirst {
            return Step::TakeUp { agent: agent.clone(), stage: Stage::WriteFirst };
        }
        if !taken(seen, has, Stage::WriteFirst) {
            return Step::Wait(Why::NotTaken(agent.clone(), has.stage));
        }
    }
    // One at a time: each is the last that could read what a count has missed.
    let Some((agent, _)) = behind().next() else {
        // To rewrite what is under an older key, nobody needs to read plaintext.
        let stale = facts.cluster.disproof.is_some_and(|tally| tally.stale > 0);
        return if stale { Step::Open { target } } else { Step::Rest };
    };
    let since = behind().map(|(_, has)| facts.now.since(has.since)).min().unwrap_or_default();
    if since < REQUEST_TIMEOUT_MS {
        return Step::Wait(Why::Requests { left_ms: REQUEST_TIMEOUT_MS - since });
    }
    match facts.tally {
        None => Step::Wait(Why::NoTally),
        Some(tally) if tally.rewritable() > 0 => Step::Open { target },
        Some(_) => if_attended(facts, Step::TakeUp { agent: agent.clone(), stage: Stage::Only }),
    }
}

fn root_state(facts: &Facts<'_>, root: RootKey) -> Option<KeyState> {
    facts.roots.iter().find(|r| r.root == root).map(|r| r.state)
}

fn before_the_kek(facts: &Facts<'_>) -> Step {
    let Some(op) = &facts.cluster.operation else { return Step::Rest };
    match root_state(facts, op.target) {
        Some(KeyState::Active) => {}
        // The root key did rotate, or records are under several keys: to give up would leave
        // the cluster as it is.
        Some(state) if matches!(op.kind, OperationKind::Rotate | OperationKind::Reverse) => {
            return Step::Wait(Why::Root(op.target, state));
        }
        Some(state) => {
            return Step::Reject {
                reason: format!("root key {} is {state}; only an active key wraps", op.target.key),
            };
        }
        None if op.kind == OperationKind::Reverse => {
            return Step::Wait(Why::Root(op.target, KeyState::Destroyed));
        }
        None => {
            return Step::Reject { reason: format!("root key {} no longer exists", op.target.key) };
        }
    }
    if !op.preflighted {
        return preflight(facts, op.id, op.kind);
    }
    if !op.registered {
        return Step::Register { target: op.target };
    }
    Step::Mint { target: op.target, serial: facts.cluster.ring.next_serial() }
}

/// Leaves a root key behind that is not active, where an operator decided so. While API servers
/// are fenced nobody holds an opened KEK, so whoever opens afterwards does so with the ring of
/// this commit or a newer one: no API server seals with a KEK that another lacks, though no agent
/// has reported the new one as opened. Before all are fenced, one that has not heard of the
/// suspension would keep what it read in its caches, with nothing to fence it for any more.
///
/// An observation may be of an earlier suspension than the one that lasts, so the server takes
/// the commit only if every agent acknowledged the key's newest event as fenced.
fn go_without(facts: &Facts<'_>, op: &Operation) -> Option<Step> {
    let root = op.without?;
    let active = root_state(facts, root) == Some(KeyState::Active);
    if active || !facts.cluster.ring.uses(root) {
        return None;
    }
    let state = root_state(facts, op.target).unwrap_or(KeyState::Destroyed);
    if state != KeyState::Active {
        return Some(Step::Wait(Why::Root(op.target, state)));
    }
    for (agent, seen) in servers(facts) {
        if !matches!(seen.observation.access, Access::Fenced { .. }) {
            return Some(Step::Wait(Why::NotFenced(agent)));
        }
    }
    Some(Step::GoWithout { root })
}

fn preflight(facts: &Facts<'_>, operation: OperationId, kind: OperationKind) -> Step {
    let mut failures = Vec::new();
    for (agent, seen) in servers(facts) {
        match seen.observation.preflight.as_ref().filter(|p| p.operation == operation) {
            None => return Step::Wait(Why::Preflight(agent)),
            Some(p) => failures.extend(p.failure.clone().map(|f| (agent, f))),
        }
    }
    if failures.is_empty() {
        Step::CommitPreflighted
    } else if kind == OperationKind::Rotate {
        // The root key did rotate; to give up would leave the cluster on the old version.
        let (agent, failure) = failures.swap_remove(0);
        Step::Wait(Why::PreflightFailed(agent, failure))
    } else {
        let words: Vec<_> = failures.iter().map(|(a, f)| format!("{a}: {f}")).collect();
        Step::Reject { reason: format!("preflight failed: {}", words.join("; ")) }
    }
}

/// Every API server of the cluster with its agent's newest word.
fn servers<'a>(facts: &Facts<'a>) -> impl Iterator<Item = (AgentName, &'a Seen)> + use<'a> {
    let seen = facts.seen;
    facts.cluster.servers.keys().filter_map(move |a| seen.get(a).map(|s| (a.clone(), s)))
}

fn everybody_speaks(facts: &Facts<'_>) -> Option<Why> {
    if facts.cluster.servers.is_empty() {
        return Some(Why::NoServer);
    }
    facts.cluster.servers.keys().find_map(|agent| {
        let fresh = facts.seen.get(agent).is_some_and(|s| s.is_fresh(facts.now));
        (!fresh).then(|| Why::Silent(agent.clone()))
    })
}

fn everybody_open(facts: &Facts<'_>) -> Option<Why> {
    servers(facts).find_map(|(agent, seen)| {
        (seen.observation.access != Access::Open).then_some(Why::Closed(agent))
    })
}

/// The step that brings every API server to `stage`; none when all are there.
///
/// By restart they go one at a time, so that the others serve meanwhile, and so does the first
/// file of an API server that has no encryption flags yet, which is a restart too. None is told
/// anything new before all have taken up what they were told, wherever they stand in the order:
/// one that was told to write, or joined meanwhile, may not read yet.
///
/// By reload nobody is down, and a poll takes up to a minute, so those that are behind are told
/// one right after the other. What the order protects is that `stage` is only used where all
/// others can live with it: records of ours are written only while everybody reads them, and
/// plaintext is read no more only when nobody writes it. Both depend on the stage below alone.
/// So it is enough that everybody uses the stage below: those that were told `stage` have loaded
/// at least that one, which no later start of theirs undoes, since the file on disk never falls
/// below `[kms, identity]` once it was there. Who of them uses `stage` first, or at once, makes no difference.
fn bring_to(facts: &Facts<'_>, stage: Stage) -> Option<Step> {
    let op = facts.cluster.operation.as_ref();
    let reload = op.is_some_and(|op| op.take_up == TakeUp::Reload);
    let behind = facts.cluster.servers.iter().find(|(_, target)| target.stage < stage);
    let together = reload && behind.is_some_and(|(_, target)| target.stage > Stage::Bare);
    for (agent, target) in &facts.cluster.servers {
        if target.stage < Stage::ReadFirst {
            continue;
        }
        let seen = facts.seen.get(agent);
        let loaded = seen.and_then(|s| s.observation.stage_loaded).unwrap_or_default();
        let on_its_way = match target.stage.cmp(&stage) {
            Ordering::Less => false,
            Ordering::Equal => together && loaded >= below(stage),
            // Told something later since: for this stage it is enough to be there.
            Ordering::Greater => loaded >= stage,
        };
        if !on_its_way && !seen.is_some_and(|s| taken(s, target, target.stage)) {
            return Some(Step::Wait(Why::NotTaken(agent.clone(), target.stage)));
        }
    }
    behind.map(|(agent, _)| Step::TakeUp { agent: agent.clone(), stage })
}

/// An API server that is to read plaintext again and does not do so yet.
fn reads_no_plaintext(facts: &Facts<'_>) -> Option<AgentName> {
    let told = |agent: &AgentName| {
        facts.cluster.servers.get(agent).is_some_and(|t| t.stage == Stage::WriteFirst)
    };
    servers(facts).find_map(|(agent, seen)| {
        let reads = seen.observation.stage_loaded == Some(Stage::WriteFirst);
        (told(&agent) && !reads).then_some(agent)
    })
}

/// The stage that comes before this one.
fn below(stage: Stage) -> Stage {
    match stage {
        Stage::Bare | Stage::ReadFirst => Stage::Bare,
        Stage::WriteFirst => Stage::ReadFirst,
        Stage::Only => Stage::WriteFirst,
    }
}

/// Whether the agent saw its API server use a file of `stage` or later, since that was decided.
fn taken(seen: &Seen, target: &Target, stage: Stage) -> bool {
    let o = &seen.observation;
    seen.at >= target.since
        && o.ready
        && o.stage_on_disk >= stage
        && o.stage_loaded.is_some_and(|loaded| loaded >= stage)
}

/// A root key under which `cluster` writes or reads and of which `roots` says nothing: whoever said
/// that knows an older cluster, as a key server does that was restored to before a switch. It does
/// not vouch for the key.
pub fn not_told(cluster: &Cluster, roots: &[RootStatus]) -> Option<RootKey> {
    let mut in_use = cluster.ring.in_use().map(|k| k.root.root);
    in_use.find(|root| roots.iter().all(|r| r.root != *root))
}

/// The root key whose suspension closes the cluster now, if one does: that of the KEK that
/// seals, or of a KEK that live records may still be under. Expired and deleted act the same.
pub fn must_fence<'a>(cluster: &Cluster, roots: &'a [RootStatus]) -> Option<&'a RootStatus> {
    roots.iter().find(|r| r.state != KeyState::Active && cluster.ring.uses(r.root))
}
