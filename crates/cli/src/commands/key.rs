//! `claviger key`

use crate::connect::{Connection, Link};
use crate::exit::{self, Done, Failure};
use crate::render::{Look, ago_of_text, attended, confirm, now, pairs, table};
use crate::{files, ids};
use clap::Subcommand;
use claviger_domain::id::{InstanceId, KeyId};
use claviger_domain::key::KeyState;
use claviger_wire::kp::{Acknowledgements, ClusterAcknowledgement, Key, ServiceAcknowledgement};
use serde::Serialize;
use std::path::PathBuf;

/// Arguments of `claviger key`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// Id (GUID or CRN) of the key service's instance
    #[arg(long, env = "CLAVIGER_INSTANCE_ID", hide_env_values = true, global = true, value_name = "ID", value_parser = ids::instance)]
    instance_id: Option<InstanceId>,
    #[command(flatten)]
    look: Look,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a root key
    Create(Create),
    /// Bring your own material
    Import(Import),
    /// List keys
    Ls,
    /// Show a key: state, version, who uses it, who has acted on its last change
    Get(Which),
    /// Make a new version; every cluster that uses the key rewrites its Secrets by itself
    Rotate(Rotate),
    /// Suspend a key: clusters under it are unusable within seconds, until it is enabled
    Disable(Risky),
    /// End a suspension: clusters under it come back by themselves
    Enable(Which),
    /// Destroy a key; restorable for 30 days
    Delete(Delete),
    /// Bring a deleted key back
    Restore(Which),
}

#[derive(clap::Args)]
struct Which {
    /// Id, CRN or name of the key
    key: String,
}

#[derive(clap::Args)]
struct Create {
    /// Name of the key
    name: String,
    /// For people
    #[arg(long)]
    description: Option<String>,
    /// When it expires, such as 2027-01-31T00:00:00Z; clusters under it are unusable from then on
    #[arg(long, value_name = "TIME")]
    expires: Option<jiff::Timestamp>,
    /// A standard key, which hands its payload out; not for clusters
    #[arg(long)]
    standard: bool,
}

#[derive(clap::Args)]
struct Import {
    #[command(flatten)]
    create: Create,
    /// File with 16, 24 or 32 bytes of material in base64; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    material: PathBuf,
    /// The file holds the bytes themselves
    #[arg(long)]
    raw: bool,
}

#[derive(clap::Args)]
struct Rotate {
    #[command(flatten)]
    which: Which,
    /// New material, for an imported key
    #[arg(long, value_name = "FILE")]
    material: Option<PathBuf>,
    /// The file holds the bytes themselves
    #[arg(long, requires = "material")]
    raw: bool,
}

#[derive(clap::Args)]
struct Risky {
    #[command(flatten)]
    which: Which,
    /// Do not ask
    #[arg(short = 'f', long)]
    yes: bool,
}

#[derive(clap::Args)]
struct Delete {
    #[command(flatten)]
    risky: Risky,
    /// Even though resources are registered on it; a registration can forbid that
    #[arg(long)]
    force: bool,
}

/// Runs it.
pub fn run(args: Args) -> Done {
    let Args { verb, instance_id, look, connection } = args;
    let instance = instance_id.ok_or_else(|| {
        Failure::new(
            exit::USAGE,
            "no instance is given",
            "say --instance-id, or set CLAVIGER_INSTANCE_ID; see `claviger ks kms instance ls`",
        )
    })?;
    connection.block_on(async |link| act(verb, instance, look, link).await)
}

async fn act(verb: Verb, instance: InstanceId, look: Look, link: &Link) -> Done {
    let keys = &link.keys;
    match verb {
        Verb::Create(args) => {
            look.doing(&format!("Creating key {}", args.name));
            let made = keys.create(instance, &new_key(args), None).await?;
            show(&made, look)
        }
        Verb::Import(args) => {
            let material = files::read_material(&args.material, args.raw)?;
            look.doing(&format!("Importing key {}", args.create.name));
            let made = keys.create(instance, &new_key(args.create), Some(&material)).await?;
            show(&made, look)
        }
        Verb::Ls => {
            let list = keys.list(instance).await?;
            look.ok();
            look.answer(&list, || rows(&list));
            Ok(())
        }
        Verb::Get(which) => {
            let key = ids::find_key(keys, instance, &which.key).await?;
            details(instance, key, look, link).await
        }
        Verb::Rotate(args) => {
            let key = ids::find_key(keys, instance, &args.which.key).await?;
            let material = match &args.material {
                Some(path) => Some(files::read_material(path, args.raw)?),
                None => None,
            };
            look.doing(&format!("Rotating key {key}"));
            keys.rotate(instance, key, material.as_ref()).await?;
            details(instance, key, look, link).await
        }
        Verb::Disable(args) => {
            let key = ids::find_key(keys, instance, &args.which.key).await?;
            sure(
                args.yes,
                &format!("Every cluster under key {key} becomes unusable. Disable it?"),
            )?;
            look.doing(&format!("Disabling key {key}"));
            if !ids::disable(keys, instance, key).await? {
                look.warn(&format!(
                    "key {key} was suspended already, and whoever did that may enable it: claviger audit ls --key {key}"
                ));
            }
            details(instance, key, look, link).await
        }
        Verb::Enable(which) => {
            let key = ids::find_key(keys, instance, &which.key).await?;
            look.doing(&format!("Enabling key {key}"));
            let said = std::cell::Cell::new(false);
            ids::enable(keys, instance, key, |text| {
                if !said.replace(true) {
                    eprintln!("{text}");
                }
            })
            .await?;
            details(instance, key, look, link).await
        }
        Verb::Delete(args) => {
            let key = ids::find_key(keys, instance, &args.risky.which.key).await?;
            sure(
                args.risky.yes,
                &format!("Whatever is wrapped under key {key} becomes unreadable. Delete it?"),
            )?;
            look.doing(&format!("Deleting key {key}"));
            keys.delete(instance, key, args.force).await?;
            details(instance, key, look, link).await
        }
        Verb::Restore(which) => {
            let key = ids::find_key(keys, instance, &which.key).await?;
            look.doing(&format!("Restoring key {key}"));
            let said = std::cell::Cell::new(false);
            let note = |text: &str| {
                if !said.replace(true) {
                    eprintln!("{text}");
                }
            };
            ids::wait_out(note, async || keys.restore(instance, key).await).await?;
            details(instance, key, look, link).await
        }
    }
}

