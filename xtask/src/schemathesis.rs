//! `cargo xtask schemathesis [--examples N] [--seed S]`: the running server against its own
//! description.

use crate::sh::{self, Done};
use std::process::Command;

/// A program of the crate `tests`.
pub const PROGRAM: &str = "claviger-schemathesis";

/// Builds and starts it.
pub fn run(args: &[String]) -> Done {
    sh::need_basics()?;
    let claviger = sh::build_claviger()?;
    let program = sh::beside_us(PROGRAM)?;
    let status = Command::new(&program)
        .args(args)
        .env("CLAVIGER_BIN", claviger)
        .status()
        .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    if status.success() { Ok(()) } else { Err(format!("schemathesis ended with {status}")) }
}
