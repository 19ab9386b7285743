//! A key whose rotation policy says so gets a new version.

use super::{Turn, by_the_clock};
use crate::app::App;
use crate::http::error::KpError;
use crate::keys::changes::new_version;
use claviger_domain::id::UnixMs;
use claviger_domain::key::{KeyState, RootKey};
use claviger_store::events::KeyEvent;
use claviger_store::policies::{self, KeyPolicyKind};
use claviger_store::{StoreError, audit, keys};

/// A month of a policy.
const MONTH_MS: i64 = 30 * 86_400_000;
/// Rotations are spread over so long, later than they are due by the calendar: keys that were
/// made together do not rotate together, and neither do the clusters that use them.
const SPREAD_MS: u128 = 3_600_000;
/// Rotations of one turn; bounds how long requests wait for the writer between two looks.
const BATCH: usize = 100;

/// When a key is to be rotated by itself that was last rotated, or made, at `since`. Always the
/// same for the same key and time.
pub(crate) fn due_at(root: &RootKey, since: UnixMs, months: u8) -> UnixMs {
    // The identifier is random.
    let spread = (root.key.0.as_u128() % SPREAD_MS) as i64;
    UnixMs(since.0.saturating_add(i64::from(months) * MONTH_MS + spread))
}

/// Rotates what is due, each key once, however long ago that was; whether there may be more.
pub(super) fn turn(app: &App, now: UnixMs, turn: &mut Turn) -> Result<bool, StoreError> {
    let due = app.store.read("to rotate", |tx| {
        policies::to_rotate(tx, BATCH, |root, since, months| due_at(root, since, months) <= now)
    })?;
    let mut done = 0;
    for root in &due {
        let event = one(app, root, now).map_err(|e| e.message);
        let Some(event) = turn.done_to("rotation by policy", root, event) else { continue };
        done += 1;
        if let Some(event) = event {
            tracing::info!(event = event.id, "a root key was rotated by its policy");
            app.announce(event);
        }
    }
    Ok(due.len() == BATCH && done > 0)
}

fn one(app: &App, root: &RootKey, now: UnixMs) -> Result<Option<KeyEvent>, KpError> {
    app.store.tx("rotate by policy", |tx| {
        // It may have changed since it was looked for.
        let Some(mut key) = keys::get(tx, root)? else { return Ok(None) };
        let policy = policies::get(tx, root, KeyPolicyKind::Rotation)?.filter(|p| p.enabled);
        let due = policy
            .and_then(|p| p.interval_month)
            .is_some_and(|months| due_at(root, key.rotated.unwrap_or(key.created), months) <= now);
        if !due || key.state_at(now) != KeyState::Active || key.extractable || key.imported {
            return Ok(None);
        }
        let event = new_version(app, tx, &mut key, None, now)?;
        audit::add(tx, &by_the_clock(app, "kms.secrets.rotate", &key, now))?;
        Ok(event)
    })
}
