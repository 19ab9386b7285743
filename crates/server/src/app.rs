//! What all requests share.

use crate::authority::Authority;
use crate::first::{self, StartError};
use crate::http::network::Subnet;
use crate::iam::issuer_keys::Issuers;
use crate::iam::known::Known;
use crate::iam::token::Tokens;
use crate::metrics::Metrics;
use crate::record::Recorder;
use crate::refusals::Refusals;
use crate::room::Room;
use crate::sure::Keeper;
use crate::throttle::Throttle;
use crate::tls::{CertificateFiles, Certificates};
use crate::traced::Traced;
use claviger_audit::Durability;
use claviger_crypto::digest::MacKey;
use claviger_custody::Custodian;
use claviger_domain::audit::Record;
use claviger_domain::id::{ClusterId, InstanceId, UnixMs};
use claviger_domain::key::RootKey;
use claviger_store::events::KeyEvent;
use claviger_store::{Store, StoreError};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, broadcast, watch};
use uuid::Uuid;

/// Where the time comes from.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> UnixMs;

    /// The time since boot, sleep included, which nobody can set: for how long things last.
    fn up(&self) -> Duration;
}

/// The machine's clock.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> UnixMs {
        UnixMs(jiff::Timestamp::now().as_millisecond())
    }

    fn up(&self) -> Duration {
        let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(up.tv_sec.unsigned_abs(), u32::try_from(up.tv_nsec).unwrap_or(0))
    }
}

/// A clock that stands until it is told to move; for tests.
pub struct ManualClock {
    wall: AtomicI64,
    up: AtomicU64,
}

impl ManualClock {
    /// A clock that says `now`.
    pub fn new(now: UnixMs) -> Self {
        Self { wall: AtomicI64::new(now.0), up: AtomicU64::new(0) }
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.wall.fetch_add(by.as_millis() as i64, Ordering::SeqCst);
        self.up.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }

    /// Sets the clock, forward or back, while no time passes.
    pub fn set(&self, now: UnixMs) {
        self.wall.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> UnixMs {
        UnixMs(self.wall.load(Ordering::SeqCst))
    }

    fn up(&self) -> Duration {
        Duration::from_millis(self.up.load(Ordering::SeqCst))
    }
}

/// Calls of one person or service ID, unless something else is set. A storage driver (ceph-csi) asks
/// for a token and unwraps once for each volume that is mounted, under one service ID for a whole
/// cluster: a hundred nodes that come back at once with a hundred volumes each are served within 40
/// seconds. kube-apiserver itself asks for nothing here. It is a fraction of what two cores answer.
pub const CALLS_PER_SECOND: u32 = 500;
/// Calls of one agent, unless something else is set. It makes one or two a second while it works,
/// and one unwrap for each KEK when it starts.
pub const AGENT_CALLS_PER_SECOND: u32 = 200;

/// What can be chosen about a server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Names and addresses, besides `localhost` and the loopback addresses, for which the
    /// server's certificate is good.
    pub names: Vec<String>,
    /// Base URL by which agents and clients reach the server; no slash at the end.
    pub url: String,
    /// The same of the public listener; none if there is none.
    pub public_url: Option<String>,
    /// How long after a disable or delete the key cannot be enabled or restored.
    pub enable_after: Duration,
    /// How long after a rotation the key cannot be rotated again.
    pub rotate_after: Duration,
    /// How long a deleted key can be restored; then its material is shredded.
    pub restore_within: Duration,
    /// How long after its deletion a key cannot be purged.
    pub purge_after: Duration,
    /// How long after its deletion a key is purged by itself.
    pub purged_after: Duration,
    /// How long after an event of a key its users cannot be told its state on demand.
    pub sync_after: Duration,
    /// How long an access token is good.
    pub token_life: Duration,
    /// How long a refresh token is good, from the login on.
    pub refresh_life: Duration,
    /// Number of keys that one instance may have; a bound on lists and memory.
    pub keys_max: u64,
    /// Whose ID tokens let people in.
    pub login: LoginSettings,
    /// A certificate besides the built-in one, for clients that come by its names.
    pub certificate: Option<CertificateFiles>,
    /// Calls of one person or service ID in each second, and at once twice as many; 0 sets no limit.
    pub calls_per_second: u32,
    /// The same of one agent of a cluster.
    pub agent_calls_per_second: u32,
    /// Proxies that are believed who called them; none by default.
    pub trusted_proxies: Vec<Subnet>,
    /// How the audit log is kept.
    pub audit: AuditSettings,
}

