//! What is said of a cluster, as lines. Pure: answers and a clock in, text out.

use super::cluster::NodeRow;
use crate::render::{ago, ago_of_text, pairs, table, thousands, when};
use claviger_domain::cluster::files;
use claviger_domain::cluster::ring::Role;
use claviger_domain::cluster::{Access, Cluster, Finished, RootStatus, Seen, Stage};
use claviger_domain::id::{AgentName, UnixMs};
use claviger_domain::key::RootVersion;
use claviger_wire::ks::{ClusterView, Crk, KmsInstance, KmsStatus};

/// `ks cluster ls`.
pub fn clusters(list: &[ClusterView], now: UnixMs) -> Vec<String> {
    let head = [
        "Name",
        "ID",
        "State",
        "Created",
        "Workers",
        "Location",
        "Version",
        "Resource Group Name",
        "Provider",
    ];
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|c| {
            vec![
                c.name.clone(),
                c.id.clone(),
                c.state.clone(),
                ago_of_text(&c.created_date, now),
                c.worker_count.to_string(),
                c.location.clone(),
                version(c),
                c.resource_group_name.clone(),
                c.provider.clone(),
            ]
        })
        .collect();
    table(&head, &rows)
}

/// `ks cluster get`: these lines, in this order; what the service does not know is left out.
pub fn cluster(c: &ClusterView, now: UnixMs) -> Vec<String> {
    let mut lines = pairs(&[
        ("Name", c.name.clone()),
        ("ID", c.id.clone()),
        ("State", c.state.clone()),
        ("Status", c.status.clone()),
        ("Created", c.created_date.clone()),
        ("Location", c.location.clone()),
        ("Master URL", c.master_url.clone()),
        ("Public Service Endpoint URL", c.server_url.clone()),
        ("Master Location", c.region.clone()),
        ("Master Status", status(c, now)),
        ("Master State", c.lifecycle.master_state.clone()),
        ("Master Health", c.master_health.clone()),
        ("Workers", c.worker_count.to_string()),
        ("Version", version(c)),
        ("Creator", c.owner_email.clone()),
        ("Resource Group ID", c.resource_group.clone()),
        ("Resource Group Name", c.resource_group_name.clone()),
    ]);
    // Neither its name nor its place changes: scripts look for this line.
    if c.features.key_protect_enabled {
        lines.push("Key Management Service: enabled".to_owned());
    }
    if let Some(kms) = &c.kms
        && let Some(r) = &kms.rewrite
    {
        let percent = (r.done * 100).checked_div(r.total).unwrap_or(100);
        lines.push(format!(
            "Secret rewrite: {percent}% ({}/{})",
            thousands(r.done),
            thousands(r.total)
        ));
    }
    lines
}

/// `Ready (1 min ago)`.
fn status(c: &ClusterView, now: UnixMs) -> String {
    let text =
        if c.master_status.is_empty() { &c.lifecycle.master_status } else { &c.master_status };
    match ago_of_text(&c.lifecycle.master_status_modified_date, now) {
        age if age.is_empty() => text.clone(),
        age => format!("{text} ({age})"),
    }
}

fn version(c: &ClusterView) -> String {
    let newer = !c.target_version.is_empty() && c.target_version != c.master_kube_version;
    format!("{}{}", c.master_kube_version, if newer { "*" } else { "" })
}

/// `ks kms instance ls`.
pub fn instances(list: &[KmsInstance]) -> Vec<String> {
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|i| {
            vec![i.name.clone(), i.instance_id.to_string(), i.region.clone(), i.service.clone()]
        })
        .collect();
    table(&["Name", "ID", "Region", "Service"], &rows)
}

/// `ks kms crk ls`.
pub fn root_keys(list: &[Crk]) -> Vec<String> {
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|k| {
            vec![
                k.name.clone(),
                k.crk_id.to_string(),
                k.state.clone(),
                k.origin.clone(),
                k.expires.clone().unwrap_or_default(),
                k.clusters.join(" "),
            ]
        })
        .collect();
    table(&["Name", "ID", "State", "Origin", "Expires", "Clusters"], &rows)
}

