//! The one way in which an agent changes its cluster's durable truth.

use super::fault::Fault;
use super::limits::{REASON_MAX, WRAPPED_MAX};
use super::state::{Whole, keep_status, row_of};
use super::{authorizations, give_up, jobs, lease, roots};
use claviger_domain::cluster::commit::{Commit, NOT_RESTORED, Refusal, apply};
use claviger_domain::cluster::{Cluster, OperationKind};
use claviger_domain::id::{AgentName, ClusterId, UnixMs};
use claviger_domain::key::{KeyState, RootKey};
use claviger_store::clusters::{self, ClusterRow};
use claviger_store::registrations::Registration;
use claviger_store::{Tx, keys, registrations};
use claviger_wire::agent::CommitRequest;

/// Applies an agent's commit: under the lease's token, upon the revision it was planned on.
pub fn commit(
    tx: &Tx<'_>,
    cluster: &ClusterId,
    agent: &AgentName,
    request: &CommitRequest,
    now: UnixMs,
) -> Result<Whole, Fault> {
    let held = clusters::lease(tx, cluster)?;
    if !lease::current(held.as_ref(), agent, request.fencing, now) {
        return Err(Fault::StaleFencing(request.fencing));
    }
    let row = row_of(tx, cluster)?;
    if row.cluster.revision != request.revision {
        let is = row.cluster.revision;
        return Err(Fault::StaleRevision { is, planned: request.revision });
    }
    let commit = checked(tx, &row, &request.commit, now)?;
    store(tx, row, &commit, now)
}

/// Applies any commit to `row` and stores what comes out. Root keys that leave the truth are out of
/// the cluster's reach from then on; one under which nothing was ever sealed can be deleted again.
pub fn store(
    tx: &Tx<'_>,
    mut row: ClusterRow,
    commit: &Commit,
    now: UnixMs,
) -> Result<Whole, Fault> {
    let before = roots::roots_of(&row.cluster);
    apply(&mut row.cluster, commit, now)?;
    if !clusters::update(tx, &row.cluster)? {
        return Err(Fault::Bug("a cluster changed under its own transaction".into()));
    }
    let after = roots::roots_of(&row.cluster);
    for root in before.iter().filter(|root| !after.contains(root)) {
        authorizations::end(tx, &row.cluster.id, root, now)?;
        // Nothing was ever sealed under it, so nothing of the cluster needs it any more.
        if !row.cluster.used.contains(root) {
            registrations::remove(tx, root, &row.crn)?;
        }
    }
    let whole = Whole::of(tx, row, now)?;
    keep_status(tx, &whole, now)?;
    Ok(whole)
}

