//! Every endpoint of the key service, in process: what works, and what is refused and how.

mod access;
mod clock;
mod dual;
mod import;
mod keys;
mod lists;
mod material;
mod policies;
mod registrations;
mod ring_roles;
mod rings;
mod states;
mod users;

use crate::app::{App, ManualClock, Settings};
use crate::iam::token::{Credential, Issue};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claviger_crypto::Key32;
use claviger_custody::software::Software;
use claviger_domain::access::{Scope, ServiceRole};
use claviger_domain::cluster::{Cluster, Operation, OperationKind, TakeUp};
use claviger_domain::id::{ClusterId, InstanceId, KeyId, OperationId, UnixMs};
use claviger_domain::key::RootKey;
use claviger_store::events::EventKind;
use claviger_store::iam::{Grant, Principal};
use claviger_store::{Store, StoreError, audit, clusters, events, iam};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;

const START: UnixMs = UnixMs(1_800_000_000_000);

struct World {
    app: Arc<App>,
    clock: Arc<ManualClock>,
    router: Router,
    manager: String,
    one: InstanceId,
    two: InstanceId,
    dir: tempfile::TempDir,
}

struct Answer {
    status: u16,
    media_type: String,
    body: Value,
    headers: axum::http::HeaderMap,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["resources"][0]["reasons"][0]["code"].as_str().unwrap_or_default()
    }
    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }
    #[track_caller]
    fn refused(self, status: u16, code: &str) {
        assert_eq!((self.status, self.code()), (status, code), "{}", self.body);
        assert_eq!(self.media_type, "application/vnd.ibm.kms.error+json");
    }
    fn key(&self) -> &Value {
        &self.body["resources"][0]
    }
    fn id(&self) -> String {
        self.key()["id"].as_str().unwrap().to_owned()
    }
}

impl World {
    fn new() -> World {
        World::with(Settings::default())
    }

    fn with(settings: Settings) -> World {
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

    fn person(&self, name: &str, roles: &[(ServiceRole, Scope)]) -> String {
        let principal = Principal {
            iam_id: format!("IBMid-{name}"),
            service: false,
            name: name.into(),
            email: String::new(),
        };
        let added = self.app.store.tx("t", |tx| -> Result<(), StoreError> {
            iam::add_principal(tx, &principal, START)?;
            for (role, scope) in roles {
                let grant = Grant::Service { role: *role, scope: scope.clone() };
                iam::add_grant(tx, &principal.iam_id, &grant, "t", START)?;
            }
            Ok(())
        });
        added.unwrap();
        self.token(&principal)
    }

    fn token(&self, principal: &Principal) -> String {
        self.app.tokens.issue(&Issue {
            principal,
            credential: &Credential::Node,
            account: &self.app.account.id,
            issuer: "t",
            grant_type: "t",
            now: self.app.clock.now(),
            // The clock of a test moves by weeks.
            life_s: 1 << 30,
        })
    }

    /// A cluster that is about to use `key`, and its token.
    fn cluster(&self, key: &str) -> (ClusterId, String, String) {
        let root = RootKey { instance: self.one, key: key.parse().unwrap() };
        let id = ClusterId::random();
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
        };
        self.app
            .store
            .tx("t", |tx| {
                clusters::insert(tx, &row, None)?;
                crate::clusters::authorise_all(tx, "t", START)
            })
            .unwrap();
        let service = Principal {
            iam_id: format!("crn-{crn}"),
            service: true,
            name: String::new(),
            email: String::new(),
        };
        (id, crn, self.token(&service))
    }

    async fn raw(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let media_type = parts.headers.get(header::CONTENT_TYPE);
        Answer {
            status: parts.status.as_u16(),
            media_type: media_type.map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default(),
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            headers: parts.headers,
        }
    }

    async fn by(&self, token: &str, line: &str, body: impl Into<Body>) -> Answer {
        let (method, path) = line.split_once(' ').unwrap();
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v2{path}"))
            .header("authorization", format!("bearer {token}"))
            .header("bluemix-instance", self.one.to_string());
        self.raw(request.body(body.into()).unwrap()).await
    }

    async fn call(&self, line: &str, body: &Value) -> Answer {
        // `null` travels as the four bytes that one client sends.
        self.by(&self.manager, line, body.to_string()).await
    }

    async fn create(&self, key: Value) -> Answer {
        self.call("POST /keys", &envelope(key)).await
    }

    async fn root(&self) -> String {
        self.create(json!({"name": "root", "extractable": false})).await.is(201).id()
    }

    fn audited(&self, action: &str) -> u64 {
        self.app.store.read("t", |tx| audit::count(tx, action)).unwrap()
    }

    fn kinds(&self) -> Vec<EventKind> {
        let all = self.app.store.read("t", |tx| events::after(tx, 0, 100)).unwrap();
        all.into_iter().map(|e| e.kind).collect()
    }

    fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }
}

fn envelope(resource: Value) -> Value {
    json!({
        "metadata": {"collectionType": "application/vnd.ibm.kms.key+json", "collectionTotal": 1},
        "resources": [resource],
    })
}
