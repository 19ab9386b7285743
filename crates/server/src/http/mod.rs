//! Paths, and what every request goes through.

pub(crate) mod admin;
pub(crate) mod api;
pub mod auth;
pub mod body;
pub mod error;
pub mod network;
pub(crate) mod objects;

use crate::app::App;
use crate::repeat::{self, Asked, BodyDigest};
use api::content::{Content, text};
use api::{Api, Kind, document, get, says};
use axum::Router;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use claviger_domain::audit::{Credential, Data, Record};
use claviger_domain::id::{InstanceId, UnixMs};
use claviger_wire::kp::{CORRELATION_HEADER, INSTANCE_HEADER};
use error::Form;
use network::Origin;
use schemars::json_schema;
use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};
use uuid::Uuid;

/// Every path of the server, and what can be asked of it.
fn api() -> Api {
    let health = says("getHealth", "Whether the database answers")
        .answers(200, text("text/plain"))
        .answers(503, text("text/plain"));
    let description = says("getDescription", "This document").answers(200, OBJECT);
    Api::new("server", Kind::Open)
        .at("/healthz", [get(crate::status::health, health)])
        .at("/openapi.json", [get(self::description, description)])
        .merge(crate::keys::api())
        .merge(crate::iam::api())
        .merge(crate::clusters::api())
        .merge(crate::resources::api())
        .merge(crate::audit::api())
}

/// The description of everything that the server answers, OpenAPI 3.1 in JSON.
pub fn openapi() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| document::of(&api()))
}

/// Any JSON object.
const OBJECT: Content =
    Content { media_type: "application/json", schema: |_| json_schema!({ "type": "object" }) };

/// Every path of the server.
pub fn router(app: Arc<App>) -> Router {
    api()
        .into_router()
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn(correlate))
        .layer(from_fn_with_state(app.clone(), measure))
        .with_state(app)
}

/// The id that ties a request, its answer, its audit record and its log lines together: the
/// caller's own if it sent a sane one, else a new UUID.
#[derive(Debug, Clone)]
pub struct Correlation(pub String);

impl<S: Sync> FromRequestParts<S> for Correlation {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().cloned().unwrap_or_else(|| correlation(&parts.headers).0))
    }
}

/// What of a request goes on record, whatever it asks for.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// Its correlation id.
    pub correlation: String,
    /// Where it came from.
    pub origin: Origin,
    /// Path and query, at most [`URI_MAX`] characters of them; of the token endpoint the path alone,
    /// since some put their credentials into the query.
    pub uri: String,
    /// All of it, if it may be asked for again; see [`crate::repeat`].
    pub(crate) asked: Option<Arc<Asked>>,
}

impl<S: Sync> FromRequestParts<S> for Trace {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let Ok(Correlation(correlation)) = Correlation::from_request_parts(parts, state).await;
        let path = parts.uri.path();
        let uri = match path.starts_with("/identity/") || path.starts_with("/oidc/") {
            true => path,
            false => parts.uri.path_and_query().map_or(path, |uri| uri.as_str()),
        };
        let uri = uri.chars().take(URI_MAX).collect();
        let body: Option<BodyDigest> = parts.extensions.get().cloned();
        let asked = body.map(|body| Arc::new(Asked::of(parts, &correlation, body)));
        Ok(Trace { correlation, origin: Origin::of(&parts.extensions), uri, asked })
    }
}

impl Trace {
    /// The record of what `who` did by this request: a success, with what the request says of
    /// itself.
    pub(crate) fn record(
        &self,
        who: impl Into<String>,
        credential: Credential,
        at: UnixMs,
        action: impl Into<Cow<'static, str>>,
        target: impl Into<String>,
    ) -> Record {
        Record {
            credential: Some(credential),
            address: self.origin.address,
            correlation: self.correlation.clone(),
            data: Data { uri: self.uri.clone(), ..Data::default() },
            ..Record::done(at, who, action, target)
        }
    }
}

/// Longest URI on record: a registration's has two CRNs at most.
const URI_MAX: usize = 1024;

/// Longest accepted correlation id; a UUID has 36 characters.
const CORRELATION_MAX: usize = 64;

