//! Import tokens, and key material that arrives under one.
//!
//! A token is an RSA key pair and a nonce. Whoever retrieves it may send key material under its
//! public key until it ends, as often as he likes; the number of retrievals bounds only how often
//! it is given out.

use crate::app::App;
use crate::http::api::content::{json, typed};
use crate::http::api::{Api, Kind, get, post, says};
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::KpError;
use crate::keys::act::{About, Act, Changed, Doing, Instance, answer, parse};
use crate::keys::create::{base64, custody, secret};
use crate::keys::view;
use crate::room::For;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claviger_crypto::transport::{self, CBC_IV, GCM_IV, Oaep, TransportKey};
use claviger_crypto::{SecretBytes, digest};
use claviger_custody::CustodyError;
use claviger_domain::access::KeyOperation;
use claviger_domain::audit;
use claviger_domain::id::{InstanceId, UnixMs};
use claviger_store::Tx;
use claviger_store::import_tokens::{self as store, ImportToken};
use claviger_wire::kp::import::{self as wire, IMPORT_TOKEN_TYPE, NewImportToken};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;
use zeroize::Zeroize;

/// Bytes of a nonce.
const NONCE: usize = 12;
/// Seconds that a token is good for, at least, if nothing is said, and at most.
const LIFE_S: (i64, i64, i64) = (300, 600, 86_400);
/// How long an import token that ended is told from none; then its private key goes, by which what
/// was sent under it could be opened.
pub(crate) const TOLD: Duration = Duration::from_secs(86_400);
/// Retrievals: at least, if nothing is said, and at most.
const RETRIEVALS: (i64, i64, i64) = (1, 1, 500);

/// How long a request waits for its turn: a few key pairs.
const TURN: Duration = Duration::from_secs(20);

pub(crate) fn api() -> Api {
    let answer = typed::<wire::ImportToken>(IMPORT_TOKEN_TYPE);
    let seen = says("getImportToken", "Retrieve the import token, which uses up one retrieval")
        .answers(200, answer)
        .refuses(&[409, 500]);
    let made =
        says("createImportToken", "Make an import token; it takes the place of the last one")
            .may_take(json::<NewImportToken>())
            .answers(200, answer);
    Api::new("import tokens", Kind::KeyProtect)
        .at("/api/v2/import_token", [get(retrieve, seen), post(create, made)])
}

/// What a token is made of, before it is sealed.
struct Made {
    private: SecretBytes,
    public: String,
    nonce: SecretBytes,
}

/// `POST /import_token`. A new token takes the place of the last one.
async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    body: Body,
) -> Result<Response, KpError> {
    let action = "kms.import-token.create";
    let failed = "Import token could not be created";
    let act = Act { caller, instance, action, failed, about: About::Instance };
    let wanted = wanted(&body);
    // Nobody makes the server work for seconds who may not.
    let allowed = check(&app, &act, |tx, act| act.on_instance(tx, KeyOperation::CreateImportToken));
    let made = match allowed.await {
        Err(e) => Err(e),
        Ok(()) if wanted.is_err() => Err(KpError::body("")),
        Ok(()) => make(&app, act.whom()).await,
    };
    let token = act
        .change(&app, move |app, tx, act, now| {
            act.on_instance(tx, KeyOperation::CreateImportToken)?;
            let (life_s, retrievals) = *wanted.as_ref().map_err(Clone::clone)?;
            let made = made.as_ref().map_err(Clone::clone)?;
            let instance = act.instance;
            let token = ImportToken {
                id: Uuid::new_v4().to_string(),
                created: now,
                expires: view::later(now, Duration::from_secs(life_s.unsigned_abs())),
                allowed: retrievals,
                remaining: retrievals,
                private: seal(app, instance, "private", &made.private),
                public: made.public.clone(),
                nonce: seal(app, instance, "nonce", &made.nonce),
            };
            store::put(tx, instance, &token)?;
            note(act, &token);
            Ok(Changed::just(seen(&token)))
        })
        .await?;
    Ok(answer(StatusCode::OK, IMPORT_TOKEN_TYPE, &token))
}

