//! Key Protect v2, as far as clusters and operators need it.

use crate::config::{self, NodeConfig, SecretText};
use crate::error::Error;
use crate::http::{Answer, Call, Http, segment};
use crate::token::{Credential, Session};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claviger_crypto::SecretBytes;
use claviger_domain::id::{InstanceId, KeyId, KeyVersionId};
use claviger_domain::key::KeyState;
use claviger_wire::kp::{
    Acknowledgements, ActionAnswer, Envelope, INSTANCE_HEADER, KEY_TYPE, Key, NewKey, Registration,
    RegistrationInput, RotateRequest, UnwrapRequest, WrapRequest,
};
use reqwest::Method;
use reqwest::header::HeaderValue;
use serde::de::DeserializeOwned;
use zeroize::{Zeroize, Zeroizing};

const REGISTRATION_TYPE: &str = "application/vnd.ibm.kms.registration_input+json";
/// Elements asked for at once.
const PAGE: usize = 200;
/// Most elements that a list is read to. One that has more is none to be shown or searched: a part
/// of it would pass for the whole.
const LIST_MAX: usize = 100_000;

/// The key service. Cheap to clone; clones share the token and the connections.
#[derive(Clone)]
pub struct KeyService {
    pub(crate) session: Session,
}

/// A wrapped DEK.
pub struct WrappedDek {
    /// The text to keep: names its key version, opens under the same AAD only.
    pub ciphertext: String,
    /// The key version that wraps it.
    pub version: KeyVersionId,
    /// The DEK, where the service was asked to make one.
    pub plaintext: Option<SecretBytes>,
}

/// An opened DEK.
pub struct Unwrapped {
    /// The DEK.
    pub plaintext: SecretBytes,
    /// The key version that had wrapped it.
    pub version: Option<KeyVersionId>,
    /// The same DEK under the current version, where that is another.
    pub rewrapped: Option<(String, KeyVersionId)>,
}

/// What an unwrap says about the key: the difference between a fence and coasting.
pub enum UnwrapOutcome {
    /// It opens: the key works.
    Opened(Unwrapped),
    /// The key service, proven by its certificate, says that the key's state forbids it:
    /// suspended or destroyed. Fence.
    Closed {
        /// The state, where the service still says.
        state: Option<KeyState>,
        /// Its words.
        error: Error,
    },
    /// The key service answered no for another reason: wrong ciphertext or AAD, no such key, no
    /// permission. Says nothing about the key's state: neither fence nor retry, but tell.
    Refused(Error),
    /// No answer that counts: unreachable, untrusted or broken. Coast, and try again.
    Unknown(Error),
}

impl KeyService {
    /// The key service for a node agent, by its certificate.
    pub fn for_node(config: &NodeConfig) -> Result<Self, Error> {
        let http = node(config)?;
        Ok(Self { session: Session::new(http.clone(), http, Credential::Node) })
    }

    /// Makes a key, or imports `material` (16, 24 or 32 bytes for a root key).
    pub async fn create(
        &self,
        instance: InstanceId,
        key: &NewKey,
        material: Option<&SecretBytes>,
    ) -> Result<Key, Error> {
        let mut payload = material.map(|m| STANDARD.encode(m.expose()));
        let mut input = NewKey {
            media_type: KEY_TYPE.to_owned(),
            name: key.name.clone(),
            extractable: key.extractable,
            description: key.description.clone(),
            aliases: key.aliases.clone(),
            tags: key.tags.clone(),
            expiration_date: key.expiration_date.clone(),
            payload: payload.take().or_else(|| key.payload.clone()),
            ..NewKey::default()
        };
        let call = Call::post("/api/v2/keys".to_owned()).json(&envelope(KEY_TYPE, &input));
        input.payload.zeroize();
        first(&self.send(instance, call?).await?)
    }

    /// Every key of an instance but the deleted ones. Fails beyond 100,000.
    pub async fn list(&self, instance: InstanceId) -> Result<Vec<Key>, Error> {
        self.pages(instance, "/api/v2/keys?").await
    }

    /// A key without its payload.
    pub async fn metadata(&self, instance: InstanceId, key: KeyId) -> Result<Key, Error> {
        first(&self.send(instance, Call::get(path(key, "/metadata"))).await?)
    }

    /// Which users of a key have acted on its last event.
    pub async fn acknowledgements(
        &self,
        instance: InstanceId,
        key: KeyId,
    ) -> Result<Acknowledgements, Error> {
        let path = format!("/v3/instances/{instance}/keys/{key}/acknowledgements");
        self.send(instance, Call::get(path)).await?.json()
    }

