//! `cargo xtask torture [--runs N] [--seed S]`: kills processes at random moments.

use crate::sh::{self, Done, cargo};
use crate::testbed;
use std::process::Command;

/// Builds and starts the program `claviger-torture` of the crate `tests`.
pub fn run(args: &[String]) -> Done {
    if !sh::root().join("tests/src/bin/claviger-torture.rs").is_file() {
        return Err("torture is not written yet".to_owned());
    }
    sh::need_basics()?;
    testbed::run(&[])?;
    let claviger = sh::build_claviger()?;
    sh::run(
        "building torture",
        cargo().args(["build", "--locked", "-p", "claviger-tests", "--bin", "claviger-torture"]),
    )?;
    let program = sh::beside_us("claviger-torture")?;
    let status = Command::new(&program)
        .args(args)
        .env("CLAVIGER_BIN", claviger)
        .status()
        .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    if status.success() { Ok(()) } else { Err(format!("torture ended with {status}")) }
}
