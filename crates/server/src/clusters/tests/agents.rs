//! The agents' API, one rule at a time.

use super::world::{By, World, code, name, node_of, request};
use crate::http::auth::Node;
use axum::http::StatusCode;
use claviger_domain::cluster::commit::Commit;
use claviger_domain::cluster::{OperationKind, TakeUp, Tally};
use claviger_domain::id::{JobId, OperationId};
use claviger_store::events::EventKind;
use claviger_wire::agent::{CommitRequest, JobReport, Lease, State};
use claviger_wire::ks::{JobView, Registered};
use serde_json::{Value, json};

const MINUTE: u64 = 60_000;

async fn lease(world: &World, node: &Node, fencing: Option<u64>) -> Result<Lease, Value> {
    let ask = json!({ "fencing": fencing });
    let (status, value) = world.call(By::Node(node), "POST /agent/v1/lease", &ask).await;
    if status == StatusCode::OK {
        Ok(serde_json::from_value(value).unwrap())
    } else {
        assert_eq!(status, StatusCode::CONFLICT);
        Err(value)
    }
}

async fn commit(world: &World, node: &Node, fencing: u64, revision: u64, commit: Commit) -> String {
    let ask = serde_json::to_value(CommitRequest { fencing, revision, commit }).unwrap();
    let (status, value) = world.call(By::Node(node), "POST /agent/v1/commit", &ask).await;
    if status == StatusCode::OK {
        "done".into()
    } else {
        format!("{} {}", status.as_u16(), code(&value))
    }
}

async fn state(world: &World, node: &Node) -> (StatusCode, Value) {
    world.call(By::Node(node), "GET /agent/v1/state", &Value::Null).await
}

async fn revision(world: &World, node: &Node) -> u64 {
    let (_, value) = state(world, node).await;
    serde_json::from_value::<State>(value).unwrap().cluster.revision
}

