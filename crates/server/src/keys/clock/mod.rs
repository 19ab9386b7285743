//! What happens to keys by the clock alone: expiry at its instant; rotation that a policy asks
//! for; shredding and removal of what was deleted long ago. Changes that can be asked for again no
//! longer are forgotten, too. All of it is looked for at start too, by the sure time
//! ([`crate::sure`]).

mod expire;
mod purge;
mod rotate;
mod shred;

#[cfg(test)]
pub(crate) use rotate::due_at;

use crate::app::App;
use crate::keys::act::facts;
use crate::keys::import;
use claviger_crypto::digest::{hex, sha256};
use claviger_domain::audit::{Data, Record};
use claviger_domain::id::UnixMs;
use claviger_domain::key::RootKey;
use claviger_store::keys::Key;
use claviger_store::{StoreError, import_tokens};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

/// Longest sleep: a key made meanwhile may expire before the one that was waited for.
const LOOK: Duration = Duration::from_millis(500);
/// How often what counts in days is looked for, and what failed is told.
const SLOW: Duration = Duration::from_secs(60);

/// Does what is due until the task is dropped.
pub async fn watch(app: Arc<App>) {
    let mut slow_from = Duration::ZERO;
    loop {
        // Not by the clock that can be set back.
        let up = app.clock.up();
        let slow = up >= slow_from;
        let turn = app.blocking(move |app| Turn::take(app, slow)).await;
        if slow && !turn.more {
            slow_from = up + SLOW;
        }
        // Not less than a millisecond, so that a clock that stands does not spin.
        tokio::time::sleep(turn.pause.clamp(Duration::from_millis(1), LOOK)).await;
    }
}

/// Does all that is due; when the next key expires. An error says how much of it failed; all else
/// was done.
#[cfg(test)]
pub(crate) fn turn(app: &App) -> Result<Option<UnixMs>, u32> {
    loop {
        match Turn::take(app, true) {
            Turn { failed: 0, more: true, .. } => {}
            Turn { failed: 0, next, .. } => return Ok(next),
            Turn { failed, .. } => return Err(failed),
        }
    }
}

/// One look at all that may be due. What fails keeps nothing else from its work.
struct Turn {
    /// Whether what fails is told: once a minute is enough.
    told: bool,
    /// How much failed.
    failed: u32,
    /// Whether there is more of what is looked for slowly than one turn does.
    more: bool,
    /// When the next key expires.
    next: Option<UnixMs>,
    /// How long nothing is due, as far as is known.
    pause: Duration,
}

impl Turn {
    fn take(app: &App, slow: bool) -> Turn {
        let mut turn = Turn { told: slow, failed: 0, more: false, next: None, pause: LOOK };
        // By no other time: nothing here can be undone.
        let sure = app.sure();
        let Some(now) = turn.done("the time", sure) else { return turn };
        let next = expire::turn(app, now, &mut turn);
        turn.next = turn.done("expiry", next).flatten();
        if let (Some(next), 0) = (turn.next, turn.failed) {
            turn.pause = Duration::from_millis(next.since(now));
        }
        if slow {
            let rotated = rotate::turn(app, now, &mut turn);
            let shredded = shred::turn(app, now, &mut turn);
            let purged = purge::turn(app, now, &mut turn);
            let ended = app.store.tx("ended import tokens", |tx| {
                import_tokens::remove_ended(tx, before(now, import::TOLD))
            });
            turn.done("import tokens", ended);
            let forgotten = crate::repeat::turn(app, app.clock.now());
            let more = [
                ("rotation", rotated),
                ("shredding", shredded),
                ("purging", purged),
                ("repeated requests", forgotten),
            ];
            for (what, more) in more {
                turn.more |= turn.done(what, more).unwrap_or(false);
            }
            let settled = app.store.settle();
            if turn.done("emptying the log", settled) == Some(false) {
                tracing::warn!(
                    "what was shredded is still in the database's log; it is emptied as soon as nobody reads it"
                );
            }
        }
        turn
    }

    /// What came of a part of it, unless that failed.
    fn done<T>(&mut self, what: &'static str, done: Result<T, StoreError>) -> Option<T> {
        done.map_err(|e| {
            self.failed += 1;
            if self.told {
                tracing::error!(what, error = %e, "what the clock does to keys failed; trying again");
            }
        })
        .ok()
    }

    /// The same of one key. The others do not wait for it.
    fn done_to<T, E: Display>(
        &mut self,
        what: &'static str,
        root: &RootKey,
        done: Result<T, E>,
    ) -> Option<T> {
        done.map_err(|e| {
            self.failed += 1;
            if self.told {
                let key = &hex(&sha256(root.to_string().as_bytes()))[..16];
                tracing::error!(what, key_hash = key, why = %e, "what the clock does to a key failed; trying again");
            }
        })
        .ok()
    }
}

fn before(now: UnixMs, by: Duration) -> UnixMs {
    UnixMs(now.0.saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
}

/// The record of what the clock did to a key.
fn by_the_clock(app: &App, action: &'static str, key: &Key, at: UnixMs) -> Record {
    let record = Record::of_system(at, action, app.account.key_crn(&key.root));
    Record { data: Data { key: Some(facts(key, at)), ..Data::default() }, ..record }
}
