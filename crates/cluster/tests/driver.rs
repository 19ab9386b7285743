//! The driver of one node with a real plugin and real files; the API server is a stand-in that
//! only lives, dies and is held, and the key service one that unwraps or does not.

#![allow(clippy::unwrap_used)] // A panic is the report of a test.

use claviger_client::{AgentApi, KeyService, NodeConfig};
use claviger_cluster::config::AgentConfig;
use claviger_cluster::drive::{Acks, drive};
use claviger_cluster::driver::Driver;
use claviger_cluster::fence::Fence;
use claviger_cluster::keys::{Calling, KeyFailure, Keys};
use claviger_cluster::local::Local;
use claviger_cluster::node::{Clients, Node, Part, Parts};
use claviger_cluster::observe::Probe;
use claviger_cluster::take_up::Due;
use claviger_cluster::{encryption, sync, take_up};
use claviger_crypto::kek::Carried;
use claviger_crypto::{Key32, SecretBytes};
use claviger_domain::cluster::ring::{Kek, Ring, Role};
use claviger_domain::cluster::{
    Access, Cluster, Operation, OperationKind, Process, RootStatus, Stage, TakeUp, Target,
};
use claviger_domain::id::{
    ClusterId, InstanceId, KeyId, KeyVersionId, OperationId, Serial, UnixMs,
};
use claviger_domain::key::{KeyState, RootKey, RootVersion};
use claviger_kms_plugin::Plugin;
use claviger_kms_plugin::resolve::{Resolve, ResolveError, Resolving};
use claviger_supervise::unit::{Command, ProcessUnit};
use claviger_supervise::{Observed, SuperviseError, Supervisor};
use claviger_wire::agent::State;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct Program(Mutex<(bool, Option<String>)>);

impl Supervisor for Program {
    fn start(&self, _: &[String]) -> Result<Process, SuperviseError> {
        let mut inner = self.0.lock().unwrap();
        if let Some(reason) = &inner.1 {
            return Err(SuperviseError::Held(reason.clone()));
        }
        inner.0 = true;
        Ok(Process { pid: 1, start: 1 })
    }
    fn kill(&self) -> Result<(), SuperviseError> {
        self.0.lock().unwrap().0 = false;
        Ok(())
    }
    fn stop(&self, _: Duration) -> Result<(), SuperviseError> {
        panic!("the agent never asks an API server politely")
    }
    fn observe(&self) -> Result<Observed, SuperviseError> {
        let inner = self.0.lock().unwrap();
        let process = inner.0.then_some(Process { pid: 1, start: 1 });
        Ok(Observed { process, held: inner.1.clone(), extra_args: Vec::new() })
    }
    fn hold(&self, reason: &str) -> Result<(), SuperviseError> {
        self.0.lock().unwrap().1 = Some(reason.to_owned());
        Ok(())
    }
    fn release(&self) -> Result<(), SuperviseError> {
        self.0.lock().unwrap().1 = None;
        Ok(())
    }
}

/// A real process under a real unit, and an agent that is killed before one of its acts: from
/// there on it does nothing.
#[derive(Debug)]
struct Mortal {
    unit: ProcessUnit,
    killed_before: Mutex<Option<&'static str>>,
}

impl Mortal {
    /// A shell that stands for an API server, started with the flags.
    fn start_in(dir: &Path, flags: &[String]) -> Self {
        let unit = ProcessUnit::open(&dir.join("unit")).unwrap();
        unit.set_command(&Command {
            argv: ["/bin/sh", "-c", "sleep 300; :", "sh"].map(str::to_owned).to_vec(),
            env: BTreeMap::new(),
            hostname: None,
            log: dir.join("log"),
        })
        .unwrap();
        unit.start(flags).unwrap();
        Self { unit, killed_before: Mutex::new(None) }
    }

    fn lives(&self, act: &str) -> Result<(), SuperviseError> {
        match *self.killed_before.lock().unwrap() {
            Some(last) if last == act => Err(SuperviseError::Held("killed".to_owned())),
            _ => Ok(()),
        }
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        let _ = self.unit.kill();
    }
}

