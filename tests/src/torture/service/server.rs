//! A real key server that is killed and started again, and who talks to it.

use super::super::power::Power;
use super::Fault;
use super::call::{Actor, Answer, Op};
use crate::Outcome;
use claviger_audit::Durability;
use reqwest::{Certificate, Client, Method};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long the server may take from its start to its first line.
const START: Duration = Duration::from_secs(30);
/// How long one answer may take; a new import token takes seconds.
const ANSWER: Duration = Duration::from_secs(60);

/// Where its files are, below the directory of a run.
const DISK: &str = "disk";

/// The server's files, and the process while there is one.
pub struct Server {
    dir: PathBuf,
    program: PathBuf,
    process: Option<Child>,
    /// Where it listens. The first start finds a free port; later ones keep it, since tokens name
    /// their issuer by its URL.
    listen: String,
    /// Whether what is not durable goes with the process.
    power: Option<Power>,
    durability: &'static str,
}

impl Server {
    /// Makes the directory; starts nothing.
    pub fn new(dir: &Path, fault: Fault, seed: u64) -> Outcome<Self> {
        let program = std::env::var_os("CLAVIGER_BIN").map(PathBuf::from);
        let program = program.ok_or("CLAVIGER_BIN is not set; start this through cargo xtask")?;
        let disk = dir.join(DISK);
        std::fs::create_dir_all(&disk)
            .map_err(|e| format!("cannot make {}: {e}", disk.display()))?;
        let power = match fault {
            Fault::Kill => None,
            Fault::Power(_) => Some(Power::new(&disk, dir, seed)?),
        };
        Ok(Self {
            dir: dir.to_owned(),
            program,
            process: None,
            listen: "127.0.0.1:0".to_owned(),
            power,
            durability: match fault {
                Fault::Kill | Fault::Power(Durability::Synced) => "synced",
                Fault::Power(Durability::Written) => "written",
            },
        })
    }

    /// Its database.
    pub fn database(&self) -> PathBuf {
        self.dir.join(DISK).join("data/claviger.db")
    }

    /// What its first start tells: soon after the URL, unless an earlier one has told it.
    pub fn bootstrap(&self) -> Outcome<Value> {
        let deadline = Instant::now() + START;
        loop {
            let told = std::fs::read(self.bootstrap_file()).unwrap_or_default();
            match serde_json::from_slice(&told) {
                Ok(told) => return Ok(told),
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(e) => return Err(format!("the server told nobody its API key: {e}")),
            }
        }
    }

    fn bootstrap_file(&self) -> PathBuf {
        self.dir.join(DISK).join("bootstrap.json")
    }

    fn spawn(&mut self) -> Outcome<()> {
        let log = self.dir.join("server.log");
        let log = OpenOptions::new().create(true).append(true).open(log);
        let log = log.map_err(|e| format!("cannot write the server's log: {e}"))?;
        let child = Command::new(&self.program)
            .args(["server", "run", "--no-waits", "--calls-per-second", "0"])
            .args(["--listen", &self.listen, "--data"])
            .arg(self.dir.join(DISK).join("data"))
            .arg("--bootstrap")
            .arg(self.bootstrap_file())
            .args(["--audit-durability", self.durability])
            .envs(self.power.iter().flat_map(Power::environment))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn();
        self.process = Some(child.map_err(|e| format!("cannot start the server: {e}"))?);
        Ok(())
    }

    /// Starts it and kills it after `delay`, wherever it is by then.
    pub fn start_and_kill(&mut self, delay: Duration) -> Outcome<()> {
        self.spawn()?;
        std::thread::sleep(delay);
        self.kill()
    }

