//! `cargo xtask demo`: builds what the demo needs and starts it. The demo itself is a program of
//! the crate `tests`, so that this one stays small and quick to build.

use crate::sh::{self, Done};
use crate::testbed;
use std::process::Command;

/// Runs it; every argument but `--kubernetes`, which the testbed sees too, is the demo's own.
pub fn run(args: &[String]) -> Done {
    sh::need_basics()?;
    let minor = args.iter().position(|arg| arg == "--kubernetes").map(|at| &args[at..]);
    let minor: Vec<String> =
        minor.map(|rest| rest.iter().take(2).cloned().collect()).unwrap_or_default();
    testbed::run(&minor)?;
    let claviger = sh::build_claviger()?;
    let demo = sh::beside_us("claviger-demo")?;
    let status = Command::new(&demo)
        .args(args)
        .env("CLAVIGER_BIN", claviger)
        .status()
        .map_err(|e| format!("cannot start {}: {e}", demo.display()))?;
    if status.success() { Ok(()) } else { Err(format!("the demo ended with {status}")) }
}
