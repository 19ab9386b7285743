//! Policies: how they are written and read, and what they do.

use super::*;
use crate::http::network::Network;
use crate::listen::Peer;

fn policies(resources: Value) -> Value {
    let total = resources.as_array().unwrap().len();
    json!({
        "metadata": {"collectionType": "application/vnd.ibm.kms.policy+json", "collectionTotal": total},
        "resources": resources,
    })
}

fn instance(kind: &str, data: Value) -> Value {
    policies(json!([{"policy_type": kind, "policy_data": data}]))
}

impl World {
    async fn set(&self, kind: &str, data: Value) {
        let line = format!("PUT /instance/policies?policy={kind}");
        self.call(&line, &instance(kind, data)).await.is(204);
    }

    /// A manager's request from this address by this network.
    async fn from(&self, token: &str, line: &str, address: &str, network: Network) -> Answer {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/api/v2{path}"))
            .header("authorization", format!("bearer {token}"))
            .header("bluemix-instance", self.one.to_string())
            .header("x-forwarded-for", "192.0.2.7")
            .body(Body::empty())
            .unwrap();
        request.extensions_mut().insert(Peer(address.trim_matches(['[', ']']).parse().unwrap()));
        request.extensions_mut().insert(network);
        self.raw(request).await
    }
}

#[tokio::test]
async fn a_key_has_the_policies_that_were_written() {
    let w = World::new();
    let id = w.root().await;
    let path = format!("/keys/{id}/policies");
    let none = w.call(&format!("GET {path}"), &Value::Null).await.is(200);
    assert_eq!(none.media_type, "application/vnd.ibm.kms.policy+json");
    assert_eq!(
        (&none.body["metadata"]["collectionTotal"], &none.body["resources"]),
        (&json!(0), &json!([]))
    );

    let put = format!("PUT {path}");
    let rotation = policies(
        json!([{"type": "application/vnd.ibm.kms.policy+json", "rotation": {"interval_month": 3}}]),
    );
    let set = w.call(&format!("{put}?policy=rotation"), &rotation).await.is(200);
    let policy = set.key().clone();
    assert_eq!(policy["rotation"], json!({"enabled": true, "interval_month": 3}));
    let crn = policy["crn"].as_str().unwrap();
    assert!(crn.ends_with(&format!(":policy:{}", policy["id"].as_str().unwrap())), "{crn}");
    assert_eq!(crn.split(':').count(), 10);

    // A switch alone keeps the interval, the identifier and who made it.
    w.advance(5);
    let off = w.call(&put, &policies(json!([{"rotation": {"enabled": false}}]))).await.is(200);
    assert_eq!(off.key()["rotation"], json!({"enabled": false, "interval_month": 3}));
    for same in ["id", "creationDate", "createdBy"] {
        assert_eq!(off.key()[same], policy[same], "{same}");
    }
    assert_eq!(off.key()["lastUpdateDate"], "2027-01-15T08:00:05Z");

    // What was read can be written back.
    w.call(&put, &policies(json!([off.key().clone()]))).await.is(200);
    // One that is switched off from the start counts as written.
    let both = policies(
        json!([{"rotation": {"interval_month": 12}}, {"dualAuthDelete": {"enabled": false}}]),
    );
    w.call(&put, &both).await.is(200);
    let all = w.call(&format!("GET {path}"), &Value::Null).await.is(200);
    assert_eq!(all.body["metadata"]["collectionTotal"], 2);
    let one = w.call(&format!("GET {path}?policy=dualAuthDelete"), &Value::Null).await.is(200);
    assert_eq!(one.body["resources"].as_array().unwrap().len(), 1);
    assert_eq!(one.key()["dualAuthDelete"], json!({"enabled": false}));
    let key = w.call(&format!("GET /keys/{id}/metadata"), &Value::Null).await;
    assert_eq!(key.key()["rotation"], json!({"enabled": true, "interval_month": 12}));
    assert_eq!(key.key()["dualAuthDelete"], json!({"enabled": false}));
    assert_eq!(key.key()["lastUpdateDate"], "2027-01-15T08:00:05Z");

    // On, and never off again.
    w.call(&put, &policies(json!([{"dualAuthDelete": {"enabled": true}}]))).await.is(200);
    w.call(&put, &policies(json!([{"dualAuthDelete": {"enabled": false}}])))
        .await
        .refused(409, "DUAL_AUTH_DELETE_ERR");
    assert_eq!(w.audited("kms.policies.read"), 3);
    assert_eq!(w.audited("kms.policies.write"), 6);
}

