//! One agent from its start to its end: wiring, and the pace of the one task that acts.

use crate::config::AgentConfig;
use crate::contact::{Contact, Moment, wall};
use crate::control::lease::Lease;
use crate::control::{self, jobs};
use crate::desk::{self, Order, Said};
use crate::drive::{Acks, Handing, drive};
use crate::driver::Driver;
use crate::fence::{self, Fence, Record};
use crate::file::{self, FileError};
use crate::files;
use crate::hand_over;
use crate::identity::{Identity, IdentityError};
use crate::local::{Local, LocalError};
use crate::node::{Node, Part, Parts};
use crate::observe::{Probe, Prober};
use crate::ring::Kept;
use crate::scrub;
use crate::service_keys::ServiceKeys;
use crate::silence;
use crate::sync;
use crate::take_up::Due;
use claviger_kms_plugin::{Listener, Place, Plugin, SocketError};
use claviger_supervise::proc::adopt_children;
use claviger_supervise::unit::ProcessUnit;
use claviger_supervise::{SuperviseError, Supervisor};
use futures_util::future::{join_all, select_all};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// How long a successor may take to say its version.
const VERSION: Duration = Duration::from_secs(10);
/// How often to look whether the plugin's socket is still where the API server looks for it.
const SOCKET_LOOK: Duration = Duration::from_secs(1);
/// How long the tasks may take to end when the agent does.
const ENDING: Duration = Duration::from_secs(5);
/// Acknowledgements that the driver has not counted yet: one for each root key of a ring, and more
/// wait.
const TOLD_MAX: usize = 16;

/// Why an agent could not start, or ended.
#[derive(Debug, Error)]
pub enum AgentError {
    /// A file of its own.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another agent uses the same state directory.
    #[error("another agent runs with the state directory {0}; end it, or give this one its own")]
    Locked(String),
    /// Another agent drives the same API server.
    #[error(
        "another agent runs the API server of {0}; the two would start and stop it against each other: end one, since a copy of a state directory is no second node"
    )]
    UnitLocked(String),
    /// It is nobody to the server.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The clients of the API server and of etcd.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The API server's unit.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    /// The socket's server ended by itself: a fault of ours.
    #[error("the KMS socket ended: {0}")]
    Serving(String),
    /// One of the agent's tasks ended by itself: a fault of ours.
    #[error(
        "the task that {task} ended, which it never should: {how}; the agent is to be started again"
    )]
    Task {
        /// What it is there for.
        task: &'static str,
        /// Whether it returned or panicked.
        how: String,
    },
}

