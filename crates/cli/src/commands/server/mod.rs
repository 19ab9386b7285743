//! `claviger server`: the key service, IAM and the cluster service in one process.

mod check;
mod config;
mod settings;

use crate::exit::{self, Done, Failure};
use crate::ids;
use crate::render::{Look, print_line, when};
use clap::Subcommand;
use claviger_crypto::Key32;
use claviger_custody::software::{self, KeyFileError, MASTER, RECOVERY, Software};
use claviger_domain::id::InstanceId;
use claviger_server::app::{App, Clock, Settings, SystemClock};
use claviger_server::backup::{self, BackupError};
use claviger_server::files;
use claviger_server::first::{self, StartError};
use claviger_server::listen::{self, Listeners};
use claviger_server::place;
use claviger_server::room;
use claviger_server::sure;
use claviger_server::tls;
use claviger_server::unlock::{self, UnlockError};
use claviger_store::{Store, StoreError};
use config::Given;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use settings::Config;
use std::fs::DirBuilder;
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use zeroize::Zeroizing;

/// Arguments of `claviger server`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    look: Look,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve until SIGTERM; the first start makes database, master key and CA
    Run(Box<Run>),
    /// Write database and master key into one encrypted file; the server may be running
    Backup(Backup),
    /// Bring a backup back into an empty directory
    Restore(Restore),
    /// Make a master key in a new file, to be given to a server by --master-key
    MasterKey(MasterKey),
    /// Print the description of everything that a server answers (OpenAPI 3.1, JSON)
    Openapi,
    /// Undo the policies allowedIP and allowedNetwork of an instance that keep everybody out of it;
    /// the server may be running
    Unlock(Unlock),
    /// Say that this machine's clock is right, where the server doubts it and so expires, shreds
    /// and purges nothing; the server may be running
    TrustClock(TrustClock),
}

#[derive(clap::Args)]
struct TrustClock {
    /// Directory of the database
    #[arg(long)]
    data: PathBuf,
}

#[derive(clap::Args)]
struct Unlock {
    /// Directory of the database
    #[arg(long)]
    data: PathBuf,
    /// Id (GUID or CRN) of the instance
    #[arg(long, value_name = "ID", value_parser = ids::instance)]
    instance: InstanceId,
}

