//! Instances and access, over the router.

use crate::app::Settings;
use crate::testing::World;
use claviger_domain::access::{PlatformRole, Scope, ServiceRole};
use claviger_store::iam::{self, Grant};
use serde_json::{Value, json};

const ALL: Grant = Grant::Service { role: ServiceRole::Manager, scope: Scope::Everywhere };

#[tokio::test]
async fn an_instance_from_its_making_to_its_end() {
    let settings = Settings {
        url: "https://10.0.0.1:8443".to_owned(),
        public_url: Some("https://keys.example:9443".to_owned()),
        ..Settings::default()
    };
    let w = World::with(settings);
    let editor = w.person_with("editor", &[Grant::Platform(PlatformRole::Editor), ALL]);
    let groups = w.ask(&editor, "GET", "/v2/resource_groups", Value::Null).await.is(200);
    let group = groups["resources"][0].clone();
    assert_eq!((&group["name"], &group["default"]), (&json!("default"), &json!(true)));
    let path = format!("/v2/resource_groups/{}", group["id"].as_str().unwrap());
    w.ask(&editor, "GET", &path, Value::Null).await.is(200);

    let new = json!({
        "name": "suite", "target": "us-south", "resource_group": group["id"],
        "resource_plan_id": claviger_wire::rc::PLAN_ID,
    });
    let made = w.ask(&editor, "POST", "/v2/resource_instances", new.clone()).await;
    assert_eq!(made.media_type, "application/json");
    let made = made.is(201);
    assert_eq!(made["id"], made["crn"]);
    assert_eq!(made["region_id"], "us-south");
    assert_eq!(made["state"], "active");
    assert_eq!(made["created_by"], "IBMid-editor");
    assert_eq!(made["extensions"]["endpoints"]["public"], "https://keys.example:9443");
    assert_eq!(made["extensions"]["endpoints"]["private"], "https://10.0.0.1:8443");
    assert!(made["extensions"]["virtual_private_endpoints"].is_object());
    let refused = w.ask(&editor, "POST", "/v2/resource_instances", new).await.is(409);
    assert_eq!(refused["error_code"], "RC-InstanceNameNotUnique");
    assert_eq!(refused["status_code"], 409);

    let guid = made["guid"].as_str().unwrap();
    let crn = made["crn"].as_str().unwrap();
    let encoded = crn.replace(':', "%3A").replace('/', "%2F");
    for id in [guid, crn, &encoded] {
        let path = format!("/v2/resource_instances/{id}");
        let seen = w.ask(&editor, "GET", &path, Value::Null).await.is(200);
        assert_eq!(seen["guid"], guid);
    }
    let path = format!("/v2/resource_instances/{guid}");
    let renamed = w.ask(&editor, "PATCH", &path, json!({ "name": "other" })).await.is(200);
    assert_eq!(renamed["name"], "other");

    // A live key keeps the instance; a destroyed one does not.
    let instance = guid.parse().unwrap();
    let key = w.make_root(&editor, instance, "root").await;
    let refused = w.ask(&editor, "DELETE", &path, Value::Null).await.is(422);
    let said = refused["message"].as_str().unwrap();
    assert!(said.contains("CONTAINS_ACTIVE_KEYS") && said.contains("1 active keys"), "{said}");
    let key_path = format!("/api/v2/keys/{key}");
    w.ask_in(instance, &editor, "DELETE", &key_path, Value::Null).await.is(204);
    let path = format!("/v2/resource_instances/{encoded}");
    w.ask(&editor, "DELETE", &path, Value::Null).await.is(204);
    w.ask(&editor, "GET", &path, Value::Null).await.is(404);
    w.ask(&editor, "DELETE", &path, Value::Null).await.is(404);
    w.ask_in(instance, &editor, "GET", "/api/v2/keys", Value::Null).await.is(404);
    for action in ["create", "delete", "read", "update"] {
        assert!(w.audited(&format!("kms.instance.{action}")) > 0, "{action}");
    }
    let rows = w.app.store.read("t", |tx| -> Result<i64, claviger_store::StoreError> {
        let sql = "SELECT (SELECT count(*) FROM keys) + (SELECT count(*) FROM key_versions)
                 + (SELECT count(*) FROM aliases) + (SELECT count(*) FROM key_events)";
        Ok(tx.query_row(sql, [], |row| row.get(0))?)
    });
    assert_eq!(rows.unwrap(), 0);
}

#[tokio::test]
async fn lists_have_pages_and_filters() {
    let w = World::new();
    let editor = w.person_with("editor", &[Grant::Platform(PlatformRole::Editor)]);
    for n in 0..3 {
        let new = json!({ "name": format!("i {n}") });
        w.ask(&editor, "POST", "/v2/resource_instances", new).await.is(201);
    }
    let mut path = "/v2/resource_instances?limit=2&type=service_instance".to_owned();
    let mut seen = Vec::new();
    loop {
        let page = w.ask(&editor, "GET", &path, Value::Null).await.is(200);
        let names = page["resources"].as_array().unwrap();
        assert_eq!(page["rows_count"], names.len());
        seen.extend(names.iter().map(|i| i["name"].as_str().unwrap().to_owned()));
        match page["next_url"].as_str() {
            Some(next) => path = next.to_owned(),
            None => break,
        }
    }
    seen.sort();
    assert_eq!(seen, ["claviger-1", "claviger-2", "i 0", "i 1", "i 2"]);
    for (query, found) in [
        ("name=i%201", 1),
        ("name=nobody", 0),
        ("type=application", 0),
        ("resource_id=ee41347f-b18e-4ca6-bf80-b5467c63f9a6", 5),
        ("resource_id=x", 0),
        ("resource_group_id=x", 0),
        ("name=", 5),
    ] {
        let path = format!("/v2/resource_instances?{query}");
        let page = w.ask(&editor, "GET", &path, Value::Null).await.is(200);
        assert_eq!(page["rows_count"], found, "{query}");
        assert!(page["next_url"].is_null());
    }
    for query in ["limit=0", "limit=101", "limit=x", "start=x"] {
        let path = format!("/v2/resource_instances?{query}");
        w.ask(&editor, "GET", &path, Value::Null).await.is(400);
    }
}

