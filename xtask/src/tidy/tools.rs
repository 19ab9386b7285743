//! Checks by other people's tools, at pinned versions, kept in the project's cache.

use crate::sh::{self, Done, cargo, root};
use std::path::PathBuf;
use std::process::Command;

const DENY: (&str, &str) = ("cargo-deny", "0.20.2");
const MACHETE: (&str, &str) = ("cargo-machete", "0.9.2");

/// Bans, licences and sources of every dependency. Offline: advisories change while code does
/// not, so they have no place in a check that must give the same answer tomorrow.
pub fn deny() -> Done {
    let tool = tool(DENY)?;
    sh::run(
        "bans, licences, sources (cargo-deny)",
        Command::new(tool).current_dir(root()).args([
            "--offline",
            "--locked",
            "check",
            "bans",
            "licenses",
            "sources",
        ]),
    )
}

/// Dependencies that a Cargo.toml names and no code uses.
pub fn machete() -> Done {
    let tool = tool(MACHETE)?;
    sh::run(
        "unused dependencies (cargo-machete)",
        Command::new(tool).current_dir(root()).args(["crates", "xtask", "bench", "tests"]),
    )
}

/// Finds the tool in the cache, installs it there if it is missing or of another version.
fn tool((name, version): (&str, &str)) -> Result<PathBuf, String> {
    let tools = sh::cache()?.join("tools");
    let path = tools.join("bin").join(name);
    if path.is_file() {
        let said = sh::output(Command::new(&path).arg("--version")).unwrap_or_default();
        if said.split_whitespace().any(|word| word == version) {
            return Ok(path);
        }
    }
    sh::run(
        &format!("installing {name} {version} into {} (once)", tools.display()),
        cargo()
            .args(["install", "--locked", "--quiet", "--force", "--version", version, "--root"])
            .arg(&tools)
            .arg(name),
    )?;
    Ok(path)
}
