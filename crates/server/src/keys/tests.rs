//! Every endpoint of the key service, in process: what works, and what is refused and how.

use crate::app::{App, ManualClock, Settings};
use crate::iam::token::Issue;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claviger_crypto::Key32;
use claviger_custody::software::Software;
use claviger_domain::access::ServiceRole;
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
        world.manager = world.person("manager", &[(ServiceRole::Manager, None, None)]);
        world
    }

    fn person(
        &self,
        name: &str,
        roles: &[(ServiceRole, Option<InstanceId>, Option<KeyId>)],
    ) -> String {
        let principal = Principal {
            iam_id: format!("IBMid-{name}"),
            service: false,
            name: name.into(),
            email: String::new(),
        };
        let added = self.app.store.tx("t", |tx| -> Result<(), StoreError> {
            iam::add_principal(tx, &principal, START)?;
            for &(role, instance, key) in roles {
                iam::add_grant(tx, &principal.iam_id, &Grant::Service { role, instance, key })?;
            }
            Ok(())
        });
        added.unwrap();
        self.token(&principal)
    }

    fn token(&self, principal: &Principal) -> String {
        self.app.tokens.issue(&Issue {
            principal,
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
            .tx("t", |tx| Ok::<_, StoreError>(clusters::insert(tx, &row, None)?))
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

#[tokio::test]
async fn a_fresh_root_key_looks_as_clients_want_it() {
    let w = World::new();
    let made = w.create(json!({"name": "root", "Tags": ["a"], "aliases": ["al"]})).await.is(201);
    assert_eq!(made.media_type, "application/vnd.ibm.kms.key+json");
    let key = made.key();
    assert_eq!(key["crn"].as_str().unwrap().split(':').count(), 10);
    assert_eq!((&key["deleted"], &key["state"]), (&json!(false), &json!(1)));
    assert_eq!(key["tags"], json!(["a"]));
    assert_eq!(key["creationDate"], "2027-01-15T08:00:00Z");
    for absent in ["lastUpdateDate", "lastRotateDate", "payload", "deletionDate"] {
        assert!(key.get(absent).is_none(), "{absent}");
    }
    // An alias is good wherever an id is.
    let metadata = w.call("GET /keys/al/metadata", &Value::Null).await.is(200);
    assert_eq!(metadata.key(), key);
    assert!(metadata.headers.contains_key("correlation-id"));
    w.create(json!({"name": "other", "aliases": ["al"]}))
        .await
        .refused(409, "KEY_ALIAS_NOT_UNIQUE_ERR");
    assert_eq!(w.call("GET /keys", &Value::Null).await.body["metadata"]["collectionTotal"], 1);
}

#[tokio::test]
async fn standard_keys_give_their_payload_and_do_nothing_else() {
    let w = World::new();
    let payload = STANDARD.encode([9; 128]);
    let key = json!({"name": "dek", "extractable": true, "payload": payload});
    let id = w.create(key).await.is(201).id();
    let read = w.call(&format!("GET /keys/{id}"), &Value::Null).await.is(200);
    assert_eq!(read.key()["payload"], json!(payload));
    let metadata = w.call(&format!("GET /keys/{id}/metadata"), &Value::Null).await.is(200);
    assert!(metadata.key().get("payload").is_none());
    for action in ["wrap", "rotate", "disable"] {
        let line = format!("POST /keys/{id}/actions/{action}");
        w.call(&line, &Value::Null).await.refused(400, "KEY_ROOT_REQ_ERR");
    }
    let reader = w.person("r", &[(ServiceRole::Reader, Some(w.one), None)]);
    let line = format!("GET /keys/{id}");
    let refused = w.by(&reader, &line, "").await.is(401);
    assert!(refused.key().get("reasons").is_none(), "a 401 gives no reasons");
}

#[tokio::test]
async fn bad_bodies_are_told_from_each_other() {
    let w = World::new();
    let name = |n: &str| json!({"name": n});
    w.call("POST /keys", &Value::Null).await.refused(400, "BAD_BODY_ERR");
    w.by(&w.manager, "POST /keys", r#"{"metadata""#).await.refused(400, "BAD_BODY_ERR");
    let two = json!({"metadata": {"collectionType": "x", "collectionTotal": 2},
                     "resources": [name("aa"), name("bb")]});
    w.call("POST /keys", &two).await.refused(400, "BAD_BODY_ERR");
    let miscounted = json!({"metadata": {"collectionType": "x", "collectionTotal": 2},
                            "resources": [name("aa")]});
    w.call("POST /keys", &miscounted).await.refused(400, "COLLECTION_TOTAL_MISMATCH_ERR");
    let bad = [
        name("a"),
        name(&"a".repeat(91)),
        json!({"name": "ok", "description": "x"}),
        json!({"name": "ok", "aliases": ["metadata"]}),
        json!({"name": "ok", "aliases": [KeyId::random().to_string()]}),
        json!({"name": "ok", "aliases": ["a1", "a2", "a3", "a4", "a5", "a6"]}),
        json!({"name": "ok", "tags": ["a:b"]}),
        json!({"name": "ok", "expirationDate": "tomorrow"}),
        json!({"name": "ok", "expirationDate": "2020-01-01T00:00:00Z"}),
        json!({"name": "ok", "payload": "!!"}),
        json!({"name": "ok", "payload": STANDARD.encode([1; 17])}),
        json!({"name": "ok", "extractable": true, "payload": STANDARD.encode([1; 7501])}),
        json!({"name": "ok", "payload": "AAAA", "encryptedNonce": "AAAA", "iv": "AAAA"}),
    ];
    for key in bad {
        w.create(key).await.refused(400, "INVALID_FIELD_ERR");
    }
    assert_eq!(w.audited("kms.secrets.create"), 4 + 13);
    let long = vec![b' '; 100_000];
    w.by(&w.manager, "POST /keys", long).await.refused(413, "BODY_TOO_LARGE_ERR");
    let stream =
        futures_util::stream::iter((0..10).map(|_| Ok::<_, std::io::Error>(vec![b' '; 9000])));
    let endless = Body::from_stream(stream);
    w.by(&w.manager, "POST /keys", endless).await.refused(413, "BODY_TOO_LARGE_ERR");
    assert_eq!(w.call("GET /keys", &Value::Null).await.body["resources"], json!([]));
}

#[tokio::test]
async fn what_was_wrapped_unwraps_through_rotations() {
    let w = World::new();
    let id = w.root().await;
    let post = |action: &str| format!("POST /keys/{id}/actions/{action}");
    let dek = STANDARD.encode(b"a 20-byte passphrase");
    let wrapped =
        w.call(&post("wrap"), &json!({"plaintext": dek, "aad": ["v", null]})).await.is(200);
    assert!(wrapped.body.get("plaintext").is_none(), "a given plaintext is never echoed");
    let old = wrapped.body["keyVersion"]["id"].clone();
    let ciphertext = wrapped.body["ciphertext"].clone();
    w.call(&post("rotate"), &Value::Null).await.is(204);
    let ask = json!({"ciphertext": ciphertext, "aad": ["v", ""]});
    let opened = w.call(&post("unwrap"), &ask).await.is(200);
    assert_eq!(opened.body["plaintext"], json!(dek));
    assert_eq!(opened.body["keyVersion"]["id"], old);
    let new = opened.body["rewrappedKeyVersion"]["id"].clone();
    assert_ne!(new, old);
    let again = json!({"ciphertext": opened.body["ciphertext"], "aad": ["v", null]});
    let opened = w.call(&post("unwrap"), &again).await.is(200);
    assert_eq!((&opened.body["plaintext"], &opened.body["keyVersion"]["id"]), (&json!(dek), &new));
    assert!(opened.body.get("ciphertext").is_none(), "already the newest");
    let rewrapped = w.call(&post("rewrap"), &ask).await.is(200);
    assert!(rewrapped.body.get("plaintext").is_none());
    assert_eq!(rewrapped.body["keyVersion"]["id"], old);
    assert_eq!(rewrapped.body["rewrappedKeyVersion"]["id"], new);

    for wrong in [json!(["v"]), json!([null, "v"]), json!([])] {
        let ask = json!({"ciphertext": ciphertext, "aad": wrong});
        w.call(&post("unwrap"), &ask).await.refused(422, "UNPROCESSABLE_CIPHERTEXT_ERR");
    }
    let other = w.root().await;
    let line = format!("POST /keys/{other}/actions/unwrap");
    w.call(&line, &ask).await.refused(422, "UNPROCESSABLE_CIPHERTEXT_ERR");
    w.call(&post("unwrap"), &Value::Null).await.refused(400, "NO_BODY_ERR");
    w.call(&post("unwrap"), &json!({})).await.refused(400, "INVALID_FIELD_ERR");
    w.call(&post("wrap"), &json!({"plaintext": "%"})).await.refused(400, "INVALID_FIELD_ERR");
    let long = json!({"plaintext": STANDARD.encode(vec![1; (16 << 10) + 1])});
    w.call(&post("wrap"), &long).await.refused(400, "INVALID_FIELD_ERR");
    let most = json!({"plaintext": STANDARD.encode(vec![1; 16 << 10])});
    let most = w.call(&post("wrap"), &most).await.is(200).body["ciphertext"].clone();
    w.call(&post("unwrap"), &json!({"ciphertext": most})).await.is(200);
    let aad = json!({"aad": ["x".repeat(256)]});
    w.call(&post("wrap"), &aad).await.refused(400, "INVALID_FIELD_ERR");
    w.call(&post("melt"), &Value::Null).await.refused(400, "INVALID_QUERY_PARAM_ERR");

    // The old form, and wrap without a plaintext.
    let made = w.by(&w.manager, &format!("POST /keys/{id}?action=wrap"), "").await.is(200);
    assert_eq!(STANDARD.decode(made.body["plaintext"].as_str().unwrap()).unwrap().len(), 32);
    let versions = w.call(&format!("GET /keys/{id}/versions?totalCount=True"), &Value::Null).await;
    assert_eq!(versions.body["resources"][0]["id"], new, "newest first");
    assert_eq!(versions.body["metadata"]["totalCount"], 2);
}

#[tokio::test]
async fn every_state_allows_what_the_table_says_and_waits_are_kept() {
    let w = World::new();
    let id = w.root().await;
    let post = |action: &str| format!("POST /keys/{id}/actions/{action}");
    let state = "KEY_ACTION_INVALID_STATE_ERR";
    let mut hub = w.app.hub.key_events();
    w.call(&post("rotate"), &Value::Null).await.is(204);
    w.call(&post("rotate"), &Value::Null).await.refused(409, "KEY_ROTATION_NOT_PERMITTED");
    w.call(&post("enable"), &Value::Null).await.refused(409, state);
    w.call(&post("disable"), &Value::Null).await.is(204);
    for action in ["wrap", "rotate", "disable"] {
        let refused = w.call(&post(action), &Value::Null).await;
        let advice = if action == "disable" { "needs no such change" } else { "Enable it first" };
        assert!(refused.body.to_string().contains(advice), "{action}");
        refused.refused(409, state);
    }
    w.call(&post("enable"), &Value::Null).await.refused(409, "REQ_TOO_EARLY_ERR");
    w.advance(30);
    w.call(&post("enable"), &Value::Null).await.is(204);
    w.call(&post("wrap"), &Value::Null).await.is(200);
    let line = format!("DELETE /keys/{id}");
    w.call(&line, &Value::Null).await.is(204);
    w.call(&line, &Value::Null).await.refused(410, "KEY_DELETED_ERR");
    w.call(&post("wrap"), &Value::Null).await.refused(409, state);
    w.call(&format!("GET /keys/{id}"), &Value::Null).await.is(200);
    assert_eq!(w.call("GET /keys", &Value::Null).await.body["resources"], json!([]));
    let gone = w.call("GET /keys?state=5", &Value::Null).await;
    assert_eq!(gone.key()["restoreAllowed"], true);
    let restore = format!("POST /keys/{id}/restore");
    w.call(&restore, &Value::Null).await.refused(409, "REQ_TOO_EARLY_ERR");
    w.advance(31);
    let restored = w.call(&restore, &Value::Null).await.is(201);
    assert_eq!((&restored.key()["state"], &restored.key()["deleted"]), (&json!(1), &json!(false)));
    w.call(&restore, &Value::Null).await.refused(409, state);

    use EventKind::{Delete, Disable, Enable, Restore, Rotate};
    let want = [Rotate, Disable, Enable, Delete, Restore];
    assert_eq!(w.kinds(), want);
    for kind in want {
        assert_eq!(hub.try_recv().unwrap().kind, kind, "announced in the order of the table");
    }
    assert!(hub.try_recv().is_err(), "refusals announce nothing");

    // Thirty days later the material is gone for good.
    w.call(&line, &Value::Null).await.is(204);
    w.advance(30 * 86_400 + 1);
    w.call(&restore, &Value::Null).await.refused(400, "KEY_RESTORE_EXPIRED");
    super::expiry::turn(&w.app, w.app.clock.now()).unwrap();
    let left: i64 = w
        .app
        .store
        .read("t", |tx| {
            let sql = "SELECT count(*) FROM key_versions WHERE material IS NOT NULL";
            Ok::<_, StoreError>(tx.query_row(sql, [], |r| r.get(0))?)
        })
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_key_expires_at_its_instant_whether_or_not_anybody_looks() {
    let w = World::new();
    let key = json!({"name": "short", "expirationDate": "2027-01-15T08:00:10Z"});
    let id = w.create(key).await.is(201).id();
    let post = |action: &str| format!("POST /keys/{id}/actions/{action}");
    let wrapped = w.call(&post("wrap"), &Value::Null).await.is(200);
    w.advance(9);
    let next = super::expiry::turn(&w.app, w.app.clock.now()).unwrap();
    assert_eq!(next, Some(UnixMs(START.0 + 10_000)));
    assert_eq!(w.kinds(), []);
    w.advance(1);
    // Before the timer: the lazy check.
    w.call(&post("wrap"), &Value::Null).await.refused(409, "KEY_ACTION_INVALID_STATE_ERR");
    let ask = json!({"ciphertext": wrapped.body["ciphertext"]});
    w.call(&post("unwrap"), &ask).await.is(200);
    for _ in 0..2 {
        super::expiry::turn(&w.app, w.app.clock.now()).unwrap();
        assert_eq!(w.kinds(), [EventKind::Expire], "once");
    }
    let metadata = w.call(&format!("GET /keys/{id}/metadata"), &Value::Null).await;
    assert_eq!(metadata.key()["state"], 3);
    w.call(&format!("DELETE /keys/{id}"), &Value::Null).await.is(204);
    w.advance(60);
    w.call(&format!("POST /keys/{id}/restore"), &Value::Null).await.refused(400, "KEY_EXPIRED_ERR");
}

#[tokio::test]
async fn imported_keys_rotate_with_material_and_generated_ones_without() {
    let w = World::with(Settings::default().without_waits());
    let payload = STANDARD.encode([3; 24]);
    let imported = w.create(json!({"name": "byok", "payload": payload})).await.is(201);
    assert_eq!(imported.key()["imported"], true);
    let line = format!("POST /keys/{}/actions/rotate", imported.id());
    w.call(&line, &json!({})).await.refused(400, "KEY_PAYLOAD_REQ_ERR");
    w.call(&line, &json!({"payload": STANDARD.encode([4; 15])}))
        .await
        .refused(400, "INVALID_FIELD_ERR");
    w.call(&line, &json!({"payload": STANDARD.encode([4; 32])})).await.is(204);
    let line = format!("POST /keys/{}/actions/rotate", w.root().await);
    w.call(&line, &json!({"payload": payload})).await.refused(400, "INVALID_QUERY_PARAM_ERR");
    w.call(&line, &Value::Null).await.is(204);
    w.call(&line, &Value::Null).await.is(204);
}

#[tokio::test]
async fn a_registration_keeps_its_key_from_being_deleted() {
    let w = World::new();
    let id = w.root().await;
    let (cluster, crn, token) = w.cluster(&id);
    let encoded = crn.replace(':', "%3A").replace('/', "%2F");
    let path = format!("/keys/{id}/registrations/{encoded}");
    let body = |r: Value| envelope(r).to_string();
    let prevent = body(json!({"preventKeyDeletion": true, "description": "d"}));

    let refused = w.by(&w.manager, &format!("POST {path}"), prevent.clone()).await;
    refused.refused(403, "SERVICE_ONLY_ERR");
    let foreign = crn.replace(cluster.as_str(), "other");
    let line = format!("POST /keys/{id}/registrations/{}", foreign.replace('/', "%2F"));
    w.by(&token, &line, prevent.clone()).await.refused(403, "RESOURCE_OWNER_ERR");
    w.by(&token, &format!("POST {path}"), body(json!({}))).await.refused(400, "INVALID_FIELD_ERR");
    w.by(&token, &format!("PATCH {path}"), prevent.clone())
        .await
        .refused(404, "REGISTRATION_NOT_FOUND_ERR");
    let made = w.by(&token, &format!("POST {path}"), prevent.clone()).await.is(201);
    assert_eq!(made.key()["resourceCrn"], json!(crn));
    assert!(made.key()["keyVersion"]["id"].is_string());
    w.by(&token, &format!("POST {path}"), prevent.clone())
        .await
        .refused(409, "REGISTRATION_EXISTS_ERR");

    for line in [format!("DELETE /keys/{id}"), format!("DELETE /keys/{id}?force=true")] {
        let refused = w.call(&line, &Value::Null).await;
        let why = refused.key()["reasons"][0]["message"].as_str().unwrap().to_owned();
        assert!(why.contains(&crn), "{why}");
        refused.refused(409, "PREV_KEY_DEL_ERR");
    }
    let unknown = body(json!({"keyVersionId": KeyId::random().to_string()}));
    w.by(&token, &format!("PATCH {path}"), unknown).await.refused(422, "KEY_VERSION_INVALID");
    let loose = body(json!({"preventKeyDeletion": false}));
    let changed = w.by(&token, &format!("PATCH {path}"), loose).await.is(200);
    assert_eq!(changed.key()["description"], "d", "a patch keeps what it does not name");
    w.call(&format!("DELETE /keys/{id}"), &Value::Null)
        .await
        .refused(409, "PROTECTED_RESOURCE_ERR");

    let of_key = w.call(&format!("GET /keys/{id}/registrations"), &Value::Null).await.is(200);
    let query = crn.replace(':', "%3A").replace('/', "%2F");
    let line =
        format!("GET /keys/registrations?urlEncodedResourceCRNQuery={query}&totalCount=true");
    let of_instance = w.call(&line, &Value::Null).await.is(200);
    assert_eq!(of_key.body["resources"], of_instance.body["resources"]);
    assert_eq!(of_instance.body["metadata"]["totalCount"], 1);
    let line = "GET /keys/registrations?urlEncodedResourceCRNQuery=crn%3A*";
    w.call(line, &Value::Null).await.refused(400, "INVALID_QUERY_PARAM_ERR");

    let request = Request::get(format!("/v3/instances/{}/keys/{id}/acknowledgements", w.one))
        .header("authorization", format!("Bearer {}", w.manager));
    let acks = w.raw(request.body(Body::empty()).unwrap()).await.is(200);
    assert_eq!(acks.body["clusters"][0]["cluster"], json!(cluster));

    w.by(&token, &format!("DELETE {path}"), "").await.is(204);
    w.by(&token, &format!("DELETE {path}"), "").await.refused(404, "REGISTRATION_NOT_FOUND_ERR");
    w.call(&format!("POST /keys/{id}/actions/disable"), &Value::Null).await.is(204);
    w.by(&token, &format!("POST {path}"), prevent).await.refused(422, "KEY_INVALID_STATE_ERR");
}

#[tokio::test]
async fn a_cluster_reaches_its_root_keys_and_no_others() {
    let w = World::new();
    let (mine, other) = (w.root().await, w.root().await);
    let (_, _, token) = w.cluster(&mine);
    w.by(&token, &format!("POST /keys/{mine}/actions/wrap"), "null").await.is(200);
    w.by(&token, &format!("POST /keys/{other}/actions/wrap"), "null").await.is(401);
    w.by(&token, &format!("POST /keys/{}/actions/wrap", KeyId::random()), "null").await.is(401);
    w.by(&token, &format!("POST /keys/{mine}/actions/rotate"), "null").await.is(401);
    let listed = w.by(&token, "GET /keys", "").await.is(200);
    assert_eq!(listed.body["metadata"]["collectionTotal"], 1);
}

#[tokio::test]
async fn roles_count_for_their_instance_only_and_strangers_learn_nothing() {
    let w = World::new();
    let id = w.root().await;
    let reader = w.person("reader", &[(ServiceRole::Reader, Some(w.one), None)]);
    let elsewhere = w.person("elsewhere", &[(ServiceRole::Manager, Some(w.two), None)]);
    let nobody = w.person("nobody", &[]);
    w.by(&reader, &format!("POST /keys/{id}/actions/wrap"), "").await.is(200);
    for line in [
        "POST /keys".to_owned(),
        format!("POST /keys/{id}/actions/rotate"),
        format!("POST /keys/{id}/actions/disable"),
        format!("DELETE /keys/{id}"),
    ] {
        let refused =
            w.by(&reader, &line, envelope(json!({"name": "xx"})).to_string()).await.is(401);
        assert!(refused.key().get("reasons").is_none());
    }
    for token in [&elsewhere, &nobody] {
        let (known, unknown) = (format!("GET /keys/{id}/metadata"), "GET /keys/nope/metadata");
        let (known, unknown) = (w.by(token, &known, "").await, w.by(token, unknown, "").await);
        assert_eq!((known.status, &known.body), (401, &unknown.body), "the same for both");
    }
    w.by(&reader, "GET /keys/nope/metadata", "").await.refused(404, "KEY_NOT_FOUND_ERR");
    w.by("rubbish", "GET /keys", "").await.refused(400, "BEARER_SUB_EXTRACTION_ERR");
    let request = Request::get("/api/v2/keys").header("bluemix-instance", w.one.to_string());
    w.raw(request.body(Body::empty()).unwrap()).await.is(401);
    let asked = |instance: &str| {
        let request = Request::get("/api/v2/keys")
            .header("authorization", format!("Bearer {}", w.manager))
            .header("bluemix-instance", instance);
        request.body(Body::empty()).unwrap()
    };
    w.raw(asked("claviger-1")).await.is(400);
    w.raw(asked(&InstanceId::random().to_string())).await.refused(404, "INSTANCE_NOT_FOUND_ERR");
    w.call("GET /nothing", &Value::Null).await.refused(404, "PATH_NOT_FOUND_ERR");
    w.call("PUT /keys", &Value::Null).await.refused(405, "METHOD_NOT_ALLOWED_ERR");
}

#[tokio::test]
async fn lists_page_search_and_count() {
    let w = World::new();
    for name in ["alpha", "beta", "gamma"] {
        w.create(json!({"name": name})).await.is(201);
    }
    let names = |answer: &Answer| {
        let all = answer.body["resources"].as_array().unwrap().clone();
        all.iter().map(|k| k["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let page = w
        .call("GET /keys?limit=2&offset=2&totalCount=true&state=&filter=", &Value::Null)
        .await
        .is(200);
    assert_eq!((names(&page).len(), &page.body["metadata"]["totalCount"]), (1, &json!(3)));
    let found = w.call("GET /keys?search=exact%3Aname%3ABETA,", &Value::Null).await.is(200);
    assert_eq!(names(&found), ["beta"]);
    let found = w.call("GET /keys?search=not%3Aa%2C", &Value::Null).await.is(200);
    assert!(names(&found).is_empty());
    let head = w.by(&w.manager, "HEAD /keys?state=", "").await.is(200);
    assert_eq!(head.headers["key-total"], "3");
    for bad in ["limit=0", "state=4", "sort=colour", "extractable=maybe", "filter=state%3D1"] {
        w.call(&format!("GET /keys?{bad}"), &Value::Null)
            .await
            .refused(400, "INVALID_QUERY_PARAM_ERR");
    }
}

#[tokio::test]
async fn tokens_are_given_for_api_keys_and_end() {
    let w = World::new();
    let bootstrap = w.app.blocking(|app| crate::first::bootstrap(app).unwrap().unwrap()).await;
    let ask = |path: &str, form: String| {
        let request = Request::post(path).header("authorization", "Basic Yng6Yng=");
        request.body(Body::from(form)).unwrap()
    };
    let grant = "grant_type=urn%3Aibm%3Aparams%3Aoauth%3Agrant-type%3Aapikey";
    for path in ["/identity/token", "/oidc/token"] {
        let form = format!("{grant}&response_type=cloud_iam&apikey={}", bootstrap.api_key);
        let answer = w.raw(ask(path, form)).await.is(200);
        assert_eq!(answer.media_type, "application/json");
        assert_eq!(answer.body["expires_in"], 3600);
        assert_eq!(answer.body["expiration"], START.0 / 1000 + 3600);
        let token = answer.body["access_token"].as_str().unwrap();
        w.by(token, "GET /keys", "").await.is(200);
        if path == "/oidc/token" {
            w.advance(3700);
            w.by(token, "GET /keys", "").await.is(401);
        }
    }
    let wrong = w.raw(ask("/identity/token", format!("{grant}&apikey=x"))).await.is(400);
    assert_eq!(wrong.body["errorCode"], "BXNIM0415E");
    let wrong = w.raw(ask("/identity/token", "grant_type=password".into())).await.is(400);
    assert!(wrong.body["context"]["requestId"].is_string());
    let node = format!("grant_type={}", claviger_wire::iam::GRANT_NODE);
    w.raw(ask("/identity/token", node)).await.is(401);
    w.app.blocking(|app| crate::first::delivered(app).unwrap()).await;
    assert!(w.app.blocking(|app| crate::first::bootstrap(app).unwrap()).await.is_none());
}

#[tokio::test]
async fn no_file_of_the_database_holds_material_in_the_clear() {
    let w = World::with(Settings::default().without_waits());
    let (root, standard) = ([0xa7_u8; 32], [0x5c_u8; 48]);
    let new = json!({"name": "byok", "payload": STANDARD.encode(root)});
    let id = w.create(new).await.is(201).id();
    let new = json!({"name": "std", "extractable": true, "payload": STANDARD.encode(standard)});
    w.create(new).await.is(201);
    let dek = b"the plaintext of a DEK, marked";
    let line = format!("POST /keys/{id}/actions/wrap");
    w.call(&line, &json!({"plaintext": STANDARD.encode(dek)})).await.is(200);
    let marks: [&[u8]; 3] = [&root, &standard, dek];
    let mut read = 0;
    for entry in std::fs::read_dir(w.dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        read += bytes.len();
        for mark in marks {
            let base64 = STANDARD.encode(mark);
            assert!(!bytes.windows(mark.len()).any(|window| window == mark));
            assert!(!bytes.windows(base64.len()).any(|window| window == base64.as_bytes()));
        }
        // The search does find what is there: names are not secret.
    }
    assert!(read > 10_000, "the database and its log were read");
    let all: Vec<u8> = std::fs::read_dir(w.dir.path())
        .unwrap()
        .flat_map(|e| std::fs::read(e.unwrap().path()).unwrap())
        .collect();
    assert!(all.windows(4).any(|window| window == b"byok"));
}

#[tokio::test]
async fn every_act_is_on_record_whether_it_was_done_or_refused() {
    let w = World::new();
    let id = w.root().await;
    w.call(&format!("POST /keys/{id}/actions/wrap"), &Value::Null).await.is(200);
    w.call(&format!("POST /keys/{id}/actions/unwrap"), &Value::Null).await.is(400);
    w.call(&format!("POST /keys/{id}/actions/disable"), &Value::Null).await.is(204);
    let rows: Vec<(String, String, i64, String)> = w
        .app
        .store
        .read("t", |tx| {
            let sql = "SELECT action, outcome, status, target FROM audit ORDER BY id";
            let mut query = tx.prepare(sql)?;
            let rows = query.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))?;
            Ok::<_, StoreError>(rows.collect::<Result<_, _>>()?)
        })
        .unwrap();
    let short: Vec<_> = rows.iter().map(|(a, o, s, _)| (a.as_str(), o.as_str(), *s)).collect();
    let want = [
        ("kms.secrets.create", "success", 200),
        ("kms.secrets.wrap", "success", 200),
        ("kms.secrets.unwrap", "failure", 400),
        ("kms.secrets.disable", "success", 200),
    ];
    assert_eq!(short, want);
    assert!(rows[1].3.ends_with(&format!(":key:{id}")), "{}", rows[1].3);
    assert_eq!(StatusCode::OK, 200);
}
