//! One call: its deadline, its retries, its bounded body.

use crate::error::Error;
use crate::trace;
use bytes::Bytes;
use claviger_crypto::SecretBytes;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, Method};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{Instrument as _, Span};
use zeroize::Zeroizing;

/// How long a call may take in all, retries and a new token included. kube-apiserver waits 10 s
/// for a plugin, and an unwrap must fit into that.
pub const CALL: Duration = Duration::from_secs(8);
/// Most tries of a call.
pub const TRIES: u32 = 4;
/// Longest wait that a server may ask for.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);
/// First pause between tries; it doubles, and a random half is taken off.
const PAUSE: Duration = Duration::from_millis(100);
/// Largest answer: a cluster's state with four thousand KEKs of 1 KiB, three times over.
pub const BODY_MAX: usize = 16 << 20;

/// What to ask.
pub(crate) struct Call {
    pub method: Method,
    /// After the base URL, with its query.
    pub path: String,
    pub headers: HeaderMap,
    /// Media type and body; held so that it is wiped after the last try.
    pub body: Option<(&'static str, Bytes)>,
    /// Whether asking twice is the same as asking once.
    pub idempotent: bool,
}

impl Call {
    pub fn get(path: String) -> Self {
        Self::new(Method::GET, path).idempotent()
    }

    pub fn new(method: Method, path: String) -> Self {
        Self { method, path, headers: HeaderMap::new(), body: None, idempotent: false }
    }

    pub fn post(path: String) -> Self {
        Self::new(Method::POST, path)
    }

    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// A JSON body, wiped when sent: it may carry a secret.
    pub fn json(self, body: &impl Serialize) -> Result<Self, Error> {
        let json = serde_json::to_vec(body)
            .map_err(|e| Error::protocol(format!("cannot write the request: {e}")))?;
        Ok(self.bytes("application/json", json))
    }

    pub fn bytes(mut self, media_type: &'static str, body: Vec<u8>) -> Self {
        self.body = Some((media_type, Bytes::from_owner(Zeroizing::new(body))));
        self
    }
}

/// A success.
pub(crate) struct Answer {
    body: SecretBytes,
}

impl Answer {
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(self.body.expose()).map_err(|e| {
            // Position and kind only: the text of the error may quote the body.
            Error::protocol(format!(
                "not the JSON that was expected ({:?} at line {}, column {})",
                e.classify(),
                e.line(),
                e.column()
            ))
        })
    }

    pub fn text(&self) -> Result<String, Error> {
        let text = std::str::from_utf8(self.body.expose());
        text.map(str::to_owned).map_err(|_| Error::protocol("the answer is not UTF-8"))
    }
}

/// A client and the base of its URLs.
#[derive(Clone)]
pub(crate) struct Http {
    pub client: Client,
    pub base: String,
}

/// Whether another try may help.
enum Again {
    /// Nothing was done, so whatever was asked may be asked again.
    Always,
    /// It may have been done.
    IfIdempotent,
    Never,
}

impl Again {
    fn if_unreachable(error: &Error) -> Self {
        if error.is_unreachable() { Again::IfIdempotent } else { Again::Never }
    }
}

/// How one try ended.
enum Try {
    Done(Answer),
    /// Not a success; whether another try may help, and how long the server wants to be left
    /// alone.
    Failed {
        error: Error,
        again: Again,
        after: Option<Duration>,
    },
}

