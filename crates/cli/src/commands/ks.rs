//! `claviger ks`

use crate::exit::{Done, Failure};

/// Arguments of `claviger ks`.
#[derive(clap::Args)]
pub struct Args {}

/// Runs it.
pub fn run(_args: Args) -> Done {
    Err(Failure::new(70, "this command is not built yet", ""))
}
