//! One error for every call: whose fault, whether to retry, what to do now.

use claviger_wire::access::AccessError;
use claviger_wire::iam::TokenError;
use claviger_wire::kp;
use claviger_wire::ks::ServiceError;
use claviger_wire::rc::ResourceError;
use std::error::Error as _;
use thiserror::Error;

/// Why a call did not succeed.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// No answer, or one that says "not now": nobody's fault for sure. Retry later.
    #[error("the server at {url} cannot be reached: {what}")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What happened.
        what: String,
    },
    /// It answers that it cannot do it now: nobody's fault for sure, or its operator's. Retry
    /// later; says nothing about a key.
    #[error("the server at {url} cannot do it now ({status}){what}")]
    Busy {
        /// Where it answers.
        url: String,
        /// HTTP status: 429, 502 to 504, 507.
        status: u16,
        /// What it says, with a colon before it; may be empty.
        what: String,
    },
    /// Somebody answered who could not prove to be our server, or who did not take our
    /// certificate. Retrying does not help.
    #[error("no trusted connection to {url}: {what}")]
    Tls {
        /// Where.
        url: String,
        /// What failed, and what to look at.
        what: String,
    },
    /// The server understood and said no: the caller's fault, or the state of what it names.
    #[error("{message} ({status} {code})")]
    Refused {
        /// HTTP status, 4xx.
        status: u16,
        /// Code of the reason, for instance `KEY_NOT_FOUND_ERR`; empty if none was given.
        code: String,
        /// For people.
        message: String,
        /// The command that mends it; empty if the server knew none.
        hint: String,
    },
    /// The credential is not accepted, or may not do this.
    #[error("not authorized: {message}")]
    Unauthorized {
        /// For people.
        message: String,
    },
    /// An answer that makes no sense, or an error of the server itself: a bug on either side.
    #[error("unexpected answer: {what}")]
    Protocol {
        /// What was unexpected.
        what: String,
    },
    /// The call could not even be made: a setting or file of the caller.
    #[error("{what}")]
    Local {
        /// Which, and what to do.
        what: String,
    },
}

impl Error {
    /// The code of the server's reason, if it gave one.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Error::Refused { code, .. } if !code.is_empty() => Some(code),
            _ => None,
        }
    }

    /// Whether an authenticated answer says that the state of the key forbids the action:
    /// suspended or destroyed. Never true for an answer that merely did not come.
    pub fn is_key_state(&self) -> bool {
        matches!(
            (self, self.reason()),
            (Error::Refused { status: 409 | 410, .. }, Some(ACTION_INVALID_STATE | KEY_DELETED))
        )
    }

    /// Whether the same call may succeed later without anybody doing anything.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::Busy { .. })
    }

    /// What to do now, in words; empty if the text says it all.
    pub fn hint(&self) -> &str {
        match self {
            Error::Unreachable { .. } => "is the server running? try again",
            Error::Busy { .. } => "try again; if it stays so, the server's log says why",
            Error::Refused { hint, .. } => hint,
            Error::Unauthorized { .. } => {
                "check the API key or certificate, its roles, and whether the instance's policy allowedIP admits this address (docs/runbooks/instance-locked.md)"
            }
            Error::Protocol { .. } => "compare the versions of both ends; report it as a bug",
            Error::Tls { .. } | Error::Local { .. } => "",
        }
    }

    pub(crate) fn local(what: impl Into<String>) -> Self {
        Error::Local { what: what.into() }
    }

    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Error::Protocol { what: what.into() }
    }

    /// Maps a failure of the transport.
    pub(crate) fn transport(url: &str, error: &reqwest::Error) -> Self {
        let url = url.to_owned();
        if let Some(tls) = rustls_cause(error) {
            return Error::Tls { url, what: explain(tls) };
        }
        if error.is_builder() {
            return Error::local(format!(
                "no request can be made of {url} and what was named: a URL is not https, or a name is too long"
            ));
        }
        let what = if error.is_timeout() { "no answer in time".to_owned() } else { root(error) };
        Error::Unreachable { url, what }
    }

    /// Maps an answer that is not a success.
    pub(crate) fn answer(url: &str, status: u16, body: &[u8]) -> Self {
        let reason = Reason::read(body);
        match (status, reason) {
            (429 | 502..=504 | 507, reason) => {
                let what = reason.map(|r| format!(": {}", r.message)).unwrap_or_default();
                Error::Busy { url: url.to_owned(), status, what }
            }
            (401, reason) => Error::Unauthorized {
                message: reason.map_or_else(|| "the server answers 401".to_owned(), |r| r.message),
            },
            // Not from our server, or not about this call: say so rather than guess.
            (status, None) => Error::protocol(format!("status {status} without a reason")),
            (status @ 400..=499, Some(reason)) => Error::Refused {
                status,
                code: reason.code,
                message: reason.message,
                hint: reason.hint,
            },
            (status, Some(reason)) => {
                Error::protocol(format!("status {status}: {}", reason.message))
            }
        }
    }
}

/// The state of a key forbids the action.
const ACTION_INVALID_STATE: &str = "KEY_ACTION_INVALID_STATE_ERR";
/// The key is destroyed.
const KEY_DELETED: &str = "KEY_DELETED_ERR";
/// Longest text of a server that is passed on.
const MESSAGE_MAX: usize = 1000;

/// What an error body says, whichever of the five shapes it has.
struct Reason {
    code: String,
    message: String,
    hint: String,
}

