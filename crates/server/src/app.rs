//! What all requests share.

use crate::authority::Authority;
use crate::first::{self, StartError};
use crate::iam::known::Known;
use crate::iam::token::Tokens;
use crate::metrics::Metrics;
use crate::record::Recorder;
use crate::refusals::Refusals;
use claviger_audit::Durability;
use claviger_custody::Custodian;
use claviger_domain::audit::Record;
use claviger_domain::id::{ClusterId, InstanceId, UnixMs};
use claviger_domain::key::RootKey;
use claviger_store::events::KeyEvent;
use claviger_store::{Store, StoreError};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use uuid::Uuid;

/// Where the time comes from.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> UnixMs;
}

/// The machine's clock.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> UnixMs {
        UnixMs(jiff::Timestamp::now().as_millisecond())
    }
}

/// A clock that stands until it is told to move; for tests.
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that says `now`.
    pub fn new(now: UnixMs) -> Self {
        Self(AtomicI64::new(now.0))
    }

    /// Moves it forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as i64, Ordering::SeqCst);
    }

    /// Sets it back.
    pub fn set_back(&self, by: Duration) {
        self.0.fetch_sub(by.as_millis() as i64, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> UnixMs {
        UnixMs(self.0.load(Ordering::SeqCst))
    }
}

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
    /// How the audit log is kept.
    pub audit: AuditSettings,
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
            audit: AuditSettings::default(),
        }
    }
}

impl Settings {
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
}

/// Events that a slow receiver may be behind before it is told to look at the database.
const HUB_BACKLOG: usize = 256;

impl Hub {
    fn new() -> Self {
        Self {
            keys: broadcast::Sender::new(HUB_BACKLOG),
            clusters: broadcast::Sender::new(HUB_BACKLOG),
            closing: watch::Sender::new(false),
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
        self.closing.send_replace(true);
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
    pub(crate) metrics: Metrics,
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
        let recorder =
            Recorder::start(&store, parts.writer, &settings.audit).map_err(StartError::Audit)?;
        Ok(Arc::new(App {
            store,
            custodian,
            clock,
            settings,
            hub: Hub::new(),
            authority: parts.authority,
            account: parts.account,
            tokens: parts.tokens,
            known: Known::default(),
            recorder,
            refusals: Refusals::default(),
            metrics: Metrics::new(),
        }))
    }

    /// Runs `work`, which may block on the database, on a thread that may block.
    ///
    /// # Panics
    /// When `work` does.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<App>,
        work: impl FnOnce(&App) -> T + Send + 'static,
    ) -> T {
        let app = self.clone();
        match tokio::task::spawn_blocking(move || work(&app)).await {
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
        if *self.hub.closing.borrow() {
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
