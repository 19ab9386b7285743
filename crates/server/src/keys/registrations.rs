//! Which resource uses which key. Written by services, for resources of their own.

use crate::app::App;
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::KpError;
use crate::keys::act::{
    About, Act, Changed, Doing, Instance, answer, nothing_again, parse, root_only, state_allows,
};
use crate::keys::query::{Pager, Query};
use crate::keys::view;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_domain::access::{KeyOperation, On};
use claviger_domain::id::{KeyVersionId, UnixMs};
use claviger_domain::key::KeyAction;
use claviger_store::keys::{self, Key};
use claviger_store::registrations::{self as store, Registration};
use claviger_store::repeats::Repeat;
use claviger_store::{StoreError, Tx};
use claviger_wire::kp::{self, Envelope, KeyVersion, REGISTRATION_TYPE, RegistrationInput};
use std::sync::Arc;

/// How the CRNs of this server's clusters begin.
pub(crate) const CLUSTER: &str = "crn:v1:claviger:";
/// Segments of a CRN up to the service instance: what a service may call its own.
const OWN: usize = 8;
/// Registrations of one key; a bound on what deletion has to look at.
const PER_KEY_MAX: usize = 1000;
/// Registrations of all keys of an instance; a bound on what a list has to look through.
const PER_INSTANCE_MAX: u64 = 10_000;
const CRN_MAX: usize = 512;
const CRN_QUERY: &str = "urlEncodedResourceCRNQuery";
const METADATA_MAX: usize = 4096;

fn act(caller: Caller, instance: claviger_domain::id::InstanceId, about: About) -> Act {
    let action = "kms.registrations.default";
    Act { caller, instance, action, failed: "Registration could not be processed", about }
}

/// The key and whether the caller may write registrations for this CRN on it.
fn writable(tx: &Tx<'_>, act: &Doing, crn: &str) -> Result<Key, KpError> {
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
    // A `*` asks for all that begin so; what cannot be seen makes two CRNs look like one.
    if !crn.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'*') {
        let what =
            "The resource must be named by a CRN of printable ASCII without blanks and without *";
        return Err(KpError::field("urlEncodedResourceCRN", what));
    }
    let own = match act.caller.crn.as_deref() {
        Some(own) => own.split(':').take(OWN).eq(crn.split(':').take(OWN)),
        // A service ID has no CRN of its own: it registers what is no cluster of this server, and
        // touches only what it registered itself.
        None => {
            !crn.starts_with(CLUSTER)
                && store::get(tx, &key.root, crn)?
                    .is_none_or(|before| before.created_by == act.caller.iam_id)
        }
    };
    if !own {
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
    for (field, text, most) in [
        ("description", &input.description, 240),
        ("registrationMetadata", &input.registration_metadata, METADATA_MAX),
    ] {
        if text.as_ref().is_some_and(|text| text.chars().count() > most) {
            let what = format!("The field '{field}' must be: at most {most} characters");
            return Err(KpError::field(field, what));
        }
    }
    Ok(())
}

/// POST: a new registration. Repeating it for the same resource is 409.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path((id, crn)): Path<(String, String)>,
    body: Body,
) -> Result<Response, KpError> {
    let (input, crn) = (input(&body), decoded(crn));
    let made = act(caller, instance, About::Key(id))
        .change_once(&app, again(crn.clone()), move |_, tx, act, now| {
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
            if store::count(tx, act.instance)? >= PER_INSTANCE_MAX {
                let what =
                    format!("The instance has {PER_INSTANCE_MAX} registrations, as many as it may");
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
                metadata: input.registration_metadata.clone(),
            };
            store::put(tx, &registration)?;
            Ok(Changed::just(view(tx, act, &registration)?))
        })
        .await?;
    Ok(answer(StatusCode::CREATED, REGISTRATION_TYPE, &Envelope::of(REGISTRATION_TYPE, vec![made])))
}

