//! Aliases: other names of keys, unique in their instance. An alias of a deleted key stays taken
//! until the key is purged.

use crate::app::App;
use crate::http::api::content::envelope;
use crate::http::api::{self, Api, Kind, post, says};
use crate::http::auth::Caller;
use crate::http::error::KpError;
use crate::keys::act::{About, Act, Changed, Doing, Instance, answer, nothing_again, state_allows};
use crate::keys::view;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_domain::access::KeyOperation;
use claviger_domain::id::{KeyId, UnixMs};
use claviger_domain::key::{KeyAction, RootKey};
use claviger_store::repeats::Repeat;
use claviger_store::{Tx, keys};
use claviger_wire::kp::Envelope;
use claviger_wire::kp::rings::{ALIAS_TYPE, KeyAlias};
use std::sync::Arc;

/// Aliases of one key.
pub(crate) const PER_KEY_MAX: usize = 5;

/// Words that follow `/keys/` or a key in a path and so cannot be aliases.
const NO_ALIAS: [&str; 17] = [
    "allowed_ip",
    "key",
    "keys",
    "metadata",
    "policy",
    "policies",
    "registration",
    "registrations",
    "ring",
    "rings",
    "rotate",
    "wrap",
    "unwrap",
    "rewrap",
    "version",
    "versions",
    "restore",
];

pub(crate) fn api() -> Api {
    let made = says("createAlias", "Give a key an alias")
        .answers(201, envelope::<KeyAlias>(ALIAS_TYPE))
        .refuses(&[409]);
    let gone =
        says("deleteAlias", "Take an alias of a key away").answers_nothing(204).refuses(&[409]);
    Api::new("aliases", Kind::KeyProtect)
        .at("/api/v2/keys/{id}/aliases/{alias}", [post(create, made), api::delete(delete, gone)])
}

/// Whether `alias` can be one.
pub(crate) fn check(field: &str, alias: &str) -> Result<(), KpError> {
    let sane = (2..=90).contains(&alias.len())
        && alias.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !sane || NO_ALIAS.contains(&alias) || alias.parse::<KeyId>().is_ok() {
        let what = format!(
            "The field '{field}' must be: 2 to 90 letters, digits, '-' and '_', not a UUID and not a word of this API"
        );
        return Err(KpError::field(field, what));
    }
    Ok(())
}

/// Gives a key an alias that was checked.
pub(crate) fn add(
    tx: &Tx<'_>,
    act: &Act,
    root: &RootKey,
    alias: &str,
    now: UnixMs,
) -> Result<(), KpError> {
    keys::add_alias(tx, root, alias, now, &act.caller.iam_id).map_err(|e| match e.is_taken() {
        true => KpError::conflict(
            "KEY_ALIAS_NOT_UNIQUE_ERR",
            format!("The alias {alias:?} is in use in this instance"),
        ),
        false => e.into(),
    })
}

/// An alias that the caller made.
fn seen(root: &RootKey, alias: &str, act: &Act, made: UnixMs) -> KeyAlias {
    KeyAlias {
        key_id: root.key.0,
        alias: alias.to_owned(),
        created_by: act.caller.iam_id.clone(),
        creation_date: view::second(made),
    }
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path((id, alias)): Path<(String, String)>,
) -> Result<Response, KpError> {
    let action = "kms.secrets-alias.create";
    let act = Act {
        caller,
        instance,
        action,
        failed: "Alias could not be created",
        about: About::Key(id),
    };
    let again = {
        let alias = alias.clone();
        move |_: &App, tx: &Tx<'_>, act: &Doing, before: Repeat, _: UnixMs| {
            let key = act.key_of(tx, KeyOperation::CreateAlias, before)?;
            Ok(seen(&key.root, &alias, act, before.at))
        }
    };
    let made = act
        .change_once(&app, again, move |_, tx, act, now| {
            let mut key = act.key(tx, KeyOperation::CreateAlias)?;
            check("alias", &alias)?;
            state_allows(&key, KeyAction::Alias, now)?;
            add(tx, act, &key.root, &alias, now)?;
            // Counted afterwards, so that a taken alias is called taken on a full key too.
            if keys::aliases(tx, &key.root)?.len() > PER_KEY_MAX {
                let what = format!(
                    "The key has {PER_KEY_MAX} aliases, as many as it may; delete one of them"
                );
                return Err(KpError::conflict("KEY_ALIAS_QUOTA_ERR", what));
            }
            key.updated = Some(now);
            keys::update(tx, &key)?;
            Ok(Changed::just(seen(&key.root, &alias, act, now)))
        })
        .await?;
    Ok(answer(StatusCode::CREATED, ALIAS_TYPE, &Envelope::of(ALIAS_TYPE, vec![made])))
}

async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path((id, alias)): Path<(String, String)>,
) -> Result<Response, KpError> {
    let action = "kms.secrets-alias.delete";
    let act = Act {
        caller,
        instance,
        action,
        failed: "Alias could not be deleted",
        about: About::Key(id),
    };
    act.change_once(&app, nothing_again, move |_, tx, act, now| {
        let mut key = act.key(tx, KeyOperation::DeleteAlias)?;
        state_allows(&key, KeyAction::Alias, now)?;
        if !keys::remove_alias(tx, &key.root, &alias)? {
            let what = "The key does not have this alias; its metadata names those that it has";
            return Err(KpError::new(StatusCode::NOT_FOUND, "KEY_ALIAS_NOT_FOUND_ERR", what));
        }
        key.updated = Some(now);
        keys::update(tx, &key)?;
        Ok(Changed::just(()))
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
