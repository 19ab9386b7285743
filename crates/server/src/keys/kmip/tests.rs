//! KMIP management, over the router.

use crate::testing::{World, envelope};
use claviger_domain::access::{Scope, ServiceRole};
use serde_json::{Value, json};

fn adapter(crk: &str) -> Value {
    envelope(json!({ "profile": "native_1.0", "profile_data": { "crk_id": crk } }))
}

fn pem() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2040, 1, 1);
    params.self_signed(&key).unwrap().pem()
}

#[tokio::test]
async fn an_adapter_with_its_certificates() {
    let w = World::new();
    let manager = w.manager.clone();
    let kmip = w.person("kmip", &[(ServiceRole::KmipAdapterManager, Scope::Everywhere)]);
    let writer = w.person("writer", &[(ServiceRole::Writer, Scope::Everywhere)]);
    let key = w.make_root(&manager, w.one, "root").await;
    let all = "/api/v2/kmip_adapters";
    w.ask(&writer, "GET", all, Value::Null).await.is(401);

    let made = w.ask(&kmip, "POST", all, adapter("root-alias")).await;
    assert_eq!(made.media_type, "application/vnd.ibm.kms.kmip_adapter+json");
    let made = made.is(201)["resources"][0].clone();
    assert_eq!(made["profile_data"]["crk_id"], *key);
    assert_eq!(made["created_by"], "IBMid-kmip");
    let name = made["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("kmip_adapter_"), "{name}");
    let path = format!("{all}/{}", made["id"].as_str().unwrap());
    for path in [&path, &format!("{all}/{name}")] {
        let seen = w.ask(&kmip, "GET", path, Value::Null).await.is(200);
        assert_eq!(seen["resources"][0], made);
    }
    let list = format!("{all}?limit=100&offset=0&totalCount=True&crk_id={key}");
    let list = w.ask(&kmip, "GET", &list, Value::Null).await.is(200);
    assert_eq!(list["metadata"]["totalCount"], 1);
    let other = format!("{all}?crk_id={}", w.one);
    let list = w.ask(&kmip, "GET", &other, Value::Null).await.is(200);
    assert_eq!(list["resources"], json!([]));
    w.ask(&kmip, "GET", &format!("{all}?limit=201"), Value::Null).await.is(400);

    let certificates = format!("{path}/certificates");
    let given = pem();
    let new = envelope(json!({ "certificate": given, "name": "host-1" }));
    let added = w.ask(&kmip, "POST", &certificates, new.clone()).await;
    assert_eq!(added.media_type, "application/vnd.ibm.kms.kmip_client_certificate+json");
    let added = added.is(201)["resources"][0].clone();
    assert_eq!(added["certificate"], *given);
    let list = w.ask(&kmip, "GET", &certificates, Value::Null).await.is(200);
    assert_eq!(list["resources"][0]["name"], "host-1");
    assert!(list["resources"][0].get("certificate").is_none());
    let again = w.ask(&kmip, "POST", &certificates, new).await;
    again.refused(409, "KMIP_CERTIFICATE_NOT_UNIQUE_ERR");
    let same = envelope(json!({ "certificate": pem(), "name": "host-1" }));
    let again = w.ask(&kmip, "POST", &certificates, same).await;
    again.refused(409, "KMIP_NAME_NOT_UNIQUE_ERR");
    let one = format!("{certificates}/host-1");
    assert_eq!(w.ask(&kmip, "GET", &one, Value::Null).await.is(200)["resources"][0], added);
    w.ask(&kmip, "DELETE", &one, Value::Null).await.is(204);
    w.ask(&kmip, "GET", &one, Value::Null).await.refused(404, "KMIP_CERTIFICATE_NOT_FOUND_ERR");

    let objects = format!("{path}/kmip_objects");
    let list = format!("{objects}?limit=200&state=1&state=2&state=");
    assert_eq!(w.ask(&kmip, "GET", &list, Value::Null).await.is(200)["resources"], json!([]));
    w.ask(&kmip, "GET", &format!("{objects}?state=9"), Value::Null).await.is(400);
    let object = format!("{objects}/{}", w.one);
    w.ask(&kmip, "GET", &object, Value::Null).await.refused(404, "KMIP_OBJECT_NOT_FOUND_ERR");
    w.ask(&kmip, "DELETE", &object, Value::Null).await.is(404);

    // The key stays as long as the adapter does, whatever is said.
    let key_path = format!("/api/v2/keys/{key}?force=true");
    let kept = w.ask(&manager, "DELETE", &key_path, Value::Null).await;
    kept.refused(409, "PROTECTED_RESOURCE_ERR");
    w.ask(&kmip, "POST", &certificates, envelope(json!({ "certificate": pem() }))).await.is(201);
    w.ask(&kmip, "DELETE", &path, Value::Null).await.is(204);
    w.ask(&kmip, "GET", &path, Value::Null).await.refused(404, "KMIP_ADAPTER_NOT_FOUND_ERR");
    w.ask(&manager, "DELETE", &key_path, Value::Null).await.is(204);
    for action in ["create", "delete", "list", "read"] {
        assert!(w.audited(&format!("kms.kmip-management.{action}")) > 0, "{action}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_an_adapter_is_told() {
    let w = World::new();
    let manager = w.manager.clone();
    let key = w.make_root(&manager, w.one, "root").await;
    let all = "/api/v2/kmip_adapters";
    let with = |field: &str, value: Value| {
        let mut body = adapter(&key);
        body["resources"][0][field] = value;
        body
    };
    for (body, code) in [
        (with("profile", json!("native_2.0")), "INVALID_FIELD_ERR"),
        (with("name", json!("two words")), "INVALID_FIELD_ERR"),
        (with("name", json!(w.one.to_string())), "INVALID_FIELD_ERR"),
        (with("name", json!("x".repeat(41))), "INVALID_FIELD_ERR"),
        (with("description", json!("x".repeat(241))), "INVALID_FIELD_ERR"),
        (with("profile_data", json!({})), "INVALID_FIELD_ERR"),
        (json!({}), "BAD_BODY_ERR"),
        (Value::Null, "BAD_BODY_ERR"),
    ] {
        w.ask(&manager, "POST", all, body).await.refused(400, code);
    }
    w.ask(&manager, "POST", all, adapter("nobody")).await.refused(404, "KEY_NOT_FOUND_ERR");
    let named = with("name", json!("mine"));
    w.ask(&manager, "POST", all, named.clone()).await.is(201);
    w.ask(&manager, "POST", all, named).await.refused(409, "KMIP_NAME_NOT_UNIQUE_ERR");
    let certificates = format!("{all}/mine/certificates");
    let two = format!("{}{}", pem(), pem());
    for pem in ["", "rubbish", &two, &"x".repeat(20_000)] {
        let body = envelope(json!({ "certificate": pem }));
        let refused = w.ask(&manager, "POST", &certificates, body).await;
        refused.refused(400, "INVALID_FIELD_ERR");
    }

    let path = format!("/api/v2/keys/{key}/actions/disable");
    w.ask(&manager, "POST", &path, Value::Null).await.is(204);
    let refused = w.ask(&manager, "POST", all, adapter(&key)).await;
    refused.refused(409, "KEY_ACTION_INVALID_STATE_ERR");
    let mut expiring = envelope(json!({
        "name": "ends", "extractable": false, "expirationDate": "2030-01-01T00:00:00Z",
    }));
    let made = w.ask(&manager, "POST", "/api/v2/keys", expiring.clone()).await.is(201);
    let ends = made["resources"][0]["id"].as_str().unwrap();
    w.ask(&manager, "POST", all, adapter(ends)).await.refused(400, "INVALID_FIELD_ERR");
    let allowed = format!("{all}?allowExpiringKey=true");
    w.ask(&manager, "POST", &allowed, adapter(ends)).await.is(201);
    expiring["resources"][0]["extractable"] = json!(true);
    let made = w.ask(&manager, "POST", "/api/v2/keys", expiring).await.is(201);
    let standard = made["resources"][0]["id"].as_str().unwrap();
    w.ask(&manager, "POST", all, adapter(standard)).await.refused(400, "KEY_ROOT_REQ_ERR");
}

#[tokio::test]
async fn an_instance_has_two_hundred_adapters_at_most() {
    let w = World::new();
    let manager = w.manager.clone();
    let key = w.make_root(&manager, w.one, "root").await;
    let all = "/api/v2/kmip_adapters";
    for _ in 0..super::EACH_MAX {
        w.ask(&manager, "POST", all, adapter(&key)).await.is(201);
    }
    w.ask(&manager, "POST", all, adapter(&key)).await.refused(409, "KMIP_QUOTA_ERR");
}
