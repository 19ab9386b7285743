//! `cargo xtask torture [--runs N] [--seed S] [--minutes M]`: kills processes at random moments.

use crate::sh::{self, Done, cargo};
use crate::testbed;
use std::path::PathBuf;
use std::process::Command;

/// Builds and starts the program `claviger-torture` of the crate `tests`.
pub fn run(args: &[String]) -> Done {
    sh::need_basics()?;
    testbed::run(&[])?;
    let claviger = sh::build_claviger()?;
    let program = build()?;
    let status = Command::new(&program)
        .args(args)
        .env("CLAVIGER_BIN", claviger)
        .status()
        .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    if status.success() { Ok(()) } else { Err(format!("torture ended with {status}")) }
}

/// Builds it.
pub fn build() -> Result<PathBuf, String> {
    let args = ["build", "--locked", "-p", "claviger-tests", "--bin", "claviger-torture"];
    sh::run("building torture", cargo().args(args))?;
    sh::beside_us("claviger-torture")
}
