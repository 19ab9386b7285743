//! How long it takes to be refused a key that is there and one that is not, by somebody who has a
//! role on another key of the instance. The answers are equal byte for byte and come of the same
//! statements (a test sees to both); this prints what is left of the difference.
//!
//! Calls alternate, in a random order within each turn. `t` is Welch's statistic of the logarithms: beyond
//! 4 or so the two can be told apart with so many calls. `--calls N` sets how many.

use claviger_bench::real::Failure;
use claviger_bench::service::Service;
use claviger_bench::{arguments, median};
use claviger_tests::load::Random;
use reqwest::Method;
use std::time::Instant;

const MISSING: &str = "11111111-2222-4333-8444-555555555555";

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let [calls] = arguments([("--calls", 5_000)])?;
    let service = Service::start("timing", &["--calls-per-second", "0"])?;
    let first = service.first().await?;
    let (there, mine) = (first.root("there").await?, first.root("mine").await?);
    let other = service.let_in(&first, "other", "Manager", Some(&mine)).await?;
    println!("| named by | there, us | not there, us | ratio | t |");
    println!("|---|---|---|---|---|");
    let mut random = Random::new(1);
    for (what, names) in [("id", [there.as_str(), MISSING]), ("alias", ["there", "missing"])] {
        let paths = names.map(|name| format!("/api/v2/keys/{name}/metadata"));
        let mut times = [Vec::new(), Vec::new()];
        for turn in 0..calls + 100 {
            let begin = random.between(0, 2) as usize;
            for which in [begin, 1 - begin] {
                let begun = Instant::now();
                let (status, _) = other.ask(Method::GET, &paths[which], "").await?;
                let took = begun.elapsed().as_secs_f64() * 1e6;
                if status != 401 {
                    return Err(format!("{} was answered {status}", paths[which]).into());
                }
                // The first ones warm up.
                if turn >= 100 {
                    times[which].push(took);
                }
            }
        }
        let [there, missing] = &times;
        let (a, b, t) = (median(there), median(missing), welch(there, missing));
        println!("| {what} | {a:.1} | {b:.1} | {:.3} | {t:.1} |", a / b);
    }
    Ok(())
}

/// Welch's t of the logarithms of two samples.
fn welch(a: &[f64], b: &[f64]) -> f64 {
    let moments = |values: &[f64]| {
        let n = values.len() as f64;
        let mean = values.iter().map(|v| v.ln()).sum::<f64>() / n;
        let variance = values.iter().map(|v| (v.ln() - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (mean, variance / n)
    };
    let ((a, of_a), (b, of_b)) = (moments(a), moments(b));
    (a - b) / (of_a + of_b).sqrt()
}
