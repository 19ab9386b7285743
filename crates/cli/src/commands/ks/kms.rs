//! `claviger ks kms`

use super::follow::{self, Ended, Goal};
use super::{Which, guard, release, verify, view};
use crate::connect::Link;
use crate::exit::{self, Done, Failure};
use crate::render::{Look, Progress, attended, confirm, now, thousands};
use claviger_domain::cluster::{TakeUp, files};
use claviger_domain::id::InstanceId;
use claviger_etcd::census::Census;
use claviger_wire::agent::JobKind;
use claviger_wire::ks::{CancelOperation, GaveUp, KmsStatus, NewJob, OpenOperation, Opened};
use serde::Serialize;
use std::time::Duration;

/// What can be done with a cluster's encryption.
#[derive(clap::Subcommand)]
pub enum Verb {
    /// Instances of the key service
    #[command(subcommand)]
    Instance(Instance),
    /// Root keys that a cluster can be enabled with
    #[command(subcommand)]
    Crk(RootKeys),
    /// Encrypt a cluster under a root key, or move it to another one
    ///
    /// The cluster does the work: it tries the key on every control-plane node, registers on it,
    /// converges, rewrites every Secret, and proves it from etcd's bytes. Asking again for the
    /// same key does nothing, but for --accept-plaintext; asking for another key or instance moves
    /// the cluster there.
    Enable(Enable),
    /// Keys, API servers, progress, and what comes next
    Status(Which),
    /// Follow the work on a cluster until nothing is left to do
    Follow(Follow),
    /// Give up what is in progress
    ///
    /// While nothing is sealed under the new key, the operation ends and nothing was changed.
    /// Afterwards the cluster goes back to the root key that wrote before, by a rewrite of all
    /// Secrets: the one case in which a root key is used a second time.
    Cancel(Cancel),
    /// Take a cluster off a root key that nothing of it is under any more
    ///
    /// A root key that a cluster has moved away from stays protected from deletion, since old
    /// backups of etcd are under it. An agent counts that no live record is; that backups may die
    /// with the key is for you to say, by typing the key's name or with --force. A cluster that
    /// was removed is named by its id. Then `claviger key delete` can do its work.
    Release(release::Release),
    /// Clear plaintext out of etcd's files
    ///
    /// A single-member etcd is restored from its own snapshot into a fresh directory; its API
    /// server is down for some seconds.
    Scrub(Scrub),
    /// Prove that all Secrets are under the root key
    Verify(verify::Verify),
    #[command(hide = true)]
    Guard(guard::Guard),
}

/// What can be done with instances.
#[derive(clap::Subcommand)]
pub enum Instance {
    /// List instances
    Ls,
}

/// What can be done with root keys here; the rest is `claviger key`.
#[derive(clap::Subcommand)]
pub enum RootKeys {
    /// List root keys of an instance
    Ls {
        /// Id (GUID or CRN) of the key service's instance
        #[arg(long, env = "CLAVIGER_INSTANCE_ID", hide_env_values = true, value_name = "ID", value_parser = crate::ids::instance)]
        instance_id: InstanceId,
    },
}

/// Arguments of `enable`.
#[derive(clap::Args)]
pub struct Enable {
    #[command(flatten)]
    which: Which,
    /// Id (GUID or CRN) of the key service's instance
    #[arg(long, env = "CLAVIGER_INSTANCE_ID", hide_env_values = true, value_name = "ID", value_parser = crate::ids::instance)]
    instance_id: InstanceId,
    /// Root key: id, CRN or name
    #[arg(long, value_name = "CRK")]
    crk: String,
    /// Agents reach the key service by its public name
    #[arg(long)]
    public_endpoint: bool,
    /// How API servers take a changed configuration up: about 2 s of outage each, or none but up
    /// to a minute for each of three changes
    #[arg(long, value_enum, default_value = "restart")]
    take_up: HowTakenUp,
    /// Read and rewrite the plaintext that a count found with no change of machines to explain it:
    /// whoever writes to etcd could have planted it. Goes with the key in use; examples are listed
    #[arg(long)]
    accept_plaintext: bool,
    /// Do not ask
    #[arg(short = 'f', long)]
    yes: bool,
    /// Follow until it is done; the default on a terminal
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Return once the request is accepted; the default elsewhere
    #[arg(long)]
    no_wait: bool,
    /// With --wait: look no longer than this, such as 90s, 30m or 12h; the cluster goes on
    #[arg(long, value_name = "TIME", value_parser = follow::patience)]
    timeout: Option<Duration>,
}