impl Supervisor for Mortal {
    fn start(&self, extra: &[String]) -> Result<Process, SuperviseError> {
        self.lives("start")?;
        self.unit.start(extra)
    }
    fn kill(&self) -> Result<(), SuperviseError> {
        self.lives("kill")?;
        self.unit.kill()
    }
    fn stop(&self, _: Duration) -> Result<(), SuperviseError> {
        panic!("the agent never asks an API server politely")
    }
    fn observe(&self) -> Result<Observed, SuperviseError> {
        self.unit.observe()
    }
    fn hold(&self, reason: &str) -> Result<(), SuperviseError> {
        self.unit.hold(reason)
    }
    fn release(&self) -> Result<(), SuperviseError> {
        self.unit.release()
    }
}

/// Unwraps anything, or denies everything, or refuses one wrapped text, or never answers; counts the
/// calls.
#[derive(Default)]
struct Service(
    Mutex<Option<KeyState>>,
    Mutex<Vec<String>>,
    Mutex<Option<&'static str>>,
    AtomicBool,
);

impl Service {
    fn calls(&self, wrapped: &str) -> usize {
        self.1.lock().unwrap().iter().filter(|w| *w == wrapped).count()
    }
}

impl Keys for Service {
    fn unwrap<'a>(
        &'a self,
        root: RootKey,
        wrapped: &'a str,
        _: &'a [String],
    ) -> Calling<'a, SecretBytes> {
        let denied = *self.0.lock().unwrap();
        self.1.lock().unwrap().push(wrapped.to_owned());
        let refused = *self.2.lock().unwrap() == Some(wrapped);
        let hangs = self.3.load(Ordering::Relaxed);
        Box::pin(async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            if refused {
                return Err(KeyFailure::Refused("not this one".to_owned()));
            }
            match denied {
                None => Ok(SecretBytes::new(vec![7; 32])),
                Some(state) => Err(KeyFailure::NotActive { root, state, message: String::new() }),
            }
        })
    }
    fn wrap<'a>(&'a self, _: RootKey, _: &'a Key32, _: &'a [String]) -> Calling<'a, String> {
        panic!("the driver wraps nothing")
    }
}

impl Resolve for Service {
    fn resolve(&self, _: Carried) -> Resolving<'_> {
        Box::pin(async { Err(ResolveError::Refused("not in this test".to_owned())) })
    }
}

struct Bench<P = Program> {
    _dir: Option<tempfile::TempDir>,
    home: std::path::PathBuf,
    node: Arc<Node>,
    driver: Driver,
    program: Arc<P>,
    service: Arc<Service>,
    state: State,
}

fn first_state() -> State {
    let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
    let version = KeyVersionId::random();
    let kek = Kek {
        serial: Serial(1),
        root: RootVersion { root, version },
        wrapped: "wrapped".to_owned(),
        role: Role::Write,
        created: UnixMs(0),
    };
    State {
        cluster: Cluster {
            revision: 5,
            ring: Ring { keks: vec![kek], minted: 1 },
            ..Cluster::new(ClusterId::random(), "c".to_owned(), UnixMs(0))
        },
        seen: BTreeMap::new(),
        roots: vec![RootStatus {
            root,
            name: "r".to_owned(),
            state: KeyState::Active,
            current: Some(version),
            event: 0,
            expires: None,
            restorable_until: None,
        }],
        lease: None,
        jobs: Vec::new(),
        key_service: "https://localhost:1".to_owned(),
        restored: None,
        now: UnixMs(1000),
        crn: "crn".to_owned(),
    }
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let program = Arc::new(Program(Mutex::new((true, None))));
    let mut bench = bench_in(dir.path(), first_state(), program);
    bench._dir = Some(dir);
    bench
}

/// An agent with what the last one left in `dir`; no server answers it.
fn bench_in<P: Supervisor + 'static>(dir: &Path, state: State, program: Arc<P>) -> Bench<P> {
    bench_of(dir, state, program, "https://localhost:1")
}

/// The same, its server at `url`.
fn bench_of<P: Supervisor + 'static>(
    dir: &Path,
    state: State,
    program: Arc<P>,
    url: &str,
) -> Bench<P> {
    bench_with(dir, state, program, url, "https://localhost:1")
}