/// PUT: replaces all of a registration. What is not given is as on creation.
pub(crate) async fn replace(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path((id, crn)): Path<(String, String)>,
    body: Body,
) -> Result<Response, KpError> {
    write(app, act(caller, instance, About::Key(id)), crn, &body, |key, before, input, act, now| {
        Ok(Registration {
            description: input.description.clone(),
            prevent: prevent(input)?,
            metadata: input.registration_metadata.clone(),
            version: key.current.unwrap_or(before.version),
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
    write(app, act(caller, instance, About::Key(id)), crn, &body, |_, before, input, act, now| {
        Ok(Registration {
            description: input.description.clone().or(before.description.clone()),
            prevent: input.prevent_key_deletion.unwrap_or(before.prevent),
            metadata: input.registration_metadata.clone().or(before.metadata.clone()),
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
    merge: fn(
        &Key,
        Registration,
        &RegistrationInput,
        &Act,
        UnixMs,
    ) -> Result<Registration, KpError>,
) -> Result<Response, KpError> {
    let (input, crn) = (input(body), decoded(crn));
    let made = act
        .change_once(&app, again(crn.clone()), move |_, tx, act, now| {
            let key = writable(tx, act, &crn)?;
            let input = input.as_ref().map_err(Clone::clone)?;
            describe(input)?;
            state_allows(&key, KeyAction::Register, now)?;
            let before = store::get(tx, &key.root, &crn)?.ok_or_else(none)?;
            let named = version(tx, &key, input, Some(before.version))?;
            let mut after = merge(&key, before, input, act, now)?;
            if input.key_version_id.is_some() {
                after.version = named;
            }
            store::put(tx, &after)?;
            Ok(Changed::just(view(tx, act, &after)?))
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
    let act = Act { action: "kms.registrations.delete", ..act(caller, instance, About::Key(id)) };
    let crn = decoded(crn);
    act.change_once(&app, nothing_again, move |_, tx, act, now| {
        let key = writable(tx, act, &crn)?;
        store::get(tx, &key.root, &crn)?.ok_or_else(none)?;
        state_allows(&key, KeyAction::Unregister, now)?;
        store::remove(tx, &key.root, &crn)?;
        Ok(Changed::just(()))
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Answers a registration again.
fn again(
    crn: String,
) -> impl Fn(&App, &Tx<'_>, &Doing, Repeat, UnixMs) -> Result<kp::Registration, KpError> + Send + 'static
{
    move |_, tx, act, before, _| {
        let key = act.key_of(tx, KeyOperation::WriteRegistration, before)?;
        Ok(view(tx, act, &store::get(tx, &key.root, &crn)?.ok_or_else(none)?)?)
    }
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
    let act = Act { action: "kms.registrations.list", ..act(caller, instance, About::Key(id)) };
    let envelope = act
        .look(&app, move |_, tx, act, now| {
            let key = act.key(tx, KeyOperation::ListRegistrations)?;
            root_only(&key)?;
            state_allows(&key, KeyAction::ReadRegistrations, now)?;
            let (wanted, mut page) = (wanted(act, &query)?, query.pager()?);
            store::of_key(tx, &key.root)?.into_iter().filter(wanted).for_each(|r| page.take(r));
            shown(tx, act, page)
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
    let act = Act { action: "kms.registrations.list", ..act(caller, instance, About::Instance) };
    let envelope = act
        .look(&app, move |_, tx, act, _| {
            if !act.caller.sees(act.instance) {
                return Err(KpError::unauthorized());
            }
            act.exists(tx)?;
            let rings = keys::rings_of_used(tx, act.instance)?;
            let visible = |r: &Registration| {
                let Some(ring) = rings.get(&r.root.key) else { return false };
                let (operation, on) = (KeyOperation::ListRegistrations, On::Key(r.root.key, ring));
                act.caller.permits(operation, act.instance, on)
                    && act.caller.ring.as_ref().is_none_or(|wanted| wanted == ring)
            };
            let (wanted, mut page) = (wanted(act, &query)?, query.pager()?);
            store::each_of_instance(tx, act.instance, |r| {
                if visible(&r) && wanted(&r) {
                    page.take(r);
                }
            })?;
            shown(tx, act, page)
        })
        .await?;
    Ok(answer(StatusCode::OK, REGISTRATION_TYPE, &envelope))
}

/// What the query asks for, and the caller may see of it.
fn wanted(act: &Act, query: &Query) -> Result<impl Fn(&Registration) -> bool, KpError> {
    let own = act.caller.crn.as_deref();
    let of_all_keys = matches!(act.about, About::Instance);
    let crn = query.get(CRN_QUERY).map(|wanted| crn_query(wanted, of_all_keys)).transpose()?;
    let prevent = query.flag("preventKeyDeletion")?;
    Ok(move |r: &Registration| {
        own.is_none_or(|own| own.split(':').take(OWN).eq(r.crn.split(':').take(OWN)))
            && crn.as_ref().is_none_or(|matches| matches(&r.crn))
            && prevent.is_none_or(|wanted| r.prevent == wanted)
    })
}

fn shown(
    tx: &Tx<'_>,
    act: &Act,
    page: Pager<Registration>,
) -> Result<Envelope<kp::Registration>, KpError> {
    let (found, total) = page.done();
    let found = found.iter().map(|r| view(tx, act, r)).collect::<Result<Vec<_>, _>>()?;
    let mut envelope = Envelope::of(REGISTRATION_TYPE, found);
    envelope.metadata.total_count = total;
    Ok(envelope)
}

/// What a CRN query matches: one CRN, or by a `*` at its end all that begin so.
fn crn_query(given: &str, of_all_keys: bool) -> Result<impl Fn(&str) -> bool, KpError> {
    let wanted = decoded(given.to_owned());
    let head: Vec<&str> = wanted.split(':').take(OWN).collect();
    let short = head.len() < OWN || head.iter().any(|segment| segment.contains('*'));
    if of_all_keys && short {
        let what = format!(
            "The query_param '{CRN_QUERY}' must be: a CRN without * in its first {OWN} segments"
        );
        return Err(KpError::query(CRN_QUERY, what));
    }
    let (begin, open) = match wanted.strip_suffix('*') {
        Some(begin) => (begin.to_owned(), true),
        None => (wanted, false),
    };
    if begin.contains('*') {
        let what = format!("The query_param '{CRN_QUERY}' must be: without * but at its end");
        return Err(KpError::query(CRN_QUERY, what));
    }
    Ok(move |crn: &str| if open { crn.starts_with(&begin) } else { crn == begin })
}

/// A CRN as it is stored; some clients encode it once more than they have to.
fn decoded(crn: String) -> String {
    if crn.contains(':') {
        return crn;
    }
    String::from_utf8_lossy(&crate::http::percent_decode(crn.as_bytes())).into_owned()
}

fn view(tx: &Tx<'_>, act: &Act, r: &Registration) -> Result<kp::Registration, StoreError> {
    let created = keys::version(tx, &r.root, r.version)?.map(|v| view::second(v.created));
    Ok(kp::Registration {
        key_id: r.root.key.0,
        key_name: keys::get(tx, &r.root)?.map(|key| key.name).unwrap_or_default(),
        registration_metadata: r.metadata.clone().filter(|_| act.caller.service),
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
