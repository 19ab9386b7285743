//! Errors become answers here and nowhere else.

use crate::throttle::TooOften;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use claviger_wire::access::{AccessError, AccessErrorItem};
use claviger_wire::iam::{ErrorContext, TokenError};
use claviger_wire::kp::{self, Envelope, ErrorBody, Reason, Target};
use claviger_wire::ks::ServiceError;
use claviger_wire::rc::ResourceError;
use uuid::Uuid;

/// The shape of an error body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Key Protect's envelope, for `/api/v2`.
    KeyProtect,
    /// The Resource Controller's object.
    Resource,
    /// That of policies, groups and users.
    Access,
    /// That of tokens, API keys and service IDs.
    Identity,
    /// The cluster service's object, for everything else.
    Service,
}

/// How paths of [`Form::Access`] begin.
const ACCESS: [&str; 6] =
    ["/v1/policies", "/v1/groups", "/v2/groups", "/v2/roles", "/v2/accounts/", "/acms/"];
/// How paths of [`Form::Identity`] begin.
const IDENTITY: [&str; 4] = ["/apikeys", "/serviceids", "/identity/", "/oidc/token"];

impl Form {
    /// The shape that clients of this path read.
    pub fn of(path: &str) -> Form {
        if path.starts_with("/api/v2") {
            Form::KeyProtect
        } else if path.starts_with("/v2/resource_") {
            Form::Resource
        } else if ACCESS.iter().any(|begin| path.starts_with(begin)) {
            Form::Access
        } else if IDENTITY.iter().any(|begin| path.starts_with(begin)) {
            Form::Identity
        } else {
            Form::Service
        }
    }

    /// An error answer without a failed operation to name: unknown paths, bodies too long.
    pub fn answer(
        self,
        status: StatusCode,
        code: &'static str,
        what: &str,
        recovery: Option<&str>,
    ) -> Response {
        match self {
            Form::KeyProtect => KpError::new(status, code, what).into_response(),
            Form::Resource => resource(status, code, what, &Uuid::new_v4().to_string()),
            Form::Access => access(status, code, what, &Uuid::new_v4().to_string()),
            Form::Identity => identity(status, code, what, &Uuid::new_v4().to_string()),
            Form::Service => service(status, code, what, recovery.unwrap_or_default()),
        }
    }

    /// 429 for whoever calls more often than one caller may. Nothing was done for him.
    pub(crate) fn too_often(self, TooOften { retry_after: seconds }: TooOften) -> Response {
        let what = format!(
            "You call more often than the server takes calls of one caller, so nothing was done. Try again in {seconds} s"
        );
        let status = StatusCode::TOO_MANY_REQUESTS;
        let mut response = self.answer(status, "TOO_MANY_REQUESTS_ERR", &what, None);
        say_when(&mut response, Some(seconds));
        response
    }

    /// 401 for whatever the caller may not do. It says no more on purpose: a stranger learns
    /// nothing about what exists.
    pub fn unauthorized(self) -> Response {
        match self {
            Form::KeyProtect => KpError::unauthorized().into_response(),
            Form::Resource => resource(
                StatusCode::UNAUTHORIZED,
                "RC-IamErrorResponse",
                "Unauthorized: the token is missing, expired or does not allow this.",
                &Uuid::new_v4().to_string(),
            ),
            Form::Access | Form::Identity | Form::Service => self.answer(
                StatusCode::UNAUTHORIZED,
                "E0001",
                "Unauthorized: the token is missing, expired or does not allow this.",
                None,
            ),
        }
    }
}

/// An error answer of the Resource Controller.
pub fn resource(status: StatusCode, code: &str, what: &str, transaction: &str) -> Response {
    let body = ResourceError {
        error_code: code.to_owned(),
        message: what.to_owned(),
        status_code: status.as_u16(),
        transaction_id: transaction.to_owned(),
    };
    (status, axum::Json(body)).into_response()
}

