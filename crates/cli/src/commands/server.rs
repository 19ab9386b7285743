//! `claviger server`

use crate::exit::{Done, Failure};

/// Arguments of `claviger server`.
#[derive(clap::Args)]
pub struct Args {}

/// Runs it.
pub fn run(_args: Args) -> Done {
    Err(Failure::new(70, "this command is not built yet", ""))
}
