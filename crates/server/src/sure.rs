//! The sure time: what certainly has come, and by which alone is done what cannot be undone.
//!
//! A machine's clock can be ahead for a moment: a clock chip that ran dry, a machine that was
//! restored, a bad NTP server. What was expired, shredded or purged in that moment is lost, so
//! [`Sure`] holds the clock against what was seen before and against the time since boot, which
//! nobody can set. Decision 15 says why it is so.

use crate::app::{App, Clock};
use crate::first;
use claviger_domain::audit::{Credential, Record};
use claviger_domain::id::UnixMs;
use claviger_store::{Store, StoreError, Tx, audit, meta};
use std::path::Path;
use std::time::Duration;

/// How far the clock may be from where it is expected. More than a restart or an upgrade takes.
pub(crate) const STRAY: Duration = Duration::from_secs(3600);
/// How long a clock that is further off must go on steadily, while the server runs, until it is
/// believed: time for NTP, or for a person, to mend it.
pub(crate) const STEADY: Duration = Duration::from_secs(4 * 3600);
/// How often the sure time is kept.
const KEEP: Duration = Duration::from_secs(60);
/// Where it is kept: milliseconds, decimal.
pub(crate) const SURE: &str = "sure-time";

/// Both clocks of a machine at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// The clock that can be set.
    pub(crate) wall: UnixMs,
    /// The time since boot.
    pub(crate) up: Duration,
}

impl Moment {
    fn of(clock: &dyn Clock) -> Moment {
        Moment { wall: clock.now(), up: clock.up() }
    }

    /// What the wall clock says at `up`, if nobody sets it.
    fn at(self, up: Duration) -> UnixMs {
        let passed = up.saturating_sub(self.up).as_millis();
        UnixMs(self.wall.0.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX)))
    }

    /// How far the wall clock is from what `line` lets expect.
    fn apart(self, line: Moment) -> Duration {
        Duration::from_millis(self.wall.0.abs_diff(line.at(self.up).0))
    }
}

/// What a look at the clocks found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing new.
    Same,
    /// The wall clock is, since now, not where it is expected.
    Doubtful,
    /// It is where it is expected again.
    Mended,
    /// It has gone on steadily for so long that it is believed.
    Believed,
}

/// What is believed of the wall clock. Pure: the moments are given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sure {
    /// Where the wall clock was when it was last believed.
    line: Moment,
    /// Where it was when it left that line, if it has.
    doubtful: Option<Moment>,
}

impl Sure {
    pub(crate) fn since(line: Moment) -> Sure {
        Sure { line, doubtful: None }
    }

    /// Looks at the clocks; the sure time, never later than the wall clock.
    pub(crate) fn look(&mut self, now: Moment) -> (UnixMs, Found) {
        if now.apart(self.line) <= STRAY {
            let found = if self.doubtful.take().is_some() { Found::Mended } else { Found::Same };
            if now.wall > self.line.at(now.up) {
                self.line = now;
            }
            return (now.wall, found);
        }
        let found = match self.doubtful.filter(|line| now.apart(*line) <= STRAY) {
            None => {
                self.doubtful = Some(now);
                Found::Doubtful
            }
            Some(line) if now.up.saturating_sub(line.up) >= STEADY => {
                *self = Sure::since(now);
                Found::Believed
            }
            Some(_) => Found::Same,
        };
        (now.wall.min(self.line.at(now.up)), found)
    }

    pub(crate) fn doubts(&self) -> bool {
        self.doubtful.is_some()
    }

    /// What is kept for the next start at `up`: what would be expected then, whatever the clock says.
    fn kept(&self, up: Duration) -> UnixMs {
        self.line.at(up)
    }
}

/// [`Sure`] of a running server.
pub(crate) struct Keeper {
    sure: Sure,
    kept: Option<Duration>,
}

impl Keeper {
    /// What an earlier run has left; a database without it is believed as it is.
    pub(crate) fn start(store: &Store, clock: &dyn Clock) -> Result<Keeper, StoreError> {
        let now = Moment::of(clock);
        let kept = store.read("sure time", get)?;
        let line = Moment { wall: kept.unwrap_or(now.wall), up: now.up };
        Ok(Keeper { sure: Sure::since(line), kept: None })
    }
}

fn get(tx: &Tx<'_>) -> Result<Option<UnixMs>, StoreError> {
    let Some(text) = meta::get(tx, SURE)? else { return Ok(None) };
    let number = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
    number.map(|ms| Some(UnixMs(ms))).ok_or_else(|| StoreError::Damaged(SURE.to_owned()))
}

fn put(tx: &Tx<'_>, at: UnixMs) -> Result<(), StoreError> {
    meta::put(tx, SURE, at.0.to_string().as_bytes())
}

