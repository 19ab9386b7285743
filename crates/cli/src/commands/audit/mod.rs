//! `claviger audit`

mod verify;

use crate::connect::{Connection, Link};
use crate::exit::{self, Done, Failure};
use crate::ids;
use crate::render::{Format, Look, clean_json, print_line, print_text, table};
use clap::Subcommand;
use claviger_client::WantedEvents;
use claviger_domain::id::InstanceId;
use claviger_wire::audit::Event;
use std::collections::HashSet;
use std::time::Duration;

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
    /// Show what is done and refused from now on, until interrupted
    Tail(Wanted),
    /// Print everything as one CADF event in JSON on each line, newest first
    Export(Wanted),
    /// Hold the audit log of a server on this machine against its hashes, its signatures, and the
    /// checkpoints that left the machine; the server may be running
    Verify(verify::Args),
}

#[derive(clap::Args)]
struct Ls {
    #[command(flatten)]
    wanted: Wanted,
    /// Go on where an earlier answer ended: its `next`
    #[arg(long, value_name = "PLACE")]
    before: Option<String>,
    /// How many at most
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

#[derive(clap::Args)]
struct Wanted {
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
}

/// Events that `export` asks for at once.
const PAGE: usize = 1000;
/// How often `tail` asks.
const PAUSE: Duration = Duration::from_secs(2);
/// Events may turn up so much later than they began: `tail` looks back as far.
const LATE: jiff::SignedDuration = jiff::SignedDuration::from_secs(30);
/// Events that `tail` takes in at once.
const AT_ONCE: usize = 20_000;
/// What `tail` itself puts on record each time it asks; not shown unless asked for.
const READS: &str = "kms.audit.list";

/// Runs it.
pub fn run(args: Args) -> Done {
    let Args { verb, look, connection } = args;
    match verb {
        Verb::Ls(ls) => connection.block_on(async |link| list(ls, look, link).await),
        Verb::Tail(wanted) => connection.block_on(async |link| tail(wanted, look, link).await),
        Verb::Export(wanted) => connection.block_on(async |link| export(wanted, link).await),
        Verb::Verify(args) => verify::run(args, look),
    }
}

async fn list(args: Ls, look: Look, link: &Link) -> Done {
    let wanted = WantedEvents { before: args.before, ..wanted(args.wanted, link).await? };
    let found = link.admin.events(&wanted, args.limit as usize).await?;
    look.ok();
    look.answer(&found, || {
        let mut lines = table(&HEAD, &found.events.iter().map(row).collect::<Vec<_>>());
        if let Some(next) = &found.next {
            lines.push(format!("There is more: --before {next}"));
        }
        lines
    });
    Ok(())
}

async fn export(args: Wanted, link: &Link) -> Done {
    let mut wanted = wanted(args, link).await?;
    loop {
        let found = link.admin.events(&wanted, PAGE).await?;
        for event in &found.events {
            print_line(&line(event));
        }
        match found.next {
            Some(next) => wanted.before = Some(next),
            None => return Ok(()),
        }
    }
}

async fn tail(args: Wanted, look: Look, link: &Link) -> Done {
    let mut from = args.from.unwrap_or_else(jiff::Timestamp::now);
    let mut wanted = wanted(args, link).await?;
    let hide_reads = wanted.action.is_none();
    // What may come again was in the answer before: each looks back no further than that one.
    let mut shown = HashSet::new();
    loop {
        wanted.from = Some(from.to_string());
        let found = link.admin.events(&wanted, AT_ONCE).await?;
        let mut now = HashSet::new();
        for event in found.events.iter().rev() {
            let line = line(event);
            // Two that say the same in every field are shown once.
            let again = shown.contains(&line) || now.contains(&line);
            if !(again || hide_reads && event.action == READS) {
                match look.output {
                    Format::Json => print_line(&line),
                    Format::Text => print_text(&row(event).join("  ")),
                }
            }
            now.insert(line);
        }
        shown = now;
        if let Some(newest) = found.events.first().and_then(|e| e.event_time.parse().ok()) {
            from = from.max(jiff::Timestamp::saturating_sub(newest, LATE).unwrap_or(from));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// An event in JSON on one line.
fn line(event: &Event) -> String {
    clean_json(&serde_json::to_string(event).expect("events are valid JSON"))
}

async fn wanted(args: Wanted, link: &Link) -> Result<WantedEvents, Failure> {
    let instance = args.instance_id.filter(|_| !args.all);
    let key = match (instance, &args.key) {
        (_, None) => None,
        (Some(instance), Some(key)) => Some(ids::find_key(&link.keys, instance, key).await?),
        (None, Some(_)) => {
            let error = "a key is looked for in an instance, and none is given";
            return Err(Failure::new(exit::USAGE, error, "say --instance-id"));
        }
    };
    Ok(WantedEvents {
        instance,
        key,
        action: args.action,
        from: args.from.map(|at| at.to_string()),
        to: args.to.map(|at| at.to_string()),
        before: None,
    })
}

const HEAD: [&str; 6] = ["Time", "Action", "Ended", "Who", "From", "What"];

fn row(event: &Event) -> Vec<String> {
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
