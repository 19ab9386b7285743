//! `claviger dev`

use crate::exit::{self, Done, Failure};
use crate::render::Look;
use clap::{Parser, Subcommand, ValueEnum};
use claviger_dev::binaries::Minor;
use claviger_dev::keep::Progress;
use claviger_dev::layout::Layout;
use claviger_dev::status::PartStatus;
use claviger_dev::{Dev, DevError, Options, down, status, up};
use serde_json::json;
use std::error::Error;
use std::path::{Path, PathBuf};

/// Arguments of `claviger dev`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    look: Look,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster, or resume the one that the directory holds
    Up(Up),
    /// End every process of a cluster
    Down(Down),
    /// Show how its parts are
    Status(Dir),
    /// Keep a cluster running (what `up --detach` leaves in the background)
    #[command(hide = true)]
    Keep(Dir),
}

#[derive(Parser)]
struct Dir {
    /// Directory of the cluster
    #[arg(long, value_name = "D", default_value = ".claviger")]
    dir: PathBuf,
}

#[derive(Parser)]
struct Up {
    #[command(flatten)]
    dir: Dir,
    /// Kubernetes minor: 1.37 (default) or 1.34
    #[arg(long, value_name = "MINOR")]
    kubernetes: Option<Minor>,
    /// Number of API servers, each with an agent: 1 (default) to 5
    #[arg(long, value_name = "N")]
    apiservers: Option<u32>,
    /// Start the API servers without any encryption flag, as most clusters are found
    #[arg(long)]
    bare: bool,
    /// Return once all is ready, and go on in the background
    #[arg(long)]
    detach: bool,
    /// Start one part only
    #[arg(long, value_name = "PART")]
    only: Option<Only>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Only {
    /// The key server, with Key Protect's own waiting times
    KeyService,
}

#[derive(Parser)]
struct Down {
    #[command(flatten)]
    dir: Dir,
    /// Remove its files too
    #[arg(long)]
    purge: bool,
}

/// Runs it.
pub fn run(args: Args) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(exit::UNREACHABLE, format!("cannot start: {e}"), ""))?;
    let look = args.look;
    match args.command {
        Command::Up(up) => runtime.block_on(start(up, look)),
        Command::Keep(dir) => runtime.block_on(keep(&dir.dir)),
        Command::Down(args) => end(&args, look),
        Command::Status(dir) => runtime.block_on(show(&dir.dir, look)),
    }
}

async fn start(args: Up, look: Look) -> Done {
    // A person reads what is being waited for; the log is for what goes wrong.
    claviger_telemetry::logs_at("warn");
    let dev = Dev::prepare(&Options {
        dir: args.dir.dir.clone(),
        kubernetes: args.kubernetes,
        apiservers: args.apiservers,
        bare: args.bare,
        only_key_service: args.only.is_some(),
        program: program()?,
    })
    .map_err(failure)?;
    if args.detach {
        up::keep_in_background(&dev).map_err(failure)?;
    } else {
        let mut shown = false;
        let kept = up::keep_here(&dev, |progress| {
            tell(progress);
            if progress.ready && !shown {
                shown = true;
                summary(&dev, &args.dir.dir, look);
                eprintln!("Ctrl-C ends it.");
            }
        });
        if kept.await.map_err(failure)?.is_some() {
            return Ok(());
        }
        eprintln!("another process keeps this cluster; waiting until it is ready");
    }
    let last = up::wait_ready(&dev, up::READY_WAIT, tell).await.map_err(failure)?;
    if !last.note.is_empty() {
        tell(&last);
    }
    summary(&dev, &args.dir.dir, look);
    Ok(())
}

async fn keep(dir: &Path) -> Done {
    claviger_telemetry::logs();
    let dev = Dev::open(dir, program()?).map_err(failure)?;
    // Of two keepers that start at once, one has nothing to do.
    up::keep_here(&dev, tell).await.map(|_| ()).map_err(failure)
}

fn end(args: &Down, look: Look) -> Done {
    let layout = Layout::new(&args.dir.dir).map_err(failure)?;
    down::down(&layout, args.purge).map_err(failure)?;
    look.answer(&json!({ "ended": layout.dir, "purged": args.purge }), Vec::new);
    Ok(())
}

async fn show(dir: &Path, look: Look) -> Done {
    let dev = Dev::open(dir, program()?).map_err(failure)?;
    let parts = status::look(&dev).await.map_err(failure)?;
    look.answer(&parts, || {
        let line = |part: &PartStatus| {
            let pid = part.pid.map(|pid| pid.to_string()).unwrap_or_default();
            format!("{:<14} {:<10} {pid:<8} {}", part.part, part.state, part.note)
        };
        parts.iter().map(line).collect()
    });
    // A fenced API server is as it should be; one that is dead or not ready is not.
    let short = parts.iter().find(|part| matches!(part.state, "dead" | "not ready"));
    match short {
        None => Ok(()),
        Some(part) => Err(Failure::new(
            exit::NO,
            format!("{} is {}", part.part, part.state),
            format!("start what is dead: claviger dev up --detach --dir {}", dir.display()),
        )),
    }
}

fn tell(progress: &Progress) {
    if !progress.note.is_empty() {
        eprintln!("{}", progress.note);
    }
}

/// What somebody needs who wants to use the cluster.
fn summary(dev: &Dev, dir: &Path, look: Look) {
    let urls = dev.urls();
    let named: serde_json::Map<_, _> =
        urls.iter().map(|(name, url)| (name.trim().to_owned(), json!(url))).collect();
    look.answer(&json!({ "dir": dev.layout.dir, "env": dev.layout.env(), "urls": named }), || {
        let mut lines: Vec<_> =
            urls.iter().map(|(name, url)| format!("{name:<14} {url}")).collect();
        lines.push(format!("variables      . {}", dev.layout.env().display()));
        lines.push(format!("end it         claviger dev down --dir {}", dir.display()));
        lines
    });
}

/// Our own file, also after a new build has replaced it.
fn program() -> Result<PathBuf, Failure> {
    let path = std::env::current_exe()
        .map_err(|e| Failure::new(exit::FAULT, format!("cannot find my own file: {e}"), ""))?;
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| path.clone(), PathBuf::from))
}

fn failure(error: DevError) -> Failure {
    let code = match &error {
        DevError::Refused { .. } => exit::USAGE,
        DevError::Certificate(_) => exit::FAULT,
        _ => exit::UNREACHABLE,
    };
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = source.source();
    }
    Failure::new(code, text, error.hint())
}
