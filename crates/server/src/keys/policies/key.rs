//! `GET` and `PUT /keys/{id}/policies`.

use super::{as_asked, months, rotates, strict};
use crate::app::App;
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::KpError;
use crate::keys::act::{About, Act, Changed, Doing, Instance, answer, state_allows};
use crate::keys::query::Query;
use crate::keys::view;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use claviger_domain::access::KeyOperation;
use claviger_domain::audit::{Change, Policy};
use claviger_domain::id::{InstanceId, UnixMs};
use claviger_domain::key::KeyAction;
use claviger_store::keys::{self, Key};
use claviger_store::policies::{self as store, KeyPolicy, KeyPolicyKind};
use claviger_store::repeats::Repeat;
use claviger_store::{StoreError, Tx};
use claviger_wire::kp::policies::{self as wire, KeyPolicyInput, POLICY_TYPE};
use claviger_wire::kp::{DualAuthDelete, Envelope, Rotation};
use std::sync::Arc;
use uuid::Uuid;

/// A policy to write, checked as far as the body alone tells.
struct Wanted {
    kind: KeyPolicyKind,
    enabled: bool,
    interval_month: Option<u8>,
}

fn asked(query: &Query) -> Result<Option<KeyPolicyKind>, KpError> {
    let Some(name) = query.get("policy") else { return Ok(None) };
    let known = KeyPolicyKind::ALL.into_iter().find(|kind| kind.as_str() == name);
    known.map(Some).ok_or_else(|| {
        let what = "The query_param 'policy' must be: rotation or dualAuthDelete";
        KpError::query("policy", what)
    })
}

fn wanted(body: &Body, query: &Query) -> Result<Vec<Wanted>, KpError> {
    let asked = asked(query)?;
    let body: Envelope<KeyPolicyInput> = strict(body)?;
    let wanted = body.resources.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    let kinds: Vec<_> = wanted.iter().map(|w| w.kind).collect();
    as_asked(&kinds, asked)?;
    Ok(wanted)
}

fn one(input: &KeyPolicyInput) -> Result<Wanted, KpError> {
    match (&input.rotation, &input.dual_auth_delete) {
        (Some(rotation), None) => Ok(Wanted {
            kind: KeyPolicyKind::Rotation,
            enabled: rotation.enabled.unwrap_or(true),
            interval_month: rotation.interval_month.map(months).transpose()?,
        }),
        (None, Some(dual)) => Ok(Wanted {
            kind: KeyPolicyKind::DualAuthDelete,
            enabled: dual.enabled.ok_or_else(|| {
                KpError::field("enabled", "The field 'dualAuthDelete.enabled' must be: given")
            })?,
            interval_month: None,
        }),
        _ => Err(KpError::body("Each resource must have one of 'rotation' and 'dualAuthDelete'")),
    }
}

/// The policy as it is to be, out of what was asked for and what there was.
fn merged(
    tx: &Tx<'_>,
    key: &Key,
    wanted: &Wanted,
    by: &str,
    now: UnixMs,
) -> Result<KeyPolicy, KpError> {
    let before = store::get(tx, &key.root, wanted.kind)?;
    let interval_month = match wanted.kind {
        KeyPolicyKind::Rotation => {
            rotates(key.extractable, key.imported)?;
            let before = before.as_ref().and_then(|p| p.interval_month);
            let interval = wanted.interval_month.or(before).ok_or_else(|| {
                let what = "The field 'interval_month' must be: given, since the key has none yet";
                KpError::field("interval_month", what)
            })?;
            Some(interval)
        }
        KeyPolicyKind::DualAuthDelete => {
            if !wanted.enabled && before.as_ref().is_some_and(|p| p.enabled) {
                let what =
                    "Once two are needed to delete a key, that cannot be switched off for it";
                return Err(KpError::conflict("DUAL_AUTH_DELETE_ERR", what));
            }
            None
        }
    };
    let (id, created, created_by) = match before {
        Some(before) => (before.id, before.created, before.created_by),
        None => (Uuid::new_v4(), now, by.to_owned()),
    };
    Ok(KeyPolicy {
        root: key.root,
        kind: wanted.kind,
        id,
        enabled: wanted.enabled,
        interval_month,
        created,
        created_by,
        updated: now,
        updated_by: by.to_owned(),
    })
}

