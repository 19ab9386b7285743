//! The log on a disk that fails and loses power, by seed: nothing that was answered as recorded is
//! lost, and the chain is whole after each start.

use crate::checkpoint::tests::key;
use crate::engine::{Engine, Options, Parts};
use crate::format::Group;
use crate::sim::{Disk, Lies, Rng, SimClock, SimSyncer};
use crate::{
    Anchor, Checkpoint, Durability, Keep, Reader, Record, WINDOW, What, WriterId, recover, retire,
    verify,
};
use claviger_domain::id::UnixMs;
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

const SEEDS: u64 = 100;
const STARTS: usize = 5;
const WRITER: WriterId = WriterId(Uuid::from_u128(77));

pub(crate) fn parts(disk: &Disk) -> Parts<Disk> {
    Parts {
        files: disk.clone(),
        clock: Box::new(SimClock(disk.clone())),
        syncer: Box::new(SimSyncer::new(disk)),
        signer: Box::new(key(1)),
        anchor: Box::new(Anchor::default),
    }
}

/// A machine's history: what was answered, and what has left.
struct History {
    disk: Disk,
    rng: Rng,
    durability: Durability,
    /// Numbers of records that were answered as recorded, with when.
    answered: BTreeMap<u64, Duration>,
    /// Those that the log may have lost or have, since nobody was told that it has them.
    unsure: Vec<u64>,
    sent: Vec<Checkpoint>,
    next: u64,
    retired: u64,
    /// When the process ended, and whether the power went: a failure's report has them.
    ends: Vec<(Duration, bool)>,
}

/// Why a run is not as it should be.
type Wrong = String;

fn wrong<T>(what: impl Into<String>) -> Result<T, Wrong> {
    Err(what.into())
}

impl History {
    fn now(&self) -> Duration {
        use crate::engine::Clock;
        SimClock(self.disk.clone()).elapsed()
    }

    /// Opens the log and holds it against what was answered.
    fn start(&mut self) -> Result<Engine<Disk>, Wrong> {
        self.verify(&[What::Torn])?;
        let options =
            Options { durability: self.durability, segment_bytes: 6_000, checkpoint_ms: 30_000 };
        let known: Vec<Checkpoint> = self.sent.last().cloned().into_iter().collect();
        let opened = recover::open(parts(&self.disk), WRITER, &known, options);
        let (engine, recovery) = opened.map_err(|e| format!("opening: {e}"))?;
        if !recovery.findings.is_empty() {
            return wrong(format!("a start finds {:?}", recovery.findings));
        }
        self.verify(&[])?;
        self.hold()?;
        Ok(engine)
    }

    fn verify(&self, allowed: &[What]) -> Result<(), Wrong> {
        let trusted = [key(1).public()];
        let report = verify(&self.disk, &trusted, &self.sent, &mut |_| {});
        let report = report.map_err(|e| format!("verifying: {e}"))?;
        match report.findings.iter().find(|finding| !allowed.contains(&finding.what)) {
            None => Ok(()),
            Some(finding) => wrong(format!("verify finds {finding:?}")),
        }
    }

    /// The log has what was answered, once, in order, and nothing that nobody asked for.
    fn hold(&self) -> Result<(), Wrong> {
        let reader = Reader::open(self.disk.clone(), UnixMs(0)).map_err(|e| e.to_string())?;
        let mut last = self.retired;
        let mut number = None;
        for entry in reader {
            let entry = entry.map_err(|e| format!("reading: {e}"))?;
            let id = u64::from_be_bytes(entry.body[..8].try_into().expect("8 bytes"));
            if id <= last {
                return wrong(format!("record {id} behind {last}"));
            }
            let lost = (last + 1..id).find(|id| self.answered.contains_key(id));
            if let Some(lost) = lost {
                return self.lost(lost);
            }
            if !self.answered.contains_key(&id) && !self.unsure.contains(&id) {
                return wrong(format!("record {id} comes from nowhere"));
            }
            if number.is_some_and(|number| entry.number != number + 1) {
                return wrong(format!("number {} behind {number:?}", entry.number));
            }
            number = Some(entry.number);
            last = id;
        }
        match self.answered.range(last + 1..).next() {
            None => Ok(()),
            Some((lost, _)) => self.lost(*lost),
        }
    }

    fn lost(&self, id: u64) -> Result<(), Wrong> {
        let (at, ends) = (self.answered[&id], &self.ends);
        wrong(format!("record {id}, answered at {at:?}, is lost; ends: {ends:?}"))
    }

