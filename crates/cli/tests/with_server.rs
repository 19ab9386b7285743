//! Verbs that need an answer, on the real program against a real server.

#![allow(clippy::unwrap_used)] // Helpers of tests: a panic is the report.

use rustix::process::{Pid, Signal, kill_process};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_claviger");

/// A server of a temporary directory, on a free port of this machine, without waiting times.
struct Server {
    child: Child,
    bootstrap: Value,
    dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Server {
        Server::start_with(&[])
    }

    fn start_with(flags: &[&str]) -> Server {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Server::start_in(tempfile::tempdir().unwrap(), &flags)
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

/// Tries again until it gives something, for a minute at most.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The first line of what the status listener answers; none if it does not answer.
fn status(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.lines().next().map(str::to_owned)
}

#[test]
fn a_stop_answers_what_has_begun_and_takes_nothing_new() {
    // Free when it is asked for; nothing else here takes one by its number.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut server = Server::start_with(&["--status-listen", &free]);
    until("it is ready", || status(&free, "/readyz").filter(|line| line.contains("200")));

    let url = server.bootstrap["url"].as_str().unwrap().to_owned();
    let address = url.strip_prefix("https://").unwrap().to_owned();
    let mut roots = rustls::RootCertStore::empty();
    let ca = server.bootstrap["ca"].as_str().unwrap();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session =
        rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let socket = TcpStream::connect(&address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut stream = rustls::StreamOwned::new(session, socket);
    let key = server.bootstrap["api_key"].as_str().unwrap();
    let body = format!("grant_type=urn:ibm:params:oauth:grant-type:apikey&apikey={key}");
    write!(
        stream,
        "POST /identity/token HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n", "the request is under way");

    let process = Pid::from_raw(i32::try_from(server.child.id()).unwrap()).unwrap();
    kill_process(process, Signal::TERM).unwrap();
    until("it says that it is not ready", || {
        status(&free, "/readyz").filter(|line| line.contains("503"))
    });
    until("nobody new comes in", || TcpStream::connect(&address).err());
    assert!(status(&free, "/healthz").is_some_and(|line| line.contains("200")), "it works still");
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let ended = until("it ends", || server.child.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
}
