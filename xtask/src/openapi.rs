//! `cargo xtask openapi`: writes the description of the server's interface out of its code.

use crate::sh::{self, Done, root};
use std::fs;
use std::process::Command;

/// Where it lies. A test of the server holds it against the code.
const FILE: &str = "docs/openapi.json";

/// Builds the server and has it say what it answers.
pub fn run(args: &[String]) -> Done {
    if let Some(arg) = args.first() {
        return Err(format!("openapi takes no {arg:?}"));
    }
    let claviger = sh::build_claviger()?;
    let text = sh::output(Command::new(claviger).args(["server", "openapi"]))?;
    let path = root().join(FILE);
    fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}
