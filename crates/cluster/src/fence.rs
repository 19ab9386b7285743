//! Keeps the API server from serving while its root key is not active, with no process left
//! that holds plaintext or keys.
//!
//! Order: the record on disk; the ring wiped and the plugin refusing; the hold on the API server;
//! SIGKILL and wait; the proof that nobody answers where it did. Each step is safe to repeat and is
//! repeated at each look while the record stands, so a kill between any two of them changes nothing but the time. Until all are done the
//! node is closing, not fenced, and nobody is told otherwise. Only a fresh successful unwrap takes
//! the record away.

use crate::file::{self, FileError};
use crate::run::with_causes;
use crate::silence::NotSilent;
use claviger_domain::cluster::plan::must_fence;
use claviger_domain::cluster::{Access, Cluster, RootStatus};
use claviger_domain::id::UnixMs;
use claviger_domain::key::{KeyState, RootKey};
use claviger_supervise::{SuperviseError, Supervisor};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use thiserror::Error;

/// What the reason of every hold of ours begins with; a hold of somebody else is left alone.
pub const HOLD: &str = "claviger fence";

/// The durable record of a fence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The root key that is not active, or that of the KEK that seals when the server has been
    /// away too long.
    pub root: RootKey,
    /// What the key service said of it; none when the server has been away too long.
    pub state: Option<KeyState>,
    /// The key event that said so; 0 when an answer to unwrap did.
    pub event: u64,
    /// Since when.
    pub since: UnixMs,
    /// Why, for people.
    pub reason: String,
}

impl Record {
    /// A fence that the server's state asks for, if it does.
    pub fn of_state(cluster: &Cluster, roots: &[RootStatus], now: UnixMs) -> Option<Self> {
        let root = must_fence(cluster, roots)?;
        Some(Self {
            root: root.root,
            state: Some(root.state),
            event: root.event,
            since: now,
            reason: format!("root key {} is {}", root.root.key, root.state),
        })
    }

    /// A fence because the key service denied an unwrap.
    pub fn of_denial(root: RootKey, state: KeyState, now: UnixMs) -> Self {
        let reason = format!("root key {} is {state}", root.key);
        Self { root, state: Some(state), event: 0, since: now, reason }
    }

    /// A fence because the server has been away longer than `coast_max`; none if the cluster
    /// has no KEK that seals, and so nothing to protect.
    pub fn of_absence(cluster: &Cluster, contact: UnixMs, now: UnixMs) -> Option<Self> {
        let write = cluster.ring.write()?;
        Some(Self {
            root: write.root.root,
            state: None,
            event: 0,
            since: now,
            reason: format!(
                "the server has not answered since {} (milliseconds since 1970), longer than coast_max",
                contact.0
            ),
        })
    }
}

/// A fence that is not complete; it is tried again at the next look.
#[derive(Debug, Error)]
pub enum FenceError {
    /// The record could not be written or removed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The API server could not be held, killed or released.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    /// An API server may still serve.
    #[error(transparent)]
    NotSilent(#[from] NotSilent),
}

/// The fence of this node.
#[derive(Debug)]
pub struct Fence {
    path: PathBuf,
    record: Option<Record>,
    durable: bool,
    /// Why the fence that stands is not complete.
    lacks: Option<String>,
}

impl Fence {
    /// Reads the record that the last run left. One that cannot be understood is an error: the
    /// node must not be opened on a guess, so [`shut`] it.
    pub fn open(path: PathBuf) -> Result<Self, FileError> {
        let record: Option<Record> = file::read_json(&path)?;
        let durable = record.is_some();
        Ok(Self { path, record, durable, lacks: Some("it was not looked at yet".to_owned()) })
    }

    /// The record, while the fence stands.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Whether the fence stands and was complete at the last look: no process is left that holds
    /// plaintext or keys.
    pub fn is_complete(&self) -> bool {
        self.record.is_some() && self.lacks.is_none()
    }

    /// How it is reported, while it stands.
    pub fn access(&self) -> Option<Access> {
        let Record { root, event, since, .. } = *self.record.as_ref()?;
        Some(match &self.lacks {
            None => Access::Fenced { root, event, since },
            Some(reason) => Access::Closing { root, event, since, reason: reason.clone() },
        })
    }

    /// Fences, or completes a fence that stands. `wipe` wipes the ring and lets the plugin
    /// refuse; `silent` proves that no API server answers any more. On an error every later step
    /// was tried all the same: a full disk must not keep plaintext in memory.
    pub fn impose(
        &mut self,
        record: Record,
        wipe: &mut dyn FnMut(&str),
        server: &dyn Supervisor,
        silent: &dyn Fn() -> Result<(), NotSilent>,
    ) -> Result<(), FenceError> {
        let done = self.try_impose(record, wipe, server, silent);
        self.lacks = done.as_ref().err().map(|error| with_causes(error));
        done
    }

