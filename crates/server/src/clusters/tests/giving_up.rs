//! Operations that are given up, over the wire: before, while and after their KEK seals.

use super::simulation::Sim;
use super::world::{By, World, code};
use axum::http::StatusCode;
use claviger_domain::cluster::plan::{Step, Why};
use claviger_domain::cluster::ring::Role;
use claviger_domain::cluster::{Access, OperationKind};
use claviger_domain::id::{Serial, UnixMs};
use claviger_domain::key::RootKey;
use claviger_store::events::EventKind;
use claviger_store::{keys, registrations};
use claviger_wire::ks::{GaveUp, GivenUp, KmsStatus};
use serde_json::{Value, json};

const CANCEL: &str = "POST /v3/clusters/prod/kms/operations/cancel";

async fn cancel(world: &World, without: bool) -> Result<GivenUp, (StatusCode, String)> {
    let ask = json!({ "without_root_key": without });
    let (status, value) = world.call(By::Token(&world.admin), CANCEL, &ask).await;
    if status == StatusCode::OK {
        return Ok(serde_json::from_value(value).unwrap());
    }
    Err((status, code(&value).to_owned()))
}

fn refused(code: &str) -> Option<(StatusCode, String)> {
    Some((StatusCode::CONFLICT, code.to_owned()))
}

/// Turns until the loop has done this step.
async fn until(sim: &mut Sim<'_>, step: &str) {
    for _ in 0..40 {
        sim.turn().await;
        if sim.steps.last().is_some_and(|s| s == step) {
            return;
        }
    }
    panic!("no {step}: {:?}", sim.steps);
}

/// An encrypted cluster of two API servers, its root key, and another.
async fn encrypted(world: &World) -> (Sim<'_>, RootKey, RootKey) {
    let (first, second) = (world.key("first", true), world.key("second", true));
    let mut sim = Sim::new(world, "prod", &["n1", "n2"]).await;
    sim.nodes_act().await;
    assert_eq!(cancel(world, false).await.err(), refused("E4093"), "nothing is in progress");
    assert_eq!(world.open("prod", first).await.0, StatusCode::ACCEPTED);
    sim.run().await;
    sim.steps.clear();
    (sim, first, second)
}

#[tokio::test]
async fn before_anything_is_sealed_nothing_was_changed() {
    let world = World::new();
    let (mut sim, first, second) = encrypted(&world).await;
    for step in ["CommitPreflighted", "Register", "Mint"] {
        assert_eq!(world.open("prod", second).await.0, StatusCode::ACCEPTED);
        until(&mut sim, step).await;
        let before = sim.state(&sim.nodes[0]).await.cluster;
        let given_up = cancel(&world, false).await.unwrap();
        assert_eq!(given_up.outcome, GaveUp::Cancelled);
        let after = sim.state(&sim.nodes[0]).await.cluster;
        assert!(after.operation.is_none(), "{step}");
        assert_eq!((after.ring.keks.len(), &after.servers), (1, &before.servers));
        let crn = world.app.account.cluster_crn(&sim.cluster);
        let of = |root| world.app.store.read("t", |tx| registrations::get(tx, &root, &crn));
        assert!(of(second).unwrap().is_none() && of(first).unwrap().is_some());
        let scope = |tx: &claviger_store::Tx<'_>| super::super::scope_of(tx, &sim.cluster);
        let scope = world.app.store.read("t", scope).unwrap();
        assert_eq!(scope, [first], "an agent that is late cannot register");
        assert_eq!(sim.turn().await, Step::Rest);
    }
    // The root key was never sealed under, so it may be asked for again; the serial is spent.
    assert_eq!(world.open("prod", second).await.0, StatusCode::ACCEPTED);
    sim.run().await;
    assert!(sim.all_under(3), "{:?}", sim.records);
}

