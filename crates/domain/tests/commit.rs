//! Whatever is committed in whatever order: what `commit::apply` promises holds.

#![allow(clippy::unwrap_used)] // A panic is the report of a test.

use claviger_domain::cluster::commit::{Commit, Refusal, apply};
use claviger_domain::cluster::ring::{Kek, Role};
use claviger_domain::cluster::{
    Cluster, HISTORY_MAX, OperationKind, Residue, Rewrite, Stage, TakeUp, Tally, Verified,
};
use claviger_domain::id::{
    AgentName, ClusterId, InstanceId, JobId, KeyId, KeyVersionId, OperationId, Serial, UnixMs,
};
use claviger_domain::key::{RootKey, RootVersion};
use proptest::prelude::*;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Few roots and agents, so that random commits meet.
fn root(n: u8) -> RootKey {
    RootKey { instance: InstanceId(Uuid::from_u128(1)), key: KeyId(Uuid::from_u128(n.into())) }
}

fn agent(n: u8) -> AgentName {
    format!("n{n}").parse().unwrap()
}

fn empty() -> Cluster {
    Cluster::new("abcdefghij0123456789".parse::<ClusterId>().unwrap(), "c".into(), UnixMs(0))
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![
        Just(Stage::Bare),
        Just(Stage::ReadFirst),
        Just(Stage::WriteFirst),
        Just(Stage::Only)
    ]
}

fn kind() -> impl Strategy<Value = OperationKind> {
    prop_oneof![
        Just(OperationKind::Enable),
        Just(OperationKind::Rotate),
        Just(OperationKind::Switch),
        Just(OperationKind::Reverse)
    ]
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![8 => Just(Role::Staged), 1 => Just(Role::Write), 1 => Just(Role::Read)]
}

/// What a commit says that depends on the state is often right, sometimes not.
#[derive(Debug, Clone)]
enum Draw {
    Given(Commit),
    Mint { off: u64, root: Option<u8>, version: u8, role: Role },
    Open { kind: Option<OperationKind>, target: Option<u8> },
    Back { target: Option<u8>, without: Option<u8> },
}

fn draw() -> impl Strategy<Value = Draw> {
    let verified = Verified { revision: 7, at: UnixMs(7), records: 3, sampled: 1 };
    let given = prop_oneof![
        2 => (0u8..3).prop_map(|n| Commit::Joined { agent: agent(n) }),
        1 => (0u8..4).prop_map(|n| Commit::Left { agent: agent(n) }),
        1 => any::<bool>().prop_map(|public| Commit::Endpoint { public }),
        4 => Just(Commit::Preflighted),
        1 => Just(Commit::Rejected { reason: "no".into() }),
        4 => Just(Commit::Registered),
        6 => (0u8..4, stage()).prop_map(|(n, stage)| Commit::TakeUp { agent: agent(n), stage }),
        4 => Just(Commit::Promoted),
        2 => Just(Commit::Rewriting { rewrite: Rewrite { done: 1, total: 2, per_second: 3 } }),
        4 => Just(Commit::Verified { verified }),
        2 => Just(Commit::Compacted { revision: 7 }),
        1 => Just(Commit::Residue { residue: Residue { live: 0, db: 0, wal: 9, at: UnixMs(7) } }),
        1 => (0u64..2, 0u64..2, 0u64..2).prop_map(|(stale, plaintext, unknown)| Commit::Counted {
            job: JobId(Uuid::from_u128(1)),
            tally: Tally { total: 9, stale, plaintext, unknown, ..Tally::default() },
        }),
        1 => Just(Commit::PlaintextAccepted),
        1 => any::<bool>().prop_map(|on| Commit::Stuck { reason: on.then(|| "why".into()) }),
        4 => Just(Commit::Finished),
        1 => Just(Commit::Cancelled { by: "me".into() }),
        1 => (1u8..5).prop_map(|n| Commit::WentWithout { root: root(n) }),
        1 => (1u64..9).prop_map(|n| Commit::Readmitted { serial: Serial(n) }),
    ];
    prop_oneof![
        8 => given.prop_map(Draw::Given),
        2 => (prop_oneof![6 => Just(0u64), 1 => 1u64..3], prop::option::weighted(0.1, 1u8..5),
              0u8..9, role())
            .prop_map(|(off, root, version, role)| Draw::Mint { off, root, version, role }),
        3 => (prop::option::weighted(0.2, kind()), prop::option::weighted(0.7, 1u8..5))
            .prop_map(|(kind, target)| Draw::Open { kind, target }),
        1 => (prop::option::weighted(0.1, 1u8..5), prop::option::weighted(0.5, 1u8..5))
            .prop_map(|(target, without)| Draw::Back { target, without }),
    ]
}

