//! The material of a key that can no longer be restored is overwritten.

use super::{Turn, before, by_the_clock};
use crate::app::App;
use claviger_domain::id::UnixMs;
use claviger_domain::key::{RootKey, RootVersion};
use claviger_store::keys::Version;
use claviger_store::{StoreError, audit, keys};

/// Shreds what is due; whether it did anything.
pub(super) fn turn(app: &App, now: UnixMs, turn: &mut Turn) -> Result<bool, StoreError> {
    let limit = before(now, app.settings.restore_within);
    let due = app.store.read("to shred", |tx| keys::to_shred(tx, limit))?;
    let mut done = false;
    for root in due {
        let shredded = one(app, &root, limit, now);
        let Some(versions) = turn.done_to("shredding", &root, shredded) else { continue };
        done = true;
        for version in versions {
            app.custodian.forget(&RootVersion { root, version: version.id });
        }
    }
    Ok(done)
}

fn one(app: &App, root: &RootKey, limit: UnixMs, now: UnixMs) -> Result<Vec<Version>, StoreError> {
    app.store.tx("shred", |tx| {
        // It may have been restored since it was looked for.
        let Some(key) = keys::get(tx, root)?.filter(|key| key.deleted_before(limit)) else {
            return Ok(Vec::new());
        };
        keys::shred(tx, root)?;
        audit::add(tx, &by_the_clock(app, "kms.secrets.shred", &key, now))?;
        keys::versions(tx, root)
    })
}
