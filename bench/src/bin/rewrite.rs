//! Four ways to store 10,000 Secrets again under a new key, on a real kube-apiserver and etcd:
//! `kubectl get | kubectl replace`, the in-tree StorageVersionMigration, our rewrite through the
//! API server, and a raw get and compare-and-swap loop on etcd (the floor: it does not decode).
//!
//! Each round gives the API server a new key, waits until it writes under it, then lets one way
//! work; etcd's bytes say whether it did. The raw loop alone gets no new key, since it could not use
//! one: it stores each record as it was. Rounds alternate the four ways. Reported per way: records
//! per second of each round and their median, and CPU of API server, etcd and client per record.
//!
//! Needs `CLAVIGER_BIN`; `--secrets N` and `--rounds N` make it smaller.

use claviger_bench::real::{Failure, Real};
use claviger_bench::{arguments, cpu_seconds, median};
use claviger_cluster::control::rewrite::{Pass, WORKERS, name_of};
use claviger_domain::cluster::ring::serial_of;
use claviger_domain::id::Serial;
use claviger_etcd::client::{Swap, Swapped};
use claviger_etcd::record::Record;
use claviger_etcd::resource::Resource;
use claviger_tests::lab::{self, Lab};
use serde_json::json;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const WAYS: [&str; 4] =
    ["kubectl get, replace", "StorageVersionMigration", "claviger", "raw etcd get + CAS"];
const PICKUP: Duration = Duration::from_secs(90);
const MIGRATION: Duration = Duration::from_secs(600);

struct Bench {
    real: Real,
    keys: usize,
    apiserver: i32,
    etcd_pid: i32,
    manager: Child,
}

/// One way's figures in one round.
#[derive(Clone, Copy, Default)]
struct Figures {
    per_second: f64,
    apiserver_us: f64,
    etcd_us: f64,
    client_us: f64,
}

fn main() -> Result<(), Failure> {
    let [secrets, rounds] = arguments([("--secrets", 10_000), ("--rounds", 5)])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(secrets, rounds))
}

async fn measure(secrets: usize, rounds: usize) -> Result<(), Failure> {
    let mut bench = Bench::start(secrets).await?;
    let mut figures = vec![Vec::<Figures>::new(); WAYS.len()];
    for round in 0..rounds {
        for k in 0..WAYS.len() {
            let way = (k + round) % WAYS.len();
            let seen = bench.round(way, secrets).await?;
            eprintln!("round {} {:<24} {:>7.0} records/s", round + 1, WAYS[way], seen.per_second);
            figures[way].push(seen);
        }
    }
    // A pass over records that are not stale: the census finds nothing, so nothing is called.
    let begun = Instant::now();
    let left = bench.stale().await?.len();
    let idle = begun.elapsed();
    println!(
        "| way | records/s (rounds 1 to {rounds}) | median | x kubectl | API server us/record | etcd us/record | client us/record |"
    );
    println!("|---|---|---|---|---|---|---|");
    let of = |way: usize, pick: fn(&Figures) -> f64| {
        median(&figures[way].iter().map(pick).collect::<Vec<_>>())
    };
    for (way, name) in WAYS.iter().enumerate() {
        let each: Vec<String> =
            figures[way].iter().map(|f| format!("{:.0}", f.per_second)).collect();
        println!(
            "| {name} | {} | {:.0} | {:.2} | {:.0} | {:.0} | {:.0} |",
            each.join(", "),
            of(way, |f| f.per_second),
            of(way, |f| f.per_second) / of(0, |f| f.per_second),
            of(way, |f| f.apiserver_us),
            of(way, |f| f.etcd_us),
            of(way, |f| f.client_us),
        );
    }
    println!("\n{secrets} Secrets of 1 KiB, {rounds} rounds, medians.");
    println!("A pass with {left} stale records: {:.2} s.", idle.as_secs_f64());
    bench.end()
}

impl Bench {
    async fn start(secrets: usize) -> Result<Self, Failure> {
        let real = Real::start().await?;
        real.plugin.set(real.ring(1));
        let apiserver = real.restart().await?;
        let lab = &real.lab;
        let manager = manager(lab, &lab.var("KUBECTL")?, &lab.var("KUBECONFIG")?)?;
        real.load(secrets).await?;
        let etcd_pid = lab.var("ETCD_PID")?.parse()?;
        Ok(Self { real, keys: 1, apiserver, etcd_pid, manager })
    }

    fn end(mut self) -> Result<(), Failure> {
        let _ = self.manager.kill();
        let _ = self.manager.wait();
        Ok(self.real.lab.down()?)
    }

    /// A new key, taken up; then one way, timed and checked.
    async fn round(&mut self, way: usize, secrets: usize) -> Result<Figures, Failure> {
        if way != 3 {
            self.new_key().await?;
        }
        let before = (cpu_seconds(self.apiserver), cpu_seconds(self.etcd_pid), self.client_cpu());
        let begun = Instant::now();
        match way {
            0 => self.kubectl()?,
            1 => self.migration().await?,
            2 => self.ours().await?,
            _ => self.raw().await?,
        }
        let seconds = begun.elapsed().as_secs_f64();
        let after = (cpu_seconds(self.apiserver), cpu_seconds(self.etcd_pid), self.client_cpu());
        let left = self.stale().await?.len();
        if way != 3 && left > 0 {
            return Err(format!("{} left {left} records under the old key", WAYS[way]).into());
        }
        let records = secrets as f64;
        let per = |a: f64, b: f64| (b - a) * 1e6 / records;
        Ok(Figures {
            per_second: records / seconds,
            apiserver_us: per(before.0, after.0),
            etcd_us: per(before.1, after.1),
            client_us: per(before.2, after.2),
        })
    }

