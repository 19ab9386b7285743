//! The document says what there is, and all of it.

use crate::http::openapi;
use crate::testing::World;
use axum::body::Body;
use axum::http::Request;
use claviger_domain::access::{PlatformRole, Scope, ServiceRole};
use claviger_store::iam::Grant;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn document() -> Value {
    serde_json::from_str(openapi()).unwrap()
}

#[test]
fn the_committed_document_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == openapi(),
        "docs/openapi.json is not what the code says; write it with `cargo xtask openapi`"
    );
}

#[test]
fn every_name_is_given_once() {
    let document = document();
    let mut ids = BTreeSet::new();
    for item in document["paths"].as_object().unwrap().values() {
        let operations = item.as_object().unwrap().values().filter(|o| o.is_object());
        for id in operations.map(|operation| operation["operationId"].as_str().unwrap()) {
            assert!(ids.insert(id.to_owned()), "two operations are called {id}");
        }
    }
    // The generator of schemas adds a number to the name of a second type.
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        let last = name.chars().last().unwrap();
        assert!(!last.is_ascii_digit(), "{name}: two types have one name");
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(document: &Value, value: &Value) {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        match value {
            Value::Object(map) => map.values().for_each(|value| walk(document, value)),
            Value::Array(all) => all.iter().for_each(|value| walk(document, value)),
            _ => {}
        }
    }
    walk(&document(), &document());
}

/// Whatever a described path answers to is described, and the other way round.
#[tokio::test]
async fn the_router_knows_the_methods_that_the_document_names_and_no_others() {
    let world = World::new();
    let mut asked = 0;
    for (path, item) in document()["paths"].as_object().unwrap() {
        let item = item.as_object().unwrap();
        let prefixes = match item.get("servers").and_then(Value::as_array) {
            Some(servers) => {
                servers.iter().map(|s| s["url"].as_str().unwrap().to_owned()).collect()
            }
            None => vec![String::new()],
        };
        for prefix in prefixes {
            let path = format!("{}{}", prefix.trim_end_matches('/'), path.replace(['{', '}'], ""));
            for method in ["get", "head", "post", "put", "patch", "delete"] {
                let described =
                    item.contains_key(method) || (method == "head" && item.contains_key("get"));
                let method = method.to_ascii_uppercase();
                let request = Request::builder().method(&*method).uri(&path);
                let answer = world.raw(request.body(Body::empty()).unwrap()).await;
                assert_eq!(answer.status != 405, described, "{method} {path}: {}", answer.status);
                let unknown = answer.body.to_string().contains("PATH_NOT_FOUND_ERR");
                assert!(!unknown, "{method} {path}");
                asked += 1;
            }
        }
    }
    assert!(asked > 400, "{asked}");
}

#[tokio::test]
async fn anybody_may_read_it() {
    let world = World::new();
    let request = Request::get("/openapi.json").body(Body::empty()).unwrap();
    let answer = world.raw(request).await;
    assert_eq!(answer.media_type, "application/json");
    assert_eq!(answer.is(200).body, document());
}

/// As they are described: what serde would read out of an array is no body of anything.
#[tokio::test]
async fn a_body_is_an_object() {
    let world = World::new();
    let manager = Grant::Service { role: ServiceRole::Manager, scope: Scope::Everywhere };
    let grants = [manager, Grant::Platform(PlatformRole::Administrator)];
    let token = world.person_with("admin", &grants);
    let key = world.make_root(&token, world.one, "root").await;
    for (method, path, body) in [
        ("POST", format!("/api/v2/keys/{key}/actions/wrap"), json!(["AAAA", [null]])),
        ("POST", "/api/v2/keys".to_owned(), json!([["x", 1], [["x", "name", false]]])),
        ("PUT", format!("/api/v2/keys/{key}/policies"), json!([["x", 1], [["x", [true, 1]]]])),
        ("POST", "/v2/resource_instances".to_owned(), json!(["name"])),
        ("POST", "/v3/principals".to_owned(), json!(["name"])),
        ("POST", "/v3/clusters/x/kms/operations/cancel".to_owned(), json!([true])),
    ] {
        let answer = world.ask(&token, method, &path, body).await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.body);
    }
    assert_eq!(world.audited("kms.instance.create"), 1, "only the refusal");
}

#[tokio::test]
async fn the_token_endpoint_refuses_in_one_shape() {
    let world = World::new();
    for (body, status) in [("x".repeat(65 << 10), 413), ("grant_type=x".to_owned(), 400)] {
        let request = Request::post("/identity/token").body(Body::from(body)).unwrap();
        let said = world.raw(request).await.is(status).body;
        assert!(
            said["errorCode"].is_string() && said["context"]["requestId"].is_string(),
            "{said}"
        );
    }
}
