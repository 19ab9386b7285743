//! `claviger ks cluster`

use super::{Which, view};
use crate::connect::Link;
use crate::exit::{self, Done, Failure};
use crate::files;
use crate::render::{Look, attended, now, pairs, typed};
use claviger_domain::cluster::{Access, FRESH_MS, Stage};
use claviger_domain::id::{AgentName, ClusterId, UnixMs};
use claviger_domain::key::RootKey;
use claviger_wire::agent::ReissueRequest;
use claviger_wire::ks::{AgentView, KmsStatus, RegisterCluster};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What can be done with clusters.
#[derive(clap::Subcommand)]
pub enum Verb {
    /// List clusters
    Ls,
    /// Show one cluster
    Get(Which),
    /// Make a cluster known and print a one-time token for its first agent
    Register(Register),
    /// Print another one-time token, for the next agent of a cluster; good for one hour
    JoinToken(Which),
    /// Forget a cluster that is gone
    ///
    /// Refused while an agent of it was heard in the last 90 s. Its Secrets stay as they are: if it
    /// is encrypted, its root keys stay protected from deletion until `claviger ks kms release`
    /// takes it off them, and you have to type its name, or say --force.
    Rm(RemoveCluster),
    /// Control-plane nodes: list, remove one that is gone
    #[command(subcommand)]
    Node(Node),
    /// Write a kubeconfig; refused while the root key is suspended
    Config(Config),
}

/// What can be done with nodes.
#[derive(clap::Subcommand)]
pub enum Node {
    /// List nodes: when last heard, what their API server uses, whether they may read
    Ls(Which),
    /// Remove a node whose machine is gone for good
    ///
    /// Its certificate counts no longer and no operation waits for it. Refused while its agent is
    /// heard. A machine that still runs, cut off, goes on with the keys in its memory: whether it
    /// is off is for you to say, by typing its name or with --force.
    Rm(Remove),
    /// Answer a node's written request for a new certificate
    ///
    /// For a node whose certificate has expired or that cannot reach this server: it writes the
    /// request with `claviger agent request-certificate` and takes the answer with `claviger agent
    /// install-certificate`. Needs Administrator. A request is good for 7 days.
    Reissue(Reissue),
}

/// Arguments of `node reissue`.
#[derive(clap::Args)]
pub struct Reissue {
    #[command(flatten)]
    which: Which,
    /// The node's request
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// Where to write the certificate
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Write over a file that is there
    #[arg(short = 'f', long)]
    yes: bool,
}

/// Arguments of `node rm`.
#[derive(clap::Args)]
pub struct Remove {
    #[command(flatten)]
    which: Which,
    /// Name of the node's agent
    node: AgentName,
    /// The machine is off for good; do not ask
    #[arg(long)]
    force: bool,
}

/// Arguments of `rm`.
#[derive(clap::Args)]
pub struct RemoveCluster {
    #[command(flatten)]
    which: Which,
    /// It may be forgotten though it is encrypted; do not ask
    #[arg(long)]
    force: bool,
}

/// Arguments of `register`.
#[derive(clap::Args)]
pub struct Register {
    /// Name of the cluster: 1 to 63 characters
    name: String,
    /// URL of its API server, as kubectl will use it
    #[arg(long, value_name = "URL")]
    server: String,
    /// CA of its API server, PEM
    #[arg(long, value_name = "FILE")]
    ca_cert: PathBuf,
    /// Kubeconfig that `ks cluster config` may hand out; kept sealed. Without it that one names
    /// server and CA and no credentials
    #[arg(long, value_name = "FILE")]
    admin_kubeconfig: Option<PathBuf>,
}

/// Arguments of `config`.
#[derive(clap::Args)]
pub struct Config {
    #[command(flatten)]
    which: Which,
    /// Where to write it; `-` prints it
    #[arg(long, value_name = "FILE", default_value = "-")]
    to: PathBuf,
    /// Write over a file that is there, with whatever else is in it
    #[arg(short = 'f', long)]
    yes: bool,
}

