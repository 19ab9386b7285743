//! Every setting of a server, once: its flag, its variable and its field in the file are made out
//! of this list.

use claviger_audit::Durability;
use claviger_server::app::{
    AGENT_CALLS_PER_SECOND, AuditSettings, CALLS_PER_SECOND, CheckpointSink, LoginIssuer,
    LoginSettings,
};
use claviger_server::http::network::Subnet;
use claviger_server::tls::CertificateFiles;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8443);
/// Fewest days that records of the audit log are kept, if they are not kept for good.
const KEEP_DAYS_MIN: u32 = 1;
/// Least room that the audit log is given, in MiB: a segment has up to 64.
const KEEP_MIB_MIN: u32 = 128;

/// What a server is started with.
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
    pub(super) certificate: Option<CertificateFiles>,
    pub(super) login: LoginSettings,
    pub(super) otlp_endpoint: Option<String>,
    pub(super) audit: AuditSettings,
    pub(super) calls_per_second: u32,
    pub(super) agent_calls_per_second: u32,
    pub(super) trusted_proxies: Vec<Subnet>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: PathBuf::new(),
            listen: LISTEN,
            names: Vec::new(),
            public_listen: None,
            public_names: Vec::new(),
            status_listen: None,
            no_waits: false,
            bootstrap: None,
            master_key: None,
            certificate: None,
            login: LoginSettings::default(),
            otlp_endpoint: None,
            audit: AuditSettings::default(),
            calls_per_second: CALLS_PER_SECOND,
            agent_calls_per_second: AGENT_CALLS_PER_SECOND,
            trusted_proxies: Vec::new(),
        }
    }
}

