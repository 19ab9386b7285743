//! The log on a real directory, with its threads.

use claviger_audit::{
    Anchor, BODY_MAX, Checkpoint, Dir, Durability, FileSink, Log, NotRecorded, Options, Reader,
    Record, Refused, Seams, Settle, Sink, WriterId, checkpoints_of, verify,
};
use claviger_crypto::Key32;
use claviger_crypto::sign::SigningKey;
use claviger_domain::id::UnixMs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};
use std::time::Duration;

type Token = Sender<Result<(), NotRecorded>>;

fn key() -> SigningKey {
    SigningKey::of_seed(&Key32::take(&mut [9; 32]).expect("32 bytes"))
}

fn seams(sinks: Vec<Box<dyn Sink>>, settle: Box<dyn Settle<Token>>) -> Seams<Token> {
    let anchor = Box::new(|| Anchor::new(b"row 1".to_vec()).expect("short"));
    Seams { signer: Box::new(key()), anchor, sinks, settle }
}

fn answer(tokens: &mut Vec<Token>, outcome: Result<(), NotRecorded>) {
    for token in tokens.drain(..) {
        let _ = token.send(outcome);
    }
}

fn start(dir: &Path, writer: WriterId, durability: Durability) -> Log<Token> {
    let files = Dir::open(dir).expect("opens");
    let options = Options { durability, segment_bytes: 20_000, ..Options::default() };
    let (log, recovery) =
        Log::start(files, writer, &[], options, seams(Vec::new(), Box::new(answer)))
            .expect("starts");
    assert_eq!(recovery.findings, []);
    log
}

fn append(log: &Log<Token>, body: &[u8]) -> Receiver<Result<(), NotRecorded>> {
    let (token, answer) = channel();
    log.append(Record { at: UnixMs(5), kind: 1, body }, token).expect("is taken");
    answer
}

/// Bounded, though nothing here takes long.
fn wait(answer: &Receiver<Result<(), NotRecorded>>) -> Result<(), NotRecorded> {
    answer.recv_timeout(Duration::from_secs(60)).expect("is answered")
}

#[test]
fn what_many_threads_append_is_read_after_starts() {
    for durability in [Durability::Synced, Durability::Written] {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("audit");
        let writer = WriterId::random();
        for start_number in 0..3u8 {
            let log = start(&dir, writer, durability);
            std::thread::scope(|scope| {
                for thread in 0..4u8 {
                    let log = &log;
                    scope.spawn(move || {
                        for n in 0..50u8 {
                            let body = [start_number, thread, n, 0, 0, 0, 0, 0].repeat(10);
                            assert_eq!(wait(&append(log, &body)), Ok(()));
                        }
                    });
                }
            });
            assert_eq!(log.health().records, u64::from(start_number + 1) * 200);
            assert_eq!(log.health().failing, None);
            log.close();
        }
        let files = Dir::existing(&dir).expect("opens");
        let report = verify(&files, &[key().public()], &[], &mut |checkpoint| {
            assert_eq!(checkpoint.anchor().bytes(), b"row 1");
        });
        let report = report.expect("reads");
        assert_eq!(report.findings, []);
        assert_eq!((report.to, report.signed.map(|signed| signed.0)), (600, Some(600)));
        let mut read: Vec<[u8; 3]> = Reader::open(files, UnixMs(0))
            .expect("opens")
            .map(|entry| entry.expect("reads").body[..3].try_into().expect("3 bytes"))
            .collect();
        read.sort_unstable();
        read.dedup();
        assert_eq!(read.len(), 600);
    }
}

