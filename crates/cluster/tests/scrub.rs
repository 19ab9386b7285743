//! Scrub against a real etcd, with and without a real API server.
#![allow(missing_docs, clippy::unwrap_used)]

use claviger_cluster::scrub::{Scrub, ScrubError};
use claviger_etcd::{Etcd, EtcdConfig, client::Swap, residue};
use claviger_supervise::Supervisor;
use claviger_supervise::unit::{Command, ProcessUnit};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The program of the testbed: from `KUBEBUILDER_ASSETS`, what `cargo xtask testbed` built, PATH.
fn program(name: &str) -> PathBuf {
    let mut dirs: Vec<PathBuf> = Vec::new();
    dirs.extend(std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from));
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or(home.join(".cache"), PathBuf::from);
    let built = std::fs::read_dir(cache.join("claviger/testbed")).into_iter().flatten().flatten();
    let mut built: Vec<_> = built.map(|e| e.path()).collect();
    // The newest Kubernetes first.
    built.sort_by(|a, b| b.cmp(a));
    dirs.extend(built);
    dirs.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let found = dirs.into_iter().map(|d| d.join(name)).find(|p| p.is_file());
    found.unwrap_or_else(|| panic!("there is no {name}; build it with: cargo xtask testbed"))
}

fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).unwrap().port()
}

/// Units below a directory, killed when dropped.
struct Bed {
    dir: tempfile::TempDir,
    etcd: EtcdConfig,
    units: Vec<ProcessUnit>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        for unit in &self.units {
            let _ = unit.hold("the test is over");
            let _ = unit.kill();
        }
    }
}

impl Bed {
    fn start() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let (client, peer) = (port(), port());
        let url = format!("http://127.0.0.1:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        let mut bed = Bed {
            etcd: EtcdConfig {
                endpoints: vec![url.clone()],
                ca: None,
                cert: None,
                key: None,
                timeout: EtcdConfig::TIMEOUT,
            },
            units: Vec::new(),
            dir,
        };
        let data = bed.data_dir().display().to_string();
        let args = [
            "--name",
            "m1",
            "--data-dir",
            &data,
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster-token",
            "its-own",
            "--initial-cluster",
            &format!("m1={peer}"),
            "--log-level",
            "warn",
        ];
        bed.unit("etcd", &program("etcd"), &args).start(&[]).unwrap();
        bed
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn unit(&mut self, name: &str, program: &Path, args: &[&str]) -> ProcessUnit {
        let unit = ProcessUnit::open(&self.dir.path().join(name)).unwrap();
        let mut argv = vec![program.display().to_string()];
        argv.extend(args.iter().map(ToString::to_string));
        let log = self.dir.path().join(format!("{name}.log"));
        let command = Command { argv, env: BTreeMap::new(), hostname: None, log };
        unit.set_command(&command).unwrap();
        self.units.push(unit.clone());
        unit
    }

    async fn connect(&self) -> Etcd {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            match Etcd::connect(&self.etcd).await {
                Ok(etcd) => return etcd,
                Err(e) if Instant::now() > until => panic!("etcd does not answer: {e}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn scrub(&self) -> Scrub {
        let shared = |u: &ProcessUnit| -> Arc<dyn Supervisor> { Arc::new(u.clone()) };
        let named = |(i, u): (usize, _)| (self.dir.path().join(i.to_string()), shared(u));
        Scrub {
            etcd: self.etcd.clone(),
            member: shared(&self.units[0]),
            api_servers: self.units.iter().enumerate().skip(1).map(named).collect(),
            fence: self.dir.path().join("fence.json"),
            data_dir: self.data_dir(),
            cluster_token: "its-own".to_owned(),
            etcdutl: program("etcdutl"),
        }
    }

    /// How many of the files below the data directory hold `marker`, byte by byte.
    fn files_with(&self, marker: &str) -> Vec<PathBuf> {
        let mut dirs = vec![self.data_dir()];
        let mut found = Vec::new();
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    let bytes = std::fs::read(&path).unwrap();
                    if memchr::memmem::find(&bytes, marker.as_bytes()).is_some() {
                        found.push(path);
                    }
                }
            }
        }
        found
    }
}

fn quiet(_: &str) {}

