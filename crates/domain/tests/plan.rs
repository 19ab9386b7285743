//! `situation => step`, one row for each branch of the planner.

use claviger_domain::cluster::commit::{Commit, apply};
use claviger_domain::cluster::plan::{Facts, Step, Unattended, Why, must_fence, not_told, plan};
use claviger_domain::cluster::ring::{Kek, Role};
use claviger_domain::cluster::*;
use claviger_domain::id::*;
use claviger_domain::key::{KeyState, RootKey, RootVersion};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A cluster in the middle of its life, with agents that saw all that was decided.
struct Case {
    cluster: Cluster,
    seen: BTreeMap<AgentName, Seen>,
    roots: Vec<RootStatus>,
    tally: Option<Tally>,
    now: UnixMs,
}

fn root(n: u128) -> RootKey {
    RootKey { instance: InstanceId(Uuid::from_u128(1)), key: KeyId(Uuid::from_u128(n)) }
}

fn version(n: u128) -> KeyVersionId {
    KeyVersionId(Uuid::from_u128(n << 96))
}

fn agent(i: usize) -> AgentName {
    format!("m{i}").parse().expect("a DNS label")
}

fn process(i: usize) -> Process {
    Process { pid: 100 + i as i32, start: 7 }
}

impl Case {
    fn new(n: usize) -> Self {
        let cluster = Cluster::new(
            "aaaaaaaabbbbbbbbcccc".parse().expect("20 characters"),
            "c".to_owned(),
            UnixMs(0),
        );
        let status = |n| RootStatus {
            root: root(n),
            name: "r".to_owned(),
            state: KeyState::Active,
            current: Some(version(1)),
            event: 0,
            expires: None,
            restorable_until: None,
        };
        let roots = vec![status(10), status(11)];
        let mut case =
            Case { cluster, seen: BTreeMap::new(), roots, tally: None, now: UnixMs(1_000_000) };
        for i in 0..n {
            case.commit(Commit::Joined { agent: agent(i) });
        }
        case.all_see()
    }

    fn commit(&mut self, commit: Commit) {
        self.now.0 += 1_000;
        apply(&mut self.cluster, &commit, self.now).expect("in order");
    }

    /// Every agent has done what was decided, and says so.
    fn all_see(mut self) -> Self {
        self.now.0 += 1_000;
        for (i, (name, target)) in self.cluster.servers.iter().enumerate() {
            let write = self.cluster.ring.write().map(|k| k.serial);
            let stage = target.stage;
            let observation = Observation {
                agent: name.clone(),
                build: String::new(),
                kubernetes: None,
                ring_revision: self.cluster.revision,
                opened: self.cluster.ring.keks.iter().map(|k| k.serial).collect(),
                key_id: self.cluster.ring.reported().map(|k| k.key_id(&self.cluster.id)),
                stage_on_disk: stage,
                stage_loaded: Some(stage),
                process: Some(process(i)),
                ready: true,
                canary: Some(Canary {
                    serial: write.filter(|_| stage >= Stage::WriteFirst),
                    process: process(i),
                    stage,
                }),
                api_servers: Vec::new(),
                files: None,
                ahead: None,
                restored: None,
                down: None,
                troubles: Vec::new(),
                preflight: self.cluster.operation.as_ref().map(|o| Preflight {
                    operation: o.id,
                    failure: None,
                    warnings: Vec::new(),
                }),
                access: Access::Open,
            };
            self.seen.insert(name.clone(), Seen { observation, at: self.now });
        }
        self
    }

    fn open(mut self, kind: OperationKind, target: u128, take_up: TakeUp) -> Self {
        self.commit(Commit::Opened {
            id: OperationId(Uuid::from_u128(self.cluster.revision.into())),
            kind,
            target: root(target),
            take_up,
            public_endpoint: None,
            by: "operator".to_owned(),
        });
        self.all_see()
    }

    fn minted(mut self) -> Self {
        let target = self.cluster.operation.as_ref().expect("open").target;
        let current = self.roots.iter().find(|r| r.root == target).and_then(|r| r.current);
        let kek = Kek {
            serial: self.cluster.ring.next_serial(),
            root: RootVersion { root: target, version: current.expect("current") },
            wrapped: String::new(),
            role: Role::Staged,
            created: self.now,
        };
        self.commit(Commit::Preflighted);
        self.commit(Commit::Registered);
        self.commit(Commit::Minted { kek });
        self.all_see()
    }

    fn stage(mut self, stage: Stage) -> Self {
        for name in self.cluster.servers.keys().cloned().collect::<Vec<_>>() {
            self.commit(Commit::TakeUp { agent: name, stage });
        }
        self.all_see()
    }

    fn promoted(mut self) -> Self {
        self.commit(Commit::Promoted);
        self.all_see()
    }

    fn counted(mut self, change: impl FnOnce(&mut Tally)) -> Self {
        let mut tally =
            Tally { revision: 9, at: self.now, total: 5, current: 5, ..Tally::default() };
        change(&mut tally);
        self.tally = Some(tally);
        self
    }

    fn verified(mut self) -> Self {
        let verified = Verified { revision: 9, at: self.now, records: 5, sampled: 5 };
        self.commit(Commit::Verified { verified });
        self.all_see().counted(|_| ())
    }

    fn later(mut self, ms: i64) -> Self {
        self.now.0 += ms;
        self.all_see()
    }

