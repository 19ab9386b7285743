//! What the cluster service answers when it does not do what was asked: whose fault, whether to
//! retry, what now, in the shape that IBM's clients read.

use super::limits::{JOB_LIFE_MS, JOBS_OPEN_MAX};
use crate::http::body::BODY_TIMEOUT;
use crate::http::error::{RETRY_AFTER, say_when};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_domain::cluster::FRESH_MS;
use claviger_domain::cluster::commit::Refusal;
use claviger_domain::features::Unfit;
use claviger_domain::id::{AgentName, InstanceId, JobId};
use claviger_domain::key::{KeyState, RootKey};
use claviger_store::StoreError;
use claviger_wire::ks::{ServiceError, code};
use claviger_wire::{agent, ks};
use thiserror::Error;
use uuid::Uuid;

/// Every reason for which the cluster service refuses.
#[derive(Debug, Error)]
pub enum Fault {
    /// The request is not understood.
    #[error("{0}")]
    Bad(String),
    /// The body is larger than the path takes.
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    /// The body did not arrive in time.
    #[error("the body did not arrive within {} s; send it again", BODY_TIMEOUT.as_secs())]
    TooSlow,
    /// A later join under the same name replaced it, or the node was removed.
    #[error(
        "the certificate of agent {0} counts no longer: the node was removed, or joined again under the same name"
    )]
    Replaced(AgentName),
    /// The join token is not good.
    #[error("the join token {0}")]
    JoinToken(&'static str),
    /// A node's request for a new certificate is not good.
    #[error("the request for a certificate {0}")]
    Reissue(String),
    /// The role does not suffice.
    #[error("{who} lacks platform role {needs} on clusters")]
    Forbidden {
        /// IAM id.
        who: String,
        /// Name of the role.
        needs: &'static str,
    },
    /// The caller's token counts no longer.
    #[error("the token counts no longer; log in again")]
    Revoked,
    /// Whoever chose the key could not use it himself.
    #[error(
        "{who} cannot let a cluster use key {} of instance {}: it needs the service role Reader on the key itself", .root.key, .root.instance
    )]
    CannotLend {
        /// IAM id.
        who: String,
        /// The key.
        root: RootKey,
    },
    /// No such cluster.
    #[error("no cluster has the id or name {0:?}")]
    NoCluster(String),
    /// No such instance.
    #[error("no key service instance has the id {0}")]
    NoInstance(InstanceId),
    /// No such key.
    #[error("instance {} has no key {}", .0.instance, .0.key)]
    NoKey(RootKey),
    /// No such job.
    #[error("the cluster has no open job {0}")]
    NoJob(JobId),
    /// No such node.
    #[error("the cluster has no node {0}")]
    NoNode(AgentName),
    /// It speaks, so it is not gone.
    #[error(
        "agent {agent} was heard {heard_s} s ago; stop it and its API server for good, and ask again when it has been silent for {} s",
        FRESH_MS / 1000,
        agent = .agent,
        heard_s = .heard_s
    )]
    NodeAlive {
        /// Which.
        agent: AgentName,
        /// So long ago, in seconds.
        heard_s: u64,
    },
    /// Whether a silent machine is off, a person must say.
    #[error(
        "agent {0} has been silent for {1} s, but its machine may run: then its API server goes on with the keys in its memory, out of reach of a suspension; make sure that the machine is off, and say so with force"
    )]
    NodeMayRun(AgentName, u64),
    /// A standard key cannot wrap.
    #[error("key {} is a standard key; encryption needs a root key", .0.key)]
    NotRoot(RootKey),
    /// The key's state forbids it.
    #[error("root key {} is {is}; only an active key can encrypt", .root.key)]
    NotActive {
        /// The key.
        root: RootKey,
        /// Its state.
        is: KeyState,
    },
    /// The API servers cannot be encrypted as they are.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The rules of the cluster refuse.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The server was restored, and its truth about the cluster is older than its nodes'.
    #[error(
        "agent {0} holds keys of this cluster that this server has forgotten; nothing can be decided before it has given them back"
    )]
    Forgotten(AgentName),
    /// Nothing is encrypted that could be cleaned up after.
    #[error("the cluster is not encrypted; enable that first")]
    NotEncrypted,
    /// Nothing is in progress that could be given up.
    #[error("no operation is in progress on this cluster; there is nothing to cancel")]
    NothingToCancel,
    /// The operation cannot be given up as it stands.
    #[error("{0}")]
    Forward(String),
    /// Records would be left unread, which is for a person to decide.
    #[error(
        "root key {} is {is}, and Secrets may be under it: {}", .root.key, unread(*.is)
    )]
    NeedsWord {
        /// The root key.
        root: RootKey,
        /// Its state.
        is: KeyState,
    },
    /// It is not on the list of the key's users.
    #[error("the cluster is not registered on root key {}; there is nothing to release", .0.key)]
    NotRegistered(RootKey),
    /// The cluster cannot do without the key.
    #[error("root key {} is in use by the cluster: {why}", .root.key)]
    InUse {
        /// The root key.
        root: RootKey,
        /// What for.
        why: &'static str,
    },
    /// Of backups the server knows nothing.
    #[error(
        "backups of etcd under root key {} can never be read again once it is deleted; make sure that none is needed, and say so with force", .0.key
    )]
    BackupsMayDie(RootKey),
    /// It is not proven that no live record is under the key.
    #[error("no census proves that nothing is under the root key: {0}")]
    NoCensus(String),
    /// Its Secrets would be left encrypted.
    #[error(
        "cluster {0} is encrypted: its Secrets stay so, and its API servers cannot read them once they restart; if it is gone for good, say so with force"
    )]
    Encrypted(String),
    /// The name is taken.
    #[error("a cluster is named {0:?} already")]
    NameTaken(String),
    /// Suspended or fenced.
    #[error("{0}")]
    Suspended(String),
    /// Too many open jobs.
    #[error(
        "{JOBS_OPEN_MAX} jobs are open; wait for one to end, or {} minutes for it to lapse",
        JOB_LIFE_MS / 60_000
    )]
    TooManyJobs,
    /// Some other bound is reached.
    #[error("{0}")]
    TooMany(&'static str),
    /// Somebody else holds the lease.
    #[error("agent {0} holds the lease for {1} ms more")]
    LeaseHeld(AgentName, u64),
    /// The fencing token is not the current one, or its time is over.
    #[error("fencing token {0} is not current")]
    StaleFencing(u64),
    /// The cluster is at another revision.
    #[error("the cluster is at revision {is}, the step was planned on {planned}")]
    StaleRevision {
        /// Where it is.
        is: u64,
        /// Where the caller thinks it is.
        planned: u64,
    },
    /// The database does not answer.
    #[error("the server's database did not do it")]
    Store(#[from] StoreError),
    /// Ours.
    #[error("a fault of the server")]
    Bug(String),
}

/// For how long Secrets under a root key in this state cannot be read.
fn unread(is: KeyState) -> &'static str {
    match is {
        KeyState::Deactivated => "it has expired, so they could never be read",
        _ => "they could not be read until it is active again",
    }
}

