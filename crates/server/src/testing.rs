//! A server in process, with people and services, for tests over the router.

use crate::app::{App, ManualClock, Settings};
use crate::http::network::Network;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, header};
use bytes::Bytes;
use claviger_crypto::Key32;
use claviger_custody::software::Software;
use claviger_domain::id::{InstanceId, UnixMs};
use claviger_store::iam::{self, ApiKey, Grant, Principal};
use claviger_store::{Store, StoreError, audit};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::Arc;
use tower::ServiceExt;

pub(crate) const START: UnixMs = UnixMs(1_800_000_000_000);

pub(crate) struct World {
    pub(crate) app: Arc<App>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) one: InstanceId,
    pub(crate) two: InstanceId,
    router: Router,
    _dir: tempfile::TempDir,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) media_type: String,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
    pub(crate) body: Value,
}

impl Answer {
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    /// Refused with this reason code, in the key service's shape.
    #[track_caller]
    pub(crate) fn refused(self, status: u16, code: &str) {
        let said = self.body["resources"][0]["reasons"][0]["code"].as_str().unwrap_or_default();
        assert_eq!((self.status, said), (status, code), "{}", self.body);
    }
}

impl World {
    pub(crate) fn new() -> World {
        World::with(Settings::default())
    }

    pub(crate) fn with(settings: Settings) -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("claviger.db")).unwrap();
        let clock = Arc::new(ManualClock::new(START));
        let custodian = Arc::new(Software::new(&Key32::generate()));
        let app = App::new(store, custodian, clock.clone(), settings).unwrap();
        let instances = app.store.read("t", iam::instances).unwrap();
        let (one, two) = (instances[0].id, instances[1].id);
        World { router: crate::http::router(app.clone()), app, clock, one, two, _dir: dir }
    }

    /// A person's API key.
    pub(crate) fn person(&self, name: &str, grants: &[Grant]) -> String {
        let iam_id = format!("IBMid-{name}");
        let key = self.app.tokens.new_api_key();
        let mac = self.app.tokens.api_key_mac(&key);
        let person = Principal {
            iam_id: iam_id.clone(),
            service: false,
            name: name.to_owned(),
            email: String::new(),
        };
        let added = self.app.store.tx("t", |tx| -> Result<(), StoreError> {
            iam::add_principal(tx, &person, START)?;
            for grant in grants {
                iam::add_grant(tx, &iam_id, grant, "t", START)?;
            }
            iam::add_api_key(tx, &ApiKey::new(&iam_id, "t", "t", START), &mac)
        });
        added.unwrap();
        key
    }

    pub(crate) async fn token(&self, api_key: &str) -> String {
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
        self.send(request).await
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
            .header(claviger_wire::kp::INSTANCE_HEADER, instance.to_string())
            .extension(Network::Private);
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        self.send(request.body(body).unwrap()).await
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let media_type = answer.headers().get(header::CONTENT_TYPE);
        let media_type = media_type.map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        let headers = answer.headers().clone();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { status, media_type, headers, bytes, body }
    }

    /// Makes a root key in instance `one`; its id.
    pub(crate) async fn root_key(&self, token: &str, instance: InstanceId, name: &str) -> String {
        let body = json!({
            "metadata": { "collectionType": claviger_wire::kp::KEY_TYPE, "collectionTotal": 1 },
            "resources": [{ "name": name, "extractable": false, "aliases": [format!("{name}-alias")] }],
        });
        let made = self.ask_in(instance, token, "POST", "/api/v2/keys", body).await.is(201);
        made["resources"][0]["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn audited(&self, action: &str) -> u64 {
        self.app.store.read("t", |tx| audit::count(tx, action)).unwrap()
    }
}
