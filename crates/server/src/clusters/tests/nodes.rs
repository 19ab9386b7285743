//! Nodes that leave.

use super::simulation::Sim;
use super::world::{By, World, code, node_of};
use crate::http::auth::Node;
use axum::http::StatusCode;
use claviger_domain::access::PlatformRole;
use claviger_domain::cluster::plan::{Step, Why};
use claviger_domain::id::UnixMs;
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

/// What was dated before the server's clock was set back is of the future, for days perhaps.
#[tokio::test]
async fn a_clock_that_is_set_back_revives_nobody() {
    let world = World::new();
    let root = world.key("root", true);
    let mut sim = Sim::new(&world, "prod", &["n1", "n2"]).await;
    sim.nodes_act().await;
    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    sim.run().await;
    let ask = serde_json::json!({ "fencing": null });
    let lease = async |node: &Node| world.call(By::Node(node), "POST /agent/v1/lease", &ask).await;
    let gone = sim.nodes.pop().unwrap();
    world.advance(15_000);
    assert_eq!(lease(&gone).await.0, StatusCode::OK);
    world.set_back(10 * 86_400_000);
    let administrator = world.person("admin", None);
    let admin = async |line: &str| world.call(By::Token(&administrator), line, &Value::Null).await;
    let node = sim.nodes[0].clone();
    let (status, value) = lease(&node).await;
    assert_eq!(status, StatusCode::OK, "its holder may be dead: {value}");
    sim.nodes_act().await;
    let (_, shown) = admin("GET /v2/getCluster?cluster=prod").await;
    let text = shown["masterStatus"].as_str().unwrap_or_default();
    assert!(text.starts_with("No word from agent n2"), "{shown}");
    let (status, value) = admin("DELETE /v3/clusters/prod/nodes/n2?force=true").await;
    assert_eq!(status, StatusCode::OK, "{value}");
    sim.nodes_act().await;
    assert_eq!(lease(&node).await.0, StatusCode::OK);

    // A certificate of before the jump is dated after the join that replaces it.
    let (_, token) = admin("POST /v3/clusters/prod/join-tokens").await;
    let again = world.join(token["join_token"].as_str().unwrap(), "n1").await.unwrap();
    let state = "GET /agent/v1/state";
    let (status, _) = world.call(By::Node(&node), state, &Value::Null).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "the former one counts no longer");
    let (status, value) = world.call(By::Node(&again), state, &Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    let said = |node: &Node| value["seen"].get(node.agent.as_str()).is_some();
    assert!(!said(&again), "nothing is left of what was said under its name");
}

/// A node that cannot reach the server asks in writing.
#[tokio::test]
async fn a_written_request_is_answered_if_it_is_the_node_s_own() {
    const DAY: i64 = 86_400_000;
    let world = World::new();
    let first = world.register("prod").await;
    let joined = join_with_key(&world, &first.join_token, "n1").await;
    let other = world.register("other").await;
    let stranger = join_with_key(&world, &other.join_token, "n1").await;
    world.advance(40 * DAY.unsigned_abs());
    // A token lives for an hour.
    let administrator = world.person("admin", None);
    let line = "POST /v3/clusters/prod/node-certificates";
    let ask = async |request: &Value| {
        let (status, value) = world.call(By::Token(&administrator), line, request).await;
        (status.as_u16(), value)
    };
    let good = joined.ask(world.now().0);
    let refused = async |request: &Value, says: &str| {
        let (status, value) = ask(request).await;
        assert_eq!((status, code(&value)), (400, "E4013"), "{value}");
        assert!(value["description"].as_str().unwrap().contains(says), "{says}: {value}");
        assert!(value["recoveryCLI"].as_str().unwrap().contains("request-certificate"));
    };
    let with = |name: &str, value: Value| {
        let mut changed = good.clone();
        changed[name] = value;
        changed
    };
    let theirs = stranger.ask(world.now().0);
    refused(&theirs, "of cluster").await;
    refused(&with("csr", theirs["csr"].clone()), "another key").await;
    refused(&with("certificate", world.app.authority.pem().into()), "did not sign").await;
    refused(&with("csr", "-----BEGIN".into()), "was changed").await;
    refused(&joined.ask(world.now().0 - 8 * DAY), "older than 7 days").await;
    refused(&joined.ask(world.now().0 + 2 * DAY), "clock").await;
    let renamed = JoinedNode { agent: "n2".to_owned(), ..joined.clone() };
    refused(&renamed.ask(world.now().0), "another node").await;
    let operator = world.person("operator", Some(PlatformRole::Operator));
    let (status, _) = world.call(By::Token(&operator), line, &good).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);

    let state = "GET /agent/v1/state";
    let (status, _) = world.call(By::Node(&joined.node), state, &Value::Null).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "expired");
    let (status, value) = ask(&good).await;
    assert_eq!(status, 201, "{value}");
    let renewed = node_of(&serde_json::from_value(value).unwrap());
    assert_eq!((&renewed.cluster, renewed.agent.as_str()), (&first.id, "n1"));
    assert_eq!(world.call(By::Node(&renewed), state, &Value::Null).await.0, StatusCode::OK);

    // Whoever joined again under the name has no claim by an older certificate.
    let tokens = "POST /v3/clusters/prod/join-tokens";
    let (_, token) = world.call(By::Token(&administrator), tokens, &Value::Null).await;
    world.advance(1000);
    world.join(token["join_token"].as_str().unwrap(), "n1").await.unwrap();
    let (status, value) = ask(&good).await;
    assert_eq!((status, code(&value)), (401, "E4012"), "{value}");
}

