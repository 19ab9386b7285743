//! Seeded runs of kill -9, each against real programs, and whatever must hold afterwards.

use claviger_audit::Durability;
use cluster::Kills;
use service::Fault;
use std::time::{Duration, Instant};

mod cluster;
mod power;
mod service;

/// So many runs kill something in each phase, or something is wrong.
const ENOUGH: u64 = 3;

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Every program of a cluster, while it is encrypted, rotated, suspended and given back.
    Cluster,
    /// The key server, while clients do whatever its API offers.
    KeyService,
    /// The key server, on a disk that loses power: odd seeds with `audit_durability` synced, even
    /// ones with written.
    Power,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 3] = [Kind::Cluster, Kind::KeyService, Kind::Power];

    /// As it is named on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Cluster => "cluster",
            Kind::KeyService => "key-service",
            Kind::Power => "power",
        }
    }

    /// One seed; what there is to say of it. Adds to `kills` where each struck.
    fn one(self, seed: u64, kills: &mut Kills) -> Result<String, String> {
        match self {
            Kind::Cluster => {
                let new = cluster::one(seed)?;
                let note = new.iter().map(|(phase, count)| format!("{count} {phase}"));
                let note = format!(": killed {}", note.collect::<Vec<_>>().join(", "));
                for (phase, count) in new {
                    *kills.entry(phase).or_default() += count;
                }
                Ok(note)
            }
            Kind::KeyService => service::one(Fault::Kill, seed),
            Kind::Power => {
                let even = seed.is_multiple_of(2);
                let durability = if even { Durability::Written } else { Durability::Synced };
                service::one(Fault::Power(durability), seed)
            }
        }
    }
}

/// How much to do.
pub struct Settings {
    /// How many seeds, counted up from `seed`.
    pub runs: u64,
    /// The first seed.
    pub seed: u64,
    /// No new run begins after so many minutes.
    pub minutes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { runs: 100, seed: 1, minutes: 24 * 60 }
    }
}

/// Does the runs, one after the other, and prints a line for each. One that time does not allow is
/// told; that less than half of them ran is an error, and that none has struck where it matters.
pub fn run(kind: Kind, settings: &Settings) -> Result<(), String> {
    let begun = Instant::now();
    let mut done = 0;
    let mut kills = Kills::new();
    for seed in settings.seed..settings.seed + settings.runs {
        if begun.elapsed() > Duration::from_secs(settings.minutes * 60) {
            println!("time is up after {done} of {} runs; all of them passed", settings.runs);
            break;
        }
        let started = Instant::now();
        let note = kind.one(seed, &mut kills).map_err(|why| {
            let name = kind.name();
            format!(
                "seed {seed}: {why}\nreplay it: cargo xtask torture {name} --runs 1 --seed {seed}"
            )
        })?;
        done += 1;
        println!("seed {seed}: passed in {:.1} s{note}", started.elapsed().as_secs_f64());
    }
    if done * 2 < settings.runs {
        return Err(format!("only {done} of {} runs in {} min", settings.runs, settings.minutes));
    }
    if kind == Kind::Cluster && done >= ENOUGH && !kills.contains_key(cluster::IN_THE_REWRITE) {
        return Err(format!("nothing was killed during a rewrite: {kills:?}"));
    }
    println!("{}: {done} passed, 0 failed", kind.name());
    Ok(())
}

/// SplitMix64: small, seeded, the same on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// True once in `bound` throws.
    fn once_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    /// One of a list that is not empty.
    fn pick<'l, T>(&mut self, list: &'l [T]) -> Option<&'l T> {
        let at = self.below(list.len().max(1) as u64);
        list.get(usize::try_from(at).expect("an index"))
    }

    /// As many bytes.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}
