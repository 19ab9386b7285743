//! `cargo xtask fuzz [TARGET] [--seconds N]`: random inputs, guided by what they reach, to every
//! parser of bytes from outside. `cargo xtask fuzz TARGET FILE` replays one input.
//!
//! libFuzzer by cargo-fuzz, on the stable compiler: without a sanitizer it needs nothing else.
//! `fuzz/corpus` has inputs to begin with, among them whatever was found once; what is learnt in
//! a run is kept in the target directory.

use crate::sh::{self, Done, root, say};
use crate::tidy::tools;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

/// Seconds for each target, if nothing else is said: that of the tests.
pub const SECONDS: u64 = 60;
/// Targets at the same time.
const AT_ONCE: usize = 2;
/// Longest time for one input, in seconds: RSA and a machine that is busy.
const INPUT_S: u64 = 30;
/// Most memory of one target, in MiB: a server and its database in memory.
const MEMORY_MIB: u64 = 2048;

/// Fuzzes one target or all, or replays an input.
pub fn run(args: &[String]) -> Done {
    let usage = || "fuzz takes [TARGET] [--seconds N], or TARGET FILE".to_owned();
    let (name, rest) = match args.split_first() {
        Some((name, rest)) if !name.starts_with('-') => (Some(name), rest),
        _ => (None, args),
    };
    let all = targets()?;
    if let Some(name) = name
        && !all.contains(name)
    {
        return Err(format!("no fuzz target {name:?}; there are {}", all.join(", ")));
    }
    let seconds = match (name, rest) {
        (_, []) => SECONDS,
        (_, [flag, number]) if flag == "--seconds" => number.parse().map_err(|_| usage())?,
        (Some(name), [file]) if !file.starts_with('-') => return replay(name, Path::new(file)),
        _ => return Err(usage()),
    };
    build()?;
    let chosen = name.map_or(all, |name| vec![name.clone()]);
    for_so_long(&chosen, seconds).map(drop)
}

/// Every target.
pub fn targets() -> Result<Vec<String>, String> {
    let path = root().join("fuzz/Cargo.toml");
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let manifest: toml::Table = text.parse().map_err(|e| format!("{}: {e}", path.display()))?;
    let bins = manifest.get("bin").and_then(toml::Value::as_array);
    let names = bins.into_iter().flatten().filter_map(|bin| bin.get("name")?.as_str());
    Ok(names.map(str::to_owned).collect())
}

fn directory() -> PathBuf {
    root().join("target/fuzz")
}

/// Builds all of them.
pub fn build() -> Done {
    if !sh::found("c++") {
        return Err(
            "c++ is not in PATH: libFuzzer is built with it (Debian: apt install g++)".into()
        );
    }
    let tool = tools::tool(tools::FUZZ)?;
    let mut command = Command::new(tool);
    command.current_dir(root()).args(["build", "--fuzz-dir", "fuzz", "--sanitizer", "none"]);
    sh::run("building the fuzz targets", command.arg("--target-dir").arg(directory()))
}

fn program(name: &str) -> PathBuf {
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    directory().join(host).join("release").join(name)
}

/// Fuzzes these targets for so long each, two at a time; how many passed.
pub fn for_so_long(targets: &[String], seconds: u64) -> Result<u64, String> {
    say(&format!("fuzzing {} targets, {seconds} s each, {AT_ONCE} at a time", targets.len()));
    let started = Instant::now();
    let waiting = Mutex::new(targets.iter());
    let found = Mutex::new(Vec::new());
    let lock = "no thread of these panics";
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(name) = waiting.lock().expect(lock).next() else { break };
                    match one(name, seconds) {
                        Ok(inputs) => println!("fuzz {name}: {inputs} inputs, nothing found"),
                        Err(why) => found.lock().expect(lock).push(why),
                    }
                }
            });
        }
    });
    eprintln!("    {:.1} s", started.elapsed().as_secs_f64());
    let found = found.into_inner().expect(lock);
    if found.is_empty() { Ok(targets.len() as u64) } else { Err(found.join("\n")) }
}

/// Fuzzes one; how many inputs it tried.
fn one(name: &str, seconds: u64) -> Result<u64, String> {
    let learnt = directory().join("corpus").join(name);
    let artifacts = directory().join("artifacts").join(name);
    for dir in [&learnt, &artifacts] {
        fs::create_dir_all(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    }
    let log = directory().join(format!("{name}.log"));
    let failed = |e| format!("cannot write {}: {e}", log.display());
    let file = File::create(&log).map_err(failed)?;
    let again = file.try_clone().map_err(failed)?;
    let status = Command::new(program(name))
        .arg(&learnt)
        .arg(root().join("fuzz/corpus").join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_S}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(again)
        .status()
        .map_err(|e| format!("cannot start {name}: {e}"))?;
    let said = fs::read(&log).map_err(|e| format!("cannot read {}: {e}", log.display()))?;
    let said = String::from_utf8_lossy(&said);
    if status.success() {
        let number = said.lines().find_map(|l| l.strip_prefix("stat::number_of_executed_units:"));
        return match number.and_then(|n| n.trim().parse().ok()) {
            Some(inputs) if inputs > 0 => Ok(inputs),
            _ => Err(format!("fuzz {name}: it tried nothing; see {}", log.display())),
        };
    }
    let input = said.lines().find_map(|l| l.split_once("Test unit written to ").map(|(_, p)| p));
    let why: Vec<&str> = said.lines().filter(|l| l.contains("panicked at")).take(1).collect();
    let why =
        said.lines().skip_while(|l| !why.contains(l)).take(4).collect::<Vec<_>>().join("\n  ");
    let input = input.unwrap_or("none was kept").trim();
    Err(format!(
        "fuzz {name} found something ({status}; {}):\n  {why}\n  input: {input}\n  replay it: cargo xtask fuzz {name} {input}",
        log.display()
    ))
}

/// One input again, with all that it says.
fn replay(name: &str, file: &Path) -> Done {
    build()?;
    let mut command = Command::new(program(name));
    sh::run(
        &format!("replaying {}", file.display()),
        command.env("CLAVIGER_FUZZ_SHOW", "1").arg(file),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_inputs_to_begin_with() {
        let all = targets().expect("a manifest");
        assert!(all.len() >= 8, "{all:?}");
        for name in all {
            let corpus = root().join("fuzz/corpus").join(&name);
            let inputs = fs::read_dir(&corpus).map(Iterator::count).unwrap_or(0);
            assert!(inputs > 0, "{} is empty", corpus.display());
        }
    }
}
