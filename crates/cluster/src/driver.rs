//! What the one task that acts on this node does: fence, ring, API server, in this order, again and
//! again.
//! Nobody else opens the plugin, or starts or kills the API server, but a scrub, which holds it: what
//! is held is not started here, and a fence that falls meanwhile kills all the same.

use crate::acknowledgements::{self, Acknowledged};
use crate::contact::{COASTS_AFTER, Moment as Clocks, wall};
use crate::down::down;
use crate::encryption;
use crate::fence::{Fence, Record};
use crate::file;
use crate::foreign;
use crate::hand_over::Ring;
use crate::keys::Keys;
use crate::node::{Node, Part};
use crate::observe::Probe;
use crate::ring::{Opener, Opening};
use crate::silence;
use crate::take_up::{self, Act, Due, Moment};
use claviger_domain::cluster::plan::not_told;
use claviger_domain::cluster::ring::Role;
use claviger_domain::cluster::{Access, Cluster, Observation, Process, Stage, TakeUp};
use claviger_domain::id::Serial;
use claviger_supervise::{Observed, SuperviseError};
use claviger_wire::agent::Acknowledgement;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an API server that died is left to whoever keeps it running before the agent starts
/// it itself.
const LEFT_TO_KEEPER: Duration = Duration::from_secs(2);
/// Longest pause between two starts of an API server that does not stay up.
const START_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Acts on one node.
pub struct Driver {
    node: Arc<Node>,
    keys: Arc<dyn Keys>,
    fence: Fence,
    due: Due,
    opener: Opener,
    /// Whether the fence that stands is being lifted: what was unwrapped for that is kept, but
    /// not given to the plugin before all is.
    lifting: bool,
    /// What the plugin was last given, and which of it passed the self-test.
    given: Option<(u64, Vec<Serial>, Option<Serial>)>,
    tested: Vec<Serial>,
    waiting: Option<String>,
    dead_since: Option<Instant>,
    unready_since: Option<Instant>,
    starts: u32,
    start_after: Option<Instant>,
    acknowledged: Acknowledged,
    last_error: Option<String>,
}

impl Driver {
    /// A driver of `node`. `fence` and `due` are what the last run left.
    pub fn new(node: Arc<Node>, keys: Arc<dyn Keys>, fence: Fence, due: Due) -> Self {
        Self {
            node,
            keys,
            fence,
            due,
            opener: Opener::default(),
            lifting: false,
            given: None,
            tested: Vec::new(),
            waiting: None,
            dead_since: None,
            unready_since: None,
            starts: 0,
            start_after: None,
            acknowledged: Acknowledged::new(),
            last_error: None,
        }
    }

    /// One look at everything, with the acts that follow. Takes milliseconds at rest; while a
    /// KEK is opened, as long as an unwrap takes.
    pub async fn look(&mut self, probe: &Probe) -> Observation {
        self.fence_or_lift().await;
        if self.fence.record().is_none() {
            self.open_ring().await;
            if self.node.must_fence() {
                self.fence_or_lift().await;
            }
        }
        // Opening may have been denied, so ask again.
        if self.fence.record().is_none() {
            match self.fence.release(&*self.node.supervisor) {
                Ok(true) => self.start_after = None,
                Ok(false) => {}
                Err(e) => self.complain("cannot release the API server", &e),
            }
            self.take_up(probe);
        }
        let mut observation = self.observation(probe);
        if observation.ready {
            self.unready_since = None;
        } else {
            let since = *self.unready_since.get_or_insert_with(Instant::now);
            let seen = self.node.supervisor.observe();
            observation.down = down(since.elapsed(), &observation, seen.ok().as_ref(), probe);
        }
        observation
    }

    /// Gives what is open away, for a successor, and holds no key afterwards; none if nothing is
    /// open. Acts on a fence that is due first. On an error nothing has changed.
    pub async fn hand_over(&mut self) -> Result<Option<Ring>, file::FileError> {
        self.fence_or_lift().await;
        self.node.settle()?;
        let truth = self.node.cluster_truth();
        let open = self.fence.record().is_none() && self.is_open();
        let ring = truth.filter(|_| open).map(|truth| Ring {
            cluster: truth.id,
            revision: truth.revision,
            keks: self.opener.hand(),
        });
        self.opener.forget();
        // A fence's own word stays: its reason is what a caller should read.
        if self.fence.record().is_none() {
            self.wait("the agent hands over to its successor");
        }
        Ok(ring)
    }

