//! What somebody does who can write the log's files: `verify` finds it, and says where. And what a
//! start does with what it finds.

use crate::checkpoint::tests::key;
use crate::engine::{Engine, Options};
use crate::files::{File, Files};
use crate::format::{self, Ended, Group, HEADER_LEN, Header};
use crate::power::parts;
use crate::sim::{Disk, Lies};
use crate::walk::{CUT_MAX, Step, Walk};
use crate::{
    Checkpoint, Finding, Keep, OpenError, Reader, Record, Recovery, Report, RetireError, What,
    WriterId, recover, retire, verify,
};
use claviger_crypto::digest::sha256;
use claviger_domain::id::UnixMs;
use std::time::Duration;
use uuid::Uuid;

const WRITER: WriterId = WriterId(Uuid::from_u128(78));

fn open(disk: &Disk, known: &[Checkpoint]) -> (Engine<Disk>, Recovery) {
    let options = Options { segment_bytes: 700, checkpoint_ms: 10_000, ..Options::default() };
    recover::open(parts(disk), WRITER, known, options).expect("opens")
}

/// Writes groups of two records, ten seconds apart from each other after every third, as the
/// log's thread would.
fn fill(disk: &Disk, engine: &mut Engine<Disk>, groups: i64) {
    for number in 0..groups {
        let mut group = Group::new();
        for at in [number, number + 1] {
            group.push(Record { at: UnixMs(at), kind: 3, body: b"somebody read something" });
        }
        engine.put(&mut group).expect("writes");
        if number % 3 == 2 {
            disk.advance(Duration::from_secs(10));
            engine.tick();
        }
    }
}

/// A log of several segments and two starts, the last one closed, and the checkpoints that left.
fn log() -> (Disk, Vec<Checkpoint>) {
    let disk = Disk::new(1, Lies::default());
    let mut sent = Vec::new();
    for _ in 0..2 {
        let (mut engine, recovery) = open(&disk, &sent);
        assert_eq!(recovery.findings, []);
        fill(&disk, &mut engine, 14);
        engine.close().expect("closes");
        sent.extend(engine.made());
    }
    assert!(names(&disk).len() > 5);
    (disk, sent)
}

fn names(disk: &Disk) -> Vec<String> {
    let names = disk.names().expect("names");
    names.into_iter().filter(|name| format::sequence(name).is_some()).collect()
}

fn report(disk: &Disk, outside: &[Checkpoint]) -> Report {
    verify(disk, &[key(1).public()], outside, &mut |_| {}).expect("reads")
}

fn whats(report: &Report) -> Vec<(u64, What)> {
    report.findings.iter().map(|finding| (finding.sequence, finding.what)).collect()
}

/// Ends of frames in a segment, and the numbers of the last records there.
fn ends(disk: &Disk, sequence: u64) -> Vec<(usize, u64)> {
    let mut walk = Walk::open(disk.open(&format::name(sequence)).expect("is there"));
    let walk = walk.as_mut().expect("reads").as_mut().ok().expect("has a header");
    let mut ends = vec![(HEADER_LEN, walk.mark().records)];
    while !matches!(walk.step().expect("reads"), Step::End) {
        ends.push((usize::try_from(walk.mark().len).expect("small"), walk.mark().records));
    }
    ends
}

/// Chains the frames of a segment anew, as whoever changes it would.
fn chain_anew(bytes: &mut [u8]) {
    let header: [u8; HEADER_LEN] = bytes[..HEADER_LEN].try_into().expect("long enough");
    let mut link = Header::decode(&header).expect("a header").1;
    let mut at = HEADER_LEN;
    while at < bytes.len() {
        let head = bytes[at..at + format::FRAME_HEAD].try_into().expect("5");
        let len = format::frame_head(head).expect("a frame").0;
        let end = at + format::FRAME_HEAD + len + format::LINK_LEN;
        link = format::chain(&link, &mut bytes[at..end]);
        at = end;
    }
}

