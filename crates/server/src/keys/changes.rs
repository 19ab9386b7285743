//! What changes a key's state: rotate, disable, enable, delete, restore.

use crate::app::App;
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::KpError;
use crate::keys::act::{
    About, Act, Changed, Instance, answer, key_again, nothing_again, parse, root_only, state_allows,
};
use crate::keys::create::{Prefer, custody, prefers};
use crate::keys::import::{self, Arriving};
use crate::keys::query::Query;
use crate::keys::registrations::CLUSTER;
use crate::keys::{dual, kmip, policies, view};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use claviger_crypto::SecretBytes;
use claviger_domain::access::KeyOperation;
use claviger_domain::id::{InstanceId, KeyVersionId, UnixMs};
use claviger_domain::key::{KeyAction, RootVersion};
use claviger_store::events::{self, EventKind, KeyEvent};
use claviger_store::keys::{self, Key};
use claviger_store::{Tx, registrations};
use claviger_wire::kp::{self, RotateRequest};
use std::sync::Arc;
use std::time::Duration;

/// Registered resources that an error names; more only makes it unreadable.
const NAMED: usize = 10;

/// Adds the event of a root key; standard keys have none, since nothing follows them.
fn event(
    tx: &Tx<'_>,
    key: &Key,
    kind: EventKind,
    now: UnixMs,
) -> Result<Option<KeyEvent>, KpError> {
    if key.extractable {
        return Ok(None);
    }
    Ok(Some(events::add(tx, &key.root, kind, key.current, now)?))
}

/// Every version of a key, to be forgotten by the custodian.
pub(crate) fn all_versions(tx: &Tx<'_>, key: &Key) -> Result<Vec<RootVersion>, KpError> {
    let versions = keys::versions(tx, &key.root)?;
    Ok(versions.into_iter().map(|v| RootVersion { root: key.root, version: v.id }).collect())
}

/// Until when it is still too early for what must wait so long since `since`; none if it is not. A
/// moment that has not come was told by a clock that was ahead: nobody waits for that.
pub(crate) fn too_early(since: Option<UnixMs>, wait: Duration, now: UnixMs) -> Option<UnixMs> {
    let since = since.filter(|since| *since <= now)?;
    Some(view::later(since, wait)).filter(|until| now < *until)
}

/// 409 while it is [`too_early`].
fn not_before(
    since: Option<UnixMs>,
    wait: Duration,
    now: UnixMs,
    code: &'static str,
    what: &str,
) -> Result<(), KpError> {
    let Some(until) = too_early(since, wait, now) else { return Ok(()) };
    let seconds = until.since(now).div_ceil(1000);
    Err(KpError::conflict(
        code,
        format!("{what}. Try again in {seconds} s, at {}", view::date(until)),
    ))
}

/// Makes a new version current. Answers the key only to who says that he prefers it.
pub(crate) async fn rotate(
    app: Arc<App>,
    act: Act,
    prefer: Option<Prefer>,
    body: Body,
) -> Result<Response, KpError> {
    let given = arriving(&body);
    drop(body);
    let plain = matches!(given, Ok(Some(Arriving::Plain(_))));
    let given = match given {
        Err(e) => Err(e),
        Ok(arriving) => {
            import::arrived(&app, &act, arriving, |tx, act| {
                act.key(tx, KeyOperation::Rotate).and_then(|key| root_only(&key))
            })
            .await
        }
    };
    let key = act
        .change_once(&app, key_again(KeyOperation::Rotate), move |app, tx, act, now| {
            let mut key = act.key(tx, KeyOperation::Rotate)?;
            root_only(&key)?;
            let given = given.as_ref().map_err(Clone::clone)?;
            state_allows(&key, KeyAction::Rotate, now)?;
            match (key.imported, given.is_some()) {
                (true, false) => {
                    let what = "An imported key is rotated with new key material in 'payload'";
                    return Err(KpError::new(StatusCode::BAD_REQUEST, "KEY_PAYLOAD_REQ_ERR", what));
                }
                (false, true) => {
                    let what =
                        "The query_param 'payload' must be: provided only if key is imported";
                    return Err(KpError::query("payload", what));
                }
                _ => {}
            }
            if plain {
                policies::may_come_plain(tx, act.instance)?;
            }
            let code = "KEY_ROTATION_NOT_PERMITTED";
            let what = "The key was rotated a short time ago";
            not_before(key.rotated, app.settings.rotate_after, now, code, what)?;
            let event = new_version(app, tx, &mut key, given.as_ref(), now)?;
            act.note_key(&key);
            let value = view::key(app, tx, &key, now)?;
            Ok(Changed { value, event, forget: Vec::new() })
        })
        .await?;
    Ok(represented(key, prefer))
}

