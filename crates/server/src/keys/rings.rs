//! Key rings: groups of keys for access. Every key is in one; `default` is always there.

use crate::app::App;
use crate::http::api::content::envelope;
use crate::http::api::parameters::{FORCE_RING, PAGE};
use crate::http::api::{self, Api, Kind, get, post, says};
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::KpError;
use crate::keys::act::{
    About, Act, Changed, Instance, answer, key_again, nothing_again, parse, state_allows,
};
use crate::keys::query::Query;
use crate::keys::view;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_domain::access::{KeyOperation, On};
use claviger_domain::audit::Change;
use claviger_domain::id::InstanceId;
use claviger_domain::key::KeyAction;
use claviger_store::rings::{self as store, DEFAULT, Ring};
use claviger_store::{Tx, keys};
use claviger_wire::kp::rings::{KeyPatch, KeyRing, RING_TYPE};
use claviger_wire::kp::{self, Envelope};
use std::sync::Arc;

/// Rings of one instance, besides `default`.
const PER_INSTANCE_MAX: usize = 50;

pub(crate) fn api() -> Api {
    let all = says("listKeyRings", "Key rings of the instance")
        .query(&PAGE)
        .answers(200, envelope::<KeyRing>(RING_TYPE));
    let made = says("createKeyRing", "Make a key ring").answers_nothing(201).refuses(&[409]);
    let gone = says("deleteKeyRing", "Delete a key ring")
        .query(&[FORCE_RING])
        .answers_nothing(204)
        .refuses(&[409]);
    Api::new("key rings", Kind::KeyProtect)
        .at("/api/v2/key_rings", [get(list, all)])
        .at("/api/v2/key_rings/{ring}", [post(create, made), api::delete(delete, gone)])
}

fn act(caller: Caller, instance: InstanceId, ring: &str, action: &'static str) -> Act {
    let failed = match action {
        "kms.key-rings.create" => "Key ring could not be created",
        "kms.key-rings.delete" => "Key ring could not be deleted",
        _ => "Key rings could not be listed",
    };
    let about = match ring {
        "" => About::Instance,
        ring => About::Ring(ring.to_owned()),
    };
    Act { caller, instance, action, failed, about }
}

/// The ring that a new key of this caller goes to.
pub(crate) fn of_new_key(caller: &Caller) -> &str {
    caller.ring.as_deref().unwrap_or(DEFAULT)
}

/// Refuses a ring that is not there.
pub(crate) fn there(tx: &Tx<'_>, instance: InstanceId, ring: &str) -> Result<(), KpError> {
    if store::exists(tx, instance, ring)? { Ok(()) } else { Err(none()) }
}

fn none() -> KpError {
    let what = "There is no such key ring in this instance; create it first";
    KpError::new(StatusCode::NOT_FOUND, "KEY_RING_NOT_FOUND_ERR", what)
}

fn taken() -> KpError {
    KpError::conflict("KEY_RING_NOT_UNIQUE_ERR", "The instance has a key ring of this name")
}

/// `GET /key_rings`: those that the caller has a role on.
async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    query: Query,
) -> Result<Response, KpError> {
    let act = act(caller, instance, "", "kms.key-rings.list");
    let envelope = act
        .look(&app, move |_, tx, act, _| {
            let first = KeyRing { id: DEFAULT.to_owned(), creation_date: None, created_by: None };
            let others = store::all(tx, act.instance)?.into_iter().map(|ring| KeyRing {
                id: ring.id,
                creation_date: Some(view::second(ring.created)),
                created_by: Some(ring.created_by),
            });
            let mut all: Vec<KeyRing> = [first].into_iter().chain(others).collect();
            let operation = KeyOperation::ListRings;
            all.retain(|ring| act.caller.permits(operation, act.instance, On::Ring(&ring.id)));
            // Who may list no ring may not list rings; `default` is there even in no instance.
            if all.is_empty() {
                return Err(KpError::unauthorized());
            }
            act.exists(tx)?;
            let (page, total) = query.page(all)?;
            let mut envelope = Envelope::of(RING_TYPE, page);
            envelope.metadata.total_count = total;
            Ok(envelope)
        })
        .await?;
    Ok(answer(StatusCode::OK, RING_TYPE, &envelope))
}

