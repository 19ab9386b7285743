//! Access tokens: fetched once, kept until a minute before their end.

use crate::config::SecretText;
use crate::error::Error;
use crate::http::{Answer, CALL, Call, Http, segment};
use claviger_crypto::SecretBytes;
use claviger_wire::iam::{GRANT_APIKEY, GRANT_NODE, GRANT_REFRESH, Token};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroize;

/// A token is not used in the last minute of its life.
const MARGIN: Duration = Duration::from_secs(60);
/// Longest life that is believed, whatever the server says.
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);

/// What proves who asks.
pub(crate) enum Credential {
    ApiKey(SecretBytes),
    /// Of a login by an issuer.
    RefreshToken(SecretBytes),
    /// The certificate of the connection.
    Node,
}

struct Held {
    bearer: HeaderValue,
    until: Instant,
    number: u64,
}

/// A server that wants a bearer token.
#[derive(Clone)]
pub(crate) struct Session {
    http: Http,
    iam: Http,
    credential: Arc<Credential>,
    held: Arc<Mutex<(u64, Option<Held>)>>,
}

impl Session {
    pub fn new(http: Http, iam: Http, credential: Credential) -> Self {
        let held = Arc::new(Mutex::new((0, None)));
        Self { http, iam, credential: Arc::new(credential), held }
    }

    /// Makes a call with a token; with a new one, once, if the server does not take an old one.
    pub async fn send(&self, mut call: Call) -> Result<Answer, Error> {
        let deadline = Instant::now() + CALL;
        let (bearer, number, fresh) = self.bearer(None, deadline).await?;
        call.headers.insert(AUTHORIZATION, bearer);
        match self.http.send(&call, deadline).await {
            Err(Error::Unauthorized { .. }) if !fresh => {
                let (bearer, ..) = self.bearer(Some(number), deadline).await?;
                call.headers.insert(AUTHORIZATION, bearer);
                self.http.send(&call, deadline).await
            }
            other => other,
        }
    }

    /// A token other than number `refused`, its number, and whether it was fetched just now.
    async fn bearer(
        &self,
        refused: Option<u64>,
        deadline: Instant,
    ) -> Result<(HeaderValue, u64, bool), Error> {
        // Held while a token is fetched, so that a hundred callers fetch one.
        let mut held = self.held.lock().await;
        if let (_, Some(token)) = &*held
            && Some(token.number) != refused
            && token.until > Instant::now()
        {
            return Ok((token.bearer.clone(), token.number, false));
        }
        let asked = Instant::now();
        let answer = self.iam.send(&self.request()?, deadline).await.map_err(|e| match e {
            // A refused credential comes as 400 as well.
            Error::Refused { message, status: 400 | 403, .. } => Error::Unauthorized { message },
            other => other,
        })?;
        let mut token: Token = answer.json()?;
        let mut text = SecretText(format!("Bearer {}", token.access_token));
        token.access_token.zeroize();
        token.refresh_token.zeroize();
        let mut bearer = HeaderValue::from_str(&text.0)
            .map_err(|_| Error::protocol("the token is not a header value"))?;
        text.0.zeroize();
        bearer.set_sensitive(true);
        let life = Duration::from_secs(token.expires_in).min(LIFE_MAX);
        let number = held.0 + 1;
        held.0 = number;
        let until = asked + life.saturating_sub(MARGIN);
        held.1 = Some(Held { bearer: bearer.clone(), until, number });
        Ok((bearer, number, true))
    }

    fn request(&self) -> Result<Call, Error> {
        let mut form = match &*self.credential {
            Credential::Node => SecretText(format!("grant_type={}", segment(GRANT_NODE))),
            Credential::ApiKey(key) => with(GRANT_APIKEY, "apikey", key)?,
            Credential::RefreshToken(token) => with(GRANT_REFRESH, "refresh_token", token)?,
        };
        let form = std::mem::take(&mut form.0).into_bytes();
        let call = Call::post("/identity/token".to_owned()).idempotent();
        Ok(call.bytes("application/x-www-form-urlencoded", form))
    }
}

/// A form with one secret in it.
fn with(grant: &str, field: &str, secret: &SecretBytes) -> Result<SecretText, Error> {
    let secret = std::str::from_utf8(secret.expose())
        .map_err(|_| Error::local(format!("the {field} is not UTF-8")))?;
    let secret = SecretText(segment(secret));
    Ok(SecretText(format!("grant_type={}&{field}={}", segment(grant), secret.0)))
}
