//! The cluster service: shapes that IBM's clients know, and ours under `/v3`.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `POST /v2/enableKMS` | [`EnableKms`] | 201 `{}`; 200 `{}` when it is so already |
//! | `GET /v2/getKMSInstances` | | 200 list of [`KmsInstance`] |
//! | `GET /v2/getCRKs?kms_instance=` | | 200 list of [`Crk`] |
//! | `GET /v2/getCluster?cluster=` | | 200 [`ClusterView`] |
//! | `GET /v2/vpc/getClusters`, `GET /v1/clusters` | | 200 list of [`ClusterView`] |
//! | `DELETE /v1/clusters/{c}?force=true` | | 204; 409 while an agent of it is heard, or it is encrypted, without `force` |
//! | `GET /v1/logging/{cluster}/clusterkeyowner` | | 200 [`KeyOwner`] |
//! | `POST /v3/clusters` | [`RegisterCluster`] | 201 [`Registered`] |
//! | `POST /v3/clusters/{c}/join-tokens` | | 201 [`Registered`] |
//! | `DELETE /v3/clusters/{c}/nodes/{node}?force=true` | | 200 [`NodeRemoved`]; 409 while its agent is heard, or without `force` |
//! | `POST /v3/clusters/{c}/node-certificates` | [`crate::agent::ReissueRequest`] | 201 [`crate::agent::Certificate`]; 400 when the request is not good |
//! | `GET /v3/clusters/{c}/kms` | | 200 [`KmsStatus`] |
//! | `POST /v3/clusters/{c}/kms/operations` | [`OpenOperation`] | 202 [`Opened`], 200 when it is so already |
//! | `POST /v3/clusters/{c}/kms/operations/cancel` | [`CancelOperation`] | 200 [`GivenUp`]; 409 when it cannot be given up |
//! | `POST /v3/clusters/{c}/kms/release` | [`ReleaseKey`] | 200 [`Released`]; 409 while the cluster may need the key, or without `force` |
//! | `POST /v3/clusters/{c}/jobs` | [`NewJob`] | 202 [`JobView`] |
//! | `GET /v3/clusters/{c}/jobs/{id}` | | 200 [`JobView`] |
//! | `GET /v3/clusters/{c}/kubeconfig` | | 200 text; 409 while the root key is suspended |
//!
//! `{c}` is an id or a name. All paths answer with and without the prefix `/global`. Errors are
//! [`ServiceError`] with a [`code`].

use crate::agent::{JobKind, JobReport, State};
use claviger_domain::cluster::TakeUp;
use claviger_domain::id::{AgentName, ClusterId, InstanceId, JobId, KeyId, OperationId, UnixMs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `POST /v2/enableKMS`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct EnableKms {
    pub cluster: String,
    /// GUID or CRN.
    pub instance_id: String,
    /// GUID or CRN.
    pub crk_id: String,
    /// Absent means true.
    #[serde(default)]
    pub private_endpoint: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub account_id: Option<String>,
}

/// An instance of a key service.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct KmsInstance {
    pub instance_id: InstanceId,
    pub name: String,
    pub region: String,
    /// `kms` or `hs-crypto`.
    pub service: String,
}

/// A root key. The first two fields are IBM's.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct Crk {
    pub crk_id: KeyId,
    pub name: String,
    pub state: String,
    pub version: Option<claviger_domain::id::KeyVersionId>,
    pub expires: Option<String>,
    /// Names of the clusters registered on it.
    pub clusters: Vec<String>,
    /// `generated` or `imported`.
    pub origin: String,
}

/// What `getCluster` shows; names as IBM's clients decode them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ClusterView {
    pub id: String,
    pub name: String,
    pub state: String,
    pub status: String,
    pub created_date: String,
    pub location: String,
    pub region: String,
    pub resource_group: String,
    pub resource_group_name: String,
    pub provider: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub master_kube_version: String,
    pub target_version: String,
    #[serde(rename = "masterURL")]
    pub master_url: String,
    #[serde(rename = "serverURL")]
    pub server_url: String,
    pub master_health: String,
    pub master_status: String,
    pub worker_count: u32,
    pub owner_email: String,
    pub crn: String,
    pub lifecycle: Lifecycle,
    pub features: Features,
    /// Not IBM's: everything else.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kms: Option<KmsView>,
}

/// Where the control plane is in its life.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Lifecycle {
    pub modified_date: String,
    pub master_status: String,
    pub master_status_modified_date: String,
    pub master_health: String,
    pub master_state: String,
}

/// What the cluster can do.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Features {
    pub key_protect_enabled: bool,
    pub pull_secret_applied: bool,
}

