//! Who may not see something does not learn whether it is there: byte for byte.

use super::*;
use std::sync::{Arc, Mutex};

/// Everything of an answer that a caller can compare, but for its moment.
async fn all(
    w: &World,
    token: &str,
    line: &str,
    instance: &str,
) -> (u16, Vec<(String, Vec<u8>)>, Vec<u8>) {
    let (method, path) = line.split_once(' ').unwrap();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {token}"))
        .header("bluemix-instance", instance)
        .header("correlation-id", "00000000-0000-4000-8000-000000000000");
    let body = r#"{"preventKeyDeletion": true}"#;
    let answer = w.raw(request.body(Body::from(body)).unwrap()).await;
    let headers = answer.headers.iter();
    let headers = headers.map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect();
    (answer.status, headers, answer.bytes.to_vec())
}

/// Every path that names a key; `{}` is the key.
const OF_A_KEY: [&str; 24] = [
    "GET /api/v2/keys/{}",
    "GET /api/v2/keys/{}/metadata",
    "GET /api/v2/keys/{}/versions",
    "GET /api/v2/keys/{}/policies",
    "GET /api/v2/keys/{}/registrations",
    "POST /api/v2/keys/{}/actions/wrap",
    "POST /api/v2/keys/{}/actions/unwrap",
    "POST /api/v2/keys/{}/actions/rewrap",
    "POST /api/v2/keys/{}/actions/rotate",
    "POST /api/v2/keys/{}/actions/disable",
    "POST /api/v2/keys/{}/actions/enable",
    "POST /api/v2/keys/{}/actions/setKeyForDeletion",
    "POST /api/v2/keys/{}/actions/unsetKeyForDeletion",
    "POST /api/v2/keys/{}/actions/sync",
    "POST /api/v2/keys/{}?action=wrap",
    "POST /api/v2/keys/{}/restore",
    "PUT /api/v2/keys/{}/policies",
    "PATCH /api/v2/keys/{}",
    "DELETE /api/v2/keys/{}",
    "DELETE /api/v2/keys/{}/purge",
    "POST /api/v2/keys/{}/aliases/another",
    "DELETE /api/v2/keys/{}/aliases/there-alias",
    "POST /api/v2/keys/{}/registrations/crn:v1:a:b:c:d:a%2Fe:f::",
    "DELETE /api/v2/keys/{}/registrations/crn:v1:a:b:c:d:a%2Fe:f::",
];

#[tokio::test]
async fn keys_that_are_forbidden_are_answered_as_keys_that_are_not() {
    let (w, admin) = world().await;
    let there = w.make_root(&admin, w.one, "there").await;
    let mine = w.make_root(&admin, w.one, "mine").await;
    let nobody = w.log_in(&w.api_key("nobody", &[])).await;
    let elsewhere = w.api_key("elsewhere", &[on(ServiceRole::Manager, Scope::Instance(w.two))]);
    let elsewhere = w.log_in(&elsewhere).await;
    let of_one = w.api_key("one", &[on(ServiceRole::Manager, Scope::Key(root(&w, &mine)))]);
    let of_one = w.log_in(&of_one).await;
    let ring = Scope::Ring(w.one, "other".to_owned());
    let of_ring = w.log_in(&w.api_key("ring", &[on(ServiceRole::Manager, ring)])).await;
    let gone = claviger_domain::id::KeyId::random().to_string();
    let one = w.one.to_string();
    for token in [&nobody, &elsewhere, &of_one, &of_ring] {
        for line in OF_A_KEY {
            let unknown = all(&w, token, &line.replace("{}", &gone), &one).await;
            assert_eq!(unknown.0, 401, "{line}");
            for known in [&there, "there-alias"] {
                let forbidden = all(&w, token, &line.replace("{}", known), &one).await;
                assert_eq!(forbidden, unknown, "{line}");
            }
            let no_alias = all(&w, token, &line.replace("{}", "no-alias"), &one).await;
            assert_eq!(no_alias, unknown, "{line}");
        }
    }
    // The same for whole instances.
    let none = claviger_domain::id::InstanceId::random().to_string();
    let lines = [
        "GET /api/v2/keys",
        "HEAD /api/v2/keys",
        "POST /api/v2/keys",
        "GET /api/v2/key_rings",
        "GET /api/v2/instance/policies",
        "GET /api/v2/keys/registrations",
        "POST /api/v2/import_token",
        "GET /api/v2/import_token",
        "GET /api/v2/kmip_adapters",
        "POST /api/v2/key_rings/x1",
        "DELETE /api/v2/key_rings/default",
        "GET /api/v2/instance/allowed_ip_port",
        "POST /api/v2/event_ack",
    ];
    for token in [&nobody, &elsewhere] {
        for line in lines {
            let (there, unknown) =
                (all(&w, token, line, &one).await, all(&w, token, line, &none).await);
            assert_eq!(there.0, 401, "{line}");
            assert_eq!(there, unknown, "{line}");
        }
    }
    for line in OF_A_KEY {
        let line = line.replace("{}", &there);
        assert_eq!(
            all(&w, &nobody, &line, &one).await,
            all(&w, &nobody, &line, &none).await,
            "{line}"
        );
    }
    // Who may list all of the instance learns which keys there are.
    let reader = w.api_key("reader", &[on(ServiceRole::Reader, Scope::Instance(w.one))]);
    let reader = w.log_in(&reader).await;
    w.ask(&reader, "GET", &format!("/api/v2/keys/{gone}/metadata"), Value::Null)
        .await
        .refused(404, "KEY_NOT_FOUND_ERR");
}

