//! A client that reads and writes Secrets all the time and counts every failure.

use crate::Outcome;
use crate::kube::Kube;
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;

/// What the traffic did so far.
#[derive(Default)]
struct Tally {
    reads: AtomicU64,
    writes: AtomicU64,
    /// The first few failures in words; all are counted.
    failures: Mutex<Vec<String>>,
    failed: AtomicU64,
    stop: AtomicBool,
}

/// Failures that are kept in words.
const KEPT: usize = 5;

/// Where its Secrets live.
const NAMESPACE: &str = "traffic";

/// Running traffic.
pub struct Traffic {
    tally: Arc<Tally>,
    tasks: Vec<JoinHandle<()>>,
}

/// What the traffic did in all.
#[derive(Debug)]
pub struct Report {
    /// Reads that gave what was written.
    pub reads: u64,
    /// Writes that were accepted.
    pub writes: u64,
    /// Reads and writes that failed, or gave something else than was written.
    pub failed: u64,
    /// The first few failures.
    pub failures: Vec<String>,
}

impl Traffic {
    /// Starts one writer and one reader on each of `pairs` Secrets.
    pub async fn start(kube: &Kube, pairs: usize) -> Outcome<Traffic> {
        kube.namespace(NAMESPACE).await?;
        let tally = Arc::new(Tally::default());
        let mut tasks = Vec::new();
        for pair in 0..pairs {
            let name = format!("pair-{pair}");
            kube.create(NAMESPACE, &secret(&name, 0)).await?;
            let newest = Arc::new(AtomicU64::new(0));
            let (k, t, n) = (kube.clone(), Arc::clone(&tally), Arc::clone(&newest));
            tasks.push(tokio::spawn(write(k, t, n, name.clone())));
            tasks.push(tokio::spawn(read(kube.clone(), Arc::clone(&tally), newest, name)));
        }
        Ok(Traffic { tally, tasks })
    }

    /// Ends it and tells what it did.
    pub async fn stop(self) -> Report {
        self.tally.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            drop(task.await);
        }
        let failures = self.tally.failures.lock().map(|f| f.clone()).unwrap_or_default();
        Report {
            reads: self.tally.reads.load(Ordering::Relaxed),
            writes: self.tally.writes.load(Ordering::Relaxed),
            failed: self.tally.failed.load(Ordering::Relaxed),
            failures,
        }
    }
}

impl Tally {
    fn fail(&self, what: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut kept) = self.failures.lock()
            && kept.len() < KEPT
        {
            kept.push(what);
        }
    }
}

fn secret(name: &str, number: u64) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
           "stringData": {"number": number.to_string()}})
}

async fn write(kube: Kube, tally: Arc<Tally>, newest: Arc<AtomicU64>, name: String) {
    let mut number = 0;
    while !tally.stop.load(Ordering::Relaxed) {
        number += 1;
        match kube.replace(NAMESPACE, &secret(&name, number)).await {
            Ok(()) => {
                newest.store(number, Ordering::Release);
                tally.writes.fetch_add(1, Ordering::Relaxed);
            }
            Err(why) => tally.fail(format!("write: {why}")),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn read(kube: Kube, tally: Arc<Tally>, newest: Arc<AtomicU64>, name: String) {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    while !tally.stop.load(Ordering::Relaxed) {
        let least = newest.load(Ordering::Acquire);
        match kube.read(NAMESPACE, &name).await {
            Ok(data) => {
                let number = data["number"].as_str().and_then(|text| STANDARD.decode(text).ok());
                let number = number.and_then(|b| String::from_utf8(b).ok()?.parse::<u64>().ok());
                match number {
                    Some(number) if number >= least => {
                        tally.reads.fetch_add(1, Ordering::Relaxed);
                    }
                    other => tally.fail(format!("read {other:?} after {least} was written")),
                }
            }
            Err(why) => tally.fail(format!("read: {why}")),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
