//! `POST /keys`: create and import.

use crate::app::App;
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::KpError;
use crate::keys::act::{About, Act, Changed, Doing, Instance, answer, parse};
use crate::keys::import::{self, Arriving};
use crate::keys::policies::{self, Intent};
use crate::keys::{aliases, reading, rings, view};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use claviger_crypto::SecretBytes;
use claviger_custody::CustodyError;
use claviger_domain::access::KeyOperation;
use claviger_domain::id::{InstanceId, KeyId, KeyVersionId, UnixMs};
use claviger_domain::key::{RootKey, RootVersion};
use claviger_domain::life::Life;
use claviger_store::Tx;
use claviger_store::keys::{self, Key};
use claviger_store::repeats::Repeat;
use claviger_wire::kp::{self, Envelope, NewKey};
use std::sync::Arc;

/// Base64 as clients send it: with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Largest payload of a standard key, decoded.
const PAYLOAD_MAX: usize = 7500;
const TAGS_MAX: usize = 30;

/// Secret bytes out of a field's base64.
pub(crate) fn secret(field: &str, text: &str) -> Result<SecretBytes, KpError> {
    base64(field, text).map(SecretBytes::new)
}

/// Bytes out of a field's base64.
pub(crate) fn base64(field: &str, text: &str) -> Result<Vec<u8>, KpError> {
    BASE64.decode(text).map_err(|_| {
        KpError::field(field, format!("The field '{field}' must be: a base64 encoded string"))
    })
}

/// A new key, checked.
struct Wanted {
    new: NewKey,
    material: Option<SecretBytes>,
    expires: Option<UnixMs>,
}

pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, KpError> {
    make(app, caller, instance, headers, body, Policies::OfInstance).await
}

/// `POST /keys_with_policy_overrides`: the key has the policies of the body and no others.
pub(crate) async fn with_policies(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, KpError> {
    make(app, caller, instance, headers, body, Policies::OfBody).await
}

/// Whose policies a new key has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policies {
    OfInstance,
    OfBody,
}

async fn make(
    app: Arc<App>,
    caller: Caller,
    instance: InstanceId,
    headers: HeaderMap,
    body: Body,
    own: Policies,
) -> Result<Response, KpError> {
    let action = match own {
        Policies::OfInstance => "kms.secrets.create",
        Policies::OfBody => "kms.secrets-with-policy-overrides.create",
    };
    let failed = "Key could not be created";
    let ring = rings::of_new_key(&caller).to_owned();
    let act = Act { caller, instance, action, failed, about: About::Instance };
    let minimal = prefers(&headers) == Some(Prefer::Minimal);
    let read = body.text().ok_or_else(|| KpError::body("The body is missing")).and_then(parse);
    let intent = read.as_ref().ok().and_then(Intent::of);
    let wanted = read.and_then(|body: Envelope<NewKey>| check(body, app.clock.now()));
    let wanted = match wanted {
        Err(e) => Err(e),
        Ok((wanted, arriving)) => {
            let ring = ring.clone();
            let allowed =
                move |tx: &Tx<'_>, act: &Doing| act.on_ring(tx, KeyOperation::Import, &ring);
            let material = import::arrived(&app, &act, arriving, allowed).await;
            material.map(|material| Wanted { material, ..wanted })
        }
    };
    let permitted = move |tx: &Tx<'_>, act: &Doing, ring: &str| {
        // Imported or not is known only from a body that can be read.
        let operation = match intent {
            Some(Intent { import: true, .. }) => KeyOperation::Import,
            _ => KeyOperation::Create,
        };
        act.on_ring(tx, operation, ring)?;
        match own {
            Policies::OfInstance => Ok(()),
            Policies::OfBody => act.on_ring(tx, KeyOperation::CreateWithPolicies, ring),
        }
    };
    let shown = move |app: &App, tx: &Tx<'_>, key: &Key, now: UnixMs| {
        let mut out = view::key(app, tx, key, now)?;
        if key.extractable && !minimal {
            out.payload = reading::payload(app, tx, key)?;
        }
        Ok::<_, KpError>(out)
    };
    let again = {
        let ring = ring.clone();
        move |app: &App, tx: &Tx<'_>, act: &Doing, before: Repeat, now: UnixMs| {
            permitted(tx, act, &ring)?;
            shown(app, tx, &act.changed(tx, before)?.ok_or_else(KpError::no_key)?, now)
        }
    };
    let key = act
        .change_once(&app, again, move |app, tx, act, now| {
            permitted(tx, act, &ring)?;
            if let Some(intent) = intent {
                policies::may_make(tx, act.instance, intent)?;
            }
            let wanted = wanted.as_ref().map_err(Clone::clone)?;
            if keys::count(tx, act.instance)? >= app.settings.keys_max {
                let what =
                    format!("The instance has {} keys, as many as it may", app.settings.keys_max);
                return Err(KpError::conflict("KEY_QUOTA_ERR", what));
            }
            rings::there(tx, act.instance, &ring)?;
            let key = add(app, tx, act, wanted, ring.clone(), now)?;
            match own {
                Policies::OfInstance => policies::inherit(tx, &key, now)?,
                Policies::OfBody => policies::own(tx, &key, &wanted.new, now)?,
            }
            act.note_key(&key);
            Ok(Changed::just(shown(app, tx, &key, now)?))
        })
        .await?;
    Ok(answer(StatusCode::CREATED, kp::KEY_TYPE, &Envelope::of(kp::KEY_TYPE, vec![key])))
}

