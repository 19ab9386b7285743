//! `cargo xtask torture [KIND] [--runs N] [--seed S] [--minutes M]`: kills processes at random
//! moments, and fuzzes for hours.

use crate::sh::{self, Done};
use crate::{fuzz, testbed};
use std::process::Command;

/// A program of the crate `tests`.
pub const PROGRAM: &str = "claviger-torture";

/// The kinds that need no cluster.
pub const KEY_SERVICE: &str = "key-service";
/// The other.
pub const POWER: &str = "power";
/// The kind that does.
pub const CLUSTER: &str = "cluster";
/// The kind that kills nothing.
const FUZZ: &str = "fuzz";

/// Seconds for each fuzz target.
const FUZZ_S: u64 = 3600;

/// Builds and starts it.
pub fn run(args: &[String]) -> Done {
    sh::need_basics()?;
    let kind = args.first().map(String::as_str).filter(|kind| !kind.starts_with('-'));
    if kind != Some(FUZZ) {
        kill(kind, args)?;
    }
    if kind.is_some_and(|kind| kind != FUZZ) {
        return Ok(());
    }
    if kind.is_some() && args.len() > 1 {
        return Err("torture fuzz takes nothing more; see cargo xtask fuzz".to_owned());
    }
    fuzz::build()?;
    fuzz::for_so_long(&fuzz::targets()?, FUZZ_S).map(drop)
}

fn kill(kind: Option<&str>, args: &[String]) -> Done {
    if !matches!(kind, Some(KEY_SERVICE | POWER)) {
        testbed::run(&[])?;
    }
    let claviger = sh::build_claviger()?;
    let program = sh::beside_us(PROGRAM)?;
    let status = Command::new(&program)
        .args(args)
        .env("CLAVIGER_BIN", claviger)
        .status()
        .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    if status.success() { Ok(()) } else { Err(format!("torture ended with {status}")) }
}
