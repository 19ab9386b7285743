//! A development cluster whose keeper dies: nothing is lost, and nothing is left behind.

#![allow(clippy::unwrap_used)] // A panic is the report of a test.

use claviger_tests::lab::Env;
use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Bound of every wait: machines that run tests are busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// How much to log, for programs of these tests.
const LOG: &str = "info,hyper=warn";

/// What `D/env` of a whole cluster says.
const NAMES: [&str; 20] = [
    "KUBECONFIG",
    "KUBECTL",
    "ETCDCTL_ENDPOINTS",
    "ETCDCTL_CACERT",
    "ETCDCTL_CERT",
    "ETCDCTL_KEY",
    "ETCD_DATA_DIR",
    "ETCDUTL",
    "ETCD_PID",
    "KUBE_APISERVER_PIDS",
    "CLAVIGER_URL",
    "CLAVIGER_PUBLIC_URL",
    "CLAVIGER_IAM_URL",
    "CLAVIGER_CA_FILE",
    "CLAVIGER_API_KEY",
    "CLAVIGER_INSTANCE_ID",
    "CLAVIGER_INSTANCE_ID_2",
    "CLAVIGER_CLUSTER",
    "CLAVIGER_KMS_SOCKET",
    "CLAVIGER_AGENT_PIDS",
];

/// A cluster that this test starts in the foreground, so that it can kill what keeps it.
struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("cluster")
    }

    fn dev(&self, verb: &str, args: &[&str]) -> Command {
        let program = std::env::var_os("CLAVIGER_BIN").expect("start this through cargo xtask");
        let mut command = Command::new(program);
        command.args(["dev", verb, "--dir"]).arg(self.dir()).args(args);
        command.stdin(Stdio::null());
        command
    }

    fn must(&self, verb: &str, args: &[&str]) {
        let out = self.dev(verb, args).output().unwrap();
        assert!(out.status.success(), "{verb}: {}", String::from_utf8_lossy(&out.stderr));
    }

    fn foreground(&self) -> Child {
        let mut up = self.dev("up", &["--bare"]);
        let up = up.env("CLAVIGER_LOG", LOG).stdout(Stdio::null()).stderr(Stdio::null());
        up.spawn().unwrap()
    }

    fn env(&self) -> Env {
        let script = format!("set -a; . '{}'; env -0", self.dir().join("env").display());
        let out = Command::new("sh").args(["-c", &script]).env_clear().output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.dir().join(name)).unwrap()).unwrap()
    }

    /// Everything that the cluster may leave on the machine outside its directory.
    fn traces(&self) -> Traces {
        let ports = self.json("ports.json");
        let mut numbers: Vec<u16> = ["etcd", "etcd_peer", "server", "server_public"]
            .iter()
            .map(|name| ports[*name].as_u64().unwrap().try_into().unwrap())
            .collect();
        let servers = ports["apiservers"].as_array().unwrap();
        numbers.extend(servers.iter().map(|port| u16::try_from(port.as_u64().unwrap()).unwrap()));
        Traces {
            ports: numbers,
            sockets: self.json("dev.json")["sockets"].as_str().unwrap().into(),
        }
    }

    fn assert_nothing_left(&self, traces: &Traces) {
        assert_eq!(self.processes(), BTreeSet::new());
        for port in &traces.ports {
            TcpListener::bind(("127.0.0.1", *port)).unwrap_or_else(|e| panic!("port {port}: {e}"));
        }
        assert!(!traces.sockets.exists(), "{}", traces.sockets.display());
    }

    /// Processes that name the directory in their command line or their environment.
    fn processes(&self) -> BTreeSet<i32> {
        let name = self.dir().display().to_string();
        let names_it = |path: &Path| {
            std::fs::read(path).is_ok_and(|b| String::from_utf8_lossy(&b).contains(&name))
        };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter(|entry| {
                names_it(&entry.path().join("cmdline")) || names_it(&entry.path().join("environ"))
            })
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }
}

struct Traces {
    ports: Vec<u16>,
    sockets: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.dev("status", &[]).status();
        }
        // Where the test itself has removed it there is none to end.
        let _ = self.dev("down", &["--purge"]).stderr(Stdio::null()).status();
    }
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < until, "not within {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn kill(pid: &str) {
    let status = Command::new("kill").args(["-9", pid]).status().unwrap();
    assert!(status.success(), "{pid}");
}

