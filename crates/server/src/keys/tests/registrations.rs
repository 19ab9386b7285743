//! Who uses a key.

use super::*;
use claviger_domain::access::PlatformRole;
use claviger_domain::id::ClusterId;

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
        assert!(why.contains("claviger ks kms release"), "{why}");
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
    let (cluster, _, token) = w.cluster(&mine);
    let bound = |cluster: &str| json!({"aad": ["claviger kek 1", cluster, "1"]}).to_string();
    let own = bound(cluster.as_str());
    let wrap = |key: &str| format!("POST /keys/{key}/actions/wrap");
    let made = w.by(&token, &wrap(&mine), own.clone()).await.is(200);
    w.by(&token, &wrap(&other), own.clone()).await.is(401);
    w.by(&token, &wrap(&KeyId::random().to_string()), own.clone()).await.is(401);

    // Another cluster under the same root key: what is bound to it stays out of reach.
    let theirs = claviger_domain::id::ClusterId::random();
    for foreign in ["null", r#"{"aad": []}"#, &bound(theirs.as_str())] {
        w.by(&token, &wrap(&mine), foreign.to_owned()).await.is(401);
    }
    let unwrap =
        |aad: Value| json!({"ciphertext": made.body["ciphertext"], "aad": aad}).to_string();
    let of_theirs = json!(["claviger kek 1", theirs.as_str(), "1"]);
    let mut wrapped = w.call(&wrap(&mine), &json!({"aad": of_theirs})).await.is(200);
    let theirs = json!({"ciphertext": wrapped.body["ciphertext"].take(), "aad": of_theirs});
    for action in ["unwrap", "rewrap"] {
        let line = format!("POST /keys/{mine}/actions/{action}");
        let own = unwrap(json!(["claviger kek 1", cluster.as_str(), "1"]));
        w.by(&token, &line, own).await.is(200);
        w.by(&token, &line, theirs.to_string()).await.is(401);
        // A person who may use the root key is bound by nothing but that.
        w.call(&line, &theirs).await.is(200);
    }
    w.by(&token, &format!("POST /keys/{mine}/actions/rotate"), "null").await.is(401);
    let listed = w.by(&token, "GET /keys", "").await.is(200);
    assert_eq!(listed.body["metadata"]["collectionTotal"], 0, "a role on a key finds no keys");
}

#[tokio::test]
async fn a_service_id_registers_what_is_its_own() {
    let w = World::new();
    let key = w.root().await;
    let services = ["one", "two"].map(|name| w.service(name, None, ServiceRole::Reader));
    let body = envelope(json!({"preventKeyDeletion": false}));
    let at = |crn: &str| {
        let crn = crn.replace(':', "%3A").replace('/', "%2F");
        format!("/api/v2/keys/{key}/registrations/{crn}")
    };
    let bucket = at(&format!(
        "crn:v1:bluemix:public:cloud-object-storage:global:a/{}:1:bucket:b",
        w.app.account.id
    ));
    let cluster = at(&w.app.account.cluster_crn(&ClusterId::random()));
    w.ask(&w.manager, "POST", &bucket, body.clone()).await.refused(403, "SERVICE_ONLY_ERR");
    w.ask(&services[0], "POST", &cluster, body.clone()).await.refused(403, "RESOURCE_OWNER_ERR");
    w.ask(&services[0], "POST", &bucket, body.clone()).await.is(201);
    for method in ["PUT", "PATCH", "DELETE"] {
        let refused = w.ask(&services[1], method, &bucket, body.clone()).await;
        refused.refused(403, "RESOURCE_OWNER_ERR");
    }
    w.ask(&services[0], "PUT", &bucket, body.clone()).await.is(200);
    for odd in ["*", "b*c", "b%20", "b%0A", "b%7F", "%C3%BC", "%E2%80%AE"] {
        let line = format!("{bucket}{odd}");
        w.ask(&services[0], "POST", &line, body.clone()).await.refused(400, "INVALID_FIELD_ERR");
    }
    // It keeps an instance from being removed.
    let path = format!("/v2/resource_instances/{}", w.one);
    let editor = w.person_with("editor", &[Grant::Platform(PlatformRole::Editor)]);
    let said = w.ask(&editor, "DELETE", &path, Value::Null).await.is(422);
    assert!(said["message"].as_str().unwrap().contains("CONTAINS_ACTIVE_KEYS"));
}

#[tokio::test]
async fn an_instance_has_so_many_registrations_and_shows_them_by_pages() {
    let w = World::new();
    let mut last = String::new();
    for _ in 0..11 {
        last = w.root().await;
    }
    // A thousand on each key but the last.
    let sql = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1000)
        INSERT INTO registrations (instance, key, crn, prevent, version, created, created_by)
        SELECT instance, id, 'crn:v1:a:b:c:d:a/1:' || n, 0, current, 0, 'x' FROM keys, n
        WHERE id <> ?1";
    w.app.store.tx("t", |tx| Ok::<_, StoreError>(tx.execute(sql, [&last])?)).unwrap();
    let service = w.service("backup", Some("IBMid-manager"), ServiceRole::Reader);
    let line = format!("POST /keys/{last}/registrations/crn:v1:a:b:c:d:a%2F1:2:bucket:b");
    let body = envelope(json!({"preventKeyDeletion": false})).to_string();
    w.by(&service, &line, body).await.refused(409, "REGISTRATION_QUOTA_ERR");

    let list = async |query: &str| {
        let line = format!("GET /keys/registrations?totalCount=true&{query}");
        let seen = w.call(&line, &Value::Null).await.is(200);
        let shown = seen.body["resources"].as_array().unwrap().len();
        (shown, seen.body["metadata"]["totalCount"].as_u64().unwrap())
    };
    assert_eq!(list("limit=2&offset=9999").await, (1, 10_000));
    assert_eq!(list("limit=2").await, (2, 10_000));
    let one = "crn%3Av1%3Aa%3Ab%3Ac%3Ad%3Aa%2F1%3A7";
    assert_eq!(list(&format!("urlEncodedResourceCRNQuery={one}")).await, (10, 10));
    assert_eq!(list("preventKeyDeletion=true").await, (0, 0));
}