#[tokio::test]
async fn a_token_lets_one_agent_in_for_an_hour() {
    let world = World::new();
    let registered = world.register("prod").await;
    let node = world.join(&registered.join_token, "n1").await.unwrap();
    assert_eq!((&node.cluster, &node.agent), (&registered.id, &name("n1")));
    let (status, value) = world.join(&registered.join_token, "n2").await.unwrap_err();
    assert_eq!((status, code(&value)), (StatusCode::UNAUTHORIZED, "E4011"));
    assert!(value["description"].as_str().unwrap().contains("used before"), "{value}");
    assert!(value["recoveryCLI"].as_str().unwrap().contains("join-token"), "{value}");

    let line = "POST /v3/clusters/prod/join-tokens";
    let late: Registered = world.admin(line, &Value::Null).await;
    world.advance(60 * MINUTE);
    let (_, value) = world.join(&late.join_token, "n2").await.unwrap_err();
    assert!(value["description"].as_str().unwrap().contains("hour"), "{value}");
    let (_, value) = world.join("cvj1-guess", "n2").await.unwrap_err();
    assert!(value["description"].as_str().unwrap().contains("unknown"), "{value}");
    let (status, _) = state(&world, &node).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn a_refused_join_does_not_use_the_token_up() {
    let world = World::new();
    let registered = world.register("prod").await;
    let bad = json!({ "token": registered.join_token, "agent": "n1", "csr": "no request" });
    let (status, value) = world.call(By::Nobody, "POST /agent/v1/join", &bad).await;
    assert_eq!((status, code(&value)), (StatusCode::BAD_REQUEST, "E4000"), "{value}");
    let bad = json!({ "token": registered.join_token, "agent": "No Label", "csr": request() });
    assert_eq!(world.call(By::Nobody, "POST /agent/v1/join", &bad).await.0, 400);
    world.join(&registered.join_token, "n1").await.unwrap();
}

/// A node that joins again says where it belongs: it would be a silent member of another cluster.
#[tokio::test]
async fn a_token_of_another_cluster_is_not_used_up_by_a_node_that_joins_again() {
    let world = World::new();
    let (own, other) = (world.register("prod").await, world.register("other").await);
    let ask = |of: &Registered| json!({ "token": other.join_token, "agent": "n1", "csr": request(), "cluster": of.id });
    let (status, value) = world.call(By::Nobody, "POST /agent/v1/join", &ask(&own)).await;
    assert_eq!((status, code(&value)), (StatusCode::UNAUTHORIZED, "E4011"), "{value}");
    assert!(value["description"].as_str().unwrap().contains("another cluster"), "{value}");
    let (status, value) = world.call(By::Nobody, "POST /agent/v1/join", &ask(&other)).await;
    assert_eq!(status, StatusCode::OK, "{value}");
}

#[tokio::test]
async fn a_second_join_replaces_the_certificate_and_a_renewal_does_not() {
    let world = World::new();
    let (_, nodes) = world.cluster("prod", &["n1"]).await;
    world.advance(10 * 86_400_000);
    let ask = json!({ "csr": request() });
    let (status, value) = world.call(By::Node(&nodes[0]), "POST /agent/v1/renew", &ask).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    let renewed = node_of(&serde_json::from_value(value).unwrap());
    assert_eq!(renewed.not_after.0 - nodes[0].not_after.0, 10 * 86_400_000);
    for node in [&nodes[0], &renewed] {
        assert_eq!(state(&world, node).await.0, StatusCode::OK, "both count");
    }
    let before = revision(&world, &renewed).await;

    let admin = world.person("admin", None);
    let line = "POST /v3/clusters/prod/join-tokens";
    let (_, value) = world.call(By::Token(&admin), line, &Value::Null).await;
    let again = world.join(value["join_token"].as_str().unwrap(), "n1").await.unwrap();
    for old in [&nodes[0], &renewed] {
        let (status, value) = state(&world, old).await;
        assert_eq!((status, code(&value)), (StatusCode::UNAUTHORIZED, "E4012"), "{value}");
    }
    assert_eq!(state(&world, &again).await.0, StatusCode::OK);
    let now = revision(&world, &again).await;
    assert_eq!(now, before + 1, "its machine may have been reinstalled: the proof falls");
}

#[tokio::test]
async fn nobody_calls_without_a_certificate_and_nobody_for_another_agent() {
    let world = World::new();
    let (_, nodes) = world.cluster("prod", &["n1", "n2"]).await;
    for line in [
        "GET /agent/v1/state",
        "GET /agent/v1/stream",
        "POST /agent/v1/renew",
        "POST /agent/v1/observation",
        "POST /agent/v1/lease",
        "POST /agent/v1/commit",
        "POST /agent/v1/ack",
        "POST /agent/v1/jobs/1",
    ] {
        for by in [By::Nobody, By::Token(&world.admin)] {
            let (status, value) = world.call(by, line, &json!({})).await;
            assert_eq!((status, code(&value)), (StatusCode::UNAUTHORIZED, "E0002"), "{line}");
        }
    }
    let said = json!({
        "agent": "n2", "build": "", "kubernetes": null, "ring_revision": 0, "opened": [],
        "key_id": null, "stage_on_disk": "bare", "stage_loaded": null, "process": null,
        "ready": true, "canary": null, "preflight": null, "access": { "is": "open" },
    });
    let line = "POST /agent/v1/observation";
    let (status, _) = world.call(By::Node(&nodes[0]), line, &said).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "n1 speaks for n2");
    let (status, _) = world.call(By::Node(&nodes[1]), line, &said).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let long = vec![b' '; 65 * 1024];
    let status = world.send(By::Node(&nodes[0]), line, long).await.status();
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn two_agents_race_for_the_lease_and_the_old_token_commits_nothing() {
    let world = World::new();
    let root = world.key("root", true);
    let (_, nodes) = world.cluster("prod", &["n1", "n2"]).await;
    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    let at = revision(&world, &nodes[0]).await;

    let (a, b) = tokio::join!(lease(&world, &nodes[0], None), lease(&world, &nodes[1], None));
    let (winner, loser, held) = match (a, b) {
        (Ok(lease), Err(no)) => (&nodes[0], &nodes[1], (lease, no)),
        (Err(no), Ok(lease)) => (&nodes[1], &nodes[0], (lease, no)),
        other => panic!("exactly one gets it: {other:?}"),
    };
    assert_eq!(code(&held.1), "E4096", "{}", held.1);
    let first = held.0.fencing;
    assert_eq!(commit(&world, loser, first, at, Commit::Preflighted).await, "409 E4097");

    world.advance(16_000);
    assert_eq!(commit(&world, winner, first, at, Commit::Preflighted).await, "409 E4097", "late");
    let second = lease(&world, loser, None).await.unwrap().fencing;
    assert!(second > first);
    assert_eq!(commit(&world, winner, first, at, Commit::Preflighted).await, "409 E4097");
    assert_eq!(commit(&world, loser, second, at + 1, Commit::Preflighted).await, "409 E4098");
    assert_eq!(commit(&world, loser, second, at, Commit::Promoted).await, "409 E4099");
    assert_eq!(revision(&world, winner).await, at, "refused commits change nothing");
    assert_eq!(commit(&world, loser, second, at, Commit::Preflighted).await, "done");
    let more = lease(&world, loser, Some(second)).await.unwrap();
    assert_eq!(more.fencing, second, "the same process goes on");
}

#[tokio::test]
async fn what_agents_may_not_commit() {
    let world = World::new();
    let (root, other) = (world.key("root", true), world.key("other", true));
    let (id, nodes) = world.cluster("prod", &["n1"]).await;
    let node = &nodes[0];
    let fencing = lease(&world, node, None).await.unwrap().fencing;
    let open = |kind| Commit::Opened {
        id: OperationId::random(),
        kind,
        target: root,
        take_up: TakeUp::Restart,
        public_endpoint: None,
        by: "x".into(),
    };
    let at = revision(&world, node).await;
    for no in [
        open(OperationKind::Enable),
        open(OperationKind::Switch),
        Commit::Joined { agent: name("n9") },
        Commit::Endpoint { public: true },
    ] {
        assert_eq!(commit(&world, node, fencing, at, no).await, "400 E4000");
    }
    assert_eq!(commit(&world, node, fencing, at, open(OperationKind::Rotate)).await, "409 E4099");

    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    assert_eq!(commit(&world, node, fencing, at + 1, Commit::Preflighted).await, "done");
    // The server looks for itself whether the registration is there.
    assert_eq!(commit(&world, node, fencing, at + 2, Commit::Registered).await, "400 E4000");
    world.use_key(root, &id);
    assert_eq!(commit(&world, node, fencing, at + 2, Commit::Registered).await, "done");
    // And whether the version that wraps the KEK exists.
    let kek = json!({
        "commit": "minted",
        "kek": {
            "serial": 1, "wrapped": "w", "role": "staged", "created": 1,
            "root": { "root": root, "version": other.key },
        },
    });
    let kek = serde_json::from_value(kek).unwrap();
    assert_eq!(commit(&world, node, fencing, at + 3, kek).await, "400 E4000");
}

#[tokio::test]
async fn an_acknowledgement_names_an_event_of_a_root_key_in_use() {
    let world = World::new();
    let (root, other) = (world.key("root", true), world.key("other", true));
    let (_, nodes) = world.cluster("prod", &["n1"]).await;
    world.change(root, EventKind::Disable);
    world.change(root, EventKind::Enable);
    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    let last = world.app.store.read("t", |tx| claviger_store::events::last_of(tx, &root)).unwrap();
    let ack = async |root, event| {
        let said = json!({ "root": root, "event": event, "state": "active", "fenced": false });
        world.call(By::Node(&nodes[0]), "POST /agent/v1/ack", &said).await.0.as_u16()
    };
    assert_eq!(ack(root, last).await, 204);
    assert_eq!(ack(root, last).await, 204, "again");
    assert_eq!(ack(root, last + 1).await, 400, "no such event");
    assert_eq!(ack(other, 1).await, 400, "not a key of this cluster");
    let kept = world.app.store.read("t", |tx| {
        claviger_store::clusters::acks_of_key(tx, &root).map_err(claviger_store::StoreError::from)
    });
    assert_eq!(kept.unwrap().len(), 1);
}

#[tokio::test]
async fn agents_reach_the_keys_of_their_cluster_and_no_others() {
    let world = World::new();
    let (root, _other) = (world.key("root", true), world.key("other", true));
    let (id, _) = world.cluster("prod", &["n1"]).await;
    let scope = || world.app.store.read("t", |tx| super::super::scope_of(tx, &id)).unwrap();
    assert!(scope().is_empty());
    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    assert_eq!(scope(), [root]);
}

#[tokio::test]
async fn jobs_are_bounded_done_once_and_lapse() {
    let world = World::new();
    let (_, nodes) = world.cluster("prod", &["n1"]).await;
    let (_, strangers) = world.cluster("other", &["n1"]).await;
    let line = "POST /v3/clusters/prod/jobs";
    let kind = json!({ "kind": "census" });
    let mut jobs: Vec<JobView> = Vec::new();
    for _ in 0..8 {
        jobs.push(world.admin(line, &kind).await);
    }
    let (status, value) = world.call(By::Token(&world.admin), line, &kind).await;
    assert_eq!((status, code(&value)), (StatusCode::TOO_MANY_REQUESTS, "E4291"), "{value}");
    let (_, value) = state(&world, &nodes[0]).await;
    let seen: State = serde_json::from_value(value).unwrap();
    assert_eq!(seen.jobs.len(), 8);

    let report = |id| format!("POST /agent/v1/jobs/{id}");
    let done = json!({ "is": "done", "result": { "total": 7 } });
    let (status, _) = world.call(By::Node(&strangers[0]), &report(jobs[0].id), &done).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "another cluster's agent");
    let running = json!({ "is": "running", "note": "counting" });
    for said in [&running, &done] {
        let (status, _) = world.call(By::Node(&nodes[0]), &report(jobs[0].id), said).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
    }
    let (status, _) = world.call(By::Node(&nodes[0]), &report(jobs[0].id), &running).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "it has ended");
    let look = async |job: &JobView| -> Option<JobReport> {
        let line = format!("GET /v3/clusters/prod/jobs/{}", job.id);
        world.admin::<JobView>(&line, &Value::Null).await.report
    };
    assert_eq!(look(&jobs[0]).await, Some(JobReport::Done { result: json!({ "total": 7 }) }));
    assert_eq!(look(&jobs[1]).await, None);
    world.advance(59 * MINUTE + 59_999);
    assert_eq!(look(&jobs[1]).await, None);
    world.advance(1);
    assert!(matches!(look(&jobs[1]).await, Some(JobReport::Failed { .. })));
}

