//! Seeded runs of kill -9 against a real key server, compared with a model.
//!
//! Clients change keys of their own, each one call at a time, while the server is killed at random
//! moments, its start included. Once it answers again, each change that was acknowledged must be
//! there; one whose answer was lost must be there whole or not at all; and every ciphertext that
//! was ever handed out must open as long as its key may.

mod client;
mod model;
mod server;
mod worker;

use crate::dice::Dice;
use crate::torture::Settings;
use claviger_store::rusqlite::Connection;
use client::Client;
use server::Server;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use worker::Worker;

/// Clients at once.
const WORKERS: u64 = 4;
/// How often a run's server is killed.
const LIVES: u64 = 6;
/// Longest life of a server before it is killed.
const LIFE_MS: u64 = 1_500;
/// Key rings that keys are moved between, beside `default`.
pub(crate) const RINGS: [&str; 2] = ["ring-a", "ring-b"];

/// Does the runs, one after the other, and prints a line for each.
pub fn run(settings: &Settings) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let begun = Instant::now();
    let mut done = 0;
    for seed in settings.seed..settings.seed + settings.runs {
        if begun.elapsed() > Duration::from_secs(settings.minutes * 60) {
            println!("time is up after {done} of {} runs; all of them passed", settings.runs);
            break;
        }
        let started = Instant::now();
        let changes = runtime.block_on(one(seed)).map_err(|why| {
            format!(
                "seed {seed}: {why}\nreplay it: cargo xtask torture key-service --runs 1 --seed {seed}"
            )
        })?;
        done += 1;
        let seconds = started.elapsed().as_secs();
        println!("seed {seed}: passed in {seconds} s, {changes} changes acknowledged");
    }
    println!("{done} passed, 0 failed");
    Ok(())
}

/// One seed; the number of changes that were acknowledged.
async fn one(seed: u64) -> Result<u64, String> {
    let mut dice = Dice(seed);
    let mut server = Server::prepare(seed)?;
    server.start().await?;
    let client = Client::first(&server).await?;
    let mut workers: Vec<Worker> = (0..WORKERS)
        .map(|number| Worker::new(number, client.clone(), Dice(dice.below(u64::MAX))))
        .collect();
    let mut acknowledged = BTreeMap::new();
    let ran = async {
        for life in 1..=LIVES {
            let mut running = tokio::task::JoinSet::new();
            for mut worker in workers.drain(..) {
                running.spawn(async move {
                    let done = worker.work().await;
                    (worker, done)
                });
            }
            tokio::time::sleep(Duration::from_millis(dice.below(LIFE_MS))).await;
            server.kill();
            while let Some(ended) = running.join_next().await {
                let (worker, done) = ended.map_err(|e| e.to_string())?;
                done.map_err(|why| format!("life {life}: {why}"))?;
                workers.push(worker);
            }
            workers.sort_by_key(|worker| worker.number);
            // Killed while it starts, too.
            for _ in 0..dice.below(3) {
                server.spawn()?;
                tokio::time::sleep(Duration::from_millis(dice.below(400))).await;
                server.kill();
            }
            server.start().await?;
            for worker in &mut workers {
                let number = worker.number;
                worker
                    .compare()
                    .await
                    .map_err(|why| format!("after life {life}, client {number}: {why}"))?;
            }
        }
        for worker in &workers {
            for (action, count) in &worker.acknowledged {
                *acknowledged.entry(*action).or_insert(0u64) += count;
            }
        }
        server.kill();
        on_record(&server.database(), &acknowledged)
    }
    .await;
    server.kill();
    match ran {
        Ok(()) => {
            server.remove();
            Ok(acknowledged.values().sum())
        }
        Err(why) => {
            Err(format!("{why}\nthe server's files are kept in {}", server.dir().display()))
        }
    }
}

/// Whether each change that was acknowledged has its audit record.
fn on_record(database: &Path, acknowledged: &BTreeMap<&'static str, u64>) -> Result<(), String> {
    let failed = |e: claviger_store::rusqlite::Error| format!("{}: {e}", database.display());
    let connection = Connection::open(database).map_err(failed)?;
    for (action, changes) in acknowledged {
        let sql = "SELECT count(*) FROM audit WHERE action = ?1 AND outcome = 'success'";
        let records: i64 = connection.query_row(sql, [action], |row| row.get(0)).map_err(failed)?;
        if u64::try_from(records).unwrap_or(0) < *changes {
            return Err(format!("{changes} acknowledged {action}, {records} on record"));
        }
    }
    Ok(())
}
