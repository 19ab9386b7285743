//! `claviger ks kms verify`: the harmless proof, and the one that costs an outage.

use super::guard::{Armed, Undone};
use super::{Which, follow, kms};
use crate::connect::Link;
use crate::exit::{self, Done, Failure};
use crate::render::{Look, Progress, attended, confirm};
use claviger_domain::cluster::Access;
use claviger_domain::key::{KeyState, RootKey};
use claviger_wire::agent::JobKind;
use claviger_wire::ks::KmsStatus;
use serde::Serialize;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Arguments of `verify`.
#[derive(clap::Args)]
pub struct Verify {
    #[command(flatten)]
    which: Which,
    /// Disable the root key, see that the cluster is unusable, enable it again: an outage
    #[arg(long)]
    by_disabling: bool,
    /// How long the root key stays disabled at most, in seconds; the key service may want 30 more.
    /// A process of its own enables it then, whatever becomes of this one: run it on a machine that
    /// stays up
    #[arg(long = "for", value_name = "SECONDS", default_value = "60", value_parser = seconds,
          requires = "by_disabling")]
    for_seconds: u64,
    /// Do not ask
    #[arg(short = 'f', long, requires = "by_disabling")]
    yes: bool,
}

/// `60`, `60s` or `2m`, from 10 seconds to an hour.
fn seconds(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix('m') {
        Some(digits) => (digits, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a time such as 60s or 2m".to_owned())?;
    match number.checked_mul(unit) {
        Some(seconds @ 10..=3600) => Ok(seconds),
        _ => Err("from 10s to 60m".to_owned()),
    }
}

/// How long a cluster may take to come back: the API server's start, and the agent's own back-off.
const RETURN_MAX: Duration = Duration::from_secs(180);

/// What `--by-disabling` found; times in seconds.
#[derive(Debug, Serialize)]
struct Report {
    /// From disabling the key to the last agent's word that it is fenced.
    fenced_after: f64,
    /// Whether a connection to the API server was refused then; none if it could not be reached
    /// from here to begin with.
    unreachable: Option<bool>,
    /// Whether `ks cluster config` was refused, as it must be.
    config_refused: bool,
    /// From enabling the key to every API server serving.
    returned_after: f64,
    /// The harmless proof, made afterwards.
    verification: serde_json::Value,
}

/// Runs it.
pub async fn run(args: Verify, look: Look, link: &Link) -> Done {
    if args.by_disabling {
        by_disabling(&args, look, link).await
    } else {
        harmless(&args, look, link).await
    }
}

async fn harmless(args: &Verify, look: Look, link: &Link) -> Done {
    let cluster = &args.which.cluster;
    look.doing(&format!("Verifying the encryption of cluster {cluster} from etcd's bytes"));
    let result = kms::run_job(cluster, JobKind::Verify, look, link).await?;
    let good = is_good(&result);
    if good {
        look.ok();
    }
    look.answer(&result, || summary(&result));
    if good {
        return Ok(());
    }
    let view = link.clusters.kms_status(cluster).await?.view;
    if view.state != "normal" {
        return Err(Failure::new(
            exit::NO,
            format!("cluster {cluster} is {}: {}", view.state, view.master_status),
            format!("mend that first: claviger ks kms status -c {cluster}"),
        ));
    }
    Err(fell_short(cluster))
}

fn fell_short(cluster: &str) -> Failure {
    Failure::new(
        exit::NO,
        "not every Secret is under the current version of the root key",
        format!("see which: claviger census -c {cluster}"),
    )
}

/// Whether the agent's verification holds.
fn is_good(result: &serde_json::Value) -> bool {
    result.get("good").and_then(serde_json::Value::as_bool) == Some(true)
}

/// The verification's own numbers as lines.
fn summary(result: &serde_json::Value) -> Vec<String> {
    let Some(fields) = result.as_object() else { return vec![result.to_string()] };
    let plain = fields.iter().filter(|(_, value)| !value.is_object() && !value.is_array());
    plain.map(|(name, value)| format!("{name}: {}", value.to_string().trim_matches('"'))).collect()
}

async fn by_disabling(args: &Verify, look: Look, link: &Link) -> Done {
    let cluster = &args.which.cluster;
    let status = link.clusters.kms_status(cluster).await?;
    let root = ready_for_it(cluster, &status)?;
    if !args.yes && attended() {
        let question = format!(
            "Cluster {} will be unusable for up to {} s. Disable root key {}?",
            status.state.cluster.name, args.for_seconds, root.key
        );
        if !confirm(&question) {
            return Err(Failure::new(exit::NO, "not confirmed; nothing was changed", ""));
        }
    }
    let address = address(&status.view.master_url).or_else(|| address(&status.view.server_url));
    let reachable = match &address {
        Some(address) => connects(address).await,
        None => false,
    };
    if !reachable {
        look.warn("the API server cannot be reached from here; only the agents' word counts");
    }

    let mut guard =
        Armed::start(link, root.instance, root.key, Duration::from_secs(args.for_seconds))?;
    look.doing(&format!("Disabling root key {}", root.key));
    let disabled = Instant::now();
    // From here on every way out leads past the guard: dropped, it enables what it disabled.
    let ours = guard.disable()?;
    let limit = Duration::from_secs(args.for_seconds);
    let mut progress = Progress::new(look);
    progress.phase("waiting until every control-plane node is fenced");
    wait_fenced(cluster, disabled + limit, link).await?;
    let fenced_after = disabled.elapsed().as_secs_f64();
    let unreachable = match (&address, reachable) {
        (Some(address), true) => Some(!connects(address).await),
        _ => None,
    };
    let config_refused = refuses_config(cluster, link).await?;
    progress.phase("enabling the root key again");
    let undone = ours.undo(root.instance, root.key, |text| progress.phase(text), link).await?;
    let enabled = Instant::now();
    guard.disarm();
    if let Undone::Left(who) = undone {
        return Err(Failure::new(
            exit::NO,
            format!("root key {} stays disabled: {who}", root.key),
            "ask him; to end it: claviger key enable",
        ));
    }
    progress.phase("waiting until every API server serves again");
    let until = enabled + RETURN_MAX;
    wait_open(cluster, root, until, address.as_deref().filter(|_| reachable), link).await?;
    let returned_after = enabled.elapsed().as_secs_f64();
    progress.end();

    let verification = kms::run_job(cluster, JobKind::Verify, look, link).await?;
    let good = is_good(&verification) && config_refused && unreachable != Some(false);
    let report = Report { fenced_after, unreachable, config_refused, returned_after, verification };
    if good {
        look.ok();
    }
    look.answer(&report, || lines(&report));
    if good {
        return Ok(());
    }
    if report.unreachable == Some(false) || !report.config_refused {
        return Err(Failure::new(
            exit::NO,
            "the cluster was usable while its root key was disabled",
            "see the lines above, and the agents' logs on the nodes",
        ));
    }
    Err(fell_short(cluster))
}

fn lines(report: &Report) -> Vec<String> {
    let yes = |good: bool| if good { "yes" } else { "NO" };
    let mut lines = vec![
        format!("Fenced:           {:.1} s after the root key was disabled", report.fenced_after),
        format!(
            "API server gone:  {}",
            report.unreachable.map_or("not looked at, unreachable from here", yes)
        ),
        format!("Config refused:   {}", yes(report.config_refused)),
        format!("Serving again:    {:.1} s after the root key was enabled", report.returned_after),
    ];
    lines.extend(summary(&report.verification));
    lines
}

/// The root key to disable, if the cluster is in a state in which that proves something.
fn ready_for_it(cluster: &str, status: &KmsStatus) -> Result<RootKey, Failure> {
    let state = &status.state;
    if !status.view.features.key_protect_enabled {
        return Err(Failure::new(
            exit::NO,
            format!("cluster {cluster} is not encrypted under a root key"),
            "enable it first: claviger ks kms enable",
        ));
    }
    if let Some(op) = &state.cluster.operation {
        return Err(Failure::new(
            exit::NO,
            format!("{} operation {} is in progress", op.kind, op.id),
            format!("wait for it: claviger ks kms follow -c {cluster}"),
        ));
    }
    if !follow::is_current(status) || status.view.state != "normal" {
        return Err(Failure::new(
            exit::NO,
            format!("cluster {cluster} is {}: {}", status.view.state, status.view.master_status),
            "mend that first: claviger ks kms status",
        ));
    }
    let write = state.cluster.ring.write().ok_or_else(|| {
        Failure::new(exit::FAULT, "an enabled cluster without a write key", "report this")
    })?;
    Ok(write.root.root)
}

async fn wait_fenced(cluster: &str, until: Instant, link: &Link) -> Done {
    loop {
        // The key server stays up while the cluster is fenced; a failed look is tried again.
        if let Ok(status) = link.clusters.kms_status(cluster).await {
            let state = &status.state;
            let fenced = |seen: &claviger_domain::cluster::Seen| {
                matches!(seen.observation.access, Access::Fenced { .. })
            };
            if !state.cluster.servers.is_empty()
                && state.cluster.servers.keys().all(|a| state.seen.get(a).is_some_and(fenced))
            {
                return Ok(());
            }
        }
        if Instant::now() > until {
            return Err(Failure::new(
                exit::NO,
                "not every control-plane node was fenced in time",
                "the root key is being enabled again; see claviger ks kms status for the node",
            ));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

async fn refuses_config(cluster: &str, link: &Link) -> Result<bool, Failure> {
    match link.clusters.kubeconfig(cluster).await {
        Ok(_) => Ok(false),
        Err(error) => {
            let failure = Failure::from(error);
            if failure.code == exit::NO { Ok(true) } else { Err(failure) }
        }
    }
}

async fn wait_open(
    cluster: &str,
    root: RootKey,
    until: Instant,
    address: Option<&str>,
    link: &Link,
) -> Done {
    loop {
        if let Ok(key) = link.keys.metadata(root.instance, root.key).await
            && key.state != KeyState::Active as u8
        {
            return Err(Failure::new(
                exit::NO,
                format!("root key {} was suspended again, by somebody else", root.key),
                "it is left as it is; to end it: claviger key enable",
            ));
        }
        if let Ok(status) = link.clusters.kms_status(cluster).await {
            let state = &status.state;
            let serves = |seen: &claviger_domain::cluster::Seen| {
                matches!(seen.observation.access, Access::Open) && seen.observation.ready
            };
            let all = state.cluster.servers.keys().all(|a| state.seen.get(a).is_some_and(serves));
            let reached = match address {
                Some(address) => connects(address).await,
                None => true,
            };
            if all && reached && status.view.state == "normal" {
                return Ok(());
            }
        }
        if Instant::now() > until {
            return Err(Failure::new(
                exit::NO,
                "the cluster did not come back in time, though its root key is enabled",
                "see claviger ks kms status, and the agents' logs on the nodes",
            ));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// `host:port` of a URL.
fn address(url: &str) -> Option<String> {
    let rest = url.strip_prefix("https://")?;
    let authority = rest.split(['/', '?']).next().filter(|a| !a.is_empty())?;
    let port = authority.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
    Some(if port { authority.to_owned() } else { format!("{authority}:443") })
}

/// Whether something listens there and answers within two seconds.
async fn connects(address: &str) -> bool {
    let connect = TcpStream::connect(address);
    matches!(tokio::time::timeout(Duration::from_secs(2), connect).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_bounds() {
        assert_eq!(seconds("60"), Ok(60));
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("2m"), Ok(120));
        for bad in ["", "s", "9", "61m", "-1", "1h", "99999999999999999999m"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_come_from_urls() {
        assert_eq!(address("https://10.0.0.1:6443/x").as_deref(), Some("10.0.0.1:6443"));
        assert_eq!(address("https://api.example").as_deref(), Some("api.example:443"));
        assert_eq!(address("https://[::1]:6443").as_deref(), Some("[::1]:6443"));
        assert_eq!(address("http://api"), None);
        assert_eq!(address(""), None);
    }
}