/// `POST /key_rings/{id}`. 201 without a body: a client of Go takes a body for an error.
async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
) -> Result<Response, KpError> {
    let act = act(caller, instance, &id, "kms.key-rings.create");
    act.change_once(&app, nothing_again, move |_, tx, act, now| {
        act.on_instance(tx, KeyOperation::CreateRing)?;
        let sane = (2..=100).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !sane {
            let what = "The field 'id' must be: 2 to 100 letters, digits, '-' and '_'";
            return Err(KpError::field("id", what));
        }
        if id == DEFAULT {
            return Err(taken());
        }
        let (created, created_by) = (now, act.caller.iam_id.clone());
        let ring = Ring { id: id.clone(), created, created_by };
        store::add(tx, act.instance, &ring)
            .map_err(|e| if e.is_taken() { taken() } else { e.into() })?;
        if store::all(tx, act.instance)?.len() > PER_INSTANCE_MAX {
            let what = format!(
                "The instance has {PER_INSTANCE_MAX} key rings, as many as it may; delete one of them"
            );
            return Err(KpError::conflict("KEY_RING_QUOTA_ERR", what));
        }
        Ok(Changed::just(()))
    })
    .await?;
    Ok(StatusCode::CREATED.into_response())
}

/// `DELETE /key_rings/{id}`. By force, destroyed keys go to `default`, if the caller may move keys
/// there; others are never moved. The roles on the ring go with it.
async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, KpError> {
    let act = act(caller, instance, &id, "kms.key-rings.delete");
    act.change_once(&app, nothing_again, move |_, tx, act, _| {
        act.on_ring(tx, KeyOperation::DeleteRing, &id)?;
        let force = query.flag("force")?.unwrap_or(false);
        if id == DEFAULT {
            let what = "Every instance has the key ring 'default'; it cannot be deleted";
            return Err(KpError::conflict("KEY_RING_RESERVED_ERR", what));
        }
        there(tx, act.instance, &id)?;
        let holds = store::holds(tx, act.instance, &id)?;
        if holds.live > 0 {
            let what = format!(
                "The key ring holds {} keys; move them to another ring or delete them first",
                holds.live
            );
            return Err(KpError::conflict("KEY_RING_NOT_EMPTY_ERR", what));
        }
        if holds.destroyed > 0 && !force {
            let what = format!(
                "The key ring holds {} deleted keys; delete it with force=true, and they go to the ring 'default'",
                holds.destroyed
            );
            return Err(KpError::conflict("KEY_RING_NOT_EMPTY_ERR", what));
        }
        if holds.destroyed > 0 {
            act.on_ring(tx, KeyOperation::PatchKey, DEFAULT)?;
        }
        store::remove(tx, act.instance, &id)?;
        Ok(Changed::just(()))
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `PATCH /keys/{id}`: moves a key to another ring, on which the caller needs the same role. The
/// header names its present one.
pub(crate) async fn move_key(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, KpError> {
    let action = "kms.secrets.patch";
    let act =
        Act { caller, instance, action, failed: "Key could not be updated", about: About::Key(id) };
    let wanted = target(&body);
    let key = act
        .change_once(&app, key_again(KeyOperation::PatchKey), move |app, tx, act, now| {
            let mut key = act.key(tx, KeyOperation::PatchKey)?;
            let wanted = wanted.as_ref().map_err(Clone::clone)?;
            act.on_ring(tx, KeyOperation::PatchKey, wanted)?;
            state_allows(&key, KeyAction::Patch, now)?;
            there(tx, act.instance, wanted)?;
            let (from, to) = (key.ring.clone(), wanted.clone());
            act.note(|data| data.change = Some(Change::Ring { from, to }));
            key.ring = wanted.clone();
            key.updated = Some(now);
            keys::update(tx, &key)?;
            Ok(Changed::just(view::key(app, tx, &key, now)?))
        })
        .await?;
    Ok(answer(StatusCode::OK, kp::KEY_TYPE, &Envelope::of(kp::KEY_TYPE, vec![key])))
}

fn target(body: &Body) -> Result<String, KpError> {
    let text = body.text().ok_or_else(|| KpError::body("The body must name a 'keyRingID'"))?;
    let patch: KeyPatch = parse(text)?;
    patch.key_ring_id.filter(|ring| !ring.is_empty()).ok_or_else(|| {
        KpError::field("keyRingID", "The field 'keyRingID' must be: the id of a key ring")
    })
}