/// Runs until `stop` ends. The API server goes on; its plugin's socket is gone then.
pub async fn run(config: AgentConfig, stop: impl Future<Output = ()>) -> Result<(), AgentError> {
    file::make_dir(&config.state_dir)?;
    file::warn_of_writers(&config.state_dir);
    let state_dir = config.state_dir.display().to_string();
    let _lock = lock(&config.state("lock"), || AgentError::Locked(state_dir))?;
    let inherited = hand_over::inherited().unwrap_or_else(|error| {
        tracing::error!(%error, "what the predecessor handed over cannot be used");
        None
    });
    let unit = ProcessUnit::open(&config.api_server.unit_dir)?;
    let unit_dir = unit.dir().display().to_string();
    let _alone = lock(&unit.dir().join("agent.lock"), || AgentError::UnitLocked(unit_dir))?;
    let supervisor: Arc<dyn Supervisor> = Arc::new(unit);
    let mut fence = Fence::open(config.state("fence.json"))
        .inspect_err(|why| fence::shut(&*supervisor, &with_causes(why)))?;
    close_first(&mut fence, &config, &*supervisor)?;
    // What may be missing comes after what must not wait for it.
    let ca = file::read(&config.ca)?
        .ok_or_else(|| FileError {
            doing: "read",
            path: config.ca.clone(),
            source: std::io::ErrorKind::NotFound.into(),
        })
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
    let due = Due::open(config.state("take-up.json"))?;
    let identity = Identity::obtain(&config, &ca).await?;
    let keys = Arc::new(ServiceKeys::default());
    let plugin = Plugin::new(identity.cluster().clone(), keys.clone());
    let (socket, ring) = match inherited {
        Some(found) => {
            adopt_children();
            (Some(found.socket), found.ring)
        }
        None => (None, None),
    };
    let mut listener = Arc::new(listener(&config, socket)?);
    let local = Local::new(&config)?;
    let clients = identity.clients(&config.server, &ca)?;
    let cluster = identity.cluster().clone();
    let node = Arc::new(Node::new(Parts {
        config,
        cluster,
        plugin: plugin.clone(),
        local,
        supervisor,
        clients,
    })?);
    keys.bind(&node);

    let mut driver = Driver::new(node.clone(), keys.clone(), fence, due);
    let took = ring.as_ref().map(|ring| driver.adopt(ring));
    drop(ring);
    match took {
        Some(Ok(keks)) => tracing::info!(keks, "took the open ring of its predecessor"),
        Some(Err(why)) => tracing::warn!(why, "the predecessor's open ring is not taken"),
        None => {}
    }
    let mut serving = Serving::start(&listener, &plugin);
    let dir = &node.config.state_dir;
    let desk = desk::open(dir).map_err(|source| FileError {
        doing: "listen in",
        path: dir.clone(),
        source,
    })?;
    let (orders, mut ordered) = mpsc::channel(1);
    let (hand, asked) = mpsc::channel(1);
    let (probes, probe) = watch::channel(Probe::default());
    let (acks_due, due) = watch::channel(Vec::new());
    let (told, acks_told) = mpsc::channel(TOLD_MAX);
    let acks = Acks { due: acks_due, told: acks_told };
    let lease = Lease::default();
    let inherited = matches!(took, Some(Ok(_)));
    let mut tasks = Tasks::default();
    tasks.start("hears the server", sync::listen(node.clone()));
    tasks.start("speaks to the server", sync::speak(node.clone()));
    tasks.start("acknowledges key events", sync::acknowledge(node.clone(), due, told));
    tasks.start("looks at the API server", Prober::new(node.clone(), keys).run(probes));
    tasks.start("keeps the lease", lease.clone().keep(node.clone()));
    tasks.start("runs the cluster's loop", control::run(node.clone(), lease));
    tasks.start("counts plaintext in etcd's files", files::count(node.clone()));
    let scrubbed = node.clone();
    tasks.start("finishes scrubs", scrub::tend(move || jobs::scrub_of(&scrubbed).ok()));
    tasks.start("keeps the certificate", identity.keep(node.clone(), ca));
    tasks.start("acts on the node", drive(driver, node.clone(), probe, acks, asked));
    tasks.start("answers on the node", desk::serve(desk, node.clone(), inherited, orders));
    tracing::info!(agent = %node.config.name, cluster = %node.cluster, "runs");
    tokio::pin!(stop);
    let done = loop {
        tokio::select! {
            () = &mut stop => break Ok(()),
            over = &mut serving.task => break Err(AgentError::Serving(format!("{over:?}"))),
            over = tasks.over() => break Err(over),
            Some(mut order) = ordered.recv() => {
                // It returns only if this process goes on as it is.
                let why = succeed(&mut order, &listener, &mut serving, &hand).await;
                tracing::error!(%why, "no upgrade; this agent goes on");
                order.say(&Said::Not { why }).await;
                serving = Serving::start(&listener, &plugin);
            }
            () = tokio::time::sleep(SOCKET_LOOK) => {
                if let Some(anew) = reachable(&node, &listener) {
                    listener = Arc::new(anew);
                    let mut former =
                        std::mem::replace(&mut serving, Serving::start(&listener, &plugin));
                    former.end(true).await;
                }
            }
        }
    };
    tasks.end().await;
    serving.end(done.is_ok()).await;
    done
}

/// The plugin's socket, inherited where its place is still the one of the settings.
fn listener(
    config: &AgentConfig,
    inherited: Option<(OwnedFd, Place)>,
) -> Result<Listener, SocketError> {
    let same = |found: &Listener| found.path() == config.socket;
    let found = inherited.map(|(socket, place)| Listener::inherit(socket, place)).transpose()?;
    match found.flatten().filter(same) {
        Some(listener) => Ok(listener),
        None => Listener::bind(&config.socket),
    }
}

