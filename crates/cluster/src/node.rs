//! What all parts of one agent share: settings, handles, the newest state of the server, and
//! what the agent last saw of its own node.

use crate::config::AgentConfig;
use crate::contact::{Contact, Mark, Moment};
use crate::file::FileError;
use crate::local::Local;
use crate::run::with_causes;
use crate::truth::Truth;
use claviger_client::{AgentApi, KeyService};
use claviger_domain::cluster::files::EtcdFiles;
use claviger_domain::cluster::plan::{must_fence, not_told};
use claviger_domain::cluster::{Access, Cluster, Observation};
use claviger_domain::id::{ClusterId, RestoreId};
use claviger_kms_plugin::Plugin;
use claviger_supervise::Supervisor;
use claviger_wire::agent::State;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// How often to look whether the server has been away for too long.
const FENCE_LOOK: Duration = Duration::from_secs(1);

/// The newest word of the server.
#[derive(Debug)]
pub struct Latest {
    /// What it said. Its `cluster` is this node's own where the server's has fallen behind.
    pub state: State,
    /// When it came.
    pub at: Instant,
}

/// Clients of the server, made anew when the certificate is renewed.
pub struct Clients {
    /// Base URL of the server.
    pub url: String,
    /// `/agent/v1`.
    pub api: AgentApi,
    /// The key service, with a token for the node's certificate.
    pub keys: KeyService,
}

/// One agent.
pub struct Node {
    /// Its settings.
    pub config: AgentConfig,
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// The KMS plugin that its API server asks.
    pub plugin: Plugin,
    /// Its API server, and etcd.
    pub local: Local,
    /// What starts, kills and holds its API server.
    pub supervisor: Arc<dyn Supervisor>,
    clients: RwLock<Arc<Clients>>,
    latest: watch::Sender<Option<Arc<Latest>>>,
    truth: Mutex<Truth>,
    contact: Mutex<Contact>,
    observation: watch::Sender<Arc<Observation>>,
    look: Notify,
    refused: AtomicBool,
    files: Mutex<Option<EtcdFiles>>,
    troubles: Mutex<BTreeMap<Part, String>>,
}

/// What of an agent can be in trouble, besides its key and its API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The plugin's socket: nobody can reach it.
    Socket,
    /// The state directory: what the server says cannot be kept.
    State,
    /// The cluster's loop, where no operation is there to say it.
    Loop,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("agent", &self.config.name)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// The handles that a node is made of.
pub struct Parts {
    /// Settings.
    pub config: AgentConfig,
    /// The cluster of the node's certificate.
    pub cluster: ClusterId,
    /// The plugin.
    pub plugin: Plugin,
    /// The API server and etcd.
    pub local: Local,
    /// The API server's supervisor.
    pub supervisor: Arc<dyn Supervisor>,
    /// Clients of the server.
    pub clients: Clients,
}

impl Node {
    /// A node of these parts, with what the last run left in the state directory.
    pub fn new(parts: Parts) -> Result<Self, FileError> {
        let Parts { config, cluster, plugin, local, supervisor, clients } = parts;
        let truth = Truth::open(config.state("ring.json"), &cluster)?;
        let contact = Contact::open(config.state("contact.json"))?;
        let observation = Observation {
            build: env!("CARGO_PKG_VERSION").to_owned(),
            access: Access::Waiting { reason: "the agent has just started".to_owned() },
            ..Observation::nothing(config.name.clone())
        };
        Ok(Self {
            config,
            cluster,
            plugin,
            local,
            supervisor,
            clients: RwLock::new(Arc::new(clients)),
            latest: watch::Sender::new(None),
            truth: Mutex::new(truth),
            contact: Mutex::new(contact),
            observation: watch::Sender::new(Arc::new(observation)),
            look: Notify::new(),
            refused: AtomicBool::new(false),
            files: Mutex::new(None),
            troubles: Mutex::new(BTreeMap::new()),
        })
    }