/// The correlation id, and whether the caller sent it.
fn correlation(headers: &HeaderMap) -> (Correlation, bool) {
    let sane = |text: &&str| {
        (1..=CORRELATION_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
    };
    let given = [CORRELATION_HEADER, "X-Correlation-ID", "X-Request-Id"]
        .iter()
        .filter_map(|name| headers.get(*name)?.to_str().ok())
        .find(sane);
    let id = given.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
    (Correlation(id), given.is_some())
}

async fn correlate(mut request: Request, next: Next) -> Response {
    let (correlation, sent) = correlation(request.headers());
    request.extensions_mut().insert(correlation.clone());
    if sent && repeat::may_change(request.method(), request.uri()) {
        request.extensions_mut().insert(BodyDigest::default());
    }
    let path = request.uri().path();
    let mut response = if std::str::from_utf8(&percent_decode(path.as_bytes())).is_ok() {
        next.run(request).await
    } else {
        // Refused here, since the router's own answer is in no shape that clients read.
        let what = "The path is not UTF-8 once its percent-encoding is undone";
        Form::of(path).answer(StatusCode::BAD_REQUEST, "PATH_INVALID_ERR", what, None)
    };
    if let Ok(value) = HeaderValue::from_str(&correlation.0) {
        response.headers_mut().insert("correlation-id", value);
    }
    response
}

/// Counts a request and how long it took, and is its part of a trace.
async fn measure(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let under_way = app.hub.begin();
    let span = span(&request, route.as_ref());
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    drop((span, under_way));
    let route = route.as_ref().map(MatchedPath::as_str);
    app.metrics.answered(&method, route, &path, response.status().as_u16(), began.elapsed());
    response
}

/// The span of a request, in the trace of its caller if he is in one. Of the path it has the route
/// alone, and of the headers the instance's id.
fn span(request: &Request, route: Option<&MatchedPath>) -> Span {
    let method = crate::metrics::known_method(request.method());
    let span = tracing::debug_span!(
        target: "claviger::trace",
        "request",
        otel.kind = "server",
        otel.name = Empty,
        otel.status_code = Empty,
        http.request.method = method,
        http.route = Empty,
        http.response.status_code = Empty,
        claviger.instance = Empty,
    );
    if span.is_disabled() {
        return span;
    }
    claviger_telemetry::traces::continue_from(&span, request.headers());
    let route =
        crate::metrics::named(route.map_or("unknown", MatchedPath::as_str), request.uri().path());
    span.record("otel.name", format!("{method} {route}"));
    span.record("http.route", route);
    let instance = request.headers().get(INSTANCE_HEADER).and_then(|id| id.to_str().ok());
    // What a caller writes there is no id before it is read as one.
    if let Some(instance) = instance.and_then(|id| id.parse::<InstanceId>().ok()) {
        span.record("claviger.instance", instance.to_string());
    }
    span
}

async fn description() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi()).into_response()
}

async fn unknown_path(request: Request) -> Response {
    let path = request.uri().path();
    let what = format!("there is no such path: {} {path}", request.method());
    Form::of(path).answer(StatusCode::NOT_FOUND, "PATH_NOT_FOUND_ERR", &what, None)
}

async fn wrong_method(request: Request) -> Response {
    let path = request.uri().path();
    let what = format!("{path} does not know the method {}", request.method());
    Form::of(path).answer(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED_ERR", &what, None)
}

/// Undoes percent-encoding (RFC 3986, section 2.1). What is not an encoding stays as it is.
pub(crate) fn percent_decode(bytes: &[u8]) -> Vec<u8> {
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, _, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_path_that_is_no_text_is_refused_in_the_shape_that_clients_read() {
        let any = axum::routing::get(async |_: axum::extract::Path<String>| "found");
        let router: Router = Router::new()
            .route("/api/v2/keys/{id}", any.clone())
            .route("/v3/{cluster}", any)
            .layer(from_fn(correlate));
        for (path, status, media_type) in [
            ("/api/v2/keys/%ff", 400, "application/vnd.ibm.kms.error+json"),
            ("/v3/%C3%28", 400, "application/json"),
            ("/v3/%C3%BC", 200, "text/plain; charset=utf-8"),
        ] {
            let request = Request::get(path).body(axum::body::Body::empty()).expect("a request");
            let answer = router.clone().oneshot(request).await.expect("an answer");
            assert_eq!(answer.status(), status, "{path}");
            assert_eq!(answer.headers()["content-type"], media_type, "{path}");
            assert!(answer.headers().contains_key("correlation-id"), "{path}");
        }
    }
}
