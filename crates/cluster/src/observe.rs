//! Looks at this node's API server: is it there, is it ready, which file has it taken up, and
//! under which key does it write. Nothing here changes the node but the canary Secret.

use crate::contact::wall;
use crate::control::kube::Health;
use crate::encryption;
use crate::file;
use crate::foreign;
use crate::keys::{KeyFailure, Keys};
use crate::node::Node;
use crate::peers::Peers;
use crate::preflight;
use crate::run::with_causes;
use claviger_crypto::{Key32, digest};
use claviger_domain::cluster::ring::serial_of;
use claviger_domain::cluster::{Canary, Cluster, Operation, PROVIDER, Preflight, Process, Stage};
use claviger_domain::id::{OperationId, Serial};
use claviger_etcd::record::Record;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Pause between two looks.
const PACE: Duration = Duration::from_secs(1);
/// Pause between two canaries while no operation waits for one.
const CANARY_PAUSE: Duration = Duration::from_secs(30);
/// Tries of a target before its failure is told: a server that is just restarting is no reason
/// to reject an operation.
const PREFLIGHT_TRIES: u32 = 3;
/// Namespace of the canary Secrets.
const CANARY_NAMESPACE: &str = "kube-system";

/// What was seen at the last look.
#[derive(Debug, Clone, Default)]
pub struct Probe {
    /// The API server's process that the rest is about.
    pub process: Option<Process>,
    /// Whether it answered /readyz with ok.
    pub ready: bool,
    /// What it answered instead.
    pub unready: Option<String>,
    /// Its `gitVersion`, once known.
    pub kubernetes: Option<String>,
    /// The hash of the file that it has taken up.
    pub loaded: Option<String>,
    /// The last canary.
    pub canary: Option<Canary>,
    /// The last preflight.
    pub preflight: Option<Preflight>,
    /// Hosts of the API servers that live.
    pub api_servers: Vec<String>,
}

impl Probe {
    /// The hash that exactly this process publishes.
    pub fn loaded_by(&self, process: Option<Process>) -> Option<String> {
        if process.is_some() && self.process == process { self.loaded.clone() } else { None }
    }
}

/// Looks again and again.
pub struct Prober {
    node: Arc<Node>,
    keys: Arc<dyn Keys>,
    probe: Probe,
    canary_at: Option<Instant>,
    peers: Peers,
    tried: Option<(OperationId, u32)>,
}

impl Prober {
    /// A prober of `node`.
    pub fn new(node: Arc<Node>, keys: Arc<dyn Keys>) -> Self {
        let (probe, peers) = (Probe::default(), Peers::default());
        Self { node, keys, probe, canary_at: None, peers, tried: None }
    }

    /// Looks every second and publishes what it saw. Never returns.
    pub async fn run(mut self, to: watch::Sender<Probe>) {
        loop {
            let begun = Instant::now();
            self.look().await;
            to.send_replace(self.probe.clone());
            self.node.look_now();
            let pace = PACE.saturating_sub(begun.elapsed());
            tokio::time::sleep(pace.max(Duration::from_millis(100))).await;
        }
    }

    async fn look(&mut self) {
        self.node.local.renew(&self.node.config, Instant::now());
        let truth = self.node.cluster_truth();
        let operation = truth.as_ref().and_then(|c| c.operation.clone());
        if let Some(operation) = &operation {
            // Until a KEK of ours writes, something else may.
            let first = truth.as_ref().is_none_or(|c| c.ring.write().is_none());
            self.preflight(operation, first).await;
        }
        let process = self.process();
        if process != self.probe.process {
            self.probe.loaded = None;
            self.probe.canary = None;
            self.canary_at = None;
        }
        self.probe.process = process;
        self.probe.api_servers = self.peers.live(Instant::now());
        if process.is_none() {
            self.probe.ready = false;
            return;
        }
        self.probe.unready = match self.node.local.kube().readyz().await {
            Ok(Health::Ok) => None,
            Ok(Health::Failing(checks)) => Some(format!("/readyz says {checks}")),
            Err(error) => Some(with_causes(&error)),
        };
        self.probe.ready = self.probe.unready.is_none();
        if !self.probe.ready {
            return;
        }
        if self.probe.kubernetes.is_none() || self.probe.loaded.is_none() {
            self.probe.kubernetes = self.node.local.kube().version().await.ok();
        }
        self.loaded().await;
        if self.peers.due() {
            self.peers.look(&self.node.local.kube()).await;
        }
        // Another process may have come meanwhile; then nothing of this counts.
        if self.process() != process {
            self.probe = Probe {
                kubernetes: self.probe.kubernetes.take(),
                preflight: self.probe.preflight.take(),
                api_servers: std::mem::take(&mut self.probe.api_servers),
                ..Probe::default()
            };
            return;
        }
        if let (Some(truth), Some(process)) = (truth, process) {
            self.canary(&truth, operation.is_some(), process).await;
        }
    }

    fn process(&self) -> Option<Process> {
        self.node.supervisor.observe().ok().and_then(|seen| seen.process)
    }