fn add(
    app: &App,
    tx: &Tx<'_>,
    act: &Act,
    wanted: &Wanted,
    ring: String,
    now: UnixMs,
) -> Result<Key, KpError> {
    let root = RootKey { instance: act.instance, key: KeyId::random() };
    let version = KeyVersionId::random();
    let new = &wanted.new;
    let key = Key {
        root,
        name: new.name.clone(),
        description: new.description.clone(),
        tags: new.tags.clone(),
        life: Life::begin(),
        extractable: new.extractable,
        imported: wanted.material.is_some(),
        ring,
        created: now,
        created_by: act.caller.iam_id.clone(),
        updated: None,
        rotated: None,
        expires: wanted.expires,
        deleted: None,
        deleted_by: None,
        acted: None,
        current: (!new.extractable).then_some(version),
        set_by: None,
        set_at: None,
        synced: None,
    };
    if new.extractable {
        let made;
        let payload = match &wanted.material {
            Some(given) => given,
            None => {
                made = SecretBytes::random(32);
                &made
            }
        };
        let (instance, id) = (root.instance.to_string(), root.key.to_string());
        let place = ["keys", "payload", &instance, &id];
        let sealed = app.custodian.seal_column(&place, payload.expose());
        keys::add(tx, &key, Some(&sealed))?;
    } else {
        let at = RootVersion { root, version };
        let sealed = match &wanted.material {
            Some(material) => app.custodian.import(&at, material),
            None => app.custodian.generate(&at),
        };
        keys::add(tx, &key, None)?;
        keys::add_version(tx, &root, version, &sealed.map_err(custody)?.0, now)?;
    }
    for alias in &new.aliases {
        aliases::add(tx, act, &root, alias, now)?;
    }
    Ok(key)
}

/// A custodian's error as an answer.
pub(crate) fn custody(e: CustodyError) -> KpError {
    match e {
        CustodyError::Open(_) => {
            let what = "The ciphertext is not valid, or was wrapped by another key or with other additional authentication data";
            KpError::new(StatusCode::UNPROCESSABLE_ENTITY, "UNPROCESSABLE_CIPHERTEXT_ERR", what)
        }
        CustodyError::MaterialLength(len) => KpError::field(
            "payload",
            format!("The field 'payload' must be: 16, 24 or 32 bytes for a root key, not {len}"),
        ),
        CustodyError::Material(_) => {
            tracing::error!(error = %e, "custodian");
            let what =
                "The key's material does not open; the server's operator must look at its log";
            KpError::new(StatusCode::INTERNAL_SERVER_ERROR, "INCOMPLETE_METADATA_ERR", what)
        }
        CustodyError::Unavailable(_) => {
            tracing::error!(error = %e, "custodian");
            let what = "The custodian of root keys gives no answer. Try again";
            let error = KpError::new(StatusCode::SERVICE_UNAVAILABLE, "CUSTODIAN_ERR", what);
            KpError { retry_after: Some(2), ..error }
        }
    }
}

