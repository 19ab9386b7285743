//! A key server that can be killed at any moment.

use serde_json::Value;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a start may take on a busy machine.
const READY: Duration = Duration::from_secs(60);

pub(super) struct Server {
    claviger: PathBuf,
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// An empty directory and a free port.
    pub(super) fn prepare(seed: u64) -> Result<Self, String> {
        let claviger = std::env::var_os("CLAVIGER_BIN")
            .map(PathBuf::from)
            .ok_or("CLAVIGER_BIN is not set; start this through cargo xtask")?;
        let name = format!("claviger-key-service-{}-{seed}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let free = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
        let port = free.local_addr().map_err(|e| e.to_string())?.port();
        Ok(Self { claviger, dir, port, child: None })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub(super) fn database(&self) -> PathBuf {
        self.dir.join("data/claviger.db")
    }

    /// What the first start left for the operator.
    pub(super) fn bootstrap(&self) -> Result<Value, String> {
        let path = self.dir.join("bootstrap.json");
        let text = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    pub(super) fn spawn(&mut self) -> Result<(), String> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("server.log"))
            .map_err(|e| e.to_string())?;
        let child = Command::new(&self.claviger)
            .args(["server", "run", "--no-waits"])
            .arg(format!("--data={}", self.dir.join("data").display()))
            .arg(format!("--listen=127.0.0.1:{}", self.port))
            .arg(format!("--bootstrap={}", self.dir.join("bootstrap.json").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|e| e.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|e| format!("{}: {e}", self.claviger.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Starts it and waits until it takes connections.
    pub(super) async fn start(&mut self) -> Result<(), String> {
        self.spawn()?;
        let begun = Instant::now();
        loop {
            let child = self.child.as_mut().ok_or("no server")?;
            if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
                return Err(format!("the server ended as it started: {status}"));
            }
            // The first start writes the file when it has begun to listen.
            let listens = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok();
            if listens && self.dir.join("bootstrap.json").is_file() {
                return Ok(());
            }
            if begun.elapsed() > READY {
                return Err(format!("the server does not listen after {READY:?}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// With SIGKILL.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(super) fn remove(&self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
