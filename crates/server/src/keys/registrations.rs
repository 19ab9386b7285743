//! Which resource uses which key. Written by services, for resources of their own.

use crate::app::App;
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::KpError;
use crate::keys::act::{Act, Changed, Instance, answer, parse, root_only, state_allows};
use crate::keys::query::Query;
use crate::keys::view;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_domain::access::KeyOperation;
use claviger_domain::id::{KeyVersionId, UnixMs};
use claviger_domain::key::KeyAction;
use claviger_store::keys::{self, Key};
use claviger_store::registrations::{self as store, Registration};
use claviger_store::{StoreError, Tx};
use claviger_wire::kp::{self, Envelope, KeyVersion, REGISTRATION_TYPE, RegistrationInput};
use std::sync::Arc;

/// Segments of a CRN up to the service instance: what a service may call its own.
const OWN: usize = 8;
/// Registrations of one key; a bound on what deletion has to look at.
const PER_KEY_MAX: usize = 1000;
const CRN_MAX: usize = 512;

fn act(caller: Caller, instance: claviger_domain::id::InstanceId, key: String) -> Act {
    let action = "kms.registrations.default";
    Act { caller, instance, action, failed: "Registration could not be processed", key }
}

/// The key and whether the caller may write registrations for this CRN on it.
fn writable(tx: &Tx<'_>, act: &Act, crn: &str) -> Result<Key, KpError> {
    if !act.caller.service {
        // Told only to whoever may read the key; strangers get 401.
        act.key(tx, KeyOperation::ReadMetadata)?;
        let what = "Only a service can write registrations, for its own resources";
        return Err(KpError::new(StatusCode::FORBIDDEN, "SERVICE_ONLY_ERR", what));
    }
    let key = act.key(tx, KeyOperation::WriteRegistration)?;
    if crn.len() > CRN_MAX || crn.split(':').count() < OWN || !crn.starts_with("crn:") {
        let what = format!(
            "The resource must be named by a CRN of at least {OWN} segments and at most {CRN_MAX} characters"
        );
        return Err(KpError::field("urlEncodedResourceCRN", what));
    }
    let own = act.caller.crn.as_deref().map(|own| own.split(':').take(OWN));
    if !own.is_some_and(|own| own.eq(crn.split(':').take(OWN))) {
        let what = "The resource belongs to another service";
        return Err(KpError::new(StatusCode::FORBIDDEN, "RESOURCE_OWNER_ERR", what));
    }
    if key.extractable {
        let what = "Only root keys have registrations";
        return Err(KpError::new(StatusCode::UNPROCESSABLE_ENTITY, "KEY_ROOT_REQ_REG_ERR", what));
    }
    Ok(key)
}

fn input(body: &Body) -> Result<RegistrationInput, KpError> {
    let text = body.text().ok_or_else(|| KpError::body("The body is missing"))?;
    let mut body: Envelope<RegistrationInput> = parse(text)?;
    match (body.resources.pop(), body.resources.is_empty()) {
        (Some(input), true) => Ok(input),
        _ => Err(KpError::body("The body must have exactly one registration in 'resources'")),
    }
}

/// The version to register: the one that is named, not older than `before`, or the current one.
fn version(
    tx: &Tx<'_>,
    key: &Key,
    input: &RegistrationInput,
    before: Option<KeyVersionId>,
) -> Result<KeyVersionId, KpError> {
    let invalid =
        |what: &str| KpError::new(StatusCode::UNPROCESSABLE_ENTITY, "KEY_VERSION_INVALID", what);
    let current = key.current.ok_or_else(|| invalid("The key has no version"))?;
    let Some(wanted) = input.key_version_id.map(KeyVersionId) else {
        return Ok(before.unwrap_or(current));
    };
    let wanted = keys::version(tx, &key.root, wanted)?
        .ok_or_else(|| invalid("The key has no such version"))?;
    if let Some(before) = before
        && let Some(before) = keys::version(tx, &key.root, before)?
        && wanted.number < before.number
    {
        return Err(invalid("The version is older than the one that is registered"));
    }
    Ok(wanted.id)
}

