//! How a person logs in: his OpenID Connect issuer asks him who he is, in his browser, and gives an
//! ID token (authorization code with PKCE, RFC 7636, on loopback, RFC 8252), which the server takes
//! in exchange (RFC 8693).

use crate::config::{self, SecretText};
use crate::error::Error;
use crate::http::{CALL, Call, Http, segment};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use claviger_crypto::SecretBytes;
use claviger_crypto::digest::{equal, sha256};
use claviger_wire::iam::{GRANT_EXCHANGE, ID_TOKEN, Token};
use reqwest::{Certificate, Client, Url, redirect};
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use zeroize::Zeroize;

/// For one answer of an issuer; some look their people up elsewhere first.
const ANSWER: Duration = Duration::from_secs(10);
/// Random bytes of state, nonce and verifier.
const RANDOM: usize = 32;

/// An issuer of people, to whom this program is known by a client id.
pub struct People {
    http: Http,
    issuer: String,
    client_id: String,
    authorize: String,
    token: String,
}

/// A login that is under way.
pub struct Pending {
    state: SecretText,
    nonce: SecretText,
    verifier: SecretText,
    redirect: String,
}

/// An ID token, and whom it is about.
pub struct LoggedIn {
    id_token: SecretText,
    /// What the token says in `sub`.
    pub subject: String,
}

/// What is read of an issuer's description (OpenID Connect Discovery 1.0, section 3).
#[derive(Deserialize)]
struct Description {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
}

#[derive(Deserialize)]
struct Answered {
    id_token: String,
}

#[derive(Deserialize)]
struct Said {
    sub: String,
    #[serde(default)]
    nonce: String,
}

impl People {
    /// Finds out how the issuer is asked. `ca` is a PEM file of the only CAs that count; the
    /// system's if not given.
    ///
    /// # Errors
    /// When the issuer does not answer, or is not who it should be.
    pub async fn discover(
        issuer: &str,
        client_id: &str,
        ca: Option<&Path>,
    ) -> Result<People, Error> {
        let mut client = builder();
        if let Some(path) = ca {
            let found = Certificate::from_pem_bundle(&config::read_ca(path)?).unwrap_or_default();
            if found.is_empty() {
                return Err(Error::local(format!("{} holds no certificate", path.display())));
            }
            client = client.tls_certs_only(found);
        }
        let client = client.build().map_err(|e| Error::local(format!("no client: {e}")))?;
        let http = Http { client, base: checked(issuer)?.trim_end_matches('/').to_owned() };
        let call = Call::get("/.well-known/openid-configuration".to_owned());
        let said: Description = http.send(&call, Instant::now() + CALL).await?.json()?;
        if said.issuer != issuer {
            let what = format!("the issuer calls itself {:?}, not {issuer:?}", said.issuer);
            return Err(Error::protocol(what));
        }
        Ok(People {
            http,
            issuer: said.issuer,
            client_id: client_id.to_owned(),
            authorize: checked(&said.authorization_endpoint)?,
            token: checked(&said.token_endpoint)?,
        })
    }

    /// Begins a login; the URL that a browser is to open. The issuer will send it back to
    /// `redirect`.
    pub fn begin(&self, redirect: &str) -> (String, Pending) {
        let random = || SecretText(URL_SAFE_NO_PAD.encode(SecretBytes::random(RANDOM).expose()));
        let (state, nonce, verifier) = (random(), random(), random());
        let challenge = URL_SAFE_NO_PAD.encode(sha256(verifier.0.as_bytes()));
        let mark = if self.authorize.contains('?') { '&' } else { '?' };
        let url = format!(
            "{}{mark}response_type=code&scope=openid%20profile&client_id={}&redirect_uri={}\
             &state={}&nonce={}&code_challenge={challenge}&code_challenge_method=S256",
            self.authorize,
            segment(&self.client_id),
            segment(redirect),
            state.0,
            nonce.0,
        );
        (url, Pending { state, nonce, verifier, redirect: redirect.to_owned() })
    }

