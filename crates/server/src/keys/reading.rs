//! What only looks at one key: metadata, payload of standard keys, versions.

use crate::app::App;
use crate::http::auth::Caller;
use crate::http::error::KpError;
use crate::keys::act::{About, Act, Instance, answer, root_only, state_allows};
use crate::keys::query::Query;
use crate::keys::view;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claviger_domain::access::KeyOperation;
use claviger_domain::key::{KeyAction, KeyState};
use claviger_store::Tx;
use claviger_store::keys::{self, Key};
use claviger_wire::kp;
use std::sync::Arc;

/// `GET /keys/{id}`: with the payload of a standard key.
pub(crate) async fn with_payload(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
) -> Result<Response, KpError> {
    let act = Act {
        caller,
        instance,
        action: "kms.secrets.read",
        failed: "Key could not be retrieved",
        about: About::Key(id),
    };
    let key = act
        .look(&app, |app, tx, act, now| {
            let key = act.key(tx, KeyOperation::ReadPayload)?;
            state_allows(&key, KeyAction::Read, now)?;
            let mut out = view::key(app, tx, &key, now)?;
            if key.extractable && key.state_at(now) != KeyState::Destroyed {
                out.payload = payload(app, tx, &key)?;
            }
            Ok(out)
        })
        .await?;
    Ok(answer(StatusCode::OK, kp::KEY_TYPE, &kp::Envelope::of(kp::KEY_TYPE, vec![key])))
}

/// The payload of a standard key, base64.
pub(crate) fn payload(app: &App, tx: &Tx<'_>, key: &Key) -> Result<Option<String>, KpError> {
    let Some(sealed) = keys::payload(tx, &key.root)? else { return Ok(None) };
    let (instance, id) = (key.root.instance.to_string(), key.root.key.to_string());
    let opened = app.custodian.open_column(&["keys", "payload", &instance, &id], &sealed);
    let opened = opened.map_err(|e| {
        tracing::error!(error = %e, "payload of a standard key");
        let what = "The payload does not open; the server's operator must look at its log";
        KpError::new(StatusCode::INTERNAL_SERVER_ERROR, "INCOMPLETE_METADATA_ERR", what)
    })?;
    Ok(Some(STANDARD.encode(opened.expose())))
}

/// `GET /keys/{id}/metadata`.
pub(crate) async fn metadata(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
) -> Result<Response, KpError> {
    let act = Act {
        caller,
        instance,
        action: "kms.secrets-metadata.read",
        failed: "Key metadata could not be retrieved",
        about: About::Key(id),
    };
    let key = act
        .look(&app, |app, tx, act, now| {
            let key = act.key(tx, KeyOperation::ReadMetadata)?;
            state_allows(&key, KeyAction::Read, now)?;
            Ok(view::key(app, tx, &key, now)?)
        })
        .await?;
    Ok(answer(StatusCode::OK, kp::KEY_TYPE, &kp::Envelope::of(kp::KEY_TYPE, vec![key])))
}

/// `GET /keys/{id}/versions`, newest first.
pub(crate) async fn versions(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, KpError> {
    let act = Act {
        caller,
        instance,
        action: "kms.secrets-key-versions.list",
        failed: "Key versions could not be listed",
        about: About::Key(id),
    };
    let envelope = act
        .look(&app, move |_, tx, act, now| {
            let key = act.key(tx, KeyOperation::ReadMetadata)?;
            state_allows(&key, KeyAction::Read, now)?;
            root_only(&key)?;
            let all_states = query.flag("allKeyStates")?.unwrap_or(false);
            if key.state_at(now) == KeyState::Destroyed && !all_states {
                let what = "The key is destroyed; ask with allKeyStates=true";
                return Err(KpError::new(StatusCode::NOT_FOUND, "KEY_NOT_FOUND_ERR", what));
            }
            let all = keys::versions(tx, &key.root)?
                .into_iter()
                .map(|v| kp::KeyVersion {
                    id: v.id.0,
                    creation_date: Some(view::second(v.created)),
                })
                .collect();
            let (page, total) = query.page(all)?;
            act.note(|data| data.total = Some(page.len() as u64));
            let mut envelope = kp::Envelope::of(kp::VERSION_TYPE, page);
            envelope.metadata.total_count = total;
            Ok(envelope)
        })
        .await?;
    Ok(answer(StatusCode::OK, kp::VERSION_TYPE, &envelope))
}