fn commit_of(draw: Draw, cluster: &Cluster, step: usize) -> Commit {
    match draw {
        Draw::Given(commit) => commit,
        Draw::Mint { off, root: chosen, version, role } => {
            let target = cluster.operation.as_ref().map_or(root(1), |op| op.target);
            Commit::Minted {
                kek: Kek {
                    serial: Serial(cluster.ring.next_serial().0 + off),
                    root: RootVersion {
                        root: chosen.map_or(target, root),
                        version: KeyVersionId(Uuid::from_u128(version.into())),
                    },
                    wrapped: String::new(),
                    role,
                    created: UnixMs(1),
                },
            }
        }
        Draw::Back { target, without } => Commit::Reversed {
            id: OperationId(Uuid::from_u128(step as u128)),
            target: target.map(root).or(cluster.ring.former()).unwrap_or(root(1)),
            without: without.map(root),
            by: "me".into(),
        },
        Draw::Open { kind, target } => {
            let write = cluster.ring.write().map(|k| k.root.root);
            let target = target.map(root).or(write).unwrap_or(root(1));
            let fitting = match write {
                None => OperationKind::Enable,
                Some(write) if write == target => OperationKind::Rotate,
                Some(_) => OperationKind::Switch,
            };
            Commit::Opened {
                id: OperationId(Uuid::from_u128(step as u128)),
                kind: kind.unwrap_or(fitting),
                target,
                take_up: TakeUp::Restart,
                public_endpoint: None,
                by: "me".into(),
            }
        }
    }
}

