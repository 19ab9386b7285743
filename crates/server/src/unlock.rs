//! The way back in for an operator whose own policies keep him out of an instance. It needs the
//! server's files, and no key of theirs.

use crate::first::{self, StartError};
use crate::keys::policies::instance::noted;
use claviger_domain::audit::{Change, Credential, Data, Policy, Record};
use claviger_domain::id::{InstanceId, UnixMs};
use claviger_store::policies::{self, InstancePolicyKind};
use claviger_store::{StoreError, audit, iam};
use std::path::Path;
use thiserror::Error;

/// Why an instance was not unlocked.
#[derive(Debug, Error)]
pub enum UnlockError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database misses something.
    #[error(transparent)]
    Start(#[from] StartError),
    /// There is no such instance.
    #[error("there is no instance {0} in this database")]
    NoInstance(InstanceId),
}

/// The policies that say from where one may come.
const GATES: [InstancePolicyKind; 2] =
    [InstancePolicyKind::AllowedIp, InstancePolicyKind::AllowedNetwork];

/// Switches off what bars addresses and networks from an instance of the server whose database
/// this is, and puts that on record. `by` says who does it. The server may be running: it heeds the
/// change at the next request. Returns the names of the policies that were on. Blocks, for some
/// seconds at most.
///
/// # Errors
/// Nothing is changed then.
pub fn unlock(
    database: &Path,
    instance: InstanceId,
    by: &str,
    now: UnixMs,
) -> Result<Vec<&'static str>, UnlockError> {
    claviger_store::beside(database, |tx| {
        if !iam::has_instance(tx, instance)? {
            return Err(UnlockError::NoInstance(instance));
        }
        let (mut opened, mut from, mut to) = (Vec::new(), Vec::new(), Vec::<Policy>::new());
        for kind in GATES {
            let on = policies::of_instance_kind(tx, instance, kind)?.filter(|p| p.enabled);
            let Some(mut policy) = on else { continue };
            from.push(noted(&policy)?);
            policy.enabled = false;
            policy.attributes = "{}".to_owned();
            policy.updated = now;
            policy.updated_by = by.to_owned();
            to.push(noted(&policy)?);
            policies::put_of_instance(tx, instance, &policy)?;
            opened.push(kind.as_str());
        }
        if !opened.is_empty() {
            let record = Record {
                at: now,
                who: by.to_owned(),
                credential: Some(Credential::Host),
                address: None,
                action: "kms.instance-policies.write".into(),
                target: first::account(tx)?.instance_crn(instance),
                status: 200,
                reason: "".into(),
                correlation: String::new(),
                data: Data { change: Some(Change::Policies { from, to }), ..Data::default() },
            };
            audit::add(tx, &record)?;
        }
        Ok(opened)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{START, World, envelope};
    use claviger_domain::access::PlatformRole;
    use claviger_store::iam::Grant;
    use serde_json::{Value, json};

    #[tokio::test]
    async fn an_operator_on_the_machine_opens_what_he_has_closed() {
        let w = World::new();
        let database = w.dir.path().join("claviger.db");
        assert_eq!(unlock(&database, w.one, "host-0", START).unwrap(), [""; 0]);
        // Nobody comes by a socket here, so no address is allowed.
        let shut = json!({"enabled": true, "attributes": {"allowed_ip": ["192.0.2.0/24"]}});
        let shut = envelope(json!({"policy_type": "allowedIP", "policy_data": shut}));
        w.call("PUT /instance/policies", &shut).await.is(204);
        w.call("GET /keys", &Value::Null).await.is(401);
        w.call("PUT /instance/policies", &shut).await.is(401);

        // While the server runs.
        assert_eq!(unlock(&database, w.one, "host-0", START).unwrap(), ["allowedIP"]);
        w.call("GET /keys", &Value::Null).await.is(200);
        let seen = w.call("GET /instance/policies", &Value::Null).await.is(200);
        assert_eq!(seen.key()["policy_data"], json!({"enabled": false}));
        assert_eq!(seen.key()["updatedBy"], "host-0");
        let admin = w.person_with("admin", &[Grant::Platform(PlatformRole::Administrator)]);
        let path = "/v3/audit?action=kms.instance-policies.write&limit=1";
        let found = w.ask(&admin, "GET", path, Value::Null).await.is(200);
        let event = &found["events"][0];
        assert_eq!(event["initiator"]["id"], "host-0");
        assert_eq!(event["initiator"]["credential"]["type"], "host");
        assert_eq!(event["severity"], "warning");
        assert_eq!(
            event["requestData"]["initialValue"]["policyAllowedIPAttribute"],
            json!(["192.0.2.0/24"])
        );
        assert_eq!(event["requestData"]["newValue"]["policyAllowedIPEnabled"], false);

        let nowhere = InstanceId::random();
        let refused = unlock(&database, nowhere, "host-0", START);
        assert!(matches!(refused, Err(UnlockError::NoInstance(_))));
        let missing = w.dir.path().join("other.db");
        assert!(matches!(unlock(&missing, w.one, "host-0", START), Err(UnlockError::Store(_))));
        assert!(!missing.exists(), "and none is made");
    }

    #[test]
    fn an_older_database_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("claviger.db");
        let store = claviger_store::Store::open(&database).unwrap();
        store
            .tx("t", |tx| Ok::<_, StoreError>(tx.pragma_update(None, "user_version", 1)?))
            .unwrap();
        drop(store);
        let refused = unlock(&database, InstanceId::random(), "host-0", START);
        assert!(matches!(refused, Err(UnlockError::Store(StoreError::Older { found: 1, .. }))));
    }
}