/// The same, its API server at `kube`.
fn bench_with<P: Supervisor + 'static>(
    dir: &Path,
    state: State,
    program: Arc<P>,
    url: &str,
    kube: &str,
) -> Bench<P> {
    let path = |name: &str| dir.join(name);
    let home = path("state");
    std::fs::create_dir_all(&home).unwrap();
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
    std::fs::write(path("cert"), &certificate).unwrap();
    std::fs::write(path("key"), &key).unwrap();
    let at = |p: &Path| p.display().to_string();
    let (cert, private) = (at(&path("cert")), at(&path("key")));
    let config = AgentConfig::parse(&format!(
        "server = \"https://localhost:1\"\nca = \"{cert}\"\nstate_dir = \"{}\"\n\
         name = \"a\"\nsocket = \"{}\"\n\
         [kube]\nurl = \"{kube}\"\nca = \"{cert}\"\ncert = \"{cert}\"\n\
         key = \"{private}\"\n\
         [etcd]\nendpoints = [\"https://localhost:1\"]\nca = \"{cert}\"\ncert = \"{cert}\"\n\
         key = \"{private}\"\n\
         [api_server]\nunit_dir = \"{}\"\nencryption_config = \"{}\"\n",
        at(&home),
        at(&path("s")),
        at(&path("unit")),
        at(&path("etc/e.yaml")),
    ))
    .unwrap();
    let cluster = state.cluster.id.clone();
    let service = Arc::new(Service::default());
    let nobody = || NodeConfig {
        url: url.to_owned(),
        ca: certificate.clone(),
        certificate: certificate.clone(),
        key: SecretBytes::new(key.clone().into_bytes()),
    };
    let local = Local::new(&config).unwrap();
    let fence = Fence::open(home.join("fence.json")).unwrap();
    let node = Node::new(Parts {
        config,
        cluster: cluster.clone(),
        plugin: Plugin::new(cluster, service.clone()),
        local,
        supervisor: program.clone(),
        clients: Clients {
            url: url.to_owned(),
            api: AgentApi::connect(&nobody()).unwrap(),
            keys: KeyService::for_node(&nobody()).unwrap(),
        },
    });
    let node = Arc::new(node.unwrap());
    let due = Due::open(home.join("take-up.json")).unwrap();
    let driver = Driver::new(node.clone(), service.clone(), fence, due);
    Bench { _dir: None, home, node, driver, program, service, state }
}

impl<P: Supervisor> Bench<P> {
    fn says(&self, state: KeyState, event: u64) -> State {
        let mut said = self.state.clone();
        said.now = UnixMs(1000 + i64::try_from(event).unwrap());
        said.roots[0].state = state;
        said.roots[0].event = event;
        said
    }

    async fn look(&mut self) -> Access {
        self.driver.look(&Probe::default()).await.access
    }

    fn alive(&self) -> bool {
        self.program.observe().unwrap().process.is_some()
    }
}