/// An error answer of policies, groups and users.
pub fn access(status: StatusCode, code: &str, what: &str, trace: &str) -> Response {
    let item = AccessErrorItem { code: code.to_owned(), message: what.to_owned() };
    let (trace, status_code) = (trace.to_owned(), status.as_u16());
    let body = AccessError { trace, errors: vec![item], status_code };
    (status, axum::Json(body)).into_response()
}

/// An error answer of tokens, API keys and service IDs.
pub fn identity(status: StatusCode, code: &str, what: &str, request: &str) -> Response {
    let body = TokenError {
        error_code: code.to_owned(),
        error_message: what.to_owned(),
        context: ErrorContext { request_id: request.to_owned() },
    };
    (status, axum::Json(body)).into_response()
}

/// An error answer of the cluster service.
pub fn service(status: StatusCode, code: &str, what: &str, recovery: &str) -> Response {
    let body = ServiceError {
        incident_id: Uuid::new_v4().to_string(),
        code: code.to_owned(),
        description: what.to_owned(),
        terse_description: String::new(),
        kind: kind(status).to_owned(),
        recovery_cli: recovery.to_owned(),
    };
    (status, axum::Json(body)).into_response()
}

fn kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 | 403 => "Authentication",
        404 => "NotFound",
        400..=499 => "BadRequest",
        _ => "Infrastructure",
    }
}

/// An error answer of the key service.
#[derive(Debug, Clone)]
pub struct KpError {
    /// The HTTP status.
    pub status: StatusCode,
    /// Reason code; none for 401, which gives no reasons.
    pub code: Option<&'static str>,
    /// What failed, for instance `Key could not be deleted`.
    pub failed: String,
    /// Why, and what to do.
    pub message: String,
    /// The field, parameter or header that is wrong.
    pub target: Option<Target>,
    /// Seconds to wait; at most 5, since some clients wait as long as they are told.
    pub retry_after: Option<u8>,
    /// The key is active, and that is what forbids it.
    pub active: bool,
}

impl KpError {
    /// An error with this reason.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> KpError {
        KpError {
            status,
            code: Some(code),
            failed: String::new(),
            message: message.into(),
            target: None,
            retry_after: None,
            active: false,
        }
    }

    /// 401, which never says why.
    pub fn unauthorized() -> KpError {
        KpError {
            code: None,
            failed: "The user does not have access to the specified resource".to_owned(),
            ..KpError::new(StatusCode::UNAUTHORIZED, "", "")
        }
    }

    /// 400: the body cannot be read.
    pub fn body(message: impl Into<String>) -> KpError {
        KpError::new(StatusCode::BAD_REQUEST, "BAD_BODY_ERR", message)
    }

    /// 400: a field of the body is wrong.
    pub fn field(name: &str, message: impl Into<String>) -> KpError {
        let target = Target { kind: "field".to_owned(), name: name.to_owned() };
        let error = KpError::new(StatusCode::BAD_REQUEST, "INVALID_FIELD_ERR", message);
        KpError { target: Some(target), ..error }
    }

    /// 400: a query parameter is wrong.
    pub fn query(name: &str, message: impl Into<String>) -> KpError {
        let target = Target { kind: "query_param".to_owned(), name: name.to_owned() };
        let error = KpError::new(StatusCode::BAD_REQUEST, "INVALID_QUERY_PARAM_ERR", message);
        KpError { target: Some(target), ..error }
    }

    /// 404: no such key.
    pub fn no_key() -> KpError {
        KpError::new(StatusCode::NOT_FOUND, "KEY_NOT_FOUND_ERR", "Key does not exist")
    }

    /// 409 with this reason.
    pub fn conflict(code: &'static str, message: impl Into<String>) -> KpError {
        KpError::new(StatusCode::CONFLICT, code, message)
    }

    /// The same error, saying what could not be done.
    pub fn failing(mut self, failed: &str) -> KpError {
        if self.failed.is_empty() {
            self.failed = failed.to_owned();
        }
        self
    }

    /// The same error in the shape that paths outside `/api/v2` answer.
    pub fn in_service_form(self) -> Response {
        let Some(code) = self.code else { return Form::Service.unauthorized() };
        let mut response = service(self.status, code, &self.message, "");
        say_when(&mut response, self.retry_after);
        response
    }

    /// The reason code, or empty.
    pub fn code(&self) -> &'static str {
        self.code.unwrap_or_default()
    }
}

