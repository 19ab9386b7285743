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

/// A server of a temporary directory, on a free port of this machine.
struct Server {
    child: Child,
    bootstrap: Value,
    dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Server {
        Server::with(&["--no-waits"])
    }

    fn with(flags: &[&str]) -> Server {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Server::start_in(tempfile::tempdir().unwrap(), &flags)
    }

    fn start_in(dir: tempfile::TempDir, flags: &[String]) -> Server {
        let bootstrap = dir.path().join("bootstrap.json");
        let mut child = Command::new(PROGRAM)
            .args(["server", "run", "--listen", "127.0.0.1:0"])
            .args(flags)
            .arg("--data")
            .arg(dir.path().join("data"))
            .arg("--bootstrap")
            .arg(&bootstrap)
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

    fn command(&self, program: &str) -> Command {
        let told = |name: &str| self.bootstrap[name].as_str().unwrap().to_owned();
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("CLAVIGER_URL", told("url"))
            .env("CLAVIGER_CA_FILE", self.dir.path().join("ca.pem"))
            .env("CLAVIGER_API_KEY", told("api_key"))
            .env("CLAVIGER_INSTANCE_ID", self.bootstrap["instances"][0]["id"].as_str().unwrap());
        command
    }

    fn claviger(&self, line: &str) -> Output {
        let mut command = self.command(PROGRAM);
        command.args(line.split_whitespace()).stdin(Stdio::null()).output().unwrap()
    }

    /// What a person at a terminal sees who answers `typed` to what is asked.
    fn attended(&self, line: &str, typed: &str) -> (Option<i32>, String) {
        let mut command = self.command("script");
        command.args(["-qec", &format!("{PROGRAM} {line}"), "/dev/null"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        writeln!(pipe, "{typed}").unwrap();
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        (child.wait().unwrap().code(), said)
    }

    fn state(&self, key: &str) -> u64 {
        let out = self.claviger(&format!("key get {key} --output json"));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["state"].as_u64().unwrap()
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
    let flags = ["--no-waits", "--name=localhost"].map(str::to_owned).into_iter().chain([
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
    let mut server = Server::with(&["--no-waits", "--status-listen", &free]);
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

/// A guard of `ks kms verify --by-disabling` that has disabled a key, without its starter.
struct Guard {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Guard {
    fn start(server: &Server, key: &str) -> Guard {
        let shown = server.claviger(&format!("key get {key} --output json"));
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        let instance = server.bootstrap["instances"][0]["id"].as_str().unwrap();
        let mut child = server
            .command(PROGRAM)
            .env_remove("CLAVIGER_API_KEY")
            .args(["ks", "kms", "guard", "--after", "600", "--instance-id", instance, "--crk"])
            .arg(shown["id"].as_str().unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let api_key = server.bootstrap["api_key"].as_str().unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "{api_key}").unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut guard = Guard { child, out };
        assert_eq!(guard.heard(), "armed");
        writeln!(guard.child.stdin.as_mut().unwrap(), "go").unwrap();
        let told = guard.heard();
        assert!(told.starts_with("disabled "), "with the act on record: {told:?}");
        assert_eq!(server.state(key), 2);
        guard
    }

    fn heard(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Its starter is gone; what it says of that.
    fn left_alone(mut self) -> String {
        drop(self.child.stdin.take());
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().success(), "{said}");
        said
    }
}

#[test]
fn a_guard_whose_starter_dies_enables_the_key_it_disabled() {
    let server = Server::start();
    server.ends(0, "key create shop");
    let said = Guard::start(&server, "shop").left_alone();
    assert!(said.contains("is enabled again"), "{said}");
    assert_eq!(server.state("shop"), 1);
}

#[test]
fn a_guard_leaves_a_key_disabled_that_somebody_else_wants_disabled() {
    let server = Server::start();
    server.ends(0, "key create shop");
    let guard = Guard::start(&server, "shop");
    let said = server.ends(0, "key disable shop --yes");
    assert!(said.contains("suspended already"), "{said}");
    let said = guard.left_alone();
    assert!(said.contains("stays disabled"), "{said}");
    assert_eq!(server.state("shop"), 2);

    server.ends(0, "key enable shop");
    let guard = Guard::start(&server, "shop");
    server.ends(0, "key enable shop");
    server.ends(0, "key disable shop --yes");
    let said = guard.left_alone();
    assert!(said.contains("stays disabled"), "{said}");
    assert_eq!(server.state("shop"), 2);
}

#[test]
fn a_yes_at_the_terminal_removes_a_group_with_members() {
    let server = Server::start();
    server.ends(0, "iam user create bob --email bob@example.org");
    server.ends(0, "iam group create shop");
    server.ends(0, "iam group add shop bob@example.org");
    let said = server.ends(1, "iam group delete shop");
    assert!(said.contains("GROUP_NOT_EMPTY_ERR"), "nobody said yes: {said}");
    let (code, said) = server.attended("iam group delete shop", "n");
    assert_eq!(code, Some(1), "{said}");
    let (code, said) = server.attended("iam group delete shop", "y");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("1 members lose"), "{said}");
}

#[test]
fn roles_on_a_key_are_not_roles_everywhere() {
    let server = Server::start();
    server.ends(0, "key create shop");
    server.ends(0, "iam user create bob --email bob@example.org");
    let policy = "iam policy create --of bob@example.org --role Reader --key shop";
    let said = server.ends(2, policy);
    assert!(said.contains("--instance-id"), "{said}");
    server.ends(2, &format!("{policy} --service kms"));
    let said = server.ends(2, &format!("{policy} --cluster shop"));
    assert!(said.contains("--instance-id"), "{said}");
    let instance = server.bootstrap["instances"][0]["id"].as_str().unwrap().to_owned();
    let made = server.ends(0, &format!("{policy} --instance-id {instance} --output json"));
    assert!(made.contains(&instance), "{made}");
}

/// With Key Protect's own waiting times, as half a minute of this test.
#[test]
fn enabling_waits_a_limit_out_and_says_so() {
    let server = Server::with(&[]);
    server.ends(0, "key create shop");
    server.ends(0, "key disable shop --yes");
    let said = server.ends(0, "key enable shop");
    assert!(said.contains("waiting"), "{said}");
    assert_eq!(server.state("shop"), 1);
}

#[test]
fn a_wrong_role_and_a_disabled_key_are_told_and_change_nothing() {
    let server = Server::start();
    server.ends(0, "key create shop");
    server.ends(0, "iam service-id create reader");
    let instance = server.bootstrap["instances"][0]["id"].as_str().unwrap().to_owned();
    let policy = format!("--of reader --role Reader --instance-id {instance} --key shop");
    server.ends(0, &format!("iam policy create {policy}"));
    let out = server.claviger("iam api-key create ci --of reader --output json");
    let made: Value = serde_json::from_slice(&out.stdout).unwrap();
    let as_reader = |line: &str| {
        let mut command = server.command(PROGRAM);
        command.args(line.split_whitespace()).stdin(Stdio::null());
        let out =
            command.env("CLAVIGER_API_KEY", made["entity"]["apiKey"].as_str().unwrap()).output();
        let out = out.unwrap();
        (out.status.code(), String::from_utf8([out.stdout, out.stderr].concat()).unwrap())
    };
    let key: Value =
        serde_json::from_slice(&server.claviger("key get shop --output json").stdout).unwrap();
    let id = key["id"].as_str().unwrap();
    let (code, said) = as_reader(&format!("key get {id} --output json"));
    assert_eq!(code, Some(0), "{said}");
    for line in ["disable", "delete", "rotate"].map(|verb| format!("key {verb} {id}")) {
        let (code, said) = as_reader(&line);
        assert_eq!(code, Some(1), "{line}: {said}");
        assert!(said.contains("error: ") && said.contains("hint: "), "{line}: {said}");
        assert_eq!(server.state("shop"), 1, "{line}");
    }
    server.ends(0, "key disable shop --yes");
    let said = server.ends(1, "key rotate shop");
    assert!(said.contains("KEY_ACTION_INVALID_STATE_ERR") && said.contains("hint: "), "{said}");
}

#[test]
fn answers_of_the_servers_own_verbs_are_json_when_asked() {
    let server = Server::start();
    let at = |name: &str| server.dir.path().join(name).display().to_string();
    let json = |line: &str| {
        let out = server.claviger(&format!("{line} --output json"));
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice::<Value>(&out.stdout).unwrap_or_else(|e| panic!("{line}: {e}"))
    };
    let (data, backup, recovery, new) =
        (at("data"), at("a.backup"), at("recovery.key"), at("restored"));
    let made =
        json(&format!("server backup --data {data} --to {backup} --recovery-key {recovery}"));
    assert!(made["database_bytes"].as_u64().unwrap() > 0, "{made}");
    assert_eq!(made["made_recovery_key"], true);
    let restore = format!("server restore --data {new} --from {backup} --recovery-key {recovery}");
    assert_eq!(json(&restore)["data"], new);
    let check = format!("server run --check --data {new} --listen 127.0.0.1:0");
    assert_eq!(json(&check)["good"], true);
    let instance = server.bootstrap["instances"][0]["id"].as_str().unwrap();
    let opened = json(&format!("server unlock --data {new} --instance {instance}"));
    assert_eq!(opened["switched_off"], serde_json::json!([]));
    assert_eq!(json(&format!("server master-key --to {}", at("m")))["master_key"], at("m"));
}

#[test]
fn following_ends_when_time_is_up() {
    let server = Server::start();
    server.ends(0, "key create shop");
    let ca = server.dir.path().join("ca.pem").display().to_string();
    server.ends(0, &format!("ks cluster register shop --server https://shop --ca-cert {ca}"));
    // Nobody is there who would do it.
    let said = server.ends(2, "ks kms enable -c shop --crk shop --wait --timeout 1s");
    assert!(said.contains("time is up") && said.contains("hint: "), "{said}");
    let said = server.ends(2, "ks kms follow -c shop --timeout 1s");
    assert!(said.contains("time is up"), "{said}");
}

#[test]
fn what_is_shown_once_and_cannot_be_written_is_told_to_be_lost() {
    let server = Server::start();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = server.command(PROGRAM);
    command.args(["iam", "api-key", "create", "ci", "--output", "json"]).stdout(full);
    let out = command.stdin(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(3), "{said}");
    assert!(said.contains("make another"), "{said}");
}
