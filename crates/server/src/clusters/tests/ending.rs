//! What ends between a cluster and its root keys: a key is released, a cluster is removed.

use super::simulation::Sim;
use super::world::{By, World, code};
use axum::http::StatusCode;
use claviger_domain::access::PlatformRole;
use claviger_domain::cluster::Cluster;
use claviger_domain::cluster::commit::Commit;
use claviger_domain::key::{RootKey, RootVersion};
use claviger_store::events::EventKind;
use claviger_store::{StoreError, clusters, keys, registrations};
use claviger_wire::agent::CommitRequest;
use claviger_wire::ks::{JobView, Released};
use serde_json::{Value, json};

const RELEASE: &str = "POST /v3/clusters/prod/kms/release";
const REMOVE: &str = "DELETE /v1/clusters/prod";
const FORCED: &str = "DELETE /v1/clusters/prod?force=true";

/// The status and the code of a refusal.
async fn refusal(world: &World, line: &str, body: &Value) -> (u16, String) {
    let (status, value) = world.call(By::Token(&world.admin), line, body).await;
    (status.as_u16(), code(&value).to_owned())
}

fn asked(root: RootKey, census: Option<&JobView>, force: bool) -> Value {
    json!({
        "instance_id": root.instance, "crk_id": root.key,
        "census": census.map(|job| job.id), "force": force,
    })
}

/// A job that an agent did: a census with so many records under `root`.
async fn census(sim: &Sim<'_>, root: RootKey, records: u64) -> JobView {
    let world = sim.world;
    let line = "POST /v3/clusters/prod/jobs";
    let job: JobView = world.admin(line, &json!({ "kind": "census" })).await;
    let version = world.app.store.read("t", |tx| keys::get(tx, &root)).unwrap().unwrap().current;
    let root = RootVersion { root, version: version.unwrap() };
    let none = json!({ "records": 0 });
    let report = json!({ "is": "done", "result": { "census": { "resources": { "secrets": {
        "records": records, "plaintext": none, "unknown": none, "undecodable": none,
        "forged": none, "under": [{ "root": root, "records": records }],
    } } } } });
    let line = format!("POST /agent/v1/jobs/{}", job.id);
    let (status, value) = world.call(By::Node(&sim.nodes[0]), &line, &report).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{value}");
    job
}

fn is_registered(sim: &Sim<'_>, root: RootKey) -> bool {
    let crn = sim.world.app.account.cluster_crn(&sim.cluster);
    let found = sim.world.app.store.read("t", |tx| registrations::get(tx, &root, &crn));
    found.unwrap().is_some()
}

/// A cluster that is encrypted under the second of these keys, after the first.
async fn moved(world: &World) -> (Sim<'_>, RootKey, RootKey) {
    let (first, second) = (world.key("first", true), world.key("second", true));
    let mut sim = Sim::new(world, "prod", &["n1", "n2"]).await;
    sim.nodes_act().await;
    for root in [first, second] {
        assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
        sim.run().await;
    }
    assert!(is_registered(&sim, first) && is_registered(&sim, second));
    (sim, first, second)
}

#[tokio::test]
async fn a_root_key_is_released_once_no_live_record_and_no_backup_needs_it() {
    let world = World::new();
    let (mut sim, first, second) = moved(&world).await;
    let third = world.key("third", true);
    let good = census(&sim, second, 20).await;
    let still = census(&sim, first, 1).await;
    let verify: JobView =
        world.admin("POST /v3/clusters/prod/jobs", &json!({ "kind": "verify" })).await;
    let open: JobView =
        world.admin("POST /v3/clusters/prod/jobs", &json!({ "kind": "census" })).await;
    for (ask, status, code) in [
        (asked(third, Some(&good), true), 404, "E4046"),
        (asked(second, Some(&good), true), 409, "E4108"),
        (asked(first, Some(&good), false), 409, "E4102"),
        (asked(first, None, true), 409, "E4109"),
        (asked(first, Some(&still), true), 409, "E4109"),
        (asked(first, Some(&verify), true), 409, "E4109"),
        (asked(first, Some(&open), true), 409, "E4109"),
    ] {
        assert_eq!(refusal(&world, RELEASE, &ask).await, (status, code.to_owned()), "{ask}");
    }
    let operator = world.person("operator", Some(PlatformRole::Operator));
    let ask = asked(first, Some(&good), true);
    let (status, _) = world.call(By::Token(&operator), RELEASE, &ask).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    world.advance(10 * 60_000 + 1);
    assert_eq!(refusal(&world, RELEASE, &ask).await, (409, "E4109".into()), "an old census");
    assert!(is_registered(&sim, first) && is_registered(&sim, second));

    sim.nodes_act().await;
    let good = census(&sim, second, 20).await;
    let released: Released = world.admin(RELEASE, &asked(first, Some(&good), true)).await;
    assert_eq!(released.crk_id, first.key);
    assert!(!is_registered(&sim, first) && is_registered(&sim, second));
    assert_eq!(refusal(&world, RELEASE, &ask).await, (404, "E4046".into()), "once is enough");
    // Its agents still open what is under it, and the cluster goes on as before.
    assert_eq!(sim.state(&sim.nodes[0]).await.cluster.ring.keks.len(), 2);

    // While a cluster moves, neither the key it leaves nor the one it goes to is released.
    assert_eq!(world.open("prod", third).await.0, StatusCode::ACCEPTED);
    for _ in 0..40 {
        sim.turn().await;
        if sim.steps.last().is_some_and(|step| step == "Promote") {
            break;
        }
    }
    let good = census(&sim, second, 0).await;
    for root in [second, third] {
        let ask = asked(root, Some(&good), true);
        assert_eq!(refusal(&world, RELEASE, &ask).await, (409, "E4108".into()));
    }
}

