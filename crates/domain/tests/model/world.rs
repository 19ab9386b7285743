//! A cluster small enough to be searched: API servers with their requests under way, agents with
//! a disk and a memory, etcd's records, the server's truth, and one loop that plans on what it
//! saw and acts on it later.

use claviger_domain::cluster::commit::{Commit, apply};
use claviger_domain::cluster::plan::{Facts, Step, Why, must_fence, plan};
use claviger_domain::cluster::ring::{Kek, Ring, Role};
use claviger_domain::cluster::*;
use claviger_domain::id::*;
use claviger_domain::key::{KeyState, RootKey, RootVersion};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Records in etcd. Three are enough for old, new and in between.
pub const RECORDS: usize = 3;

/// What a record is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    Plain,
    Under(Serial),
}

/// A running kube-apiserver.
#[derive(Debug, Clone)]
pub struct Api {
    pub process: Process,
    pub loaded: Stage,
    /// The KEK under which its seed is sealed; none without a KMS provider.
    pub seed: Option<Serial>,
    /// Until when a request begun under a plaintext-writing file may still write.
    pub ghost: Option<i64>,
}

/// A control-plane node.
#[derive(Debug, Clone)]
pub struct Node {
    pub name: AgentName,
    /// What survives the agent: the last ring, and the file's stage.
    pub disk: Disk,
    /// Opened KEKs and the ring they are of, while the agent lives and is open.
    pub memory: Option<(Ring, BTreeSet<Serial>)>,
    pub fenced: Option<RootKey>,
    /// The newest key event that this node acknowledged as fenced.
    pub acknowledged: BTreeMap<RootKey, u64>,
    pub api: Option<Api>,
    pub canary: Option<Canary>,
    pub preflight: Option<OperationId>,
    /// Observations on their way.
    pub outbox: Option<Observation>,
    /// API servers started so far.
    pub starts: i32,
    /// A newcomer's API server is kept from starting until the agent has written its file.
    pub held: bool,
    /// Its API server runs as a reinstalled machine starts it: without any configuration.
    pub stranger: bool,
}

#[derive(Debug, Clone)]
pub struct Disk {
    pub ring: Ring,
    pub revision: u64,
    pub stage: Stage,
    /// The process to end before the file of `stage` counts as taken up by restart.
    pub doomed: Option<Process>,
}

/// What the loop saw and decided, before it acts.
#[derive(Debug, Clone)]
pub struct Plan {
    pub revision: u64,
    pub step: Step,
    pub tally: Option<Tally>,
}

#[derive(Debug, Clone)]
pub struct World {
    pub now: i64,
    pub cluster: Cluster,
    pub seen: BTreeMap<AgentName, Seen>,
    pub roots: Vec<RootStatus>,
    pub nodes: Vec<Node>,
    pub etcd: [Stored; RECORDS],
    pub revision: i64,
    /// Revisions of plaintext that history still holds.
    pub history: Vec<i64>,
    pub plan: Option<Plan>,
    pub serials: BTreeSet<Serial>,
    /// Numbers for versions and operations, in place of random ones.
    pub counter: u128,
    /// What the last finished operation must hold, until something else happens.
    pub finishes: u32,
    /// A machine was reinstalled, so that there is plaintext which nobody was told of.
    pub reinstalled: bool,
}

/// What can happen. `u8` picks a node or a record, modulo their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Sync(u8),
    Follow(u8),
    Poll(u8),
    Pickup(u8),
    Canary(u8),
    Observe(u8),
    Deliver(u8),
    LoseObservation(u8),
    CrashAgent(u8),
    RestartApi(u8),
    Write(u8, u8),
    Ghost(u8, u8),
    Look,
    Act,
    CrashLoop,
    Tick,
    LongTick,
    Enable(bool),
    Rotate,
    Switch,
    Disable,
    EnableRoots,
    Join(u8),
    /// A machine is reinstalled under its name, and its API server writes before its agent has
    /// joined again.
    Reinstall(u8, u8),
    /// The last machine is gone for good, and the operator says so.
    Leave,
    /// The operator gives the operation up, whatever that takes now.
    Cancel,
    /// The target is gone for good.
    Destroy,
}

fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

impl World {
    /// `n` API servers, without an operation. `flags` tells whether they have a configuration
    /// file already (identity alone), so that it can be reloaded.
    pub fn new(n: usize) -> Self {
        let mut cluster = Cluster::new(
            "aaaaaaaabbbbbbbbcccc".parse().expect("20 characters"),
            "c".to_owned(),
            UnixMs(0),
        );
        let nodes: Vec<Node> = (0..n).map(|i| node(i, Some(Stage::Bare))).collect();
        for node in &nodes {
            let joined = Commit::Joined { agent: node.name.clone() };
            apply(&mut cluster, &joined, UnixMs(0)).expect("an agent can always join");
        }
        let root = |n: u128| RootStatus {
            root: RootKey { instance: InstanceId(uuid(1)), key: KeyId(uuid(n)) },
            name: format!("root {n}"),
            state: KeyState::Active,
            current: Some(KeyVersionId(uuid(n << 64 | 1))),
            event: 0,
            expires: None,
            restorable_until: None,
        };
        World {
            now: 1_000_000,
            cluster,
            seen: BTreeMap::new(),
            roots: (10..14).map(root).collect(),
            nodes,
            etcd: [Stored::Plain; RECORDS],
            revision: 1,
            history: vec![1],
            plan: None,
            serials: BTreeSet::new(),
            counter: 100,
            finishes: 0,
            reinstalled: false,
        }
    }

    fn node(&self, i: u8) -> usize {
        usize::from(i) % self.nodes.len()
    }

    fn next(&mut self) -> u128 {
        self.counter += 1;
        self.counter
    }

    fn active(&self, root: RootKey) -> bool {
        self.roots.iter().any(|r| r.root == root && r.state == KeyState::Active)
    }