/// The key service as this cluster uses it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct KmsView {
    pub provider: String,
    #[serde(rename = "instanceID")]
    pub instance_id: Option<InstanceId>,
    #[serde(rename = "crkID")]
    pub crk_id: Option<KeyId>,
    /// `private` or `public`: by which of its names agents reach the key service.
    pub endpoint: String,
    /// Where that name leads: the private listener if there is no public one.
    #[serde(default)]
    pub endpoint_url: String,
    /// The step in progress, in words; empty at rest.
    pub phase: String,
    pub write_key_id: Option<String>,
    /// Progress of the rewrite in per cent, while there is one.
    pub rewrite: Option<claviger_domain::cluster::Rewrite>,
}

/// Whose credentials talk to the key service for a cluster.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct KeyOwner {
    pub id: String,
    pub name: String,
    pub email: String,
}

/// Makes a cluster known.
#[derive(Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct RegisterCluster {
    /// 1 to 63 characters of `[a-z0-9-]`, unique in the account.
    #[schemars(regex(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
    pub name: String,
    /// URL of its API server, for kubeconfigs.
    #[schemars(length(max = 1024), regex(pattern = "^https://[^/]"))]
    pub server_url: String,
    /// PEM of the CA of its API server.
    #[schemars(length(min = 1, max = 32768))]
    pub ca: String,
    /// A kubeconfig that `ks cluster config` may hand out, at most 32 KiB; kept sealed. Without
    /// it, `ks cluster config` writes one that names server and CA and no credentials.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub admin_kubeconfig: Option<String>,
}

/// A cluster and a one-time token with which one agent may join it, for one hour.
#[derive(Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct Registered {
    pub id: ClusterId,
    pub name: String,
    pub join_token: String,
}

/// Everything about a cluster's encryption, for `ks kms status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct KmsStatus {
    pub view: ClusterView,
    pub state: State,
    /// The next step and why, as the planner sees it now.
    pub next: String,
    /// What the cluster's version and registration allow, in the order of the document's table.
    #[serde(default)]
    pub features: Vec<FeatureRow>,
    /// Every agent of the cluster: whether its word is fresh, and what it acknowledged.
    #[serde(default)]
    pub agents: Vec<AgentView>,
}

/// One row of the table of features by version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct FeatureRow {
    pub name: String,
    pub available: bool,
    /// Whether it is known already: before an API server told its version it is not.
    #[serde(default = "yes")]
    pub known: bool,
    /// Why not, or what it rests on.
    pub because: String,
}

fn yes() -> bool {
    true
}

/// One agent, as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct AgentView {
    pub agent: AgentName,
    /// When its certificate ends.
    pub not_after: UnixMs,
    /// When it last proved who it is.
    pub last_contact: UnixMs,
    /// Whether the newest key event of the root key that closes the cluster, or else of the one
    /// that writes, was acknowledged by it; none while there is no such event. While it is not:
    /// `not confirmed, last seen ...`.
    pub acknowledged: Option<bool>,
    /// Since when the root key closes the cluster without this agent's word that its API server is
    /// fenced; none where it gave that word, and while no root key closes the cluster.
    #[serde(default)]
    pub unfenced_since: Option<UnixMs>,
    /// Whether it said with that acknowledgement that its API server is fenced.
    pub fenced: bool,
}

/// Asks for enablement, or a switch of key or instance.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct OpenOperation {
    pub instance_id: InstanceId,
    pub crk_id: KeyId,
    #[serde(default)]
    pub public_endpoint: bool,
    #[serde(default)]
    pub take_up: TakeUp,
    /// Plaintext that a count found, with no change of machines to explain it, is to be read and
    /// rewritten. Only with the root key that the cluster is under: whoever writes to etcd could
    /// have planted it.
    #[serde(default)]
    pub accept_plaintext: bool,
}

/// The accepted operation; none when the cluster already is as asked.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct Opened {
    pub operation: Option<OperationId>,
    /// For people: for instance that no backup of the key server exists.
    pub warnings: Vec<String>,
}

/// Gives up what is in progress.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct CancelOperation {
    /// Secrets under a root key that is not active may stay unread until it is active again.
    #[serde(default)]
    pub without_root_key: bool,
}

/// What became of an operation that was given up.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GivenUp {
    /// In one word.
    pub outcome: GaveUp,
    /// The operation that ended, or the one that goes back.
    pub operation: Option<OperationId>,
    /// For people: what was changed, and what they must know.
    pub notes: Vec<String>,
    /// For people: what will go wrong if nobody acts, for instance that the root key expires soon.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How an operation was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GaveUp {
    /// Nothing was sealed under its key: it ended.
    Cancelled,
    /// Secrets are under its key: another operation moves all of them back.
    Reversed,
    /// That was so before; from now on it goes on without the root key that it leaves.
    WithoutRootKey,
}