#[tokio::test]
async fn bad_key_policies_are_told_from_each_other() {
    let w = World::new();
    let id = w.root().await;
    let put = format!("PUT /keys/{id}/policies");
    let two = json!({"metadata": {"collectionType": "x", "collectionTotal": 2}, "resources": [{"rotation": {"interval_month": 1}}]});
    let rotation = |months: i64| policies(json!([{"rotation": {"interval_month": months}}]));
    let unknown = policies(json!([{"rotation": {"interval_month": 1, "interval_days": 2}}]));
    let rows = [
        ("", two, "COLLECTION_TOTAL_MISMATCH_ERR"),
        ("", Value::Null, "BAD_BODY_ERR"),
        ("", policies(json!([])), "NUM_COLLECTION_RESOURCE_ERR"),
        ("?policy=dualAuthDelete", rotation(1), "BODY_QUERY_PARAM_MISMATCH_ERR"),
        ("?policy=metrics", rotation(1), "INVALID_QUERY_PARAM_ERR"),
        (
            "?policy=rotation",
            policies(
                json!([{"rotation": {"interval_month": 1}}, {"dualAuthDelete": {"enabled": true}}]),
            ),
            "NUM_COLLECTION_RESOURCE_ERR",
        ),
        (
            "",
            policies(
                json!([{"rotation": {"interval_month": 1}}, {"rotation": {"interval_month": 2}}]),
            ),
            "NUM_COLLECTION_RESOURCE_ERR",
        ),
        (
            "",
            policies(
                json!([{"rotation": {"interval_month": 1}, "dualAuthDelete": {"enabled": true}}]),
            ),
            "BAD_BODY_ERR",
        ),
        ("", policies(json!([{"type": "x"}])), "BAD_BODY_ERR"),
        // One client says -1 for an interval of nothing.
        ("", rotation(-1), "INVALID_FIELD_ERR"),
        ("", rotation(0), "INVALID_FIELD_ERR"),
        ("", rotation(13), "INVALID_FIELD_ERR"),
        ("", policies(json!([{"rotation": {"enabled": true}}])), "INVALID_FIELD_ERR"),
        ("", policies(json!([{"dualAuthDelete": {}}])), "INVALID_FIELD_ERR"),
        ("", unknown.clone(), "BAD_BODY_ERR"),
    ];
    for (query, body, code) in rows {
        w.call(&format!("{put}{query}"), &body).await.refused(400, code);
    }
    let said = w.call(&put, &unknown).await;
    let message = said.key()["reasons"][0]["message"].as_str().unwrap().to_owned();
    assert_eq!(message, "json: unknown field \"interval_days\"");

    let standard = w.create(json!({"name": "std", "extractable": true})).await.is(201).id();
    w.call(&format!("PUT /keys/{standard}/policies"), &rotation(1))
        .await
        .refused(400, "KEY_ROOT_REQ_ERR");
    let imported =
        w.create(json!({"name": "imp", "payload": STANDARD.encode([1; 16])})).await.is(201).id();
    w.call(&format!("PUT /keys/{imported}/policies"), &rotation(1))
        .await
        .refused(400, "KEY_PAYLOAD_REQ_ERR");
    let writer = w.person("writer", &[(ServiceRole::Writer, Scope::Instance(w.one))]);
    w.by(&writer, &put, rotation(1).to_string()).await.is(401);
    w.by(&writer, &format!("GET /keys/{id}/policies"), "").await.is(401);
    let left = w.call(&format!("GET /keys/{id}/policies"), &Value::Null).await;
    assert_eq!(left.body["resources"], json!([]), "what is refused changes nothing");
}

