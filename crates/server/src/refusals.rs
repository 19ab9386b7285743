//! Refusals of callers whom nobody knows: logins that fail, tokens that are none. Each failed login
//! is on record by itself until its source has made too many; the rest, and tokens that are none
//! always, are counted per source and second, and one record stands for them. So no flood fills
//! the disk, nor the queue in which the acts of others wait to be recorded.
//!
//! Nobody is locked out by it, neither a key nor an address: a good credential is taken however many
//! bad ones come from the same place. Keys have 256 bits, so there is nothing to be guessed, and a
//! pod with a wrong key must not keep its neighbours out.

use crate::app::App;
use claviger_audit::{Counted, Flood, Source, source_of};
use claviger_domain::audit::{Credential, Data, Record};
use claviger_domain::id::UnixMs;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Failed logins of one source at once that are each answered and recorded by themselves.
const BURST: i64 = 20;
/// One more is so each time this much has passed: 20 a minute.
const FORGIVEN_MS: i64 = 3_000;
/// Sources remembered at once, some 500 KiB; a source beyond them counts as one that made too many.
const SOURCES_MAX: usize = 10_000;
/// What is told to one that makes too many, in seconds.
pub(crate) const RETRY_AFTER_S: u64 = 5;
/// How often counts are looked at.
const PAUSE: Duration = Duration::from_secs(1);

/// What has been refused lately.
#[derive(Default)]
pub(crate) struct Refusals {
    logins: Mutex<Logins>,
    tokens: Mutex<Flood>,
}

#[derive(Default)]
struct Logins {
    /// When all failures of a source will be forgiven (the generic cell rate algorithm's theoretical
    /// arrival time), in milliseconds since the Unix epoch.
    forgiven: HashMap<IpAddr, i64>,
    counted: Flood,
}

impl Logins {
    /// Whether one more failure of `source` is one too many.
    fn too_many(&mut self, now: UnixMs, source: IpAddr) -> bool {
        if self.forgiven.len() >= SOURCES_MAX && !self.forgiven.contains_key(&source) {
            self.forgiven.retain(|_, at| *at > now.0);
            if self.forgiven.len() >= SOURCES_MAX {
                return true;
            }
        }
        let at = self.forgiven.entry(source).or_insert(now.0);
        let most = now.0.saturating_add(BURST * FORGIVEN_MS);
        // A clock that was set back forgives.
        let since = if *at > most { now.0 } else { now.0.max(*at) };
        let next = since.saturating_add(FORGIVEN_MS);
        let too_many = next > most;
        if !too_many {
            *at = next;
        }
        too_many
    }
}

impl Refusals {
    /// A login failed. True where its source makes too many: then it is counted, and not to be
    /// recorded by itself.
    pub(crate) fn login_failed(&self, app: &App, now: UnixMs, source: Option<IpAddr>) -> bool {
        let source = known(source);
        let over = {
            let mut logins = lock(&self.logins);
            if !logins.too_many(now, source_of(source)) {
                return false;
            }
            logins.counted.count(now, source)
        };
        put(app, LOGIN, over);
        true
    }

    /// A request came with a token that is none, or none any more.
    pub(crate) fn bad_token(&self, app: &App, now: UnixMs, source: Option<IpAddr>) {
        let over = lock(&self.tokens).count(now, known(source));
        put(app, TOKEN, over);
    }

    /// Records what was counted in seconds that are over at `now`.
    pub(crate) fn settle(&self, app: &App, now: UnixMs) {
        let over = lock(&self.logins).counted.take(now);
        put(app, LOGIN, over);
        let over = lock(&self.tokens).take(now);
        put(app, TOKEN, over);
    }
}

/// Records counts each second until the task is dropped.
pub(crate) async fn watch(app: Arc<App>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        app.refusals.settle(&app, app.clock.now());
    }
}

const LOGIN: (&str, u16, Credential) = ("iam-identity.user-apikey.login", 429, Credential::ApiKey);
const TOKEN: (&str, u16, Credential) = ("iam-identity.token.verify", 401, Credential::Token);

/// Puts counts on record, without waiting: where that fails, the log's health says so.
fn put(
    app: &App,
    (action, status, credential): (&'static str, u16, Credential),
    over: Vec<Counted>,
) {
    for Counted { second, source, count } in over {
        let (address, target) = match source {
            Source::One(address) => (Some(address), "source"),
            Source::Others => (None, "other sources"),
        };
        let record = Record {
            credential: Some(credential),
            address,
            status,
            reason: "COUNTED".into(),
            data: Data { count: Some(count), ..Data::default() },
            ..Record::done(second, "-", action, target)
        };
        if let Err(error) = app.recorder.note(&record) {
            tracing::error!(%error, count, "refusals are not on record");
        }
    }
}

/// A request that came by no socket is one of this machine.
fn known(source: Option<IpAddr>) -> IpAddr {
    source.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(n))
    }

    #[test]
    fn failures_are_forgiven_one_by_one_and_each_source_has_its_own() {
        let mut logins = Logins::default();
        let mut fails = |ms: i64, n: u32, times: usize| {
            (0..times).filter(|_| logins.too_many(UnixMs(ms), source(n))).count()
        };
        assert_eq!(fails(0, 1, 25), 5, "twenty at once");
        assert_eq!(fails(0, 2, 20), 0, "another source");
        assert_eq!(fails(FORGIVEN_MS, 1, 2), 1, "one is forgiven");
        assert_eq!(fails(3_600_000, 1, 21), 1, "all are, and no more than all");
        assert_eq!(fails(1_000, 1, 20), 0, "a clock that was set back");
    }

    #[test]
    fn memory_is_bounded() {
        let mut logins = Logins::default();
        let many = u32::try_from(SOURCES_MAX).unwrap();
        for n in 0..many {
            assert!(!logins.too_many(UnixMs(0), source(n)));
        }
        assert!(logins.too_many(UnixMs(0), source(many)));
        assert_eq!(logins.forgiven.len(), SOURCES_MAX);
        assert!(!logins.too_many(UnixMs(FORGIVEN_MS), source(many)), "old ones are forgotten");
        assert_eq!(logins.forgiven.len(), 1);
    }
}
