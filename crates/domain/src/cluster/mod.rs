//! A cluster under a root key: its state, what its agents observe, and the rules between them.
//!
//! [`Cluster`] is the durable truth, kept by the server. It changes only by [`commit::apply`],
//! one [`commit::Commit`] at a time. [`plan::plan`] looks at the cluster, at what the agents
//! observed and at a count of etcd, and names the one next step with its reason. Both are pure,
//! so any process may be killed at any instruction: whoever looks next gets the same answer.

pub mod commit;
pub mod files;
pub mod plan;
pub mod project;
pub mod ring;

use crate::id::{AgentName, ClusterId, OperationId, RestoreId, Serial, UnixMs};
use crate::key::{KeyState, RootKey, RootVersion};
use files::EtcdFiles;
use ring::Ring;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The provider name in every EncryptionConfiguration and so in the prefix of every record.
/// One name for the life of a cluster, equal on all API servers: a record carries it.
pub const PROVIDER: &str = "claviger";

/// How long an agent's observation counts, in milliseconds. Older ones block every step.
pub const FRESH_MS: u64 = 90_000;

/// How long a request may still be under way in an API server that took a file up by reload,
/// in milliseconds: `--request-timeout` of kube-apiserver, default 60 s.
pub const REQUEST_TIMEOUT_MS: u64 = 60_000;

/// What an API server's EncryptionConfiguration says, from the least to the most encrypted.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    Default,
)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// No `--encryption-provider-config` at all, as nearly every cluster is found.
    #[default]
    Bare,
    /// `[identity, kms]`: reads records of ours, writes plaintext.
    ReadFirst,
    /// `[kms, identity]`: writes records of ours, still reads plaintext.
    WriteFirst,
    /// `[kms]`: plaintext can no longer be read.
    Only,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Bare => "no encryption configuration",
            Stage::ReadFirst => "[identity, kms]",
            Stage::WriteFirst => "[kms, identity]",
            Stage::Only => "[kms]",
        })
    }
}

/// How an API server is made to take a changed file up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "kebab-case")]
pub enum TakeUp {
    /// Restart one API server after the other: about two seconds each.
    #[default]
    Restart,
    /// Wait for its own poll: no outage, up to a minute for each file. An API server that has
    /// no encryption flags yet is restarted once all the same.
    Reload,
}

/// The durable truth about a cluster. Kept by the server, sent whole to its agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cluster {
    /// Its identifier.
    pub id: ClusterId,
    /// Its name, unique in the account: 1 to 63 characters.
    pub name: String,
    /// When it was registered.
    pub created: UnixMs,
    /// Rises by one with every commit; a commit names the revision it was planned on.
    pub revision: u64,
    /// The KEKs, wrapped.
    pub ring: Ring,
    /// The configuration stage that each API server is to have. Its keys are the API servers
    /// that belong to the cluster.
    pub servers: BTreeMap<AgentName, Target>,
    /// Work in progress, at most one piece.
    pub operation: Option<Operation>,
    /// Finished work, newest first, at most [`HISTORY_MAX`].
    pub history: Vec<Finished>,
    /// Every root key that this cluster ever sealed under. No operator may ask for one of them a
    /// second time.
    pub used: Vec<RootKey>,
    /// Whether agents reach the key service by its public name.
    pub public_endpoint: bool,
    /// The last proof from etcd's bytes that all records are under the write key.
    pub verified: Option<Verified>,
    /// Plaintext found in etcd's files at the last look of the agent that held the lease, in its own
    /// member; see [`files::left`] for all of them.
    pub residue: Option<Residue>,
    /// The count that found records which are not under the write key, though a proof said that all
    /// were; none once they are rewritten or gone.
    #[serde(default)]
    pub disproof: Option<Tally>,
}

