//! `claviger iam issuer`

use super::{gone, sure, who};
use crate::connect::Link;
use crate::exit::{self, Done, Failure};
use crate::files;
use crate::render::{Look, table};
use clap::Subcommand;
use claviger_wire::iam::{TrustedIssuer, TrustedSubject};
use std::path::PathBuf;

/// Largest file of keys; a cluster has one key or two.
const JWKS_MAX: u64 = 48 << 10;

/// What can be done with issuers.
#[derive(Subcommand)]
pub enum Verb {
    /// List the clusters whose tokens are believed, and what their pods may become
    Ls,
    /// Believe tokens of a cluster, with exactly these keys and subjects
    ///
    /// The keys are those that `kubectl get --raw /openid/v1/jwks` shows; nothing is ever fetched.
    /// Pods ask for a token with the audience given here, and exchange it by the grant cr-token.
    Set(Set),
    /// Believe tokens of a cluster no longer
    Delete(Delete),
}

/// An issuer to believe.
#[derive(clap::Args)]
pub struct Set {
    /// What its tokens say in `iss`
    issuer: String,
    /// What they must say in `aud`
    #[arg(long, value_name = "AUDIENCE")]
    audience: String,
    /// File with its public keys, a JWK set
    #[arg(long, value_name = "FILE")]
    jwks: PathBuf,
    /// A service account and what it may become: `NAMESPACE/NAME=SERVICE-ID`
    #[arg(long = "allow", value_name = "POD=WHO")]
    allowed: Vec<String>,
}

/// An issuer to believe no longer.
#[derive(clap::Args)]
pub struct Delete {
    /// What its tokens say in `iss`
    issuer: String,
    /// Do not ask
    #[arg(short = 'f', long)]
    yes: bool,
}

/// `claviger iam issuer`
pub async fn run(verb: Verb, look: Look, link: &Link) -> Done {
    match verb {
        Verb::Ls => {
            let list = link.access.issuers().await?;
            look.ok();
            look.answer(&list, || rows(&list));
            Ok(())
        }
        Verb::Set(set) => {
            let text = files::read_text(&set.jwks, JWKS_MAX)?;
            let jwks = serde_json::from_str(&text).map_err(|e| {
                let error = format!("{} is not JSON: {e}", set.jwks.display());
                Failure::new(exit::USAGE, error, "")
            })?;
            let mut subjects = Vec::new();
            for allowed in &set.allowed {
                subjects.push(subject(allowed, link).await?);
            }
            let Set { issuer, audience, .. } = set;
            look.doing(&format!("Trusting {issuer}"));
            let issuer = TrustedIssuer { issuer, audience, jwks, subjects };
            let put = link.access.put_issuer(&issuer).await?;
            look.ok();
            look.answer(&put, || rows(std::slice::from_ref(&put)));
            Ok(())
        }
        Verb::Delete(Delete { issuer, yes }) => {
            sure(&format!("Pods of {issuer} come in no longer. Remove it?"), yes)?;
            look.doing(&format!("Removing issuer {issuer}"));
            link.access.delete_issuer(&issuer).await?;
            gone("Issuer", &issuer, look)
        }
    }
}

async fn subject(allowed: &str, link: &Link) -> Result<TrustedSubject, Failure> {
    let parts = allowed.split_once('=').and_then(|(pod, who)| Some((pod.split_once('/')?, who)));
    let Some(((namespace, name), service)) = parts else {
        let error = format!("--allow {allowed:?} is not NAMESPACE/NAME=SERVICE-ID");
        return Err(Failure::new(exit::USAGE, error, ""));
    };
    let iam_id = who(service, link).await?;
    Ok(TrustedSubject { subject: format!("system:serviceaccount:{namespace}:{name}"), iam_id })
}

fn rows(list: &[TrustedIssuer]) -> Vec<String> {
    let mut rows = Vec::new();
    for issuer in list {
        let first = vec![issuer.issuer.clone(), issuer.audience.clone()];
        if issuer.subjects.is_empty() {
            rows.push([first.clone(), vec![String::new(), String::new()]].concat());
        }
        for subject in &issuer.subjects {
            let more = vec![subject.subject.clone(), subject.iam_id.clone()];
            rows.push([first.clone(), more].concat());
        }
    }
    table(&["Issuer", "Audience", "Subject", "Becomes"], &rows)
}