#[derive(clap::Args)]
struct MasterKey {
    /// The new file, mode 0600; nothing is written over
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

#[derive(clap::Args)]
struct Backup {
    /// Directory of the database
    #[arg(long)]
    data: PathBuf,
    /// The new backup file
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// The recovery key under which it is encrypted; made if it is not there. Keep it on another
    /// machine: whoever has it and a backup has every root key
    #[arg(long, value_name = "FILE")]
    recovery_key: PathBuf,
    /// The master key file. Default: master.key in the data directory
    #[arg(long, value_name = "FILE")]
    master_key: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Restore {
    /// Directory for the database; nothing in it is overwritten
    #[arg(long)]
    data: PathBuf,
    /// The backup file
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The recovery key under which it was made
    #[arg(long, value_name = "FILE")]
    recovery_key: PathBuf,
    /// Where to put the master key. Default: master.key in the data directory
    #[arg(long, value_name = "FILE")]
    master_key: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Run {
    #[command(flatten)]
    given: Given,
    /// Only print what holds and where it comes from, and look whether it would start: settings,
    /// data directory, master key, database, ports
    #[arg(long)]
    check: bool,
}

/// Runs one of them.
pub fn run(args: Args) -> Done {
    let look = args.look;
    match args.verb {
        Verb::Run(args) => serve(*args, look),
        Verb::Backup(args) => back_up(args, look),
        Verb::Restore(args) => bring_back(args, look),
        Verb::Unlock(args) => unlock(args, look),
        Verb::MasterKey(args) => make_master_key(&args.to, look),
        Verb::TrustClock(args) => trust_clock(args, look),
        Verb::Openapi => {
            print_line(claviger_server::http::openapi().trim_end());
            Ok(())
        }
    }
}

fn serve(args: Run, look: Look) -> Done {
    let file = args.given.file().map(Path::to_owned);
    let (config, held) = args.given.settle()?;
    if args.check {
        return check::check(&config, &held, file.as_deref(), look);
    }
    let _traces = claviger_telemetry::init("claviger-server", config.otlp_endpoint.as_deref())
        .map_err(|e| Failure::new(2, e, "give --otlp-endpoint the collector's URL for HTTP"))?;
    let data = data_dir(&config.data)?;
    if is_new(&config)? && config.bootstrap.is_none() {
        shown_to_a_person()?;
    }
    backup::sweep(data).map_err(failed)?;
    let database = data.join(backup::DATABASE);
    // Before the master key: so a key without a database is always what is left of a server.
    let opened = Store::open(&database).map_err(store)?;
    let fresh = opened.read("fresh", |tx| claviger_store::meta::get(tx, "check")).map_err(store)?;
    let master = master_key(&config, fresh.is_none())?;
    for failed in claviger_crypto::harden::harden() {
        tracing::warn!("{failed}");
    }
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(room::THREADS)
        .build()
        .map_err(|e| {
            Failure::new(exit::UNREACHABLE, format!("the system gives no threads: {e}"), "")
        })?;
    runtime.block_on(async {
        let (private, address) = listener("--listen", config.listen).await?;
        let public = optional("--public-listen", config.public_listen).await?;
        let status = optional("--status-listen", config.status_listen).await?;
        let (public_address, status_address) = (address_of(&public), address_of(&status));
        let settings = settings(&config, address, public_address);
        let custodian = Arc::new(Software::new(&master));
        drop(master);
        let app = App::new(opened, custodian, Arc::new(SystemClock), settings).map_err(start)?;
        let tls = tls::config(&app).map_err(start)?;
        tell(&app, &config)?;
        tracing::info!(%address, url = app.settings.url, ca_sha256 = app.authority.fingerprint(), "listening");
        if let (Some(address), Some(url)) = (public_address, &app.settings.public_url) {
            tracing::info!(%address, url, "listening publicly");
        }
        if let Some(address) = status_address {
            tracing::info!(%address, "status is told in plain HTTP");
        }
        let (public, status) = (public.map(|(l, _)| l), status.map(|(l, _)| l));
        listen::serve(app, tls, Listeners { private, public, status }, async {
            match claviger_telemetry::asked_to_stop().await {
                Ok(signal) => tracing::info!(signal, "stopping"),
                Err(e) => tracing::error!(error = %e, "signals cannot be received; stopping"),
            }
        })
        .await;
        Ok(())
    })
}

/// File descriptors besides those of connections: database readers, log, epoll.
const OTHER_DESCRIPTORS: u64 = 256;

/// Takes as many file descriptors as this user may have: the usual soft limit of 1024 is fewer
/// than the connections that the server takes, and then agents would be refused for strangers.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = listen::CONNECTIONS as u64 + OTHER_DESCRIPTORS;
    if limit.current.is_none_or(|now| now >= wanted) {
        return;
    }
    let most = limit.maximum.map_or(wanted, |most| most.min(wanted));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit });
    if raised.is_err() || most < wanted {
        tracing::warn!(
            wanted,
            most,
            "this user may not open as many files as the server takes connections; raise LimitNOFILE"
        );
    }
}

fn make_master_key(to: &Path, look: Look) -> Done {
    let _ = claviger_crypto::harden::harden();
    if to.exists() {
        let error = format!("{} is there already", to.display());
        return Err(Failure::new(exit::USAGE, error, "give another path; a key is never replaced"));
    }
    software::write_key(to, MASTER, &Key32::generate()).map_err(master)?;
    look.answer(&json!({ "master_key": to }), || {
        vec![
            format!("master key: {}", to.display()),
            "keep a copy where no copy of the database is; without it the database is lost"
                .to_owned(),
        ]
    });
    Ok(())
}

fn back_up(args: Backup, look: Look) -> Done {
    let _ = claviger_crypto::harden::harden();
    let path = &args.recovery_key;
    // Before a recovery key is made for nothing.
    if args.to.exists() || args.to == *path {
        return Err(failed(BackupError::Exists(args.to)));
    }
    let mut made = Vec::new();
    let recovery = if path.exists() {
        software::read_key(path, RECOVERY).map_err(master)?
    } else {
        let key = Key32::generate();
        software::write_key(path, RECOVERY, &key).map_err(master)?;
        made.push(format!("made a recovery key: {}", path.display()));
        made.push("move it to another machine; without it the backup cannot be opened".to_owned());
        key
    };
    let master_key = args.master_key.unwrap_or_else(|| args.data.join(place::MASTER_KEY));
    let now = SystemClock.now();
    let length = backup::make(&args.data, &master_key, &recovery, &args.to, now).map_err(failed)?;
    let answer = json!({
        "backup": args.to, "database_bytes": length, "made_recovery_key": !made.is_empty(),
    });
    look.answer(&answer, || {
        let to = args.to.display();
        made.push(format!("backup: {to} ({length} bytes of database, read back and checked)"));
        made
    });
    Ok(())
}

