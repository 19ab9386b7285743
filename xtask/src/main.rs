//! Tasks of the project: `cargo xtask TASK`.
//!
//! Each task says what it does while it does it, installs what it lacks into the project's
//! cache, and needs nothing but cargo, go, a C compiler and git to begin with.

use std::process::ExitCode;

mod bench;
mod conformance;
mod demo;
mod fuzz;
mod openapi;
mod schemathesis;
mod sh;
mod test;
mod testbed;
mod tidy;
mod torture;

const USAGE: &str = "\
usage: cargo xtask TASK [OPTIONS]

  tidy                       borders between crates, format, clippy, licences, words
  test [--quick]             every test: tidy, unit tests, end-to-end tests on real parts
                             (--quick leaves the end-to-end tests out)
  demo [--keep] [--kubernetes 1.37|1.34] [--secrets N]
                             watch a real cluster being encrypted, rotated, revoked, given back
  bench [NAME] [OPTIONS]     measure: audit, limits, plugin, rewrite, start, timing
  conformance [--check] [--only SUITE]
                             real clients of Key Protect against a running key service
                             (--check leaves the table in conformance/README.md as it is)
  openapi                    write docs/openapi.json, the description of the server's interface
  schemathesis [--examples N] [--seed S]
                             the running server against its own description
  testbed [--kubernetes V]   build kube-apiserver, kubectl, etcd from source, once
  fuzz [TARGET] [--seconds N]
                             random inputs to every parser of bytes from outside, 60 s for each
                             (fuzz TARGET FILE replays one)
  torture [KIND] [--runs N] [--seed S] [--minutes M]
                             cluster: kill processes at random moments of enable and rotate;
                             key-service: kill the server among clients' operations, compare
                             with a model; fuzz: an hour for each target. All if none is named
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (task, rest) = match args.split_first() {
        Some((task, rest)) => (task.as_str(), rest),
        None => ("help", &[][..]),
    };
    let done = match task {
        "tidy" => tidy::run(rest),
        "test" => test::run(rest),
        "demo" => demo::run(rest),
        "bench" => bench::run(rest),
        "conformance" => conformance::run(rest),
        "fuzz" => fuzz::run(rest),
        "openapi" => openapi::run(rest),
        "schemathesis" => schemathesis::run(rest),
        "testbed" => testbed::run(rest),
        "torture" => torture::run(rest),
        "help" | "-h" | "--help" => {
            print!("{USAGE}");
            Ok(())
        }
        other => Err(format!("no task {other:?}\n\n{USAGE}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