/// Asks a person at a terminal, unless told not to. Where nobody can be asked, the command line
/// itself is the yes.
fn sure(yes: bool, question: &str) -> Done {
    if yes || !attended() || confirm(question) {
        return Ok(());
    }
    Err(Failure::new(exit::NO, "not confirmed; nothing was changed", ""))
}

fn show(key: &Key, look: Look) -> Done {
    look.ok();
    look.answer(key, || lines(key));
    Ok(())
}

/// A key with who uses it.
#[derive(Serialize)]
struct Details {
    #[serde(flatten)]
    key: Key,
    /// CRNs of the resources registered on it; none if that could not be read.
    registrations: Option<Vec<String>>,
    /// Who has acted on the key's last event; none if that could not be read.
    acknowledgements: Option<Acknowledgements>,
}

async fn details(instance: InstanceId, key: KeyId, look: Look, link: &Link) -> Done {
    let found = link.keys.metadata(instance, key).await?;
    // Who may read a key need not be allowed to see who uses it.
    let registrations = match link.keys.registrations(instance, key).await {
        Ok(found) => Some(found.into_iter().map(|r| r.resource_crn).collect()),
        Err(error) => {
            look.warn(&format!("who uses the key could not be learned: {error}"));
            None
        }
    };
    let acknowledgements = link.keys.acknowledgements(instance, key).await.ok();
    let details = Details { key: found, registrations, acknowledgements };
    look.ok();
    look.answer(&details, || {
        let mut all = lines(&details.key);
        match &details.registrations {
            Some(crns) => all.extend(crns.iter().map(|crn| format!("Used by:  {crn}"))),
            None => all.push("Used by:  not known".to_owned()),
        }
        all.extend(details.acknowledgements.iter().flat_map(acted));
        all
    });
    Ok(())
}

fn state(key: &Key) -> String {
    KeyState::from_number(key.state).map_or_else(|| key.state.to_string(), |s| s.to_string())
}

fn kind(key: &Key) -> &'static str {
    if key.extractable { "standard" } else { "root" }
}

fn rows(list: &[Key]) -> Vec<String> {
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|k| {
            let created = ago_of_text(&k.creation_date, now());
            let origin = if k.imported { "imported" } else { "generated" };
            [&k.name, &k.id.to_string(), kind(k), &state(k), origin, &created]
                .map(str::to_owned)
                .to_vec()
        })
        .collect();
    table(&["Name", "ID", "Kind", "State", "Origin", "Created"], &rows)
}

/// A line for each cluster, whether all its agents have acted on the key's last event, and for
/// each other resource, whether it has answered it.
fn acted(all: &Acknowledgements) -> Vec<String> {
    let line = |cluster: &ClusterAcknowledgement| {
        let behind: Vec<&str> = cluster
            .agents
            .iter()
            .filter(|agent| agent.event < all.event)
            .map(|agent| agent.agent.as_str())
            .collect();
        let how = if behind.is_empty() {
            "acted on the last event".to_owned()
        } else {
            format!("not confirmed by {}", behind.join(", "))
        };
        format!("Cluster {}: {how}", cluster.cluster)
    };
    let service = |service: &ServiceAcknowledgement| {
        let how = match (&service.state, service.acknowledged) {
            (Some(state), true) => format!("answered the last event: {state}"),
            _ => "has not answered the last event".to_owned(),
        };
        format!("Resource {}: {how}", service.crn)
    };
    if all.event == 0 {
        return Vec::new();
    }
    all.clusters.iter().map(line).chain(all.services.iter().map(service)).collect()
}

fn lines(key: &Key) -> Vec<String> {
    let version = key.key_version.as_ref().map(|v| v.id.to_string()).unwrap_or_default();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    pairs(&[
        ("Name", key.name.clone()),
        ("ID", key.id.to_string()),
        ("Kind", kind(key).to_owned()),
        ("State", state(key)),
        ("Version", version),
        ("Origin", if key.imported { "imported" } else { "generated" }.to_owned()),
        ("Created", key.creation_date.clone()),
        ("Rotated", text(&key.last_rotate_date)),
        ("Expires", text(&key.expiration_date)),
        ("Deleted", text(&key.deletion_date)),
        ("Restorable until", text(&key.restore_expiration_date)),
        ("CRN", key.crn.clone()),
    ])
}

fn new_key(args: Create) -> claviger_wire::kp::NewKey {
    claviger_wire::kp::NewKey {
        media_type: claviger_wire::kp::KEY_TYPE.to_owned(),
        name: args.name,
        extractable: args.standard,
        description: args.description,
        expiration_date: args.expires.map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        ..Default::default()
    }
}
