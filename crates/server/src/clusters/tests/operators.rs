//! The operator's API: each refusal with its code, each answer in the shape that clients read.

use super::world::{By, START, World, code};
use axum::http::StatusCode;
use claviger_domain::access::PlatformRole;
use claviger_domain::id::{InstanceId, KeyId};
use claviger_domain::key::RootKey;
use claviger_store::events::EventKind;
use claviger_store::keys;
use claviger_wire::ks::{ClusterView, Crk, KmsInstance, KmsStatus};
use serde_json::{Value, json};

fn ask(cluster: &str, root: RootKey) -> Value {
    json!({
        "cluster": cluster, "instance_id": root.instance, "crk_id": root.key,
        "private_endpoint": true,
    })
}

async fn enable(world: &World, body: &Value) -> (u16, String) {
    let line = "POST /global/v2/enableKMS";
    let (status, value) = world.call(By::Token(&world.admin), line, body).await;
    let what = if status.is_success() { value.to_string() } else { code(&value).to_owned() };
    (status.as_u16(), what)
}

#[tokio::test]
async fn every_refusal_of_enable_has_its_code_and_changes_nothing() {
    let world = World::new();
    let (good, suspended) = (world.key("good", true), world.key("off", true));
    let (deleted, standard) = (world.key("gone", true), world.key("standard", false));
    let expired = world.key("expired", true);
    world.change(suspended, EventKind::Disable);
    world.change(deleted, EventKind::Delete);
    let set = world.app.store.tx("t", |tx| {
        let mut key = keys::get(tx, &expired)?.unwrap();
        key.expires = Some(START);
        keys::update(tx, &key)
    });
    set.unwrap();
    let (id, _) = world.cluster("prod", &["n1"]).await;
    let foreign = RootKey { instance: InstanceId::random(), key: good.key };
    let unknown = RootKey { instance: good.instance, key: KeyId::random() };
    let mut account = ask("prod", good);
    account["account_id"] = "another".into();
    let mut no_guid = ask("prod", good);
    no_guid["instance_id"] = "claviger-1".into();
    for (body, status, code) in [
        (ask("nowhere", good), 404, "E4041"),
        (ask("prod", foreign), 404, "E4042"),
        (ask("prod", unknown), 404, "E4043"),
        (ask("prod", standard), 400, "E4002"),
        (ask("prod", suspended), 422, "E4221"),
        (ask("prod", deleted), 422, "E4221"),
        (ask("prod", expired), 422, "E4221"),
        (account, 400, "E4000"),
        (no_guid, 400, "E4000"),
        (json!({ "cluster": "prod" }), 400, "E4000"),
    ] {
        assert_eq!(enable(&world, &body).await, (status, code.to_owned()), "{body}");
    }
    let status: KmsStatus = world.admin("GET /v3/clusters/prod/kms", &Value::Null).await;
    assert!(status.state.cluster.operation.is_none() && status.state.cluster.history.is_empty());

    // By id, with CRNs in place of GUIDs; then the same again, and another key meanwhile.
    let crn = |what: String| format!("crn:v1:bluemix:public:kms:local:a/x:{what}");
    let by_crn = json!({
        "cluster": id, "instance_id": crn(format!("{}::", good.instance)),
        "crk_id": crn(format!("{}:key:{}", good.instance, good.key)), "private_endpoint": false,
    });
    assert_eq!(enable(&world, &by_crn).await, (201, "{}".into()));
    assert_eq!(enable(&world, &by_crn).await, (200, "{}".into()), "as after a lost answer");
    let other = world.key("other", true);
    assert_eq!(enable(&world, &ask("prod", other)).await, (409, "E4091".into()));
    let status: KmsStatus = world.admin("GET /v3/clusters/prod/kms", &Value::Null).await;
    assert_eq!(status.view.kms.as_ref().unwrap().endpoint, "public");
    assert!(status.next.starts_with("wait: ") && status.next.contains("n1"), "{}", status.next);
    assert_eq!(status.features.len(), 9);

    // The same key by the other name is no other operation, and may be what this one waits for.
    assert_eq!(enable(&world, &ask("prod", good)).await.0, 201);
    let moved: KmsStatus = world.admin("GET /v3/clusters/prod/kms", &Value::Null).await;
    assert_eq!(moved.view.kms.as_ref().unwrap().endpoint, "private");
    let id = |status: &KmsStatus| status.state.cluster.operation.as_ref().map(|op| op.id);
    assert_eq!(id(&moved), id(&status));

    let acts = crate::audit::everything(&world.app);
    let tries = acts.iter().filter(|act| act.action == "containers-kubernetes.cluster-kms.enable");
    assert_eq!(tries.count(), 13, "each try that could be read is on record");
}

