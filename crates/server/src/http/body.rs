//! Request bodies: bounded in size and time, whatever their content type.

use crate::http::error::Form;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Largest body: the largest wrapped DEK is half of it.
pub const BODY_MAX: usize = 64 << 10;

/// How long a body may take; it is at most [`BODY_MAX`], so only a stalled client takes longer.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// A whole body, at most [`BODY_MAX`] bytes.
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
    /// Longer than it may be.
    TooLong,
    /// It did not arrive in time.
    TooSlow,
    /// It ended early.
    Cut,
}

/// What of a body that is too long is read all the same, and for how long: who sends all of it
/// before he reads, as most clients do, would otherwise find the connection broken and not learn
/// why.
const HEARD_OUT: usize = 1 << 20;
const HEARD_OUT_FOR: Duration = Duration::from_secs(2);

/// Reads a body of at most `max` bytes, in at most `within`.
///
/// # Errors
/// When it is longer, slower or cut off.
pub async fn whole(request: Request, max: usize, within: Duration) -> Result<Bytes, Unread> {
    let headers = request.headers();
    // Refused before the first byte is asked for: a client that waits for 100 Continue sends none.
    let waits = headers.contains_key(header::EXPECT);
    let declared = headers.get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|len| len.to_str().ok()?.parse::<u64>().ok());
    let long = declared.is_some_and(|len| len > max as u64);
    if long && waits {
        return Err(Unread::TooLong);
    }
    let mut body = request.into_body();
    let read = match long {
        true => Err(Unread::TooLong),
        false => tokio::time::timeout(within, fitting(&mut body, max))
            .await
            .unwrap_or(Err(Unread::TooSlow)),
    };
    if read == Err(Unread::TooLong) {
        let rest = async {
            let mut heard = max;
            while heard < HEARD_OUT
                && let Some(Ok(frame)) = body.frame().await
            {
                heard += frame.data_ref().map_or(0, Bytes::len);
            }
        };
        let _ = tokio::time::timeout(HEARD_OUT_FOR, rest).await;
    }
    read
}

async fn fitting(body: &mut axum::body::Body, max: usize) -> Result<Bytes, Unread> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Unread::Cut)?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > max {
            return Err(Unread::TooLong);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

/// Reads a JSON object. Serde would take a list of an object's values for the object itself; no
/// client sends that on purpose.
///
/// # Errors
/// When it is none, or not of this type.
pub fn object<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    if text.trim_ascii_start().starts_with(b"[") {
        return Err(serde::de::Error::custom("expected an object, not a list"));
    }
    serde_json::from_slice(text)
}

impl<S: Sync> FromRequest<S> for Body {
    type Rejection = Response;
    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        let form = Form::of(request.uri().path());
        let (status, code, what) = match whole(request, BODY_MAX, BODY_TIMEOUT).await {
            Ok(bytes) => return Ok(Body(bytes)),
            Err(Unread::TooLong) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "BODY_TOO_LARGE_ERR",
                format!("The body is longer than {BODY_MAX} bytes; nothing here takes more"),
            ),
            Err(Unread::Cut) => (
                StatusCode::BAD_REQUEST,
                "BAD_BODY_ERR",
                "The body ended too early. Send it again".to_owned(),
            ),
            Err(Unread::TooSlow) => (
                StatusCode::REQUEST_TIMEOUT,
                "BODY_TIMEOUT_ERR",
                format!("The body did not arrive within {BODY_TIMEOUT:?}. Send it again"),
            ),
        };
        Err(form.answer(status, code, &what, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    /// A request whose body comes in pieces of 1 KiB without a declared length.
    fn chunked(kib: usize) -> Request {
        let pieces =
            (0..kib).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b'x'; 1024]))));
        let body = axum::body::Body::new(StreamBody::new(futures_util::stream::iter(pieces)));
        Request::new(body)
    }

    #[tokio::test]
    async fn a_body_is_bounded_however_it_comes() {
        let second = Duration::from_secs(1);
        let read = whole(chunked(2), 2048, second).await;
        assert_eq!(read.map(|bytes| bytes.len()), Ok(2048));
        assert_eq!(whole(chunked(3), 2048, second).await, Err(Unread::TooLong));
        assert_eq!(whole(chunked(100_000), 2048, second).await, Err(Unread::TooLong));
        let declared = Request::post("/")
            .header(header::CONTENT_LENGTH, 3000)
            .body(axum::body::Body::from(vec![b'x'; 3000]))
            .expect("a request");
        assert_eq!(whole(declared, 2048, second).await, Err(Unread::TooLong));
        let silent = futures_util::stream::pending::<Result<Frame<Bytes>, std::io::Error>>();
        let silent = Request::new(axum::body::Body::new(StreamBody::new(silent)));
        let read = whole(silent, 2048, Duration::from_millis(10)).await;
        assert_eq!(read, Err(Unread::TooSlow));
    }

    #[test]
    fn a_list_is_no_object() {
        #[derive(serde::Deserialize, Debug)]
        struct One {
            #[allow(dead_code)]
            field: u8,
        }
        assert!(object::<One>(br#"{"field": 1}"#).is_ok());
        assert!(object::<One>(b" [1]").is_err());
    }
}
