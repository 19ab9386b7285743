//! Wrong command lines and absent servers, on the real program: an exit code from the table, a
//! line that says what is wrong, a hint that says what to do, and never a panic.

#![allow(clippy::unwrap_used)] // Helpers of tests: a panic is the report.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

struct Said {
    code: i32,
    out: String,
    err: String,
}

/// Runs `claviger LINE` with these variables and no others.
fn claviger(line: &str, env: &[(&str, &str)]) -> Said {
    let out = Command::new(env!("CARGO_BIN_EXE_claviger"))
        .args(line.split_whitespace())
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = Said {
        code: out.status.code().unwrap_or(-1),
        out: String::from_utf8(out.stdout).unwrap(),
        err: String::from_utf8(out.stderr).unwrap(),
    };
    assert!(!said.err.contains("panicked"), "{}", said.err);
    said
}

const GUID: &str = "11111111-2222-4333-8444-555555555555";

/// A CA of nobody, made anew: real enough to be read, good for no server.
fn ca(dir: &Path) -> String {
    let path = dir.join("ca.pem");
    let key = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(vec!["nobody".to_owned()]).unwrap();
    fs::write(&path, made.self_signed(&key).unwrap().pem()).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn what_is_missing_is_named() {
    for (line, env, word) in [
        ("ks cluster ls", vec![], "URL"),
        ("ks cluster ls", vec![("CLAVIGER_URL", "https://localhost:1")], "CA"),
        ("key ls", vec![], "instance"),
        ("ks cluster get", vec![], "--cluster"),
        ("ks kms enable -c x --crk y", vec![], "--instance-id"),
    ] {
        let said = claviger(line, &env);
        assert_eq!(said.code, 2, "{line}: {}", said.err);
        assert!(said.err.contains(word), "{line}: {}", said.err);
        assert_eq!(said.out, "", "{line}");
    }
}

#[test]
fn an_absent_server_is_3_and_worth_another_try() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ca(dir.path());
    // Bound and dropped: nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("https://127.0.0.1:{port}");
    let env = [("CLAVIGER_URL", &*url), ("CLAVIGER_CA_FILE", &*ca), ("CLAVIGER_API_KEY", "k")];
    for line in [
        "ks cluster ls".to_owned(),
        "ks cluster ls --output json".to_owned(),
        "ks kms status -c shop".to_owned(),
        format!("key ls --instance-id {GUID}"),
        format!("key disable {GUID} --yes --instance-id {GUID}"),
    ] {
        let said = claviger(&line, &env);
        assert_eq!(said.code, 3, "{line}: {}", said.err);
        assert!(said.err.contains("error: "), "{line}: {}", said.err);
        assert!(said.err.contains("hint: "), "{line}: {}", said.err);
    }
}

#[test]
fn files_that_are_not_what_they_should_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_string_lossy().into_owned()
    };
    let good = ca(dir.path());
    let (none, text, large) =
        ("/no/such/file".to_owned(), path("text", b"no pem"), path("large", &vec![b'x'; 2 << 20]));
    let url = "https://127.0.0.1:1";
    for bad in [&none, &text, &large] {
        let env = [("CLAVIGER_URL", url), ("CLAVIGER_CA_FILE", bad), ("CLAVIGER_API_KEY", "k")];
        let said = claviger("ks cluster ls", &env);
        assert_eq!(said.code, 2, "{bad}: {}", said.err);
        let env = [("CLAVIGER_URL", url), ("CLAVIGER_CA_FILE", &good), ("CLAVIGER_API_KEY", "k")];
        let line = format!("ks cluster register shop --server https://x --ca-cert {bad}");
        let said = claviger(&line, &env);
        assert_eq!(said.code, 2, "{line}: {}", said.err);
        let line = format!("key import k --instance-id {GUID} --material {bad}");
        let said = claviger(&line, &env);
        assert_eq!(said.code, 2, "{line}: {}", said.err);
        assert!(!said.err.contains("xxxx"), "an error must not tell material: {}", said.err);
    }
}