impl Cluster {
    /// One that was registered at `created` and of which nothing else is known yet.
    pub fn new(id: ClusterId, name: String, created: UnixMs) -> Self {
        Self {
            id,
            name,
            created,
            revision: 0,
            ring: Ring::default(),
            servers: BTreeMap::new(),
            operation: None,
            history: Vec::new(),
            used: Vec::new(),
            public_endpoint: false,
            verified: None,
            residue: None,
            disproof: None,
        }
    }

    /// Whether etcd's bytes proved that nothing is stored in plaintext, and none disproved it since.
    pub fn is_proven(&self) -> bool {
        self.verified.is_some() && self.disproof.is_none_or(|tally| tally.plaintext == 0)
    }

    /// Whether every API server is to read plaintext. While one is not, plaintext has nothing that
    /// explains it: none was left when the first of them was told so.
    pub fn reads_plaintext(&self) -> bool {
        self.servers.values().all(|target| target.stage < Stage::Only)
    }

    /// How many records in plaintext a count found that nothing explains; 0 if none. Nobody reads
    /// them before an operator has said so ([`commit::Commit::PlaintextAccepted`]).
    pub fn unexplained(&self) -> u64 {
        let found = self.disproof.map_or(0, |tally| tally.plaintext);
        if self.reads_plaintext() { 0 } else { found }
    }
}

/// How many finished operations a cluster remembers.
pub const HISTORY_MAX: usize = 50;

/// What one API server is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub struct Target {
    /// The stage its file is to be at.
    pub stage: Stage,
    /// When that was decided.
    pub since: UnixMs,
}

/// Why an operation exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    /// The cluster had no key before.
    Enable,
    /// The root key got a new version.
    Rotate,
    /// The cluster moves to another root key or instance.
    Switch,
    /// A switch was given up after its KEK had begun to seal: the cluster moves back to the root
    /// key that wrote before. The one exception to the rule that a root key is used once.
    Reverse,
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OperationKind::Enable => "enable",
            OperationKind::Rotate => "rotate",
            OperationKind::Switch => "switch",
            OperationKind::Reverse => "reverse",
        })
    }
}

/// Work in progress. Each field past `requested` is a durable commit; none is undone but a
/// proof that a later rewrite made void.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Operation {
    /// Its identifier.
    pub id: OperationId,
    /// Why it exists.
    pub kind: OperationKind,
    /// The root key to move to. Its version is whichever is current when the KEK is minted.
    pub target: RootKey,
    /// How API servers take files up.
    pub take_up: TakeUp,
    /// When it was asked for.
    pub requested: UnixMs,
    /// By whom: an IAM id, or `system` for a rotation that the key service reported.
    pub requested_by: String,
    /// Every agent proved that it can wrap and unwrap with the target.
    pub preflighted: bool,
    /// The cluster is registered as a user of the target.
    pub registered: bool,
    /// The KEK of this operation, once minted (role Staged).
    pub serial: Option<Serial>,
    /// That KEK has the role Write since then.
    pub promoted: Option<UnixMs>,
    /// Progress of the rewrite, for people; no decision rests on it.
    pub rewrite: Option<Rewrite>,
    /// etcd's bytes were counted and nothing was left under another key. A rewrite after it
    /// makes it void.
    pub verified: Option<Verified>,
    /// When that was first so. Every API server had taken up its file by then.
    #[serde(default)]
    pub first_verified: Option<UnixMs>,
    /// History was compacted at this revision and every member defragmented.
    pub compacted: Option<i64>,
    /// Why it makes no progress, when it does not. The work goes on by itself once the cause
    /// is gone.
    pub stuck: Option<String>,
    /// A root key that is not active and that the cluster goes on without, by an operator's
    /// decision: see [`ring::Role::Lost`].
    #[serde(default)]
    pub without: Option<RootKey>,
}

/// How far a rewrite is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rewrite {
    /// Records under the write key.
    pub done: u64,
    /// Records in all.
    pub total: u64,
    /// Records in a second, at the last look.
    pub per_second: u64,
}