/// What the rules of the domain cannot know: whose commit it is, and what the key tables say.
fn checked(tx: &Tx<'_>, row: &ClusterRow, commit: &Commit, now: UnixMs) -> Result<Commit, Fault> {
    let bad = |why: &str| Err(Fault::Bad(why.to_owned()));
    match commit {
        Commit::Joined { .. } => bad("joining is done by /agent/v1/join"),
        Commit::Left { .. } => bad("operators remove nodes, not agents"),
        Commit::Endpoint { .. } => bad("operators choose the endpoint, not agents"),
        Commit::PlaintextAccepted => bad("operators let plaintext be read, not agents"),
        Commit::Cancelled { .. } | Commit::Reversed { .. } => {
            bad("operators give an operation up, not agents")
        }
        Commit::WentWithout { root } => {
            let active = state_of(tx, root, now)? == KeyState::Active;
            if active || !give_up::all_fenced(tx, &row.cluster, *root)? {
                let why = "an API server may hold what it read under that root key";
                return Err(Fault::Refused(Refusal::OutOfOrder(why)));
            }
            Ok(commit.clone())
        }
        Commit::Readmitted { serial } => {
            let root = row.cluster.ring.get(*serial).map(|kek| kek.root.root);
            match root {
                Some(root) if state_of(tx, &root, now)? == KeyState::Active => Ok(commit.clone()),
                _ => Err(Fault::Refused(Refusal::OutOfOrder("the KEK's root key is not active"))),
            }
        }
        Commit::Opened { kind, .. } if *kind != OperationKind::Rotate => {
            bad("agents open rotations only; operators enable and switch")
        }
        Commit::Opened { id, kind, target, take_up, .. } => {
            let is = state_of(tx, target, now)?;
            if is != KeyState::Active {
                return Err(Fault::NotActive { root: *target, is });
            }
            Ok(Commit::Opened {
                id: *id,
                kind: *kind,
                target: *target,
                take_up: *take_up,
                public_endpoint: None,
                by: "system".into(),
            })
        }
        Commit::Counted { job, .. } => {
            // It makes the proof fall and may begin a rewrite, so no node may do that unasked.
            let asked = jobs::asks_count(tx, &row.cluster.id, *job, now)?;
            if asked { Ok(commit.clone()) } else { Err(Fault::NoJob(*job)) }
        }
        Commit::Recovered { restore, held } => {
            // Else a node could turn the truth back, or to its own liking, at any time.
            if row.restored != Some(*restore) {
                return Err(Fault::Refused(Refusal::OutOfOrder(NOT_RESTORED)));
            }
            for root in roots::roots_of(held) {
                // It would count as destroyed, and the cluster would be fenced for it. One that
                // backups alone may need can have been released, deleted and purged.
                if !held.ring.only_retains(root) && keys::get(tx, &root)?.is_none() {
                    return Err(Fault::Refused(Refusal::OutOfOrder(UNKNOWN_ROOT)));
                }
            }
            for root in roots::roots_of(held).iter().chain(&held.used) {
                if !chosen(tx, row, root)? {
                    return Err(Fault::Refused(Refusal::OutOfOrder(NOT_CHOSEN)));
                }
            }
            register(tx, row, held, now)?;
            let mut held = held.clone();
            if let Some(write) = held.ring.write()
                && keys::version(tx, &write.root.root, write.root.version)?.is_none()
            {
                // What it is to prove could never be proven: the version is gone. Without it the
                // cluster rotates to the one that is current, while its agents still hold the KEK.
                held.operation = None;
            }
            Ok(Commit::Recovered { restore: *restore, held })
        }
        Commit::Registered => {
            let target = row.cluster.operation.as_ref().map(|op| op.target);
            match target {
                Some(target) if !roots::registered(tx, &target, &row.crn)? => bad(
                    "the key service does not list the cluster with preventKeyDeletion; register first",
                ),
                _ => Ok(commit.clone()),
            }
        }
        Commit::Minted { kek } => {
            if kek.wrapped.is_empty() || kek.wrapped.len() > WRAPPED_MAX {
                return bad("a wrapped KEK has 1 to 4096 bytes");
            }
            if keys::version(tx, &kek.root.root, kek.root.version)?.is_none() {
                return bad("the root key has no such version");
            }
            Ok(commit.clone())
        }
        Commit::Rejected { reason } | Commit::Stuck { reason: Some(reason) }
            if reason.len() > REASON_MAX =>
        {
            let mut end = REASON_MAX;
            while !reason.is_char_boundary(end) {
                end -= 1;
            }
            let reason = reason[..end].to_owned();
            Ok(match commit {
                Commit::Rejected { .. } => Commit::Rejected { reason },
                _ => Commit::Stuck { reason: Some(reason) },
            })
        }
        _ => Ok(commit.clone()),
    }
}

/// What an agent passes on to the operator.
const UNKNOWN_ROOT: &str =
    "a root key of this cluster was created after the backup that this server was restored from";

/// As above.
const NOT_CHOSEN: &str = "no operator chose this root key for this cluster on this server: the cluster moved to it after the backup that this server was restored from";

