//! A real cluster for a test: `claviger dev` in a directory of its own, asked through the same
//! programs that an operator uses.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What the cluster is to be.
pub struct Options {
    /// API servers without any encryption flag.
    pub bare: bool,
    /// One or three.
    pub servers: usize,
    /// `1.37` or `1.34`.
    pub kubernetes: &'static str,
    /// Only the key server.
    pub only_key_service: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { bare: true, servers: 1, kubernetes: "1.37", only_key_service: false }
    }
}

/// A running cluster. Taken down when dropped.
pub struct Lab {
    dir: PathBuf,
    claviger: PathBuf,
    keep: bool,
}

/// The environment that `D/env` exports.
pub type Env = BTreeMap<String, String>;

impl Lab {
    /// Starts it and waits until it is ready.
    pub fn up(options: &Options) -> Result<Lab, String> {
        let claviger = std::env::var_os("CLAVIGER_BIN")
            .map(PathBuf::from)
            .ok_or("CLAVIGER_BIN is not set; start this through cargo xtask")?;
        let unique = format!("claviger-lab-{}-{}", std::process::id(), unique());
        let dir = std::env::temp_dir().join(unique);
        let lab = Lab { dir, claviger, keep: false };
        let mut command = lab.command(&["dev", "up", "--detach", "--dir"]);
        command.arg(&lab.dir);
        if options.only_key_service {
            command.args(["--only", "key-service"]);
        } else {
            command.args(["--kubernetes", options.kubernetes]);
            command.args(["--apiservers", &options.servers.to_string()]);
            if options.bare {
                command.arg("--bare");
            }
        }
        check("claviger dev up", run(&mut command)?)?;
        Ok(lab)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Ends it and says so when anything is left behind.
    pub fn down(self) -> Result<(), String> {
        check("claviger dev down", run(self.command(&["dev", "down", "--dir"]).arg(&self.dir))?)?;
        let left = self.processes();
        if left.is_empty() { Ok(()) } else { Err(format!("left behind: {}", left.join(", "))) }
    }

    /// Command lines of processes that still name its directory.
    pub fn processes(&self) -> Vec<String> {
        let us = self.dir.to_string_lossy().into_owned();
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
            .filter_map(|e| std::fs::read(e.path().join("cmdline")).ok())
            .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
            .filter(|line| line.contains(&us))
            .collect()
    }

    /// `D/env`, as it is now.
    pub fn env(&self) -> Result<Env, String> {
        let path = self.dir.join("env");
        let script = format!("set -a; . '{}'; env -0", path.display());
        let out = run(Command::new("sh").args(["-c", &script]).env_clear())?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        Ok(text
            .split('\0')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect())
    }

    /// Leaves it running when dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// One variable of `D/env`.
    pub fn var(&self, name: &str) -> Result<String, String> {
        self.env()?.remove(name).ok_or_else(|| format!("{name} is not in the environment file"))
    }

    /// Path of the matching kubectl.
    pub fn kubectl_path(&self) -> Result<String, String> {
        self.var("KUBECTL")
    }

    /// A `claviger` command with the cluster's environment.
    pub fn claviger(&self, args: &[&str]) -> Result<Output, String> {
        run(self.command(args).envs(self.env()?))
    }

    /// Like [`claviger`](Self::claviger), parsed as JSON; fails with what it printed.
    pub fn claviger_json(&self, args: &[&str]) -> Result<Value, String> {
        let out = check(&args.join(" "), self.claviger(args)?)?;
        serde_json::from_slice(&out.stdout)
            .map_err(|e| format!("{}: not JSON: {e}", args.join(" ")))
    }

    /// The exit code and the JSON of a command whose answer may be no.
    pub fn answer(&self, args: &[&str]) -> Result<(i32, Value), String> {
        let out = self.claviger(&[args, &["--output", "json"]].concat())?;
        let json = serde_json::from_slice(&out.stdout).map_err(|e| {
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            format!("{}: {}: not JSON ({e}): {said}", args.join(" "), out.status)
        })?;
        Ok((out.status.code().unwrap_or(-1), json))
    }

    /// A `claviger` command that must succeed; gives what it printed.
    pub fn must(&self, args: &[&str]) -> Result<String, String> {
        let out = check(&args.join(" "), self.claviger(args)?)?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// A `claviger` command with the cluster's environment, to be started by the caller.
    pub fn operator(&self, args: &[&str]) -> Result<Command, String> {
        let mut command = self.command(args);
        command.envs(self.env()?);
        Ok(command)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.claviger);
        command.args(args).stdin(Stdio::null());
        command
    }

    /// `kubectl` with the cluster's environment.
    pub fn kubectl(&self, args: &[&str]) -> Result<Output, String> {
        let env = self.env()?;
        let kubectl = env.get("KUBECTL").ok_or("no KUBECTL")?;
        run(Command::new(kubectl).args(args).envs(&env).stdin(Stdio::null()))
    }

    /// Stores `count` Secrets in the namespace `default` and returns their values.
    pub fn load(&self, count: usize) -> Result<BTreeMap<String, String>, String> {
        let mut expected = BTreeMap::new();
        let mut items = Vec::new();
        for n in 0..count {
            let (name, value) =
                (format!("loaded-{n}"), format!("value of {n} {}", "x".repeat(200)));
            items.push(serde_json::json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
                "stringData": {"v": value},
            }));
            expected.insert(format!("default/{name}"), value);
        }
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
        let file = self.dir.join("load.json");
        std::fs::write(&file, list.to_string()).map_err(|e| e.to_string())?;
        let file = file.to_string_lossy().into_owned();
        check("kubectl create", self.kubectl(&["create", "-f", &file])?)?;
        Ok(expected)
    }

    /// Every Secret of the namespace `default` that has a field `v`, by `namespace/name`.
    pub fn secrets(&self) -> Result<BTreeMap<String, String>, String> {
        let args = [
            "get",
            "secrets",
            "-n",
            "default",
            "-o",
            "go-template={{range .items}}{{if .data.v}}{{.metadata.name}}{{\"\\t\"}}{{.data.v | base64decode}}{{\"\\n\"}}{{end}}{{end}}",
        ];
        let out = check("kubectl get secrets", self.kubectl(&args)?)?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        Ok(text
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .map(|(name, value)| (format!("default/{name}"), value.to_owned()))
            .collect())
    }

    /// Creates a root key in the first instance and returns its id.
    pub fn create_key(&self, name: &str) -> Result<String, String> {
        let instance = self.var("CLAVIGER_INSTANCE_ID")?;
        let args = ["key", "create", name, "--instance-id", &instance, "--output", "json"];
        let key = self.claviger_json(&args)?;
        let id = key.get("id").and_then(Value::as_str);
        id.map(str::to_owned).ok_or_else(|| format!("no id in {key}"))
    }

    /// Asks for encryption under `key`, taken up by restart, without waiting for it.
    pub fn enable(&self, key: &str) -> Result<(), String> {
        self.enable_by(key, "restart")
    }

    /// The same, taken up by `restart` or `reload`.
    pub fn enable_by(&self, key: &str, take_up: &str) -> Result<(), String> {
        let (instance, cluster) =
            (self.var("CLAVIGER_INSTANCE_ID")?, self.var("CLAVIGER_CLUSTER")?);
        let mut args = vec!["ks", "kms", "enable", "-c", &cluster, "--instance-id", &instance];
        args.extend(["--crk", key, "--take-up", take_up]);
        check("ks kms enable", self.claviger(&args)?).map(drop)
    }

    fn key_verb(&self, verb: &str, key: &str, patience: Duration) -> Result<(), String> {
        let instance = self.var("CLAVIGER_INSTANCE_ID")?;
        self.patiently(patience, || {
            let args = ["key", verb, key, "--instance-id", &instance];
            check(&format!("key {verb}"), self.claviger(&args)?).map(drop)
        })
    }

    /// Rotates the root key; tries again while the server is away.
    pub fn rotate(&self, key: &str, patience: Duration) -> Result<(), String> {
        self.key_verb("rotate", key, patience)
    }

    /// Disables the root key.
    pub fn disable(&self, key: &str, patience: Duration) -> Result<(), String> {
        self.key_verb("disable", key, patience)
    }

    /// Enables the root key.
    pub fn enable_key(&self, key: &str, patience: Duration) -> Result<(), String> {
        self.key_verb("enable", key, patience)
    }

    /// The answer of `ks kms status`.
    pub fn status(&self) -> Result<Value, String> {
        let cluster = self.var("CLAVIGER_CLUSTER")?;
        self.claviger_json(&["ks", "kms", "status", "-c", &cluster, "--output", "json"])
    }

    /// Waits until no operation is open, the cluster is normal and `get secrets` answers; and
    /// until the key service's current version is the one in use.
    pub fn settled(&self, patience: Duration) -> Result<(), String> {
        self.patiently(patience, || {
            let status = self.status()?;
            let at = |path: &str| status.pointer(path).cloned().unwrap_or(Value::Null);
            if !at("/state/cluster/operation").is_null() {
                return Err(format!("operation open: {}", at("/next")));
            }
            if at("/view/features/keyProtectEnabled") != Value::Bool(true) {
                return Err("not enabled yet".to_owned());
            }
            if at("/view/state") != "normal" {
                return Err(format!(
                    "cluster is {}: {}",
                    at("/view/state"),
                    at("/view/masterStatus")
                ));
            }
            check(
                "kubectl get secrets",
                self.kubectl(&["get", "secrets", "-A", "--request-timeout=10s"])?,
            )?;
            self.census_is_good()
        })
    }

    /// Waits until every agent says that it is fenced and no API server accepts a connection.
    pub fn fenced(&self, patience: Duration) -> Result<(), String> {
        self.patiently(patience, || {
            let status = self.status()?;
            let seen = status.pointer("/state/seen").and_then(Value::as_object);
            let seen = seen.ok_or("no observations")?;
            for (agent, seen) in seen {
                let is = seen.pointer("/observation/access/is").and_then(Value::as_str);
                if is != Some("fenced") {
                    return Err(format!("agent {agent} is {is:?}"));
                }
            }
            let answer = self.kubectl(&["get", "secrets", "--request-timeout=5s"])?;
            if answer.status.success() {
                Err("kubectl still reads Secrets".to_owned())
            } else {
                Ok(())
            }
        })
    }

    /// `claviger census -c`: fails unless every record is under the current root key version.
    pub fn census_is_good(&self) -> Result<(), String> {
        let cluster = self.var("CLAVIGER_CLUSTER")?;
        check("census", self.claviger(&["census", "-c", &cluster])?).map(drop)
    }

    /// Processes that may be killed, by what they are.
    pub fn victims(&self) -> Result<Vec<(String, i32)>, String> {
        let env = self.env()?;
        let names = ["CLAVIGER_PID", "CLAVIGER_AGENT_PIDS", "KUBE_APISERVER_PIDS", "ETCD_PID"];
        Ok(names
            .iter()
            .flat_map(|name| {
                let pids = env.get(*name).cloned().unwrap_or_default();
                let pids: Vec<i32> =
                    pids.split_whitespace().filter_map(|p| p.parse().ok()).collect();
                pids.into_iter().map(|pid| ((*name).to_owned(), pid))
            })
            .collect())
    }

    /// kill -9, if the process still belongs to this cluster. Whether it did.
    pub fn kill(&self, pid: i32) -> bool {
        let ours = std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
            String::from_utf8_lossy(&line).contains(&*self.dir.to_string_lossy())
        });
        ours && run(Command::new("kill").args(["-9", &pid.to_string()]))
            .is_ok_and(|out| out.status.success())
    }

    /// Tries until it succeeds or `patience` is over; then the last reason.
    pub fn patiently(
        &self,
        patience: Duration,
        mut attempt: impl FnMut() -> Result<(), String>,
    ) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        loop {
            match attempt() {
                Ok(()) => return Ok(()),
                Err(why) if Instant::now() >= deadline => {
                    return Err(format!("not within {} s: {why}", patience.as_secs()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    /// The last lines of every log, for a failure.
    pub fn last_words(&self) -> String {
        let script = format!(
            "find '{}' -name '*.log' | while read -r f; do echo \"--- $f\"; tail -n 15 \"$f\"; done",
            self.dir.display()
        );
        match Command::new("sh").args(["-c", &script]).output() {
            Ok(out) => String::from_utf8_lossy(&out.stdout).into_owned(),
            Err(e) => format!("no logs: {e}"),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if std::thread::panicking() {
            eprintln!("{}", self.last_words());
        }
        // After down() this finds nothing to do.
        let _ = run(self.command(&["dev", "down", "--purge", "--dir"]).arg(&self.dir));
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Creates or replaces one Secret; true when the API server acknowledged it.
pub fn write_secret(kubectl: &str, env: &Env, name: &str, value: &str) -> bool {
    let secret = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": name, "namespace": "default"}, "stringData": {"v": value},
    });
    let child = Command::new(kubectl)
        .args(["apply", "--request-timeout=5s", "--server-side", "--force-conflicts", "-f", "-"])
        .envs(env)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    if let Some(mut stdin) = child.stdin.take() {
        use std::io::Write as _;
        let _ = stdin.write_all(secret.to_string().as_bytes());
    }
    child.wait().is_ok_and(|status| status.success())
}

/// The output of a command that could be started.
pub fn run(command: &mut Command) -> Result<Output, String> {
    command.output().map_err(|e| format!("cannot start {:?}: {e}", command.get_program()))
}

/// Fails with what a command printed unless it succeeded.
pub fn check(what: &str, out: Output) -> Result<Output, String> {
    if out.status.success() {
        return Ok(out);
    }
    let said = [out.stdout.as_slice(), out.stderr.as_slice()].concat();
    Err(format!("{what} ended with {}: {}", out.status, String::from_utf8_lossy(&said).trim()))
}

fn unique() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
