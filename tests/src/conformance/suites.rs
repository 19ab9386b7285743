//! What is run, and how.

use super::install::{self, GO_TEST};
use super::report::{self, Ran};
use super::{instances, process, root};
use crate::Outcome;
use crate::lab::Env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The Go client's package.
pub const GO_CLIENT: &str = "github.com/IBM/keyprotect-go-client";
/// The package of Portworx's secrets library that speaks Key Protect.
pub const SECRETS: &str = "github.com/libopenstorage/secrets/ibm";

/// A client, by the directory that pins it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// PyPI `keyprotect` 3.
    Python3,
    /// PyPI `keyprotect` 2, on `redstone`.
    Python2,
    /// npm `@ibm-cloud/ibm-key-protect`.
    Npm,
    /// Go `github.com/IBM/keyprotect-go-client`.
    Go,
    /// Go `github.com/libopenstorage/secrets`.
    Portworx,
    /// Go `github.com/IBM-Cloud/bluemix-go`.
    Bluemix,
}

impl Client {
    /// The name of its directory.
    pub fn directory(self) -> &'static str {
        match self {
            Client::Python3 => "python3",
            Client::Python2 => "python2",
            Client::Npm => "npm",
            Client::Go => "go",
            Client::Portworx => "portworx",
            Client::Bluemix => "bluemix",
        }
    }

    /// Where its versions and our driver lie.
    pub fn sources(self) -> PathBuf {
        root().join("conformance").join(self.directory())
    }
}

/// Where a suite runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Where it is told the server's address.
    Here,
    /// Where the cloud's names lead to the server.
    Cloud,
}

/// One suite.
#[derive(Debug)]
pub struct Suite {
    /// What it is called on the command line, and its directory.
    pub id: &'static str,
    /// The heading of its table.
    pub title: &'static str,
    /// Whose client it runs.
    pub client: Client,
    /// Where.
    pub place: Place,
    /// When it is given up.
    pub limit: Duration,
}

const fn suite(
    id: &'static str,
    title: &'static str,
    client: Client,
    place: Place,
    limit_s: u64,
) -> Suite {
    Suite { id, title, client, place, limit: Duration::from_secs(limit_s) }
}

/// Every suite. The limits are several times what they take on two busy cores: suites wait 30 s
/// up to three times.
pub static ALL: &[Suite] = &[
    suite(
        "python3-calls",
        "PyPI `keyprotect` 3.0.1: every call",
        Client::Python3,
        Place::Here,
        240,
    ),
    suite(
        "python3-integration",
        "PyPI `keyprotect` 3.0.1: its own `test/integration`",
        Client::Python3,
        Place::Here,
        300,
    ),
    suite(
        "python3-examples",
        "PyPI `keyprotect` 3.0.1: its own `examples`",
        Client::Python3,
        Place::Here,
        300,
    ),
    suite(
        "python2-calls",
        "PyPI `keyprotect` 2.3.1: every call",
        Client::Python2,
        Place::Here,
        240,
    ),
    suite(
        "python2-suite",
        "PyPI `keyprotect` 2.3.1: its own tests (redstone 0.6.2)",
        Client::Python2,
        Place::Cloud,
        300,
    ),
    suite(
        "python2-commands",
        "PyPI `keyprotect` 2.3.1: its commands `rs-keyprotect` and `rs-crypto`",
        Client::Python2,
        Place::Cloud,
        240,
    ),
    suite(
        "npm-calls",
        "npm `@ibm-cloud/ibm-key-protect` 0.1.2: every call",
        Client::Npm,
        Place::Here,
        240,
    ),
    suite(
        "go-calls",
        "Go `keyprotect-go-client` v0.15.1: every call; the ways of Rook and ceph-csi",
        Client::Go,
        Place::Here,
        240,
    ),
    suite(
        "go-suite",
        "Go `keyprotect-go-client` v0.15.1: its own integration tests",
        Client::Go,
        Place::Cloud,
        300,
    ),
    suite(
        "portworx",
        "Go `libopenstorage/secrets` (Portworx, with `keyprotect-go-client` v0.5.1): its own integration test",
        Client::Portworx,
        Place::Here,
        300,
    ),
    suite(
        "bluemix-calls",
        "Go `bluemix-go` of 2024-07-19: every call of its packages for identity and access",
        Client::Bluemix,
        Place::Here,
        240,
    ),
];