    /// Wraps `plaintext` under the current version, or 32 new random bytes.
    pub async fn wrap(
        &self,
        instance: InstanceId,
        key: KeyId,
        plaintext: Option<&SecretBytes>,
        aad: &[String],
    ) -> Result<WrappedDek, Error> {
        let mut body = WrapRequest {
            plaintext: plaintext.map(|p| STANDARD.encode(p.expose())),
            aad: aads(aad),
        };
        let call = Call::post(path(key, "/actions/wrap")).idempotent().json(&body);
        body.plaintext.zeroize();
        let mut answer: ActionAnswer = self.send(instance, call?).await?.json()?;
        let made = secret(&mut answer)?;
        match (answer.ciphertext, answer.key_version) {
            (Some(ciphertext), Some(version)) => {
                Ok(WrappedDek { ciphertext, version: KeyVersionId(version.id), plaintext: made })
            }
            _ => Err(Error::protocol("wrap answered without a ciphertext or key version")),
        }
    }

    /// Unwraps. An error as any other; [`try_unwrap`](Self::try_unwrap) tells apart what must be.
    pub async fn unwrap(
        &self,
        instance: InstanceId,
        key: KeyId,
        ciphertext: &str,
        aad: &[String],
    ) -> Result<Unwrapped, Error> {
        let body = UnwrapRequest { ciphertext: ciphertext.to_owned(), aad: aads(aad) };
        let call = Call::post(path(key, "/actions/unwrap")).idempotent().json(&body)?;
        let mut answer: ActionAnswer = self.send(instance, call).await?.json()?;
        let plaintext = secret(&mut answer)?
            .ok_or_else(|| Error::protocol("unwrap answered without a plaintext"))?;
        let rewrapped = answer.ciphertext.zip(answer.rewrapped_key_version);
        Ok(Unwrapped {
            plaintext,
            version: answer.key_version.map(|v| KeyVersionId(v.id)),
            rewrapped: rewrapped.map(|(text, version)| (text, KeyVersionId(version.id))),
        })
    }

    /// Unwraps, and says what the answer means for the key. Where the key's state forbids it,
    /// that state is asked for too; a key that was enabled meanwhile is tried once more.
    pub async fn try_unwrap(
        &self,
        instance: InstanceId,
        key: KeyId,
        ciphertext: &str,
        aad: &[String],
    ) -> UnwrapOutcome {
        let error = match self.unwrap(instance, key, ciphertext, aad).await {
            Ok(unwrapped) => return UnwrapOutcome::Opened(unwrapped),
            Err(error) if error.is_key_state() => error,
            Err(error) => return outcome(error),
        };
        let state = match self.metadata(instance, key).await {
            Ok(found) => KeyState::from_number(found.state),
            Err(_) => None,
        };
        if state != Some(KeyState::Active) {
            return UnwrapOutcome::Closed { state, error };
        }
        match self.unwrap(instance, key, ciphertext, aad).await {
            Ok(unwrapped) => UnwrapOutcome::Opened(unwrapped),
            Err(error) if error.is_key_state() => UnwrapOutcome::Closed { state: None, error },
            Err(error) => outcome(error),
        }
    }

    /// Makes a new version current; `material` for imported keys, and for no others.
    pub async fn rotate(
        &self,
        instance: InstanceId,
        key: KeyId,
        material: Option<&SecretBytes>,
    ) -> Result<(), Error> {
        let payload = material.map(|m| STANDARD.encode(m.expose()));
        let mut body = RotateRequest { payload, ..RotateRequest::default() };
        let call = Call::post(path(key, "/actions/rotate")).json(&body);
        body.payload.zeroize();
        self.send(instance, call?).await.map(|_| ())
    }

    /// Suspends an active key: it neither wraps nor unwraps, and its clusters are fenced.
    pub async fn disable(&self, instance: InstanceId, key: KeyId) -> Result<(), Error> {
        self.act(instance, key, "disable").await
    }

    /// Ends a suspension.
    pub async fn enable(&self, instance: InstanceId, key: KeyId) -> Result<(), Error> {
        self.act(instance, key, "enable").await
    }

    /// Deletes a key; with `force` although resources are registered on it, unless one of them
    /// prevents it.
    pub async fn delete(&self, instance: InstanceId, key: KeyId, force: bool) -> Result<(), Error> {
        let path = path(key, if force { "?force=true" } else { "" });
        self.send(instance, Call::new(Method::DELETE, path)).await.map(|_| ())
    }

    /// Brings a deleted key back.
    pub async fn restore(&self, instance: InstanceId, key: KeyId) -> Result<Key, Error> {
        first(&self.send(instance, Call::post(path(key, "/restore"))).await?)
    }

    /// Which resources use a key. Fails beyond 100,000.
    pub async fn registrations(
        &self,
        instance: InstanceId,
        key: KeyId,
    ) -> Result<Vec<Registration>, Error> {
        self.pages(instance, &path(key, "/registrations?")).await
    }

