//! What happens to keys by the clock alone: expiry at its instant; rotation that a policy asks
//! for; shredding and removal of what was deleted long ago. Changes that can be asked for again no
//! longer are forgotten, too. All of it is looked for at start too.

mod expire;
mod purge;
mod rotate;
mod shred;

#[cfg(test)]
pub(crate) use rotate::due_at;

use crate::app::App;
use crate::keys::act::facts;
use claviger_domain::audit::{Data, Record};
use claviger_domain::id::UnixMs;
use claviger_store::StoreError;
use claviger_store::keys::Key;
use std::sync::Arc;
use std::time::Duration;

/// Longest sleep: a key made meanwhile may expire before the one that was waited for.
const LOOK: Duration = Duration::from_millis(500);
/// How often what counts in days is looked for.
const SLOW: Duration = Duration::from_secs(60);

/// Does what is due until the task is dropped.
pub async fn watch(app: Arc<App>) {
    let mut slow_from = UnixMs(i64::MIN);
    loop {
        let now = app.clock.now();
        let slow = now >= slow_from;
        let next = app
            .blocking(move |app| {
                let next = expire::turn(app, now)?;
                let more = slow && self::slow(app, now)?;
                Ok::<_, StoreError>((next, more))
            })
            .await;
        let next = match next {
            Ok((next, more)) => {
                if slow && !more {
                    slow_from = UnixMs(now.0.saturating_add(SLOW.as_millis() as i64));
                }
                next
            }
            Err(e) => {
                tracing::error!(error = %e, "what the clock does to keys");
                None
            }
        };
        let sleep =
            next.map_or(LOOK, |next| Duration::from_millis(next.since(app.clock.now())).min(LOOK));
        // Not less than a millisecond, so that a clock that stands does not spin.
        tokio::time::sleep(sleep.max(Duration::from_millis(1))).await;
    }
}

/// Does what is due at `now`; when the next key expires.
pub fn turn(app: &App, now: UnixMs) -> Result<Option<UnixMs>, StoreError> {
    let next = expire::turn(app, now)?;
    while slow(app, now)? {}
    Ok(next)
}

/// What counts in days; whether there is more of it than one turn does.
fn slow(app: &App, now: UnixMs) -> Result<bool, StoreError> {
    let rotated = rotate::turn(app, now)?;
    let shredded = shred::turn(app, now)?;
    let purged = purge::turn(app, now)?;
    let forgotten = crate::repeat::turn(app, now)?;
    if !app.store.settle()? {
        tracing::warn!(
            "what was shredded is still in the database's log; it is emptied as soon as nobody reads it"
        );
    }
    Ok(rotated || shredded || purged || forgotten)
}

fn before(now: UnixMs, by: Duration) -> UnixMs {
    UnixMs(now.0.saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
}

/// The record of what the clock did to a key.
fn by_the_clock(app: &App, action: &'static str, key: &Key, at: UnixMs) -> Record {
    let record = Record::of_system(at, action, app.account.key_crn(&key.root));
    Record { data: Data { key: Some(facts(key, at)), ..Data::default() }, ..record }
}
