//! `DELETE /keys/{id}/purge`: removes a deleted key for good.

use crate::app::App;
use crate::http::auth::Caller;
use crate::http::error::KpError;
use crate::keys::act::{About, Act, Changed, Doing, Instance, answer, state_allows};
use crate::keys::changes::{all_versions, too_early};
use crate::keys::create::{Prefer, prefers};
use crate::keys::view;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use claviger_domain::access::KeyOperation;
use claviger_domain::audit::Purge;
use claviger_domain::id::UnixMs;
use claviger_domain::key::KeyAction;
use claviger_store::repeats::Repeat;
use claviger_store::{Tx, keys};
use claviger_wire::kp;
use std::sync::Arc;
use std::time::Duration;

/// As Key Protect writes it: `4h0m0s`.
fn written(wait: Duration) -> String {
    let seconds = wait.as_secs();
    format!("{}h{}m{}s", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

pub(crate) async fn purge(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, KpError> {
    let action = "kms.secrets.purge";
    let act =
        Act { caller, instance, action, failed: "Key could not be purged", about: About::Key(id) };
    // It is gone, so there is nothing to show.
    let again = |_: &App, _: &Tx<'_>, _: &Doing, _: Repeat, _: UnixMs| Ok(None);
    let key = act
        .change_once(&app, again, |app, tx, act, now| {
            let key = act.key(tx, KeyOperation::Purge)?;
            state_allows(&key, KeyAction::Purge, now)?;
            let wait = app.settings.purge_after;
            if let Some(from) = too_early(key.deleted, wait, now) {
                let what = format!(
                    "Purge operation is allowed {} after key is deleted. Try again at {}",
                    written(wait),
                    view::date(from)
                );
                return Err(KpError::conflict("REQ_TOO_EARLY_ERR", what));
            }
            if keys::has_adapter(tx, &key.root)? {
                let what = "A KMIP adapter names the key; delete the adapter first";
                return Err(KpError::conflict("PROTECTED_RESOURCE_ERR", what));
            }
            if let Some(deleted) = key.deleted {
                let allowed_from = view::later(deleted, wait);
                let due = view::later(deleted, app.settings.purged_after);
                act.note(|data| data.purge = Some(Purge { deleted, allowed_from, due }));
            }
            let value = Some(view::key(app, tx, &key, now)?);
            let forget = all_versions(tx, &key)?;
            keys::purge(tx, &key.root)?;
            Ok(Changed { value, event: None, forget })
        })
        .await?;
    match (key, prefers(&headers)) {
        (Some(key), Some(Prefer::Representation)) => {
            Ok(answer(StatusCode::OK, kp::KEY_TYPE, &kp::Envelope::of(kp::KEY_TYPE, vec![key])))
        }
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}
