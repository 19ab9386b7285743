//! What happens to keys by the clock alone: expiry at its instant, shredding of what was deleted
//! long ago.

use crate::app::App;
use claviger_domain::id::UnixMs;
use claviger_domain::key::{KeyState, RootVersion};
use claviger_store::events::{self, EventKind, KeyEvent};
use claviger_store::{StoreError, audit, keys};
use std::sync::Arc;
use std::time::Duration;

/// Longest sleep: a key made meanwhile may expire before the one that was waited for.
const LOOK: Duration = Duration::from_millis(500);

/// Expires and shreds keys until the task is dropped.
pub async fn watch(app: Arc<App>) {
    loop {
        let next = app.blocking(|app| turn(app, app.clock.now())).await;
        let sleep = match next {
            Ok(Some(next)) => Duration::from_millis(next.since(app.clock.now())).min(LOOK),
            Ok(None) => LOOK,
            Err(e) => {
                tracing::error!(error = %e, "expiry of keys");
                LOOK
            }
        };
        // Not less than a millisecond, so that a clock that stands does not spin.
        tokio::time::sleep(sleep.max(Duration::from_millis(1))).await;
    }
}

/// Does what is due at `now`; when the next key expires.
pub fn turn(app: &App, now: UnixMs) -> Result<Option<UnixMs>, StoreError> {
    let shred_before = UnixMs(now.0 - app.settings.restore_within.as_millis() as i64);
    let (due, old, next) = app.store.read("expiry", |tx| -> Result<_, StoreError> {
        let next = keys::next_expiry(tx)?;
        Ok((keys::to_expire(tx, now)?, keys::to_shred(tx, shred_before)?, next))
    })?;
    for root in due {
        let event = app.store.tx("expire", |tx| -> Result<Option<KeyEvent>, StoreError> {
            let Some(mut key) = keys::get(tx, &root)? else { return Ok(None) };
            if key.state != KeyState::Active || key.state_at(now) != KeyState::Deactivated {
                return Ok(None);
            }
            key.state = KeyState::Deactivated;
            key.updated = Some(now);
            keys::update(tx, &key)?;
            audit::add(tx, &by_the_clock(app, "kms.secrets.expire", &root, now))?;
            if key.extractable {
                return Ok(None);
            }
            events::add(tx, &root, EventKind::Expire, key.current, now).map(Some)
        })?;
        if let Some(event) = event {
            tracing::info!(event = event.id, "a root key expired");
            app.hub.key_changed(event);
        }
    }
    for root in old {
        let versions = app.store.tx("shred", |tx| -> Result<_, StoreError> {
            // It may have been restored since it was looked for.
            let gone = keys::get(tx, &root)?
                .is_some_and(|k| k.state == KeyState::Destroyed && k.deleted < Some(shred_before));
            if !gone {
                return Ok(Vec::new());
            }
            keys::shred(tx, &root)?;
            audit::add(tx, &by_the_clock(app, "kms.secrets.shred", &root, now))?;
            keys::versions(tx, &root)
        })?;
        for version in versions {
            app.custodian.forget(&RootVersion { root, version: version.id });
        }
    }
    Ok(next)
}

fn by_the_clock(
    app: &App,
    action: &'static str,
    root: &claviger_domain::key::RootKey,
    at: UnixMs,
) -> audit::Act {
    audit::Act {
        at,
        who: "system".to_owned(),
        action,
        target: app.account.key_crn(root),
        status: 200,
        reason: String::new(),
        correlation: String::new(),
    }
}
