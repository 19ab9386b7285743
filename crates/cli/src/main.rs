//! `claviger`: the key server, the node agent and the operator's commands in one program.
//!
//! This crate is the only place where parts are wired. Each noun has a file in `commands`.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

mod commands;
mod exit;

/// Encrypt Kubernetes clusters under root keys that you hold, and prove it
#[derive(Parser)]
#[command(name = "claviger", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the key server, back it up, restore it
    Server(commands::server::Args),
    /// Run the agent beside a kube-apiserver
    Agent(commands::agent::Args),
    /// Clusters and their encryption
    Ks(commands::ks::Args),
    /// Root keys
    Key(commands::key::Args),
    /// Count etcd's records by the key that opens them
    Census(commands::census::Args),
    /// A whole cluster on this machine's loopback, for trying things out
    Dev(commands::dev::Args),
    /// Print a completion script for a shell
    Completions(commands::completions::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Server(args) => commands::server::run(args),
        Command::Agent(args) => commands::agent::run(args),
        Command::Ks(args) => commands::ks::run(args),
        Command::Key(args) => commands::key::run(args),
        Command::Census(args) => commands::census::run(args),
        Command::Dev(args) => commands::dev::run(args),
        Command::Completions(args) => commands::completions::run(args),
    };
    exit::code(done)
}