    /// Enabled and at rest.
    fn enabled(n: usize) -> Self {
        let case = Case::new(n).open(OperationKind::Enable, 10, TakeUp::Restart).minted();
        let case = if n > 1 { case.stage(Stage::ReadFirst) } else { case };
        let mut case = case.promoted().stage(Stage::WriteFirst).verified().stage(Stage::Only);
        case.commit(Commit::Compacted { revision: 9 });
        case.commit(Commit::Finished);
        // The count of that operation is not one of the cluster at rest.
        case.tally = None;
        case.all_see()
    }

    fn rotated(mut self) -> Self {
        self.roots[0].current = Some(version(2));
        self
    }

    /// Changes what the `i`th agent says.
    fn but(mut self, i: usize, change: impl FnOnce(&mut Seen)) -> Self {
        change(self.seen.get_mut(&agent(i)).expect("an agent"));
        self
    }

    fn step(&self) -> Step {
        plan(&Facts {
            cluster: &self.cluster,
            seen: &self.seen,
            roots: &self.roots,
            tally: self.tally.as_ref(),
            now: self.now,
        })
    }
}

fn enabling(n: usize) -> Case {
    Case::new(n).open(OperationKind::Enable, 10, TakeUp::Restart)
}

fn writing(n: usize, take_up: TakeUp) -> Case {
    let case = Case::new(n).open(OperationKind::Enable, 10, take_up).minted();
    let case = if n > 1 { case.stage(Stage::ReadFirst) } else { case };
    case.promoted().stage(Stage::WriteFirst)
}

fn take_up(i: usize, stage: Stage) -> Step {
    Step::TakeUp { agent: agent(i), stage }
}

fn wait(why: fn(AgentName) -> Why, i: usize) -> Step {
    Step::Wait(why(agent(i)))
}

fn check(rows: Vec<(&str, Case, Step)>) {
    for (situation, case, expected) in rows {
        assert_eq!(case.step(), expected, "{situation}");
    }
}

#[test]
fn before_there_is_a_kek() {
    let serial = Serial(1);
    let target = root(10);
    let reject = |reason: &str| Step::Reject { reason: reason.to_owned() };
    let mut suspended = enabling(1);
    suspended.roots[0].state = KeyState::Suspended;
    let mut gone = enabling(1);
    gone.roots.remove(0);
    let mut preflighted = enabling(1);
    preflighted.commit(Commit::Preflighted);
    let mut registered = enabling(1);
    registered.commit(Commit::Preflighted);
    registered.commit(Commit::Registered);
    let failed = |s: &mut Seen| {
        let failure = Some("no route; open the port".to_owned());
        s.observation.preflight.as_mut().expect("tried").failure = failure;
    };
    let rotate = || Case::enabled(1).rotated().open(OperationKind::Rotate, 10, TakeUp::Restart);
    let mut rotate_suspended = rotate();
    rotate_suspended.roots[0].state = KeyState::Suspended;
    check(vec![
        ("nothing asked for => rest", Case::new(1), Step::Rest),
        ("no agent => wait", enabling(0), Step::Wait(Why::NoServer)),
        (
            "an agent silent for 90 s => wait",
            enabling(3).but(1, |s| s.at.0 -= 90_000),
            wait(Why::Silent, 1),
        ),
        (
            "an agent that never spoke => wait",
            {
                let mut case = enabling(3);
                case.seen.remove(&agent(2));
                case
            },
            wait(Why::Silent, 2),
        ),
        (
            "an agent has not tried the key => wait",
            enabling(3).but(2, |s| s.observation.preflight = None),
            wait(Why::Preflight, 2),
        ),
        (
            "an agent tried another operation's key => wait",
            enabling(1).but(0, |s| {
                s.observation.preflight.as_mut().expect("tried").operation =
                    OperationId(Uuid::nil());
            }),
            wait(Why::Preflight, 0),
        ),
        ("all tried with success => commit that", enabling(3), Step::CommitPreflighted),
        (
            "one failed => reject",
            enabling(3).but(1, failed),
            reject("preflight failed: m1: no route; open the port"),
        ),
        (
            "one failed, but the root key did rotate => wait",
            rotate().but(0, failed),
            Step::Wait(Why::PreflightFailed(agent(0), "no route; open the port".to_owned())),
        ),
        (
            "target suspended => reject",
            suspended,
            reject(&format!("root key {} is suspended; only an active key wraps", target.key)),
        ),
        (
            "target suspended in a rotation => wait",
            rotate_suspended,
            Step::Wait(Why::Root(target, KeyState::Suspended)),
        ),
        (
            "target gone => reject",
            gone,
            reject(&format!("root key {} no longer exists", target.key)),
        ),
        ("preflighted => register", preflighted, Step::Register { target }),
        ("registered => mint", registered, Step::Mint { target, serial }),
    ]);
}