    /// Does one thing; whatever is impossible now does nothing.
    pub fn step(&mut self, op: Op) {
        match op {
            Op::Sync(i) => self.sync(i),
            Op::Follow(i) => self.follow(i),
            Op::Poll(i) => self.poll(i),
            Op::Pickup(i) => self.pickup(i),
            Op::Canary(i) => self.canary(i),
            Op::Observe(i) => self.observe(i),
            Op::Deliver(i) => {
                let i = self.node(i);
                if let Some(observation) = self.nodes[i].outbox.take() {
                    let seen = Seen { observation, at: UnixMs(self.now) };
                    self.seen.insert(self.nodes[i].name.clone(), seen);
                }
            }
            Op::LoseObservation(i) => {
                let i = self.node(i);
                self.nodes[i].outbox = None;
            }
            Op::CrashAgent(i) => {
                let i = self.node(i);
                self.nodes[i].memory = None;
                self.nodes[i].outbox = None;
                self.nodes[i].preflight = None;
            }
            Op::RestartApi(i) => {
                let i = self.node(i);
                self.start_api(i);
            }
            Op::Write(i, r) => self.write(i, r),
            Op::Ghost(i, r) => {
                let i = self.node(i);
                let now = self.now;
                let alive =
                    self.nodes[i].api.as_ref().and_then(|a| a.ghost).is_some_and(|t| t > now);
                if alive {
                    self.store(usize::from(r) % RECORDS, Stored::Plain);
                }
            }
            Op::Look => self.look(),
            Op::Act => self.act(),
            Op::CrashLoop => self.plan = None,
            Op::Tick => self.now += 1_000,
            Op::LongTick => self.now += 45_000,
            Op::Enable(reload) => self.open(OperationKind::Enable, 0, reload),
            Op::Rotate => {
                let version = KeyVersionId(uuid(self.next()));
                if let Some(target) = write_root(&self.cluster).map(|v| v.root)
                    && let Some(root) = self.roots.iter_mut().find(|r| r.root == target)
                {
                    root.current = Some(version);
                    root.event += 1;
                }
            }
            Op::Switch => {
                let unused = self.roots.iter().position(|r| !self.cluster.used.contains(&r.root));
                if self.cluster.ring.write().is_some()
                    && let Some(i) = unused
                {
                    self.open(OperationKind::Switch, i, false);
                }
            }
            Op::Disable => {
                // The root in use, or that of the operation.
                let target = self.cluster.operation.as_ref().map(|o| o.target);
                let target = target.or_else(|| write_root(&self.cluster).map(|v| v.root));
                for root in self.roots.iter_mut().filter(|r| Some(r.root) == target) {
                    root.state = KeyState::Suspended;
                    root.event += 1;
                }
            }
            Op::EnableRoots => {
                for root in self.roots.iter_mut().filter(|r| r.state == KeyState::Suspended) {
                    root.state = KeyState::Active;
                    root.event += 1;
                }
            }
            Op::Destroy => {
                let target = self.cluster.operation.as_ref().map(|o| o.target);
                for root in self.roots.iter_mut().filter(|r| Some(r.root) == target) {
                    root.state = KeyState::Destroyed;
                    root.current = None;
                    root.event += 1;
                }
            }
            Op::Reinstall(i, r) => {
                let (i, r) = (self.node(i), usize::from(r) % RECORDS);
                let readable = !matches!(self.etcd[r], Stored::Under(s) if self.lost(s));
                if self.cluster.ring.write().is_some() && readable {
                    let old = self.nodes[i].clone();
                    let mut new = node(i, Some(Stage::Bare));
                    new.starts = old.starts + 1;
                    new.stranger = true;
                    new.api.as_mut().expect("it runs").process.pid += new.starts;
                    self.nodes[i] = new;
                    self.reinstalled = true;
                    self.store(r, Stored::Plain);
                    let agent = self.nodes[i].name.clone();
                    assert!(self.commit(Commit::Joined { agent }));
                }
            }
            Op::Leave => {
                if self.nodes.len() > 1
                    && let Some(node) = self.nodes.pop()
                {
                    assert!(self.commit(Commit::Left { agent: node.name.clone() }));
                    self.seen.remove(&node.name);
                }
            }
            Op::Cancel => self.cancel(),
            Op::Join(n) => {
                if self.nodes.len() < 3 {
                    // A node of which the API server does not run yet.
                    let i = self.nodes.len();
                    self.nodes.push(node(i, (n % 2 == 1).then_some(Stage::Bare)));
                    let agent = self.nodes[i].name.clone();
                    // One that runs unencrypted already is only let in while the others do.
                    let encrypted = self.cluster.servers.values().any(|t| t.stage > Stage::Bare);
                    if encrypted {
                        self.nodes[i].api = None;
                        self.nodes[i].held = true;
                    }
                    self.commit(Commit::Joined { agent });
                }
            }
        }
    }

    fn commit(&mut self, commit: Commit) -> bool {
        apply(&mut self.cluster, &commit, UnixMs(self.now)).is_ok()
    }

    fn open(&mut self, kind: OperationKind, root: usize, reload: bool) {
        let id = OperationId(uuid(self.next()));
        let target = self.roots[root].root;
        let take_up = if reload { TakeUp::Reload } else { TakeUp::Restart };
        let by = "operator".to_owned();
        self.commit(Commit::Opened { id, kind, target, take_up, public_endpoint: None, by });
    }

    /// As the server does it: free before anything is sealed, back to the former root key after.
    fn cancel(&mut self) {
        let by = "operator".to_owned();
        let Some(op) = self.cluster.operation.clone() else { return };
        if op.promoted.is_none() && op.kind != OperationKind::Reverse {
            // A rotation would begin again at once.
            if op.kind != OperationKind::Rotate {
                let before = self.cluster.clone();
                assert!(self.commit(Commit::Cancelled { by }));
                assert_eq!(self.cluster.servers, before.servers);
                assert_eq!(self.cluster.used, before.used, "nothing was sealed, nothing used");
            }
            return;
        }
        let shut = must_fence(&self.cluster, &self.roots).map(|r| r.root);
        let former = self.cluster.ring.former();
        let target = if op.kind == OperationKind::Reverse { Some(op.target) } else { former };
        let Some(target) = target.filter(|t| self.active(*t)) else { return };
        let without = shut.filter(|root| *root != target);
        if op.kind == OperationKind::Reverse && without.is_none() {
            return;
        }
        let id = OperationId(uuid(self.next()));
        assert!(self.commit(Commit::Reversed { id, target, without, by }));
    }

