//! End to end on real API servers, etcd, key server and agents, by the operator's commands.
//!
//! `cargo xtask test` builds what they need and runs them with `--ignored --test-threads=1`.
//! They assert order and bounds of a minute; the promises in seconds are measured by the demo.

#![allow(clippy::unwrap_used)] // Helpers of tests: a panic is the report.

use claviger_client::{Config, Operator, Proof};
use claviger_crypto::kek::{ANNOTATION, Carried, Kek, wrap_aad};
use claviger_crypto::{Key32, SecretBytes};
use claviger_etcd::record::Record;
use claviger_tests::cpu_seconds;
use claviger_tests::kube::Kube;
use claviger_tests::lab::{Lab, Options};
use claviger_tests::load::{self, MARKER};
use claviger_tests::raw;
use claviger_tests::traffic::Traffic;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A Secret that is looked at in etcd.
const SAMPLE: &str = "/registry/secrets/ingress/tls-00002";

/// Every promise in seconds has this bound here: machines that run tests are busy.
const MINUTE: Duration = Duration::from_secs(60);

struct Flow {
    lab: Lab,
    kube: Kube,
    cluster: String,
    instance: String,
}

impl Flow {
    fn start(kubernetes: &'static str, servers: usize, bare: bool) -> Flow {
        let lab = Lab::up(&Options { kubernetes, servers, bare, ..Options::default() }).unwrap();
        let kube = Kube::of(&lab).unwrap();
        let cluster = lab.var("CLAVIGER_CLUSTER").unwrap();
        let instance = lab.var("CLAVIGER_INSTANCE_ID").unwrap();
        Flow { lab, kube, cluster, instance }
    }

    fn create_key(&self, name: &str) {
        self.lab.must(&["key", "create", name]).unwrap();
    }

    fn enable(&self, key: &str, take_up: &str) {
        let args = [
            "ks",
            "kms",
            "enable",
            "-c",
            &self.cluster,
            "--instance-id",
            &self.instance,
            "--crk",
            key,
        ];
        self.lab.must(&[&args[..], &["--take-up", take_up, "--wait"]].concat()).unwrap();
    }

    fn census(&self) -> (i32, Value) {
        self.lab.answer(&["census", "-c", &self.cluster]).unwrap()
    }

    fn status(&self) -> Value {
        self.lab.answer(&["ks", "kms", "status", "-c", &self.cluster]).unwrap().1
    }

    fn cluster_get(&self) -> Value {
        self.lab.answer(&["ks", "cluster", "get", "-c", &self.cluster]).unwrap().1
    }

    /// Serial of the KEK that writes.
    fn write_serial(&self) -> u64 {
        let status = self.status();
        let keks = status["state"]["cluster"]["ring"]["keks"].as_array().unwrap();
        keks.iter().find(|k| k["role"] == "write").unwrap()["serial"].as_u64().unwrap()
    }

    fn connects(&self) -> bool {
        TcpStream::connect(self.kube.address()).is_ok()
    }
}