#[test]
fn enable_with_one_api_server() {
    let serial = Serial(1);
    let mut suspended = enabling(1).minted();
    suspended.roots[0].state = KeyState::Suspended;
    check(vec![
        (
            "KEK not opened => wait",
            enabling(1).minted().but(0, |s| s.observation.opened.clear()),
            wait(Why::NotOpened, 0),
        ),
        (
            "node fenced => wait",
            enabling(1).minted().but(0, |s| {
                s.observation.access =
                    Access::Fenced { root: root(10), event: 1, since: UnixMs(0) };
            }),
            wait(Why::Closed, 0),
        ),
        (
            "node coasts => wait",
            enabling(1)
                .minted()
                .but(0, |s| s.observation.access = Access::Coasting { since: UnixMs(0) }),
            wait(Why::Closed, 0),
        ),
        ("opened => promote at once", enabling(1).minted(), Step::Promote { serial }),
        (
            "opened, but the target is suspended => wait",
            suspended,
            Step::Wait(Why::Root(root(10), KeyState::Suspended)),
        ),
        (
            "key id not reported => wait",
            enabling(1).minted().promoted().but(0, |s| s.observation.key_id = None),
            wait(Why::NotReported, 0),
        ),
        (
            "last word is older than the promotion => wait",
            enabling(1).minted().promoted().but(0, |s| s.at.0 -= 2_000),
            wait(Why::NotReported, 0),
        ),
        (
            "promoted => straight to [kms, identity]",
            enabling(1).minted().promoted(),
            take_up(0, Stage::WriteFirst),
        ),
        (
            "file written, old one loaded => wait",
            writing(1, TakeUp::Restart).but(0, |s| s.observation.stage_loaded = Some(Stage::Bare)),
            Step::Wait(Why::NotTaken(agent(0), Stage::WriteFirst)),
        ),
        (
            "loaded but not ready => wait",
            writing(1, TakeUp::Restart).but(0, |s| s.observation.ready = false),
            Step::Wait(Why::NotTaken(agent(0), Stage::WriteFirst)),
        ),
        (
            "no canary => wait",
            writing(1, TakeUp::Restart).but(0, |s| s.observation.canary = None),
            wait(Why::NoCanary, 0),
        ),
        (
            "canary of the process before => wait",
            writing(1, TakeUp::Restart).but(0, |s| s.observation.process = Some(process(9))),
            wait(Why::NoCanary, 0),
        ),
        (
            "canary stored as plaintext => wait",
            writing(1, TakeUp::Restart)
                .but(0, |s| s.observation.canary.as_mut().expect("made").serial = None),
            wait(Why::NoCanary, 0),
        ),
        ("all write => count", writing(1, TakeUp::Restart), Step::Wait(Why::NoTally)),
        (
            "plaintext left => rewrite",
            writing(1, TakeUp::Restart).counted(|t| t.plaintext = 3),
            Step::Rewrite { left: 3 },
        ),
        (
            "undecodable left => wait, touch nothing",
            writing(1, TakeUp::Restart).counted(|t| t.unknown = 2),
            Step::Wait(Why::Unknown(2)),
        ),
        ("nothing left => verify", writing(1, TakeUp::Restart).counted(|_| ()), Step::Verify),
        (
            "verified => nobody reads plaintext",
            writing(1, TakeUp::Restart).verified(),
            take_up(0, Stage::Only),
        ),
        (
            "plaintext came after the proof => rewrite",
            writing(1, TakeUp::Restart).verified().counted(|t| t.plaintext = 1),
            Step::Rewrite { left: 1 },
        ),
        (
            "[kms] loaded => compact at the proven revision",
            writing(1, TakeUp::Restart).verified().stage(Stage::Only),
            Step::Compact { revision: 9 },
        ),
        (
            "restarted between canary and finish => a canary again",
            writing(1, TakeUp::Restart)
                .verified()
                .stage(Stage::Only)
                .but(0, |s| s.observation.process = Some(process(9))),
            wait(Why::NoCanary, 0),
        ),
        ("finished => rest", Case::enabled(1), Step::Rest),
    ]);
    let mut compacted = writing(1, TakeUp::Restart).verified().stage(Stage::Only);
    compacted.commit(Commit::Compacted { revision: 9 });
    check(vec![("compacted => finish", compacted.all_see(), Step::Finish)]);
}

#[test]
fn enable_with_three_api_servers() {
    let serial = Serial(1);
    let minted = || enabling(3).minted();
    let mut one_reads = minted();
    one_reads.commit(Commit::TakeUp { agent: agent(0), stage: Stage::ReadFirst });
    let mut one_writes = minted().stage(Stage::ReadFirst).promoted();
    one_writes.commit(Commit::TakeUp { agent: agent(0), stage: Stage::WriteFirst });
    // A second API server joins one that is about to write alone.
    let mut joined = enabling(1).minted().promoted();
    joined.commit(Commit::Joined { agent: agent(1) });
    let late = || {
        let mut case = writing(1, TakeUp::Restart);
        case.commit(Commit::Joined { agent: agent(1) });
        case.all_see()
    };
    let (late, late_reads) = (late(), late());
    let mut early = Case::new(0);
    early.commit(Commit::Joined { agent: agent(1) });
    let early = early.all_see().open(OperationKind::Enable, 10, TakeUp::Restart).minted();
    let mut early = early.promoted().stage(Stage::WriteFirst);
    early.commit(Commit::Joined { agent: agent(0) });
    let early = early.all_see();
    check(vec![
        (
            "two of three opened => wait",
            minted().but(2, |s| s.observation.opened.clear()),
            wait(Why::NotOpened, 2),
        ),
        ("all opened => the first reads", minted(), take_up(0, Stage::ReadFirst)),
        (
            "the first is on its way => no second",
            one_reads,
            Step::Wait(Why::NotTaken(agent(0), Stage::ReadFirst)),
        ),
        (
            "the first reads => the second",
            {
                let mut case = minted();
                case.commit(Commit::TakeUp { agent: agent(0), stage: Stage::ReadFirst });
                case.all_see()
            },
            take_up(1, Stage::ReadFirst),
        ),
        ("all read => promote", minted().stage(Stage::ReadFirst), Step::Promote { serial }),
        (
            "promoted => the first writes",
            minted().stage(Stage::ReadFirst).promoted(),
            take_up(0, Stage::WriteFirst),
        ),
        (
            "the first is on its way => wait",
            one_writes,
            Step::Wait(Why::NotTaken(agent(0), Stage::WriteFirst)),
        ),
        (
            "a second joins after the promotion => both read before one writes",
            joined.all_see(),
            take_up(0, Stage::ReadFirst),
        ),
        (
            "one joins while another writes => it is to read first, and is waited for",
            late.but(1, |s| s.observation.stage_loaded = None),
            Step::Wait(Why::NotTaken(agent(1), Stage::ReadFirst)),
        ),
        ("it reads => it writes, too", late_reads, take_up(1, Stage::WriteFirst)),
        (
            "one joins that comes first in the order, the other has not taken up => wait",
            early.but(1, |s| s.observation.stage_loaded = Some(Stage::Bare)),
            Step::Wait(Why::NotTaken(agent(1), Stage::WriteFirst)),
        ),
        (
            "one without canary => wait",
            writing(3, TakeUp::Restart).but(1, |s| s.observation.canary = None),
            wait(Why::NoCanary, 1),
        ),
    ]);
}