    /// The agent fetches the state, opens what is new, and fences if it must.
    fn sync(&mut self, i: u8) {
        let i = self.node(i);
        let fence = must_fence(&self.cluster, &self.roots).map(|r| r.root);
        if let Some(root) = fence {
            let node = &mut self.nodes[i];
            node.fenced = Some(root);
            node.memory = None;
            node.api = None;
            node.disk.doomed = None;
            for root in &self.roots {
                node.acknowledged.insert(root.root, root.event);
            }
            return;
        }
        let opened: BTreeSet<Serial> = self
            .cluster
            .ring
            .keks
            .iter()
            .filter(|k| {
                self.active(k.root.root)
                    || self.nodes[i].memory.as_ref().is_some_and(|m| m.1.contains(&k.serial))
            })
            .map(|k| k.serial)
            .collect();
        let ring = self.cluster.ring.clone();
        let node = &mut self.nodes[i];
        let lost = |held: &Kek| {
            let there = ring.get(held.serial).is_some();
            !(there || held.role == Role::Staged && ring.minted >= held.serial.0)
        };
        assert!(!node.disk.ring.keks.iter().any(lost), "an agent would not believe this ring");
        node.fenced = None;
        // Disk first, plugin second.
        node.disk.ring = ring.clone();
        node.disk.revision = self.cluster.revision;
        node.memory = Some((ring, opened));
        node.preflight = self
            .cluster
            .operation
            .as_ref()
            .filter(|o| {
                self.roots.iter().any(|r| r.root == o.target && r.state == KeyState::Active)
            })
            .map(|o| o.id);
    }

    /// The agent writes the file its target asks for, restarts by `restart`, and starts an API
    /// server that is down.
    fn follow(&mut self, i: u8) {
        let i = self.node(i);
        let (name, open) = {
            let node = &self.nodes[i];
            (node.name.clone(), node.memory.is_some() && node.fenced.is_none())
        };
        if !open {
            return;
        }
        let target = self.cluster.servers[&name].stage;
        let restart = self.cluster.operation.as_ref().is_none_or(|o| o.take_up == TakeUp::Restart);
        let node = &mut self.nodes[i];
        if (node.disk.stage, target) == (Stage::Only, Stage::WriteFirst) {
            node.disk.stage = target;
            return;
        }
        if node.disk.stage < target {
            let bare = node.api.as_ref().is_some_and(|a| a.loaded == Stage::Bare);
            if restart || bare {
                node.disk.doomed = node.api.as_ref().map(|a| a.process);
            }
            node.disk.stage = target;
            node.held = false;
            return;
        }
        let doomed =
            node.disk.doomed.is_some() && node.api.as_ref().map(|a| a.process) == node.disk.doomed;
        if doomed || node.api.is_none() {
            node.api = None;
            node.disk.doomed = None;
            self.start_api(i);
        }
    }

    /// A new process, with the file on disk.
    fn start_api(&mut self, i: usize) {
        let stage = self.nodes[i].disk.stage;
        let node = &mut self.nodes[i];
        node.api = None;
        if node.fenced.is_some() || node.held {
            return;
        }
        let seed = match (&node.memory, stage) {
            (_, Stage::Bare) => None,
            // Without the plugin it does not become ready.
            (None, _) => return,
            (Some((ring, opened)), _) => {
                match ring.reported().filter(|k| opened.contains(&k.serial)) {
                    Some(kek) => Some(kek.serial),
                    None => return,
                }
            }
        };
        node.starts += 1;
        node.stranger &= stage == Stage::Bare;
        let process = Process { pid: i as i32 * 1000 + node.starts, start: 0 };
        node.api = Some(Api { process, loaded: stage, seed, ghost: None });
    }