/// `ks kms status`.
pub fn kms(status: &KmsStatus, now: UnixMs) -> Vec<String> {
    let cluster = &status.state.cluster;
    let mut lines = pairs(&[
        ("Cluster", format!("{} ({})", cluster.name, cluster.id)),
        ("State", format!("{}, {}", status.view.state, self::status(&status.view, now))),
        (
            "Key Management Service",
            if status.view.features.key_protect_enabled { "enabled" } else { "not enabled" }
                .to_owned(),
        ),
        ("Key service", endpoint(status)),
        ("Next", status.next.clone()),
    ]);
    lines.extend(operation(cluster, now));
    section(&mut lines, "Warnings", warnings(status).collect());
    section(&mut lines, "Root keys", roots(&status.state.roots, cluster));
    section(&mut lines, "API servers", servers(status, now));
    section(&mut lines, "Agents", agents(status, now));
    section(&mut lines, "Keys of the cluster", keks(cluster, now));
    section(&mut lines, "Proof", proof(status, now));
    section(&mut lines, "History", history(&cluster.history, now));
    section(&mut lines, "Features", features(status));
    lines
}

/// What the agents warn of before the operation that is in progress.
pub fn warnings(status: &KmsStatus) -> impl Iterator<Item = String> {
    let operation = status.state.cluster.operation.as_ref().map(|op| op.id);
    status.state.seen.iter().flat_map(move |(agent, seen)| {
        let preflight = seen.observation.preflight.as_ref();
        let current = preflight.filter(|p| Some(p.operation) == operation);
        current
            .into_iter()
            .flat_map(move |p| p.warnings.iter().map(move |w| format!("{agent}: {w}")))
    })
}

fn section(lines: &mut Vec<String>, title: &str, body: Vec<String>) {
    if !body.is_empty() {
        lines.push(String::new());
        lines.push(title.to_owned());
        lines.extend(body.into_iter().map(|line| format!("  {line}")));
    }
}

fn endpoint(status: &KmsStatus) -> String {
    let name = if status.state.cluster.public_endpoint { "public" } else { "private" };
    let url = &status.state.key_service;
    format!("{url} ({name} endpoint)")
}

fn operation(cluster: &Cluster, now: UnixMs) -> Vec<String> {
    let Some(op) = &cluster.operation else { return Vec::new() };
    let mut lines = vec![format!(
        "Operation: {} {} to root key {}, asked for {} by {}",
        op.kind,
        op.id,
        op.target.key,
        ago(op.requested, now),
        op.requested_by
    )];
    if let Some(r) = &op.rewrite {
        let percent = (r.done * 100).checked_div(r.total).unwrap_or(100);
        lines.push(format!(
            "Secret rewrite: {percent}% ({}/{}), {}/s",
            thousands(r.done),
            thousands(r.total),
            thousands(r.per_second)
        ));
    }
    if let Some(reason) = &op.stuck {
        lines.push(format!("Stopped: {reason}"));
    }
    lines
}

fn roots(roots: &[RootStatus], cluster: &Cluster) -> Vec<String> {
    if roots.is_empty() {
        return Vec::new();
    }
    let write = cluster.ring.write().map(|kek| kek.root);
    let rows: Vec<Vec<String>> = roots
        .iter()
        .map(|r| {
            let current = r.current.map_or_else(|| "-".to_owned(), |v| v.to_string());
            let used = match write {
                Some(RootVersion { root, version }) if root == r.root => {
                    if Some(version) == r.current { "writes" } else { "writes, older version" }
                }
                _ => "",
            };
            let ends = match (r.restorable_until, r.expires) {
                (Some(at), _) => format!("restorable until {}", when(at)),
                (None, Some(at)) => format!("expires {}", when(at)),
                (None, None) => String::new(),
            };
            vec![
                r.name.clone(),
                r.root.key.to_string(),
                r.state.to_string(),
                current,
                used.to_owned(),
                ends,
            ]
        })
        .collect();
    table(&["Name", "ID", "State", "Current version", "Use", ""], &rows)
}