/// An agent that joined, and the key that it keeps.
#[derive(Clone)]
struct JoinedNode {
    key: std::sync::Arc<rcgen::KeyPair>,
    cluster: String,
    agent: String,
    certificate: String,
    node: crate::http::auth::Node,
}

/// The token is good for this key again while its hour lasts: the answer may be lost.
#[tokio::test]
async fn a_lost_answer_to_a_join_can_be_asked_for_again() {
    let world = World::new();
    let first = world.register("prod").await;
    let administrator = world.person("admin", None);
    let ask = async |key: &rcgen::KeyPair, agent: &str| {
        let (status, value) = try_join(&world, key, &first.join_token, agent).await;
        (status.as_u16(), value)
    };
    let [key, other] = [(), ()].map(|()| new_key());
    assert_eq!(ask(&key, "n1").await.0, 200);
    world.advance(60_000);
    let (status, value) = ask(&key, "n1").await;
    assert_eq!(status, 200, "{value}");
    let node = node_of(&serde_json::from_value(value).unwrap());
    let state = "GET /agent/v1/state";
    assert_eq!(world.call(By::Node(&node), state, &Value::Null).await.0, StatusCode::OK);
    for (key, agent) in [(&other, "n1"), (&key, "n2")] {
        let (status, value) = ask(key, agent).await;
        assert_eq!((status, code(&value)), (401, "E4011"), "{value}");
    }
    // Whoever came under the name since is not put out, and a removed node stays out.
    let tokens = "POST /v3/clusters/prod/join-tokens";
    let (_, token) = world.call(By::Token(&administrator), tokens, &Value::Null).await;
    world.advance(1000);
    let newer = world.join(token["join_token"].as_str().unwrap(), "n1").await.unwrap();
    assert_eq!(ask(&key, "n1").await.0, 401);
    assert_eq!(world.call(By::Node(&newer), state, &Value::Null).await.0, StatusCode::OK);
    world.advance(60 * 60_000);
    assert_eq!(ask(&key, "n1").await.0, 401, "its hour is over");
}

#[tokio::test]
async fn a_token_does_not_bring_a_removed_node_back() {
    let world = World::new();
    let first = world.register("prod").await;
    let key = new_key();
    assert_eq!(try_join(&world, &key, &first.join_token, "n1").await.0, StatusCode::OK);
    let line = "POST /v3/clusters/prod/join-tokens";
    let token = world.admin::<Registered>(line, &Value::Null).await.join_token;
    world.join(&token, "n2").await.unwrap();
    world.advance(90_000);
    let remove = "DELETE /v3/clusters/prod/nodes/n1?force=true";
    let (status, value) = world.call(By::Token(&world.admin), remove, &Value::Null).await;
    assert!(status.is_success(), "{value}");
    let (status, value) = try_join(&world, &key, &first.join_token, "n1").await;
    assert_eq!((status.as_u16(), code(&value)), (401, "E4011"), "{value}");
}

fn new_key() -> rcgen::KeyPair {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
}

async fn try_join(
    world: &World,
    key: &rcgen::KeyPair,
    token: &str,
    agent: &str,
) -> (StatusCode, Value) {
    let params = rcgen::CertificateParams::default();
    let csr = params.serialize_request(key).unwrap().pem().unwrap();
    let ask = serde_json::json!({ "token": token, "agent": agent, "csr": csr });
    world.call(By::Nobody, "POST /agent/v1/join", &ask).await
}

async fn join_with_key(world: &World, token: &str, agent: &str) -> JoinedNode {
    let key = new_key();
    let (status, value) = try_join(world, &key, token, agent).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    JoinedNode {
        key: key.into(),
        cluster: value["cluster"].as_str().unwrap().to_owned(),
        agent: agent.to_owned(),
        certificate: value["certificate"].as_str().unwrap().to_owned(),
        node: node_of(&serde_json::from_value(value).unwrap()),
    }
}

impl JoinedNode {
    /// Its request, dated `at`.
    fn ask(&self, at: i64) -> Value {
        let (cluster, agent) = (self.cluster.parse().unwrap(), self.agent.parse().unwrap());
        let name = claviger_wire::agent::reissue_name(&cluster, &agent, UnixMs(at));
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(name.as_str().try_into().unwrap())];
        let csr = params.serialize_request(&*self.key).unwrap().pem().unwrap();
        serde_json::json!({
            "cluster": self.cluster, "agent": self.agent,
            "csr": csr, "certificate": self.certificate,
        })
    }
}
