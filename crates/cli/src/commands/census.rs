//! `claviger census`: etcd's records counted by the key that opens them, from a running cluster
//! or from a snapshot file.

use crate::commands::ks::run_job;
use crate::connect::{Connection, Link};
use crate::exit::{self, Done, Failure};
use crate::render::{Look, attended, now, table, thousands};
use claviger_domain::key::{RootKey, RootVersion};
use claviger_etcd::bolt::BoltError;
use claviger_etcd::bolt::Database;
use claviger_etcd::census::Verdict;
use claviger_etcd::census::{Census, Counts, Keep};
use claviger_etcd::resource::Resource;
use claviger_etcd::{Etcd, EtcdConfig, EtcdError};
use claviger_wire::agent::JobKind;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Width of a bar, in characters.
const BAR: u64 = 24;
/// The resource that agents encrypt and count.
const SECRETS: &str = "secrets";

/// Arguments of `claviger census`.
#[derive(clap::Args)]
pub struct Args {
    /// Id or name of the cluster: one of its agents counts. With --snapshot or --etcd-endpoints, which
    /// need none, it says which root key is the right one; else that is the one that most records
    /// are under
    #[arg(short, long, env = "CLAVIGER_CLUSTER", hide_env_values = true, value_name = "CLUSTER")]
    cluster: Option<String>,
    /// Count a snapshot file of etcd instead
    #[arg(long, value_name = "FILE", conflicts_with = "etcd_endpoints")]
    snapshot: Option<PathBuf>,
    /// With --snapshot: also what was overwritten or deleted and is still in the file
    #[arg(long, requires = "snapshot")]
    history: bool,
    /// Count this etcd, without an agent
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    etcd_endpoints: Vec<String>,
    /// Its CA, PEM
    #[arg(long, value_name = "FILE", requires = "etcd_endpoints")]
    etcd_cacert: Option<PathBuf>,
    /// A client certificate for it, PEM
    #[arg(long, value_name = "FILE", requires = "etcd_endpoints")]
    etcd_cert: Option<PathBuf>,
    /// The certificate's key, PEM
    #[arg(long, value_name = "FILE", requires = "etcd_endpoints")]
    etcd_key: Option<PathBuf>,
    /// Resource to count, as in an EncryptionConfiguration; repeatable, without an agent
    #[arg(long, value_name = "NAME", default_value = SECRETS)]
    resource: Vec<String>,
    #[command(flatten)]
    look: Look,
    #[command(flatten)]
    connection: Connection,
}

/// What is answered, and what an agent's job gives (without the verdict).
#[derive(Serialize, Deserialize)]
struct Answer {
    census: Census,
    /// The root-key version that the key service calls current; none if it could not be learned.
    current: Option<RootVersion>,
    #[serde(skip_deserializing)]
    verdict: Option<Verdict>,
}

/// Runs it.
pub fn run(args: Args) -> Done {
    let resources = args
        .resource
        .iter()
        .map(|name| name.parse())
        .collect::<Result<Vec<Resource>, _>>()
        .map_err(|e| Failure::new(exit::USAGE, e, ""))?;
    let look = args.look;
    let census = if let Some(path) = &args.snapshot {
        let failed = |e: BoltError| {
            let (code, hint) = match &e {
                BoltError::Io { .. } => (exit::USAGE, "look at the path and its permissions"),
                BoltError::Damaged { .. } => {
                    (exit::UNKNOWN, "is it a whole snapshot that etcd made?")
                }
                BoltError::Changed(_) => (exit::UNKNOWN, ""),
            };
            Failure::new(code, e, hint)
        };
        let database = Database::open_snapshot(path).map_err(failed)?;
        Census::of_database(&database, &resources, args.history, now()).map_err(failed)?
    } else if !args.etcd_endpoints.is_empty() {
        of_etcd(&args, &resources)?
    } else {
        let Some(cluster) = args.cluster else {
            return Err(Failure::new(
                exit::USAGE,
                "nothing to count",
                "say -c CLUSTER, --snapshot FILE or --etcd-endpoints URL",
            ));
        };
        if args.resource != [SECRETS] {
            return Err(Failure::new(
                exit::USAGE,
                "an agent counts secrets, which are what it encrypts; --resource goes with --snapshot or --etcd-endpoints",
                "leave --resource out, or count etcd directly",
            ));
        }
        return args.connection.block_on(async |link| {
            let result = run_job(&cluster, JobKind::Census, look, link).await?;
            let answer: Answer = serde_json::from_value(result).map_err(|e| {
                Failure::new(exit::FAULT, format!("the agent's answer makes no sense: {e}"), "")
            })?;
            show(answer, look, None)
        });
    };
    // Which version is current only the key service knows; without it the counts are shown.
    let most = census.roots().first().copied();
    let learned = std::cell::Cell::new(None);
    let asked = args.connection.block_on(async |link| {
        let root = match &args.cluster {
            Some(cluster) => of_cluster(link, cluster).await?.or(most),
            None => most,
        };
        if let Some(root) = root {
            learned.set(current(link, root).await?);
        }
        Ok(())
    });
    let why = asked.err().map(|failure| failure.error);
    show(Answer { census, current: learned.take(), verdict: None }, look, why)
}

