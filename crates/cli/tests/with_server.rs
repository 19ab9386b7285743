//! Verbs that need an answer, on the real program against a real server.

#![allow(clippy::unwrap_used)] // Helpers of tests: a panic is the report.

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_claviger");

/// A server of a temporary directory, on a free port of this machine, without waiting times.
struct Server {
    child: Child,
    bootstrap: Value,
    dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Server {
        Server::start_in(tempfile::tempdir().unwrap(), &[])
    }

    fn start_in(dir: tempfile::TempDir, flags: &[String]) -> Server {
        let bootstrap = dir.path().join("bootstrap.json");
        let mut child = Command::new(PROGRAM)
            .args(["server", "run", "--no-waits", "--listen", "127.0.0.1:0", "--data"])
            .arg(dir.path().join("data"))
            .arg("--bootstrap")
            .arg(&bootstrap)
            .args(flags)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        // It listens before it says so, and what it says ends when it does.
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = lines.map_while(Result::ok).any(|line| line.starts_with("bootstrap: "));
        let log = || fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(told, "it did not start: {}", log());
        let bootstrap: Value = serde_json::from_slice(&fs::read(&bootstrap).unwrap()).unwrap();
        fs::write(dir.path().join("ca.pem"), bootstrap["ca"].as_str().unwrap()).unwrap();
        Server { child, bootstrap, dir }
    }

    fn claviger(&self, line: &str) -> Output {
        let told = |name: &str| self.bootstrap[name].as_str().unwrap().to_owned();
        Command::new(PROGRAM)
            .args(line.split_whitespace())
            .env_clear()
            .env("CLAVIGER_URL", told("url"))
            .env("CLAVIGER_CA_FILE", self.dir.path().join("ca.pem"))
            .env("CLAVIGER_API_KEY", told("api_key"))
            .env("CLAVIGER_INSTANCE_ID", self.bootstrap["instances"][0]["id"].as_str().unwrap())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a line that is to end with `code`; what it printed, errors after answers.
    fn ends(&self, code: i32, line: &str) -> String {
        let out = self.claviger(line);
        let both = [out.stdout, out.stderr].concat();
        let said = String::from_utf8(both).unwrap();
        assert_eq!(out.status.code(), Some(code), "{line}: {said}");
        said
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which a test has noticed then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_done_already_is_done() {
    let server = Server::start();
    server.ends(0, "key create shop");
    for verb in ["enable shop", "disable shop --yes", "disable shop --yes", "enable shop"] {
        server.ends(0, &format!("key {verb}"));
    }
    server.ends(0, "key delete shop --yes --force");
}

#[test]
fn a_cluster_is_removed_and_its_root_key_released() {
    let server = Server::start();
    server.ends(0, "key create shop");
    let ca = server.dir.path().join("ca.pem").display().to_string();
    server.ends(0, &format!("ks cluster register shop --server https://shop --ca-cert {ca}"));
    let said = server.ends(2, "ks kms release -c shop --crk shop --force");
    assert!(said.contains("not registered"), "{said}");
    server.ends(0, "ks cluster rm -c shop");
    server.ends(2, "ks cluster rm -c shop");
    server.ends(2, "ks kms release -c shop --crk shop --force");
}

/// A certificate for `localhost` by an authority that is made anew; the authority's, PEM.
fn own_certificate(chain: &Path, key: &Path) -> String {
    let ca = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&ca).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, ca);
    let pair = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let signed = params.signed_by(&pair, &issuer).unwrap();
    fs::write(chain, signed.pem()).unwrap();
    fs::write(key, pair.serialize_pem()).unwrap();
    fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
    pem
}

#[test]
fn an_own_certificate_is_exchanged_while_the_server_runs() {
    let dir = tempfile::tempdir().unwrap();
    let [chain, key, ca] = ["own.pem", "own.key", "own-ca.pem"].map(|name| dir.path().join(name));
    fs::write(&ca, own_certificate(&chain, &key)).unwrap();
    let flags = ["--name=localhost".to_owned()].into_iter().chain([
        format!("--tls-certificate={}", chain.display()),
        format!("--tls-key={}", key.display()),
    ]);
    let server = Server::start_in(dir, &flags.collect::<Vec<_>>());
    let line = format!("key ls --ca-file {}", ca.display());
    server.ends(0, &line);
    let built_in = server.claviger("key ls").status.code();
    assert_eq!(built_in, Some(2), "this name is the own certificate's");

    // Of another authority, so that only the new one is good for whoever trusts that.
    fs::write(&ca, own_certificate(&chain, &key)).unwrap();
    let pid = rustix::process::Pid::from_child(&server.child);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let taken_up = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        server.claviger(&line).status.success()
    });
    let log = fs::read_to_string(server.dir.path().join("log")).unwrap();
    assert!(taken_up, "{log}");
}
