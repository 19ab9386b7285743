//! `cargo xtask tidy`: whatever can be checked without running the program.

use crate::sh::{self, Done, cargo, say};

mod arrows;
mod tools;
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
    sh::run("format", cargo().args(["fmt", "--all", "--check"]))?;
    sh::run("fetching what Cargo.lock names", cargo().args(["fetch", "--locked", "--quiet"]))?;
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
