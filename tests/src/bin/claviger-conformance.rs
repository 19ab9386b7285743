//! Real clients of Key Protect against a running key service: see conformance/README.md.

use claviger_tests::conformance::{Settings, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut settings = Settings::default();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--check" => settings.check = true,
            "--only" => settings.only.extend(args.next()),
            "--inside-cloud" => settings.inside_cloud = args.next().map(Into::into),
            _ => {
                eprintln!("error: usage: conformance [--check] [--only SUITE]...");
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