impl Reason {
    fn read(body: &[u8]) -> Option<Reason> {
        if let Ok(envelope) = serde_json::from_slice::<kp::Envelope<kp::ErrorBody>>(body) {
            let error = envelope.resources.into_iter().next()?;
            let reason = error.reasons.into_iter().next();
            let code = reason.as_ref().map(|r| r.code.clone()).unwrap_or_default();
            let message = match reason {
                Some(reason) if !reason.message.is_empty() => reason.message,
                _ => error.error_msg,
            };
            return Some(Reason::new(code, &message, ""));
        }
        if let Ok(error) = serde_json::from_slice::<ServiceError>(body) {
            return Some(Reason::new(error.code, &error.description, &error.recovery_cli));
        }
        if let Ok(error) = serde_json::from_slice::<ResourceError>(body) {
            return Some(Reason::new(error.error_code, &error.message, ""));
        }
        if let Ok(error) = serde_json::from_slice::<AccessError>(body) {
            let first = error.errors.into_iter().next()?;
            return Some(Reason::new(first.code, &first.message, ""));
        }
        let error = serde_json::from_slice::<TokenError>(body).ok()?;
        Some(Reason::new(error.error_code, &error.error_message, ""))
    }

    fn new(code: String, message: &str, hint: &str) -> Self {
        let cut = |text: &str| text.chars().take(MESSAGE_MAX).collect();
        Self { code: cut(&code), message: cut(message), hint: cut(hint) }
    }
}

/// The TLS error under a transport error, if there is one. An `io::Error` hides what it holds
/// from the chain of sources, so both are looked at.
fn rustls_cause(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        let mut io = inner.downcast_ref::<std::io::Error>();
        while let Some(held) = io.and_then(std::io::Error::get_ref) {
            if let Some(tls) = held.downcast_ref::<rustls::Error>() {
                return Some(tls);
            }
            io = held.downcast_ref::<std::io::Error>();
        }
        source = inner.source();
    }
    None
}

fn explain(error: &rustls::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error as Tls};
    match error {
        Tls::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            "its certificate was not signed by the CA that was given; is the CA file that of \
             this server?"
                .to_owned()
        }
        Tls::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "its certificate has expired; restart the server, which renews it, and look at both \
             clocks"
                .to_owned()
        }
        Tls::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "its certificate is for another name; use a name that the server was told with \
             --name"
                .to_owned()
        }
        Tls::InvalidMessage(_) => "it does not speak TLS; is this the right port?".to_owned(),
        Tls::AlertReceived(
            Alert::CertificateExpired
            | Alert::BadCertificate
            | Alert::UnknownCA
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::AccessDenied
            // A CA of the same name with another key: the server was set up anew.
            | Alert::DecryptError,
        ) => format!("it does not accept this node's certificate: {error}"),
        Tls::AlertReceived(Alert::ProtocolVersion) => "it does not speak TLS 1.3".to_owned(),
        other => other.to_string(),
    }
}

/// The innermost cause: the outer ones only repeat the URL.
fn root(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kp_error(status: u16, code: &str) -> Error {
        let body = serde_json::json!({
            "metadata": {"collectionType": "application/vnd.ibm.kms.error+json",
                "collectionTotal": 1},
            "resources": [{"errorMsg": "Conflict", "reasons": [{"code": code,
                "message": "Key is not in active state", "status": status, "moreInfo": ""}]}],
        });
        Error::answer("u", status, body.to_string().as_bytes())
    }

    #[test]
    fn only_an_authenticated_word_on_the_key_is_a_key_state() {
        for (error, expected) in [
            (kp_error(409, "KEY_ACTION_INVALID_STATE_ERR"), true),
            (kp_error(410, "KEY_DELETED_ERR"), true),
            (kp_error(409, "REQ_TOO_EARLY_ERR"), false),
            (kp_error(404, "KEY_NOT_FOUND_ERR"), false),
            (kp_error(422, "UNPROCESSABLE_CIPHERTEXT_ERR"), false),
            (kp_error(401, "KEY_ACTION_INVALID_STATE_ERR"), false),
            (kp_error(503, "KEY_ACTION_INVALID_STATE_ERR"), false),
            (kp_error(500, "KEY_ACTION_INVALID_STATE_ERR"), false),
            (Error::answer("u", 409, b"<html>conflict</html>"), false),
            (Error::answer("u", 410, b""), false),
            (Error::answer("u", 409, b"{}"), false),
        ] {
            assert_eq!(error.is_key_state(), expected, "{error}");
        }
    }

    #[test]
    fn all_error_shapes_are_read() {
        let ks = br#"{"incidentID":"1","code":"E4092","description":"used before","type":"x",
            "recoveryCLI":"create a new key"}"#;
        let error = Error::answer("u", 409, ks);
        assert_eq!((error.reason(), error.hint()), (Some("E4092"), "create a new key"));
        let iam = br#"{"errorCode":"BXNIM0415E","errorMessage":"no such key"}"#;
        assert_eq!(Error::answer("u", 400, iam).reason(), Some("BXNIM0415E"));
        let rc = br#"{"error_code":"RC-NotFound","message":"no","status_code":404,"transaction_id":"1"}"#;
        assert_eq!(Error::answer("u", 404, rc).reason(), Some("RC-NotFound"));
        let policy = br#"{"trace":"1","errors":[{"code":"policy_conflict_error","message":"same"}],
            "status_code":409}"#;
        assert_eq!(Error::answer("u", 409, policy).reason(), Some("policy_conflict_error"));
        let no_reasons = br#"{"metadata":{"collectionType":"e","collectionTotal":1},
            "resources":[{"errorMsg":"Unauthorized: no access"}]}"#;
        let error = Error::answer("u", 401, no_reasons);
        assert_eq!(error.to_string(), "not authorized: Unauthorized: no access");
        for status in [429, 502, 503, 504, 507] {
            let busy = Error::answer("u", status, b"");
            assert!(busy.is_unreachable(), "{status}");
            assert_eq!(busy.to_string(), format!("the server at u cannot do it now ({status})"));
        }
    }
}
