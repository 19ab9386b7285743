//! The driver of one node with a real plugin and real files; the API server is a stand-in that
//! only lives, dies and is held, and the key service one that unwraps or does not.

#![allow(clippy::unwrap_used)] // A panic is the report of a test.

use claviger_client::{AgentApi, KeyService, NodeConfig};
use claviger_cluster::config::AgentConfig;
use claviger_cluster::control::kube::{Kube, KubeConfig};
use claviger_cluster::driver::Driver;
use claviger_cluster::fence::Fence;
use claviger_cluster::keys::{Calling, KeyFailure, Keys};
use claviger_cluster::node::{Clients, Node, Parts};
use claviger_cluster::observe::Probe;
use claviger_crypto::kek::Carried;
use claviger_crypto::{Key32, SecretBytes};
use claviger_domain::cluster::ring::{Kek, Ring, Role};
use claviger_domain::cluster::{Access, Cluster, Process, RootStatus};
use claviger_domain::id::{ClusterId, InstanceId, KeyId, KeyVersionId, Serial, UnixMs};
use claviger_domain::key::{KeyState, RootKey, RootVersion};
use claviger_etcd::{Etcd, EtcdConfig};
use claviger_kms_plugin::Plugin;
use claviger_kms_plugin::resolve::{Resolve, ResolveError, Resolving};
use claviger_supervise::{Observed, SuperviseError, Supervisor};
use claviger_wire::agent::State;
use std::collections::BTreeMap;
use std::path::Path;
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

/// Unwraps anything, or denies everything.
#[derive(Default)]
struct Service(Mutex<Option<KeyState>>);

impl Keys for Service {
    fn unwrap<'a>(
        &'a self,
        root: RootKey,
        _: &'a str,
        _: &'a [String],
    ) -> Calling<'a, SecretBytes> {
        let denied = *self.0.lock().unwrap();
        Box::pin(async move {
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

struct Bench {
    _dir: tempfile::TempDir,
    home: std::path::PathBuf,
    node: Arc<Node>,
    driver: Driver,
    program: Arc<Program>,
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
            id: ClusterId::random(),
            name: "c".to_owned(),
            created: UnixMs(0),
            revision: 5,
            ring: Ring { keks: vec![kek] },
            servers: BTreeMap::new(),
            operation: None,
            history: Vec::new(),
            used: Vec::new(),
            public_endpoint: false,
            verified: None,
            residue: None,
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
        now: UnixMs(1000),
        crn: "crn".to_owned(),
    }
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let home = path("state");
    std::fs::create_dir(&home).unwrap();
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
    std::fs::write(path("cert"), &certificate).unwrap();
    std::fs::write(path("key"), &key).unwrap();
    let at = |p: &Path| p.display().to_string();
    let (cert, private) = (at(&path("cert")), at(&path("key")));
    let config = AgentConfig::parse(&format!(
        "server = \"https://localhost:1\"\nca = \"{cert}\"\nstate_dir = \"{}\"\n\
         name = \"a\"\nsocket = \"{}\"\n\
         [kube]\nurl = \"https://localhost:1\"\nca = \"{cert}\"\ncert = \"{cert}\"\n\
         key = \"{private}\"\n\
         [etcd]\nendpoints = [\"https://localhost:1\"]\nca = \"{cert}\"\ncert = \"{cert}\"\n\
         key = \"{private}\"\n\
         [api_server]\nunit_dir = \"{}\"\nencryption_config = \"{}\"\n",
        at(&home),
        at(&path("s")),
        at(&path("unit")),
        at(&path("e.yaml")),
    ))
    .unwrap();
    let state = first_state();
    let cluster = state.cluster.id.clone();
    let service = Arc::new(Service::default());
    let program = Arc::new(Program(Mutex::new((true, None))));
    let nobody = || NodeConfig {
        url: "https://localhost:1".to_owned(),
        ca: certificate.clone(),
        certificate: certificate.clone(),
        key: SecretBytes::new(key.clone().into_bytes()),
    };
    let kube = Kube::new(&KubeConfig {
        url: config.kube.url.clone(),
        ca: config.kube.ca.clone(),
        cert: config.kube.cert.clone(),
        key: config.kube.key.clone(),
    });
    let etcd = Etcd::prepare(&EtcdConfig {
        endpoints: vec!["http://localhost:1".to_owned()],
        ca: None,
        cert: None,
        key: None,
        timeout: EtcdConfig::TIMEOUT,
    });
    let fence = Fence::open(home.join("fence.json")).unwrap();
    let node = Node::new(Parts {
        config,
        cluster: cluster.clone(),
        plugin: Plugin::new(cluster, service.clone()),
        kube: kube.unwrap(),
        etcd: etcd.unwrap(),
        supervisor: program.clone(),
        clients: Clients {
            api: AgentApi::connect(&nobody()).unwrap(),
            keys: KeyService::for_node(&nobody()).unwrap(),
        },
    });
    let node = Arc::new(node.unwrap());
    let driver = Driver::new(node.clone(), service.clone(), fence);
    Bench { _dir: dir, home, node, driver, program, service, state }
}

impl Bench {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_key_fences_and_an_active_one_brings_the_node_back() {
    let mut b = bench();
    b.node.took(b.says(KeyState::Active, 1)).unwrap();
    assert_eq!(b.look().await, Access::Open);
    assert!(b.node.plugin.key_id().is_some());

    b.node.took(b.says(KeyState::Suspended, 2)).unwrap();
    assert!(matches!(b.look().await, Access::Fenced { event: 2, .. }));
    assert!(!b.alive() && b.node.plugin.key_id().is_none());
    assert!(b.home.join("fence.json").exists());
    let told = b.driver.due_acknowledgements();
    assert!(told.len() == 1 && told[0].fenced && told[0].event == 2);

    // The server's word alone does not lift it: the key service must unwrap.
    *b.service.0.lock().unwrap() = Some(KeyState::Suspended);
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
    assert!(matches!(b.look().await, Access::Fenced { .. }));
    assert!(!b.alive() && b.node.plugin.key_id().is_none());
}
