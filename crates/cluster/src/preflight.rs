//! What could make an operation fail half-way, looked for on each node before anything is changed:
//! clocks apart, an etcd that is not whole, a disk that is nearly full, webhooks that could refuse
//! the rewrite. Each finding says what to do.

use crate::contact::wall;
use crate::node::Node;
use crate::run::with_causes;
use crate::scrub::free;
use claviger_domain::id::UnixMs;
use serde_json::Value;

/// Clocks that differ by more are no clocks: certificates seem expired, or not valid yet.
const SKEW_MAX_MS: u64 = 300_000;
/// Clocks that NTP keeps differ by milliseconds.
const SKEW_WARN_MS: u64 = 30_000;
/// Warnings of one preflight; an observation has a bound.
const WARNINGS_MAX: usize = 20;
/// Longest text of one.
const TEXT_MAX: usize = 500;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// The first reason to refuse.
    pub failure: Option<String>,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

impl Findings {
    fn fail(&mut self, text: String) {
        self.failure.get_or_insert(text.chars().take(TEXT_MAX).collect());
    }

    fn warn(&mut self, text: String) {
        if self.warnings.len() < WARNINGS_MAX {
            self.warnings.push(text.chars().take(TEXT_MAX).collect());
        }
    }
}

/// Looks at this node.
pub(crate) async fn look(node: &Node) -> Findings {
    let mut found = Findings::default();
    if let Some(latest) = node.latest() {
        // The server dates each state, authenticated. It was under way for seconds at most.
        let age = i64::try_from(latest.at.elapsed().as_millis()).unwrap_or(i64::MAX);
        skew(UnixMs(latest.state.now.0.saturating_add(age)), wall(), &mut found);
    }
    match node.local.etcd().statuses().await {
        Ok(statuses) => {
            for (member, status) in statuses {
                let said = status.map(|s| (s.leader, s.errors)).map_err(|e| with_causes(&e));
                health(&member.name, said, &mut found);
            }
        }
        Err(error) => found.fail(format!(
            "etcd does not name its members ({}); see that it runs and that a majority of them answers",
            with_causes(&error)
        )),
    }
    if let Some(data_dir) = &node.config.etcd.data_dir {
        let size = std::fs::metadata(data_dir.join("member/snap/db")).map(|meta| meta.len());
        match (size, free(data_dir)) {
            (Ok(size), Ok(free)) => room(&data_dir.display().to_string(), size, free, &mut found),
            (Err(error), _) | (_, Err(error)) => found.warn(format!(
                "cannot see how much room etcd has in {}: {error}; see etcd.data_dir in the agent's settings",
                data_dir.display()
            )),
        }
    }
    for kind in ["mutating", "validating"] {
        let path = format!("/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations");
        match node.local.kube().list(&path).await {
            Ok(list) => webhooks(kind, &list, &mut found),
            Err(error) => found.warn(format!(
                "cannot see whether {kind} webhooks look at Secrets: {}; let the agent's user list them",
                with_causes(&error)
            )),
        }
    }
    found
}

fn skew(server: UnixMs, here: UnixMs, found: &mut Findings) {
    let (ahead, behind) = (here.since(server), server.since(here));
    let (by, side) = if ahead > 0 { (ahead, "ahead of") } else { (behind, "behind") };
    let text = format!(
        "the clock of this node is {} s {side} the key server's; set both by NTP",
        by / 1000
    );
    if by > SKEW_MAX_MS {
        found.fail(text);
    } else if by > SKEW_WARN_MS {
        found.warn(text);
    }
}

/// `said` is the leader that the member knows, 0 for none, and its alarms.
fn health(name: &str, said: Result<(u64, Vec<String>), String>, found: &mut Findings) {
    match said {
        Err(error) => found.fail(format!(
            "etcd member {name:?} does not answer ({error}); bring it back, or remove it with `etcdctl member remove`"
        )),
        Ok((_, alarms)) if alarms.iter().any(|a| a.contains("NOSPACE")) => found.fail(format!(
            "etcd member {name:?} has used its quota up and takes no writes; compact and defragment it, then `etcdctl alarm disarm`"
        )),
        Ok((_, alarms)) if !alarms.is_empty() => found.fail(format!(
            "etcd member {name:?} is not well: {}; mend that, then `etcdctl alarm disarm`",
            alarms.join(", ").trim()
        )),
        Ok((0, _)) => found.fail(format!(
            "etcd member {name:?} has no leader; see that a majority of the members answers"
        )),
        Ok(_) => {}
    }
}

fn room(place: &str, size: u64, free: u64, found: &mut Findings) {
    let wanted = size.saturating_mul(2);
    if free < wanted {
        found.warn(format!(
            "{} MiB are free in {place} and etcd's database has {} MiB: a rewrite and a defragmentation may need {} MiB; make room",
            free >> 20,
            size >> 20,
            wanted.div_ceil(1 << 20)
        ));
    }
}