#[tokio::test]
async fn an_instance_has_the_policies_that_were_written() {
    let w = World::new();
    let get = "GET /instance/policies";
    assert_eq!(w.call(get, &Value::Null).await.is(200).body["resources"], json!([]));
    let many = policies(json!([
        {"policy_type": "dualAuthDelete", "policy_data": {"enabled": true}},
        {"policy_type": "metrics", "policy_data": {"enabled": true}},
        {"policy_type": "rotation", "policy_data": {"enabled": true, "attributes": {"interval_month": 2}}},
        {"policy_type": "allowedNetwork", "policy_data": {"enabled": true, "attributes": {"allowed_network": "public-and-private"}}},
        {"policy_type": "keyCreateImportAccess", "policy_data": {"enabled": true, "attributes": {"import_root_key": false}}},
        {"policy_type": "allowedIP", "policy_data": {"enabled": false, "attributes": {"allowed_ip": ["x"]}}},
    ]));
    w.call("PUT /instance/policies", &many).await.is(204);
    let all = w.call(get, &Value::Null).await.is(200);
    assert_eq!(all.body["metadata"]["collectionTotal"], 6);
    let one = w.call(&format!("{get}?policy=keyCreateImportAccess"), &Value::Null).await.is(200);
    let want = json!({"enabled": true, "attributes": {
        "create_root_key": true, "create_standard_key": true, "import_root_key": false,
        "import_standard_key": true, "enforce_token": false}});
    assert_eq!(one.key()["policy_data"], want, "what is left out has its default");
    for field in ["creationDate", "createdBy", "lastUpdated", "updatedBy"] {
        assert!(one.key()[field].is_string(), "{field}");
    }
    // Disabling wipes attributes.
    w.set("rotation", json!({"enabled": false})).await;
    let one = w.call(&format!("{get}?policy=rotation"), &Value::Null).await.is(200);
    assert_eq!(one.key()["policy_data"], json!({"enabled": false}));
    assert_eq!(w.audited("kms.instance-policies.write"), 2);
    assert_eq!(w.audited("kms.instance-policies.read"), 4);
}

#[tokio::test]
async fn bad_instance_policies_are_told_from_each_other() {
    let w = World::new();
    let on = |attributes: Value| json!({"enabled": true, "attributes": attributes});
    let dual = json!({"policy_type": "dualAuthDelete", "policy_data": {"enabled": true}});
    let rows = [
        (
            "",
            json!({"metadata": {"collectionType": "x", "collectionTotal": 3}, "resources": [dual]}),
            "COLLECTION_TOTAL_MISMATCH_ERR",
        ),
        ("?policy=metrics", policies(json!([dual])), "BODY_QUERY_PARAM_MISMATCH_ERR"),
        ("", policies(json!([dual, dual])), "NUM_COLLECTION_RESOURCE_ERR"),
        (
            "?policy=dualAuthDelete",
            policies(json!([dual, {"policy_type": "metrics", "policy_data": {"enabled": true}}])),
            "NUM_COLLECTION_RESOURCE_ERR",
        ),
        ("?policy=colour", policies(json!([dual])), "INVALID_QUERY_PARAM_ERR"),
        ("", instance("colour", json!({"enabled": true})), "INVALID_FIELD_ERR"),
        ("", instance("metrics", json!({})), "INVALID_FIELD_ERR"),
        ("", instance("metrics", on(json!({"x": 1}))), "BAD_BODY_ERR"),
        (
            "",
            instance("metrics", json!({"enabled": false, "attributes": {"x": 1}})),
            "BAD_BODY_ERR",
        ),
        ("", instance("dualAuthDelete", json!({"enabled": true, "x": 1})), "BAD_BODY_ERR"),
        ("", instance("rotation", on(json!({"interval_month": 13}))), "INVALID_FIELD_ERR"),
        ("", instance("rotation", on(json!({}))), "INVALID_FIELD_ERR"),
        (
            "",
            instance("rotation", json!({"enabled": false, "attributes": {"interval_month": 1}})),
            "INVALID_FIELD_ERR",
        ),
        ("", instance("allowedNetwork", json!({"enabled": true})), "INVALID_FIELD_ERR"),
        (
            "",
            instance("allowedNetwork", on(json!({"allowed_network": "public-only"}))),
            "INVALID_FIELD_ERR",
        ),
        ("", instance("allowedIP", on(json!({"allowed_ip": []}))), "INVALID_FIELD_ERR"),
        ("", instance("allowedIP", on(json!({"allowed_ip": ["192.0.2.1"]}))), "INVALID_FIELD_ERR"),
        (
            "",
            instance("allowedIP", on(json!({"allowed_ip": vec!["10.0.0.0/8"; 1001]}))),
            "INVALID_FIELD_ERR",
        ),
        ("", instance("keyCreateImportAccess", on(json!({"create_all": true}))), "BAD_BODY_ERR"),
    ];
    for (query, body, code) in rows {
        let line = format!("PUT /instance/policies{query}");
        w.call(&line, &body).await.refused(400, code);
    }
    let writer = w.person("writer", &[(ServiceRole::Writer, Scope::Instance(w.one))]);
    w.by(&writer, "PUT /instance/policies", policies(json!([dual])).to_string()).await.is(401);
    assert_eq!(w.call("GET /instance/policies", &Value::Null).await.body["resources"], json!([]));
}

