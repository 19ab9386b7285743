//! A server in process with its people, for tests over the router.

use crate::app::{App, ManualClock, Settings};
use crate::iam::token::{Credential, Issue};
use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, header};
use bytes::Bytes;
use claviger_crypto::Key32;
use claviger_custody::software::Software;
use claviger_domain::access::{Scope, ServiceRole};
use claviger_domain::audit::Record;
use claviger_domain::cluster::{Cluster, Operation, OperationKind, TakeUp};
use claviger_domain::id::{AgentName, ClusterId, InstanceId, OperationId, UnixMs};
use claviger_domain::key::RootKey;
use claviger_store::events::EventKind;
use claviger_store::iam::{ApiKey, Grant, Principal};
use claviger_store::{Store, StoreError, clusters, events, iam};
use http_body_util::BodyExt;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::ops::Index;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::ServiceExt;

pub(crate) const START: UnixMs = UnixMs(1_800_000_000_000);

/// The time of a test's world, which its certificates go by.
#[derive(Debug)]
struct Then;

impl rustls::time_provider::TimeProvider for Then {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(START.0.unsigned_abs() + 1000)))
    }
}

/// A TLS 1.3 connection of a client that trusts `ca` alone, at [`START`].
pub(crate) async fn connect(
    at: SocketAddr,
    name: &'static str,
    ca: &CertificateDer<'static>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_details(provider, Arc::new(Then))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(at).await?;
    let name = name.try_into().expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// A server, and a person who is Manager everywhere.
pub(crate) struct World {
    pub(crate) app: Arc<App>,
    pub(crate) clock: Arc<ManualClock>,
    router: Router,
    pub(crate) manager: String,
    pub(crate) one: InstanceId,
    pub(crate) two: InstanceId,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) media_type: String,
    pub(crate) body: Value,
    pub(crate) bytes: Bytes,
    pub(crate) headers: axum::http::HeaderMap,
}

impl Answer {
    pub(crate) fn code(&self) -> &str {
        self.body["resources"][0]["reasons"][0]["code"].as_str().unwrap_or_default()
    }
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }
    #[track_caller]
    pub(crate) fn refused(self, status: u16, code: &str) {
        assert_eq!((self.status, self.code()), (status, code), "{}", self.body);
        assert_eq!(self.media_type, "application/vnd.ibm.kms.error+json");
    }
    pub(crate) fn key(&self) -> &Value {
        &self.body["resources"][0]
    }
    pub(crate) fn id(&self) -> String {
        self.key()["id"].as_str().unwrap().to_owned()
    }
}

impl Index<&str> for Answer {
    type Output = Value;
    fn index(&self, name: &str) -> &Value {
        &self.body[name]
    }
}

impl World {
    pub(crate) fn new() -> World {
        World::with(Settings::default())
    }

    /// A server whose tokens live for years: the clock of a test moves by weeks.
    pub(crate) fn with(settings: Settings) -> World {
        let settings = Settings { token_life: Duration::from_secs(1 << 30), ..settings };
        World::exactly(settings.without_limits())
    }