    /// The API server looks at its file.
    fn poll(&mut self, i: u8) {
        let i = self.node(i);
        let now = self.now;
        let node = &mut self.nodes[i];
        let Some(api) = &mut node.api else { return };
        // Without flags there is nothing to poll.
        if api.loaded == Stage::Bare || api.loaded == node.disk.stage {
            return;
        }
        let Some((ring, opened)) = &node.memory else { return };
        let Some(kek) = ring.reported().filter(|k| opened.contains(&k.serial)) else { return };
        if api.loaded < Stage::WriteFirst {
            api.ghost = Some(now + REQUEST_TIMEOUT_MS as i64);
        }
        api.loaded = node.disk.stage;
        api.seed = Some(kek.serial);
    }

    /// The API server asks the plugin for its key id.
    fn pickup(&mut self, i: u8) {
        let i = self.node(i);
        let node = &mut self.nodes[i];
        let (Some(api), Some((ring, opened))) = (&mut node.api, &node.memory) else { return };
        if api.loaded >= Stage::ReadFirst
            && let Some(kek) = ring.reported().filter(|k| opened.contains(&k.serial))
        {
            api.seed = Some(kek.serial);
        }
    }

    fn canary(&mut self, i: u8) {
        let i = self.node(i);
        let node = &mut self.nodes[i];
        let Some(api) = &node.api else { return };
        let serial = if api.loaded >= Stage::WriteFirst { api.seed } else { None };
        node.canary = Some(Canary { serial, process: api.process, stage: api.loaded });
    }

    fn observe(&mut self, i: u8) {
        let i = self.node(i);
        let id = self.cluster.id.clone();
        let node = &mut self.nodes[i];
        let key_id = node.memory.as_ref().and_then(|(ring, opened)| {
            ring.reported().filter(|k| opened.contains(&k.serial)).map(|k| k.key_id(&id))
        });
        let access = match (node.fenced, &node.memory) {
            (Some(root), _) => Access::Fenced { root, event: 0, since: UnixMs(0) },
            (None, None) => Access::Waiting { reason: String::new() },
            (None, Some(_)) => Access::Open,
        };
        // A dead agent says nothing; one that was just started says that it waits.
        node.outbox = Some(Observation {
            agent: node.name.clone(),
            build: String::new(),
            kubernetes: None,
            ring_revision: node.disk.revision,
            opened: node.memory.iter().flat_map(|m| m.1.iter().copied()).collect(),
            key_id,
            stage_on_disk: node.disk.stage,
            stage_loaded: node
                .api
                .as_ref()
                .filter(|a| Some(a.process) != node.disk.doomed)
                .map(|a| a.loaded),
            process: node.api.as_ref().map(|a| a.process),
            ready: node.api.is_some(),
            canary: node.canary,
            api_servers: Vec::new(),
            files: None,
            ahead: None,
            restored: None,
            down: None,
            troubles: Vec::new(),
            preflight: node.preflight.map(|operation| Preflight {
                operation,
                failure: None,
                warnings: Vec::new(),
            }),
            access,
        });
    }

    fn store(&mut self, record: usize, stored: Stored) {
        self.revision += 1;
        if stored == Stored::Plain {
            self.history.push(self.revision);
        }
        self.etcd[record] = stored;
    }

    /// A client writes through an API server.
    fn write(&mut self, i: u8, r: u8) {
        let i = self.node(i);
        let Some(api) = &self.nodes[i].api else { return };
        let stored = match (api.loaded >= Stage::WriteFirst, api.seed) {
            (true, Some(serial)) => Stored::Under(serial),
            (true, None) => return,
            (false, _) => Stored::Plain,
        };
        // What cannot be read cannot be changed.
        let r = usize::from(r) % RECORDS;
        if let Stored::Under(s) = self.etcd[r]
            && self.lost(s)
        {
            return;
        }
        self.store(r, stored);
    }

