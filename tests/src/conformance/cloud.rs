//! Clients that have the cloud's addresses built in: a network namespace in which these names lead
//! to loopback, and to our server on port 443, whose private CA signs them.

use super::report::{self, Ran};
use super::suites::{self, Place, Server, Suite};
use super::{process, root};
use crate::Outcome;
use crate::lab::{Env, check, run};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The names that the clients call. The first is what the server says of itself; the last belongs
/// to the region of its two first instances.
const NAMES: [&str; 4] = [
    "us-south.kms.cloud.ibm.com",
    "iam.cloud.ibm.com",
    "resource-controller.cloud.ibm.com",
    "local.kms.cloud.ibm.com",
];
/// All suites of the namespace run side by side within their own limits.
const LIMIT: Duration = Duration::from_secs(420);
/// A server that starts answers within seconds, also on a busy machine.
const START: Duration = Duration::from_secs(60);
/// The directory, in the namespace's own, of the results.
const RESULTS: &str = "results.jsonl";

/// Starts this program again in namespaces of its own and returns what it found out.
pub fn outside(dir: &Path, chosen: &[&'static Suite]) -> Outcome<Vec<Ran>> {
    let chosen: Vec<&'static Suite> =
        chosen.iter().copied().filter(|s| s.place == Place::Cloud).collect();
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let dir = dir.join("cloud");
    std::fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    let us = std::env::current_exe().map_err(|e| format!("cannot find my own file: {e}"))?;
    let mut command = Command::new("unshare");
    // A process namespace too: when its first process ends, nothing stays behind.
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(us).arg("--inside-cloud").arg(&dir);
    for suite in &chosen {
        command.args(["--only", suite.id]);
    }
    process::run(&mut command, &dir.join("cloud.log"), LIMIT)?;
    report::read_all(&dir.join(RESULTS), &chosen)
}

/// What that process does.
pub fn inside(dir: &Path, chosen: &[&'static Suite]) -> Outcome<()> {
    check("ip link", run(Command::new("ip").args(["link", "set", "lo", "up"]))?)?;
    let mut hosts = "127.0.0.1 localhost\n".to_owned();
    for name in NAMES {
        let _ = writeln!(hosts, "127.0.0.1 {name}");
    }
    let file = dir.join("hosts");
    std::fs::write(&file, hosts).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    check("mount", run(Command::new("mount").arg("--bind").arg(&file).arg("/etc/hosts"))?)?;
    let (mut server, program) = start(dir)?;
    let results = suites::run(&server, chosen, dir);
    let _ = program.stop();
    server.api_key.clear();
    report::write_all(&dir.join(RESULTS), &results?)
}

/// A key service as `claviger dev` makes it, then again on the cloud's port with its names.
fn start(dir: &Path) -> Outcome<(Server, Program)> {
    let claviger =
        std::env::var_os("CLAVIGER_BIN").map(PathBuf::from).ok_or("CLAVIGER_BIN is not set")?;
    let dev = dir.join("dev");
    let up = ["dev", "up", "--detach", "--only", "key-service", "--dir"];
    check("claviger dev up", run(Command::new(&claviger).args(up).arg(&dev))?)?;
    let mut env = variables(&dev.join("env"))?;
    check(
        "claviger dev down",
        run(Command::new(&claviger).args(["dev", "down", "--dir"]).arg(&dev))?,
    )?;
    let log = std::fs::File::create(dir.join("server.log")).map_err(|e| e.to_string())?;
    let mut command = Command::new(&claviger);
    command.args(["server", "run", "--listen", "127.0.0.1:443", "--data"]).arg(dev.join("server"));
    command.args(NAMES.iter().flat_map(|name| ["--name", name]));
    command.current_dir(root()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let child = command.spawn().map_err(|e| format!("cannot start the server: {e}"))?;
    let program = Program(child);
    let deadline = Instant::now() + START;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 443));
    while TcpStream::connect(address).is_err() {
        if Instant::now() >= deadline {
            return Err("the server does not listen on port 443".to_owned());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    env.insert("CLAVIGER_URL".to_owned(), format!("https://{}", NAMES[0]));
    Ok((Server::from_env(&env)?, program))
}

fn variables(path: &Path) -> Outcome<Env> {
    let script = format!("set -a; . '{}'; env -0", path.display());
    let out = run(Command::new("sh").args(["-c", &script]).env_clear())?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// A program that ends with this value.
struct Program(Child);

impl Program {
    fn stop(mut self) -> std::io::Result<()> {
        self.0.kill()?;
        self.0.wait().map(drop)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