fn within(limit: Duration, what: &str, mut good: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !good() {
        assert!(Instant::now() < end, "{what}: not within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The whole life of one cluster: plaintext, enabled, rotated under load, fenced, given back,
/// scrubbed, with a look into etcd's files at the end.
fn life(kubernetes: &'static str, take_up: &str, bare: bool) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let flow = Flow::start(kubernetes, 1, bare);
    runtime.block_on(load::plant(&flow.kube, load::shapes(1000, 1))).unwrap();
    let (code, _) = flow.census();
    assert_eq!(code, 1, "plaintext falls short");
    assert!(raw_value(&flow, &runtime).starts_with(b"k8s\0"));

    flow.create_key("root");
    flow.enable("root", take_up);
    let (code, census) = flow.census();
    assert_eq!(code, 0, "{census}");
    assert!(raw_value(&flow, &runtime).starts_with(b"k8s:enc:kms:v2:claviger:"));
    opened_by_the_root_key_alone(&flow, &runtime);
    counted_without_a_word_of_the_key_service(&flow);
    keys_are_in_locked_memory(&flow);
    let view = flow.cluster_get();
    assert_eq!(view["features"]["keyProtectEnabled"], true, "{view}");
    assert_eq!(view["masterStatus"], "Ready", "{view}");

    // The development cluster scrubs at the end of its first enablement.
    let files = flow.lab.var("ETCD_DATA_DIR").unwrap();
    assert_eq!(raw::occurrences(files.as_ref(), MARKER.as_bytes()).unwrap(), 0);

    // Asked again, nothing happens.
    let serial = flow.write_serial();
    flow.enable("root", take_up);
    assert_eq!(flow.write_serial(), serial);

    rotate_under_load(&flow, &runtime, serial);
    fence_and_return(&flow, &runtime);
    scrub(&flow, &runtime);
    at_rest(&flow);
    flow.lab.down().unwrap();
}

/// Whoever may unwrap with the root key opens a record from its own bytes: no agent, no API server,
/// no ring.
fn opened_by_the_root_key_alone(flow: &Flow, runtime: &tokio::runtime::Runtime) {
    let value = raw_value(flow, runtime);
    let Record::KmsV2(record) = Record::parse(&value) else { panic!("not of KMS v2") };
    let annotation = record.annotations.iter().find(|(name, _)| *name == ANNOTATION).unwrap();
    let carried = Carried::parse(annotation.1).unwrap();
    let operator = Operator::connect(&Config {
        url: flow.lab.var("CLAVIGER_URL").unwrap(),
        iam_url: None,
        ca_file: flow.lab.var("CLAVIGER_CA_FILE").unwrap().into(),
        proof: Proof::ApiKey(SecretBytes::new(
            flow.lab.var("CLAVIGER_API_KEY").unwrap().into_bytes(),
        )),
    })
    .unwrap();
    let cluster = flow.cluster_get()["id"].as_str().unwrap().parse().unwrap();
    let (root, aad) = (carried.root.root, wrap_aad(&cluster, carried.serial));
    let unwrap = operator.keys.unwrap(root.instance, root.key, &carried.wrapped, &aad);
    let opened = runtime.block_on(unwrap).unwrap();
    let key = Key32::take(&mut opened.plaintext.expose().to_vec()).unwrap();
    let kek = Kek::new(carried.serial, record.key_id.to_owned(), &key);
    let seed = kek.open(record.encrypted_dek).unwrap();
    let secret = record.open(seed.expose(), SAMPLE.as_bytes()).unwrap();
    let text = String::from_utf8_lossy(secret.expose()).into_owned();
    assert!(text.contains(MARKER), "the Secret itself");
}

/// Without the key service nobody says which version is current: exit code 2, the counts all the
/// same.
fn counted_without_a_word_of_the_key_service(flow: &Flow) {
    let var = |name: &str| flow.lab.var(name).unwrap();
    let etcd = [
        ("--etcd-endpoints", var("ETCDCTL_ENDPOINTS")),
        ("--etcd-cacert", var("ETCDCTL_CACERT")),
        ("--etcd-cert", var("ETCDCTL_CERT")),
        ("--etcd-key", var("ETCDCTL_KEY")),
    ];
    let census = |url: &str| {
        let mut command = flow.lab.operator(&["census", "--output", "json"]).unwrap();
        for (flag, value) in &etcd {
            command.args([flag, &**value]);
        }
        let out = command.env("CLAVIGER_URL", url).output().unwrap();
        let found: Value = serde_json::from_slice(&out.stdout).unwrap();
        (out.status.code(), found, String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, found, said) = census(&var("CLAVIGER_URL"));
    assert_eq!(code, Some(0), "{said}");
    let (without, counted, said) = census("https://127.0.0.1:1");
    assert_eq!(without, Some(2), "{said}");
    assert!(said.contains("cannot be reached"), "{said}");
    assert_eq!(counted["verdict"]["verdict"], "unknown", "{counted}");
    let records = |found: &Value| found["census"]["resources"]["secrets"]["records"].clone();
    assert_eq!(records(&counted), records(&found), "counted all the same");
}

/// What an agent opens never reaches a swap device.
fn keys_are_in_locked_memory(flow: &Flow) {
    for pid in flow.lab.var("CLAVIGER_AGENT_PIDS").unwrap().split_whitespace() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let (locked, resident) = (kib("VmLck:"), kib("RssAnon:"));
        assert!(locked >= resident, "{locked} KiB locked, {resident} KiB in memory");
    }
}

/// When nothing happens, server and agent do next to nothing: a loop that wakes itself by what it
/// reports would take a quarter of a core each.
fn at_rest(flow: &Flow) {
    const WATCHED: Duration = Duration::from_secs(20);
    let pids: Vec<i32> = ["CLAVIGER_PID", "CLAVIGER_AGENT_PIDS"]
        .map(|name| flow.lab.var(name).unwrap().trim().parse().unwrap())
        .into();
    let used = || pids.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>();
    let before = used();
    assert!(before > 0.0, "they have worked");
    std::thread::sleep(WATCHED);
    let used = used() - before;
    assert!(used < 2.0, "at rest, server and agent used {used} s of CPU in {WATCHED:?}");
}

fn raw_value(flow: &Flow, runtime: &tokio::runtime::Runtime) -> Vec<u8> {
    runtime.block_on(raw::value(&flow.lab, SAMPLE)).unwrap()
}

fn rotate_under_load(flow: &Flow, runtime: &tokio::runtime::Runtime, serial: u64) {
    let processes = flow.lab.var("KUBE_APISERVER_PIDS").unwrap();
    let traffic = runtime.block_on(Traffic::start(&flow.kube, 2)).unwrap();
    flow.lab.must(&["key", "rotate", "root"]).unwrap();
    flow.lab.must(&["ks", "kms", "follow", "-c", &flow.cluster]).unwrap();
    let report = runtime.block_on(traffic.stop());
    assert!(
        report.reads > 100 && report.writes > 50,
        "too little traffic to prove anything: {report:?}"
    );
    assert_eq!(report.failed, 0, "{report:?}");
    assert!(flow.write_serial() > serial, "rotation makes a new key");
    assert_eq!(flow.census().0, 0);
    let now = flow.lab.var("KUBE_APISERVER_PIDS").unwrap();
    assert_eq!(now, processes, "rotation never restarts an API server");
}

fn fence_and_return(flow: &Flow, runtime: &tokio::runtime::Runtime) {
    let before = runtime.block_on(flow.kube.list_all()).unwrap();
    // A watch is open all the while: it must not keep the process alive.
    let mut watch = std::process::Command::new(flow.lab.var("KUBECTL").unwrap())
        .args(["get", "secrets", "-A", "--watch"])
        .env("KUBECONFIG", flow.lab.var("KUBECONFIG").unwrap())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    flow.lab.must(&["key", "disable", "root", "--yes"]).unwrap();
    within(MINUTE, "fenced", || !flow.connects());
    within(MINUTE, "state says so", || flow.cluster_get()["state"] == "warning");
    let said = flow.lab.kubectl(&["get", "secrets", "-A", "--request-timeout=3s"]).unwrap();
    assert!(!said.status.success(), "kubectl must not reach a fenced cluster");
    let refused = flow.lab.claviger(&["ks", "cluster", "config", "-c", &flow.cluster]).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    within(MINUTE, "the watch has ended", || watch.try_wait().unwrap().is_some());
    // A deletion is refused as long as the cluster is registered, forced too.
    let delete = flow.lab.claviger(&["key", "delete", "root", "--yes", "--force"]).unwrap();
    assert_eq!(delete.status.code(), Some(1), "{delete:?}");
    let said = String::from_utf8_lossy(&delete.stderr).into_owned();
    let id = flow.cluster_get()["id"].as_str().unwrap().to_owned();
    assert!(said.contains("409 PREV_KEY_DEL_ERR") && said.contains(&id), "{said}");

    flow.lab.must(&["key", "enable", "root"]).unwrap();
    within(2 * MINUTE, "serving again", || flow.connects());
    within(MINUTE, "every Secret readable", || {
        runtime.block_on(flow.kube.list_all()).is_ok_and(|count| count >= before)
    });
    within(MINUTE, "normal again", || flow.cluster_get()["state"] == "normal");
    drop(watch.kill());
    drop(watch.wait());
}

fn scrub(flow: &Flow, runtime: &tokio::runtime::Runtime) {
    let before = runtime.block_on(flow.kube.list_all()).unwrap();
    flow.lab.must(&["ks", "kms", "scrub", "-c", &flow.cluster]).unwrap();
    let files = flow.lab.var("ETCD_DATA_DIR").unwrap();
    assert_eq!(raw::occurrences(files.as_ref(), MARKER.as_bytes()).unwrap(), 0);
    within(MINUTE, "readable after scrub", || {
        runtime.block_on(flow.kube.list_all()).is_ok_and(|count| count == before)
    });
    let (code, _) = flow.lab.answer(&["ks", "kms", "verify", "-c", &flow.cluster]).unwrap();
    assert_eq!(code, 0);
}

#[test]
#[ignore = "needs the testbed: cargo xtask test"]
fn life_of_a_bare_cluster_by_restart_1_37() {
    life("1.37", "restart", true);
}

#[test]
#[ignore = "needs the testbed: cargo xtask test"]
fn life_of_a_cluster_by_reload_1_34() {
    life("1.34", "reload", false);
}

/// Three API servers; the document's own check; a move to another key; what must be refused.
#[test]
#[ignore = "needs the testbed: cargo xtask test"]
fn three_api_servers_verify_and_switch() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let flow = Flow::start("1.37", 3, true);
    runtime.block_on(load::plant(&flow.kube, load::shapes(200, 2))).unwrap();
    flow.create_key("first");
    flow.create_key("second");
    flow.enable("first", "restart");
    let (code, report) = flow
        .lab
        .answer(&[
            "ks",
            "kms",
            "verify",
            "-c",
            &flow.cluster,
            "--by-disabling",
            "--for",
            "60s",
            "--yes",
        ])
        .unwrap();
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["config_refused"], true);
    assert_eq!(report["unreachable"], true, "{report}");

    let serial = flow.write_serial();
    flow.enable("second", "restart");
    assert!(flow.write_serial() > serial);
    assert_eq!(flow.census().0, 0);
    // A root key is used once in the life of a cluster.
    let args = [
        "ks",
        "kms",
        "enable",
        "-c",
        &flow.cluster,
        "--instance-id",
        &flow.instance,
        "--crk",
        "first",
    ];
    let again = flow.lab.claviger(&args).unwrap();
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    flow.lab.down().unwrap();
}

/// An agent that becomes a new program keeps its keys while the key server is away; one that is
/// started anew has to wait for it.
#[test]
#[ignore = "needs the testbed: cargo xtask test"]
fn an_agent_is_upgraded_while_the_key_server_is_away() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let flow = Flow::start("1.37", 1, true);
    runtime.block_on(load::plant(&flow.kube, load::shapes(40, 3))).unwrap();
    flow.create_key("root");
    flow.enable("root", "restart");
    let before = runtime.block_on(flow.kube.list_all()).unwrap();
    let config = flow.lab.dir().join("agent-1/agent.toml").display().to_string();
    let agent = flow.lab.var("CLAVIGER_AGENT_PIDS").unwrap();
    let server = flow.lab.var("CLAVIGER_PID").unwrap();
    signal("-STOP", &server);

    // A program that cannot be started changes nothing.
    let broken = flow.lab.dir().join("broken");
    std::fs::write(&broken, "no program").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&broken, executable).unwrap();
    let desk = flow.lab.dir().join("agent-1/state/desk.sock");
    let mut desk = std::os::unix::net::UnixStream::connect(desk).unwrap();
    let ask = serde_json::json!({ "ask": "upgrade", "program": broken, "format": 1 });
    desk.write_all(format!("{ask}\n").as_bytes()).unwrap();
    let mut said = String::new();
    desk.read_to_string(&mut said).unwrap();
    assert!(said.contains("cannot be started"), "{said}");
    let said = flow.lab.must(&["agent", "status", "--config", &config]).unwrap();
    assert!(said.contains("Open KEKs: 1"), "{said}");

    let said = flow.lab.must(&["agent", "upgrade", "--config", &config]).unwrap();
    assert!(said.contains("Open KEKs: 1"), "{said}");
    assert!(said.contains(&agent), "the same process: {said}");
    // An API server that starts reads Secrets, and has no seed to open them with.
    let api = flow.lab.var("KUBE_APISERVER_PIDS").unwrap();
    signal("-KILL", &api);
    within(MINUTE, "every Secret readable", || {
        runtime.block_on(flow.kube.list_all()).is_ok_and(|count| count >= before)
    });
    assert_ne!(flow.lab.var("KUBE_APISERVER_PIDS").unwrap(), api);
    // Once more, by the successor.
    flow.lab.must(&["agent", "upgrade", "--config", &config]).unwrap();
    assert!(runtime.block_on(flow.kube.list_all()).unwrap() >= before);

    signal("-KILL", &agent);
    let status = || flow.lab.claviger(&["agent", "status", "--config", &config]).unwrap();
    within(MINUTE, "a fresh agent waits", || {
        let said = String::from_utf8_lossy(&status().stdout).into_owned();
        said.contains("waiting: ") && said.contains("Open KEKs: none")
    });
    signal("-CONT", &server);
    within(MINUTE, "open again", || {
        String::from_utf8_lossy(&status().stdout).contains("Open KEKs: 1")
    });

    // A start asks for each KEK once.
    let unwraps = || {
        let listed =
            flow.lab.answer(&["audit", "ls", "--action", "kms.secrets.unwrap", "--limit", "10000"]);
        listed.unwrap().1["events"].as_array().unwrap().len()
    };
    let pid = flow.lab.var("CLAVIGER_AGENT_PIDS").unwrap();
    let before = unwraps();
    signal("-KILL", &pid);
    within(MINUTE, "open again", || {
        let said = String::from_utf8_lossy(&status().stdout).into_owned();
        said.contains("Open KEKs: 1") && !said.contains(&pid)
    });
    assert_eq!(unwraps(), before + 1);
    flow.lab.down().unwrap();
}