    pub fn tally(&self) -> Tally {
        let write = self.cluster.ring.write().map(|k| k.serial);
        let mut tally = Tally {
            revision: self.revision,
            at: UnixMs(self.now),
            total: RECORDS as u64,
            ..Tally::default()
        };
        for record in self.etcd {
            match record {
                Stored::Plain => tally.plaintext += 1,
                Stored::Under(s) if Some(s) == write => tally.current += 1,
                Stored::Under(s) if self.lost(s) => tally.unknown += 1,
                Stored::Under(_) => tally.stale += 1,
            }
        }
        tally
    }

    /// Whether the cluster goes on without the key of this KEK.
    fn lost(&self, serial: Serial) -> bool {
        self.cluster.ring.get(serial).is_some_and(|k| k.role == Role::Lost)
    }

    fn facts<'a>(&'a self, tally: Option<&'a Tally>) -> Facts<'a> {
        Facts {
            cluster: &self.cluster,
            seen: &self.seen,
            roots: &self.roots,
            tally,
            now: UnixMs(self.now),
        }
    }

    /// The loop fetches the state, plans, and holds the plan.
    fn look(&mut self) {
        let mut step = plan(&self.facts(None));
        let mut counted = None;
        if step == Step::Wait(Why::NoTally) {
            let tally = self.tally();
            step = plan(&self.facts(Some(&tally)));
            counted = Some(tally);
        }
        self.plan = Some(Plan { revision: self.cluster.revision, step, tally: counted });
    }

    /// The loop does what it planned, however long ago. Its commits are refused if the truth
    /// moved; what it does to etcd is not.
    fn act(&mut self) {
        let Some(Plan { revision, step, tally }) = self.plan.take() else { return };
        let fits = revision == self.cluster.revision;
        match step {
            Step::Rest | Step::Wait(_) => {}
            Step::Open { target } => {
                let Some(root) = self.roots.iter().position(|r| r.root == target) else { return };
                if fits {
                    self.open(OperationKind::Rotate, root, false);
                }
            }
            Step::CommitPreflighted if fits => {
                self.commit(Commit::Preflighted);
            }
            Step::Reject { reason } if fits => {
                self.commit(Commit::Rejected { reason });
            }
            Step::Register { .. } if fits => {
                self.commit(Commit::Registered);
            }
            Step::Mint { target, serial } if fits => {
                let Some(root) = self.roots.iter().find(|r| r.root == target) else { return };
                let Some(version) = root.current else { return };
                if root.state != KeyState::Active {
                    return;
                }
                let kek = Kek {
                    serial,
                    root: RootVersion { root: target, version },
                    wrapped: String::new(),
                    role: Role::Staged,
                    created: UnixMs(self.now),
                };
                if self.commit(Commit::Minted { kek }) {
                    assert!(self.serials.insert(serial), "I4: serial {serial} came a second time");
                }
            }
            Step::TakeUp { agent, stage } if fits => {
                self.commit(Commit::TakeUp { agent, stage });
            }
            Step::Promote { .. } if fits => {
                self.commit(Commit::Promoted);
            }
            Step::Rewrite { .. } => {
                let rewrite = Rewrite { done: 0, total: RECORDS as u64, per_second: 0 };
                if fits && self.commit(Commit::Rewriting { rewrite }) {
                    self.touch_stale();
                }
            }
            Step::Verify if fits => {
                let again = self.tally();
                if again.stale + again.plaintext + again.unknown == 0 {
                    let at = tally.map_or(UnixMs(self.now), |_| UnixMs(self.now));
                    let verified =
                        Verified { revision: again.revision, at, records: 3, sampled: 3 };
                    self.commit(Commit::Verified { verified });
                }
            }
            Step::Compact { revision } => {
                self.history.retain(|r| *r > revision);
                // The newest revision of a record stays, whatever it is.
                if self.etcd.contains(&Stored::Plain) {
                    self.history.push(self.revision);
                }
                if fits {
                    self.commit(Commit::Compacted { revision });
                }
            }
            Step::GoWithout { root } if fits => {
                let status = self.roots.iter().find(|r| r.root == root).cloned();
                let Some(status) = status.filter(|r| r.state != KeyState::Active) else { return };
                let acted = |n: &Node| n.acknowledged.get(&root) == Some(&status.event);
                if self.nodes.iter().all(acted) && self.commit(Commit::WentWithout { root }) {
                    for node in &self.nodes {
                        assert!(node.api.is_none(), "I6: {} holds what it read", node.name);
                        assert!(node.memory.is_none(), "I6: {} holds keys", node.name);
                    }
                }
            }
            Step::Readmit { serial } if fits => {
                let root = self.cluster.ring.get(serial).map(|k| k.root.root);
                if root.is_some_and(|root| self.active(root)) {
                    self.commit(Commit::Readmitted { serial });
                }
            }
            Step::Finish if fits => {
                let kind = self.cluster.operation.as_ref().map(|o| o.kind);
                if self.commit(Commit::Finished) {
                    self.finishes += 1;
                    let tally = self.tally();
                    assert_eq!(tally.current, RECORDS as u64, "finished with {tally:?}");
                    if kind == Some(OperationKind::Enable) {
                        assert_eq!(self.history, [0i64; 0], "plaintext in etcd's history");
                    }
                }
            }
            _ => {}
        }
    }

