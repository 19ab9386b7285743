//! Keys of the issuers whose ID tokens are believed: found by OpenID Connect Discovery, fetched when
//! they are needed, and kept for a while.
//!
//! Only issuers that the operator named are asked, never one that a token names. Every answer, wait
//! and cache is bounded, and nobody can make this server ask an issuer more often than
//! [`FETCHES_MAX`] says.

use super::trust::algorithm;
use crate::app::{LoginIssuer, LoginSettings};
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use reqwest::{Certificate, Client, Url, redirect};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::io::Read as _;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::Mutex;

/// For one answer of an issuer; a fetch takes two.
const ANSWER: Duration = Duration::from_secs(3);
/// Largest answer: keys with certificates have some ten KiB.
const BODY_MAX: usize = 256 << 10;
/// Keys of one issuer; big ones have some ten.
const KEYS_MAX: usize = 50;
/// Keys are fetched anew after that.
const FRESH: Duration = Duration::from_secs(3600);
/// Keys that are older count no longer, although the issuer does not answer.
const STALE: Duration = Duration::from_secs(86_400);
/// Fetches of one issuer within [`FETCHES_WITHIN`]: a token with an unknown key causes one, and
/// strangers can send those.
const FETCHES_MAX: usize = 10;
const FETCHES_WITHIN: Duration = Duration::from_secs(60);
/// Largest file of certificates.
const CA_MAX: u64 = 1 << 20;

/// Why a key is not known.
#[derive(Debug, Error)]
pub(super) enum NoKey {
    /// The issuer has no such key.
    #[error("the issuer has no key of this name")]
    Unknown,
    /// It cannot be learned now.
    #[error("the issuer {issuer} gave no keys: {why}")]
    Down { issuer: String, why: String },
}

/// Why logins by issuers cannot be offered.
#[derive(Debug, Error)]
#[error("logins: {0}")]
pub struct LoginError(String);

/// The issuers that are believed, each with its keys.
#[derive(Debug)]
pub(crate) struct Issuers {
    client: Option<Client>,
    all: Vec<(LoginIssuer, Mutex<Held>)>,
}

#[derive(Debug, Default)]
struct Held {
    keys: Vec<Jwk>,
    since: Option<Instant>,
    /// The moments of the last fetches; at most [`FETCHES_MAX`].
    fetches: VecDeque<Instant>,
}

impl Issuers {
    /// Asks nobody yet.
    pub(crate) fn new(settings: &LoginSettings) -> Result<Issuers, LoginError> {
        if settings.issuers.is_empty() {
            return Ok(Issuers { client: None, all: Vec::new() });
        }
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Fails only if another thread was faster, with the same.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        // No redirects: they would lead to whom nobody named.
        let mut client = Client::builder().timeout(ANSWER).redirect(redirect::Policy::none());
        if let Some(file) = &settings.ca {
            let wrong = |why: String| LoginError(format!("{}: {why}", file.display()));
            let mut pem = Vec::new();
            std::fs::File::open(file)
                .and_then(|opened| opened.take(CA_MAX).read_to_end(&mut pem))
                .map_err(|e| wrong(e.to_string()))?;
            let found = Certificate::from_pem_bundle(&pem).unwrap_or_default();
            if found.is_empty() {
                return Err(wrong("holds no certificate in PEM".to_owned()));
            }
            client = client.tls_certs_only(found);
        }
        let client = client.build().map_err(|e| LoginError(e.to_string()))?;
        let all = settings.issuers.iter().map(|one| (one.clone(), Mutex::default())).collect();
        Ok(Issuers { client: Some(client), all })
    }

    /// What the operator said of an issuer; none if he did not name it.
    pub(super) fn named(&self, issuer: &str) -> Option<&LoginIssuer> {
        self.all.iter().map(|(named, _)| named).find(|named| named.issuer == issuer)
    }

    /// The key `kid` of an issuer that the operator named.
    pub(super) async fn key(&self, issuer: &LoginIssuer, kid: &str) -> Result<Jwk, NoKey> {
        let found = self.all.iter().find(|(named, _)| named == issuer);
        let (Some((_, held)), Some(client)) = (found, &self.client) else {
            return Err(NoKey::Unknown);
        };
        // Held while keys are fetched, so that a hundred logins fetch them once.
        let mut held = held.lock().await;
        let age = held.since.map(|since| since.elapsed());
        if let (Some(key), true) = (held.get(kid), age.is_some_and(|age| age < FRESH)) {
            return Ok(key);
        }
        let fetched = match held.may_fetch(Instant::now()) {
            true => fetch(client, issuer).await,
            false => Err("it was asked often enough for now".to_owned()),
        };
        match fetched {
            Ok(keys) => {
                held.keys = keys;
                held.since = Some(Instant::now());
                held.get(kid).ok_or(NoKey::Unknown)
            }
            Err(why) => match held.get(kid) {
                Some(key) if age.is_some_and(|age| age < STALE) => Ok(key),
                _ => Err(NoKey::Down { issuer: issuer.issuer.clone(), why }),
            },
        }
    }
}

