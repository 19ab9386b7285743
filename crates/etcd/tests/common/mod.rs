//! A real etcd in a directory of its own, ended when dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use claviger_etcd::{Etcd, EtcdConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};

/// The program `name` of the testbed: from `KUBEBUILDER_ASSETS`, PATH, or what
/// `cargo xtask testbed` built.
pub fn program(name: &str) -> PathBuf {
    let mut dirs: Vec<PathBuf> = Vec::new();
    dirs.extend(std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from));
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let built = cache.and_then(|c| std::fs::read_dir(c.join("claviger/testbed")).ok());
    let mut built: Vec<_> = built.into_iter().flatten().flatten().map(|e| e.path()).collect();
    built.sort();
    dirs.extend(built);
    if let Some(path) = std::env::var_os("PATH") {
        dirs.extend(std::env::split_paths(&path));
    }
    let found = dirs.into_iter().map(|d| d.join(name)).find(|p| p.is_file());
    found.unwrap_or_else(|| panic!("there is no {name}; build it with: cargo xtask testbed"))
}

/// A port of loopback that was free a moment ago.
pub fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port()
}

pub struct Member {
    child: Child,
    pub dir: tempfile::TempDir,
    pub config: EtcdConfig,
}

impl Member {
    /// Starts an etcd that speaks TLS and wants a client certificate, and waits for it.
    pub async fn start() -> (Member, Etcd) {
        let dir = tempfile::tempdir().expect("a directory");
        let config = certificates(dir.path());
        let at = |name: &str| dir.path().join(name).display().to_string();
        let (client, peer) = (port(), port());
        let url = format!("https://127.0.0.1:{client}");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let child = Command::new(program("etcd"))
            .args(["--name", "m1", "--data-dir", &at("data")])
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &format!("http://127.0.0.1:{peer}")])
            .args(["--initial-advertise-peer-urls", &format!("http://127.0.0.1:{peer}")])
            .args(["--initial-cluster", &format!("m1=http://127.0.0.1:{peer}")])
            .args(["--cert-file", &at("cert.pem"), "--key-file", &at("key.pem")])
            .args(["--trusted-ca-file", &at("ca.pem"), "--client-cert-auth"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd starts");
        let config = EtcdConfig { endpoints: vec![url], ..config };
        let member = Member { child, dir, config };
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            match Etcd::connect(&member.config).await {
                Ok(etcd) => return (member, etcd),
                Err(e) if Instant::now() > until => panic!("etcd does not answer: {e}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Ends it, so that its files are at rest.
    pub fn stop(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn certificates(dir: &Path) -> EtcdConfig {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca =
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
    let key = KeyPair::generate().expect("a key");
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let cert =
        CertificateParams::new(names).expect("parameters").signed_by(&key, &ca).expect("signs");
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).expect("writes");
        Some(path)
    };
    EtcdConfig {
        endpoints: Vec::new(),
        ca: write("ca.pem", &ca.pem()),
        cert: write("cert.pem", &cert.pem()),
        key: write("key.pem", &key.serialize_pem()),
        timeout: EtcdConfig::TIMEOUT,
    }
}