fn bring_back(args: Restore, look: Look) -> Done {
    let _ = claviger_crypto::harden::harden();
    let recovery = software::read_key(&args.recovery_key, RECOVERY).map_err(master)?;
    data_dir(&args.data)?;
    let master_key = args.master_key.unwrap_or_else(|| args.data.join(place::MASTER_KEY));
    backup::restore(&args.data, &master_key, &recovery, &args.from).map_err(failed)?;
    let (from, data) = (args.from.display(), args.data.display());
    look.answer(&json!({ "restored": args.from, "data": args.data }), || {
        vec![
            format!("restored {from} into {data}"),
            format!("start it with: claviger server run --data {data}"),
        ]
    });
    Ok(())
}

/// The one whose files these are, or who may write them all the same.
fn host() -> String {
    format!("host-uid-{}", rustix::process::getuid().as_raw())
}

fn trust_clock(args: TrustClock, look: Look) -> Done {
    let now = SystemClock.now();
    sure::trust_clock(&args.data.join(backup::DATABASE), &host(), now).map_err(start)?;
    look.answer(&json!({ "trusted": now.0 }), || {
        vec![format!("the server takes it that the time is {}", when(now))]
    });
    Ok(())
}

fn unlock(args: Unlock, look: Look) -> Done {
    let database = args.data.join(backup::DATABASE);
    let by = host();
    let opened = unlock::unlock(&database, args.instance, &by, SystemClock.now());
    let opened = opened.map_err(|e| match e {
        UnlockError::Store(e) => store(e),
        UnlockError::Start(e) => start(e),
        e @ UnlockError::NoInstance(_) => {
            Failure::new(exit::USAGE, e, "is --data the directory of this instance's server?")
        }
    })?;
    let opened: Vec<String> = opened.iter().map(ToString::to_string).collect();
    look.answer(&json!({ "switched_off": opened }), || match &opened[..] {
        [] => {
            vec!["no policy keeps anybody out of this instance; nothing was changed".to_owned()]
        }
        all => all.iter().map(|policy| format!("switched off: {policy}")).collect(),
    });
    Ok(())
}

fn failed(e: BackupError) -> Failure {
    let hint = match &e {
        BackupError::Key(KeyFileError::File { .. }) => {
            "is --data the server's data directory? --master-key names the key file elsewhere"
        }
        BackupError::Key(_) => {
            "the recovery key and master key files hold one line each, mode 0600"
        }
        BackupError::Exists(_) => "give another path, or move what is there away",
        BackupError::Busy(_) => "wait for it to end; one that was killed holds nothing",
        BackupError::Broken { .. } => "nothing was restored; try another copy of the backup",
        BackupError::Apart(_) => "give --master-key the file that was made with this database",
        BackupError::Unnoted { .. } => "keep it; only the warning that no backup was made goes on",
        BackupError::File { source, .. } if source.kind() == ErrorKind::Unsupported => {
            "that file system has no hard links: write to another disk, and copy the file"
        }
        BackupError::File { source, .. } if source.raw_os_error() == Some(1) => {
            "that file system may have no hard links: write to another disk, and copy the file"
        }
        BackupError::File { .. } | BackupError::Store(_) => {
            "look at the path, its permissions and the space on its disk"
        }
    };
    let code = match &e {
        BackupError::Broken { .. }
        | BackupError::Apart(_)
        | BackupError::Exists(_)
        | BackupError::Busy(_) => exit::NO,
        _ => exit::UNREACHABLE,
    };
    Failure::new(code, e, hint)
}

fn data_dir(data: &Path) -> Result<&Path, Failure> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(data).map_err(|e| {
        let error = format!("cannot make the data directory {}: {e}", data.display());
        Failure::new(exit::UNREACHABLE, error, "give --data a directory that this user may write")
    })?;
    check::warn_if_others_may_write(data);
    Ok(data)
}

fn settings(config: &Config, address: SocketAddr, public: Option<SocketAddr>) -> Settings {
    let settings = Settings {
        names: names(config, [Some(address), public]),
        url: url(&config.names, address),
        public_url: public.map(|address| url(&config.public_names, address)),
        login: config.login.clone(),
        certificate: config.certificate.clone(),
        audit: config.audit.clone(),
        calls_per_second: config.calls_per_second,
        agent_calls_per_second: config.agent_calls_per_second,
        trusted_proxies: config.trusted_proxies.clone(),
        ..Settings::default()
    };
    if config.no_waits { settings.without_waits() } else { settings }
}

