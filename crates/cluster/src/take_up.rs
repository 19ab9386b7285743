//! Brings this node's API server to the stage that the cluster's truth names: writes the file,
//! starts or restarts the API server, or waits for its own poll.
//!
//! [`decide`] is pure and looks at one moment; the agent asks it again after every act. So a
//! kill anywhere leaves a moment from which it goes on.
//!
//! What is to be taken up by a restart must end the requests of the process that ran when the
//! file was replaced, even if that process has reloaded the file by itself meanwhile. Hence
//! [`Due`], a note on disk: written before the file, removed once the API server is dead.

use crate::contact::Moment as Clocks;
use crate::file::{self, FileError};
use claviger_domain::cluster::{Process, Stage, TakeUp};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What the decision rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The stage that the cluster's truth names for this API server.
    pub target: Stage,
    /// How a changed file is taken up; none while no operation is in progress, and then an API
    /// server that runs is left to its own poll.
    pub take_up: Option<TakeUp>,
    /// The stage of the file on disk; none if it is not ours.
    pub on_disk: Option<Stage>,
    /// The hash of the file on disk, as kube-apiserver takes it.
    pub disk_hash: Option<String>,
    /// The API server's process, while it lives.
    pub process: Option<Process>,
    /// Whether that process was started with the flag that names our file, or it cannot be told yet.
    pub flags: bool,
    /// The hash that exactly this process publishes; none until it was read.
    pub loaded: Option<String>,
    /// Whether what it has loaded is of a later stage than the file.
    pub fell: bool,
    /// Whether a hold keeps the API server from being started.
    pub held: bool,
    /// Whether the plugin answers with a ring that passed its self-test.
    pub open: bool,
    /// Whether a process may be running that ran when the file was replaced ([`Due`]).
    pub due: bool,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Nothing, or wait.
    Nothing,
    /// Write the file of this stage.
    Write(Stage),
    /// Start the API server, with the flags or without.
    Start {
        /// Whether with the flags.
        flags: bool,
    },
    /// Kill the API server and start it with the flags.
    Restart,
}

/// The next act.
pub fn decide(seen: &Moment) -> Act {
    if seen.held {
        return Act::Nothing;
    }
    let encrypted = seen.target.max(seen.on_disk.unwrap_or_default()) > Stage::Bare;
    // An API server reads Secrets at its start and primes a seed for every provider: without
    // the plugin it would come up broken, or hang.
    if encrypted && !seen.open {
        return Act::Nothing;
    }
    // A file ahead of the truth (the server was restored from a backup) stays, but for one that is
    // to read plaintext again: that writes none.
    let falls = falls(seen.on_disk, seen.target);
    if seen.target > Stage::Bare && (falls || seen.on_disk.is_none_or(|s| s < seen.target)) {
        return Act::Write(seen.target);
    }
    if seen.process.is_none() {
        return Act::Start { flags: encrypted };
    }
    if !encrypted {
        return Act::Nothing;
    }
    if !seen.flags || seen.due {
        return Act::Restart;
    }
    match &seen.loaded {
        // To read plaintext again ends no request, so that is left to its poll.
        Some(loaded)
            if seen.take_up == Some(TakeUp::Restart)
                && Some(loaded) != seen.disk_hash.as_ref()
                && !seen.fell =>
        {
            Act::Restart
        }
        _ => Act::Nothing,
    }
}

/// Whether a file is to be replaced by one that reads plaintext again.
pub fn falls(on_disk: Option<Stage>, target: Stage) -> bool {
    on_disk == Some(Stage::Only) && target == Stage::WriteFirst
}

/// The durable note that the API server is to be restarted, whatever it has loaded. It stands
/// from before the file is replaced until no process of before is left. It names no process: one
/// that a keeper starts between the note and the file would be missed. So a kill at the wrong
/// moment costs one restart too many, never one too few.
#[derive(Debug)]
pub struct Due {
    path: PathBuf,
    note: Option<Note>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// The kernel's run: no process outlives it.
    boot: String,
}

impl Due {
    /// Reads what the last run left.
    pub fn open(path: PathBuf) -> Result<Self, FileError> {
        let note = file::read_json(&path)?;
        Ok(Self { path, note })
    }

    /// Whether a process that runs now may have run before the file was replaced.
    pub fn stands(&self) -> bool {
        self.note.as_ref().is_some_and(|n| n.boot == Clocks::now().boot)
    }

    /// To be called before the file is replaced.
    pub fn note(&mut self) -> Result<(), FileError> {
        let note = Note { boot: Clocks::now().boot };
        file::write_json(&self.path, &note)?;
        self.note = Some(note);
        Ok(())
    }

    /// To be called when the file is in place and the API server is dead.
    pub fn done(&mut self) -> Result<(), FileError> {
        if self.note.is_some() {
            file::remove(&self.path)?;
            self.note = None;
        }
        Ok(())
    }
}

/// The flags that make kube-apiserver read our file, and read it again when it changes.
pub fn flags(file: &Path) -> Vec<String> {
    vec![
        format!("--encryption-provider-config={}", file.display()),
        "--encryption-provider-config-automatic-reload=true".to_owned(),
    ]
}