#[tokio::test]
async fn a_removed_cluster_leaves_its_root_keys_protected_until_they_are_released() {
    let world = World::new();
    let (sim, first, second) = moved(&world).await;
    let none = &Value::Null;
    assert_eq!(refusal(&world, FORCED, none).await, (409, "E4103".into()), "its agents are heard");
    world.advance(90_000);
    assert_eq!(refusal(&world, REMOVE, none).await, (409, "E4102".into()), "it is encrypted");
    let operator = world.person("operator", Some(PlatformRole::Operator));
    let (status, _) = world.call(By::Token(&operator), FORCED, none).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    // Somebody took a registration away meanwhile.
    let crn = world.app.account.cluster_crn(&sim.cluster);
    world.app.store.tx("t", |tx| registrations::remove(tx, &second, &crn)).unwrap();
    let (status, body) = world.call(By::Token(&world.admin), FORCED, none).await;
    assert_eq!((status, body), (StatusCode::NO_CONTENT, Value::Null));

    assert_eq!(refusal(&world, "GET /v3/clusters/prod/kms", none).await, (404, "E4041".into()));
    assert_eq!(refusal(&world, FORCED, none).await, (404, "E4041".into()));
    let (status, _) = world.call(By::Node(&sim.nodes[0]), "GET /agent/v1/state", none).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "its certificates count no longer");
    assert!(is_registered(&sim, first) && is_registered(&sim, second));

    // By its id, since its name is free again.
    let line = RELEASE.replace("prod", sim.cluster.as_str());
    assert_eq!(refusal(&world, RELEASE, &asked(second, None, true)).await, (404, "E4041".into()));
    assert_eq!(refusal(&world, &line, &asked(second, None, false)).await, (409, "E4102".into()));
    let _: Released = world.admin(&line, &asked(second, None, true)).await;
    assert!(is_registered(&sim, first) && !is_registered(&sim, second));
    assert_eq!(refusal(&world, &line, &asked(second, None, true)).await, (404, "E4041".into()));
    world.register("prod").await;
}

#[tokio::test]
async fn what_was_released_before_stays_released_when_the_cluster_is_removed() {
    let world = World::new();
    let (sim, first, second) = moved(&world).await;
    let good = census(&sim, second, 20).await;
    let _: Released = world.admin(RELEASE, &asked(first, Some(&good), true)).await;
    world.advance(90_000);
    let (status, _) = world.call(By::Token(&world.admin), FORCED, &Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert!(!is_registered(&sim, first) && is_registered(&sim, second));
}

#[tokio::test]
async fn a_cluster_that_is_not_encrypted_leaves_nothing_behind() {
    let world = World::new();
    let root = world.key("root", true);
    let mut sim = Sim::new(&world, "prod", &["n1"]).await;
    sim.nodes_act().await;
    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    for _ in 0..40 {
        sim.turn().await;
        if is_registered(&sim, root) {
            break;
        }
    }
    assert!(is_registered(&sim, root));
    world.advance(90_000);
    let (status, _) = world.call(By::Token(&world.admin), REMOVE, &Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert!(!is_registered(&sim, root));
}

/// A server that came back from a backup takes a ring back though a root key in it, which backups
/// alone could have needed, was released and purged.
#[tokio::test]
async fn a_released_key_that_is_gone_keeps_no_ring_from_being_brought_back() {
    let world = World::new();
    let (mut sim, first, second) = moved(&world).await;
    let backup = sim.state(&sim.nodes[0]).await.cluster;
    world.change(second, EventKind::Rotate);
    sim.run().await;
    let held = sim.state(&sim.nodes[0]).await.cluster;
    let good = census(&sim, second, 20).await;
    let _: Released = world.admin(RELEASE, &asked(first, Some(&good), true)).await;
    let gone = world.app.store.tx("t", |tx| -> Result<(), StoreError> {
        keys::purge(tx, &first)?;
        let revision = clusters::get(tx, &backup.id)?.unwrap().cluster.revision;
        assert!(clusters::update(tx, &Cluster { revision: revision + 1, ..backup.clone() })?);
        Ok(())
    });
    gone.unwrap();
    let node = sim.nodes[0].clone();
    let line = "POST /agent/v1/lease";
    let (_, lease) = world.call(By::Node(&node), line, &json!({ "fencing": null })).await;
    let ask = CommitRequest {
        fencing: lease["fencing"].as_u64().unwrap(),
        revision: sim.state(&node).await.cluster.revision,
        commit: Commit::Recovered { restore: world.restored(), held: Box::new(held) },
    };
    let ask = serde_json::to_value(ask).unwrap();
    let (status, value) = world.call(By::Node(&node), "POST /agent/v1/commit", &ask).await;
    assert_eq!(status, StatusCode::OK, "{value}");
}