/// A root key that nothing was ever sealed under can be deleted, however its operation ended.
#[tokio::test]
async fn an_operation_that_is_rejected_takes_its_registration_along() {
    let world = World::new();
    let (mut sim, first, second) = encrypted(&world).await;
    let crn = world.app.account.cluster_crn(&sim.cluster);
    let registered = |root| {
        world.app.store.read("t", |tx| registrations::get(tx, &root, &crn)).unwrap().is_some()
    };
    assert_eq!(world.open("prod", second).await.0, StatusCode::ACCEPTED);
    until(&mut sim, "Register").await;
    assert!(registered(second));
    world.change(second, EventKind::Disable);
    until(&mut sim, "Reject").await;
    let cluster = sim.state(&sim.nodes[0]).await.cluster;
    assert!(cluster.operation.is_none() && cluster.history[0].rejected.is_some());
    assert!(registered(first) && !registered(second));
}

/// A first enablement that was cancelled leaves a KEK for the API servers that name the provider;
/// the next one, under another root key, takes its place.
#[tokio::test]
async fn a_kek_that_was_kept_for_api_servers_takes_its_registration_along() {
    let world = World::new();
    let (first, second) = (world.key("first", true), world.key("second", true));
    let mut sim = Sim::new(&world, "prod", &["n1", "n2"]).await;
    sim.nodes_act().await;
    let crn = world.app.account.cluster_crn(&sim.cluster);
    let registered = |root| {
        world.app.store.read("t", |tx| registrations::get(tx, &root, &crn)).unwrap().is_some()
    };
    assert_eq!(world.open("prod", first).await.0, StatusCode::ACCEPTED);
    until(&mut sim, "TakeUp").await;
    cancel(&world, false).await.unwrap();
    assert!(registered(first), "a KEK under it is reported");
    assert_eq!(world.open("prod", second).await.0, StatusCode::ACCEPTED);
    sim.run().await;
    assert!(registered(second) && !registered(first));
}

#[tokio::test]
async fn a_rotation_gives_way_to_a_switch_only() {
    let world = World::new();
    let (mut sim, first, second) = encrypted(&world).await;
    world.change(first, EventKind::Rotate);
    until(&mut sim, "Mint").await;
    assert_eq!(cancel(&world, false).await.err(), refused("E4101"), "it would begin again");
    assert_eq!(world.open("prod", second).await.0, StatusCode::ACCEPTED);
    let cluster = sim.state(&sim.nodes[0]).await.cluster;
    assert_eq!(cluster.operation.unwrap().kind, OperationKind::Switch);
    assert_eq!(cluster.history[0].kind, OperationKind::Rotate);
    sim.run().await;
    assert!(sim.all_under(3), "{:?}", sim.records);

    world.change(second, EventKind::Rotate);
    until(&mut sim, "Promote").await;
    assert_eq!(cancel(&world, false).await.err(), refused("E4101"), "no other key wrote before");
    let third = world.key("third", true);
    assert_eq!(world.open("prod", third).await.0, StatusCode::CONFLICT, "it has sealed");
}

#[tokio::test]
async fn once_it_seals_the_cluster_goes_back_by_a_rewrite() {
    let world = World::new();
    let (mut sim, first, second) = encrypted(&world).await;
    assert_eq!(world.open("prod", second).await.0, StatusCode::ACCEPTED);
    until(&mut sim, "Rewrite").await;
    assert!(sim.all_under(2));
    let given_up = cancel(&world, false).await.unwrap();
    assert_eq!(given_up.outcome, GaveUp::Reversed);
    assert_eq!(cancel(&world, false).await.err(), refused("E4101"), "it goes back already");
    let status: KmsStatus = world.admin("GET /v3/clusters/prod/kms", &Value::Null).await;
    let op = status.state.cluster.operation.unwrap();
    assert_eq!((op.kind, op.target), (OperationKind::Reverse, first));
    assert_eq!(Some(op.id), given_up.operation);
    sim.run().await;
    assert!(sim.all_under(3), "{:?}", sim.records);
    let cluster = sim.state(&sim.nodes[0]).await.cluster;
    assert_eq!(cluster.ring.write().unwrap().root.root, first);
    assert!(cluster.history[1].rejected.as_ref().unwrap().contains("went back"));
    // Going back is the exception; to ask for a used key is refused as ever.
    let (status, value) = world.open("prod", second).await;
    assert_eq!((status, code(&value)), (StatusCode::CONFLICT, "E4092"));
}