    /// Exchanges the code that the browser brought for an ID token.
    ///
    /// # Errors
    /// When the issuer refuses, or its token belongs to another login.
    pub async fn redeem(&self, pending: &Pending, code: &str) -> Result<LoggedIn, Error> {
        let form = format!(
            "grant_type=authorization_code&client_id={}&redirect_uri={}&code={}&code_verifier={}",
            segment(&self.client_id),
            segment(&pending.redirect),
            segment(code),
            pending.verifier.0,
        );
        let http = Http { client: self.http.client.clone(), base: self.token.clone() };
        let call = Call::post(String::new());
        let call = call.bytes("application/x-www-form-urlencoded", form.into_bytes());
        let answered: Answered = http.send(&call, Instant::now() + CALL).await?.json()?;
        let id_token = SecretText(answered.id_token);
        let said = read(&id_token.0)?;
        if !equal(said.nonce.as_bytes(), pending.nonce.0.as_bytes()) {
            return Err(Error::protocol("the ID token is not of this login: its nonce is another"));
        }
        Ok(LoggedIn { subject: said.sub, id_token })
    }

    /// Whether the browser may come from this issuer (RFC 9207); also if it does not say.
    pub fn is_issuer(&self, said: Option<&str>) -> bool {
        said.is_none_or(|said| said == self.issuer)
    }
}

impl Pending {
    /// Whether what the browser brought belongs to this login.
    pub fn is_state(&self, said: &str) -> bool {
        equal(said.as_bytes(), self.state.0.as_bytes())
    }
}

/// A client for issuers. No redirects: they would lead to whom nobody named.
fn builder() -> reqwest::ClientBuilder {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails only if another thread was faster, with the same.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
    Client::builder().timeout(ANSWER).redirect(redirect::Policy::none())
}

/// What an ID token says, which came from its issuer by TLS: the server verifies its signature.
fn read(id_token: &str) -> Result<Said, Error> {
    let wrong = || Error::protocol("the issuer gave no ID token");
    let body = id_token.split('.').nth(1).ok_or_else(wrong)?;
    let body = URL_SAFE_NO_PAD.decode(body).map_err(|_| wrong())?;
    serde_json::from_slice(&body).map_err(|_| wrong())
}

/// A URL that secrets may go to: by TLS, or on this machine itself.
fn checked(url: &str) -> Result<String, Error> {
    let wrong = || Error::local(format!("{url:?} is no https:// URL of an issuer"));
    let parsed = Url::parse(url).map_err(|_| wrong())?;
    let here = matches!(parsed.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match parsed.scheme() {
        "https" => Ok(url.to_owned()),
        "http" if here => Ok(url.to_owned()),
        _ => Err(wrong()),
    }
}

/// Gives an ID token to the server at `url`, for a refresh token.
///
/// # Errors
/// When the server does not take it.
pub async fn exchange(
    url: &str,
    ca_file: &Path,
    logged_in: &LoggedIn,
) -> Result<SecretBytes, Error> {
    let base = config::base(url)?;
    let client = config::client(&config::read_ca(ca_file)?, None)?;
    let form = SecretText(format!(
        "grant_type={}&subject_token_type={}&subject_token={}",
        segment(GRANT_EXCHANGE),
        segment(ID_TOKEN),
        logged_in.id_token.0,
    ));
    let call = Call::post("/identity/token".to_owned());
    let call = call.bytes("application/x-www-form-urlencoded", form.0.as_bytes().to_vec());
    let answer = Http { client, base }.send(&call, Instant::now() + CALL).await?;
    let mut token: Token = answer.json()?;
    token.access_token.zeroize();
    Ok(SecretBytes::new(std::mem::take(&mut token.refresh_token).into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_by_tls_or_stay_on_this_machine() {
        for (url, good) in [
            ("https://issuer.example/token", true),
            ("http://issuer.example/token", false),
            ("http://localhost:1/token", true),
            ("http://127.0.0.1.example/token", false),
            ("issuer.example", false),
        ] {
            assert_eq!(checked(url).is_ok(), good, "{url}");
        }
    }

    #[test]
    fn a_login_is_known_by_its_state_and_never_twice_the_same() {
        let people = People {
            http: Http { client: builder().build().unwrap(), base: String::new() },
            issuer: "https://i".to_owned(),
            client_id: "a b".to_owned(),
            authorize: "https://i/auth".to_owned(),
            token: "https://i/token".to_owned(),
        };
        let (url, one) = people.begin("http://127.0.0.1:7/callback");
        let (other, two) = people.begin("http://127.0.0.1:7/callback");
        assert!(url.contains("client_id=a%20b") && url.contains("code_challenge_method=S256"));
        assert!(!url.contains(&one.verifier.0), "the verifier stays here");
        assert_ne!(url, other);
        assert!(one.is_state(&one.state.0) && !one.is_state(&two.state.0) && !one.is_state(""));
        assert!(people.is_issuer(None) && people.is_issuer(Some("https://i")));
        assert!(!people.is_issuer(Some("https://other")));
    }
}
