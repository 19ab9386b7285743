//! Starts, kills and watches one program on this machine, so that it can be found again by
//! whoever comes next: a *unit* is a directory that holds its command, its process and, while
//! it must not run, a hold.
//!
//! Two parties act on one unit: the one that keeps it running (`claviger dev`, later a kubelet or
//! systemd) and the agent, which restarts an API server to make it take a file up and kills it
//! to fence. They meet in the directory, under a lock, and neither trusts the other to be alive.

use claviger_domain::cluster::Process;
use std::fmt;
use thiserror::Error;

mod file;
pub mod proc;
pub mod unit;

/// What a supervisor sees of its program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The process, while it lives. Proven by process id *and* start time.
    pub process: Option<Process>,
    /// Why it must not run, while a hold stands.
    pub held: Option<String>,
    /// The extra arguments that it was last started with.
    pub extra_args: Vec<String>,
}

/// Why a program could not be started or killed.
#[derive(Debug, Error)]
pub enum SuperviseError {
    /// A hold stands; whoever set it must release it.
    #[error("must not be started: {0}")]
    Held(String),
    /// It runs already.
    #[error("runs already as process {}", .0.pid)]
    Running(Process),
    /// A file of the unit cannot be read or written.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The program does not start.
    #[error("cannot start {program}")]
    Spawn {
        /// Which.
        program: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// The seam between the agent and whatever runs the API server: `process` here; static pods and
/// systemd units are other implementations.
pub trait Supervisor: Send + Sync + fmt::Debug {
    /// Starts the program with these arguments behind those of its command. Refused while a
    /// hold stands or while it runs.
    fn start(&self, extra_args: &[String]) -> Result<Process, SuperviseError>;
    /// Kills it with SIGKILL and returns once it is gone. No error if it does not run.
    fn kill(&self) -> Result<(), SuperviseError>;
    /// Asks it to end with SIGTERM, kills it after `grace`.
    fn stop(&self, grace: std::time::Duration) -> Result<(), SuperviseError>;
    /// Looks.
    fn observe(&self) -> Result<Observed, SuperviseError>;
    /// Forbids every start, across reboots, until it is released. Does not kill.
    fn hold(&self, reason: &str) -> Result<(), SuperviseError>;
    /// Takes the hold back.
    fn release(&self) -> Result<(), SuperviseError>;
}
