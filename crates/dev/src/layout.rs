//! Where everything lies in a cluster's directory.

use crate::error::DevError;
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket: `sun_path` has 108 bytes, one is the end (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// A cluster's directory.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Absolute.
    pub dir: PathBuf,
}

#[allow(missing_docs)] // The names are the files.
impl Layout {
    pub fn new(dir: &Path) -> Result<Self, DevError> {
        let dir = std::path::absolute(dir).map_err(DevError::io("find", dir))?;
        Ok(Self { dir })
    }

    pub fn spec(&self) -> PathBuf {
        self.dir.join("dev.json")
    }
    pub fn ports(&self) -> PathBuf {
        self.dir.join("ports.json")
    }
    pub fn progress(&self) -> PathBuf {
        self.dir.join("progress.json")
    }
    pub fn keeper_lock(&self) -> PathBuf {
        self.dir.join("keeper.lock")
    }
    pub fn prepare_lock(&self) -> PathBuf {
        self.dir.join("prepare.lock")
    }
    pub fn env(&self) -> PathBuf {
        self.dir.join("env")
    }
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }
    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.pki().join(format!("{name}.crt"))
    }
    pub fn key(&self, name: &str) -> PathBuf {
        self.pki().join(format!("{name}.key"))
    }
    pub fn unit(&self, name: &str) -> PathBuf {
        self.dir.join("units").join(name)
    }
    pub fn units(&self) -> PathBuf {
        self.dir.join("units")
    }
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }
    pub fn etcd_data(&self) -> PathBuf {
        self.dir.join("etcd")
    }
    pub fn server_data(&self) -> PathBuf {
        self.dir.join("server")
    }
    pub fn bootstrap(&self) -> PathBuf {
        self.dir.join("bootstrap.json")
    }
    pub fn server_ca(&self) -> PathBuf {
        self.dir.join("server-ca.pem")
    }
    pub fn people(&self) -> PathBuf {
        self.dir.join("people.json")
    }
    pub fn registration(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }
    pub fn apiserver(&self, number: u32) -> PathBuf {
        self.dir.join(format!("apiserver-{number}"))
    }
    pub fn encryption_config(&self, number: u32) -> PathBuf {
        self.apiserver(number).join("encryption.yaml")
    }
    pub fn agent(&self, number: u32) -> PathBuf {
        self.dir.join(format!("agent-{number}"))
    }
    pub fn agent_config(&self, number: u32) -> PathBuf {
        self.agent(number).join("agent.toml")
    }
    pub fn join_token(&self, number: u32) -> PathBuf {
        self.agent(number).join("join-token")
    }

    /// A new name for the directory of the sockets. A cluster's own directory may lie too deep
    /// for them.
    pub fn choose_sockets(&self) -> PathBuf {
        let random = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("cv-{}", &random[..8]);
        match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
            Some(dir) if dir.is_dir() && dir.as_os_str().len() < 64 => dir.join(name),
            _ => Path::new("/tmp").join(name),
        }
    }
}

/// The socket of an API server's plugin, unless its path is too long to be one.
pub fn socket(sockets: &Path, number: u32) -> Result<PathBuf, DevError> {
    let path = sockets.join(format!("kms-{number}.sock"));
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(DevError::refused(
            format!(
                "the socket path {} has {length} bytes; the most is {MAX_SOCKET_PATH}",
                path.display()
            ),
            "put `sockets` in dev.json to a shorter directory",
        ));
    }
    Ok(path)
}
