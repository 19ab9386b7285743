//! The grant `cr-token`: a pod's way in. A service-account token of a trusted issuer becomes a
//! service ID that an administrator named for exactly its issuer and subject.
//!
//! Issuers are trusted with their keys given along; nothing is ever fetched, so no token can make
//! the server ask anybody.

use super::grant::{Login, Refused, storage};
use super::token::{Credential, LEEWAY_S};
use crate::app::App;
use crate::room::For;
use claviger_crypto::digest::{hex, sha256};
use claviger_domain::id::UnixMs;
use claviger_store::iam::{self, Principal};
use claviger_store::{StoreError, Tx, trust};
use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// Longest token, in bytes; one of Kubernetes has about a thousand.
pub(super) const TOKEN_MAX: usize = 8 << 10;
/// Keys of one issuer; Kubernetes has one, and two during a rotation.
const KEYS_MAX: usize = 16;
/// Longest life of a token that is taken, in seconds: a day, and then some. Tokens without an end
/// are no way in.
const LIFE_MAX_S: i64 = 100_000;

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: i64,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(default)]
    iat: Option<i64>,
}

/// For whom a token is (RFC 7519, section 4.1.3).
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    pub(super) fn has(&self, wanted: &str) -> bool {
        match self {
            Audience::One(one) => one == wanted,
            Audience::Many(many) => many.iter().any(|one| one == wanted),
        }
    }

    /// Whether it names more than one.
    pub(super) fn several(&self) -> bool {
        matches!(self, Audience::Many(many) if many.len() > 1)
    }
}

/// What an issuer says of itself before anything is verified: which keys to look at.
#[derive(Deserialize)]
struct Claimed {
    iss: String,
}

/// How a key may be used: by its kind, whatever a token says. None for kinds that are not taken.
pub(super) fn algorithm(jwk: &Jwk) -> Option<Algorithm> {
    match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Some(Algorithm::RS256),
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
            Some(Algorithm::ES256)
        }
        _ => None,
    }
}

/// Whom a token names as its issuer, before anything of it is verified.
pub(super) fn issuer_of(token: &str) -> Option<String> {
    insecure_decode_claims::<Claimed>(token).ok().map(|claimed| claimed.iss)
}

/// What a token says, if `jwk` signed it. The key says how it is used, not the token; times and
/// audience are for the caller to check.
pub(super) fn signed<C: DeserializeOwned>(token: &str, jwk: &Jwk) -> Option<C> {
    let (algorithm, key) = (algorithm(jwk)?, DecodingKey::from_jwk(jwk).ok()?);
    let mut validation = Validation::new(algorithm);
    // Checked by the caller, by the server's own clock.
    validation.validate_exp = false;
    validation.validate_aud = false;
    jsonwebtoken::decode::<C>(token, &key, &validation).ok().map(|token| token.claims)
}

/// Whether a key of a JWK set has what only its owner may know (RFC 7518, sections 6.2.2, 6.3.2
/// and 6.4).
fn secret(text: &str) -> bool {
    let set: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let keys = set["keys"].as_array().into_iter().flatten();
    let secret = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
    keys.into_iter().any(|key| secret.iter().any(|name| key.get(name).is_some()))
}

/// Reads a JWK set (RFC 7517) as an administrator gives it: public keys for RS256 or ES256, each
/// with a name of its own.
pub(super) fn read_keys(text: &str) -> Result<JwkSet, &'static str> {
    let set: JwkSet = serde_json::from_str(text).map_err(|_| "jwks is not a JWK set")?;
    if secret(text) {
        return Err("jwks has a private key; give its public half alone");
    }
    if set.keys.is_empty() || set.keys.len() > KEYS_MAX {
        return Err("jwks must have 1 to 16 keys");
    }
    let mut names: Vec<&str> = Vec::new();
    for jwk in &set.keys {
        let Some(name) = jwk.common.key_id.as_deref().filter(|kid| !kid.is_empty()) else {
            return Err("each key of jwks must have a kid");
        };
        if names.contains(&name) {
            return Err("two keys of jwks have the same kid");
        }
        names.push(name);
        if algorithm(jwk).is_none() || DecodingKey::from_jwk(jwk).is_err() {
            return Err("a key of jwks is neither RSA nor on the curve P-256");
        }
    }
    Ok(set)
}

