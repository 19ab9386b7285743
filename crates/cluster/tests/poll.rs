//! An agent whose server tells no news by itself: it asks.

#![allow(clippy::unwrap_used)] // A panic is the report of a test.

use claviger_client::{AgentApi, KeyService, NodeConfig};
use claviger_cluster::config::AgentConfig;
use claviger_cluster::local::Local;
use claviger_cluster::node::{Clients, Node, Parts};
use claviger_cluster::sync;
use claviger_crypto::SecretBytes;
use claviger_crypto::kek::Carried;
use claviger_domain::cluster::{Cluster, RootStatus};
use claviger_domain::id::{ClusterId, InstanceId, KeyId, KeyVersionId, UnixMs};
use claviger_domain::key::{KeyState, RootKey};
use claviger_kms_plugin::Plugin;
use claviger_kms_plugin::resolve::{Resolve, ResolveError, Resolving};
use claviger_supervise::unit::ProcessUnit;
use claviger_wire::agent::State;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Bound of every wait: machines that run tests are busy.
const PATIENCE: Duration = Duration::from_secs(60);

struct Nobody;

impl Resolve for Nobody {
    fn resolve(&self, _: Carried) -> Resolving<'_> {
        Box::pin(async { Err(ResolveError::Refused("not in this test".to_owned())) })
    }
}

fn state(root: RootKey) -> State {
    State {
        cluster: Cluster {
            revision: 5,
            ..Cluster::new(ClusterId::random(), "c".to_owned(), UnixMs(0))
        },
        seen: BTreeMap::new(),
        roots: vec![RootStatus {
            root,
            name: "r".to_owned(),
            state: KeyState::Active,
            current: Some(KeyVersionId::random()),
            event: 1,
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

/// A server that tells its state to whoever asks and has no stream; counts who wanted one.
struct Server {
    url: String,
    says: Arc<Mutex<State>>,
    streams: Arc<AtomicUsize>,
}

impl Server {
    async fn start(state: State, certificate: &str, key: &str) -> Server {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let (says, streams) = (Arc::new(Mutex::new(state)), Arc::new(AtomicUsize::new(0)));
        let (told, wanted) = (says.clone(), streams.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, told, wanted) = (acceptor.clone(), told.clone(), wanted.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let mut stream = BufReader::new(stream);
                    loop {
                        let mut head = String::new();
                        while !head.ends_with("\r\n\r\n") {
                            match stream.read_line(&mut head).await {
                                Ok(read) if read > 0 => {}
                                _ => return,
                            }
                        }
                        let (status, body) = if head.starts_with("GET /agent/v1/state ") {
                            (200, serde_json::to_string(&*told.lock().unwrap()).unwrap())
                        } else {
                            wanted.fetch_add(1, Ordering::SeqCst);
                            (503, String::new())
                        };
                        let length = body.len();
                        let answer = format!(
                            "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n\r\n{body}"
                        );
                        if stream.write_all(answer.as_bytes()).await.is_err()
                            || stream.flush().await.is_err()
                        {
                            return;
                        }
                    }
                });
            }
        });
        Server { url, says, streams }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn news_come_by_polling_while_there_is_no_stream() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
    std::fs::write(at("cert"), &certificate).unwrap();
    std::fs::write(at("key"), &key).unwrap();
    std::fs::create_dir(at("state")).unwrap();
    let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
    let server = Server::start(state(root), &certificate, &key).await;
    let (cert, private, url) = (at("cert"), at("key"), &server.url);
    let config = AgentConfig::parse(&format!(
        "server = \"{url}\"\nca = \"{cert}\"\nstate_dir = \"{}\"\nname = \"a\"\nsocket = \"{}\"\n\
         [kube]\nurl = \"https://localhost:1\"\nca = \"{cert}\"\ncert = \"{cert}\"\nkey = \"{private}\"\n\
         [etcd]\nendpoints = [\"https://localhost:1\"]\nca = \"{cert}\"\ncert = \"{cert}\"\n\
         key = \"{private}\"\n[api_server]\nunit_dir = \"{}\"\nencryption_config = \"{}\"\n",
        at("state"),
        at("s"),
        at("unit"),
        at("e.yaml"),
    ))
    .unwrap();
    let local = Local::new(&config).unwrap();
    let us = || NodeConfig {
        url: url.clone(),
        ca: certificate.clone(),
        certificate: certificate.clone(),
        key: SecretBytes::new(key.clone().into_bytes()),
    };
    let cluster = server.says.lock().unwrap().cluster.id.clone();
    let node = Node::new(Parts {
        config,
        cluster: cluster.clone(),
        plugin: Plugin::new(cluster, Arc::new(Nobody)),
        local,
        supervisor: Arc::new(ProcessUnit::open(&dir.path().join("unit")).unwrap()),
        clients: Clients {
            url: url.clone(),
            api: AgentApi::connect(&us()).unwrap(),
            keys: KeyService::for_node(&us()).unwrap(),
        },
    });
    let node = Arc::new(node.unwrap());
    let mut heard = node.watch_latest();
    let listening = tokio::spawn(sync::listen(node));
    for (event, said) in [
        (1, KeyState::Active),
        (2, KeyState::Suspended),
        (3, KeyState::Active),
        (4, KeyState::Destroyed),
    ] {
        {
            let mut says = server.says.lock().unwrap();
            says.now = UnixMs(1000 + i64::try_from(event).unwrap());
            says.roots[0].state = said;
            says.roots[0].event = event;
        }
        let news = heard.wait_for(|latest| {
            latest.as_ref().is_some_and(|latest| {
                latest.state.roots[0].event == event && latest.state.roots[0].state == said
            })
        });
        assert!(tokio::time::timeout(PATIENCE, news).await.is_ok(), "{said:?} was not heard");
    }
    assert!(server.streams.load(Ordering::SeqCst) > 1, "a stream was wanted all the while");
    listening.abort();
}