/// Arguments of `follow`.
#[derive(clap::Args)]
pub struct Follow {
    #[command(flatten)]
    which: Which,
    /// Look no longer than this, such as 90s, 30m or 12h; the cluster goes on
    #[arg(long, value_name = "TIME", value_parser = follow::patience)]
    timeout: Option<Duration>,
}

/// Arguments of `scrub`.
#[derive(clap::Args)]
pub struct Scrub {
    #[command(flatten)]
    which: Which,
    /// Do not ask
    #[arg(short = 'f', long)]
    yes: bool,
}

/// Arguments of `cancel`.
#[derive(clap::Args)]
pub struct Cancel {
    #[command(flatten)]
    which: Which,
    /// Go back though the root key that it leaves is not active: Secrets under it stay unread,
    /// byte for byte as they are, until it is active again
    #[arg(long)]
    without_root_key: bool,
    /// Do not ask
    #[arg(short = 'f', long)]
    yes: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum HowTakenUp {
    Restart,
    Reload,
}

/// Runs it.
pub async fn run(verb: Verb, look: Look, link: &Link) -> Done {
    match verb {
        Verb::Instance(Instance::Ls) => {
            let list = link.clusters.kms_instances().await?;
            look.ok();
            look.answer(&list, || view::instances(&list));
            Ok(())
        }
        Verb::Crk(RootKeys::Ls { instance_id }) => {
            let list = link.clusters.crks(instance_id).await?;
            look.ok();
            look.answer(&list, || view::root_keys(&list));
            Ok(())
        }
        Verb::Enable(args) => enable(args, look, link).await,
        Verb::Status(which) => {
            let status = link.clusters.kms_status(&which.cluster).await?;
            look.answer(&status, || view::kms(&status, now()));
            Ok(())
        }
        Verb::Follow(Follow { which, timeout }) => {
            match follow::follow(&which.cluster, Goal::Rest, timeout, look, link).await? {
                Ended::Detached => Ok(()),
                Ended::Reached(status) => {
                    look.answer(&*status, || view::kms(&status, now()));
                    Ok(())
                }
            }
        }
        Verb::Cancel(args) => cancel(args, look, link).await,
        Verb::Release(args) => release::run(args, look, link).await,
        Verb::Scrub(args) => scrub(&args, look, link).await,
        Verb::Verify(args) => verify::run(args, look, link).await,
        Verb::Guard(_) => Err(Failure::new(exit::FAULT, "a guard is started apart", "")),
    }
}

/// What `enable` answers: the same fields whether or not it was waited for.
#[derive(Serialize)]
struct Enabled {
    #[serde(flatten)]
    opened: Opened,
    /// How the cluster stands at the end; none when nobody waited for it.
    status: Option<Box<KmsStatus>>,
}

async fn enable(args: Enable, look: Look, link: &Link) -> Done {
    let cluster = &args.which.cluster;
    let key = crate::ids::find_key(&link.keys, args.instance_id, &args.crk).await?;
    if args.accept_plaintext
        && !args.yes
        && attended()
        && !plaintext_is_known(cluster, look, link).await?
    {
        return Err(Failure::new(exit::NO, "nothing was changed", ""));
    }
    look.doing(&format!("Enabling key management service on cluster {cluster}"));
    let request = OpenOperation {
        instance_id: args.instance_id,
        crk_id: key,
        public_endpoint: args.public_endpoint,
        take_up: match args.take_up {
            HowTakenUp::Restart => TakeUp::Restart,
            HowTakenUp::Reload => TakeUp::Reload,
        },
        accept_plaintext: args.accept_plaintext,
    };
    let opened = link.clusters.open_operation(cluster, &request).await?;
    for warning in &opened.warnings {
        look.warn(warning);
    }
    look.ok();
    let mut answer = Enabled { opened, status: None };
    let Some(operation) = answer.opened.operation else {
        look.answer(&answer, || {
            vec![if args.accept_plaintext {
                format!("Follow it: claviger ks kms follow -c {cluster}")
            } else {
                format!("Cluster {cluster} is encrypted under this key already.")
            }]
        });
        return Ok(());
    };
    if !args.wait && (args.no_wait || !attended()) {
        look.answer(&answer, || {
            vec![format!("Accepted. Follow it: claviger ks kms follow -c {cluster}")]
        });
        return Ok(());
    }
    let goal = Goal::Operation(operation);
    match follow::follow(cluster, goal, args.timeout, look, link).await? {
        Ended::Detached => Ok(()),
        Ended::Reached(status) => {
            let lines = enabled(cluster, &status);
            answer.status = Some(status);
            look.answer(&answer, || lines);
            Ok(())
        }
    }
}

/// Shows what of a cluster is plaintext now, and asks whether it is known.
async fn plaintext_is_known(cluster: &str, look: Look, link: &Link) -> Result<bool, Failure> {
    #[derive(serde::Deserialize)]
    struct Counted {
        census: Census,
    }
    let found = run_job(cluster, JobKind::Census, look, link).await?;
    let Counted { census } = serde_json::from_value(found).map_err(|e| {
        Failure::new(exit::FAULT, format!("the agent's answer makes no sense: {e}"), "")
    })?;
    let count = census.plaintext();
    eprintln!("{} records are plaintext in etcd, for example:", thousands(count));
    for class in census.resources.values().map(|counts| &counts.plaintext) {
        class.examples.iter().for_each(|key| eprintln!("  {key}"));
    }
    Ok(confirm(
        "Whoever writes to etcd could have planted them, and others until they are rewritten: all will be read as Secrets of this cluster. Go on?",
    ))
}

async fn cancel(args: Cancel, look: Look, link: &Link) -> Done {
    let cluster = &args.which.cluster;
    let question = "Secrets under a root key that is not active will not be readable. Go on?";
    if args.without_root_key && !args.yes && attended() && !confirm(question) {
        return Err(Failure::new(exit::NO, "nothing was changed", ""));
    }
    look.doing(&format!("Giving up what is in progress on cluster {cluster}"));
    let request = CancelOperation { without_root_key: args.without_root_key };
    let given_up = link.clusters.cancel(cluster, &request).await?;
    for warning in &given_up.warnings {
        look.warn(warning);
    }
    look.ok();
    look.answer(&given_up, || {
        let mut lines = given_up.notes.clone();
        if given_up.outcome != GaveUp::Cancelled {
            lines.push(format!("Follow it: claviger ks kms follow -c {cluster}"));
        }
        lines
    });
    Ok(())
}

fn enabled(cluster: &str, status: &KmsStatus) -> Vec<String> {
    let mut lines = vec!["Key Management Service: enabled".to_owned()];
    if let Some(v) = &status.state.cluster.verified {
        let records = thousands(v.records);
        lines.push(format!("Proven from etcd's bytes: {records} records, all under the root key."));
    }
    let left = files::left(&status.state.cluster, &status.state.seen);
    if let Some(r) = &left.sum
        && r.db + r.wal > 0
    {
        lines.push(format!(
            "Plaintext left in etcd's files: live {}, db {}, wal {}",
            thousands(r.live),
            thousands(r.db),
            thousands(r.wal)
        ));
        lines.push(format!("Clear it: claviger ks kms scrub -c {cluster}"));
    }
    if let Some(who) = view::not_counted(&left) {
        lines.push(format!("Plaintext in etcd's files is {who}"));
    }
    lines
}

async fn scrub(args: &Scrub, look: Look, link: &Link) -> Done {
    let which = &args.which;
    let question = format!(
        "The API server and the etcd of cluster {} are down for some seconds. Clear plaintext out of etcd's files?",
        which.cluster
    );
    if !args.yes && attended() && !confirm(&question) {
        return Err(Failure::new(exit::NO, "not confirmed; nothing was changed", ""));
    }
    look.doing(&format!("Clearing plaintext out of the etcd of cluster {}", which.cluster));
    let result = run_job(&which.cluster, JobKind::Scrub, look, link).await?;
    let status = link.clusters.kms_status(&which.cluster).await?;
    let residue = status.state.cluster.residue;
    if residue.is_some_and(|r| r.live + r.db + r.wal == 0) {
        look.ok();
    }
    look.answer(&result, || match &residue {
        Some(r) => vec![format!("plaintext: live {}, db {}, wal {}", r.live, r.db, r.wal)],
        None => vec!["no agent has reported what is left".to_owned()],
    });
    match residue {
        Some(r) if r.live + r.db + r.wal > 0 => Err(Failure::new(
            exit::NO,
            "plaintext is left in etcd's files",
            "run it again; if it stays, see what the agents say: claviger ks kms status",
        )),
        Some(_) => Ok(()),
        None => Err(Failure::new(
            exit::UNKNOWN,
            "no agent has reported what is left in etcd's files",
            format!("look again in a minute: claviger ks kms status -c {}", which.cluster),
        )),
    }
}

/// Asks the cluster's agents for a job and waits for its result.
pub async fn run_job(
    cluster: &str,
    kind: JobKind,
    look: Look,
    link: &Link,
) -> Result<serde_json::Value, Failure> {
    let asked = link.clusters.new_job(cluster, &NewJob { kind }).await?;
    let mut progress = Progress::new(look);
    follow::job(cluster, asked.id, &mut progress, link).await
}
