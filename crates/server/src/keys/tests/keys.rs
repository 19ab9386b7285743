//! Keys as they are made, read and listed.

use super::*;

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
    let reader = w.person("r", &[(ServiceRole::Reader, Scope::Instance(w.one))]);
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
        json!({"name": "ok", "payload": ""}),
        json!({"name": "ok", "extractable": true, "payload": ""}),
        json!({"name": "ok", "payload": STANDARD.encode([1; 17])}),
        json!({"name": "ok", "extractable": true, "payload": STANDARD.encode([1; 7501])}),
        json!({"name": "ok", "payload": "AAAA", "encryptedNonce": "AAAA", "iv": "AAAA"}),
    ];
    for key in bad {
        w.create(key).await.refused(400, "INVALID_FIELD_ERR");
    }
    assert_eq!(w.audited("kms.secrets.create"), 4 + 15);
    let long = vec![b' '; 100_000];
    w.by(&w.manager, "POST /keys", long).await.refused(413, "BODY_TOO_LARGE_ERR");
    let stream =
        futures_util::stream::iter((0..10).map(|_| Ok::<_, std::io::Error>(vec![b' '; 9000])));
    let endless = Body::from_stream(stream);
    w.by(&w.manager, "POST /keys", endless).await.refused(413, "BODY_TOO_LARGE_ERR");
    assert_eq!(w.call("GET /keys", &Value::Null).await.body["resources"], json!([]));
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
    for bad in ["limit=0", "state=4", "sort=colour", "extractable=maybe", "filter=state%3D4"] {
        w.call(&format!("GET /keys?{bad}"), &Value::Null)
            .await
            .refused(400, "INVALID_QUERY_PARAM_ERR");
    }
}
