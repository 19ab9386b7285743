//! `claviger`: the key server, the node agent and the operator's commands in one program.
//!
//! This crate is the only place where parts are wired. Each noun has a file in `commands`.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

mod commands;
mod connect;
mod exit;
mod files;
mod ids;
mod login_file;
mod render;

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
    /// Instances of the key service
    Instance(commands::instance::Args),
    /// Root keys
    Key(commands::key::Args),
    /// Who can come in, by what, and what he may do
    Iam(commands::iam::Args),
    /// Come in by your OpenID Connect issuer, instead of an API key
    Login(commands::login::Args),
    /// Forget the login
    Logout,
    /// What is on record of the key server
    Audit(commands::audit::Args),
    /// Count etcd's records by the key that opens them
    Census(commands::census::Args),
    /// A whole cluster on this machine's loopback, for trying things out
    Dev(commands::dev::Args),
    /// Print a completion script for a shell
    Completions(commands::completions::Args),
    /// Write man pages into a directory
    Man(commands::man::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Server(args) => commands::server::run(args),
        Command::Agent(args) => commands::agent::run(args),
        Command::Ks(args) => commands::ks::run(args),
        Command::Instance(args) => commands::instance::run(args),
        Command::Key(args) => commands::key::run(args),
        Command::Iam(args) => commands::iam::run(args),
        Command::Login(args) => commands::login::run(args),
        Command::Logout => commands::login::logout(),
        Command::Audit(args) => commands::audit::run(args),
        Command::Census(args) => commands::census::run(args),
        Command::Dev(args) => commands::dev::run(args),
        Command::Completions(args) => commands::completions::run(args),
        Command::Man(args) => commands::man::run(args),
    };
    exit::code(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::fmt::Write;

    /// Help is an interface: a change of it is a change of this file, seen in review.
    /// `CLAVIGER_SNAPSHOTS=write cargo test -p claviger-cli` writes it anew. All but the first page,
    /// which says the version.
    #[test]
    fn help_is_as_recorded() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/help.txt");
        let mut now = String::new();
        let mut root = Cli::command().term_width(100);
        root.build();
        for noun in root.get_subcommands().filter(|noun| noun.get_name() != "help") {
            record(noun, &mut now);
        }
        if std::env::var_os("CLAVIGER_SNAPSHOTS").is_some_and(|v| v == "write") {
            std::fs::write(path, &now).unwrap();
        }
        let recorded = std::fs::read_to_string(path).unwrap();
        for (line, (old, new)) in recorded.lines().zip(now.lines()).enumerate() {
            assert_eq!(old, new, "help.txt:{}", line + 1);
        }
        assert_eq!(recorded.len(), now.len());
    }

    fn record(command: &clap::Command, out: &mut String) {
        let help = command.clone().render_help().to_string();
        let trimmed: Vec<&str> = help.lines().map(str::trim_end).collect();
        writeln!(out, "{}\n", trimmed.join("\n").trim_end()).unwrap();
        let shown = |sub: &&clap::Command| !sub.is_hide_set() && sub.get_name() != "help";
        for sub in command.get_subcommands().filter(shown) {
            record(sub, out);
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// What the unit starts is a command line of this program.
    #[test]
    fn the_systemd_unit_is_of_this_program() {
        let unit = include_str!("../../../deploy/systemd/claviger-server.service");
        let lines = unit.lines().filter_map(|line| {
            let (key, command) = line.split_once('=')?;
            key.starts_with("ExecStart").then_some(command)
        });
        let lines: Vec<&str> = lines.collect();
        assert_eq!(lines.len(), 2, "one looks, one serves");
        for line in lines {
            let words = line.split_whitespace();
            let parsed = Cli::try_parse_from(words).map(drop);
            assert!(line.starts_with("/usr/local/bin/claviger ") && parsed.is_ok(), "{line}");
        }
    }

    #[test]
    fn cluster_and_instance_come_from_ids_crns_and_names() {
        let parse = |line: &str| Cli::try_parse_from(line.split_whitespace());
        let guid = "11111111-2222-4333-8444-555555555555";
        let enable = format!("claviger ks kms enable -c shop --instance-id {guid} --crk root");
        assert!(parse(&enable).is_ok());
        assert!(parse(&enable.replace(guid, "nonsense")).is_err());
        assert!(parse(&format!("{enable} --take-up reload --public-endpoint --wait")).is_ok());
        assert!(parse(&format!("{enable} --take-up never")).is_err());
        assert!(parse("claviger ks kms verify -c shop --for 60s").is_err(), "needs --by-disabling");
        assert!(parse("claviger ks kms verify -c shop --by-disabling --for 2h").is_err());
        assert!(parse("claviger instance create tenant --region eu-de --output json").is_ok());
        assert!(parse("claviger instance delete tenant --yes").is_ok());
        assert!(parse("claviger key import k --material - --output json").is_ok());
        assert!(parse("claviger key import k").is_err(), "material never comes by an argument");
        assert!(
            parse("claviger audit ls --action kms.secrets.* --from 2027-01-01T00:00:00Z").is_ok()
        );
        assert!(parse("claviger audit ls --all --key k").is_err(), "a key is of an instance");
        assert!(parse("claviger server unlock --data d").is_err(), "which instance?");
        let policy = "claviger iam policy create --of bob --role Manager";
        assert!(parse(policy).is_ok(), "everywhere, as it is said");
        for part in ["--key shop-root", "--ring shop"] {
            // With --cluster, which rules an instance out, the command itself refuses.
            let wide = ["", " --service kms"];
            for wide in wide.map(|wide| format!("{policy} {part}{wide}")) {
                assert!(parse(&wide).is_err(), "of which instance? it would be everywhere: {wide}");
            }
            assert!(parse(&format!("{policy} {part} --instance-id {guid}")).is_ok());
            let lend = format!("claviger iam authorization create -c shop --instance-id {guid}");
            assert!(parse(&format!("{lend} {part}")).is_ok());
        }
    }
}
