//! The audit log against bare writes of the same bytes: one write and one fdatasync for each group
//! (`synced`), one write for each group and an fdatasync every 20 ms (`written`).
//!
//! Rounds alternate; reported are medians. A group is what waits at once: as many records as there
//! are callers. Records have 200 bytes, which is what an act of the key service takes.

use claviger_audit::{
    Anchor, Dir, Durability, File, Files, Log, NotRecorded, Options, Record, Seams, WINDOW,
    WriterId,
};
use claviger_bench::median;
use claviger_crypto::Key32;
use claviger_crypto::sign::SigningKey;
use claviger_domain::id::UnixMs;
use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Instant;

const ROUNDS: usize = 5;
const BODY: [u8; 200] = [0x5a; 200];
/// Bytes of a record and its head in a segment.
const RECORD: usize = BODY.len() + 12;
/// Callers at once, and groups of one round.
const SYNCED: [(usize, usize); 2] = [(1, 300), (32, 300)];
const WRITTEN: [(usize, usize); 2] = [(1, 20_000), (32, 10_000)];

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    // Not the system's temporary directory, which may be memory.
    let dir = std::env::current_dir()?.join("target/bench-audit");
    std::fs::create_dir_all(&dir)?;
    let measured = measure(&dir);
    std::fs::remove_dir_all(&dir)?;
    measured
}

/// Of one run: p50 of a group in microseconds, CPU in microseconds and time for each record.
struct Run {
    p50: f64,
    cpu: f64,
    each: f64,
}

fn measure(dir: &Path) -> Result<(), Failure> {
    println!("| durability | callers | figure | floor | log | log / floor |");
    println!("|---|---|---|---|---|---|");
    let modes = [(Durability::Synced, SYNCED), (Durability::Written, WRITTEN)];
    for (durability, loads) in modes {
        for (callers, groups) in loads {
            let (mut floors, mut logs) = (Vec::new(), Vec::new());
            for round in 0..ROUNDS {
                let dir = dir.join(format!("{durability:?}-{callers}-{round}"));
                std::fs::create_dir_all(&dir)?;
                floors.push(floor(&dir, durability, callers, groups)?);
                logs.push(log(&dir.join("log"), durability, callers, groups)?);
            }
            type Figure = fn(&Run) -> f64;
            let figures: [(&str, Figure); 3] = [
                ("p50 of a group, us", |run| run.p50),
                ("CPU for each record, us", |run| run.cpu),
                ("time for each record, us", |run| run.each),
            ];
            for (name, of) in figures {
                let middle = |runs: &[Run]| median(&runs.iter().map(of).collect::<Vec<_>>());
                let (floor, log) = (middle(&floors), middle(&logs));
                let ratio = log / floor;
                println!(
                    "| {durability:?} | {callers} | {name} | {floor:.1} | {log:.1} | {ratio:.2} |"
                );
            }
        }
    }
    Ok(())
}

fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// Times `group` so many times.
fn timed(
    callers: usize,
    groups: usize,
    mut group: impl FnMut() -> Result<(), Failure>,
) -> Result<Run, Failure> {
    let mut times = Vec::with_capacity(groups);
    let (begun, before) = (Instant::now(), cpu());
    for _ in 0..groups {
        let begun = Instant::now();
        group()?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    let records = (callers * groups) as f64;
    let (cpu, each) = (cpu() - before, begun.elapsed().as_secs_f64() * 1e6);
    Ok(Run { p50: median(&times), cpu: cpu / records, each: each / records })
}

fn floor(
    dir: &Path,
    durability: Durability,
    callers: usize,
    groups: usize,
) -> Result<Run, Failure> {
    let file = Dir::existing(dir)?.create("floor")?;
    let bytes = vec![0x5a; callers * RECORD];
    let (mut len, mut flushed) = (0, Instant::now());
    timed(callers, groups, || {
        file.write_at(&bytes, len)?;
        len += bytes.len() as u64;
        if durability == Durability::Synced || flushed.elapsed() >= WINDOW {
            file.sync()?;
            flushed = Instant::now();
        }
        Ok(())
    })
}

type Outcome = Result<(), NotRecorded>;

fn log(dir: &Path, durability: Durability, callers: usize, groups: usize) -> Result<Run, Failure> {
    let mut seed = [7; 32];
    let key = SigningKey::of_seed(&Key32::take(&mut seed).ok_or("32 bytes are a key")?);
    let (done, answers) = sync_channel::<(usize, Outcome)>(callers);
    let settle = answer(done);
    let seams = Seams {
        signer: Box::new(key),
        anchor: Box::new(Anchor::default),
        sinks: Vec::new(),
        settle: Box::new(settle),
    };
    let options = Options { durability, ..Options::default() };
    let (log, _) = Log::start(Dir::open(dir)?, WriterId::random(), &[], options, seams)?;
    timed(callers, groups, || {
        for _ in 0..callers {
            log.append(Record { at: UnixMs(1), kind: 1, body: &BODY }, ())?;
        }
        let mut waiting = callers;
        while waiting > 0 {
            let (settled, outcome) = answers.recv()?;
            outcome?;
            waiting -= settled;
        }
        Ok(())
    })
}

/// One message for each group, as a server wakes its runtime once.
fn answer(done: SyncSender<(usize, Outcome)>) -> impl FnMut(&mut Vec<()>, Outcome) + Send {
    move |tokens, outcome| {
        // Whoever waited has given up when the bench ends early.
        let _ = done.send((tokens.len(), outcome));
        tokens.clear();
    }
}
