//! What lets a cluster use a root key: made by enabling, seen as a policy, gone when revoked.

use super::world::{By, World};
use crate::http::auth::Node;
use axum::http::{StatusCode, header};
use claviger_domain::access::{PlatformRole, Scope, ServiceRole};
use claviger_domain::id::{ClusterId, PolicyId};
use claviger_domain::key::RootKey;
use claviger_domain::policy::{Policy, Role, Subject, Target};
use claviger_store::access::{self, Stamp, Stored};
use claviger_store::iam::{self, Grant};
use claviger_store::meta;
use claviger_wire::iam::GRANT_NODE;
use claviger_wire::ks::{FeatureRow, KeyOwner, KmsStatus, Registered};
use serde_json::{Value, json};

impl World {
    /// A person with the platform role Administrator and these service roles on keys.
    fn operator(&self, name: &str, on_keys: &[Scope]) -> String {
        let token = self.person(name, None);
        let reader =
            |scope: &Scope| Grant::Service { role: ServiceRole::Reader, scope: scope.clone() };
        let platform = Grant::Platform(PlatformRole::Administrator);
        let grants: Vec<Grant> = on_keys.iter().map(reader).chain([platform]).collect();
        let iam_id = format!("IBMid-{name}");
        let now = self.now();
        let given = self.app.store.tx("t", |tx| {
            grants
                .iter()
                .try_for_each(|grant| iam::add_grant(tx, &iam_id, grant, "t", now).map(drop))
        });
        given.unwrap();
        token
    }

    async fn enable(&self, token: &str, root: RootKey) -> (StatusCode, Value) {
        let ask = json!({"cluster": "prod", "instance_id": root.instance, "crk_id": root.key});
        self.call(By::Token(token), "POST /v2/enableKMS", &ask).await
    }

    async fn authorizations(&self) -> Vec<Value> {
        let line = "GET /v1/policies?type=authorization";
        let list: Value = self.admin(line, &Value::Null).await;
        list["policies"].as_array().unwrap().clone()
    }

    /// Wraps something of a cluster as a node's token says; the status and the answer.
    async fn wrap(&self, token: &str, cluster: &ClusterId, root: RootKey) -> (StatusCode, Value) {
        let request = axum::http::Request::post(format!("/api/v2/keys/{}/actions/wrap", root.key))
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header("bluemix-instance", root.instance.to_string());
        let body = json!({"aad": ["claviger kek 1", cluster, "1"]}).to_string();
        self.answer(request.body(axum::body::Body::from(body)).unwrap()).await
    }

    async fn node_token(&self, node: &Node) -> String {
        let form = format!("grant_type={GRANT_NODE}").into_bytes();
        let given = self.send(By::Node(node), "POST /identity/token", form).await;
        let given = self.read(given).await.1;
        given["access_token"].as_str().unwrap().to_owned()
    }

    fn give(&self, iam_id: &str, role: Role, target: Target) {
        let subject = Subject::Principal(iam_id.to_owned());
        let policy = Policy::new(PolicyId::random(), subject, vec![role], target).unwrap();
        let stored = Stored { policy, stamp: Stamp::new("t", self.now()) };
        self.app.store.tx("t", |tx| access::add(tx, &stored)).unwrap();
    }

    async fn missing(&self) -> usize {
        let status: KmsStatus = self.admin("GET /v3/clusters/prod/kms", &Value::Null).await;
        let lacks = |row: &&FeatureRow| row.because.contains("claviger iam authorization create");
        status.features.iter().filter(lacks).count()
    }
}