impl Held {
    fn get(&self, kid: &str) -> Option<Jwk> {
        self.keys.iter().find(|key| key.common.key_id.as_deref() == Some(kid)).cloned()
    }

    /// Whether the issuer may be asked now, which counts.
    fn may_fetch(&mut self, now: Instant) -> bool {
        while self.fetches.front().is_some_and(|first| now - *first >= FETCHES_WITHIN) {
            self.fetches.pop_front();
        }
        if self.fetches.len() >= FETCHES_MAX {
            return false;
        }
        self.fetches.push_back(now);
        true
    }
}

/// What is read of an issuer's description (OpenID Connect Discovery 1.0, section 3).
#[derive(Deserialize)]
struct Description {
    issuer: String,
    jwks_uri: String,
}

/// A JWK set whose keys may be of kinds that are not known here.
#[derive(Deserialize)]
struct Keys {
    keys: Vec<serde_json::Value>,
}

async fn fetch(client: &Client, issuer: &LoginIssuer) -> Result<Vec<Jwk>, String> {
    let url = match &issuer.jwks_url {
        Some(url) => url.clone(),
        None => {
            let base = issuer.issuer.trim_end_matches('/');
            let url = format!("{base}/.well-known/openid-configuration");
            let said: Description = get(client, &url).await?;
            if said.issuer != issuer.issuer {
                return Err(format!("it calls itself {:?}", said.issuer));
            }
            said.jwks_uri
        }
    };
    if !may_ask(&url) {
        return Err(format!("its keys are at {url:?}, which is not https://"));
    }
    let keys: Keys = get(client, &url).await?;
    Ok(usable(keys))
}

/// Keys that can verify here. Others may be there as well, for other ends.
fn usable(keys: Keys) -> Vec<Jwk> {
    let read = |key: serde_json::Value| serde_json::from_value::<Jwk>(key).ok();
    let good = |key: &Jwk| {
        let signs = key.common.public_key_use.as_ref();
        signs.is_none_or(|usage| *usage == PublicKeyUse::Signature)
            && key.common.key_id.as_ref().is_some_and(|kid| !kid.is_empty())
            && algorithm(key).is_some()
    };
    keys.keys.into_iter().filter_map(read).filter(good).take(KEYS_MAX).collect()
}

/// Whether a URL can be asked: by TLS, or on this machine itself.
pub fn may_ask(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let here = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    url.host_str().is_some() && (url.scheme() == "https" || url.scheme() == "http" && here)
}

async fn get<T: DeserializeOwned>(client: &Client, url: &str) -> Result<T, String> {
    let said = |e: &reqwest::Error| {
        let why = match e {
            e if e.is_timeout() => "no answer in time",
            e if e.is_connect() => "it cannot be reached",
            _ => "the answer broke off",
        };
        format!("{url}: {why}")
    };
    let mut answer = client.get(url).send().await.map_err(|e| said(&e))?;
    if !answer.status().is_success() {
        return Err(format!("{url}: answer {}", answer.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| said(&e))? {
        if body.len() + chunk.len() > BODY_MAX {
            return Err(format!("{url}: more than {BODY_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|_| format!("{url}: not the JSON that was expected"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn issuers_are_asked_by_tls_or_on_this_machine() {
        for (url, good) in [
            ("https://issuer.example/keys", true),
            ("http://issuer.example/keys", false),
            ("http://127.0.0.1:1/keys", true),
            ("http://localhost/keys", true),
            ("http://localhost.example/keys", false),
            ("file:///etc/passwd", false),
            ("issuer.example", false),
        ] {
            assert_eq!(may_ask(url), good, "{url}");
        }
    }

    #[test]
    fn an_issuer_is_not_asked_at_will() {
        let (mut held, now) = (Held::default(), Instant::now());
        let asked = (0..100).filter(|_| held.may_fetch(now)).count();
        assert_eq!((asked, held.fetches.len()), (FETCHES_MAX, FETCHES_MAX));
        assert!(!held.may_fetch(now + FETCHES_WITHIN / 2));
        assert!(held.may_fetch(now + FETCHES_WITHIN));
    }

    #[test]
    fn keys_of_other_kinds_and_for_other_ends_are_left_out() {
        let ec = |kid: &str, crv: &str, usage: &str| json!({"kty": "EC", "crv": crv, "x": "AA", "y": "AA", "kid": kid, "use": usage});
        let keys = vec![
            ec("good", "P-256", "sig"),
            ec("encrypts", "P-256", "enc"),
            ec("longer", "P-384", "sig"),
            ec("", "P-256", "sig"),
            json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "rsa"}),
            json!({"kty": "oct", "k": "AQAB", "kid": "shared"}),
            json!({"kty": "NEW", "kid": "unknown"}),
            json!("rubbish"),
        ];
        let found = usable(Keys { keys });
        let names: Vec<_> = found.iter().filter_map(|key| key.common.key_id.as_deref()).collect();
        assert_eq!(names, ["good", "rsa"]);
    }
}
