//! Wrap, unwrap, rewrap, and the two ways in which clients ask for actions.

use crate::app::App;
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::KpError;
use crate::keys::act::{About, Act, Doing, Instance, answer, parse, root_only, state_allows};
use crate::keys::create::{Prefer, custody, prefers, secret};
use crate::keys::query::Query;
use crate::keys::{changes, dual, sync};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claviger_crypto::SecretBytes;
use claviger_crypto::wrapped::{PLAINTEXT_MAX, Wrapped};
use claviger_custody::SealedMaterial;
use claviger_domain::access::KeyOperation;
use claviger_domain::id::{KeyVersionId, UnixMs};
use claviger_domain::key::{KeyAction, RootVersion};
use claviger_store::Tx;
use claviger_store::keys::{self, Key};
use claviger_wire::kp::{self, ActionAnswer, KeyVersion, UnwrapRequest, WrapRequest};
use std::sync::Arc;
use zeroize::Zeroize;

/// Longest piece of additional authenticated data, in characters.
const AAD_LEN_MAX: usize = 255;
/// Pieces of additional authenticated data.
const AAD_MAX: usize = 126;

/// `POST /keys/{id}/actions/{action}`. Whoever rotates is answered nothing here, also when it
/// prefers the key's representation: the clients that say so count on 204.
pub(crate) async fn act(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path((id, action)): Path<(String, String)>,
    body: Body,
) -> Result<Response, KpError> {
    dispatch(app, caller, instance, id, &action, None, body).await
}

