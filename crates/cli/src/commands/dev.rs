//! `claviger dev`

use crate::exit::{Done, Failure};
use crate::render::print_text;
use clap::{Parser, Subcommand, ValueEnum};
use claviger_dev::binaries::Minor;
use claviger_dev::keep::Progress;
use claviger_dev::layout::Layout;
use claviger_dev::{Dev, DevError, Options, down, status, up};
use std::error::Error;
use std::path::{Path, PathBuf};

/// Arguments of `claviger dev`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster, or resume the one that the directory holds
    Up(Up),
    /// End every process of a cluster
    Down(Down),
    /// Show how its parts are
    Status(Status),
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

#[derive(Parser)]
struct Status {
    #[command(flatten)]
    dir: Dir,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Runs it.
pub fn run(args: Args) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(3, format!("cannot start: {e}"), ""))?;
    match args.command {
        Command::Up(up) => runtime.block_on(start(up)),
        Command::Keep(dir) => runtime.block_on(keep(&dir.dir)),
        Command::Down(args) => end(&args),
        Command::Status(args) => runtime.block_on(show(&args)),
    }
}

async fn start(args: Up) -> Done {
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
                summary(&dev, &args.dir.dir);
                print_text("Ctrl-C ends it.");
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
    summary(&dev, &args.dir.dir);
    Ok(())
}

async fn keep(dir: &Path) -> Done {
    let dev = Dev::open(dir, program()?).map_err(failure)?;
    // Of two keepers that start at once, one has nothing to do.
    up::keep_here(&dev, tell).await.map(|_| ()).map_err(failure)
}

fn end(args: &Down) -> Done {
    let layout = Layout::new(&args.dir.dir).map_err(failure)?;
    down::down(&layout, args.purge).map_err(failure)
}

async fn show(args: &Status) -> Done {
    let dev = Dev::open(&args.dir.dir, program()?).map_err(failure)?;
    let parts = status::look(&dev).await.map_err(failure)?;
    if args.output == Output::Json {
        let text = serde_json::to_string_pretty(&parts)
            .map_err(|e| Failure::new(70, format!("cannot write JSON: {e}"), ""))?;
        print_text(&text);
    } else {
        for part in &parts {
            let pid = part.pid.map(|pid| pid.to_string()).unwrap_or_default();
            print_text(&format!("{:<14} {:<10} {pid:<8} {}", part.part, part.state, part.note));
        }
    }
    // A fenced API server is as it should be; one that is dead or not ready is not.
    let short = parts.iter().find(|part| matches!(part.state, "dead" | "not ready"));
    match short {
        None => Ok(()),
        Some(part) => Err(Failure::new(
            1,
            format!("{} is {}", part.part, part.state),
            format!(
                "start what is dead: claviger dev up --detach --dir {}",
                args.dir.dir.display()
            ),
        )),
    }
}

fn tell(progress: &Progress) {
    if !progress.note.is_empty() {
        eprintln!("{}", progress.note);
    }
}

/// What somebody needs who wants to use the cluster.
fn summary(dev: &Dev, dir: &Path) {
    for (name, url) in dev.urls() {
        print_text(&format!("{name:<14} {url}"));
    }
    print_text(&format!("variables      . {}", dev.layout.env().display()));
    print_text(&format!("end it         claviger dev down --dir {}", dir.display()));
}

/// Our own file, also after a new build has replaced it.
fn program() -> Result<PathBuf, Failure> {
    let path = std::env::current_exe()
        .map_err(|e| Failure::new(70, format!("cannot find my own file: {e}"), ""))?;
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| path.clone(), PathBuf::from))
}

fn failure(error: DevError) -> Failure {
    let code = match &error {
        DevError::Refused { .. } => 2,
        DevError::Certificate(_) => 70,
        _ => 3,
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