/// Makes a new version of a root key current: of the given material, or generated.
pub(crate) fn new_version(
    app: &App,
    tx: &Tx<'_>,
    key: &mut Key,
    given: Option<&SecretBytes>,
    now: UnixMs,
) -> Result<Option<KeyEvent>, KpError> {
    let version = RootVersion { root: key.root, version: KeyVersionId::random() };
    let sealed = match given {
        Some(material) => app.custodian.import(&version, material),
        None => app.custodian.generate(&version),
    };
    keys::add_version(tx, &key.root, version.version, &sealed.map_err(custody)?.0, now)?;
    key.current = Some(version.version);
    key.rotated = Some(now);
    key.updated = Some(now);
    keys::update(tx, key)?;
    event(tx, key, EventKind::Rotate, now)
}

fn arriving(body: &Body) -> Result<Option<Arriving>, KpError> {
    let request: RotateRequest = body.text().map(parse).transpose()?.unwrap_or_default();
    Arriving::read(
        request.payload,
        request.encrypted_nonce.as_deref(),
        request.iv.as_deref(),
        request.encryption_algorithm.as_deref(),
    )
}

pub(crate) async fn disable(app: Arc<App>, act: Act) -> Result<Response, KpError> {
    act.change_once(&app, nothing_again, |_, tx, act, now| {
        let mut key = act.key(tx, KeyOperation::Disable)?;
        root_only(&key)?;
        key.life = key.life_at(now).disable()?.into();
        key.acted = Some(now);
        key.updated = Some(now);
        keys::update(tx, &key)?;
        act.note_key(&key);
        let event = event(tx, &key, EventKind::Disable, now)?;
        Ok(Changed { value: (), event, forget: all_versions(tx, &key)? })
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(crate) async fn enable(app: Arc<App>, act: Act) -> Result<Response, KpError> {
    act.change_once(&app, nothing_again, |app, tx, act, now| {
        let mut key = act.key(tx, KeyOperation::Enable)?;
        root_only(&key)?;
        // One that has expired meanwhile is deactivated by this, which is how it unwraps again: there
        // is no other way out of a suspension. The clock announces the expiry after it.
        let active = key.life_at(now).enable()?;
        let what = "The key was disabled a short time ago";
        not_before(key.acted, app.settings.enable_after, now, "REQ_TOO_EARLY_ERR", what)?;
        key.life = active.into();
        key.updated = Some(now);
        keys::update(tx, &key)?;
        act.note_key(&key);
        let event = event(tx, &key, EventKind::Enable, now)?;
        Ok(Changed { value: (), event, forget: Vec::new() })
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `DELETE /keys/{id}`.
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, KpError> {
    let action = "kms.secrets.delete";
    let act =
        Act { caller, instance, action, failed: "Key could not be deleted", about: About::Key(id) };
    let key = act
        .change_once(&app, key_again(KeyOperation::Delete), move |app, tx, act, now| {
            let mut key = act.key(tx, KeyOperation::Delete)?;
            let destroyed = key.life_at(now).delete()?;
            dual::authorised(tx, act, &key, now)?;
            let force = query.flag("force")?.unwrap_or(false);
            unused(tx, &key, force)?;
            registrations::remove_all(tx, &key.root)?;
            key.life = destroyed.into();
            key.deleted = Some(now);
            key.deleted_by = Some(act.caller.iam_id.clone());
            key.acted = Some(now);
            key.updated = Some(now);
            keys::update(tx, &key)?;
            act.note_key(&key);
            let event = event(tx, &key, EventKind::Delete, now)?;
            let value = view::key(app, tx, &key, now)?;
            Ok(Changed { value, event, forget: all_versions(tx, &key)? })
        })
        .await?;
    Ok(represented(key, prefers(&headers)))
}

/// The key if the caller prefers to see it, else nothing.
fn represented(key: kp::Key, prefer: Option<Prefer>) -> Response {
    match prefer {
        Some(Prefer::Representation) => {
            answer(StatusCode::OK, kp::KEY_TYPE, &kp::Envelope::of(kp::KEY_TYPE, vec![key]))
        }
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}

/// Refuses to delete a key that something uses; by force, if nothing that uses it forbids that.
fn unused(tx: &Tx<'_>, key: &Key, force: bool) -> Result<(), KpError> {
    let users = registrations::of_key(tx, &key.root)?;
    let forbid: Vec<_> = users.iter().filter(|r| r.prevent).collect();
    let name = |users: &[&registrations::Registration]| {
        let crns: Vec<&str> = users.iter().take(NAMED).map(|r| r.crn.as_str()).collect();
        let more = users.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}", crns.join(", "))
    };
    let clusters = crate::clusters::users(tx, &key.root)?;
    if !forbid.is_empty() {
        // Clusters that moved are kept on the list for the sake of their backups.
        let moved = clusters.is_empty() && forbid.iter().all(|r| r.crn.starts_with(CLUSTER));
        let how = if moved {
            format!(
                "No cluster here writes or reads under it, but backups of etcd, or a cluster that was removed, may be under it: when none is needed, `claviger ks kms release -c CLUSTER --crk {}`",
                key.root.key
            )
        } else {
            "Move them to another key first; a cluster that has moved is taken off it by `claviger ks kms release`".to_owned()
        };
        let what = format!(
            "The key protects resources that prevent its deletion, by force too: {}. {how}",
            name(&forbid)
        );
        return Err(KpError::conflict("PREV_KEY_DEL_ERR", what));
    }
    if !clusters.is_empty() {
        let shown = clusters.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        let what = format!(
            "Secrets of clusters are under the key, which prevents its deletion, by force too: {shown}. Enable another key for them first"
        );
        return Err(KpError::conflict("PREV_KEY_DEL_ERR", what));
    }
    if !force && !users.is_empty() {
        let users: Vec<_> = users.iter().collect();
        let what = format!(
            "The key protects resources: {}. Move them to another key, or delete it with force=true",
            name(&users)
        );
        return Err(KpError::conflict("PROTECTED_RESOURCE_ERR", what));
    }
    kmip::unattached(tx, key)
}

/// `POST /keys/{id}/restore`.
pub(crate) async fn restore(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
) -> Result<Response, KpError> {
    restore_key(app, caller, instance, id).await
}

/// Brings a deleted key back, active, whatever it was before; as Key Protect does.
pub(crate) async fn restore_key(
    app: Arc<App>,
    caller: Caller,
    instance: InstanceId,
    id: String,
) -> Result<Response, KpError> {
    let action = "kms.secrets.restore";
    let act = Act {
        caller,
        instance,
        action,
        failed: "Key could not be restored",
        about: About::Key(id),
    };
    let key = act
        .change_once(&app, key_again(KeyOperation::Restore), |app, tx, act, now| {
            let mut key = act.key(tx, KeyOperation::Restore)?;
            let active = key.life_at(now).restore()?;
            if key.expires.is_some_and(|end| end <= now) {
                let what = "The key's expiration date has passed";
                return Err(KpError::new(StatusCode::BAD_REQUEST, "KEY_EXPIRED_ERR", what));
            }
            let until = key.deleted.map(|at| view::later(at, app.settings.restore_within));
            if until.is_none_or(|until| until <= now) {
                let what = "The key was deleted too long ago; its material is gone";
                return Err(KpError::new(StatusCode::BAD_REQUEST, "KEY_RESTORE_EXPIRED", what));
            }
            let what = "The key was deleted a short time ago";
            not_before(key.acted, app.settings.enable_after, now, "REQ_TOO_EARLY_ERR", what)?;
            key.life = active.into();
            key.deleted = None;
            key.deleted_by = None;
            // To delete it again takes two again.
            key.set_by = None;
            key.set_at = None;
            key.updated = Some(now);
            keys::update(tx, &key)?;
            act.note_key(&key);
            let event = event(tx, &key, EventKind::Restore, now)?;
            let value = view::key(app, tx, &key, now)?;
            Ok(Changed { value, event, forget: Vec::new() })
        })
        .await?;
    Ok(answer(StatusCode::CREATED, kp::KEY_TYPE, &kp::Envelope::of(kp::KEY_TYPE, vec![key])))
}
