//! Changes that are asked for again: answered again, done once.

use super::*;
use crate::app::App;
use claviger_crypto::digest::sha256;
use claviger_store::Store;
use claviger_store::iam;
use tower::ServiceExt;

/// Asks with a correlation id.
async fn ask(w: &World, token: &str, id: &str, line: &str, body: &str) -> Answer {
    asked_for(w, token, id, line, body, "return=minimal").await
}

async fn asked_for(
    w: &World,
    token: &str,
    id: &str,
    line: &str,
    body: &str,
    prefer: &str,
) -> Answer {
    w.raw(request(w, token, id, line, body, prefer)).await
}

fn request(
    w: &World,
    token: &str,
    id: &str,
    line: &str,
    body: &str,
    prefer: &str,
) -> Request<Body> {
    let (method, path) = line.split_once(' ').unwrap();
    let request = Request::builder()
        .method(method)
        .uri(format!("/api/v2{path}"))
        .header("authorization", format!("Bearer {token}"))
        .header("bluemix-instance", w.one.to_string())
        .header("prefer", prefer);
    let request = if id.is_empty() { request } else { request.header("correlation-id", id) };
    request.body(Body::from(body.to_owned())).unwrap()
}

/// How often something was done, and answered again without being done.
fn times(w: &World, action: &str) -> (usize, usize) {
    let acts = w.acts();
    let of = |repeated| {
        let same = acts.iter().filter(|act| {
            act.action == action && act.status == 200 && act.data.repeated == repeated
        });
        same.count()
    };
    (of(false), of(true))
}

#[tokio::test]
async fn a_rotation_whose_answer_was_lost_is_answered_again_and_rotates_once() {
    let w = World::with(Settings::default().without_waits());
    let key = w.root().await;
    let rotate = format!("POST /keys/{key}/actions/rotate");
    for _ in 0..3 {
        let answer = ask(&w, &w.manager, "c1", &rotate, "").await.is(204);
        assert!(answer.bytes.is_empty());
        assert_eq!(answer.headers["correlation-id"], "c1");
    }
    assert_eq!(w.kinds(), [EventKind::Rotate]);
    assert_eq!(times(&w, "kms.secrets.rotate"), (1, 2));
    let acts = w.acts();
    let again = acts.iter().find(|act| act.data.repeated).unwrap();
    assert_eq!(again.data.key.as_ref().map(|key| key.id.to_string()), Some(key.clone()));
    // Anything else of it makes it another request; who sends no id means it each time.
    ask(&w, &w.manager, "c2", &rotate, "").await.is(204);
    ask(&w, &w.manager, "", &rotate, "").await.is(204);
    ask(&w, &w.manager, "", &rotate, "").await.is(204);
    ask(&w, &w.manager, "c2", &rotate, "null").await.is(204);
    assert_eq!(times(&w, "kms.secrets.rotate"), (5, 2));
    let other = w.person("other", &[(ServiceRole::Manager, Scope::Everywhere)]);
    ask(&w, &other, "c2", &rotate, "null").await.is(204);
    assert_eq!(times(&w, "kms.secrets.rotate"), (6, 2));
    // After ten minutes it is another one, too.
    w.advance(600);
    ask(&w, &other, "c2", &rotate, "null").await.is(204);
    assert_eq!(times(&w, "kms.secrets.rotate"), (6, 3));
    w.advance(1);
    ask(&w, &other, "c2", &rotate, "null").await.is(204);
    assert_eq!(times(&w, "kms.secrets.rotate"), (7, 3));
}

#[tokio::test]
async fn two_at_once_are_one() {
    let w = World::with(Settings::default().without_waits());
    let key = w.root().await;
    let rotate = format!("POST /keys/{key}/actions/rotate");
    let both =
        futures_util::future::join_all([0; 8].map(|_| ask(&w, &w.manager, "c1", &rotate, "")));
    for answer in both.await {
        answer.is(204);
    }
    assert_eq!(times(&w, "kms.secrets.rotate"), (1, 7));
}

#[tokio::test]
async fn what_is_done_is_known_after_a_restart() {
    let w = World::with(Settings::default().without_waits());
    let key = w.root().await;
    let rotate = format!("POST /keys/{key}/actions/rotate");
    let again = request(&w, &w.manager, "c1", &rotate, "{}", "");
    ask(&w, &w.manager, "c1", &rotate, "{}").await.is(204);
    let (custodian, clock) = (w.app.custodian.clone(), w.clock.clone());
    let settings = w.app.settings.clone();
    let dir = w.stop().await;
    let store = Store::open(&dir.path().join("claviger.db")).unwrap();
    let app = App::new(store, custodian, clock, settings).unwrap();
    let answer = crate::http::router(app.clone()).oneshot(again).await.unwrap();
    assert_eq!(answer.status(), 204);
    let versions = app.store.read("t", |tx| {
        let sql = "SELECT count(*) FROM key_versions";
        Ok::<i64, StoreError>(tx.query_row(sql, [], |row| row.get(0))?)
    });
    assert_eq!(versions.unwrap(), 2);
}

