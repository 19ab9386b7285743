//! `cargo xtask bench [NAME]`: measurements, built with optimisation.

use crate::sh::{self, Done, cargo};
use crate::testbed;

/// What a benchmark needs besides itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// A real cluster.
    Cluster,
    /// `claviger`, built with optimisation.
    Server,
}

/// Programs of the crate `bench`.
const BENCHES: &[(&str, Needs)] = &[
    ("audit", Needs::Nothing),
    ("limits", Needs::Server),
    ("plugin", Needs::Nothing),
    ("rewrite", Needs::Cluster),
    ("service", Needs::Server),
    ("start", Needs::Cluster),
    ("timing", Needs::Server),
];

/// Runs one, or each that is there.
pub fn run(args: &[String]) -> Done {
    let (name, rest) = match args.split_first() {
        Some((name, rest)) if !name.starts_with('-') => (Some(name.as_str()), rest),
        _ => (None, args),
    };
    if let Some(name) = name
        && !BENCHES.iter().any(|(known, _)| *known == name)
    {
        let known: Vec<&str> = BENCHES.iter().map(|(known, _)| *known).collect();
        return Err(format!("no bench {name:?}; there are {}", known.join(", ")));
    }
    for (bench, needs) in BENCHES {
        if name.is_some_and(|name| name != *bench) {
            continue;
        }
        if !sh::root().join(format!("bench/src/bin/{bench}.rs")).is_file() {
            if name.is_some() {
                return Err(format!("bench {bench} is not written yet"));
            }
            continue;
        }
        match needs {
            Needs::Nothing => {}
            Needs::Cluster => testbed::run(&[])?,
            Needs::Server => sh::run(
                "claviger with optimisation",
                cargo().args(["build", "--locked", "--release", "-p", "claviger-cli"]),
            )?,
        }
        sh::run(
            &format!("bench {bench} (optimised build; the first takes minutes)"),
            cargo()
                .args([
                    "run",
                    "--locked",
                    "--release",
                    "-p",
                    "claviger-bench",
                    "--bin",
                    bench,
                    "--",
                ])
                .args(rest)
                .env("CLAVIGER_BIN", sh::root().join("target/release/claviger")),
        )?;
    }
    Ok(())
}
