//! Registrations by service IDs, over the router.

use crate::testing::World;
use claviger_domain::access::{PlatformRole, Scope, ServiceRole};
use claviger_store::iam::Grant;
use serde_json::{Value, json};

#[tokio::test]
async fn a_service_id_registers_what_is_its_own() {
    let w = World::new();
    let manager = Grant::Service { role: ServiceRole::Manager, scope: Scope::Everywhere };
    let admin = [manager, Grant::Platform(PlatformRole::Administrator)];
    let admin = w.token(&w.person("admin", &admin)).await;
    let key = w.root_key(&admin, w.one, "root").await;
    let mut services = Vec::new();
    for name in ["one", "two"] {
        let new = json!({ "name": name, "service": true, "roles": [{ "role": "Reader" }] });
        let made = w.ask(&admin, "POST", "/v3/principals", new).await.is(201);
        services.push(w.token(made["apikey"].as_str().unwrap()).await);
    }
    let body = json!({
        "metadata": { "collectionType": "x", "collectionTotal": 1 },
        "resources": [{ "preventKeyDeletion": false }],
    });
    let at = |crn: &str| {
        let crn = crn.replace(':', "%3A").replace('/', "%2F");
        format!("/api/v2/keys/{key}/registrations/{crn}")
    };
    let bucket = at(&format!(
        "crn:v1:bluemix:public:cloud-object-storage:global:a/{}:1:bucket:b",
        w.app.account.id
    ));
    let cluster = at(&w.app.account.cluster_crn(&claviger_domain::id::ClusterId::random()));
    w.ask(&admin, "POST", &bucket, body.clone()).await.refused(403, "SERVICE_ONLY_ERR");
    w.ask(&services[0], "POST", &cluster, body.clone()).await.refused(403, "RESOURCE_OWNER_ERR");
    w.ask(&services[0], "POST", &bucket, body.clone()).await.is(201);
    for method in ["PUT", "PATCH", "DELETE"] {
        let refused = w.ask(&services[1], method, &bucket, body.clone()).await;
        refused.refused(403, "RESOURCE_OWNER_ERR");
    }
    w.ask(&services[0], "PUT", &bucket, body).await.is(200);
    // It keeps an instance from being removed.
    let path = format!("/v2/resource_instances/{}", w.one);
    let said = w.ask(&admin, "DELETE", &path, Value::Null).await.is(422);
    assert!(said["message"].as_str().unwrap().contains("CONTAINS_ACTIVE_KEYS"));
}