#[test]
fn by_reload_requests_under_way_are_waited_for() {
    let verified = || writing(1, TakeUp::Reload).verified();
    check(vec![
        (
            "just verified => wait a minute",
            verified(),
            Step::Wait(Why::Requests { left_ms: 59_000 }),
        ),
        (
            "a millisecond less than a minute => wait",
            verified().later(57_999),
            Step::Wait(Why::Requests { left_ms: 1 }),
        ),
        ("a minute later => verify again", verified().later(58_000), Step::Verify),
        (
            "verified again a millisecond too early => once more",
            verified().later(57_999).verified().later(1),
            Step::Verify,
        ),
        (
            "verified again just after that => nobody reads plaintext",
            verified().later(58_000).verified(),
            take_up(0, Stage::Only),
        ),
        (
            "one joins when the other was told to read none => its requests are waited for, too",
            {
                let mut case = verified().later(60_000).verified();
                case.commit(Commit::TakeUp { agent: agent(0), stage: Stage::Only });
                case.commit(Commit::Joined { agent: agent(1) });
                case.all_see().verified()
            },
            Step::Wait(Why::Requests { left_ms: 59_000 }),
        ),
        (
            "verified again => nobody reads plaintext",
            verified().later(60_000).verified(),
            take_up(0, Stage::Only),
        ),
    ]);
    // The decision may be old when a poll takes the file up: the wait counts from the proof.
    let slow = writing(1, TakeUp::Reload).later(70_000).verified();
    check(vec![(
        "taken up long after it was decided => wait all the same",
        slow,
        Step::Wait(Why::Requests { left_ms: 59_000 }),
    )]);
}

/// Between stages everybody is waited for; within one nobody is, but for restarts.
#[test]
fn by_reload_all_are_told_at_once() {
    let told = |mut case: Case, i: usize, stage: Stage| {
        case.commit(Commit::TakeUp { agent: agent(i), stage });
        case
    };
    let minted = |how| Case::new(3).open(OperationKind::Enable, 10, how).minted();
    let reading = |how| minted(how).stage(Stage::ReadFirst).promoted();
    let writing = || {
        let case = writing(3, TakeUp::Reload).verified().later(60_000).verified();
        case.counted(|_| ())
    };
    let not_taken = |i, stage| Step::Wait(Why::NotTaken(agent(i), stage));
    let (reload, restart) = (TakeUp::Reload, TakeUp::Restart);
    let two_told = || told(told(reading(reload), 0, Stage::WriteFirst), 1, Stage::WriteFirst);
    // One that joined goes from nothing to its first file while the others are to write.
    let mut joined = told(reading(reload), 0, Stage::WriteFirst);
    joined.commit(Commit::Joined { agent: agent(3) });
    let joined = joined.all_see().but(3, |s| s.observation.stage_loaded = Some(Stage::Bare));
    // Alone until another came: it was told to write straight from nothing.
    let mut alone = Case::new(1).open(OperationKind::Enable, 10, reload).minted().promoted();
    alone.commit(Commit::TakeUp { agent: agent(0), stage: Stage::WriteFirst });
    alone.commit(Commit::Joined { agent: agent(1) });
    let alone = alone.all_see();
    check(vec![
        (
            "the first file is a restart => one at a time",
            told(minted(reload), 0, Stage::ReadFirst),
            not_taken(0, Stage::ReadFirst),
        ),
        (
            "the first was told to write => the second at once",
            told(reading(reload), 0, Stage::WriteFirst),
            take_up(1, Stage::WriteFirst),
        ),
        ("and the third", two_told(), take_up(2, Stage::WriteFirst)),
        (
            "all were told => wait for the first",
            told(two_told(), 2, Stage::WriteFirst),
            not_taken(0, Stage::WriteFirst),
        ),
        (
            "by restart => one at a time",
            told(reading(restart), 0, Stage::WriteFirst),
            not_taken(0, Stage::WriteFirst),
        ),
        ("a newcomer does not read yet => wait for it", joined, not_taken(3, Stage::ReadFirst)),
        (
            "who was told to write does not even read yet => nobody else writes",
            alone.but(0, |s| s.observation.stage_loaded = Some(Stage::Bare)),
            not_taken(0, Stage::WriteFirst),
        ),
        (
            "one was told to read no plaintext => the second at once",
            told(writing(), 0, Stage::Only),
            take_up(1, Stage::Only),
        ),
        (
            "one was told so and its API server is down => wait",
            told(writing(), 0, Stage::Only).but(0, |s| s.observation.stage_loaded = None),
            not_taken(0, Stage::Only),
        ),
        (
            "one that is behind does not write yet => wait",
            told(writing(), 0, Stage::Only)
                .but(2, |s| s.observation.stage_loaded = Some(Stage::ReadFirst)),
            not_taken(2, Stage::WriteFirst),
        ),
    ]);
}