fn servers(status: &KmsStatus, now: UnixMs) -> Vec<String> {
    let cluster = &status.state.cluster;
    let rows: Vec<Vec<String>> = cluster
        .servers
        .iter()
        .map(|(agent, target)| {
            let mut row = vec![agent.to_string(), target.stage.to_string()];
            match status.state.seen.get(agent) {
                None => row.extend(["-", "-", "-", "not confirmed, never seen"].map(str::to_owned)),
                Some(seen) => {
                    let agent = status.agents.iter().find(|a| a.agent == *agent);
                    let unfenced = agent.and_then(|a| a.unfenced_since);
                    row.extend(server(cluster, seen, unfenced, now));
                }
            }
            row
        })
        .collect();
    if rows.is_empty() {
        return vec![
            "none joined yet; `claviger ks cluster register` printed a token for one".to_owned(),
        ];
    }
    table(&["Name", "Configuration", "Takes effect", "Writes under", "Ready", "Access"], &rows)
}

/// `ks cluster node ls`.
pub fn nodes(nodes: &[NodeRow], now: UnixMs) -> Vec<String> {
    let stage = |stage: Option<Stage>| stage.map_or_else(|| "-".to_owned(), |s| s.to_string());
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|n| {
            let said = match (&n.access, n.fresh) {
                (None, _) => "never spoke".to_owned(),
                (Some(said), true) => access_text(said, now),
                (Some(said), false) => format!("not confirmed, was {}", access_text(said, now)),
            };
            let last = ago(n.last_seen, now);
            vec![n.name.to_string(), last, stage(n.stage), stage(n.loaded), said]
        })
        .collect();
    if rows.is_empty() {
        return vec!["none joined yet".to_owned()];
    }
    table(&["Name", "Last seen", "Configuration", "Takes effect", "Access"], &rows)
}

fn access_text(access: &Access, now: UnixMs) -> String {
    match access {
        Access::Open => "open".to_owned(),
        Access::Coasting { since } => {
            format!("coasting, key service last heard {}", ago(*since, now))
        }
        Access::Fenced { root, since, .. } => {
            format!("fenced {} (root key {})", ago(*since, now), root.key)
        }
        Access::Closing { since, reason, .. } => {
            format!("not confirmed, due {}: {reason}", ago(*since, now))
        }
        Access::Waiting { reason } => format!("waiting: {reason}"),
    }
}

/// `unfenced` is since when a root key closes the cluster without the agent's word that its API
/// server is fenced.
fn server(cluster: &Cluster, seen: &Seen, unfenced: Option<UnixMs>, now: UnixMs) -> [String; 4] {
    let o = &seen.observation;
    let fresh = now.since(seen.at) < claviger_domain::cluster::FRESH_MS;
    let access = match (unfenced, &o.access) {
        _ if !fresh => format!("not confirmed, last seen {}", ago(seen.at, now)),
        // That says it, with the reason.
        (None, _) | (Some(_), Access::Closing { .. }) => access_text(&o.access, now),
        (Some(since), said) => {
            format!("not confirmed, due {}, said {}", ago(since, now), access_text(said, now))
        }
    };
    let under = match &o.canary {
        None => "-".to_owned(),
        Some(canary) => match canary.serial {
            None => "plaintext".to_owned(),
            Some(serial) => match cluster.ring.get(serial) {
                Some(_) => format!("key {serial}"),
                None => format!("unknown key {serial}"),
            },
        },
    };
    let loaded = o.stage_loaded.map_or_else(|| "-".to_owned(), |stage| stage.to_string());
    [loaded, under, if o.ready { "yes" } else { "no" }.to_owned(), access]
}

