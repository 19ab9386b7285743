//! When a connection is over: how long it may be without a request, how long a request of a
//! stranger may take, and what of a request is kept until it is answered.

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// How long a connection may last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Without a request under way, from its first moment on.
    pub(crate) idle: Duration,
    /// With one request under way, until its answer was taken; none for callers that are known.
    pub(crate) request: Option<Duration>,
}

/// The requests of one connection that are under way.
#[derive(Debug)]
pub(crate) struct Pulse(Mutex<Beats>);

#[derive(Debug)]
struct Beats {
    last: u64,
    /// When each began; as many as the connection may have streams.
    began: BTreeMap<u64, Instant>,
    /// When the last one ended, or the connection began.
    idle_since: Instant,
}

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// Nothing was ever asked.
    Silent,
    /// Nothing more was asked for too long.
    Idle,
    /// A request was under way for too long.
    Stalled,
}

impl Pulse {
    pub(crate) fn new() -> Arc<Pulse> {
        let beats = Beats { last: 0, began: BTreeMap::new(), idle_since: Instant::now() };
        Arc::new(Pulse(Mutex::new(beats)))
    }

    fn beats(&self) -> MutexGuard<'_, Beats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once the connection is over.
    pub(crate) async fn over(&self, patience: Patience) -> Over {
        loop {
            let (due, why) = {
                let beats = self.beats();
                // Numbers rise, so the first is the oldest.
                match (beats.began.values().next(), patience.request) {
                    (None, _) => {
                        let why = if beats.last == 0 { Over::Silent } else { Over::Idle };
                        (beats.idle_since + patience.idle, why)
                    }
                    (Some(began), Some(limit)) => (*began + limit, Over::Stalled),
                    // Looked at again: the request may be over by then.
                    (Some(_), None) => (Instant::now() + patience.idle, Over::Idle),
                }
            };
            if due <= Instant::now() {
                return why;
            }
            // A request that begins meanwhile may be due earlier than what is waited for.
            let again = patience.request.unwrap_or(patience.idle);
            tokio::time::sleep_until(due.min(Instant::now() + again)).await;
        }
    }

    /// A request has begun; it is under way until what this gives is dropped.
    fn begin(self: &Arc<Self>) -> Beat {
        let mut beats = self.beats();
        beats.last += 1;
        let number = beats.last;
        beats.began.insert(number, Instant::now());
        drop(beats);
        Beat { pulse: self.clone(), number }
    }

    /// Lends a request's body to whoever answers it. See [`Asked`].
    pub(crate) fn lend<B>(self: &Arc<Self>, body: B) -> (Body, Asked)
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<axum::BoxError> + 'static,
    {
        let beat = self.begin();
        let body: Shared = Arc::new(Mutex::new(Body::new(body)));
        (Body::new(Lent(body.clone())), Asked { _body: body, _beat: beat })
    }
}

struct Beat {
    pulse: Arc<Pulse>,
    number: u64,
}

impl Drop for Beat {
    fn drop(&mut self) {
        let mut beats = self.pulse.beats();
        beats.began.remove(&self.number);
        beats.idle_since = Instant::now();
    }
}

type Shared = Arc<Mutex<Body>>;

/// A request until its answer is complete. Its body stays: an HTTP/2 stream whose body is dropped
/// before the answer is reset, and a client that sent too much would never learn so.
pub(crate) struct Asked {
    _body: Shared,
    _beat: Beat,
}

impl Asked {
    /// The answer's body, which ends the request when it is dropped.
    pub(crate) fn answered(self, body: Body) -> Body {
        Body::new(Answer { body, _asked: self })
    }
}

struct Lent(Shared);

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}

struct Answer {
    body: Body,
    _asked: Asked,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::from_secs(86_400);
    const BRIEF: Duration = Duration::from_millis(20);
    const SOON: Duration = Duration::from_secs(50);

    async fn ends(pulse: &Pulse, idle: Duration, request: Option<Duration>) -> Over {
        let over = pulse.over(Patience { idle, request });
        tokio::time::timeout(SOON, over).await.expect("the connection ends")
    }

    #[tokio::test]
    async fn a_connection_ends_when_nothing_is_asked_or_a_stranger_stalls() {
        let pulse = Pulse::new();
        assert_eq!(ends(&pulse, BRIEF, None).await, Over::Silent);

        let (_, asked) = pulse.lend(Body::empty());
        assert_eq!(ends(&pulse, NEVER, Some(BRIEF)).await, Over::Stalled);
        let stream = asked.answered(Body::empty());
        let over = pulse.over(Patience { idle: BRIEF, request: None });
        assert!(tokio::time::timeout(BRIEF * 10, over).await.is_err(), "a node's stream may last");
        drop(stream);
        assert_eq!(ends(&pulse, BRIEF, Some(NEVER)).await, Over::Idle, "the answer was taken");
    }
}
