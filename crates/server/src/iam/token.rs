//! Access tokens, refresh tokens and API keys.
//!
//! An access token is a JWT (RFC 7519) signed by one of [`SigningKeys`]. A refresh token is a
//! claim under HMAC-SHA-256 that only this server reads. Both say by which credential they were
//! got, and count only as long as that credential does. An API key is 256 random bits; the
//! database keeps its HMAC-SHA-256 under a sealed pepper.

use super::signing::{self, SigningKey, SigningKeys, base64url};
use claviger_crypto::SecretBytes;
use claviger_crypto::digest::{self, MacKey};
use claviger_domain::id::{AgentName, UnixMs};
use claviger_store::iam::Principal;
use jsonwebtoken::{Algorithm, Header, Validation};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use uuid::Uuid;

/// Signs and reads tokens, makes and hashes API keys.
pub(crate) struct Tokens {
    keys: RwLock<Held>,
    /// Held while keys are loaded and taken up: what is loaded last is taken up last.
    loading: Mutex<()>,
    pepper: MacKey,
    refresh: MacKey,
}

/// The keys that are in use.
struct Held {
    keys: SigningKeys,
    /// Rises whenever others are taken up.
    generation: u64,
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
pub(crate) const LEEWAY_S: i64 = 5;
/// What a refresh token begins with, so that people and secret scanners know one.
const REFRESH_PREFIX: &str = "clr_";

/// What a token was got with. The token counts as long as this does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Credential {
    /// The API key of this id.
    ApiKey(Uuid),
    /// The certificate of a node.
    Node {
        /// Its agent; the IAM id names the cluster.
        agent: AgentName,
        /// SHA-256 of the certificate's DER, lower-case hexadecimal.
        fingerprint: String,
        /// When it ends.
        not_after: UnixMs,
    },
    /// A token of a trusted issuer.
    Trust {
        /// Its issuer.
        issuer: String,
        /// Its subject.
        subject: String,
        /// The [fingerprint](super::trust::fingerprint) of the key that signed it.
        key: String,
    },
    /// An ID token of an issuer of people.
    Login {
        /// Its issuer.
        issuer: String,
        /// Its subject.
        subject: String,
    },
}

/// Whom an access token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bearer {
    pub(crate) iam_id: String,
    pub(crate) credential: Credential,
    /// Seconds since the Unix epoch.
    pub(crate) expires_s: i64,
}

impl Bearer {
    /// Whether its time is over.
    pub(crate) fn expired(&self, now: UnixMs) -> bool {
        self.expires_s.saturating_add(LEEWAY_S) < now.0.div_euclid(1000)
    }
}

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
    credential: Credential,
}

#[derive(Serialize, Deserialize)]
struct AccountClaim {
    valid: bool,
    bss: String,
}

#[derive(Serialize, Deserialize)]
struct RefreshClaims {
    iam_id: String,
    credential: Credential,
    exp: i64,
    /// When it was made, in milliseconds since the Unix epoch.
    made: i64,
}

/// What goes into a token.
pub(crate) struct Issue<'a> {
    pub(crate) principal: &'a Principal,
    pub(crate) credential: &'a Credential,
    pub(crate) account: &'a str,
    pub(crate) issuer: &'a str,
    pub(crate) grant_type: &'a str,
    pub(crate) now: UnixMs,
    pub(crate) life_s: i64,
}

/// What tokens of a server have in common.
pub(crate) struct Expected<'a> {
    pub(crate) issuer: &'a str,
    pub(crate) account: &'a str,
    /// How long one lives at most, in seconds.
    pub(crate) life_s: i64,
}

impl Tokens {
    pub(crate) fn new(keys: SigningKeys, pepper: &SecretBytes) -> Tokens {
        let pepper = MacKey::new(pepper.expose());
        let refresh = MacKey::new(&pepper.tag(b"claviger refresh tokens 1"));
        let keys = RwLock::new(Held { keys, generation: 0 });
        Tokens { keys, loading: Mutex::new(()), pepper, refresh }
    }

    fn held(&self) -> RwLockReadGuard<'_, Held> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the keys up that `load` reads, after a rotation is durable.
    pub(crate) fn reload<E>(&self, load: impl FnOnce() -> Result<SigningKeys, E>) -> Result<(), E> {
        let _one = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = load()?;
        let mut held = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        *held = Held { keys, generation: held.generation + 1 };
        Ok(())
    }

    /// Which keys are in use: what was verified under another generation is verified again.
    pub(crate) fn generation(&self) -> u64 {
        self.held().generation
    }