#[tokio::test]
async fn what_is_wrong_with_an_instance_is_told() {
    let w = World::new();
    let viewer = w.person_with("viewer", &[Grant::Platform(PlatformRole::Viewer)]);
    let editor = w.person_with("editor", &[Grant::Platform(PlatformRole::Editor)]);
    let path = format!("/v2/resource_instances/{}", w.one);
    for (token, method, path, status) in [
        (&viewer, "GET", &*path, 200),
        (&w.manager, "GET", &*path, 401),
        (&viewer, "DELETE", &*path, 401),
        (&viewer, "POST", "/v2/resource_instances", 401),
        (&editor, "POST", "/v2/resource_instances", 400),
        (&editor, "GET", "/v2/resource_instances/nonsense", 404),
        (&editor, "GET", "/v2/resource_groups/nonsense", 404),
    ] {
        let answer = w.ask(token, method, path, Value::Null).await.is(status);
        if status >= 400 {
            assert_eq!(answer["status_code"], status, "{}", answer.body);
            assert!(answer["transaction_id"].is_string() && answer["error_code"].is_string());
        }
    }
    let stranger = w.ask("rubbish", "GET", "/v2/resource_instances", Value::Null).await.is(401);
    assert_eq!(stranger["error_code"], "RC-IamErrorResponse");
    for new in [
        json!({ "name": "" }),
        json!({ "name": "x".repeat(181) }),
        json!({ "name": "a\nb" }),
        json!({ "name": "a", "target": "two words" }),
        json!({ "name": "a", "resource_group": "nobody" }),
        json!({ "name": 1 }),
        json!([]),
    ] {
        w.ask(&editor, "POST", "/v2/resource_instances", new).await.is(400);
    }
    let target = "crn:v1:bluemix:public:globalcatalog::::deployment:p%3Aeu-de";
    let new = json!({ "name": "a", "target": target });
    let made = w.ask(&editor, "POST", "/v2/resource_instances", new).await.is(201);
    assert_eq!(made["region_id"], "eu-de");
}

#[tokio::test]
async fn an_administrator_lets_people_and_services_in() {
    let w = World::new();
    let admin = w.person_with("admin", &[Grant::Platform(PlatformRole::Administrator)]);
    let editor = w.person_with("editor", &[Grant::Platform(PlatformRole::Editor)]);
    let person = json!({ "name": "second", "roles": [{ "role": "Manager" }] });
    w.ask(&editor, "POST", "/v3/principals", person.clone()).await.is(401);
    let made = w.ask(&admin, "POST", "/v3/principals", person).await.is(201);
    let token = w.log_in(made["apikey"].as_str().unwrap()).await;
    w.ask(&token, "GET", "/api/v2/keys", Value::Null).await.is(200);
    w.ask(&token, "POST", "/v3/principals", json!({ "name": "x" })).await.is(401);

    let service = json!({ "name": "s", "service": true, "roles": [{ "role": "Reader" }] });
    let made = w.ask(&admin, "POST", "/v3/principals", service).await.is(201);
    let iam_id = made["iam_id"].as_str().unwrap().to_owned();
    assert!(iam_id.starts_with("iam-ServiceId-"), "{iam_id}");
    let owner = w.app.store.read("t", |tx| -> Result<String, claviger_store::StoreError> {
        let sql = "SELECT owner FROM principals WHERE iam_id = ?1";
        Ok(tx.query_row(sql, [&iam_id], |row| row.get(0))?)
    });
    assert_eq!(owner.unwrap(), "IBMid-admin");
    assert_eq!(w.audited("iam-identity.serviceid-apikey.create"), 1);
    let known = w.app.store.read("t", |tx| iam::principal(tx, &iam_id)).unwrap();
    assert!(known.is_some_and(|p| p.service));

    let roles = json!([{ "role": "Writer", "instance": w.one, "ring": "default" }]);
    let made = w.ask(&admin, "POST", "/v3/principals", json!({ "name": "ring", "roles": roles }));
    let token = w.log_in(made.await.is(201)["apikey"].as_str().unwrap()).await;
    w.make_root(&token, w.one, "in-default").await;
    w.ask(&token, "POST", "/api/v2/key_rings/other", Value::Null).await.is(401);

    for wrong in [
        json!({ "name": "" }),
        json!({ "name": "a", "owner": "IBMid-admin" }),
        json!({ "name": "a", "service": true, "owner": "nobody" }),
        json!({ "name": "a", "service": true, "owner": iam_id }),
        json!({ "name": "a", "unknown": 1 }),
        json!({ "name": "a", "roles": [{ "role": "King" }] }),
        json!({ "name": "a", "roles": [{ "role": "Reader", "key": w.one.to_string() }] }),
        json!({ "name": "a", "roles": [{ "role": "Reader", "ring": "default" }] }),
        json!({ "name": "a", "roles": [{ "role": "Reader", "instance": w.one, "ring": "none" }] }),
        json!({ "name": "a", "roles": [{
            "role": "Reader", "instance": w.one, "ring": "default", "key": w.one.to_string(),
        }] }),
        json!({ "name": "a", "roles": [{ "role": "Reader", "instance": w.app.account.resource_group }] }),
    ] {
        w.ask(&admin, "POST", "/v3/principals", wrong).await.is(400);
    }
}