/// The key service that is tested.
pub struct Server {
    /// Base URL.
    pub url: String,
    /// The PEM of its CA.
    pub ca_file: PathBuf,
    /// The API key of somebody who may do everything.
    pub api_key: String,
    /// Everything that `claviger dev` says about it.
    pub env: Env,
}

impl Server {
    /// The server of a `D/env`.
    pub fn from_env(env: &Env) -> Outcome<Self> {
        let get = |name: &str| {
            env.get(name).cloned().ok_or_else(|| format!("{name} is not in the environment file"))
        };
        Ok(Self {
            url: get("CLAVIGER_URL")?,
            ca_file: get("CLAVIGER_CA_FILE")?.into(),
            api_key: get("CLAVIGER_SUITE_API_KEY")?,
            env: env.clone(),
        })
    }
}

/// Runs suites side by side, each on a fresh instance.
pub fn run(server: &Server, chosen: &[&'static Suite], dir: &Path) -> Outcome<Vec<Ran>> {
    let names: Vec<&str> = chosen.iter().map(|suite| suite.id).collect();
    let instances = instances::make(server, &names)?;
    Ok(std::thread::scope(|scope| {
        let running: Vec<_> = chosen
            .iter()
            .zip(&instances)
            .map(|(suite, instance)| (*suite, scope.spawn(|| one(server, suite, instance, dir))))
            .collect();
        running
            .into_iter()
            .map(|(suite, thread)| {
                thread.join().unwrap_or_else(|_| Ran::broken(suite, "a thread panicked".to_owned()))
            })
            .collect()
    }))
}

fn one(server: &Server, suite: &'static Suite, instance: &str, dir: &Path) -> Ran {
    let started = Instant::now();
    let mut ran = match attempt(server, suite, instance, &dir.join(suite.id)) {
        Ok(ran) => ran,
        Err(why) => Ran::broken(suite, why),
    };
    ran.seconds = started.elapsed().as_secs();
    eprintln!("    {}: {} s", suite.id, ran.seconds);
    ran
}

fn attempt(server: &Server, suite: &'static Suite, instance: &str, dir: &Path) -> Outcome<Ran> {
    std::fs::create_dir_all(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    let report = dir.join("report.jsonl");
    let log = dir.join("log");
    let mut command = command(server, suite, instance, dir)?;
    command
        .env("CONFORMANCE_REPORT", &report)
        .env("CONFORMANCE_INSTANCE_ID", instance)
        .env("CONFORMANCE_API_KEY", &server.api_key)
        .env("PYTHONPATH", root().join("conformance/shared"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // The private CA, in every client's own way, and no other.
        .env("REQUESTS_CA_BUNDLE", &server.ca_file)
        .env("SSL_CERT_FILE", &server.ca_file)
        .env("SSL_CERT_DIR", dir)
        .env("NODE_EXTRA_CA_CERTS", &server.ca_file);
    let ended = process::run(&mut command, &log, suite.limit);
    let rows = match suite.id {
        "go-suite" | "portworx" => report::of_go(&log),
        _ => report::of_lines(&report)?,
    };
    Ok(Ran::new(suite, rows, ended))
}

/// The command of a suite, but for what all have in common.
fn command(server: &Server, suite: &Suite, instance: &str, dir: &Path) -> Outcome<Command> {
    let installed = install::directory();
    let sources = suite.client.sources();
    let venv = installed.join(suite.client.directory());
    let mut command = match suite.id {
        "python3-calls" | "python2-calls" => {
            let mut command = Command::new(venv.join("bin/python"));
            command.arg(sources.join("calls.py"));
            command
        }
        "python3-integration" => {
            env_file(server, instance, dir)?;
            pytest(&venv, &packages(&venv)?.join("test/integration"))
        }
        "python3-examples" => {
            env_file(server, instance, dir)?;
            pytest(&venv, &packages(&venv)?.join("examples"))
        }
        "python2-suite" => {
            let mut command = pytest(&venv, &packages(&venv)?.join("test/integration"));
            command.env("IBMCLOUD_API_KEY", &server.api_key).env("RUN_PURGE_TESTS", "true");
            command
        }
        "python2-commands" => {
            let mut command = Command::new("sh");
            command.arg(sources.join("commands.sh")).env("IBMCLOUD_API_KEY", &server.api_key);
            let path = std::env::var_os("PATH").unwrap_or_default();
            let all = [venv.join("bin")].into_iter().chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(all).map_err(|e| e.to_string())?);
            command
        }
        "npm-calls" => {
            let mut command = Command::new("node");
            command.arg(sources.join("calls.js")).env("NODE_PATH", venv.join("node_modules"));
            command
        }
        "go-calls" => Command::new(installed.join("go-calls")),
        "bluemix-calls" => Command::new(installed.join("bluemix-calls")),
        "go-suite" => {
            let mut command = go_test(&sources, &go_tests(&sources)?, GO_CLIENT);
            command.env("KP_INSTANCE_ID", instance).env("IBMCLOUD_API_KEY", &server.api_key);
            command
        }
        "portworx" => {
            let mut command = go_test(&sources, "^TestAll$", SECRETS);
            command
                .env("IBM_SERVICE_API_KEY", &server.api_key)
                .env("IBM_INSTANCE_ID", instance)
                .env("IBM_BASE_URL", &server.url)
                .env("IBM_TOKEN_URL", format!("{}/oidc/token", server.url))
                .env("IBM_CUSTOMER_ROOT_KEY", instances::root_key(server, instance, "portworx")?);
            command
        }
        other => return Err(format!("no command for {other}")),
    };
    if !matches!(suite.client, Client::Go | Client::Portworx) || suite.id == "go-calls" {
        command.current_dir(dir);
    }
    command.envs(&server.env);
    Ok(command)
}

fn pytest(venv: &Path, tests: &Path) -> Command {
    let mut command = Command::new(venv.join("bin/python"));
    command.args(["-m", "pytest", "-p", "report", "-p", "no:cacheprovider", "-rA"]).arg(tests);
    command
}

fn go_test(module: &Path, tests: &str, package: &str) -> Command {
    let mut command = Command::new("go");
    command.current_dir(module).args(GO_TEST).args(["-json", "-run", tests, package]);
    // What it needs is there; among the cloud's names is no network.
    command.env("GOPROXY", "off").env("GOFLAGS", "-mod=readonly").env("GOTOOLCHAIN", "local");
    command
}

/// The site-packages of a virtual environment.
fn packages(venv: &Path) -> Outcome<PathBuf> {
    let lib = venv.join("lib");
    let entries = std::fs::read_dir(&lib).map_err(|e| format!("{}: {e}", lib.display()))?;
    let found = entries.flatten().map(|e| e.path().join("site-packages")).find(|p| p.is_dir());
    found.ok_or_else(|| format!("{} holds no site-packages", lib.display()))
}

/// The env file by which the wheel's own tests are driven.
fn env_file(server: &Server, instance: &str, dir: &Path) -> Outcome<()> {
    let text = format!(
        "IBM_KEY_PROTECT_API_URL={0}\nIBM_KEY_PROTECT_API_AUTH_TYPE=iam\n\
         IBM_KEY_PROTECT_API_AUTH_URL={0}\nIBM_KEY_PROTECT_API_APIKEY={1}\n\
         IBM_KEY_PROTECT_API_BLUEMIX_INSTANCE={instance}\n",
        server.url, server.api_key
    );
    let file = dir.join("ibm_key_protect_api_v2.env");
    std::fs::write(&file, text).map_err(|e| format!("cannot write {}: {e}", file.display()))
}

/// A pattern of the tests in the Go client's integration_test.go: the package's other tests talk
/// to nobody.
fn go_tests(module: &Path) -> Outcome<String> {
    let mut list = Command::new("go");
    list.current_dir(module).args(["list", "-m", "-f", "{{.Dir}}", GO_CLIENT]);
    let out = crate::lab::check("go list", crate::lab::run(&mut list)?)?;
    let dir = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    let file = Path::new(&dir).join("integration_test.go");
    let text = std::fs::read_to_string(&file)
        .map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("func Test")?.split_once('('))
        .map(|(name, _)| name)
        .collect();
    Ok(format!("^Test({})$", names.join("|")))
}