    /// Starts it; the URL once it listens.
    pub fn start(&mut self) -> Outcome<String> {
        self.spawn()?;
        let out = self.process.as_mut().and_then(|p| p.stdout.take());
        let out = out.ok_or("the server has no standard output")?;
        let (say, said) = mpsc::channel();
        // Ends with the server.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let Some(url) = line.strip_prefix("url: ") {
                    let _ = say.send(url.to_owned());
                }
            }
        });
        let url = said.recv_timeout(START).map_err(|_| {
            format!("the server did not start within {} s\n{}", START.as_secs(), self.last_words())
        })?;
        url.trim_start_matches("https://").clone_into(&mut self.listen);
        Ok(url)
    }

    /// kill -9, and where it is a power cut, what that leaves of the files.
    pub fn kill(&mut self) -> Outcome<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        if let Ok(Some(status)) = process.try_wait() {
            return Err(format!("the server ended by itself: {status}\n{}", self.last_words()));
        }
        process.kill().and_then(|()| process.wait()).map_err(|e| format!("cannot kill it: {e}"))?;
        self.power.as_mut().map_or(Ok(()), Power::cut)
    }

    /// What power cuts took.
    pub fn lost(&self) -> String {
        self.power.as_ref().map_or(String::new(), |power| {
            format!("; {} power cuts took {} writes and names", power.cuts, power.lost)
        })
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or(&[]).join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Everybody's way in.
#[derive(Clone)]
pub struct Api {
    client: Client,
    url: String,
    instance: String,
    /// In the order of [`Actor::ALL`].
    tokens: Vec<String>,
}

impl Api {
    /// The first person's way in, after the first start.
    pub async fn first(url: &str, bootstrap: &Value) -> Outcome<Api> {
        let text = |path: &str| bootstrap.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let ca = Certificate::from_pem(text("/ca").as_bytes()).map_err(|e| e.to_string())?;
        // Whoever came first has installed it; there is one provider in this project.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let client = Client::builder()
            .tls_certs_only([ca])
            .timeout(ANSWER)
            .build()
            .map_err(|e| e.to_string())?;
        let instance = text("/instances/0/id").to_owned();
        let mut api = Api { client, url: url.to_owned(), instance, tokens: Vec::new() };
        let token = api.log_in(text("/api_key")).await?;
        api.tokens.push(token);
        Ok(api)
    }

    /// Lets everybody else in.
    pub async fn let_in(&mut self) -> Outcome<()> {
        for (name, service, role) in [
            ("second", false, "Manager"),
            ("service", true, "Reader"),
            ("purger", false, "KeyPurge"),
        ] {
            let new = json!({ "name": name, "service": service, "roles": [{ "role": role }] });
            let request = self.client.post(format!("{}/v3/principals", self.url));
            let request = request.bearer_auth(&self.tokens[0]).body(new.to_string());
            let made = sent(request).await?;
            let key =
                made.body["apikey"].as_str().ok_or_else(|| format!("no API key: {made:?}"))?;
            let token = self.log_in(key).await?;
            self.tokens.push(token);
        }
        Ok(())
    }

    /// The same people at the server that was started anew.
    pub fn at(&self, url: &str) -> Api {
        Api { url: url.to_owned(), ..self.clone() }
    }

    async fn log_in(&self, api_key: &str) -> Outcome<String> {
        let form = [("grant_type", "urn:ibm:params:oauth:grant-type:apikey"), ("apikey", api_key)];
        let request = self.client.post(format!("{}/identity/token", self.url)).form(&form);
        let answer = sent(request).await?;
        let token = answer.body["access_token"].as_str();
        token.map(str::to_owned).ok_or_else(|| format!("no token: {answer:?}"))
    }

    /// Does an operation. An error when there is no whole answer.
    pub async fn ask(&self, actor: Actor, op: &Op, id: &str) -> Outcome<Answer> {
        let request = op.request();
        let method = Method::from_bytes(request.method.as_bytes()).map_err(|e| e.to_string())?;
        let mut out = self
            .client
            .request(method, format!("{}{}", self.url, request.path))
            .bearer_auth(&self.tokens[Actor::ALL.iter().position(|a| *a == actor).unwrap_or(0)])
            .header("Bluemix-Instance", &self.instance)
            .header("Correlation-Id", id);
        if let Some(ring) = request.ring {
            out = out.header("X-Kms-Key-Ring", ring);
        }
        if !request.body.is_null() {
            out = out.body(request.body.to_string());
        }
        sent(out).await
    }
}

async fn sent(request: reqwest::RequestBuilder) -> Outcome<Answer> {
    let answer = request.send().await.map_err(|e| format!("no answer: {e:?}"))?;
    let status = answer.status().as_u16();
    let bytes = answer.bytes().await.map_err(|e| format!("no whole answer: {e:?}"))?;
    let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let code = body.pointer("/resources/0/reasons/0/code").and_then(Value::as_str);
    Ok(Answer { status, code: code.unwrap_or_default().to_owned(), body })
}
