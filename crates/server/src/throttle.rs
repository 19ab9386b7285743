//! How often one caller may call: whoever asks more often is told to come back, so that no caller
//! takes the server from the others. Each person, service ID and agent has a bucket of his own, and
//! agents' are apart from all others', so nothing that clients do keeps a key event from a cluster.
//!
//! Calls that need no credential (health, metrics, the description) are not counted. What was
//! refused is counted per caller and second, and one record stands for it, so that a flood fills no
//! disk.

use crate::app::{App, Settings};
use crate::rate::{Buckets, Empty, Rate};
use claviger_audit::{Counted, Flood, Source};
use claviger_domain::audit::{Credential as Proof, Data, Record};
use claviger_domain::id::UnixMs;
use std::sync::{Mutex, PoisonError};

/// Callers of each kind that are remembered, some 1 MiB; an account has hundreds.
const CALLERS_MAX: usize = 10_000;
/// Longest wait that is told, in seconds: some clients wait as long as they are told.
const RETRY_AFTER_MAX_S: u32 = 5;

/// Which of the two kinds of callers one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A person or a service ID, by his IAM id.
    Principal,
    /// An agent of a cluster, as its records name it.
    Agent,
}

impl Kind {
    /// As metrics and audit records name it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::Principal => "principal",
            Kind::Agent => "agent",
        }
    }

    fn proof(self) -> Proof {
        match self {
            Kind::Principal => Proof::Token,
            Kind::Agent => Proof::Certificate,
        }
    }
}

/// A caller has called too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooOften {
    /// Seconds until it may come back: 1 to 5.
    pub(crate) retry_after: u8,
}

/// Who called how often.
pub(crate) struct Throttle {
    principals: Calls,
    agents: Calls,
}

/// The callers of one kind; none are counted where there is no limit.
struct Calls {
    kind: Kind,
    /// Calls in each second.
    many: u32,
    state: Option<Mutex<State>>,
}

struct State {
    buckets: Buckets<String>,
    counted: Flood<String>,
}

impl Throttle {
    pub(crate) fn new(settings: &Settings) -> Throttle {
        Throttle {
            principals: Calls::new(Kind::Principal, settings.calls_per_second),
            agents: Calls::new(Kind::Agent, settings.agent_calls_per_second),
        }
    }

    /// Counts a call of `who`, whose credential was found good.
    pub(crate) fn admit(&self, app: &App, kind: Kind, who: &str) -> Result<(), TooOften> {
        let calls = match kind {
            Kind::Principal => &self.principals,
            Kind::Agent => &self.agents,
        };
        calls.admit(app, who)
    }

    /// Records what was refused in seconds that are over at `now`.
    pub(crate) fn settle(&self, app: &App, now: UnixMs) {
        for calls in [&self.principals, &self.agents] {
            if let Some(over) = calls.with(|state| state.counted.take(now)) {
                put(app, calls.kind, over);
            }
        }
    }
}

impl Calls {
    fn new(kind: Kind, many: u32) -> Calls {
        let state = Rate::per_second(many).map(|rate| {
            let (buckets, counted) = (Buckets::new(rate, CALLERS_MAX), Flood::new());
            Mutex::new(State { buckets, counted })
        });
        Calls { kind, many, state }
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> Option<T> {
        let state = self.state.as_ref()?;
        Some(work(&mut state.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn admit(&self, app: &App, who: &str) -> Result<(), TooOften> {
        let now = app.clock.now();
        let refused = self.with(|state| {
            let Empty { refused } = state.buckets.take(who, now).err()?;
            Some((refused, state.counted.count(now, who.to_owned())))
        });
        let Some(Some((before, over))) = refused else { return Ok(()) };
        put(app, self.kind, over);
        app.metrics.limited(self.kind.as_str());
        Err(TooOften { retry_after: retry_after(before, self.many) })
    }
}

/// When the next one may come back, if `before` were sent away within this second already: no more
/// of them in each of the next seconds than there will be room for.
fn retry_after(before: u32, many: u32) -> u8 {
    let seconds = 1 + before / many.max(1);
    u8::try_from(seconds.min(RETRY_AFTER_MAX_S)).expect("at most five")
}

/// Puts counts on record, without waiting: where that fails, the log's health says so.
fn put(app: &App, kind: Kind, over: Vec<Counted<String>>) {
    for Counted { second, source, count } in over {
        let (who, target) = match source {
            Source::One(who) => (who, kind.as_str().to_owned()),
            Source::Others => ("-".to_owned(), format!("other {}s", kind.as_str())),
        };
        let record = Record {
            credential: Some(kind.proof()),
            status: 429,
            reason: "COUNTED".into(),
            data: Data { count: Some(count), ..Data::default() },
            ..Record::done(second, who, "claviger.calls.limit", target)
        };
        if let Err(error) = app.recorder.note(&record) {
            tracing::error!(%error, count, "refusals are not on record");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_sent_away_comes_back_when_there_is_room() {
        for (before, many, want) in
            [(0, 500, 1), (499, 500, 1), (500, 500, 2), (2_400, 500, 5), (1 << 31, 1, 5), (3, 1, 4)]
        {
            assert_eq!(retry_after(before, many), want, "{before} of {many}");
        }
    }
}
