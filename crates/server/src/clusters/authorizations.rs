//! What lets a cluster use a root key: an authorization between services, made when an operator
//! chooses the key for the cluster, seen and revoked as any policy.
//!
//! It alone is not enough: the cluster's own truth must name the key as well. Revoked, it stops
//! wrap, unwrap, registrations and acknowledgements; what agents hear of a key's state goes on,
//! since that is what fences them.

use super::limits::CLUSTERS_MAX;
use super::roots::scope_of;
use crate::iam::said::said;
use claviger_domain::access::{On, Scope, ServiceRole};
use claviger_domain::audit::{Change, Facts, Record};
use claviger_domain::id::{ClusterId, PolicyId, UnixMs};
use claviger_domain::key::RootKey;
use claviger_domain::policy::{Access, Policy, Role, Subject, Target};
use claviger_store::access::{self, Stamp, Stored};
use claviger_store::{StoreError, Tx, audit, clusters, keys};

/// What a cluster may do with keys, and which of its root keys no authorization lets it use.
#[derive(Default)]
pub struct ClusterAccess {
    /// What it may do.
    pub access: Access,
    /// The root keys that its truth names and no authorization does.
    pub missing: Vec<RootKey>,
}

/// What a cluster may do with keys. Nothing for an unknown one.
pub fn access_of(tx: &Tx<'_>, cluster: &ClusterId) -> Result<ClusterAccess, StoreError> {
    let all = access::of_cluster(tx, cluster)?;
    let (mut policies, mut missing) = (Vec::new(), Vec::new());
    for root in scope_of(tx, cluster)? {
        let ring = keys::get(tx, &root)?.map(|key| key.ring).unwrap_or_default();
        let on = On::Key(root.key, &ring);
        let lets = all.iter().find(|stored| match stored.policy.target() {
            Target::Keys(scope) => scope.covers(root.instance, on),
            Target::Account | Target::Services | Target::Clusters(_) => false,
        });
        match lets {
            Some(stored) => policies.push(of_one(stored.policy.id(), cluster, root)),
            None => missing.push(root),
        }
    }
    Ok(ClusterAccess { access: Access::compile(&policies, true), missing })
}

fn of_one(id: PolicyId, cluster: &ClusterId, root: RootKey) -> Policy {
    let (subject, target) =
        (Subject::Clusters(Some(cluster.clone())), Target::Keys(Scope::Key(root)));
    Policy::new(id, subject, vec![Role::Service(ServiceRole::Reader)], target)
        .expect("clusters may be Reader of a key")
}

/// How an authorization is called on record.
pub const CREATED: &str = "iam-am.policy.create";

/// Lets a cluster use a root key, if it may not yet. `record` is that of whoever lets it, and
/// is put on record with what was made.
pub fn authorise(
    tx: &Tx<'_>,
    cluster: &ClusterId,
    root: &RootKey,
    record: Record,
) -> Result<(), StoreError> {
    if access::authorization(tx, cluster, root)?.is_some() {
        return Ok(());
    }
    let policy = of_one(PolicyId::random(), cluster, *root);
    let change = Change::Access { from: Facts::new(), to: said(&policy) };
    let mut record = Record { target: format!("policy:{}", policy.id()), ..record };
    record.data.change = Some(change);
    let stamp = Stamp::new(&record.who, record.at);
    access::add(tx, &Stored { policy, stamp })?;
    audit::add(tx, &record)
}

/// A cluster uses a root key no longer: what let it use exactly that one goes, or it would count
/// again should the key come back.
pub fn end(
    tx: &Tx<'_>,
    cluster: &ClusterId,
    root: &RootKey,
    now: UnixMs,
) -> Result<(), StoreError> {
    let Some(stored) = access::authorization(tx, cluster, root)? else { return Ok(()) };
    let target = format!("policy:{}", stored.policy.id());
    let mut record = Record::of_system(now, "iam-am.policy.delete", target);
    record.data.change = Some(Change::Access { from: said(&stored.policy), to: Facts::new() });
    access::remove(tx, stored.policy.id())?;
    audit::add(tx, &record)
}

/// Lets every cluster use the root keys that its truth names: what they could before there were
/// authorizations.
pub fn authorise_all(tx: &Tx<'_>, now: UnixMs) -> Result<(), StoreError> {
    for row in clusters::list(tx, CLUSTERS_MAX)? {
        for root in super::roots::roots_of(&row.cluster) {
            let record = Record::of_system(now, CREATED, String::new());
            authorise(tx, &row.cluster.id, &root, record)?;
        }
    }
    Ok(())
}
