//! Policies of keys and of instances, and what they do to new keys.

pub(crate) mod instance;
pub(crate) mod key;

use crate::http::body::Body;
use crate::http::error::KpError;
use crate::http::objects;
use axum::http::StatusCode;
use claviger_domain::id::{InstanceId, UnixMs};
use claviger_store::keys::Key;
use claviger_store::policies::{self as store, InstancePolicyKind, KeyPolicy, KeyPolicyKind};
use claviger_store::{StoreError, Tx};
use claviger_wire::kp::policies::{KeyCreateImportAccess, RotationAttributes};
use claviger_wire::kp::{Envelope, NewKey};
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// Longest name of an unknown field that an error repeats.
const NAME_MAX: usize = 64;

/// Reads an envelope in which every field must be known.
fn strict<T: DeserializeOwned>(body: &Body) -> Result<Envelope<T>, KpError> {
    let text = body.text().ok_or_else(|| KpError::body("The body is missing"))?;
    let envelope: Envelope<T> = objects::read(text).map_err(told)?;
    let (said, found) = (envelope.metadata.collection_total, envelope.resources.len());
    if said != found as u64 {
        let what = format!("collectionTotal is {said}, but there are {found} resources");
        let code = "COLLECTION_TOTAL_MISMATCH_ERR";
        return Err(KpError::new(StatusCode::BAD_REQUEST, code, what));
    }
    Ok(envelope)
}

/// What is wrong with a body; of an unknown field its name, as Key Protect says it.
fn told(e: serde_json::Error) -> KpError {
    let text = e.to_string();
    match text.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
        Some((name, _)) => unknown_field(name),
        None if e.is_data() => {
            KpError::body("The body has a missing field or a value of a wrong type")
        }
        None => KpError::body(format!(
            "The body is not JSON, or ends too early (line {}, column {})",
            e.line(),
            e.column()
        )),
    }
}

fn unknown_field(name: &str) -> KpError {
    let name: String = name.chars().take(NAME_MAX).collect();
    KpError::body(format!("json: unknown field {name:?}"))
}

/// Refuses the same policy twice, several with `?policy=`, none at all, and another one than
/// `?policy=` names. `kinds` are those of the body.
fn as_asked<K: PartialEq + Copy>(kinds: &[K], asked: Option<K>) -> Result<(), KpError> {
    let number = |what: &str| {
        Err(KpError::new(StatusCode::BAD_REQUEST, "NUM_COLLECTION_RESOURCE_ERR", what))
    };
    let Some(first) = kinds.first() else {
        return number("The body must have at least one policy in 'resources'");
    };
    if let Some(asked) = asked {
        if asked != *first {
            let what = "The query_param 'policy' names another policy than the body has";
            let code = "BODY_QUERY_PARAM_MISMATCH_ERR";
            return Err(KpError::new(StatusCode::BAD_REQUEST, code, what));
        }
        if kinds.len() > 1 {
            return number("With the query_param 'policy' the body must have exactly one policy");
        }
    }
    let twice = kinds.iter().enumerate().any(|(at, kind)| kinds[..at].contains(kind));
    if twice {
        return number("The body must have each policy at most once");
    }
    Ok(())
}

/// Months of a rotation's interval.
fn months(given: i64) -> Result<u8, KpError> {
    u8::try_from(given).ok().filter(|months| (1..=12).contains(months)).ok_or_else(|| {
        let what = "The field 'interval_month' must be: greater than or equal to 1, and at most 12";
        KpError::field("interval_month", what)
    })
}

/// Refuses a rotation policy on what does not rotate by itself.
fn rotates(extractable: bool, imported: bool) -> Result<(), KpError> {
    if extractable {
        let what = "A rotation policy needs a root key; this is a standard key";
        return Err(KpError::new(StatusCode::BAD_REQUEST, "KEY_ROOT_REQ_ERR", what));
    }
    if imported {
        let what = "An imported key is rotated with new key material, which no schedule has; rotate it by hand";
        return Err(KpError::new(StatusCode::BAD_REQUEST, "KEY_PAYLOAD_REQ_ERR", what));
    }
    Ok(())
}

/// What kind of key a body asks for, before anything else of it is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Intent {
    extractable: bool,
    pub(crate) import: bool,
    /// By an import token.
    token: bool,
}

impl Intent {
    /// None if the body has not one key.
    pub(crate) fn of(body: &Envelope<NewKey>) -> Option<Intent> {
        let [new] = body.resources.as_slice() else { return None };
        // As the fields are read when the material is: an empty one is none.
        let given = |field: &Option<String>| field.as_ref().is_some_and(|text| !text.is_empty());
        Some(Intent {
            extractable: new.extractable,
            import: given(&new.payload),
            token: given(&new.encrypted_nonce) || given(&new.iv),
        })
    }
}