fn agents(status: &KmsStatus, now: UnixMs) -> Vec<String> {
    if status.agents.is_empty() {
        return Vec::new();
    }
    let rows: Vec<Vec<String>> = status
        .agents
        .iter()
        .map(|a| {
            let acted = match (a.acknowledged, a.fenced) {
                (None, _) => "-".to_owned(),
                (Some(true), true) => "confirmed, fenced".to_owned(),
                (Some(true), false) => "confirmed".to_owned(),
                (Some(false), _) => {
                    format!("not confirmed, last seen {}", ago(a.last_contact, now))
                }
            };
            vec![a.agent.to_string(), ago(a.last_contact, now), when(a.not_after), acted]
        })
        .collect();
    let mut lines = table(&["Name", "Last contact", "Certificate until", "Last key event"], &rows);
    lines.extend(status.state.seen.iter().filter_map(|(agent, seen)| {
        let why = seen.observation.ahead.as_ref()?;
        Some(format!(
            "{agent} does not follow this server: {why}. See docs/runbooks/server-lost.md"
        ))
    }));
    lines
}

fn features(status: &KmsStatus) -> Vec<String> {
    if status.features.is_empty() {
        return Vec::new();
    }
    let rows: Vec<Vec<String>> = status
        .features
        .iter()
        .map(|f| {
            let available = match (f.known, f.available) {
                (false, _) => "unknown",
                (true, true) => "yes",
                (true, false) => "no",
            };
            vec![f.name.clone(), available.to_owned(), f.because.clone()]
        })
        .collect();
    table(&["Feature", "Available", ""], &rows)
}

fn keks(cluster: &Cluster, now: UnixMs) -> Vec<String> {
    if cluster.ring.keks.is_empty() {
        return Vec::new();
    }
    let rows: Vec<Vec<String>> = cluster
        .ring
        .keks
        .iter()
        .map(|kek| {
            let role = match kek.role {
                Role::Staged => "staged",
                Role::Write => "write",
                Role::Read => "read",
                Role::Retained => "retained",
                Role::Lost => "lost",
            };
            vec![
                kek.serial.to_string(),
                role.to_owned(),
                kek.root.root.key.to_string(),
                kek.root.version.to_string(),
                ago(kek.created, now),
            ]
        })
        .collect();
    table(&["Key", "Role", "Root key", "Root key version", "Made"], &rows)
}

fn proof(status: &KmsStatus, now: UnixMs) -> Vec<String> {
    let cluster = &status.state.cluster;
    let mut lines = Vec::new();
    if let Some(v) = &cluster.verified {
        lines.push(format!(
            "{} records, all under the write key; {} opened by a freshly started plugin; etcd revision {}, {}",
            thousands(v.records),
            thousands(v.sampled),
            v.revision,
            ago(v.at, now)
        ));
    }
    if let Some(tally) = &cluster.disproof {
        lines.push(format!(
            "void since: etcd revision {}, {}: {tally}",
            tally.revision,
            ago(tally.at, now)
        ));
    }
    let left = files::left(cluster, &status.state.seen);
    if let Some(r) = &left.sum {
        let members =
            if left.members > 1 { format!(" of {} members", left.members) } else { String::new() };
        lines.push(format!(
            "plaintext in etcd's files{members}: live {}, db {}, wal {} ({})",
            thousands(r.live),
            thousands(r.db),
            thousands(r.wal),
            ago(r.at, now)
        ));
        if r.live + r.db + r.wal > 0 {
            lines.push(format!("clear it: claviger ks kms scrub -c {}", cluster.name));
        }
    }
    if cluster.verified.is_some() {
        lines.extend(not_counted(&left));
    }
    lines
}

/// Whose files are not in the sum.
pub fn not_counted(left: &files::Left) -> Option<String> {
    let names =
        |list: &[AgentName]| list.iter().map(AgentName::as_str).collect::<Vec<_>>().join(", ");
    if !left.not_counted.is_empty() {
        return Some(format!("not counted yet by: {}", names(&left.not_counted)));
    }
    // Beside an agent that counts, one without files has none: etcd runs on fewer machines.
    (left.members == 0 && !left.without.is_empty()).then(|| {
        format!(
            "nobody counts plaintext in etcd's files: no etcd.data_dir in the settings of {}",
            names(&left.without)
        )
    })
}

