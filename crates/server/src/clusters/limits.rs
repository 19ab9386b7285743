//! Every bound of the cluster service, each beside its reason.

use std::time::Duration;

/// An operator's request: names, a CA certificate chain and a kubeconfig of 32 KiB.
pub const BODY_MAX: usize = 128 * 1024;
/// An agent's observation: a few hundred bytes, plus nine for each KEK that ever was.
pub const OBSERVATION_MAX: usize = 64 * 1024;
/// A commit carries at most a wrapped KEK (4 KiB) or a reason; one that brings a ring back, all of
/// that: 1,000 KEKs have about 600 KiB, and an agent keeps 8 MiB at most.
pub const COMMIT_MAX: usize = 8 << 20;
/// What an agent says in a few words: that it asks for the lease, that it acted on a key event.
pub const WORD_MAX: usize = 16 * 1024;
/// A job's report: a census of a cluster with some hundred kinds of records.
pub const REPORT_MAX: usize = 256 * 1024;
/// A certificate request and a token.
pub const JOIN_MAX: usize = 16 * 1024;

/// A reason in a commit; 50 of them are kept in each cluster's history.
pub const REASON_MAX: usize = 2048;
/// The wrapped KEK, as `domain::cluster::ring::Kek` says.
pub const WRAPPED_MAX: usize = 4096;
/// An admin kubeconfig with certificates inside.
pub const KUBECONFIG_MAX: usize = 32 * 1024;
/// A chain of a few certificates.
pub const CA_MAX: usize = 32 * 1024;
/// Longest URL of an API server.
pub const URL_MAX: usize = 1024;

/// One server's clusters: lists are answered whole.
pub const CLUSTERS_MAX: usize = 1000;
/// API servers of one cluster; seven etcd members are the most anybody runs.
pub const AGENTS_MAX: usize = 16;

/// How long a join token is good.
pub const JOIN_TOKEN_MS: i64 = 3_600_000;
/// Used and old tokens are told apart from unknown ones for so long.
pub const JOIN_TOKEN_REMEMBERED_MS: i64 = 7 * 86_400_000;
/// Unused tokens of one cluster: as many as it can have API servers, twice.
pub const JOIN_TOKENS_OPEN_MAX: usize = 2 * AGENTS_MAX;

/// The life of a node's certificate, in milliseconds: 30 days.
pub const CERTIFICATE_MS: i64 = 30 * 86_400_000;

/// A node's written request for a certificate is good for a week: files travel slowly.
pub const REISSUE_MS: u64 = 7 * 86_400_000;
/// A node that was off or cut off may have a clock that runs ahead, by so much.
pub const REISSUE_AHEAD_MS: u64 = 86_400_000;

/// A lease lasts so long. An agent asks for more each 5 s, so two lost requests do no harm, and
/// a dead agent is followed within 15 s.
pub const LEASE_MS: i64 = 15_000;

/// Open jobs of one cluster.
pub const JOBS_OPEN_MAX: usize = 8;
/// An open job lapses after an hour: nobody waits longer for a census.
pub const JOB_LIFE_MS: i64 = 3_600_000;
/// Jobs that are remembered for each cluster.
pub const JOBS_KEPT: usize = 50;

/// Streams that are open at once: each agent of 64 clusters with three API servers, and some.
pub const STREAMS_MAX: usize = 256;
/// Streams of one agent: the one it uses and one that its death left behind.
pub const STREAMS_OF_AGENT_MAX: usize = 2;
/// A comment on a quiet stream, so that both ends notice a dead one.
pub const STREAM_COMMENT: Duration = Duration::from_secs(5);
/// Nudges of one stream are at least so far apart: a burst of commits is one nudge.
pub const NUDGE_APART: Duration = Duration::from_millis(100);

/// An unchanged observation is written again after so long only, a tenth of the time for which
/// it counts: agents speak every second or two and each write waits for the disk.
pub const OBSERVATION_REFRESH_MS: u64 = 9_000;
