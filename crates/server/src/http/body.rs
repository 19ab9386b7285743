//! Request bodies: bounded in size and time, whatever their content type.

use crate::http::error::Form;
use crate::repeat::BodyDigest;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, Uri, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use std::time::Duration;

/// Largest body, but of calls that open what was wrapped.
pub const BODY_MAX: usize = 64 << 10;

/// Largest body of unwrap and rewrap. Whatever a body of wrap can hold comes back within it: a
/// wrapped text is twice its plaintext, and a client that writes JSON in ASCII makes two bytes of
/// a character six.
pub const OPENING_BODY_MAX: usize = 4 * BODY_MAX;

/// The bound of a request's body.
fn bound(uri: &Uri) -> usize {
    let opens = |action| matches!(action, "unwrap" | "rewrap");
    let new_form = uri.path().rsplit_once("/actions/").is_some_and(|(_, action)| opens(action));
    // Deprecated: `?action=unwrap`.
    let mut query = uri.query().unwrap_or_default().split('&');
    let old_form = query.any(|pair| pair.strip_prefix("action=").is_some_and(opens));
    if new_form || old_form { OPENING_BODY_MAX } else { BODY_MAX }
}

/// How long a body may take; all are small, so only a stalled client takes longer.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// A whole body, at most [`BODY_MAX`] bytes or, to open something, [`OPENING_BODY_MAX`].
pub struct Body(pub Bytes);

impl Body {
    /// The JSON text, or none if there is nothing: empty, blank or `null`, as clients send for
    /// calls without a body.
    pub fn text(&self) -> Option<&[u8]> {
        let text = self.0.trim_ascii();
        (!text.is_empty() && text != b"null").then_some(text)
    }
}

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// It has more bytes than it may.
    TooLong,
    /// It did not arrive in time.
    TooSlow,
    /// It ended too early.
    Broken,
}

/// How much more than it may have of a body is read and thrown away: a connection that is closed
/// while the other end still writes loses the answer, and with it why.
const DRAINED_MAX: usize = 1 << 20;

/// A whole body of at most `max` bytes.
///
/// # Errors
/// When it is longer, slower than [`BODY_TIMEOUT`], or ends too early.
pub async fn read(request: Request, max: usize) -> Result<Bytes, Unread> {
    read_within(request, max, BODY_TIMEOUT).await
}

async fn read_within(request: Request, max: usize, within: Duration) -> Result<Bytes, Unread> {
    let headers = request.headers();
    let declared = headers.get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|len| len.to_str().ok()?.parse::<u64>().ok());
    let long = declared.is_some_and(|len| len > max as u64);
    // Who waits for 100 Continue has sent nothing yet, and need not.
    if long && headers.contains_key(header::EXPECT) {
        return Err(Unread::TooLong);
    }
    let keep = if long { 0 } else { max };
    let body = tokio::time::timeout(within, collect(request.into_body(), keep, max));
    match body.await {
        Ok(read) => read.and_then(|bytes| if long { Err(Unread::TooLong) } else { Ok(bytes) }),
        Err(_) if long => Err(Unread::TooLong),
        Err(_) => Err(Unread::TooSlow),
    }
}

async fn collect(mut body: axum::body::Body, keep: usize, max: usize) -> Result<Bytes, Unread> {
    let (mut bytes, mut seen) = (BytesMut::new(), 0);
    while seen <= max + DRAINED_MAX
        && let Some(frame) = body.frame().await
    {
        let Ok(data) = frame.map_err(|_| Unread::Broken)?.into_data() else { continue };
        seen += data.len();
        if seen <= keep {
            bytes.extend_from_slice(&data);
        }
    }
    if seen > max { Err(Unread::TooLong) } else { Ok(bytes.freeze()) }
}

impl<S: Sync> FromRequest<S> for Body {
    type Rejection = Response;
    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        let form = Form::of(request.uri().path());
        let max = bound(request.uri());
        let digest: Option<BodyDigest> = request.extensions().get().cloned();
        let (status, code, what) = match read(request, max).await {
            Ok(bytes) => {
                if let Some(digest) = digest {
                    digest.of(&bytes);
                }
                return Ok(Body(bytes));
            }
            Err(Unread::TooLong) => {
                let what = format!("The body is longer than {max} bytes; this call takes no more");
                (StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE_ERR", what)
            }
            Err(Unread::TooSlow) => {
                let what =
                    format!("The body did not arrive within {BODY_TIMEOUT:?}. Send it again");
                (StatusCode::REQUEST_TIMEOUT, "BODY_TIMEOUT_ERR", what)
            }
            Err(Unread::Broken) => {
                let what = "The body ended too early. Send it again".to_owned();
                (StatusCode::BAD_REQUEST, "BAD_BODY_ERR", what)
            }
        };
        Err(form.answer(status, code, &what, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use futures_util::stream;
    use std::convert::Infallible;

    #[tokio::test]
    async fn a_body_declared_too_long_is_not_waited_for_by_who_was_not_told_to_send_it() {
        let never = Body::from_stream(stream::pending::<Result<Vec<u8>, Infallible>>());
        let request = Request::post("/")
            .header(header::CONTENT_LENGTH, "101")
            .header(header::EXPECT, "100-continue");
        let request = request.body(never).expect("a request");
        assert_eq!(read(request, 100).await, Err(Unread::TooLong));
    }

    /// All of it counts, not the pause between two pieces.
    #[tokio::test]
    async fn a_body_that_drips_is_given_up() {
        let drips = stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Some((Ok::<_, Infallible>(vec![b'x']), ()))
        });
        let request = Request::post("/").body(Body::from_stream(Box::pin(drips)));
        let read = read_within(request.expect("a request"), 1 << 20, Duration::from_millis(100));
        let ended = tokio::time::timeout(Duration::from_secs(60), read).await;
        assert_eq!(ended.expect("ends"), Err(Unread::TooSlow));
    }

    #[test]
    fn what_was_wrapped_may_come_back() {
        for (uri, max) in [
            ("/api/v2/keys/k/actions/unwrap", OPENING_BODY_MAX),
            ("/api/v2/keys/k/actions/rewrap", OPENING_BODY_MAX),
            ("/api/v2/keys/k?action=unwrap", OPENING_BODY_MAX),
            ("/api/v2/keys/k?a=b&action=rewrap", OPENING_BODY_MAX),
            ("/api/v2/keys/k/actions/wrap", BODY_MAX),
            ("/api/v2/keys/unwrap", BODY_MAX),
            ("/api/v2/keys?xaction=unwrap", BODY_MAX),
        ] {
            assert_eq!(bound(&uri.parse().expect("a URI")), max, "{uri}");
        }
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_bound() {
        for (len, declared, fits) in [
            (0, true, true),
            (100, true, true),
            (100, false, true),
            (101, true, false),
            (101, false, false),
            (3 << 20, true, false),
            (3 << 20, false, false),
        ] {
            let parts = vec![b'x'; len];
            let parts: Vec<_> =
                parts.chunks(60).map(|part| Ok::<_, Infallible>(part.to_vec())).collect();
            let mut request = Request::post("/");
            if declared {
                request = request.header(header::CONTENT_LENGTH, len);
            }
            let request = request.body(Body::from_stream(stream::iter(parts)));
            let got = read(request.expect("a request"), 100).await.map(|bytes| bytes.len());
            assert_eq!(got, if fits { Ok(len) } else { Err(Unread::TooLong) }, "{len} {declared}");
        }
    }
}