#[tokio::test]
async fn a_key_that_was_made_is_shown_again_and_nothing_of_its_body_is_kept() {
    let w = World::new();
    let secret = STANDARD.encode("hunter2");
    let new =
        json!({"name": "standard", "extractable": true, "payload": secret, "aliases": ["a1"]});
    let body = envelope(new).to_string();
    let mut made = Vec::new();
    for _ in 0..2 {
        let answer = asked_for(&w, &w.manager, "c1", "POST /keys", &body, "").await.is(201);
        made.push(answer.body);
    }
    assert_eq!(made[0], made[1]);
    assert_eq!(made[0]["resources"][0]["payload"], json!(secret));
    assert_eq!(w.call("GET /keys", &Value::Null).await["resources"].as_array().unwrap().len(), 1);
    for bytes in w.files() {
        for kept in [&sha256(body.as_bytes())[..], b"hunter2", secret.as_bytes()] {
            assert!(!bytes.windows(kept.len()).any(|found| found == kept));
        }
    }
    // As it is now.
    let id = made[0]["resources"][0]["id"].as_str().unwrap().to_owned();
    let alias = format!("POST /keys/{id}/aliases/a2");
    let first = ask(&w, &w.manager, "c1", &alias, "").await.is(201);
    w.advance(5);
    assert_eq!(ask(&w, &w.manager, "c1", &alias, "").await.is(201).body, first.body);
    let again = ask(&w, &w.manager, "c1", "POST /keys", &body).await.is(201);
    assert_eq!(again.key()["aliases"], json!(["a1", "a2"]));
    assert!(again.key().get("payload").is_none_or(Value::is_null), "as it is preferred");
}

/// A script may send one correlation id with all it does: what it says last counts.
#[tokio::test]
async fn what_was_changed_since_is_done_again() {
    let w = World::with(Settings::default().without_waits());
    let key = w.root().await;
    let alias = json!({"name": "by-alias", "aliases": ["by-alias"], "extractable": false});
    w.create(alias).await.is(201);
    let other = w.person("other", &[(ServiceRole::Manager, Scope::Everywhere)]);
    for name in [key.as_str(), "by-alias"] {
        let line = |action: &str| format!("POST /keys/{name}/actions/{action}");
        for (id, by) in [("c1", &w.manager), ("", &w.manager), ("c1", &other)] {
            ask(&w, &w.manager, "c1", &line("disable"), "").await.is(204);
            ask(&w, by, id, &line("enable"), "").await.is(204);
            ask(&w, &w.manager, "c1", &line("disable"), "").await.is(204);
            let state = w.call(&format!("GET /keys/{name}/metadata"), &Value::Null).await;
            assert_eq!(state.key()["state"], 2, "{name} {id}");
            ask(&w, &w.manager, "", &line("enable"), "").await.is(204);
        }
    }
    // What is changed by itself does not end what is known of its key.
    let rotate = format!("POST /keys/{key}/actions/rotate");
    ask(&w, &w.manager, "c9", &rotate, "").await.is(204);
    ask(&w, &w.manager, "", &format!("POST /keys/{key}/aliases/x1"), "").await.is(201);
    ask(&w, &w.manager, "c9", &rotate, "").await.is(204);
    assert_eq!(times(&w, "kms.secrets.rotate"), (1, 1));
}