fn wanted(body: &Body) -> Result<(i64, u32), KpError> {
    let new: NewImportToken = body.text().map(parse).transpose()?.unwrap_or_default();
    let within = |name: &str, given: Option<i64>, (least, usual, most): (i64, i64, i64)| match given
        .unwrap_or(usual)
    {
        number if (least..=most).contains(&number) => Ok(number),
        _ => {
            let what = format!("The field '{name}' must be: a number from {least} to {most}");
            Err(KpError::field(name, what))
        }
    };
    let life_s = within("expiration", new.expiration, LIFE_S)?;
    let retrievals = within("maxAllowedRetrievals", new.max_allowed_retrievals, RETRIEVALS)?;
    Ok((life_s, u32::try_from(retrievals).expect("at most 500")))
}

async fn make(app: &Arc<App>, whom: For) -> Result<Made, KpError> {
    in_turn(app, whom, || {
        let key = TransportKey::generate();
        let nonce = SecretBytes::random(NONCE);
        Made { private: key.to_pkcs8(), public: key.public_pem(), nonce }
    })
    .await
}

/// Runs `work` when it is its turn: one at a time, since each takes a core for seconds, and others
/// need the cores. The turn lasts as long as the work, also where nobody waits for it any longer.
async fn in_turn<T: Send + 'static>(
    app: &Arc<App>,
    whom: For,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, KpError> {
    let turn = tokio::time::timeout(TURN, app.making.clone().acquire_owned());
    let turn = turn.await.map_err(|_| {
        let what = "The server is busy with other import tokens. Try again";
        let error = KpError::new(StatusCode::SERVICE_UNAVAILABLE, "IMPORT_TOKEN_BUSY_ERR", what);
        KpError { retry_after: Some(5), ..error }
    })?;
    let turn = turn.expect("never closed");
    let work = move |_: &App| {
        let _turn = turn;
        Ok(work())
    };
    app.asked(whom, work).await
}