impl App {
    /// The time that has certainly come: not later than the clock, and by the time since boot
    /// alone while the clock is not where it is expected. What cannot be undone goes by it. Keeps
    /// it once a minute, for the next start. Never within a transaction. Blocks.
    ///
    /// # Errors
    /// When the database does not answer.
    pub(crate) fn sure(&self) -> Result<UnixMs, StoreError> {
        let mut keeper = self.keeper.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Moment::of(&*self.clock);
        if keeper.sure.doubts()
            && let Some(said) = self.store.read("sure time", get)?
            && said > keeper.sure.kept(now.up)
        {
            // Only a person writes a later one than this server has.
            tracing::warn!("an operator says that this machine's clock is right");
            keeper.sure = Sure::since(Moment { wall: said, up: now.up });
        }
        let (sure, found) = keeper.sure.look(now);
        tell(found, now, keeper.sure.kept(now.up));
        self.metrics.doubts_clock(keeper.sure.doubts());
        if keeper.kept.is_none_or(|at| now.up.saturating_sub(at) >= KEEP) {
            let kept = keeper.sure.kept(now.up);
            self.store.tx("sure time", |tx| match get(tx)? {
                // What a person wrote is heeded at the next look.
                Some(said) if said > kept && keeper.sure.doubts() => Ok(()),
                _ => put(tx, kept),
            })?;
            keeper.kept = Some(now.up);
        }
        Ok(sure)
    }
}

fn tell(found: Found, now: Moment, expected: UnixMs) {
    let (clock, expected) = (now.wall.0, expected.0);
    match found {
        Found::Same => {}
        Found::Doubtful => tracing::error!(
            clock_unix_ms = clock,
            expected_unix_ms = expected,
            "this machine's clock is not where it was expected: until it is, or has gone on steadily for four hours, no key is expired for good, shredded, purged or rotated by it. If it is right: claviger server trust-clock"
        ),
        Found::Mended => tracing::info!("this machine's clock is where it was expected"),
        Found::Believed => {
            tracing::warn!(
                clock_unix_ms = clock,
                "this machine's clock has gone on steadily, and is believed"
            );
        }
    }
}

/// Says in a server's database that the time is `now`, and puts on record that `by` did. A running
/// server heeds it within a second. Blocks, for some seconds at most.
///
/// # Errors
/// Nothing is changed then.
pub fn trust_clock(database: &Path, by: &str, now: UnixMs) -> Result<(), first::StartError> {
    claviger_store::beside(database, |tx| {
        put(tx, now)?;
        let credential = Some(Credential::Host);
        let done = Record::done(now, by, "claviger.clock.trust", first::account(tx)?.id);
        Ok(audit::add(tx, &Record { credential, ..done })?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;
    const HOUR: i64 = 60;
    const MONTH: i64 = 720 * HOUR;

    fn moment(wall: i64, up: i64) -> Moment {
        let up = Duration::from_secs(up.unsigned_abs() * 60);
        Moment { wall: UnixMs(wall * MINUTE), up }
    }

    #[test]
    fn the_sure_time_is_never_ahead_of_what_is_known() {
        use Found::{Believed, Doubtful, Mended, Same};
        // Wall clock, time since boot, the sure time, what was found out; minutes.
        type Look = (i64, i64, i64, Found);
        let cases: &[(&str, &[Look])] = &[
            ("as it should be", &[(0, 0, 0, Same), (3000, 3000, 3000, Same)]),
            ("a little ahead", &[(60, 0, 60, Same), (150, 60, 150, Same)]),
            (
                "ahead for a moment",
                &[(MONTH, 0, 0, Doubtful), (MONTH + 60, 60, 60, Same), (120, 120, 120, Mended)],
            ),
            (
                "ahead anew, a moment before it would be believed",
                &[
                    (MONTH, 0, 0, Doubtful),
                    (MONTH + 239, 239, 239, Same),
                    (2 * MONTH, 240, 240, Doubtful),
                    (2 * MONTH + 239, 479, 479, Same),
                ],
            ),
            (
                "off for a month",
                &[
                    (MONTH, 0, 0, Doubtful),
                    (MONTH + 239, 239, 239, Same),
                    (MONTH + 240, 240, MONTH + 240, Believed),
                    (MONTH + 300, 300, MONTH + 300, Same),
                ],
            ),
            (
                "set back, and forth again",
                &[(-500, 0, -500, Doubtful), (-440, 60, -440, Same), (120, 120, 120, Mended)],
            ),
            (
                "set back for good: what was believed before counts no longer",
                &[
                    (-MONTH, 0, -MONTH, Doubtful),
                    (240 - MONTH, 240, 240 - MONTH, Believed),
                    (300, 300, 300 - MONTH, Doubtful),
                ],
            ),
        ];
        for (name, looks) in cases {
            let mut sure = Sure::since(moment(0, 0));
            for (wall, up, want, told) in *looks {
                let (said, found) = sure.look(moment(*wall, *up));
                assert_eq!((said, found), (UnixMs(want * MINUTE), *told), "{name}: at {wall}");
            }
        }
    }

    #[test]
    fn what_is_kept_goes_on_by_the_time_since_boot_alone_while_in_doubt() {
        let mut sure = Sure::since(moment(0, 0));
        sure.look(moment(MONTH, 0));
        sure.look(moment(MONTH + 1, 1));
        assert_eq!(sure.kept(Duration::from_secs(60)), UnixMs(MINUTE));
        assert!(sure.doubts());
    }
}