#[test]
fn a_file_that_is_there_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().join("there");
    fs::write(&there, "precious").unwrap();
    let (ca, there) = (ca(dir.path()), there.display().to_string());
    let url = "https://127.0.0.1:1";
    let env = [("CLAVIGER_URL", url), ("CLAVIGER_CA_FILE", &*ca), ("CLAVIGER_API_KEY", "k")];
    for line in [
        format!("ks cluster config -c shop --to {there}"),
        format!("ks cluster node reissue -c shop --request {there} --out {there}"),
        format!("agent request-certificate --config {there} --out {there}"),
    ] {
        let said = claviger(&line, &env);
        assert_eq!(said.code, 2, "{line}: {}", said.err);
        assert!(said.err.contains("is there already"), "{line}: {}", said.err);
        let said = claviger(&format!("{line} --yes"), &env);
        assert!(!said.err.contains("is there already"), "{line}: {}", said.err);
        assert_eq!(fs::read_to_string(&there).unwrap(), "precious");
    }
}

#[test]
fn what_others_may_write_to_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, key) = (ca(dir.path()), dir.path().join("key"));
    fs::write(&key, "k").unwrap();
    let env = [("CLAVIGER_URL", "https://127.0.0.1:1"), ("CLAVIGER_CA_FILE", &*ca)];
    let line = format!("ks cluster ls --api-key-file {}", key.display());
    for (mode, code, says) in [(0o600, 3, ""), (0o604, 3, "may read"), (0o602, 2, "may write")] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let said = claviger(&line, &env);
        assert_eq!(said.code, code, "{mode:o}: {}", said.err);
        assert!(said.err.contains(says), "{mode:o}: {}", said.err);
        assert_eq!(said.err.contains("chmod 600"), mode != 0o600, "{}", said.err);
    }
    // Of a server's directory it is said. Its recovery key is read as its master key is.
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(data.join("master.key"), "without its database").unwrap();
    let line = format!("server run --data {} --listen 127.0.0.1:0", data.display());
    let said = claviger(&line, &[]);
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(said.err.contains("chmod 700"), "{}", said.err);
}

#[test]
fn what_is_wrong_with_etcds_options_is_said_in_plain_words() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ca(dir.path());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let absent = format!("https://127.0.0.1:{port}");
    for (options, code, says) in [
        ("--etcd-endpoints nonsense".to_owned(), 2, "give a URL"),
        (format!("--etcd-endpoints {absent}"), 2, "CA"),
        (format!("--etcd-endpoints {absent} --etcd-cacert /no/such"), 2, "/no/such"),
        (format!("--etcd-endpoints {absent} --etcd-cacert {ca}"), 3, "refused"),
    ] {
        let said = claviger(&format!("census {options}"), &[]);
        assert_eq!(said.code, code, "{options}: {}", said.err);
        assert!(said.err.contains(says), "{options}: {}", said.err);
        assert!(!said.err.contains("tonic") && !said.err.contains("Error("), "{}", said.err);
    }
}

#[test]
fn ids_that_are_none() {
    for line in ["key ls --instance-id shop", "ks kms crk ls --instance-id crn:v1:x"] {
        let said = claviger(line, &[]);
        assert_eq!(said.code, 2, "{line}: {}", said.err);
        assert!(said.err.contains("GUID or CRN"), "{line}: {}", said.err);
    }
}

#[test]
fn completions_are_scripts_of_their_shells() {
    let script = claviger("completions bash", &[]);
    assert_eq!(script.code, 0);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("claviger.bash");
    fs::write(&file, &script.out).unwrap();
    assert!(Command::new("bash").arg("-n").arg(&file).status().unwrap().success());
    assert!(claviger("completions zsh", &[]).out.starts_with("#compdef claviger"));
    assert!(claviger("completions fish", &[]).out.contains("complete -c claviger"));
    assert_eq!(claviger("completions tcsh", &[]).code, 2);
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_claviger"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(!String::from_utf8_lossy(&out.stderr).contains("panicked"));
}

#[test]
fn an_agents_settings_that_cannot_be_read_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let said = claviger(&format!("agent check --config {}", dir.path().display()), &[]);
    assert_eq!(said.code, 2, "{}", said.err);
    assert!(said.err.contains("directory"), "the cause is told: {}", said.err);
}

#[test]
fn a_server_is_not_made_for_a_name_that_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    for name in ["https://x", "x:8443", "a..b", "ü", "-.x/y"] {
        let line = format!("server run --data {data} --listen 127.0.0.1:0 --name={name}");
        let said = claviger(&line, &[]);
        assert_eq!(said.code, 2, "{name}: {}", said.err);
        assert!(said.err.contains("DNS name"), "{name}: {}", said.err);
    }
    assert!(!Path::new(&data).exists());
}