/// What a key of an issuer is known by: another key, or another audience, has another.
pub(super) fn fingerprint(jwk: &Jwk, audience: &str) -> String {
    let jwk = serde_json::to_vec(jwk).expect("it was read from JSON");
    hex(&sha256(&[audience.as_bytes(), b"\0", &jwk].concat())[..16])
}

/// Whether the issuer is trusted with this key still.
pub(crate) fn trusts(tx: &Tx<'_>, issuer: &str, key: &str) -> Result<bool, StoreError> {
    let Some(issuer) = trust::issuer(tx, issuer)? else { return Ok(false) };
    let set = read_keys(&issuer.jwks).map_err(damaged)?;
    Ok(set.keys.iter().any(|jwk| fingerprint(jwk, &issuer.audience) == key))
}

fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(format!("keys of a trusted issuer: {what}"))
}

/// What a token says that an issuer signed who is trusted.
struct Verified {
    issuer: String,
    subject: String,
    key: String,
    /// Seconds since the Unix epoch.
    expires_s: i64,
}

/// Whose token this is, if an issuer that is trusted signed it for this server and its time has
/// come and is not over.
fn verify(tx: &Tx<'_>, token: &str, now: UnixMs) -> Result<Option<Verified>, StoreError> {
    if token.len() > TOKEN_MAX {
        return Ok(None);
    }
    let Ok(header) = jsonwebtoken::decode_header(token) else { return Ok(None) };
    let Some(issuer) = issuer_of(token) else { return Ok(None) };
    let Some(issuer) = trust::issuer(tx, &issuer)? else { return Ok(None) };
    let set = read_keys(&issuer.jwks).map_err(damaged)?;
    let Some(jwk) = header.kid.as_deref().and_then(|kid| set.find(kid)) else { return Ok(None) };
    let Some(claims) = signed::<Claims>(token, jwk) else { return Ok(None) };
    let now_s = now.0.div_euclid(1000);
    let begins = claims.nbf.into_iter().chain(claims.iat).max().unwrap_or(0);
    let in_time = begins <= now_s + LEEWAY_S
        && now_s <= claims.exp.saturating_add(LEEWAY_S)
        && claims.exp.saturating_sub(now_s) <= LIFE_MAX_S;
    let ours = claims.iss == issuer.issuer && claims.aud.has(&issuer.audience);
    let verified = Verified {
        key: fingerprint(jwk, &issuer.audience),
        issuer: claims.iss,
        subject: claims.sub,
        expires_s: claims.exp,
    };
    Ok((in_time && ours && !verified.subject.is_empty()).then_some(verified))
}

/// A service ID as a client names it: IAM id, its UUID, CRN, or name.
fn is_named(principal: &Principal, wanted: &str) -> bool {
    let id = principal.iam_id.strip_prefix("iam-").unwrap_or(&principal.iam_id);
    let last = wanted.rsplit(':').next().unwrap_or(wanted);
    [wanted, last].contains(&id) || principal.iam_id == wanted || principal.name == wanted
}

/// Exchanges a token of a trusted issuer. One answer for all that is wrong with it, as whoever
/// may not come in is to learn nothing.
pub(super) async fn login(
    app: &Arc<App>,
    token: String,
    profile: Option<String>,
    now: UnixMs,
) -> Result<Login, Refused> {
    let found = app.asked(For::Other, move |app| {
        app.store.read("cr-token", |tx| {
            let Some(verified) = verify(tx, &token, now)? else { return Ok(None) };
            let Verified { issuer, subject, key, expires_s } = verified;
            let mut may_become = Vec::new();
            for iam_id in trust::of_subject(tx, &issuer, &subject)? {
                may_become.extend(iam::principal(tx, &iam_id)?);
            }
            if let Some(wanted) = &profile {
                may_become.retain(|principal| is_named(principal, wanted));
            }
            // Who may become several must say which.
            Ok::<_, StoreError>(match may_become.pop() {
                Some(one) if may_become.is_empty() => {
                    Some((one, Credential::Trust { issuer, subject, key }, expires_s))
                }
                _ => None,
            })
        })
    });
    match found.await.map_err(storage)? {
        Some((principal, credential, expires_s)) => {
            let until_s = Some(expires_s);
            Ok(Login { principal, credential, until_s, refresh_until_s: None })
        }
        None => Err(Refused::bad(
            "BXNIM0439E",
            "Provided cr_token is not one of a trusted issuer, has ended, or may not become this service ID.",
        )),
    }
}
