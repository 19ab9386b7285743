//! Who calls: a bearer of a token, or a node with its certificate.

use crate::app::App;
use crate::http::Trace;
use crate::http::error::{Form, KpError};
use axum::extract::FromRequestParts;
use axum::http::{StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use claviger_domain::access::{
    KeyOperation, On, PlatformRole, Scope, ServiceRole, role_allows, services_only,
};
use claviger_domain::audit::{Credential, Record};
use claviger_domain::id::{AgentName, ClusterId, InstanceId, UnixMs};
use claviger_store::iam::{self, Grant};
use claviger_store::{StoreError, Tx};
use claviger_wire::kp::rings::RING_HEADER;
use std::borrow::Cow;
use std::sync::Arc;

/// Whoever holds a token.
#[derive(Debug, Clone)]
pub struct Caller {
    /// IAM id; goes into audit records and `createdBy`.
    pub iam_id: String,
    /// Whether it is a service, not a person.
    pub service: bool,
    /// The CRN of a service that is a resource, such as a cluster.
    pub crn: Option<String>,
    /// The cluster, if it is one.
    pub cluster: Option<ClusterId>,
    /// What it may do, as of now: looked up for each request, so that a change counts at once.
    pub grants: Vec<Grant>,
    /// The key ring that the request names: the only one in which it finds keys.
    pub ring: Option<String>,
    /// What of its request goes on record.
    pub trace: Trace,
}

impl Caller {
    /// Whether the caller may do `operation` on this of the instance.
    pub fn permits(&self, operation: KeyOperation, instance: InstanceId, on: On<'_>) -> bool {
        if services_only(operation) && !self.service {
            return false;
        }
        self.grants.iter().any(|grant| match grant {
            Grant::Platform(_) => false,
            Grant::Service { role, scope } => {
                role_allows(*role, operation) && scope.covers(instance, on)
            }
        })
    }

    /// Like [`permits`](Self::permits), as the key service's 401.
    ///
    /// # Errors
    /// 401 without reasons.
    pub fn permit(
        &self,
        operation: KeyOperation,
        instance: InstanceId,
        on: On<'_>,
    ) -> Result<(), KpError> {
        if self.permits(operation, instance, on) { Ok(()) } else { Err(KpError::unauthorized()) }
    }

    /// Whether some grant of the caller is about this instance.
    pub fn sees(&self, instance: InstanceId) -> bool {
        self.grants.iter().any(|grant| match grant {
            Grant::Platform(_) => false,
            Grant::Service { scope, .. } => scope.reaches(instance),
        })
    }

    /// The record of what the caller did: a success, with what the request says of itself.
    pub(crate) fn did(
        &self,
        at: UnixMs,
        action: impl Into<Cow<'static, str>>,
        target: impl Into<String>,
    ) -> Record {
        self.trace.record(&*self.iam_id, Credential::Token, at, action, target)
    }

    /// Whether the caller holds at least this platform role.
    pub fn platform(&self, least: PlatformRole) -> bool {
        self.grants.iter().any(|grant| matches!(grant, Grant::Platform(role) if *role >= least))
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Response;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        let form = Form::of(parts.uri.path());
        let Ok(trace) = Trace::from_request_parts(parts, app).await;
        let token = parts.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        // Tokens are bearer secrets: nothing of one is logged or answered.
        let token = token.and_then(bearer).ok_or_else(|| form.unauthorized())?;
        let now = app.clock.now();
        let iam_id = match app.tokens.read(token, now) {
            Ok(iam_id) => iam_id,
            Err(crate::iam::token::BadToken::Malformed) if form == Form::KeyProtect => {
                let what =
                    "The bearer token is not a token of this server; get one from /identity/token";
                let code = "BEARER_SUB_EXTRACTION_ERR";
                return Err(KpError::new(StatusCode::BAD_REQUEST, code, what).into_response());
            }
            Err(_) => return Err(form.unauthorized()),
        };
        let ring = parts.headers.get(RING_HEADER).map(|v| String::from_utf8_lossy(v.as_bytes()));
        let ring = ring.map(|ring| ring.trim().to_owned()).filter(|ring| !ring.is_empty());
        let found = app.blocking(move |app| app.store.read("caller", |tx| find(tx, &iam_id))).await;
        match found {
            Ok(Some(caller)) => Ok(Caller { ring, trace, ..caller }),
            Ok(None) => Err(form.unauthorized()),
            Err(e) => Err(form.answer(
                StatusCode::SERVICE_UNAVAILABLE,
                "STORAGE_ERR",
                &format!("The server's database did not answer ({e}). Try again"),
                None,
            )),
        }
    }
}

/// The caller with this IAM id, with what it may do as of now but without a request; none if there
/// is none.
pub(crate) fn find(tx: &Tx<'_>, iam_id: &str) -> Result<Option<Caller>, StoreError> {
    if let Some(crn) = iam_id.strip_prefix("crn-") {
        let cluster = crn.split(':').nth(7).and_then(|id| id.parse::<ClusterId>().ok());
        let Some(cluster) = cluster else { return Ok(None) };
        let role = ServiceRole::Reader;
        let grants = crate::clusters::scope_of(tx, &cluster)?
            .into_iter()
            .map(|root| Grant::Service { role, scope: Scope::Key(root) })
            .collect();
        return Ok(Some(Caller {
            iam_id: iam_id.to_owned(),
            service: true,
            crn: Some(crn.to_owned()),
            cluster: Some(cluster),
            grants,
            ring: None,
            trace: Trace::default(),
        }));
    }
    let Some(principal) = iam::principal(tx, iam_id)? else { return Ok(None) };
    let grants = iam::grants_of(tx, iam_id)?;
    Ok(Some(Caller {
        iam_id: principal.iam_id,
        service: principal.service,
        crn: None,
        cluster: None,
        grants,
        ring: None,
        trace: Trace::default(),
    }))
}

/// The token of an `Authorization: Bearer …` header; the scheme in any case.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The node on the other end of a TLS connection, as its certificate says. The accept loop puts
/// it into the request; its absence means that no certificate was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its agent.
    pub agent: AgentName,
    /// SHA-256 of its certificate's DER, lower-case hexadecimal.
    pub fingerprint: String,
    /// When its certificate ends.
    pub not_after: UnixMs,
}

impl<S: Sync> FromRequestParts<S> for Node {
    type Rejection = Response;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        parts.extensions.get().cloned().ok_or_else(|| {
            crate::http::error::service(
                StatusCode::UNAUTHORIZED,
                "E0002",
                "This call needs a node's certificate; join the cluster first.",
                "claviger ks cluster join-token",
            )
        })
    }
}
