//! A key that was deleted long ago is removed.

use super::{Turn, before, by_the_clock};
use crate::app::App;
use claviger_domain::id::UnixMs;
use claviger_domain::key::RootKey;
use claviger_store::{StoreError, audit, keys};

/// Removes what is due; whether it did anything.
pub(super) fn turn(app: &App, now: UnixMs, turn: &mut Turn) -> Result<bool, StoreError> {
    let limit = before(now, app.settings.purged_after);
    let due = app.store.read("to purge", |tx| keys::to_purge(tx, limit))?;
    let mut done = false;
    for root in due {
        let purged = one(app, &root, limit, now);
        done |= turn.done_to("purging", &root, purged).is_some();
    }
    Ok(done)
}

fn one(app: &App, root: &RootKey, limit: UnixMs, now: UnixMs) -> Result<(), StoreError> {
    app.store.tx("purge", |tx| {
        // It may have been restored or purged since it was looked for.
        if let Some(key) = keys::get(tx, root)?.filter(|key| key.deleted_before(limit)) {
            keys::purge(tx, root)?;
            audit::add(tx, &by_the_clock(app, "kms.secrets.purge", &key, now))?;
        }
        Ok(())
    })
}