/// The key server comes back from a backup of before a rotation: it knows neither the KEK that
/// seals nor the version of the root key that wraps it. The nodes give the KEK back, and the
/// cluster moves to the version that the server has. Nothing is lost on the way.
#[test]
#[ignore = "needs the testbed: cargo xtask test"]
fn a_server_restored_to_before_a_rotation_gets_the_keys_back() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let flow = Flow::start("1.37", 3, true);
    runtime.block_on(load::plant(&flow.kube, load::shapes(60, 4))).unwrap();
    flow.create_key("root");
    flow.enable("root", "restart");
    let dir = flow.lab.dir().to_owned();
    let at = |name: &str| dir.join(name).display().to_string();
    let (data, backup, recovery) = (at("server"), at("old.backup"), at("recovery.key"));
    let files = ["--data", &data, "--recovery-key", &recovery];
    flow.lab.must(&[&["server", "backup", "--to", &backup], &files[..]].concat()).unwrap();
    flow.lab.rotate("root", MINUTE).unwrap();
    within(3 * MINUTE, "under the new version", || flow.census().0 == 0);
    let serial = flow.write_serial();
    let before = runtime.block_on(flow.kube.list_all()).unwrap();

    std::fs::rename(&data, at("server.lost")).unwrap();
    flow.lab.must(&[&["server", "restore", "--from", &backup], &files[..]].concat()).unwrap();
    signal("-KILL", &flow.lab.var("CLAVIGER_PID").unwrap());
    // The number of the lost KEK is spent, so the next one shows that it came back.
    let status = || flow.lab.status().ok();
    let serials = |status: &Value| {
        let keks = status["state"]["cluster"]["ring"]["keks"].as_array().cloned();
        let keks = keks.unwrap_or_default();
        keks.iter().filter_map(|k| k["serial"].as_u64()).collect::<Vec<_>>()
    };
    within(2 * MINUTE, "given back", || {
        status().is_some_and(|status| serials(&status).contains(&serial))
    });
    flow.lab.settled(5 * MINUTE).unwrap();
    assert!(flow.write_serial() > serial);
    let settled = status().unwrap();
    assert!(settled["state"]["restored"].is_null(), "every agent has spoken: {settled}");
    assert!(runtime.block_on(flow.kube.list_all()).unwrap() >= before);
    let cluster = ["ks", "kms", "verify", "-c", &flow.cluster];
    flow.lab.must(&cluster).unwrap();
    flow.lab.down().unwrap();
}

