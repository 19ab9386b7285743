//! Tells agents to look again: server-sent events (WHATWG HTML, section 9.2).

use super::fault::Fault;
use super::joining::admitted;
use super::limits::{NUDGE_APART, STREAM_COMMENT, STREAMS_MAX, STREAMS_OF_AGENT_MAX};
use super::state::nudge_of;
use crate::app::App;
use crate::http::auth::Node;
use crate::room::For;
use axum::Extension;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use claviger_domain::id::{AgentName, ClusterId};
use claviger_store::events::KeyEvent;
use claviger_wire::agent::Nudge;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, oneshot, watch};
use tokio::time::Instant;

/// An agent and its certificate: one that counts no longer ends no stream of its successor.
type Who = (ClusterId, AgentName, String);

/// The streams that are open. An agent's newest ones count: what a lost connection left behind
/// ends when the agent comes back, however long TCP would keep it.
#[derive(Default)]
pub struct Streams(Mutex<Open>);

#[derive(Default)]
struct Open {
    last: u64,
    of: HashMap<Who, VecDeque<(u64, oneshot::Sender<Infallible>)>>,
}

struct Slot {
    streams: Arc<Streams>,
    who: Who,
    number: u64,
}

impl Streams {
    fn open(self: &Arc<Self>, who: Who) -> Result<(Slot, oneshot::Receiver<Infallible>), Fault> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = open.of.get(&who).map_or(0, VecDeque::len);
        let all: usize = open.of.values().map(VecDeque::len).sum();
        if mine == 0 && all >= STREAMS_MAX {
            return Err(Fault::TooMany("as many streams are open as may be; poll /agent/v1/state"));
        }
        open.last += 1;
        let number = open.last;
        let (end, ended) = oneshot::channel();
        let mine = open.of.entry(who.clone()).or_default();
        while mine.len() >= STREAMS_OF_AGENT_MAX {
            // Dropping the sender ends that stream.
            mine.pop_front();
        }
        mine.push_back((number, end));
        Ok((Slot { streams: self.clone(), who, number }, ended))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.streams.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = open.of.get_mut(&self.who) {
            mine.retain(|(number, _)| *number != self.number);
            if mine.is_empty() {
                open.of.remove(&self.who);
            }
        }
    }
}

/// `GET /agent/v1/stream`: a nudge at once, then one whenever the cluster, an agent's word about
/// it, a job, or a root key of it changes.
pub async fn stream(
    State(app): State<Arc<App>>,
    Extension(streams): Extension<Arc<Streams>>,
    node: Node,
) -> Result<Response, Fault> {
    let (slot, ended) =
        streams.open((node.cluster.clone(), node.agent.clone(), node.fingerprint.clone()))?;
    // Listen before the first look, so that nothing falls between the two.
    let mut live = Live {
        clusters: app.hub.cluster_events(),
        keys: app.hub.key_events(),
        closing: app.hub.closing(),
        ended,
        last: None,
        app,
        node,
        _slot: slot,
    };
    let first = live.look().await?;
    live.last = Some((first.clone(), Instant::now()));
    let rest = futures_util::stream::unfold(live, |mut live| async move {
        let nudge = live.next().await?;
        Some((nudge, live))
    });
    let first = futures_util::stream::once(std::future::ready(first));
    let events = futures_util::StreamExt::map(
        futures_util::StreamExt::chain(first, rest),
        |nudge| -> Result<Event, Infallible> {
            let text = serde_json::to_string(&nudge).expect("two numbers are valid JSON");
            Ok(Event::default().data(text))
        },
    );
    let comments = KeepAlive::new().interval(STREAM_COMMENT).text("");
    Ok(Sse::new(events).keep_alive(comments).into_response())
}

struct Live {
    clusters: broadcast::Receiver<ClusterId>,
    keys: broadcast::Receiver<KeyEvent>,
    closing: watch::Receiver<bool>,
    ended: oneshot::Receiver<Infallible>,
    last: Option<(Nudge, Instant)>,
    app: Arc<App>,
    node: Node,
    _slot: Slot,
}

impl Live {
    async fn look(&self) -> Result<Nudge, Fault> {
        let node = self.node.clone();
        let look = move |app: &App| {
            app.store.read("nudge", |tx| {
                admitted(tx, &node, app.clock.now())?;
                nudge_of(tx, &node.cluster)
            })
        };
        self.app.asked(For::Node, look).await
    }

    /// The next thing to say. None ends the stream: the server stops, a newer stream took its
    /// place, or the certificate counts no longer.
    async fn next(&mut self) -> Option<Nudge> {
        loop {
            // A change of the cluster is always told: an agent's word changes no revision.
            let certain = tokio::select! {
                _ = &mut self.ended => return None,
                _ = self.closing.wait_for(|closing| *closing) => return None,
                heard = self.clusters.recv() => match heard {
                    Ok(cluster) if cluster != self.node.cluster => continue,
                    Ok(_) | Err(RecvError::Lagged(_)) => true,
                    Err(RecvError::Closed) => return None,
                },
                heard = self.keys.recv() => match heard {
                    Ok(_) | Err(RecvError::Lagged(_)) => false,
                    Err(RecvError::Closed) => return None,
                },
            };
            if let Some((_, at)) = &self.last {
                tokio::time::sleep_until(*at + NUDGE_APART).await;
            }
            // One look answers all that was said until now.
            let more = drain(&mut self.clusters, |cluster| *cluster == self.node.cluster);
            drain(&mut self.keys, |_| false);
            let nudge = self.look().await.ok()?;
            let said = self.last.as_ref().is_some_and(|(last, _)| *last == nudge);
            if certain || more || !said {
                self.last = Some((nudge.clone(), Instant::now()));
                return Some(nudge);
            }
        }
    }
}

/// Takes all that waits; whether any of it matters.
fn drain<T: Clone>(from: &mut broadcast::Receiver<T>, matters: impl Fn(&T) -> bool) -> bool {
    let mut any = false;
    loop {
        match from.try_recv() {
            Ok(said) => any |= matters(&said),
            Err(TryRecvError::Lagged(_)) => any = true,
            Err(TryRecvError::Empty | TryRecvError::Closed) => return any,
        }
    }
}
