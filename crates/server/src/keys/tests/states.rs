//! What each state allows, and what the clock does.

use super::*;
use claviger_domain::key::{KeyAction, KeyState, Verdict, verdict};

#[tokio::test]
async fn states_follow_each_other_and_waits_are_kept() {
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
    crate::keys::clock::turn(&w.app).unwrap();
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
    let next = crate::keys::clock::turn(&w.app).unwrap();
    assert_eq!(next, Some(UnixMs(START.0 + 10_000)));
    assert_eq!(w.kinds(), []);
    w.advance(1);
    // Before the timer: the lazy check.
    w.call(&post("wrap"), &Value::Null).await.refused(409, "KEY_ACTION_INVALID_STATE_ERR");
    let ask = json!({"ciphertext": wrapped.body["ciphertext"]});
    w.call(&post("unwrap"), &ask).await.is(200);
    for _ in 0..2 {
        crate::keys::clock::turn(&w.app).unwrap();
        assert_eq!(w.kinds(), [EventKind::Expire], "once");
    }
    let metadata = w.call(&format!("GET /keys/{id}/metadata"), &Value::Null).await;
    assert_eq!(metadata.key()["state"], 3);
    w.call(&format!("DELETE /keys/{id}"), &Value::Null).await.is(204);
    w.advance(60);
    w.call(&format!("POST /keys/{id}/restore"), &Value::Null).await.refused(400, "KEY_EXPIRED_ERR");
}

/// What asks for an action: who, request, body, and the status of success.
fn request(action: KeyAction) -> (&'static str, &'static str, Value, u16) {
    use KeyAction::*;
    let null = Value::Null;
    let registration = || envelope(json!({"preventKeyDeletion": false}));
    match action {
        Read => ("manager", "GET /keys/{id}/metadata", null, 200),
        Wrap => ("manager", "POST /keys/{id}/actions/wrap", null, 200),
        Unwrap => ("manager", "POST /keys/{id}/actions/unwrap", null, 200),
        Rewrap => ("manager", "POST /keys/{id}/actions/rewrap", null, 200),
        Rotate => ("manager", "POST /keys/{id}/actions/rotate", null, 204),
        Disable => ("manager", "POST /keys/{id}/actions/disable", null, 204),
        Enable => ("manager", "POST /keys/{id}/actions/enable", null, 204),
        Delete => ("manager", "DELETE /keys/{id}?force=true", null, 204),
        Restore => ("manager", "POST /keys/{id}/restore", null, 201),
        Register => ("cluster", "POST /keys/{id}/registrations/{crn}", registration(), 201),
        Purge => ("purger", "DELETE /keys/{id}/purge", null, 204),
        SetForDeletion => ("manager", "POST /keys/{id}/actions/setKeyForDeletion", null, 204),
        UnsetForDeletion => ("manager", "POST /keys/{id}/actions/unsetKeyForDeletion", null, 204),
        Sync => ("manager", "POST /keys/{id}/actions/sync", null, 204),
        Patch => ("manager", "PATCH /keys/{id}", json!({"keyRingID": "default"}), 200),
        Alias => ("manager", "POST /keys/{id}/aliases/{alias}", null, 201),
        SetPolicy => (
            "manager",
            "PUT /keys/{id}/policies",
            envelope(json!({"rotation": {"interval_month": 1}})),
            200,
        ),
        ReadRegistrations => ("manager", "GET /keys/{id}/registrations", null, 200),
        Unregister => ("cluster", "DELETE /keys/{id}/registrations/{crn}", null, 204),
    }
}

#[tokio::test]
async fn the_router_answers_what_every_cell_of_the_table_of_states_says() {
    let settings = Settings {
        purge_after: Duration::ZERO,
        sync_after: Duration::ZERO,
        ..Settings::default().without_waits()
    };
    let w = World::with(settings);
    let purger = w.person("purger", &[(ServiceRole::KeyPurge, Scope::Everywhere)]);
    let other = w.person("other", &[(ServiceRole::Writer, Scope::Everywhere)]);
    for state in KeyState::ALL {
        for action in KeyAction::ALL {
            let cell = format!("{action:?} on a {state} key");
            // The key, in that state.
            w.advance(60);
            let mut key = json!({"name": "cell"});
            if state == KeyState::Deactivated {
                let end = UnixMs(w.app.clock.now().0 + 10_000);
                key["expirationDate"] = json!(crate::keys::view::date(end));
            }
            let dual = matches!(action, KeyAction::SetForDeletion | KeyAction::UnsetForDeletion);
            if dual {
                key["dualAuthDelete"] = json!({"enabled": true});
            }
            let line = "POST /keys_with_policy_overrides";
            let id = w.call(line, &envelope(key)).await.is(201).id();
            let post = |action: &str| format!("POST /keys/{id}/actions/{action}");
            let wrapped = w.call(&post("wrap"), &Value::Null).await.is(200);
            let (_, crn, cluster) = w.cluster(&id);
            let crn = crn.replace(':', "%3A").replace('/', "%2F");
            let fill = |line: &str| {
                let line = line.replace("{id}", &id).replace("{crn}", &crn);
                line.replace("{alias}", &format!("alias-{id}"))
            };
            if action == KeyAction::Unregister {
                let (_, line, body, status) = request(KeyAction::Register);
                w.by(&cluster, &fill(line), body.to_string()).await.is(status);
            }
            match state {
                KeyState::Active => {}
                KeyState::Suspended => {
                    w.call(&post("disable"), &Value::Null).await.is(204);
                }
                KeyState::Deactivated => w.advance(10),
                KeyState::Destroyed => {
                    if dual {
                        w.by(&other, &post("setKeyForDeletion"), "").await.is(204);
                    }
                    let line = format!("DELETE /keys/{id}?force=true");
                    w.call(&line, &Value::Null).await.is(204);
                }
            }

            let (who, line, mut body, success) = request(action);
            if matches!(action, KeyAction::Unwrap | KeyAction::Rewrap) {
                body = json!({"ciphertext": wrapped.body["ciphertext"]});
            }
            let token = match who {
                "purger" => &purger,
                "cluster" => &cluster,
                _ => &w.manager,
            };
            let answer = w.by(token, &fill(line), body.to_string()).await;
            let said = (answer.status, answer.code().to_owned());
            let want = match verdict(state, action) {
                Verdict::Allowed => (success, ""),
                Verdict::Gone => (410, "KEY_DELETED_ERR"),
                // The deletion took the registration along.
                Verdict::WrongState if action == KeyAction::Unregister => {
                    (404, "REGISTRATION_NOT_FOUND_ERR")
                }
                Verdict::WrongState if action == KeyAction::Register => {
                    (422, "KEY_INVALID_STATE_ERR")
                }
                Verdict::WrongState => (409, "KEY_ACTION_INVALID_STATE_ERR"),
            };
            assert_eq!((said.0, said.1.as_str()), want, "{cell}");
            if said.1 == "KEY_ACTION_INVALID_STATE_ERR" {
                let told = answer.key()["errorMsg"].as_str().unwrap();
                let active = state == KeyState::Active;
                assert_eq!(told.contains("Key is not in active state"), !active, "{cell}: {told}");
            }
        }
    }
}
