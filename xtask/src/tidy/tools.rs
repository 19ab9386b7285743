//! Checks by other people's tools, at pinned versions, kept in the project's cache.

use crate::sh::{self, Done, cargo, root};
use std::path::PathBuf;
use std::process::Command;

const DENY: Tool = ("cargo-deny", "0.20.2");
const MACHETE: Tool = ("cargo-machete", "0.9.2");

/// Builds the fuzz targets.
pub const FUZZ: Tool = ("cargo-fuzz", "0.13.2");

/// A tool's name and version.
pub type Tool = (&'static str, &'static str);

/// Bans, licences and sources of every dependency, the fuzz targets' too. Offline: advisories change while code does
/// not, so they have no place in a check that must give the same answer tomorrow.
pub fn deny() -> Done {
    let tool = tool(DENY)?;
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let mut command = Command::new(&tool);
        command.current_dir(root()).args(["--offline", "--locked", "--manifest-path", manifest]);
        // The same settings for both.
        command.args(["--config", "deny.toml", "check", "bans", "licenses", "sources"]);
        sh::run(&format!("bans, licences, sources (cargo-deny) of {manifest}"), &mut command)?;
    }
    Ok(())
}

/// Dependencies that a Cargo.toml names and no code uses.
pub fn machete() -> Done {
    let tool = tool(MACHETE)?;
    sh::run(
        "unused dependencies (cargo-machete)",
        Command::new(tool).current_dir(root()).args(["crates", "xtask", "bench", "tests", "fuzz"]),
    )
}

/// Finds the tool in the cache, installs it there if it is missing or of another version.
pub fn tool((name, version): Tool) -> Result<PathBuf, String> {
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