/// The instance's policy `keyCreateImportAccess`, if it is on.
fn key_create_import_access(
    tx: &Tx<'_>,
    instance: InstanceId,
) -> Result<Option<KeyCreateImportAccess>, KpError> {
    let kind = InstancePolicyKind::KeyCreateImportAccess;
    let Some(policy) = store::of_instance_kind(tx, instance, kind)?.filter(|p| p.enabled) else {
        return Ok(None);
    };
    let said = serde_json::from_str(&policy.attributes)
        .map_err(|_| StoreError::Damaged("attributes of keyCreateImportAccess".to_owned()))?;
    Ok(Some(said))
}

/// Refuses material in the clear where the instance's policy asks for an import token: for a new
/// key, and for a new version of an imported one.
pub(crate) fn may_come_plain(tx: &Tx<'_>, instance: InstanceId) -> Result<(), KpError> {
    if key_create_import_access(tx, instance)?.is_some_and(|may| may.enforce_token) {
        let what =
            "The instance's policy keyCreateImportAccess allows import with an import token only";
        return Err(KpError::conflict("KEY_CREATE_IMPORT_ACCESS_ERR", what));
    }
    Ok(())
}

/// Refuses a new key that the instance's policy `keyCreateImportAccess` forbids.
pub(crate) fn may_make(tx: &Tx<'_>, instance: InstanceId, new: Intent) -> Result<(), KpError> {
    let Some(may) = key_create_import_access(tx, instance)? else { return Ok(()) };
    let (allowed, what) = match (new.import, new.extractable) {
        (false, false) => (may.create_root_key, "create root keys"),
        (false, true) => (may.create_standard_key, "create standard keys"),
        (true, false) => (may.import_root_key, "import root keys"),
        (true, true) => (may.import_standard_key, "import standard keys"),
    };
    if !allowed {
        let what = format!("The instance's policy keyCreateImportAccess does not allow to {what}");
        return Err(KpError::conflict("KEY_CREATE_IMPORT_ACCESS_ERR", what));
    }
    if new.import && !new.token { may_come_plain(tx, instance) } else { Ok(()) }
}

/// Gives a new key the policies that its instance has for new keys.
pub(crate) fn inherit(tx: &Tx<'_>, key: &Key, now: UnixMs) -> Result<(), KpError> {
    for policy in store::of_instance(tx, key.root.instance)?.into_iter().filter(|p| p.enabled) {
        match policy.kind {
            InstancePolicyKind::DualAuthDelete => {
                store::put(tx, &fresh(key, KeyPolicyKind::DualAuthDelete, true, None, now))?;
            }
            InstancePolicyKind::Rotation if !key.extractable && !key.imported => {
                let damaged = || StoreError::Damaged("attributes of rotation".to_owned());
                let said: RotationAttributes =
                    serde_json::from_str(&policy.attributes).map_err(|_| damaged())?;
                let interval = months(said.interval_month.ok_or_else(damaged)?)?;
                let kind = KeyPolicyKind::Rotation;
                store::put(tx, &fresh(key, kind, true, Some(interval), now))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Gives a new key the policies that came with it.
pub(crate) fn own(tx: &Tx<'_>, key: &Key, new: &NewKey, now: UnixMs) -> Result<(), KpError> {
    if let Some(rotation) = &new.rotation {
        rotates(key.extractable, key.imported)?;
        let interval = months(rotation.interval_month.unwrap_or(0))?;
        let enabled = rotation.enabled.unwrap_or(true);
        store::put(tx, &fresh(key, KeyPolicyKind::Rotation, enabled, Some(interval), now))?;
    }
    if let Some(dual) = &new.dual_auth_delete {
        let enabled = dual.enabled.ok_or_else(|| {
            KpError::field("dualAuthDelete", "The field 'dualAuthDelete.enabled' must be: given")
        })?;
        store::put(tx, &fresh(key, KeyPolicyKind::DualAuthDelete, enabled, None, now))?;
    }
    Ok(())
}

/// A policy of a key that is just being made.
fn fresh(
    key: &Key,
    kind: KeyPolicyKind,
    enabled: bool,
    interval_month: Option<u8>,
    now: UnixMs,
) -> KeyPolicy {
    KeyPolicy {
        root: key.root,
        kind,
        id: Uuid::new_v4(),
        enabled,
        interval_month,
        created: now,
        created_by: key.created_by.clone(),
        updated: now,
        updated_by: key.created_by.clone(),
    }
}