#[tokio::test]
async fn only_who_could_unwrap_himself_lends_a_key_to_a_cluster() {
    let world = World::new();
    let (root, other) = (world.key("root", true), world.key("other", true));
    world.cluster("prod", &["n1"]).await;
    let without = world.operator("without", &[]);
    let (status, known) = world.enable(&without, root).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{known}");
    let gone = RootKey { key: claviger_domain::id::KeyId::random(), ..root };
    let (status, unknown) = world.enable(&without, gone).await;
    let told = |value: &Value, key: RootKey| {
        value["description"].as_str().unwrap().replace(&key.key.to_string(), "KEY")
    };
    assert_eq!((status, told(&unknown, gone)), (StatusCode::UNAUTHORIZED, told(&known, root)));
    let of_other = world.operator("of-other", &[Scope::Key(other)]);
    assert_eq!(world.enable(&of_other, root).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(world.authorizations().await, [Value::Null; 0], "nothing was made");

    let of_key = world.operator("of-key", &[Scope::Key(root)]);
    assert_eq!(world.enable(&of_key, root).await.0, StatusCode::CREATED);
    let made = world.authorizations().await;
    assert_eq!((made.len(), &made[0]["created_by_id"]), (1, &json!("IBMid-of-key")));
    assert_eq!(made[0]["roles"][0]["display_name"], "Reader");
    let acts = crate::audit::everything(&world.app);
    let record = acts.iter().rev().find(|act| act.action == "iam-am.policy.create").unwrap();
    assert_eq!(record.target, format!("policy:{}", made[0]["id"].as_str().unwrap()));
    assert_eq!(record.who, "IBMid-of-key");
    assert!(record.data.change.is_some());
    let named = |at: &str, name: &str| -> Value {
        let all = made[0][at][0]["attributes"].as_array().unwrap();
        all.iter().find(|a| a["name"] == name).unwrap()["value"].clone()
    };
    assert_eq!(named("subjects", "serviceName"), "containers-kubernetes");
    assert_eq!(named("resources", "serviceInstance"), json!(root.instance));
    assert_eq!(named("resources", "resource"), json!(root.key));
}

#[tokio::test]
async fn a_revoked_authorization_stops_the_cluster_with_the_reason() {
    let world = World::new();
    let (root, other) = (world.key("root", true), world.key("other", true));
    let (id, nodes) = world.cluster("prod", &["n1"]).await;
    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    let form = format!("grant_type={GRANT_NODE}").into_bytes();
    let given = world.send(By::Node(&nodes[0]), "POST /identity/token", form).await;
    let given = world.read(given).await.1;
    assert_eq!(given["refresh_token"], "not_supported");
    let node = given["access_token"].as_str().unwrap();
    assert_eq!(world.wrap(node, &id, root).await.0, StatusCode::OK);
    assert_eq!(world.wrap(node, &id, other).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(world.missing().await, 0);

    let policy = world.authorizations().await.remove(0);
    let line = format!("DELETE /v1/policies/{}", policy["id"].as_str().unwrap());
    let (status, _) = world.call(By::Token(&world.admin), &line, &Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, refused) = world.wrap(node, &id, root).await;
    let reason = &refused["resources"][0]["reasons"][0];
    assert_eq!(
        (status, &reason["code"]),
        (StatusCode::FORBIDDEN, &json!("AUTHORIZATION_MISSING_ERR"))
    );
    assert!(reason["message"].as_str().unwrap().contains("claviger iam authorization create"));
    assert_eq!(
        world.wrap(node, &id, other).await.0,
        StatusCode::UNAUTHORIZED,
        "no oracle of others"
    );
    // What fences it goes on.
    let (status, _) = world.call(By::Node(&nodes[0]), "GET /agent/v1/state", &Value::Null).await;
    assert_eq!(status, StatusCode::OK);

    let again = json!({
        "type": "authorization", "roles": policy["roles"], "subjects": policy["subjects"],
        "resources": [{"attributes": [
            {"name": "serviceName", "value": "kms"},
            {"name": "serviceInstance", "value": root.instance},
        ]}],
    });
    let made: Value = world.admin("POST /v1/policies", &again).await;
    assert_eq!(world.wrap(node, &id, root).await.0, StatusCode::OK);
    // The whole instance is let, and the cluster's truth names one key of it.
    assert_eq!(world.wrap(node, &id, other).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(made["subjects"][0]["attributes"][2]["value"], json!(id));
}

#[tokio::test]
async fn a_token_of_a_node_counts_as_long_as_its_certificate() {
    let world = World::new();
    let root = world.key("root", true);
    let (id, nodes) = world.cluster("prod", &["n1", "n2"]).await;
    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    let (one, two) = (world.node_token(&nodes[0]).await, world.node_token(&nodes[1]).await);
    for token in [&one, &two] {
        assert_eq!(world.wrap(token, &id, root).await.0, StatusCode::OK);
    }
    // Another machine takes the name.
    let line = "POST /v3/clusters/prod/join-tokens";
    world.advance(2_000);
    let again: Registered = world.admin(line, &Value::Null).await;
    let taken = world.join(&again.join_token, "n1").await.unwrap();
    assert_eq!(world.wrap(&one, &id, root).await.0, StatusCode::UNAUTHORIZED);
    let taken = world.node_token(&taken).await;
    for token in [&two, &taken] {
        assert_eq!(world.wrap(token, &id, root).await.0, StatusCode::OK);
    }
    // An operator removes one.
    world.advance(120_000);
    let line = "DELETE /v3/clusters/prod/nodes/n2?force=true";
    let (status, answer) = world.call(By::Token(&world.admin), line, &Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(world.wrap(&two, &id, root).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(world.wrap(&taken, &id, root).await.0, StatusCode::OK);
}

#[tokio::test]
async fn the_owner_of_the_api_key_lends_what_he_could_use_himself() {
    let world = World::new();
    let root = world.key("root", true);
    world.cluster("prod", &["n1"]).await;
    let line = "GET /v1/logging/prod/clusterkeyowner";
    let owner: KeyOwner = world.admin(line, &Value::Null).await;
    assert!(owner.id.starts_with("crn-"), "the cluster itself: {}", owner.id);
    let operator = world.operator("operator", &[]);
    assert_eq!(world.enable(&operator, root).await.0, StatusCode::UNAUTHORIZED);
    let editor = world.person("editor", Some(PlatformRole::Editor));
    let reset = "POST /v1/keys";
    let (status, _) = world.call(By::Token(&editor), reset, &Value::Null).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let (status, _) = world.call(By::Token(&world.admin), reset, &Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let owner: KeyOwner = world.admin(line, &Value::Null).await;
    assert_eq!((&*owner.id, &*owner.name), ("IBMid-admin", "admin"));
    assert_eq!(world.enable(&operator, root).await.0, StatusCode::CREATED);
    assert_eq!(world.authorizations().await[0]["created_by_id"], "IBMid-operator");
}

#[tokio::test]
async fn the_owner_lends_nothing_to_who_administers_one_cluster_and_sees_no_key() {
    let world = World::new();
    let (root, standard) = (world.key("root", true), world.key("standard", false));
    let (id, _) = world.cluster("prod", &["n1"]).await;
    world.cluster("other", &["n1"]).await;
    let one = world.person("one", None);
    let of_one = Target::Clusters(Some(id));
    world.give("IBMid-one", Role::Platform(PlatformRole::Administrator), of_one);
    let (status, _) = world.call(By::Token(&world.admin), "POST /v1/keys", &Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);

    // There, of another kind, or not there: it is all one.
    let gone = RootKey { key: claviger_domain::id::KeyId::random(), ..root };
    let told = async |key: RootKey| {
        let (status, answer) = world.enable(&one, key).await;
        let text = answer["description"].as_str().unwrap().replace(&key.key.to_string(), "KEY");
        (status, text)
    };
    let unknown = told(gone).await;
    assert_eq!(unknown.0, StatusCode::UNAUTHORIZED);
    assert_eq!(told(root).await, unknown);
    assert_eq!(told(standard).await, unknown);
    assert_eq!(world.authorizations().await, [Value::Null; 0]);

    // To who administers all of them he lends, while his API key is there.
    let all = world.operator("all", &[]);
    let keys = world.app.store.read("t", |tx| iam::api_keys(tx, "IBMid-admin")).unwrap();
    let another = world.person("admin", None);
    world.app.store.tx("t", |tx| iam::remove_api_key(tx, keys[0].id)).unwrap();
    assert_eq!(world.enable(&all, root).await.0, StatusCode::UNAUTHORIZED);
    let (status, _) = world.call(By::Token(&another), "POST /v1/keys", &Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(world.enable(&all, root).await.0, StatusCode::CREATED);
}

#[tokio::test]
async fn an_authorization_ends_with_the_use_of_the_key() {
    let world = World::new();
    let root = world.key("root", true);
    world.cluster("prod", &["n1"]).await;
    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    assert_eq!(world.authorizations().await.len(), 1);
    let line = "POST /v3/clusters/prod/kms/operations/cancel";
    let (status, answer) = world.call(By::Token(&world.admin), line, &json!({})).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(world.authorizations().await, [Value::Null; 0]);
    let acts = crate::audit::everything(&world.app);
    assert!(acts.iter().any(|act| act.action == "iam-am.policy.delete"));
    // There is no room for another.
    crate::iam::fill(&world.app);
    assert_eq!(world.open("prod", root).await.0, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_key_names_no_cluster_that_the_caller_may_not_see() {
    let world = World::new();
    let root = world.key("root", true);
    let (near, _) = world.cluster("near", &["n1"]).await;
    let (far, _) = world.cluster("far", &["n1"]).await;
    world.use_key(root, &near);
    world.use_key(root, &far);
    let viewer = world.person("one", None);
    world.give("IBMid-one", Role::Platform(PlatformRole::Viewer), Target::Clusters(Some(near)));
    let reads = Target::Keys(Scope::Instance(root.instance));
    world.give("IBMid-one", Role::Service(ServiceRole::Reader), reads);
    let line = format!("GET /v2/getCRKs?kms_instance={}", root.instance);
    for (token, clusters) in [(&viewer, json!(["near"])), (&world.admin, json!(["far", "near"]))] {
        let (status, crks) = world.call(By::Token(token), &line, &Value::Null).await;
        assert_eq!((status, &crks[0]["clusters"]), (StatusCode::OK, &clusters));
    }
}

#[tokio::test]
async fn clusters_of_before_there_were_authorizations_keep_their_keys() {
    let world = World::new();
    let root = world.key("root", true);
    let (id, nodes) = world.cluster("prod", &["n1"]).await;
    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    // As such a database is: without policies of clusters, and without a key that signs.
    let store = &world.app.store;
    let old = store.tx("t", |tx| {
        tx.execute("DELETE FROM access_policies WHERE subject_kind = 'clusters'", [])?;
        meta::remove(tx, "signing-keys")?;
        meta::put(tx, "token-key", b"old")
    });
    old.unwrap();
    let now = world.now();
    let parts = crate::first::establish(store, &*world.app.custodian, now);
    assert!(parts.is_ok());
    assert!(store.read("t", |tx| meta::get(tx, "token-key")).unwrap().is_none());
    assert_eq!(world.authorizations().await.len(), 1);
    let form = format!("grant_type={GRANT_NODE}").into_bytes();
    let given = world.send(By::Node(&nodes[0]), "POST /identity/token", form).await;
    let given = world.read(given).await.1;
    let node = given["access_token"].as_str().unwrap();
    assert_eq!(world.wrap(node, &id, root).await.0, StatusCode::OK);
}
