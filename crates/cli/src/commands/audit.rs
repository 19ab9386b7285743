//! `claviger audit`

use crate::connect::{Connection, Link};
use crate::exit::{self, Done, Failure};
use crate::ids;
use crate::render::{Look, table};
use clap::Subcommand;
use claviger_client::WantedEvents;
use claviger_domain::id::InstanceId;
use claviger_wire::audit::Event;

/// Arguments of `claviger audit`.
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
    /// List what was done and what was refused, newest first
    Ls(Ls),
}

#[derive(clap::Args)]
struct Ls {
    /// Id (GUID or CRN) of the key service's instance; without it everything on the server, which
    /// administrators alone see
    #[arg(long, env = "CLAVIGER_INSTANCE_ID", hide_env_values = true, value_name = "ID", value_parser = ids::instance)]
    instance_id: Option<InstanceId>,
    /// Everything on the server, whatever instance is set
    #[arg(long)]
    all: bool,
    /// Of one key: id, CRN or name
    #[arg(long, value_name = "KEY", conflicts_with = "all")]
    key: Option<String>,
    /// Of one action, such as kms.secrets.delete; a * at its end stands for anything
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Not before this, such as 2027-01-31T00:00:00Z
    #[arg(long, value_name = "TIME")]
    from: Option<jiff::Timestamp>,
    /// Before this
    #[arg(long, value_name = "TIME")]
    to: Option<jiff::Timestamp>,
    /// Go on where an earlier answer ended: its `next`
    #[arg(long, value_name = "PLACE")]
    before: Option<String>,
    /// How many at most
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

/// Runs it.
pub fn run(args: Args) -> Done {
    let Args { verb: Verb::Ls(ls), look, connection } = args;
    connection.block_on(async |link| list(ls, look, link).await)
}

async fn list(args: Ls, look: Look, link: &Link) -> Done {
    let instance = args.instance_id.filter(|_| !args.all);
    let key = match (instance, &args.key) {
        (_, None) => None,
        (Some(instance), Some(key)) => Some(ids::find_key(&link.keys, instance, key).await?),
        (None, Some(_)) => {
            let error = "a key is looked for in an instance, and none is given";
            return Err(Failure::new(exit::USAGE, error, "say --instance-id"));
        }
    };
    let wanted = WantedEvents {
        instance,
        key,
        action: args.action,
        from: args.from.map(|at| at.to_string()),
        to: args.to.map(|at| at.to_string()),
        before: args.before,
    };
    let found = link.admin.events(&wanted, args.limit as usize).await?;
    look.ok();
    look.answer(&found, || {
        let mut lines = rows(&found.events);
        if let Some(next) = &found.next {
            lines.push(format!("There is more: --before {next}"));
        }
        lines
    });
    Ok(())
}

fn rows(events: &[Event]) -> Vec<String> {
    let rows: Vec<Vec<String>> = events
        .iter()
        .map(|event| {
            let who = &event.initiator;
            let name = if who.name.is_empty() { &who.id } else { &who.name };
            let from = who.host.as_ref().map(|host| host.address.clone()).unwrap_or_default();
            let ended = match &event.reason.reason_for_failure {
                Some(code) => format!("{} {code}", event.reason.reason_code),
                None => event.outcome.clone(),
            };
            vec![
                event.event_time.clone(),
                event.action.clone(),
                ended,
                name.clone(),
                from,
                short(&event.target.id).to_owned(),
            ]
        })
        .collect();
    table(&["Time", "Action", "Ended", "Who", "From", "What"], &rows)
}

/// The part of a CRN that tells one thing from another: kind and id, or the instance.
fn short(crn: &str) -> &str {
    if !crn.starts_with("crn:") {
        return crn;
    }
    let at = crn.match_indices(':').nth(6).map_or(0, |(at, _)| at + 1);
    let rest = crn[at..].trim_end_matches(':');
    rest.split_once(':').map_or(rest, |(_, within)| within)
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn what_it_was_done_to_in_short() {
        let crn = "crn:v1:bluemix:public:kms:local:a/0:inst";
        for (long, want) in [
            (format!("{crn}:key:id"), "key:id"),
            (format!("{crn}:key-ring:a"), "key-ring:a"),
            (format!("{crn}::"), "inst"),
            ("claviger".to_owned(), "claviger"),
            ("crn:broken".to_owned(), "broken"),
        ] {
            assert_eq!(short(&long), want, "{long}");
        }
    }
}