impl Http {
    /// Makes a call by `deadline`.
    pub async fn send(&self, call: &Call, deadline: Instant) -> Result<Answer, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            let tried = match timeout_at(deadline, self.once(call)).await {
                Ok(tried) => tried,
                Err(_) => return Err(self.late()),
            };
            let (error, after) = match tried {
                Try::Done(answer) => return Ok(answer),
                Try::Failed { error, again, after } => match again {
                    Again::Always => (error, after),
                    Again::IfIdempotent if call.idempotent => (error, after),
                    Again::IfIdempotent | Again::Never => return Err(error),
                },
            };
            let pause = after.unwrap_or_else(|| jittered(PAUSE * 2u32.pow(tries - 1)));
            if tries >= TRIES || Instant::now() + pause >= deadline {
                return Err(error);
            }
            sleep(pause).await;
        }
    }

    fn late(&self) -> Error {
        Error::Unreachable { url: self.base.clone(), what: format!("no answer within {CALL:?}") }
    }

    fn request(&self, call: &Call, span: &Span) -> reqwest::RequestBuilder {
        let url = format!("{}{}", self.base, call.path);
        let mut request =
            self.client.request(call.method.clone(), url).headers(call.headers.clone());
        if let Some(traceparent) = trace::traceparent(span) {
            request = request.header("traceparent", traceparent);
        }
        if let Some((media_type, body)) = &call.body {
            request = request.header("content-type", *media_type).body(body.clone());
        }
        request
    }

    /// Opens an answer without reading its body.
    pub async fn open(&self, call: &Call, deadline: Instant) -> Result<reqwest::Response, Error> {
        let span = trace::span(&call.method);
        let sent = self.request(call, &span).send().instrument(span.clone());
        let sent = timeout_at(deadline, sent).await;
        let mut response =
            sent.map_err(|_| self.late())?.map_err(|e| Error::transport(&self.base, &e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        span.record("http.response.status_code", status);
        let body = timeout_at(deadline, self.body(&mut response)).await;
        let body = body.map_err(|_| self.late())??;
        Err(Error::answer(&self.base, status, body.expose()))
    }

    async fn once(&self, call: &Call) -> Try {
        let span = trace::span(&call.method);
        let sent = self.request(call, &span).send().instrument(span.clone());
        let mut response = match sent.await {
            Ok(response) => response,
            Err(error) => {
                span.record("otel.status_code", "ERROR");
                let error = Error::transport(&self.base, &error);
                return Try::Failed { again: Again::if_unreachable(&error), error, after: None };
            }
        };
        let status = response.status();
        span.record("http.response.status_code", status.as_u16());
        let after = retry_after(response.headers());
        let body = match self.body(&mut response).await {
            Ok(body) => body,
            Err(error) => {
                return Try::Failed { again: Again::if_unreachable(&error), error, after: None };
            }
        };
        if status.is_success() {
            return Try::Done(Answer { body });
        }
        let again = match (status.as_u16(), after) {
            // Sent away for calling too often.
            (429, Some(_)) => Again::Always,
            (429 | 503, _) => Again::IfIdempotent,
            _ => Again::Never,
        };
        let error = Error::answer(&self.base, status.as_u16(), body.expose());
        Try::Failed { error, again, after }
    }

    async fn body(&self, response: &mut reqwest::Response) -> Result<SecretBytes, Error> {
        let too_large = || Error::protocol(format!("an answer of more than {BODY_MAX} bytes"));
        let announced = response.content_length().unwrap_or(0);
        if announced > BODY_MAX as u64 {
            return Err(too_large());
        }
        // Sized at once where the server says how much comes: a vector that grows leaves
        // unwiped copies behind.
        let mut body = Zeroizing::new(Vec::with_capacity(announced.max(4096) as usize));
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > BODY_MAX => return Err(too_large()),
                Ok(Some(chunk)) => append(&mut body, &chunk),
                Ok(None) => return Ok(SecretBytes::new(std::mem::take(&mut *body))),
                Err(error) => return Err(Error::transport(&self.base, &error)),
            }
        }
    }
}

/// Appends without leaving a copy behind when the vector must move.
fn append(body: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    if body.capacity() - body.len() < chunk.len() {
        let mut larger = Vec::with_capacity((body.len() + chunk.len()) * 2);
        larger.extend_from_slice(body);
        *body = Zeroizing::new(larger);
    }
    body.extend_from_slice(chunk);
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// Between half of `pause` and all of it, so that clients which failed together do not come back
/// together.
fn jittered(pause: Duration) -> Duration {
    let random = SecretBytes::random(1).expose()[0];
    pause / 2 + pause / 2 * u32::from(random) / 255
}

/// A path segment, so that a name cannot leave its place: all but unreserved characters
/// (RFC 3986, section 2.3) escaped.
pub(crate) fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') {
            out.push(byte as char);
        } else if byte == b'.' && text.len() > 2 {
            out.push('.');
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_stay_in_their_place() {
        assert_eq!(segment("crn:v1:a/b::"), "crn%3Av1%3Aa%2Fb%3A%3A");
        assert_eq!(segment("a.b-c_d~e"), "a.b-c_d~e");
        assert_eq!(segment("?x#y%"), "%3Fx%23y%25");
        assert_eq!(segment("ü"), "%C3%BC");
    }

    #[test]
    fn waits_are_bounded() {
        let headers = |v: &str| HeaderMap::from_iter([(RETRY_AFTER, v.parse().unwrap())]);
        assert_eq!(retry_after(&headers("2")), Some(Duration::from_secs(2)));
        assert_eq!(retry_after(&headers("3600")), Some(RETRY_AFTER_MAX));
        assert_eq!(retry_after(&headers("Fri, 31 Dec 1999 23:59:59 GMT")), None);
        for _ in 0..100 {
            let pause = jittered(PAUSE);
            assert!(pause >= PAUSE / 2 && pause <= PAUSE, "{pause:?}");
        }
    }
}
