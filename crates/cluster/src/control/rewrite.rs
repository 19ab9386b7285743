//! Every stale record stored again under the write key, through the API server.
//!
//! What is stale is read from etcd's bytes, so a pass touches nothing else and one that was cut
//! off goes on where it ended. The call is a merge patch with an empty body: kube-apiserver
//! decodes the object, sees that its record is not under the key it now writes with, and stores
//! it anew, its content unchanged. It resolves conflicts with other writers by itself; an
//! object that is gone needs nothing. Success is never concluded from the answers: the next
//! count of etcd says what is left.

use super::kube::{Kube, KubeError};
use claviger_domain::cluster::Rewrite;
use claviger_etcd::resource::Resource;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use std::time::{Duration, Instant};

/// Calls under way at once. More than 16 gain nothing on a kube-apiserver of two cores, and
/// leave less for others.
pub const WORKERS: usize = 16;
/// Tries of one record before it waits for the next pass.
const TRIES: u32 = 6;
/// First pause between two tries; it doubles.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause, unless the API server asks for more: it may ask for a minute.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Most names that are kept of records that were refused.
pub const NAMES_MAX: usize = 20;

/// Namespace and name of the Secret that is stored under this key of etcd.
pub fn name_of(key: &[u8], resources: &[Resource]) -> Option<(String, String)> {
    let key = std::str::from_utf8(key).ok()?;
    let rest = resources.iter().find_map(|r| key.strip_prefix(r.prefix()))?;
    let (namespace, name) = rest.split_once('/')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains('/'))
        .then(|| (namespace.to_owned(), name.to_owned()))
}

/// Why a pass left records behind.
#[derive(Debug)]
pub enum Failed {
    /// The API server will not store these; a retry will not help.
    Refused(Vec<String>),
    /// It was too busy, went away, or cannot read one; a retry may help.
    Kube {
        /// The last one, of which it said so.
        name: String,
        /// What it said.
        error: KubeError,
    },
}

/// One pass over records. Dropping it stops it; calls under way may still take effect.
pub struct Pass {
    calls: BoxStream<'static, (String, Result<(), KubeError>)>,
    done: u64,
    refused: Vec<String>,
    busy: Option<(String, KubeError)>,
}

impl Pass {
    /// Begins a pass over `records` (namespace, name) with so many calls at once.
    pub fn begin(kube: Kube, records: Vec<(String, String)>, workers: usize) -> Self {
        Self::of(records, workers, move |namespace, name| {
            let kube = kube.clone();
            let call = move || {
                let (kube, namespace, name) = (kube.clone(), namespace.clone(), name.clone());
                async move { kube.touch_secret(&namespace, &name).await }
            };
            touch(call, tokio::time::sleep)
        })
    }

    fn of<F: Future<Output = Result<(), KubeError>> + Send + 'static>(
        records: Vec<(String, String)>,
        workers: usize,
        touch: impl Fn(String, String) -> F + Send + 'static,
    ) -> Self {
        let calls = stream::iter(records)
            .map(move |(namespace, name)| {
                let shown = format!("{namespace}/{name}");
                let call = touch(namespace, name);
                async move { (shown, call.await) }
            })
            .buffer_unordered(workers.max(1))
            .boxed();
        Self { calls, done: 0, refused: Vec::new(), busy: None }
    }

    /// Waits for one more call to end. False when all have.
    pub async fn more(&mut self) -> bool {
        let Some((name, result)) = self.calls.next().await else { return false };
        match result {
            Ok(()) => self.done += 1,
            Err(error) if error.transient() => self.busy = Some((name, error)),
            Err(error) => {
                tracing::warn!(%name, %error, "the API server refuses to store a Secret again");
                if self.refused.len() < NAMES_MAX {
                    self.refused.push(format!("{name} ({error})"));
                }
            }
        }
        true
    }

    /// Calls that succeeded.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// What was left behind, if anything.
    pub fn end(self) -> Result<(), Failed> {
        match self.busy {
            Some((name, error)) => Err(Failed::Kube { name, error }),
            None if self.refused.is_empty() => Ok(()),
            None => Err(Failed::Refused(self.refused)),
        }
    }
}

