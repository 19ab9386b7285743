//! What a server is started with: flags, environment and a file, in this order of weight.

use crate::exit::Failure;
use claviger_audit::Durability;
use claviger_server::app::{
    AGENT_CALLS_PER_SECOND, AuditSettings, CALLS_PER_SECOND, CheckpointSink,
};
use claviger_server::http::network::Subnet;
use serde::Deserialize;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Largest configuration file; a real one has some hundred bytes.
const FILE_MAX: u64 = 64 << 10;
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8443);

/// Flags and environment. What is not given comes from the file, or is the default.
#[derive(clap::Args, Default)]
pub(super) struct Given {
    /// A file of settings (TOML): data, listen, names, public_listen, public_names,
    /// status_listen, bootstrap, master_key, audit_durability, audit_checkpoints, audit_keep_days,
    /// audit_keep_mib, calls_per_second, agent_calls_per_second,
    /// trusted_proxies. Flags and environment count for more. A field that is not known is refused
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
    /// When an act that changes nothing (a wrap, an unwrap, a read) counts as recorded and is
    /// answered: synced, after its record is on disk; or written, after it was handed to the
    /// system, so that loss of power may lose the records of the last 20 ms [default: synced]
    #[arg(long, env = "CLAVIGER_AUDIT_DURABILITY", value_name = "WHEN", value_parser = durability)]
    audit_durability: Option<Durability>,
    /// Where checkpoints of the audit log leave this machine, at least once a minute while there
    /// are records: file:PATH, syslog:PATH (a socket such as /dev/log) or syslog:udp:ADDRESS:PORT
    #[arg(
        long = "audit-checkpoint",
        env = "CLAVIGER_AUDIT_CHECKPOINTS",
        value_name = "SINK",
        value_delimiter = ',',
        value_parser = sink
    )]
    audit_checkpoints: Vec<CheckpointSink>,
    /// Remove segments of the audit log whose records are all older; their signed heads stay
    /// [default: keep all]
    #[arg(long, env = "CLAVIGER_AUDIT_KEEP_DAYS", value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
    audit_keep_days: Option<u32>,
    /// Remove the oldest segments of the audit log until it has so many MiB [default: keep all]
    #[arg(long, env = "CLAVIGER_AUDIT_KEEP_MIB", value_name = "MIB", value_parser = clap::value_parser!(u32).range(128..))]
    audit_keep_mib: Option<u32>,
    /// Calls of one person or service ID in each second, and twice as many at once; more are
    /// answered 429. 0 sets no limit [default: 500]
    #[arg(long, env = "CLAVIGER_CALLS_PER_SECOND", value_name = "CALLS")]
    calls_per_second: Option<u32>,
    /// The same of one agent of a cluster: whatever clients do takes nothing of it [default: 200]
    #[arg(long, env = "CLAVIGER_AGENT_CALLS_PER_SECOND", value_name = "CALLS")]
    agent_calls_per_second: Option<u32>,
    /// An address or a subnet (CIDR) of proxies that are believed who called them, by
    /// X-Forwarded-For or Forwarded; the headers of anybody else count for nothing
    #[arg(
        long = "trusted-proxy",
        env = "CLAVIGER_TRUSTED_PROXIES",
        value_name = "CIDR",
        value_delimiter = ',',
        value_parser = proxy
    )]
    trusted_proxies: Vec<Subnet>,
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
    audit_durability: Option<String>,
    audit_checkpoints: Vec<String>,
    audit_keep_days: Option<u32>,
    audit_keep_mib: Option<u32>,
    calls_per_second: Option<u32>,
    agent_calls_per_second: Option<u32>,
    trusted_proxies: Vec<String>,
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
    pub(super) audit: AuditSettings,
    pub(super) calls_per_second: u32,
    pub(super) agent_calls_per_second: u32,
    pub(super) trusted_proxies: Vec<Subnet>,
}