fn check(mut body: Envelope<NewKey>, now: UnixMs) -> Result<(Wanted, Option<Arriving>), KpError> {
    if body.metadata.collection_total != body.resources.len() as u64 {
        let what = format!(
            "collectionTotal is {}, but there are {} resources",
            body.metadata.collection_total,
            body.resources.len()
        );
        let code = "COLLECTION_TOTAL_MISMATCH_ERR";
        return Err(KpError::new(StatusCode::BAD_REQUEST, code, what));
    }
    let (Some(mut new), true) = (body.resources.pop(), body.resources.is_empty()) else {
        return Err(KpError::body("The body must have exactly one key in 'resources'"));
    };
    let length = |field: &str, text: &str, least: usize, most: usize| {
        if text.chars().any(char::is_control) {
            let what = format!("The field '{field}' must be: without control characters");
            return Err(KpError::field(field, what));
        }
        let len = text.chars().count();
        if (least..=most).contains(&len) {
            return Ok(());
        }
        let what = format!("The field '{field}' must be: {least} to {most} characters, not {len}");
        Err(KpError::field(field, what))
    };
    length("name", &new.name, 2, 90)?;
    if new.description.as_deref() == Some("") {
        new.description = None;
    }
    if let Some(description) = &new.description {
        length("description", description, 2, 240)?;
    }
    if new.aliases.len() > aliases::PER_KEY_MAX {
        let what = format!("The field 'aliases' must be: at most {}", aliases::PER_KEY_MAX);
        return Err(KpError::field("aliases", what));
    }
    new.aliases.iter().try_for_each(|alias| aliases::check("aliases", alias))?;
    if new.tags.len() > TAGS_MAX {
        return Err(KpError::field(
            "tags",
            format!("The field 'tags' must be: at most {TAGS_MAX}"),
        ));
    }
    for tag in &new.tags {
        length("tags", tag, 1, 30)?;
        if tag.contains(['<', '>', ',', ':', '&', '|']) {
            let what = "The field 'tags' must be: without < > , : & |";
            return Err(KpError::field("tags", what));
        }
    }
    let expires = match new.expiration_date.as_deref() {
        None | Some("") => None,
        Some(text) => {
            let at = view::parse_date(text).ok_or_else(|| {
                let what = "The field 'expirationDate' must be: an RFC 3339 date and time";
                KpError::field("expirationDate", what)
            })?;
            if at <= now {
                let what = "The field 'expirationDate' must be: in the future";
                return Err(KpError::field("expirationDate", what));
            }
            Some(at)
        }
    };
    let arriving = Arriving::read(
        new.payload.take(),
        new.encrypted_nonce.as_deref(),
        new.iv.as_deref(),
        new.encryption_algorithm.as_deref(),
    )?;
    match &arriving {
        Some(Arriving::Sealed { .. }) if new.extractable => {
            let what = "The field 'encryptedNonce' must be: absent for a standard key; only root keys are imported with a token";
            return Err(KpError::field("encryptedNonce", what));
        }
        Some(Arriving::Plain(plain))
            if new.extractable && !(1..=PAYLOAD_MAX).contains(&plain.len()) =>
        {
            let what = format!("The field 'payload' must be: 1 to {PAYLOAD_MAX} bytes");
            return Err(KpError::field("payload", what));
        }
        _ => {}
    }
    Ok((Wanted { new, material: None, expires }, arriving))
}

/// How much of a changed key the caller wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prefer {
    Minimal,
    Representation,
}

pub(crate) fn prefers(headers: &HeaderMap) -> Option<Prefer> {
    let text = headers.get("prefer")?.to_str().ok()?.to_ascii_lowercase();
    if text.contains("return=minimal") {
        Some(Prefer::Minimal)
    } else if text.contains("return=representation") {
        Some(Prefer::Representation)
    } else {
        None
    }
}