/// An operation that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finished {
    /// Its identifier.
    pub id: OperationId,
    /// Why it existed.
    pub kind: OperationKind,
    /// The root key it moved to.
    pub target: RootKey,
    /// When it was asked for.
    pub requested: UnixMs,
    /// By whom.
    pub requested_by: String,
    /// When it ended.
    pub ended: UnixMs,
    /// Empty when it did what was asked; otherwise why it was rejected or cancelled, or what took
    /// its place.
    pub rejected: Option<String>,
    /// The KEK it made, if it got that far.
    pub serial: Option<Serial>,
}

/// A proof from etcd's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verified {
    /// etcd's revision that was counted.
    pub revision: i64,
    /// When.
    pub at: UnixMs,
    /// Records counted, all of them under the write key.
    pub records: u64,
    /// Records opened by a freshly started plugin.
    pub sampled: u64,
}

/// Plaintext Secret values found in etcd's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Residue {
    /// Plaintext records that a reader of etcd would get.
    pub live: u64,
    /// Plaintext records in the database file, old revisions and free pages included.
    pub db: u64,
    /// Plaintext records in the write-ahead log and in snapshots.
    pub wal: u64,
    /// When the files were read.
    pub at: UnixMs,
}

/// An API server process, named so that a reused process id is not mistaken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start: u64,
}

/// What one agent sees of its own node. It speaks for one API server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Observation {
    /// Who speaks.
    pub agent: AgentName,
    /// Version of the agent's program.
    pub build: String,
    /// `gitVersion` of the API server, once it answered.
    pub kubernetes: Option<String>,
    /// Revision of the cluster whose ring the plugin holds.
    pub ring_revision: u64,
    /// KEKs that the plugin holds opened and with which it opened a challenge.
    pub opened: Vec<Serial>,
    /// The `key_id` that the plugin answers in Status; none while it refuses.
    pub key_id: Option<String>,
    /// The stage of the file on disk.
    pub stage_on_disk: Stage,
    /// The stage that the running API server is proven to use: the hash that it publishes is
    /// that of the file at this stage.
    pub stage_loaded: Option<Stage>,
    /// The API server's process, while it lives.
    pub process: Option<Process>,
    /// Whether the API server answers /readyz with ok.
    pub ready: bool,
    /// The last canary: a Secret written through this API server and read back raw.
    pub canary: Option<Canary>,
    /// The last preflight.
    pub preflight: Option<Preflight>,
    /// Whether the node is fenced, or coasts.
    pub access: Access,
    /// Hosts of all API servers that share this one's etcd and live, in order, at most 64: each that
    /// renewed its identity lease (kube-apiserver from 1.26 on) within the last minute. Empty where
    /// that is not known.
    #[serde(default)]
    pub api_servers: Vec<String>,
    /// etcd's files on the agent's machine; none where its settings name none.
    #[serde(default)]
    pub files: Option<EtcdFiles>,
    /// Why the node does not follow the server's truth, if so: it holds KEKs that this truth
    /// lacks, since the server was restored from an older backup.
    #[serde(default)]
    pub ahead: Option<String>,
    /// The restore of the server by whose truth `ahead` was judged, while the server waits to hear
    /// what the nodes hold.
    #[serde(default)]
    pub restored: Option<RestoreId>,
    /// Why the API server does not serve, in words for an operator, once that has lasted for half a
    /// minute: longer than a restart takes. None while the node is fenced.
    #[serde(default)]
    pub down: Option<String>,
    /// What else keeps the agent from its work, in words for an operator: a text for each part in
    /// trouble.
    #[serde(default)]
    pub troubles: Vec<String>,
}

impl Observation {
    /// What an agent says that has seen nothing yet.
    pub fn nothing(agent: AgentName) -> Self {
        Self {
            agent,
            build: String::new(),
            kubernetes: None,
            ring_revision: 0,
            opened: Vec::new(),
            key_id: None,
            stage_on_disk: Stage::Bare,
            stage_loaded: None,
            process: None,
            ready: false,
            canary: None,
            preflight: None,
            access: Access::Open,
            api_servers: Vec::new(),
            files: None,
            ahead: None,
            restored: None,
            down: None,
            troubles: Vec::new(),
        }
    }
}

