//! Two persons for one deletion.

use super::*;
use claviger_domain::policy::Subject;
use claviger_store::access;

const NOT_MET: &str = "AUTHORIZATIONS_NOT_MET";

impl World {
    async fn dual(&self) -> String {
        let key = json!({"name": "dual", "dualAuthDelete": {"enabled": true}});
        self.call("POST /keys_with_policy_overrides", &envelope(key)).await.is(201).id()
    }
}

#[tokio::test]
async fn two_persons_delete_a_key() {
    let w = World::new();
    let id = w.dual().await;
    let writer = w.person("writer", &[(ServiceRole::Writer, Scope::Instance(w.one))]);
    let delete = format!("DELETE /keys/{id}");
    let set = format!("POST /keys/{id}/actions/setKeyForDeletion");
    let unset = format!("POST /keys/{id}/actions/unsetKeyForDeletion");
    let see = format!("GET /keys/{id}/metadata");

    w.call(&delete, &Value::Null).await.refused(409, NOT_MET);
    w.by(&writer, &set, "null").await.is(204);
    let seen = w.call(&see, &Value::Null).await.is(200);
    let want = json!({"enabled": true, "keySetForDeletion": true, "authExpiration": "2027-01-22T08:00:00Z"});
    assert_eq!((&seen.key()["dualAuthDelete"], &seen.key()["state"]), (&want, &json!(1)));
    // Taken back.
    w.by(&writer, &unset, "").await.is(204);
    w.call(&delete, &Value::Null).await.refused(409, NOT_MET);
    // Whoever set it cannot delete it, by the old form either.
    w.by(&w.manager, &format!("POST /keys/{id}?action=setKeyForDeletion"), "").await.is(204);
    w.call(&delete, &Value::Null).await.refused(409, NOT_MET);
    // The other sets it: the first can delete it, but not after a week.
    w.by(&writer, &set, "").await.is(204);
    w.advance(7 * 86_400);
    w.call(&delete, &Value::Null).await.refused(409, NOT_MET);
    let seen = w.call(&see, &Value::Null).await;
    assert_eq!(seen.key()["dualAuthDelete"], json!({"enabled": true, "keySetForDeletion": false}));
    w.by(&writer, &set, "").await.is(204);
    w.call(&delete, &Value::Null).await.is(204);
    w.call(&set, &Value::Null).await.refused(410, "KEY_DELETED_ERR");

    // Restored, it takes two again.
    w.advance(60);
    let back = w.call(&format!("POST /keys/{id}/restore"), &Value::Null).await.is(201);
    assert_eq!(back.key()["dualAuthDelete"], json!({"enabled": true, "keySetForDeletion": false}));
    w.call(&delete, &Value::Null).await.refused(409, NOT_MET);
    assert_eq!(w.audited("kms.secrets.setkeyfordeletion"), 5);
    assert_eq!(w.audited("kms.secrets.unsetkeyfordeletion"), 1);
}

#[tokio::test]
async fn a_service_counts_as_its_owner_and_a_right_that_was_lost_counts_no_more() {
    let w = World::new();
    let other = w.person("other", &[(ServiceRole::Writer, Scope::Instance(w.one))]);
    let mine = w.service("mine", Some("IBMid-manager"), ServiceRole::Writer);
    let others = w.service("others", Some("IBMid-other"), ServiceRole::Writer);
    let nobodys = w.service("nobodys", None, ServiceRole::Manager);
    let id = w.dual().await;
    let delete = format!("DELETE /keys/{id}");
    let set = format!("POST /keys/{id}/actions/setKeyForDeletion");

    w.by(&nobodys, &set, "").await.refused(409, NOT_MET);
    w.by(&mine, &set, "").await.is(204);
    w.call(&delete, &Value::Null).await.refused(409, NOT_MET);
    w.by(&nobodys, &delete, "").await.refused(409, NOT_MET);
    let reader = w.person("reader", &[(ServiceRole::Reader, Scope::Instance(w.one))]);
    w.by(&reader, &set, "").await.is(401);

    // The first loses access before the second deletes.
    w.by(&other, &set, "").await.is(204);
    let other = Subject::Principal("IBMid-other".to_owned());
    w.app.store.tx("t", |tx| access::remove_about(tx, &other)).unwrap();
    w.call(&delete, &Value::Null).await.refused(409, NOT_MET);
    w.by(&others, &set, "").await.is(204);
    w.call(&delete, &Value::Null).await.is(204);
}

#[tokio::test]
async fn a_key_without_the_policy_needs_one_person_only() {
    let w = World::new();
    let id = w.root().await;
    for action in ["setKeyForDeletion", "unsetKeyForDeletion"] {
        let line = format!("POST /keys/{id}/actions/{action}");
        w.call(&line, &Value::Null).await.refused(409, "NOT_DUAL_AUTH_ERR");
    }
    let seen = w.call(&format!("GET /keys/{id}/metadata"), &Value::Null).await;
    assert_eq!(seen.key()["dualAuthDelete"], json!({"enabled": false}));
    w.call(&format!("DELETE /keys/{id}"), &Value::Null).await.is(204);
}