#[test]
fn what_a_server_would_start_with_is_told_with_where_it_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server.toml");
    let data = dir.path().join("data");
    fs::write(&file, format!("data = {:?}\nlisten = \"127.0.0.1:0\"\n", data.display())).unwrap();
    let line = format!("server run --check --config {} --name keys.example", file.display());
    let said = claviger(&line, &[("CLAVIGER_AUDIT_KEEP_DAYS", "30")]);
    assert_eq!(said.code, 0, "{}", said.err);
    let row = |name: &str| said.out.lines().find(|l| l.starts_with(name)).unwrap_or_default();
    for (name, value, from) in [
        ("data ", data.to_str().unwrap(), file.to_str().unwrap()),
        ("listen ", "127.0.0.1:0", "file"),
        ("names ", "keys.example", "flag --name"),
        ("audit_keep_days ", "30", "env CLAVIGER_AUDIT_KEEP_DAYS"),
        ("audit_durability ", "synced", "default"),
    ] {
        assert!(row(name).contains(value) && row(name).contains(from), "{name}: {}", said.out);
    }
    assert!(!data.exists(), "nothing was made");
    fs::write(&file, "listn = \"127.0.0.1:0\"\n").unwrap();
    let said = claviger(&line, &[]);
    assert_eq!(said.code, 2);
    assert!(said.err.contains("did you mean listen?"), "{}", said.err);
}

#[test]
fn a_file_that_cannot_be_read_is_2() {
    let none = "/no/such/file";
    for line in [
        format!("agent check --config {none}"),
        format!("agent status --config {none}"),
        format!("agent upgrade --config {none}"),
        format!("agent install-certificate --config {none} --in {none}"),
        format!("census --snapshot {none}"),
        format!("audit verify --data {none} --checkpoint {none}"),
    ] {
        let said = claviger(&line, &[]);
        assert_eq!(said.code, 2, "{line}: {}", said.err);
        assert!(said.err.contains("error: "), "{line}: {}", said.err);
    }
}

#[test]
fn the_first_start_of_a_server_tells_no_log_an_api_key() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let line = format!("server run --data {} --listen 127.0.0.1:0", data.display());
    let said = claviger(&line, &[]);
    assert_eq!(said.code, 2, "{}", said.err);
    assert!(said.err.contains("--bootstrap"), "{}", said.err);
    assert!(!said.out.contains("api-key"), "{}", said.out);
    assert!(!data.join("claviger.db").exists(), "nothing was made");
}

#[test]
fn a_master_key_is_made_once_and_is_ones_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.key");
    let line = format!("server master-key --to {}", path.display());
    let said = claviger(&line, &[]);
    assert_eq!(said.code, 0, "{}", said.err);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("claviger-master-key-1:") && text.len() == 87, "{}", text.len());
    assert!(!said.out.contains(&text[22..86]), "it is in the file and nowhere else");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let said = claviger(&line, &[]);
    assert_eq!(said.code, 2, "{}", said.err);
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    // As systemd hands it over: by an access control list, whose mask the group's bits show.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
    let data = dir.path().join("data").display().to_string();
    let listen = "--listen 127.0.0.1:0";
    let check =
        format!("server run --check --data {data} {listen} --master-key {}", path.display());
    assert_eq!(claviger(&check, &[]).code, 3, "others may read it");
    let credentials = dir.path().display().to_string();
    let said = claviger(&check, &[("CREDENTIALS_DIRECTORY", &credentials)]);
    assert_eq!(said.code, 0, "{}", said.err);
}

#[test]
fn a_port_that_is_taken_and_a_directory_that_is_none_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let data = dir.path().join("data");
    let bootstrap = dir.path().join("bootstrap.json");
    let run = |listen: &str, data: &Path| {
        let line = format!(
            "server run --listen {listen} --data {} --bootstrap {}",
            data.display(),
            bootstrap.display()
        );
        claviger(&line, &[])
    };
    let said = run(&address.to_string(), &data);
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(said.err.contains(&address.to_string()) && said.err.contains("hint: "), "{}", said.err);
    assert!(!bootstrap.exists(), "no API key of a server that did not start");
    // What is a file cannot hold the database.
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    let said = run("127.0.0.1:0", &file);
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(said.err.contains("hint: "), "{}", said.err);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}
