//! A key whose expiration date has come is deactivated.

use super::by_the_clock;
use crate::app::App;
use claviger_domain::audit::Change;
use claviger_domain::id::UnixMs;
use claviger_domain::key::KeyState;
use claviger_domain::life::Life;
use claviger_store::events::{self, EventKind, KeyEvent};
use claviger_store::{StoreError, audit, keys};

/// Expires what is due; when the next key expires.
pub(super) fn turn(app: &App, now: UnixMs) -> Result<Option<UnixMs>, StoreError> {
    let (due, next) = app.store.read("expiry", |tx| -> Result<_, StoreError> {
        Ok((keys::to_expire(tx, now)?, keys::next_expiry(tx)?))
    })?;
    for root in due {
        let event = app.store.tx("expire", |tx| -> Result<Option<KeyEvent>, StoreError> {
            let Some(mut key) = keys::get(tx, &root)? else { return Ok(None) };
            // It may have changed since it was looked for.
            let (Life::Active(active), KeyState::Deactivated) = (key.life, key.state_at(now))
            else {
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
            events::add(tx, &root, EventKind::Expire, key.current, now).map(Some)
        })?;
        if let Some(event) = event {
            tracing::info!(event = event.id, "a root key expired");
            app.announce(event);
        }
    }
    Ok(next)
}