/// The file that a command line (arguments divided by zero bytes, as in `/proc/PID/cmdline`) names
/// as its EncryptionConfiguration. The last of several counts, as for kube-apiserver.
pub fn named(cmdline: &[u8]) -> Option<&[u8]> {
    let mut named = None;
    let mut args = cmdline.split(|b| *b == 0);
    while let Some(arg) = args.next() {
        if let Some(value) = arg.strip_prefix(b"--encryption-provider-config=") {
            named = Some(value);
        } else if arg == b"--encryption-provider-config" {
            named = args.next();
        }
    }
    named
}

/// Whether a command line names our file.
pub fn has_flags(cmdline: &[u8], file: &Path) -> bool {
    named(cmdline) == Some(file.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(target: Stage, on_disk: Option<Stage>) -> Moment {
        Moment {
            target,
            take_up: Some(TakeUp::Restart),
            on_disk,
            disk_hash: on_disk.filter(|s| *s > Stage::Bare).map(|s| format!("{s:?}")),
            process: Some(Process { pid: 2, start: 3 }),
            flags: true,
            loaded: on_disk.map(|s| format!("{s:?}")),
            fell: false,
            held: false,
            open: true,
            due: false,
        }
    }

    #[test]
    fn situation_and_act() {
        use Stage::*;
        let m = moment;
        let cases = [
            ("bare and running", Moment { flags: false, ..m(Bare, Some(Bare)) }, Act::Nothing),
            (
                "bare and dead: started as it was",
                Moment { process: None, open: false, ..m(Bare, Some(Bare)) },
                Act::Start { flags: false },
            ),
            ("first stage", m(WriteFirst, Some(Bare)), Act::Write(WriteFirst)),
            ("no file yet, or a foreign one", m(ReadFirst, None), Act::Write(ReadFirst)),
            (
                "the ring is not open: not even the file",
                Moment { open: false, ..m(WriteFirst, Some(Bare)) },
                Act::Nothing,
            ),
            (
                "file written, flags missing",
                Moment { flags: false, loaded: None, ..m(WriteFirst, Some(WriteFirst)) },
                Act::Restart,
            ),
            (
                "flags missing under reload: one restart all the same",
                Moment {
                    flags: false,
                    take_up: Some(TakeUp::Reload),
                    ..m(WriteFirst, Some(WriteFirst))
                },
                Act::Restart,
            ),
            (
                "old file loaded, restart",
                Moment { loaded: Some("WriteFirst".into()), ..m(Only, Some(Only)) },
                Act::Restart,
            ),
            (
                "old file loaded, reload",
                Moment {
                    loaded: Some("WriteFirst".into()),
                    take_up: Some(TakeUp::Reload),
                    ..m(Only, Some(Only))
                },
                Act::Nothing,
            ),
            (
                "old file loaded, at rest: left to its poll",
                Moment { loaded: Some("x".into()), take_up: None, ..m(Only, Some(Only)) },
                Act::Nothing,
            ),
            (
                "not known yet what is loaded: no restart on a guess",
                Moment { loaded: None, ..m(Only, Some(Only)) },
                Act::Nothing,
            ),
            ("all as it should be", m(Only, Some(Only)), Act::Nothing),
            (
                "dead: started with the flags",
                Moment { process: None, loaded: None, ..m(Only, Some(Only)) },
                Act::Start { flags: true },
            ),
            (
                "dead, ring not open: waits",
                Moment { process: None, open: false, ..m(Only, Some(Only)) },
                Act::Nothing,
            ),
            (
                "loaded by itself, but the process is of before the file",
                Moment { due: true, ..m(Only, Some(Only)) },
                Act::Restart,
            ),
            (
                "the same at rest: what was begun is finished",
                Moment { due: true, take_up: None, ..m(Only, Some(Only)) },
                Act::Restart,
            ),
            (
                "noted, but the file was not replaced yet",
                Moment { due: true, ..m(Only, Some(WriteFirst)) },
                Act::Write(Only),
            ),
            ("held", Moment { process: None, held: true, ..m(Only, Some(Only)) }, Act::Nothing),
            ("plaintext is to be read again", m(WriteFirst, Some(Only)), Act::Write(WriteFirst)),
            (
                "plaintext is to be read again: left to its poll",
                Moment {
                    loaded: Some("Only".into()),
                    fell: true,
                    ..m(WriteFirst, Some(WriteFirst))
                },
                Act::Nothing,
            ),
            ("a file ahead of the truth stays", m(ReadFirst, Some(Only)), Act::Nothing),
            (
                "the truth fell to bare, the file did not",
                Moment { process: None, ..m(Bare, Some(Only)) },
                Act::Start { flags: true },
            ),
        ];
        for (name, seen, expected) in cases {
            assert_eq!(decide(&seen), expected, "{name}");
        }
    }

    #[test]
    fn flags_are_found_in_a_command_line() {
        let file = Path::new("/etc/e.yaml");
        let ours = flags(file).join("\0");
        assert!(has_flags(format!("kube-apiserver\0--v=2\0{ours}\0").as_bytes(), file));
        assert!(has_flags(b"a\0--encryption-provider-config\0/etc/e.yaml\0", file));
        assert!(!has_flags(b"a\0--encryption-provider-config=/etc/other.yaml\0", file));
        assert!(!has_flags(b"a\0--encryption-provider-config-automatic-reload=true\0", file));
        let twice =
            b"a\0--encryption-provider-config=/x\0--encryption-provider-config=/etc/e.yaml\0";
        assert!(has_flags(twice, file));
        assert!(!has_flags(b"", file));
    }
}