/// Runs it.
pub async fn run(verb: Verb, look: Look, link: &Link) -> Done {
    match verb {
        Verb::Ls => {
            let list = link.clusters.list().await?;
            look.ok();
            look.answer(&list, || view::clusters(&list, now()));
        }
        Verb::Get(which) => {
            look.doing(&format!("Retrieving cluster {}", which.cluster));
            let found = link.clusters.get(&which.cluster).await?;
            look.ok();
            look.answer(&found, || view::cluster(&found, now()));
        }
        Verb::Register(args) => return register(args, look, link).await,
        Verb::JoinToken(which) => {
            let made = link.clusters.join_token(&which.cluster).await?;
            look.ok();
            look.answer(&made, || joined(&made.name, made.id.as_str(), &made.join_token));
        }
        Verb::Rm(args) => return forget(args, look, link).await,
        Verb::Node(Node::Ls(which)) => {
            let status = link.clusters.kms_status(&which.cluster).await?;
            look.ok();
            let nodes = nodes(&status);
            look.answer(&nodes, || view::nodes(&nodes, now()));
        }
        Verb::Node(Node::Rm(args)) => return remove(args, look, link).await,
        Verb::Node(Node::Reissue(args)) => {
            files::is_free(&args.out, args.yes)?;
            let request: ReissueRequest = files::read_json(&args.request)?;
            look.doing(&format!("Answering the request of node {}", request.agent));
            let answer = link.clusters.reissue(&args.which.cluster, &request).await?;
            files::write_json(&args.out, &answer)?;
            look.ok();
            let out = args.out.display();
            look.answer(&Written { path: args.out.clone() }, || {
                vec![format!(
                    "On the node: claviger agent install-certificate --config FILE --in {out}"
                )]
            });
        }
        Verb::Config(args) => return config(args, look, link).await,
    }
    Ok(())
}

async fn register(args: Register, look: Look, link: &Link) -> Done {
    let ca = files::read_text(&args.ca_cert, files::CONFIG_MAX)?;
    if !ca.contains("-----BEGIN CERTIFICATE-----") {
        return Err(Failure::new(
            2,
            format!("{} holds no PEM certificate", args.ca_cert.display()),
            "give the file that kube-apiserver's --tls-cert-file was signed by",
        ));
    }
    let admin_kubeconfig = match &args.admin_kubeconfig {
        Some(path) => Some(files::read_text(path, files::CONFIG_MAX)?),
        None => None,
    };
    look.doing(&format!("Registering cluster {}", args.name));
    let request =
        RegisterCluster { name: args.name, server_url: args.server, ca, admin_kubeconfig };
    let made = link.clusters.register(&request).await?;
    look.ok();
    look.answer(&made, || joined(&made.name, made.id.as_str(), &made.join_token));
    Ok(())
}

/// A node, for `node ls`.
#[derive(Serialize)]
pub struct NodeRow {
    /// Its agent.
    pub name: AgentName,
    /// When its agent was last heard.
    pub last_seen: UnixMs,
    /// Whether that was lately enough for its word to count.
    pub fresh: bool,
    /// The stage its API server is to have.
    pub stage: Option<Stage>,
    /// The stage its API server uses.
    pub loaded: Option<Stage>,
    /// Its last word on whether it may read; none if it never spoke.
    pub access: Option<Access>,
}

fn nodes(status: &KmsStatus) -> Vec<NodeRow> {
    let state = &status.state;
    let row = |agent: &AgentView| {
        let seen = state.seen.get(&agent.agent);
        NodeRow {
            name: agent.agent.clone(),
            last_seen: agent.last_contact,
            // By the server's clock, which dated both.
            fresh: seen.is_some_and(|s| state.now.since(s.at) < FRESH_MS),
            stage: state.cluster.servers.get(&agent.agent).map(|target| target.stage),
            loaded: seen.and_then(|s| s.observation.stage_loaded),
            access: seen.map(|s| s.observation.access.clone()),
        }
    };
    status.agents.iter().map(row).collect()
}

/// A cluster that was removed.
#[derive(Serialize)]
struct Forgotten {
    id: ClusterId,
    /// Root keys that it is still registered on: its Secrets and backups are under them.
    root_keys: Vec<RootKey>,
}