/// Records that wait together are one group: settled by one call, in their order.
#[test]
fn a_group_is_settled_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (entered, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let calls = Arc::new(AtomicUsize::new(0));
    let settle = {
        let (entered, go_on, calls) = (entered.clone(), go_on.clone(), calls.clone());
        move |tokens: &mut Vec<Token>, outcome| {
            if calls.fetch_add(1, Ordering::SeqCst) == 0 {
                entered.wait();
                go_on.wait();
            }
            answer(tokens, outcome);
        }
    };
    let files = Dir::open(&dir.path().join("audit")).expect("opens");
    let seams = seams(Vec::new(), Box::new(settle));
    let (log, _) =
        Log::start(files, WriterId::random(), &[], Options::default(), seams).expect("starts");
    let first = append(&log, b"first");
    // The thread is held while it settles the first; the others gather.
    entered.wait();
    let others: Vec<_> = (0..100).map(|_| append(&log, b"other")).collect();
    go_on.wait();
    assert_eq!(wait(&first), Ok(()));
    for other in &others {
        assert_eq!(wait(other), Ok(()));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[test]
fn what_waits_is_bounded() {
    let dir = tempfile::tempdir().expect("a directory");
    let (entered, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let settle = {
        let (entered, go_on) = (entered.clone(), go_on.clone());
        let mut first = true;
        move |tokens: &mut Vec<Token>, outcome| {
            if std::mem::take(&mut first) {
                entered.wait();
                go_on.wait();
            }
            answer(tokens, outcome);
        }
    };
    let files = Dir::open(&dir.path().join("audit")).expect("opens");
    let seams = seams(Vec::new(), Box::new(settle));
    let (log, _) =
        Log::start(files, WriterId::random(), &[], Options::default(), seams).expect("starts");
    let mut waiting = vec![append(&log, b"first")];
    entered.wait();
    let refused = loop {
        let (token, answer) = channel();
        match log.append(Record { at: UnixMs(1), kind: 1, body: &[1; 1000] }, token) {
            Ok(()) => waiting.push(answer),
            Err(refused) => break refused,
        }
        assert!(waiting.len() < 2_000, "a megabyte is the bound");
    };
    assert_eq!(refused, Refused::Full);
    let (token, _answer) = channel();
    let long = log.append(Record { at: UnixMs(1), kind: 1, body: &[1; BODY_MAX + 1] }, token);
    assert_eq!(long, Err(Refused::TooLong(BODY_MAX + 1)));
    go_on.wait();
    for answer in &waiting {
        assert_eq!(wait(answer), Ok(()), "what was taken is recorded");
    }
}

struct Fails;

impl Sink for Fails {
    fn send(&mut self, _: &Checkpoint) -> io::Result<()> {
        Err(io::Error::other("nobody listens"))
    }
}

#[test]
fn checkpoints_leave_and_one_sink_that_fails_stops_no_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let sent = dir.path().join("checkpoints");
    let files = Dir::open(&dir.path().join("audit")).expect("opens");
    let sink = FileSink::open(&sent).expect("opens");
    let sinks: Vec<Box<dyn Sink>> = vec![Box::new(Fails), Box::new(sink)];
    let options = Options { segment_bytes: 2_000, ..Options::default() };
    let seams = seams(sinks, Box::new(answer));
    let (log, _) = Log::start(files, WriterId::random(), &[], options, seams).expect("starts");
    for _ in 0..20 {
        assert_eq!(wait(&append(&log, &[3; 300])), Ok(()));
    }
    log.close();
    let text = std::fs::read_to_string(&sent).expect("reads");
    let outside: Vec<Checkpoint> =
        checkpoints_of(&text).collect::<Result<_, _>>().expect("checkpoints");
    assert!(outside.len() >= 3, "{}", outside.len());
    assert_eq!(outside.last().map(Checkpoint::records), Some(20));
    let files = Dir::existing(&dir.path().join("audit")).expect("opens");
    let report = verify(&files, &[key().public()], &outside, &mut |_| {}).expect("reads");
    assert_eq!((report.findings.len(), report.outside), (0, outside.len() as u64));
}

/// Whoever cannot write must not answer, and must not wait for ever either.
#[test]
fn a_directory_that_is_gone_refuses_new_segments() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit");
    let files = Dir::open(&path).expect("opens");
    let options = Options { segment_bytes: 1, ..Options::default() };
    let seams = seams(Vec::new(), Box::new(answer));
    let (log, _) = Log::start(files, WriterId::random(), &[], options, seams).expect("starts");
    assert_eq!(wait(&append(&log, b"one")), Ok(()));
    std::fs::rename(&path, dir.path().join("elsewhere")).expect("renames");
    assert_eq!(wait(&append(&log, b"two")), Err(NotRecorded::Disk));
    assert_eq!(log.health().failing, Some(NotRecorded::Disk));
    std::fs::rename(dir.path().join("elsewhere"), &path).expect("renames");
    assert_eq!(wait(&append(&log, b"three")), Ok(()));
    assert_eq!(log.health().failing, None);
}