    fn put(&mut self, engine: &mut Engine<Disk>) {
        let mut group = Group::new();
        let first = self.next;
        for _ in 0..=self.rng.below(4) {
            let mut body = self.next.to_be_bytes().to_vec();
            let len = if self.rng.one_in(10) { 3_000 } else { 60 };
            body.resize(8 + self.rng.below(len), 0xaa);
            let at = UnixMs(i64::try_from(self.now().as_millis()).expect("soon"));
            group.push(Record { at, kind: 1, body: &body });
            self.next += 1;
        }
        let ids = first..self.next;
        match engine.put(&mut group) {
            Ok(()) => {
                let now = self.now();
                self.answered.extend(ids.map(|id| (id, now)));
            }
            Err(_) => self.unsure.extend(ids),
        }
    }

    /// Lets time pass, as the log's thread would see it.
    fn pass(&mut self, engine: &mut Engine<Disk>, time: Duration) {
        let end = self.now() + time;
        while self.now() < end {
            if engine.due().is_some_and(|due| due <= self.now()) {
                engine.tick();
            }
            let due = engine.due().unwrap_or(end);
            let step = due.saturating_sub(self.now()).max(Duration::from_millis(1));
            self.disk.advance(step.min(end.saturating_sub(self.now())));
        }
        if engine.due().is_some_and(|due| due <= self.now()) {
            engine.tick();
        }
    }

    fn misfortune(&mut self, engine: &mut Engine<Disk>) {
        match (self.rng.below(4), self.durability) {
            (0, _) => self.disk.fail_sync(),
            // What was answered as written and not flushed has to find room again when a flush
            // fails: two misfortunes at once are too many for the promise of `Written`.
            (_, Durability::Written) => {}
            (1, _) => self.disk.fail_write(),
            (2, _) => {
                self.disk.set_room(Some(self.rng.below(1_000)));
                for _ in 0..self.rng.below(6) {
                    self.put(engine);
                }
                self.disk.set_room(None);
                self.pass(engine, Duration::from_secs(2));
            }
            _ => {
                let keep = Keep { bytes: Some(20_000), since: None };
                let now = UnixMs(i64::try_from(self.now().as_millis()).expect("soon"));
                let _ = retire(&self.disk, &key(1), keep, now);
            }
        }
    }

    /// Forgets what retention took away.
    fn forget(&mut self) {
        let Ok(mut reader) = Reader::open(self.disk.clone(), UnixMs(0)) else { return };
        let removed = verify(&self.disk, &[key(1).public()], &[], &mut |_| {});
        if removed.is_ok_and(|report| report.from > 1)
            && let Some(Ok(first)) = reader.next()
        {
            let id = u64::from_be_bytes(first.body[..8].try_into().expect("8 bytes"));
            self.answered = self.answered.split_off(&id);
            self.retired = id - 1;
        }
    }
}

fn run(seed: u64, durability: Durability, lies: Lies) -> Result<(), Wrong> {
    let mut history = History {
        disk: Disk::new(seed, lies),
        rng: Rng(seed ^ 0xdead_beef),
        durability,
        answered: BTreeMap::new(),
        unsure: Vec::new(),
        sent: Vec::new(),
        next: 1,
        retired: 0,
        ends: Vec::new(),
    };
    // A flush that fails in `Written` is followed by three more before all is durable again.
    let unlucky = history.rng.one_in(2);
    history.disk.set_sync_ms_max(if unlucky { 3 } else { 9 });
    for _ in 0..STARTS {
        let mut engine = history.start()?;
        let power_goes = !history.rng.one_in(3);
        if power_goes && history.rng.one_in(2) {
            history.disk.light_fuse(history.rng.below(150));
        }
        for _ in 0..history.rng.below(60) {
            match history.rng.below(12) {
                0..7 => history.put(&mut engine),
                7..10 => {
                    let ms = history.rng.below(30) as u64;
                    history.pass(&mut engine, Duration::from_millis(ms));
                }
                10 => history.pass(&mut engine, Duration::from_secs(20)),
                _ if unlucky => history.misfortune(&mut engine),
                _ => {}
            }
            history.sent.extend(engine.made());
            if history.disk.off_since().is_some() {
                break;
            }
        }
        if !power_goes && history.rng.one_in(2) {
            let _ = engine.close();
            history.sent.extend(engine.made());
        }
        let now = history.disk.off_since().unwrap_or_else(|| history.now());
        drop(engine);
        history.disk.restart(power_goes);
        history.ends.push((now, power_goes));
        if power_goes && durability == Durability::Written {
            let (kept, lost): (BTreeMap<_, _>, _) = std::mem::take(&mut history.answered)
                .into_iter()
                .partition(|(_, at)| *at + WINDOW < now);
            history.answered = kept;
            history.unsure.extend(lost.into_keys());
        }
        history.forget();
    }
    history.start().map(|_| ())
}