#[test]
fn a_log_that_nobody_touched_is_whole() {
    let (disk, sent) = log();
    let mut seen = 0;
    let trusted = [key(1).public()];
    let report = verify(&disk, &trusted, &sent, &mut |_| seen += 1).expect("reads");
    assert_eq!(report.findings, []);
    assert_eq!((report.writer, report.from, report.to), (Some(WRITER), 1, 56));
    assert_eq!(report.signed.map(|(records, _)| records), Some(56));
    assert_eq!((report.checkpoints, report.outside, seen), (sent.len() as u64, seen, seen));
    assert_eq!((report.cuts, report.tail), (0, None));
    assert_eq!(report.segments, names(&disk).len() as u64);
}

#[test]
fn every_changed_byte_is_found_where_it_is() {
    let (disk, _) = log();
    let last = names(&disk).len() as u64;
    for name in names(&disk) {
        let sequence = format::sequence(&name).expect("a segment");
        let (bytes, ends) = (disk.bytes(&name), ends(&disk, sequence));
        // Each part of each frame, without taking all day.
        for at in (0..bytes.len()).step_by(11) {
            let copy = disk.copy();
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            copy.put(&name, &bytes);
            let report = report(&copy, &[]);
            let here = report.findings.iter().find(|finding| finding.sequence == sequence);
            let found = here.unwrap_or_else(|| panic!("{name}, byte {at}: {:?}", report.findings));
            if at < HEADER_LEN {
                assert_eq!((found.what, found.offset), (What::Header, 0));
                continue;
            }
            let frame = ends.iter().rfind(|(end, _)| *end <= at).expect("behind the header");
            assert_eq!((found.offset, found.record), (frame.0 as u64, frame.1 + 1), "byte {at}");
            let torn = sequence == last && frame == &ends[ends.len() - 2];
            let what = if torn { What::Torn } else { What::Edited };
            assert_eq!(found.what, what, "{name}, byte {at}");
        }
    }
}

#[test]
fn a_segment_that_ends_early_is_found() {
    let (disk, sent) = log();
    let last = names(&disk).len() as u64;
    for name in names(&disk) {
        let sequence = format::sequence(&name).expect("a segment");
        let (bytes, ends) = (disk.bytes(&name), ends(&disk, sequence));
        let all = ends.last().expect("frames").1;
        for (end, records) in &ends[..ends.len() - 1] {
            for extra in [0, 1, 40] {
                let copy = disk.copy();
                copy.put(&name, &bytes[..end + extra]);
                let report = report(&copy, &sent);
                let (offset, record) = (*end as u64, records + 1);
                let what = What::Truncated { records: all };
                let wanted = Finding { sequence, offset, record, what };
                assert!(report.findings.contains(&wanted), "{name}, {end}: {:?}", report.findings);
            }
        }
        // An empty one carries no header.
        let copy = disk.copy();
        copy.put(&name, &[]);
        let what = if sequence == last { What::Torn } else { What::Header };
        assert!(whats(&report(&copy, &sent)).contains(&(sequence, what)));
    }
}

