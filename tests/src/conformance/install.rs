//! The clients, each installed by its registry's own program at the version that a lock file
//! pins.

use super::suites::{Client, Place, Suite};
use super::{process, root};
use crate::Outcome;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Longest installation of one client: registries and slow machines take minutes.
const LIMIT: Duration = Duration::from_secs(600);

/// Fails when a program is missing that nobody can install for you.
pub fn need(chosen: &[&Suite]) -> Outcome<()> {
    let uses = |client| chosen.iter().any(|suite| suite.client == client);
    let cloud = chosen.iter().any(|suite| suite.place == Place::Cloud);
    let needs = [
        (uses(Client::Python3) || uses(Client::Python2), "python3", "Debian: python3-venv"),
        (uses(Client::Npm), "node", "Debian: nodejs"),
        (uses(Client::Npm), "npm", "Debian: npm"),
        (
            uses(Client::Go) || uses(Client::Portworx) || uses(Client::Bluemix),
            "go",
            "Debian: golang",
        ),
        (cloud, "unshare", "Debian: util-linux"),
        (cloud, "ip", "Debian: iproute2"),
    ];
    for (needed, program, package) in needs {
        if needed {
            need_program(program, package)?;
        }
    }
    // The owner of our entry in /proc is who we are.
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| {
        use std::os::unix::fs::MetadataExt;
        m.uid() == 0
    });
    if cloud && !root {
        return Err(
            "some clients have the cloud's addresses built in; that they reach our server \
                    instead takes a network namespace with its own /etc/hosts, which only root can \
                    make. Run this as root, or leave them out: cargo xtask conformance --only \
                    python3- --only python2-calls --only npm- --only go-calls --only portworx \
                    --only bluemix-"
                .to_owned(),
        );
    }
    Ok(())
}

/// Fails when this program is missing; `package` says where it comes from.
pub fn need_program(program: &str, package: &str) -> Outcome<()> {
    if found(program) { Ok(()) } else { Err(format!("{program} is not in PATH ({package})")) }
}

fn found(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Installs what the suites need, side by side, and returns the directory that holds it.
pub fn all(chosen: &[&Suite]) -> Outcome<PathBuf> {
    let dir = directory();
    std::fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    let mut clients: Vec<Client> = chosen.iter().map(|suite| suite.client).collect();
    clients.sort();
    clients.dedup();
    std::thread::scope(|scope| {
        let running: Vec<_> = clients
            .iter()
            .map(|client| (client, scope.spawn(|| install(*client, &directory()))))
            .collect();
        for (client, thread) in running {
            let done = thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned()));
            done.map_err(|why| format!("cannot install {}: {why}", client.directory()))?;
        }
        Ok::<_, String>(())
    })?;
    Ok(dir)
}

/// Where clients and runs lie.
pub fn directory() -> PathBuf {
    root().join("target/conformance")
}

fn install(client: Client, dir: &Path) -> Outcome<()> {
    let log = dir.join(format!("install-{}.log", client.directory()));
    match client {
        Client::Python3 | Client::Python2 => python(client.directory(), dir, &log),
        Client::Npm => npm(dir, &log),
        Client::Go => {
            let module = client.sources();
            go(&module, &["mod", "download"], &log)?;
            let program = dir.join("go-calls").display().to_string();
            go(&module, &["build", "-buildvcs=false", "-o", &program, "."], &log)?;
            // Compiles the suite, where there still is a network.
            go(&module, &[GO_TEST, &["-run", "^$", super::suites::GO_CLIENT]].concat(), &log)
        }
        Client::Bluemix => {
            let module = client.sources();
            go(&module, &["mod", "download"], &log)?;
            let program = dir.join("bluemix-calls").display().to_string();
            go(&module, &["build", "-buildvcs=false", "-o", &program, "."], &log)
        }
        Client::Portworx => {
            let module = client.sources();
            go(&module, &["mod", "download", "github.com/libopenstorage/secrets"], &log)?;
            go(&module, &[GO_TEST, &["-run", "^$", super::suites::SECRETS]].concat(), &log)
        }
    }
}

/// `go test` as the clients' own instructions have it.
pub const GO_TEST: &[&str] = &["test", "-count=1", "-vet=off", "-tags", "integration"];

fn go(module: &Path, args: &[&str], log: &Path) -> Outcome<()> {
    process::run(Command::new("go").current_dir(module).args(args), log, LIMIT)
}

/// The virtual environment `name` in `dir`, made anew when what it is to hold changes.
pub fn python(name: &str, dir: &Path, log: &Path) -> Outcome<()> {
    let requirements = root().join("conformance").join(name).join("requirements.txt");
    let venv = dir.join(name);
    unless_there(&venv, &[&requirements], || {
        process::run(
            Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv),
            log,
            LIMIT,
        )?;
        let pip = venv.join("bin/pip");
        let args = ["install", "--quiet", "--no-deps", "--requirement"];
        process::run(Command::new(pip).args(args).arg(&requirements), log, LIMIT)
    })
}

/// The OpenID Connect provider of `tests/oidc`; the directory from which it starts.
pub fn provider() -> Outcome<PathBuf> {
    need_program("node", "Debian: nodejs")?;
    need_program("npm", "Debian: npm")?;
    let (sources, home) = (root().join("tests/oidc"), root().join("target/oidc"));
    std::fs::create_dir_all(&home).map_err(|e| e.to_string())?;
    npm_at(&sources, &home, &home.join("install.log"))?;
    std::fs::copy(sources.join("provider.mjs"), home.join("provider.mjs"))
        .map_err(|e| e.to_string())?;
    Ok(home)
}

fn npm(dir: &Path, log: &Path) -> Outcome<()> {
    npm_at(&Client::Npm.sources(), &dir.join("npm"), log)
}

fn npm_at(sources: &Path, home: &Path, log: &Path) -> Outcome<()> {
    let [package, lock] = ["package.json", "package-lock.json"].map(|name| sources.join(name));
    unless_there(home, &[&package, &lock], || {
        std::fs::create_dir_all(home).map_err(|e| e.to_string())?;
        for file in [&package, &lock] {
            let name = file.file_name().unwrap_or_default();
            std::fs::copy(file, home.join(name)).map_err(|e| e.to_string())?;
        }
        let args = ["ci", "--no-audit", "--no-fund", "--ignore-scripts"];
        process::run(Command::new("npm").current_dir(home).args(args), log, LIMIT)
    })
}

/// Runs `install` unless `home` was installed from files that say the same.
fn unless_there(
    home: &Path,
    files: &[&PathBuf],
    install: impl FnOnce() -> Outcome<()>,
) -> Outcome<()> {
    let mut wanted = String::new();
    for file in files {
        wanted += &std::fs::read_to_string(file)
            .map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    }
    let marker = home.join("installed");
    if std::fs::read_to_string(&marker).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    install()?;
    std::fs::write(&marker, wanted).map_err(|e| format!("cannot write {}: {e}", marker.display()))
}
