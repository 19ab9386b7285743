//! A key that was deleted long ago is removed.

use super::{before, by_the_clock};
use crate::app::App;
use claviger_domain::id::UnixMs;
use claviger_domain::key::KeyState;
use claviger_store::{StoreError, audit, keys};

/// Removes what is due; whether it did anything.
pub(super) fn turn(app: &App, now: UnixMs) -> Result<bool, StoreError> {
    let limit = before(now, app.settings.purged_after);
    let due = app.store.read("to purge", |tx| keys::to_purge(tx, limit))?;
    let mut done = false;
    for root in due {
        app.store.tx("purge", |tx| -> Result<(), StoreError> {
            // It may have been restored or purged since it was looked for.
            let gone = keys::get(tx, &root)?
                .filter(|k| k.state_at(now) == KeyState::Destroyed && k.deleted < Some(limit));
            if let Some(key) = gone {
                keys::purge(tx, &root)?;
                audit::add(tx, &by_the_clock(app, "kms.secrets.purge", &key, now))?;
            }
            Ok(())
        })?;
        done = true;
    }
    Ok(done)
}