/// Whether `allowed` says so now, ahead of the transaction that asks again.
async fn check(
    app: &Arc<App>,
    act: &Act,
    allowed: impl FnOnce(&Tx<'_>, &Act) -> Result<(), KpError> + Send + 'static,
) -> Result<(), KpError> {
    let whom = act.whom();
    let mut act = act.clone();
    let look = move |app: &App| {
        app.store.read(act.action, |tx| {
            act.admit(app, tx)?;
            allowed(tx, &act)
        })
    };
    app.asked(whom, look).await
}

/// `GET /import_token`: with what a sender of key material needs. Uses up one retrieval.
async fn retrieve(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
) -> Result<Response, KpError> {
    let action = "kms.import-token.read";
    let failed = "Import token could not be retrieved";
    let act = Act { caller, instance, action, failed, about: About::Instance };
    let token = act
        .change(&app, |app, tx, act, now| {
            act.on_instance(tx, KeyOperation::ReadImportToken)?;
            let mut token = good(tx, act.instance, StatusCode::NOT_FOUND, now)?;
            if token.remaining == 0 {
                let what = format!(
                    "The import token was retrieved {} times, as often as it may; make a new one",
                    token.allowed
                );
                return Err(KpError::conflict("IMPORT_TOKEN_RETRIEVALS_ERR", what));
            }
            store::retrieved(tx, act.instance)?;
            token.remaining -= 1;
            note(act, &token);
            let nonce = open(app, act.instance, "nonce", &token.nonce)?;
            let mut out = seen(&token);
            out.payload = Some(STANDARD.encode(&token.public));
            out.nonce = Some(STANDARD.encode(nonce.expose()));
            Ok(Changed::just(out))
        })
        .await?;
    Ok(answer(StatusCode::OK, IMPORT_TOKEN_TYPE, &token))
}

/// The instance's token, unless there is none or it has ended.
fn good(
    tx: &Tx<'_>,
    instance: InstanceId,
    absent: StatusCode,
    now: UnixMs,
) -> Result<ImportToken, KpError> {
    let token = store::get(tx, instance)?.ok_or_else(|| {
        let what = "The instance has no import token; make one with POST /import_token";
        KpError::new(absent, "IMPORT_TOKEN_NOT_FOUND_ERR", what)
    })?;
    if token.expires <= now {
        let what = format!(
            "The import token has expired at {}; make a new one",
            view::date(token.expires)
        );
        return Err(KpError::conflict("IMPORT_TOKEN_EXPIRED_ERR", what));
    }
    Ok(token)
}

fn note(act: &Doing, token: &ImportToken) {
    let ImportToken { allowed, remaining, expires, .. } = *token;
    act.note(|data| data.import_token = Some(audit::ImportToken { allowed, remaining, expires }));
}

fn seen(token: &ImportToken) -> wire::ImportToken {
    wire::ImportToken {
        id: token.id.clone(),
        creation_date: view::second(token.created),
        expiration_date: view::second(token.expires),
        expiration: token.expires.since(token.created) / 1000,
        max_allowed_retrievals: token.allowed,
        remaining_retrievals: token.remaining,
        payload: None,
        nonce: None,
    }
}

fn seal(app: &App, instance: InstanceId, column: &str, bytes: &SecretBytes) -> Vec<u8> {
    let instance = instance.to_string();
    app.custodian.seal_column(&["import_tokens", column, &instance], bytes.expose())
}

fn open(
    app: &App,
    instance: InstanceId,
    column: &str,
    sealed: &[u8],
) -> Result<SecretBytes, KpError> {
    let instance = instance.to_string();
    app.custodian.open_column(&["import_tokens", column, &instance], sealed).map_err(|e| {
        tracing::error!(error = %e, column, "import token");
        damaged()
    })
}

fn damaged() -> KpError {
    let what = "The import token does not open; the server's operator must look at its log. Make a new one";
    KpError::new(StatusCode::INTERNAL_SERVER_ERROR, "INCOMPLETE_METADATA_ERR", what)
}

/// Key material as it arrives.
pub(crate) enum Arriving {
    /// In the clear, but for TLS.
    Plain(SecretBytes),
    /// Under the instance's import token.
    Sealed { payload: Vec<u8>, nonce: Vec<u8>, iv: Vec<u8>, oaep: Oaep },
}

impl Arriving {
    /// Reads the four fields of an import; none if there is nothing to import. Wipes `payload`. An
    /// empty one is refused: whoever sends it believes that it brings material.
    pub(crate) fn read(
        payload: Option<String>,
        nonce: Option<&str>,
        iv: Option<&str>,
        algorithm: Option<&str>,
    ) -> Result<Option<Arriving>, KpError> {
        let given = |field: Option<&str>| field.is_some_and(|text| !text.is_empty());
        let mut payload = payload;
        if payload.as_ref().is_some_and(String::is_empty) {
            let what = "The field 'payload' must be: absent, or base64 of the key's material";
            return Err(KpError::field("payload", what));
        }
        if !given(nonce) && !given(iv) && !given(algorithm) {
            let Some(text) = &mut payload else { return Ok(None) };
            let plain = secret("payload", text);
            text.zeroize();
            return Ok(Some(Arriving::Plain(plain?)));
        }
        let bytes = |field: &str, text: Option<&str>| match text {
            Some(text) if !text.is_empty() => base64(field, text),
            _ => {
                let what = format!("The field '{field}' must be: given to import with a token");
                Err(KpError::field(field, what))
            }
        };
        let oaep = match algorithm.unwrap_or_default() {
            "" | "RSAES_OAEP_SHA_256" => Oaep::Sha256,
            "RSAES_OAEP_SHA_1" => Oaep::Sha1,
            _ => {
                let what = "The field 'encryptionAlgorithm' must be: RSAES_OAEP_SHA_256 or RSAES_OAEP_SHA_1";
                return Err(KpError::field("encryptionAlgorithm", what));
            }
        };
        let payload = bytes("payload", payload.as_deref())?;
        let nonce = bytes("encryptedNonce", nonce)?;
        let iv = bytes("iv", iv)?;
        if !matches!(iv.len(), GCM_IV | CBC_IV) {
            let what = format!(
                "The field 'iv' must be: {GCM_IV} bytes for AES-GCM or {CBC_IV} for AES-CBC"
            );
            return Err(KpError::field("iv", what));
        }
        Ok(Some(Arriving::Sealed { payload, nonce, iv, oaep }))
    }
}

/// The material in the clear. Opens it ahead of the transaction that uses it, since RSA is slow;
/// `allowed` is asked before, so that nobody learns about a token who may not use it.
pub(crate) async fn arrived(
    app: &Arc<App>,
    act: &Act,
    arriving: Option<Arriving>,
    allowed: impl FnOnce(&Tx<'_>, &Doing) -> Result<(), KpError> + Send + 'static,
) -> Result<Option<SecretBytes>, KpError> {
    let (payload, nonce, iv, oaep) = match arriving {
        None => return Ok(None),
        Some(Arriving::Plain(plain)) => return Ok(Some(plain)),
        Some(Arriving::Sealed { payload, nonce, iv, oaep }) => (payload, nonce, iv, oaep),
    };
    let now = app.clock.now();
    let whom = act.whom();
    let mut act = act.clone().begin(now);
    app.asked(whom, move |app| {
        let token = app.store.read(act.action, |tx| {
            act.admit(app, tx)?;
            allowed(tx, &act)?;
            good(tx, act.instance, StatusCode::CONFLICT, now)
        })?;
        let key = open(app, act.instance, "private", &token.private)?;
        let key = TransportKey::from_pkcs8(&key).map_err(|_| damaged())?;
        let material = key.open(oaep, &payload).map_err(|_| {
            let what = "The field 'payload' must be: encrypted under the public key of the instance's import token, with the encryptionAlgorithm that is named";
            KpError::field("payload", what)
        })?;
        if !matches!(material.len(), 16 | 24 | 32) {
            return Err(custody(CustodyError::MaterialLength(material.len())));
        }
        let opened = transport::open_nonce(material.expose(), &iv, &nonce).map_err(|_| {
            let what = "The encrypted nonce does not decrypt with the given key material and iv";
            KpError::new(StatusCode::BAD_REQUEST, "INCORRECT_NONCE_IV_ERR", what)
        })?;
        let nonce = open(app, act.instance, "nonce", &token.nonce)?;
        if !digest::equal(opened.expose(), nonce.expose()) {
            let what = "The encrypted nonce is not that of the instance's import token; retrieve the token again";
            return Err(KpError::new(StatusCode::BAD_REQUEST, "INCORRECT_NONCE_ERR", what));
        }
        Ok(Some(material))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, envelope};
    use serde_json::{Value, json};
    use std::sync::mpsc;

    #[tokio::test]
    async fn who_hangs_up_gives_no_turn_to_the_next_before_the_work_is_done() {
        let w = World::new();
        let (go, wait) = mpsc::channel::<()>();
        let mut work = Box::pin(in_turn(&w.app, For::Other, move || wait.recv().is_ok()));
        assert!(futures_util::poll!(&mut work).is_pending());
        drop(work);
        assert_eq!(w.app.making.available_permits(), 0, "the work goes on");
        go.send(()).expect("it waits");
        let turn = w.app.making.acquire().await.expect("never closed");
        drop(turn);
    }

    /// Whoever is barred makes the server do no work: it would ask for a turn, of which there are
    /// none here.
    #[tokio::test]
    async fn no_key_pair_is_made_for_whoever_is_barred() {
        let w = World::new();
        let data = json!({"enabled": true, "attributes": {"allowed_ip": ["192.0.2.0/24"]}});
        let policy = json!({"policy_type": "allowedIP", "policy_data": data});
        w.call("PUT /instance/policies", &envelope(policy)).await.is(204);
        w.app.making.close();
        w.call("POST /import_token", &Value::Null).await.is(401);
    }
}
