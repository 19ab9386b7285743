//! Kills real processes with SIGKILL at random moments and then asks for everything back.
//!
//! `cluster`: key server, agents, API servers and etcd, while a cluster is enabled, rotated,
//! suspended and given back. After each phase all must be up again by itself, the operation
//! finished by itself, and every Secret readable with the value that was last acknowledged.
//!
//! `key-service`: a key server alone, under clients that change keys, compared with a model.
//!
//! Without a name, both. A failing seed is printed with the command that replays it: the seed
//! decides what is done, the victims and the pauses.

use claviger_tests::torture::Settings;
use claviger_tests::{key_service, torture};
use std::process::ExitCode;

const USAGE: &str = "usage: torture [cluster|key-service] [--runs N] [--seed S] [--minutes M]";

type Kind = fn(&Settings) -> Result<(), String>;

fn read(args: Vec<String>) -> Option<(Vec<Kind>, Settings)> {
    let mut settings = Settings::default();
    let mut args = args.into_iter().peekable();
    let kinds: Vec<Kind> = match args.next_if(|arg| !arg.starts_with('-')).as_deref() {
        None => vec![key_service::run, torture::run],
        Some("cluster") => vec![torture::run],
        Some("key-service") => vec![key_service::run],
        Some(_) => return None,
    };
    while let Some(arg) = args.next() {
        let number = args.next()?.parse::<u64>().ok()?;
        match arg.as_str() {
            "--runs" => settings.runs = number,
            "--seed" => settings.seed = number,
            "--minutes" => settings.minutes = number,
            _ => return None,
        }
    }
    Some((kinds, settings))
}

fn main() -> ExitCode {
    let Some((kinds, settings)) = read(std::env::args().skip(1).collect()) else {
        eprintln!("error: {USAGE}");
        return ExitCode::from(2);
    };
    match kinds.into_iter().try_for_each(|kind| kind(&settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
