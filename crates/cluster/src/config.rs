//! The agent's file of settings: TOML, every field known, every path absolute.
//! `agent.sample.toml` in this crate explains each.

use crate::file;
use claviger_domain::id::AgentName;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Longest path of a Unix socket on Linux (`sun_path` less its final zero).
pub const SOCKET_PATH_MAX: usize = 107;

/// Settings of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Base URL of the server: `https://…`.
    pub server: String,
    /// PEM of the CA of the server's certificate; the only one trusted.
    pub ca: PathBuf,
    /// Directory of the agent's own files, 0700.
    pub state_dir: PathBuf,
    /// The agent's name, and its API server's.
    pub name: AgentName,
    /// File with the one-time token to join with.
    pub join_token_file: Option<PathBuf>,
    /// Unix socket of the plugin.
    pub socket: PathBuf,
    /// How long to go on without the server; default 168 hours.
    #[serde(default)]
    pub coast_max: CoastMax,
    /// This node's API server.
    pub kube: KubeConfig,
    /// etcd.
    pub etcd: EtcdConfig,
    /// How the API server runs.
    pub api_server: ApiServerConfig,
}

/// How to reach this node's kube-apiserver. The certificate is a file of the node, never
/// anything that the cluster stores.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubeConfig {
    /// Base URL.
    pub url: String,
    /// PEM of its CA.
    pub ca: PathBuf,
    /// PEM of the client certificate.
    pub cert: PathBuf,
    /// PEM of its key.
    pub key: PathBuf,
}

/// How to reach etcd.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdConfig {
    /// Client URLs of all members.
    pub endpoints: Vec<String>,
    /// PEM of their CA.
    pub ca: PathBuf,
    /// PEM of the client certificate.
    pub cert: PathBuf,
    /// PEM of its key.
    pub key: PathBuf,
    /// Data directory of this node's member, for residue reports and scrub.
    pub data_dir: Option<PathBuf>,
    /// Unit directory of this node's member, for scrub.
    pub unit_dir: Option<PathBuf>,
    /// The program `etcdutl`, for scrub.
    pub etcdutl: Option<PathBuf>,
    /// Unit directories of other API servers on this node that use this member; a scrub stops
    /// them too.
    #[serde(default)]
    pub api_server_units: Vec<PathBuf>,
    /// Whether the first enablement ends with a scrub, which stops etcd and the API servers for
    /// some seconds.
    #[serde(default)]
    pub scrub_after_enable: bool,
}

/// How this node's kube-apiserver runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiServerConfig {
    /// Its unit directory.
    pub unit_dir: PathBuf,
    /// The file that its flag `--encryption-provider-config` names or will name.
    pub encryption_config: PathBuf,
}

/// How long a node goes on without the server before it fences itself. Without a bound, cutting
/// the network before a key is disabled would defeat its suspension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum CoastMax {
    /// So long since the last authenticated contact.
    For(Duration),
    /// Without a bound.
    Forever,
}

impl Default for CoastMax {
    fn default() -> Self {
        CoastMax::For(Duration::from_secs(168 * 3600))
    }
}

impl TryFrom<String> for CoastMax {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text == "forever" {
            return Ok(CoastMax::Forever);
        }
        let bad = || format!("{text:?} is no duration; write for instance \"168h\" or \"forever\"");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let count: u64 = digits.parse().map_err(|_| bad())?;
        let unit = match &text[digits.len()..] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(bad()),
        };
        let seconds = count.checked_mul(unit).filter(|s| *s > 0).ok_or_else(bad)?;
        Ok(CoastMax::For(Duration::from_secs(seconds)))
    }
}

/// Why the settings cannot be used. The operator's to mend; trying again changes nothing.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] file::FileError),
    /// There is no such file.
    #[error("there is no file {}", .0.display())]
    Missing(PathBuf),
    /// It does not say what it should.
    #[error("{} is not a valid agent configuration: {why}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line where known.
        why: String,
    },
}

