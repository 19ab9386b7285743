//! `cargo xtask torture [KIND] [--runs N] [--seed S] [--minutes M]`: kills processes at random
//! moments.

use crate::sh::{self, Done};
use crate::testbed;
use std::process::Command;

/// A program of the crate `tests`.
pub const PROGRAM: &str = "claviger-torture";

/// Builds and starts it.
pub fn run(args: &[String]) -> Done {
    sh::need_basics()?;
    testbed::run(&[])?;
    let claviger = sh::build_claviger()?;
    let program = sh::beside_us(PROGRAM)?;
    let status = Command::new(&program)
        .args(args)
        .env("CLAVIGER_BIN", claviger)
        .status()
        .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    if status.success() { Ok(()) } else { Err(format!("torture ended with {status}")) }
}