#[test]
fn rotate_and_switch() {
    let rotating =
        || Case::enabled(3).rotated().open(OperationKind::Rotate, 10, TakeUp::Restart).minted();
    let switching = || Case::enabled(3).open(OperationKind::Switch, 11, TakeUp::Restart).minted();
    let serial = Serial(2);
    check(vec![
        ("at rest, same version => rest", Case::enabled(3), Step::Rest),
        ("root key rotated => open", Case::enabled(3).rotated(), Step::Open { target: root(10) }),
        (
            "rotated and then suspended => rest; the fence has the word",
            {
                let mut case = Case::enabled(3).rotated();
                case.roots[0].state = KeyState::Suspended;
                case
            },
            Step::Rest,
        ),
        ("opened by all => promote, no file changes", rotating(), Step::Promote { serial }),
        (
            "one reports the old key id => wait",
            rotating().promoted().but(1, |s| {
                s.observation.key_id = Some("v2:aaaaaaaa:1:00000001".to_owned());
            }),
            wait(Why::NotReported, 1),
        ),
        (
            "canary under the old KEK => wait",
            rotating().promoted().but(1, |s| {
                s.observation.canary.as_mut().expect("made").serial = Some(Serial(1));
            }),
            wait(Why::NoCanary, 1),
        ),
        (
            "stale left => rewrite",
            rotating().promoted().counted(|t| t.stale = 4),
            Step::Rewrite { left: 4 },
        ),
        (
            "verified => finish, nothing is compacted",
            rotating().promoted().verified(),
            Step::Finish,
        ),
        (
            "rotated again meanwhile => finish first",
            {
                let mut case = rotating().promoted().verified();
                case.roots[0].current = Some(version(3));
                case
            },
            Step::Finish,
        ),
        (
            "a rotation that ended the reading of plaintext on one of two => compact",
            {
                let mut case = Case::enabled(1);
                case.commit(Commit::Joined { agent: agent(1) });
                let case = case.all_see().rotated();
                let case = case.open(OperationKind::Rotate, 10, TakeUp::Restart).minted();
                let mut case = case.promoted().verified();
                for i in 0..2 {
                    case.commit(Commit::TakeUp { agent: agent(i), stage: Stage::Only });
                }
                case.all_see()
            },
            Step::Compact { revision: 9 },
        ),
        (
            "nothing is known of the root key => rest",
            {
                let mut case = Case::enabled(1);
                case.commit(Commit::Joined { agent: agent(1) });
                case.roots.clear();
                case.all_see()
            },
            Step::Rest,
        ),
        (
            "the root key has no version => rest",
            {
                let mut case = Case::enabled(1);
                case.roots[0].current = None;
                case
            },
            Step::Rest,
        ),
        ("switch: opened by all => promote", switching(), Step::Promote { serial }),
        ("switch: verified => finish", switching().promoted().verified(), Step::Finish),
    ]);
}

#[test]
fn an_operation_is_given_up() {
    let (first, second) = (root(10), root(11));
    let switching = || Case::enabled(2).open(OperationKind::Switch, 11, TakeUp::Restart).minted();
    let cancel = || Commit::Cancelled { by: "me".to_owned() };
    let back = |without| {
        let id = OperationId(Uuid::from_u128(99));
        move |mut case: Case| {
            case.commit(Commit::Reversed { id, target: first, without, by: "me".to_owned() });
            case.all_see()
        }
    };
    let state = |n: usize, state: KeyState| {
        move |mut case: Case| {
            case.roots[n].state = state;
            case
        }
    };
    let fenced = |mut case: Case| {
        for seen in case.seen.values_mut() {
            seen.observation.access = Access::Fenced { root: second, event: 1, since: UnixMs(0) };
        }
        case
    };
    let mut cancelled = switching();
    cancelled.commit(cancel());
    let registered = |mut case: Case| {
        case.commit(Commit::Registered);
        case.all_see()
    };
    let minted = |mut case: Case| {
        let current = case.roots[0].current.expect("current");
        let kek = Kek {
            serial: case.cluster.ring.next_serial(),
            root: RootVersion { root: first, version: current },
            wrapped: String::new(),
            role: Role::Staged,
            created: case.now,
        };
        case.commit(Commit::Minted { kek });
        case.all_see()
    };
    let gone = state(1, KeyState::Suspended);
    let reversing = |without| minted(registered(back(without)(switching().promoted())));
    let lost = || {
        let mut case = gone(reversing(Some(second)));
        case.commit(Commit::WentWithout { root: second });
        case.all_see()
    };
    let (mut none, mut deleted) = (back(None)(switching().promoted()), reversing(None));
    none.roots.remove(0);
    deleted.roots.remove(0);
    check(vec![
        ("cancelled => rest, as before", cancelled.all_see(), Step::Rest),
        (
            "goes back => no preflight, every node has used the key",
            back(None)(switching().promoted()),
            Step::Register { target: first },
        ),
        (
            "goes back, but the former root key is suspended => wait, records are mixed",
            state(0, KeyState::Suspended)(back(None)(switching().promoted())),
            Step::Wait(Why::Root(first, KeyState::Suspended)),
        ),
        (
            "goes back, but the former root key is gone => wait all the same",
            none,
            Step::Wait(Why::Root(first, KeyState::Destroyed)),
        ),
        (
            "registered => a fresh KEK",
            registered(back(None)(switching().promoted())),
            Step::Mint { target: first, serial: Serial(3) },
        ),
        ("opened by all => it seals", reversing(None), Step::Promote { serial: Serial(3) }),
        (
            "the key it goes back to is gone before that => wait",
            deleted,
            Step::Wait(Why::Root(first, KeyState::Destroyed)),
        ),
        ("verified => finish", reversing(None).promoted().verified(), Step::Finish),
        (
            "the other key is suspended, nobody decided to go without it => wait",
            fenced(gone(reversing(None))),
            wait(Why::Closed, 0),
        ),
        (
            "somebody did, one API server is not fenced yet => wait",
            fenced(gone(reversing(Some(second)))).but(1, |s| s.observation.access = Access::Open),
            wait(Why::NotFenced, 1),
        ),
        (
            "all are fenced => go on without it",
            fenced(gone(reversing(Some(second)))),
            Step::GoWithout { root: second },
        ),
        (
            "its key is not active either => wait",
            state(0, KeyState::Suspended)(fenced(gone(reversing(Some(second))))),
            Step::Wait(Why::Root(first, KeyState::Suspended)),
        ),
        (
            "the other key is active after all => as if nothing had been",
            reversing(Some(second)),
            Step::Promote { serial: Serial(3) },
        ),
        (
            "gone without, all else rewritten => what cannot be read is said",
            lost().counted(|t| t.unknown = 2),
            Step::Wait(Why::Unknown(2)),
        ),
        (
            "gone without, nothing is left under it => it ends as ever",
            lost().verified(),
            Step::Finish,
        ),
        (
            "the key is active again => its records can be read",
            state(1, KeyState::Active)(lost()),
            Step::Readmit { serial: Serial(2) },
        ),
    ]);
}

