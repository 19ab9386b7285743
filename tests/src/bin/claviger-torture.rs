//! Kills the key server, agents, API servers and etcd with SIGKILL at random moments of enable,
//! rotate and disable/enable, and then asks for everything back.
//!
//! After each phase all must be up again by itself, the operation finished by itself, and every
//! Secret readable with the value that was last acknowledged. A failing seed is printed with the
//! command that replays it: the seed decides the size of the cluster, the victims and the pauses.

use claviger_tests::torture::{Settings, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut settings = Settings::default();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next();
        let number = value.as_deref().and_then(|v| v.parse::<u64>().ok());
        match (arg.as_str(), number) {
            ("--runs", Some(runs)) => settings.runs = runs,
            ("--seed", Some(seed)) => settings.seed = seed,
            ("--minutes", Some(minutes)) => settings.minutes = minutes,
            _ => {
                eprintln!("error: usage: torture [--runs N] [--seed S] [--minutes M]");
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