fn check(before: &Cluster, commit: &Commit, result: &Result<(), Refusal>, after: &Cluster) {
    if result.is_err() {
        assert_eq!(before, after, "a refused commit changes nothing: {commit:?}");
        return;
    }
    assert_eq!(after.revision, before.revision + 1, "{commit:?}");

    let writers = after.ring.keks.iter().filter(|k| k.role == Role::Write).count();
    assert!(writers <= 1, "at most one KEK seals");
    let serials: Vec<_> = after.ring.keks.iter().map(|k| k.serial).collect();
    assert!(serials.windows(2).all(|w| w[0] < w[1]), "serials rise: {serials:?}");
    assert!(after.ring.minted >= before.ring.minted);
    assert!(after.ring.keks.iter().all(|k| k.serial.0 <= after.ring.minted));
    for old in &before.ring.keks {
        let Some(new) = after.ring.get(old.serial) else {
            assert_eq!(old.role, Role::Staged, "a KEK that sealed stays");
            let named = after.servers.values().any(|t| t.stage > Stage::Bare);
            let reports = after.ring.reported().is_some();
            assert!(reports || !named, "a configuration names the provider and no KEK is there");
            continue;
        };
        assert_eq!((old.serial, old.root, &old.wrapped), (new.serial, new.root, &new.wrapped));
        let passed = matches!(
            (old.role, new.role),
            (Role::Staged, Role::Staged | Role::Write)
                | (Role::Write, Role::Write | Role::Read)
                | (Role::Read, Role::Read | Role::Retained | Role::Lost)
                | (Role::Lost, Role::Lost | Role::Read | Role::Retained)
                | (Role::Retained, Role::Retained)
        ) || matches!(
            (commit, old.role, new.role),
            (Commit::WentWithout { .. }, Role::Write, Role::Lost)
        );
        assert!(passed, "{commit:?} took a KEK from {:?} to {:?}", old.role, new.role);
    }
    for new in after.ring.keks.iter().filter(|k| before.ring.get(k.serial).is_none()) {
        assert_eq!(new.role, Role::Staged, "a KEK is staged before it seals");
        assert!(new.serial.0 > before.ring.minted, "a serial comes once");
    }
    assert!(after.ring.keks.iter().filter(|k| k.role == Role::Staged).count() <= 1);
    for (agent, target) in &before.servers {
        let Some(now) = after.servers.get(agent) else {
            assert_eq!(*commit, Commit::Left { agent: agent.clone() });
            let keys = !after.ring.keks.is_empty();
            assert!(!keys || !after.servers.is_empty(), "nobody knows the stage any more");
            continue;
        };
        let moved = matches!(
            commit,
            Commit::Joined { .. } | Commit::Left { .. } | Commit::PlaintextAccepted
        );
        let fell = (target.stage, now.stage) == (Stage::Only, Stage::WriteFirst);
        assert!(now.stage >= target.stage || moved && fell, "{commit:?}: a stage falls");
        assert!(!moved || now.stage < Stage::Only, "{commit:?}: the proof stands");
    }
    if let Commit::Counted { tally, .. } = commit {
        assert!(before.operation.is_none() && before.ring.write().is_some());
        let found = tally.stale + tally.plaintext + tally.unknown > 0;
        assert_eq!(after.disproof, found.then_some(*tally));
    } else if after.disproof != before.disproof {
        let rested = before.operation.is_none();
        let counted = matches!(commit, Commit::TakeUp { stage: Stage::Only, .. }) && rested;
        assert!(counted || matches!(commit, Commit::Verified { .. }), "{commit:?} proves nothing");
    }
    assert!(after.used.starts_with(&before.used), "used root keys stay used");
    for kek in &after.ring.keks {
        let sealed = kek.role != Role::Staged;
        assert!(!sealed || after.used.contains(&kek.root.root), "one that sealed counts as used");
    }
    if let Commit::Opened { kind, target, .. } = commit
        && *kind != OperationKind::Rotate
    {
        assert!(!before.used.contains(target), "a root key is used once");
    }
    if let Some(op) = &after.operation {
        assert!(!op.registered || op.preflighted);
        assert!(op.serial.is_none() || op.registered, "registered before the first KEK");
        assert!(op.promoted.is_none() || op.serial.is_some());
        assert!(op.verified.is_none() || op.promoted.is_some());
        assert!(op.compacted.is_none() || op.verified.is_some());
    }
    if let (Some(was), Some(is)) = (&before.operation, &after.operation) {
        if was.id != is.id {
            assert!(matches!(commit, Commit::Reversed { .. }), "one operation at a time");
            assert!(was.promoted.is_some() && is.kind == OperationKind::Reverse);
            assert_eq!(Some(is.target), before.ring.former());
            assert_eq!(after.ring, before.ring);
            return;
        }
        assert!(is.preflighted >= was.preflighted && is.registered >= was.registered);
        assert!(was.serial.is_none() || is.serial == was.serial);
        assert!(was.promoted.is_none() || is.promoted == was.promoted);
    }
    assert!(after.history.len() <= HISTORY_MAX);
    if let (Some(op), None) = (&before.operation, &after.operation) {
        let done = &after.history[0];
        assert_eq!(done.id, op.id);
        assert_eq!(done.rejected.is_none(), op.verified.is_some() && *commit == Commit::Finished);
        if *commit != Commit::Finished {
            assert!(op.promoted.is_none(), "what has sealed goes on");
            assert_ne!(op.kind, OperationKind::Reverse);
            assert_eq!(after.servers, before.servers);
            assert_eq!(after.used, before.used);
        }
    }
    assert!(after.verified.is_some() || before.verified.is_none(), "a proof is not taken back");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn promises_hold_for_any_sequence(draws in prop::collection::vec(draw(), 1..120)) {
        let mut cluster = empty();
        for (step, draw) in draws.into_iter().enumerate() {
            let commit = commit_of(draw, &cluster, step);
            let before = cluster.clone();
            let result = apply(&mut cluster, &commit, UnixMs(step as i64));
            check(&before, &commit, &result, &cluster);
        }
    }
}

/// Whoever joins or rewrites after the compaction leaves new history with plaintext in it.
#[test]
fn a_proof_that_falls_takes_the_compaction_with_it() {
    let proof = Verified { revision: 7, at: UnixMs(7), records: 3, sampled: 1 };
    let compacted = || {
        let mut cluster = empty();
        for n in [0, 2] {
            apply(&mut cluster, &Commit::Joined { agent: agent(n) }, UnixMs(1)).unwrap();
        }
        for draw in [
            Draw::Open { kind: None, target: None },
            Draw::Given(Commit::Preflighted),
            Draw::Given(Commit::Registered),
            Draw::Mint { off: 0, root: None, version: 1, role: Role::Staged },
            Draw::Given(Commit::Promoted),
            Draw::Given(Commit::Verified { verified: proof }),
            Draw::Given(Commit::Compacted { revision: 7 }),
        ] {
            let commit = commit_of(draw, &cluster, 1);
            apply(&mut cluster, &commit, UnixMs(1)).unwrap();
        }
        cluster
    };
    let rewrite = Rewrite { done: 1, total: 2, per_second: 3 };
    let left = Commit::Left { agent: agent(2) };
    for later in [Commit::Joined { agent: agent(1) }, left, Commit::Rewriting { rewrite }] {
        let mut cluster = compacted();
        assert_eq!(cluster.operation.as_ref().unwrap().compacted, Some(7));
        apply(&mut cluster, &later, UnixMs(2)).unwrap();
        let op = cluster.operation.unwrap();
        assert_eq!((op.verified, op.compacted), (None, None), "{later:?}");
    }
}

