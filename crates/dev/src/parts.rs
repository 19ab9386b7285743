//! The programs of a development cluster and their command lines.

use crate::binaries::{self, Binaries};
use crate::error::DevError;
use crate::files;
use crate::layout::{self, Layout};
use crate::pki;
use crate::spec::{Options, Ports, Spec};
use claviger_supervise::unit::{Command, ProcessUnit};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One program of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The only member of etcd.
    Etcd,
    /// The key server.
    Server,
    /// The agent of the API server with this number.
    Agent(u32),
    /// An API server, counted from 1.
    ApiServer(u32),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Etcd => f.write_str("etcd"),
            Part::Server => f.write_str("server"),
            Part::Agent(n) => write!(f, "agent-{n}"),
            Part::ApiServer(n) => write!(f, "apiserver-{n}"),
        }
    }
}

/// A development cluster whose files are written.
#[derive(Debug)]
pub struct Dev {
    /// Where it lies.
    pub layout: Layout,
    /// What it is.
    pub spec: Spec,
    /// Where it listens.
    pub ports: Ports,
    /// Programs of Kubernetes and etcd; none when there is only a key server.
    pub binaries: Option<Binaries>,
    /// `claviger` itself.
    pub program: PathBuf,
}

/// How long to wait for another process that prepares the same cluster: certificates for three
/// API servers take a second, on a machine whose disk is busy ten.
const PREPARE_WAIT: Duration = Duration::from_secs(60);

/// What an API server without `--bare` is given: a file that encrypts nothing yet, so that it
/// has the flags and can take a change up by itself.
const IDENTITY_ONLY: &str = "\
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources:
  - secrets
  providers:
  - identity: {}
";

impl Dev {
    /// Writes everything that the cluster needs before its first program starts; does nothing
    /// again to what is there. Starts nothing. One at a time: who looks at a cluster that is
    /// being made must not make a second set of certificates.
    pub fn prepare(options: &Options) -> Result<Self, DevError> {
        let layout = Layout::new(&options.dir)?;
        refuse_foreign(&layout)?;
        files::make_dir(&layout.dir)?;
        let _alone = files::lock(&layout.prepare_lock(), PREPARE_WAIT)?;
        let binaries = if options.only_key_service {
            None
        } else {
            let kept = Spec::read(&layout)?.map(|spec| spec.kubernetes);
            Some(binaries::find(options.kubernetes.or(kept).unwrap_or_default())?)
        };
        let spec = Spec::settle(options, &layout)?;
        for number in 1..=spec.apiservers {
            layout::socket(&spec.sockets, number)?;
        }
        let ports = Ports::settle(&spec, &layout)?;
        let dev = Self { layout, spec, ports, binaries, program: options.program.clone() };
        files::make_dir(&dev.layout.logs())?;
        files::make_dir(&dev.layout.units())?;
        files::make_private_dir(&dev.spec.sockets)?;
        if dev.binaries.is_some() {
            pki::ensure(&dev.layout, &dev.spec)?;
            files::make_dir(&dev.layout.etcd_data())?;
            dev.write_kubeconfig()?;
        }
        for part in dev.parts() {
            dev.prepare_part(part)?;
        }
        Ok(dev)
    }

    /// The cluster that a directory holds, prepared as when it was made.
    pub fn open(dir: &Path, program: PathBuf) -> Result<Self, DevError> {
        let layout = Layout::new(dir)?;
        let spec = Spec::read(&layout)?.ok_or_else(|| no_cluster(&layout))?;
        Self::prepare(&Options {
            dir: layout.dir,
            kubernetes: None,
            apiservers: Some(spec.apiservers),
            bare: spec.bare,
            only_key_service: spec.only_key_service,
            program,
        })
    }

    /// The programs, in the order in which they start.
    pub fn parts(&self) -> Vec<Part> {
        let mut parts = vec![Part::Server];
        if self.binaries.is_some() {
            parts.insert(0, Part::Etcd);
            // An API server that encrypts asks its agent at its start.
            parts.extend((1..=self.spec.apiservers).map(Part::Agent));
            parts.extend((1..=self.spec.apiservers).map(Part::ApiServer));
        }
        parts
    }

    /// The unit of a part.
    pub fn unit(&self, part: Part) -> Result<ProcessUnit, DevError> {
        let name = part.to_string();
        ProcessUnit::open(&self.layout.unit(&name)).map_err(DevError::unit(&name))
    }