    /// Reads the metric while it can differ from what is known: it costs megabytes.
    async fn loaded(&mut self) {
        let config = &self.node.config;
        let file = file::read(&config.api_server.encryption_config).ok().flatten();
        let Some(on_disk) = file.as_deref().map(encryption::hash) else { return };
        if self.probe.loaded.as_ref() == Some(&on_disk) {
            return;
        }
        const METRIC: &str = "apiserver_encryption_config_controller_last_config_info";
        match self.node.local.kube().metrics(METRIC).await {
            Ok(lines) => self.probe.loaded = lines.iter().find_map(|line| hash_in(line)),
            Err(error) => tracing::debug!(%error, "cannot read the API server's metrics"),
        }
    }

    /// Writes a Secret through this API server and reads its record raw, until it is under the
    /// key that seals.
    async fn canary(&mut self, truth: &Cluster, working: bool, process: Process) {
        let Some(serial) = truth.ring.write().map(|kek| kek.serial) else { return };
        let loaded = self.probe.loaded.as_deref();
        let stage = loaded.and_then(|h| encryption::stage_of_hash(h, &self.node.config.socket));
        let Some(stage) = stage.filter(|s| *s >= Stage::WriteFirst) else { return };
        let good = Canary { serial: Some(serial), process, stage };
        if self.probe.canary == Some(good) {
            return;
        }
        let pause = if working { Duration::ZERO } else { CANARY_PAUSE };
        if self.canary_at.is_some_and(|at| at.elapsed() < pause) {
            return;
        }
        self.canary_at = Some(Instant::now());
        // This also makes kube-apiserver ask the plugin for its key id.
        let _ = self.node.local.kube().kms_providers().await;
        match self.written_under().await {
            Ok(serial) => self.probe.canary = Some(Canary { serial, process, stage }),
            Err(why) => tracing::debug!(%why, "no canary"),
        }
    }

    /// The KEK under which this API server writes now; none for plaintext.
    async fn written_under(&self) -> Result<Option<Serial>, String> {
        let name = format!("claviger-canary-{}", self.node.config.name);
        let content = digest::hex(&Key32::generate().expose()[..16]);
        // Hexadecimal is base64 too, and its length is a multiple of four.
        self.node
            .local
            .kube()
            .put_canary(CANARY_NAMESPACE, &name, &content)
            .await
            .map_err(|e| e.to_string())?;
        let key = format!("{}/secrets/{CANARY_NAMESPACE}/{name}", claviger_etcd::resource::PREFIX);
        let found = self.node.local.etcd().get(key.as_bytes()).await.map_err(|e| e.to_string())?;
        let kv = found.record.ok_or("etcd does not have it")?;
        Ok(match Record::parse(&kv.value) {
            Record::KmsV2(record) if record.provider == PROVIDER => serial_of(record.key_id),
            _ => None,
        })
    }

    /// Looks whether the node is fit for an operation, wraps and unwraps with its target, and at the
    /// first enablement looks for other encryption, before anything is changed.
    async fn preflight(&mut self, operation: &Operation, first: bool) {
        if operation.preflighted {
            return;
        }
        let last = self.probe.preflight.as_ref().filter(|p| p.operation == operation.id);
        if last.is_some_and(|p| p.failure.is_none()) {
            return;
        }
        let tries = match self.tried {
            Some((id, tries)) if id == operation.id => tries + 1,
            _ => 1,
        };
        self.tried = Some((operation.id, tries));
        let alone = if first { foreign::none(&self.node).await } else { Ok(()) };
        let found = preflight::look(&self.node).await;
        let failure = match (alone, found.failure) {
            (Err(found), _) | (Ok(()), Some(found)) => Some(found),
            (Ok(()), None) => self.try_target(operation).await.err().map(|f| f.to_string()),
        };
        if failure.is_some() && tries < PREFLIGHT_TRIES {
            return;
        }
        if let Some(failure) = &failure {
            tracing::warn!(%failure, "the preflight failed");
        }
        for warning in &found.warnings {
            tracing::warn!(%warning, "the preflight");
        }
        let warnings = found.warnings;
        self.probe.preflight = Some(Preflight { operation: operation.id, failure, warnings });
    }

    async fn try_target(&self, operation: &Operation) -> Result<(), KeyFailure> {
        let (key, at) = (Key32::generate(), wall().0.to_string());
        let aad = vec!["claviger preflight 1".to_owned(), self.node.cluster.to_string(), at];
        let wrapped = self.keys.wrap(operation.target, &key, &aad).await?;
        let back = self.keys.unwrap(operation.target, &wrapped, &aad).await?;
        if digest::equal(back.expose(), key.expose()) {
            Ok(())
        } else {
            Err(KeyFailure::Refused("what it unwraps is not what was wrapped".to_owned()))
        }
    }
}

/// The value of the label `hash` in a line of metrics.
fn hash_in(line: &str) -> Option<String> {
    // `apiserver_id_hash` ends in the same word, so the comma or brace before it counts.
    let at = line.find(",hash=\"").or_else(|| line.find("{hash=\""))?;
    let rest = &line[at + 7..];
    rest.split('"').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_told_from_that_of_the_host() {
        let line = "apiserver_encryption_config_controller_last_config_info{apiserver_id_hash=\"sha256:aa\",hash=\"sha256:bb\"} 1";
        assert_eq!(hash_in(line).as_deref(), Some("sha256:bb"));
        assert_eq!(hash_in("x{apiserver_id_hash=\"sha256:aa\"} 1"), None);
        assert_eq!(hash_in("x{hash=\"sha256:cc\",z=\"1\"} 1").as_deref(), Some("sha256:cc"));
    }
}
