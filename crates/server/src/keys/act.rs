//! What every operation goes through: instance, permission, work, audit record, answer.

use crate::app::App;
use crate::http::auth::Caller;
use crate::http::error::KpError;
use crate::http::{network, objects};
use crate::keys::view;
use crate::repeat;
use crate::room::For;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use claviger_domain::access::{KeyOperation, On};
use claviger_domain::audit::{Data, KeyFacts, Record};
use claviger_domain::id::{InstanceId, KeyId, UnixMs};
use claviger_domain::key::{KeyAction, KeyState, RootKey, RootVersion};
use claviger_domain::life::Refused;
use claviger_store::audit;
use claviger_store::events::KeyEvent;
use claviger_store::keys::Key;
use claviger_store::repeats::{self, Repeat};
use claviger_store::{Tx, iam, keys};
use claviger_wire::kp::{self, INSTANCE_HEADER, Target};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::ops::Deref;
use std::sync::Arc;

/// The instance that the header `Bluemix-Instance` names. Whether there is one is told by
/// [`Act`], after the caller's right to know.
pub(crate) struct Instance(pub(crate) InstanceId);

impl<S: Sync> FromRequestParts<S> for Instance {
    type Rejection = KpError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, KpError> {
        let value = parts.headers.get(INSTANCE_HEADER).and_then(|v| v.to_str().ok());
        let instance = value.and_then(|text| text.trim().parse().ok());
        instance.map(Instance).ok_or_else(|| {
            let what = "Request requires valid Bluemix-Instance Header containing a valid UUID";
            let target = Target { kind: "header".to_owned(), name: INSTANCE_HEADER.to_owned() };
            let error = KpError::new(StatusCode::BAD_REQUEST, "INVALID_HEADER_ERR", what);
            KpError { target: Some(target), ..error }.failing(what)
        })
    }
}

/// The action that no address is barred from.
pub(crate) const ALLOWED_IP_PORT: &str = "kms.instance-allowed-ip-port.read";

/// One operation that is asked for.
#[derive(Clone)]
pub(crate) struct Act {
    pub(crate) caller: Caller,
    pub(crate) instance: InstanceId,
    /// For the audit record, after Key Protect's names: `kms.secrets.wrap`.
    pub(crate) action: &'static str,
    /// For people, when it fails: `Key could not be wrapped`.
    pub(crate) failed: &'static str,
    pub(crate) about: About,
}

/// What an operation is about.
#[derive(Debug, Clone)]
pub(crate) enum About {
    /// The whole instance.
    Instance,
    /// A key, as the caller names it: by id or alias.
    Key(String),
    /// A key ring, by its id.
    Ring(String),
}

/// Longest name of a key ring on record; a ring that is there has at most 100 characters.
const RING_MAX: usize = 128;

/// What a change of state leads to.
pub(crate) struct Changed<T> {
    pub(crate) value: T,
    /// Announced once the change is durable.
    pub(crate) event: Option<KeyEvent>,
    /// Opened material that is not to be kept.
    pub(crate) forget: Vec<RootVersion>,
}

impl<T> Changed<T> {
    pub(crate) fn just(value: T) -> Self {
        Self { value, event: None, forget: Vec::new() }
    }
}

/// How a change came about.
enum Outcome<T> {
    /// It was made.
    Now(Changed<T>),
    /// It had been made by this very request before.
    Before(T),
}

/// What a change is about, so that the next one of the same is known: a key, or something of a key
/// that is changed by itself, or whatever else the path names.
fn subject(instance: InstanceId, key: Option<KeyId>, uri: &str) -> String {
    let path = uri.split('?').next().unwrap_or_default();
    let Some(key) = key else { return format!("{instance} {path}") };
    let rest = path.split_once("/keys/").and_then(|(_, rest)| rest.split_once('/'));
    let rest = rest.map_or("", |(_, rest)| rest);
    let own = ["registrations/", "aliases/", "policies"].iter().any(|part| rest.starts_with(part));
    format!("{instance} {key} {}", if own { rest } else { "" })
}