impl Config {
    /// Puts both together. The file's directory plays no part: paths are the process's.
    pub(super) fn of(given: Given) -> Result<Self, Failure> {
        let written = given.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let either = |given: Vec<String>, written| if given.is_empty() { written } else { given };
        let audit = AuditSettings {
            durability: given.audit_durability.or(written.durability()?).unwrap_or_default(),
            checkpoints: match given.audit_checkpoints {
                none if none.is_empty() => written.checkpoints()?,
                given => given,
            },
            keep: given
                .audit_keep_days
                .or(written.audit_keep_days)
                .map(|days| Duration::from_secs(u64::from(days.max(1)) * 86_400)),
            keep_bytes: given
                .audit_keep_mib
                .or(written.audit_keep_mib)
                .map(|mib| u64::from(mib.max(128)) << 20),
        };
        let data = given.data.or(written.data).ok_or_else(|| {
            Failure::new(
                2,
                "the server has no data directory",
                "give --data DIR, or data = \"DIR\" in the file of --config",
            )
        })?;
        let config = Self {
            audit,
            data,
            listen: given.listen.or(written.listen).unwrap_or(LISTEN),
            names: either(given.names, written.names),
            public_listen: given.public_listen.or(written.public_listen),
            public_names: either(given.public_names, written.public_names),
            status_listen: given.status_listen.or(written.status_listen),
            no_waits: given.no_waits,
            bootstrap: given.bootstrap.or(written.bootstrap),
            master_key: given.master_key.or(written.master_key),
            calls_per_second: given
                .calls_per_second
                .or(written.calls_per_second)
                .unwrap_or(CALLS_PER_SECOND),
            agent_calls_per_second: given
                .agent_calls_per_second
                .or(written.agent_calls_per_second)
                .unwrap_or(AGENT_CALLS_PER_SECOND),
            trusted_proxies: match given.trusted_proxies {
                none if none.is_empty() => proxies(&written.trusted_proxies)?,
                given => given,
            },
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

impl Written {
    fn durability(&self) -> Result<Option<Durability>, Failure> {
        self.audit_durability.as_deref().map(durability).transpose().map_err(|why| {
            Failure::new(2, format!("audit_durability: {why}"), "mend the file of --config")
        })
    }

    fn checkpoints(&self) -> Result<Vec<CheckpointSink>, Failure> {
        let read = |text: &String| {
            sink(text).map_err(|why| {
                let error = format!("audit_checkpoints: {text:?}: {why}");
                Failure::new(2, error, "mend the file of --config")
            })
        };
        self.audit_checkpoints.iter().map(read).collect()
    }
}

fn proxies(written: &[String]) -> Result<Vec<Subnet>, Failure> {
    let read = |text: &String| {
        proxy(text).map_err(|why| {
            let error = format!("trusted_proxies: {text:?}: {why}");
            Failure::new(2, error, "mend the file of --config")
        })
    };
    written.iter().map(read).collect()
}

fn proxy(text: &str) -> Result<Subnet, String> {
    let one = || text.parse().ok().map(Subnet::of);
    let found = Subnet::parse(text).or_else(one);
    found.ok_or_else(|| "expected an address or a subnet such as 192.0.2.0/24".to_owned())
}

fn durability(text: &str) -> Result<Durability, String> {
    match text {
        "synced" => Ok(Durability::Synced),
        "written" => Ok(Durability::Written),
        _ => Err("expected synced or written".to_owned()),
    }
}

fn sink(text: &str) -> Result<CheckpointSink, String> {
    let absolute = |path: &str| {
        let path = PathBuf::from(path);
        if path.is_absolute() { Ok(path) } else { Err("the path must be absolute".to_owned()) }
    };
    match text.split_once(':') {
        Some(("file", path)) => absolute(path).map(CheckpointSink::File),
        Some(("syslog", to)) => match to.strip_prefix("udp:") {
            Some(address) => address
                .parse()
                .map(CheckpointSink::SyslogUdp)
                .map_err(|_| "expected syslog:udp:ADDRESS:PORT".to_owned()),
            None => absolute(to).map(CheckpointSink::Syslog),
        },
        _ => Err("expected file:PATH, syslog:PATH or syslog:udp:ADDRESS:PORT".to_owned()),
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

    #[test]
    fn limits_of_callers() {
        let limits = |text: &str, calls_per_second| {
            let given = Given { calls_per_second, ..Given::default() };
            let config = with(&format!("data = \"/d\"\n{text}"), given);
            let config = config.unwrap_or_else(|_| panic!("refused"));
            (config.calls_per_second, config.agent_calls_per_second)
        };
        assert_eq!(limits("", None), (500, 200));
        let text = "calls_per_second = 7\nagent_calls_per_second = 0\n";
        assert_eq!(limits(text, None), (7, 0));
        assert_eq!(limits(text, Some(0)), (0, 0));
        assert!(with("data = \"/d\"\ncalls_per_second = -1\n", Given::default()).is_err());
    }

    #[test]
    fn proxies_that_are_trusted() {
        let trusts = |text: &str, given: &[&str], address: &str| {
            let trusted_proxies = given.iter().map(|text| proxy(text).expect("a proxy")).collect();
            let given = Given { trusted_proxies, ..Given::default() };
            let config = with(&format!("data = \"/d\"\n{text}"), given);
            let config = config.unwrap_or_else(|_| panic!("refused"));
            let address = address.parse().expect("an address");
            config.trusted_proxies.iter().any(|proxy| proxy.has(address))
        };
        assert!(!trusts("", &[], "127.0.0.1"), "nobody, unless it is said");
        let text = "trusted_proxies = [\"10.0.0.0/8\", \"2001:db8::1\"]\n";
        assert!(trusts(text, &[], "10.1.2.3") && trusts(text, &[], "2001:db8::1"));
        assert!(!trusts(text, &[], "2001:db8::2"));
        assert!(
            !trusts(text, &["192.0.2.1"], "10.1.2.3") && trusts(text, &["192.0.2.1"], "192.0.2.1")
        );
        for bad in ["proxy.example", "10.0.0.0/33", "10.0.0.1:80"] {
            let text = format!("data = \"/d\"\ntrusted_proxies = [{bad:?}]\n");
            assert!(with(&text, Given::default()).is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_of_the_audit_log() {
        let text = "data = \"/d\"\naudit_durability = \"written\"\naudit_keep_days = 90\n\
            audit_checkpoints = [\"file:/mnt/c\", \"syslog:/dev/log\", \"syslog:udp:192.0.2.1:514\"]\n";
        let config = with(text, Given::default()).unwrap_or_else(|_| panic!("refused"));
        assert_eq!(config.audit.durability, Durability::Written);
        assert_eq!(config.audit.keep, Some(Duration::from_secs(90 * 86_400)));
        assert_eq!(config.audit.checkpoints.len(), 3);
        let given = Given { audit_durability: Some(Durability::Synced), ..Given::default() };
        let config = with(text, given).unwrap_or_else(|_| panic!("refused"));
        assert_eq!(config.audit.durability, Durability::Synced);
        for bad in [
            "audit_durability = \"soon\"",
            "audit_checkpoints = [\"file:relative\"]",
            "audit_checkpoints = [\"ftp:/x\"]",
            "audit_checkpoints = [\"syslog:udp:nowhere\"]",
        ] {
            assert!(with(&format!("data = \"/d\"\n{bad}\n"), Given::default()).is_err(), "{bad}");
        }
    }
}
