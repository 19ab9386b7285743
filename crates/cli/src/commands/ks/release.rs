//! `claviger ks kms release`

use super::{Which, follow};
use crate::connect::Link;
use crate::exit::{self, Done, Failure};
use crate::render::{Look, Progress, attended, typed};
use claviger_client::Error;
use claviger_domain::id::InstanceId;
use claviger_wire::agent::JobKind;
use claviger_wire::ks::{NewJob, ReleaseKey, code};

/// Arguments of `release`.
#[derive(clap::Args)]
pub struct Release {
    #[command(flatten)]
    which: Which,
    /// Id (GUID or CRN) of the key service's instance
    #[arg(long, env = "CLAVIGER_INSTANCE_ID", hide_env_values = true, value_name = "ID", value_parser = crate::ids::instance)]
    instance_id: InstanceId,
    /// Root key: id, CRN or name
    #[arg(long, value_name = "CRK")]
    crk: String,
    /// Backups of etcd under the key may die with it; do not ask
    #[arg(long)]
    force: bool,
}

/// Runs it.
pub async fn run(args: Release, look: Look, link: &Link) -> Done {
    let cluster = &args.which.cluster;
    let key = crate::ids::find_key(&link.keys, args.instance_id, &args.crk).await?;
    let mut force = args.force;
    if !force && attended() {
        let question = format!(
            "Backups of etcd under root key {} can never be read again once it is deleted.\nType {} to take cluster {cluster} off it:",
            args.crk, args.crk
        );
        if typed(&question) != args.crk {
            return Err(Failure::new(exit::NO, "nothing was changed", ""));
        }
        force = true;
    }
    look.doing(&format!("Releasing root key {} from cluster {cluster}", args.crk));
    let mut request =
        ReleaseKey { instance_id: args.instance_id, crk_id: key, census: None, force: false };
    // What the server can refuse by itself it refuses before anything is counted.
    match link.clusters.release(cluster, &request).await {
        Err(Error::Refused { code, .. }) if force && code == code::NEEDS_WORD => {}
        other => return Err(other.err().map_or_else(unexpected, Failure::from)),
    }
    request.force = true;
    if known(cluster, link).await? {
        let job = NewJob { kind: JobKind::Census };
        let asked = link.clusters.new_job(cluster, &job).await?;
        follow::job(cluster, asked.id, &mut Progress::new(look), link).await?;
        request.census = Some(asked.id);
    }
    let released = link.clusters.release(cluster, &request).await?;
    look.ok();
    look.answer(&released, || released.notes.clone());
    Ok(())
}

fn unexpected() -> Failure {
    Failure::new(exit::FAULT, "the server released a root key without being told to", "")
}

/// Whether the server knows the cluster. One that was removed has no agent to count for it.
async fn known(cluster: &str, link: &Link) -> Result<bool, Failure> {
    match link.clusters.get(cluster).await {
        Ok(_) => Ok(true),
        Err(Error::Refused { code, .. }) if code == code::NO_CLUSTER => Ok(false),
        Err(error) => Err(error.into()),
    }
}