/// `POST /keys/{id}?action={action}`: deprecated, and all that some clients know.
pub(crate) async fn old_form(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, KpError> {
    let Some(action) = query.get("action") else {
        let what = "The query_param 'action' must be: given, for instance action=wrap";
        return Err(KpError::query("action", what));
    };
    if action == "restore" {
        // Some send the whole key along, with its material. It is here already.
        return changes::restore_key(app, caller, instance, id).await;
    }
    // It came after this form was given up.
    let action = if action == "sync" { "" } else { action };
    dispatch(app, caller, instance, id, action, prefers(&headers), body).await
}

async fn dispatch(
    app: Arc<App>,
    caller: Caller,
    instance: claviger_domain::id::InstanceId,
    id: String,
    action: &str,
    prefer: Option<Prefer>,
    body: Body,
) -> Result<Response, KpError> {
    let act = |action, failed| Act { caller, instance, action, failed, about: About::Key(id) };
    match action {
        "wrap" => wrap(app, act("kms.secrets.wrap", "Key could not be wrapped"), body).await,
        "unwrap" => {
            unwrap(app, act("kms.secrets.unwrap", "Key could not be unwrapped"), body).await
        }
        "rewrap" => {
            rewrap(app, act("kms.secrets.rewrap", "Key could not be rewrapped"), body).await
        }
        "rotate" => {
            let act = act("kms.secrets.rotate", "Key could not be rotated");
            changes::rotate(app, act, prefer, body).await
        }
        "disable" => {
            changes::disable(app, act("kms.secrets.disable", "Key could not be disabled")).await
        }
        "setKeyForDeletion" => {
            let failed = "Key could not be set for deletion";
            dual::set(app, act("kms.secrets.setkeyfordeletion", failed)).await
        }
        "unsetKeyForDeletion" => {
            let failed = "Key could not be unset for deletion";
            dual::unset(app, act("kms.secrets.unsetkeyfordeletion", failed)).await
        }
        "sync" => {
            let failed = "Could not initiate sync requests to associated resources";
            sync::sync(app, act("kms.secrets.sync", failed)).await
        }
        "enable" => {
            changes::enable(app, act("kms.secrets.enable", "Key could not be enabled")).await
        }
        _ => {
            let act = act("kms.secrets.default", "Key action could not be done");
            act.look(&app, |_, tx, act, _| {
                act.key(tx, KeyOperation::ReadMetadata)?;
                let what = "The query_param 'action' must be: out of wrap, unwrap, rewrap, rotate, disable, enable, setKeyForDeletion, unsetKeyForDeletion; or sync, by the path /actions/sync alone";
                Err::<Response, _>(KpError::query("action", what))
            })
            .await
        }
    }
}

/// The additional authenticated data as it is bound: null counts as an empty text.
fn aad(given: Option<Vec<Option<String>>>) -> Result<Vec<String>, KpError> {
    let given: Vec<String> =
        given.unwrap_or_default().into_iter().map(Option::unwrap_or_default).collect();
    if given.len() > AAD_MAX || given.iter().any(|a| a.chars().count() > AAD_LEN_MAX) {
        let what = format!(
            "The field 'aad' must be: at most {AAD_MAX} texts of at most {AAD_LEN_MAX} characters"
        );
        return Err(KpError::field("aad", what));
    }
    Ok(given)
}

async fn wrap(app: Arc<App>, act: Act, body: Body) -> Result<Response, KpError> {
    let wanted = wrap_request(&body);
    drop(body);
    let answered = act
        .look(&app, move |app, tx, act, now| {
            let key = act.key(tx, KeyOperation::Wrap)?;
            root_only(&key)?;
            let (plaintext, made, aad) = wanted?;
            own(act, &aad)?;
            state_allows(&key, KeyAction::Wrap, now)?;
            let version = current(&key)?;
            let ciphertext = seal(app, tx, &version, &aad, &plaintext)?;
            Ok(ActionAnswer {
                plaintext: made.then(|| STANDARD.encode(plaintext.expose())),
                ciphertext: Some(ciphertext),
                key_version: Some(named(version.version)),
                rewrapped_key_version: None,
            })
        })
        .await?;
    Ok(secret_answer(answered))
}

/// Plaintext, whether it was made here, and additional authenticated data.
fn wrap_request(body: &Body) -> Result<(SecretBytes, bool, Vec<String>), KpError> {
    let mut request: WrapRequest = body.text().map(parse).transpose()?.unwrap_or_default();
    let aad = aad(request.aad.take())?;
    match request.plaintext.take() {
        None => Ok((SecretBytes::random(32), true, aad)),
        Some(mut text) => {
            let plaintext = secret("plaintext", &text);
            text.zeroize();
            let plaintext = plaintext?;
            if plaintext.len() > PLAINTEXT_MAX {
                let what = format!("The field 'plaintext' must be: at most {PLAINTEXT_MAX} bytes");
                return Err(KpError::field("plaintext", what));
            }
            Ok((plaintext, false, aad))
        }
    }
}

async fn unwrap(app: Arc<App>, act: Act, body: Body) -> Result<Response, KpError> {
    let wanted = unwrap_request(&body);
    let answered = act
        .look(&app, move |app, tx, act, now| {
            let key = act.key(tx, KeyOperation::Unwrap)?;
            let (opened, old, aad) = open(app, tx, act, &key, KeyAction::Unwrap, wanted, now)?;
            let mut answered = ActionAnswer {
                plaintext: Some(STANDARD.encode(opened.expose())),
                key_version: Some(named(old)),
                ..ActionAnswer::default()
            };
            let version = current(&key)?;
            if version.version != old {
                answered.ciphertext = Some(seal(app, tx, &version, &aad, &opened)?);
                answered.rewrapped_key_version = Some(named(version.version));
            }
            note(act, old, answered.ciphertext.is_some().then_some(version.version));
            Ok(answered)
        })
        .await?;
    Ok(secret_answer(answered))
}

async fn rewrap(app: Arc<App>, act: Act, body: Body) -> Result<Response, KpError> {
    let wanted = unwrap_request(&body);
    let answered = act
        .look(&app, move |app, tx, act, now| {
            let key = act.key(tx, KeyOperation::Rewrap)?;
            let (opened, old, aad) = open(app, tx, act, &key, KeyAction::Rewrap, wanted, now)?;
            let version = current(&key)?;
            note(act, old, Some(version.version));
            Ok(ActionAnswer {
                plaintext: None,
                ciphertext: Some(seal(app, tx, &version, &aad, &opened)?),
                key_version: Some(named(old)),
                rewrapped_key_version: Some(named(version.version)),
            })
        })
        .await?;
    Ok(secret_answer(answered))
}

/// Notes which version had wrapped what was opened, and which wraps it now.
fn note(act: &Doing, old: KeyVersionId, new: Option<KeyVersionId>) {
    act.note(|data| {
        data.rewrapped = new;
        if let Some(key) = &mut data.key {
            key.version = Some(old);
        }
    });
}

type Ciphertext = (String, Vec<String>);

fn unwrap_request(body: &Body) -> Result<Ciphertext, KpError> {
    let text = body.text().ok_or_else(|| {
        let what = "The body must have the field 'ciphertext'";
        KpError::new(StatusCode::BAD_REQUEST, "NO_BODY_ERR", what)
    })?;
    let request: UnwrapRequest = parse(text)?;
    if request.ciphertext.is_empty() {
        let what = "The field 'ciphertext' must be: what wrap answered";
        return Err(KpError::field("ciphertext", what));
    }
    Ok((request.ciphertext, aad(request.aad)?))
}

/// A cluster wraps and unwraps what is bound to itself alone: two clusters may share a root key,
/// and the wrapped KEK of each stands in every record of its etcd.
fn own(act: &Act, aad: &[String]) -> Result<(), KpError> {
    match (&act.caller.cluster, aad) {
        (None, _) => Ok(()),
        (Some(cluster), [label, bound, ..])
            if label.starts_with("claviger ") && bound == cluster.as_str() =>
        {
            Ok(())
        }
        (Some(_), _) => Err(KpError::unauthorized()),
    }
}

fn open(
    app: &App,
    tx: &Tx<'_>,
    act: &Act,
    key: &Key,
    action: KeyAction,
    wanted: Result<Ciphertext, KpError>,
    now: UnixMs,
) -> Result<(SecretBytes, KeyVersionId, Vec<String>), KpError> {
    root_only(key)?;
    let (ciphertext, aad) = wanted?;
    own(act, &aad)?;
    state_allows(key, action, now)?;
    let parsed = Wrapped::parse(&ciphertext).map_err(|e| custody(e.into()))?;
    let version = RootVersion { root: key.root, version: parsed.version() };
    // A version that is not of this key: as if the ciphertext did not open.
    let material = keys::material(tx, &key.root, version.version)?
        .ok_or_else(|| custody(claviger_crypto::OpenError.into()))?;
    let opened = app.custodian.unwrap(&version, &SealedMaterial(material), &aad, &ciphertext);
    Ok((opened.map_err(custody)?, version.version, aad))
}

fn seal(
    app: &App,
    tx: &Tx<'_>,
    version: &RootVersion,
    aad: &[String],
    plaintext: &SecretBytes,
) -> Result<String, KpError> {
    let material = keys::material(tx, &version.root, version.version)?.ok_or_else(damaged)?;
    let sealed = app.custodian.wrap(version, &SealedMaterial(material), aad, plaintext.expose());
    sealed.map_err(custody)
}

fn current(key: &Key) -> Result<RootVersion, KpError> {
    let version = key.current.ok_or_else(damaged)?;
    Ok(RootVersion { root: key.root, version })
}

fn damaged() -> KpError {
    let what = "The key has no current version; the server's operator must look at its database";
    KpError::new(StatusCode::INTERNAL_SERVER_ERROR, "INCOMPLETE_METADATA_ERR", what)
}

fn named(version: KeyVersionId) -> KeyVersion {
    KeyVersion { id: version.0, creation_date: None }
}

fn secret_answer(mut answered: ActionAnswer) -> Response {
    let response = answer(StatusCode::OK, kp::ACTION_TYPE, &answered);
    answered.plaintext.zeroize();
    response
}
