//! `claviger ks cluster`

use super::{Which, view};
use crate::connect::Link;
use crate::exit::{Done, Failure};
use crate::files;
use crate::render::{Look, now, pairs};
use claviger_wire::ks::RegisterCluster;
use serde::Serialize;
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
    /// Write a kubeconfig; refused while the root key is suspended
    Config(Config),
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
    let text = link.clusters.kubeconfig(&args.which.cluster).await?;
    if args.to.as_os_str() == "-" {
        crate::render::print_line(text.trim_end());
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
