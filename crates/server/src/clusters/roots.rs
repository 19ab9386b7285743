//! What the key tables say of the root keys that a cluster uses or is to use.

use super::limits::CLUSTERS_MAX;
use claviger_domain::cluster::{Cluster, Operation, RootStatus};
use claviger_domain::id::{ClusterId, UnixMs};
use claviger_domain::key::{KeyState, RootKey};
use claviger_store::{StoreError, Tx, clusters, events, keys, meta, registrations};
use std::collections::BTreeSet;

/// For so long after its deletion a key can be restored.
const RESTORABLE_MS: i64 = 30 * 86_400_000;

/// The root keys that the agents of a cluster may use: those of every KEK it ever had, since old
/// records and backups may be under them, and the one it moves to. Nothing for an unknown one.
pub fn scope_of(tx: &Tx<'_>, cluster: &ClusterId) -> Result<Vec<RootKey>, StoreError> {
    let row = clusters::get(tx, cluster)?;
    Ok(row.map(|row| roots_of(&row.cluster)).unwrap_or_default())
}

/// The root keys of the ring and of the operation, each once.
pub fn roots_of(cluster: &Cluster) -> Vec<RootKey> {
    let ring = cluster.ring.keks.iter().map(|kek| kek.root.root);
    let target = cluster.operation.iter().map(|op| op.target);
    ring.chain(target).collect::<BTreeSet<_>>().into_iter().collect()
}

/// How these root keys stand. A key that no longer exists counts as destroyed for good: to say
/// nothing of it would let a cluster run on.
pub fn statuses(
    tx: &Tx<'_>,
    roots: &[RootKey],
    now: UnixMs,
) -> Result<Vec<RootStatus>, StoreError> {
    roots.iter().map(|root| status(tx, root, now)).collect()
}

fn status(tx: &Tx<'_>, root: &RootKey, now: UnixMs) -> Result<RootStatus, StoreError> {
    let event = events::last_of(tx, root)?;
    let Some(key) = keys::get(tx, root)? else {
        return Ok(RootStatus {
            root: *root,
            name: String::new(),
            state: KeyState::Destroyed,
            current: None,
            event,
            expires: None,
            restorable_until: None,
        });
    };
    // Shredded material cannot come back, whatever the calendar says.
    let material = match key.current {
        Some(version) => keys::material(tx, root, version)?.is_some(),
        None => false,
    };
    let restorable_until = match key.deleted {
        Some(at) if key.state_at(now) == KeyState::Destroyed && material => {
            Some(UnixMs(at.0.saturating_add(RESTORABLE_MS)))
        }
        _ => None,
    };
    Ok(RootStatus {
        root: *root,
        state: key.state_at(now),
        current: key.current.filter(|_| material),
        event,
        expires: key.expires,
        restorable_until,
        name: key.name,
    })
}

/// The names of the clusters that cannot be read, or not be written to, without `root`: live
/// records are under it, or are about to be. Their registrations say the same, but could have
/// been taken away by whoever stole a node's certificate.
pub fn users(tx: &Tx<'_>, root: &RootKey) -> Result<Vec<String>, StoreError> {
    let needs = |cluster: &Cluster| {
        let target = |op: &Operation| op.target == *root && op.registered;
        cluster.ring.uses(*root) || cluster.operation.as_ref().is_some_and(target)
    };
    let rows = clusters::list(tx, CLUSTERS_MAX)?;
    Ok(rows.into_iter().filter(|row| needs(&row.cluster)).map(|row| row.cluster.name).collect())
}

/// Number of the newest key event that concerns a cluster; 0 if none.
pub fn newest_event(tx: &Tx<'_>, cluster: &Cluster) -> Result<u64, StoreError> {
    let mut newest = 0;
    for root in roots_of(cluster) {
        newest = newest.max(events::last_of(tx, &root)?);
    }
    Ok(newest)
}

/// Whether the key service lists the cluster as a user of `root`, its deletion prevented.
pub fn registered(tx: &Tx<'_>, root: &RootKey, crn: &str) -> Result<bool, StoreError> {
    Ok(registrations::get(tx, root, crn)?.is_some_and(|r| r.prevent))
}

/// Name under which the time of the last backup of the server is kept.
pub const LAST_BACKUP: &str = "last-backup";

/// Whether a backup of the server was ever made.
pub fn backup_exists(tx: &Tx<'_>) -> Result<bool, StoreError> {
    Ok(meta::get(tx, LAST_BACKUP)?.is_some())
}