/// Applies these in order, each in order.
fn after(draws: Vec<Draw>) -> Cluster {
    let mut cluster = empty();
    for (step, draw) in draws.into_iter().enumerate() {
        let commit = commit_of(draw, &cluster, step);
        apply(&mut cluster, &commit, UnixMs(1)).unwrap_or_else(|e| panic!("{commit:?}: {e}"));
    }
    cluster
}

fn open(target: u8) -> Draw {
    Draw::Open { kind: None, target: Some(target) }
}

fn mint() -> Draw {
    Draw::Mint { off: 0, root: None, version: 1, role: Role::Staged }
}

fn up_to_mint(target: u8) -> Vec<Draw> {
    let steps = [Commit::Preflighted, Commit::Registered].map(Draw::Given);
    [open(target)].into_iter().chain(steps).chain([mint()]).collect()
}

/// One API server, encrypted under root key 1, at rest.
fn encrypted() -> Vec<Draw> {
    let verified = Verified { revision: 7, at: UnixMs(7), records: 3, sampled: 1 };
    let take_up = |stage| Commit::TakeUp { agent: agent(0), stage };
    let mut draws = vec![Draw::Given(Commit::Joined { agent: agent(0) })];
    draws.extend(up_to_mint(1));
    let rest = [
        Commit::Promoted,
        take_up(Stage::WriteFirst),
        Commit::Verified { verified },
        take_up(Stage::Only),
        Commit::Finished,
    ];
    draws.extend(rest.map(Draw::Given));
    draws
}

fn then(mut before: Vec<Draw>, more: Vec<Draw>) -> Vec<Draw> {
    before.extend(more);
    before
}

/// Each guard of `apply` by itself: what it lets through, and what it refuses.
#[test]
fn each_guard_lets_through_what_is_in_order_and_nothing_else() {
    let cancel = || Draw::Given(Commit::Cancelled { by: "me".into() });
    let reject = || Draw::Given(Commit::Rejected { reason: "no".into() });
    let joined = || vec![Draw::Given(Commit::Joined { agent: agent(0) })];
    let minted = || then(joined(), up_to_mint(1));
    let take_up = |stage| Draw::Given(Commit::TakeUp { agent: agent(0), stage });
    let switching = || then(encrypted(), up_to_mint(2));
    let sealed = || then(switching(), vec![Draw::Given(Commit::Promoted)]);
    let back = |target| Draw::Back { target: Some(target), without: None };
    let reversing = || then(sealed(), vec![back(1)]);
    let lose = |n| Draw::Given(Commit::WentWithout { root: root(n) });
    let readmit = |n| Draw::Given(Commit::Readmitted { serial: Serial(n) });
    let decided = || then(sealed(), vec![Draw::Back { target: Some(1), without: Some(2) }]);
    let without = || then(decided(), vec![Draw::Given(Commit::Registered), mint()]);
    let registered = || {
        let mut draws = minted();
        draws.pop();
        draws
    };
    let mint = |off, root, role| Draw::Mint { off, root, version: 1, role };
    let left = |n| Draw::Given(Commit::Left { agent: agent(n) });
    let join = |n| Draw::Given(Commit::Joined { agent: agent(n) });
    let switch = |target| Draw::Open { kind: Some(OperationKind::Switch), target: Some(target) };
    for (name, before, draw, good) in [
        ("a switch of a cluster without a key", joined(), switch(1), false),
        ("a switch to the key in use", encrypted(), switch(1), false),
        ("a switch", encrypted(), switch(2), true),
        ("the last one leaves, without keys", joined(), left(0), true),
        ("the last one leaves an encrypted cluster", encrypted(), left(0), false),
        ("one of two leaves it", then(encrypted(), vec![join(1)]), left(0), true),
        ("a stranger leaves", then(encrypted(), vec![join(1)]), left(2), false),
        ("a rejected enablement", then(joined(), vec![open(1)]), reject(), true),
        ("rejected with a KEK", minted(), reject(), false),
        ("a rejected reverse", reversing(), reject(), false),
        ("a KEK of the target", registered(), mint(0, None, Role::Staged), true),
        ("not staged", registered(), mint(0, None, Role::Read), false),
        ("not next in line", registered(), mint(1, None, Role::Staged), false),
        ("of another root key", registered(), mint(0, Some(3), Role::Staged), false),
        ("to read, with a staged KEK", minted(), take_up(Stage::ReadFirst), true),
        ("to write, with a staged KEK", minted(), take_up(Stage::WriteFirst), false),
        ("the same stage again", encrypted(), take_up(Stage::Only), true),
        ("a stage that falls", encrypted(), take_up(Stage::WriteFirst), false),
        ("cancelled before it seals", switching(), cancel(), true),
        ("cancelled after", sealed(), cancel(), false),
        ("a cancelled reverse", reversing(), cancel(), false),
        ("back before it seals", switching(), back(1), false),
        ("back to the key that wrote before", sealed(), back(1), true),
        ("back to another", sealed(), back(3), false),
        ("back to the key that it leaves", sealed(), back(2), false),
        ("back twice", reversing(), back(1), true),
        ("without a key, as decided", without(), lose(2), true),
        ("without a key that nobody gave up", without(), lose(1), false),
        ("without a key, before another KEK can seal", decided(), lose(2), false),
        ("a lost KEK is read again", then(without(), vec![lose(2)]), readmit(2), true),
        ("one that is not lost", then(without(), vec![lose(2)]), readmit(1), false),
        ("one that there is not", then(without(), vec![lose(2)]), readmit(9), false),
        ("back from going back, which has sealed nothing", reversing(), back(2), false),
    ] {
        let mut cluster = after(before);
        let commit = commit_of(draw, &cluster, 99);
        let result = apply(&mut cluster, &commit, UnixMs(2));
        assert_eq!(result.is_ok(), good, "{name}: {result:?}");
    }
}

