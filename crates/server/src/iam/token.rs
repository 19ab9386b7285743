//! Access tokens and API keys.
//!
//! A token is a JWT (RFC 7519) signed with HMAC-SHA-256 by a key that the custodian seals: only
//! this server reads it, so a public key would have no reader. An API key is 256 random bits; the
//! database keeps its HMAC-SHA-256 under a sealed pepper.

use claviger_crypto::SecretBytes;
use claviger_crypto::digest::MacKey;
use claviger_domain::id::UnixMs;
use claviger_store::iam::Principal;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Signs and reads tokens, makes and hashes API keys.
pub(crate) struct Tokens {
    sign: EncodingKey,
    verify: DecodingKey,
    pepper: MacKey,
}

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadToken {
    /// Not a token at all.
    Malformed,
    /// Not signed by this server.
    Foreign,
    /// Its time is over.
    Expired,
}

/// Clocks of callers may be off; the server's own is not, so this is short.
const LEEWAY_S: i64 = 5;

#[derive(Serialize, Deserialize)]
struct Claims {
    iam_id: String,
    id: String,
    realmid: String,
    identifier: String,
    name: String,
    email: String,
    sub: String,
    sub_type: String,
    account: AccountClaim,
    iat: i64,
    exp: i64,
    iss: String,
    grant_type: String,
    scope: String,
    client_id: String,
    acr: i64,
    amr: Vec<String>,
    jti: String,
}

#[derive(Serialize, Deserialize)]
struct AccountClaim {
    valid: bool,
    bss: String,
}

/// What goes into a token.
pub(crate) struct Issue<'a> {
    pub(crate) principal: &'a Principal,
    pub(crate) account: &'a str,
    pub(crate) issuer: &'a str,
    pub(crate) grant_type: &'a str,
    pub(crate) now: UnixMs,
    pub(crate) life_s: i64,
}

impl Tokens {
    pub(crate) fn new(key: &SecretBytes, pepper: &SecretBytes) -> Tokens {
        Tokens {
            sign: EncodingKey::from_secret(key.expose()),
            verify: DecodingKey::from_secret(key.expose()),
            pepper: MacKey::new(pepper.expose()),
        }
    }

    /// A new API key.
    pub(crate) fn new_api_key(&self) -> String {
        use base64::Engine as _;
        let bytes = SecretBytes::random(32);
        let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes.expose());
        format!("clv_{text}")
    }

    /// What the database keeps of an API key.
    pub(crate) fn api_key_mac(&self, api_key: &str) -> [u8; 32] {
        self.pepper.tag(api_key.as_bytes())
    }

    pub(crate) fn issue(&self, what: &Issue<'_>) -> String {
        let p = what.principal;
        let iat = what.now.0.div_euclid(1000);
        let (realm, identifier) = p.iam_id.split_once('-').unwrap_or(("iam", &p.iam_id));
        let claims = Claims {
            iam_id: p.iam_id.clone(),
            id: p.iam_id.clone(),
            realmid: realm.to_owned(),
            identifier: identifier.to_owned(),
            name: p.name.clone(),
            email: p.email.clone(),
            sub: if p.email.is_empty() { p.iam_id.clone() } else { p.email.clone() },
            sub_type: if p.service { "ServiceId".to_owned() } else { "User".to_owned() },
            account: AccountClaim { valid: true, bss: what.account.to_owned() },
            iat,
            exp: iat + what.life_s,
            iss: what.issuer.to_owned(),
            grant_type: what.grant_type.to_owned(),
            scope: "ibm openid".to_owned(),
            client_id: "default".to_owned(),
            acr: 1,
            amr: vec!["pwd".to_owned()],
            jti: Uuid::new_v4().to_string(),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.sign)
            .expect("claims are valid JSON and HMAC signs anything")
    }

    /// The IAM id of a token that this server issued and whose time is not over.
    pub(crate) fn read(&self, token: &str, now: UnixMs) -> Result<String, BadToken> {
        let mut validation = Validation::new(Algorithm::HS256);
        // Checked below by the server's own clock.
        validation.validate_exp = false;
        validation.validate_aud = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verify, &validation)
            .map_err(|e| match e.kind() {
                jsonwebtoken::errors::ErrorKind::InvalidSignature
                | jsonwebtoken::errors::ErrorKind::InvalidAlgorithm => BadToken::Foreign,
                _ => BadToken::Malformed,
            })?
            .claims;
        if claims.exp + LEEWAY_S < now.0.div_euclid(1000) {
            return Err(BadToken::Expired);
        }
        Ok(claims.iam_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        Tokens::new(&SecretBytes::random(32), &SecretBytes::random(32))
    }

    fn issue(tokens: &Tokens, now: UnixMs) -> String {
        let principal = Principal {
            iam_id: "IBMid-1".to_owned(),
            service: false,
            name: "n".to_owned(),
            email: "e@x".to_owned(),
        };
        let issue = Issue {
            principal: &principal,
            account: "a",
            issuer: "https://x/identity",
            grant_type: "g",
            now,
            life_s: 3600,
        };
        tokens.issue(&issue)
    }

    #[test]
    fn tokens_of_this_server_are_read_until_their_time_is_over() {
        let (ours, theirs) = (tokens(), tokens());
        let now = UnixMs(1_700_000_000_000);
        let token = issue(&ours, now);
        assert_eq!(ours.read(&token, now).as_deref(), Ok("IBMid-1"));
        assert_eq!(theirs.read(&token, now), Err(BadToken::Foreign));
        let later = UnixMs(now.0 + 3_610_000);
        assert_eq!(ours.read(&token, later), Err(BadToken::Expired));
        assert_eq!(ours.read("rubbish", now), Err(BadToken::Malformed));
    }

    #[test]
    fn unsigned_tokens_are_refused() {
        use base64::Engine as _;
        let ours = tokens();
        let token = issue(&ours, UnixMs(0));
        let body = token.split('.').nth(1).expect("three parts").to_owned();
        let header = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .encode(br#"{"alg":"none","typ":"JWT"}"#);
        assert!(ours.read(&format!("{header}.{body}."), UnixMs(0)).is_err());
    }
}