/// The root key that a cluster is to be under, if it is encrypted at all.
async fn of_cluster(link: &Link, cluster: &str) -> Result<Option<RootKey>, Failure> {
    let status = link.clusters.kms_status(cluster).await?;
    Ok(status.state.cluster.ring.write().map(|write| write.root.root))
}

async fn current(link: &Link, root: RootKey) -> Result<Option<RootVersion>, Failure> {
    let key = link.keys.metadata(root.instance, root.key).await?;
    let version = key.key_version.map(|v| claviger_domain::id::KeyVersionId(v.id));
    Ok(version.map(|version| RootVersion { root, version }))
}

fn of_etcd(args: &Args, resources: &[Resource]) -> Result<Census, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(exit::FAULT, format!("cannot start: {e}"), "try again"))?;
    runtime.block_on(async {
        let config = EtcdConfig {
            endpoints: args.etcd_endpoints.clone(),
            ca: args.etcd_cacert.clone(),
            cert: args.etcd_cert.clone(),
            key: args.etcd_key.clone(),
            timeout: EtcdConfig::TIMEOUT,
        };
        let count = async {
            let etcd = Etcd::connect(&config).await?;
            Census::take(&etcd, resources, Keep::Counts, now()).await
        };
        count.await.map_err(|e| match &e {
            EtcdError::Config(_) => {
                Failure::new(exit::USAGE, &e, "see --etcd-endpoints and --etcd-cacert")
            }
            EtcdError::File { source, .. } => {
                Failure::new(exit::USAGE, format!("{e}: {source}"), "check the path")
            }
            // Their texts have the cause; below it are words for programmers.
            EtcdError::Unreachable { .. } => Failure::new(
                exit::UNREACHABLE,
                &e,
                "check the endpoints and the certificate files; is etcd running?",
            ),
            _ => Failure::new(exit::UNKNOWN, &e, "try again"),
        })
    })
}

/// Shows it. `why` says why the current version could not be learned.
fn show(mut answer: Answer, look: Look, why: Option<String>) -> Done {
    let verdict = answer.census.verdict(answer.current);
    answer.verdict = Some(verdict.clone());
    look.answer(&answer, || lines(&answer));
    match verdict {
        Verdict::Good => Ok(()),
        Verdict::FallsShort { reasons } => {
            let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
            Err(Failure::new(
                exit::NO,
                format!("falls short: {}", reasons.join("; ")),
                "claviger ks kms status says what is being done about it",
            ))
        }
        Verdict::Unknown => Err(Failure::new(
            exit::UNKNOWN,
            match why {
                Some(why) => {
                    format!("unknown: the root key's current version could not be learned: {why}")
                }
                None => "unknown: the root key's current version could not be learned".to_owned(),
            },
            "reach the key service (CLAVIGER_URL, CLAVIGER_CA_FILE, CLAVIGER_API_KEY)",
        )),
    }
}

fn lines(answer: &Answer) -> Vec<String> {
    let mut lines = vec![format!("etcd revision {}", answer.census.revision)];
    for (name, counts) in &answer.census.resources {
        lines.push(String::new());
        lines.push(format!("{name}: {} records", thousands(counts.records)));
        lines.extend(rows(counts, answer.current));
    }
    for (name, counts) in answer.census.history.iter().flatten() {
        lines.push(String::new());
        lines
            .push(format!("{name}, overwritten or deleted: {} records", thousands(counts.records)));
        lines.extend(rows(counts, answer.current));
    }
    lines
}

fn rows(counts: &Counts, current: Option<RootVersion>) -> Vec<String> {
    let mut rows = Vec::new();
    for under in &counts.under {
        let (root, note) = match under.root {
            Some(root) if Some(root) == current => (root.to_string(), "current"),
            Some(root) => (root.to_string(), if current.is_some() { "behind" } else { "" }),
            None => (format!("key {:?}", under.key_id), "not ours"),
        };
        let what = format!("{} {root}", under.provider);
        rows.push(row(counts.records, under.records, what, note));
    }
    let classes = [
        ("plaintext", &counts.plaintext),
        ("unknown key", &counts.unknown),
        ("undecodable", &counts.undecodable),
        ("forged", &counts.forged),
    ];
    for (what, class) in classes {
        if class.records > 0 {
            let example = class.examples.first().map_or("", String::as_str);
            rows.push(row(counts.records, class.records, what.to_owned(), example));
        }
    }
    table(&["", "Records", "Under", ""], &rows)
}

/// A bar for a person who looks, a percentage for everybody else.
fn row(total: u64, part: u64, what: String, note: &str) -> Vec<String> {
    let share = if attended() {
        let full = (part * BAR).div_ceil(total.max(1)).min(BAR);
        let full = usize::try_from(full).unwrap_or(0);
        format!("{}{}", "█".repeat(full), "░".repeat(usize::try_from(BAR).unwrap_or(0) - full))
    } else {
        format!("{}%", part * 100 / total.max(1))
    };
    vec![share, thousands(part), what, note.to_owned()]
}
