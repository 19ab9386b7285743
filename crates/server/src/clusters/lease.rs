//! Who runs the loop of a cluster: one agent at a time, known by a token that only rises.

use super::limits::LEASE_MS;
use claviger_domain::id::{AgentName, UnixMs};
use claviger_store::clusters::LeaseRow;

/// Why a lease is not given.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    /// Who has it.
    pub by: AgentName,
    /// For how much longer, in milliseconds.
    pub left_ms: u64,
}

/// The lease that `agent` gets at `now`, showing the token `shown` that it holds.
///
/// Whoever shows the newest token goes on with it, late or not: nobody else had it meanwhile.
/// The same agent without that token is a new process of it, and gets a new token, so that the
/// old process, should it still run, can commit nothing more.
pub fn grant(
    last: Option<&LeaseRow>,
    agent: &AgentName,
    shown: Option<u64>,
    now: UnixMs,
) -> Result<LeaseRow, Held> {
    let until = UnixMs(now.0.saturating_add(LEASE_MS));
    let Some(last) = last else {
        return Ok(LeaseRow { agent: agent.clone(), fencing: 1, until });
    };
    // A lease that lasts longer than one can was given before the clock was set back: its holder may
    // be dead, and if it lives, it is out by its token.
    let lasts = (now.0 + 1..=until.0).contains(&last.until.0);
    if last.agent != *agent && lasts {
        return Err(Held { by: last.agent.clone(), left_ms: last.until.since(now) });
    }
    let goes_on = last.agent == *agent && shown == Some(last.fencing);
    let fencing = if goes_on { last.fencing } else { last.fencing + 1 };
    Ok(LeaseRow { agent: agent.clone(), fencing, until })
}

/// Whether `agent` may commit with the token `shown` at `now`.
pub fn current(last: Option<&LeaseRow>, agent: &AgentName, shown: u64, now: UnixMs) -> bool {
    last.is_some_and(|l| l.agent == *agent && l.fencing == shown && l.until > now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> AgentName {
        text.parse().unwrap()
    }

    #[test]
    fn one_agent_at_a_time_and_tokens_rise_with_each_holder() {
        let (a, b) = (name("a"), name("b"));
        let first = grant(None, &a, None, UnixMs(0)).unwrap();
        assert_eq!(first.fencing, 1);
        assert!(current(Some(&first), &a, 1, UnixMs(LEASE_MS - 1)));
        assert!(!current(Some(&first), &a, 1, UnixMs(LEASE_MS)), "its time is over");
        assert!(!current(Some(&first), &b, 1, UnixMs(1)), "another agent's token");

        let held = grant(Some(&first), &b, None, UnixMs(5_000)).unwrap_err();
        assert_eq!(held, Held { by: a.clone(), left_ms: 10_000 });
        let more = grant(Some(&first), &a, Some(1), UnixMs(5_000)).unwrap();
        assert_eq!((more.fencing, more.until), (1, UnixMs(5_000 + LEASE_MS)));
        let late = grant(Some(&first), &a, Some(1), UnixMs(90_000)).unwrap();
        assert_eq!(late.fencing, 1, "nobody had it meanwhile");

        let reborn = grant(Some(&first), &a, None, UnixMs(5_000)).unwrap();
        assert_eq!(reborn.fencing, 2, "a new process of the same agent");
        assert!(!current(Some(&reborn), &a, 1, UnixMs(5_001)), "the old process is out");

        let set_back = UnixMs(reborn.until.0 - LEASE_MS - 1);
        assert_eq!(grant(Some(&reborn), &b, None, set_back).map(|l| l.fencing), Ok(3));

        let second = grant(Some(&reborn), &b, None, reborn.until).unwrap();
        assert_eq!(second.fencing, 3);
        let back = grant(Some(&second), &a, Some(2), second.until).unwrap();
        assert_eq!(back.fencing, 4, "an old token does not come back");
    }
}