fn signal(which: &str, pid: &str) {
    let status = std::process::Command::new("kill").args([which, pid]).status().unwrap();
    assert!(status.success(), "kill {which} {pid}");
}

/// A running agent takes up a certificate that came by file, joins again with a new token once its
/// own counts no longer, and uses the endpoint that an operator chooses.
#[test]
#[ignore = "needs the testbed: cargo xtask test"]
fn an_agent_takes_up_certificates_and_endpoints_while_it_runs() {
    let flow = Flow::start("1.37", 1, true);
    let home = flow.lab.dir().join("agent-1");
    let path = |name: &str| home.join(name).display().to_string();
    let config = path("agent.toml");
    let known = || -> Value {
        serde_json::from_slice(&std::fs::read(home.join("state/node.json")).unwrap()).unwrap()
    };
    let first = known();
    let (request, answer) = (path("request.json"), path("answer.json"));
    flow.lab
        .must(&["agent", "request-certificate", "--config", &config, "--out", &request])
        .unwrap();
    let reissue = |cluster: &str| {
        flow.lab
            .claviger(&[
                "ks",
                "cluster",
                "node",
                "reissue",
                "-c",
                cluster,
                "--request",
                &request,
                "--out",
                &answer,
            ])
            .unwrap()
    };
    assert_eq!(reissue("nowhere").status.code(), Some(2));
    assert!(reissue(&flow.cluster).status.success());
    let install = ["agent", "install-certificate", "--config", &config, "--in", &answer];
    let said = flow.lab.must(&install).unwrap();
    assert!(said.contains("uses it"), "{said}");
    let second = known();
    assert_ne!(second["certificate"], first["certificate"]);
    let changed = std::fs::read_to_string(&answer).unwrap().replacen("MII", "MIJ", 1);
    std::fs::write(&answer, changed).unwrap();
    assert_eq!(flow.lab.claviger(&install).unwrap().status.code(), Some(2), "changed on its way");

    // The node was off for so long that its certificate has expired: it runs all the same, and
    // finds the token that somebody puts there.
    let agent = flow.lab.var("CLAVIGER_AGENT_PIDS").unwrap();
    let mut expired = second.clone();
    expired["not_after"] = 1.into();
    std::fs::write(home.join("state/node.json"), expired.to_string()).unwrap();
    signal("-KILL", &agent);
    let runs = || flow.lab.claviger(&["agent", "status", "--config", &config]).unwrap();
    within(MINUTE, "runs", || runs().status.success());
    let made = flow
        .lab
        .claviger_json(&["ks", "cluster", "join-token", "-c", &flow.cluster, "--output", "json"])
        .unwrap();
    std::fs::write(home.join("join-token"), made["join_token"].as_str().unwrap()).unwrap();
    within(MINUTE, "joined again", || known()["certificate"] != second["certificate"]);
    assert!(known()["not_after"].as_i64().unwrap() > 1);
    flow.create_key("root");
    flow.enable("root", "restart");

    // Agents follow the endpoint that an operator chooses, and it is shown.
    let urls = ["CLAVIGER_PUBLIC_URL", "CLAVIGER_URL"].map(|name| flow.lab.var(name).unwrap());
    let enable = ["ks", "kms", "enable", "-c", &flow.cluster, "--crk", "root"];
    for (url, flags) in urls.iter().zip([&["--public-endpoint"][..], &[]]) {
        flow.lab.must(&[&enable[..], &["--instance-id", &flow.instance], flags].concat()).unwrap();
        within(MINUTE, "the agent uses the endpoint", || {
            String::from_utf8_lossy(&runs().stdout).contains(url)
        });
        assert!(
            flow.lab.must(&["ks", "kms", "status", "-c", &flow.cluster]).unwrap().contains(url)
        );
    }
    within(MINUTE, "open", || String::from_utf8_lossy(&runs().stdout).contains("Access:    open"));
    flow.lab.down().unwrap();
}