/// Whose ID tokens let people in; nobody's by default.
#[derive(Debug, Clone, Default)]
pub struct LoginSettings {
    /// The issuers that are believed; each once.
    pub issuers: Vec<LoginIssuer>,
    /// The only CAs that count when issuers are asked (PEM); the system's if not given.
    pub ca: Option<PathBuf>,
    /// Whom an issuer vouches for comes in unasked, without any role. Otherwise only who was let in.
    pub open: bool,
}

/// An OpenID Connect issuer that is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginIssuer {
    /// What its tokens say in `iss`: a URL.
    pub issuer: String,
    /// What they must say in `aud`: the id by which clients of ours are known to it.
    pub audience: String,
    /// Where its keys are; found by discovery if not given.
    pub jwks_url: Option<String>,
}

/// How the audit log is kept.
#[derive(Debug, Clone, Default)]
pub struct AuditSettings {
    /// From when on an act that changes nothing counts as recorded, and is answered.
    pub durability: Durability,
    /// Where its checkpoints go to, besides the database: whoever can write this machine's files
    /// can change what is kept here.
    pub checkpoints: Vec<CheckpointSink>,
    /// Segments go that hold only older records; none keeps all.
    pub keep: Option<Duration>,
    /// The oldest segments go until they have so many bytes; none keeps all.
    pub keep_bytes: Option<u64>,
}

/// A place for checkpoints of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointSink {
    /// Appended to a file, a line for each.
    File(PathBuf),
    /// Sent to a syslog daemon's socket on this machine.
    Syslog(PathBuf),
    /// Sent to a syslog daemon by UDP.
    SyslogUdp(SocketAddr),
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            url: "https://localhost".to_owned(),
            public_url: None,
            enable_after: Duration::from_secs(30),
            rotate_after: Duration::from_secs(3600),
            restore_within: Duration::from_secs(30 * 86_400),
            purge_after: Duration::from_secs(4 * 3600),
            purged_after: Duration::from_secs(90 * 86_400),
            sync_after: Duration::from_secs(3600),
            token_life: Duration::from_secs(3600),
            refresh_life: Duration::from_secs(86_400),
            keys_max: 20_000,
            login: LoginSettings::default(),
            certificate: None,
            calls_per_second: CALLS_PER_SECOND,
            agent_calls_per_second: AGENT_CALLS_PER_SECOND,
            trusted_proxies: Vec::new(),
            audit: AuditSettings::default(),
        }
    }
}

impl Settings {
    /// The same for any number of calls: the clock of a test may stand still.
    pub fn without_limits(mut self) -> Self {
        self.calls_per_second = 0;
        self.agent_calls_per_second = 0;
        self
    }

    /// The same without waiting times, for trying things out.
    pub fn without_waits(mut self) -> Self {
        self.enable_after = Duration::ZERO;
        self.rotate_after = Duration::ZERO;
        self
    }
}

/// Who owns everything here, and where it is said to be.
#[derive(Debug, Clone)]
pub struct Account {
    /// 32 hexadecimal digits.
    pub id: String,
    /// The region's name, `local`.
    pub region: String,
    /// The one resource group.
    pub resource_group: Uuid,
}

impl Account {
    /// The CRN of an instance of the key service, ten segments.
    pub fn instance_crn(&self, instance: InstanceId) -> String {
        format!("{}:", self.crn_before(instance))
    }