fn prevent(input: &RegistrationInput) -> Result<bool, KpError> {
    input.prevent_key_deletion.ok_or_else(|| {
        let what = "The field 'preventKeyDeletion' must be: given";
        KpError::field("preventKeyDeletion", what)
    })
}

fn describe(input: &RegistrationInput) -> Result<(), KpError> {
    match &input.description {
        Some(text) if text.chars().count() > 240 => Err(KpError::field(
            "description",
            "The field 'description' must be: at most 240 characters",
        )),
        _ => Ok(()),
    }
}

/// POST: a new registration. Repeating it for the same resource is 409.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path((id, crn)): Path<(String, String)>,
    body: Body,
) -> Result<Response, KpError> {
    let input = input(&body);
    let made = act(caller, instance, id)
        .change(&app, move |_, tx, act, now| {
            let key = writable(tx, act, &crn)?;
            let input = input.as_ref().map_err(Clone::clone)?;
            describe(input)?;
            state_allows(&key, KeyAction::Register, now)?;
            let all = store::of_key(tx, &key.root)?;
            if all.iter().any(|r| r.crn == crn) {
                let what = "The resource is registered on this key; replace it with PUT";
                return Err(KpError::conflict("REGISTRATION_EXISTS_ERR", what));
            }
            if all.len() >= PER_KEY_MAX {
                let what = format!("The key has {PER_KEY_MAX} registrations, as many as it may");
                return Err(KpError::conflict("REGISTRATION_QUOTA_ERR", what));
            }
            let registration = Registration {
                root: key.root,
                crn: crn.clone(),
                description: input.description.clone(),
                prevent: prevent(input)?,
                version: version(tx, &key, input, None)?,
                created: now,
                created_by: act.caller.iam_id.clone(),
                updated: None,
                updated_by: None,
            };
            store::put(tx, &registration)?;
            Ok(Changed::just(view(tx, &registration)?))
        })
        .await?;
    Ok(answer(StatusCode::CREATED, REGISTRATION_TYPE, &Envelope::of(REGISTRATION_TYPE, vec![made])))
}

/// PUT: replaces all of a registration, or makes it.
pub(crate) async fn replace(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path((id, crn)): Path<(String, String)>,
    body: Body,
) -> Result<Response, KpError> {
    write(app, act(caller, instance, id), crn, &body, |before, input, act, now| {
        Ok(Registration {
            description: input.description.clone(),
            prevent: prevent(input)?,
            updated: Some(now),
            updated_by: Some(act.caller.iam_id.clone()),
            ..before
        })
    })
    .await
}

/// PATCH: changes what is given.
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path((id, crn)): Path<(String, String)>,
    body: Body,
) -> Result<Response, KpError> {
    write(app, act(caller, instance, id), crn, &body, |before, input, act, now| {
        Ok(Registration {
            description: input.description.clone().or(before.description.clone()),
            prevent: input.prevent_key_deletion.unwrap_or(before.prevent),
            updated: Some(now),
            updated_by: Some(act.caller.iam_id.clone()),
            ..before
        })
    })
    .await
}

async fn write(
    app: Arc<App>,
    act: Act,
    crn: String,
    body: &Body,
    merge: fn(Registration, &RegistrationInput, &Act, UnixMs) -> Result<Registration, KpError>,
) -> Result<Response, KpError> {
    let input = input(body);
    let made = act
        .change(&app, move |_, tx, act, now| {
            let key = writable(tx, act, &crn)?;
            let input = input.as_ref().map_err(Clone::clone)?;
            describe(input)?;
            state_allows(&key, KeyAction::Register, now)?;
            let before = store::get(tx, &key.root, &crn)?.ok_or_else(none)?;
            let version = version(tx, &key, input, Some(before.version))?;
            let after = Registration { version, ..merge(before, input, act, now)? };
            store::put(tx, &after)?;
            Ok(Changed::just(view(tx, &after)?))
        })
        .await?;
    Ok(answer(StatusCode::OK, REGISTRATION_TYPE, &Envelope::of(REGISTRATION_TYPE, vec![made])))
}

