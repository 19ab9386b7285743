//! Real clients of Key Protect, as their registries have them, against a running key service.
//!
//! Nothing of a client is copied here: the suites that come with them run from where pip, npm and
//! Go put them, unchanged. What no suite calls, a small driver of ours calls once.

use crate::Outcome;
use crate::lab::{Lab, Options};
use report::Ran;
use std::path::{Path, PathBuf};
use std::time::Instant;
use suites::{Place, Suite};

mod cloud;
pub(crate) mod install;
pub(crate) mod instances;
pub(crate) mod process;
mod report;
pub(crate) mod suites;

pub use install::provider;

/// What a run is to do.
#[derive(Debug, Default)]
pub struct Settings {
    /// Leaves the committed table as it is, and only compares with it.
    pub check: bool,
    /// Only suites whose id begins with one of these; then the table is left as it is, too.
    pub only: Vec<String>,
    /// Set when this process is the one among the cloud's names: the directory of its run.
    pub inside_cloud: Option<PathBuf>,
}

/// The workspace's root directory.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// Runs it; an error when a client can do less than the committed table says.
pub fn run(settings: &Settings) -> Outcome<()> {
    let chosen: Vec<&'static Suite> = suites::ALL
        .iter()
        .filter(|suite| {
            settings.only.is_empty() || settings.only.iter().any(|id| suite.id.starts_with(id))
        })
        .collect();
    if chosen.is_empty() {
        let known: Vec<&str> = suites::ALL.iter().map(|suite| suite.id).collect();
        return Err(format!("no such suite; known are {}", known.join(", ")));
    }
    if let Some(dir) = &settings.inside_cloud {
        return cloud::inside(dir, &chosen);
    }
    let started = Instant::now();
    install::need(&chosen)?;
    let installed = install::all(&chosen)?;
    eprintln!("    clients are there after {} s", started.elapsed().as_secs());
    let dir = installed.join("run");
    // Of an earlier run.
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;

    let results = std::thread::scope(|scope| {
        let cloud = scope.spawn(|| cloud::outside(&dir, &chosen));
        let here = here(&dir, &chosen);
        let cloud = cloud.join().unwrap_or_else(|_| Err("a thread panicked".to_owned()));
        Ok::<_, String>([here?, cloud?].concat())
    })?;
    let results = report::in_order(results);
    report::tell(&results);
    eprintln!("    {} s in all", started.elapsed().as_secs());
    report::settle(&results, settings.check || !settings.only.is_empty(), settings.only.is_empty())
}

/// The suites that can be told an address, against `claviger dev up --only key-service`.
fn here(dir: &Path, chosen: &[&'static Suite]) -> Outcome<Vec<Ran>> {
    let chosen: Vec<&'static Suite> =
        chosen.iter().copied().filter(|s| s.place == Place::Here).collect();
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let lab = Lab::up(&Options { only_key_service: true, ..Options::default() })?;
    let server = suites::Server::from_env(&lab.env()?)?;
    let results = suites::run(&server, &chosen, dir);
    lab.down()?;
    results
}
