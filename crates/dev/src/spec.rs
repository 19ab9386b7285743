//! What a development cluster is: chosen when its directory is made, kept there.

use crate::binaries::Minor;
use crate::error::DevError;
use crate::files;
use crate::layout::Layout;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

/// API servers that one machine can be asked for: one, the three of a usual control plane, or the
/// five of a large one.
const MAX_APISERVERS: u32 = 5;
/// Where ports are chosen from: below the range that Linux gives to outgoing connections, so
/// that none of them is on a port when a part is restarted.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Tries to find one free port.
const PORT_TRIES: u32 = 1000;

/// What `dev up` was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of the cluster.
    pub dir: PathBuf,
    /// Kubernetes minor; none takes what the directory has, or the newest.
    pub kubernetes: Option<Minor>,
    /// Number of API servers; none takes what the directory has, or one.
    pub apiservers: Option<u32>,
    /// API servers start without any encryption flag.
    pub bare: bool,
    /// Only the key server, with Key Protect's waiting times.
    pub only_key_service: bool,
    /// The program that is server and agent: `claviger` itself.
    pub program: PathBuf,
}

/// `dev.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Name of the cluster in the key server.
    pub name: String,
    /// Kubernetes minor.
    pub kubernetes: Minor,
    /// Number of API servers, each with an agent.
    pub apiservers: u32,
    /// Whether the API servers start without any encryption flag.
    pub bare: bool,
    /// Whether there is only the key server.
    pub only_key_service: bool,
    /// Short directory of the sockets.
    pub sockets: PathBuf,
}

/// `ports.json`: all on 127.0.0.1, kept so that restarts find the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ports {
    /// etcd for clients.
    pub etcd: u16,
    /// etcd for its peers, of which it has none.
    pub etcd_peer: u16,
    /// The key server's private listener.
    pub server: u16,
    /// Its public one; 0 in a directory that was made before there was one.
    #[serde(default)]
    pub server_public: u16,
    /// The API servers, in order.
    pub apiservers: Vec<u16>,
}

impl Spec {
    /// Reads what the directory holds and holds the wishes against it; writes it if it is new.
    pub fn settle(options: &Options, layout: &Layout) -> Result<Self, DevError> {
        let wanted = options.apiservers.unwrap_or(1);
        if !(1..=MAX_APISERVERS).contains(&wanted) {
            return Err(DevError::refused(
                format!("{wanted} API servers cannot be: 1 to {MAX_APISERVERS}"),
                "most clusters have 1 or 3",
            ));
        }
        if let Some(found) = Self::read(layout)? {
            found.agree(options, layout)?;
            return Ok(found);
        }
        files::make_dir(&layout.dir)?;
        let spec = Self {
            name: "dev".to_owned(),
            kubernetes: options.kubernetes.unwrap_or_default(),
            apiservers: wanted,
            bare: options.bare,
            only_key_service: options.only_key_service,
            sockets: layout.choose_sockets(),
        };
        files::write_json(&layout.spec(), &spec)?;
        Ok(spec)
    }

    /// Reads it; none if the directory holds no cluster.
    pub fn read(layout: &Layout) -> Result<Option<Self>, DevError> {
        files::read_json(&layout.spec())
    }

    fn agree(&self, options: &Options, layout: &Layout) -> Result<(), DevError> {
        let differs = |what: String| {
            DevError::refused(
                format!("{} holds a cluster {what}", layout.dir.display()),
                format!(
                    "choose another --dir, or end that cluster for good: claviger dev down \
                     --purge --dir {}",
                    layout.dir.display()
                ),
            )
        };
        if options.kubernetes.is_some_and(|wanted| wanted != self.kubernetes) {
            return Err(differs(format!("of Kubernetes {}", self.kubernetes)));
        }
        if options.apiservers.is_some_and(|wanted| wanted != self.apiservers) {
            return Err(differs(format!("of {} API server(s)", self.apiservers)));
        }
        if options.bare && !self.bare {
            return Err(differs("whose API servers have encryption flags".to_owned()));
        }
        if options.only_key_service != self.only_key_service {
            let what = if self.only_key_service { "that is only" } else { "with more than" };
            return Err(differs(format!("{what} a key server")));
        }
        Ok(())
    }
}

impl Ports {
    /// Reads the ports of a directory, or chooses free ones.
    pub fn settle(spec: &Spec, layout: &Layout) -> Result<Self, DevError> {
        if let Some(mut ports) = files::read_json::<Self>(&layout.ports())? {
            if ports.server_public == 0 {
                ports.server_public = choose(&mut Vec::new())?;
                files::write_json(&layout.ports(), &ports)?;
            }
            return Ok(ports);
        }
        // All stay taken until all are chosen, so that none comes twice.
        let mut taken = Vec::new();
        let mut free = || choose(&mut taken);
        let ports = Self {
            etcd: free()?,
            etcd_peer: free()?,
            server: free()?,
            server_public: free()?,
            apiservers: (0..spec.apiservers).map(|_| free()).collect::<Result<_, _>>()?,
        };
        files::write_json(&layout.ports(), &ports)?;
        Ok(ports)
    }
}

fn choose(taken: &mut Vec<TcpListener>) -> Result<u16, DevError> {
    for _ in 0..PORT_TRIES {
        let random = uuid::Uuid::new_v4();
        let number = u16::from_le_bytes([random.as_bytes()[0], random.as_bytes()[1]]);
        let port = PORTS.start + number % (PORTS.end - PORTS.start);
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            taken.push(listener);
            return Ok(port);
        }
    }
    Err(DevError::refused(
        format!("no free port on 127.0.0.1 between {} and {}", PORTS.start, PORTS.end),
        "end some programs that listen, then run the same again",
    ))
}

/// Fails when somebody else listens where a part is about to.
pub fn check_port(part: &str, port: u16) -> Result<(), DevError> {
    // A part that was just killed leaves connections behind that block a plain bind, which is
    // why std sets SO_REUSEADDR here, as the parts themselves do.
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => Err(DevError::refused(
            format!("port {port} on 127.0.0.1, which {part} is to listen on, is taken"),
            "end the program that holds it (ss -ltnp shows it); it is tried again meanwhile",
        )),
        Err(e) => Err(DevError::refused(format!("cannot listen on 127.0.0.1:{port}: {e}"), "")),
    }
}
