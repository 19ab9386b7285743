//! `cargo xtask torture [KIND] [--runs N] [--seed S] [--minutes M]`: kills processes at random
//! moments.

use crate::sh::{self, Done};
use crate::testbed;
use std::process::Command;

/// A program of the crate `tests`.
pub const PROGRAM: &str = "claviger-torture";

/// The kind that needs no cluster.
pub const KEY_SERVICE: &str = "key-service";
/// The kind that does.
pub const CLUSTER: &str = "cluster";

/// Builds and starts it.
pub fn run(args: &[String]) -> Done {
    sh::need_basics()?;
    if args.first().is_none_or(|kind| kind != KEY_SERVICE) {
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
