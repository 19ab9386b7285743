//! Who calls: a bearer of a token, or a node with its certificate.

use crate::app::App;
use crate::http::Trace;
use crate::http::error::{Form, KpError, say_when};
use crate::iam::known::{Entry, Found};
use crate::iam::token::{BadToken, Bearer, Credential, Expected};
use crate::iam::trust::trusts;
use crate::room::For;
use crate::throttle::{Kind, TooOften};
use axum::extract::FromRequestParts;
use axum::http::{StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use claviger_crypto::digest::{hex, sha256};
use claviger_domain::access::{KeyOperation, On, PlatformRole};
use claviger_domain::audit::{Credential as Proof, Record};
use claviger_domain::id::{AgentName, ClusterId, InstanceId, PolicyId, UnixMs};
use claviger_domain::key::RootKey;
use claviger_domain::policy::{Access, Site};
use claviger_store::{StoreError, Tx, access, iam, logins, trust};
use claviger_wire::kp::rings::RING_HEADER;
use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

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
    /// What it may do, as of the request's headers or of the last [`renew`](Self::renew).
    pub access: Arc<Access>,
    /// Of a cluster: the root keys that its truth names and no authorization lets it use.
    pub missing: Arc<[RootKey]>,
    /// The key ring that the request names: the only one in which it finds keys.
    pub ring: Option<String>,
    /// What of its request goes on record.
    pub trace: Trace,
    /// The policy that the last decision rests on, for the audit record.
    pub decided: Decided,
    /// What it came in with; none where no request stands behind it.
    bearer: Option<Arc<Bearer>>,
    /// The epoch of access that `access` was compiled under; none if it rests on more than that.
    epoch: Option<u64>,
}

/// Which policy allowed what was asked last; none if none did.
#[derive(Debug, Clone, Default)]
pub struct Decided(Arc<Mutex<Option<PolicyId>>>);

impl Decided {
    /// The policy.
    pub fn policy(&self) -> Option<PolicyId> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, policy: Option<PolicyId>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = policy;
    }
}

/// The target of the log of decisions; at level debug it tells every one of them.
pub const DECISIONS: &str = "claviger::decision";

/// What was asked about, for the log: of a key's id a hash, as anywhere in logs.
struct Said<'a>(On<'a>);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            On::Instance => f.write_str("instance"),
            On::Ring(ring) => write!(f, "ring {ring}"),
            On::Key(key, ring) => {
                let hash = hex(&sha256(key.0.as_bytes())[..8]);
                write!(f, "key {hash} in ring {ring}")
            }
        }
    }
}

impl Caller {
    /// Looks again who the caller is and what it may do, if that may have changed: its request's
    /// body took seconds, or another writer did. False if it counts no longer. What a caller asks
    /// for begins with this, in its own transaction, so nothing is done by a right that was taken
    /// away before.
    ///
    /// # Errors
    /// When the database does not answer.
    pub(crate) fn renew(&mut self, app: &App, tx: &Tx<'_>) -> Result<bool, StoreError> {
        let Some(bearer) = &self.bearer else { return Ok(true) };
        if self.epoch == Some(app.store.access_epoch()) {
            return Ok(true);
        }
        let Some(found) = find_bearer(tx, bearer, app.clock.now())? else { return Ok(false) };
        let Found { epoch, service, access, missing } = found;
        (self.epoch, self.service, self.access, self.missing) = (epoch, service, access, missing);
        Ok(true)
    }

    /// The API key that its token was got with.
    pub(crate) fn api_key(&self) -> Option<Uuid> {
        match self.bearer.as_ref()?.credential {
            Credential::ApiKey(key) => Some(key),
            Credential::Node { .. } | Credential::Trust { .. } | Credential::Login { .. } => None,
        }
    }

    /// Whether the caller may do `operation` on this of the instance.
    pub fn permits(&self, operation: KeyOperation, instance: InstanceId, on: On<'_>) -> bool {
        self.access.allows(operation, instance, on).is_some()
    }

    /// Like [`permits`](Self::permits), as the key service's 401, with the decision on record.
    ///
    /// # Errors
    /// 401 without reasons.
    pub fn permit(
        &self,
        operation: KeyOperation,
        instance: InstanceId,
        on: On<'_>,
    ) -> Result<(), KpError> {
        let policy = self.access.allows(operation, instance, on);
        self.decided.set(policy);
        tracing::debug!(
            target: DECISIONS,
            who = self.iam_id,
            ?operation,
            %instance,
            on = Said(on).to_string(),
            policy = policy.map(tracing::field::display),
            allowed = policy.is_some(),
            correlation = self.trace.correlation,
        );
        match (policy, on) {
            (Some(_), _) => Ok(()),
            // The cluster knows that the key is there: it has used it, or an operator chose it.
            (None, On::Key(key, _)) if self.missing.contains(&RootKey { instance, key }) => {
                Err(no_authorization())
            }
            (None, _) => Err(KpError::unauthorized()),
        }
    }

    /// Whether some role of the caller counts for anything in this instance.
    pub fn sees(&self, instance: InstanceId) -> bool {
        self.access.reaches(instance) || self.missing.iter().any(|root| root.instance == instance)
    }