fn seen(app: &App, p: &KeyPolicy) -> wire::KeyPolicy {
    let rotation =
        p.interval_month.map(|interval_month| Rotation { enabled: p.enabled, interval_month });
    let dual = DualAuthDelete { enabled: p.enabled, ..DualAuthDelete::default() };
    wire::KeyPolicy {
        media_type: POLICY_TYPE.to_owned(),
        id: p.id,
        crn: app.account.key_crn(&p.root).replacen(
            &format!(":key:{}", p.root.key),
            &format!(":policy:{}", p.id),
            1,
        ),
        rotation,
        dual_auth_delete: (p.kind == KeyPolicyKind::DualAuthDelete).then_some(dual),
        creation_date: view::second(p.created),
        created_by: p.created_by.clone(),
        last_update_date: view::second(p.updated),
        updated_by: p.updated_by.clone(),
    }
}

/// A policy as it goes on record.
fn noted(p: &KeyPolicy) -> Policy {
    let (enabled, interval_month) = (p.enabled, p.interval_month);
    match p.kind {
        KeyPolicyKind::Rotation => Policy::Rotation { enabled, interval_month },
        KeyPolicyKind::DualAuthDelete => Policy::DualAuthDelete { enabled },
    }
}

fn answered(policies: Vec<wire::KeyPolicy>) -> Response {
    answer(StatusCode::OK, POLICY_TYPE, &Envelope::of(POLICY_TYPE, policies))
}

fn act(caller: Caller, instance: InstanceId, key: String) -> Act {
    let failed = "Key policies could not be set";
    Act { caller, instance, action: "kms.policies.write", failed, about: About::Key(key) }
}

/// Writes the policies of the body; those that it does not name stay.
pub(crate) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
    query: Query,
    body: Body,
) -> Result<Response, KpError> {
    let wanted = wanted(&body, &query);
    let kinds: Vec<_> = wanted.iter().flatten().map(|wanted| wanted.kind).collect();
    let again = move |app: &App, tx: &Tx<'_>, act: &Doing, before: Repeat, _: UnixMs| {
        let key = act.key_of(tx, KeyOperation::WritePolicies, before)?;
        let mut written = Vec::new();
        for kind in &kinds {
            written.extend(store::get(tx, &key.root, *kind)?.map(|policy| seen(app, &policy)));
        }
        Ok(written)
    };
    let written = act(caller, instance, id)
        .change_once(&app, again, move |app, tx, act, now| {
            let mut key = act.key(tx, KeyOperation::WritePolicies)?;
            let wanted = wanted.as_ref().map_err(Clone::clone)?;
            state_allows(&key, KeyAction::SetPolicy, now)?;
            let (mut written, mut from, mut to) = (Vec::new(), Vec::new(), Vec::new());
            for wanted in wanted {
                from.extend(store::get(tx, &key.root, wanted.kind)?.as_ref().map(noted));
                let policy = merged(tx, &key, wanted, &act.caller.iam_id, now)?;
                store::put(tx, &policy)?;
                to.push(noted(&policy));
                written.push(seen(app, &policy));
            }
            act.note(|data| data.change = Some(Change::Policies { from, to }));
            key.updated = Some(now);
            keys::update(tx, &key)?;
            Ok(Changed::just(written))
        })
        .await?;
    Ok(answered(written))
}

/// The policies that were ever written, or the one that is asked for.
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, KpError> {
    let failed = "Key policies could not be retrieved";
    let act = Act { action: "kms.policies.read", failed, ..act(caller, instance, id) };
    let found = act
        .look(&app, move |app, tx, act, now| {
            let key = act.key(tx, KeyOperation::ReadPolicies)?;
            state_allows(&key, KeyAction::Read, now)?;
            let asked = asked(&query)?;
            let mut all = store::of_key(tx, &key.root)?;
            all.retain(|p| asked.is_none_or(|kind| p.kind == kind));
            Ok(all.iter().map(|p| seen(app, p)).collect())
        })
        .await?;
    Ok(answered(found))
}

/// What a key's answer says of its policies: rotation if there is a policy, and whether two are
/// needed to delete it.
pub(crate) fn of_key(
    tx: &Tx<'_>,
    key: &Key,
    set_until: Option<UnixMs>,
) -> Result<(Option<Rotation>, DualAuthDelete), StoreError> {
    let (mut rotation, mut dual) = (None, DualAuthDelete::default());
    for policy in store::of_key(tx, &key.root)? {
        match policy.kind {
            KeyPolicyKind::Rotation => {
                let interval_month = policy.interval_month.unwrap_or_default();
                rotation = Some(Rotation { enabled: policy.enabled, interval_month });
            }
            KeyPolicyKind::DualAuthDelete => dual.enabled = policy.enabled,
        }
    }
    if dual.enabled {
        dual.key_set_for_deletion = Some(set_until.is_some());
        dual.auth_expiration = set_until.map(view::second);
    }
    Ok((rotation, dual))
}
