//! Kills processes with SIGKILL at random moments, and then asks for everything back.
//!
//! `cluster`: key server, agents, API servers and etcd, during enable, rotate and disable/enable.
//! After each phase all must be up again by itself, the operation finished by itself, and every
//! Secret readable with the value that was last acknowledged.
//!
//! `key-service`: the key server, while several clients change keys, and while it starts. After
//! each start, whatever was acknowledged must be there, and what was not is there whole or not
//! at all; so says a model of the key service.
//!
//! `power`: the same, on a disk that has lost whatever was not flushed, in any combination.
//!
//! A failing seed is printed with the command that replays it: the seed decides operations,
//! victims and pauses.

use claviger_tests::torture::{Kind, Settings, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut settings = Settings::default();
    let mut args = std::env::args().skip(1).peekable();
    let named = args.peek().and_then(|arg| Kind::ALL.into_iter().find(|kind| kind.name() == arg));
    if named.is_some() {
        args.next();
    }
    while let Some(arg) = args.next() {
        let value = args.next();
        let number = value.as_deref().and_then(|v| v.parse::<u64>().ok());
        match (arg.as_str(), number) {
            ("--runs", Some(runs)) => settings.runs = runs,
            ("--seed", Some(seed)) => settings.seed = seed,
            ("--minutes", Some(minutes)) => settings.minutes = minutes,
            _ => {
                eprintln!(
                    "error: usage: torture [cluster|key-service|power] [--runs N] [--seed S] [--minutes M]"
                );
                return ExitCode::from(2);
            }
        }
    }
    let kinds = named.map_or(Kind::ALL.to_vec(), |kind| vec![kind]);
    match kinds.into_iter().try_for_each(|kind| run(kind, &settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
