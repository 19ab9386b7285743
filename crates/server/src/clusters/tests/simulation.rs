//! Whole operations with hand-made nodes: every step is what `plan` says, every commit goes over
//! the wire under the lease, and the loop moves to another agent all the time.

use super::world::{By, World, code};
use crate::http::auth::Node;
use axum::http::StatusCode;
use claviger_domain::cluster::commit::Commit;
use claviger_domain::cluster::plan::{Facts, Step, Why, plan};
use claviger_domain::cluster::ring::{Kek, Role};
use claviger_domain::cluster::{
    Access, Canary, Cluster, Observation, OperationKind, Preflight, Process, Rewrite, Stage,
    TakeUp, Tally, Verified,
};
use claviger_domain::id::{ClusterId, OperationId, RestoreId, Serial};
use claviger_domain::key::{KeyState, RootKey, RootVersion};
use claviger_store::clusters;
use claviger_store::events::EventKind;
use claviger_wire::agent::{CommitRequest, Lease, State};
use claviger_wire::ks::{ClusterView, KmsStatus, OpenOperation};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One node: its plugin and its API server, as far as observations tell.
pub struct Sim<'w> {
    pub world: &'w World,
    pub cluster: ClusterId,
    pub nodes: Vec<Node>,
    pub seen: BTreeMap<String, Observation>,
    /// The KEK of each record; none for plaintext.
    pub records: Vec<Option<Serial>>,
    revision: i64,
    pub steps: Vec<String>,
    turn: usize,
}

