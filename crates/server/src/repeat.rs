//! Changes that are asked for again because their answer was lost: they are answered again, and
//! not done again.
//!
//! A request is the same as one before if all of it is: who asks, method, path with its query,
//! instance and key ring, body, and the correlation id that the caller himself sent. What is kept of
//! it is a MAC under a sealed key, since a body may hold something that can be guessed; and of the
//! answer only which key it shows: it is made anew of what the database holds. It is kept in the
//! transaction of the change, for [`KEPT`], and no longer than until somebody changes the same thing
//! again: a caller who disables a key once more after it was enabled is not told that it is disabled
//! already.

use crate::app::App;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Uri};
use claviger_crypto::digest::{MacKey, Sha256, sha256};
use claviger_domain::id::UnixMs;
use claviger_store::{StoreError, repeats};
use claviger_wire::kp::INSTANCE_HEADER;
use claviger_wire::kp::rings::RING_HEADER;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long a change may be asked for again.
pub(crate) const KEPT: Duration = Duration::from_secs(600);

/// The digest of a request's body, once it was read; a body that nobody reads plays no part.
#[derive(Debug, Clone, Default)]
pub(crate) struct BodyDigest(Arc<OnceLock<[u8; 32]>>);

impl BodyDigest {
    /// Notes what was read.
    pub(crate) fn of(&self, body: &[u8]) {
        // A body is read once.
        let _ = self.0.set(sha256(body));
    }
}

/// Whether a request may change something of the key service: what only uses a key may be asked for as often as one
/// likes, and its body need not be looked at here.
pub(crate) fn may_change(method: &Method, uri: &Uri) -> bool {
    let uses = |action: &str| matches!(action, "wrap" | "unwrap" | "rewrap");
    let new_form = || uri.path().rsplit_once("/actions/").is_some_and(|(_, action)| uses(action));
    let old_form = || {
        let mut query = uri.query().unwrap_or_default().split('&');
        query.any(|pair| pair.strip_prefix("action=").is_some_and(uses))
    };
    let changes = !matches!(*method, Method::GET | Method::HEAD);
    changes && uri.path().starts_with("/api/v2/") && !new_form() && !old_form()
}

/// All of a request but who asks.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    method: Method,
    uri: Uri,
    instance: Vec<u8>,
    ring: Vec<u8>,
    correlation: String,
    body: BodyDigest,
}

impl Asked {
    /// Of a request by the correlation id that came with it.
    pub(crate) fn of(parts: &Parts, correlation: &str, body: BodyDigest) -> Asked {
        let header = |headers: &HeaderMap, name| {
            headers.get(name).map(|value| value.as_bytes().to_vec()).unwrap_or_default()
        };
        Asked {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            instance: header(&parts.headers, INSTANCE_HEADER),
            ring: header(&parts.headers, RING_HEADER),
            correlation: correlation.to_owned(),
            body,
        }
    }

    /// What the request is known by, if `who` asks.
    pub(crate) fn mac(&self, key: &MacKey, who: &str) -> [u8; 32] {
        let uri = self.uri.path_and_query().map_or("/", |uri| uri.as_str());
        let body = self.body.0.get().copied().unwrap_or_else(|| sha256(b""));
        let mut all = Sha256::new();
        let parts = [
            who.as_bytes(),
            self.method.as_str().as_bytes(),
            uri.as_bytes(),
            &self.instance,
            &self.ring,
            self.correlation.as_bytes(),
            &body,
        ];
        for part in parts {
            all.update(&(part.len() as u64).to_be_bytes());
            all.update(part);
        }
        key.tag(&all.finish())
    }
}

/// Since when a change may be asked for again at `now`.
pub(crate) fn since(now: UnixMs) -> UnixMs {
    UnixMs(now.0.saturating_sub(KEPT.as_millis() as i64))
}

/// Forgets what is over; whether there is more than one turn does.
pub(crate) fn turn(app: &App, now: UnixMs) -> Result<bool, StoreError> {
    let before = since(now);
    if !app.store.read("repeats", |tx| repeats::due(tx, before))? {
        return Ok(false);
    }
    let gone = app.store.tx("repeats", |tx| repeats::forget(tx, before))?;
    Ok(gone == repeats::AT_ONCE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    #[test]
    fn a_request_is_the_same_only_if_all_of_it_is() {
        let key = MacKey::new(b"k");
        let mac = |who: &str, method: &str, uri: &str, headers: [&str; 2], id: &str, body: &str| {
            let [instance, ring] = headers;
            let request = Request::builder().method(method).uri(uri);
            let request = request.header(INSTANCE_HEADER, instance).header(RING_HEADER, ring);
            let (parts, ()) = request.body(()).expect("a request").into_parts();
            let digest = BodyDigest::default();
            digest.of(body.as_bytes());
            Asked::of(&parts, id, digest).mac(&key, who)
        };
        let one = mac("a", "POST", "/x?y=1", ["i", "r"], "c", "b");
        assert_eq!(one, mac("a", "POST", "/x?y=1", ["i", "r"], "c", "b"));
        for other in [
            mac("b", "POST", "/x?y=1", ["i", "r"], "c", "b"),
            mac("a", "PUT", "/x?y=1", ["i", "r"], "c", "b"),
            mac("a", "POST", "/x?y=2", ["i", "r"], "c", "b"),
            mac("a", "POST", "/x?y=1", ["j", "r"], "c", "b"),
            mac("a", "POST", "/x?y=1", ["i", "s"], "c", "b"),
            mac("a", "POST", "/x?y=1", ["ir", ""], "c", "b"),
            mac("a", "POST", "/x?y=1", ["i", "r"], "d", "b"),
            mac("a", "POST", "/x?y=1", ["i", "r"], "c", ""),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn what_only_uses_a_key_changes_nothing() {
        for (method, uri, changes) in [
            (Method::GET, "/api/v2/keys", false),
            (Method::HEAD, "/api/v2/keys", false),
            (Method::POST, "/api/v2/keys", true),
            (Method::POST, "/api/v2/keys/k/actions/wrap", false),
            (Method::POST, "/api/v2/keys/k/actions/rotate", true),
            (Method::POST, "/api/v2/keys/k?action=unwrap", false),
            (Method::POST, "/api/v2/keys/k?action=disable", true),
            (Method::DELETE, "/api/v2/keys/wrap", true),
            (Method::POST, "/identity/token", false),
        ] {
            let parsed = uri.parse().expect("a URI");
            assert_eq!(may_change(&method, &parsed), changes, "{method} {uri}");
        }
    }
}