/// Nor by the work that it made: how long an answer takes tells nothing but what the same statements
/// find.
#[tokio::test]
async fn what_is_forbidden_costs_the_same_statements_as_what_is_not_there() {
    let (w, admin) = world().await;
    let there = w.make_root(&admin, w.one, "there").await;
    let mine = w.make_root(&admin, w.one, "mine").await;
    let elsewhere = w.api_key("elsewhere", &[on(ServiceRole::Manager, Scope::Instance(w.two))]);
    let of_one = w.api_key("one", &[on(ServiceRole::Manager, Scope::Key(root(&w, &mine)))]);
    let ring = Scope::Ring(w.one, "other".to_owned());
    let of_ring = w.api_key("ring", &[on(ServiceRole::Manager, ring)]);
    let mut tokens = Vec::new();
    for key in [w.api_key("nobody", &[]), elsewhere, of_one, of_ring] {
        tokens.push(w.log_in(&key).await);
    }
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let tell = said.clone();
    w.app.store.trace(move |sql| tell.lock().unwrap().push(sql.to_owned())).unwrap();
    let gone = claviger_domain::id::KeyId::random().to_string();
    let (one, none) = (w.one.to_string(), claviger_domain::id::InstanceId::random().to_string());
    let cost = async |token: &str, line: &str, key: &str, instance: &str| {
        said.lock().unwrap().clear();
        all(&w, token, &line.replace("{}", key), instance).await;
        std::mem::take(&mut *said.lock().unwrap())
    };
    let mut looked = 0;
    for token in &tokens {
        for line in OF_A_KEY {
            // Whoever asks for the first time is looked up himself.
            cost(token, line, &gone, &one).await;
            let unknown = cost(token, line, &gone, &one).await;
            looked += unknown.iter().filter(|sql| sql.contains("FROM keys")).count();
            assert_eq!(cost(token, line, &there, &one).await, unknown, "{line}");
            let no_alias = cost(token, line, "no-alias", &one).await;
            assert_eq!(cost(token, line, "there-alias", &one).await, no_alias, "{line}");
        }
    }
    assert!(looked > 0, "who has a role on another key makes the server look");
    for token in &tokens[..2] {
        for line in OF_A_KEY {
            let (there, unknown) =
                (cost(token, line, &there, &one).await, cost(token, line, &there, &none).await);
            assert_eq!(there, unknown, "{line}");
        }
    }
}

#[tokio::test]
async fn so_are_instances_and_clusters_where_a_role_is_on_another_one() {
    let (w, admin) = world().await;
    let token = w.log_in(&w.api_key("p", &[])).await;
    let cluster = claviger_domain::id::ClusterId::random();
    for on in [
        json!({"serviceName": "kms", "serviceInstance": w.one}),
        json!({"serviceName": "containers-kubernetes", "serviceInstance": cluster}),
    ] {
        w.policy(&admin, ("iam_id", "IBMid-p"), "Administrator", on).await;
    }
    let none = claviger_domain::id::InstanceId::random();
    for verb in ["GET", "PATCH", "DELETE"] {
        let line = |id| format!("{verb} /v2/resource_instances/{id}");
        let there = all(&w, &token, &line(w.two), "").await;
        assert_eq!(there.0, 401);
        assert_eq!(there, all(&w, &token, &line(none), "").await);
    }
    let unknown =
        w.ask(&token, "GET", &format!("/v2/getCluster?cluster={cluster}"), Value::Null).await;
    assert_eq!(unknown.status, 401, "only who sees all clusters learns that one is not there");
    w.ask(&admin, "GET", &format!("/v2/getCluster?cluster={cluster}"), Value::Null).await.is(404);
}
