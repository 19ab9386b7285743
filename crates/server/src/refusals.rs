//! Refusals of callers whom nobody knows: logins that fail, tokens that are none. Each failed login
//! is on record by itself until its source has made too many; the rest, and tokens that are none
//! always, are counted per source and second, and one record stands for them. So no flood fills
//! the disk, nor the queue in which the acts of others wait to be recorded.
//!
//! Nobody is locked out by it, neither a key nor an address: a good credential is taken however many
//! bad ones come from the same place. Keys have 256 bits, so there is nothing to be guessed, and a
//! pod with a wrong key must not keep its neighbours out.

use crate::app::App;
use crate::rate::{Buckets, Rate};
use claviger_audit::{Counted, Flood, Source, source_of};
use claviger_domain::audit::{Credential, Data, Record};
use claviger_domain::id::UnixMs;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Failed logins of one source that are each answered and recorded by themselves: 20 at once, and
/// 20 a minute.
const FORGIVEN: Rate = Rate { burst: 20, apart_ns: 3_000_000_000 };
/// Sources remembered at once, some 500 KiB.
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

struct Logins {
    forgiven: Buckets<IpAddr>,
    counted: Flood,
}

impl Default for Logins {
    fn default() -> Self {
        Self { forgiven: Buckets::new(FORGIVEN, SOURCES_MAX), counted: Flood::new() }
    }
}

impl Refusals {
    /// A login failed. True where its source makes too many: then it is counted, and not to be
    /// recorded by itself.
    pub(crate) fn login_failed(&self, app: &App, now: UnixMs, source: Option<IpAddr>) -> bool {
        let source = known(source);
        let over = {
            let mut logins = lock(&self.logins);
            if logins.forgiven.take(&source, now).is_ok() {
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
        let now = app.clock.now();
        app.refusals.settle(&app, now);
        app.throttle.settle(&app, now);
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

/// What counts as one source. A request that came by no socket is one of this machine.
fn known(source: Option<IpAddr>) -> IpAddr {
    source_of(source.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