/// A Secret written through one API server, and the key it was found under in etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Canary {
    /// The KEK of the record; none if it was plaintext.
    pub serial: Option<Serial>,
    /// The process that wrote it.
    pub process: Process,
    /// The stage that process had loaded.
    pub stage: Stage,
}

/// An agent's try of a root key before anything is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Preflight {
    /// The operation it was made for.
    pub operation: OperationId,
    /// What went wrong, with what to do about it; none if the key wraps and unwraps and the node
    /// is fit for the work.
    pub failure: Option<String>,
    /// What may hurt and is no reason to refuse, with what to do about it; at most 20 texts.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Whether a node may read what is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Access {
    /// Yes, on the key service's word.
    #[default]
    Open,
    /// Yes, though the key service cannot be reached since then.
    Coasting {
        /// The last authenticated contact.
        since: UnixMs,
    },
    /// No, and yet the API server may still answer: the fence is not complete.
    Closing {
        /// The root key that is not active.
        root: RootKey,
        /// The key event that said so; 0 when an answer to unwrap said so.
        event: u64,
        /// Since when the node is to be fenced.
        since: UnixMs,
        /// What is missing, in words for an operator.
        reason: String,
    },
    /// No: ring wiped, API server killed, and nobody answers where it did.
    Fenced {
        /// The root key that is not active.
        root: RootKey,
        /// The key event that said so; 0 when an answer to unwrap said so.
        event: u64,
        /// Since when.
        since: UnixMs,
    },
    /// Not yet: the ring cannot be opened until the key service answers.
    Waiting {
        /// Why, in words for an operator.
        reason: String,
    },
}

/// What the key service says of a root key that the cluster uses or is to use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RootStatus {
    /// Which.
    pub root: RootKey,
    /// Its name.
    pub name: String,
    /// Its state, expiry already counted in.
    pub state: KeyState,
    /// Its current version; none when the key is gone for good.
    pub current: Option<crate::id::KeyVersionId>,
    /// Number of the last key event; 0 if none.
    pub event: u64,
    /// When it expires.
    pub expires: Option<UnixMs>,
    /// Until when a deleted key can be restored.
    pub restorable_until: Option<UnixMs>,
}

/// An observation and when the server got it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Seen {
    /// What the agent said.
    pub observation: Observation,
    /// When the server received it, by the server's clock.
    pub at: UnixMs,
}

impl Seen {
    /// Whether it counts at `now`. One of the future was received before the server's clock was set
    /// back, and whoever lives speaks again.
    pub fn is_fresh(&self, now: UnixMs) -> bool {
        now.apart(self.at) < FRESH_MS
    }
}

/// Records of the encrypted resources, counted from etcd's bytes at one revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub struct Tally {
    /// etcd's revision.
    pub revision: i64,
    /// When it was counted.
    pub at: UnixMs,
    /// All records.
    pub total: u64,
    /// Under the write KEK.
    pub current: u64,
    /// Under another KEK of the ring.
    pub stale: u64,
    /// Not encrypted.
    pub plaintext: u64,
    /// Under a KEK or provider that the ring does not know or has lost, or not decodable.
    pub unknown: u64,
}

impl Tally {
    /// Records that a rewrite brings under the write key.
    pub fn rewritable(&self) -> u64 {
        self.stale + self.plaintext
    }
}

impl fmt::Display for Tally {
    /// Of what is not under the write key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} records are under an older key, {} are plaintext, {} are unknown",
            self.stale, self.plaintext, self.unknown
        )
    }
}

/// The root version of the KEK that writes, if any.
pub fn write_root(cluster: &Cluster) -> Option<RootVersion> {
    cluster.ring.write().map(|kek| kek.root)
}
