//! The running server against its own description: see conformance/README.md.

use claviger_tests::schemathesis::{Settings, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut settings = Settings::default();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().unwrap_or_default();
        match (arg.as_str(), value.parse(), value.parse()) {
            ("--examples", Ok(examples), _) => settings.examples = examples,
            ("--seed", _, Ok(seed)) => settings.seed = seed,
            _ => {
                eprintln!("error: usage: schemathesis [--examples N] [--seed S]");
                return ExitCode::from(2);
            }
        }
    }
    match run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