/// Without a KEK to report, an API server whose file names the provider would not be ready.
#[test]
fn a_staged_kek_goes_with_its_operation_unless_a_file_names_the_provider() {
    let cancelled = |mut before: Vec<Draw>| {
        before.push(Draw::Given(Commit::Cancelled { by: "me".into() }));
        let cluster = after(before);
        assert_eq!(cluster.ring.minted, cluster.ring.next_serial().0 - 1);
        cluster.ring.keks.iter().map(|k| (k.serial.0, k.role)).collect::<Vec<_>>()
    };
    let joined = vec![Draw::Given(Commit::Joined { agent: agent(0) })];
    let minted = then(joined, up_to_mint(1));
    assert_eq!(cancelled(minted.clone()), [], "no file names it");
    let reads = Draw::Given(Commit::TakeUp { agent: agent(0), stage: Stage::ReadFirst });
    let reading = then(minted, vec![reads]);
    assert_eq!(cancelled(reading.clone()), [(1, Role::Staged)]);
    assert_eq!(cancelled(then(encrypted(), up_to_mint(2))), [(1, Role::Write)]);
    // The next operation's KEK takes its place, and it is spent.
    let cancel = Draw::Given(Commit::Cancelled { by: "me".into() });
    let again = after(then(reading, then(vec![cancel], up_to_mint(1))));
    let keks: Vec<_> = again.ring.keks.iter().map(|k| (k.serial.0, k.role)).collect();
    assert_eq!(keks, [(2, Role::Staged)]);
}

/// The random walk is only worth something if it gets far.
#[test]
fn random_sequences_reach_finished_operations_of_every_kind() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut finished = BTreeMap::new();
    for _ in 0..300 {
        let draws = prop::collection::vec(draw(), 600).new_tree(&mut runner).unwrap().current();
        let mut cluster = empty();
        for (step, draw) in draws.into_iter().enumerate() {
            let commit = commit_of(draw, &cluster, step);
            let _ = apply(&mut cluster, &commit, UnixMs(step as i64));
        }
        for done in cluster.history.iter().filter(|d| d.rejected.is_none()) {
            *finished.entry(done.kind.to_string()).or_insert(0) += 1;
        }
    }
    for kind in ["enable", "rotate", "switch", "reverse"] {
        assert!(finished.get(kind).is_some_and(|n| *n > 10), "{finished:?}");
    }
}