#[tokio::test]
async fn the_instance_says_which_keys_may_be_made() {
    let w = World::new();
    let material = STANDARD.encode([7; 32]);
    let root = json!({"name": "root", "extractable": false});
    let standard = json!({"name": "std", "extractable": true});
    let import_root = json!({"name": "root", "extractable": false, "payload": material});
    let import_standard = json!({"name": "std", "extractable": true, "payload": material});
    let all = [
        ("create_root_key", &root),
        ("create_standard_key", &standard),
        ("import_root_key", &import_root),
        ("import_standard_key", &import_standard),
    ];
    let code = "KEY_CREATE_IMPORT_ACCESS_ERR";
    let imported = w.create(import_root.clone()).await.is(201).id();
    for (forbidden, _) in all {
        w.set("keyCreateImportAccess", json!({"enabled": true, "attributes": {forbidden: false}}))
            .await;
        for (attribute, key) in all {
            let answer = w.create(key.clone()).await;
            if attribute == forbidden {
                answer.refused(409, code);
                // It comes before anything else that is wrong.
                let mut bad = key.clone();
                bad["name"] = json!("x");
                w.create(bad).await.refused(409, code);
                let line = "POST /keys_with_policy_overrides";
                w.call(line, &envelope(key.clone())).await.refused(409, code);
            } else {
                answer.is(201);
            }
        }
    }
    w.set("keyCreateImportAccess", json!({"enabled": true, "attributes": {"enforce_token": true}}))
        .await;
    w.create(import_root.clone()).await.refused(409, code);
    w.create(import_standard.clone()).await.refused(409, code);
    // An empty field is none, here as where the material is read.
    for (key, empty) in [(&import_root, "iv"), (&import_standard, "encryptedNonce")] {
        let mut key = key.clone();
        key[empty] = json!("");
        w.create(key).await.refused(409, code);
    }
    let rotate = format!("POST /keys/{imported}/actions/rotate");
    w.call(&rotate, &json!({"payload": material})).await.refused(409, code);
    w.create(root.clone()).await.is(201);
    w.set("keyCreateImportAccess", json!({"enabled": false})).await;
    w.create(import_root).await.is(201);
}

#[tokio::test]
async fn new_keys_have_what_the_instance_says_or_what_comes_with_them() {
    let w = World::new();
    let before = w.root().await;
    w.set("dualAuthDelete", json!({"enabled": true})).await;
    w.set("rotation", json!({"enabled": true, "attributes": {"interval_month": 4}})).await;
    let root = w.create(json!({"name": "root", "extractable": false})).await.is(201);
    assert_eq!(root.key()["rotation"], json!({"enabled": true, "interval_month": 4}));
    assert_eq!(root.key()["dualAuthDelete"], json!({"enabled": true, "keySetForDeletion": false}));
    assert!(root.key().get("lastUpdateDate").is_none(), "still a fresh key");
    let standard = w.create(json!({"name": "std", "extractable": true})).await.is(201);
    assert!(standard.key().get("rotation").is_none());
    assert_eq!(standard.key()["dualAuthDelete"]["enabled"], true);
    let imported = json!({"name": "imp", "payload": STANDARD.encode([1; 32])});
    assert!(w.create(imported).await.is(201).key().get("rotation").is_none());
    let listed = w.call(&format!("GET /keys/{}/policies", root.id()), &Value::Null).await;
    assert_eq!(listed.body["metadata"]["collectionTotal"], 2);
    let old = w.call(&format!("GET /keys/{before}/metadata"), &Value::Null).await;
    assert!(old.key().get("rotation").is_none(), "only later keys heed it");

    let line = "POST /keys_with_policy_overrides";
    let made = w.call(line, &envelope(json!({"name": "own"}))).await.is(201);
    assert_eq!(made.media_type, "application/vnd.ibm.kms.key+json");
    assert!(made.key().get("rotation").is_none());
    assert_eq!(made.key()["dualAuthDelete"]["enabled"], false);
    let own = json!({"name": "own", "rotation": {"interval_month": 1}, "dualAuthDelete": {"enabled": true}});
    let made = w.call(line, &envelope(own.clone())).await.is(201);
    assert_eq!(made.key()["rotation"], json!({"enabled": true, "interval_month": 1}));
    assert_eq!(made.key()["dualAuthDelete"]["enabled"], true);
    for (bad, code) in [
        (
            json!({"name": "own", "extractable": true, "rotation": {"interval_month": 1}}),
            "KEY_ROOT_REQ_ERR",
        ),
        (
            json!({"name": "own", "payload": STANDARD.encode([1; 32]), "rotation": {"interval_month": 1}}),
            "KEY_PAYLOAD_REQ_ERR",
        ),
        (json!({"name": "own", "rotation": {"interval_month": 0}}), "INVALID_FIELD_ERR"),
        (json!({"name": "own", "dualAuthDelete": {}}), "INVALID_FIELD_ERR"),
    ] {
        w.call(line, &envelope(bad)).await.refused(400, code);
    }
    let writer = w.person("writer", &[(ServiceRole::Writer, Scope::Instance(w.one))]);
    w.by(&writer, line, envelope(own).to_string()).await.is(401);
    assert_eq!(w.audited("kms.secrets-with-policy-overrides.create"), 2 + 4 + 1);
}

