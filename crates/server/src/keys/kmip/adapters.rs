//! `/kmip_adapters`.

use super::{Asked, EACH_MAX, PAGE, adapter, full, name, one, taken};
use crate::app::App;
use crate::http::body::Body;
use crate::http::error::KpError;
use crate::keys::act::{Act, Changed, answer, root_only};
use crate::keys::query::Query;
use crate::keys::view::second;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_domain::access::KeyOperation;
use claviger_domain::id::UnixMs;
use claviger_domain::key::KeyState;
use claviger_store::Tx;
use claviger_store::keys::{self, Key};
use claviger_store::kmip::{self as store, Adapter};
use claviger_wire::kp::Envelope;
use claviger_wire::kp::kmip::{self, ADAPTER_TYPE, NewAdapter, PROFILE, ProfileData};
use std::sync::Arc;
use uuid::Uuid;

fn view(a: &Adapter) -> kmip::Adapter {
    kmip::Adapter {
        id: a.id,
        name: a.name.clone(),
        description: a.description.clone(),
        profile: PROFILE.to_owned(),
        profile_data: ProfileData { crk_id: a.root.key.to_string() },
        created_by: a.created_by.clone(),
        created_at: second(a.created),
        updated_by: a.updated_by.clone(),
        updated_at: second(a.updated),
    }
}

/// `GET`: all, or those that use the key `crk_id`.
pub(super) async fn list(State(app): State<Arc<App>>, asked: Asked) -> Result<Response, KpError> {
    let (act, query) = asked.act("kms.kmip-management.list", "KMIP adapters could not be listed");
    let list = act
        .look(&app, move |_, tx, act, _| {
            act.on_instance(tx, KeyOperation::ManageKmip)?;
            let mut all = store::adapters(tx, act.instance)?;
            if let Some(named) = query.get("crk_id") {
                let key = keys::find(tx, act.instance, named)?.map(|key| key.root);
                all.retain(|a| Some(a.root) == key);
            }
            let (page, total) = query.page_within(all, PAGE, EACH_MAX)?;
            let mut list = Envelope::of(ADAPTER_TYPE, page.iter().map(view).collect());
            list.metadata.total_count = total;
            Ok(list)
        })
        .await?;
    Ok(answer(StatusCode::OK, ADAPTER_TYPE, &list))
}

/// `POST`.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    asked: Asked,
    body: Body,
) -> Result<Response, KpError> {
    let new = one::<NewAdapter>(&body);
    let (act, query) = asked.act("kms.kmip-management.create", "KMIP adapter could not be created");
    let made = act
        .change(&app, move |_, tx, act, now| {
            act.on_instance(tx, KeyOperation::ManageKmip)?;
            let new = new.as_ref().map_err(Clone::clone)?;
            if new.profile != PROFILE {
                let what = format!("The field 'profile' must be: {PROFILE}");
                return Err(KpError::field("profile", what));
            }
            let description = new.description.clone().unwrap_or_default();
            if description.chars().count() > 240 {
                let what = "The field 'description' must be: at most 240 characters";
                return Err(KpError::field("description", what));
            }
            let key = root_key(tx, act, &new.profile_data.crk_id, &query, now)?;
            if store::adapters(tx, act.instance)?.len() >= EACH_MAX {
                return Err(full("KMIP adapters in the instance"));
            }
            let by = &act.caller.iam_id;
            let adapter = Adapter {
                id: Uuid::new_v4(),
                name: name(new.name.as_deref(), "kmip_adapter")?,
                description,
                root: key.root,
                created: now,
                created_by: by.clone(),
                updated: now,
                updated_by: by.clone(),
            };
            store::add(tx, &adapter).map_err(taken("Another adapter of the instance"))?;
            Ok(Changed::just(view(&adapter)))
        })
        .await?;
    Ok(answer(StatusCode::CREATED, ADAPTER_TYPE, &Envelope::of(ADAPTER_TYPE, vec![made])))
}

/// The active root key that is to wrap an adapter's objects.
fn root_key(
    tx: &Tx<'_>,
    act: &Act,
    named: &str,
    query: &Query,
    now: UnixMs,
) -> Result<Key, KpError> {
    let expiring = query.flag("allowExpiringKey")?.unwrap_or(false);
    if named.is_empty() {
        let what = "The field 'profile_data.crk_id' must be: the id or alias of a root key";
        return Err(KpError::field("profile_data.crk_id", what));
    }
    let key = keys::find(tx, act.instance, named)?.ok_or_else(KpError::no_key)?;
    root_only(&key)?;
    let state = key.state_at(now);
    if state != KeyState::Active {
        let what = format!("The key is {state}; an adapter needs an active root key");
        return Err(KpError::conflict("KEY_ACTION_INVALID_STATE_ERR", what));
    }
    if key.expires.is_some() && !expiring {
        let what = "The key has an expiration date, after which the adapter's objects cannot be \
                    used. Take another key, or say allowExpiringKey=true";
        return Err(KpError::field("profile_data.crk_id", what));
    }
    Ok(key)
}

/// `GET /{id or name}`.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    asked: Asked,
    Path(named): Path<String>,
) -> Result<Response, KpError> {
    let (act, _) = asked.act("kms.kmip-management.read", "KMIP adapter could not be retrieved");
    let seen = act
        .look(&app, move |_, tx, act, _| {
            act.on_instance(tx, KeyOperation::ManageKmip)?;
            Ok(view(&adapter(tx, act.instance, &named)?))
        })
        .await?;
    Ok(answer(StatusCode::OK, ADAPTER_TYPE, &Envelope::of(ADAPTER_TYPE, vec![seen])))
}

/// `DELETE /{id or name}`: with its certificates.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    asked: Asked,
    Path(named): Path<String>,
) -> Result<Response, KpError> {
    let (act, _) = asked.act("kms.kmip-management.delete", "KMIP adapter could not be deleted");
    act.change(&app, move |_, tx, act, _| {
        act.on_instance(tx, KeyOperation::ManageKmip)?;
        let adapter = adapter(tx, act.instance, &named)?;
        store::remove(tx, &adapter)?;
        Ok(Changed::just(()))
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
