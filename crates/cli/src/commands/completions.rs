//! `claviger completions`

use crate::exit::{Done, Failure};
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::Write;

/// Arguments of `claviger completions`.
#[derive(clap::Args)]
#[command(after_help = "\
bash: claviger completions bash > ~/.local/share/bash-completion/completions/claviger
zsh:  claviger completions zsh > ~/.zfunc/_claviger   (with ~/.zfunc in fpath)
fish: claviger completions fish > ~/.config/fish/completions/claviger.fish")]
pub struct Args {
    /// For which shell
    shell: Shell,
}

/// Prints the script.
pub fn run(args: Args) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "claviger", &mut script);
    std::io::stdout()
        .write_all(&script)
        .map_err(|e| Failure::new(3, format!("cannot write to standard output: {e}"), "try again"))
}
