//! Enable encryption, or move a cluster to another root key: what the operator asks for.

use super::api_key;
use super::authorizations::{CREATED, authorise};
use super::fault::Fault;
use super::state::Whole;
use super::{commits, give_up, roots, view};
use crate::http::auth::Caller;
use crate::iam::POLICIES_MAX;
use claviger_domain::access::{KeyOperation, On, PlatformRole};
use claviger_domain::cluster::commit::Commit;
use claviger_domain::cluster::plan::Why;
use claviger_domain::cluster::{OperationKind, TakeUp, write_root};
use claviger_domain::features;
use claviger_domain::id::{InstanceId, KeyId, OperationId, UnixMs};
use claviger_domain::key::{KeyState, RootKey};
use claviger_domain::policy::Site;
use claviger_store::keys::Key;
use claviger_store::{StoreError, Tx, access, iam, keys};
use claviger_wire::ks::Opened;

/// What is told to whoever accepts plaintext where no count has found any that needs it.
const NONE_UNEXPLAINED: &str = "no count has found plaintext that needs this word, so nothing was changed: `claviger census` counts";

/// A key that ends sooner than this is worth a warning.
const EXPIRES_SOON_MS: i64 = 30 * 86_400_000;

/// What an operator wants.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The root key.
    pub target: RootKey,
    /// Whether agents are to use the public name of the key service.
    pub public_endpoint: bool,
    /// How API servers take files up.
    pub take_up: TakeUp,
    /// The word that plaintext which nothing explains is to be read and rewritten.
    pub accept_plaintext: bool,
}

/// What became of the request.
pub struct Outcome {
    /// The answer.
    pub opened: Opened,
    /// Whether anything was changed by this request.
    pub changed: bool,
}

/// Opens the operation, in the caller's transaction. Nothing happens when the cluster is as
/// asked already, or is on its way there.
pub fn open(
    tx: &Tx<'_>,
    whole: Whole,
    wanted: &Wanted,
    caller: &Caller,
    now: UnixMs,
) -> Result<Outcome, Fault> {
    let (target, by) = (wanted.target, &caller.iam_id);
    let key = usable(tx, caller, target)?;
    if key.extractable {
        return Err(Fault::NotRoot(target));
    }
    let is = key.state_at(now);
    let cluster = &whole.row.cluster;
    let ahead = whole
        .seen
        .iter()
        .find(|(agent, s)| cluster.servers.contains_key(*agent) && s.observation.ahead.is_some());
    if let Some((agent, _)) = ahead {
        return Err(Fault::Forgotten(agent.clone()));
    }
    let mut warnings = warnings(tx, &whole, key.expires, now)?;

    let write = write_root(cluster).map(|version| version.root);
    let under_way = cluster.operation.as_ref().filter(|op| op.target == target).map(|op| op.id);
    let reached = cluster.operation.is_none() && write == Some(target);
    if under_way.is_some() || reached {
        let mut changes = Vec::new();
        // The other name of the key service may be what the operation waits for.
        if cluster.public_endpoint != wanted.public_endpoint {
            changes.push(Commit::Endpoint { public: wanted.public_endpoint });
        }
        let unexplained = cluster.unexplained();
        // While an operation is in progress, it may wait for this word without a count of its own.
        let waits = unexplained > 0 || (under_way.is_some() && !cluster.reads_plaintext());
        if wanted.accept_plaintext && waits {
            changes.push(Commit::PlaintextAccepted);
        } else if wanted.accept_plaintext {
            warnings.push(NONE_UNEXPLAINED.to_owned());
        } else if unexplained > 0 {
            warnings.push(Why::Plaintext(unexplained).to_string());
        }
        let (changed, mut row) = (!changes.is_empty(), whole.row);
        for commit in changes {
            row = commits::store(tx, row, &commit, now)?.row;
        }
        return Ok(Outcome { opened: Opened { operation: under_way, warnings }, changed });
    }
    if wanted.accept_plaintext {
        return Err(Fault::Bad(
            "accept_plaintext goes with the root key that the cluster is under".into(),
        ));
    }
    if is != KeyState::Active {
        return Err(Fault::NotActive { root: target, is });
    }
    features::fit(&view::versions(cluster, &whole.seen))?;
    // A switch makes a rotation that has sealed nothing yet needless.
    let whole = match &cluster.operation {
        Some(op) if op.kind == OperationKind::Rotate && op.promoted.is_none() => {
            give_up::cancelled(tx, whole, by, now)?
        }
        _ => whole,
    };
    let cluster = &whole.row.cluster;
    let id = OperationId::random();
    let commit = Commit::Opened {
        id,
        kind: if write.is_some() { OperationKind::Switch } else { OperationKind::Enable },
        target,
        take_up: wanted.take_up,
        public_endpoint: Some(wanted.public_endpoint),
        by: by.to_owned(),
    };
    if cluster.servers.is_empty() {
        warnings.push(
            "no agent has joined this cluster; the work begins when one does \
             (`claviger ks cluster join-token`, then `claviger agent run` on the node)"
                .into(),
        );
    }
    if access::count(tx)? >= POLICIES_MAX {
        return Err(Fault::TooMany("there are as many access policies as there may be"));
    }
    authorise(tx, &cluster.id, &target, caller.did(now, CREATED, ""))?;
    commits::store(tx, whole.row, &commit, now)?;
    Ok(Outcome { opened: Opened { operation: Some(id), warnings }, changed: true })
}

