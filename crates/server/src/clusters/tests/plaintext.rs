//! Plaintext in an encrypted cluster at rest: counted, said, and left alone until an operator's word.

use super::simulation::Sim;
use super::world::{By, World, code};
use axum::http::StatusCode;
use claviger_domain::cluster::commit::Commit;
use claviger_domain::cluster::plan::Step;
use claviger_domain::cluster::{Cluster, Stage, Tally};
use claviger_domain::key::RootKey;
use claviger_wire::agent::CommitRequest;
use claviger_wire::ks::{ClusterView, JobView};
use serde_json::{Value, json};

const OPEN: &str = "POST /v3/clusters/prod/kms/operations";

/// An agent commits under the lease.
async fn commit(sim: &Sim<'_>, commit: Commit) -> (StatusCode, Value) {
    let (world, node) = (sim.world, &sim.nodes[0]);
    let ask = json!({ "fencing": null });
    let (_, lease) = world.call(By::Node(node), "POST /agent/v1/lease", &ask).await;
    let ask = CommitRequest {
        fencing: lease["fencing"].as_u64().unwrap(),
        revision: truth(sim).await.revision,
        commit,
    };
    let ask = serde_json::to_value(ask).unwrap();
    world.call(By::Node(node), "POST /agent/v1/commit", &ask).await
}

async fn truth(sim: &Sim<'_>) -> Cluster {
    sim.state(&sim.nodes[0]).await.cluster
}

async fn shown(sim: &Sim<'_>) -> (String, bool) {
    let line = format!("GET /v2/getCluster?v1-compatible&cluster={}", sim.cluster);
    let view: ClusterView = sim.world.admin(&line, &Value::Null).await;
    (view.master_status, view.features.key_protect_enabled)
}

async fn asks(world: &World, root: RootKey, accept: bool) -> (StatusCode, Value) {
    let ask = json!({
        "instance_id": root.instance, "crk_id": root.key, "accept_plaintext": accept,
    });
    world.call(By::Token(&world.admin), OPEN, &ask).await
}

fn warned(value: &Value, of: &str) -> bool {
    value["warnings"].as_array().unwrap().iter().any(|w| w.as_str().unwrap().contains(of))
}

#[tokio::test]
async fn planted_plaintext_is_read_by_an_operators_word_only() {
    let world = World::new();
    let (root, other) = (world.key("root", true), world.key("other", true));
    let mut sim = Sim::new(&world, "prod", &["n1", "n2"]).await;
    sim.nodes_act().await;
    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    sim.run().await;
    let (status, value) = asks(&world, root, true).await;
    assert!(status == StatusCode::OK && warned(&value, "nothing was changed"), "{value}");

    sim.records[3] = None;
    let jobs = "POST /v3/clusters/prod/jobs";
    let job: JobView = world.admin(jobs, &json!({ "kind": "census" })).await;
    let tally = Tally { total: 20, current: 19, plaintext: 1, ..Tally::default() };
    let (status, value) = commit(&sim, Commit::Counted { job: job.id, tally }).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    world.advance(15_000);
    for _ in 0..20 {
        assert_eq!(sim.turn().await, Step::Rest, "nobody reads or rewrites it");
    }
    let (text, enabled) = shown(&sim).await;
    assert!(text.contains("1 are plaintext") && text.contains("nobody reads it"), "{text}");
    assert!(!enabled && truth(&sim).await.servers.values().all(|t| t.stage == Stage::Only));
    let line = "GET /v3/clusters/prod/kms";
    let status: Value = world.admin(line, &Value::Null).await;
    assert!(status["next"].as_str().unwrap().contains("--accept-plaintext"), "{status}");

    let (status, value) = commit(&sim, Commit::PlaintextAccepted).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "no node has that word: {value}");
    let (status, value) = asks(&world, root, false).await;
    assert!(status == StatusCode::OK && warned(&value, "--accept-plaintext"), "{value}");
    let (status, value) = asks(&world, other, true).await;
    assert_eq!((status, code(&value)), (StatusCode::BAD_REQUEST, "E4000"), "{value}");
    assert!(truth(&sim).await.operation.is_none());
    world.advance(15_000);
    assert_eq!(sim.turn().await, Step::Rest, "to ask again is not that word");

    let (status, value) = asks(&world, root, true).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    assert!(truth(&sim).await.servers.values().all(|t| t.stage == Stage::WriteFirst));
    let seen = sim.run().await;
    assert_eq!(shown(&sim).await, ("Ready".to_owned(), true), "{seen:?} {:?}", sim.steps);
    assert!(sim.all_under(2) && truth(&sim).await.disproof.is_none());
}
