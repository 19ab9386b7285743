//! Why a development cluster could not be started or ended.

use claviger_supervise::SuperviseError;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Whose fault, whether to try again, what to do: [`DevError::hint`] says the last.
#[derive(Debug, Error)]
pub enum DevError {
    /// What was asked for cannot be; the caller must ask for something else.
    #[error("{what}")]
    Refused {
        /// What is wrong.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A file of the cluster's directory cannot be read or written.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program cannot be started or ended.
    #[error("{unit}: {source}")]
    Unit {
        /// Which.
        unit: String,
        /// Why not.
        source: SuperviseError,
    },
    /// A part does not become ready in time.
    #[error("not ready after {seconds} s: {note}")]
    NotReady {
        /// How long was waited.
        seconds: u64,
        /// What was being waited for.
        note: String,
        /// Where its output is.
        logs: PathBuf,
    },
    /// A part answers what it should not.
    #[error("{part} answers {answer}")]
    Answer {
        /// Which.
        part: String,
        /// What.
        answer: String,
    },
    /// A certificate cannot be made: a fault of ours.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
}

impl DevError {
    /// What to do now; may be empty.
    pub fn hint(&self) -> String {
        match self {
            DevError::Refused { hint, .. } => hint.clone(),
            DevError::Io { path, source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    format!("choose a directory you may write to (now {})", path.display())
                }
                io::ErrorKind::StorageFull => "free some space and run the same again".to_owned(),
                _ => String::new(),
            },
            DevError::NotReady { logs, .. } => {
                format!("look into {}, then run the same again; it resumes", logs.display())
            }
            DevError::Unit { .. } | DevError::Answer { .. } | DevError::Certificate(_) => {
                String::new()
            }
        }
    }

    pub(crate) fn refused(what: impl Into<String>, hint: impl Into<String>) -> Self {
        DevError::Refused { what: what.into(), hint: hint.into() }
    }

    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DevError {
        let path = path.to_owned();
        move |source| DevError::Io { doing, path, source }
    }

    pub(crate) fn unit(unit: &str) -> impl FnOnce(SuperviseError) -> DevError {
        let unit = unit.to_owned();
        move |source| DevError::Unit { unit, source }
    }
}