    fn try_impose(
        &mut self,
        record: Record,
        wipe: &mut dyn FnMut(&str),
        server: &dyn Supervisor,
        silent: &dyn Fn() -> Result<(), NotSilent>,
    ) -> Result<(), FenceError> {
        if self.record.is_none() {
            tracing::warn!(reason = %record.reason, event = record.event, "fencing this node");
            self.record = Some(record);
        }
        let Some(record) = self.record.clone() else { return Ok(()) };
        let written = if self.durable { Ok(()) } else { file::write_json(&self.path, &record) };
        self.durable = written.is_ok();
        wipe(&record.reason);
        let seen = server.observe();
        let held = seen.as_ref().is_ok_and(|s| s.held.is_some());
        let hold = if held { Ok(()) } else { server.hold(&format!("{HOLD}: {}", record.reason)) };
        let gone = seen.as_ref().is_ok_and(|s| s.process.is_none()) && held;
        let killed = if gone { Ok(()) } else { server.kill() };
        written?;
        hold?;
        killed?;
        Ok(silent()?)
    }

    /// Takes the record away. Only after a fresh unwrap of every KEK in use and a self-test.
    pub fn lift(&mut self) -> Result<(), FileError> {
        file::remove(&self.path)?;
        self.record = None;
        self.durable = false;
        Ok(())
    }

    /// Releases a hold of ours that no record stands behind. To be called once the ring is open.
    pub fn release(&self, server: &dyn Supervisor) -> Result<bool, SuperviseError> {
        if self.record.is_some() {
            return Ok(false);
        }
        let ours = server.observe()?.held.is_some_and(|reason| reason.starts_with(HOLD));
        if ours {
            server.release()?;
            tracing::info!("the hold on the API server is released");
        }
        Ok(ours)
    }
}

/// Holds and kills the API server of a node whose record cannot be read, since it may have to be
/// fenced. The hold counts as a fence's: it goes once the record can be read, and the ring is open.
pub fn shut(server: &dyn Supervisor, why: &str) {
    let held = server.observe().is_ok_and(|seen| seen.held.is_some());
    let hold = if held { Ok(()) } else { server.hold(&format!("{HOLD}: {why}")) };
    for done in [hold, server.kill()] {
        if let Err(error) = done {
            let error = with_causes(&error);
            tracing::error!(%error, "the API server may serve on, and whether it may is not known");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_domain::cluster::Process;
    use claviger_domain::id::{InstanceId, KeyId};
    use claviger_supervise::Observed;
    use std::sync::Mutex;
    use std::time::Duration;

    /// A program whose hold and life outlast the agent, as a unit directory's do. After `steps`
    /// calls that change something it fails every call: the agent was killed there.
    #[derive(Debug, Default)]
    struct Program {
        inner: Mutex<Inner>,
    }

    #[derive(Debug, Default)]
    struct Inner {
        alive: bool,
        held: Option<String>,
        calls: Vec<&'static str>,
        killed_after: Option<usize>,
    }

    impl Program {
        fn running() -> Self {
            Self { inner: Mutex::new(Inner { alive: true, ..Inner::default() }) }
        }

        fn act(
            &self,
            name: &'static str,
            act: impl FnOnce(&mut Inner),
        ) -> Result<(), SuperviseError> {
            let mut inner = self.inner.lock().unwrap();
            if inner.killed_after.is_some_and(|n| inner.calls.len() >= n) {
                return Err(SuperviseError::Held("the agent is dead".to_owned()));
            }
            inner.calls.push(name);
            act(&mut inner);
            Ok(())
        }

        fn calls(&self) -> Vec<&'static str> {
            self.inner.lock().unwrap().calls.clone()
        }
    }

    impl Supervisor for Program {
        fn start(&self, _: &[String]) -> Result<Process, SuperviseError> {
            if let Some(reason) = &self.inner.lock().unwrap().held {
                return Err(SuperviseError::Held(reason.clone()));
            }
            self.act("start", |i| i.alive = true)?;
            Ok(Process { pid: 1, start: 1 })
        }
        fn kill(&self) -> Result<(), SuperviseError> {
            self.act("kill", |i| i.alive = false)
        }
        fn stop(&self, _: Duration) -> Result<(), SuperviseError> {
            panic!("a fence never asks politely")
        }
        fn observe(&self) -> Result<Observed, SuperviseError> {
            let inner = self.inner.lock().unwrap();
            let process = inner.alive.then_some(Process { pid: 1, start: 1 });
            Ok(Observed { process, held: inner.held.clone(), extra_args: Vec::new() })
        }
        fn hold(&self, reason: &str) -> Result<(), SuperviseError> {
            self.act("hold", |i| i.held = Some(reason.to_owned()))
        }
        fn release(&self) -> Result<(), SuperviseError> {
            self.act("release", |i| i.held = None)
        }
    }

    fn nobody_answers() -> Result<(), NotSilent> {
        Ok(())
    }

    fn record() -> Record {
        let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
        Record { event: 7, ..Record::of_denial(root, KeyState::Suspended, UnixMs(5)) }
    }

    #[test]
    fn a_node_whose_record_cannot_be_read_is_shut_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence.json");
        std::fs::write(&path, "{ half").unwrap();
        let program = Program::running();
        let why = Fence::open(path.clone()).unwrap_err();
        shut(&program, &why.to_string());
        assert_eq!(program.calls(), ["hold", "kill"]);
        // Once somebody has removed the file, the node comes back as after any fence.
        std::fs::remove_file(&path).unwrap();
        assert!(Fence::open(path).unwrap().release(&program).unwrap());
    }

    #[test]
    fn the_order_is_record_wipe_hold_kill() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence.json");
        let program = Program::running();
        let mut fence = Fence::open(path.clone()).unwrap();
        let mut wiped = 0;
        let mut wipe = |_: &str| {
            wiped += 1;
            assert!(path.exists(), "the record comes before the wipe");
            assert!(program.calls().is_empty(), "the wipe comes before the hold");
        };
        fence.impose(record(), &mut wipe, &program, &nobody_answers).unwrap();
        assert_eq!(program.calls(), ["hold", "kill"]);
        // Completing what is complete does nothing to the API server.
        fence.impose(record(), &mut |_| wiped += 1, &program, &nobody_answers).unwrap();
        assert_eq!(program.calls(), ["hold", "kill"]);
        assert_eq!(wiped, 2);
    }

