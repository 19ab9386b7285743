//! What a server is started with: flags, environment and a file, in this order of weight.

use crate::exit::Failure;
use serde::Deserialize;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Largest configuration file; a real one has some hundred bytes.
const FILE_MAX: u64 = 64 << 10;
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8443);

/// Flags and environment. What is not given comes from the file, or is the default.
#[derive(clap::Args, Default)]
pub(super) struct Given {
    /// A file of settings (TOML): data, listen, names, public_listen, public_names,
    /// status_listen, bootstrap, master_key. Flags and environment count for more. A field that
    /// is not known is refused
    #[arg(long, env = "CLAVIGER_SERVER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the database; made if it is not there
    #[arg(long)]
    data: Option<PathBuf>,
    /// Address and port of the private listener; port 0 picks a free one [default: 127.0.0.1:8443]
    #[arg(long, env = "CLAVIGER_SERVER_LISTEN", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// A further name or address for which the server's certificate is good; the first one is
    /// the name that clients are told
    #[arg(
        long = "name",
        env = "CLAVIGER_SERVER_NAME",
        value_name = "DNS",
        value_delimiter = ',',
        value_parser = host
    )]
    names: Vec<String>,
    /// Address and port of a public listener; none if not given. Instances whose policy
    /// allowedNetwork is private-only are refused there
    #[arg(long, env = "CLAVIGER_SERVER_PUBLIC_LISTEN", value_name = "ADDRESS")]
    public_listen: Option<SocketAddr>,
    /// A name or address of the public listener, like --name
    #[arg(
        long = "public-name",
        env = "CLAVIGER_SERVER_PUBLIC_NAME",
        value_name = "DNS",
        value_delimiter = ',',
        value_parser = host
    )]
    public_names: Vec<String>,
    /// Address and port of plain HTTP for probes and Prometheus: /healthz, /readyz, /metrics. It
    /// tells nothing secret but asks for no token: keep it on loopback or a private network
    #[arg(long, env = "CLAVIGER_SERVER_STATUS_LISTEN", value_name = "ADDRESS")]
    status_listen: Option<SocketAddr>,
    /// No waiting times after disable and rotate; for trying things out
    #[arg(long)]
    no_waits: bool,
    /// Where the first start writes account, instances, CA and the administrator's API key
    /// (JSON, mode 0600); printed if not given
    #[arg(long, value_name = "FILE")]
    bootstrap: Option<PathBuf>,
    /// The master key: a file of mode 0600, or fd:N for an open file descriptor. Default:
    /// master.key in the data directory, made at the first start. Whoever has this file and the
    /// database has every root key: keep it on another disk
    #[arg(long, value_name = "FILE")]
    master_key: Option<String>,
}

/// The file.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Written {
    data: Option<PathBuf>,
    listen: Option<SocketAddr>,
    names: Vec<String>,
    public_listen: Option<SocketAddr>,
    public_names: Vec<String>,
    status_listen: Option<SocketAddr>,
    bootstrap: Option<PathBuf>,
    master_key: Option<String>,
}

/// What counts.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) data: PathBuf,
    pub(super) listen: SocketAddr,
    pub(super) names: Vec<String>,
    pub(super) public_listen: Option<SocketAddr>,
    pub(super) public_names: Vec<String>,
    pub(super) status_listen: Option<SocketAddr>,
    pub(super) no_waits: bool,
    pub(super) bootstrap: Option<PathBuf>,
    pub(super) master_key: Option<String>,
}