#[test]
fn segments_that_are_removed_swapped_or_added_are_found() {
    let (disk, sent) = log();
    let (second, third) = (format::name(2), format::name(3));
    let last = names(&disk).len() as u64;

    let copy = disk.copy();
    copy.remove(&second).expect("removes");
    assert!(whats(&report(&copy, &[])).contains(&(3, What::Gap { segments: 1 })));

    let copy = disk.copy();
    copy.remove(&format::name(1)).expect("removes");
    assert!(whats(&report(&copy, &[])).contains(&(2, What::Gap { segments: 1 })));

    // Only who has a checkpoint from outside can know that there was more.
    let copy = disk.copy();
    copy.remove(&format::name(last)).expect("removes");
    assert_eq!(whats(&report(&copy, &[])), []);
    assert!(whats(&report(&copy, &sent)).contains(&(last, What::Truncated { records: 56 })));
    for name in names(&copy) {
        copy.remove(&name).expect("removes");
    }
    assert!(whats(&report(&copy, &sent)).contains(&(last, What::Truncated { records: 56 })));

    let copy = disk.copy();
    copy.put(&second, &disk.bytes(&third));
    copy.put(&third, &disk.bytes(&second));
    let found = whats(&report(&copy, &[]));
    assert!(found.contains(&(2, What::Misplaced { holds: 3 })), "{found:?}");
    assert!(found.contains(&(3, What::Misplaced { holds: 2 })), "{found:?}");

    let copy = disk.copy();
    copy.put(&format::name(last + 1), &disk.bytes(&format::name(last)));
    let found = whats(&report(&copy, &[]));
    assert!(found.contains(&(last + 1, What::Misplaced { holds: last })), "{found:?}");

    let copy = disk.copy();
    let more = [disk.bytes(&second), b"more".to_vec()].concat();
    copy.put(&second, &more);
    assert!(whats(&report(&copy, &[])).contains(&(2, What::Extra)));
}

/// Whoever changes a record and chains all anew has no key to sign with.
#[test]
fn a_chain_that_was_made_anew_is_found() {
    let (disk, sent) = log();
    let last = names(&disk).len() as u64;
    for sequence in 1..=last {
        let name = format::name(sequence);
        let mut bytes = disk.bytes(&name);
        let body = bytes.windows(8).position(|w| w == b"somebody").expect("a record");
        bytes[body] = b'S';
        chain_anew(&mut bytes);
        let copy = disk.copy();
        copy.put(&name, &bytes);
        let found = whats(&report(&copy, &[]));
        assert!(found.contains(&(sequence, What::Forged)), "{found:?}");
        let joined = found.contains(&(sequence + 1, What::Chain));
        assert!(joined || sequence == last, "{found:?}");
        let found = whats(&report(&copy, &sent));
        assert!(found.contains(&(sequence, What::Rewritten)), "{found:?}");
    }
}

/// Numbers as whoever forges a header may choose them.
#[test]
fn absurd_numbers_are_found_and_stop_nobody() {
    let (disk, sent) = log();
    for name in names(&disk) {
        let sequence = format::sequence(&name).expect("a segment");
        for field in (34..90).step_by(8) {
            for number in [0, (1 << 48) - 1, 1 << 48, u64::MAX] {
                let mut bytes = disk.bytes(&name);
                let field = &mut bytes[field..field + 8];
                if field == number.to_be_bytes() {
                    continue;
                }
                field.copy_from_slice(&number.to_be_bytes());
                let link = sha256(&bytes[..HEADER_LEN - format::LINK_LEN]);
                bytes[HEADER_LEN - format::LINK_LEN..HEADER_LEN].copy_from_slice(&link);
                if number < 1 << 48 {
                    chain_anew(&mut bytes);
                }
                let copy = disk.copy();
                copy.put(&name, &bytes);
                let found = report(&copy, &sent);
                let here = found.findings.iter().any(|f| f.sequence == sequence);
                assert!(here, "{name}: {:?}", found.findings);
                Reader::open(copy.clone(), UnixMs(0)).expect("opens").for_each(drop);
                let keep = Keep { bytes: Some(0), since: None };
                let _ = retire(&copy, &key(1), keep, UnixMs(1));
                open(&copy, &sent).0.close().expect("goes on");
            }
        }
    }
}

#[test]
fn a_checkpoint_by_another_key_is_forged() {
    let (disk, sent) = log();
    let other = [key(2).public()];
    let report = verify(&disk, &other, &sent, &mut |_| panic!("none holds")).expect("reads");
    assert_eq!((report.checkpoints, report.signed), (0, None));
    let found = whats(&report);
    let count = |what| found.iter().filter(|(_, other)| *other == what).count();
    assert_eq!((count(What::Forged), count(What::ForgedOutside)), (sent.len(), sent.len()));
    // A true one whose number was changed.
    let mut bytes = sent[0].encode();
    bytes[30] ^= 1;
    let forged = Checkpoint::decode(&bytes).expect("is one");
    assert!(whats(&self::report(&disk, &[forged])).iter().any(|f| f.1 == What::ForgedOutside));
}

