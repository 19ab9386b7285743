//! `POST /event_ack`: a user of a key says what it did after an event.

use crate::app::App;
use crate::http::api::content::one;
use crate::http::api::{Api, Kind, post, says};
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::KpError;
use crate::keys::act::{About, Act, Changed, Instance, parse};
use crate::keys::view;
use crate::room::For;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_domain::access::{KeyOperation, On};
use claviger_domain::audit::Acknowledged;
use claviger_domain::id::{KeyVersionId, UnixMs};
use claviger_domain::key::RootKey;
use claviger_store::answers::{self, Answer};
use claviger_store::{Tx, events, keys, registrations};
use claviger_wire::kp::Envelope;
use claviger_wire::kp::ack::EventAcknowledge;
use std::sync::Arc;

/// Longest word for a state, in characters.
const STATE_MAX: usize = 64;

pub(crate) fn api() -> Api {
    let said = says("acknowledgeEvent", "Say what a user of a key did after an event of it")
        .takes(one::<EventAcknowledge>())
        .answers_nothing(204)
        .refuses(&[422]);
    Api::new("registrations", Kind::KeyProtect).at("/api/v2/event_ack", [post(acknowledge, said)])
}

/// An acknowledgement, checked as far as it can be without the key.
struct Said {
    event: u64,
    state: String,
    /// When it was done, as it says.
    at: UnixMs,
    rewrapped: Option<KeyVersionId>,
}

async fn acknowledge(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    body: Body,
) -> Result<Response, KpError> {
    let action = "kms.secrets-event.ack";
    let failed = "Event could not be acknowledged";
    let said = read(&body);
    let number = said.as_ref().ok().map(|said| said.event);
    let whom = For::cluster(caller.cluster.as_ref());
    // The event names the key, and the record of the act has to.
    let event = match number {
        None => None,
        Some(number) => app
            .asked(whom, move |app| app.store.read(action, |tx| events::get(tx, number)))
            .await
            .map_err(|e| KpError::from(e).failing(failed))?,
    };
    let event = event.filter(|event| event.root.instance == instance);
    let about = match &event {
        Some(event) => About::Key(event.root.key.to_string()),
        None => About::Instance,
    };
    let act = Act { caller, instance, action, failed, about };
    act.change(&app, move |_, tx, act, now| {
        if !act.caller.sees(act.instance) {
            return Err(KpError::unauthorized());
        }
        act.exists(tx)?;
        if !act.caller.service {
            let what = "Only a service that uses keys can acknowledge their events";
            return Err(KpError::new(StatusCode::FORBIDDEN, "SERVICE_ONLY_ERR", what));
        }
        let said = said.as_ref().map_err(Clone::clone)?;
        let Some(event) = &event else {
            // Only who may do it on any key learns that there is no such event.
            act.caller.permit(KeyOperation::AcknowledgeEvent, act.instance, On::Instance)?;
            let what = "There is no such event of a key of this instance";
            return Err(KpError::new(StatusCode::NOT_FOUND, "EVENT_NOT_FOUND_ERR", what));
        };
        let key = act.key(tx, KeyOperation::AcknowledgeEvent)?;
        if let Some(version) = said.rewrapped
            && keys::version(tx, &key.root, version)?.is_none()
        {
            let what = "The key has no such version";
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Err(KpError::new(status, "KEY_VERSION_INVALID", what));
        }
        act.note(|data| {
            data.event = Some(Acknowledged {
                event: said.event,
                kind: event.kind.as_str().to_owned(),
                state: said.state.clone(),
                at: said.at,
                version: event.version,
            });
        });
        for crn in users(tx, act, &key.root)? {
            let answer = Answer {
                root: key.root,
                event: said.event,
                crn,
                state: said.state.clone(),
                rewrapped: said.rewrapped,
                at: now,
            };
            answers::put(tx, &answer)?;
        }
        Ok(Changed::just(()))
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// For which users of a key the caller speaks: a resource for itself, a service ID for what it
/// registered on the key.
fn users(tx: &Tx<'_>, act: &Act, root: &RootKey) -> Result<Vec<String>, KpError> {
    if let Some(own) = &act.caller.crn {
        return Ok(vec![own.clone()]);
    }
    let own: Vec<String> = registrations::of_key(tx, root)?
        .into_iter()
        .filter(|registration| registration.created_by == act.caller.iam_id)
        .map(|registration| registration.crn)
        .collect();
    if own.is_empty() {
        let what = "The service has registered nothing on the key";
        return Err(KpError::new(StatusCode::FORBIDDEN, "RESOURCE_OWNER_ERR", what));
    }
    Ok(own)
}

fn read(body: &Body) -> Result<Said, KpError> {
    let text = body.text().ok_or_else(|| KpError::body("The body is missing"))?;
    let mut body: Envelope<EventAcknowledge> = parse(text)?;
    let (Some(given), true) = (body.resources.pop(), body.resources.is_empty()) else {
        let what = "The body must have exactly one acknowledgement in 'resources'";
        return Err(KpError::body(what));
    };
    let event = match &given.event_id {
        serde_json::Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    };
    let event = event.ok_or_else(|| {
        KpError::field("eventId", "The field 'eventId' must be: the number of an event")
    })?;
    let state = given.adopter_key_state;
    if !(1..=STATE_MAX).contains(&state.len()) || !state.bytes().all(|b| b.is_ascii_graphic()) {
        let what = format!(
            "The field 'adopterKeyState' must be: 1 to {STATE_MAX} characters, for instance DEK_ENABLED"
        );
        return Err(KpError::field("adopterKeyState", what));
    }
    let at = given.timestamp.as_deref().and_then(view::parse_date).ok_or_else(|| {
        let what = "The field 'timestamp' must be: an RFC 3339 date and time";
        KpError::field("timestamp", what)
    })?;
    let version = given.key_state_data.and_then(|data| data.rewrapped_key_version);
    let rewrapped = match version.filter(|text| !text.is_empty()) {
        Some(text) => Some(text.parse::<KeyVersionId>().map_err(|_| {
            let what = "The field 'rewrappedKeyVersion' must be: the UUID of a key version";
            KpError::field("rewrappedKeyVersion", what)
        })?),
        None if state == "DEK_ENABLED" => {
            let what = "The field 'rewrappedKeyVersion' must be: given with DEK_ENABLED";
            return Err(KpError::field("rewrappedKeyVersion", what));
        }
        None => None,
    };
    Ok(Said { event, state, at, rewrapped })
}