/// The server was put back to before the last events of its key, and then an operator disables it:
/// the number of that event is one that the node knows already.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_server_that_answers_all_the_time_fences_the_node_too() {
    let mut b = bench();
    let start = Instant::now();
    b.node.took_at(b.says(KeyState::Active, 42), start).unwrap();
    for second in 1..=15 {
        let at = start + Duration::from_secs(second);
        b.node.took_at(b.says(KeyState::Suspended, 41), at).unwrap();
        assert_eq!(b.node.must_fence(), second >= 10, "after {second} s");
    }
    assert!(matches!(b.look().await, Access::Fenced { event: 41, .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_expired_or_deleted_key_fences_and_an_active_one_brings_the_node_back() {
    for state in [KeyState::Suspended, KeyState::Deactivated, KeyState::Destroyed] {
        fences_and_comes_back(state).await;
    }
}

async fn fences_and_comes_back(state: KeyState) {
    let mut b = bench();
    b.node.took(b.says(KeyState::Active, 1)).unwrap();
    assert_eq!(b.look().await, Access::Open);
    assert!(b.node.plugin.key_id().is_some());

    b.node.took(b.says(state, 2)).unwrap();
    assert!(matches!(b.look().await, Access::Fenced { event: 2, .. }));
    assert!(!b.alive() && b.node.plugin.key_id().is_none());
    assert!(b.home.join("fence.json").exists());
    let told = b.driver.due_acknowledgements();
    assert!(told.len() == 1 && told[0].fenced && told[0].event == 2);

    // The server's word alone does not lift it: the key service must unwrap.
    *b.service.0.lock().unwrap() = Some(state);
    b.node.took(b.says(KeyState::Active, 3)).unwrap();
    assert!(matches!(b.look().await, Access::Fenced { event: 2, .. }));
    assert!(!b.alive() && b.node.plugin.key_id().is_none());

    *b.service.0.lock().unwrap() = None;
    let until = Instant::now() + Duration::from_secs(30);
    while b.look().await != Access::Open || !b.alive() {
        assert!(Instant::now() < until, "an active key brings the API server back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!b.home.join("fence.json").exists());
    assert_eq!(b.program.observe().unwrap().held, None);
    let told = b.driver.due_acknowledgements();
    assert!(told.len() == 1 && !told[0].fenced && told[0].event == 3);
}

/// The unit knows of no process, and something listens where the API server did.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_confirmed_while_somebody_answers_at_the_api_servers_address() {
    let survivor = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let kube = format!("https://{}", survivor.local_addr().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let program = Arc::new(Program::default());
    let mut b = bench_with(dir.path(), first_state(), program, "https://localhost:1", &kube);
    b.node.took(b.says(KeyState::Suspended, 2)).unwrap();
    let said = b.look().await;
    let Access::Closing { event: 2, reason, .. } = &said else { panic!("{said:?}") };
    assert!(reason.contains("a process still answers"), "{reason}");
    assert!(b.driver.due_acknowledgements().is_empty());
    drop(survivor);
    assert!(matches!(b.look().await, Access::Fenced { event: 2, .. }));
    assert_eq!(b.driver.due_acknowledgements().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_nobody_can_reach_is_not_open() {
    let mut b = bench();
    b.node.took(b.says(KeyState::Active, 1)).unwrap();
    assert_eq!(b.look().await, Access::Open);
    assert!(b.node.note(Part::Socket, Some("gone".to_owned())));
    assert_eq!(b.look().await, Access::Waiting { reason: "gone".to_owned() });
    assert!(!b.node.note(Part::Socket, Some("gone".to_owned())), "no news");
    assert!(b.node.note(Part::Socket, None));
    assert_eq!(b.look().await, Access::Open);
}

/// What only the agent's log says helps nobody who looks at the status.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_takes_nothing_is_reported() {
    let mut b = bench();
    b.node.took(b.says(KeyState::Active, 1)).unwrap();
    std::fs::remove_dir_all(&b.home).unwrap();
    let mut said = b.says(KeyState::Active, 2);
    said.key_service = "https://elsewhere:1".to_owned();
    assert!(b.node.took(said.clone()).is_err());
    let troubles = b.driver.look(&Probe::default()).await.troubles;
    assert!(troubles.len() == 1 && troubles[0].contains("ring.json"), "{troubles:?}");
    std::fs::create_dir(&b.home).unwrap();
    said.now = UnixMs(2000);
    b.node.took(said).unwrap();
    assert!(b.driver.look(&Probe::default()).await.troubles.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_takes_nothing_does_not_hide_a_suspended_key() {
    let mut b = bench();
    b.node.took(b.says(KeyState::Active, 1)).unwrap();
    assert_eq!(b.look().await, Access::Open);
    std::fs::remove_dir_all(&b.home).unwrap();
    // A truth that differs has to be written down, and cannot be.
    let mut said = b.says(KeyState::Suspended, 2);
    said.key_service = "https://elsewhere:1".to_owned();
    assert!(b.node.took(said).is_err());
    assert!(matches!(b.look().await, Access::Closing { event: 2, .. }));
    assert!(!b.alive() && b.node.plugin.key_id().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_does_not_wait_for_an_unwrap_that_hangs() {
    let mut b = bench();
    b.service.3.store(true, Ordering::Relaxed);
    b.node.took(b.says(KeyState::Active, 1)).unwrap();
    let (node, service, said) = (b.node.clone(), b.service.clone(), b.says(KeyState::Suspended, 2));
    let news = async move {
        while service.calls("wrapped") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        node.took(said).unwrap();
    };
    let look = async { tokio::join!(b.look(), news).0 };
    let access = tokio::time::timeout(Duration::from_secs(60), look).await;
    assert!(matches!(access, Ok(Access::Fenced { event: 2, .. })), "{access:?}");
    assert!(!b.alive());
}

/// The server takes the call and says nothing; the fence falls while the call lasts.
#[tokio::test(flavor = "multi_thread")]
async fn a_fence_does_not_wait_for_an_acknowledgement_that_hangs() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", silent.local_addr().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let program = Arc::new(Program(Mutex::new((true, None))));
    let b = bench_of(dir.path(), first_state(), program.clone(), &url);
    let (first, second) = (b.says(KeyState::Active, 1), b.says(KeyState::Suspended, 2));
    let (due, acks_due) = tokio::sync::watch::channel(Vec::new());
    let (acks_told, told) = tokio::sync::mpsc::channel(1);
    let (_asks, asked) = tokio::sync::mpsc::channel(1);
    let (_probes, probe) = tokio::sync::watch::channel(Probe::default());
    let acks = Acks { due, told };
    let tasks = [
        tokio::spawn(sync::acknowledge(b.node.clone(), acks_due, acks_told)),
        tokio::spawn(drive(b.driver, b.node.clone(), probe, acks, asked)),
    ];
    b.node.took(first).unwrap();
    let (call, _) =
        tokio::time::timeout(Duration::from_secs(60), silent.accept()).await.unwrap().unwrap();
    b.node.took(second).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while program.observe().unwrap().process.is_some() {
        assert!(Instant::now() < until, "fenced");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut bytes = [0; 4096];
    let end = loop {
        match call.try_read(&mut bytes) {
            Ok(0) => break "the call had ended",
            Ok(_) => {}
            Err(_) => break "the call lasts",
        }
    };
    assert_eq!(end, "the call lasts");
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}

/// After a switch the former root key may be disabled for good: each try would be refused and
/// recorded, and nobody needs what is under it.
#[tokio::test(flavor = "multi_thread")]
async fn a_kek_that_nobody_needs_is_asked_for_while_its_root_key_is_active() {
    let mut b = bench();
    let write = b.state.cluster.ring.keks[0].clone();
    let former = RootKey { instance: InstanceId::random(), key: KeyId::random() };
    let retained = Kek {
        root: RootVersion { root: former, version: KeyVersionId::random() },
        wrapped: "spare".to_owned(),
        role: Role::Retained,
        ..write.clone()
    };
    b.state.cluster.ring =
        Ring { keks: vec![retained, Kek { serial: Serial(2), ..write }], minted: 2 };
    let active = b.state.roots[0].clone();
    let of = |state| RootStatus { root: former, state, ..active.clone() };
    b.state.roots.push(of(KeyState::Suspended));
    b.node.took(b.says(KeyState::Active, 1)).unwrap();
    for _ in 0..20 {
        assert_eq!(b.look().await, Access::Open);
    }
    assert_eq!((b.service.calls("wrapped"), b.service.calls("spare")), (1, 0));
    b.state.roots[1] = of(KeyState::Active);
    b.node.took(b.says(KeyState::Active, 2)).unwrap();
    for _ in 0..2 {
        assert_eq!(b.look().await, Access::Open);
    }
    assert_eq!((b.service.calls("wrapped"), b.service.calls("spare")), (1, 1));
}

/// While a fence is lifted, a KEK that does not open keeps the node shut and is tried again at
/// its own pace; the others are not unwrapped again for it.
#[tokio::test(flavor = "multi_thread")]
async fn one_kek_that_does_not_open_makes_only_itself_be_tried_again() {
    let mut b = bench();
    let first = b.state.cluster.ring.keks[0].clone();
    for (serial, wrapped) in [(2, "stubborn"), (3, "third")] {
        let kek = Kek { serial: Serial(serial), wrapped: wrapped.to_owned(), ..first.clone() };
        b.state.cluster.ring.keks.push(Kek { role: Role::Read, ..kek });
    }
    b.node.took(b.says(KeyState::Suspended, 1)).unwrap();
    assert!(matches!(b.look().await, Access::Fenced { .. }));
    *b.service.2.lock().unwrap() = Some("stubborn");
    b.node.took(b.says(KeyState::Active, 2)).unwrap();
    for _ in 0..50 {
        assert!(matches!(b.look().await, Access::Fenced { .. }));
        assert!(!b.alive() && b.node.plugin.key_id().is_none());
    }
    assert_eq!((b.service.calls("wrapped"), b.service.calls("third")), (1, 1));
    let tries = b.service.calls("stubborn");
    assert!(tries < 10, "{tries} tries of 50 looks");
    // Suspended again meanwhile: what was opened is gone, and is unwrapped afresh.
    b.node.took(b.says(KeyState::Suspended, 3)).unwrap();
    b.look().await;
    *b.service.2.lock().unwrap() = None;
    b.node.took(b.says(KeyState::Active, 4)).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while b.look().await != Access::Open || !b.alive() {
        assert!(Instant::now() < until, "it opens once all do");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((b.service.calls("wrapped"), b.service.calls("third")), (2, 2));
}

/// A successor serves with the ring that was handed to it and asks the key service nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_successor_goes_on_with_the_handed_ring() {
    let dir = tempfile::tempdir().unwrap();
    let program = Arc::new(Program(Mutex::new((true, None))));
    let mut old = bench_in(dir.path(), first_state(), program.clone());
    old.node.took(old.says(KeyState::Active, 1)).unwrap();
    assert_eq!(old.look().await, Access::Open);
    // A newer revision with the same ring is only in memory.
    old.state.cluster.revision += 1;
    old.node.took(old.says(KeyState::Active, 1)).unwrap();
    assert_eq!(old.look().await, Access::Open);
    let key_id = old.node.plugin.key_id();

    let ring = old.driver.hand_over().await.unwrap().unwrap();
    assert_eq!(old.node.plugin.key_id(), None, "nothing is open any longer");
    assert_eq!(old.driver.adopt(&ring), Ok(1), "taken back after an exec that failed");
    assert_eq!(old.node.plugin.key_id(), key_id);
    assert_eq!(old.look().await, Access::Open);
    assert_eq!(old.service.calls("wrapped"), 1);
    let ring = old.driver.hand_over().await.unwrap().unwrap();
    let state = old.state.clone();
    drop(old);

    let mut new = bench_in(dir.path(), state.clone(), program.clone());
    assert_eq!(new.driver.adopt(&ring), Ok(1));
    assert_eq!(new.node.plugin.key_id(), key_id, "at once");
    assert_eq!(new.look().await, Access::Open);
    assert_eq!(new.service.calls("wrapped"), 0);

    // What it may not take.
    let other = |cluster, revision| {
        let keks = SecretBytes::new(ring.keks.expose().to_vec());
        claviger_cluster::hand_over::Ring { cluster, revision, keks }
    };
    let mut new = bench_in(dir.path(), state.clone(), program.clone());
    assert!(new.driver.adopt(&other(ClusterId::random(), ring.revision)).is_err());
    assert!(new.driver.adopt(&other(ring.cluster.clone(), ring.revision - 1)).is_err());
    let mut changed = new.says(KeyState::Active, 1);
    changed.cluster.ring.keks[0].wrapped = "another".to_owned();
    std::fs::remove_file(new.home.join("ring.json")).unwrap();
    let mut new = bench_in(dir.path(), state, program);
    assert!(new.driver.adopt(&ring).is_err(), "no ring on disk");
    new.node.took(changed).unwrap();
    assert_eq!(new.driver.adopt(&ring), Ok(0), "another wrapped KEK");
    assert_eq!(new.node.plugin.key_id(), None);
}

/// A fence comes before a hand-over, on both sides of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_fence_wins_over_a_handed_ring() {
    let dir = tempfile::tempdir().unwrap();
    let program = Arc::new(Program(Mutex::new((true, None))));
    let mut old = bench_in(dir.path(), first_state(), program.clone());
    old.node.took(old.says(KeyState::Active, 1)).unwrap();
    assert_eq!(old.look().await, Access::Open);
    let ring = old.driver.hand_over().await.unwrap().unwrap();
    assert_eq!(old.driver.adopt(&ring), Ok(1));
    // The word came, and nobody has looked yet.
    old.node.took(old.says(KeyState::Suspended, 2)).unwrap();
    assert!(old.driver.hand_over().await.unwrap().is_none());
    assert!(!old.alive() && old.home.join("fence.json").exists());
    assert!(old.driver.adopt(&ring).is_err());
    let state = old.state.clone();
    drop(old);

    let mut new = bench_in(dir.path(), state, program);
    assert!(new.driver.adopt(&ring).is_err());
    assert!(matches!(new.look().await, Access::Fenced { .. }));
    assert_eq!(new.node.plugin.key_id(), None);
}

/// By restart, the process that ran when the file was replaced is ended, wherever the agent was
/// killed and whatever that process has loaded meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_not_forgotten_wherever_the_agent_is_killed() {
    for point in ["nowhere", "file", "kill", "done", "start"] {
        let dir = tempfile::tempdir().unwrap();
        let (etc, file) = (dir.path().join("etc"), dir.path().join("etc/e.yaml"));
        let note = dir.path().join("state/take-up.json");
        let socket = dir.path().join("s");
        std::fs::create_dir(&etc).unwrap();
        let old = encryption::bytes(Stage::ReadFirst, &socket).unwrap();
        std::fs::write(&file, &old).unwrap();
        let program = Arc::new(Mortal::start_in(dir.path(), &take_up::flags(&file)));
        let first = program.observe().unwrap().process.unwrap();
        let mut state = first_state();
        state
            .cluster
            .servers
            .insert("a".parse().unwrap(), Target { stage: Stage::WriteFirst, since: UnixMs(0) });
        state.cluster.operation = Some(Operation {
            id: OperationId::random(),
            kind: OperationKind::Enable,
            target: state.roots[0].root,
            take_up: TakeUp::Restart,
            requested: UnixMs(0),
            requested_by: "test".to_owned(),
            preflighted: true,
            registered: true,
            serial: Some(Serial(1)),
            promoted: Some(UnixMs(0)),
            rewrite: None,
            verified: None,
            first_verified: None,
            compacted: None,
            stuck: None,
            without: None,
        });
        // The API server takes each file up by itself before the agent looks.
        let quick = |program: &Mortal| {
            let on_disk = std::fs::read(&file).ok();
            Probe {
                process: program.observe().unwrap().process,
                ready: true,
                loaded: on_disk.map(|f| encryption::hash(&f)),
                ..Probe::default()
            }
        };

        *program.killed_before.lock().unwrap() = match point {
            "kill" => Some("kill"),
            "done" | "start" => Some("start"),
            _ => None,
        };
        if point == "file" {
            std::fs::rename(&etc, dir.path().join("away")).unwrap();
        }
        let mut b = bench_in(dir.path(), state.clone(), program.clone());
        b.node.took(b.says(KeyState::Active, 1)).unwrap();
        for _ in 0..3 {
            let seen = b.driver.look(&quick(&program)).await;
            let ended = seen.process != Some(first);
            assert!(ended || seen.stage_loaded != Some(Stage::WriteFirst), "{point}");
        }
        drop(b);
        if point == "file" {
            std::fs::rename(dir.path().join("away"), &etc).unwrap();
        }
        if point == "done" {
            let boot = claviger_cluster::contact::Moment::now().boot;
            std::fs::write(&note, format!("{{\"boot\":{boot:?}}}")).unwrap();
        }

        // The next agent.
        *program.killed_before.lock().unwrap() = None;
        let mut b = bench_in(dir.path(), state, program.clone());
        b.node.took(b.says(KeyState::Active, 1)).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        let second = loop {
            assert!(Instant::now() < until, "{point}: restarted");
            let seen = b.driver.look(&quick(&program)).await;
            let loaded = seen.stage_loaded == Some(Stage::WriteFirst);
            match seen.process {
                Some(process) if process == first => assert!(!loaded, "{point}"),
                Some(process) if loaded => break process,
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        for _ in 0..5 {
            let seen = b.driver.look(&quick(&program)).await;
            assert_eq!(seen.process, Some(second), "{point}: once is enough");
            assert_eq!(seen.stage_loaded, Some(Stage::WriteFirst), "{point}");
        }
        assert!(!note.exists(), "{point}");
    }
}