/// How many values a setting has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// True or false; a flag without a value.
    Switch,
    /// One, named so in the help.
    One(&'static str),
    /// Any number, each named so; parted by commas in a flag or variable, an array in the file.
    Many(&'static str),
}

/// A setting.
pub(super) struct Setting {
    /// Its field in the file.
    pub(super) name: &'static str,
    /// Its flag, without the dashes.
    pub(super) flag: &'static str,
    /// Its environment variable.
    pub(super) variable: &'static str,
    pub(super) kind: Kind,
    /// For `--help`.
    pub(super) help: &'static str,
    /// What holds if it is not given; empty where the help says so.
    pub(super) default: &'static str,
    /// Takes one value of it up.
    pub(super) take: fn(&mut Config, &str) -> Result<(), String>,
}

/// All there are, in the order in which they are shown.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        name: "data",
        flag: "data",
        variable: "CLAVIGER_SERVER_DATA",
        kind: Kind::One("DATA"),
        help: "Directory of the database; made if it is not there",
        default: "",
        take: |config, text| path(text).map(|path| config.data = path),
    },
    Setting {
        name: "listen",
        flag: "listen",
        variable: "CLAVIGER_SERVER_LISTEN",
        kind: Kind::One("ADDRESS"),
        help: "Address and port of the private listener; port 0 picks a free one",
        default: "127.0.0.1:8443",
        take: |config, text| address(text).map(|address| config.listen = address),
    },
    Setting {
        name: "names",
        flag: "name",
        variable: "CLAVIGER_SERVER_NAME",
        kind: Kind::Many("DNS"),
        help: "A further name or address for which the server's certificate is good; the first \
               one is the name that clients are told",
        default: "",
        take: |config, text| host(text).map(|name| config.names.push(name)),
    },
    Setting {
        name: "public_listen",
        flag: "public-listen",
        variable: "CLAVIGER_SERVER_PUBLIC_LISTEN",
        kind: Kind::One("ADDRESS"),
        help: "Address and port of a public listener; none if not given. Instances whose policy \
               allowedNetwork is private-only are refused there",
        default: "",
        take: |config, text| address(text).map(|address| config.public_listen = Some(address)),
    },
    Setting {
        name: "public_names",
        flag: "public-name",
        variable: "CLAVIGER_SERVER_PUBLIC_NAME",
        kind: Kind::Many("DNS"),
        help: "A name or address of the public listener, like --name",
        default: "",
        take: |config, text| host(text).map(|name| config.public_names.push(name)),
    },
    Setting {
        name: "status_listen",
        flag: "status-listen",
        variable: "CLAVIGER_SERVER_STATUS_LISTEN",
        kind: Kind::One("ADDRESS"),
        help: "Address and port of plain HTTP for probes and Prometheus: /healthz, /readyz, \
               /metrics. It tells nothing secret but asks for no token: keep it on loopback or a \
               private network",
        default: "",
        take: |config, text| address(text).map(|address| config.status_listen = Some(address)),
    },
    Setting {
        name: "no_waits",
        flag: "no-waits",
        variable: "CLAVIGER_SERVER_NO_WAITS",
        kind: Kind::Switch,
        help: "No waiting times after disable and rotate; for trying things out",
        default: "",
        take: |config, text| switch(text).map(|no_waits| config.no_waits = no_waits),
    },
    Setting {
        name: "bootstrap",
        flag: "bootstrap",
        variable: "CLAVIGER_SERVER_BOOTSTRAP",
        kind: Kind::One("FILE"),
        help: "Where the first start writes account, instances, CA and the administrator's API \
               key (JSON, mode 0600); printed if not given",
        default: "",
        take: |config, text| path(text).map(|path| config.bootstrap = Some(path)),
    },
    Setting {
        name: "master_key",
        flag: "master-key",
        variable: "CLAVIGER_SERVER_MASTER_KEY_FILE",
        kind: Kind::One("FILE"),
        help: "The master key: a file of mode 0600, or fd:N for an open file descriptor. Default: \
               master.key in the data directory, made at the first start. Whoever has this file \
               and the database has every root key: keep it on another disk",
        default: "",
        take: |config, text| path(text).map(|_| config.master_key = Some(text.to_owned())),
    },
    Setting {
        name: "tls_certificate",
        flag: "tls-certificate",
        variable: "CLAVIGER_SERVER_TLS_CERTIFICATE",
        kind: Kind::One("FILE"),
        help: "A certificate of your own and those that lead from it to its root (PEM), for \
               clients that come by one of its DNS names; all others, and agents that are to trust \
               the built-in CA, come by another name. Taken up anew when the file changes, or by \
               SIGHUP",
        default: "",
        take: |config, text| path(text).map(|path| certificate(config).chain = path),
    },
    Setting {
        name: "tls_key",
        flag: "tls-key",
        variable: "CLAVIGER_SERVER_TLS_KEY",
        kind: Kind::One("FILE"),
        help: "The private key of --tls-certificate (PEM), which others may not read",
        default: "",
        take: |config, text| path(text).map(|path| certificate(config).key = path),
    },
    Setting {
        name: "login_issuers",
        flag: "login-issuer",
        variable: "CLAVIGER_SERVER_LOGIN_ISSUERS",
        kind: Kind::Many("ISSUER"),
        help: "An OpenID Connect issuer whose people come in by claviger login: its URL, the id by \
               which it knows claviger, and where its keys are if discovery does not say, parted by \
               blanks. Nobody else's ID tokens are believed",
        default: "",
        take: |config, text| {
            let issuer = issuer(text)?;
            if config.login.issuers.iter().any(|other| other.issuer == issuer.issuer) {
                return Err(format!("{} is named twice", issuer.issuer));
            }
            config.login.issuers.push(issuer);
            Ok(())
        },
    },
    Setting {
        name: "login_ca",
        flag: "login-ca",
        variable: "CLAVIGER_SERVER_LOGIN_CA",
        kind: Kind::One("FILE"),
        help: "The CAs of these issuers (PEM); the system's if not given",
        default: "",
        take: |config, text| path(text).map(|path| config.login.ca = Some(path)),
    },
    Setting {
        name: "login_open",
        flag: "login-open",
        variable: "CLAVIGER_SERVER_LOGIN_OPEN",
        kind: Kind::Switch,
        help: "Let everybody in for whom such an issuer vouches, without any role. Otherwise only \
               those come in whom an administrator has let in by issuer and subject",
        default: "",
        take: |config, text| switch(text).map(|open| config.login.open = open),
    },
    Setting {
        name: "otlp_endpoint",
        flag: "otlp-endpoint",
        variable: "OTEL_EXPORTER_OTLP_ENDPOINT",
        kind: Kind::One("URL"),
        help: "Base URL of a collector that takes traces by OTLP over HTTP (protobuf), such as \
               http://localhost:4318; no traces if not given. OTEL_EXPORTER_OTLP_HEADERS and \
               OTEL_EXPORTER_OTLP_CERTIFICATE count, too",
        default: "",
        take: |config, text| endpoint(text).map(|url| config.otlp_endpoint = Some(url)),
    },
    Setting {
        name: "audit_durability",
        flag: "audit-durability",
        variable: "CLAVIGER_AUDIT_DURABILITY",
        kind: Kind::One("WHEN"),
        help: "When an act that changes nothing (a wrap, an unwrap, a read) counts as recorded \
               and is answered: synced, after its record is on disk; or written, after it was \
               handed to the system, so that loss of power may lose the records of the last 20 ms",
        default: "synced",
        take: |config, text| durability(text).map(|when| config.audit.durability = when),
    },
    Setting {
        name: "audit_checkpoints",
        flag: "audit-checkpoint",
        variable: "CLAVIGER_AUDIT_CHECKPOINTS",
        kind: Kind::Many("SINK"),
        help: "Where checkpoints of the audit log leave this machine, at least once a minute \
               while there are records: file:PATH, syslog:PATH (a socket such as /dev/log) or \
               syslog:udp:ADDRESS:PORT",
        default: "",
        take: |config, text| sink(text).map(|sink| config.audit.checkpoints.push(sink)),
    },
    Setting {
        name: "audit_keep_days",
        flag: "audit-keep-days",
        variable: "CLAVIGER_AUDIT_KEEP_DAYS",
        kind: Kind::One("DAYS"),
        help: "Remove segments of the audit log whose records are all older, at least 1; their \
               signed heads stay",
        default: "keep all",
        take: |config, text| {
            let days = at_least(KEEP_DAYS_MIN, "day", text)?;
            config.audit.keep = Some(Duration::from_secs(u64::from(days) * 86_400));
            Ok(())
        },
    },
    Setting {
        name: "audit_keep_mib",
        flag: "audit-keep-mib",
        variable: "CLAVIGER_AUDIT_KEEP_MIB",
        kind: Kind::One("MIB"),
        help: "Remove the oldest segments of the audit log until it has so many MiB, at least 128",
        default: "keep all",
        take: |config, text| {
            let mib = at_least(KEEP_MIB_MIN, "MiB", text)?;
            config.audit.keep_bytes = Some(u64::from(mib) << 20);
            Ok(())
        },
    },
    Setting {
        name: "calls_per_second",
        flag: "calls-per-second",
        variable: "CLAVIGER_CALLS_PER_SECOND",
        kind: Kind::One("CALLS"),
        help: "Calls of one person or service ID in each second, and twice as many at once; more \
               are answered 429. 0 sets no limit",
        default: "500",
        take: |config, text| calls(text).map(|calls| config.calls_per_second = calls),
    },
    Setting {
        name: "agent_calls_per_second",
        flag: "agent-calls-per-second",
        variable: "CLAVIGER_AGENT_CALLS_PER_SECOND",
        kind: Kind::One("CALLS"),
        help: "The same of one agent of a cluster: whatever clients do takes nothing of it",
        default: "200",
        take: |config, text| calls(text).map(|calls| config.agent_calls_per_second = calls),
    },
    Setting {
        name: "trusted_proxies",
        flag: "trusted-proxy",
        variable: "CLAVIGER_TRUSTED_PROXIES",
        kind: Kind::Many("CIDR"),
        help: "An address or a subnet (CIDR) of proxies that are believed who called them, by \
               X-Forwarded-For or Forwarded; the headers of anybody else count for nothing",
        default: "",
        take: |config, text| proxy(text).map(|proxy| config.trusted_proxies.push(proxy)),
    },
];