/// The guard enables the key though its starter is killed at once.
#[test]
#[ignore = "needs the testbed: cargo xtask test"]
fn the_guard_outlives_its_starter() {
    let flow = Flow::start("1.37", 1, true);
    flow.create_key("root");
    flow.enable("root", "restart");
    let args =
        ["ks", "kms", "verify", "-c", &flow.cluster, "--by-disabling", "--for", "60s", "--yes"];
    let mut verify = flow.lab.operator(&args).unwrap().stderr(Stdio::piped()).spawn().unwrap();
    // It is halted in the middle: by itself it is done within seconds, and nobody sees it.
    let said = BufReader::new(verify.stderr.take().unwrap());
    let disabled = said.lines().map_while(Result::ok).any(|line| line.contains("is fenced"));
    assert!(disabled, "it ended before it waited for the fence");
    let halted = Command::new("kill").args(["-STOP", &verify.id().to_string()]).status().unwrap();
    assert!(halted.success());
    within(MINUTE, "disabled", || flow.cluster_get()["state"] == "warning");
    verify.kill().unwrap();
    verify.wait().unwrap();
    within(2 * MINUTE, "enabled by the guard", || {
        flow.lab.answer(&["key", "get", "root"]).is_ok_and(|(_, key)| key["state"] == 1)
    });
    within(2 * MINUTE, "normal again", || flow.cluster_get()["state"] == "normal");
    flow.lab.down().unwrap();
}

/// The tools of these tests on a cluster without encryption: a fault of theirs must not look
/// like one of the product.
#[test]
#[ignore = "needs the testbed: cargo xtask test"]
fn the_tools_see_plaintext_where_there_is_plaintext() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lab = Lab::up(&Options::default()).unwrap();
    let kube = Kube::of(&lab).unwrap();
    runtime.block_on(load::plant(&kube, load::shapes(40, 3))).unwrap();
    let stored = runtime.block_on(raw::value(&lab, SAMPLE)).unwrap();
    assert!(stored.starts_with(b"k8s\0"));
    let traffic = runtime.block_on(Traffic::start(&kube, 2)).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let report = runtime.block_on(traffic.stop());
    assert!(report.reads > 10 && report.writes > 10, "{report:?}");
    assert_eq!(report.failed, 0, "{report:?}");
    let files = lab.var("ETCD_DATA_DIR").unwrap();
    // Once in the log, once in the database: at least once each.
    let found = raw::occurrences(files.as_ref(), MARKER.as_bytes()).unwrap();
    assert!(found >= 40, "{found} of 40 planted markers");
    lab.down().unwrap();
}