#[test]
fn a_torn_tail_is_cut_off_and_the_next_start_says_so() {
    let disk = Disk::new(1, Lies::default());
    let (mut engine, _) = open(&disk, &[]);
    fill(&disk, &mut engine, 2);
    drop(engine);
    let name = format::name(1);
    let whole = disk.bytes(&name);
    disk.put(&name, &[whole.as_slice(), &[0, 0, 0, 60, 1, 9]].concat());
    let tail = report(&disk, &[]);
    assert_eq!(whats(&tail), [(1, What::Torn)]);
    assert_eq!(tail.tail.map(|tail| (tail.offset, tail.bytes)), Some((whole.len() as u64, 6)));

    let (mut engine, recovery) = open(&disk, &[]);
    let Recovery { ended, sequence, cut, records, findings } = recovery;
    assert_eq!((ended, sequence, cut, records), (Ended::Torn, 1, 6, 4));
    assert_eq!(findings, []);
    assert_eq!(disk.bytes(&name), whole, "the torn bytes are gone");
    fill(&disk, &mut engine, 1);
    drop(engine);
    let report = report(&disk, &[]);
    assert_eq!((report.findings.len(), report.cuts, report.to), (0, 1, 6));
    // A second start, after a stop that tore nothing, has nothing to say.
    assert_eq!(open(&disk, &[]).1.cut, 0);
    assert_eq!(self::report(&disk, &[]).cuts, 1);
}

#[test]
fn damage_is_not_taken_for_a_torn_tail() {
    // Before a checkpoint: what a checkpoint follows was durable, so no stop has torn it.
    let disk = Disk::new(1, Lies::default());
    let (mut engine, _) = open(&disk, &[]);
    fill(&disk, &mut engine, 3);
    drop(engine);
    let name = format::name(1);
    let mut bytes = disk.bytes(&name);
    bytes[HEADER_LEN + 40] ^= 1;
    disk.put(&name, &bytes);
    assert_eq!(whats(&report(&disk, &[])), [(1, What::Edited)]);
    let (mut engine, recovery) = open(&disk, &[]);
    let what = What::Edited;
    let offset = HEADER_LEN as u64;
    assert_eq!(recovery.findings, [Finding { sequence: 1, offset, record: 1, what }]);
    assert_eq!(recovery.ended, Ended::Damaged);
    assert_eq!(disk.bytes(&name), bytes, "evidence stays");
    fill(&disk, &mut engine, 1);
    drop(engine);
    assert_eq!(whats(&report(&disk, &[])), [(1, What::Edited), (2, What::FoundDamaged)]);

    // More than one flush can cover.
    let disk = Disk::new(1, Lies::default());
    let (mut engine, _) = open(&disk, &[]);
    fill(&disk, &mut engine, 1);
    drop(engine);
    let mut bytes = disk.bytes(&name);
    bytes.resize(bytes.len() + usize::try_from(CUT_MAX).expect("fits") + 1, 0);
    disk.put(&name, &bytes);
    assert_eq!(whats(&report(&disk, &[])), [(1, What::Edited)]);
    assert_eq!(open(&disk, &[]).1.ended, Ended::Damaged);
}