    /// A server with exactly these settings.
    pub(crate) fn exactly(settings: Settings) -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("claviger.db")).unwrap();
        let clock = Arc::new(ManualClock::new(START));
        let custodian = Arc::new(Software::new(&Key32::generate()));
        let app = App::new(store, custodian, clock.clone(), settings).unwrap();
        let instances = app.store.read("t", iam::instances).unwrap();
        let router = crate::http::router(app.clone());
        let (one, two) = (instances[0].id, instances[1].id);
        let mut world = World { app, clock, router, manager: String::new(), one, two, dir };
        world.manager = world.person("manager", &[(ServiceRole::Manager, Scope::Everywhere)]);
        world
    }

    /// Ends the server, and leaves its files.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        let World { app, router, dir, .. } = self;
        let held = Arc::downgrade(&app);
        drop((app, router));
        // What answered last may hold it for a moment longer.
        for _ in 0..1000 {
            if held.strong_count() == 0 {
                return dir;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("something holds the server");
    }

    /// A person with these service roles; its token.
    pub(crate) fn person(&self, name: &str, roles: &[(ServiceRole, Scope)]) -> String {
        let grant = |(role, scope): &(ServiceRole, Scope)| Grant::Service {
            role: *role,
            scope: scope.clone(),
        };
        self.person_with(name, &roles.iter().map(grant).collect::<Vec<_>>())
    }

    /// A person who may do this; its token.
    pub(crate) fn person_with(&self, name: &str, grants: &[Grant]) -> String {
        self.token(&self.add_person(name, grants))
    }

    /// A person who may do this, without an API key.
    pub(crate) fn add_person(&self, name: &str, grants: &[Grant]) -> Principal {
        let principal = Principal {
            iam_id: format!("IBMid-{name}"),
            service: false,
            name: name.into(),
            email: String::new(),
        };
        let added = self.app.store.tx("t", |tx| -> Result<(), StoreError> {
            iam::add_principal(tx, &principal, START)?;
            grants.iter().try_for_each(|grant| {
                iam::add_grant(tx, &principal.iam_id, grant, "t", START).map(drop)
            })
        });
        added.unwrap();
        principal
    }

    /// A service ID of this owner; its token.
    pub(crate) fn service(&self, name: &str, owner: Option<&str>, role: ServiceRole) -> String {
        let iam_id = format!("iam-ServiceId-{name}");
        let principal =
            Principal { iam_id, service: true, name: name.into(), email: String::new() };
        let added = self.app.store.tx("t", |tx| -> Result<(), StoreError> {
            iam::add_principal(tx, &principal, START)?;
            if let Some(owner) = owner {
                iam::set_owner(tx, &principal.iam_id, owner)?;
            }
            let scope = Scope::Instance(self.one);
            let grant = Grant::Service { role, scope };
            iam::add_grant(tx, &principal.iam_id, &grant, "t", START).map(drop)
        });
        added.unwrap();
        self.token(&principal)
    }

    /// The token of whoever has this API key.
    pub(crate) async fn log_in(&self, api_key: &str) -> String {
        let answer = self.login(api_key).await.is(200);
        answer["access_token"].as_str().unwrap().to_owned()
    }

    /// What the token endpoint says to an API key.
    pub(crate) async fn login(&self, api_key: &str) -> Answer {
        let grant = claviger_wire::iam::GRANT_APIKEY;
        self.grant(&[("grant_type", grant), ("apikey", api_key)]).await
    }

    /// What the token endpoint says to a form.
    pub(crate) async fn grant(&self, fields: &[(&str, &str)]) -> Answer {
        let encode = |text: &str| {
            text.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat()
        };
        let form: Vec<_> =
            fields.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
        let request = Request::post("/identity/token").body(Body::from(form.join("&"))).unwrap();
        self.raw(request).await
    }

    /// A token got with an API key that is made for it.
    pub(crate) fn token(&self, principal: &Principal) -> String {
        let key = ApiKey::new(&principal.iam_id, "t", "t", START);
        let mac = self.app.tokens.api_key_mac(&self.app.tokens.new_api_key());
        self.app.store.tx("t", |tx| iam::add_api_key(tx, &key, &mac)).unwrap();
        self.issue(principal, &Credential::ApiKey(key.id))
    }

    /// A token got with this.
    pub(crate) fn issue(&self, principal: &Principal, credential: &Credential) -> String {
        self.app.tokens.issue(&Issue {
            principal,
            credential,
            account: &self.app.account.id,
            issuer: &self.app.issuer(),
            grant_type: "t",
            now: self.app.clock.now(),
            life_s: self.app.token_life_s(),
        })
    }

    /// A cluster that is about to use `key`, and its token.
    pub(crate) fn cluster(&self, key: &str) -> (ClusterId, String, String) {
        let root = RootKey { instance: self.one, key: key.parse().unwrap() };
        let id = ClusterId::random();
        let agent: AgentName = "n1".parse().unwrap();
        let not_after = UnixMs(START.0 + (1 << 40));
        let crn = self.app.account.cluster_crn(&id);
        let operation = Operation {
            id: OperationId::random(),
            kind: OperationKind::Enable,
            target: root,
            take_up: TakeUp::Restart,
            requested: START,
            requested_by: "t".into(),
            preflighted: false,
            registered: false,
            serial: None,
            promoted: None,
            rewrite: None,
            verified: None,
            first_verified: None,
            compacted: None,
            stuck: None,
            without: None,
        };
        let cluster: Cluster = serde_json::from_value(json!({
            "id": id, "name": id, "created": 0, "revision": 1, "ring": {"keks": []},
            "servers": {}, "operation": operation, "history": [], "used": [],
            "public_endpoint": false, "verified": null, "residue": null,
        }))
        .unwrap();
        let row = clusters::ClusterRow {
            cluster,
            crn: crn.clone(),
            server_url: String::new(),
            ca: String::new(),
            registered_by: "t".into(),
            master_status: String::new(),
            master_status_since: START,
            restored: None,
        };
        self.app
            .store
            .tx("t", |tx| {
                clusters::insert(tx, &row, None)?;
                clusters::agent_joined(tx, &id, &agent, "t", not_after, START)?;
                crate::clusters::authorise_all(tx, START)
            })
            .unwrap();
        let service = Principal {
            iam_id: format!("crn-{crn}"),
            service: true,
            name: String::new(),
            email: String::new(),
        };
        let credential = Credential::Node { agent, fingerprint: "t".to_owned(), not_after };
        let token = self.issue(&service, &credential);
        (id, crn, token)
    }

    pub(crate) async fn raw(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let media_type = parts.headers.get(header::CONTENT_TYPE);
        Answer {
            status: parts.status.as_u16(),
            media_type: media_type.map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default(),
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            bytes,
            headers: parts.headers,
        }
    }

    /// Asks as whoever has `token`, about instance `one`.
    pub(crate) async fn ask(&self, token: &str, method: &str, path: &str, body: Value) -> Answer {
        self.ask_in(self.one, token, method, path, body).await
    }

    pub(crate) async fn ask_in(
        &self,
        instance: InstanceId,
        token: &str,
        method: &str,
        path: &str,
        body: Value,
    ) -> Answer {
        let request = Request::builder()
            .method(method.parse::<Method>().unwrap())
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(claviger_wire::kp::INSTANCE_HEADER, instance.to_string());
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        self.raw(request.body(body).unwrap()).await
    }

    /// Asks the key service as whoever has `token`, about instance `one`.
    pub(crate) async fn by(&self, token: &str, line: &str, body: impl Into<Body>) -> Answer {
        let (method, path) = line.split_once(' ').unwrap();
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v2{path}"))
            .header("authorization", format!("bearer {token}"))
            .header("bluemix-instance", self.one.to_string());
        self.raw(request.body(body.into()).unwrap()).await
    }

    /// Asks the key service as the manager.
    pub(crate) async fn call(&self, line: &str, body: &Value) -> Answer {
        // `null` travels as the four bytes that one client sends.
        self.by(&self.manager, line, body.to_string()).await
    }

    pub(crate) async fn create(&self, key: Value) -> Answer {
        self.call("POST /keys", &envelope(key)).await
    }

    pub(crate) async fn root(&self) -> String {
        self.create(json!({"name": "root", "extractable": false})).await.is(201).id()
    }

    /// Makes a root key with an alias in this instance; its id.
    pub(crate) async fn make_root(&self, token: &str, instance: InstanceId, name: &str) -> String {
        let key = json!({"name": name, "extractable": false, "aliases": [format!("{name}-alias")]});
        self.ask_in(instance, token, "POST", "/api/v2/keys", envelope(key)).await.is(201).id()
    }

    /// Everything on record: rows, then what lies in segments, each oldest first.
    pub(crate) fn acts(&self) -> Vec<Record> {
        crate::audit::everything(&self.app)
    }

    pub(crate) fn audited(&self, action: &str) -> usize {
        self.acts().iter().filter(|act| act.action == action).count()
    }

    /// Puts on record what was counted in seconds that are over, and waits until it is there.
    pub(crate) async fn settle(&self) {
        let now = self.app.clock.now();
        self.app.refusals.settle(&self.app, now);
        self.app.throttle.settle(&self.app, now);
        // Records are written in their order.
        let last = Record::of_system(now, "t", "t".to_owned());
        self.app.recorder.record(last).await.unwrap();
    }

    /// The bytes of every file in the data directory.
    pub(crate) fn files(&self) -> Vec<Vec<u8>> {
        let (mut files, mut left) = (Vec::new(), vec![self.dir.path().to_owned()]);
        while let Some(dir) = left.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path);
                } else {
                    files.push(std::fs::read(path).unwrap());
                }
            }
        }
        files
    }

    pub(crate) fn kinds(&self) -> Vec<EventKind> {
        let all = self.app.store.read("t", |tx| events::after(tx, 0, 100)).unwrap();
        all.into_iter().map(|e| e.kind).collect()
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }
}

/// One resource as clients send it.
pub(crate) fn envelope(resource: Value) -> Value {
    json!({
        "metadata": {"collectionType": "application/vnd.ibm.kms.key+json", "collectionTotal": 1},
        "resources": [resource],
    })
}