impl Fault {
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        use StatusCode as S;
        match self {
            Fault::Bad(_) | Fault::NotRoot(_) | Fault::Reissue(_) => S::BAD_REQUEST,
            Fault::TooLarge(_) => S::PAYLOAD_TOO_LARGE,
            Fault::TooSlow => S::REQUEST_TIMEOUT,
            Fault::Replaced(_)
            | Fault::JoinToken(_)
            | Fault::Forbidden { .. }
            | Fault::Revoked
            | Fault::CannotLend { .. } => S::UNAUTHORIZED,
            Fault::NoCluster(_)
            | Fault::NoInstance(_)
            | Fault::NoKey(_)
            | Fault::NoNode(_)
            | Fault::NotRegistered(_)
            | Fault::NoJob(_) => S::NOT_FOUND,
            Fault::NotActive { .. } => S::UNPROCESSABLE_ENTITY,
            Fault::Unfit(_) => S::PRECONDITION_FAILED,
            Fault::Refused(_)
            | Fault::NodeAlive { .. }
            | Fault::NodeMayRun(..)
            | Fault::NothingToCancel
            | Fault::Forgotten(_)
            | Fault::NotEncrypted
            | Fault::Forward(_)
            | Fault::NeedsWord { .. }
            | Fault::InUse { .. }
            | Fault::BackupsMayDie(_)
            | Fault::NoCensus(_)
            | Fault::Encrypted(_)
            | Fault::NameTaken(_)
            | Fault::Suspended(_)
            | Fault::LeaseHeld(..)
            | Fault::StaleFencing(_)
            | Fault::StaleRevision { .. } => S::CONFLICT,
            Fault::TooManyJobs | Fault::TooMany(_) => S::TOO_MANY_REQUESTS,
            Fault::Store(e) if e.is_disk() => S::INSUFFICIENT_STORAGE,
            Fault::Store(StoreError::Damaged(_)) => S::INTERNAL_SERVER_ERROR,
            Fault::Store(_) => S::SERVICE_UNAVAILABLE,
            Fault::Bug(_) => S::INTERNAL_SERVER_ERROR,
        }
    }

    /// The code on the wire.
    pub fn code(&self) -> &'static str {
        match self {
            Fault::Bad(_) | Fault::TooLarge(_) | Fault::TooSlow => code::BAD_REQUEST,
            Fault::Replaced(_) => agent::code::CERTIFICATE_REPLACED,
            Fault::JoinToken(_) => code::JOIN_TOKEN,
            Fault::Reissue(_) => code::REISSUE,
            Fault::Forbidden { .. } | Fault::Revoked | Fault::CannotLend { .. } => code::FORBIDDEN,
            Fault::NoCluster(_) => code::NO_CLUSTER,
            Fault::NoInstance(_) => code::NO_INSTANCE,
            Fault::NoKey(_) => code::NO_KEY,
            Fault::NoJob(_) => code::NO_JOB,
            Fault::NoNode(_) => code::NO_NODE,
            Fault::NodeAlive { .. } => code::NODE_ALIVE,
            Fault::NodeMayRun(..) => code::NODE_MAY_RUN,
            Fault::Refused(Refusal::LastServer(_)) => code::LAST_NODE,
            Fault::NotRoot(_) => code::NOT_A_ROOT_KEY,
            Fault::NotActive { .. } => code::NOT_ACTIVE,
            Fault::Unfit(_) => code::VERSION,
            Fault::Refused(Refusal::Busy { .. }) => code::BUSY,
            Fault::Refused(Refusal::Reused(_)) => code::REUSED,
            Fault::Refused(_) => agent::code::REFUSED,
            Fault::NothingToCancel => code::NOTHING_TO_CANCEL,
            Fault::Forgotten(_) => code::FORGOTTEN,
            Fault::NotEncrypted => code::NOT_ENCRYPTED,
            Fault::Forward(_) => code::FORWARD,
            Fault::NeedsWord { .. } | Fault::BackupsMayDie(_) | Fault::Encrypted(_) => {
                code::NEEDS_WORD
            }
            Fault::NotRegistered(_) => code::NOT_REGISTERED,
            Fault::InUse { .. } => code::KEY_IN_USE,
            Fault::NoCensus(_) => code::NO_CENSUS,
            Fault::NameTaken(_) => code::NAME_TAKEN,
            Fault::Suspended(_) => code::SUSPENDED,
            Fault::TooManyJobs | Fault::TooMany(_) => code::TOO_MANY,
            Fault::LeaseHeld(..) => agent::code::LEASE_HELD,
            Fault::StaleFencing(_) => agent::code::STALE_FENCING,
            Fault::StaleRevision { .. } => agent::code::STALE_REVISION,
            Fault::Store(_) => code::UNAVAILABLE,
            Fault::Bug(_) => code::BUG,
        }
    }

    /// The command that mends it; empty where none does.
    fn recovery(&self) -> String {
        match self {
            Fault::NoCluster(_) => "claviger ks cluster ls".into(),
            Fault::NoInstance(_) => "claviger ks kms instance ls".into(),
            Fault::NoKey(root) | Fault::NotRoot(root) => {
                format!("claviger ks kms crk ls --instance-id {}", root.instance)
            }
            Fault::NotActive { root, is: KeyState::Suspended } => {
                format!("claviger key enable {} --instance-id {}", root.key, root.instance)
            }
            Fault::NotActive { root, is: KeyState::Destroyed } => {
                format!("claviger key restore {} --instance-id {}", root.key, root.instance)
            }
            Fault::NotActive { root, .. } | Fault::Refused(Refusal::Reused(root)) => {
                format!("claviger key create --instance-id {}", root.instance)
            }
            Fault::NoNode(_) => "claviger ks cluster node ls -c CLUSTER".into(),
            Fault::NodeMayRun(agent, _) => {
                format!("claviger ks cluster node rm -c CLUSTER {agent} --force")
            }
            Fault::BackupsMayDie(root) => format!(
                "claviger ks kms release -c CLUSTER --crk {} --instance-id {} --force",
                root.key, root.instance
            ),
            Fault::NoCensus(_) => "claviger census -c CLUSTER".into(),
            Fault::Encrypted(name) => format!("claviger ks cluster rm -c {name} --force"),
            Fault::NothingToCancel
            | Fault::InUse { .. }
            | Fault::Forward(_)
            | Fault::Forgotten(_)
            | Fault::Suspended(_)
            | Fault::Refused(Refusal::Busy { .. }) => "claviger ks kms status -c CLUSTER".into(),
            Fault::NeedsWord { is: KeyState::Deactivated, .. } => {
                "claviger ks kms cancel -c CLUSTER --without-root-key".into()
            }
            Fault::NeedsWord { root, is } => format!(
                "claviger key {} {} --instance-id {}, or else claviger ks kms cancel -c CLUSTER --without-root-key",
                if *is == KeyState::Destroyed { "restore" } else { "enable" },
                root.key,
                root.instance
            ),
            Fault::JoinToken(_) | Fault::Replaced(_) => {
                "claviger ks cluster join-token -c CLUSTER".into()
            }
            Fault::Reissue(_) => {
                "claviger agent request-certificate --config FILE --out FILE (on the node)".into()
            }
            Fault::NameTaken(_) => "claviger ks cluster ls".into(),
            Fault::NotEncrypted => "claviger ks kms enable -c CLUSTER".into(),
            _ => String::new(),
        }
    }

    fn kind(&self) -> &'static str {
        match self.status() {
            StatusCode::UNAUTHORIZED => "Authentication",
            status if status.is_server_error() => "Server",
            _ => "User",
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(e: rusqlite::Error) -> Fault {
        Fault::Store(StoreError::from(e))
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let incident = Uuid::new_v4().to_string();
        let status = self.status();
        match &self {
            Fault::Bug(why) => tracing::error!(incident, why, "fault of the cluster service"),
            Fault::Store(StoreError::Busy) => {}
            Fault::Store(e) => tracing::error!(incident, error = %e, "database"),
            // The text may repeat a part of the request, and a request may hold a token.
            other => tracing::debug!(incident, code = other.code(), "refused"),
        }
        let body = ServiceError {
            incident_id: incident,
            code: self.code().to_owned(),
            description: self.to_string(),
            terse_description: status.canonical_reason().unwrap_or_default().to_owned(),
            kind: self.kind().to_owned(),
            recovery_cli: self.recovery(),
        };
        let mut response = (status, axum::Json::<ks::ServiceError>(body)).into_response();
        let busy = matches!(self, Fault::Store(StoreError::Busy));
        say_when(&mut response, busy.then_some(RETRY_AFTER));
        response
    }
}
