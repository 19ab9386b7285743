//! `claviger instance`

use crate::connect::{Connection, Link};
use crate::exit::{self, Done, Failure};
use crate::ids;
use crate::render::{Look, ago_of_text, attended, confirm, now, pairs, table};
use clap::Subcommand;
use claviger_domain::id::InstanceId;
use claviger_wire::rc::{NewResourceInstance, ResourceInstance};

/// Arguments of `claviger instance`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    look: Look,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Subcommand)]
enum Verb {
    /// List instances
    Ls,
    /// Make an instance; who may use its keys, roles say
    Create(Create),
    /// Show an instance, and where it is reached
    Get(Which),
    /// Remove an instance for good, with its deleted keys; refused while a key in it is in use
    Delete(Delete),
}

#[derive(clap::Args)]
struct Which {
    /// Id, CRN or name of the instance
    instance: String,
}

#[derive(clap::Args)]
struct Create {
    /// Name of the instance; no other has it
    name: String,
    /// Id or name of its resource group; the default one if not given
    #[arg(long, value_name = "GROUP")]
    resource_group: Option<String>,
    /// Region to show; where the server is if not given
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
}

#[derive(clap::Args)]
struct Delete {
    #[command(flatten)]
    which: Which,
    /// Do not ask
    #[arg(short = 'f', long)]
    yes: bool,
}

/// Runs it.
pub fn run(args: Args) -> Done {
    let Args { verb, look, connection } = args;
    connection.block_on(async |link| act(verb, look, link).await)
}

async fn act(verb: Verb, look: Look, link: &Link) -> Done {
    match verb {
        Verb::Ls => {
            let list = link.admin.instances().await?;
            look.ok();
            look.answer(&list, || rows(&list));
            Ok(())
        }
        Verb::Create(args) => {
            look.doing(&format!("Making instance {}", args.name));
            let new = NewResourceInstance {
                name: args.name,
                target: args.region,
                resource_group: args.resource_group,
                resource_plan_id: None,
            };
            show(&link.admin.create_instance(&new).await?, look)
        }
        Verb::Get(which) => {
            let id = find(&which.instance, link).await?;
            show(&link.admin.instance(id).await?, look)
        }
        Verb::Delete(args) => {
            let id = find(&args.which.instance, link).await?;
            let question =
                format!("Instance {id} and its deleted keys cannot come back. Remove it?");
            if !args.yes && attended() && !confirm(&question) {
                return Err(Failure::new(exit::NO, "not confirmed; nothing was changed", ""));
            }
            look.doing(&format!("Removing instance {id}"));
            link.admin.delete_instance(id).await?;
            look.ok();
            let gone = serde_json::json!({ "deleted": id });
            look.answer(&gone, || vec![format!("Instance {id} is gone.")]);
            Ok(())
        }
    }
}

/// Finds an instance by id, CRN or name.
async fn find(text: &str, link: &Link) -> Result<InstanceId, Failure> {
    if let Ok(id) = ids::instance(text) {
        return Ok(id);
    }
    let list = link.admin.instances().await?;
    let named = list.iter().find(|instance| instance.name == text);
    named.map(|instance| InstanceId(instance.guid)).ok_or_else(|| {
        let error = format!("no instance is called {text:?}");
        Failure::new(exit::USAGE, error, "see which there are: claviger instance ls")
    })
}

fn show(instance: &ResourceInstance, look: Look) -> Done {
    look.ok();
    look.answer(instance, || lines(instance));
    Ok(())
}

fn rows(list: &[ResourceInstance]) -> Vec<String> {
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|i| {
            let created = ago_of_text(&i.created_at, now());
            vec![i.name.clone(), i.guid.to_string(), i.region_id.clone(), i.state.clone(), created]
        })
        .collect();
    table(&["Name", "ID", "Region", "State", "Created"], &rows)
}

fn lines(i: &ResourceInstance) -> Vec<String> {
    pairs(&[
        ("Name", i.name.clone()),
        ("ID", i.guid.to_string()),
        ("CRN", i.crn.clone()),
        ("Region", i.region_id.clone()),
        ("State", i.state.clone()),
        ("Resource group", i.resource_group_id.to_string()),
        ("Private URL", i.extensions.endpoints.private.clone()),
        ("Public URL", i.extensions.endpoints.public.clone()),
        ("Created", format!("{} by {}", i.created_at, i.created_by)),
    ])
}