#[test]
#[ignore = "needs the testbed; cargo xtask test runs it"]
fn a_killed_keeper_loses_nothing_and_down_leaves_nothing() {
    let place = Place::new();
    let mut keeper = place.foreground();
    let ready = || place.dev("status", &[]).output().is_ok_and(|out| out.status.success());
    eventually("the cluster is ready", ready);
    let before = place.env();
    // Other tools read these names.
    for name in NAMES {
        assert!(before.get(name).is_some_and(|value| !value.is_empty()), "{name}");
    }
    for name in ["ETCD_PID", "CLAVIGER_PID", "CLAVIGER_AGENT_PIDS", "KUBE_APISERVER_PIDS"] {
        assert!(before[name].parse::<i32>().is_ok(), "{name}: {:?}", before[name]);
    }

    for name in ["CLAVIGER_PID", "CLAVIGER_AGENT_PIDS"] {
        let environ = std::fs::read(format!("/proc/{}/environ", before[name])).unwrap();
        let environ = String::from_utf8(environ).unwrap();
        assert!(environ.contains(&format!("CLAVIGER_LOG={LOG}\0")), "{name}: {environ}");
    }

    // The keeper restarts a part that died, and the file of variables says the new process.
    kill(&before["CLAVIGER_PID"]);
    eventually("the key server has a new process", || {
        let now = place.env();
        now.get("CLAVIGER_PID").is_some_and(|pid| !pid.is_empty() && *pid != before["CLAVIGER_PID"])
    });
    let server = place.env()["CLAVIGER_PID"].clone();

    keeper.kill().unwrap();
    keeper.wait().unwrap();
    let traces = place.traces();
    kill(&before["ETCD_PID"]);
    place.must("up", &["--detach"]);
    let after = place.env();
    assert_eq!(after["CLAVIGER_PID"], server, "what lived was left alone");
    assert_eq!(after["KUBE_APISERVER_PIDS"], before["KUBE_APISERVER_PIDS"]);
    assert_ne!(after["ETCD_PID"], before["ETCD_PID"], "what had died was started again");
    assert_eq!(after["CLAVIGER_URL"], before["CLAVIGER_URL"]);

    // A second `up` finds a keeper and does nothing.
    place.must("up", &["--detach"]);
    assert_eq!(place.env(), after);

    place.must("down", &[]);
    place.assert_nothing_left(&traces);
    place.must("down", &[]);
}

#[test]
#[ignore = "needs the testbed; cargo xtask test runs it"]
fn down_ends_a_cluster_whose_keeper_was_killed_while_it_came_up() {
    for moment in [150, 600, 1500] {
        let place = Place::new();
        let mut keeper = place.foreground();
        eventually("its ports are chosen", || place.dir().join("ports.json").exists());
        std::thread::sleep(Duration::from_millis(moment));
        keeper.kill().unwrap();
        keeper.wait().unwrap();
        let traces = place.traces();
        place.must("down", &["--purge"]);
        place.assert_nothing_left(&traces);
        assert!(!place.dir().exists());
    }
}

#[test]
#[ignore = "needs the testbed; cargo xtask test runs it"]
fn a_terminated_keeper_ends_the_cluster_by_itself() {
    let place = Place::new();
    let mut keeper = place.foreground();
    eventually("etcd has a process", || {
        place.dir().join("env").exists()
            && place.env().get("ETCD_PID").is_some_and(|p| !p.is_empty())
    });
    let traces = place.traces();
    let status = Command::new("kill").arg(keeper.id().to_string()).status().unwrap();
    assert!(status.success());
    assert!(keeper.wait().unwrap().success());
    place.assert_nothing_left(&traces);
}

/// A filesystem of this many KiB that ends with the test; needs the right to mount.
struct Small(tempfile::TempDir);

impl Small {
    fn new(kib: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={kib}k,mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(mounted.success(), "mounting a tmpfs needs root");
        Self(dir)
    }

    /// Leaves no room at all.
    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        let block = [0u8; 1024];
        while file.write_all(&block).is_ok() {}
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[test]
#[ignore = "needs root; cargo xtask test runs it"]
fn on_a_full_disk_nothing_is_lost_and_with_room_it_goes_on() {
    let disk = Small::new(6 * 1024);
    let program = std::env::var_os("CLAVIGER_BIN").expect("start this through cargo xtask");
    let dir = disk.0.path().join("service");
    let dev = |verb: &str, args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["dev", verb, "--dir"]).arg(&dir).args(args).stdin(Stdio::null());
        command.output().unwrap()
    };
    let key = |args: &str| {
        let script = format!(". '{}'; exec '{}' key {args}", dir.join("env").display(), {
            Path::new(&program).display()
        });
        Command::new("sh").args(["-c", &script]).output().unwrap()
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();

    let up = dev("up", &["--only", "key-service", "--detach"]);
    assert!(up.status.success(), "{}", text(&up.stderr));
    let made = key("create before");
    assert!(made.status.success(), "{}", text(&made.stderr));

    let filler = disk.fill();
    for number in 1..=3 {
        let refused = key(&format!("create full-{number}"));
        assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stdout));
        let said = text(&refused.stderr);
        assert!(said.contains("cannot write to its disk"), "{said}");
        assert!(said.contains("make room"), "{said}");
    }

    std::fs::remove_file(filler).unwrap();
    eventually("the server answers again", || key("create after").status.success());
    let names = text(&key("ls").stdout);
    assert!(names.contains("before") && names.contains("after"), "{names}");
    assert!(!names.contains("full-"), "what was refused was not done: {names}");
    let down = dev("down", &["--purge"]);
    assert!(down.status.success(), "{}", text(&down.stderr));
    assert!(!dir.exists(), "{:?}", std::fs::read_dir(&dir).map(|found| found.count()));
}
