//! Request bodies: bounded in size and time, whatever their content type.

use crate::http::error::Form;
use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
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

impl<S: Sync> FromRequest<S> for Body {
    type Rejection = Response;
    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        let form = Form::of(request.uri().path());
        let declared = request.headers().get(header::CONTENT_LENGTH);
        let declared = declared.and_then(|len| len.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|len| len > BODY_MAX as u64) {
            return Err(too_long(form));
        }
        match tokio::time::timeout(BODY_TIMEOUT, to_bytes(request.into_body(), BODY_MAX)).await {
            Ok(Ok(bytes)) => Ok(Body(bytes)),
            Ok(Err(e)) => {
                let e = std::error::Error::source(&e);
                if e.is_some_and(|e| e.is::<http_body_util::LengthLimitError>()) {
                    return Err(too_long(form));
                }
                let what = "The body ended too early. Send it again";
                Err(form.answer(StatusCode::BAD_REQUEST, "BAD_BODY_ERR", what, None))
            }
            Err(_) => {
                let what =
                    format!("The body did not arrive within {BODY_TIMEOUT:?}. Send it again");
                Err(form.answer(StatusCode::REQUEST_TIMEOUT, "BODY_TIMEOUT_ERR", &what, None))
            }
        }
    }
}

fn too_long(form: Form) -> Response {
    let what = format!("The body is longer than {BODY_MAX} bytes; nothing here takes more");
    form.answer(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE_ERR", &what, None)
}
