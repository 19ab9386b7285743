//! Calls etcd's members over gRPC.
//!
//! Every call has a deadline and ends in an error that says whether trying again can help. Reads
//! and compare-and-swap try each endpoint once when one is down; what concerns one member goes to
//! that member alone.

use crate::pb::etcdserverpb as rpc;
use crate::pb::mvccpb::KeyValue;
use rpc::cluster_client::ClusterClient;
use rpc::kv_client::KvClient;
use rpc::maintenance_client::MaintenanceClient;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use thiserror::Error;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

mod snapshot;
pub use snapshot::{SnapshotFile, check as check_snapshot};

/// Keys in one answer, so that an answer stays small: 500 records of etcd's largest value
/// (1.5 MiB) cannot occur in practice, and [`ANSWER_MAX`] cuts them off if they do.
pub const PAGE: i64 = 500;

/// Largest answer taken from etcd, in bytes.
pub const ANSWER_MAX: usize = 64 << 20;

/// Most swaps in one transaction: etcd's default `--max-txn-ops` is 128.
pub const SWAPS_MAX: usize = 64;

/// Largest file read for a certificate or key, in bytes.
const PEM_MAX: u64 = 1 << 20;

/// How much longer than its deadline a call is waited for. The deadline counts once the connection
/// stands: a member that is stopped takes connections, and never says a word of TLS.
const DEADLINE_GRACE: Duration = Duration::from_secs(1);
/// A compaction that waits for the disk walks the whole database.
const COMPACT_DEADLINE: Duration = Duration::from_secs(300);
/// Defragmentation copies the whole database, at most 8 GiB by etcd's own advice.
const DEFRAGMENT_DEADLINE: Duration = Duration::from_secs(600);

/// Where etcd is and who we are.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// URLs, `https://host:port`; `http://` only on loopback. At least one, at most 16.
    pub endpoints: Vec<String>,
    /// PEM file of the CA that signed etcd's serving certificates.
    pub ca: Option<PathBuf>,
    /// PEM file of our client certificate.
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// Deadline of an ordinary call.
    pub timeout: Duration,
}

impl EtcdConfig {
    /// The deadline that fits etcd's own five-second default for requests, and some more.
    pub const TIMEOUT: Duration = Duration::from_secs(10);
}

/// Why etcd did not do what was asked.
#[derive(Debug, Error)]
pub enum EtcdError {
    /// The configuration is wrong; another try gives the same.
    #[error("{0}")]
    Config(String),
    /// A file cannot be read or written.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// No endpoint answered. Trying again helps once etcd is back.
    #[error("etcd at {endpoint} cannot be reached: {}", reason(source))]
    Unreachable {
        /// The last endpoint tried.
        endpoint: String,
        /// What it came to.
        #[source]
        source: Box<Status>,
    },
    /// It answered, and refused.
    #[error("etcd at {endpoint} refused to {doing}: {}", source.message())]
    Refused {
        /// The endpoint.
        endpoint: String,
        /// What was asked.
        doing: &'static str,
        /// What it said.
        #[source]
        source: Box<Status>,
    },
    /// The revision that is being read was compacted away: start again at a newer one.
    #[error("etcd compacted revision {0} while it was being read; start again")]
    Compacted(i64),
    /// The answer makes no sense: not an etcd, or a fault of one.
    #[error("etcd gave an answer that makes no sense: {0}")]
    Nonsense(&'static str),
    /// A snapshot does not have the digest that etcd gave it.
    #[error("the snapshot {} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In what way.
        why: &'static str,
    },
}

impl EtcdError {
    /// Whether the same call may succeed later.
    pub fn may_retry(&self) -> bool {
        matches!(self, EtcdError::Unreachable { .. } | EtcdError::Compacted(_))
    }
}

/// The innermost reason: a transport error hides it in its sources.
fn reason(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut next = std::error::Error::source(status);
    while let Some(error) = next {
        text = error.to_string();
        next = error.source();
    }
    text
}

#[derive(Clone)]
struct Remote {
    url: String,
    channel: Channel,
}

