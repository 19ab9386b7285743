//! A server in a temporary directory, an operator with a token, agents with certificates.

use crate::app::{App, ManualClock, Settings};
use crate::http::auth::Node;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use claviger_crypto::Key32;
use claviger_custody::software::Software;
use claviger_domain::access::{PlatformRole, Scope, ServiceRole};
use claviger_domain::id::{
    AgentName, ClusterId, InstanceId, KeyId, KeyVersionId, RestoreId, UnixMs,
};
use claviger_domain::key::{KeyState, RootKey, RootVersion};
use claviger_domain::life::Life;
use claviger_store::events::EventKind;
use claviger_store::iam::{ApiKey, Grant, Principal};
use claviger_store::keys::Key;
use claviger_store::registrations::Registration;
use claviger_store::{Store, StoreError, events, iam, keys, registrations};
use claviger_wire::agent::Certificate;
use claviger_wire::ks::{OpenOperation, RegisterCluster, Registered};
use http_body_util::BodyExt;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;

/// Who calls.
pub enum By<'a> {
    Nobody,
    Token(&'a str),
    Node(&'a Node),
}

pub struct World {
    pub app: Arc<App>,
    pub clock: Arc<ManualClock>,
    pub admin: String,
    pub instance: InstanceId,
    router: Router,
    _dir: tempfile::TempDir,
}

pub const START: UnixMs = UnixMs(1_800_000_000_000);

impl World {
    pub fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("claviger.db")).unwrap();
        let custodian = Arc::new(Software::new(&Key32::generate()));
        let clock = Arc::new(ManualClock::new(START));
        let settings = Settings { url: "https://keys.example:8443".into(), ..Settings::default() };
        let settings = settings.without_limits();
        let app = App::new(store, custodian, clock.clone(), settings).unwrap();
        let router = crate::http::router(app.clone());
        let instance = app.store.read("t", iam::instances).unwrap()[0].id;
        let mut world = World { app, clock, admin: String::new(), instance, router, _dir: dir };
        world.admin = world.person("admin", Some(PlatformRole::Administrator));
        world
    }

    /// A person with this platform role, who may use keys as well, and a token of an hour.
    pub fn person(&self, name: &str, role: Option<PlatformRole>) -> String {
        let principal = Principal {
            iam_id: format!("IBMid-{name}"),
            service: false,
            name: name.into(),
            email: String::new(),
        };
        let added = self.app.store.tx("t", |tx| -> Result<(), StoreError> {
            if iam::principal(tx, &principal.iam_id)?.is_none() {
                iam::add_principal(tx, &principal, START)?;
                let (scope, role_on_keys) = (Scope::Everywhere, ServiceRole::Reader);
                let on_keys = Grant::Service { role: role_on_keys, scope };
                for grant in role.map(|role| [Grant::Platform(role), on_keys]).iter().flatten() {
                    iam::add_grant(tx, &principal.iam_id, grant, "t", START)?;
                }
            }
            Ok(())
        });
        added.unwrap();
        let key = ApiKey::new(&principal.iam_id, "t", "t", START);
        let mac = self.app.tokens.api_key_mac(&self.app.tokens.new_api_key());
        self.app.store.tx("t", |tx| iam::add_api_key(tx, &key, &mac)).unwrap();
        self.app.tokens.issue(&crate::iam::token::Issue {
            principal: &principal,
            credential: &crate::iam::token::Credential::ApiKey(key.id),
            account: &self.app.account.id,
            issuer: &self.app.issuer(),
            grant_type: "t",
            now: self.app.clock.now(),
            life_s: 3600,
        })
    }

    pub fn advance(&self, ms: u64) {
        self.clock.advance(Duration::from_millis(ms));
    }

    pub fn set_back(&self, ms: u64) {
        let now = self.app.clock.now();
        self.clock.set(UnixMs(now.0 - ms as i64));
    }

    pub fn now(&self) -> UnixMs {
        self.app.clock.now()
    }

    pub async fn send(&self, by: By<'_>, line: &str, body: Vec<u8>) -> Response<Body> {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(path);
        if let By::Token(token) = by {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let mut request = request.body(Body::from(body)).unwrap();
        if let By::Node(node) = by {
            request.extensions_mut().insert(node.clone());
        }
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// Sends JSON (nothing for `null`), reads JSON (`null` for nothing).
    pub async fn call(&self, by: By<'_>, line: &str, body: &Value) -> (StatusCode, Value) {
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
        let response = self.send(by, line, body).await;
        self.read(response).await
    }

    /// Sends a request as it is.
    pub async fn answer(&self, request: Request<Body>) -> (StatusCode, Value) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        self.read(response).await
    }

    /// Reads JSON (`null` for nothing).
    pub async fn read(&self, response: Response<Body>) -> (StatusCode, Value) {
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let value = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()))
        };
        (status, value)
    }

    /// As the administrator; panics unless the status is a success.
    pub async fn admin<T: DeserializeOwned>(&self, line: &str, body: &impl Serialize) -> T {
        let body = serde_json::to_value(body).unwrap();
        let (status, value) = self.call(By::Token(&self.admin), line, &body).await;
        assert!(status.is_success(), "{line}: {status} {value}");
        serde_json::from_value(value).unwrap()
    }

    pub async fn register(&self, name: &str) -> Registered {
        let ca = self.app.authority.pem();
        let server_url = "https://127.0.0.1:6443".to_owned();
        let ask = RegisterCluster { name: name.into(), server_url, ca, admin_kubeconfig: None };
        self.admin("POST /v3/clusters", &ask).await
    }

    /// Tells the server that it came back from a backup.
    pub fn restored(&self) -> RestoreId {
        let restore = RestoreId::random();
        let done = self.app.store.tx("t", |tx| -> Result<(), StoreError> {
            Ok(claviger_store::clusters::restored(tx, restore)?)
        });
        done.unwrap();
        restore
    }

    /// Lets an agent join with `token`, and reads its certificate as the accept loop does.
    pub async fn join(&self, token: &str, agent: &str) -> Result<Node, (StatusCode, Value)> {
        let ask = serde_json::json!({ "token": token, "agent": agent, "csr": request() });
        let (status, value) = self.call(By::Nobody, "POST /agent/v1/join", &ask).await;
        if status != StatusCode::OK {
            return Err((status, value));
        }
        Ok(node_of(&serde_json::from_value(value).unwrap()))
    }

    /// A registered cluster with these agents.
    pub async fn cluster(&self, name: &str, agents: &[&str]) -> (ClusterId, Vec<Node>) {
        let registered = self.register(name).await;
        let mut token = registered.join_token.clone();
        let mut nodes = Vec::new();
        for agent in agents {
            nodes.push(self.join(&token, agent).await.unwrap());
            let line = format!("POST /v3/clusters/{name}/join-tokens");
            token = self.admin::<Registered>(&line, &Value::Null).await.join_token;
        }
        (registered.id, nodes)
    }

    /// A new root key, or a standard key.
    pub fn key(&self, name: &str, root_key: bool) -> RootKey {
        let root = RootKey { instance: self.instance, key: KeyId::random() };
        let version = KeyVersionId::random();
        let key = Key {
            root,
            name: name.into(),
            description: None,
            tags: Vec::new(),
            life: Life::begin(),
            extractable: !root_key,
            imported: false,
            ring: "default".into(),
            created: START,
            created_by: "t".into(),
            updated: None,
            rotated: None,
            expires: None,
            deleted: None,
            deleted_by: None,
            acted: None,
            current: root_key.then_some(version),
            set_by: None,
            set_at: None,
            synced: None,
        };
        let added = self.app.store.tx("t", |tx| -> Result<(), StoreError> {
            keys::add(tx, &key, None)?;
            if root_key {
                let material = self.app.custodian.generate(&RootVersion { root, version }).unwrap();
                keys::add_version(tx, &root, version, &material.0, START)?;
            }
            Ok(())
        });
        added.unwrap();
        root
    }

    /// Changes a key as the key service does: with its event, announced afterwards.
    pub fn change(&self, root: RootKey, kind: EventKind) {
        let now = self.now();
        let event = self.app.store.tx("t", |tx| {
            let mut key = keys::get(tx, &root)?.unwrap();
            match kind {
                EventKind::Disable => key.life = Life::stored(KeyState::Suspended),
                EventKind::Enable | EventKind::Restore => key.life = Life::stored(KeyState::Active),
                EventKind::Expire => key.life = Life::stored(KeyState::Deactivated),
                EventKind::Delete => {
                    key.life = Life::stored(KeyState::Destroyed);
                    key.deleted = Some(now);
                }
                EventKind::Rotate => {
                    let version = KeyVersionId::random();
                    let material =
                        self.app.custodian.generate(&RootVersion { root, version }).unwrap();
                    keys::add_version(tx, &root, version, &material.0, now)?;
                    key.current = Some(version);
                }
            }
            keys::update(tx, &key)?;
            events::add(tx, &root, kind, key.current, now)
        });
        self.app.hub.key_changed(event.unwrap());
    }

    /// Registers the cluster on the current version of a key, as its agent does over the wire.
    pub fn use_key(&self, root: RootKey, cluster: &ClusterId) {
        let now = self.now();
        let put = self.app.store.tx("t", |tx| {
            let version = keys::get(tx, &root)?.unwrap().current.unwrap();
            let crn = self.app.account.cluster_crn(cluster);
            registrations::remove(tx, &root, &crn)?;
            let registration = Registration {
                root,
                crn: crn.clone(),
                description: None,
                prevent: true,
                version,
                created: now,
                created_by: "t".into(),
                updated: None,
                updated_by: None,
                metadata: None,
            };
            registrations::put(tx, &registration)
        });
        put.unwrap();
    }

    /// Asks for enablement or a switch; the status and the answer.
    pub async fn open(&self, cluster: &str, root: RootKey) -> (StatusCode, Value) {
        let ask = OpenOperation {
            instance_id: root.instance,
            crk_id: root.key,
            public_endpoint: false,
            take_up: Default::default(),
            accept_plaintext: false,
        };
        let line = format!("POST /v3/clusters/{cluster}/kms/operations");
        self.call(By::Token(&self.admin), &line, &serde_json::to_value(ask).unwrap()).await
    }
}

pub fn request() -> String {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

pub fn node_of(certificate: &Certificate) -> Node {
    let der = CertificateDer::from_pem_slice(certificate.certificate.as_bytes()).unwrap();
    crate::listen::node(&der).unwrap()
}

pub fn name(text: &str) -> AgentName {
    text.parse().unwrap()
}

/// The code of an error answer.
pub fn code(value: &Value) -> &str {
    value["code"].as_str().unwrap_or_default()
}