impl Config {
    /// Puts both together. The file's directory plays no part: paths are the process's.
    pub(super) fn of(given: Given) -> Result<Self, Failure> {
        let written = given.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let either = |given: Vec<String>, written| if given.is_empty() { written } else { given };
        let data = given.data.or(written.data).ok_or_else(|| {
            Failure::new(
                2,
                "the server has no data directory",
                "give --data DIR, or data = \"DIR\" in the file of --config",
            )
        })?;
        let config = Self {
            data,
            listen: given.listen.or(written.listen).unwrap_or(LISTEN),
            names: either(given.names, written.names),
            public_listen: given.public_listen.or(written.public_listen),
            public_names: either(given.public_names, written.public_names),
            status_listen: given.status_listen.or(written.status_listen),
            no_waits: given.no_waits,
            bootstrap: given.bootstrap.or(written.bootstrap),
            master_key: given.master_key.or(written.master_key),
        };
        if !config.public_names.is_empty() && config.public_listen.is_none() {
            return Err(Failure::new(
                2,
                "a name of the public listener is given, but no public listener",
                "give --public-listen ADDRESS too",
            ));
        }
        Ok(config)
    }
}

fn read(path: &Path) -> Result<Written, Failure> {
    let shown = path.display();
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text))
        .map_err(|e| {
            let hint = match e.kind() {
                ErrorKind::InvalidData => "it must be TOML in UTF-8",
                _ => "look at the path and its permissions",
            };
            Failure::new(3, format!("cannot read {shown}: {e}"), hint)
        })?;
    if text.len() as u64 > FILE_MAX {
        let error = format!("{shown} has more than {FILE_MAX} bytes");
        return Err(Failure::new(2, error, "is it the configuration of a server?"));
    }
    let written: Written = toml::from_str(&text).map_err(|e| {
        // Says line, column and what was expected; the file holds no secret.
        let error = format!("{shown}: {}", e.to_string().trim_end());
        Failure::new(2, error, "claviger server run --help names the fields")
    })?;
    for name in written.names.iter().chain(&written.public_names) {
        host(name)
            .map_err(|why| Failure::new(2, format!("{shown}: {name:?}: {why}"), "mend the file"))?;
    }
    Ok(written)
}

/// A name or an address that a certificate can be good for: it is kept in the database and told
/// to every client, so it is looked at before.
fn host(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = text.len() <= 253 && text.split('.').all(label);
    if name || text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    Err("expected a DNS name or an IP address, without port".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str, given: Given) -> Result<Config, Failure> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("server.toml");
        std::fs::write(&path, text).expect("writes");
        Config::of(Given { config: Some(path), ..given })
    }

    #[test]
    fn flags_count_for_more_than_the_file() {
        let text =
            "data = \"/var/lib/claviger\"\nlisten = \"[::]:8443\"\nnames = [\"a.example\"]\n";
        let config = with(text, Given::default()).unwrap_or_else(|_| panic!("refused"));
        assert_eq!(config.data, Path::new("/var/lib/claviger"));
        assert_eq!(config.listen, "[::]:8443".parse().expect("an address"));
        assert_eq!(config.names, ["a.example"]);
        let given = Given {
            data: Some("/srv".into()),
            names: vec!["b.example".to_owned()],
            ..Given::default()
        };
        let config = with(text, given).unwrap_or_else(|_| panic!("refused"));
        assert_eq!(
            (config.data.as_path(), config.names[0].as_str()),
            (Path::new("/srv"), "b.example")
        );
        assert_eq!(config.listen, "[::]:8443".parse().expect("an address"), "of the file still");
    }

    #[test]
    fn what_is_not_known_or_not_whole_is_refused() {
        for (text, code) in [
            ("dta = \"/srv\"", 2),
            ("data = 7", 2),
            ("data = \"/srv\"\nlisten = \"8443\"", 2),
            ("data = \"/srv\"\nnames = [\"https://x\"]", 2),
            ("data = \"/srv\"\npublic_names = [\"x\"]", 2),
            ("listen = \"127.0.0.1:1\"", 2),
            ("data = ", 2),
        ] {
            let refused = with(text, Given::default()).err();
            assert_eq!(refused.map(|f| f.code), Some(code), "{text}");
        }
        let absent = Given { config: Some("/nowhere/x.toml".into()), ..Given::default() };
        assert_eq!(Config::of(absent).err().map(|f| f.code), Some(3));
    }
}
