//! `claviger agent`: what runs beside a kube-apiserver.

use crate::exit::{self, Done, Failure};
use crate::files;
use crate::render::{Look, pairs};
use clap::Subcommand;
use claviger_cluster::check;
use claviger_cluster::config::AgentConfig;
use claviger_cluster::desk::{self, Asked, Said, Status};
use claviger_cluster::hand_over::FORMAT;
use claviger_cluster::identity::{self, IdentityError};
use claviger_cluster::run::{AgentError, run as run_agent};
use claviger_domain::cluster::Access;
use claviger_domain::id::UnixMs;
use claviger_wire::agent::Certificate;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Arguments of `claviger agent`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    look: Look,
}

#[derive(Subcommand)]
enum Verb {
    /// Answer KMS v2 for this node's kube-apiserver, until SIGTERM
    Run {
        /// The agent's settings (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Read the settings, look at the files that they name, and say what is wrong
    Check {
        /// The agent's settings (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Say how the agent of this node is
    Status {
        /// The agent's settings (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Write a request for a new certificate, for a node that cannot reach the server
    ///
    /// An Administrator answers it with `claviger ks cluster node reissue`; the answer comes back
    /// with `claviger agent install-certificate`. The files hold nothing secret.
    RequestCertificate {
        /// The agent's settings (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Where to write it
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Write over a file that is there
        #[arg(short = 'f', long)]
        yes: bool,
    },
    /// Give the agent of this node, running or not, the certificate that a request was answered with
    InstallCertificate {
        /// The agent's settings (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The answer
        #[arg(long, value_name = "FILE")]
        r#in: PathBuf,
    },
    /// Let this program take the running agent's place, with its open keys
    ///
    /// The running agent becomes this program: same process, same arguments, its keys handed over
    /// in memory, its socket kept. So it works while the key server is away, when a restart would
    /// leave the node waiting. If this program cannot be started, the agent goes on as it is.
    Upgrade {
        /// The agent's settings (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Runs it.
pub fn run(args: Args) -> Done {
    let look = args.look;
    match args.verb {
        Verb::Check { config } => check(&load(&config)?, look),
        Verb::Run { config } => start(load(&config)?),
        Verb::Status { config } => {
            tell(&status(&load(&config)?)?, look);
            Ok(())
        }
        Verb::Upgrade { config } => upgrade(&load(&config)?, look),
        Verb::RequestCertificate { config, out, yes } => {
            files::is_free(&out, yes)?;
            let request = identity::write_request(&load(&config)?).map_err(|e| no(&e))?;
            files::write_json(&out, &request)?;
            look.answer(&json!({ "written": out, "cluster": request.cluster }), || {
                vec![format!(
                    "Let an Administrator run: claviger ks cluster node reissue -c {} --request {} --out FILE",
                    request.cluster,
                    out.display()
                )]
            });
            Ok(())
        }
        Verb::InstallCertificate { config, r#in } => install(&load(&config)?, &r#in, look),
    }
}

fn check(config: &AgentConfig, look: Look) -> Done {
    let wrong = check::look(config);
    let answer = json!({ "good": wrong.is_empty(), "wrong": wrong });
    if wrong.is_empty() {
        look.answer(&answer, || vec!["OK".to_owned()]);
        return Ok(());
    }
    look.answer(&answer, Vec::new);
    Err(Failure::new(
        exit::NO,
        format!("an agent would not run with this: {}", wrong.join("; ")),
        "agent.sample.toml in the sources explains each setting",
    ))
}

fn no(error: &IdentityError) -> Failure {
    let hint = match error {
        IdentityError::NeverJoined => "claviger ks cluster join-token",
        IdentityError::NotOurs(_) => {
            "claviger agent request-certificate --config FILE --out FILE, on this node"
        }
        _ => "are you root or the agent's user?",
    };
    let code = match error {
        IdentityError::File(_) => exit::UNREACHABLE,
        IdentityError::NotOurs(_) => exit::USAGE,
        _ => exit::NO,
    };
    Failure::new(code, with_causes(error), hint)
}

/// How long a running agent may take to see a new certificate; it looks every two seconds.
const TAKEN_UP: Duration = Duration::from_secs(10);

fn install(config: &AgentConfig, path: &Path, look: Look) -> Done {
    let certificate: Certificate = files::read_json(path)?;
    identity::install(config, &certificate).map_err(|e| no(&e))?;
    let until = Instant::now() + TAKEN_UP;
    let runs = desk::ask(&config.state_dir, &Asked::Status).is_ok();
    while runs && Instant::now() < until {
        if identity::is_taken_up(config) {
            look.answer(&json!({ "in_use": true }), || vec!["The agent uses it.".to_owned()]);
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    look.answer(&json!({ "in_use": false }), || {
        vec!["The agent takes it up when it starts.".to_owned()]
    });
    Ok(())
}

/// How long a successor may take until it answers.
const UPGRADE: Duration = Duration::from_secs(60);

fn ask(config: &AgentConfig, asked: &Asked) -> Result<Vec<Said>, Failure> {
    desk::ask(&config.state_dir, asked).map_err(|e| {
        Failure::new(
            exit::UNREACHABLE,
            format!("no agent answers in {}: {e}", config.state_dir.display()),
            "is it running, and are you root or its user?",
        )
    })
}

fn status(config: &AgentConfig) -> Result<Status, Failure> {
    match ask(config, &Asked::Status)?.pop() {
        Some(Said::Status(status)) => Ok(status),
        other => Err(Failure::new(exit::FAULT, format!("unexpected answer: {other:?}"), "")),
    }
}

fn tell(status: &Status, look: Look) {
    let open: Vec<String> = status.open.iter().map(ToString::to_string).collect();
    let access = match &status.access {
        Access::Open => "open".to_owned(),
        Access::Waiting { reason } => format!("waiting: {reason}"),
        Access::Coasting { since } => format!("coasting since {}", stamp(*since)),
        Access::Fenced { root, since, .. } => {
            format!("fenced since {}, root key {}", stamp(*since), root.key)
        }
        Access::Closing { root, since, reason, .. } => {
            format!("to be fenced since {}, root key {}: {reason}", stamp(*since), root.key)
        }
    };
    let rows = [
        ("Agent", status.agent.to_string()),
        ("Cluster", status.cluster.to_string()),
        ("Version", status.version.clone()),
        ("Process", status.pid.to_string()),
        ("Server", status.server.clone()),
        ("Open KEKs", if open.is_empty() { "none".to_owned() } else { open.join(", ") }),
        ("Access", access),
    ];
    look.answer(status, || pairs(&rows));
}

fn stamp(at: UnixMs) -> String {
    jiff::Timestamp::from_millisecond(at.0).map_or_else(|_| at.0.to_string(), |t| format!("{t:.0}"))
}

fn upgrade(config: &AgentConfig, look: Look) -> Done {
    let before = status(config)?;
    let program = std::env::current_exe()
        .map_err(|e| Failure::new(exit::FAULT, format!("cannot find my own file: {e}"), ""))?;
    let said = ask(config, &Asked::Upgrade { program, format: FORMAT })?;
    if let Some(Said::Not { why }) = said.last() {
        return Err(Failure::new(exit::NO, why, "the agent goes on as before"));
    }
    let until = Instant::now() + UPGRADE;
    let hint = "its log says why; where the server answers, a restart is as good";
    loop {
        match status(config) {
            Ok(now) => {
                tell(&now, look);
                if before.open.is_empty() || now.inherited {
                    return Ok(());
                }
                let error = "the successor did not take the open keys";
                return Err(Failure::new(exit::NO, error, hint));
            }
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(100)),
            Err(error) => return Err(Failure { hint: hint.to_owned(), ..error }),
        }
    }
}

fn load(path: &std::path::Path) -> Result<AgentConfig, Failure> {
    AgentConfig::load(path).map_err(|error| {
        let hint = "agent.sample.toml in the sources explains each setting";
        Failure::new(exit::USAGE, with_causes(&error), hint)
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

/// Where traces go; none if it is not set.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

fn start(config: AgentConfig) -> Done {
    let endpoint = std::env::var(ENDPOINT).ok().filter(|endpoint| !endpoint.is_empty());
    let _traces = claviger_telemetry::init("claviger-agent", endpoint.as_deref())
        .map_err(|e| Failure::new(exit::USAGE, e, format!("mend {ENDPOINT}")))?;
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