/// DELETE.
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path((id, crn)): Path<(String, String)>,
) -> Result<Response, KpError> {
    let act = Act { action: "kms.registrations.delete", ..act(caller, instance, id) };
    act.change(&app, move |_, tx, act, now| {
        let key = writable(tx, act, &crn)?;
        store::get(tx, &key.root, &crn)?.ok_or_else(none)?;
        state_allows(&key, KeyAction::Unregister, now)?;
        store::remove(tx, &key.root, &crn)?;
        Ok(Changed::just(()))
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn none() -> KpError {
    let what = "The resource is not registered on this key";
    KpError::new(StatusCode::NOT_FOUND, "REGISTRATION_NOT_FOUND_ERR", what)
}

/// `GET /keys/{id}/registrations`.
pub(crate) async fn of_key(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, KpError> {
    let act = Act { action: "kms.registrations.list", ..act(caller, instance, id) };
    let envelope = act
        .look(&app, move |_, tx, act, now| {
            let key = act.key(tx, KeyOperation::ListRegistrations)?;
            root_only(&key)?;
            state_allows(&key, KeyAction::ReadRegistrations, now)?;
            page(tx, act, &query, store::of_key(tx, &key.root)?)
        })
        .await?;
    Ok(answer(StatusCode::OK, REGISTRATION_TYPE, &envelope))
}

/// `GET /keys/registrations`: of all keys of the instance that the caller may see.
pub(crate) async fn of_instance(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    query: Query,
) -> Result<Response, KpError> {
    let act = Act { action: "kms.registrations.list", ..act(caller, instance, String::new()) };
    let envelope = act
        .look(&app, move |_, tx, act, _| {
            if !act.caller.sees(act.instance) {
                return Err(KpError::unauthorized());
            }
            act.exists(tx)?;
            let mut all = store::of_instance(tx, act.instance)?;
            let operation = KeyOperation::ListRegistrations;
            all.retain(|r| act.caller.permits(operation, act.instance, Some(r.root.key)));
            page(tx, act, &query, all)
        })
        .await?;
    Ok(answer(StatusCode::OK, REGISTRATION_TYPE, &envelope))
}

fn page(
    tx: &Tx<'_>,
    act: &Act,
    query: &Query,
    mut all: Vec<Registration>,
) -> Result<Envelope<kp::Registration>, KpError> {
    if let Some(own) = &act.caller.crn {
        all.retain(|r| own.split(':').take(OWN).eq(r.crn.split(':').take(OWN)));
    }
    if let Some(wanted) = query.get("urlEncodedResourceCRNQuery") {
        // Some clients encode it once more.
        let wanted =
            String::from_utf8_lossy(&crate::http::percent_decode(wanted.as_bytes())).into_owned();
        let head: Vec<&str> = wanted.split(':').take(OWN).collect();
        if head.len() < OWN || head.iter().any(|segment| segment.contains('*')) {
            let what = format!(
                "The query_param 'urlEncodedResourceCRNQuery' must be: a CRN without * in its first {OWN} segments"
            );
            return Err(KpError::query("urlEncodedResourceCRNQuery", what));
        }
        all.retain(|r| match wanted.strip_suffix('*') {
            Some(prefix) => r.crn.starts_with(prefix),
            None => r.crn == wanted,
        });
    }
    if let Some(wanted) = query.flag("preventKeyDeletion")? {
        all.retain(|r| r.prevent == wanted);
    }
    let (found, total) = query.page(all)?;
    let found = found.iter().map(|r| view(tx, r)).collect::<Result<Vec<_>, _>>()?;
    let mut envelope = Envelope::of(REGISTRATION_TYPE, found);
    envelope.metadata.total_count = total;
    Ok(envelope)
}

fn view(tx: &Tx<'_>, r: &Registration) -> Result<kp::Registration, StoreError> {
    let created = keys::version(tx, &r.root, r.version)?.map(|v| view::second(v.created));
    Ok(kp::Registration {
        key_id: r.root.key.0,
        resource_crn: r.crn.clone(),
        created_by: r.created_by.clone(),
        creation_date: view::second(r.created),
        updated_by: r.updated_by.clone(),
        last_updated: r.updated.map(view::second),
        description: r.description.clone(),
        prevent_key_deletion: r.prevent,
        key_version: Some(KeyVersion { id: r.version.0, creation_date: created }),
    })
}