    /// The CRN of something of this kind in an instance, ten segments.
    pub fn crn_within(
        &self,
        instance: InstanceId,
        kind: &str,
        id: impl std::fmt::Display,
    ) -> String {
        format!("{}{kind}:{id}", self.crn_before(instance))
    }

    /// What the CRNs of an instance and of all that is in it begin with.
    pub fn crn_before(&self, instance: InstanceId) -> String {
        format!("crn:v1:bluemix:public:kms:{}:a/{}:{instance}:", self.region, self.id)
    }

    /// The CRN of a key, ten segments.
    pub fn key_crn(&self, root: &RootKey) -> String {
        self.crn_within(root.instance, "key", root.key)
    }

    /// The CRN of a cluster, ten segments.
    pub fn cluster_crn(&self, cluster: &ClusterId) -> String {
        let Account { id, region, .. } = self;
        format!("crn:v1:claviger:public:containers-kubernetes:{region}:a/{id}:{cluster}::")
    }
}

/// Tells waiting streams that something changed. A receiver that falls behind looks at the
/// database; nothing is lost.
#[derive(Clone)]
pub struct Hub {
    keys: broadcast::Sender<KeyEvent>,
    clusters: broadcast::Sender<ClusterId>,
    closing: watch::Sender<bool>,
    stopping: Arc<AtomicBool>,
    under_way: watch::Sender<u64>,
}

/// A request until it is answered, but for what of the answer is still to be sent.
pub(crate) struct UnderWay(watch::Sender<u64>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Events that a slow receiver may be behind before it is told to look at the database.
const HUB_BACKLOG: usize = 256;

impl Hub {
    fn new() -> Self {
        Self {
            keys: broadcast::Sender::new(HUB_BACKLOG),
            clusters: broadcast::Sender::new(HUB_BACKLOG),
            closing: watch::Sender::new(false),
            stopping: Arc::default(),
            under_way: watch::Sender::new(0),
        }
    }

    /// Announces a key event. Call it after its transaction, never within.
    pub fn key_changed(&self, event: KeyEvent) {
        // Nobody listens: nobody has to know.
        let _ = self.keys.send(event);
    }

    /// Announces that a cluster has a new revision, or a job. Call it after the transaction.
    pub fn cluster_changed(&self, cluster: ClusterId) {
        let _ = self.clusters.send(cluster);
    }

    /// Key events from now on.
    pub fn key_events(&self) -> broadcast::Receiver<KeyEvent> {
        self.keys.subscribe()
    }

    /// Changed clusters from now on.
    pub fn cluster_events(&self) -> broadcast::Receiver<ClusterId> {
        self.clusters.subscribe()
    }

    /// Turns true when the server stops; long answers end then.
    pub fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// Ends long answers.
    pub fn close(&self) {
        self.stop();
        self.closing.send_replace(true);
    }

    /// Says that no more calls should be sent here.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// A request has begun; it is under way until what this gives is dropped.
    pub(crate) fn begin(&self) -> UnderWay {
        self.under_way.send_modify(|count| *count += 1);
        UnderWay(self.under_way.clone())
    }

    /// Returns once no request is under way.
    pub(crate) async fn answered(&self) {
        let mut count = self.under_way.subscribe();
        // It cannot be closed: this holds a sender.
        let _ = count.wait_for(|count| *count == 0).await;
    }
}

/// The server.
pub struct App {
    /// The database.
    pub store: Store,
    /// Holds root keys.
    pub custodian: Arc<dyn Custodian>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Waiting times and bounds.
    pub settings: Settings,
    /// Announces changes.
    pub hub: Hub,
    /// Signs certificates of the server and of nodes.
    pub authority: Authority,
    /// Whose server this is.
    pub account: Account,
    pub(crate) tokens: Tokens,
    pub(crate) known: Known,
    pub(crate) recorder: Recorder,
    pub(crate) refusals: Refusals,
    pub(crate) throttle: Throttle,
    pub(crate) repeats: MacKey,
    pub(crate) metrics: Metrics,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) issuers: Issuers,
    pub(crate) keeper: Mutex<Keeper>,
    pub(crate) room: Room,
    /// Whose turn it is to make a key pair of an import token.
    pub(crate) making: Arc<Semaphore>,
}