/// Names every webhook that is asked about updates of Secrets, as the rewrite makes them. Selectors
/// are not looked at: they may let some namespaces out, rarely all.
fn webhooks(kind: &str, list: &[Value], found: &mut Findings) {
    for configuration in list {
        let owner = configuration.pointer("/metadata/name").and_then(Value::as_str);
        let hooks = configuration.get("webhooks").and_then(Value::as_array);
        for hook in hooks.into_iter().flatten().filter(|hook| asked(hook)) {
            let name = hook.get("name").and_then(Value::as_str).unwrap_or_default();
            // `Fail` where nothing is said, as in Kubernetes.
            let ignored = hook.get("failurePolicy").and_then(Value::as_str) == Some("Ignore");
            let silence = if ignored { "" } else { ", also while it does not answer" };
            found.warn(format!(
                "the {kind} webhook {name} ({}) is asked about each Secret that is rewritten and can refuse it{silence}; see that it lets updates without changes pass",
                owner.unwrap_or_default()
            ));
        }
    }
}

/// Whether a webhook is asked about an update of a Secret.
fn asked(hook: &Value) -> bool {
    let rules = hook.get("rules").and_then(Value::as_array);
    rules.into_iter().flatten().any(|rule| {
        let has = |field: &str, words: &[&str]| {
            let values = rule.get(field).and_then(Value::as_array);
            values.into_iter().flatten().filter_map(Value::as_str).any(|v| words.contains(&v))
        };
        has("operations", &["*", "UPDATE"])
            && has("apiGroups", &["*", ""])
            && has("resources", &["*", "*/*", "secrets"])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What a check says: `!` before what is refused.
    fn said(check: impl FnOnce(&mut Findings)) -> String {
        let mut found = Findings::default();
        check(&mut found);
        let refused = found.failure.into_iter().map(|text| format!("!{text}"));
        refused.chain(found.warnings).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn clocks_apart_are_told_and_far_apart_refused() {
        for (server, here, says) in [
            (0, 30_000, ""),
            (30_000, 0, ""),
            (0, 31_000, "the clock of this node is 31 s ahead of"),
            (31_000, 0, "the clock of this node is 31 s behind"),
            (0, 300_000, "the clock"),
            (0, 301_000, "!the clock of this node is 301 s ahead of"),
            (301_000, 0, "!the clock of this node is 301 s behind"),
        ] {
            let said = said(|f| skew(UnixMs(server), UnixMs(here), f));
            assert!(said.starts_with(says) && said.is_empty() == says.is_empty(), "{said}");
        }
    }

    #[test]
    fn every_member_of_etcd_must_be_well() {
        let alarm = |text: &str| Ok((7, vec![text.to_owned()]));
        for (status, says) in [
            (Ok((7, Vec::new())), ""),
            (Err("refused".to_owned()), "!etcd member \"m1\" does not answer (refused)"),
            (alarm("memberID:7 alarm:NOSPACE "), "!etcd member \"m1\" has used its quota up"),
            (
                alarm("memberID:7 alarm:CORRUPT "),
                "!etcd member \"m1\" is not well: memberID:7 alarm:CORRUPT;",
            ),
            (Ok((0, Vec::new())), "!etcd member \"m1\" has no leader"),
        ] {
            let said = said(|f| health("m1", status, f));
            assert!(said.starts_with(says) && said.is_empty() == says.is_empty(), "{said}");
        }
    }

    #[test]
    fn a_disk_with_less_than_twice_the_database_free_is_told() {
        assert_eq!(said(|f| room("/d", 10 << 20, 20 << 20, f)), "");
        let said = said(|f| room("/d", 10 << 20, (20 << 20) - 1, f));
        assert!(
            said.starts_with("19 MiB are free in /d") && said.contains("20 MiB; make"),
            "{said}"
        );
    }

    #[test]
    fn webhooks_that_see_updates_of_secrets_are_named() {
        let rule = |operation: &str, group: &str, resource: &str| json!({ "operations": [operation], "apiGroups": [group], "resources": [resource] });
        for (rule, named) in [
            (rule("UPDATE", "", "secrets"), true),
            (rule("*", "*", "*"), true),
            (rule("UPDATE", "", "*/*"), true),
            (rule("CREATE", "", "secrets"), false),
            (rule("UPDATE", "apps", "secrets"), false),
            (rule("UPDATE", "", "pods"), false),
            (rule("UPDATE", "", "secrets/status"), false),
        ] {
            let hook = json!({ "name": "h.example.org", "rules": [rule] });
            let list = [json!({ "metadata": { "name": "c" }, "webhooks": [hook] })];
            let said = said(|f| webhooks("validating", &list, f));
            assert_eq!(said.contains("h.example.org (c)"), named, "{rule}: {said}");
            assert_eq!(said.contains("does not answer"), named, "Fail is the default");
        }
        let ignored = json!({
            "name": "h", "failurePolicy": "Ignore", "rules": [rule("UPDATE", "", "secrets")],
        });
        let many: Vec<_> = (0..50).map(|_| json!({ "webhooks": [ignored] })).collect();
        let mut found = Findings::default();
        webhooks("mutating", &many, &mut found);
        assert_eq!(found.warnings.len(), WARNINGS_MAX);
        assert!(!found.warnings[0].contains("does not answer") && found.failure.is_none());
    }
}