    /// Our own time, that of children that ended, and the controller manager's.
    fn client_cpu(&self) -> f64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<f64> = rest.split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
        let children: f64 = [13, 14].iter().filter_map(|i| fields.get(*i)).sum();
        let us = cpu_seconds(i32::try_from(std::process::id()).unwrap_or(0));
        us + children / 100.0 + cpu_seconds(i32::try_from(self.manager.id()).unwrap_or(0))
    }

    async fn new_key(&mut self) -> Result<(), Failure> {
        self.keys += 1;
        self.real.plugin.set(self.real.ring(self.keys));
        let begun = Instant::now();
        loop {
            let _ = self.real.kube.kms_providers().await;
            let content = format!("{:032x}", begun.elapsed().as_nanos());
            self.real.kube.put_canary("default", "bench-canary", &content).await?;
            let found = self.real.etcd.get(b"/registry/secrets/default/bench-canary").await?;
            let value = found.record.map(|kv| kv.value.to_vec()).unwrap_or_default();
            if under(&value) == Some(Serial(self.keys as u64)) {
                return Ok(());
            }
            if begun.elapsed() > PICKUP {
                return Err("the API server does not take the new key up".into());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Keys in etcd of records that are not under the newest key.
    async fn stale(&self) -> Result<Vec<Vec<u8>>, Failure> {
        let secrets = Resource::secrets();
        let mut pages = self.real.etcd.range(secrets.prefix().as_bytes(), 0);
        let mut stale = Vec::new();
        while let Some(page) = pages.next().await? {
            for kv in page {
                if under(&kv.value) != Some(Serial(self.keys as u64)) {
                    stale.push(kv.key.to_vec());
                }
            }
        }
        Ok(stale)
    }

    fn kubectl(&self) -> Result<(), Failure> {
        let env = self.real.lab.env()?;
        let kubectl = self.real.lab.kubectl_path()?;
        let script =
            format!("'{kubectl}' get secrets -A -o json | '{kubectl}' replace -f - >/dev/null");
        lab::check("kubectl", lab::run(Command::new("sh").args(["-c", &script]).envs(env))?)?;
        Ok(())
    }

    async fn migration(&self) -> Result<(), Failure> {
        let name = format!("bench-{}", self.keys);
        let file = self.real.lab.dir().join("migration.json");
        let object = json!({
            "apiVersion": "storagemigration.k8s.io/v1", "kind": "StorageVersionMigration",
            "metadata": {"name": name}, "spec": {"resource": {"group": "", "resource": "secrets"}},
        });
        std::fs::write(&file, object.to_string())?;
        let file = file.display().to_string();
        lab::check("create a migration", self.real.lab.kubectl(&["create", "-f", &file])?)?;
        let begun = Instant::now();
        loop {
            let path = "jsonpath={.status.conditions[?(@.status==\"True\")].type}";
            let seen =
                self.real.lab.kubectl(&["get", "storageversionmigration", &name, "-o", path])?;
            let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
            if seen.contains("Succeeded") {
                return Ok(());
            }
            if seen.contains("Failed") || begun.elapsed() > MIGRATION {
                return Err(format!("the migration ended as {seen:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn ours(&self) -> Result<(), Failure> {
        let resources = [Resource::secrets()];
        let stale = self.stale().await?;
        let names = stale.iter().filter_map(|key| name_of(key, &resources)).collect();
        let mut pass = Pass::begin(self.real.kube.clone(), names, WORKERS);
        while pass.more().await {}
        pass.end().map_err(|failed| format!("{failed:?}").into())
    }

    async fn raw(&self) -> Result<(), Failure> {
        let secrets = Resource::secrets();
        let mut pages = self.real.etcd.range(secrets.prefix().as_bytes(), 0);
        let mut keys = Vec::new();
        while let Some(page) = pages.next().await? {
            keys.extend(page.into_iter().map(|kv| kv.key.to_vec()));
        }
        let keys = Arc::new(keys);
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS {
            let (etcd, keys) = (self.real.etcd.clone(), Arc::clone(&keys));
            workers.spawn(async move {
                for key in keys.iter().skip(worker).step_by(WORKERS) {
                    let Some(kv) = etcd.get(key).await?.record else { continue };
                    let swap = Swap {
                        key: key.clone(),
                        value: kv.value.to_vec(),
                        mod_revision: kv.mod_revision,
                    };
                    match etcd.put_if_unchanged(swap).await? {
                        Swapped::Done(_) | Swapped::Changed => {}
                    }
                }
                Ok::<(), Failure>(())
            });
        }
        while let Some(done) = workers.join_next().await {
            done??;
        }
        Ok(())
    }
}

fn under(value: &[u8]) -> Option<Serial> {
    match Record::parse(value) {
        Record::KmsV2(record) => serial_of(record.key_id),
        _ => None,
    }
}

/// The in-tree migration needs a controller manager with its controller and the collector.
fn manager(lab: &Lab, kubectl: &str, kubeconfig: &str) -> Result<Child, Failure> {
    let program = Path::new(kubectl).with_file_name("kube-controller-manager");
    if !program.is_file() {
        let what = "is not there; without KUBEBUILDER_ASSETS `cargo xtask testbed` builds it";
        return Err(format!("{} {what}", program.display()).into());
    }
    let log = std::fs::File::create(lab.dir().join("logs/kube-controller-manager.log"))?;
    Ok(Command::new(program)
        .arg(format!("--kubeconfig={kubeconfig}"))
        .args(["--controllers=storage-version-migrator-controller,garbage-collector-controller"])
        .args([
            "--leader-elect=false",
            "--secure-port=0",
            "--use-service-account-credentials=false",
        ])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?)
}