    /// The record of what the caller did: a success, with what the request says of itself.
    pub(crate) fn did(
        &self,
        at: UnixMs,
        action: impl Into<Cow<'static, str>>,
        target: impl Into<String>,
    ) -> Record {
        let mut record = self.trace.record(&*self.iam_id, Proof::Token, at, action, target);
        record.data.policy = self.decided.policy();
        record
    }

    /// Whether the caller holds at least this platform role on `site`; the decision goes on
    /// record.
    pub fn platform(&self, least: PlatformRole, site: Site<'_>) -> bool {
        let policy = self.access.platform(least, site);
        self.decided.set(policy);
        tracing::debug!(
            target: DECISIONS,
            who = self.iam_id,
            role = ?least,
            ?site,
            policy = policy.map(tracing::field::display),
            allowed = policy.is_some(),
            correlation = self.trace.correlation,
        );
        policy.is_some()
    }
}

fn no_authorization() -> KpError {
    let what = "No authorization lets this cluster use the key; an administrator can make one: claviger iam authorization create";
    KpError::new(StatusCode::FORBIDDEN, "AUTHORIZATION_MISSING_ERR", what)
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Response;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        let form = Form::of(parts.uri.path());
        let Ok(trace) = Trace::from_request_parts(parts, app).await;
        let token = parts.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        // Tokens are bearer secrets: nothing of one is logged or answered.
        let refused = || app.refusals.bad_token(app, app.clock.now(), trace.origin.address);
        let token = token.and_then(bearer).ok_or_else(|| {
            refused();
            form.unauthorized()
        })?;
        let entry = match identify(app, token).await {
            Ok(entry) => entry,
            Err(Unknown::Token(BadToken::Malformed)) if form == Form::KeyProtect => {
                refused();
                let what =
                    "The bearer token is not a token of this server; get one from /identity/token";
                let code = "BEARER_SUB_EXTRACTION_ERR";
                return Err(KpError::new(StatusCode::BAD_REQUEST, code, what).into_response());
            }
            Err(Unknown::Token(_) | Unknown::Nobody) => {
                refused();
                return Err(form.unauthorized());
            }
            Err(Unknown::Store(e)) => {
                // In the shape that the path's clients read, with the reasons of one kind.
                let error = KpError::from(e);
                let mut response = form.answer(error.status, error.code(), &error.message, None);
                say_when(&mut response, error.retry_after);
                return Err(response);
            }
        };
        let ring = parts.headers.get(RING_HEADER).map(|v| String::from_utf8_lossy(v.as_bytes()));
        let ring = ring.map(|ring| ring.trim().to_owned()).filter(|ring| !ring.is_empty());
        let Entry { bearer, found, .. } = entry;
        admit(app, &bearer.iam_id, &bearer.credential).map_err(|e| form.too_often(e))?;
        let found = caller(&bearer.iam_id, found);
        Ok(Caller { ring, trace, bearer: Some(bearer), ..found })
    }
}

/// Whether whoever came in with this may call now; each answer that he is not given is counted.
pub(crate) fn admit(app: &App, iam_id: &str, credential: &Credential) -> Result<(), TooOften> {
    match credential {
        // By its agent, as when it shows its certificate.
        Credential::Node { agent, fingerprint, .. } => {
            app.throttle.admit(app, Kind::Agent, &caller_of(iam_id, agent, fingerprint))
        }
        Credential::ApiKey(_) | Credential::Trust { .. } | Credential::Login { .. } => {
            app.throttle.admit(app, Kind::Principal, iam_id)
        }
    }
}

/// An agent, as its calls are counted: by its certificate too. TLS takes one that counts no longer, and
/// what is called with that must take nothing of the agent that has its place.
fn caller_of(cluster: &str, agent: &AgentName, fingerprint: &str) -> String {
    let short = fingerprint.get(..16).unwrap_or(fingerprint);
    format!("{} certificate {short}", agent_of(cluster, agent))
}

/// An agent, as records name it; `cluster` is the IAM id of its cluster.
fn agent_of(cluster: &str, agent: &AgentName) -> String {
    format!("{cluster} agent {agent}")
}

enum Unknown {
    Token(BadToken),
    /// The token is good, and whom it is for is there no longer.
    Nobody,
    Store(StoreError),
}

/// Whom a token is for and what he may do, as of now.
async fn identify(app: &Arc<App>, token: &str) -> Result<Entry, Unknown> {
    let digest = sha256(token.as_bytes());
    let now = app.clock.now();
    // Before the signature is looked at: it may be verified by a key that ends meanwhile.
    let generation = app.tokens.generation();
    let known = app.known.get(&digest).filter(|entry| entry.generation == generation);
    let bearer = match known {
        Some(entry) if entry.bearer.expired(now) => {
            return Err(Unknown::Token(BadToken::Expired));
        }
        Some(entry) if entry.found.epoch == Some(app.store.access_epoch()) => return Ok(entry),
        Some(entry) => entry.bearer,
        None => {
            let (issuer, account, life_s) = (&*app.issuer(), &*app.account.id, app.token_life_s());
            let expected = Expected { issuer, account, life_s };
            Arc::new(app.tokens.read(token, now, &expected).map_err(Unknown::Token)?)
        }
    };
    let asked = bearer.clone();
    let whom = match bearer.credential {
        Credential::Node { .. } => For::Node,
        _ => For::Other,
    };
    let found =
        app.asked(whom, move |app| app.store.read("caller", |tx| find_bearer(tx, &asked, now)));
    let found = found.await.map_err(Unknown::Store)?.ok_or(Unknown::Nobody)?;
    let entry = Entry { bearer, generation, found };
    app.known.put(digest, entry.clone());
    Ok(entry)
}