    /// Empty patches of stale records through the first API server that runs.
    fn touch_stale(&mut self) {
        let write = self.cluster.ring.write().map(|k| Stored::Under(k.serial));
        for r in 0..RECORDS {
            if Some(self.etcd[r]) == write {
                continue;
            }
            if let Stored::Under(s) = self.etcd[r]
                && self.lost(s)
            {
                continue;
            }
            let Some(api) = self.nodes.iter().find_map(|n| n.api.as_ref()) else { return };
            // What it cannot read it cannot patch.
            if self.etcd[r] == Stored::Plain && api.loaded == Stage::Only {
                continue;
            }
            // A record that is not as this API server would write it is written.
            let own = match (api.loaded >= Stage::WriteFirst, api.seed) {
                (true, Some(serial)) => Stored::Under(serial),
                (true, None) => continue,
                (false, _) => Stored::Plain,
            };
            if own != self.etcd[r] {
                self.store(r, own);
            }
        }
    }

    /// What must hold after every event.
    pub fn check(&self) {
        let writes = self.cluster.ring.keks.iter().filter(|k| k.role == Role::Write).count();
        assert!(writes <= 1, "I5: {writes} KEKs seal");
        let mut serials: Vec<_> = self.cluster.ring.keks.iter().map(|k| k.serial).collect();
        let before = serials.len();
        serials.sort_unstable();
        serials.dedup();
        assert_eq!(serials.len(), before, "I4: serials repeat");
        for node in &self.nodes {
            let (Some(api), Some((_, opened))) = (&node.api, &node.memory) else { continue };
            if node.stranger {
                continue;
            }
            let told = self.cluster.servers[&node.name].stage;
            for (r, record) in self.etcd.iter().enumerate() {
                let readable = match record {
                    Stored::Plain if self.reinstalled => api.loaded.min(told) < Stage::Only,
                    Stored::Plain => api.loaded < Stage::Only,
                    Stored::Under(s) if self.lost(*s) => true,
                    Stored::Under(s) => api.loaded >= Stage::ReadFirst && opened.contains(s),
                };
                assert!(
                    readable,
                    "I1: {} cannot read record {r}, {record:?}: {:#?}",
                    node.name,
                    (&self.cluster, &self.nodes)
                );
            }
        }
        for writer in &self.nodes {
            // While identity comes first, the seed seals nothing that is stored.
            let writes = writer.api.as_ref().filter(|a| a.loaded >= Stage::WriteFirst);
            let Some(seed) = writes.and_then(|a| a.seed) else { continue };
            for reader in self.nodes.iter().filter(|n| n.api.is_some()) {
                let Some((_, opened)) = &reader.memory else { continue };
                assert!(
                    opened.contains(&seed),
                    "I2: {} seals with {seed}, {} has not opened it",
                    writer.name,
                    reader.name
                );
            }
        }
        for record in &self.etcd {
            let Stored::Under(serial) = record else { continue };
            let role = self.cluster.ring.get(*serial).map(|k| k.role);
            let may = matches!(role, Some(Role::Write | Role::Read | Role::Lost));
            assert!(may, "a live record is under {serial}, which is {role:?}");
        }
        if self.cluster.servers.values().any(|t| t.stage == Stage::Only) {
            assert!(!self.etcd.contains(&Stored::Plain), "[kms] while plaintext is there");
            for node in &self.nodes {
                let Some(api) = &node.api else { continue };
                assert!(
                    api.loaded >= Stage::WriteFirst,
                    "[kms] while {} writes plaintext",
                    node.name
                );
                let ghost = api.ghost.is_some_and(|t| t > self.now);
                assert!(!ghost, "[kms] while a request of {} may write plaintext", node.name);
            }
        }
    }

