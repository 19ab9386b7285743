//! `claviger agent`: what runs beside a kube-apiserver.

use crate::exit::{self, Done, Failure};
use clap::Subcommand;
use claviger_cluster::config::{AgentConfig, ConfigError};
use claviger_cluster::run::{AgentError, run as run_agent};
use std::path::PathBuf;

/// Arguments of `claviger agent`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Answer KMS v2 for this node's kube-apiserver, until SIGTERM
    Run {
        /// The agent's settings (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Read the settings and say what is wrong with them
    Check {
        /// The agent's settings (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Runs it.
pub fn run(args: Args) -> Done {
    match args.verb {
        Verb::Check { config } => load(&config).map(|_| println!("OK")),
        Verb::Run { config } => start(load(&config)?),
    }
}

fn load(path: &std::path::Path) -> Result<AgentConfig, Failure> {
    AgentConfig::load(path).map_err(|error| {
        let code = if matches!(error, ConfigError::Invalid { .. }) {
            exit::USAGE
        } else {
            exit::UNREACHABLE
        };
        let hint = "agent.sample.toml in the sources explains each setting";
        Failure::new(code, with_causes(&error), hint)
    })
}

/// An error with what caused it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}

fn start(config: AgentConfig) -> Done {
    claviger_telemetry::init();
    for failed in claviger_crypto::harden::harden() {
        tracing::warn!("{failed}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(exit::UNREACHABLE, format!("cannot start threads: {e}"), ""))?;
    let stop = async {
        match claviger_telemetry::asked_to_stop().await {
            Ok(signal) => tracing::info!(signal, "stopping; the API server goes on"),
            Err(error) => tracing::error!(%error, "signals cannot be received; stopping"),
        }
    };
    runtime.block_on(run_agent(config, stop)).map_err(|error| {
        let hint = match &error {
            AgentError::Socket(_) => "is another agent running on this node?",
            _ => "",
        };
        Failure::new(exit::UNREACHABLE, with_causes(&error), hint)
    })
}