impl App {
    /// Makes a server of its parts. On a fresh database this is the first start: authority,
    /// secrets, account, instances. Blocks.
    ///
    /// # Errors
    /// When the database and the custodian's master key do not belong together, or the database
    /// does not answer.
    pub fn new(
        store: Store,
        custodian: Arc<dyn Custodian>,
        clock: Arc<dyn Clock>,
        settings: Settings,
    ) -> Result<Arc<App>, StartError> {
        let parts = first::establish(&store, &*custodian, clock.now())?;
        let issuers = Issuers::new(&settings.login)?;
        let named: Vec<(&str, &str)> =
            settings.login.issuers.iter().map(|one| (&*one.issuer, &*one.audience)).collect();
        store.tx("issuers", |tx| claviger_store::logins::allow(tx, &named))?;
        let recorder =
            Recorder::start(&store, parts.writer, &settings.audit).map_err(StartError::Audit)?;
        let throttle = Throttle::new(&settings);
        let keeper = Mutex::new(Keeper::start(&store, &*clock)?);
        Ok(Arc::new(App {
            store,
            custodian: Arc::new(Traced(custodian)),
            clock,
            settings,
            hub: Hub::new(),
            authority: parts.authority,
            account: parts.account,
            tokens: parts.tokens,
            known: Known::default(),
            recorder,
            refusals: Refusals::default(),
            throttle,
            repeats: parts.repeats,
            metrics: Metrics::new(),
            certificates: Arc::default(),
            issuers,
            keeper,
            room: Room::new(),
            making: Arc::new(Semaphore::new(1)),
        }))
    }

    /// Runs `work` of the server itself, which may block on the database, on a thread that may
    /// block. What a request asks for is to find room first: [`App::asked`].
    ///
    /// # Panics
    /// When `work` does.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<App>,
        work: impl FnOnce(&App) -> T + Send + 'static,
    ) -> T {
        let (app, span) = (self.clone(), tracing::Span::current());
        match tokio::task::spawn_blocking(move || span.in_scope(|| work(&app))).await {
            Ok(done) => done,
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }

    /// Announces a change of a root key. Call it after its transaction, never within.
    pub(crate) fn announce(&self, event: KeyEvent) {
        tracing::info!(event = event.id, kind = event.kind.as_str(), "key event");
        self.metrics.key_changed(event.kind.as_str());
        self.hub.key_changed(event);
    }

    /// How long an access token lives, in seconds.
    pub(crate) fn token_life_s(&self) -> i64 {
        self.settings.token_life.as_secs() as i64
    }

    /// What tokens of this server say in `iss`.
    pub(crate) fn issuer(&self) -> String {
        format!("{}/identity", self.settings.url)
    }

    /// Base URL of the public listener or of the private one, which stands for both where there
    /// is no public one.
    pub fn url(&self, public: bool) -> &str {
        match &self.settings.public_url {
            Some(url) if public => url,
            _ => &self.settings.url,
        }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn alive(&self) -> Result<(), StoreError> {
        self.store.read("alive", |tx| claviger_store::meta::get(tx, "account").map(drop))
    }

    /// Whether calls should be sent to this server. Blocks.
    ///
    /// # Errors
    /// When the database does not answer, acts cannot be put on record, or it is stopping; with
    /// the reason, for an operator.
    pub(crate) fn ready(&self) -> Result<(), String> {
        if self.hub.stopping() {
            return Err("the server is stopping".to_owned());
        }
        self.alive().map_err(|e| e.to_string())?;
        match self.recorder.trouble() {
            // Nobody calls a server that is not ready, so nobody would find out that it is again.
            Some(_) => {
                let (at, target) = (self.clock.now(), self.account.id.clone());
                let record = Record::of_system(at, "claviger.audit.resume", target);
                self.recorder.record_blocking(&record).map_err(|trouble| trouble.to_string())
            }
            None => Ok(()),
        }
    }
}
