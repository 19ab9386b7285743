//! People who come in by a certified OpenID Connect provider, through the operator's commands.
//!
//! `cargo xtask test` runs it with `--ignored`: the provider comes from npm.

#![allow(clippy::unwrap_used)] // Helpers of tests: a panic is the report.

use claviger_tests::conformance::provider;
use reqwest::{Certificate, Client, StatusCode, redirect};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";

/// A process that ends with the test, and the lines that it prints.
struct Running {
    child: Child,
    lines: Box<dyn Iterator<Item = String>>,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Running { child, lines: Box::new(lines.map_while(Result::ok)) }
    }

    /// What follows `begin` in the first line that begins so.
    fn says(&mut self, begin: &str) -> String {
        let found = self.lines.find_map(|line| line.strip_prefix(begin).map(str::to_owned));
        found.unwrap_or_else(|| panic!("it ended without {begin:?}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Lab {
    provider: Running,
    issuer: String,
    _server: Running,
    bootstrap: Value,
    dir: tempfile::TempDir,
    client: Client,
}

fn program() -> PathBuf {
    std::env::var_os("CLAVIGER_BIN").map(PathBuf::from).expect("cargo xtask test sets CLAVIGER_BIN")
}

impl Lab {
    fn start(flags: &[&str]) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let home = provider().unwrap();
        let log = fs::File::create(dir.path().join("provider.log")).unwrap();
        let mut provider =
            Running::start(Command::new("node").arg("provider.mjs").current_dir(home).stderr(log));
        let issuer = provider.says("issuer: ");
        let bootstrap = dir.path().join("bootstrap.json");
        let mut server = Running::start(
            Command::new(program())
                .args(["server", "run", "--no-waits", "--listen", "127.0.0.1:0", "--data"])
                .arg(dir.path().join("data"))
                .arg("--bootstrap")
                .arg(&bootstrap)
                .arg(format!("--login-issuer={issuer} claviger"))
                .args(flags)
                .stderr(fs::File::create(dir.path().join("server.log")).unwrap()),
        );
        server.says("bootstrap: ");
        let told: Value = serde_json::from_slice(&fs::read(&bootstrap).unwrap()).unwrap();
        let ca = told["ca"].as_str().unwrap();
        fs::write(dir.path().join("ca.pem"), ca).unwrap();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .timeout(SOON)
            .tls_certs_only([Certificate::from_pem(ca.as_bytes()).unwrap()])
            .build()
            .unwrap();
        Lab { provider, issuer, _server: server, bootstrap: told, dir, client }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(program());
        command
            .args(line.split_whitespace())
            .env_clear()
            .env("CLAVIGER_URL", self.bootstrap["url"].as_str().unwrap())
            .env("CLAVIGER_CA_FILE", self.dir.path().join("ca.pem"))
            .env("CLAVIGER_LOGIN_FILE", self.dir.path().join("login.json"))
            .env("CLAVIGER_INSTANCE_ID", self.bootstrap["instances"][0]["id"].as_str().unwrap());
        command
    }

    /// What a line of somebody who is logged in comes to.
    fn as_alice(&self, line: &str) -> (Option<i32>, String) {
        said(&self.command(line).stdin(Stdio::null()).output().unwrap())
    }

    fn as_administrator(&self, line: &str) -> String {
        let key = self.bootstrap["api_key"].as_str().unwrap();
        let mut command = self.command(line);
        let (code, said) =
            said(&command.env("CLAVIGER_API_KEY", key).stdin(Stdio::null()).output().unwrap());
        assert_eq!(code, Some(0), "{line}: {said}");
        said
    }

    /// `claviger login`, with whoever `browse` lets the browser be; how it ended and what it said.
    async fn log_in(&self, browse: impl AsyncFnOnce(&Lab, String)) -> (Option<i32>, String) {
        let errors = self.dir.path().join("login.log");
        let mut running = Running::start(
            self.command(&format!("login --issuer {}", self.issuer))
                .stderr(fs::File::create(&errors).unwrap()),
        );
        let url = running.says("open this in your browser:").to_owned()
            + &running.lines.next().expect("the URL");
        browse(self, url).await;
        let printed: Vec<String> = running.lines.by_ref().collect();
        let code = running.child.wait().unwrap().code();
        (code, printed.join("\n") + &fs::read_to_string(errors).unwrap())
    }

    /// An ID token, as the query says; signed by the provider's key.
    async fn token(&self, query: &str) -> String {
        let url = format!("{}/test/token?{query}", self.issuer);
        self.client.get(url).send().await.unwrap().text().await.unwrap()
    }

    async fn exchange(&self, token: &str) -> (StatusCode, String) {
        let form =
            [("grant_type", EXCHANGE), ("subject_token_type", ID_TOKEN), ("subject_token", token)];
        let url = format!("{}/identity/token", self.bootstrap["url"].as_str().unwrap());
        let answer = self.client.post(url).form(&form).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }
}

fn said(output: &Output) -> (Option<i32>, String) {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8(both).unwrap())
}

