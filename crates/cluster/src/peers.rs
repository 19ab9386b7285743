//! Which API servers share this one's etcd and live, agent or not: from 1.26 on each renews a lease
//! of its own every 10 seconds.
//!
//! A lease is live while it changes, by this process's own clock: what a lease says of its time is
//! by the clock of whoever wrote it. Its own duration is no measure: it is an hour, for which a
//! machine that was taken away would stand in the way. An API server that cannot renew its lease
//! cannot write a Secret either.

use crate::control::kube::Kube;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Where the leases are, and which.
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases?labelSelector=apiserver.kubernetes.io%2Fidentity%3Dkube-apiserver";
/// Pause between two looks: as often as they are renewed.
const PACE: Duration = Duration::from_secs(10);
/// How long a lease counts after its last change: six renewals.
const LIVE: Duration = Duration::from_secs(60);
/// Leases that are looked at; the largest clusters have some ten API servers.
const LEASES_MAX: usize = 64;

/// A lease as it was last seen.
#[derive(Debug)]
struct Lease {
    host: String,
    version: String,
    changed: Instant,
}

/// The leases by name.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    leases: BTreeMap<String, Lease>,
    looked: Option<Instant>,
    failed: bool,
}

impl Peers {
    /// Whether it is time to look.
    pub(crate) fn due(&self) -> bool {
        self.looked.is_none_or(|at| at.elapsed() >= PACE)
    }

    /// Looks.
    pub(crate) async fn look(&mut self, kube: &Kube) {
        self.looked = Some(Instant::now());
        match kube.list(LEASES).await {
            Ok(list) => {
                self.failed = false;
                self.saw(&list, Instant::now());
            }
            Err(error) if !self.failed => {
                self.failed = true;
                tracing::warn!(%error, "cannot list the identity leases of API servers: one without an agent would not be noticed");
            }
            Err(_) => {}
        }
    }

    fn saw(&mut self, list: &[Value], now: Instant) {
        let mut leases = BTreeMap::new();
        for lease in list.iter().take(LEASES_MAX) {
            let text = |path| lease.pointer(path).and_then(Value::as_str);
            let (Some(name), Some(version)) =
                (text("/metadata/name"), text("/metadata/resourceVersion"))
            else {
                continue;
            };
            let host = text("/metadata/labels/kubernetes.io~1hostname").unwrap_or(name).to_owned();
            // One that is seen for the first time may live: it counts until it has not changed.
            let known = self.leases.get(name).filter(|known| known.version == version);
            let changed = known.map_or(now, |known| known.changed);
            leases.insert(name.to_owned(), Lease { host, version: version.to_owned(), changed });
        }
        self.leases = leases;
    }

    /// Hosts of those that live.
    pub(crate) fn live(&self, now: Instant) -> Vec<String> {
        let live = self.leases.values().filter(|l| now.duration_since(l.changed) < LIVE);
        let mut hosts: Vec<_> = live.map(|lease| lease.host.clone()).collect();
        hosts.sort();
        hosts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lease(name: &str, version: u32) -> Value {
        json!({
            "metadata": {
                "name": format!("apiserver-{name}"),
                "resourceVersion": version.to_string(),
                "labels": { "kubernetes.io/hostname": name },
            },
            "spec": { "leaseDurationSeconds": 3600 },
        })
    }

    #[test]
    fn a_lease_lives_while_it_changes() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut peers = Peers::default();
        peers.saw(&[lease("b", 1), lease("a", 1)], at(0));
        assert_eq!(peers.live(at(0)), ["a", "b"], "both may live");
        for s in 1..=6 {
            peers.saw(&[lease("b", 1), lease("a", 1 + u32::try_from(s).unwrap())], at(10 * s));
        }
        assert_eq!(peers.live(at(59)), ["a", "b"]);
        assert_eq!(peers.live(at(61)), ["a"], "b's did not change for a minute");
        peers.saw(&[lease("b", 2), lease("a", 7)], at(70));
        assert_eq!(peers.live(at(70)), ["a", "b"], "it is back");
        peers.saw(&[lease("b", 3)], at(80));
        assert_eq!(peers.live(at(80)), ["b"], "deleted");
        assert_eq!(peers.live(at(200)), Vec::<String>::new(), "not heard any more");
        assert_eq!(Peers::default().live(start), Vec::<String>::new());
        peers.saw(&[json!({}), json!({ "metadata": { "name": "x" } })], at(210));
        assert_eq!(peers.live(at(210)), Vec::<String>::new());
    }
}
