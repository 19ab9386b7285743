//! When a key event counts as acted on.

use claviger_domain::cluster::{Cluster, OperationKind, RootStatus};
use claviger_domain::key::{KeyState, RootKey};
use claviger_wire::agent::Acknowledgement;
use std::collections::BTreeMap;

/// What the key service was told of each root key: the event, and whether the node was fenced.
pub(crate) type Acknowledged = BTreeMap<RootKey, (u64, bool)>;

/// Whether the cluster has nothing to rewrite for a version of the root key that it writes under.
fn follows(cluster: &Cluster, root: &RootStatus) -> bool {
    let Some(write) = cluster.ring.write().filter(|k| k.root.root == root.root) else {
        return true;
    };
    let rotates = cluster.operation.as_ref().is_some_and(|op| {
        op.kind == OperationKind::Rotate && op.target == root.root && op.verified.is_none()
    });
    !rotates && root.current.is_none_or(|current| current == write.root.version)
}

/// What the key service is to be told. An event of a root key is acted on when the node is as the
/// key is: fenced, or open and, after a rotation, every record proven to be under the key's current
/// version.
pub(crate) fn due(
    cluster: &Cluster,
    roots: &[RootStatus],
    fenced: bool,
    open: bool,
    acknowledged: &Acknowledged,
) -> Vec<Acknowledgement> {
    roots
        .iter()
        .filter(|r| r.event > 0 && cluster.ring.uses(r.root))
        .filter(|r| match r.state {
            KeyState::Active => open && follows(cluster, r),
            _ => fenced,
        })
        .filter(|r| acknowledged.get(&r.root) != Some(&(r.event, fenced)))
        .map(|r| Acknowledgement { root: r.root, event: r.event, state: r.state, fenced })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_domain::cluster::ring::{Kek, Ring, Role};
    use claviger_domain::cluster::{Operation, TakeUp, Verified};
    use claviger_domain::id::{
        ClusterId, InstanceId, KeyId, KeyVersionId, OperationId, Serial, UnixMs,
    };
    use claviger_domain::key::RootVersion;

    fn rotation(target: RootKey, verified: bool) -> Operation {
        let proof = Verified { revision: 1, at: UnixMs(1), records: 1, sampled: 1 };
        Operation {
            id: OperationId::random(),
            kind: OperationKind::Rotate,
            target,
            take_up: TakeUp::Restart,
            requested: UnixMs(0),
            requested_by: "system".into(),
            preflighted: true,
            registered: true,
            serial: Some(Serial(2)),
            promoted: Some(UnixMs(0)),
            rewrite: None,
            verified: verified.then_some(proof),
            first_verified: None,
            compacted: None,
            stuck: None,
            without: None,
        }
    }

    #[test]
    fn a_rotation_counts_as_acted_on_once_it_is_proven() {
        let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
        let [old, new] = [(), ()].map(|()| KeyVersionId::random());
        let on = |version, operation| Cluster {
            revision: 1,
            ring: Ring {
                keks: vec![Kek {
                    serial: Serial(2),
                    root: RootVersion { root, version },
                    wrapped: "w".into(),
                    role: Role::Write,
                    created: UnixMs(0),
                }],
                minted: 2,
            },
            operation,
            used: vec![root],
            ..Cluster::new(ClusterId::random(), "c".into(), UnixMs(0))
        };
        let status = |state| RootStatus {
            root,
            name: "r".into(),
            state,
            current: Some(new),
            event: 7,
            expires: None,
            restorable_until: None,
        };
        let (active, off) = (KeyState::Active, KeyState::Suspended);
        // Cluster, the key's state, the node fenced, the node open; whether it is told.
        let rows = [
            ("not begun", on(old, None), active, false, true, false),
            ("rewriting", on(new, Some(rotation(root, false))), active, false, true, false),
            ("proven", on(new, Some(rotation(root, true))), active, false, true, true),
            ("over", on(new, None), active, false, true, true),
            ("over, and closed again", on(new, None), active, false, false, false),
            ("suspended meanwhile", on(old, None), off, true, false, true),
            ("suspended, not fenced yet", on(old, None), off, false, true, false),
        ];
        for (name, cluster, state, fenced, open, told) in rows {
            let acks = due(&cluster, &[status(state)], fenced, open, &Acknowledged::new());
            assert_eq!(acks.len() == 1, told, "{name}");
            let known = Acknowledged::from([(root, (7, fenced))]);
            assert!(due(&cluster, &[status(state)], fenced, open, &known).is_empty(), "{name}");
        }
    }
}
