//! The material of a key that can no longer be restored is overwritten.

use super::{before, by_the_clock};
use crate::app::App;
use claviger_domain::id::UnixMs;
use claviger_domain::key::{KeyState, RootVersion};
use claviger_store::{StoreError, audit, keys};

/// Shreds what is due; whether it did anything.
pub(super) fn turn(app: &App, now: UnixMs) -> Result<bool, StoreError> {
    let limit = before(now, app.settings.restore_within);
    let due = app.store.read("to shred", |tx| keys::to_shred(tx, limit))?;
    let mut done = false;
    for root in due {
        let versions = app.store.tx("shred", |tx| -> Result<_, StoreError> {
            // It may have been restored since it was looked for.
            let gone = keys::get(tx, &root)?
                .filter(|k| k.state_at(now) == KeyState::Destroyed && k.deleted < Some(limit));
            let Some(key) = gone else { return Ok(Vec::new()) };
            keys::shred(tx, &root)?;
            audit::add(tx, &by_the_clock(app, "kms.secrets.shred", &key, now))?;
            keys::versions(tx, &root)
        })?;
        done = true;
        for version in versions {
            app.custodian.forget(&RootVersion { root, version: version.id });
        }
    }
    Ok(done)
}