async fn forget(args: RemoveCluster, look: Look, link: &Link) -> Done {
    let name = &args.which.cluster;
    let state = link.clusters.kms_status(name).await?.state;
    let (cluster, crn) = (state.cluster, state.crn);
    let mut force = args.force;
    if !force && !cluster.ring.keks.is_empty() && attended() {
        let question = format!(
            "Cluster {} is encrypted: its Secrets stay so, and cannot be read without this server.\nType its name to forget it:",
            cluster.name
        );
        if typed(&question) != cluster.name {
            return Err(Failure::new(exit::NO, "nothing was changed", ""));
        }
        force = true;
    }
    look.doing(&format!("Removing cluster {name}"));
    link.clusters.remove(name, force).await?;
    look.ok();
    let roots: BTreeSet<RootKey> = cluster.ring.keks.iter().map(|k| k.root.root).collect();
    let mut forgotten = Forgotten { id: cluster.id, root_keys: Vec::new() };
    for root in roots {
        // Who removes a cluster need not be allowed to see who uses its keys: then all are named.
        let users = link.keys.registrations(root.instance, root.key).await;
        if users.is_ok_and(|users| users.iter().all(|user| user.resource_crn != crn)) {
            continue;
        }
        forgotten.root_keys.push(root);
    }
    look.answer(&forgotten, || still_registered(&forgotten));
    Ok(())
}

fn still_registered(forgotten: &Forgotten) -> Vec<String> {
    if forgotten.root_keys.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![
        "Its Secrets stay encrypted, so its root keys stay protected from deletion. When neither \
         its etcd nor a backup of it is needed any more:"
            .to_owned(),
    ];
    lines.extend(forgotten.root_keys.iter().map(|root| {
        format!(
            "  claviger ks kms release -c {} --instance-id {} --crk {}",
            forgotten.id, root.instance, root.key
        )
    }));
    lines
}

async fn remove(args: Remove, look: Look, link: &Link) -> Done {
    let (cluster, node) = (&args.which.cluster, &args.node);
    let mut force = args.force;
    if !force && attended() {
        let question = format!(
            "If the machine of {node} still runs, its API server goes on with the keys in its memory.\nType its name if it is off for good:"
        );
        if typed(&question) != node.as_str() {
            return Err(Failure::new(exit::NO, "nothing was changed", ""));
        }
        force = true;
    }
    look.doing(&format!("Removing node {node} from cluster {cluster}"));
    let removed = link.clusters.remove_node(cluster, node, force).await?;
    look.ok();
    look.answer(&removed, || removed.notes.clone());
    Ok(())
}

fn joined(name: &str, id: &str, token: &str) -> Vec<String> {
    let mut lines = pairs(&[
        ("Name", name.to_owned()),
        ("ID", id.to_owned()),
        ("Join token", token.to_owned()),
    ]);
    lines
        .push("The token joins one agent, once, within an hour; it is not shown again.".to_owned());
    lines
}

#[derive(Serialize)]
struct Written {
    path: PathBuf,
}

async fn config(args: Config, look: Look, link: &Link) -> Done {
    let printed = args.to.as_os_str() == "-";
    if !printed {
        files::is_free(&args.to, args.yes)?;
    }
    let text = link.clusters.kubeconfig(&args.which.cluster).await?;
    if printed {
        look.answer(&serde_json::json!({ "kubeconfig": text }), || {
            vec![text.trim_end().to_owned()]
        });
        return Ok(());
    }
    files::write_secret(&args.to, text.as_bytes())?;
    look.ok();
    let written = Written { path: args.to };
    look.answer(&written, || vec![format!("export KUBECONFIG={}", written.path.display())]);
    Ok(())
}

/// `ks api-key info`.
pub async fn owner(which: &Which, look: Look, link: &Link) -> Done {
    look.doing(&format!(
        "Getting information about the API key owner for cluster {}",
        which.cluster
    ));
    let owner = link.clusters.key_owner(&which.cluster).await?;
    look.ok();
    look.answer(&owner, || {
        crate::render::table(
            &["Name", "Email", "ID"],
            &[vec![owner.name.clone(), owner.email.clone(), owner.id.clone()]],
        )
    });
    Ok(())
}