    /// What happens in a round in which everybody does their work.
    pub fn round(&self) -> Vec<Op> {
        let mut ops = vec![Op::Tick];
        for i in 0..self.nodes.len() as u8 {
            ops.extend([Op::Sync(i), Op::Follow(i), Op::Follow(i), Op::Poll(i), Op::Pickup(i)]);
            // One record is written by clients all the time, the others wait for the rewrite.
            ops.extend([Op::Write(i, 0), Op::Canary(i), Op::Observe(i), Op::Deliver(i)]);
        }
        ops.extend([Op::Look, Op::Act]);
        ops
    }

    /// So many rounds.
    pub fn rounds(&mut self, count: u32) {
        for _ in 0..count {
            for op in self.round() {
                self.step(op);
                self.check();
            }
        }
    }

    /// Somebody deletes what nobody can read, and makes it anew.
    pub fn replace_unreadable(&mut self) {
        let write = self.cluster.ring.write().map(|k| k.serial).expect("a KEK seals");
        for r in 0..RECORDS {
            if let Stored::Under(s) = self.etcd[r]
                && self.lost(s)
            {
                self.store(r, Stored::Under(write));
            }
        }
    }

    /// Whether nothing is left to do.
    pub fn at_rest(&self) -> bool {
        let version = write_root(&self.cluster);
        let current = version.is_none_or(|v| {
            self.roots.iter().any(|r| r.root == v.root && r.current == Some(v.version))
        });
        let stages: BTreeSet<Stage> = self.cluster.servers.values().map(|t| t.stage).collect();
        // Without a key there is nothing to bring anybody to.
        let even = version.is_none() || stages.iter().eq([&Stage::Only]);
        self.cluster.operation.is_none() && current && even
    }

    /// Goes on fairly until all is at rest. The bound is what two operations with their waits
    /// of 60 rounds need, and as much again.
    pub fn settle(&mut self, mut each: impl FnMut(&World)) {
        for _ in 0..600 {
            if self.at_rest() {
                return;
            }
            self.step(Op::EnableRoots);
            for op in self.round() {
                self.step(op);
                self.check();
                each(self);
            }
        }
        let next = plan(&self.facts(Some(&self.tally())));
        panic!("never finishes; next would be {next:?}");
    }
}

fn node(i: usize, running: Option<Stage>) -> Node {
    let process = Process { pid: i as i32 * 1000, start: 0 };
    Node {
        name: format!("node-{i}").parse().expect("a DNS label"),
        disk: Disk { ring: Ring::default(), revision: 0, stage: Stage::Bare, doomed: None },
        memory: None,
        fenced: None,
        acknowledged: BTreeMap::new(),
        api: running.map(|loaded| Api { process, loaded, seed: None, ghost: None }),
        canary: None,
        preflight: None,
        outbox: None,
        starts: 0,
        held: false,
        stranger: false,
    }
}