fn all(durability: Durability) {
    for seed in 0..SEEDS {
        if let Err(what) = run(seed, durability, Lies::default()) {
            panic!("seed {seed}: {what}");
        }
    }
}

#[test]
fn synced_loses_nothing_that_was_answered() {
    all(Durability::Synced);
}

#[test]
fn written_loses_nothing_that_was_answered_before_the_window() {
    all(Durability::Written);
}

/// The tests above can fail: on a disk that does not flush, they do.
#[test]
fn a_disk_that_lies_is_noticed() {
    let files = Lies { sync: true, ..Lies::default() };
    let names = Lies { sync_dir: true, ..Lies::default() };
    for (lies, what) in [(files, "files"), (names, "names")] {
        for durability in [Durability::Synced, Durability::Written] {
            let noticed = (0..20).filter(|seed| run(*seed, durability, lies).is_err()).count();
            assert!(noticed > 10, "{what}, {durability:?}: in {noticed} of 20 runs");
        }
    }
}

/// A checkpoint behind torn bytes would mean damage, so it is written only once they are durable.
#[test]
fn a_stop_while_closing_is_not_taken_for_damage() {
    for seed in 0..200 {
        let disk = Disk::new(seed, Lies::default());
        let options = Options { durability: Durability::Written, ..Options::default() };
        let opened = recover::open(parts(&disk), WRITER, &[], options);
        let (mut engine, _) = opened.expect("opens");
        for _ in 0..3 {
            let mut group = Group::new();
            group.push(Record { at: UnixMs(1), kind: 1, body: &[7; 1_000] });
            engine.put(&mut group).expect("writes");
        }
        disk.light_fuse(usize::try_from(seed % 4).expect("small"));
        let _ = engine.close();
        drop(engine);
        disk.restart(true);
        let opened = recover::open(parts(&disk), WRITER, &[], options);
        assert_eq!(opened.expect("opens").1.findings, [], "seed {seed}");
    }
}

/// While a disk is full, each record is refused; what was torn is cut off at once, and all goes
/// on when there is room.
#[test]
fn a_full_disk_refuses_and_goes_on() {
    let disk = Disk::new(1, Lies::default());
    let (mut engine, _) =
        recover::open(parts(&disk), WRITER, &[], Options::default()).expect("opens");
    let mut put = |body: &[u8]| {
        let mut group = Group::new();
        group.push(Record { at: UnixMs(1), kind: 1, body });
        engine.put(&mut group)
    };
    put(b"before").expect("there is room");
    let whole = disk.bytes("000000000001.segment");
    disk.set_room(Some(40));
    for _ in 0..3 {
        let refused = put(&[7; 300]).expect_err("no room");
        assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(disk.bytes("000000000001.segment"), whole, "nothing torn stays");
        disk.set_room(Some(40));
    }
    disk.set_room(None);
    put(b"after").expect("there is room again");
    drop(engine);
    let bodies: Vec<Vec<u8>> = Reader::open(disk.clone(), UnixMs(0))
        .expect("opens")
        .map(|entry| entry.expect("reads").body)
        .collect();
    assert_eq!(bodies, [b"before".to_vec(), b"after".to_vec()]);
}

/// A server starts on a full disk, so that somebody can make room.
#[test]
fn a_start_on_a_full_disk_goes_on_when_there_is_room() {
    let disk = Disk::new(1, Lies::default());
    disk.set_room(Some(100));
    let opened = recover::open(parts(&disk), WRITER, &[], Options::default());
    let (mut engine, _) = opened.expect("opens");
    assert!(!engine.is_ready());
    let mut group = Group::new();
    group.push(Record { at: UnixMs(1), kind: 1, body: b"refused" });
    engine.put(&mut group).expect_err("no room");
    disk.set_room(None);
    assert!(engine.due().is_some_and(|due| due > engine.elapsed()), "not without a pause");
    disk.advance(Duration::from_secs(1));
    engine.tick();
    assert!(engine.is_ready());
    assert_eq!(engine.due(), None);
    let mut group = Group::new();
    group.push(Record { at: UnixMs(1), kind: 1, body: b"recorded" });
    engine.put(&mut group).expect("there is room");
    drop(engine);
    let reader = Reader::open(disk.clone(), UnixMs(0)).expect("opens");
    let bodies: Vec<_> = reader.map(|entry| entry.expect("reads").body).collect();
    assert_eq!(bodies, [b"recorded".to_vec()]);
}
