//! When an API server that is not ready is worth a word, and which.

use crate::observe::Probe;
use claviger_domain::cluster::{Access, Observation};
use claviger_supervise::Observed;
use std::time::Duration;

/// How long an API server may be without an answer before it is said to be down: longer than a
/// restart takes, with the time in which its seed is sealed and its caches fill.
const DOWN_AFTER: Duration = Duration::from_secs(30);

/// Why an API server that has not been ready for `lasts` does not serve, once that is worth a word.
pub(crate) fn down(
    lasts: Duration,
    said: &Observation,
    seen: Option<&Observed>,
    probe: &Probe,
) -> Option<String> {
    // A fence says so itself.
    if lasts < DOWN_AFTER || matches!(said.access, Access::Fenced { .. } | Access::Closing { .. }) {
        return None;
    }
    let Some(seen) = seen else { return Some("its unit cannot be read".to_owned()) };
    Some(match (&seen.held, seen.process) {
        (Some(reason), None) => format!("it is held ({reason})"),
        (None, None) => match &said.access {
            Access::Waiting { reason } => {
                format!("it is not started before its plugin answers: {reason}")
            }
            _ => "it has no process; its log says why".to_owned(),
        },
        (_, Some(process)) => {
            let why = probe.unready.as_deref().filter(|_| probe.process == Some(process));
            why.unwrap_or("it has not answered yet").to_owned()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_domain::cluster::Process;
    use claviger_domain::id::UnixMs;
    use claviger_domain::key::RootKey;

    #[test]
    fn an_api_server_is_down_when_it_has_not_answered_for_longer_than_a_restart_takes() {
        let root = RootKey {
            instance: claviger_domain::id::InstanceId::random(),
            key: claviger_domain::id::KeyId::random(),
        };
        let process = Some(Process { pid: 1, start: 1 });
        let fenced = Access::Fenced { root, event: 1, since: UnixMs(0) };
        let waits = Access::Waiting { reason: "no ring".to_owned() };
        let held = Some("claviger scrub".to_owned());
        // How long, access, process, hold; what is said.
        let rows = [
            (29, Access::Open, None, None, None),
            (30, Access::Open, None, None, Some("it has no process; its log says why")),
            (30, Access::Open, process, None, Some("/readyz says [-]etcd failed")),
            (30, Access::Open, None, held.clone(), Some("it is held (claviger scrub)")),
            (30, waits, None, None, Some("it is not started before its plugin answers: no ring")),
            (30, fenced, None, held, None),
        ];
        for (lasts, access, process, held, expected) in rows {
            let said = Observation { access, process, ..said() };
            let seen = Observed { process, held, extra_args: Vec::new() };
            let unready = Some("/readyz says [-]etcd failed".to_owned());
            let probe = Probe { process, unready, ..Probe::default() };
            let why = down(Duration::from_secs(lasts), &said, Some(&seen), &probe);
            assert_eq!(why.as_deref(), expected, "{lasts} s, {seen:?}");
        }
    }

    fn said() -> Observation {
        Observation::nothing("a".parse().unwrap())
    }
}