/// A connection to an etcd cluster. Cheap to clone; clones share their channels.
#[derive(Clone)]
pub struct Etcd {
    remotes: Arc<Vec<Remote>>,
    /// The endpoint that answered last.
    preferred: Arc<AtomicUsize>,
    timeout: Duration,
    tls: Option<ClientTlsConfig>,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.remotes.iter().map(|r| &r.url)).finish()
    }
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub id: u64,
    /// Its name; empty until it has started once.
    pub name: String,
    /// URLs by which members reach it.
    pub peer_urls: Vec<String>,
    /// URLs by which clients reach it.
    pub client_urls: Vec<String>,
    /// Whether it does not vote.
    pub learner: bool,
}

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Number of the cluster.
    pub cluster: u64,
    /// Its number.
    pub member: u64,
    /// Number of the leader, as it knows; 0 without one.
    pub leader: u64,
    /// Version of etcd.
    pub version: String,
    /// Its revision.
    pub revision: i64,
    /// Size of its database file, in bytes.
    pub db_size: u64,
    /// Of which in use.
    pub db_in_use: u64,
    /// Alarms, such as `NOSPACE`.
    pub errors: Vec<String>,
}

/// A value to be stored if nobody changed the key meanwhile.
#[derive(Debug, Clone)]
pub struct Swap {
    /// The key.
    pub key: Vec<u8>,
    /// The revision at which it was read; 0 if it must not exist.
    pub mod_revision: i64,
    /// What to store. The lease of a key that exists is kept.
    pub value: Vec<u8>,
}

/// How a compare-and-swap ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swapped {
    /// Stored, at this revision.
    Done(i64),
    /// Somebody changed or deleted a key meanwhile; nothing was stored. Also after an answer
    /// got lost on the way and the call was repeated at another endpoint: read again.
    Changed,
}

/// What etcd had under a key.
#[derive(Debug, Clone)]
pub struct Found {
    /// etcd's revision when it answered.
    pub revision: i64,
    /// The record, if there is one.
    pub record: Option<KeyValue>,
}

impl Etcd {
    /// Prepares channels to every endpoint and asks for one answer, so that a wrong address,
    /// CA or certificate shows now and not later.
    pub async fn connect(config: &EtcdConfig) -> Result<Etcd, EtcdError> {
        let etcd = Self::prepare(config)?;
        etcd.revision().await?;
        Ok(etcd)
    }