/// Who a bearer is, if his credential counts still.
fn find_bearer(tx: &Tx<'_>, bearer: &Bearer, now: UnixMs) -> Result<Option<Found>, StoreError> {
    if !alive(tx, &bearer.iam_id, &bearer.credential, now)? {
        return Ok(None);
    }
    found(tx, &bearer.iam_id)
}

/// Whether what a token was got with counts still.
pub(crate) fn alive(
    tx: &Tx<'_>,
    iam_id: &str,
    credential: &Credential,
    now: UnixMs,
) -> Result<bool, StoreError> {
    match credential {
        Credential::ApiKey(key) => Ok(iam::api_key(tx, *key)?.is_some_and(|k| k.iam_id == iam_id)),
        Credential::Node { agent, fingerprint, not_after } => {
            let Some(cluster) = cluster_of(iam_id) else { return Ok(false) };
            let (agent, fingerprint) = (agent.clone(), fingerprint.clone());
            let node = Node { cluster, agent, fingerprint, not_after: *not_after };
            crate::clusters::admits(tx, &node, now)
        }
        Credential::Trust { issuer, subject, key } => {
            let may = trust::of_subject(tx, issuer, subject)?.iter().any(|own| own == iam_id);
            Ok(may && trusts(tx, issuer, key)?)
        }
        Credential::Login { issuer, subject } => {
            Ok(logins::person(tx, issuer, subject)?.is_some_and(|person| person == iam_id))
        }
    }
}

fn found(tx: &Tx<'_>, iam_id: &str) -> Result<Option<Found>, StoreError> {
    if iam_id.starts_with("crn-") {
        let Some(cluster) = cluster_of(iam_id) else { return Ok(None) };
        let of = crate::clusters::access_of(tx, &cluster)?;
        let (access, missing) = (Arc::new(of.access), of.missing.into());
        // It rests on the cluster's truth as well, which has no part in the epoch.
        return Ok(Some(Found { epoch: None, service: true, access, missing }));
    }
    let Some(principal) = iam::principal(tx, iam_id)? else { return Ok(None) };
    let policies = access::of_principal(tx, iam_id)?;
    let access = Access::compile(policies.iter().map(|stored| &stored.policy), principal.service);
    let epoch = Some(access::epoch(tx)?);
    let (service, access) = (principal.service, Arc::new(access));
    Ok(Some(Found { epoch, service, access, missing: Arc::default() }))
}

fn cluster_of(iam_id: &str) -> Option<ClusterId> {
    iam_id.strip_prefix("crn-")?.split(':').nth(7)?.parse().ok()
}

fn caller(iam_id: &str, found: Found) -> Caller {
    Caller {
        iam_id: iam_id.to_owned(),
        service: found.service,
        crn: iam_id.strip_prefix("crn-").map(str::to_owned),
        cluster: cluster_of(iam_id),
        access: found.access,
        missing: found.missing,
        ring: None,
        trace: Trace::default(),
        decided: Decided::default(),
        bearer: None,
        epoch: found.epoch,
    }
}

/// The caller with this IAM id, with what it may do as of now but without a request; none if there
/// is none.
pub(crate) fn find(tx: &Tx<'_>, iam_id: &str) -> Result<Option<Caller>, StoreError> {
    Ok(found(tx, iam_id)?.map(|found| caller(iam_id, found)))
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

impl Node {
    /// As audit records name it.
    pub(crate) fn who(&self, app: &App) -> String {
        agent_of(&format!("crn-{}", app.account.cluster_crn(&self.cluster)), &self.agent)
    }

    /// Whether it may call now.
    pub(crate) fn admit(&self, app: &App) -> Result<(), TooOften> {
        let cluster = format!("crn-{}", app.account.cluster_crn(&self.cluster));
        let who = caller_of(&cluster, &self.agent, &self.fingerprint);
        app.throttle.admit(app, Kind::Agent, &who)
    }
}

impl FromRequestParts<Arc<App>> for Node {
    type Rejection = Response;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        let node: Option<Node> = parts.extensions.get().cloned();
        let node = node.ok_or_else(|| {
            crate::http::error::service(
                StatusCode::UNAUTHORIZED,
                "E0002",
                "This call needs a node's certificate; join the cluster first.",
                "claviger ks cluster join-token",
            )
        })?;
        let admitted = node.admit(app);
        let form = Form::of(parts.uri.path());
        admitted.map(|()| node).map_err(|e| form.too_often(e))
    }
}
