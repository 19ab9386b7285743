//! `cargo xtask conformance [--check] [--only SUITE]`: real clients of Key Protect against a
//! running key service.

use crate::sh::{self, Done, cargo};
use std::path::PathBuf;
use std::process::Command;

/// Builds and starts the program `claviger-conformance` of the crate `tests`.
pub fn run(args: &[String]) -> Done {
    sh::need_basics()?;
    let claviger = sh::build_claviger()?;
    let program = build()?;
    let status = Command::new(&program)
        .args(args)
        .env("CLAVIGER_BIN", claviger)
        .status()
        .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    if status.success() { Ok(()) } else { Err(format!("conformance ended with {status}")) }
}

/// Builds it.
pub fn build() -> Result<PathBuf, String> {
    let args = ["build", "--locked", "-p", "claviger-tests", "--bin", "claviger-conformance"];
    sh::run("building conformance", cargo().args(args))?;
    sh::beside_us("claviger-conformance")
}