    /// Registers `crn` on a key. Refused with 409 where it is registered already.
    pub async fn register(
        &self,
        instance: InstanceId,
        key: KeyId,
        crn: &str,
        input: &RegistrationInput,
    ) -> Result<Registration, Error> {
        self.registration(Method::POST, instance, key, crn, input).await
    }

    /// Replaces the registration of `crn`.
    pub async fn replace_registration(
        &self,
        instance: InstanceId,
        key: KeyId,
        crn: &str,
        input: &RegistrationInput,
    ) -> Result<Registration, Error> {
        self.registration(Method::PUT, instance, key, crn, input).await
    }

    /// Makes sure that `crn` is registered on a key as `input` says, whatever was there before.
    pub async fn ensure_registration(
        &self,
        instance: InstanceId,
        key: KeyId,
        crn: &str,
        input: &RegistrationInput,
    ) -> Result<Registration, Error> {
        let found = self.registrations(instance, key).await?;
        if found.iter().any(|r| r.resource_crn == crn) {
            return self.replace_registration(instance, key, crn, input).await;
        }
        match self.register(instance, key, crn, input).await {
            // Somebody was faster, or this is a repetition whose first answer was lost.
            Err(Error::Refused { status: 409, .. }) => {
                self.replace_registration(instance, key, crn, input).await
            }
            other => other,
        }
    }

    async fn registration(
        &self,
        method: Method,
        instance: InstanceId,
        key: KeyId,
        crn: &str,
        input: &RegistrationInput,
    ) -> Result<Registration, Error> {
        let idempotent = method == Method::PUT;
        let path = path(key, &format!("/registrations/{}", segment(crn)));
        let mut call = Call::new(method, path).json(&envelope(REGISTRATION_TYPE, input))?;
        call.idempotent = idempotent;
        first(&self.send(instance, call).await?)
    }

    async fn act(&self, instance: InstanceId, key: KeyId, action: &str) -> Result<(), Error> {
        let call = Call::post(path(key, &format!("/actions/{action}")));
        self.send(instance, call).await.map(|_| ())
    }

    async fn pages<T: DeserializeOwned>(
        &self,
        instance: InstanceId,
        path: &str,
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        loop {
            let call = Call::get(format!("{path}limit={PAGE}&offset={}", all.len()));
            let page: Envelope<T> = self.send(instance, call).await?.json()?;
            let last = page.resources.len() < PAGE;
            all.extend(page.resources);
            if last {
                return Ok(all);
            }
            if all.len() >= LIST_MAX {
                return Err(Error::local(format!(
                    "the list has more than {LIST_MAX} elements and is not read to its end; name a key by its id"
                )));
            }
        }
    }

    async fn send(&self, instance: InstanceId, mut call: Call) -> Result<Answer, Error> {
        let value = HeaderValue::from_str(&instance.to_string())
            .map_err(|_| Error::protocol("a UUID is a header value"))?;
        call.headers.insert(INSTANCE_HEADER, value);
        self.session.send(call).await
    }
}

/// What an error other than a key state means.
fn outcome(error: Error) -> UnwrapOutcome {
    match error {
        Error::Refused { .. } | Error::Unauthorized { .. } => UnwrapOutcome::Refused(error),
        Error::Unreachable { .. }
        | Error::Busy { .. }
        | Error::Tls { .. }
        | Error::Protocol { .. }
        | Error::Local { .. } => UnwrapOutcome::Unknown(error),
    }
}

pub(crate) fn node(config: &NodeConfig) -> Result<Http, Error> {
    let base = config::base(&config.url)?;
    let identity = (config.certificate.as_str(), &config.key);
    Ok(Http { client: config::client(config.ca.as_bytes(), Some(identity))?, base })
}

fn path(key: KeyId, rest: &str) -> String {
    format!("/api/v2/keys/{key}{rest}")
}

fn envelope<T>(media_type: &str, resource: T) -> Envelope<T> {
    Envelope::of(media_type, vec![resource])
}

fn first<T: DeserializeOwned>(answer: &Answer) -> Result<T, Error> {
    let envelope: Envelope<T> = answer.json()?;
    let first = envelope.resources.into_iter().next();
    first.ok_or_else(|| Error::protocol("an answer without a resource"))
}

/// None for an empty list: the service treats both alike.
fn aads(aad: &[String]) -> Option<Vec<Option<String>>> {
    (!aad.is_empty()).then(|| aad.iter().cloned().map(Some).collect())
}

/// Takes the plaintext out of an answer and wipes its text.
fn secret(answer: &mut ActionAnswer) -> Result<Option<SecretBytes>, Error> {
    let Some(text) = answer.plaintext.take().map(SecretText) else { return Ok(None) };
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.0.len())]);
    let len = STANDARD
        .decode_slice(&text.0, &mut bytes)
        .map_err(|_| Error::protocol("the plaintext is not base64"))?;
    bytes.truncate(len);
    Ok(Some(SecretBytes::new(std::mem::take(&mut *bytes))))
}
