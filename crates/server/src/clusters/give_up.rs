//! Gives an operation up: free before its KEK seals anything, by going back afterwards.

use super::commits;
use super::fault::Fault;
use super::operations::expires_soon;
use super::state::Whole;
use claviger_domain::cluster::commit::Commit;
use claviger_domain::cluster::plan::must_fence;
use claviger_domain::cluster::{Cluster, Operation, OperationKind};
use claviger_domain::id::{OperationId, UnixMs};
use claviger_domain::key::{KeyState, RootKey};
use claviger_store::{StoreError, Tx};
use claviger_wire::ks::{GaveUp, GivenUp};

/// Gives up what is in progress, in the caller's transaction. `without` is the operator's word
/// that records under a root key that is not active may stay unread.
pub fn give_up(
    tx: &Tx<'_>,
    whole: Whole,
    without: bool,
    by: &str,
    now: UnixMs,
) -> Result<GivenUp, Fault> {
    let op = whole.row.cluster.operation.clone().ok_or(Fault::NothingToCancel)?;
    if op.kind == OperationKind::Reverse {
        return goes_on_without(tx, whole, &op, without, by, now);
    }
    if op.promoted.is_none() {
        return cancel(tx, whole, &op, by, now);
    }
    let cluster = &whole.row.cluster;
    let Some(target) = cluster.ring.former() else {
        return Err(Fault::Forward(format!(
            "the {} seals already, and no other root key wrote before it: it goes forward; once it has ended, another root key can be enabled",
            op.kind
        )));
    };
    let is = state_of(&whole, target);
    if is != KeyState::Active {
        // There is no way back to a key that has ended, but the way forward can be freed of it.
        if shut_by(&whole, &op).is_some() {
            return goes_on_without(tx, whole, &op, without, by, now);
        }
        return Err(Fault::NotActive { root: target, is });
    }
    let shut = must_fence(cluster, &whole.roots).map(|r| r.root);
    let mut notes = Vec::new();
    if let Some(root) = shut {
        notes.push(agreed(&whole, root, without)?);
    }
    let back_to = whole.roots.iter().find(|r| r.root == target);
    let warnings = expires_soon(back_to.and_then(|r| r.expires), now).into_iter().collect();
    let id = OperationId::random();
    let commit = Commit::Reversed { id, target, without: shut, by: by.to_owned() };
    commits::store(tx, whole.row, &commit, now)?;
    notes.insert(
        0,
        format!(
            "Secrets are under the new key already, so the cluster goes back to root key {} by a rewrite of all of them, under a fresh key of its own.",
            target.key
        ),
    );
    Ok(GivenUp { outcome: GaveUp::Reversed, operation: Some(id), notes, warnings })
}

/// Ends an operation whose KEK, if there is one, has sealed nothing.
fn cancel(
    tx: &Tx<'_>,
    whole: Whole,
    op: &Operation,
    by: &str,
    now: UnixMs,
) -> Result<GivenUp, Fault> {
    if op.kind == OperationKind::Rotate {
        return Err(Fault::Forward(format!(
            "the rotation follows root key {}, which has a newer version, and would begin again at once; to leave this root key enable another one, that takes the rotation's place",
            op.target.key
        )));
    }
    let whole = cancelled(tx, whole, by, now)?;
    let note = if whole.row.cluster.ring.names(op.target) {
        format!(
            "API servers name the provider in their configuration already, though nothing is written through it: the cluster keeps a key under root key {} for them until it is enabled again; keep that root key active until then.",
            op.target.key
        )
    } else {
        "Nothing was changed: no Secret is under the new key, which is gone for good.".to_owned()
    };
    let operation = Some(op.id);
    Ok(GivenUp { outcome: GaveUp::Cancelled, operation, notes: vec![note], warnings: Vec::new() })
}

/// Commits the end. An agent that is about to register comes too late: the root key is out of its
/// reach then.
pub fn cancelled(tx: &Tx<'_>, whole: Whole, by: &str, now: UnixMs) -> Result<Whole, Fault> {
    let commit = Commit::Cancelled { by: by.to_owned() };
    commits::store(tx, whole.row, &commit, now)
}

/// The root key whose suspension closes the cluster, where the operation leads away from it and
/// nobody has decided yet to go on without it.
fn shut_by(whole: &Whole, op: &Operation) -> Option<RootKey> {
    let shut = must_fence(&whole.row.cluster, &whole.roots).map(|r| r.root);
    shut.filter(|root| *root != op.target && op.without != Some(*root))
}

/// It goes on as it does; what can be decided still is to do so without the key that it leaves.
fn goes_on_without(
    tx: &Tx<'_>,
    whole: Whole,
    op: &Operation,
    without: bool,
    by: &str,
    now: UnixMs,
) -> Result<GivenUp, Fault> {
    let Some(root) = shut_by(&whole, op) else {
        return Err(Fault::Forward(format!(
            "the cluster goes back to root key {} already, and that goes forward",
            op.target.key
        )));
    };
    let note = agreed(&whole, root, without)?;
    let (id, target) = (op.id, op.target);
    let commit = Commit::Reversed { id, target, without: Some(root), by: by.to_owned() };
    commits::store(tx, whole.row, &commit, now)?;
    let (operation, warnings) = (Some(id), Vec::new());
    Ok(GivenUp { outcome: GaveUp::WithoutRootKey, operation, notes: vec![note], warnings })
}

/// What it means to go on without `root`, if the operator agreed to that.
fn agreed(whole: &Whole, root: RootKey, without: bool) -> Result<String, Fault> {
    let is = state_of(whole, root);
    if !without {
        return Err(Fault::NeedsWord { root, is });
    }
    Ok(format!(
        "Root key {} is {is}: Secrets under it cannot be read and stay as they are, byte for byte; they are counted as unknown, and the operation does not end before the root key is active again or they are gone.",
        root.key
    ))
}

fn state_of(whole: &Whole, root: RootKey) -> KeyState {
    let status = whole.roots.iter().find(|r| r.root == root);
    status.map_or(KeyState::Destroyed, |r| r.state)
}

/// Whether every API server of the cluster said that it is fenced since the newest event of
/// `root`, so that none can hold what it read under it: no fence is lifted while the key is not
/// active, and with its next event these words are void.
pub fn all_fenced(tx: &Tx<'_>, cluster: &Cluster, root: RootKey) -> Result<bool, StoreError> {
    let newest = claviger_store::events::last_of(tx, &root)?;
    let acks = claviger_store::clusters::acks_of_key(tx, &root)?;
    Ok(newest > 0
        && cluster.servers.keys().all(|agent| {
            acks.iter().any(|a| {
                a.cluster == cluster.id && a.agent == *agent && a.event == newest && a.fenced
            })
        }))
}