/// Answers again that something was done of which there is nothing to show.
pub(crate) fn nothing_again(
    _: &App,
    _: &Tx<'_>,
    _: &Doing,
    _: Repeat,
    _: UnixMs,
) -> Result<(), KpError> {
    Ok(())
}

/// Answers a key again to whoever may still do `operation` on it.
pub(crate) fn key_again(
    operation: KeyOperation,
) -> impl Fn(&App, &Tx<'_>, &Doing, Repeat, UnixMs) -> Result<kp::Key, KpError> + Send + 'static {
    move |app, tx, act, before, now| {
        let key = act.key_of(tx, operation, before)?;
        Ok(view::key(app, tx, &key, now)?)
    }
}

/// An operation under way: what was asked, and what is noted of it for its record.
pub(crate) struct Doing {
    act: Act,
    now: UnixMs,
    noted: RefCell<Data>,
}

impl Deref for Doing {
    type Target = Act;
    fn deref(&self) -> &Act {
        &self.act
    }
}

impl Act {
    /// Does what changes state: permission, change and audit record in one transaction. It is done
    /// as often as it is asked for.
    pub(crate) async fn change<T: Send + 'static>(
        self,
        app: &Arc<App>,
        work: impl FnMut(&App, &Tx<'_>, &Doing, UnixMs) -> Result<Changed<T>, KpError> + Send + 'static,
    ) -> Result<T, KpError> {
        type Again<T> = fn(&App, &Tx<'_>, &Doing, Repeat, UnixMs) -> Result<T, KpError>;
        self.run(app, None::<Again<T>>, work).await
    }

    /// Like [`change`](Self::change), but once for one request, which may come again because its
    /// answer was lost (see [`crate::repeat`]): then nothing is done, and it is answered what
    /// `again` makes of what is there. That must permit anew what it shows.
    pub(crate) async fn change_once<T: Send + 'static>(
        self,
        app: &Arc<App>,
        again: impl Fn(&App, &Tx<'_>, &Doing, Repeat, UnixMs) -> Result<T, KpError> + Send + 'static,
        work: impl FnMut(&App, &Tx<'_>, &Doing, UnixMs) -> Result<Changed<T>, KpError> + Send + 'static,
    ) -> Result<T, KpError> {
        self.run(app, Some(again), work).await
    }

    async fn run<T: Send + 'static>(
        self,
        app: &Arc<App>,
        again: Option<
            impl Fn(&App, &Tx<'_>, &Doing, Repeat, UnixMs) -> Result<T, KpError> + Send + 'static,
        >,
        mut work: impl FnMut(&App, &Tx<'_>, &Doing, UnixMs) -> Result<Changed<T>, KpError>
        + Send
        + 'static,
    ) -> Result<T, KpError> {
        let (whom, failed) = (self.whom(), self.failed);
        let mut doing = self.begin(app.clock.now());
        let change = move |app: &App| {
            let asked = again.as_ref().and(doing.caller.trace.asked.as_ref());
            let request = asked.map(|asked| asked.mac(&app.repeats, &doing.caller.iam_id));
            let done = app.store.tx(doing.action, |tx| {
                // The transaction may be done over.
                doing.noted.replace(doing.act.asked());
                doing.act.admit(app, tx)?;
                // Whoever asks twice at once waits here for himself: there is one writer.
                if let (Some(again), Some(request)) = (&again, &request)
                    && let Some(before) =
                        repeats::find(tx, request, repeat::since(doing.now), doing.now)?
                {
                    doing.note_repeat(tx, before)?;
                    return Ok(Outcome::Before(again(app, tx, &doing, before, doing.now)?));
                }
                let changed = work(app, tx, &doing, doing.now)?;
                if again.is_some() {
                    let key = doing.noted.borrow().key.as_ref().map(|key| key.id);
                    let subject = subject(doing.instance, key, &doing.caller.trace.uri);
                    let repeat = Repeat { key, at: doing.now };
                    repeats::changed(tx, &subject, request.as_ref(), repeat)?;
                }
                audit::add(tx, &doing.record(app, 200, ""))?;
                Ok::<_, KpError>(Outcome::Now(changed))
            });
            let changed = match done.map_err(|error| doing.refuse(app, error))? {
                Outcome::Now(changed) => changed,
                Outcome::Before(value) => {
                    let recorded = app.recorder.record_blocking(&doing.record(app, 200, ""));
                    recorded.map_err(|e| KpError::from(e).failing(doing.failed))?;
                    return Ok(value);
                }
            };
            for version in &changed.forget {
                app.custodian.forget(version);
            }
            if let Some(event) = &changed.event {
                app.announce(event.clone());
            }
            Ok(changed.value)
        };
        app.asked(whom, change).await.map_err(|e: KpError| e.failing(failed))
    }

    /// Does what changes nothing; answers once it is on record.
    pub(crate) async fn look<T: Send + 'static>(
        self,
        app: &Arc<App>,
        work: impl FnOnce(&App, &Tx<'_>, &Doing, UnixMs) -> Result<T, KpError> + Send + 'static,
    ) -> Result<T, KpError> {
        let (whom, failed) = (self.whom(), self.failed);
        let mut doing = self.begin(app.clock.now());
        let look = move |app: &App| {
            let done = app.store.read(doing.action, |tx| {
                doing.act.admit(app, tx)?;
                work(app, tx, &doing, doing.now)
            });
            match done {
                Ok(value) => Ok((doing, value)),
                Err(error) => Err(doing.refuse(app, error)),
            }
        };
        let (doing, value) = app.asked(whom, look).await.map_err(|e: KpError| e.failing(failed))?;
        let record = doing.record(app, 200, "");
        app.recorder.record(record).await.map_err(|e| KpError::from(e).failing(failed))?;
        Ok(value)
    }

    /// For whom it is done.
    pub(crate) fn whom(&self) -> For {
        For::cluster(self.caller.cluster.as_ref())
    }

    /// The operation under way since `now`.
    pub(crate) fn begin(self, now: UnixMs) -> Doing {
        let noted = RefCell::new(self.asked());
        Doing { act: self, now, noted }
    }

    /// What the request alone says.
    fn asked(&self) -> Data {
        let ring = self.caller.ring.as_ref();
        Data {
            uri: self.caller.trace.uri.clone(),
            ring: ring.map(|ring| ring.chars().take(RING_MAX).collect()),
            ..Data::default()
        }
    }

    /// Whether the caller counts still, and the instance takes calls from where it is.
    pub(crate) fn admit(&mut self, app: &App, tx: &Tx<'_>) -> Result<(), KpError> {
        if !self.caller.renew(app, tx)? {
            return Err(KpError::unauthorized());
        }
        // Who is barred by his address asks this to learn where he could come from.
        let any_address = self.action == ALLOWED_IP_PORT;
        network::admit(tx, self.instance, &self.caller, any_address)
    }

    /// Checks that the caller may do `operation` on the instance, and that there is one.
    pub(crate) fn on_instance(&self, tx: &Tx<'_>, operation: KeyOperation) -> Result<(), KpError> {
        self.caller.permit(operation, self.instance, On::Instance)?;
        self.exists(tx)
    }

    /// Checks that the caller may do `operation` on a key ring, and that the instance exists;
    /// whether the ring does is another question.
    pub(crate) fn on_ring(
        &self,
        tx: &Tx<'_>,
        operation: KeyOperation,
        ring: &str,
    ) -> Result<(), KpError> {
        self.caller.permit(operation, self.instance, On::Ring(ring))?;
        self.exists(tx)
    }

    /// Whether there is such an instance; told only to whoever may use it.
    pub(crate) fn exists(&self, tx: &Tx<'_>) -> Result<(), KpError> {
        if iam::has_instance(tx, self.instance)? {
            return Ok(());
        }
        let what =
            "There is no such instance of the key service; look at the Bluemix-Instance header";
        Err(KpError::new(StatusCode::NOT_FOUND, "INSTANCE_NOT_FOUND_ERR", what))
    }
}

impl Doing {
    /// As [`Act::admit`].
    pub(crate) fn admit(&mut self, app: &App, tx: &Tx<'_>) -> Result<(), KpError> {
        self.act.admit(app, tx)
    }

    /// Notes something for the record.
    pub(crate) fn note(&self, note: impl FnOnce(&mut Data)) {
        note(&mut self.noted.borrow_mut());
    }

    /// Notes the key that it is about. [`key`](Self::key) does it as the key is found; what changes
    /// a key does it once more.
    pub(crate) fn note_key(&self, key: &Key) {
        self.note(|data| data.key = Some(facts(key, self.now)));
    }

    /// The key that the request names, if the caller may do `operation` on it.
    pub(crate) fn key(&self, tx: &Tx<'_>, operation: KeyOperation) -> Result<Key, KpError> {
        if !self.caller.sees(self.instance) {
            return Err(KpError::unauthorized());
        }
        self.exists(tx)?;
        let found = match &self.about {
            About::Key(name) => keys::find(tx, self.instance, name)?,
            About::Instance | About::Ring(_) => None,
        };
        match found.filter(|key| self.caller.ring.as_ref().is_none_or(|ring| *ring == key.ring)) {
            Some(key) => {
                self.note_key(&key);
                let on = On::Key(key.root.key, &key.ring);
                self.caller.permit(operation, self.instance, on)?;
                Ok(key)
            }
            // Only who may do it on any key that was looked through learns that this one is not
            // among them.
            None => {
                let searched = self.caller.ring.as_deref().map_or(On::Instance, On::Ring);
                self.caller.permit(operation, self.instance, searched)?;
                Err(KpError::no_key())
            }
        }
    }

    /// The key that was changed before, if the caller may still do `operation` on it.
    pub(crate) fn key_of(
        &self,
        tx: &Tx<'_>,
        operation: KeyOperation,
        before: Repeat,
    ) -> Result<Key, KpError> {
        let Some(key) = self.changed(tx, before)? else {
            self.caller.permit(operation, self.instance, On::Instance)?;
            return Err(KpError::no_key());
        };
        self.caller.permit(operation, self.instance, On::Key(key.root.key, &key.ring))?;
        Ok(key)
    }

    /// The key that was changed before, if it is there still; whoever shows it permits it.
    pub(crate) fn changed(&self, tx: &Tx<'_>, before: Repeat) -> Result<Option<Key>, KpError> {
        let root = before.key.map(|key| RootKey { instance: self.instance, key });
        Ok(root.map(|root| keys::get(tx, &root)).transpose()?.flatten())
    }

    /// Notes that nothing is done, and which key it was done to.
    fn note_repeat(&self, tx: &Tx<'_>, before: Repeat) -> Result<(), KpError> {
        self.note(|data| data.repeated = true);
        if let Some(key) = self.changed(tx, before)? {
            self.note_key(&key);
        }
        Ok(())
    }

    /// Puts a refusal on record where it is decided, so that nobody can try without a trace by
    /// hanging up.
    fn refuse(&self, app: &App, error: KpError) -> KpError {
        let record = self.record(app, error.status.as_u16(), error.code());
        if app.recorder.record_blocking(&record).is_err() {
            tracing::warn!(action = self.action, "a refusal could not be put on record");
        }
        error.failing(self.failed)
    }

    fn record(&self, app: &App, status: u16, reason: &'static str) -> Record {
        let mut data = self.noted.borrow().clone();
        data.policy = self.caller.decided.policy();
        let target = match (&data.key, &self.about) {
            (Some(key), _) => {
                app.account.key_crn(&RootKey { instance: self.instance, key: key.id })
            }
            (None, About::Instance) => app.account.instance_crn(self.instance),
            (None, About::Key(name)) => app.account.crn_within(self.instance, "key", name),
            (None, About::Ring(ring)) => app.account.crn_within(self.instance, "key-ring", ring),
        };
        let done = self.caller.did(self.now, self.action, target);
        Record { status, reason: reason.into(), data, ..done }
    }
}

/// What goes on record of a key.
pub(crate) fn facts(key: &Key, now: UnixMs) -> KeyFacts {
    KeyFacts {
        id: key.root.key,
        ring: key.ring.clone(),
        standard: key.extractable,
        state: key.state_at(now),
        version: key.current,
        expires: key.expires,
    }
}

/// Refuses a standard key where a root key is needed.
pub(crate) fn root_only(key: &Key) -> Result<(), KpError> {
    if key.extractable {
        let what = "This action needs a root key; this is a standard key";
        return Err(KpError::new(StatusCode::BAD_REQUEST, "KEY_ROOT_REQ_ERR", what));
    }
    Ok(())
}

/// Whether the key's state allows `action` now.
pub(crate) fn state_allows(key: &Key, action: KeyAction, now: UnixMs) -> Result<(), KpError> {
    Ok(key.life_at(now).allows(action)?)
}

impl From<Refused> for KpError {
    fn from(Refused { state, action, gone }: Refused) -> KpError {
        if gone {
            let what = "Key has already been deleted";
            return KpError::new(StatusCode::GONE, "KEY_DELETED_ERR", what);
        }
        if matches!(action, KeyAction::Register | KeyAction::Unregister) {
            let what = format!("The key is {state}; only an active key takes registrations");
            return KpError::new(StatusCode::UNPROCESSABLE_ENTITY, "KEY_INVALID_STATE_ERR", what);
        }
        let advice = advice(state, action);
        let what = format!("The key is {state}, which does not allow this. {advice}");
        let error = KpError::conflict("KEY_ACTION_INVALID_STATE_ERR", what);
        KpError { active: state == KeyState::Active, ..error }
    }
}

fn advice(state: KeyState, action: KeyAction) -> &'static str {
    match state {
        KeyState::Suspended if action == KeyAction::Disable => "It needs no such change",
        KeyState::Active if action == KeyAction::Purge => "Delete it first",
        KeyState::Active => "It needs no such change",
        KeyState::Suspended => "Enable it first",
        KeyState::Deactivated => {
            "It has expired, which cannot be undone: unwrap what it protects, and wrap it under another key"
        }
        KeyState::Destroyed => "Restore it first, within 30 days of its deletion",
    }
}

/// Reads JSON; what is wrong with it is said without the value, which may be secret.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, KpError> {
    objects::read(text).map_err(|e| {
        let what = match e.classify() {
            serde_json::error::Category::Data => "has a missing field or a value of a wrong type",
            _ => "is not JSON, or ends too early",
        };
        KpError::body(format!("The body {what} (line {}, column {})", e.line(), e.column()))
    })
}

/// A JSON answer of this media type. Always the vendor's type: a client of ours reads the body
/// only then.
pub(crate) fn answer(
    status: StatusCode,
    media_type: &'static str,
    body: &impl Serialize,
) -> Response {
    let text = serde_json::to_vec(body).expect("answers are valid JSON");
    let mut response = (status, text).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_change_is_about() {
        let (instance, key) = (InstanceId::random(), KeyId::random());
        for (uri, of_key, about) in [
            ("/api/v2/keys", true, ""),
            ("/api/v2/keys/a?action=disable", true, ""),
            ("/api/v2/keys/a/actions/disable", true, ""),
            ("/api/v2/keys/a/restore", true, ""),
            ("/api/v2/keys/a/registrations/crn:v1:x", true, "registrations/crn:v1:x"),
            ("/api/v2/keys/a/aliases/b", true, "aliases/b"),
            ("/api/v2/keys/a/policies?policy=rotation", true, "policies"),
            ("/api/v2/key_rings/r?force=true", false, "/api/v2/key_rings/r"),
            ("/api/v2/instance/policies", false, "/api/v2/instance/policies"),
        ] {
            let before = if of_key { format!("{instance} {key}") } else { instance.to_string() };
            let said = subject(instance, of_key.then_some(key), uri);
            assert_eq!(said, format!("{before} {about}"), "{uri}");
        }
    }
}