    /// The clients of the server, as of now; do not keep them for longer than a call or two.
    pub fn clients(&self) -> Arc<Clients> {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts new clients in place.
    pub fn set_clients(&self, clients: Clients) {
        *self.clients.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(clients);
    }

    /// Whether the server's last answer was that this node's certificate does not count.
    pub fn refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Notes whether the server takes this node's certificate.
    pub fn note_refused(&self, refused: bool) {
        self.refused.store(refused, Ordering::Relaxed);
    }

    /// The newest word of the server; none until it answered this process.
    pub fn latest(&self) -> Option<Arc<Latest>> {
        self.latest.borrow().clone()
    }

    /// Wakes on each new word of the server.
    pub fn watch_latest(&self) -> watch::Receiver<Option<Arc<Latest>>> {
        self.latest.subscribe()
    }

    /// The cluster's truth as far as this node believes it: the server's newest word, or what
    /// was kept before. What could not be written to disk is not among it.
    pub fn cluster_truth(&self) -> Option<Cluster> {
        lock(&self.truth).cluster().cloned()
    }

    /// Takes an authenticated answer of the server: keeps the ring durably, counts the contact,
    /// then lets everybody see it. A truth that lacks what this node holds is not taken, and an
    /// answer that says nothing of a root key of this node's ring is no contact.
    ///
    /// On an error a file could not be written. What the server says of the root keys is passed
    /// on all the same: a full disk must not keep a suspended key from fencing the node.
    pub fn took(&self, state: State) -> Result<(), FileError> {
        self.took_at(state, Instant::now())
    }

    /// The same, of an answer that came at `at`.
    pub fn took_at(&self, mut state: State, at: Instant) -> Result<(), FileError> {
        let mut truth = lock(&self.truth);
        let age = |l: Arc<Latest>| (l.state.now, at.saturating_duration_since(l.at));
        let kept = truth.take(&mut state, self.latest().map(age));
        truth.said.take(&mut state.roots, at);
        // Coasting counts on while nobody vouches for a root key of this node: if it was suspended,
        // nobody would say so.
        let mut contact = lock(&self.contact);
        let counted = match not_told(&state.cluster, &state.roots) {
            None => contact.made(Moment::now()),
            Some(_) => contact.passes(Moment::now()),
        };
        drop(contact);
        self.latest.send_replace(Some(Arc::new(Latest { state, at })));
        drop(truth);
        let done = kept.and(counted);
        let why = done.as_ref().err().map(|e| with_causes(e));
        self.note(Part::State, why.map(|why| format!("what the server says is not kept: {why}")));
        self.look.notify_one();
        done
    }

    /// Why this node does not follow the server's truth, if so.
    pub fn ahead(&self) -> Option<String> {
        lock(&self.truth).ahead()
    }

    /// The same, and the restore of the server by whose word that was judged: both of one moment.
    pub fn judged(&self) -> (Option<String>, Option<RestoreId>) {
        let truth = lock(&self.truth);
        (truth.ahead(), truth.restored())
    }

    /// Notes why the server does not take over what this node holds. Whether that is news.
    pub fn note_not_taken_back(&self, why: String) -> bool {
        lock(&self.truth).refused(why)
    }

    /// The URL that the server named last for this cluster, in this run or an earlier one.
    pub fn named_url(&self) -> Option<String> {
        lock(&self.truth).key_service().map(str::to_owned)
    }

    /// The last authenticated contact, counted on to now.
    pub fn contact(&self) -> Option<Mark> {
        lock(&self.contact).mark().cloned()
    }

    /// Whether the server has been away for longer than this node may go on without it.
    pub fn away_too_long(&self) -> bool {
        let max = self.config.coast_max;
        lock(&self.contact).mark().is_some_and(|mark| mark.spent(&Moment::now(), max))
    }

    /// Whether this node is to be fenced: the server's newest word asks for it, or there has been
    /// none for too long.
    pub fn must_fence(&self) -> bool {
        let asks = |l: Arc<Latest>| must_fence(&l.state.cluster, &l.state.roots).is_some();
        let seals = || lock(&self.truth).cluster().is_some_and(|c| c.ring.write().is_some());
        self.latest().is_some_and(asks) || (self.away_too_long() && seals())
    }

    /// Ends when this node is to be fenced.
    pub async fn fence_due(&self) {
        let mut news = self.watch_latest();
        while !self.must_fence() {
            tokio::select! {
                () = tokio::time::sleep(FENCE_LOOK) => {}
                _ = news.changed() => {}
            }
        }
    }

    /// Counts time without an answer; to be called while the server is away.
    pub fn no_contact(&self) -> Result<(), FileError> {
        lock(&self.contact).passes(Moment::now())
    }

    /// Writes down what a successor of this process is to find: the cluster's truth and the time
    /// since the last contact, both as of now.
    pub fn settle(&self) -> Result<(), FileError> {
        lock(&self.truth).settle()?;
        lock(&self.contact).settle(Moment::now())
    }

    /// What the agent last saw of its own node.
    pub fn observation(&self) -> Arc<Observation> {
        self.observation.borrow().clone()
    }

    /// Wakes on each change of the observation.
    pub fn watch_observation(&self) -> watch::Receiver<Arc<Observation>> {
        self.observation.subscribe()
    }

    /// Puts a newer observation in place; wakes watchers only if something changed.
    pub fn observed(&self, new: Observation) {
        self.observation.send_if_modified(|old| {
            let changed = **old != new;
            if changed {
                *old = Arc::new(new);
            }
            changed
        });
    }

    /// etcd's files on this machine, as they were seen last.
    pub fn files(&self) -> Option<EtcdFiles> {
        lock(&self.files).clone()
    }

    /// Notes what etcd's files on this machine are like.
    pub fn set_files(&self, files: EtcdFiles) {
        *lock(&self.files) = Some(files);
        self.look_now();
    }

    /// Notes what is wrong with a part of the agent; none if nothing is any more. Whether that is
    /// news.
    pub fn note(&self, part: Part, trouble: Option<String>) -> bool {
        let mut troubles = lock(&self.troubles);
        let news = troubles.get(&part) != trouble.as_ref();
        match trouble {
            Some(text) => troubles.insert(part, text),
            None => troubles.remove(&part),
        };
        drop(troubles);
        if news {
            self.look_now();
        }
        news
    }

    /// What is wrong with a part.
    pub fn trouble(&self, part: Part) -> Option<String> {
        lock(&self.troubles).get(&part).cloned()
    }

    /// All that is wrong.
    pub fn troubles(&self) -> Vec<String> {
        lock(&self.troubles).values().cloned().collect()
    }

    /// Makes the agent look at once rather than at the next second.
    pub fn look_now(&self) {
        self.look.notify_one();
    }

    /// Ends when somebody called [`Node::look_now`].
    pub async fn look_asked(&self) {
        self.look.notified().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks is left half-changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
