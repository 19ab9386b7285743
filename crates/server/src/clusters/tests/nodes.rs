//! Nodes that leave.

use super::simulation::Sim;
use super::world::{By, World, code};
use axum::http::StatusCode;
use claviger_domain::access::PlatformRole;
use claviger_domain::cluster::plan::{Step, Why};
use claviger_wire::ks::{KmsStatus, NodeRemoved, Registered};
use serde_json::Value;

const REMOVE: &str = "DELETE /v3/clusters/prod/nodes/n2";

async fn refusal(world: &World, token: &str, line: &str) -> (u16, String) {
    let (status, value) = world.call(By::Token(token), line, &Value::Null).await;
    (status.as_u16(), code(&value).to_owned())
}

#[tokio::test]
async fn a_node_that_is_gone_is_removed_and_nothing_waits_for_it() {
    let world = World::new();
    let root = world.key("root", true);
    let mut sim = Sim::new(&world, "prod", &["n1", "n2"]).await;
    sim.nodes_act().await;
    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    sim.run().await;
    let forced = format!("{REMOVE}?force=true");
    for (line, status, code) in [
        ("DELETE /v3/clusters/prod/nodes/n3", 404, "E4045"),
        ("DELETE /v3/clusters/prod/nodes/N?force=true", 400, "E4000"),
        ("DELETE /v3/clusters/prod/nodes/n2?force=maybe", 400, "E4000"),
        (REMOVE, 409, "E4103"),
        (&forced, 409, "E4103"),
    ] {
        assert_eq!(refusal(&world, &world.admin, line).await, (status, code.to_owned()), "{line}");
    }

    // n2 falls silent in the middle of a switch.
    let second = world.key("second", true);
    assert_eq!(world.open("prod", second).await.0, StatusCode::ACCEPTED);
    sim.turn().await;
    let gone = sim.nodes.pop().unwrap();
    world.advance(90_000);
    assert_eq!(sim.turn().await, Step::Wait(Why::Silent(gone.agent.clone())));
    let operator = world.person("operator", Some(PlatformRole::Operator));
    assert_eq!(refusal(&world, &operator, &forced).await, (401, "E4031".into()));
    assert_eq!(refusal(&world, &world.admin, REMOVE).await, (409, "E4104".into()));
    let removed: NodeRemoved = world.admin(&forced, &Value::Null).await;
    assert!(removed.notes[0].contains("coast_max"), "{:?}", removed.notes);
    assert_eq!(refusal(&world, &world.admin, &forced).await, (404, "E4045".into()));
    sim.run().await;
    assert!(sim.all_under(2));

    // Its certificate counts no longer, and nothing is left of its words.
    for line in ["GET /agent/v1/state", "GET /agent/v1/stream"] {
        let (status, value) = world.call(By::Node(&gone), line, &Value::Null).await;
        assert_eq!((status, code(&value)), (StatusCode::UNAUTHORIZED, "E4012"), "{line}");
    }
    let status: KmsStatus = world.admin("GET /v3/clusters/prod/kms", &Value::Null).await;
    assert_eq!(status.agents.len(), 1);
    assert_eq!((status.state.seen.len(), status.state.cluster.servers.len()), (1, 1));

    // The last one stays, and a machine of the same name may come anew.
    world.advance(90_000);
    let last = "DELETE /v3/clusters/prod/nodes/n1?force=true";
    assert_eq!(refusal(&world, &world.admin, last).await, (409, "E4105".into()));
    let line = "POST /v3/clusters/prod/join-tokens";
    let token = world.admin::<Registered>(line, &Value::Null).await.join_token;
    assert!(world.join(&token, "n2").await.is_ok());
    let (status, _) = world.call(By::Node(&gone), "GET /agent/v1/state", &Value::Null).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "its old certificate stays refused");
}