    /// Prepares channels to every endpoint and asks for nothing: for an agent, which must run
    /// while etcd does not. Call within a runtime.
    pub fn prepare(config: &EtcdConfig) -> Result<Etcd, EtcdError> {
        if config.endpoints.is_empty() || config.endpoints.len() > 16 {
            return Err(EtcdError::Config("give 1 to 16 etcd endpoints".to_owned()));
        }
        let tls = tls(config)?;
        let remotes = config
            .endpoints
            .iter()
            .map(|url| remote(url, tls.as_ref(), config.timeout))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Etcd {
            remotes: Arc::new(remotes),
            preferred: Arc::new(AtomicUsize::new(0)),
            timeout: config.timeout,
            tls,
        })
    }

    /// The URLs that were configured.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.remotes.iter().map(|r| r.url.as_str())
    }

    /// etcd's revision now, by a quorum.
    pub async fn revision(&self) -> Result<i64, EtcdError> {
        // A key that no API server writes; the answer's header is what counts.
        Ok(self.get(b"\0claviger").await?.revision)
    }

    /// The record under `key`, by a quorum.
    pub async fn get(&self, key: &[u8]) -> Result<Found, EtcdError> {
        let request =
            rpc::RangeRequest { key: key.to_vec().into(), limit: 1, ..Default::default() };
        let answer = self.ask("read", 0, self.timeout, |mut kv, timeout| {
            let request = deadline(request.clone(), timeout);
            async move { kv.range(request).await }
        });
        let answer = answer.await?;
        Ok(Found { revision: header(&answer.header)?, record: answer.kvs.into_iter().next() })
    }

    /// How many keys begin with `prefix`, by a quorum, and at which revision.
    pub async fn count(&self, prefix: &[u8]) -> Result<(u64, i64), EtcdError> {
        let request = rpc::RangeRequest {
            // An empty key is none; `\0` is the first there can be.
            key: if prefix.is_empty() { vec![0] } else { prefix.to_vec() }.into(),
            range_end: end_of(prefix).into(),
            count_only: true,
            ..Default::default()
        };
        let answer = self.ask("count", 0, self.timeout, |mut kv, timeout| {
            let request = deadline(request.clone(), timeout);
            async move { kv.range(request).await }
        });
        let answer = answer.await?;
        Ok((u64::try_from(answer.count).unwrap_or(0), header(&answer.header)?))
    }

    /// The records whose keys begin with `prefix`, in pages of [`PAGE`], all at one revision:
    /// `revision`, or that of the first page if it is 0. The first page is read by a quorum.
    pub fn range(&self, prefix: &[u8], revision: i64) -> Pages {
        let end = end_of(prefix);
        Pages { etcd: self.clone(), next: Some(prefix.to_vec()), end, revision }
    }

    /// Stores one value unless the key was changed meanwhile; its lease is kept.
    pub async fn put_if_unchanged(&self, swap: Swap) -> Result<Swapped, EtcdError> {
        self.swap_all(&[swap]).await
    }

    /// Stores all values in one transaction, or none if one of the keys was changed meanwhile.
    /// At most [`SWAPS_MAX`].
    pub async fn swap_all(&self, swaps: &[Swap]) -> Result<Swapped, EtcdError> {
        if swaps.is_empty() || swaps.len() > SWAPS_MAX {
            return Err(EtcdError::Config(format!("a transaction takes 1 to {SWAPS_MAX} swaps")));
        }
        let compare = swaps.iter().map(|s| rpc::Compare {
            result: rpc::compare::CompareResult::Equal.into(),
            target: rpc::compare::CompareTarget::Mod.into(),
            key: s.key.clone().into(),
            target_union: Some(rpc::compare::TargetUnion::ModRevision(s.mod_revision)),
        });
        let puts = swaps.iter().map(|s| rpc::RequestOp {
            request: Some(rpc::request_op::Request::RequestPut(rpc::PutRequest {
                key: s.key.clone().into(),
                value: s.value.clone().into(),
                // etcd refuses to keep the lease of a key that does not exist.
                ignore_lease: s.mod_revision != 0,
                ..Default::default()
            })),
        });
        let request = rpc::TxnRequest {
            compare: compare.collect(),
            success: puts.collect(),
            failure: Vec::new(),
        };
        let answer = self.ask("swap records", 0, self.timeout, |mut kv, timeout| {
            let request = deadline(request.clone(), timeout);
            async move { kv.txn(request).await }
        });
        let answer = answer.await?;
        let revision = header(&answer.header)?;
        Ok(if answer.succeeded { Swapped::Done(revision) } else { Swapped::Changed })
    }

    /// Forgets history before `revision`. With `physical`, returns only once it is gone from the
    /// database of the member that answered (not from its free pages: [`defragment`](Self::defragment)).
    /// A revision that is compacted already is no error.
    pub async fn compact(&self, revision: i64, physical: bool) -> Result<(), EtcdError> {
        let request = rpc::CompactionRequest { revision, physical };
        let done = self.ask("compact", revision, COMPACT_DEADLINE, |mut kv, limit| {
            let request = deadline(request, limit);
            async move { kv.compact(request).await }
        });
        match done.await {
            Ok(_) | Err(EtcdError::Compacted(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Every member of the cluster.
    pub async fn members(&self) -> Result<Vec<Member>, EtcdError> {
        let mut last = None;
        for remote in self.in_order() {
            let mut client = ClusterClient::new(remote.channel.clone());
            let request = deadline(rpc::MemberListRequest { linearizable: true }, self.timeout);
            match within(self.timeout, client.member_list(request)).await {
                Ok(answer) => {
                    return Ok(answer.into_inner().members.into_iter().map(member).collect());
                }
                Err(status) => match failed(&remote.url, "list its members", 0, status) {
                    e @ EtcdError::Unreachable { .. } => last = Some(e),
                    e => return Err(e),
                },
            }
        }
        Err(last.unwrap_or(EtcdError::Nonsense("no endpoint")))
    }

    /// What the member behind `endpoint` says of itself.
    pub async fn status(&self, endpoint: &str) -> Result<MemberStatus, EtcdError> {
        let remote = self.remote(endpoint)?;
        let mut client = MaintenanceClient::new(remote.channel);
        let asked = client.status(deadline(rpc::StatusRequest {}, self.timeout));
        let answer = within(self.timeout, asked)
            .await
            .map_err(|s| failed(endpoint, "tell its status", 0, s))?
            .into_inner();
        let header = answer.header.ok_or(EtcdError::Nonsense("no header"))?;
        Ok(MemberStatus {
            cluster: header.cluster_id,
            member: header.member_id,
            leader: answer.leader,
            version: answer.version,
            revision: header.revision,
            db_size: u64::try_from(answer.db_size).unwrap_or(0),
            db_in_use: u64::try_from(answer.db_size_in_use).unwrap_or(0),
            errors: answer.errors,
        })
    }

    /// Every member with what it says of itself, or why it does not.
    pub async fn statuses(
        &self,
    ) -> Result<Vec<(Member, Result<MemberStatus, EtcdError>)>, EtcdError> {
        let mut statuses = Vec::new();
        for member in self.members().await? {
            let status = self.reach(&member).await.map(|(_, status)| status);
            statuses.push((member, status));
        }
        Ok(statuses)
    }

    /// Copies the database of the member behind `endpoint` into a new file without free pages.
    /// The member answers nothing meanwhile.
    pub async fn defragment(&self, endpoint: &str) -> Result<(), EtcdError> {
        let remote = self.remote(endpoint)?;
        let mut client = MaintenanceClient::new(remote.channel);
        let asked = client.defragment(deadline(rpc::DefragmentRequest {}, DEFRAGMENT_DEADLINE));
        within(DEFRAGMENT_DEADLINE, asked)
            .await
            .map_err(|s| failed(endpoint, "defragment", 0, s))?;
        Ok(())
    }

    /// Defragments every member, one after the other, the leader last, and returns how many.
    /// Stops at the first that fails: one slow member is enough.
    pub async fn defragment_all(&self) -> Result<usize, EtcdError> {
        let mut order = Vec::new();
        for member in self.members().await? {
            let (endpoint, status) = self.reach(&member).await?;
            order.push((status.leader == member.id, endpoint));
        }
        order.sort();
        for (_, endpoint) in &order {
            self.defragment(endpoint).await?;
            // It must answer again before the next one stops answering.
            self.status(endpoint).await?;
        }
        Ok(order.len())
    }

    /// An endpoint that leads to `member`, and its status: a configured one if it answers as
    /// that member, else one that the member itself advertises.
    async fn reach(&self, member: &Member) -> Result<(String, MemberStatus), EtcdError> {
        let mut last =
            EtcdError::Config(format!("member {} advertises no client URL", member.name));
        for url in self.endpoints().chain(member.client_urls.iter().map(String::as_str)) {
            match self.status(url).await {
                Ok(status) if status.member == member.id => return Ok((url.to_owned(), status)),
                Ok(_) => {}
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// Writes a snapshot of the database to the new file `to` (mode 0600), checked against the
    /// digest that etcd sends behind it.
    pub async fn snapshot(&self, to: &Path) -> Result<SnapshotFile, EtcdError> {
        let remote = self.in_order().next().ok_or(EtcdError::Nonsense("no endpoint"))?;
        snapshot::take(&remote.url, remote.channel.clone(), to).await
    }

    fn in_order(&self) -> impl Iterator<Item = &Remote> {
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.remotes.len();
        (0..count).map(move |i| &self.remotes[(first + i) % count])
    }

    fn remote(&self, endpoint: &str) -> Result<Remote, EtcdError> {
        match self.remotes.iter().find(|r| r.url == endpoint) {
            Some(known) => Ok(known.clone()),
            None => remote(endpoint, self.tls.as_ref(), self.timeout),
        }
    }

    /// Makes a call, at the next endpoint when one does not answer; each at most once.
    async fn ask<T, F, A>(
        &self,
        doing: &'static str,
        revision: i64,
        limit: Duration,
        call: F,
    ) -> Result<T, EtcdError>
    where
        F: Fn(KvClient<Channel>, Duration) -> A,
        A: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let (first, count) = (self.preferred.load(Ordering::Relaxed), self.remotes.len());
        let mut last = EtcdError::Nonsense("no endpoint");
        for i in 0..count {
            let at = (first + i) % count;
            let remote = &self.remotes[at];
            let client =
                KvClient::new(remote.channel.clone()).max_decoding_message_size(ANSWER_MAX);
            match within(limit, call(client, limit)).await {
                Ok(answer) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(answer.into_inner());
                }
                Err(status) => match failed(&remote.url, doing, revision, status) {
                    e @ EtcdError::Unreachable { .. } => last = e,
                    e => return Err(e),
                },
            }
        }
        Err(last)
    }
}

/// Pages of one range, at one revision.
#[derive(Debug)]
pub struct Pages {
    etcd: Etcd,
    next: Option<Vec<u8>>,
    end: Vec<u8>,
    revision: i64,
}

impl Pages {
    /// The revision that is being read; 0 before the first page.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The next page; none behind the last. [`EtcdError::Compacted`] when the revision is gone:
    /// what was read so far cannot be completed.
    pub async fn next(&mut self) -> Result<Option<Vec<KeyValue>>, EtcdError> {
        let Some(from) = self.next.take() else { return Ok(None) };
        let request = rpc::RangeRequest {
            key: from.clone().into(),
            range_end: self.end.clone().into(),
            limit: PAGE,
            revision: self.revision,
            ..Default::default()
        };
        let answer = self.etcd.ask("list", self.revision, self.etcd.timeout, |mut kv, timeout| {
            let request = deadline(request.clone(), timeout);
            async move { kv.range(request).await }
        });
        let answer = match answer.await {
            Ok(answer) => answer,
            Err(e) => {
                // A caller may ask for the same page again.
                self.next = Some(from);
                return Err(e);
            }
        };
        if self.revision == 0 {
            self.revision = header(&answer.header)?;
        }
        if answer.more {
            let last = answer.kvs.last().ok_or(EtcdError::Nonsense("more, but an empty page"))?;
            // The smallest key behind `last`.
            self.next = Some([last.key.as_ref(), &[0]].concat());
        }
        Ok(Some(answer.kvs))
    }
}

fn deadline<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

/// Waits for an answer, a little longer than the `limit` in its request.
async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(limit + DEADLINE_GRACE, call).await {
        Ok(answer) => answer,
        Err(_) => {
            let text = format!("no answer within {} s", limit.as_secs());
            Err(Status::deadline_exceeded(text))
        }
    }
}

fn header(header: &Option<rpc::ResponseHeader>) -> Result<i64, EtcdError> {
    header.as_ref().map(|h| h.revision).ok_or(EtcdError::Nonsense("no header"))
}

fn member(m: rpc::Member) -> Member {
    Member {
        id: m.id,
        name: m.name,
        peer_urls: m.peer_ur_ls,
        client_urls: m.client_ur_ls,
        learner: m.is_learner,
    }
}

/// The first key behind all that begin with `prefix`; `\0`, which means no end, if there is none.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let kept = prefix.iter().rposition(|b| *b != 0xff).map_or(0, |i| i + 1);
    let mut end = prefix[..kept].to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end
}

fn failed(endpoint: &str, doing: &'static str, revision: i64, status: Status) -> EtcdError {
    let source = Box::new(status);
    match source.code() {
        // etcd's ErrCompacted; the future revision has the same code and another text.
        Code::OutOfRange if source.message().contains("has been compacted") => {
            EtcdError::Compacted(revision)
        }
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            EtcdError::Unreachable { endpoint: endpoint.to_owned(), source }
        }
        _ => EtcdError::Refused { endpoint: endpoint.to_owned(), doing, source },
    }
}

fn tls(config: &EtcdConfig) -> Result<Option<ClientTlsConfig>, EtcdError> {
    let plain = config.endpoints.iter().filter(|e| e.starts_with("http://")).count();
    if plain == config.endpoints.len() {
        return Ok(None);
    }
    if let Some(url) = config.endpoints.iter().find(|url| !url.contains("://")) {
        let text = format!("etcd endpoint {url:?}: give a URL like https://127.0.0.1:2379");
        return Err(EtcdError::Config(text));
    }
    let ca = config.ca.as_ref().ok_or_else(|| {
        EtcdError::Config("an https endpoint of etcd needs the file of its CA".to_owned())
    })?;
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem(ca)?));
    match (&config.cert, &config.key) {
        (Some(cert), Some(key)) => tls = tls.identity(Identity::from_pem(pem(cert)?, pem(key)?)),
        (None, None) => {}
        _ => {
            let text = "a client certificate for etcd needs its key, and the other way round";
            return Err(EtcdError::Config(text.to_owned()));
        }
    }
    Ok(Some(tls))
}

