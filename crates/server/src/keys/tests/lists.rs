//! Lists: filter, search and sort through the router.

use super::*;

fn names(answer: &Answer) -> Vec<String> {
    let all = answer.body["resources"].as_array().unwrap();
    all.iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn filters_as_clients_build_them() {
    let w = World::with(Settings::default().without_waits());
    let null = Value::Null;
    let first = w.create(json!({"name": "first"})).await.is(201).id();
    w.advance(3600);
    w.create(json!({"name": "second", "extractable": true})).await.is(201);
    w.call(&format!("POST /keys/{first}/actions/rotate"), &null).await.is(204);
    let gone = w.create(json!({"name": "gone"})).await.is(201).id();
    w.call(&format!("DELETE /keys/{gone}"), &null).await.is(204);
    for (filter, want) in [
        // A blank before all, nanoseconds and an offset: as the builder of a client writes it.
        ("%20creationDate%3Dlt%3A%222027-01-15T10%3A30%3A00.000000001%2B02%3A00%22", vec!["first"]),
        ("+creationDate=gte:%222027-01-15T09:00:00Z%22+extractable=true", vec!["second"]),
        ("lastRotateDate=none&sort=creationDate", vec!["second"]),
        ("lastRotateDate=lte:%222027-01-15T09:00:00Z%22", vec!["first"]),
        ("state=5", vec!["gone"]),
        ("state=1,5+deletionDate=none&sort=creationDate", vec!["first", "second"]),
        ("deletionDate=gt:%222027-01-15T08:00:00Z%22+state=0,1,2,3,5", vec!["gone"]),
        ("extractable=true&extractable=&state=", vec!["second"]),
        ("expirationDate=none&sort=-creationDate", vec!["second", "first"]),
    ] {
        let found = w.call(&format!("GET /keys?filter={filter}"), &null).await.is(200);
        assert_eq!(names(&found), want, "{filter}");
        assert!(found.body["metadata"].get("searchQuery").is_none());
        let head = w.by(&w.manager, &format!("HEAD /keys?filter={filter}"), "").await.is(200);
        assert_eq!(head.headers["key-total"], want.len().to_string().as_str(), "{filter}");
    }
    for bad in [
        "filter=state=1&state=1",
        "filter=extractable=true&extractable=false",
        "filter=state=1+state=1+state=1+state=1",
        "filter=creationDate=gt:2027",
        "filter=id=7",
    ] {
        w.call(&format!("GET /keys?{bad}"), &null).await.refused(400, "INVALID_QUERY_PARAM_ERR");
        w.by(&w.manager, &format!("HEAD /keys?{bad}"), "").await.is(400);
    }
}

#[tokio::test]
async fn searches_say_how_they_were_understood() {
    let w = World::new();
    let null = Value::Null;
    w.create(json!({"name": "Payments", "aliases": ["billing"]})).await.is(201);
    let id = w.create(json!({"name": "other"})).await.is(201).id();
    let found = w.call("GET /keys?search=not%3Aalias%3Abill%2C&sort=id", &null).await.is(200);
    assert_eq!(names(&found), ["other"]);
    let want = json!({"query": "bill", "scopes": ["alias"], "not": true, "exact": false});
    assert_eq!(found.body["metadata"]["searchQuery"], want);
    let found = w.call(&format!("GET /keys?search={id},"), &null).await.is(200);
    assert_eq!(names(&found), ["other"]);
    assert_eq!(names(&w.call("GET /keys?search=%2C", &null).await.is(200)).len(), 2);
    let long = format!("GET /keys?search={}", "x".repeat(300));
    w.call(&long, &null).await.refused(400, "INVALID_QUERY_PARAM_ERR");
}

#[tokio::test]
async fn a_search_over_too_many_keys_is_refused_until_it_is_narrowed_down() {
    let w = World::new();
    let null = Value::Null;
    let first = w.root().await;
    w.create(json!({"name": "alone", "extractable": true})).await.is(201);
    let copied: Result<usize, StoreError> = w.app.store.tx("t", |tx| {
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
            INSERT INTO keys (instance, id, name, tags, state, extractable, imported, ring,
                created, created_by, current)
            SELECT instance, printf('00000000-0000-4000-8000-%012x', i), name, tags, state,
                extractable, imported, ring, created, created_by, current
            FROM keys, n WHERE id = ?1";
        Ok(tx.execute(sql, [&first])?)
    });
    assert_eq!(copied.unwrap(), 5000);
    w.call("GET /keys?search=alone", &null).await.refused(400, "KEY_SEARCH_TOO_BROAD");
    let found = w.call("GET /keys?search=alone&filter=extractable=true", &null).await.is(200);
    assert_eq!(names(&found), ["alone"]);
}