#[test]
fn a_newcomer_in_a_cluster_at_rest() {
    let joined = |at: i64| {
        let mut case = Case::enabled(1);
        case.commit(Commit::Joined { agent: agent(1) });
        case.later(at)
    };
    assert_eq!(joined(0).cluster.servers[&agent(1)].stage, Stage::WriteFirst);
    check(vec![
        (
            "its plugin is not open => wait",
            joined(0).but(1, |s| s.observation.opened.clear()),
            wait(Why::NotOpened, 1),
        ),
        (
            "no word from it for 90 s => wait",
            joined(0).but(1, |s| s.at.0 -= 90_000),
            wait(Why::Silent, 1),
        ),
        (
            "the others write, too => it writes",
            {
                let mut case = joined(0);
                for (name, stage) in [(0, Stage::WriteFirst), (1, Stage::ReadFirst)] {
                    case.cluster.servers.get_mut(&agent(name)).expect("there").stage = stage;
                }
                case.all_see()
            },
            take_up(1, Stage::WriteFirst),
        ),
        (
            "it took it up a millisecond less than a minute ago => wait",
            joined(58_999),
            Step::Wait(Why::Requests { left_ms: 1 }),
        ),
        ("a minute ago => count", joined(59_000), Step::Wait(Why::NoTally)),
        (
            "it has not taken the file up => wait",
            joined(0).but(1, |s| s.observation.stage_loaded = Some(Stage::Bare)),
            Step::Wait(Why::NotTaken(agent(1), Stage::WriteFirst)),
        ),
        (
            "it just took it up => wait for requests",
            joined(0),
            Step::Wait(Why::Requests { left_ms: 59_000 }),
        ),
        ("a minute later => count", joined(60_000), Step::Wait(Why::NoTally)),
        (
            "it left no plaintext => [kms], one after the other",
            joined(60_000).counted(|_| ()),
            take_up(0, Stage::Only),
        ),
        (
            "and the last one",
            {
                let mut case = joined(60_000);
                case.commit(Commit::TakeUp { agent: agent(0), stage: Stage::Only });
                case.all_see().counted(|_| ())
            },
            take_up(1, Stage::Only),
        ),
        (
            "it left plaintext => a whole rewrite",
            joined(60_000).counted(|t| t.plaintext = 1),
            Step::Open { target: root(10) },
        ),
    ]);
}

/// Whatever the truth says: it lacks what a node holds, so no step of it can be right.
#[test]
fn nothing_is_planned_while_a_node_is_ahead() {
    let ahead = |case: Case| case.but(1, |s| s.observation.ahead = Some("it holds KEK 2".into()));
    let waits = || wait(Why::Ahead, 1);
    let mut rotated = Case::enabled(3).rotated();
    assert_ne!(rotated.step(), Step::Rest);
    let gone = |case: Case| {
        let mut case = ahead(case);
        case.commit(Commit::Left { agent: agent(1) });
        case
    };
    rotated = ahead(rotated);
    check(vec![
        ("at rest", ahead(Case::enabled(3)), waits()),
        ("a version to follow", rotated, waits()),
        ("an operation", ahead(writing(3, TakeUp::Restart)), waits()),
        ("before its KEK", ahead(enabling(3)), waits()),
        (
            "once it was removed",
            gone(Case::enabled(3)),
            Step::Wait(Why::Requests { left_ms: 55_000 }),
        ),
    ]);
}