fn history(history: &[Finished], now: UnixMs) -> Vec<String> {
    history
        .iter()
        .take(5)
        .map(|f| {
            let outcome = match &f.rejected {
                None => "done".to_owned(),
                Some(reason) => format!("not done: {reason}"),
            };
            let seconds = f.ended.since(f.requested) / 1000;
            format!(
                "{} {} by {}: {outcome} after {seconds} s",
                ago(f.ended, now),
                f.kind,
                f.requested_by
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_domain::cluster::Observation;
    use claviger_wire::ks::{Features, Lifecycle};

    #[test]
    fn nodes_say_when_their_word_no_longer_counts() {
        let row = |name: &str, fresh, access| NodeRow {
            name: name.parse().unwrap(),
            last_seen: UnixMs(0),
            fresh,
            stage: Some(Stage::Only),
            loaded: None,
            access,
        };
        let rows = [
            row("a", true, Some(Access::Open)),
            row("b", false, Some(Access::Open)),
            row("c", false, None),
        ];
        let lines: Vec<String> = nodes(&rows, UnixMs(120_000))
            .iter()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "Name Last seen Configuration Takes effect Access",
                "a 2 min ago [kms] - open",
                "b 2 min ago [kms] - not confirmed, was open",
                "c 2 min ago [kms] - never spoke",
            ]
        );
    }

    #[test]
    fn an_api_server_that_nobody_said_was_fenced_is_not_confirmed() {
        let root = claviger_domain::key::RootKey {
            instance: claviger_domain::id::InstanceId::random(),
            key: claviger_domain::id::KeyId::random(),
        };
        let at = |seconds: i64| UnixMs(seconds * 1000);
        let fenced = Access::Fenced { root, event: 1, since: at(90) };
        let reason = "a process still answers".to_owned();
        let closing = Access::Closing { root, event: 1, since: at(90), reason };
        let full = format!("fenced 10 s ago (root key {})", root.key);
        // When it spoke, since when its word is missing, what it says; what is shown.
        let rows = [
            (95, None, Access::Open, "open"),
            (95, Some(at(80)), Access::Open, "not confirmed, due 20 s ago, said open"),
            (95, None, fenced.clone(), &full),
            (95, Some(at(80)), fenced, &format!("not confirmed, due 20 s ago, said {full}")),
            (95, Some(at(80)), closing, "not confirmed, due 10 s ago: a process still answers"),
            (5, Some(at(80)), Access::Open, "not confirmed, last seen 1 min ago"),
        ];
        let cluster = Cluster {
            revision: 1,
            ..Cluster::new(claviger_domain::id::ClusterId::random(), "c".into(), at(0))
        };
        for (spoke, unfenced, access, expected) in rows {
            let said = Observation { access, ..Observation::nothing("a".parse().unwrap()) };
            let seen = Seen { observation: said, at: at(spoke) };
            let [.., shown] = server(&cluster, &seen, unfenced, at(100));
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn cluster_get_shows_the_documented_lines_in_order() {
        let view = ClusterView {
            id: "abcdefghij0123456789".into(),
            name: "shop".into(),
            state: "normal".into(),
            created_date: "2026-01-01T00:00:00Z".into(),
            master_url: "https://10.0.0.1:6443".into(),
            master_health: "normal".into(),
            master_status: "Ready".into(),
            master_kube_version: "1.37.2_1500".into(),
            target_version: "1.37.3_1501".into(),
            lifecycle: Lifecycle {
                master_state: "deployed".into(),
                master_status_modified_date: "2026-01-01T00:00:00Z".into(),
                ..Lifecycle::default()
            },
            features: Features { key_protect_enabled: true, pull_secret_applied: false },
            ..ClusterView::default()
        };
        let now =
            UnixMs("2026-01-01T00:01:05Z".parse::<jiff::Timestamp>().unwrap().as_millisecond());
        let lines: Vec<String> = cluster(&view, now)
            .iter()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "Name: shop",
                "ID: abcdefghij0123456789",
                "State: normal",
                "Created: 2026-01-01T00:00:00Z",
                "Master URL: https://10.0.0.1:6443",
                "Master Status: Ready (1 min ago)",
                "Master State: deployed",
                "Master Health: normal",
                "Workers: 0",
                "Version: 1.37.2_1500*",
                "Key Management Service: enabled",
            ]
        );
    }
}