/// A known checkpoint shows what a start would otherwise go on from in silence.
#[test]
fn a_start_finds_an_end_that_is_missing_or_rewritten() {
    let (disk, sent) = log();
    let last = names(&disk).len() as u64;
    let newest = sent.last().expect("checkpoints");
    let known = [newest.clone()];

    let (mut engine, recovery) = open(&disk.copy(), &known);
    assert_eq!((recovery.ended, recovery.findings.len()), (Ended::Whole, 0));
    engine.close().expect("closes");

    let copy = disk.copy();
    copy.remove(&format::name(last)).expect("removes");
    let (mut engine, recovery) = open(&copy, &known);
    let what = What::Truncated { records: 56 };
    assert_eq!(recovery.findings.iter().map(|f| f.what).collect::<Vec<_>>(), [what]);
    fill(&copy, &mut engine, 1);
    drop(engine);
    let after = report(&copy, &sent);
    assert_eq!(after.to, 58, "no number is given twice");
    assert!(whats(&after).contains(&(last + 1, What::Gap { segments: 1 })), "{after:?}");

    let copy = disk.copy();
    let name = format::name(last);
    let ends = ends(&disk, last);
    copy.put(&name, &disk.bytes(&name)[..ends[1].0]);
    let (_, recovery) = open(&copy, &known);
    assert_eq!(recovery.findings.iter().map(|f| f.what).collect::<Vec<_>>(), [what]);

    let copy = disk.copy();
    let mut bytes = disk.bytes(&name);
    let body = bytes.windows(8).position(|w| w == b"somebody").expect("a record");
    bytes[body] = b'S';
    chain_anew(&mut bytes);
    copy.put(&name, &bytes);
    let (_, recovery) = open(&copy, &known);
    assert!(recovery.findings.iter().any(|f| f.what == What::Rewritten), "{recovery:?}");
    let (_, recovery) = open(&{ copy.copy() }, &[]);
    assert_eq!(recovery.findings, [], "without a checkpoint, nobody can tell");

    // What no trusted key signed proves nothing.
    let mut bytes = newest.encode();
    bytes[30] ^= 1;
    let forged = Checkpoint::decode(&bytes).expect("is one");
    assert_eq!(open(&disk.copy(), &[forged]).1.findings, []);
}

#[test]
fn a_directory_has_one_writer_at_a_time_and_one_for_ever() {
    let (disk, _) = log();
    let (engine, _) = open(&disk, &[]);
    let opened = recover::open(parts(&disk), WRITER, &[], Options::default());
    assert!(matches!(opened, Err(OpenError::Locked)));
    drop(engine);
    let other = WriterId(Uuid::from_u128(79));
    let opened = recover::open(parts(&disk), other, &[], Options::default());
    assert!(matches!(opened, Err(OpenError::OtherWriter(WRITER))));
}

#[test]
fn what_retention_removes_is_proven_by_its_heads() {
    let (disk, sent) = log();
    let all = report(&disk, &[]);
    let keep = Keep { bytes: Some(4_000), since: None };
    let retired = retire(&disk, &key(1), keep, UnixMs(9)).expect("retires");
    assert!(retired.segments > 1, "{retired:?}");
    let left = report(&disk, &sent);
    assert_eq!(left.findings, []);
    assert_eq!((left.removed, left.from, left.to), (retired.segments, retired.from, all.to));
    assert_eq!(left.segments + left.removed, all.segments);
    assert!(left.outside_unchecked > 0 && left.outside > 0);
    assert_eq!(retire(&disk, &key(1), keep, UnixMs(9)).expect("retires").segments, 0);
    let numbers: Vec<u64> = Reader::open(disk.clone(), UnixMs(0))
        .expect("opens")
        .map(|entry| entry.expect("reads").number)
        .collect();
    assert_eq!(numbers, (left.from..=left.to).collect::<Vec<_>>());

    // One more than retention removed.
    let copy = disk.copy();
    copy.remove(&names(&disk)[0]).expect("removes");
    let found = whats(&report(&copy, &[]));
    assert!(matches!(found[..], [(_, What::Gap { segments: 1 })]), "{found:?}");
    assert!(matches!(
        retire(&copy, &key(1), Keep { bytes: Some(0), since: None }, UnixMs(9)),
        Err(RetireError::Damaged { .. })
    ));
    // Without the heads, or with changed ones, nothing tells that it was retention.
    let copy = disk.copy();
    copy.remove("heads").expect("removes");
    let found = whats(&report(&copy, &[]));
    assert!(matches!(found[..], [(_, What::Gap { .. })]), "{found:?}");
    let mut bytes = disk.bytes("heads");
    bytes[50] ^= 1;
    let copy = disk.copy();
    copy.put("heads", &bytes);
    assert!(whats(&report(&copy, &[])).iter().any(|found| found.1 == What::Heads));
}