#[tokio::test]
async fn going_back_to_a_root_key_that_ends_soon_is_worth_a_warning_and_to_an_expired_one_refused()
{
    let world = World::new();
    let (mut sim, first, second) = encrypted(&world).await;
    assert_eq!(world.open("prod", second).await.0, StatusCode::ACCEPTED);
    until(&mut sim, "Rewrite").await;
    let expires = |at: UnixMs| {
        let set = world.app.store.tx("t", |tx| {
            let mut key = keys::get(tx, &first)?.unwrap();
            key.expires = Some(at);
            keys::update(tx, &key)
        });
        set.unwrap();
    };
    expires(world.now());
    let ask = json!({ "without_root_key": false });
    let (status, value) = world.call(By::Token(&world.admin), CANCEL, &ask).await;
    assert_eq!((status, code(&value)), (StatusCode::CONFLICT, "E4102"));
    assert!(value["description"].as_str().unwrap().contains("never"), "{value}");
    assert!(!value["recoveryCLI"].as_str().unwrap().contains("key enable"), "{value}");
    // Nobody is told to wait for a key that has expired.
    let line = "GET /v3/clusters/prod/kubeconfig";
    let (status, value) = world.call(By::Token(&world.admin), line, &Value::Null).await;
    assert_eq!((status, code(&value)), (StatusCode::CONFLICT, "E4095"));
    let told = value["description"].as_str().unwrap();
    assert!(told.contains("cannot be undone") && !told.contains("again"), "{told}");
    expires(UnixMs(world.now().0 + 15_000));
    let given_up = cancel(&world, false).await.unwrap();
    assert_eq!(given_up.outcome, GaveUp::Reversed);
    assert!(given_up.warnings[0].contains("expires in less than a minute"), "{given_up:?}");
}

#[tokio::test]
async fn it_goes_back_without_a_root_key_that_is_lost() {
    let world = World::new();
    let (mut sim, first, second) = encrypted(&world).await;
    assert_eq!(world.open("prod", second).await.0, StatusCode::ACCEPTED);
    until(&mut sim, "Promote").await;
    // A part was written under the new key when that is disabled.
    sim.records[..7].fill(Some(Serial(2)));
    world.change(second, EventKind::Disable);
    assert_eq!(cancel(&world, false).await.err(), refused("E4102"), "a person must decide that");
    assert_eq!(cancel(&world, true).await.unwrap().outcome, GaveUp::Reversed);
    until(&mut sim, "Mint").await;
    assert_eq!(sim.turn().await, Step::Wait(Why::NotFenced(sim.nodes[0].agent.clone())));

    let state = sim.state(&sim.nodes[0]).await;
    let event = state.roots.iter().find(|r| r.root == second).unwrap().event;
    let fence = |sim: &mut Sim<'_>, on: bool| {
        let since = sim.world.now();
        let access = if on { Access::Fenced { root: second, event, since } } else { Access::Open };
        sim.seen.values_mut().for_each(|s| s.access = access.clone());
    };
    fence(&mut sim, true);
    sim.nodes_act().await;
    let nodes = sim.nodes.clone();
    let (one, all) = (&nodes[..1], &nodes[..]);
    for (acted, taken) in [(one, false), (all, true)] {
        for node in acted {
            let ack =
                json!({ "root": second, "event": event, "state": "suspended", "fenced": true });
            let line = "POST /agent/v1/ack";
            let status = world.call(By::Node(node), line, &ack).await.0;
            assert_eq!(status, StatusCode::NO_CONTENT);
        }
        let cluster = sim.state(&nodes[0]).await.cluster;
        let all = super::super::give_up::all_fenced;
        let said = world.app.store.read("t", |tx| all(tx, &cluster, second)).unwrap();
        assert_eq!(said, taken);
    }
    assert_eq!(sim.turn().await, Step::GoWithout { root: second });
    fence(&mut sim, false);
    let mut last = Step::Rest;
    for _ in 0..9 {
        last = sim.turn().await;
    }
    assert_eq!(last, Step::Wait(Why::Unknown(7)), "{:?}", sim.steps);
    let cluster = sim.state(&nodes[0]).await.cluster;
    assert_eq!(cluster.ring.write().unwrap().root.root, first);
    assert_eq!(cluster.ring.get(Serial(2)).unwrap().role, Role::Lost);
    assert_eq!(sim.records.iter().filter(|r| **r == Some(Serial(3))).count(), 13);
    let status: KmsStatus = world.admin("GET /v3/clusters/prod/kms", &Value::Null).await;
    assert!(status.next.contains("KEK 2 cannot be read"), "{}", status.next);

    // It is enabled after all: what was unread is rewritten like the rest.
    world.change(second, EventKind::Enable);
    sim.run().await;
    assert!(sim.all_under(3), "{:?}", sim.records);
}