impl Setting {
    /// Whether `text` is a value of it.
    pub(super) fn parse(&self, text: &str) -> Result<String, String> {
        (self.take)(&mut Config::default(), text)?;
        Ok(text.to_owned())
    }
}

fn certificate(config: &mut Config) -> &mut CertificateFiles {
    let none = || CertificateFiles { chain: PathBuf::new(), key: PathBuf::new() };
    config.certificate.get_or_insert_with(none)
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("expected a path".to_owned()) } else { Ok(PathBuf::from(text)) }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected ADDRESS:PORT, for example 127.0.0.1:8443".to_owned())
}

fn switch(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "expected true or false".to_owned())
}

fn issuer(text: &str) -> Result<LoginIssuer, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (issuer, audience, jwks_url) = match words[..] {
        [issuer, audience] => (issuer, audience, None),
        [issuer, audience, jwks_url] => (issuer, audience, Some(jwks_url.to_owned())),
        _ => return Err("expected URL CLIENT-ID, or URL CLIENT-ID URL-OF-KEYS".to_owned()),
    };
    for url in [Some(issuer), jwks_url.as_deref()].into_iter().flatten() {
        if !claviger_server::iam::may_ask(url) {
            return Err(format!("{url} is no https:// URL"));
        }
    }
    Ok(LoginIssuer { issuer: issuer.to_owned(), audience: audience.to_owned(), jwks_url })
}