/// Takes a cluster's registration off a root key that nothing of it is under any more. The
/// cluster may be one that was removed, then by its id.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseKey {
    /// The key's instance.
    pub instance_id: InstanceId,
    /// The root key.
    pub crk_id: KeyId,
    /// A census of the cluster that is done and was asked for at most 10 minutes ago. Not needed
    /// for a cluster that was removed.
    #[serde(default)]
    pub census: Option<JobId>,
    /// The operator's word that backups under the key may never be read again.
    #[serde(default)]
    pub force: bool,
}

/// A root key without this cluster among its users.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Released {
    /// The root key.
    pub crk_id: KeyId,
    /// For people: what this means.
    pub notes: Vec<String>,
}

/// A node that left its cluster.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct NodeRemoved {
    /// Which.
    pub agent: AgentName,
    /// For people: what this does not reach.
    pub notes: Vec<String>,
}

/// Asks a cluster's agents for work.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct NewJob {
    pub kind: JobKind,
}

/// A job and how it stands.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct JobView {
    pub id: JobId,
    pub kind: JobKind,
    pub report: Option<JobReport>,
}

/// The error body of the cluster service.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct ServiceError {
    #[serde(rename = "incidentID")]
    pub incident_id: String,
    pub code: String,
    pub description: String,
    #[serde(rename = "terseDescription", default)]
    pub terse_description: String,
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The command that mends it.
    #[serde(rename = "recoveryCLI", default)]
    pub recovery_cli: String,
}

/// Codes of [`ServiceError`]. IBM's are not public; these are ours.
pub mod code {
    /// The request is not understood.
    pub const BAD_REQUEST: &str = "E4000";
    /// The key is a standard key, not a root key.
    pub const NOT_A_ROOT_KEY: &str = "E4002";
    /// No token, a bad or an expired one.
    pub const UNAUTHENTICATED: &str = "E0001";
    /// No certificate of a node.
    pub const NO_CERTIFICATE: &str = "E0002";
    /// A join token that is unknown, used or past its hour.
    pub const JOIN_TOKEN: &str = "E4011";
    /// A node's request for a new certificate that is not good.
    pub const REISSUE: &str = "E4013";
    /// The caller lacks a role.
    pub const FORBIDDEN: &str = "E4031";
    /// No such cluster, or not visible to the caller.
    pub const NO_CLUSTER: &str = "E4041";
    /// No such instance.
    pub const NO_INSTANCE: &str = "E4042";
    /// No such root key.
    pub const NO_KEY: &str = "E4043";
    /// No such job.
    pub const NO_JOB: &str = "E4044";
    /// No such node.
    pub const NO_NODE: &str = "E4045";
    /// The node's agent speaks, so it is not gone.
    pub const NODE_ALIVE: &str = "E4103";
    /// The node is silent, but may run: an operator must say that it does not.
    pub const NODE_MAY_RUN: &str = "E4104";
    /// The last node of a cluster that has keys.
    pub const LAST_NODE: &str = "E4105";
    /// Another operation is in progress.
    pub const BUSY: &str = "E4091";
    /// The cluster used this root key before.
    pub const REUSED: &str = "E4092";
    /// No operation is in progress.
    pub const NOTHING_TO_CANCEL: &str = "E4093";
    /// The cluster is not encrypted.
    pub const NOT_ENCRYPTED: &str = "E4106";
    /// The server was restored and lacks keys that nodes hold: wait until they gave them back.
    pub const FORGOTTEN: &str = "E4107";
    /// The operation cannot be given up as it stands.
    pub const FORWARD: &str = "E4101";
    /// Secrets or backups would be left unread: an operator must say so.
    pub const NEEDS_WORD: &str = "E4102";
    /// The cluster is not registered on the root key.
    pub const NOT_REGISTERED: &str = "E4046";
    /// The cluster cannot do without the root key.
    pub const KEY_IN_USE: &str = "E4108";
    /// It is not proven that no live record is under the root key.
    pub const NO_CENSUS: &str = "E4109";
    /// A cluster of this name exists.
    pub const NAME_TAKEN: &str = "E4094";
    /// The cluster's root key is suspended, or its control plane is fenced.
    pub const SUSPENDED: &str = "E4095";
    /// Too many of something are open already.
    pub const TOO_MANY: &str = "E4291";
    /// An API server is too old, or the versions differ too much.
    pub const VERSION: &str = "E4122";
    /// The root key is not active.
    pub const NOT_ACTIVE: &str = "E4221";
    /// The server could not do it now; try again.
    pub const UNAVAILABLE: &str = "E5030";
    /// A fault of the server.
    pub const BUG: &str = "E5000";
}
