//! Exit codes, and how a failure is told: `error: …`, then `hint: …`, on standard error.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; the answer is yes |
//! | 1 | the answer is no: a census or a proof fell short, a key's state or a role forbids it |
//! | 2 | the command line is wrong, names a file that cannot be read, or the answer could not be learned |
//! | 3 | a server could not be reached or a file not be written; another try may help |
//! | 70 | a fault of ours |

use crate::render::{LINES, clean};
use std::fmt;
use std::process::ExitCode;

/// The answer is no.
pub const NO: u8 = 1;
/// The command line is wrong, or names a file that cannot be read.
pub const USAGE: u8 = 2;
/// The answer could not be learned.
pub const UNKNOWN: u8 = 2;
/// A server could not be reached, or a file not be written; another try may help.
pub const UNREACHABLE: u8 = 3;
/// A fault of ours.
pub const FAULT: u8 = 70;

/// A command that did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    /// The exit code, from the table above.
    pub code: u8,
    /// What went wrong, one line, lower case, no full stop.
    pub error: String,
    /// What to do now; may be empty.
    pub hint: String,
}

impl Failure {
    /// A failure with this code, text and hint.
    pub fn new(code: u8, error: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self { code, error: error.to_string(), hint: hint.into() }
    }
}

/// What every command returns.
pub type Done = Result<(), Failure>;

/// Tells a failure and gives the process's exit code.
pub fn code(done: Done) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.error.is_empty() {
                eprintln!("error: {}", clean(&failure.error, LINES));
            }
            if !failure.hint.is_empty() {
                eprintln!("hint: {}", clean(&failure.hint, LINES));
            }
            ExitCode::from(failure.code)
        }
    }
}
