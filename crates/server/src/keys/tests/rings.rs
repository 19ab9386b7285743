//! Key rings and aliases.

use super::*;

pub(super) async fn within(w: &World, token: &str, ring: &str, line: &str, body: Value) -> Answer {
    let (method, path) = line.split_once(' ').unwrap();
    let request = Request::builder()
        .method(method)
        .uri(format!("/api/v2{path}"))
        .header("authorization", format!("Bearer {token}"))
        .header("bluemix-instance", w.one.to_string())
        .header("x-kms-key-ring", ring);
    w.raw(request.body(Body::from(body.to_string())).unwrap()).await
}

#[tokio::test]
async fn keys_are_made_found_and_moved_within_rings() {
    let w = World::new();
    let null = Value::Null;
    let listed = w.call("GET /key_rings?totalCount=true", &null).await.is(200);
    assert_eq!(listed.media_type, "application/vnd.ibm.kms.key_ring+json");
    assert_eq!(listed.body["resources"], json!([{"id": "default"}]), "without dates");
    assert_eq!(listed.body["metadata"]["totalCount"], 1);

    let made = w.call("POST /key_rings/payments", &null).await.is(201);
    assert_eq!(made.body, null, "a body would be an error to a client");
    w.call("POST /key_rings/audit_1", &null).await.is(201);
    w.call("POST /key_rings/payments", &null).await.refused(409, "KEY_RING_NOT_UNIQUE_ERR");
    w.call("POST /key_rings/default", &null).await.refused(409, "KEY_RING_NOT_UNIQUE_ERR");
    for bad in ["a", &"x".repeat(101), "a.b", "a%20b"] {
        w.call(&format!("POST /key_rings/{bad}"), &null).await.refused(400, "INVALID_FIELD_ERR");
    }
    let page = w.call("GET /key_rings?limit=1&offset=1", &null).await.is(200);
    assert_eq!(page.key()["id"], "audit_1");
    assert_eq!(page.key()["createdBy"], "IBMid-manager");
    assert_eq!(page.key()["creationDate"], "2027-01-15T08:00:00Z");

    let new = envelope(json!({"name": "root", "aliases": ["al"]}));
    within(&w, &w.manager, "nowhere", "POST /keys", new.clone())
        .await
        .refused(404, "KEY_RING_NOT_FOUND_ERR");
    let key = within(&w, &w.manager, "payments", "POST /keys", new).await.is(201);
    assert_eq!(key.key()["keyRingID"], "payments");
    let other = w.root().await;
    let id = key.id();
    for name in [id.as_str(), "al"] {
        let line = format!("POST /keys/{name}/actions/wrap");
        within(&w, &w.manager, "payments", &line, json!({})).await.is(200);
        within(&w, &w.manager, "default", &line, json!({})).await.refused(404, "KEY_NOT_FOUND_ERR");
        w.call(&line, &json!({})).await.is(200);
    }
    for (ring, total) in [("payments", 1), ("default", 1), ("audit_1", 0), ("nowhere", 0)] {
        let listed = within(&w, &w.manager, ring, "GET /keys", null.clone()).await.is(200);
        assert_eq!(listed.body["metadata"]["collectionTotal"], total, "{ring}");
        let head = within(&w, &w.manager, ring, "HEAD /keys", null.clone()).await.is(200);
        assert_eq!(head.headers["key-total"], total.to_string().as_str());
    }

    let to = |ring: &str| json!({"KeyRingID": ring});
    let line = format!("PATCH /keys/{id}");
    within(&w, &w.manager, "audit_1", &line, to("default")).await.refused(404, "KEY_NOT_FOUND_ERR");
    w.call(&line, &to("nowhere")).await.refused(404, "KEY_RING_NOT_FOUND_ERR");
    w.call(&line, &null).await.refused(400, "BAD_BODY_ERR");
    w.call(&line, &json!({})).await.refused(400, "INVALID_FIELD_ERR");
    let moved = within(&w, &w.manager, "payments", &line, to("audit_1")).await.is(200);
    assert_eq!(moved.media_type, "application/vnd.ibm.kms.key+json");
    assert_eq!(moved.key()["keyRingID"], "audit_1");
    let line = "PATCH /keys/al";
    w.call(line, &json!({"keyRingID": "payments"})).await.is(200);
    w.call(&format!("DELETE /keys/{other}"), &null).await.is(204);
    w.call(&format!("PATCH /keys/{other}"), &to("payments"))
        .await
        .refused(409, "KEY_ACTION_INVALID_STATE_ERR");

    let writer = w.person("w", &[(ServiceRole::Writer, Scope::Instance(w.one))]);
    w.by(&writer, "POST /key_rings/third", "null").await.is(201);
    w.by(&writer, line, to("default").to_string()).await.is(401);
    w.by(&writer, "DELETE /key_rings/third", "").await.is(401);
    let reader = w.person("r", &[(ServiceRole::Reader, Scope::Instance(w.one))]);
    w.by(&reader, "POST /key_rings/fourth", "null").await.is(401);
    let listed = w.by(&reader, "GET /key_rings", "").await.is(200);
    assert_eq!(listed.body["metadata"]["collectionTotal"], 4);
    assert_eq!(w.audited("kms.secrets.patch"), 8);
}