/// Whether this server knows by itself that an operator chose `root` for the cluster. A ring is
/// the word of one node, and whoever is in the ring may be unwrapped with: a node must not come
/// to a root key by naming it.
fn chosen(tx: &Tx<'_>, row: &ClusterRow, root: &RootKey) -> Result<bool, Fault> {
    Ok(roots::roots_of(&row.cluster).contains(root)
        || row.cluster.used.contains(root)
        || roots::registered(tx, root, &row.crn)?)
}

/// Prevents the deletion of the root keys of `held`, as the cluster knows itself or as an agent
/// brings it back: the backup may be older than the registration. One of which this server knew
/// already that backups alone may need it was released, and stays so.
pub(super) fn register(
    tx: &Tx<'_>,
    row: &ClusterRow,
    held: &Cluster,
    now: UnixMs,
) -> Result<(), Fault> {
    for root in roots::roots_of(held) {
        if row.cluster.ring.only_retains(root) {
            continue;
        }
        let current = keys::get(tx, &root)?.and_then(|key| key.current);
        let (Some(version), false) = (current, roots::registered(tx, &root, &row.crn)?) else {
            continue;
        };
        registrations::put(
            tx,
            &Registration {
                root,
                crn: row.crn.clone(),
                description: Some(format!("Secrets of cluster {}", row.cluster.name)),
                prevent: true,
                version,
                created: now,
                created_by: "system".into(),
                updated: None,
                updated_by: None,
                metadata: None,
            },
        )?;
    }
    Ok(())
}

fn state_of(tx: &Tx<'_>, root: &RootKey, now: UnixMs) -> Result<KeyState, Fault> {
    let status = roots::statuses(tx, &[*root], now)?;
    Ok(status.first().map_or(KeyState::Destroyed, |r| r.state))
}

/// The name of a commit in the audit log; none for how far a rewrite is, which comes each second and
/// is in the cluster's state.
pub fn audit_name(commit: &Commit) -> Option<&'static str> {
    Some(match commit {
        Commit::Joined { .. } => "containers-kubernetes.cluster-agent.join",
        Commit::Left { .. } => "containers-kubernetes.cluster-agent.remove",
        Commit::Opened { .. } => "containers-kubernetes.cluster-kms.enable",
        Commit::Endpoint { .. } => "containers-kubernetes.cluster-kms-endpoint.update",
        Commit::Preflighted => "containers-kubernetes.cluster-kms.preflight",
        Commit::Rejected { .. } => "containers-kubernetes.cluster-kms.reject",
        Commit::Registered => "containers-kubernetes.cluster-kms.register",
        Commit::Minted { .. } => "containers-kubernetes.cluster-kek.create",
        Commit::TakeUp { .. } => "containers-kubernetes.cluster-stage.update",
        Commit::Promoted => "containers-kubernetes.cluster-kek.promote",
        Commit::Rewriting { .. } => return None,
        Commit::Verified { .. } => "containers-kubernetes.cluster-kms.verify",
        Commit::Counted { .. } => "containers-kubernetes.cluster-kms.count",
        Commit::PlaintextAccepted => "containers-kubernetes.cluster-plaintext.accept",
        Commit::Compacted { .. } => "containers-kubernetes.cluster-etcd.compact",
        Commit::Residue { .. } => "containers-kubernetes.cluster-residue.report",
        Commit::Stuck { .. } => "containers-kubernetes.cluster-kms.stuck",
        Commit::Finished => "containers-kubernetes.cluster-kms.finish",
        Commit::Cancelled { .. } => "containers-kubernetes.cluster-kms.cancel",
        Commit::Reversed { .. } => "containers-kubernetes.cluster-kms.reverse",
        Commit::WentWithout { .. } => "containers-kubernetes.cluster-kek.lose",
        Commit::Recovered { .. } => "containers-kubernetes.cluster-kms.recover",
        Commit::Readmitted { .. } => "containers-kubernetes.cluster-kek.readmit",
    })
}
