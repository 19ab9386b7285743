//! Two persons for one deletion: the first says so here, the second deletes.

use crate::app::App;
use crate::http::auth::{self, Caller};
use crate::http::error::KpError;
use crate::keys::act::{Act, Changed, nothing_again, state_allows};
use crate::keys::view;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_domain::access::{KeyOperation, On};
use claviger_domain::audit::{Authorisation, Change};
use claviger_domain::id::UnixMs;
use claviger_domain::key::KeyAction;
use claviger_store::Tx;
use claviger_store::keys::{self, Key};
use claviger_store::policies::{self, KeyPolicyKind};
use std::sync::Arc;
use std::time::Duration;

/// How long the word of the first counts.
const COUNTS_FOR: Duration = Duration::from_secs(7 * 86_400);

/// Until when the word of the first counts; none if nobody gave it, or too long ago.
pub(crate) fn set_until(key: &Key, now: UnixMs) -> Option<UnixMs> {
    let until = view::later(key.set_at?, COUNTS_FOR);
    (key.set_by.is_some() && now < until).then_some(until)
}

fn authorisation(key: &Key, now: UnixMs) -> Option<Authorisation> {
    let until = set_until(key, now)?;
    key.set_by.clone().map(|by| Authorisation { by, until })
}

fn needed(tx: &Tx<'_>, key: &Key) -> Result<bool, KpError> {
    let policy = policies::get(tx, &key.root, KeyPolicyKind::DualAuthDelete)?;
    Ok(policy.is_some_and(|p| p.enabled))
}

/// The person who stands behind a caller: a service counts as its owner.
fn person(tx: &Tx<'_>, who: &Caller) -> Result<Option<String>, KpError> {
    if who.service {
        Ok(policies::owner_of(tx, &who.iam_id)?)
    } else {
        Ok(Some(who.iam_id.clone()))
    }
}

fn not_met(what: impl Into<String>) -> KpError {
    KpError::conflict("AUTHORIZATIONS_NOT_MET", what)
}

/// `setKeyForDeletion`: the caller is the first of the two. Doing it again begins anew.
pub(crate) async fn set(app: Arc<App>, act: Act) -> Result<Response, KpError> {
    let (operation, action) = (KeyOperation::SetForDeletion, KeyAction::SetForDeletion);
    write(app, act, operation, action, |tx, act, key, now| {
        if person(tx, &act.caller)?.is_none() {
            let what =
                "A service without an owner stands for no person, so it cannot be one of the two";
            return Err(not_met(what));
        }
        key.set_by = Some(act.caller.iam_id.clone());
        key.set_at = Some(now);
        Ok(())
    })
    .await
}

/// `unsetKeyForDeletion`: takes that back.
pub(crate) async fn unset(app: Arc<App>, act: Act) -> Result<Response, KpError> {
    let (operation, action) = (KeyOperation::UnsetForDeletion, KeyAction::UnsetForDeletion);
    write(app, act, operation, action, |_, _, key, _| {
        key.set_by = None;
        key.set_at = None;
        Ok(())
    })
    .await
}

async fn write(
    app: Arc<App>,
    act: Act,
    operation: KeyOperation,
    action: KeyAction,
    change: fn(&Tx<'_>, &Act, &mut Key, UnixMs) -> Result<(), KpError>,
) -> Result<Response, KpError> {
    act.change_once(&app, nothing_again, move |_, tx, act, now| {
        let mut key = act.key(tx, operation)?;
        state_allows(&key, action, now)?;
        if !needed(tx, &key)? {
            let what = "The key has no policy dualAuthDelete; one person can delete it";
            return Err(KpError::conflict("NOT_DUAL_AUTH_ERR", what));
        }
        let from = authorisation(&key, now);
        change(tx, act, &mut key, now)?;
        let to = authorisation(&key, now);
        act.note(|data| data.change = Some(Change::Deletion { from, to }));
        key.updated = Some(now);
        keys::update(tx, &key)?;
        Ok(Changed::just(()))
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Whether the caller may be the one who deletes: if two are needed, the other has said so, is
/// another person, and could still say so.
pub(crate) fn authorised(tx: &Tx<'_>, act: &Act, key: &Key, now: UnixMs) -> Result<(), KpError> {
    if !needed(tx, key)? {
        return Ok(());
    }
    let first = key.set_by.as_ref().filter(|_| set_until(key, now).is_some()).ok_or_else(|| {
        not_met("Two persons are needed: another one must set the key for deletion first, at most 7 days before")
    })?;
    let first = auth::find(tx, first)?;
    let operation = KeyOperation::SetForDeletion;
    let first = first
        .filter(|f| f.permits(operation, key.root.instance, On::Key(key.root.key, &key.ring)))
        .ok_or_else(|| {
            not_met(
                "Who set the key for deletion may not do so any longer; another person must set it",
            )
        })?;
    match (person(tx, &first)?, person(tx, &act.caller)?) {
        (Some(first), Some(second)) if first != second => Ok(()),
        (_, None) => Err(not_met(
            "A service without an owner stands for no person, so it cannot be one of the two",
        )),
        _ => Err(not_met(
            "Two persons are needed: whoever set the key for deletion cannot delete it",
        )),
    }
}
