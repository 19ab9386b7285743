//! A real kube-apiserver and etcd whose Secrets go through a plugin in this process.

use crate::{NoService, ring};
use claviger_cluster::control::kube::{Kube, KubeConfig};
use claviger_cluster::control::rewrite::WORKERS;
use claviger_crypto::Key32;
use claviger_domain::id::ClusterId;
use claviger_etcd::{Etcd, EtcdConfig};
use claviger_kms_plugin::{Listener, OpenRing, Plugin};
use claviger_supervise::Supervisor;
use claviger_supervise::unit::ProcessUnit;
use claviger_tests::lab::{self, Lab, Options};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// What a benchmark fails with.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long an API server may take to its first answer.
const READY: Duration = Duration::from_secs(60);

/// One API server of a cluster of `claviger dev`, started again under our plugin.
pub struct Real {
    /// The cluster.
    pub lab: Lab,
    /// Its etcd.
    pub etcd: Etcd,
    /// Its API server.
    pub kube: Kube,
    /// Seals what the API server stores.
    pub plugin: Plugin,
    /// The cluster that the plugin's ring belongs to.
    pub cluster: ClusterId,
    socket: PathBuf,
}

impl Real {
    /// Starts it without Secrets; the API server has no encryption yet.
    pub async fn start() -> Result<Self, Failure> {
        let lab = Lab::up(&Options::default())?;
        let env = lab.env()?;
        let var = |name: &str| env.get(name).cloned().ok_or(format!("{name} is not set"));
        let path = |name: &str| lab.dir().join("pki").join(name);
        let etcd = Etcd::connect(&EtcdConfig {
            endpoints: vec![var("ETCDCTL_ENDPOINTS")?],
            ca: Some(var("ETCDCTL_CACERT")?.into()),
            cert: Some(var("ETCDCTL_CERT")?.into()),
            key: Some(var("ETCDCTL_KEY")?.into()),
            timeout: EtcdConfig::TIMEOUT,
        })
        .await?;
        let url = lab.kubectl(&[
            "config",
            "view",
            "--minify",
            "-o",
            "jsonpath={.clusters[0].cluster.server}",
        ])?;
        let kube = Kube::new(&KubeConfig {
            url: String::from_utf8(url.stdout)?,
            ca: path("ca.crt"),
            cert: path("admin.crt"),
            key: path("admin.key"),
        })?;
        let cluster = ClusterId::random();
        let plugin = Plugin::new(cluster.clone(), Arc::new(NoService));
        let socket = PathBuf::from(format!("/tmp/claviger-bench-{}.sock", std::process::id()));
        let listener = Listener::bind(&socket)?;
        let serving = plugin.clone();
        tokio::spawn(async move { listener.serve(serving, std::future::pending::<()>()).await });
        Ok(Self { lab, etcd, kube, plugin, cluster, socket })
    }

    /// A ring of `count` KEKs, the last of which is reported. The same key under each serial: only
    /// the name matters to the API server.
    pub fn ring(&self, count: usize) -> OpenRing {
        let keys: Vec<Key32> =
            (0..count).map(|_| Key32::take(&mut [7u8; 32]).expect("32 bytes")).collect();
        ring(&self.cluster, &keys)
    }

    /// Kills the API server and starts it with our plugin as its first provider, unencrypted
    /// values still readable. Returns its process id once it is ready.
    pub async fn restart(&self) -> Result<i32, Failure> {
        let config = json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
            "resources": [{"resources": ["secrets"], "providers": [
                {"kms": {"apiVersion": "v2", "name": "bench", "timeout": "10s",
                         "endpoint": format!("unix://{}", self.socket.display())}},
                {"identity": {}},
            ]}],
        });
        let file = self.lab.dir().join("bench-encryption.json");
        std::fs::write(&file, config.to_string())?;
        let unit = ProcessUnit::open(&self.lab.dir().join("units/apiserver-1"))?;
        unit.kill()?;
        let args = [
            format!("--encryption-provider-config={}", file.display()),
            "--encryption-provider-config-automatic-reload=true".to_owned(),
        ];
        let process = match unit.start(&args) {
            Ok(process) => process,
            Err(claviger_supervise::SuperviseError::Running(_)) => {
                // The keeper was faster, and started it as it was.
                unit.kill()?;
                unit.start(&args)?
            }
            Err(error) => return Err(error.into()),
        };
        self.lab.patiently(READY, || {
            lab::check("readyz", self.lab.kubectl(&["get", "--raw", "/readyz"])?).map(drop)
        })?;
        Ok(process.pid)
    }

    /// Stores `secrets` Secrets of 1 KiB.
    pub async fn load(&self, secrets: usize) -> Result<(), Failure> {
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS {
            let kube = self.kube.clone();
            workers.spawn(async move {
                for n in (worker..secrets).step_by(WORKERS) {
                    // 1 KiB of data, and base64 as Kubernetes takes it.
                    let content = format!("{n:08x}").repeat(128);
                    kube.put_canary("default", &format!("bench-{n}"), &content).await?;
                }
                Ok::<(), Failure>(())
            });
        }
        while let Some(done) = workers.join_next().await {
            done??;
        }
        Ok(())
    }
}