/// The key that a cluster leaves ends in the middle of a switch, for good: there is no way back to
/// it, and it closes the cluster. The way forward is freed of it.
#[tokio::test]
async fn it_goes_forward_without_the_root_key_that_it_leaves() {
    let world = World::new();
    let (mut sim, first, second) = encrypted(&world).await;
    assert_eq!(world.open("prod", second).await.0, StatusCode::ACCEPTED);
    until(&mut sim, "Promote").await;
    sim.records[..7].fill(Some(Serial(2)));
    world.change(first, EventKind::Disable);
    assert_eq!(cancel(&world, false).await.err(), refused("E4102"), "a person must decide that");
    let given_up = cancel(&world, true).await.unwrap();
    assert_eq!(given_up.outcome, GaveUp::WithoutRootKey);
    let nodes = sim.nodes.clone();
    let state = sim.state(&nodes[0]).await;
    let op = state.cluster.operation.unwrap();
    assert_eq!((op.kind, op.target, op.without), (OperationKind::Switch, second, Some(first)));

    let event = state.roots.iter().find(|r| r.root == first).unwrap().event;
    let since = world.now();
    let fenced = Access::Fenced { root: first, event, since };
    sim.seen.values_mut().for_each(|s| s.access = fenced.clone());
    sim.nodes_act().await;
    for node in &nodes {
        let ack = json!({ "root": first, "event": event, "state": "suspended", "fenced": true });
        let status = world.call(By::Node(node), "POST /agent/v1/ack", &ack).await.0;
        assert_eq!(status, StatusCode::NO_CONTENT);
    }
    assert_eq!(sim.turn().await, Step::GoWithout { root: first });
    sim.seen.values_mut().for_each(|s| s.access = Access::Open);
    let mut last = Step::Rest;
    for _ in 0..9 {
        last = sim.turn().await;
    }
    assert_eq!(last, Step::Wait(Why::Unknown(13)), "{:?}", sim.steps);
    let cluster = sim.state(&nodes[0]).await.cluster;
    assert_eq!(cluster.ring.write().unwrap().root.root, second);
    assert_eq!(cluster.ring.get(Serial(1)).unwrap().role, Role::Lost);
}

/// A registration can be taken away by whoever stole a node's certificate; what the cluster's own
/// ring says cannot.
#[tokio::test]
async fn a_key_in_use_is_not_deleted_whatever_its_registrations_say() {
    let world = World::new();
    let (sim, first, _) = encrypted(&world).await;
    let remove = |tx: &claviger_store::Tx<'_>| {
        for found in registrations::of_key(tx, &first)? {
            registrations::remove(tx, &first, &found.crn)?;
        }
        Ok::<_, claviger_store::StoreError>(())
    };
    world.app.store.tx("t", remove).unwrap();
    let names = world.app.store.read("t", |tx| crate::clusters::users(tx, &first)).unwrap();
    assert_eq!(names, ["prod"]);
    drop(sim);
}