/// Looks whether the API server can find the plugin, and gives the socket that is to be served from
/// now on if it could not.
fn reachable(node: &Node, listener: &Listener) -> Option<Listener> {
    match again(listener) {
        Ok(anew) => {
            node.note(Part::Socket, None);
            anew.inspect(|anew| {
                let path = anew.path().display();
                tracing::warn!(%path, "the plugin's socket was gone; it is there again");
            })
        }
        Err(error) => {
            let path = listener.path().display();
            let why = format!(
                "the plugin's socket {path} is gone and cannot be made: {}",
                with_causes(&error)
            );
            if node.note(Part::Socket, Some(why.clone())) {
                tracing::error!("{why}");
            }
            None
        }
    }
}

/// The plugin's socket made anew if its file is gone or another's; none if it is in place.
fn again(listener: &Listener) -> Result<Option<Listener>, SocketError> {
    if listener.is_in_place() {
        return Ok(None);
    }
    Listener::bind(listener.path()).map(Some)
}

/// The agent's tasks, of which none returns while it lives. An agent that lived on without one of
/// them could hold the ring open with nobody left to fence, or the lease with nobody to use it; its
/// keeper starts a whole one instead.
#[derive(Default)]
struct Tasks(Vec<(&'static str, JoinHandle<()>)>);

impl Tasks {
    /// Starts one; `task` says what it is there for.
    fn start(&mut self, task: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.0.push((task, tokio::spawn(work)));
    }

    /// Waits for the first that ends.
    async fn over(&mut self) -> AgentError {
        let (over, which, _) = select_all(self.0.iter_mut().map(|(_, handle)| handle)).await;
        let how = match over {
            Ok(()) => "it returned".to_owned(),
            Err(error) => error.to_string(),
        };
        AgentError::Task { task: self.0[which].0, how }
    }

    /// Ends all, and waits for what cannot be broken off at once, as a start of the API server.
    async fn end(self) {
        for (_, handle) in &self.0 {
            handle.abort();
        }
        // Whoever ended by itself was waited for already.
        let left = self.0.into_iter().map(|(_, handle)| handle).filter(|h| !h.is_finished());
        let all = join_all(left);
        if tokio::time::timeout(ENDING, all).await.is_err() {
            tracing::warn!("a task did not end in time");
        }
    }
}

/// The plugin's socket at work.
struct Serving {
    task: JoinHandle<()>,
    end: Option<oneshot::Sender<()>>,
}

impl Serving {
    fn start(listener: &Arc<Listener>, plugin: &Plugin) -> Self {
        let (end, ended) = oneshot::channel::<()>();
        let (listener, plugin) = (listener.clone(), plugin.clone());
        let serve = async move {
            let ended = async {
                let _ = ended.await;
            };
            listener.serve(plugin, ended).await
        };
        Self { task: tokio::spawn(serve), end: Some(end) }
    }

    /// Stops; waits until calls under way have ended if `wait` says so.
    async fn end(&mut self, wait: bool) {
        if let Some(end) = self.end.take() {
            let _ = end.send(());
            if wait {
                let _ = (&mut self.task).await;
            }
        }
    }
}

/// Gives this process to the program of `order`, with the ring and the socket. Returns only when
/// that failed, with the reason: then nothing has changed but that the socket is not served.
async fn succeed(
    order: &mut Order,
    listener: &Listener,
    serving: &mut Serving,
    driver: &mpsc::Sender<Handing>,
) -> String {
    const GONE: &str = "the agent's task that holds the keys has ended";
    tracing::info!(program = %order.program.display(), "handing over to a successor");
    if let Err(why) = starts(&order.program).await {
        return why;
    }
    let (paused, pauses) = oneshot::channel();
    let (go, goes) = oneshot::channel();
    let (ring, given) = oneshot::channel();
    let (back, taken_back) = oneshot::channel();
    let handing = Handing { paused, go: goes, ring, back: taken_back };
    if driver.send(handing).await.is_err() || pauses.await.is_err() {
        return GONE.to_owned();
    }
    // From here on callers wait; the ring is closed when the last of them was answered.
    serving.end(true).await;
    let _ = go.send(());
    let ring = match given.await {
        Ok(Ok(ring)) => ring,
        Ok(Err(error)) => return with_causes(&error),
        Err(_) => return GONE.to_owned(),
    };
    let end = match hand_over::pack(listener.as_fd(), listener.place(), ring.as_ref()) {
        Ok(end) => end,
        Err(error) => {
            let _ = ring.map(|ring| back.send(ring));
            return format!("the ring cannot be handed over: {error}");
        }
    };
    // The one copy that is left is the one in the memfd.
    drop(ring);
    order.say(&Said::Going).await;
    let error = become_other(&order.program, &end);
    match hand_over::unpack(end.as_fd()) {
        Ok(Some(found)) => {
            let _ = found.ring.map(|ring| back.send(ring));
        }
        other => tracing::error!(failed = ?other.err(), "the ring is opened anew"),
    }
    format!("{} cannot be started: {error}", order.program.display())
}

/// Whether `program` can be started here and is one of ours. An exec alone does not tell: what
/// the kernel does not know, libc gives to a shell, which would be this process then.
async fn starts(program: &Path) -> Result<(), String> {
    let shown = program.display();
    let mut child = tokio::process::Command::new(program);
    child.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let out = match tokio::time::timeout(VERSION, child.output()).await {
        Ok(Ok(out)) => out,
        Ok(Err(error)) => return Err(format!("{shown} cannot be started: {error}")),
        Err(_) => return Err(format!("{shown} does not say its version")),
    };
    if out.status.success() && out.stdout.starts_with(b"claviger ") {
        return Ok(());
    }
    Err(format!("{shown} cannot be started or is no claviger: {}", out.status))
}

/// Execs `program` with this process's arguments, `end` its standard input. Returns if it cannot
/// be; standard input, of which nobody reads, is `end` all the same then.
fn become_other(program: &Path, end: &OwnedFd) -> std::io::Error {
    use std::os::unix::process::CommandExt as _;
    match end.try_clone() {
        Ok(end) => {
            let mut command = std::process::Command::new(program);
            command.args(std::env::args_os().skip(1)).stdin(end).exec()
        }
        Err(error) => error,
    }
}

/// An error with what caused it, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}

/// Completes a fence that stands, and fences a node whose server has been away too long, before
/// anything waits for the server: a new identity can take as long as the server is away.
fn close_first(
    fence: &mut Fence,
    config: &AgentConfig,
    server: &dyn Supervisor,
) -> Result<(), FileError> {
    let absent = || -> Result<Option<Record>, FileError> {
        let contact = Contact::open(config.state("contact.json"))?;
        let Some(mark) = contact.mark().filter(|m| m.spent(&Moment::now(), config.coast_max))
        else {
            return Ok(None);
        };
        let kept = Kept::load(&config.state("ring.json"))?;
        Ok(kept.and_then(|k| Record::of_absence(&k.cluster, mark.contact, wall())))
    };
    let record = match fence.record() {
        Some(record) => Some(record.clone()),
        None => absent()?,
    };
    // Nothing is open yet, so there is nothing to wipe. The driver tries a failure again.
    if let Some(record) = record
        && let Err(error) =
            fence.impose(record, &mut |_| {}, server, &|| silence::prove(&config.kube.url))
    {
        tracing::error!(error = %with_causes(&error), "the fence is not complete");
    }
    Ok(())
}

/// Holds the lock file at `path` until it is dropped; `held` says that another agent does.
fn lock(path: &Path, held: impl FnOnce() -> AgentError) -> Result<File, AgentError> {
    let failed = |source| FileError { doing: "lock", path: path.to_owned(), source };
    let file =
        File::options().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(held()),
        Err(error) => Err(failed(error.into()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contact::Mark;
    use claviger_domain::cluster::Cluster;
    use claviger_domain::cluster::ring::{Kek, Ring, Role};
    use claviger_domain::id::{ClusterId, InstanceId, KeyId, KeyVersionId, Serial, UnixMs};
    use claviger_domain::key::{KeyState, RootKey, RootVersion};
    use claviger_supervise::unit::Command;
    use std::collections::BTreeMap;

    fn config(home: &Path) -> AgentConfig {
        let mut config = AgentConfig::parse(include_str!("../agent.sample.toml")).unwrap();
        config.state_dir = home.to_owned();
        config
    }

    /// A real process that stands for an API server which outlived its agent.
    fn running(dir: &Path) -> ProcessUnit {
        let unit = ProcessUnit::open(&dir.join("unit")).unwrap();
        unit.set_command(&Command {
            argv: vec!["/bin/sleep".to_owned(), "60".to_owned()],
            env: BTreeMap::new(),
            hostname: None,
            log: dir.join("log"),
        })
        .unwrap();
        unit.start(&[]).unwrap();
        unit
    }

    fn root() -> RootKey {
        RootKey { instance: InstanceId::random(), key: KeyId::random() }
    }

    #[tokio::test]
    async fn a_task_that_ends_is_named() {
        for (panics, says) in [(false, "it returned"), (true, "a fault of this test")] {
            let mut tasks = Tasks::default();
            tasks.start("goes on", std::future::pending());
            tasks.start("ends", async move { assert!(!panics, "a fault of this test") });
            let over = tasks.over().await.to_string();
            assert!(over.contains("the task that ends ended") && over.contains(says), "{over}");
            tasks.end().await;
        }
    }

    #[tokio::test]
    async fn a_socket_whose_file_is_gone_is_made_anew() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kms.sock");
        let first = Listener::bind(&path).unwrap();
        assert!(again(&first).unwrap().is_none());
        std::fs::remove_file(&path).unwrap();
        let second = again(&first).unwrap().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        // The first one's end leaves the second one's file alone.
        drop(first);
        assert!(again(&second).unwrap().is_none());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "somebody's").unwrap();
        assert!(matches!(again(&second), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's");
    }

    #[test]
    fn a_fence_that_stands_is_completed_before_anything_else() {
        let dir = tempfile::tempdir().unwrap();
        let (config, unit) = (config(dir.path()), running(dir.path()));
        let record = Record::of_denial(root(), KeyState::Suspended, UnixMs(1));
        file::write_json(&config.state("fence.json"), &record).unwrap();
        let mut fence = Fence::open(config.state("fence.json")).unwrap();
        close_first(&mut fence, &config, &unit).unwrap();
        let seen = unit.observe().unwrap();
        unit.kill().unwrap();
        assert!(seen.process.is_none() && seen.held.is_some());
    }

    #[test]
    fn a_server_away_too_long_closes_a_node_whose_agent_was_away_as_well() {
        for (hours, open) in [(167, true), (169, false)] {
            let dir = tempfile::tempdir().unwrap();
            let (config, unit) = (config(dir.path()), running(dir.path()));
            let kek = Kek {
                serial: Serial(1),
                root: RootVersion { root: root(), version: KeyVersionId::random() },
                wrapped: "wrapped".to_owned(),
                role: Role::Write,
                created: UnixMs(0),
            };
            let cluster = Cluster {
                revision: 1,
                ring: Ring { keks: vec![kek], minted: 1 },
                ..Cluster::new(ClusterId::random(), "c".to_owned(), UnixMs(0))
            };
            let kept = Kept { cluster, key_service: "https://keys".to_owned() };
            kept.save(&config.state("ring.json")).unwrap();
            let mut mark = Mark::contact(Moment::now());
            mark.before_ms = hours * 3_600_000;
            file::write_json(&config.state("contact.json"), &mark).unwrap();
            let mut fence = Fence::open(config.state("fence.json")).unwrap();
            close_first(&mut fence, &config, &unit).unwrap();
            let alive = unit.observe().unwrap().process.is_some();
            unit.kill().unwrap();
            assert_eq!(alive, open, "{hours} h");
            assert_eq!(fence.record().is_none(), open, "{hours} h");
        }
    }
}
