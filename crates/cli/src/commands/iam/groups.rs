//! `claviger iam group`

use super::{gone, sure, who};
use crate::connect::Link;
use crate::exit::{self, Done, Failure};
use crate::render::{Look, ago_of_text, attended, now, pairs, table};
use clap::Subcommand;
use claviger_wire::access::{Group, Member};
use serde_json::json;

/// What can be done with access groups.
#[derive(Subcommand)]
pub enum Verb {
    /// List access groups
    Ls,
    /// Make an access group; give it a policy
    Create(New),
    /// Remove an access group, with the policies about it
    Delete(Delete),
    /// List who is in an access group
    Members(Which),
    /// Put someone into an access group
    Add(WhichMember),
    /// Take someone out of an access group
    Remove(WhichMember),
}

/// A group to make.
#[derive(clap::Args)]
pub struct New {
    /// Name of the group; no other has it
    name: String,
    /// What it is for
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
}

/// A group.
#[derive(clap::Args)]
pub struct Which {
    /// Id or name of the group
    group: String,
}

/// A group to remove.
#[derive(clap::Args)]
pub struct Delete {
    #[command(flatten)]
    which: Which,
    /// Also where it has members, who lose its roles; do not ask
    #[arg(short = 'f', long)]
    yes: bool,
}

/// A group and someone.
#[derive(clap::Args)]
pub struct WhichMember {
    #[command(flatten)]
    which: Which,
    /// IAM id or name of a user or a service ID
    who: String,
}

/// `claviger iam group`
pub async fn run(verb: Verb, look: Look, link: &Link) -> Done {
    match verb {
        Verb::Ls => {
            let list = link.access.groups().await?;
            look.ok();
            look.answer(&list, || {
                let row = |g: &Group| {
                    let created = ago_of_text(&g.created_at, now());
                    vec![g.name.clone(), g.id.clone(), g.description.clone(), created]
                };
                let rows: Vec<_> = list.iter().map(row).collect();
                table(&["Name", "ID", "Description", "Created"], &rows)
            });
            Ok(())
        }
        Verb::Create(New { name, description }) => {
            look.doing(&format!("Making access group {name}"));
            let new = Group { name, description, ..Group::default() };
            let made = link.access.create_group(&new).await?;
            look.ok();
            look.answer(&made, || pairs(&[("Name", made.name.clone()), ("ID", made.id.clone())]));
            Ok(())
        }
        Verb::Delete(Delete { which, yes }) => {
            let id = find(&which.group, link).await?;
            let members = link.access.members(&id).await?.len();
            sure(&format!("{members} members lose the roles of {id}. Remove it?"), yes)?;
            look.doing(&format!("Removing access group {id}"));
            // A yes at the terminal is as good as --yes; without members none is needed.
            let force = yes || (members > 0 && attended());
            link.access.delete_group(&id, force).await?;
            gone("Access group", &id, look)
        }
        Verb::Members(which) => {
            let list = link.access.members(&find(&which.group, link).await?).await?;
            look.ok();
            look.answer(&list, || {
                let row = |m: &Member| vec![m.name.clone(), m.iam_id.clone(), m.kind.clone()];
                table(&["Name", "ID", "Type"], &list.iter().map(row).collect::<Vec<_>>())
            });
            Ok(())
        }
        Verb::Add(WhichMember { which, who: text }) => {
            let (group, iam_id) = (find(&which.group, link).await?, who(&text, link).await?);
            look.doing(&format!("Putting {iam_id} into {group}"));
            let added = link.access.add_member(&group, &iam_id).await?;
            if let Some(why) = added.errors.first() {
                return Err(Failure::new(exit::NO, why.message.clone(), ""));
            }
            look.ok();
            look.answer(&added, || vec![format!("{iam_id} is in the group.")]);
            Ok(())
        }
        Verb::Remove(WhichMember { which, who: text }) => {
            let (group, iam_id) = (find(&which.group, link).await?, who(&text, link).await?);
            look.doing(&format!("Taking {iam_id} out of {group}"));
            link.access.remove_member(&group, &iam_id).await?;
            look.ok();
            let removed = json!({ "group": group, "removed": iam_id });
            look.answer(&removed, || vec![format!("{iam_id} is in the group no longer.")]);
            Ok(())
        }
    }
}

/// The id of a group that an id or a name names.
pub(super) async fn find(text: &str, link: &Link) -> Result<String, Failure> {
    if text.starts_with("AccessGroupId-") {
        return Ok(text.to_owned());
    }
    let groups = link.access.groups().await?;
    groups.into_iter().find(|group| group.name == text).map(|group| group.id).ok_or_else(|| {
        let error = format!("no access group is called {text:?}");
        Failure::new(exit::USAGE, error, "see which there are: claviger iam group ls")
    })
}
