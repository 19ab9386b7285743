//! A key whose expiration date has come is deactivated.

use super::{Turn, by_the_clock};
use crate::app::App;
use claviger_domain::audit::Change;
use claviger_domain::id::UnixMs;
use claviger_domain::key::{KeyState, RootKey};
use claviger_domain::life::Life;
use claviger_store::events::{self, EventKind, KeyEvent};
use claviger_store::{StoreError, audit, keys};

/// Expires what is due; when the next key expires.
pub(super) fn turn(app: &App, now: UnixMs, turn: &mut Turn) -> Result<Option<UnixMs>, StoreError> {
    let (due, next) = app.store.read("expiry", |tx| -> Result<_, StoreError> {
        Ok((keys::to_expire(tx, now)?, keys::next_expiry(tx)?))
    })?;
    for root in due {
        let event = one(app, &root, now);
        if let Some(Some(event)) = turn.done_to("expiry", &root, event) {
            tracing::info!(event = event.id, "a root key expired");
            app.announce(event);
        }
    }
    Ok(next)
}

fn one(app: &App, root: &RootKey, now: UnixMs) -> Result<Option<KeyEvent>, StoreError> {
    app.store.tx("expire", |tx| {
        let Some(mut key) = keys::get(tx, root)? else { return Ok(None) };
        // It may have changed since it was looked for.
        let (Life::Active(active), KeyState::Deactivated) = (key.life, key.state_at(now)) else {
            return Ok(None);
        };
        key.life = active.expire().into();
        key.updated = Some(now);
        keys::update(tx, &key)?;
        let mut record = by_the_clock(app, "kms.secrets.expire", &key, now);
        let (from, to) = (KeyState::Active, KeyState::Deactivated);
        record.data.change = Some(Change::State { from, to });
        audit::add(tx, &record)?;
        if key.extractable {
            return Ok(None);
        }
        events::add(tx, root, EventKind::Expire, key.current, now).map(Some)
    })
}