/// A browser whose person says to be alice, until it is sent back to the one who sent it; there.
async fn until_sent_back(lab: &Lab, url: String) -> String {
    let mut cookies = BTreeMap::new();
    let (mut url, mut form) = (url, None);
    for _ in 0..20 {
        let mut request = match form.take() {
            Some(form) => lab.client.post(&url).body(form),
            None => lab.client.get(&url),
        };
        let held: Vec<String> = cookies.iter().map(|(n, v)| format!("{n}={v}")).collect();
        request = request
            .header("cookie", held.join("; "))
            .header("content-type", "application/x-www-form-urlencoded");
        let answer = request.send().await.unwrap();
        for set in answer.headers().get_all("set-cookie") {
            let pair = set.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            cookies.insert(name.to_owned(), value.to_owned());
        }
        let there = answer.headers().get("location").map(|to| to.to_str().unwrap().to_owned());
        let Some(there) = there else {
            let page = answer.text().await.unwrap();
            let prompt = if page.contains(r#"value="login""#) { "login" } else { "consent" };
            form = Some(format!("prompt={prompt}&login=alice&password=x"));
            continue;
        };
        url = if there.starts_with('/') { format!("{}{there}", lab.issuer) } else { there };
        if url.contains("/callback?") {
            return url;
        }
    }
    panic!("the provider goes on asking: {url}");
}

async fn alice(lab: &Lab, url: String) {
    let back = until_sent_back(lab, url).await;
    let page = lab.client.get(back).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("Go on in the terminal"), "{page}");
}

#[tokio::test]
#[ignore = "needs npm and the built program"]
async fn who_is_let_in_comes_in_by_a_browser_and_nobody_else() {
    let lab = Lab::start(&[]);
    let (code, said) = lab.log_in(alice).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("nobody has let you in") && said.contains("\"alice\""), "{said}");
    assert_eq!(lab.as_alice("key ls").0, Some(2), "nobody is logged in");

    let issuer = lab.issuer.clone();
    let said =
        lab.as_administrator(&format!("iam user create Alice --issuer {issuer} --subject alice"));
    assert!(!said.contains("API key"), "{said}");
    let (code, said) = lab.log_in(alice).await;
    assert_eq!(code, Some(0), "{said}");
    let mode = fs::metadata(lab.dir.path().join("login.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(lab.as_alice("key create shop").0, Some(1), "he has no role");
    lab.as_administrator("iam policy create --of Alice --role Manager");
    let (code, said) = lab.as_alice("key create shop");
    assert_eq!(code, Some(0), "{said}");

    // A browser that somebody else sends, and a token that was made for another login.
    let (code, said) = lab
        .log_in(async |lab: &Lab, url: String| {
            let back = until_sent_back(lab, url).await;
            let other = back.replace("state=", "state=x");
            let answer = lab.client.get(other).send().await.unwrap();
            assert_eq!(answer.status(), 400);
            assert!(lab.client.get(back).send().await.unwrap().status().is_success());
        })
        .await;
    assert_eq!(code, Some(0), "the login goes on all the same: {said}");
    let (code, said) = lab
        .log_in(async |lab: &Lab, url: String| alice(lab, url.replace("nonce=", "nonce=x")).await)
        .await;
    assert_ne!(code, Some(0), "{said}");
    assert!(said.contains("nonce"), "{said}");

    // What was got by a login counts as long as it does.
    assert_eq!(lab.as_alice("key ls").0, Some(0));
    lab.as_administrator("iam user logins Alice --remove");
    assert_eq!(lab.as_alice("key ls").0, Some(1));
    let (code, said) = lab.as_alice("logout");
    assert_eq!(code, Some(0), "{said}");
    assert!(!lab.dir.path().join("login.json").exists());
}

#[tokio::test]
#[ignore = "needs npm and the built program"]
async fn only_tokens_that_the_issuer_signed_for_this_server_are_taken() {
    let mut lab = Lab::start(&["--login-open"]);
    let (status, body) = lab.exchange(&lab.token("").await).await;
    assert_eq!(status, 200, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert!(body["refresh_token"].as_str().unwrap().starts_with("clr_"));
    for (what, query) in [
        ("another audience", "aud=other"),
        ("another issuer", "iss=http://127.0.0.1:1"),
        ("the issuer, written otherwise", &*format!("iss={}/", lab.issuer)),
        ("its time is over", "exp=-60"),
        ("it is old", "iat=-3600"),
        ("it is of tomorrow", "iat=3600&exp=7200"),
        ("no signature", "alg=none"),
        ("a shared secret that everybody knows", "alg=HS256"),
        ("another's key under the issuer's name", "by=stranger"),
        ("another's key", "kid=stranger"),
        ("nobody", "sub="),
    ] {
        let (status, body) = lab.exchange(&lab.token(query).await).await;
        assert_eq!((status.as_u16(), body.contains("BXNIM0446E")), (400, true), "{what}: {body}");
    }
    let token = lab.token("").await;
    for bad in [&token[..token.len() - 4], "a.b.c", "", &"x".repeat(20_000)] {
        assert_eq!(lab.exchange(bad).await.0, 400);
    }

    // The issuer takes another key.
    let rotate = format!("{}/test/rotate", lab.issuer);
    lab.client.get(rotate).send().await.unwrap();
    let (old, new) = (lab.token("kid=one").await, lab.token("kid=two").await);
    let (status, body) = lab.exchange(&new).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(lab.exchange(&old).await.0, 400, "it signs no longer");

    // It is down: keys that are known count, others cannot be learned.
    let (known, unknown) = (lab.token("kid=two").await, lab.token("kid=stranger").await);
    lab.provider.child.kill().unwrap();
    lab.provider.child.wait().unwrap();
    assert_eq!(lab.exchange(&known).await.0, 200);
    let (status, body) = lab.exchange(&unknown).await;
    assert_eq!((status.as_u16(), body.contains("BXNIM0513E")), (503, true), "{body}");
}