fn endpoint(text: &str) -> Result<String, String> {
    claviger_telemetry::traces::check_endpoint(text).map_err(|e| e.to_string())?;
    Ok(text.to_owned())
}

/// What is asked for must be enough: less is not silently raised.
fn at_least(least: u32, unit: &str, text: &str) -> Result<u32, String> {
    let wrong = || format!("expected a whole number, at least {least} {unit}");
    let number: i64 = text.parse().map_err(|_| wrong())?;
    if number < i64::from(least) {
        return Err(format!(
            "the audit log is kept for at least {least} {unit}; leave it out to keep all"
        ));
    }
    u32::try_from(number).map_err(|_| wrong())
}

fn calls(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "expected a whole number, 0 for no limit".to_owned())
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

    #[test]
    fn each_setting_has_names_of_its_own_and_a_default_that_is_one() {
        for (at, setting) in SETTINGS.iter().enumerate() {
            assert!(!setting.help.is_empty(), "{}", setting.name);
            for other in &SETTINGS[..at] {
                assert_ne!(setting.name, other.name);
                assert_ne!(setting.flag, other.flag);
                assert_ne!(setting.variable, other.variable);
            }
        }
        let listen = SETTINGS.iter().find(|s| s.name == "listen").expect("there");
        assert_eq!(listen.default, Config::default().listen.to_string());
        let synced = SETTINGS.iter().find(|s| s.name == "audit_durability").expect("there");
        assert_eq!(durability(synced.default), Ok(Config::default().audit.durability));
        let held = Config::default();
        for (name, is) in [
            ("calls_per_second", held.calls_per_second),
            ("agent_calls_per_second", held.agent_calls_per_second),
        ] {
            let setting = SETTINGS.iter().find(|s| s.name == name).expect("there");
            assert_eq!(setting.default, is.to_string(), "{name}");
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        let rows = [
            ("data", "/srv", true),
            ("data", "", false),
            ("listen", "[::]:1", true),
            ("listen", "8443", false),
            ("names", "keys.example", true),
            ("names", "https://x", false),
            ("names", "192.0.2.1", true),
            ("no_waits", "true", true),
            ("no_waits", "1", false),
            ("login_issuers", "https://i.example claviger", true),
            ("login_issuers", "https://i.example claviger https://i.example/keys", true),
            ("login_issuers", "https://i.example", false),
            ("login_issuers", "http://i.example claviger", false),
            ("login_issuers", "https://i.example claviger file:///keys", false),
            ("otlp_endpoint", "http://localhost:4318", true),
            ("otlp_endpoint", "localhost:4318", false),
            ("audit_durability", "written", true),
            ("audit_durability", "soon", false),
            ("audit_checkpoints", "file:/mnt/c", true),
            ("audit_checkpoints", "file:relative", false),
            ("audit_checkpoints", "syslog:/dev/log", true),
            ("audit_checkpoints", "syslog:udp:192.0.2.1:514", true),
            ("audit_checkpoints", "syslog:udp:nowhere", false),
            ("audit_checkpoints", "ftp:/x", false),
            ("audit_keep_days", "1", true),
            ("audit_keep_days", "0", false),
            ("audit_keep_days", "-3", false),
            ("audit_keep_days", "4294967296", false),
            ("audit_keep_mib", "128", true),
            ("audit_keep_mib", "127", false),
            ("calls_per_second", "0", true),
            ("calls_per_second", "-1", false),
            ("agent_calls_per_second", "7", true),
            ("agent_calls_per_second", "", false),
            ("trusted_proxies", "10.0.0.0/8", true),
            ("trusted_proxies", "2001:db8::1", true),
            ("trusted_proxies", "proxy.example", false),
            ("trusted_proxies", "10.0.0.0/33", false),
            ("trusted_proxies", "10.0.0.1:80", false),
        ];
        for (name, value, good) in rows {
            let setting = SETTINGS.iter().find(|s| s.name == name).expect("there");
            let parsed = setting.parse(value);
            assert_eq!(parsed.is_ok(), good, "{name} = {value}: {parsed:?}");
        }
    }
}
