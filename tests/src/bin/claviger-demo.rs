//! `cargo xtask demo`: a real API server and a real etcd, encrypted under a root key that is then
//! rotated, disabled and given back. Every command shown is the one an operator would type.

use claviger_tests::Outcome;
use claviger_tests::kube::Kube;
use claviger_tests::lab::{Lab, Options as Wanted};
use claviger_tests::load;
use claviger_tests::raw;
use claviger_tests::traffic::Traffic;
use std::net::TcpStream;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The Secret that is looked at in etcd.
const SAMPLE: &str = "/registry/secrets/ingress/tls-00002";
/// How much of it is shown.
const SHOWN: usize = 24 * 12;

/// Minor versions that the testbed builds.
const MINORS: [&str; 2] = ["1.37", "1.34"];

struct Options {
    keep: bool,
    kubernetes: &'static str,
    secrets: usize,
}

fn options() -> Outcome<Options> {
    let mut options = Options { keep: false, kubernetes: "1.37", secrets: 1000 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--keep" => options.keep = true,
            "--kubernetes" => {
                let minor = args.next();
                options.kubernetes = MINORS
                    .into_iter()
                    .find(|known| minor.as_deref() == Some(known))
                    .ok_or_else(|| format!("--kubernetes takes one of {}", MINORS.join(", ")))?;
            }
            "--secrets" => {
                let number = args.next().and_then(|text| text.parse().ok());
                options.secrets = number
                    .filter(|n| (20..=20_000).contains(n))
                    .ok_or("--secrets needs a number from 20 to 20000")?;
            }
            other => {
                return Err(format!(
                    "the demo takes --keep, --kubernetes, --secrets; not {other:?}"
                ));
            }
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(why) => {
            eprintln!("error: cannot start: {why}");
            return ExitCode::FAILURE;
        }
    };
    let done = options().and_then(|options| {
        runtime.block_on(async {
            // On Ctrl-C the demo's future is dropped, and with it the cluster is taken down.
            tokio::select! {
                done = demo(&options) => done,
                _ = tokio::signal::ctrl_c() => Err("interrupted; the cluster is taken down".to_owned()),
            }
        })
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Tells the story, and remembers how long each part took.
struct Story {
    begun: Instant,
    chapter: usize,
    measured: Vec<(String, f64)>,
}

impl Story {
    /// A new chapter: what happens, and why.
    fn chapter(&mut self, title: &str, why: &str) {
        self.chapter += 1;
        println!("\n\x1b[1m{}. {title}\x1b[0m\n   {why}", self.chapter);
    }

    fn measure(&mut self, what: &str, seconds: f64) {
        println!("   -> {what}: {seconds:.1} s");
        self.measured.push((what.to_owned(), seconds));
    }

    /// Shows a command and runs it, its output as it comes. Gives its exit code.
    async fn run(&self, lab: &Lab, args: &[&str]) -> Outcome<i32> {
        println!("   $ claviger {}", args.join(" "));
        let mut command = tokio::process::Command::from(lab.operator(args)?);
        let status = command.status().await.map_err(|e| e.to_string())?;
        Ok(status.code().unwrap_or(-1))
    }

    /// The same for a command that must succeed and whose answer would only be in the way; its
    /// progress is still shown.
    async fn silently(&self, lab: &Lab, args: &[&str]) -> Outcome<()> {
        println!("   $ claviger {}", args.join(" "));
        let mut command = tokio::process::Command::from(lab.operator(args)?);
        let status = command.stdout(Stdio::null()).status().await.map_err(|e| e.to_string())?;
        if status.success() {
            return Ok(());
        }
        eprintln!("{}", lab.last_words());
        Err(format!("claviger {} ended with {status}", args.join(" ")))
    }

    /// The same for a command that must succeed.
    async fn must(&self, lab: &Lab, args: &[&str]) -> Outcome<()> {
        match self.run(lab, args).await? {
            0 => Ok(()),
            code => {
                eprintln!("{}", lab.last_words());
                Err(format!("claviger {} ended with {code}", args.join(" ")))
            }
        }
    }
}

async fn demo(options: &Options) -> Outcome<()> {
    let mut story = Story { begun: Instant::now(), chapter: 0, measured: Vec::new() };
    story.chapter(
        "A cluster as it is usually found",
        "etcd and one kube-apiserver without any encryption flag, a key server, an agent beside the API server.",
    );
    let started = Instant::now();
    let wanted = Wanted { kubernetes: options.kubernetes, ..Wanted::default() };
    let up = tokio::task::spawn_blocking(move || Lab::up(&wanted));
    let mut lab = up.await.map_err(|e| e.to_string())??;
    story.measure("cluster up", started.elapsed().as_secs_f64());
    let kube = Kube::of(&lab)?;
    let started = Instant::now();
    let size = load::plant(&kube, load::shapes(options.secrets, load::seed())).await?;
    story.measure(
        &format!(
            "{} Secrets planted, {:.1} MB: TLS, registry credentials, tokens, releases",
            options.secrets,
            size as f64 / 1e6
        ),
        started.elapsed().as_secs_f64(),
    );

    let cluster = lab.var("CLAVIGER_CLUSTER")?;
    let instance = lab.var("CLAVIGER_INSTANCE_ID")?;
    before(&story, &lab, &cluster).await?;
    enable(&mut story, &lab, &cluster, &instance).await?;
    rotate(&mut story, &lab, &kube, &cluster).await?;
    revoke(&mut story, &lab, &kube, &cluster).await?;
    prove(&mut story, &lab, &cluster).await?;

    println!("\n\x1b[1mMeasured\x1b[0m");
    for (what, seconds) in &story.measured {
        println!("   {seconds:>6.1} s  {what}");
    }
    println!("   {:>6.1} s  in all", story.begun.elapsed().as_secs_f64());
    if options.keep {
        lab.keep();
        println!("\nIt is left running. To use it:\n   . {}/env", lab.dir().display());
        println!(
            "   KUBECONFIG={}\n   key server {}",
            lab.var("KUBECONFIG")?,
            lab.var("CLAVIGER_URL")?
        );
        println!("To end it:\n   claviger dev down --purge --dir {}", lab.dir().display());
        return Ok(());
    }
    tokio::task::spawn_blocking(move || lab.down()).await.map_err(|e| e.to_string())?
}

async fn show_raw(lab: &Lab) -> Outcome<()> {
    println!("   {SAMPLE} in etcd:");
    for line in raw::dump(&raw::value(lab, SAMPLE).await?, SHOWN) {
        println!("     {line}");
    }
    Ok(())
}

async fn before(story: &Story, lab: &Lab, cluster: &str) -> Outcome<()> {
    println!("\n   Before: whoever reads etcd, its files or a backup reads every Secret.");
    match story.run(lab, &["census", "-c", cluster]).await? {
        1 => {}
        code => return Err(format!("a census of plaintext must end with 1, not {code}")),
    }
    show_raw(lab).await
}

async fn enable(story: &mut Story, lab: &Lab, cluster: &str, instance: &str) -> Outcome<()> {
    story.chapter(
        "Enable",
        "The cluster gets a key of its own, wrapped under a root key that never leaves the key server; every Secret is rewritten. The API server is restarted three times, about two seconds each: it has no encryption flag yet, and a restart takes a changed file up at once.",
    );
    story.silently(lab, &["key", "create", "demo-root"]).await?;
    let started = Instant::now();
    story
        .must(
            lab,
            &[
                "ks",
                "kms",
                "enable",
                "-c",
                cluster,
                "--instance-id",
                instance,
                "--crk",
                "demo-root",
                "--take-up",
                "restart",
                "--wait",
            ],
        )
        .await?;
    story.measure("enable, proven from etcd's bytes", started.elapsed().as_secs_f64());
    story.must(lab, &["census", "-c", cluster]).await?;
    show_raw(lab).await
}

async fn rotate(story: &mut Story, lab: &Lab, kube: &Kube, cluster: &str) -> Outcome<()> {
    story.chapter(
        "Rotate the root key",
        "A new version of the root key: the cluster makes a new key under it and rewrites every Secret, without a restart, while clients read and write.",
    );
    let traffic = Traffic::start(kube, 2).await?;
    let started = Instant::now();
    story.silently(lab, &["key", "rotate", "demo-root"]).await?;
    story.silently(lab, &["ks", "kms", "follow", "-c", cluster]).await?;
    story.measure("rotate, everything rewritten", started.elapsed().as_secs_f64());
    let report = traffic.stop().await;
    println!(
        "   Meanwhile: {} reads, {} writes, {} failed.",
        report.reads, report.writes, report.failed
    );
    if report.failed > 0 {
        return Err(format!("clients saw failures during the rotation: {:?}", report.failures));
    }
    Ok(())
}

async fn revoke(story: &mut Story, lab: &Lab, kube: &Kube, cluster: &str) -> Outcome<()> {
    story.chapter(
        "Disable the root key",
        "The agent wipes the opened keys and kills the API server: neither its caches nor its memory may answer any longer.",
    );
    let started = Instant::now();
    story.silently(lab, &["key", "disable", "demo-root", "--yes"]).await?;
    until(Duration::from_secs(60), || !connects(kube.address()), "the API server still answers")
        .await?;
    story.measure("from disable until kubectl cannot connect", started.elapsed().as_secs_f64());
    println!("   $ kubectl get secrets -A");
    let said = lab.kubectl(&["get", "secrets", "-A", "--request-timeout=3s"])?;
    println!("   {}", String::from_utf8_lossy(&said.stderr).lines().last().unwrap_or_default());
    if said.status.success() {
        return Err("kubectl still reads Secrets though the root key is disabled".to_owned());
    }
    story.must(lab, &["ks", "cluster", "get", "-c", cluster, "-q"]).await?;
    match story.run(lab, &["ks", "cluster", "config", "-c", cluster]).await? {
        1 => {}
        code => return Err(format!("ks cluster config must be refused (1), not end with {code}")),
    }

    story.chapter(
        "Give it back",
        "The root key is enabled; the agent unwraps the cluster's key again and starts the API server.",
    );
    let started = Instant::now();
    story.silently(lab, &["key", "enable", "demo-root"]).await?;
    let mut count = 0;
    let until_read = Instant::now() + Duration::from_secs(120);
    while count == 0 {
        count = kube.list_all().await.unwrap_or(0);
        if Instant::now() > until_read {
            return Err("the cluster did not come back within two minutes".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    story.measure(
        &format!("from enable until all {count} Secrets are readable"),
        started.elapsed().as_secs_f64(),
    );
    Ok(())
}

async fn prove(story: &mut Story, lab: &Lab, cluster: &str) -> Outcome<()> {
    story.chapter(
        "Prove it, and clear what is left",
        "Every record of etcd is counted and a sample is opened by a freshly started plugin. Plaintext in etcd's log would stay there for weeks, so enable ended with a scrub here; this is one more, on demand.",
    );
    let started = Instant::now();
    story.must(lab, &["ks", "kms", "verify", "-c", cluster]).await?;
    story.measure("verify", started.elapsed().as_secs_f64());
    let started = Instant::now();
    story.must(lab, &["ks", "kms", "scrub", "-c", cluster]).await?;
    story.measure("scrub", started.elapsed().as_secs_f64());
    let left = raw::occurrences(lab.var("ETCD_DATA_DIR")?.as_ref(), load::MARKER.as_bytes())?;
    println!("   {left} of the planted plaintexts are left in etcd's files.");
    if left > 0 {
        return Err("plaintext is left in etcd's files".to_owned());
    }
    story.must(lab, &["census", "-c", cluster]).await
}

fn connects(address: &str) -> bool {
    TcpStream::connect(address).is_ok()
}

async fn until(limit: Duration, good: impl Fn() -> bool, why: &str) -> Outcome<()> {
    let end = Instant::now() + limit;
    while !good() {
        if Instant::now() > end {
            return Err(format!("{why} after {} s", limit.as_secs()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