#[tokio::test]
async fn who_may_what() {
    let world = World::new();
    let root = world.key("root", true);
    world.cluster("prod", &["n1"]).await;
    let stranger = world.person("stranger", None);
    let viewer = world.person("viewer", Some(PlatformRole::Viewer));
    let operator = world.person("operator", Some(PlatformRole::Operator));
    let register =
        json!({ "name": "b", "server_url": "https://h", "ca": world.app.authority.pem() });
    let open = json!({ "instance_id": root.instance, "crk_id": root.key });
    let instance = format!("GET /v2/getCRKs?kms_instance={}", root.instance);
    // Who may at least: viewer, operator or administrator.
    for (line, body, least) in [
        ("GET /v2/getKMSInstances", Value::Null, 'v'),
        (&instance, Value::Null, 'v'),
        ("GET /v2/getCluster?cluster=prod", Value::Null, 'v'),
        ("GET /v2/vpc/getClusters", Value::Null, 'v'),
        ("GET /v1/clusters", Value::Null, 'v'),
        ("GET /v1/logging/prod/clusterkeyowner", Value::Null, 'v'),
        ("GET /v3/clusters/prod/kms", Value::Null, 'v'),
        ("POST /v3/clusters/prod/jobs", json!({ "kind": "census" }), 'o'),
        ("POST /v3/clusters", register, 'a'),
        ("POST /v3/clusters/prod/join-tokens", Value::Null, 'a'),
        ("GET /v3/clusters/prod/kubeconfig", Value::Null, 'a'),
        ("POST /v2/enableKMS", ask("prod", root), 'a'),
        ("POST /v3/clusters/prod/kms/operations", open, 'a'),
        ("POST /v3/clusters/prod/kms/operations/cancel", json!({}), 'a'),
    ] {
        let (status, value) = world.call(By::Nobody, line, &body).await;
        assert_eq!((status, code(&value)), (StatusCode::UNAUTHORIZED, "E0001"), "{line}");
        let mut may = vec![(&stranger, false), (&viewer, least == 'v')];
        may.extend([(&operator, least != 'a'), (&world.admin, true)]);
        for (token, may) in may {
            let (status, value) = world.call(By::Token(token), line, &body).await;
            if may {
                assert!(status.is_success(), "{line}: {status} {value}");
            } else {
                let refused = (status, code(&value));
                assert_eq!(refused, (StatusCode::UNAUTHORIZED, "E4031"), "{line}");
                assert!(value["description"].as_str().unwrap().contains("lacks platform role"));
            }
        }
    }
}

#[tokio::test]
async fn what_can_be_registered() {
    let world = World::new();
    let ca = world.app.authority.pem();
    let with =
        |name: &str, url: &str, ca: &str| json!({ "name": name, "server_url": url, "ca": ca });
    for bad in [
        with("", "https://h", &ca),
        with("Upper", "https://h", &ca),
        with("abcdefghij0123456789", "https://h", &ca),
        with("a", "http://h", &ca),
        with("a", "https://", &ca),
        with("a", "https://h\ninjected: true", &ca),
        with("a", "https://h", "no certificate"),
        json!({ "name": "a", "server_url": "https://h", "ca": ca, "admin_kubeconfig": "text" }),
        json!({ "name": "a" }),
        json!([]),
    ] {
        let (status, value) = world.call(By::Token(&world.admin), "POST /v3/clusters", &bad).await;
        assert_eq!((status, code(&value)), (StatusCode::BAD_REQUEST, "E4000"), "{bad}");
    }
    let long = vec![b'a'; 200 * 1024];
    let status = world.send(By::Token(&world.admin), "POST /v3/clusters", long).await.status();
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    world.register("a").await;
    let (status, value) = world
        .call(By::Token(&world.admin), "POST /v3/clusters", &with("a", "https://h", &ca))
        .await;
    assert_eq!((status, code(&value)), (StatusCode::CONFLICT, "E4094"), "{value}");
}

