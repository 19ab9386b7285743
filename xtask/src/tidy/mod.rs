//! `cargo xtask tidy`: whatever can be checked without running the program.

use crate::sh::{self, Done, cargo, say};

mod arrows;
pub mod tools;
mod words;

/// Runs every check, cheap ones first; all of the cheap ones even when one fails.
pub fn run(args: &[String]) -> Done {
    if let Some(arg) = args.first() {
        return Err(format!("tidy takes no {arg:?}"));
    }
    let mut complaints = Vec::new();
    say("borders between crates");
    complaints.extend(arrows::check()?);
    say("words and lengths of files");
    complaints.extend(words::check()?);
    for complaint in &complaints {
        eprintln!("    {complaint}");
    }
    if !complaints.is_empty() {
        return Err(format!("{} complaint(s), see above", complaints.len()));
    }
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let of = ["--manifest-path", manifest];
        sh::run("format", cargo().arg("fmt").args(of).args(["--all", "--check"]))?;
        let fetch = ["fetch", "--locked", "--quiet"];
        sh::run("fetching what Cargo.lock names", cargo().args(fetch).args(of))?;
    }
    tools::machete()?;
    tools::deny()?;
    sh::run(
        "clippy, warnings are errors",
        cargo().args([
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]),
    )
}
