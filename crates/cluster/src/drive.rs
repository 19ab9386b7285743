//! The pace of the one task that acts on the node. It waits for no answer of any server: what is
//! to be told goes to another task, and what must be asked is broken off once a fence is due.

use crate::driver::Driver;
use crate::file::FileError;
use crate::hand_over::Ring;
use crate::node::Node;
use crate::observe::Probe;
use claviger_wire::agent::Acknowledgement;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Longest pause between two looks.
const PACE: Duration = Duration::from_secs(1);

/// What the key service is to be told, and what it has been told.
pub struct Acks {
    /// Acknowledgements that are due now.
    pub due: watch::Sender<Vec<Acknowledgement>>,
    /// Those that the key service took.
    pub told: mpsc::Receiver<Acknowledgement>,
}

/// What is asked of this task, in this order: to pause, to give the ring away, to take it back.
pub struct Handing {
    /// Answered at once: nothing is done to the node from then on.
    pub paused: oneshot::Sender<()>,
    /// When to give the ring away.
    pub go: oneshot::Receiver<()>,
    /// The ring; none if nothing is open.
    pub ring: oneshot::Sender<Result<Option<Ring>, FileError>>,
    /// The ring again, if this process goes on after all.
    pub back: oneshot::Receiver<Ring>,
}

/// Looks and acts, each second and whenever there is news. Never returns.
pub async fn drive(
    mut driver: Driver,
    node: Arc<Node>,
    probe: watch::Receiver<Probe>,
    mut acks: Acks,
    mut asked: mpsc::Receiver<Handing>,
) {
    loop {
        while let Ok(ack) = acks.told.try_recv() {
            driver.acknowledged(&ack);
        }
        let seen = probe.borrow().clone();
        let observation = driver.look(&seen).await;
        node.observed(observation);
        let due = driver.due_acknowledgements();
        acks.due.send_if_modified(|old| {
            let changed = *old != due;
            *old = due;
            changed
        });
        tokio::select! {
            () = tokio::time::sleep(PACE) => {}
            () = node.look_asked() => {}
            Some(handing) = asked.recv() => hand(&mut driver, &node, handing).await,
        }
    }
}

/// Pauses the driver while its process is given away. It goes on if that fails.
async fn hand(driver: &mut Driver, node: &Node, handing: Handing) {
    let Handing { paused, go, ring, back } = handing;
    let _ = paused.send(());
    let given_up = tokio::select! {
        gone = go => gone.is_err(),
        // Calls under way may take long; to give the ring away fences first.
        () = node.fence_due() => false,
    };
    if given_up || ring.send(driver.hand_over().await).is_err() {
        return;
    }
    if let Ok(ring) = back.await
        && let Err(why) = driver.adopt(&ring)
    {
        tracing::warn!(why, "the ring is opened anew");
    }
}