    /// Takes a predecessor's ring, as far as this node still believes in it and nothing forbids
    /// it, and opens the plugin with it. How many KEKs those are, or why none.
    pub fn adopt(&mut self, handed: &Ring) -> Result<usize, &'static str> {
        if self.fence.record().is_some() {
            return Err("this node is fenced");
        }
        let Some(truth) = self.node.cluster_truth() else { return Err("no ring was kept") };
        if (&truth.id, truth.revision) != (&handed.cluster, handed.revision) {
            return Err("the ring on disk is of another revision");
        }
        let count = self.opener.adopt(&truth, &handed.keks);
        self.waiting = None;
        self.give(&truth);
        Ok(count)
    }

    async fn fence_or_lift(&mut self) {
        let now = wall();
        let latest = self.node.latest();
        let truth = self.node.cluster_truth();
        let asked =
            latest.as_ref().and_then(|l| Record::of_state(&l.state.cluster, &l.state.roots, now));
        let absent = || {
            let mark = self.node.contact().filter(|_| self.node.away_too_long())?;
            Record::of_absence(truth.as_ref()?, mark.contact, now)
        };
        let stands = self.fence.record().cloned();
        let Some(record) = stands.clone().or_else(|| asked.clone()).or_else(absent) else {
            return;
        };
        let may_lift = stands.is_some()
            && asked.is_none()
            && latest.as_ref().is_some_and(|l| {
                l.at.elapsed() < COASTS_AFTER
                    && not_told(&l.state.cluster, &l.state.roots).is_none()
            });
        if !may_lift {
            self.impose(record);
            return;
        }
        // The ring was wiped when the fence fell, so each KEK is unwrapped afresh here. The
        // record stands until all are; until then the API server stays dead.
        let Some(truth) = truth else { return };
        if !std::mem::replace(&mut self.lifting, true) {
            self.opener.hurry();
        }
        self.keep_shut(record.clone());
        match self.try_open(&truth).await {
            Opening::Whole => {
                self.give(&truth);
                if !self.lift(&truth) {
                    self.shut_plugin(&record.reason);
                }
            }
            Opening::Lacking(why) => self.lacks(&why),
            Opening::Denied { root, state, message } => {
                self.lacks(&format!("root key {root} is {state}: {message}"));
                self.opener.forget();
            }
        }
        if self.node.must_fence()
            && let Some(record) = self.fence.record().cloned()
        {
            self.impose(record);
        }
    }

    /// Takes the fence away if every KEK in use passed its test and nobody asks for a fence.
    fn lift(&mut self, truth: &Cluster) -> bool {
        let in_use = truth.ring.keks.iter().filter(|k| k.role == Role::Write);
        let sound = in_use.clone().all(|k| self.tested.contains(&k.serial));
        if !sound || self.node.must_fence() {
            return false;
        }
        match self.fence.lift() {
            Ok(()) => {
                tracing::info!("the root key is usable again; the fence is lifted");
                (self.lifting, self.waiting) = (false, None);
                true
            }
            Err(e) => {
                self.complain("cannot lift the fence", &e);
                false
            }
        }
    }

    /// Says once why a fence is not lifted yet.
    fn lacks(&mut self, why: &str) {
        if self.waiting.as_deref() != Some(why) {
            tracing::info!(%why, "the fence cannot be lifted yet");
            self.waiting = Some(why.to_owned());
        }
    }

    /// The plugin refuses, and holds no key.
    fn shut_plugin(&mut self, reason: &str) {
        self.node.plugin.fence(reason);
        self.given = None;
        self.tested.clear();
    }

    /// Holds and kills without touching the ring: while a fence is being lifted.
    fn keep_shut(&mut self, record: Record) {
        let node = self.node.clone();
        let mut nothing = |_: &str| {};
        let done = tokio::task::block_in_place(|| {
            let silent = || silence::prove(&node.config.kube.url);
            self.fence.impose(record, &mut nothing, &*node.supervisor, &silent)
        });
        if let Err(e) = done {
            self.complain("the fence is not complete", &e);
        }
    }

    fn impose(&mut self, record: Record) {
        self.lifting = false;
        let node = self.node.clone();
        let (opener, given, tested) = (&mut self.opener, &mut self.given, &mut self.tested);
        let mut wipe = |reason: &str| {
            node.plugin.fence(reason);
            opener.wipe();
            *given = None;
            tested.clear();
        };
        let fence = &mut self.fence;
        let silent = || silence::prove(&node.config.kube.url);
        let done = tokio::task::block_in_place(|| {
            fence.impose(record, &mut wipe, &*node.supervisor, &silent)
        });
        match done {
            Ok(()) => self.last_error = None,
            Err(e) => self.complain("the fence is not complete", &e),
        }
    }

    async fn try_open(&mut self, truth: &Cluster) -> Opening {
        let (node, keys) = (self.node.clone(), self.keys.clone());
        tokio::select! {
            biased;
            // A key service that keeps its answer to itself must not keep the fence from falling.
            () = node.fence_due() => Opening::Lacking("broken off: the node is to be fenced".to_owned()),
            opening = self.opener.open(truth, &*keys) => opening,
        }
    }

    /// Opens what only backups may need; broken off when a fence is due.
    async fn open_spare(&mut self, truth: &Cluster) {
        let (node, keys) = (self.node.clone(), self.keys.clone());
        let latest = node.latest();
        let roots = latest.as_ref().map(|l| l.state.roots.as_slice());
        tokio::select! {
            biased;
            () = node.fence_due() => {}
            () = self.opener.open_spare(truth, roots, &*keys) => {}
        }
    }

    async fn open_ring(&mut self) {
        let Some(truth) = self.node.cluster_truth() else {
            return self.wait(
                "the server has not answered yet and no ring was kept, or the ring could not be written to disk",
            );
        };
        if truth.ring.keks.is_empty() {
            return self.wait("the cluster has no key yet");
        }
        match self.try_open(&truth).await {
            Opening::Denied { root, state, message } => {
                tracing::warn!(%root, %state, %message, "the key service denies the ring");
                self.impose(Record::of_denial(root, state, wall()));
            }
            Opening::Whole => {
                self.give(&truth);
                self.waiting = None;
                // The API server waits for none of these.
                self.open_spare(&truth).await;
                self.give(&truth);
            }
            Opening::Lacking(why) => {
                self.give(&truth);
                if self.given.is_none() {
                    self.wait(&why);
                } else {
                    self.waiting = Some(why);
                }
            }
        }
    }

    /// The plugin refuses for now.
    fn wait(&mut self, why: &str) {
        if self.waiting.as_deref() != Some(why) {
            tracing::info!(%why, "the plugin waits");
            self.node.plugin.wait(why);
            self.waiting = Some(why.to_owned());
        }
        self.given = None;
        self.tested.clear();
    }

    /// Gives the plugin what is open, if that or the truth has changed, and tests it.
    fn give(&mut self, truth: &Cluster) {
        let reported = truth.ring.reported().map(|k| k.serial);
        let new = (truth.revision, self.opener.serials(), reported);
        if self.given.as_ref() == Some(&new) {
            return;
        }
        match self.opener.ring(truth) {
            Ok(ring) => {
                self.node.plugin.set(ring);
                self.tested = self.node.plugin.self_test();
                self.given = Some(new);
            }
            Err(e) if self.given.is_none() => tracing::debug!(error = %e, "no ring to give yet"),
            Err(e) => self.complain("the plugin keeps its older ring", &e),
        }
    }

    /// Whether the plugin answers, with a KEK that passed its test.
    fn is_open(&self) -> bool {
        self.given
            .as_ref()
            .is_some_and(|(_, _, reported)| reported.is_some_and(|s| self.tested.contains(&s)))
    }

    fn take_up(&mut self, probe: &Probe) {
        let observed = match self.node.supervisor.observe() {
            Ok(observed) => observed,
            Err(e) => return self.complain("cannot see the API server", &e),
        };
        let Some(truth) = self.node.cluster_truth() else { return };
        let moment = self.moment(&truth, &observed, probe);
        if moment.process.is_some() {
            self.dead_since = None;
            if probe.ready && probe.process == moment.process {
                (self.starts, self.start_after) = (0, None);
            }
        }
        match take_up::decide(&moment) {
            Act::Nothing => {}
            Act::Write(stage) => {
                let falls = take_up::falls(moment.on_disk, stage);
                self.write(stage, moment.take_up.filter(|_| !falls));
            }
            Act::Start { flags } => {
                let since = *self.dead_since.get_or_insert_with(Instant::now);
                let keeper_had = self.start_after.is_none() && since.elapsed() < LEFT_TO_KEEPER;
                if !keeper_had && self.start_after.is_none_or(|at| at <= Instant::now()) {
                    self.start(flags, &observed);
                }
            }
            Act::Restart => {
                tracing::info!(target = %moment.target, "restarting the API server to take its file up");
                let node = self.node.clone();
                match tokio::task::block_in_place(|| node.supervisor.kill()) {
                    Ok(()) => self.start(true, &observed),
                    Err(e) => self.complain("cannot kill the API server", &e),
                }
            }
        }
    }

    fn moment(&self, truth: &Cluster, observed: &Observed, probe: &Probe) -> Moment {
        let config = &self.node.config;
        let file = file::read(&config.api_server.encryption_config).ok().flatten();
        let on_disk = match &file {
            Some(bytes) => encryption::stage_of(bytes, &config.socket),
            None => Some(Stage::Bare),
        };
        let flags = observed.process.is_some_and(|p| self.flags(p) != Some(false));
        let loaded = probe.loaded_by(observed.process);
        let taken = loaded.as_deref().and_then(|h| encryption::stage_of_hash(h, &config.socket));
        Moment {
            target: truth.servers.get(&config.name).map(|t| t.stage).unwrap_or_default(),
            take_up: truth.operation.as_ref().map(|op| op.take_up),
            on_disk,
            disk_hash: file.as_deref().map(encryption::hash),
            process: observed.process,
            flags,
            loaded,
            fell: taken > on_disk,
            held: observed.held.is_some(),
            open: self.is_open() && self.node.trouble(Part::Socket).is_none(),
            due: self.due.stands(),
        }
    }

    /// Whether a process was started with our flags; none while that cannot be told, as in the
    /// moment in which the kernel puts the program into the process.
    fn flags(&self, process: Process) -> Option<bool> {
        let line = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let file = &self.node.config.api_server.encryption_config;
        (!line.is_empty()).then(|| take_up::has_flags(&line, file))
    }

    fn write(&mut self, stage: Stage, take_up: Option<TakeUp>) {
        let config = &self.node.config;
        let Some(bytes) = encryption::bytes(stage, &config.socket) else { return };
        // Outside an operation, and to read plaintext again, the API server is left to its poll.
        if take_up == Some(TakeUp::Restart)
            && let Err(e) = self.due.note()
        {
            return self.complain("cannot note that the API server is to be restarted", &e);
        }
        if let Err(e) = foreign::keep(&config.api_server.encryption_config, &config.socket) {
            return self.complain("cannot keep a copy of the file that is there", &e);
        }
        match file::write(&config.api_server.encryption_config, &bytes) {
            Ok(()) => {
                tracing::info!(%stage, "wrote the encryption configuration");
                self.node.look_now();
            }
            Err(e) => self.complain("cannot write the encryption configuration", &e),
        }
    }

    fn start(&mut self, flags: bool, observed: &Observed) {
        let args = if flags {
            take_up::flags(&self.node.config.api_server.encryption_config)
        } else {
            observed.extra_args.clone()
        };
        // Nothing of before the file is left: whatever starts from here on reads the new one.
        if let Err(e) = self.due.done() {
            self.complain("cannot note that the API server has ended", &e);
        }
        let pause = Duration::from_secs(1 << self.starts.min(5)).min(START_PAUSE_MAX);
        self.starts += 1;
        self.start_after = Some(Instant::now() + pause);
        match self.node.supervisor.start(&args) {
            Ok(process) => {
                tracing::info!(pid = process.pid, flags, "started the API server");
            }
            // Whoever keeps it running was faster.
            Err(SuperviseError::Running(_)) => {}
            Err(e) => self.complain("cannot start the API server", &e),
        }
    }

    fn access(&self) -> Access {
        if let Some(access) = self.fence.access() {
            return access;
        }
        if let Some(reason) = self.node.trouble(Part::Socket) {
            return Access::Waiting { reason };
        }
        let needs = self.node.cluster_truth().is_some_and(|c| !c.ring.keks.is_empty());
        let known = self.node.latest().is_some() || needs;
        if !known || (needs && (self.waiting.is_some() || !self.is_open())) {
            let reason = self.waiting.clone();
            let reason = reason.unwrap_or_else(|| "the plugin failed its self-test".to_owned());
            return Access::Waiting { reason };
        }
        match self.node.contact() {
            Some(mark)
                if u128::from(mark.elapsed_ms(&Clocks::now())) > COASTS_AFTER.as_millis() =>
            {
                Access::Coasting { since: mark.contact }
            }
            _ => Access::Open,
        }
    }

    fn observation(&self, probe: &Probe) -> Observation {
        let config = &self.node.config;
        let process = self.node.supervisor.observe().ok().and_then(|o| o.process);
        let file = file::read(&config.api_server.encryption_config).ok().flatten();
        let on_disk = file.as_deref().and_then(|f| encryption::stage_of(f, &config.socket));
        let flags = process.and_then(|p| self.flags(p));
        let loaded = match (process, probe.loaded_by(process)) {
            (Some(_), _) if flags == Some(false) => Some(Stage::Bare),
            (Some(_), _) if flags.is_none() => None,
            // It will be ended, so what it has loaded counts for nothing.
            (Some(_), _) if self.due.stands() => None,
            (Some(_), Some(hash)) => {
                encryption::stage_of_hash(&hash, &config.socket).or_else(|| {
                    // A file that we did not write, taken up as it stands and encrypting nothing.
                    let same = file.as_deref().is_some_and(|f| encryption::hash(f) == hash);
                    (same && on_disk == Some(Stage::Bare)).then_some(Stage::Bare)
                })
            }
            _ => None,
        };
        let (ahead, restored) = self.node.judged();
        let same = process.is_some() && probe.process == process;
        Observation {
            agent: config.name.clone(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            kubernetes: probe.kubernetes.clone(),
            ring_revision: self.given.as_ref().map_or(0, |g| g.0),
            opened: self.tested.clone(),
            key_id: self.node.plugin.key_id(),
            stage_on_disk: on_disk.unwrap_or_default(),
            stage_loaded: loaded,
            process,
            ready: same && probe.ready,
            canary: probe.canary,
            preflight: probe.preflight.clone(),
            access: self.access(),
            api_servers: probe.api_servers.clone(),
            files: self.node.files(),
            ahead,
            restored,
            down: None,
            troubles: self.node.troubles(),
        }
    }

    /// What the key service is to be told: that this node has acted on a key event. Due once
    /// for each event, when the node's fence agrees with the key's state.
    pub fn due_acknowledgements(&self) -> Vec<Acknowledgement> {
        let Some(latest) = self.node.latest() else { return Vec::new() };
        let fenced = self.fence.record().is_some();
        // Fenced means that the API server is gone, not only that it is to go.
        if fenced && !self.fence.is_complete() {
            return Vec::new();
        }
        let open = !fenced && self.is_open();
        acknowledgements::due(
            &latest.state.cluster,
            &latest.state.roots,
            fenced,
            open,
            &self.acknowledged,
        )
    }

    /// The key service has been told.
    pub fn acknowledged(&mut self, ack: &Acknowledgement) {
        self.acknowledged.insert(ack.root, (ack.event, ack.fenced));
    }

    fn complain(&mut self, what: &str, error: &(dyn std::error::Error + 'static)) {
        let mut text = format!("{what}: {error}");
        let mut cause = error.source();
        while let Some(c) = cause {
            text = format!("{text}: {c}");
            cause = c.source();
        }
        // The same trouble each second is one line, not many.
        if self.last_error.as_deref() != Some(&text) {
            tracing::error!("{text}");
            self.last_error = Some(text);
        }
    }
}