#[tokio::test]
async fn a_stored_kubeconfig_comes_back_sealed_meanwhile_and_else_one_without_credentials() {
    let world = World::new();
    let secret = "apiVersion: v1\nclusters: [{cluster: {server: https://h}}]\nusers: [TOPSECRET]\n";
    let ask = json!({
        "name": "a", "server_url": "https://h", "ca": world.app.authority.pem(),
        "admin_kubeconfig": secret,
    });
    let _: Value = world.admin("POST /v3/clusters", &ask).await;
    let line = "GET /v3/clusters/a/kubeconfig";
    let (_, text) = world.call(By::Token(&world.admin), line, &Value::Null).await;
    assert_eq!(text, secret);
    let copy = tempfile::tempdir().unwrap();
    claviger_store::copy(world.app.store.path(), &copy.path().join("db")).unwrap();
    let bytes = std::fs::read(copy.path().join("db")).unwrap();
    assert!(!bytes.windows(9).any(|w| w == b"TOPSECRET"), "sealed in the database");

    world.register("b").await;
    let (_, text) =
        world.call(By::Token(&world.admin), "GET /v3/clusters/b/kubeconfig", &Value::Null).await;
    let text = text.as_str().unwrap();
    assert!(text.contains("server: \"https://127.0.0.1:6443\"") && text.contains("users: []"));
}

#[tokio::test]
async fn lists_and_views_in_the_shape_that_clients_read() {
    let world = World::new();
    let root = world.key("root", true);
    world.key("standard", false);
    let (id, _) = world.cluster("prod", &["n1"]).await;
    world.use_key(root, &id);
    let instances: Vec<KmsInstance> = world.admin("GET /v2/getKMSInstances", &Value::Null).await;
    assert_eq!(instances.len(), 2);
    assert_eq!((instances[0].service.as_str(), instances[0].region.as_str()), ("kms", "local"));
    let line = format!("GET /v2/getCRKs?kms_instance={}", root.instance);
    let crks: Vec<Crk> = world.admin(&line, &Value::Null).await;
    assert_eq!(crks.len(), 1);
    assert_eq!(
        (crks[0].crk_id, &crks[0].clusters, &*crks[0].state),
        (root.key, &vec!["prod".into()], "active")
    );
    world.change(root, EventKind::Delete);
    let crks: Vec<Crk> = world.admin(&line, &Value::Null).await;
    assert_eq!(crks[0].state, "destroyed", "shown while a cluster is registered on it");

    let by_name: Value =
        world.admin("GET /global/v2/getCluster?v1-compatible&cluster=prod", &Value::Null).await;
    let by_id: Value =
        world.admin(&format!("GET /v2/getCluster?cluster={id}&v1-compatible"), &Value::Null).await;
    assert_eq!(by_name, by_id);
    assert_eq!(by_name["features"]["keyProtectEnabled"], false);
    assert_eq!(by_name["lifecycle"]["masterStatus"], "Ready");
    assert_eq!(by_name["lifecycle"]["masterState"], "deployed");
    assert_eq!(by_name["createdDate"], "2027-01-15T08:00:00Z");
    assert_eq!(by_name["crn"].as_str().unwrap().split(':').count(), 10);
    assert!(by_name.get("vpcs").is_none(), "absent, or Terraform reads its first entry");
    let list: Vec<ClusterView> = world.admin("GET /v1/clusters", &Value::Null).await;
    assert_eq!(list.len(), 1);
    let owner: Value = world.admin("GET /v1/logging/prod/clusterkeyowner", &Value::Null).await;
    assert_eq!(owner["id"], format!("crn-{}", by_name["crn"].as_str().unwrap()));
    let (status, value) =
        world.call(By::Token(&world.admin), "GET /v2/getCluster", &Value::Null).await;
    assert_eq!((status, code(&value)), (StatusCode::BAD_REQUEST, "E4000"));
}