/// What is said where there is no room for a request, with [`RETRY_AFTER`].
pub(crate) const BUSY: &str = "The server is busy with other requests; nothing was done. Try again";
/// What is said where a stored value cannot be read.
pub(crate) const DAMAGED: &str =
    "The server's database holds a value that cannot be read; its operator must look at its log";
/// Seconds after which to try again what failed by the server's fault.
pub(crate) const RETRY_AFTER: u8 = 2;

/// Adds when to try again, in seconds, if that is known.
pub(crate) fn say_when(response: &mut Response, seconds: Option<u8>) {
    if let Some(seconds) = seconds {
        let seconds = HeaderValue::from(u16::from(seconds));
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
}

impl From<claviger_store::StoreError> for KpError {
    fn from(e: claviger_store::StoreError) -> KpError {
        if matches!(e, claviger_store::StoreError::Busy) {
            let error = KpError::new(StatusCode::SERVICE_UNAVAILABLE, "BUSY_ERR", BUSY);
            return KpError { retry_after: Some(RETRY_AFTER), ..error };
        }
        tracing::error!(error = %e, "database");
        if matches!(e, claviger_store::StoreError::Damaged(_)) {
            // Nothing that the caller could repeat would mend it.
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return KpError::new(status, "INCOMPLETE_METADATA_ERR", DAMAGED);
        }
        let (code, what) = if e.is_disk() {
            (
                "STORAGE_ERR",
                "The server cannot write to its disk; nothing was changed. Tell its operator to make room, then try again",
            )
        } else {
            ("STORAGE_ERR", "The server's database did not answer; nothing was changed. Try again")
        };
        let error = KpError::new(StatusCode::SERVICE_UNAVAILABLE, code, what);
        KpError { retry_after: Some(RETRY_AFTER), ..error }
    }
}

impl From<crate::record::NotRecorded> for KpError {
    fn from(e: crate::record::NotRecorded) -> KpError {
        let error = KpError::new(StatusCode::SERVICE_UNAVAILABLE, "STORAGE_ERR", e.what());
        KpError { retry_after: Some(RETRY_AFTER), ..error }
    }
}

impl IntoResponse for KpError {
    fn into_response(self) -> Response {
        let phrase = self.status.canonical_reason().unwrap_or("Error");
        let (error_msg, reasons) = match self.code {
            None => (format!("{phrase}: {}", self.failed), Vec::new()),
            Some(code) => {
                let what = match (self.failed.as_str(), code) {
                    ("", _) => self.message.clone(),
                    (failed, "KEY_ACTION_INVALID_STATE_ERR") if !self.active => {
                        format!("Key is not in active state: {failed}")
                    }
                    (failed, _) => failed.to_owned(),
                };
                let reason = Reason {
                    code: code.to_owned(),
                    message: self.message,
                    status: self.status.as_u16(),
                    more_info: "https://cloud.ibm.com/apidocs/key-protect".to_owned(),
                    target: self.target,
                };
                let text =
                    format!("{phrase}: {what}: Please see `reasons` for more details ({code})");
                (text, vec![reason])
            }
        };
        let body = Envelope::of(kp::ERROR_TYPE, vec![ErrorBody { error_msg, reasons }]);
        let text = serde_json::to_vec(&body).expect("an error body is valid JSON");
        let mut response = (self.status, text).into_response();
        let form = HeaderValue::from_static(kp::ERROR_TYPE);
        response.headers_mut().insert(header::CONTENT_TYPE, form);
        say_when(&mut response, self.retry_after);
        response
    }
}
