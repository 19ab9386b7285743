//! `cargo xtask demo`: builds what the demo needs and starts it. The demo itself is a program of
//! the crate `tests`, so that this one stays small and quick to build.

use crate::sh::{self, Done};
use crate::testbed;
use std::process::Command;

/// Runs it; every argument but `--kubernetes`, which the testbed sees too, is the demo's own.
pub fn run(args: &[String]) -> Done {
    sh::need_basics()?;
    testbed::run(&minor(args))?;
    let claviger = sh::build_claviger()?;
    let demo = sh::beside_us("claviger-demo")?;
    let status = Command::new(&demo)
        .args(args)
        .env("CLAVIGER_BIN", claviger)
        .status()
        .map_err(|e| format!("cannot start {}: {e}", demo.display()))?;
    if status.success() { Ok(()) } else { Err(format!("the demo ended with {status}")) }
}

/// What the testbed is asked for: the one minor that the demo will use.
fn minor(args: &[String]) -> Vec<String> {
    match args.iter().position(|arg| arg == "--kubernetes") {
        Some(at) => args[at..].iter().take(2).cloned().collect(),
        None => ["--kubernetes", testbed::MINORS[0]].map(String::from).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_minor_is_built_and_no_other() {
        let args = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        for (given, want) in [
            ("", "--kubernetes 1.37"),
            ("--keep --secrets 20", "--kubernetes 1.37"),
            ("--keep --kubernetes 1.34 --secrets 20", "--kubernetes 1.34"),
            ("--kubernetes", "--kubernetes"),
        ] {
            assert_eq!(minor(&args(given)), args(want), "{given}");
        }
    }
}
