//! How long the key service has been away, counted so that neither a reboot nor a changed
//! clock makes it shorter, and that no clock set while the machine is up makes it longer.
//!
//! A mark holds what had elapsed when it was made, the wall clock, the time since boot (which
//! counts suspends, `CLOCK_BOOTTIME`) and the boot's id. While the machine is up, the time since boot
//! alone counts, in one process of the agent and from one to the next: nobody can set it, so a wall
//! clock that jumps fences no node. Only a reboot leaves nothing but the wall clock, and then the
//! larger of its difference and of the time since that boot counts. Whoever turns the wall clock
//! back gains at most the time that the machine was off; a machine that comes up with a clock far
//! ahead may fence itself until the server answers.

use crate::config::CoastMax;
use crate::file::{self, FileError};
use claviger_domain::id::UnixMs;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often a mark is written at most. So much is lost of a contact by a kill, which makes the
/// count longer, never shorter.
const WRITE_EVERY: Duration = Duration::from_secs(30);

/// How long without an answer before a node says that it coasts: three polls of a lively stream.
pub const COASTS_AFTER: Duration = Duration::from_secs(45);

/// The clocks of this machine at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The wall clock.
    pub wall: UnixMs,
    /// Milliseconds since boot, suspends included.
    pub since_boot_ms: u64,
    /// The kernel's name for this boot.
    pub boot: String,
}

impl Moment {
    /// Reads the clocks.
    pub fn now() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        Self {
            wall: wall(),
            since_boot_ms: since_boot_ms(),
            // Without an id each reading is of the same boot: time since boot still counts.
            boot: boot.map(|b| b.trim().to_owned()).unwrap_or_default(),
        }
    }
}

/// The wall clock.
pub fn wall() -> UnixMs {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMs(i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}

/// Milliseconds since boot, suspends included.
pub fn since_boot_ms() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let ms = t.tv_sec.saturating_mul(1000).saturating_add(t.tv_nsec / 1_000_000);
    u64::try_from(ms).unwrap_or(0)
}

/// The last authenticated contact, as far as this machine can tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When the server last answered, by the wall clock; for people.
    pub contact: UnixMs,
    /// What had elapsed since then at `at`.
    pub before_ms: u64,
    /// When this was counted.
    pub at: Moment,
}

impl Mark {
    /// The mark of an answer that came at `at`.
    pub fn contact(at: Moment) -> Self {
        Self { contact: at.wall, before_ms: 0, at }
    }

    /// Milliseconds since the last contact, at `now`.
    pub fn elapsed_ms(&self, now: &Moment) -> u64 {
        let since = if now.boot == self.at.boot && now.since_boot_ms >= self.at.since_boot_ms {
            now.since_boot_ms - self.at.since_boot_ms
        } else {
            now.since_boot_ms.max(now.wall.since(self.at.wall))
        };
        self.before_ms.saturating_add(since)
    }

    /// The same, counted on to `now`.
    pub fn counted_to(&self, now: Moment) -> Self {
        Self { contact: self.contact, before_ms: self.elapsed_ms(&now), at: now }
    }

    /// Whether the node may not go on.
    pub fn spent(&self, now: &Moment, max: CoastMax) -> bool {
        match max {
            CoastMax::Forever => false,
            CoastMax::For(max) => u128::from(self.elapsed_ms(now)) >= max.as_millis(),
        }
    }
}

/// The mark on disk, written at most every 30 seconds.
#[derive(Debug)]
pub struct Contact {
    path: PathBuf,
    mark: Option<Mark>,
    written_ms: Option<u64>,
}

impl Contact {
    /// Reads what the last run left. A mark that cannot be understood is an error: to count
    /// from now on instead would give coasting a fresh start.
    pub fn open(path: PathBuf) -> Result<Self, FileError> {
        let mark = file::read_json(&path)?;
        Ok(Self { path, mark, written_ms: None })
    }

    /// The mark; none if the server never answered this agent.
    pub fn mark(&self) -> Option<&Mark> {
        self.mark.as_ref()
    }

    /// The server answered, and both sides proved who they are.
    pub fn made(&mut self, now: Moment) -> Result<(), FileError> {
        self.mark = Some(Mark::contact(now));
        self.keep()
    }

