//! `POST /keys/{id}/actions/sync`: tells the users of a key its state once more.

use crate::app::App;
use crate::http::error::KpError;
use crate::keys::act::{Act, Changed, nothing_again, root_only, state_allows};
use crate::keys::changes::too_early;
use crate::keys::view;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_domain::access::KeyOperation;
use claviger_domain::key::{KeyAction, KeyState};
use claviger_store::events::{self, EventKind};
use claviger_store::keys;
use std::sync::Arc;

pub(crate) async fn sync(app: Arc<App>, act: Act) -> Result<Response, KpError> {
    act.change_once(&app, nothing_again, |app, tx, act, now| {
        let mut key = act.key(tx, KeyOperation::Sync)?;
        root_only(&key)?;
        state_allows(&key, KeyAction::Sync, now)?;
        let last = events::last(tx, &key.root)?;
        let since = last.map(|(_, at)| at).max(key.synced);
        if let Some(until) = too_early(since, app.settings.sync_after, now) {
            let what = format!(
                "The key was updated recently: Please wait and try again: Sync cannot be performed until at least {}",
                view::second(view::later(until, std::time::Duration::from_millis(999)))
            );
            return Err(KpError::conflict("REQ_TOO_EARLY_ERR", what));
        }
        // The event that led to this state, again: whoever missed it has to act on it now.
        let kind = match (key.state_at(now), last) {
            (KeyState::Active, Some((EventKind::Rotate, _))) => EventKind::Rotate,
            (KeyState::Active, Some((EventKind::Restore, _))) => EventKind::Restore,
            (KeyState::Active, _) => EventKind::Enable,
            (KeyState::Suspended, _) => EventKind::Disable,
            (KeyState::Deactivated, _) => EventKind::Expire,
            (KeyState::Destroyed, _) => EventKind::Delete,
        };
        key.synced = Some(now);
        keys::update(tx, &key)?;
        let event = events::add(tx, &key.root, kind, key.current, now)?;
        Ok(Changed { value: (), event: Some(event), forget: Vec::new() })
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