#[tokio::test]
async fn every_change_of_a_key_is_answered_again_as_it_was() {
    let w =
        World::with(Settings { sync_after: Duration::ZERO, ..Settings::default() }.without_waits());
    let key = w.root().await;
    let service = w.service("s", None, ServiceRole::Manager);
    let dual = envelope(json!({"dualAuthDelete": {"enabled": true}})).to_string();
    let dual = dual.replace("kms.key+", "kms.policy+");
    let rotation =
        dual.replace(r#""dualAuthDelete":{"enabled":true}"#, r#""rotation":{"interval_month":3}"#);
    let user = r#"{"metadata":{"collectionType":"x","collectionTotal":1},"resources":[{"preventKeyDeletion":false}]}"#;
    let changed = user.replace("false", "true");
    let policies = json!({
        "metadata": {"collectionType": "application/vnd.ibm.kms.policy+json", "collectionTotal": 1},
        "resources": [{"policy_type": "metrics", "policy_data": {"enabled": true}}],
    })
    .to_string();
    let crn = "crn:v1:bluemix:public:databases:local:a%2F1:unit-1::";
    let registration = format!("/keys/{key}/registrations/{crn}");
    let representation = "return=representation";
    let m = &w.manager;
    for (by, line, body, prefer, status) in [
        (m, "POST /key_rings/ring-1".to_owned(), "", "", 201),
        (m, format!("PATCH /keys/{key}"), r#"{"keyRingID":"ring-1"}"#, "", 200),
        (m, format!("PATCH /keys/{key}"), r#"{"keyRingID":"default"}"#, "", 200),
        (m, "DELETE /key_rings/ring-1".to_owned(), "", "", 204),
        (m, format!("PUT /keys/{key}/policies"), &rotation, "", 200),
        (m, format!("PUT /keys/{key}/policies"), &dual, "", 200),
        (m, "PUT /instance/policies".to_owned(), &policies, "", 204),
        (m, format!("POST /keys/{key}/actions/sync"), "", "", 204),
        (m, format!("POST /keys/{key}?action=rotate"), "", representation, 200),
        (m, format!("POST /keys/{key}/aliases/a1"), "", "", 201),
        (m, "DELETE /keys/a1/aliases/a1".to_owned(), "", "", 204),
        (&service, format!("POST {registration}"), user, "", 201),
        (&service, format!("PATCH {registration}"), &changed, "", 200),
        (&service, format!("PUT {registration}"), user, "", 200),
        (&service, format!("DELETE {registration}"), "", "", 204),
        (m, format!("POST /keys/{key}/actions/setKeyForDeletion"), "", "", 204),
        (m, format!("POST /keys/{key}/actions/unsetKeyForDeletion"), "", "", 204),
        (m, format!("POST /keys/{key}/actions/disable"), "", "", 204),
        (m, format!("POST /keys/{key}/actions/enable"), "", "", 204),
    ] {
        let first = asked_for(&w, by, "c", &line, body, prefer).await.is(status);
        let acts = w.acts().len();
        let again = asked_for(&w, by, "c", &line, body, prefer).await.is(status);
        assert_eq!(again.bytes, first.bytes, "{line}");
        let last = w.acts().into_iter().filter(|act| act.data.repeated).count();
        assert_eq!(w.acts().len(), acts + 1, "{line}");
        assert!(last > 0, "{line}");
    }
    // Without the two persons, and after its time.
    let key = w.root().await;
    let purger = w.person(
        "purger",
        &[(ServiceRole::KeyPurge, Scope::Everywhere), (ServiceRole::Manager, Scope::Everywhere)],
    );
    for (line, wait, prefer, status) in [
        (format!("DELETE /keys/{key}"), 0, representation, 200),
        (format!("POST /keys/{key}/restore"), 0, "", 201),
        (format!("DELETE /keys/{key}"), 1, "", 204),
        (format!("DELETE /keys/{key}/purge"), 5 * 3600, "", 204),
    ] {
        w.advance(wait);
        let first = asked_for(&w, &purger, "c", &line, "", prefer).await.is(status);
        let again = asked_for(&w, &purger, "c", &line, "", prefer).await.is(status);
        assert_eq!(again.bytes, first.bytes, "{line}");
    }
    assert_eq!(times(&w, "kms.secrets.purge"), (1, 1));
}

#[tokio::test]
async fn a_refusal_is_not_remembered_and_rights_are_looked_at_again() {
    let w = World::new();
    let key = w.root().await;
    let line = |action: &str| format!("POST /keys/{key}/actions/{action}");
    ask(&w, &w.manager, "c1", &line("disable"), "").await.is(204);
    ask(&w, &w.manager, "c2", &line("enable"), "").await.refused(409, "REQ_TOO_EARLY_ERR");
    w.advance(30);
    ask(&w, &w.manager, "c2", &line("enable"), "").await.is(204);

    let maker = w.person("maker", &[(ServiceRole::Manager, Scope::Instance(w.one))]);
    let body = envelope(json!({"name": "mine", "extractable": true})).to_string();
    ask(&w, &maker, "c3", "POST /keys", &body).await.is(201);
    let taken = w.app.store.tx("t", |tx| {
        for stored in claviger_store::access::of_principal(tx, "IBMid-maker")? {
            claviger_store::access::remove(tx, stored.policy.id())?;
        }
        Ok::<_, StoreError>(())
    });
    taken.unwrap();
    ask(&w, &maker, "c3", "POST /keys", &body).await.is(401);
    let gone = w.person("gone", &[(ServiceRole::Manager, Scope::Instance(w.one))]);
    ask(&w, &gone, "c4", &line("disable"), "").await.is(204);
    let key_gone = w.app.store.tx("t", |tx| {
        for key in iam::api_keys(tx, "IBMid-gone")? {
            iam::remove_api_key(tx, key.id)?;
        }
        Ok::<_, StoreError>(())
    });
    key_gone.unwrap();
    ask(&w, &gone, "c4", &line("disable"), "").await.is(401);
}

#[tokio::test]
async fn what_is_over_is_forgotten_by_the_clock() {
    let w = World::new();
    let key = w.root().await;
    ask(&w, &w.manager, "c1", &format!("POST /keys/{key}/actions/disable"), "").await.is(204);
    let rows = || {
        let count = w.app.store.read("t", |tx| {
            let sql = "SELECT count(*) FROM repeats";
            Ok::<i64, StoreError>(tx.query_row(sql, [], |row| row.get(0))?)
        });
        count.unwrap()
    };
    let turn = || crate::keys::clock::turn(&w.app).unwrap();
    turn();
    assert_eq!(rows(), 1);
    w.advance(601);
    turn();
    assert_eq!(rows(), 0);
}