    /// Looks at the keys that verify tokens of `life_s` seconds, the one that signs first.
    pub(crate) fn with_keys<T>(
        &self,
        now: UnixMs,
        life_s: i64,
        look: impl FnOnce(&mut dyn Iterator<Item = &SigningKey>) -> T,
    ) -> T {
        let keys = &self.held().keys;
        let verifies =
            |key: &&SigningKey| signing::verifies(keys.retired(&key.listed.kid), life_s, now);
        look(&mut keys.all().iter().filter(verifies))
    }

    /// A new API key.
    pub(crate) fn new_api_key(&self) -> String {
        let bytes = SecretBytes::random(32);
        format!("clv_{}", base64url(bytes.expose()))
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
            credential: what.credential.clone(),
        };
        let held = self.held();
        let key = held.keys.current();
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(key.listed.kid.clone());
        jsonwebtoken::encode(&header, &claims, &key.sign)
            .expect("claims are valid JSON, and the key was read as one of P-256")
    }

    /// Whom a token of this server is for, if its time is not over. A key that signs no longer
    /// verifies what it signed while it did, and none of its tokens lives longer than those that
    /// the server makes.
    pub(crate) fn read(
        &self,
        token: &str,
        now: UnixMs,
        expected: &Expected<'_>,
    ) -> Result<Bearer, BadToken> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| BadToken::Malformed)?;
        let held = self.held();
        // The key says how it is used, not the token.
        let key = header.kid.as_deref().and_then(|kid| held.keys.named(kid));
        let key = key.ok_or(BadToken::Foreign)?;
        let retired = held.keys.retired(&key.listed.kid);
        if !signing::verifies(retired, expected.life_s, now) {
            return Err(BadToken::Foreign);
        }
        let mut validation = Validation::new(Algorithm::ES256);
        // Checked below by the server's own clock.
        validation.validate_exp = false;
        validation.validate_aud = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &key.verify, &validation)
            .map_err(|e| match e.kind() {
                jsonwebtoken::errors::ErrorKind::InvalidSignature
                | jsonwebtoken::errors::ErrorKind::InvalidAlgorithm => BadToken::Foreign,
                _ => BadToken::Malformed,
            })?
            .claims;
        let Claims { iam_id, credential, iat, exp, iss, account, .. } = claims;
        let begun = |retired: UnixMs| iat <= retired.0.div_euclid(1000);
        let ours = iss == expected.issuer
            && account.bss == expected.account
            && exp.saturating_sub(iat) <= expected.life_s
            && retired.is_none_or(begun);
        if !ours {
            return Err(BadToken::Foreign);
        }
        let bearer = Bearer { iam_id, credential, expires_s: exp };
        if bearer.expired(now) { Err(BadToken::Expired) } else { Ok(bearer) }
    }

    /// A refresh token for the same caller, good until `expires_s`, or until all signing keys are
    /// ended at once.
    pub(crate) fn refresh_token(&self, bearer: &Bearer, now: UnixMs) -> String {
        let claims = RefreshClaims {
            iam_id: bearer.iam_id.clone(),
            credential: bearer.credential.clone(),
            exp: bearer.expires_s,
            made: now.0,
        };
        let text = serde_json::to_vec(&claims).expect("claims are valid JSON");
        let tag = self.refresh.tag(&text);
        format!("{REFRESH_PREFIX}{}.{}", base64url(&text), base64url(&tag))
    }

    /// Whom a refresh token of this server is for, if its time is not over.
    pub(crate) fn read_refresh(&self, token: &str, now: UnixMs) -> Result<Bearer, BadToken> {
        use base64::Engine as _;
        let decode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text);
        let (text, tag) = token
            .strip_prefix(REFRESH_PREFIX)
            .and_then(|token| token.split_once('.'))
            .ok_or(BadToken::Malformed)?;
        let (Ok(text), Ok(tag)) = (decode(text), decode(tag)) else {
            return Err(BadToken::Malformed);
        };
        if !digest::equal(&self.refresh.tag(&text), &tag) {
            return Err(BadToken::Foreign);
        }
        let claims: RefreshClaims =
            serde_json::from_slice(&text).map_err(|_| BadToken::Malformed)?;
        let RefreshClaims { iam_id, credential, exp, made } = claims;
        if made <= self.held().keys.ended().0 {
            return Err(BadToken::Foreign);
        }
        let bearer = Bearer { iam_id, credential, expires_s: exp };
        if bearer.expired(now) { Err(BadToken::Expired) } else { Ok(bearer) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::first::StartError;
    use claviger_crypto::Key32;
    use claviger_custody::software::Software;
    use claviger_store::Store;

    const NOW: UnixMs = UnixMs(1_700_000_000_000);
    const HOUR_S: i64 = 3600;
    const OURS: Expected<'_> =
        Expected { issuer: "https://x/identity", account: "a", life_s: HOUR_S };

    struct Lab {
        store: Store,
        custodian: Software,
        _dir: tempfile::TempDir,
    }

    impl Lab {
        fn new() -> Lab {
            let dir = tempfile::tempdir().expect("a directory");
            let store = Store::open(&dir.path().join("claviger.db")).expect("opens");
            Lab { store, custodian: Software::new(&Key32::generate()), _dir: dir }
        }

        /// Whether another key signs from now on.
        fn rotate(&self, now: UnixMs, life_s: Option<i64>) -> bool {
            let made = self.store.tx("t", |tx| signing::rotate(tx, &self.custodian, now, life_s));
            made.expect("rotates").is_some()
        }

        fn load(&self) -> SigningKeys {
            let keys = self.store.read("t", |tx| SigningKeys::load(tx, &self.custodian));
            keys.expect("loads")
        }

        fn take_up(&self, tokens: &Tokens) {
            tokens.reload(|| Ok::<_, StartError>(self.load())).expect("loads");
        }

        fn tokens(&self) -> Tokens {
            assert!(self.rotate(NOW, None));
            Tokens::new(self.load(), &SecretBytes::random(32))
        }
    }

    fn later(seconds: i64) -> UnixMs {
        UnixMs(NOW.0 + 1000 * seconds)
    }

    fn issue(tokens: &Tokens, now: UnixMs) -> String {
        issue_as(tokens, now, &OURS)
    }

    fn issue_as(tokens: &Tokens, now: UnixMs, as_if: &Expected<'_>) -> String {
        let principal = Principal {
            iam_id: "IBMid-1".to_owned(),
            service: false,
            name: "n".to_owned(),
            email: "e@x".to_owned(),
        };
        let issue = Issue {
            principal: &principal,
            credential: &Credential::ApiKey(Uuid::nil()),
            account: as_if.account,
            issuer: as_if.issuer,
            grant_type: "g",
            now,
            life_s: as_if.life_s,
        };
        tokens.issue(&issue)
    }

    #[test]
    fn tokens_of_this_server_are_read_until_their_time_is_over() {
        let (ours, theirs) = (Lab::new().tokens(), Lab::new().tokens());
        let token = issue(&ours, NOW);
        assert_eq!(ours.read(&token, NOW, &OURS).map(|b| b.iam_id).as_deref(), Ok("IBMid-1"));
        assert_eq!(theirs.read(&token, NOW, &OURS), Err(BadToken::Foreign));
        assert_eq!(ours.read(&token, later(3610), &OURS), Err(BadToken::Expired));
        assert_eq!(ours.read("rubbish", NOW, &OURS), Err(BadToken::Malformed));
        // The key alone does not make a token one of this server.
        for as_if in [
            Expected { issuer: "https://y/identity", ..OURS },
            Expected { account: "b", ..OURS },
            Expected { life_s: HOUR_S + 1, ..OURS },
            Expected { life_s: i64::MAX - later(0).0, ..OURS },
        ] {
            let token = issue_as(&ours, NOW, &as_if);
            assert_eq!(ours.read(&token, NOW, &OURS), Err(BadToken::Foreign));
        }
    }

    fn listed(tokens: &Tokens, now: UnixMs) -> usize {
        tokens.with_keys(now, HOUR_S, |keys| keys.count())
    }

    #[test]
    fn a_key_that_signs_no_longer_verifies_what_it_signed_while_that_lives() {
        let lab = Lab::new();
        // Of before: as whoever stole the key has it.
        let (tokens, stolen) = (lab.tokens(), Tokens::new(lab.load(), &SecretBytes::random(32)));
        let old = issue(&tokens, NOW);
        assert!(lab.rotate(later(60), Some(HOUR_S)));
        lab.take_up(&tokens);
        let new = issue(&tokens, later(60));
        assert_eq!(listed(&tokens, later(60)), 2);
        for token in [&old, &new] {
            assert!(tokens.read(token, later(60), &OURS).is_ok());
        }
        // It signs nothing that counts any longer, and ends by itself.
        let forged = issue(&stolen, later(120));
        assert_eq!(tokens.read(&forged, later(120), &OURS), Err(BadToken::Foreign));
        let backdated = issue(&stolen, later(60));
        assert!(tokens.read(&backdated, later(120), &OURS).is_ok());
        for token in [&backdated, &old] {
            let over = tokens.read(token, later(60 + HOUR_S + LEEWAY_S + 1), &OURS);
            assert_eq!(over, Err(BadToken::Foreign));
        }
        assert_eq!(listed(&tokens, later(60 + HOUR_S + LEEWAY_S + 1)), 1);
    }

    #[test]
    fn keys_are_bounded_and_all_that_are_old_can_be_ended_at_once() {
        let lab = Lab::new();
        let tokens = lab.tokens();
        let old = issue(&tokens, NOW);
        let made = (0..9).filter(|_| lab.rotate(NOW, Some(HOUR_S))).count();
        lab.take_up(&tokens);
        assert_eq!((made, listed(&tokens, NOW)), (3, 4));
        assert!(tokens.read(&old, NOW, &OURS).is_ok(), "none of them is forgotten for another");
        let before = tokens.generation();
        assert!(lab.rotate(NOW, None));
        lab.take_up(&tokens);
        assert_eq!(listed(&tokens, NOW), 1);
        assert_eq!(tokens.read(&old, NOW, &OURS), Err(BadToken::Foreign));
        assert_ne!(tokens.generation(), before);
        assert!(lab.rotate(later(2 * HOUR_S), Some(HOUR_S)), "there is room again");
    }

    #[test]
    fn nothing_in_a_token_chooses_how_it_is_verified() {
        use jsonwebtoken::EncodingKey;
        let ours = Lab::new().tokens();
        let token = issue(&ours, NOW);
        let body = token.split('.').nth(1).expect("three parts").to_owned();
        let (kid, x) = ours.with_keys(NOW, HOUR_S, |keys| {
            let key = keys.next().expect("there is one");
            (key.listed.kid.clone(), key.point.0.clone())
        });
        let unsigned =
            base64url(format!(r#"{{"alg":"none","typ":"JWT","kid":"{kid}"}}"#).as_bytes());
        assert!(ours.read(&format!("{unsigned}.{body}."), NOW, &OURS).is_err());
        // HMAC under what everyone knows: the public key.
        let claims: serde_json::Value = {
            use base64::Engine as _;
            let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(&body);
            serde_json::from_slice(&text.expect("base64")).expect("JSON")
        };
        for kid in [Some(kid), None] {
            let header = Header { kid, ..Header::new(Algorithm::HS256) };
            let key = EncodingKey::from_secret(x.as_bytes());
            let forged = jsonwebtoken::encode(&header, &claims, &key).expect("signs");
            assert_eq!(ours.read(&forged, NOW, &OURS), Err(BadToken::Foreign));
        }
    }

    #[test]
    fn refresh_tokens_are_read_by_their_server_alone_until_their_time_is_over() {
        let lab = Lab::new();
        let (ours, theirs) = (lab.tokens(), Lab::new().tokens());
        let credential = Credential::ApiKey(Uuid::new_v4());
        let expires_s = NOW.0 / 1000 + 60;
        let bearer = Bearer { iam_id: "IBMid-1".to_owned(), credential, expires_s };
        let token = ours.refresh_token(&bearer, NOW);
        assert_eq!(ours.read_refresh(&token, NOW).as_ref(), Ok(&bearer));
        assert_eq!(theirs.read_refresh(&token, NOW), Err(BadToken::Foreign));
        assert_eq!(ours.read_refresh(&token, later(66)), Err(BadToken::Expired));
        for bad in ["", "clr_", "clr_a.b", "x", &token[..token.len() - 2]] {
            assert!(ours.read_refresh(bad, NOW).is_err(), "{bad}");
        }
        // All that came before the keys were ended at once is over.
        assert!(lab.rotate(later(1), Some(HOUR_S)));
        lab.take_up(&ours);
        assert!(ours.read_refresh(&token, NOW).is_ok());
        assert!(lab.rotate(later(1), None));
        lab.take_up(&ours);
        assert_eq!(ours.read_refresh(&token, NOW), Err(BadToken::Foreign));
        let token = ours.refresh_token(&bearer, later(2));
        assert!(ours.read_refresh(&token, NOW).is_ok());
        // No access token, and no refresh token of one.
        assert!(ours.read(&token, NOW, &OURS).is_err());
        assert!(ours.read_refresh(&issue(&ours, NOW), NOW).is_err());
    }
}