    #[test]
    fn a_kill_after_any_step_leads_to_the_same_end() {
        for steps in 0..=2 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("fence.json");
            let program = Program::running();
            program.inner.lock().unwrap().killed_after = Some(steps);
            let first = record();
            let done = Fence::open(path.clone()).unwrap().impose(
                first.clone(),
                &mut |_| {},
                &program,
                &nobody_answers,
            );
            assert_eq!(done.is_ok(), steps == 2);
            // The next agent finds the record and needs no word from the server.
            program.inner.lock().unwrap().killed_after = None;
            let mut fence = Fence::open(path).unwrap();
            assert_eq!(fence.record(), Some(&first), "the record was durable before all else");
            let mut wiped = false;
            fence.impose(record(), &mut |_| wiped = true, &program, &nobody_answers).unwrap();
            assert_eq!(fence.record(), Some(&first), "the first reason stays");
            let seen = program.observe().unwrap();
            assert!(wiped && seen.process.is_none() && seen.held.is_some(), "after {steps} steps");
            assert!(program.start(&[]).is_err());
        }
    }

    /// A process that outlived its unit's record: the supervisor sees nothing, and it serves.
    #[test]
    fn while_somebody_answers_the_node_is_closing_and_not_fenced() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program::default();
        let mut fence = Fence::open(dir.path().join("fence.json")).unwrap();
        let answers = || Err(NotSilent::Answers(([127, 0, 0, 1], 6443).into()));
        let done = fence.impose(record(), &mut |_| {}, &program, &answers);
        assert!(matches!(done, Err(FenceError::NotSilent(_))));
        let said = fence.access().unwrap();
        assert!(
            matches!(&said, Access::Closing { event: 7, reason, .. } if reason.contains(":6443")),
            "{said:?}"
        );
        assert!(!fence.is_complete());
        fence.impose(record(), &mut |_| {}, &program, &nobody_answers).unwrap();
        assert!(fence.is_complete());
        assert!(matches!(fence.access(), Some(Access::Fenced { event: 7, .. })));
        // What the last run completed is proven anew.
        let fence = Fence::open(dir.path().join("fence.json")).unwrap();
        assert!(!fence.is_complete() && matches!(fence.access(), Some(Access::Closing { .. })));
    }

    #[test]
    fn an_api_server_that_came_back_under_a_fence_is_killed_again() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program::running();
        let mut fence = Fence::open(dir.path().join("fence.json")).unwrap();
        fence.impose(record(), &mut |_| {}, &program, &nobody_answers).unwrap();
        program.inner.lock().unwrap().alive = true;
        fence.impose(record(), &mut |_| {}, &program, &nobody_answers).unwrap();
        assert!(program.observe().unwrap().process.is_none());
    }

    #[test]
    fn a_disk_that_does_not_take_the_record_still_loses_the_api_server() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program::running();
        let mut fence = Fence::open(dir.path().join("missing").join("fence.json")).unwrap();
        let mut wiped = false;
        let done = fence.impose(record(), &mut |_| wiped = true, &program, &nobody_answers);
        assert!(matches!(done, Err(FenceError::File(_))));
        assert!(wiped && program.observe().unwrap().process.is_none());
        assert!(fence.record().is_some());
    }

    #[test]
    fn only_our_own_hold_is_released_and_never_under_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence.json");
        let program = Program::running();
        let mut fence = Fence::open(path.clone()).unwrap();
        fence.impose(record(), &mut |_| {}, &program, &nobody_answers).unwrap();
        assert!(!fence.release(&program).unwrap());
        fence.lift().unwrap();
        assert!(!path.exists());
        // Killed here: the next agent finds a hold and no record.
        let fence = Fence::open(path).unwrap();
        assert!(fence.release(&program).unwrap());
        assert!(program.start(&[]).is_ok());
        program.hold("maintenance").unwrap();
        assert!(!fence.release(&program).unwrap());
    }

    #[test]
    fn a_spoilt_record_keeps_the_agent_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence.json");
        std::fs::write(&path, b"").unwrap();
        assert!(Fence::open(path).is_err());
    }
}
