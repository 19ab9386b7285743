//! Verbs that need an answer, on the real program against a real server.

#![allow(clippy::unwrap_used)] // Helpers of tests: a panic is the report.

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};

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
        let dir = tempfile::tempdir().unwrap();
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