impl AgentConfig {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let bytes = file::read(path)?.ok_or_else(|| ConfigError::Missing(path.to_owned()))?;
        let invalid = |why: String| ConfigError::Invalid { path: path.to_owned(), why };
        let text = String::from_utf8(bytes).map_err(|e| invalid(e.to_string()))?;
        Self::parse(&text).map_err(invalid)
    }

    /// Reads settings from TOML text; the error says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        for (what, url) in [("server", &config.server), ("kube.url", &config.kube.url)] {
            if !url.starts_with("https://") {
                return Err(format!("{what} must begin with https://"));
            }
        }
        if config.etcd.endpoints.is_empty() {
            return Err("etcd.endpoints must name at least one URL".to_owned());
        }
        let mut paths = vec![
            ("ca", &config.ca),
            ("state_dir", &config.state_dir),
            ("socket", &config.socket),
            ("kube.ca", &config.kube.ca),
            ("kube.cert", &config.kube.cert),
            ("kube.key", &config.kube.key),
            ("etcd.ca", &config.etcd.ca),
            ("etcd.cert", &config.etcd.cert),
            ("etcd.key", &config.etcd.key),
            ("api_server.unit_dir", &config.api_server.unit_dir),
            ("api_server.encryption_config", &config.api_server.encryption_config),
        ];
        paths.extend(config.join_token_file.as_ref().map(|p| ("join_token_file", p)));
        paths.extend(config.etcd.data_dir.as_ref().map(|p| ("etcd.data_dir", p)));
        paths.extend(config.etcd.unit_dir.as_ref().map(|p| ("etcd.unit_dir", p)));
        paths.extend(config.etcd.etcdutl.as_ref().map(|p| ("etcd.etcdutl", p)));
        paths.extend(config.etcd.api_server_units.iter().map(|p| ("etcd.api_server_units", p)));
        for (what, path) in paths {
            if !path.is_absolute() {
                return Err(format!("{what} must be an absolute path"));
            }
        }
        let length = config.socket.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(format!(
                "socket is {length} bytes long and Linux allows {SOCKET_PATH_MAX}; choose a shorter directory, for instance under /run"
            ));
        }
        Ok(config)
    }

    /// A file of the agent's own.
    pub fn state(&self, name: &str) -> PathBuf {
        self.state_dir.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../agent.sample.toml");

    #[test]
    fn the_sample_is_read() {
        let config = AgentConfig::parse(SAMPLE).unwrap();
        assert_eq!(config.name.as_str(), "master-1");
        assert_eq!(config.coast_max, CoastMax::default());
        assert_eq!(config.etcd.endpoints.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("name = \"master-1\"", "name = \"Master\"", "agent name"),
            ("name = \"master-1\"", "nom = \"m\"", "nom"),
            ("\"168h\"", "\"168\"", "no duration"),
            ("\"168h\"", "\"0h\"", "no duration"),
            ("\"168h\"", "\"99999999999999999999d\"", "no duration"),
            ("\"/run/claviger/kms.sock\"", "\"kms.sock\"", "socket must be an absolute path"),
            ("https://keys", "http://keys", "server must begin with https://"),
            ("[\"https://127.0.0.1:2379\"]", "[]", "etcd.endpoints"),
        ];
        for (from, to, expected) in cases {
            let text = SAMPLE.replace(from, to);
            assert_ne!(text, SAMPLE, "{from} is in the sample");
            let error = AgentConfig::parse(&text).unwrap_err();
            assert!(error.contains(expected), "{to}: {error}");
        }
        let long = format!("/{}", "x".repeat(SOCKET_PATH_MAX));
        let text = SAMPLE.replace("/run/claviger/kms.sock", &long);
        assert!(AgentConfig::parse(&text).unwrap_err().contains("shorter directory"));
    }

    #[test]
    fn durations() {
        let of = |text: &str| CoastMax::try_from(text.to_owned());
        assert_eq!(of("30m"), Ok(CoastMax::For(Duration::from_secs(1800))));
        assert_eq!(of("7d"), Ok(CoastMax::default()));
        assert_eq!(of("forever"), Ok(CoastMax::Forever));
        for bad in ["", "h", "-1h", "1.5h", "1w", "1 h"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