    /// The ports that a part listens on.
    pub fn listens(&self, part: Part) -> Vec<u16> {
        match part {
            Part::Etcd => vec![self.ports.etcd, self.ports.etcd_peer],
            Part::Server => vec![self.ports.server, self.ports.server_public],
            Part::Agent(_) => Vec::new(),
            Part::ApiServer(n) => vec![self.apiserver_port(n)],
        }
    }

    /// The port of an API server.
    pub fn apiserver_port(&self, number: u32) -> u16 {
        let index = usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
        self.ports.apiservers.get(index).copied().unwrap_or_default()
    }

    /// URL of an API server.
    pub fn apiserver_url(&self, number: u32) -> String {
        format!("https://127.0.0.1:{}", self.apiserver_port(number))
    }

    /// URL of etcd for clients.
    pub fn etcd_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.etcd)
    }

    /// URL of the key server's private listener.
    pub fn server_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.server)
    }

    /// URL of its public one.
    pub fn server_public_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.server_public)
    }

    /// What people connect to, with names for it.
    pub fn urls(&self) -> Vec<(String, String)> {
        let mut urls = vec![
            ("key server".to_owned(), self.server_url()),
            ("  public".to_owned(), self.server_public_url()),
        ];
        if self.binaries.is_some() {
            urls.push(("etcd".to_owned(), self.etcd_url()));
            for number in 1..=self.spec.apiservers {
                urls.push((Part::ApiServer(number).to_string(), self.apiserver_url(number)));
            }
            urls.push(("kubeconfig".to_owned(), self.layout.kubeconfig().display().to_string()));
        }
        urls
    }

    fn prepare_part(&self, part: Part) -> Result<(), DevError> {
        let name = part.to_string();
        if let Part::ApiServer(n) = part {
            files::make_dir(&self.layout.apiserver(n))?;
            let config = self.layout.encryption_config(n);
            // From the first enablement on the file is the agent's.
            if !self.spec.bare && !config.exists() {
                files::write(&config, IDENTITY_ONLY.as_bytes())?;
            }
        }
        let command = match (part, &self.binaries) {
            (Part::Server, _) => self.server(),
            (Part::Agent(n), Some(_)) => {
                files::make_dir(&self.layout.agent(n))?;
                self.agent(n)
            }
            (Part::Etcd, Some(binaries)) => self.etcd(&binaries.etcd),
            (Part::ApiServer(n), Some(binaries)) => self.apiserver(&binaries.kube_apiserver, n),
            (_, None) => return Ok(()),
        };
        let unit = self.unit(part)?;
        if unit.command().map_err(DevError::unit(&name))?.as_ref() == Some(&command) {
            return Ok(());
        }
        unit.set_command(&command).map_err(DevError::unit(&name))
    }

    fn command(&self, part: Part, program: &Path, args: Vec<String>) -> Command {
        let mut argv = vec![program.display().to_string()];
        argv.extend(args);
        let log = self.layout.log(&part.to_string());
        Command { argv, env: BTreeMap::new(), hostname: None, log }
    }

    fn server(&self) -> Command {
        let mut args = vec![
            "server".to_owned(),
            "run".to_owned(),
            format!("--data={}", self.layout.server_data().display()),
            format!("--listen=127.0.0.1:{}", self.ports.server),
            format!("--public-listen=127.0.0.1:{}", self.ports.server_public),
            format!("--bootstrap={}", self.layout.bootstrap().display()),
        ];
        if !self.spec.only_key_service {
            args.push("--no-waits".to_owned());
        }
        self.command(Part::Server, &self.program, args)
    }

    fn agent(&self, number: u32) -> Command {
        let config = self.layout.agent_config(number);
        let args =
            vec!["agent".to_owned(), "run".to_owned(), format!("--config={}", config.display())];
        self.command(Part::Agent(number), &self.program, args)
    }

    fn etcd(&self, program: &Path) -> Command {
        let client = self.etcd_url();
        let peer = format!("https://127.0.0.1:{}", self.ports.etcd_peer);
        let certificate = self.layout.certificate("etcd").display().to_string();
        let key = self.layout.key("etcd").display().to_string();
        let ca = self.layout.certificate("etcd-ca").display().to_string();
        let args = vec![
            "--name=dev".to_owned(),
            format!("--data-dir={}", self.layout.etcd_data().display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--cert-file={certificate}"),
            format!("--key-file={key}"),
            format!("--trusted-ca-file={ca}"),
            "--client-cert-auth".to_owned(),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=dev={peer}"),
            format!("--peer-cert-file={certificate}"),
            format!("--peer-key-file={key}"),
            format!("--peer-trusted-ca-file={ca}"),
            "--peer-client-cert-auth".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        self.command(Part::Etcd, program, args)
    }

    fn apiserver(&self, program: &Path, number: u32) -> Command {
        let layout = &self.layout;
        let file = |path: PathBuf| path.display().to_string();
        let own = format!("apiserver-{number}");
        let mut args = vec![
            format!("--etcd-servers={}", self.etcd_url()),
            format!("--etcd-cafile={}", file(layout.certificate("etcd-ca"))),
            format!("--etcd-certfile={}", file(layout.certificate("etcd-apiserver"))),
            format!("--etcd-keyfile={}", file(layout.key("etcd-apiserver"))),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            // Without it a machine that has no network finds no address of its own.
            "--external-hostname=127.0.0.1".to_owned(),
            // Nobody connects to the service's address here, and loopback is refused in it.
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--secure-port={}", self.apiserver_port(number)),
            format!("--cert-dir={}", file(layout.apiserver(number))),
            format!("--tls-cert-file={}", file(layout.certificate(&own))),
            format!("--tls-private-key-file={}", file(layout.key(&own))),
            format!("--client-ca-file={}", file(layout.certificate("ca"))),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!(
                "--service-account-key-file={}",
                file(layout.pki().join("service-accounts.pub"))
            ),
            format!("--service-account-signing-key-file={}", file(layout.key("service-accounts"))),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--profiling=false".to_owned(),
        ];
        if !self.spec.bare {
            args.push(format!(
                "--encryption-provider-config={}",
                file(layout.encryption_config(number))
            ));
            args.push("--encryption-provider-config-automatic-reload=true".to_owned());
        }
        let mut command = self.command(Part::ApiServer(number), program, args);
        // An API server's identity (its lease, its metrics) is made of its host's name.
        command.hostname = Some(format!("control-plane-{number}"));
        command
    }

    fn write_kubeconfig(&self) -> Result<(), DevError> {
        use base64::Engine;
        let data = |path: PathBuf| -> Result<String, DevError> {
            Ok(base64::engine::general_purpose::STANDARD.encode(files::read_text(&path)?))
        };
        let ca = data(self.layout.certificate("ca"))?;
        let mut clusters = Vec::new();
        let mut contexts = Vec::new();
        for number in 1..=self.spec.apiservers {
            let name = format!("apiserver-{number}");
            clusters.push(serde_json::json!({
                "name": name,
                "cluster": {
                    "server": self.apiserver_url(number), "certificate-authority-data": ca,
                },
            }));
            contexts.push(serde_json::json!({
                "name": name, "context": { "cluster": name, "user": "admin" },
            }));
        }
        // JSON is YAML, and needs no quoting rules of ours.
        files::write_json(
            &self.layout.kubeconfig(),
            &serde_json::json!({
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": clusters,
                "contexts": contexts,
                "current-context": "apiserver-1",
                "users": [{
                    "name": "admin",
                    "user": {
                        "client-certificate-data": data(self.layout.certificate("admin"))?,
                        "client-key-data": data(self.layout.key("admin"))?,
                    },
                }],
            }),
        )
    }
}

/// The directory is not one of a cluster.
pub(crate) fn no_cluster(layout: &Layout) -> DevError {
    DevError::refused(
        format!("{} holds no cluster", layout.dir.display()),
        "name its directory with --dir",
    )
}

/// Keeps a cluster from being made among somebody's files.
fn refuse_foreign(layout: &Layout) -> Result<(), DevError> {
    if layout.spec().is_file() || layout.prepare_lock().is_file() {
        return Ok(());
    }
    let entries = match std::fs::read_dir(&layout.dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(DevError::io("read", &layout.dir))?,
    };
    if entries.count() == 0 {
        return Ok(());
    }
    Err(DevError::refused(
        format!("{} is not empty and holds no cluster", layout.dir.display()),
        "choose a new directory with --dir",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_prepares_at_once_prepares_the_same_cluster() {
        let root = tempfile::tempdir().expect("a directory");
        let prepare = || {
            Dev::prepare(&Options {
                dir: root.path().join("cluster"),
                kubernetes: None,
                apiservers: None,
                bare: false,
                only_key_service: true,
                program: "/bin/true".into(),
            })
            .expect("prepared")
        };
        let made: Vec<Dev> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(prepare)).collect();
            all.into_iter().map(|one| one.join().expect("no panic")).collect()
        });
        let first = (made[0].ports.server, made[0].spec.sockets.clone());
        assert!(made.iter().all(|dev| (dev.ports.server, dev.spec.sockets.clone()) == first));
        let _ = std::fs::remove_dir_all(&first.1);
    }
}
