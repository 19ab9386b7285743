//! Keeps the agent's picture of the server fresh, and the server's of the node.
//!
//! The stream says when to look; while it is down, polling does. Every authenticated answer
//! counts as contact; every silence is counted too, since coasting has a bound.

use crate::node::Node;
use crate::ring::jitter;
use claviger_client::Error;
use claviger_wire::agent::Acknowledgement;
use futures_util::StreamExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Pause between two looks while the stream is up: it covers a nudge that was lost.
const STREAMING: Duration = Duration::from_secs(15);
/// Pause between two looks while the stream is down.
const POLLING: Duration = Duration::from_secs(2);
/// Longest silence towards the server.
const SAY_AT_LEAST: Duration = Duration::from_secs(10);
/// Shortest pause between two observations.
const SAY_AT_MOST: Duration = Duration::from_millis(200);

/// Reads the server's state whenever there is news. Never returns.
pub async fn listen(node: Arc<Node>) {
    let mut stream = None;
    let mut away = false;
    loop {
        let clients = node.clients();
        match clients.api.state().await {
            Ok(state) => {
                node.note_refused(false);
                if std::mem::take(&mut away) {
                    tracing::info!("the server answers again");
                }
                if let Err(error) = node.took(state) {
                    tracing::error!(%error, "cannot keep what the server said");
                }
            }
            Err(error) => {
                node.note_refused(matches!(error, Error::Unauthorized { .. }));
                if !std::mem::replace(&mut away, true) {
                    tracing::warn!(%error, "the server does not answer; this node coasts");
                }
                if let Err(error) = node.no_contact() {
                    tracing::error!(%error, "cannot count the time without the server");
                }
                stream = None;
            }
        }
        if stream.is_none() && !away {
            stream = clients.api.stream().await.ok();
        }
        let pause = tokio::time::sleep(jitter(if stream.is_some() { STREAMING } else { POLLING }));
        match &mut stream {
            None => pause.await,
            Some(nudges) => tokio::select! {
                () = pause => {}
                nudge = nudges.next() => {
                    if !matches!(nudge, Some(Ok(_))) {
                        stream = None;
                    }
                }
            },
        }
    }
}

/// Tells the server what the node looks like: at each change, and now and then. Never returns.
pub async fn speak(node: Arc<Node>) {
    let mut changes = node.watch_observation();
    loop {
        let observation = changes.borrow_and_update().clone();
        if let Err(error) = node.clients().api.observe(&observation).await {
            tracing::debug!(%error, "cannot tell the server what this node looks like");
            tokio::time::sleep(POLLING).await;
        }
        tokio::time::sleep(SAY_AT_MOST).await;
        tokio::select! {
            () = tokio::time::sleep(SAY_AT_LEAST) => {}
            _ = changes.changed() => {}
        }
    }
}

/// Tells the key service that this node has acted on key events: those of `due`, one after the
/// other; each that it took goes into `told`. Apart from the task that acts, which no server may
/// keep waiting. Returns when that task does.
pub async fn acknowledge(
    node: Arc<Node>,
    mut due: watch::Receiver<Vec<Acknowledgement>>,
    told: mpsc::Sender<Acknowledgement>,
) {
    loop {
        let acknowledgements = due.borrow_and_update().clone();
        let mut all = true;
        for ack in acknowledgements {
            match node.clients().api.acknowledge(&ack).await {
                Ok(()) => {
                    if told.send(ack).await.is_err() {
                        return;
                    }
                    node.look_now();
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot acknowledge a key event yet");
                    all = false;
                    break;
                }
            }
        }
        let changed = if all {
            due.changed().await
        } else {
            tokio::select! {
                () = tokio::time::sleep(POLLING) => Ok(()),
                changed = due.changed() => changed,
            }
        };
        if changed.is_err() {
            return;
        }
    }
}