/// All that clients may come by: names that are given, and addresses that others can reach.
fn names(config: &Config, addresses: [Option<SocketAddr>; 2]) -> Vec<String> {
    let mut names = config.names.clone();
    names.extend(config.public_names.iter().cloned());
    for ip in addresses.into_iter().flatten().map(|address| address.ip()) {
        if !ip.is_unspecified() && !ip.is_loopback() {
            names.push(ip.to_string());
        }
    }
    names
}

/// The base URL of a listener: by its first name if it has one.
fn url(names: &[String], address: SocketAddr) -> String {
    let host = match (names.first(), address.ip()) {
        (Some(name), _) => name.clone(),
        (None, ip) if ip.is_unspecified() => "localhost".to_owned(),
        (None, ip) => ip.to_string(),
    };
    if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
        return format!("https://[{host}]:{}", address.port());
    }
    format!("https://{host}:{}", address.port())
}

fn is_new(config: &Config) -> Result<bool, Failure> {
    place::is_new(&config.data, config.master_key.is_some()).map_err(|lost| {
        let hint = if lost.remains.ends_with(place::MASTER_KEY) {
            "bring the database back, or restore a backup into an empty directory; if this key was made for a new server, name it by --master-key"
        } else {
            "bring the database back, with its -wal file, or restore a backup into an empty directory; nothing was changed"
        };
        Failure::new(exit::UNREACHABLE, lost, hint)
    })
}

fn master_key(config: &Config, fresh: bool) -> Result<Key32, Failure> {
    if let Some(fd) = config.master_key.as_deref().and_then(|text| text.strip_prefix("fd:")) {
        return from_descriptor(fd);
    }
    let given = config.master_key.as_ref().map(PathBuf::from);
    let path = given.unwrap_or_else(|| config.data.join(place::MASTER_KEY));
    if !path.exists() {
        if !fresh {
            return Err(Failure::new(
                exit::UNREACHABLE,
                format!("the master key file {} is not there", path.display()),
                "bring it back, or restore a backup; without it this database cannot be opened",
            ));
        }
        software::write_key(&path, MASTER, &Key32::generate()).map_err(master)?;
        tracing::info!(file = %path.display(), "made a master key");
    }
    software::read_key(&path, MASTER).map_err(master)
}

fn from_descriptor(fd: &str) -> Result<Key32, Failure> {
    let wrong =
        |why: String| Failure::new(exit::USAGE, why, "for example: --master-key fd:3 3<master.key");
    let number: u32 = fd.parse().map_err(|_| wrong(format!("fd:{fd} names no file descriptor")))?;
    let mut text = Zeroizing::new(Vec::with_capacity(256));
    std::fs::File::open(format!("/dev/fd/{number}"))
        .and_then(|file| file.take(256).read_to_end(&mut text))
        .map_err(|e| wrong(format!("cannot read the master key from descriptor {number}: {e}")))?;
    software::parse_key(&text, MASTER)
        .ok_or_else(|| wrong(format!("descriptor {number} does not hold a master key")))
}

/// Refuses to print an API key where no person reads it: a journal or a file would keep it.
fn shown_to_a_person() -> Done {
    if std::io::stdout().is_terminal() {
        return Ok(());
    }
    let error = "the first start tells the administrator's API key, and standard output is no terminal: a log would keep it";
    Err(Failure::new(exit::USAGE, error, "name a file for it: --bootstrap FILE"))
}