fn pem(path: &Path) -> Result<Vec<u8>, EtcdError> {
    let failed = |source| EtcdError::File { doing: "read", path: path.to_owned(), source };
    let len = std::fs::metadata(path).map_err(failed)?.len();
    if len > PEM_MAX {
        return Err(EtcdError::Config(format!("{} is too large for a PEM file", path.display())));
    }
    std::fs::read(path).map_err(failed)
}

fn remote(
    url: &str,
    tls: Option<&ClientTlsConfig>,
    timeout: Duration,
) -> Result<Remote, EtcdError> {
    let invalid =
        |why: &dyn std::fmt::Display| EtcdError::Config(format!("etcd endpoint {url:?}: {why}"));
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| invalid(&e))?;
    let host = endpoint.uri().host().unwrap_or_default().to_owned();
    let mut endpoint = endpoint
        .connect_timeout(timeout)
        .tcp_nodelay(true)
        // A member that vanished without a word is noticed within 15 s.
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5));
    match (endpoint.uri().scheme_str(), tls) {
        (Some("https"), Some(tls)) => {
            endpoint = endpoint.tls_config(tls.clone()).map_err(|e| {
                let source = std::error::Error::source(&e).map(ToString::to_string);
                invalid(&format!("{e}: {}", source.unwrap_or_default()))
            })?;
        }
        (Some("https"), None) => return Err(invalid(&"needs the file of its CA")),
        (Some("http"), _) if is_loopback(&host) => {}
        (Some("http"), _) => return Err(invalid(&"plain HTTP is taken on loopback only")),
        _ => return Err(invalid(&"give a URL like https://127.0.0.1:2379")),
    }
    Ok(Remote { url: url.to_owned(), channel: endpoint.connect_lazy() })
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        for (prefix, end) in [
            (b"/registry/secrets/".as_slice(), b"/registry/secrets0".as_slice()),
            (b"a\xff", b"b"),
            (b"\xff\xff", b"\0"),
            (b"", b"\0"),
        ] {
            assert_eq!(end_of(prefix), end);
        }
    }

    /// As a member that is stopped: the kernel takes connections, and nobody reads them.
    #[tokio::test]
    async fn a_member_that_takes_connections_and_says_nothing_is_given_up() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let dir = tempfile::tempdir().expect("a directory");
        let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
        let ca = dir.path().join("ca");
        std::fs::write(&ca, pair.expect("a certificate").cert.pem()).expect("written");
        let etcd = Etcd::prepare(&EtcdConfig {
            endpoints: vec![format!("https://{}", listener.local_addr().expect("its address"))],
            ca: Some(ca),
            cert: None,
            key: None,
            timeout: Duration::from_millis(10),
        })
        .expect("a client");
        let unreachable = |error| match error {
            EtcdError::Unreachable { source, .. } => source.message().to_owned(),
            other => panic!("{other}"),
        };
        let read = unreachable(etcd.get(b"a").await.expect_err("nobody reads"));
        assert!(read.starts_with("no answer within"), "{read}");
        let listed = unreachable(etcd.members().await.expect_err("nobody reads"));
        assert!(listed.starts_with("no answer within"), "{listed}");
    }

    #[test]
    fn plain_http_stays_on_loopback() {
        let t = Duration::from_secs(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let _inside = runtime.as_ref().expect("a runtime").enter();
        for good in ["http://127.0.0.1:2379", "http://[::1]:2379", "http://localhost:1"] {
            assert!(remote(good, None, t).is_ok(), "{good}");
        }
        for bad in ["http://10.0.0.1:2379", "https://127.0.0.1:1", "127.0.0.1:2379", "", "ftp://x"]
        {
            assert!(matches!(remote(bad, None, t), Err(EtcdError::Config(_))), "{bad}");
        }
    }
}