#[test]
fn reasons_are_for_people() {
    let words = Why::Requests { left_ms: 1_500 }.to_string();
    assert!(words.ends_with("for 2 s"), "{words}");
    let words = Why::PreflightFailed(agent(0), "no route; open the port".to_owned()).to_string();
    assert_eq!(words, "agent m0: no route; open the port");
}

/// A key server that was restored to before a switch speaks of the old root key only: its word
/// neither closes the cluster nor vouches for the key that seals.
#[test]
fn nobody_vouches_for_a_root_key_by_saying_nothing_of_it() {
    let kek = |serial, key, role| Kek {
        serial: Serial(serial),
        root: RootVersion { root: root(key), version: version(1) },
        wrapped: String::new(),
        role,
        created: UnixMs(0),
    };
    let mut case = Case::new(1);
    assert_eq!(not_told(&case.cluster, &[]), None, "nothing in use");
    case.cluster.ring.keks =
        vec![kek(1, 12, Role::Retained), kek(2, 10, Role::Read), kek(3, 11, Role::Write)];
    assert_eq!(not_told(&case.cluster, &case.roots), None);
    for (gone, untold) in [(0, root(10)), (1, root(11))] {
        let mut roots = case.roots.clone();
        roots.remove(gone);
        assert_eq!(not_told(&case.cluster, &roots), Some(untold));
        assert_eq!(must_fence(&case.cluster, &roots), None);
    }
}

/// An API server without an agent writes plaintext and cannot read ours: nothing goes on that would
/// cut it off, or what it writes.
#[test]
fn an_api_server_without_an_agent_stops_what_would_cut_it_off() {
    let three = |s: &mut Seen| {
        s.observation.api_servers = ["a", "b", "c"].map(str::to_owned).to_vec();
    };
    let hosts = ["a", "b", "c"].map(str::to_owned).to_vec();
    let waits = || Step::Wait(Why::Unattended(Unattended { hosts: hosts.clone(), agents: 2 }));
    let readable = || enabling(2).minted().stage(Stage::ReadFirst);
    let proven = || writing(2, TakeUp::Restart).verified();
    let mut joined = Case::enabled(2);
    joined.commit(Commit::Joined { agent: agent(2) });
    let joined = joined.all_see().later(60_000).counted(|_| ());
    check(vec![
        ("as many as agents => promote", readable(), Step::Promote { serial: Serial(1) }),
        ("one more => no promotion", readable().but(1, three), waits()),
        ("all have an agent => no plaintext", proven(), take_up(0, Stage::Only)),
        ("one more => plaintext is still read", proven().but(0, three), waits()),
        (
            "one more, the rewrite goes on",
            writing(2, TakeUp::Restart).counted(|t| t.stale = 3).but(0, three),
            Step::Rewrite { left: 3 },
        ),
        ("at rest, all have joined => no plaintext", joined.but(0, three), take_up(0, Stage::Only)),
        ("at rest nothing begins for it", Case::enabled(2).but(0, three), Step::Rest),
    ]);
    let text = Why::Unattended(Unattended { hosts, agents: 2 }).to_string();
    assert!(text.starts_with("3 API servers live (a, b, c) and 2 have an agent"), "{text}");
    let shown = |case: Case| project::project(&case.cluster, &case.seen, &case.roots, case.now);
    assert_eq!(shown(Case::enabled(2)).master_status, "Ready");
    let warned = shown(Case::enabled(2).but(0, three));
    assert!(warned.state == "warning" && warned.master_status.contains("3 API servers live"));
}

/// What a count of a cluster at rest finds under an older key is rewritten; plaintext that nothing
/// explains is said, and neither read nor rewritten before an operator's word.
#[test]
fn a_count_that_disproves_the_proof_leads_to_a_rewrite_and_plaintext_waits_for_a_word() {
    let counted = |change: fn(&mut Tally)| {
        let mut case = Case::enabled(2).later(60_000);
        let mut tally = Tally { total: 9, current: 8, ..Tally::default() };
        change(&mut tally);
        case.commit(Commit::Counted { job: JobId(Uuid::from_u128(1)), tally });
        case.all_see()
    };
    let plaintext = || counted(|t| t.plaintext = 1);
    let accepted = || {
        let mut case = plaintext();
        case.commit(Commit::PlaintextAccepted);
        case.all_see().later(60_000)
    };
    let gone = || {
        let mut case = accepted().counted(|_| ());
        for i in 0..2 {
            assert_eq!(case.step(), take_up(i, Stage::Only));
            case.commit(Commit::TakeUp { agent: agent(i), stage: Stage::Only });
        }
        case.all_see()
    };
    let rotating = || {
        let case = counted(|t| (t.stale, t.plaintext) = (1, 1));
        case.open(OperationKind::Rotate, 10, TakeUp::Restart).minted().promoted()
    };
    let open = || Step::Open { target: root(10) };
    check(vec![
        ("an older key => a whole rewrite", counted(|t| t.stale = 1), open()),
        ("plaintext => nothing", plaintext(), Step::Rest),
        ("a word => all read it, then count", accepted(), Step::Wait(Why::NoTally)),
        ("still there => a whole rewrite", accepted().counted(|t| t.plaintext = 1), open()),
        ("gone meanwhile => nobody reads plaintext again", gone(), Step::Rest),
        ("what nobody can read is left alone", counted(|t| t.unknown = 1), Step::Rest),
        ("nothing found", counted(|_| ()), Step::Rest),
        (
            "a rewrite leaves it alone",
            rotating().counted(|t| (t.stale, t.plaintext) = (1, 1)),
            Step::Rewrite { left: 1 },
        ),
        ("and stops at it", rotating().counted(|t| t.plaintext = 1), Step::Wait(Why::Plaintext(1))),
    ]);
    for stage in plaintext().cluster.servers.values().map(|t| t.stage) {
        assert_eq!(stage, Stage::Only, "nobody reads it");
    }
    let mut word = rotating();
    word.commit(Commit::PlaintextAccepted);
    let word = word.all_see().counted(|t| t.plaintext = 1);
    assert_eq!(word.step(), Step::Rewrite { left: 1 }, "by a word, within an operation too");
    let shown = |case: Case| {
        let p = project::project(&case.cluster, &case.seen, &case.roots, case.now);
        (p.master_status, p.enabled)
    };
    let (text, enabled) = shown(plaintext());
    assert!(text.contains("1 are plaintext") && text.contains("nobody reads it"), "{text}");
    assert!(!enabled);
    let (text, enabled) = shown(accepted());
    assert!(text.contains("They are to be rewritten") && !enabled, "{text}");
    let (text, enabled) = shown(counted(|t| t.stale = 1));
    assert!(text.contains("They are to be rewritten") && enabled, "{text}");
    let (text, enabled) = shown(counted(|t| t.unknown = 1));
    assert!(text.contains("1 are unknown") && text.contains("census") && enabled, "{text}");
    for case in [gone(), counted(|_| ())] {
        assert_eq!(shown(case), ("Ready".to_owned(), true));
    }
    // A rewrite that is proven is the end of it.
    let mut done = accepted().open(OperationKind::Rotate, 10, TakeUp::Restart).minted().promoted();
    let verified = Verified { revision: 9, at: done.now, records: 9, sampled: 1 };
    done.commit(Commit::Verified { verified });
    assert_eq!(done.cluster.disproof, None);
}

