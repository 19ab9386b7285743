//! The server's description of itself, held against the running server by schemathesis: each
//! operation with good and with bad data, and every answer compared with what is described.
//! `conformance/schemathesis` pins the program and says what is asked.

use crate::Outcome;
use crate::conformance::instances::Api;
use crate::conformance::suites::Server;
use crate::conformance::{install, process, root};
use crate::lab::{Lab, Options};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

mod access;
mod known;

/// How much is asked.
#[derive(Debug)]
pub struct Settings {
    /// Random requests of each operation, good and bad; those at the edges of each schema come on
    /// top of them, and are the most.
    pub examples: u32,
    /// The same seed asks the same.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { examples: 5, seed: 1 }
    }
}

/// The name of its directories.
const NAME: &str = "schemathesis";
/// With the usual number of examples it takes a minute or two, on a busy machine a few.
const LIMIT: Duration = Duration::from_secs(600);
/// For each further example.
const LIMIT_EXAMPLE: Duration = Duration::from_secs(60);

/// Who asks, and for what.
struct Part {
    who: &'static str,
    api_key: &'static str,
    only: &'static [&'static str],
}

const PARTS: [Part; 3] = [
    Part { who: "manager", api_key: "CLAVIGER_API_KEY", only: &[] },
    // Only services write registrations.
    Part {
        who: "service",
        api_key: "CLAVIGER_SERVICE_API_KEY",
        only: &["--include-tag", "registrations"],
    },
    Part {
        who: "purger",
        api_key: "CLAVIGER_PURGE_API_KEY",
        only: &["--include-operation-id", "purgeKey"],
    },
];

/// Runs it; an error when an answer is not as described.
pub fn run(settings: &Settings) -> Outcome<()> {
    let started = Instant::now();
    install::need_program("python3", "Debian: python3-venv")?;
    let dir = install::directory();
    std::fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    install::python(NAME, &dir, &dir.join(format!("install-{NAME}.log")))?;
    let lab = Lab::up(&Options { only_key_service: true, ..Options::default() })?;
    let server = Server::from_env(&lab.env()?)?;
    for part in &PARTS {
        // Each with a world of its own: the first uses up much of it.
        let place = dir.join(format!("{NAME}-{}", part.who));
        one(&server, part, settings, &place)?;
    }
    lab.down()?;
    eprintln!("    {} s in all", started.elapsed().as_secs());
    Ok(())
}

fn one(server: &Server, part: &Part, settings: &Settings, dir: &Path) -> Outcome<()> {
    let io = |e: std::io::Error| format!("{}: {e}", dir.display());
    // Of an earlier run.
    let _ = std::fs::remove_dir_all(dir);
    std::fs::create_dir_all(dir).map_err(io)?;
    let sources = root().join("conformance").join(NAME);
    for file in ["schemathesis.toml", "checks.py"] {
        std::fs::copy(sources.join(file), dir.join(file)).map_err(io)?;
    }
    known::write(server, dir)?;
    let variable = |name: &str| {
        server.env.get(name).ok_or_else(|| format!("{name} is not in the environment file"))
    };
    let token = Api::token_of(server, variable(part.api_key)?)?;

    let mut command = Command::new(install::directory().join(NAME).join("bin/st"));
    command
        .current_dir(dir)
        .args(["--no-color", "run", "--tls-verify"])
        .arg(&server.ca_file)
        .args(["--url", &server.url, "--seed", &settings.seed.to_string()])
        .args(["--max-examples", &settings.examples.to_string()])
        .args(part.only)
        // Of the file: of what it is served by itself, it would leave out the path.
        .arg(root().join("docs/openapi.json"))
        .env("PYTHONPATH", dir)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("REQUESTS_CA_BUNDLE", &server.ca_file)
        .env("SSL_CERT_FILE", &server.ca_file)
        .env("SCHEMATHESIS_TOKEN", token);
    let log = dir.join("log");
    let ended = process::run(&mut command, &log, LIMIT + LIMIT_EXAMPLE * settings.examples);
    let said = std::fs::read_to_string(&log).map_err(io)?;
    if let Err(why) = ended {
        eprintln!("{}", failures(&said));
        let why = why.lines().next().unwrap_or_default();
        let (examples, seed) = (settings.examples, settings.seed);
        return Err(format!(
            "as {}: {why}; all of it is in {}; again: cargo xtask schemathesis --examples \
             {examples} --seed {seed}",
            part.who,
            log.display()
        ));
    }
    let (operations, requests) = counts(&said)
        .ok_or_else(|| format!("as {}: not every operation was asked: {said}", part.who))?;
    println!("schemathesis: {operations} operations, {requests} requests as {}", part.who);
    Ok(())
}

/// What of the log says what is wrong.
fn failures(said: &str) -> &str {
    let from = said.find("= ERRORS =").or_else(|| said.find("= FAILURES =")).unwrap_or(0);
    let to = said.find("= WARNINGS =").filter(|to| *to > from).unwrap_or(said.len());
    said.get(from..to).unwrap_or(said)
}

/// Operations and requests, if every chosen operation was asked.
fn counts(said: &str) -> Option<(u64, u64)> {
    let number = |after: &str| -> Option<u64> {
        let rest = said.split_once(after)?.1.trim_start();
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let (selected, tested) = (number("Selected:")?, number("Tested:")?);
    (selected == tested && tested > 0).then_some((tested, number("Test cases:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read() {
        let said =
            "API Operations:\n  Selected: 90/90\n  Tested: 90\n\nTest cases:\n  7349 generated";
        assert_eq!(counts(said), Some((90, 7349)));
        assert_eq!(counts(&said.replace("Tested: 90", "Tested: 89")), None);
        let said = "x = FAILURES =\nwrong\n= WARNINGS =\ny";
        assert_eq!(failures(said), "= FAILURES =\nwrong\n");
    }
}
