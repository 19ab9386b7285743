//! What each state allows, and what the clock does.

use super::*;

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
    crate::keys::expiry::turn(&w.app, w.app.clock.now()).unwrap();
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
    let next = crate::keys::expiry::turn(&w.app, w.app.clock.now()).unwrap();
    assert_eq!(next, Some(UnixMs(START.0 + 10_000)));
    assert_eq!(w.kinds(), []);
    w.advance(1);
    // Before the timer: the lazy check.
    w.call(&post("wrap"), &Value::Null).await.refused(409, "KEY_ACTION_INVALID_STATE_ERR");
    let ask = json!({"ciphertext": wrapped.body["ciphertext"]});
    w.call(&post("unwrap"), &ask).await.is(200);
    for _ in 0..2 {
        crate::keys::expiry::turn(&w.app, w.app.clock.now()).unwrap();
        assert_eq!(w.kinds(), [EventKind::Expire], "once");
    }
    let metadata = w.call(&format!("GET /keys/{id}/metadata"), &Value::Null).await;
    assert_eq!(metadata.key()["state"], 3);
    w.call(&format!("DELETE /keys/{id}"), &Value::Null).await.is(204);
    w.advance(60);
    w.call(&format!("POST /keys/{id}/restore"), &Value::Null).await.refused(400, "KEY_EXPIRED_ERR");
}
