//! `cargo xtask test`: every test there is, cheapest first.

use crate::sh::{self, Done, cargo, say};
use crate::{conformance, fuzz, schemathesis, testbed, tidy, torture};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Test threads of the unit tests: many start processes and wait for disks, so a machine of
/// few cores is not helped by more.
const THREADS: usize = 4;
const ONE: &str = "--test-threads=1";

/// What was counted so far.
#[derive(Default, Debug, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

/// Runs it. `--quick` leaves the end-to-end tests out.
pub fn run(args: &[String]) -> Done {
    let quick = match args {
        [] => false,
        [arg] if arg == "--quick" => true,
        _ => return Err(format!("test takes --quick, not {args:?}")),
    };
    sh::need_basics()?;
    if !quick {
        sh::need_for_tests()?;
    }
    let started = Instant::now();
    tidy::run(&[])?;
    // Tests of single crates start a real etcd and kube-apiserver too.
    testbed::run(&[])?;
    let mut count = Count::default();
    let mut whole = cargo_test(
        "unit tests and tests in process",
        &["--workspace", "--", &format!("--test-threads={THREADS}")],
        &[],
        &mut count,
    )?;
    if !quick {
        // The tests above have built every program too. The same set of packages here, or cargo
        // would build the dependencies again with other features.
        let claviger = sh::beside_us("claviger")?;
        let claviger = claviger.to_string_lossy();
        // One at a time: each starts a whole cluster.
        whole &= cargo_test(
            "end-to-end tests on real API servers and etcd",
            &[
                "--workspace",
                "--test",
                "dev",
                "--test",
                "e2e",
                "--test",
                "login",
                "--",
                "--ignored",
                ONE,
            ],
            &[("CLAVIGER_BIN", &claviger)],
            &mut count,
        )?;
    }
    if !quick {
        whole &= conformance(&mut count)?;
        whole &= schemathesis(&mut count)?;
        whole &= fuzz(&mut count)?;
        whole &= torture(torture::KEY_SERVICE, "3", &mut count)?;
        whole &= torture(torture::POWER, "3", &mut count)?;
        whole &= torture(torture::CLUSTER, "12", &mut count)?;
    }
    eprintln!("    {} s in all", started.elapsed().as_secs());
    println!("{} passed, {} failed", count.passed, count.failed);
    if whole && count.failed == 0 { Ok(()) } else { Err("some tests failed; see above".to_owned()) }
}

/// Real clients of Key Protect. What a committed table says that they cannot do is no failure;
/// that they can do less than it says is one.
fn conformance(count: &mut Count) -> Result<bool, String> {
    let program = sh::beside_us(conformance::PROGRAM)?;
    let claviger = sh::beside_us("claviger")?;
    let mut command = Command::new(program);
    let command = command.arg("--check").env("CLAVIGER_BIN", claviger);
    let whole = told("real clients of Key Protect", command, |line| {
        if let Some(passed) =
            line.strip_prefix("conformance: ").and_then(|rest| rest.split(' ').next())
        {
            count.passed += passed.parse::<u64>().unwrap_or(0);
        }
    })?;
    if !whole {
        count.failed += 1;
    }
    Ok(whole)
}

/// Every operation that the server describes, by the same requests each time.
fn schemathesis(count: &mut Count) -> Result<bool, String> {
    let mut command = Command::new(sh::beside_us(schemathesis::PROGRAM)?);
    let command = command.env("CLAVIGER_BIN", sh::beside_us("claviger")?);
    let whole = told("the server against its own description", command, |line| {
        if let Some(operations) =
            line.strip_prefix("schemathesis: ").and_then(|rest| rest.split(' ').next())
        {
            count.passed += operations.parse::<u64>().unwrap_or(0);
        }
    })?;
    if !whole {
        count.failed += 1;
    }
    Ok(whole)
}

/// A minute for each fuzz target; the hours are those of `cargo xtask torture`.
fn fuzz(count: &mut Count) -> Result<bool, String> {
    fuzz::build()?;
    match fuzz::for_so_long(&fuzz::targets()?, fuzz::SECONDS) {
        Ok(passed) => count.passed += passed,
        Err(found) => {
            eprintln!("{found}");
            count.failed += 1;
            return Ok(false);
        }
    }
    Ok(true)
}

/// Ten seeds of kill -9, or power cuts, at random moments; the hundred of `cargo xtask torture` take
/// hours. No new seed begins after so many minutes, so that a slow machine still gets an answer.
fn torture(kind: &str, minutes: &str, count: &mut Count) -> Result<bool, String> {
    let mut command = Command::new(sh::beside_us(torture::PROGRAM)?);
    command.args([kind, "--runs", "10", "--minutes", minutes]);
    let claviger = sh::beside_us("claviger")?;
    let whole = told(
        &format!("kills at random moments ({kind}), ten seeds"),
        command.env("CLAVIGER_BIN", claviger),
        |line| {
            if line.starts_with("seed ") && line.contains(": passed") {
                count.passed += 1;
            }
        },
    )?;
    if !whole {
        count.failed += 1;
    }
    Ok(whole)
}

/// Runs `cargo test`, shows its output, adds up its result lines. False when it failed.
fn cargo_test(
    what: &str,
    args: &[&str],
    env: &[(&str, &str)],
    count: &mut Count,
) -> Result<bool, String> {
    let mut command: Command = cargo();
    command.args(["test", "--locked", "--no-fail-fast"]).args(args);
    command.envs(env.iter().copied());
    told(what, &mut command, |line| add(count, line))
}

/// Runs `command`, shows what it writes and has each line looked at. False when it failed.
fn told(what: &str, command: &mut Command, mut look: impl FnMut(&str)) -> Result<bool, String> {
    say(what);
    let started = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start {}: {e}", command.get_program().display()))?;
    let out = child.stdout.take().expect("standard output is a pipe");
    for line in BufReader::new(out).lines() {
        let line = line.map_err(|e| format!("cannot read what it says: {e}"))?;
        println!("{line}");
        look(&line);
    }
    let status = child.wait().map_err(|e| format!("cannot wait for it: {e}"))?;
    eprintln!("    {:.1} s", started.elapsed().as_secs_f64());
    Ok(status.success())
}

/// Adds a line of the form `test result: ok. 3 passed; 1 failed; 0 ignored; …`.
fn add(count: &mut Count, line: &str) {
    let Some(rest) = line.strip_prefix("test result: ") else { return };
    let number = |word: &str| {
        let words: Vec<&str> = rest.split_whitespace().collect();
        let at = words.iter().position(|w| w.trim_end_matches(';') == word)?;
        words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
    };
    count.passed += number("passed").unwrap_or(0);
    count.failed += number("failed").unwrap_or(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_add_up() {
        let mut count = Count::default();
        add(&mut count, "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured");
        add(&mut count, "test result: FAILED. 3 passed; 2 failed; 0 ignored");
        add(&mut count, "running 7 tests");
        assert_eq!(count, Count { passed: 15, failed: 2 });
    }
}