#[test]
fn an_api_server_that_does_not_serve_is_named() {
    let down = |s: &mut Seen| s.observation.down = Some("it has no process".to_owned());
    let shown = |case: Case| {
        let p = project::project(&case.cluster, &case.seen, &case.roots, case.now);
        (p.state, p.master_health, p.master_status)
    };
    let said = "API server m1 does not serve: it has no process.".to_owned();
    assert_eq!(shown(Case::enabled(3).but(1, down)), ("warning", "unavailable", said.clone()));
    assert_eq!(shown(Case::new(2).but(1, down)).2, said, "whether encrypted or not");
    // An operation restarts API servers, and says so itself.
    let (state, health, text) =
        shown(Case::enabled(2).open(OperationKind::Rotate, 10, TakeUp::Restart).but(1, down));
    assert_eq!((state, health, text.as_str()), ("normal", "normal", project::IN_PROGRESS));
}

#[test]
fn what_keeps_an_agent_from_its_work_is_said() {
    let trouble = |s: &mut Seen| s.observation.troubles = vec!["the disk is gone".to_owned()];
    let case = Case::enabled(2).but(1, trouble);
    let shown = project::project(&case.cluster, &case.seen, &case.roots, case.now);
    assert_eq!((shown.state, shown.master_health), ("warning", "normal"));
    assert_eq!(shown.master_status, "m1: the disk is gone.");
}

/// A machine that joins again, or leaves, may have left plaintext, which `[kms]` neither reads nor
/// rewrites: everybody reads it again until etcd was counted.
#[test]
fn a_change_of_machines_lets_plaintext_be_read_until_none_is_left() {
    let again = |n: usize| {
        let mut case = Case::enabled(n);
        case.commit(Commit::Joined { agent: agent(0) });
        case
    };
    let mut left = Case::enabled(3);
    left.commit(Commit::Left { agent: agent(2) });
    for case in [again(2), again(1)] {
        assert!(case.cluster.servers.values().all(|t| t.stage == Stage::WriteFirst));
    }
    let rotating = || {
        let case = again(2).all_see().later(60_000);
        let case = case.open(OperationKind::Rotate, 10, TakeUp::Restart).minted().promoted();
        case.counted(|t| t.plaintext = 1)
    };
    let no_plaintext = |s: &mut Seen| s.observation.stage_loaded = Some(Stage::Only);
    check(vec![
        (
            "what was seen of it before it joined again does not count",
            again(2),
            Step::Wait(Why::NotTaken(agent(0), Stage::WriteFirst)),
        ),
        (
            "its last requests are waited for",
            again(2).all_see(),
            Step::Wait(Why::Requests { left_ms: 59_000 }),
        ),
        ("then => count", again(2).all_see().later(60_000), Step::Wait(Why::NoTally)),
        (
            "plaintext, though it is alone => a whole rewrite",
            again(1).all_see().later(60_000).counted(|t| t.plaintext = 1),
            Step::Open { target: root(10) },
        ),
        (
            "no plaintext, though it is alone => [kms]",
            again(1).all_see().later(60_000).counted(|_| ()),
            take_up(0, Stage::Only),
        ),
        ("one left => count", left.all_see().later(60_000), Step::Wait(Why::NoTally)),
        (
            "an API server does not read plaintext yet => no rewrite",
            rotating().but(1, no_plaintext),
            Step::Wait(Why::NotTaken(agent(1), Stage::WriteFirst)),
        ),
        ("all read it => rewrite", rotating(), Step::Rewrite { left: 1 }),
        (
            "no plaintext to rewrite => nobody is waited for",
            rotating().but(1, no_plaintext).counted(|t| t.stale = 2),
            Step::Rewrite { left: 2 },
        ),
    ]);
}
