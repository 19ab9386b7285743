//! A key server in a process of its own, built with optimisation, and who calls it.

use crate::real::Failure;
use reqwest::{Certificate, Client, Method};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// The server. Ends when it is dropped, with its files.
pub struct Service {
    child: Child,
    dir: PathBuf,
    bootstrap: Value,
}

impl Service {
    /// Starts it with these flags besides; its files are below `target`, since the system's
    /// temporary directory may be memory.
    pub fn start(name: &str, flags: &[&str]) -> Result<Service, Failure> {
        let program = std::env::var_os("CLAVIGER_BIN");
        let program = program.ok_or("CLAVIGER_BIN is not set; start this through cargo xtask")?;
        let dir = std::env::current_dir()?.join(format!("target/bench-{name}"));
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        let told = dir.join("bootstrap.json");
        let mut child = Command::new(program)
            .args(["server", "run", "--no-waits", "--listen", "127.0.0.1:0", "--data"])
            .arg(dir.join("data"))
            .arg("--bootstrap")
            .arg(&told)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(dir.join("log"))?)
            .spawn()?;
        let out = child.stdout.take().ok_or("it has no standard output")?;
        let mut service = Service { child, dir, bootstrap: Value::Null };
        // What it says ends when it does.
        let mut lines = BufReader::new(out).lines().map_while(Result::ok);
        if !lines.any(|line| line.starts_with("bootstrap: ")) {
            return Err(format!("no start: see {}", service.dir.join("log").display()).into());
        }
        service.bootstrap = serde_json::from_slice(&std::fs::read(told)?)?;
        Ok(service)
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What its first start told, by a JSON pointer; empty if it told no such text.
    pub fn told(&self, path: &str) -> String {
        self.bootstrap.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// The administrator, who may use every key.
    pub async fn first(&self) -> Result<Caller, Failure> {
        self.caller(&self.told("/api_key")).await
    }

    /// Lets another in, with a service role everywhere or on one key.
    pub async fn let_in(
        &self,
        first: &Caller,
        name: &str,
        role: &str,
        key: Option<&str>,
    ) -> Result<Caller, Failure> {
        let on = match key {
            Some(key) => json!({"role": role, "instance": first.instance, "key": key}),
            None => json!({"role": role}),
        };
        let new = json!({"name": name, "service": true, "roles": [on]});
        let made = first.ask(Method::POST, "/v3/principals", new.to_string()).await?;
        self.caller(made.1["apikey"].as_str().ok_or("no API key")?).await
    }

    async fn caller(&self, api_key: &str) -> Result<Caller, Failure> {
        let (url, instance) = (self.told("/url"), self.told("/instances/0/id"));
        let client = client(&self.told("/ca"))?;
        let form = [("grant_type", "urn:ibm:params:oauth:grant-type:apikey"), ("apikey", api_key)];
        let answer = client.post(format!("{url}/identity/token")).form(&form).send().await?;
        let token: Value = answer.json().await?;
        let token = token["access_token"].as_str().ok_or("no token")?.to_owned();
        Ok(Caller { client, ca: self.told("/ca"), url, instance, token })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended by itself, which a caller has noticed then.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn client(ca: &str) -> Result<Client, Failure> {
    // Whoever came first has installed it; there is one provider in this project.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let ca = Certificate::from_pem(ca.as_bytes())?;
    Ok(Client::builder().tls_certs_only([ca]).timeout(ANSWER).build()?)
}

/// Somebody with a token, on a connection of his own.
pub struct Caller {
    client: Client,
    ca: String,
    url: String,
    /// The instance that he asks about.
    pub instance: String,
    /// His access token.
    pub token: String,
}

impl Caller {
    /// The same one on another connection.
    pub fn again(&self) -> Result<Caller, Failure> {
        let (ca, url, instance) = (self.ca.clone(), self.url.clone(), self.instance.clone());
        Ok(Caller { client: client(&ca)?, ca, url, instance, token: self.token.clone() })
    }

    /// Status and body of an answer; `null` where it is not JSON.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> Result<(u16, Value), Failure> {
        let request = self.client.request(method, format!("{}{path}", self.url));
        let request = request.bearer_auth(&self.token).header("Bluemix-Instance", &self.instance);
        let answer = request.body(body).send().await?;
        let status = answer.status().as_u16();
        Ok((status, serde_json::from_slice(&answer.bytes().await?).unwrap_or(Value::Null)))
    }

    /// Makes a root key; its id.
    pub async fn root(&self, name: &str) -> Result<String, Failure> {
        let kind = "application/vnd.ibm.kms.key+json";
        let new = json!({
            "metadata": {"collectionType": kind, "collectionTotal": 1},
            "resources": [{"type": kind, "name": name, "extractable": false, "aliases": [name]}],
        });
        let made = self.ask(Method::POST, "/api/v2/keys", new.to_string()).await?;
        let id = made.1.pointer("/resources/0/id").and_then(Value::as_str);
        Ok(id.ok_or_else(|| format!("no key: {made:?}"))?.to_owned())
    }
}