impl<'w> Sim<'w> {
    pub async fn new(world: &'w World, name: &str, agents: &[&str]) -> Sim<'w> {
        let (cluster, nodes) = world.cluster(name, agents).await;
        let observation = |agent: &Node| Observation {
            agent: agent.agent.clone(),
            build: "0.1.0".into(),
            kubernetes: Some("v1.37.2".into()),
            ring_revision: 0,
            opened: Vec::new(),
            key_id: None,
            stage_on_disk: Stage::Bare,
            stage_loaded: Some(Stage::Bare),
            process: Some(Process { pid: 100, start: 1 }),
            ready: true,
            canary: None,
            api_servers: Vec::new(),
            files: None,
            ahead: None,
            restored: None,
            down: None,
            troubles: Vec::new(),
            preflight: None,
            access: Access::Open,
        };
        let seen = nodes.iter().map(|n| (n.agent.to_string(), observation(n))).collect();
        Sim {
            world,
            cluster,
            nodes,
            seen,
            records: vec![None; 20],
            revision: 1,
            steps: Vec::new(),
            turn: 0,
        }
    }

    pub async fn state(&self, node: &Node) -> State {
        let (status, value) =
            self.world.call(By::Node(node), "GET /agent/v1/state", &Value::Null).await;
        assert_eq!(status, StatusCode::OK, "{value}");
        serde_json::from_value(value).unwrap()
    }

    /// Every node acts on the state and says what it sees.
    pub async fn nodes_act(&mut self) {
        for node in &self.nodes {
            let state = self.state(node).await;
            let cluster = &state.cluster;
            let seen = self.seen.get_mut(node.agent.as_str()).unwrap();
            seen.ring_revision = cluster.revision;
            seen.restored = state.restored;
            seen.opened = cluster.ring.keks.iter().map(|k| k.serial).collect();
            seen.key_id = cluster.ring.reported().map(|k| k.key_id(&cluster.id));
            let target = cluster.servers[&node.agent].stage;
            if seen.stage_on_disk != target {
                seen.stage_on_disk = target;
                seen.stage_loaded = Some(target);
                seen.process = seen.process.map(|p| Process { start: p.start + 1, ..p });
            }
            if let (Some(write), Some(process)) = (cluster.ring.write(), seen.process)
                && target >= Stage::WriteFirst
            {
                let serial = Some(write.serial);
                seen.canary = Some(Canary { serial, process, stage: target });
            }
            if let Some(op) = &cluster.operation {
                seen.preflight =
                    Some(Preflight { operation: op.id, failure: None, warnings: Vec::new() });
            }
            let said = serde_json::to_value(&*seen).unwrap();
            let line = "POST /agent/v1/observation";
            let (status, value) = self.world.call(By::Node(node), line, &said).await;
            assert_eq!(status, StatusCode::NO_CONTENT, "{value}");
        }
    }

    fn tally(&self, state: &State) -> Tally {
        let write = state.cluster.ring.write().map(|k| k.serial);
        let mut tally =
            Tally { revision: self.revision, at: state.now, total: 20, ..Tally::default() };
        for record in &self.records {
            match record {
                None => tally.plaintext += 1,
                some if *some == write => tally.current += 1,
                Some(serial) if lost(state, *serial) => tally.unknown += 1,
                Some(_) => tally.stale += 1,
            }
        }
        tally
    }

    /// One turn of the loop by the next agent in line; what it did.
    pub async fn turn(&mut self) -> Step {
        self.nodes_act().await;
        let node = self.nodes[self.turn % self.nodes.len()].clone();
        self.turn += 1;
        let lease: Lease = {
            let ask = json!({ "fencing": null });
            let (status, value) =
                self.world.call(By::Node(&node), "POST /agent/v1/lease", &ask).await;
            assert_eq!(status, StatusCode::OK, "{value}");
            serde_json::from_value(value).unwrap()
        };
        let state = self.state(&node).await;
        assert_eq!(state.lease.as_ref().map(|l| &l.agent), Some(&node.agent));
        let plan_with = |tally| {
            plan(&Facts {
                cluster: &state.cluster,
                seen: &state.seen,
                roots: &state.roots,
                tally,
                now: state.now,
            })
        };
        // etcd is counted only when the planner asks for it.
        let step = match plan_with(None) {
            Step::Wait(Why::NoTally) => plan_with(Some(&self.tally(&state))),
            step => step,
        };
        if let Some(commit) = self.act(&state, &step) {
            let fencing = lease.fencing;
            let ask = CommitRequest { fencing, revision: state.cluster.revision, commit };
            let ask = serde_json::to_value(&ask).unwrap();
            let line = "POST /agent/v1/commit";
            let (status, value) = self.world.call(By::Node(&node), line, &ask).await;
            assert_eq!(status, StatusCode::OK, "{step:?}: {value}");
            let after: State = serde_json::from_value(value).unwrap();
            assert_eq!(after.cluster.revision, state.cluster.revision + 1);
            // The same commit again, as after a lost answer, is refused as stale.
            let (status, value) = self.world.call(By::Node(&node), line, &ask).await;
            assert_eq!((status, code(&value)), (StatusCode::CONFLICT, "E4098"), "{value}");
        }
        self.steps.push(format!("{step:?}").split([' ', '(']).next().unwrap().to_owned());
        // Its time passes, so that the next agent in line may run the loop.
        self.world.advance(15_000);
        step
    }

    fn act(&mut self, state: &State, step: &Step) -> Option<Commit> {
        let write = state.cluster.ring.write().map(|k| k.serial);
        Some(match step {
            Step::Rest | Step::Wait(_) => return None,
            Step::Open { target } => Commit::Opened {
                id: OperationId::random(),
                kind: OperationKind::Rotate,
                target: *target,
                take_up: TakeUp::Restart,
                public_endpoint: Some(true),
                by: "somebody else".into(),
            },
            Step::CommitPreflighted => Commit::Preflighted,
            Step::Reject { reason } => Commit::Rejected { reason: reason.clone() },
            Step::Register { target } => {
                self.world.use_key(*target, &self.cluster);
                Commit::Registered
            }
            Step::Mint { target, serial } => {
                let root = state.roots.iter().find(|r| r.root == *target).unwrap();
                Commit::Minted {
                    kek: Kek {
                        serial: *serial,
                        root: RootVersion { root: *target, version: root.current.unwrap() },
                        wrapped: "wrapped".into(),
                        role: Role::Staged,
                        created: state.now,
                    },
                }
            }
            Step::TakeUp { agent, stage } => Commit::TakeUp { agent: agent.clone(), stage: *stage },
            Step::Promote { .. } => Commit::Promoted,
            Step::Rewrite { left } => {
                assert!(*left > 0);
                let readable = |r: &&mut Option<Serial>| r.is_none_or(|s| !lost(state, s));
                self.records.iter_mut().filter(readable).for_each(|r| *r = write);
                self.revision += 20;
                Commit::Rewriting { rewrite: Rewrite { done: 20, total: 20, per_second: 9 } }
            }
            Step::Verify => Commit::Verified {
                verified: Verified {
                    revision: self.revision,
                    at: state.now,
                    records: 20,
                    sampled: 5,
                },
            },
            Step::Compact { revision } => Commit::Compacted { revision: *revision },
            Step::GoWithout { root } => Commit::WentWithout { root: *root },
            Step::Readmit { serial } => Commit::Readmitted { serial: *serial },
            Step::Finish => Commit::Finished,
        })
    }

    async fn view(&self) -> ClusterView {
        let line = format!("GET /v2/getCluster?v1-compatible&cluster={}", self.cluster);
        self.world.admin(&line, &Value::Null).await
    }

    /// Runs the loop until it rests; what the operator saw on the way, each once.
    pub async fn run(&mut self) -> Vec<String> {
        let mut shown = Vec::new();
        for _ in 0..80 {
            let step = self.turn().await;
            let view = self.view().await;
            let enabled = view.features.key_protect_enabled;
            let line = format!("{} {} {enabled}", view.lifecycle.master_state, view.master_status);
            if shown.last() != Some(&line) {
                shown.push(line);
            }
            if step == Step::Rest {
                return shown;
            }
        }
        panic!("no end after 80 turns: {:?}", self.steps);
    }

    pub fn all_under(&self, serial: u64) -> bool {
        self.records.iter().all(|r| *r == Some(Serial(serial)))
    }
}

fn lost(state: &State, serial: Serial) -> bool {
    state.cluster.ring.get(serial).is_some_and(|k| k.role == Role::Lost)
}

const READY: &str = "deployed Ready true";
const AT_WORK: &str = "updating Key management service feature enablement in progress.";

async fn enable(agents: &[&str], take_up: TakeUp) -> Vec<String> {
    let world = World::new();
    let root = world.key("root", true);
    let mut sim = Sim::new(&world, "prod", agents).await;
    sim.nodes_act().await;
    let before = sim.view().await;
    assert!(!before.features.key_protect_enabled && before.kms.is_none());
    assert_eq!(before.master_kube_version, "1.37.2_0.1.0");

    let RootKey { instance, key } = root;
    let ask = OpenOperation {
        instance_id: instance,
        crk_id: key,
        public_endpoint: false,
        take_up,
        accept_plaintext: false,
    };
    let (status, value) = {
        let line = "POST /v3/clusters/prod/kms/operations";
        let ask = serde_json::to_value(ask).unwrap();
        world.call(By::Token(&world.admin), line, &ask).await
    };
    assert_eq!(status, StatusCode::ACCEPTED, "{value}");
    assert!(value["warnings"][0].as_str().unwrap().contains("no backup"), "{value}");

    let shown = sim.run().await;
    assert_eq!(shown, [format!("{AT_WORK} false").as_str(), READY], "{:?}", sim.steps);
    assert!(sim.all_under(1));
    let state = sim.state(&sim.nodes[0]).await;
    assert!(state.cluster.servers.values().all(|t| t.stage == Stage::Only));
    let done = &state.cluster.history[0];
    assert_eq!((done.kind, done.rejected.as_deref()), (OperationKind::Enable, None));
    assert_eq!(done.requested_by, "IBMid-admin");
    let kms = sim.view().await.kms.unwrap();
    assert_eq!((kms.crk_id, kms.endpoint.as_str(), kms.phase.as_str()), (Some(key), "private", ""));
    assert!(kms.write_key_id.unwrap().starts_with("v2:"));
    sim.steps
}

#[tokio::test]
async fn enable_one_api_server() {
    let steps = enable(&["n1"], TakeUp::Restart).await;
    let order = [
        "CommitPreflighted",
        "Register",
        "Mint",
        "Promote",
        "TakeUp",
        "Rewrite",
        "Verify",
        "TakeUp",
        "Compact",
        "Finish",
        "Rest",
    ];
    assert_eq!(steps, order, "every step once, none of them a wait");
}

#[tokio::test]
async fn enable_three_api_servers_while_the_loop_moves_between_agents() {
    let steps = enable(&["n1", "n2", "n3"], TakeUp::Restart).await;
    assert_eq!(steps.iter().filter(|s| *s == "TakeUp").count(), 9, "{steps:?}");
    assert_eq!(steps.iter().filter(|s| *s == "Mint").count(), 1, "{steps:?}");
}

#[tokio::test]
async fn enable_by_reload_waits_for_requests_that_are_under_way() {
    let steps = enable(&["n1", "n2"], TakeUp::Reload).await;
    let last_take_up = steps.iter().rposition(|s| s == "TakeUp").unwrap();
    let proofs = steps[..last_take_up].iter().filter(|s| *s == "Verify").count();
    assert_eq!(proofs, 2, "a second proof before plaintext readers go: {steps:?}");
}

#[tokio::test]
async fn rotate_switch_suspend_and_return() {
    let world = World::new();
    let (first, second) = (world.key("first", true), world.key("second", true));
    let mut sim = Sim::new(&world, "prod", &["n1", "n2"]).await;
    sim.nodes_act().await;
    assert_eq!(world.open("prod", first).await.0, StatusCode::ACCEPTED);
    sim.run().await;

    world.change(first, EventKind::Rotate);
    sim.steps.clear();
    let shown = sim.run().await;
    assert_eq!(sim.steps[0], "Open");
    assert!(!sim.steps.iter().any(|s| s == "TakeUp" || s == "Compact"), "{:?}", sim.steps);
    assert!(sim.all_under(2));
    assert_eq!(shown, [format!("{AT_WORK} true").as_str(), READY]);
    let state = sim.state(&sim.nodes[0]).await;
    let done = &state.cluster.history[0];
    assert_eq!((done.kind, &*done.requested_by), (OperationKind::Rotate, "system"));
    assert!(!state.cluster.public_endpoint, "agents do not choose the endpoint");

    assert_eq!(world.open("prod", second).await.0, StatusCode::ACCEPTED);
    sim.run().await;
    assert!(sim.all_under(3));
    let (status, value) = world.open("prod", first).await;
    assert_eq!((status, code(&value)), (StatusCode::CONFLICT, "E4092"), "{value}");

    // Suspend the key in use: the operator sees it, the kubeconfig is not handed out.
    world.change(second, EventKind::Disable);
    let view = sim.view().await;
    assert_eq!((view.state.as_str(), view.master_health.as_str()), ("warning", "unavailable"));
    assert!(view.master_status.contains("Root key is disabled"), "{}", view.master_status);
    let state = sim.state(&sim.nodes[0]).await;
    let status = state.roots.iter().find(|r| r.root == second).unwrap();
    assert_eq!(status.state, KeyState::Suspended);
    let event = status.event;
    let config = "GET /v3/clusters/prod/kubeconfig";
    let (status, value) = world.call(By::Token(&world.admin), config, &Value::Null).await;
    assert_eq!((status, code(&value)), (StatusCode::CONFLICT, "E4095"));
    assert!(value["description"].as_str().unwrap().contains("suspended"));

    // What both say of themselves is older than the event.
    let closed = world.now();
    world.advance(5_000);
    let status: KmsStatus = world.admin("GET /v3/clusters/prod/kms", &Value::Null).await;
    assert!(status.next.contains("not confirmed by n1, n2"), "{}", status.next);
    assert!(status.agents.iter().all(|a| a.unfenced_since == Some(closed)), "{:?}", status.agents);

    // One of two agents says that it acted on the event.
    let ack = json!({ "root": second, "event": event, "state": "suspended", "fenced": true });
    let (node, line) = (By::Node(&sim.nodes[0]), "POST /agent/v1/ack");
    assert_eq!(world.call(node, line, &ack).await.0, StatusCode::NO_CONTENT);
    let status: KmsStatus = world.admin("GET /v3/clusters/prod/kms", &Value::Null).await;
    let said: Vec<_> = status.agents.iter().map(|a| (a.acknowledged, a.fenced)).collect();
    assert_eq!(said, [(Some(true), true), (Some(false), false)]);
    assert!(status.next.contains("not confirmed by n2 "), "{}", status.next);
    let said: Vec<_> = status.agents.iter().map(|a| a.unfenced_since).collect();
    assert_eq!(said, [None, Some(closed)]);

    // The other one too; then the first finds that its API server is not gone after all.
    let node = By::Node(&sim.nodes[1]);
    assert_eq!(world.call(node, line, &ack).await.0, StatusCode::NO_CONTENT);
    let status: KmsStatus = world.admin("GET /v3/clusters/prod/kms", &Value::Null).await;
    assert!(status.next.starts_with("every API server is fenced"), "{}", status.next);
    let reason = "a process still answers".to_owned();
    let closing = Access::Closing { root: second, event, since: closed, reason };
    sim.seen.get_mut("n1").unwrap().access = closing;
    sim.nodes_act().await;
    let status: KmsStatus = world.admin("GET /v3/clusters/prod/kms", &Value::Null).await;
    assert!(status.next.contains("not confirmed by n1 "), "{}", status.next);
    sim.seen.get_mut("n1").unwrap().access = Access::Open;
    sim.nodes_act().await;

    // Enabled again, an API server is fenced still: not yet.
    world.change(second, EventKind::Enable);
    let fenced = Access::Fenced { root: second, event, since: world.now() };
    sim.seen.get_mut("n2").unwrap().access = fenced;
    sim.nodes_act().await;
    let (status, value) = world.call(By::Token(&world.admin), config, &Value::Null).await;
    assert_eq!((status, code(&value)), (StatusCode::CONFLICT, "E4095"));
    sim.seen.get_mut("n2").unwrap().access = Access::Open;
    sim.nodes_act().await;
    let (status, _) = world.call(By::Token(&world.admin), config, &Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(sim.view().await.master_status, "Ready");
}

/// The server comes back from a backup that is older than a KEK: what an agent holds counts.
#[tokio::test]
async fn a_ring_that_the_server_forgot_is_brought_back() {
    let world = World::new();
    let root = world.key("root", true);
    let mut sim = Sim::new(&world, "prod", &["n1", "n2"]).await;
    sim.nodes_act().await;
    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    sim.run().await;
    let backup = sim.state(&sim.nodes[0]).await.cluster;
    let known = world.app.store.read("t", |tx| claviger_store::keys::get(tx, &root)).unwrap();
    world.change(root, EventKind::Rotate);
    sim.run().await;
    let held = sim.state(&sim.nodes[0]).await.cluster;
    assert!(sim.all_under(2));

    // As after a restore: the cluster and its root key as they were, the new version unknown.
    let restored = world.app.store.tx("t", |tx| -> Result<(), claviger_store::StoreError> {
        let mut row = clusters::get(tx, &backup.id)?.unwrap();
        let revision = row.cluster.revision;
        row.cluster = Cluster { revision: revision + 1, ..backup.clone() };
        assert!(clusters::update(tx, &row.cluster)?);
        let mut key = known.clone().unwrap();
        key.updated = None;
        claviger_store::keys::update(tx, &key)
    });
    restored.unwrap();
    let node = sim.nodes[0].clone();
    let ask = json!({ "fencing": null });
    let (_, lease) = world.call(By::Node(&node), "POST /agent/v1/lease", &ask).await;
    let fencing = lease["fencing"].as_u64().unwrap();
    // No node turns a server's truth back that was not restored, as far as it knows.
    let not_restored = CommitRequest {
        fencing,
        revision: sim.state(&node).await.cluster.revision,
        commit: Commit::Recovered { restore: RestoreId::random(), held: Box::new(held.clone()) },
    };
    let not_restored = serde_json::to_value(not_restored).unwrap();
    let line = "POST /agent/v1/commit";
    let (status, value) = world.call(By::Node(&node), line, &not_restored).await;
    assert_eq!((status, code(&value)), (StatusCode::CONFLICT, "E4099"), "{value}");
    assert!(value["description"].as_str().unwrap().contains("does not know"), "{value}");
    let restore = world.restored();

    // Until then it cannot say that all is well.
    sim.seen.get_mut("n2").unwrap().ahead = Some("it holds KEK 2".to_owned());
    sim.nodes_act().await;
    let view = sim.view().await;
    assert_eq!(view.state, "critical", "{}", view.master_status);
    assert!(view.master_status.contains("newer backup"), "{}", view.master_status);
    let (status, value) = world.open("prod", root).await;
    assert_eq!((status, code(&value)), (StatusCode::CONFLICT, "E4107"), "not as it seems: {value}");
    // Both nodes speak by the restored truth; as long as one lacks nothing and one does, it waits.
    assert_eq!(sim.state(&node).await.restored, Some(restore));
    assert_eq!(sim.turn().await, Step::Wait(Why::Ahead(sim.nodes[1].agent.clone())));

    let (_, lease) = world.call(By::Node(&node), "POST /agent/v1/lease", &ask).await;
    let fencing = lease["fencing"].as_u64().unwrap();
    let commit = async |held: Cluster| {
        let revision = sim.state(&node).await.cluster.revision;
        let commit = Commit::Recovered { restore, held: Box::new(held) };
        let ask = serde_json::to_value(CommitRequest { fencing, revision, commit }).unwrap();
        world.call(By::Node(&node), "POST /agent/v1/commit", &ask).await
    };
    // A root key that this server has never had would count as destroyed.
    let mut foreign = held.clone();
    foreign.ring.keks[1].root.root.key = claviger_domain::id::KeyId::random();
    let (status, value) = commit(foreign).await;
    assert_eq!((status, code(&value)), (StatusCode::CONFLICT, "E4099"), "{value}");
    assert!(value["description"].as_str().unwrap().contains("after the backup"), "{value}");

    // Nor does a node come to somebody else's root key by naming it.
    let theirs = world.key("theirs", true);
    let (mut by_ring, mut by_used) = (held.clone(), held.clone());
    by_ring.ring.keks[1].root.root = theirs;
    by_used.used.push(theirs);
    for greedy in [by_ring, by_used] {
        let (status, value) = commit(greedy).await;
        assert_eq!((status, code(&value)), (StatusCode::CONFLICT, "E4099"), "{value}");
        assert!(value["description"].as_str().unwrap().contains("no operator chose"), "{value}");
    }

    let (status, value) = commit(held.clone()).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    let state: State = serde_json::from_value(value).unwrap();
    assert_eq!(state.cluster.ring, held.ring);
    let (status, _) = commit(held.clone()).await;
    assert_eq!(status, StatusCode::CONFLICT, "nothing is missing any more");
    assert_eq!(sim.state(&node).await.restored, Some(restore), "n2 has not said so");
    sim.seen.get_mut("n2").unwrap().ahead = None;
    sim.nodes_act().await;
    assert_eq!(sim.state(&node).await.restored, None);
    // The version that wraps KEK 2 is gone, so the cluster moves to the one that is current.
    world.advance(15_000);
    sim.run().await;
    assert!(sim.all_under(3), "{:?}", sim.steps);
    let state = sim.state(&sim.nodes[0]).await;
    assert_eq!(Some(state.cluster.ring.write().unwrap().root.version), state.roots[0].current);
}

/// The server is restored to before a rotation that was under way: what it was to prove could never
/// be proven, since the version is gone. The cluster rotates to the one that is current instead.
#[tokio::test]
async fn a_rotation_under_way_does_not_outlive_its_version() {
    let world = World::new();
    let root = world.key("root", true);
    let mut sim = Sim::new(&world, "prod", &["n1", "n2"]).await;
    sim.nodes_act().await;
    assert_eq!(world.open("prod", root).await.0, StatusCode::ACCEPTED);
    sim.run().await;
    let backup = sim.state(&sim.nodes[0]).await.cluster;
    world.change(root, EventKind::Rotate);
    while !sim.all_under(2) {
        sim.turn().await;
    }
    let mut held = sim.state(&sim.nodes[0]).await.cluster;
    assert!(held.operation.as_ref().is_some_and(|op| op.promoted.is_some()));
    // The version under which KEK 2 was wrapped: one that this server does not have.
    let kek = held.ring.keks.iter_mut().find(|k| k.serial.0 == 2).unwrap();
    kek.root.version = claviger_domain::id::KeyVersionId::random();
    let restored = world.app.store.tx("t", |tx| -> Result<(), claviger_store::StoreError> {
        let revision = clusters::get(tx, &backup.id)?.unwrap().cluster.revision;
        let cluster = Cluster { revision: revision + 1, ..backup.clone() };
        assert!(clusters::update(tx, &cluster)?);
        Ok(())
    });
    restored.unwrap();
    let node = sim.nodes[0].clone();
    let ask = json!({ "fencing": null });
    let (_, lease) = world.call(By::Node(&node), "POST /agent/v1/lease", &ask).await;
    let commit = CommitRequest {
        fencing: lease["fencing"].as_u64().unwrap(),
        revision: sim.state(&node).await.cluster.revision,
        commit: Commit::Recovered { restore: world.restored(), held: Box::new(held) },
    };
    let ask = serde_json::to_value(commit).unwrap();
    let (status, value) = world.call(By::Node(&node), "POST /agent/v1/commit", &ask).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    let state: State = serde_json::from_value(value).unwrap();
    assert!(state.cluster.operation.is_none(), "{:?}", state.cluster.operation);
    world.advance(15_000);
    sim.run().await;
    assert!(sim.all_under(3), "{:?}", sim.steps);
}
