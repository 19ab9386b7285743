//! What a caller who calls ten times as often as he may, by fifty clients, costs another one: p99 of
//! the other's wraps, with the load and without it.
//!
//! Rounds alternate; reported are medians over rounds. `--limit N` sets the calls per second of one
//! caller, `--rounds N` and `--seconds N` how long it is measured.

use claviger_bench::real::Failure;
use claviger_bench::service::{Caller, Service};
use claviger_bench::{arguments, median};
use reqwest::Method;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};

/// Clients of the loud one, and how many times the limit they ask for together.
const CLIENTS: u32 = 50;
const TIMES: u32 = 10;
/// Between two calls of the quiet one.
const PAUSE: Duration = Duration::from_millis(15);

type Answers = BTreeMap<u16, u64>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let numbers = [("--limit", 500), ("--rounds", 5), ("--seconds", 10)];
    let [limit, rounds, seconds] = arguments(numbers)?;
    let (limit, seconds) = (u32::try_from(limit)?, seconds as u64);
    let flags = ["--calls-per-second", &limit.max(1).to_string()];
    let service = Service::start("limits", &flags)?;
    let first = service.first().await?;
    let key = first.root("bench").await?;
    let path: Arc<str> = format!("/api/v2/keys/{key}/actions/wrap").into();
    let quiet = service.let_in(&first, "quiet", "Reader", None).await?;
    let loud = service.let_in(&first, "loud", "Reader", None).await?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Arc::new(loud.again()?));
    }
    let every = Duration::from_secs(1) * CLIENTS / (TIMES * limit.max(1));
    let (mut alone, mut beside, mut answers) = (Vec::new(), Vec::new(), Answers::new());
    for _ in 0..rounds {
        let end = Instant::now() + Duration::from_secs(seconds);
        alone.push(p99(&quiet, &path, end).await?);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut load = JoinSet::new();
        for client in &clients {
            load.spawn(call(client.clone(), path.clone(), every, end));
        }
        beside.push(p99(&quiet, &path, end).await?);
        while let Some(done) = load.join_next().await {
            for (status, count) in done?? {
                *answers.entry(status).or_default() += count;
            }
        }
    }
    let (alone, beside) = (median(&alone), median(&beside));
    println!(
        "| calls/s of one caller | asked for by the loud one | p99 alone, ms | p99 beside it, ms | ratio |"
    );
    println!("|---|---|---|---|---|");
    let asked = TIMES * limit;
    println!("| {limit} | {asked} | {alone:.2} | {beside:.2} | {:.2} |", beside / alone);
    println!("answers to the loud one, by status: {answers:?}");
    Ok(())
}

/// p99 of the wraps of one caller until `end`, in milliseconds; each of them must succeed.
async fn p99(caller: &Caller, path: &str, end: Instant) -> Result<f64, Failure> {
    let mut times = Vec::new();
    while Instant::now() < end {
        let begun = Instant::now();
        let (status, _) = caller.ask(Method::POST, path, "{}").await?;
        if status != 200 {
            return Err(format!("the quiet one was answered {status}").into());
        }
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        sleep(PAUSE).await;
    }
    times.sort_by(f64::total_cmp);
    times.get(times.len() * 99 / 100).copied().ok_or_else(|| "nothing was measured".into())
}

/// Calls at its pace, whatever it is answered, and does not wait as it is told to.
async fn call(
    caller: Arc<Caller>,
    path: Arc<str>,
    every: Duration,
    end: Instant,
) -> Result<Answers, Failure> {
    let mut answers = Answers::new();
    let mut pace = interval(every);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while timeout_at(end, pace.tick()).await.is_ok() {
        let (status, _) = caller.ask(Method::POST, &path, "{}").await?;
        *answers.entry(status).or_default() += 1;
    }
    Ok(answers)
}