    /// Time goes on without an answer: counts it, so that a later reboot with a clock turned
    /// back does not take it away.
    pub fn passes(&mut self, now: Moment) -> Result<(), FileError> {
        self.mark = self.mark.as_ref().map(|m| m.counted_to(now));
        self.keep()
    }

    /// Counts to `now` and writes that down, however lately it was.
    pub fn settle(&mut self, now: Moment) -> Result<(), FileError> {
        self.written_ms = None;
        self.passes(now)
    }

    fn keep(&mut self) -> Result<(), FileError> {
        let Some(mark) = &self.mark else { return Ok(()) };
        let now = mark.at.since_boot_ms;
        let due = self
            .written_ms
            .is_none_or(|w| u128::from(now.saturating_sub(w)) >= WRITE_EVERY.as_millis());
        if due {
            file::write_json(&self.path, mark)?;
            self.written_ms = Some(now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall: i64, since_boot: u64, boot: &str) -> Moment {
        Moment { wall: UnixMs(wall), since_boot_ms: since_boot, boot: boot.to_owned() }
    }

    #[test]
    fn the_time_since_boot_counts_and_after_a_reboot_the_larger_of_both() {
        let mark = Mark::contact(at(1_000_000, 50_000, "a"));
        let cases = [
            ("both agree", at(1_060_000, 110_000, "a"), 60_000),
            ("wall clock turned back", at(10, 110_000, "a"), 60_000),
            ("wall clock turned forward", at(2_000_000, 51_000, "a"), 1_000),
            ("reboot, clock turned forward", at(2_000_000, 5_000, "b"), 1_000_000),
            ("reboot, and the kernel has no name for it", at(1_090_000, 5_000, "a"), 90_000),
            ("the machine slept: boot time counts on", at(1_000_000, 650_000, "a"), 600_000),
            ("reboot, clock right", at(1_090_000, 5_000, "b"), 90_000),
            ("reboot, clock turned back", at(10, 70_000, "b"), 70_000),
            ("nothing passed", at(1_000_000, 50_000, "a"), 0),
        ];
        for (name, now, expected) in cases {
            assert_eq!(mark.elapsed_ms(&now), expected, "{name}");
        }
    }

    #[test]
    fn reboots_add_up_though_the_clock_is_turned_back_each_time() {
        let mut mark = Mark::contact(at(1_000_000, 50_000, "0"));
        for boot in 1..=10 {
            mark = mark.counted_to(at(0, 60_000, &boot.to_string()));
        }
        assert_eq!(mark.before_ms, 600_000);
        assert_eq!(mark.contact, UnixMs(1_000_000));
    }

    #[test]
    fn coasting_ends_at_its_bound() {
        let mark = Mark::contact(at(0, 0, "a"));
        let hour = CoastMax::For(Duration::from_secs(3600));
        assert!(!mark.spent(&at(3_599_999, 0, "b"), hour));
        assert!(mark.spent(&at(3_600_000, 0, "b"), hour));
        assert!(!mark.spent(&at(3_600_000, 3_599_999, "a"), hour));
        assert!(mark.spent(&at(0, 3_600_000, "a"), hour));
        assert!(!mark.spent(&at(i64::MAX, u64::MAX, "b"), CoastMax::Forever));
    }

    #[test]
    fn the_mark_survives_a_restart_and_is_written_seldom() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("contact.json");
        let mut contact = Contact::open(path.clone()).unwrap();
        assert_eq!(contact.mark(), None);
        contact.made(at(0, 100_000, "a")).unwrap();
        contact.made(at(9_000, 109_000, "a")).unwrap();
        let again = Contact::open(path.clone()).unwrap();
        assert_eq!(again.mark().unwrap().contact, UnixMs(0), "9 s later: not written again");
        contact.passes(at(40_000, 140_000, "a")).unwrap();
        let again = Contact::open(path.clone()).unwrap();
        assert_eq!(again.mark().unwrap().before_ms, 31_000);
        std::fs::write(&path, b"{").unwrap();
        assert!(Contact::open(path).is_err(), "a spoilt mark is no fresh start");
    }
}