#[test]
fn retention_goes_by_age_and_never_signs_for_a_changed_segment() {
    let (disk, _) = log();
    let none = Keep { since: Some(UnixMs(0)), bytes: None };
    assert_eq!(retire(&disk, &key(1), none, UnixMs(9)).expect("retires").segments, 0);
    let name = format::name(1);
    let mut bytes = disk.bytes(&name);
    bytes[HEADER_LEN + 30] ^= 1;
    let copy = disk.copy();
    copy.put(&name, &bytes);
    let keep = Keep { since: Some(UnixMs(1_000)), bytes: None };
    let refused = retire(&copy, &key(1), keep, UnixMs(9));
    assert!(matches!(refused, Err(RetireError::Damaged { sequence: 1 })));
    assert_eq!(names(&copy), names(&disk), "evidence stays");
    let retired = retire(&disk, &key(1), keep, UnixMs(9)).expect("retires");
    assert_eq!(names(&disk).len(), 1, "the last one stays: {retired:?}");
    assert_eq!(report(&disk, &[]).findings, []);
}

#[test]
fn reading_from_a_time_skips_what_is_older() {
    let (disk, _) = log();
    let read = |from| {
        let reader = Reader::open(disk.clone(), UnixMs(from)).expect("opens");
        reader.map(|entry| entry.expect("reads")).collect::<Vec<_>>()
    };
    let all = read(0);
    assert_eq!(all.iter().map(|e| e.number).collect::<Vec<_>>(), (1..=56).collect::<Vec<_>>());
    let late: Vec<_> = all.iter().filter(|entry| entry.at.0 >= 12).cloned().collect();
    assert_eq!(read(12), late);
    assert_eq!(read(15), []);
    assert_eq!((all[0].kind, all[0].body.as_slice()), (3, b"somebody read something".as_slice()));
}

#[test]
fn a_reader_follows_a_log_that_grows() {
    let disk = Disk::new(1, Lies::default());
    let (mut engine, _) = open(&disk, &[]);
    let mut reader = Reader::open(disk.clone(), UnixMs(0)).expect("opens");
    let mut next = 1;
    for groups in [0, 1, 20, 0, 3] {
        fill(&disk, &mut engine, groups);
        for entry in reader.by_ref() {
            assert_eq!(entry.expect("reads").number, next);
            next += 1;
        }
    }
    assert_eq!(next, 49);
    // A frame that is half written is waited for.
    let name = names(&disk).pop().expect("segments");
    let file = disk.open(&name).expect("opens");
    let len = file.size().expect("reads");
    file.write_at(&[0, 0, 0, 60, 1], len).expect("writes");
    assert!(reader.next().is_none());
    file.truncate(len).expect("cuts");
    fill(&disk, &mut engine, 1);
    assert_eq!(reader.next().expect("goes on").expect("reads").number, 49);
}

#[test]
fn a_damaged_segment_is_told_and_passed_over() {
    let (disk, _) = log();
    let name = format::name(2);
    let mut bytes = disk.bytes(&name);
    bytes[HEADER_LEN + 30] ^= 1;
    disk.put(&name, &bytes);
    let reader = Reader::open(disk.clone(), UnixMs(0)).expect("opens");
    let (read, failed): (Vec<_>, Vec<_>) = reader.partition(Result::is_ok);
    assert_eq!(failed.len(), 1);
    let numbers: Vec<u64> = read.into_iter().map(|entry| entry.expect("ok").number).collect();
    let second = ends(&disk.copy(), 1).last().expect("frames").1;
    assert!(!numbers.contains(&(second + 1)) && numbers.contains(&56) && numbers.contains(&1));
}