#[tokio::test]
async fn only_the_socket_says_where_a_request_comes_from() {
    let w = World::new();
    let id = w.root().await;
    let (_, _, cluster) = w.cluster(&id);
    let stranger = w.person("stranger", &[]);
    let port = "GET /instance/allowed_ip_port";
    assert_eq!(w.call(port, &Value::Null).await.is(200).body["resources"], json!([]));
    w.set(
        "allowedIP",
        json!({"enabled": true, "attributes": {"allowed_ip": ["192.0.2.0/24", "2001:db8::/32"]}}),
    )
    .await;

    let m = &w.manager;
    let private = Network::Private;
    for (address, status) in [
        ("192.0.2.200", 200),
        ("[::ffff:192.0.2.200]", 200),
        ("[2001:db8::1]", 200),
        ("192.0.3.1", 401),
        ("[2001:db9::1]", 401),
    ] {
        let answer = w.from(m, "GET /keys", address, private).await.is(status);
        assert_eq!(answer.key().get("reasons"), None, "a 401 gives no reasons");
        w.from(m, &format!("POST /keys/{id}/actions/wrap"), address, private).await.is(status);
        w.from(m, "GET /instance/policies", address, private).await.is(status);
    }
    // Whoever came by no socket came from nowhere that is allowed.
    w.call("GET /keys", &Value::Null).await.is(401);
    // A service that calls as its own resource is not bound; asking for the port is not either.
    w.from(&cluster, &format!("GET /keys/{id}/metadata"), "192.0.3.1", private).await.is(200);
    let found = w.from(m, port, "192.0.3.1", private).await.is(200);
    assert_eq!(found.media_type, "application/vnd.ibm.kms.allowed_ip_metadata+json");
    assert_eq!(found.body["resources"], json!([{"private_endpoint_port": 443}]));
    w.from(&stranger, port, "192.0.3.1", private).await.is(401);
}

#[tokio::test]
async fn both_network_policies_must_pass() {
    let w = World::new();
    w.root().await;
    let stranger = w.person("stranger", &[]);
    let (m, at) = (&w.manager, "192.0.2.1");
    w.from(m, "GET /keys", at, Network::Public).await.is(200);
    w.set(
        "allowedNetwork",
        json!({"enabled": true, "attributes": {"allowed_network": "private-only"}}),
    )
    .await;
    w.from(m, "GET /keys", at, Network::Public).await.refused(403, "CONFIG_RULE_CONFLICT_ERR");
    w.from(&stranger, "GET /keys", at, Network::Public).await.is(401);
    w.from(m, "GET /keys", at, Network::Private).await.is(200);
    w.set("allowedIP", json!({"enabled": true, "attributes": {"allowed_ip": ["192.0.3.0/24"]}}))
        .await;
    w.from(m, "GET /keys", at, Network::Private).await.is(401);
    w.from(m, "GET /keys", "192.0.3.1", Network::Private).await.is(200);
    w.from(m, "GET /keys", "192.0.3.1", Network::Public).await.is(403);
}
