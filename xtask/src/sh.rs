//! Runs programs and says so.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// What a task returns: nothing, or one text for the person who started it.
pub type Done = Result<(), String>;

/// Says what comes next.
pub fn say(text: &str) {
    eprintln!("==> {text}");
}

/// The workspace's root directory.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// The project's cache: tools and testbed binaries, shared by all checkouts.
pub fn cache() -> Result<PathBuf, String> {
    if let Some(dir) = std::env::var_os("CLAVIGER_CACHE") {
        return Ok(dir.into());
    }
    let home =
        std::env::var_os("HOME").ok_or("HOME is not set; set CLAVIGER_CACHE to a directory")?;
    Ok(Path::new(&home).join(".cache/claviger"))
}

/// The cargo that started us.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs `command`, its output shown as it comes. `what` is said before, the time it took after.
pub fn run(what: &str, command: &mut Command) -> Done {
    say(what);
    let started = Instant::now();
    let status = command.status().map_err(|e| format!("cannot start {}: {e}", name(command)))?;
    if !status.success() {
        return Err(format!("{what}: {} ended with {status}", shown(command)));
    }
    eprintln!("    {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Runs `command` and returns what it wrote to standard output.
pub fn output(command: &mut Command) -> Result<String, String> {
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("cannot start {}: {e}", name(command)))?;
    if !out.status.success() {
        return Err(format!("{} ended with {}", shown(command), out.status));
    }
    String::from_utf8(out.stdout).map_err(|_| format!("{} did not write text", name(command)))
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn shown(command: &Command) -> String {
    let args = command.get_args().map(OsStr::to_string_lossy);
    std::iter::once(command.get_program().to_string_lossy())
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether `program` is found in PATH.
pub fn found(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Fails unless what nobody can install for you is there.
pub fn need_basics() -> Done {
    for (program, why) in [
        ("cc", "a C compiler builds the crypto library and SQLite (Debian: apt install gcc)"),
        ("git", "git lists the project's files (Debian: apt install git)"),
        (
            "go",
            "Go builds kube-apiserver and etcd (https://go.dev/dl, or Debian: apt install golang)",
        ),
    ] {
        if !found(program) {
            return Err(format!("{program} is not in PATH: {why}"));
        }
    }
    Ok(())
}

/// Fails unless all is there that the tests need beside [`need_basics`]: said at once, not by a
/// test half an hour later.
pub fn need_for_tests() -> Done {
    let programs = [
        ("python3", "clients of Key Protect run in it (Debian: apt install python3-venv)"),
        ("node", "a client of Key Protect runs in it (Debian: apt install nodejs)"),
        ("npm", "it installs a client of Key Protect (Debian: apt install npm)"),
        (
            "unshare",
            "clients with fixed URLs run in a network of their own (apt install util-linux)",
        ),
        ("ip", "clients with fixed URLs run in a network of their own (apt install iproute2)"),
        ("mount", "a test fills a small disk (Debian: apt install mount)"),
        ("c++", "libFuzzer is built with it (Debian: apt install g++)"),
    ];
    if let Some((program, why)) = programs.into_iter().find(|(program, _)| !found(program)) {
        return Err(format!("{program} is not in PATH: {why}"));
    }
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        return Err(
            "some tests mount a disk and make networks, as root alone may; run this as root, or leave them out: cargo xtask test --quick"
                .to_owned(),
        );
    }
    Ok(())
}

/// Builds `claviger` and the programs that work with it on a real cluster, and returns the path
/// of the first. One command for all of them: cargo joins the features of what it builds
/// together, and would build the dependencies again for each package alone.
pub fn build_claviger() -> Result<PathBuf, String> {
    let packages = ["build", "--locked", "-p", "claviger-cli", "-p", "claviger-tests", "--bins"];
    run("building claviger", cargo().args(packages))?;
    beside_us("claviger")
}

/// A binary of the workspace: cargo puts it where we are.
pub fn beside_us(name: &str) -> Result<PathBuf, String> {
    let us = std::env::current_exe().map_err(|e| format!("cannot find my own file: {e}"))?;
    let path = us.with_file_name(name);
    if path.is_file() { Ok(path) } else { Err(format!("{} was not built", path.display())) }
}

/// Every file that git knows or would add, relative to the root.
pub fn files() -> Result<Vec<PathBuf>, String> {
    let listed = output(Command::new("git").current_dir(root()).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let all = listed.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from);
    Ok(all.filter(|path| root().join(path).is_file()).collect())
}