/// A rewritten store: 300 keys that were plaintext once and are not any more.
async fn rewritten(etcd: &Etcd) {
    for i in 0..300 {
        let key = format!("/registry/secrets/ns/s{i}").into_bytes();
        let value = [residue::PROTOBUF_SECRET, b"the-marker", &[b'x'; 500][..]].concat();
        etcd.put_if_unchanged(Swap { key: key.clone(), mod_revision: 0, value }).await.unwrap();
        let found = etcd.get(&key).await.unwrap().record.unwrap();
        let value = b"k8s:enc:secretbox:v1:k:sealed".to_vec();
        let swap = Swap { key, mod_revision: found.mod_revision, value };
        etcd.put_if_unchanged(swap).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_step_is_carried_on_or_rolled_back() {
    let mut bed = Bed::start();
    let sleep = program("sleep");
    let server = bed.unit("server", &sleep, &[]);
    let idle = bed.unit("idle", &sleep, &["1000"]);
    server.start(&["1000".to_owned()]).unwrap();
    idle.hold("root key suspended").unwrap();
    let etcd = bed.connect().await;
    rewritten(&etcd).await;
    let (keys, revision) = etcd.count(b"").await.unwrap();
    let mut last = false;
    for step in 0.. {
        let count = Arc::new(AtomicUsize::new(0));
        let (scrub, counted) = (bed.scrub(), count.clone());
        // Unwinds out of a step as if the process ended there: nothing is tidied up.
        let run = tokio::spawn(async move {
            let say = move |_: &str| {
                assert!(counted.fetch_add(1, Ordering::SeqCst) != step, "the crash of this test");
            };
            scrub.run(&say).await
        });
        match run.await {
            Ok(outcome) => {
                outcome.unwrap();
                last = true;
            }
            Err(crash) => {
                assert!(crash.is_panic());
                // By another agent of the machine: its own API server comes first.
                let mut scrub = bed.scrub();
                scrub.api_servers.reverse();
                scrub.resume(&quiet).await.unwrap();
            }
        }
        let etcd = bed.connect().await;
        let now = etcd.count(b"").await.unwrap();
        assert_eq!(now.0, keys, "step {step}");
        assert!(now.1 >= revision, "step {step}: time went back");
        let seen = server.observe().unwrap();
        assert!(seen.process.is_some() && seen.held.is_none(), "step {step}: {seen:?}");
        assert_eq!(seen.extra_args, ["1000"]);
        // Somebody else's hold stays.
        let fenced = idle.observe().unwrap();
        assert_eq!((fenced.process, fenced.held.as_deref()), (None, Some("root key suspended")));
        let left: Vec<_> = std::fs::read_dir(bed.data_dir())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(left, ["member"], "step {step}");
        if last {
            assert!(step >= 5, "only {step} steps");
            break;
        }
    }
    assert_eq!(bed.files_with("the-marker"), Vec::<PathBuf>::new());
    let value = etcd.get(b"/registry/secrets/ns/s7").await.unwrap().record.unwrap();
    assert_eq!(value.value.as_ref(), b"k8s:enc:secretbox:v1:k:sealed");
    another_agent_waits(&bed, &server).await;
    a_lease_may_end_meanwhile(&bed).await;
    what_fails_is_carried_on(&bed, &server).await;
    // Without an etcdutl nothing is stopped; with one that fails nothing changes.
    let before = server.observe().unwrap().process;
    let broken = Scrub { etcdutl: program("false"), ..bed.scrub() };
    assert!(broken.run(&quiet).await.unwrap_err().never());
    assert_eq!(server.observe().unwrap().process, before);
    let failing = bed.dir.path().join("failing");
    let etcdutl = program("etcdutl").display().to_string();
    let script = format!("#!/bin/sh\n[ \"$1\" = version ] && exec {etcdutl} version\nexit 1\n");
    std::fs::write(&failing, script).unwrap();
    std::fs::set_permissions(&failing, std::fs::Permissions::from_mode(0o700)).unwrap();
    let broken = Scrub { etcdutl: failing, ..bed.scrub() };
    assert!(matches!(broken.run(&quiet).await, Err(ScrubError::Restore(_))));
    assert_eq!(bed.connect().await.count(b"").await.unwrap().0, keys);
    assert!(server.observe().unwrap().process.is_some_and(|p| Some(p) != before));
    // A fence that fell during the scrub: its API server stays dead.
    std::fs::write(bed.dir.path().join("fence.json"), "{}").unwrap();
    bed.scrub().run(&quiet).await.unwrap();
    let seen = server.observe().unwrap();
    assert_eq!((seen.process, seen.held), (None, None));
}

fn lock(bed: &Bed) -> Result<std::fs::File, rustix::io::Errno> {
    use rustix::fs::{FlockOperation, flock};
    let dir = std::fs::File::open(bed.data_dir()).unwrap();
    flock(&dir, FlockOperation::NonBlockingLockExclusive).map(|()| dir)
}

/// One scrub of a member at a time, whoever asks.
async fn another_agent_waits(bed: &Bed, server: &ProcessUnit) {
    let before = server.observe().unwrap().process;
    let locked = lock(bed).unwrap();
    assert!(matches!(bed.scrub().run(&quiet).await, Err(ScrubError::Busy)));
    assert_eq!(server.observe().unwrap().process, before, "nothing was stopped");
    drop(locked);
    let steps = AtomicUsize::new(0);
    let say = |_: &str| {
        steps.fetch_add(1, Ordering::SeqCst);
        assert!(lock(bed).is_err(), "locked at each step");
    };
    bed.scrub().run(&say).await.unwrap();
    assert!(steps.load(Ordering::SeqCst) > 0 && lock(bed).is_ok());
}

/// etcd deletes by itself what hangs on a lease that ends: nobody wrote.
async fn a_lease_may_end_meanwhile(bed: &Bed) {
    let etcd = bed.connect().await;
    let (keys, _) = etcd.count(b"").await.unwrap();
    let address = bed.etcd.endpoints[0].trim_start_matches("http://");
    let post = |path: &str, body: &str| {
        let mut to = std::net::TcpStream::connect(address).unwrap();
        let length = body.len();
        let head = "Host: etcd\r\nConnection: close\r\nContent-Length:";
        write!(to, "POST {path} HTTP/1.1\r\n{head} {length}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        to.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{body}: {answer}");
    };
    let gone = async || {
        let until = Instant::now() + Duration::from_secs(60);
        while etcd.count(b"").await.unwrap().0 > keys {
            assert!(Instant::now() < until, "the lease does not end");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let then = |text: &str| match text {
        "compacting and defragmenting etcd" => {
            post("/v3/lease/grant", r#"{"TTL":5,"ID":7}"#);
            post("/v3/kv/put", r#"{"key":"ZXZlbnQ=","value":"eA==","lease":7}"#);
        }
        "stopping etcd and rebuilding it from its snapshot" => tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(gone());
        }),
        _ => {}
    };
    let outcome = bed.scrub().run(&then).await.unwrap();
    assert_eq!(outcome.keys, keys + 1, "it was there when they were counted");
    // The snapshot may have it still, and its lease begins anew.
    bed.connect().await;
    gone().await;
}

/// A disk that takes no note once the fresh member is in place: the API servers are held, and come
/// back without anybody's doing when the disk takes it.
async fn what_fails_is_carried_on(bed: &Bed, server: &ProcessUnit) {
    let in_the_way = bed.data_dir().join("claviger-scrub.json.new");
    let say = |text: &str| {
        if text == "starting the rebuilt etcd" {
            std::fs::create_dir(&in_the_way).unwrap();
        }
    };
    assert!(matches!(bed.scrub().run(&say).await, Err(ScrubError::File(_))));
    assert_eq!(server.observe().unwrap().process, None);
    bed.connect().await;
    let scrub = bed.scrub();
    let tended = tokio::spawn(claviger_cluster::scrub::tend(move || Some(scrub.clone())));
    std::fs::remove_dir(&in_the_way).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while server.observe().unwrap().process.is_none()
        || bed.data_dir().join("claviger-scrub.json").exists()
    {
        assert!(Instant::now() < until, "carried on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tended.abort();
    let _ = tended.await;
    assert!(!bed.data_dir().join("claviger-scrub").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_secrets_of_a_real_api_server_leave_nothing_behind() {
    let mut bed = Bed::start();
    bed.connect().await;
    let dir = bed.dir.path().to_owned();
    let at = |name: &str| dir.join(name);
    let key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(at("sa.key"), key.serialize_pem()).unwrap();
    std::fs::write(at("sa.pub"), key.public_key_pem()).unwrap();
    std::fs::write(at("tokens"), "admin,admin,admin,system:masters\n").unwrap();
    let encryption = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
        resources: [{resources: [secrets], providers: [{secretbox: {keys: [{name: k, secret: \
        MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=}]}}, {identity: {}}]}]\n";
    std::fs::write(at("encryption.yaml"), encryption).unwrap();
    let path = |name: &str| at(name).display().to_string();
    let secure = port().to_string();
    let args = [
        format!("--etcd-servers={}", bed.etcd.endpoints[0]),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={secure}"),
        format!("--cert-dir={}", path("pki")),
        "--service-account-issuer=https://test.local".to_owned(),
        format!("--service-account-key-file={}", path("sa.pub")),
        format!("--service-account-signing-key-file={}", path("sa.key")),
        format!("--token-auth-file={}", path("tokens")),
        "--authorization-mode=RBAC".to_owned(),
        "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        "--disable-admission-plugins=ServiceAccount".to_owned(),
    ];
    let extra = [format!("--encryption-provider-config={}", path("encryption.yaml"))];
    let list = (0..1000).map(|i| {
        format!(
            r#"{{"apiVersion":"v1","kind":"Secret","metadata":{{"name":"s{i}","namespace":"default"}},"stringData":{{"a":"planted-marker-{i}-{}"}}}}"#,
            "x".repeat(if i % 250 == 0 { 150_000 } else { 800 })
        )
    });
    let list: Vec<_> = list.collect();
    let text = format!(r#"{{"apiVersion":"v1","kind":"List","items":[{}]}}"#, list.join(","));
    std::fs::write(at("secrets.json"), text).unwrap();
    let (planted, rewritten) = (path("secrets.json"), path("rewritten.json"));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let server = bed.unit("apiserver", &program("kube-apiserver"), &args);
    let kubectl = |args: &[&str]| {
        let out = std::process::Command::new(program("kubectl"))
            .args(["--server", &format!("https://127.0.0.1:{secure}"), "--token", "admin"])
            .args(["--insecure-skip-tls-verify", "--kubeconfig", "/dev/null"])
            .args(args)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if out.status.success() { Ok(text) } else { Err(format!("{out:?}")) }
    };
    let ready = || {
        let until = Instant::now() + Duration::from_secs(90);
        while kubectl(&["get", "--raw", "/readyz"]).as_deref() != Ok("ok") {
            if Instant::now() > until {
                let log = std::fs::read_to_string(at("apiserver.log")).unwrap_or_default();
                panic!("the API server is not ready; its log ends: {:?}", log.lines().last());
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    };
    server.start(&[]).unwrap();
    ready();
    kubectl(&["create", "-f", &planted]).unwrap();
    // etcd writes its database down every 100 ms.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = residue::scan(&bed.data_dir(), None).unwrap();
    assert!(before.db >= 1000 && before.wal >= 1000, "{before:?}");

    server.kill().unwrap();
    server.start(&extra).unwrap();
    ready();
    let all = kubectl(&["get", "secrets", "-o", "json"]).unwrap();
    std::fs::write(&rewritten, &all).unwrap();
    kubectl(&["replace", "-f", &rewritten]).unwrap();

    let outcome = bed.scrub().run(&quiet).await.unwrap();
    let found = outcome.before.unwrap();
    assert!(found.wal >= 1000, "{found:?}");
    assert_eq!((outcome.after.db, outcome.after.wal), (0, 0), "{:?}", outcome.after);
    assert_eq!(bed.files_with("planted-marker"), Vec::<PathBuf>::new());

    ready();
    assert_eq!(server.observe().unwrap().extra_args, extra);
    let data = |text: &str| -> BTreeMap<String, String> {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let items = value["items"].as_array().unwrap();
        let pair =
            |s: &serde_json::Value| (s["metadata"]["name"].to_string(), s["data"].to_string());
        items.iter().map(pair).collect()
    };
    let again = kubectl(&["get", "secrets", "-o", "json"]).unwrap();
    assert_eq!(data(&again), data(&all));
    kubectl(&["create", "secret", "generic", "after", "--from-literal=a=b"]).unwrap();
}