/// What a count found lets plaintext be read again, so no node says it unasked.
#[tokio::test]
async fn a_count_is_taken_for_an_open_job_only() {
    let world = World::new();
    let (_, nodes) = world.cluster("prod", &["n1", "n2"]).await;
    let line = "POST /v3/clusters/prod/jobs";
    let node = &nodes[0];
    let fencing = lease(&world, node, None).await.unwrap().fencing;
    let revision = revision(&world, node).await;
    let tally = Tally { total: 1, plaintext: 1, ..Tally::default() };
    let says = async |node: &Node, job| {
        let counted = Commit::Counted { job, tally };
        commit(&world, node, fencing, revision, counted).await
    };
    assert!(says(node, JobId::random()).await.starts_with("404 "), "nobody asked");
    let job: JobView = world.admin(line, &json!({ "kind": "census" })).await;
    assert_eq!(says(&nodes[1], job.id).await, "409 E4097", "another holds the lease");
    assert_eq!(says(node, job.id).await, "409 E4099", "taken, and refused: nothing seals yet");
    let done = json!({ "is": "done", "result": {} });
    let report = format!("POST /agent/v1/jobs/{}", job.id);
    assert_eq!(world.call(By::Node(node), &report, &done).await.0, StatusCode::NO_CONTENT);
    assert!(says(node, job.id).await.starts_with("404 "), "it has ended");
}
