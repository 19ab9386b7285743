//! Between a node agent and the server: `/agent/v1`, over TLS with the agent's certificate.
//!
//! The server never connects into a cluster. Each agent posts what it observes, reads the whole
//! [`State`] and acts on it; a stream says when to look again, and polling covers a stream that
//! is down. One agent of a cluster at a time holds the lease and runs the loop; every commit
//! names its fencing token and the revision it was planned on.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `POST /agent/v1/join` (no certificate) | [`JoinRequest`] | 200 [`Certificate`] |
//! | `POST /agent/v1/renew` | [`RenewRequest`] | 200 [`Certificate`] |
//! | `GET /agent/v1/state` | | 200 [`State`] |
//! | `GET /agent/v1/stream` | | 200 `text/event-stream`, events [`Nudge`], a comment each 5 s |
//! | `POST /agent/v1/observation` | [`claviger_domain::cluster::Observation`] | 204 |
//! | `POST /agent/v1/lease` | [`LeaseRequest`] | 200 [`Lease`], 409 while another holds it |
//! | `POST /agent/v1/commit` | [`CommitRequest`] | 200 [`State`], 409 stale or refused |
//! | `POST /agent/v1/ack` | [`Acknowledgement`] | 204 |
//! | `POST /agent/v1/jobs/{id}` | [`JobReport`] | 204 |
//! | `POST /identity/token` with grant type [`crate::iam::GRANT_NODE`] | form | a token |
//!
//! An error is a [`crate::ks::ServiceError`] with a [`code`] or one of [`crate::ks::code`]. The
//! stream is full when too many are open (429): poll meanwhile.

use claviger_domain::cluster::commit::Commit;
use claviger_domain::cluster::{Cluster, RootStatus, Seen};
use claviger_domain::id::{AgentName, ClusterId, JobId, RestoreId, UnixMs};
use claviger_domain::key::{KeyState, RootKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Codes of refusals that an agent tells apart.
pub mod code {
    /// Another agent holds the lease: ask again when it ends.
    pub const LEASE_HELD: &str = "E4096";
    /// The fencing token is not the current one, or its time is over: get the lease again.
    pub const STALE_FENCING: &str = "E4097";
    /// The cluster changed since the step was planned: read the state and plan again.
    pub const STALE_REVISION: &str = "E4098";
    /// The rules of `domain::cluster::commit` refuse the commit: read the state and plan again.
    pub const REFUSED: &str = "E4099";
    /// This certificate was replaced by a later join under the same name: join again.
    pub const CERTIFICATE_REPLACED: &str = "E4012";
}

/// Asks for a node's first certificate.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct JoinRequest {
    /// One-time token that `ks cluster register` or `ks cluster join-token` printed.
    pub token: String,
    /// Name that the agent wants.
    pub agent: AgentName,
    /// PKCS#10 certificate request, PEM. Only its public key is used.
    pub csr: String,
    /// The cluster that the node belongs to, if it joins again: a token of another one is refused.
    #[serde(default)]
    pub cluster: Option<ClusterId>,
}

/// Asks for a new certificate for the same node.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct RenewRequest {
    /// PKCS#10 certificate request, PEM.
    pub csr: String,
}

/// Asks for a new certificate for a node that cannot reach the server: a file that the node
/// writes and an operator carries.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReissueRequest {
    /// The cluster, for people.
    pub cluster: ClusterId,
    /// The node's agent, for people.
    pub agent: AgentName,
    /// PKCS#10 certificate request, PEM. Its subject alternative name is a [`reissue_name`]: so
    /// the node's key signs for which node and when this was asked.
    pub csr: String,
    /// The certificate that the node has, PEM; it may have expired.
    pub certificate: String,
}

/// What the request of [`ReissueRequest`] names.
pub fn reissue_name(cluster: &ClusterId, agent: &AgentName, at: UnixMs) -> String {
    format!("{}/asked/{}", identity(cluster, agent), at.0)
}

/// What a node's certificate says of who it is.
pub fn identity(cluster: &ClusterId, agent: &AgentName) -> String {
    format!("claviger://cluster/{cluster}/agent/{agent}")
}

/// A node's certificate. Its subject alternative name is
/// `URI:claviger://cluster/<cluster id>/agent/<name>`; it lives 30 days.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "NodeCertificate")]
pub struct Certificate {
    /// The cluster.
    pub cluster: ClusterId,
    /// The certificate, PEM.
    pub certificate: String,
    /// The CA that signed it and the server's own, PEM.
    pub ca: String,
    /// When it ends.
    pub not_after: UnixMs,
}

/// Everything an agent needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct State {
    /// The cluster's durable truth.
    pub cluster: Cluster,
    /// The newest observation of every agent of the cluster.
    pub seen: BTreeMap<AgentName, Seen>,
    /// The root keys of the ring and of the operation.
    pub roots: Vec<RootStatus>,
    /// Who holds the lease, if anybody.
    pub lease: Option<LeaseHolder>,
    /// Work that an operator asked for and nobody finished.
    pub jobs: Vec<Job>,
    /// The cluster's CRN, under which it is registered on root keys.
    pub crn: String,
    /// Base URL of the key service, by the name that the cluster is to use.
    pub key_service: String,
    /// The last restore of the server from a backup, until every agent of the cluster has said that
    /// it holds nothing which the server lacks. While it stands, the server takes KEKs back.
    #[serde(default)]
    pub restored: Option<RestoreId>,
    /// The server's clock.
    pub now: UnixMs,
}

/// Who holds the lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseHolder {
    /// The agent.
    pub agent: AgentName,
    /// Until when, by the server's clock.
    pub until: UnixMs,
}

/// Tells an agent to look again; the data of a server-sent event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Nudge {
    /// The cluster's revision.
    pub revision: u64,
    /// The newest key event that concerns the cluster.
    pub event: u64,
}

/// Asks for the lease, or for more of it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct LeaseRequest {
    /// The token held so far, to go on with it.
    pub fencing: Option<u64>,
}

/// The right to run the loop, for 15 seconds at a time.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub struct Lease {
    /// Rises with each new holder; a commit with an older one is refused.
    pub fencing: u64,
    /// Until when, by the server's clock.
    pub until: UnixMs,
}

/// Asks for one durable change.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct CommitRequest {
    /// The lease's fencing token.
    pub fencing: u64,
    /// The revision the step was planned on.
    pub revision: u64,
    /// The change.
    pub commit: Commit,
}

/// An agent has acted on a key event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Acknowledgement {
    /// The root key.
    pub root: RootKey,
    /// The event.
    pub event: u64,
    /// The key's state that the agent acted on.
    pub state: KeyState,
    /// Whether this node's API server is fenced now.
    pub fenced: bool,
}

/// Work that an operator asked for. Whichever agent holds the lease does it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// Its identifier.
    pub id: JobId,
    /// What to do.
    pub kind: JobKind,
    /// When it was asked for.
    pub requested: UnixMs,
}

/// What an operator can ask a cluster's agents for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Count etcd's records; the result is a census.
    Census,
    /// Clear plaintext out of etcd's files; the result is a residue report.
    Scrub,
    /// Prove from etcd's bytes and by a freshly started plugin; the result is a verification.
    Verify,
}

/// How a job stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum JobReport {
    /// Under way.
    Running {
        /// What is being done, for people.
        note: String,
    },
    /// Done.
    Done {
        /// What came out; its shape follows from the kind.
        result: serde_json::Value,
    },
    /// Given up.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
}