/// Hands the administrator's API key over, at the first start.
fn tell(app: &App, config: &Config) -> Done {
    let fingerprint = app.authority.fingerprint();
    // Nobody needs to read this for the server to run.
    let say = |text: String| drop(writeln!(std::io::stdout(), "{text}"));
    say(format!("url: {}", app.settings.url));
    if let Some(url) = &app.settings.public_url {
        say(format!("public-url: {url}"));
    }
    say(format!("ca-sha256: {fingerprint}"));
    let Some(bootstrap) = first::bootstrap(app).map_err(start)? else { return Ok(()) };
    match &config.bootstrap {
        Some(path) => {
            // One of ours may be there, of a start that was cut off before this was noted.
            let ours = |text: Vec<u8>| {
                let ids = bootstrap.instances.iter().map(|instance| instance.id.to_string());
                let text = Zeroizing::new(text);
                let text = String::from_utf8_lossy(&text).into_owned();
                ids.into_iter().all(|id| text.contains(&id))
            };
            if path.exists() && !std::fs::read(path).is_ok_and(ours) {
                let error = format!("{} is there already, and not of this server", path.display());
                return Err(Failure::new(
                    exit::UNREACHABLE,
                    error,
                    "name another file by --bootstrap",
                ));
            }
            let text = Zeroizing::new(
                serde_json::to_vec_pretty(&bootstrap)
                    .map_err(|e| Failure::new(exit::FAULT, e, ""))?,
            );
            files::write_private(path, &text).map_err(|e| {
                let error = format!("cannot write {}: {e}", path.display());
                Failure::new(
                    exit::UNREACHABLE,
                    error,
                    "give --bootstrap a path that this user may write",
                )
            })?;
            say(format!("bootstrap: {}", path.display()));
        }
        None => {
            shown_to_a_person()?;
            for instance in &bootstrap.instances {
                say(format!("instance: {} {}", instance.id, instance.name));
            }
            let shown = writeln!(
                std::io::stdout(),
                "api-key: {}\nthe API key is shown this once; keep it in a password store",
                bootstrap.api_key
            );
            shown.map_err(|e| {
                let error = format!("cannot print the administrator's API key: {e}");
                Failure::new(exit::UNREACHABLE, error, "start it again with --bootstrap FILE")
            })?;
        }
    }
    first::delivered(app).map_err(store)
}

/// What to do about the files of --tls-certificate and --tls-key.
const TLS_HINT: &str = "give --tls-certificate a chain of PEM certificates for a --name or \
    --public-name, and --tls-key the private key of the first one, which others may not read";

type Bound = (TcpListener, SocketAddr);

fn address_of(bound: &Option<Bound>) -> Option<SocketAddr> {
    bound.as_ref().map(|(_, address)| *address)
}

async fn optional(flag: &str, asked: Option<SocketAddr>) -> Result<Option<Bound>, Failure> {
    match asked {
        Some(asked) => listener(flag, asked).await.map(Some),
        None => Ok(None),
    }
}

/// Listens, and says where.
async fn listener(flag: &str, asked: SocketAddr) -> Result<Bound, Failure> {
    let bound = TcpListener::bind(asked).await.and_then(|listener| {
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    bound.map_err(|e| bind(flag, asked, e))
}

fn bind(flag: &str, asked: SocketAddr, e: std::io::Error) -> Failure {
    let (error, hint) = match e.kind() {
        ErrorKind::AddrInUse => (
            format!("another program listens on {asked}"),
            format!("stop it, or give another {flag} address; port 0 picks a free one"),
        ),
        ErrorKind::PermissionDenied => (
            format!("this user may not listen on {asked}"),
            format!("ports below 1024 need CAP_NET_BIND_SERVICE; give another {flag} address"),
        ),
        _ => (format!("cannot listen on {asked}: {e}"), format!("give another {flag} address")),
    };
    Failure::new(exit::UNREACHABLE, error, hint)
}

fn master(e: KeyFileError) -> Failure {
    let hint = match &e {
        KeyFileError::Form { .. } => "is it the file of another key?",
        _ => "a key file must be readable by its user alone",
    };
    Failure::new(exit::UNREACHABLE, e, hint)
}

fn store(e: StoreError) -> Failure {
    let hint = match &e {
        StoreError::InUse(_) => "stop the other server, or give another --data directory",
        StoreError::Newer { .. } | StoreError::Older { .. } => "",
        e if e.is_disk() => "free space on the disk, or make it writable",
        _ => "look at the data directory and its permissions",
    };
    Failure::new(exit::UNREACHABLE, e, hint)
}

fn start(e: StartError) -> Failure {
    match e {
        StartError::Store(e) => store(e),
        StartError::MasterKey => Failure::new(
            exit::UNREACHABLE,
            StartError::MasterKey,
            "give --master-key the file that was made with this database",
        ),
        e @ StartError::Certificate(_) => {
            Failure::new(exit::USAGE, e, "is every --name a DNS name or an IP address?")
        }
        e @ StartError::Files(_) => Failure::new(exit::UNREACHABLE, e, TLS_HINT),
        e => Failure::new(exit::UNREACHABLE, e, ""),
    }
}