#[tokio::test]
async fn a_ring_is_deleted_when_no_key_in_it_lives() {
    let w = World::new();
    let null = Value::Null;
    w.call("POST /key_rings/old", &null).await.is(201);
    let new = envelope(json!({"name": "root"}));
    let id = within(&w, &w.manager, "old", "POST /keys", new).await.is(201).id();
    for line in ["DELETE /key_rings/old", "DELETE /key_rings/old?force=true"] {
        w.call(line, &null).await.refused(409, "KEY_RING_NOT_EMPTY_ERR");
    }
    w.call(&format!("DELETE /keys/{id}"), &null).await.is(204);
    w.call("DELETE /key_rings/old", &null).await.refused(409, "KEY_RING_NOT_EMPTY_ERR");
    w.call("DELETE /key_rings/old?force=true", &null).await.is(204);
    let key = w.call(&format!("GET /keys/{id}/metadata"), &null).await.is(200);
    assert_eq!(key.key()["keyRingID"], "default");
    w.call("DELETE /key_rings/old", &null).await.refused(404, "KEY_RING_NOT_FOUND_ERR");
    w.call("DELETE /key_rings/default", &null).await.refused(409, "KEY_RING_RESERVED_ERR");
    for n in 0..50 {
        w.call(&format!("POST /key_rings/ring-{n}"), &null).await.is(201);
    }
    w.call("POST /key_rings/ring-50", &null).await.refused(409, "KEY_RING_QUOTA_ERR");
    let rows: Vec<String> = w
        .app
        .store
        .read("t", |tx| {
            let sql = "SELECT target FROM audit WHERE action = 'kms.key-rings.delete'";
            let mut query = tx.prepare(sql)?;
            let rows = query.query_map([], |r| r.get(0))?;
            Ok::<_, StoreError>(rows.collect::<Result<_, _>>()?)
        })
        .unwrap();
    assert!(rows[0].ends_with(":key-ring:old"), "{}", rows[0]);
}

#[tokio::test]
async fn aliases_are_unique_and_taken_until_the_key_is_gone() {
    let w = World::with(Settings::default().without_waits());
    let null = Value::Null;
    let (id, other) = (w.root().await, w.root().await);
    let alias = |key: &str, alias: &str| format!("POST /keys/{key}/aliases/{alias}");
    let made = w.call(&alias(&id, "first"), &null).await.is(201);
    assert_eq!(made.media_type, "application/vnd.ibm.kms.alias+json");
    assert_eq!(made.key()["keyId"], json!(id));
    assert_eq!(made.key()["alias"], "first");
    assert_eq!(made.key()["createdBy"], "IBMid-manager");
    for key in [&id, &other] {
        w.call(&alias(key, "first"), &null).await.refused(409, "KEY_ALIAS_NOT_UNIQUE_ERR");
    }
    // Case counts, and an alias names its key here too.
    w.call(&alias("first", "First"), &null).await.is(201);
    let uuid = KeyId::random().to_string();
    for bad in ["a", "a.b", "rotate", "key", uuid.as_str(), &"x".repeat(91)] {
        w.call(&alias(&id, bad), &null).await.refused(400, "INVALID_FIELD_ERR");
    }
    for n in 3..=5 {
        w.call(&alias(&id, &format!("alias-{n}")), &null).await.is(201);
    }
    w.call(&alias(&id, "sixth"), &null).await.refused(409, "KEY_ALIAS_QUOTA_ERR");
    for line in [
        "GET /keys/First",
        "GET /keys/First/metadata",
        "GET /keys/First/versions",
        "GET /keys/First/registrations",
        "POST /keys/First?action=wrap",
        "POST /keys/First/actions/wrap",
    ] {
        w.call(line, &null).await.is(200);
    }
    w.call("GET /keys/FIRST", &null).await.refused(404, "KEY_NOT_FOUND_ERR");
    w.call("DELETE /keys/first/aliases/alias-5", &null).await.is(204);
    w.call("DELETE /keys/first/aliases/alias-5", &null)
        .await
        .refused(404, "KEY_ALIAS_NOT_FOUND_ERR");
    let line = format!("DELETE /keys/{other}/aliases/first");
    w.call(&line, &null).await.refused(404, "KEY_ALIAS_NOT_FOUND_ERR");
    let writer = w.person("w", &[(ServiceRole::Writer, Scope::Instance(w.one))]);
    w.by(&writer, &alias(&id, "another"), "").await.is(201);
    w.by(&writer, &format!("DELETE /keys/{id}/aliases/another"), "").await.is(401);

    w.call("DELETE /keys/first", &null).await.is(204);
    w.call(&alias(&other, "first"), &null).await.refused(409, "KEY_ALIAS_NOT_UNIQUE_ERR");
    w.call(&alias(&id, "late"), &null).await.refused(409, "KEY_ACTION_INVALID_STATE_ERR");
    let restored = w.call("POST /keys/first/restore", &null).await.is(201);
    assert_eq!(
        restored.key()["aliases"],
        json!(["First", "alias-3", "alias-4", "another", "first"])
    );
    assert_eq!(w.audited("kms.secrets-alias.create"), 17);
    assert_eq!(w.audited("kms.secrets-alias.delete"), 4);
}