/// The key that a cluster is to use, if whoever lends it to the cluster could unwrap with it
/// himself: the caller, or the owner of the API key. The owner lends it only to who answers for all
/// clusters: a role on one cluster is none on the keys of others. Who is lent none and may not even
/// list keys there does not learn whether it exists.
fn usable(tx: &Tx<'_>, caller: &Caller, target: RootKey) -> Result<Key, Fault> {
    let RootKey { instance, .. } = target;
    let cannot = || Fault::CannotLend { who: caller.iam_id.clone(), root: target };
    let of_all = caller.access.platform(PlatformRole::Administrator, Site::Clusters).is_some();
    let owner = api_key::lender(tx)?;
    let Some(key) = keys::get(tx, &target)? else {
        let lists = |who: &Caller| who.permits(KeyOperation::List, instance, On::Instance);
        if !lists(caller) && !owner.is_some_and(|owner| of_all && lists(&owner)) {
            return Err(cannot());
        }
        return match iam::has_instance(tx, instance)? {
            true => Err(Fault::NoKey(target)),
            false => Err(Fault::NoInstance(instance)),
        };
    };
    let on = On::Key(target.key, &key.ring);
    let could = |who: &Caller| who.permits(KeyOperation::Unwrap, instance, on);
    if could(caller) || owner.is_some_and(|owner| of_all && could(&owner)) {
        return Ok(key);
    }
    Err(cannot())
}

fn warnings(
    tx: &Tx<'_>,
    whole: &Whole,
    expires: Option<UnixMs>,
    now: UnixMs,
) -> Result<Vec<String>, StoreError> {
    let mut out = Vec::new();
    if !roots::backup_exists(tx)? {
        out.push(
            "no backup of the key server exists, and its database is the life of every cluster: \
             run `claviger server backup`"
                .to_owned(),
        );
    }
    out.extend(expires_soon(expires, now));
    let closed = whole.closed();
    out.extend(closed.map(|why| format!("the cluster is closed now: {why}")));
    Ok(out)
}

/// A warning, where a root key to be written under ends soon.
pub fn expires_soon(expires: Option<UnixMs>, now: UnixMs) -> Option<String> {
    let left_ms = expires?.0 - now.0;
    let minutes = left_ms.max(0) / 60_000;
    let left = match minutes {
        0 => "less than a minute".to_owned(),
        1..120 => format!("{minutes} minutes"),
        120..2880 => format!("{} hours", minutes / 60),
        _ => format!("{} days", minutes / 1440),
    };
    (left_ms < EXPIRES_SOON_MS)
        .then(|| format!("the root key expires in {left}; the cluster closes then"))
}

/// An instance's GUID, given as such or as the eighth segment of a CRN.
pub fn instance_of(text: &str) -> Result<InstanceId, Fault> {
    segment(text, 7).parse().map_err(|_| {
        Fault::Bad(format!("instance_id {:?} is neither a GUID nor a CRN", short(text)))
    })
}

/// A key's id, given as such or as the tenth segment of a CRN, whose instance must be `instance`.
pub fn key_of(text: &str, instance: InstanceId) -> Result<KeyId, Fault> {
    if text.starts_with("crn:") && instance_of(text).ok() != Some(instance) {
        return Err(Fault::Bad(format!(
            "crk_id is the CRN of a key of another instance than instance_id {instance}"
        )));
    }
    segment(text, 9)
        .parse()
        .map_err(|_| Fault::Bad(format!("crk_id {:?} is neither a key id nor a CRN", short(text))))
}

/// The n-th segment of a CRN, or the whole of anything else.
fn segment(text: &str, n: usize) -> &str {
    if text.starts_with("crn:") { text.split(':').nth(n).unwrap_or_default() } else { text }
}

fn short(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_key_that_ends_within_a_month_is_worth_a_warning() {
        let said = |ms: i64| expires_soon(Some(UnixMs(1_000 + ms)), UnixMs(1_000));
        for (left_ms, words) in [
            (15_000, Some("less than a minute")),
            (119 * 60_000, Some("119 minutes")),
            (47 * 3_600_000, Some("47 hours")),
            (29 * 86_400_000, Some("29 days")),
            (30 * 86_400_000, None),
        ] {
            let said = said(left_ms);
            assert_eq!(said.is_some(), words.is_some(), "{left_ms}");
            assert!(said.unwrap_or_default().contains(words.unwrap_or_default()), "{left_ms}");
        }
        assert_eq!(expires_soon(None, UnixMs(1_000)), None);
    }

    #[test]
    fn ids_are_taken_as_such_or_out_of_a_crn() {
        let (instance, key) = (InstanceId::random(), KeyId::random());
        let crn = format!("crn:v1:bluemix:public:kms:local:a/x:{instance}");
        let same = |text: String| instance_of(&text).unwrap_or_else(|e| panic!("{e}")) == instance;
        assert!(same(instance.to_string()));
        assert!(same(format!("{crn}::")));
        let read = |text: &str| key_of(text, instance).ok();
        assert_eq!(read(&key.to_string()), Some(key));
        assert_eq!(read(&format!("{crn}:key:{key}")), Some(key));
        let other = InstanceId::random();
        let foreign = format!("crn:v1:bluemix:public:kms:local:a/x:{other}:key:{key}");
        assert_eq!(read(&foreign), None, "another instance's key");
        for bad in ["", "crn:", "crn:v1", "name"] {
            assert!(instance_of(bad).is_err() && read(bad).is_none(), "{bad:?}");
        }
    }
}