/// Makes a call until it is done, is refused for good, or was tried often enough; `wait` is slept
/// between two tries.
async fn touch<C: Future<Output = Result<(), KubeError>>, W: Future<Output = ()>>(
    mut call: impl FnMut() -> C,
    wait: impl Fn(Duration) -> W,
) -> Result<(), KubeError> {
    let mut pause = PAUSE;
    for attempt in 1.. {
        let error = match call().await {
            // Gone, or written by somebody else, and so under the new key.
            Ok(()) | Err(KubeError::NotFound | KubeError::Conflict { .. }) => return Ok(()),
            Err(error) => error,
        };
        if !error.transient() || attempt >= TRIES {
            return Err(error);
        }
        let asked = match &error {
            KubeError::Busy { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        // Workers that were refused together do not come back together.
        wait(asked + pause.mul_f64(0.5 + jitter() / 2.0)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Ok(())
}

/// From 0 to 1.
fn jitter() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 255.0
}

/// Progress for people.
#[derive(Debug)]
pub struct Told {
    before: u64,
    total: u64,
    last: (Instant, u64),
}

impl Told {
    /// `before` of `total` records needed nothing.
    pub fn new(before: u64, total: u64) -> Self {
        Self { before, total, last: (Instant::now(), 0) }
    }

    /// After `done` records of this pass.
    pub fn so_far(&mut self, done: u64) -> Rewrite {
        let (at, earlier) = self.last;
        let ms = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let per_second = (done - earlier) * 1000 / ms;
        self.last = (Instant::now(), done);
        Rewrite { done: (self.before + done).min(self.total), total: self.total, per_second }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn busy(seconds: Option<u64>) -> KubeError {
        let retry_after = seconds.map(Duration::from_secs);
        KubeError::Busy { status: 429, message: String::new(), retry_after }
    }

    fn refused() -> KubeError {
        KubeError::Refused { status: 403, message: "no".to_owned() }
    }

    /// One record, answered so one after the other: how it ended, and what was waited.
    async fn touched(
        answers: Vec<Result<(), KubeError>>,
    ) -> (Result<(), KubeError>, Vec<Duration>) {
        let waits = std::cell::RefCell::new(Vec::new());
        let mut answers = answers.into_iter();
        let done = touch(
            || std::future::ready(answers.next().expect("asked no more often")),
            |time| {
                waits.borrow_mut().push(time);
                std::future::ready(())
            },
        );
        let done = done.await;
        assert!(answers.next().is_none(), "asked as often as it was to be");
        (done, waits.into_inner())
    }

    #[tokio::test]
    async fn what_is_gone_or_changed_needs_nothing() {
        let conflict = KubeError::Conflict { message: String::new() };
        for answer in [Ok(()), Err(KubeError::NotFound), Err(conflict)] {
            let (done, waits) = touched(vec![answer]).await;
            assert!(done.is_ok() && waits.is_empty());
        }
    }

    #[tokio::test]
    async fn a_busy_api_server_is_waited_for_as_long_as_it_asks() {
        let (done, waits) = touched(vec![Err(busy(Some(7))), Err(busy(None)), Ok(())]).await;
        assert!(done.is_ok());
        assert!(waits[0] >= Duration::from_secs(7), "{waits:?}");
        assert!(waits[1] >= PAUSE && waits[1] < Duration::from_secs(1), "{waits:?}");
    }

    #[tokio::test]
    async fn tries_are_bounded_and_a_refusal_is_final() {
        let (done, waits) = touched((0..TRIES).map(|_| Err(busy(None))).collect()).await;
        assert!(matches!(done, Err(KubeError::Busy { .. })));
        assert_eq!(waits.len() as u32, TRIES - 1);
        let (done, waits) = touched(vec![Err(refused())]).await;
        assert!(matches!(done, Err(KubeError::Refused { .. })) && waits.is_empty());
    }

    #[tokio::test]
    async fn workers_are_bounded_and_what_is_left_behind_is_told() {
        let records = (0..50).map(|n| ("a".to_owned(), n.to_string())).collect();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let seen = most.clone();
        let mut pass = Pass::of(records, 4, move |_, name| {
            let (now, most) = (now.clone(), most.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
                if name == "7" { Err(refused()) } else { Ok(()) }
            }
        });
        while pass.more().await {}
        assert_eq!(seen.load(Ordering::SeqCst), 4);
        assert_eq!(pass.done(), 49);
        match pass.end() {
            Err(Failed::Refused(names)) => assert!(names[0].starts_with("a/7 "), "{names:?}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_come_from_keys() {
        let resources = [Resource::secrets()];
        let of = |key: &str| name_of(key.as_bytes(), &resources);
        assert_eq!(of("/registry/secrets/a/b"), Some(("a".to_owned(), "b".to_owned())));
        for bad in [
            "/registry/secrets/a",
            "/registry/secrets/a/",
            "/registry/secrets//b",
            "/registry/secrets/a/b/c",
            "/registry/configmaps/a/b",
            "",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn progress_never_exceeds_the_total() {
        let mut told = Told::new(7, 10);
        assert_eq!(told.so_far(2).done, 9);
        // Records that came meanwhile are no reason for 110 %.
        assert_eq!(told.so_far(9).done, 10);
    }
}
