//! `claviger man`

use crate::exit::{self, Done, Failure};
use clap::CommandFactory;
use std::path::PathBuf;

/// Arguments of `claviger man`.
#[derive(clap::Args)]
#[command(after_help = "\
claviger man /usr/local/share/man/man1, then: man claviger-ks-kms-enable")]
pub struct Args {
    /// The directory; it must exist
    dir: PathBuf,
}

/// Writes a page for each command.
pub fn run(args: Args) -> Done {
    clap_mangen::generate_to(crate::Cli::command(), &args.dir).map_err(|e| {
        let error = format!("cannot write to {}: {e}", args.dir.display());
        Failure::new(
            exit::UNREACHABLE,
            error,
            "give a directory that is there and that this user may write",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        run(Args { dir: dir.path().to_owned() }).unwrap();
        for name in ["claviger", "claviger-ks-kms-enable", "claviger-server-run"] {
            let page = std::fs::read_to_string(dir.path().join(format!("{name}.1"))).unwrap();
            assert!(page.contains(".SH NAME"), "{name}");
        }
        let absent = run(Args { dir: dir.path().join("absent") });
        assert_eq!(absent.map_err(|f| f.code), Err(3));
    }
}
