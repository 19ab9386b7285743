//! Brings a database's schema up to date. Migrations are only ever added.

use crate::StoreError;
use rusqlite::{Connection, TransactionBehavior};

/// Every migration in order; the n-th brings schema n - 1 to n.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_keys.sql"),
    include_str!("../migrations/0002_clusters.sql"),
    include_str!("../migrations/0003_key_service.sql"),
    include_str!("../migrations/0004_access_and_audit.sql"),
    include_str!("../migrations/0005_audit_chain.sql"),
    include_str!("../migrations/0006_restore_and_join.sql"),
    include_str!("../migrations/0007_iam.sql"),
    include_str!("../migrations/0008_repeats.sql"),
    include_str!("../migrations/0009_logins.sql"),
];

/// The newest schema that is known here.
pub(crate) const KNOWN: i64 = MIGRATIONS.len() as i64;

pub(crate) fn run(connection: &mut Connection) -> Result<(), StoreError> {
    let found = version(connection)?;
    if found > KNOWN {
        return Err(StoreError::Newer { found, known: KNOWN });
    }
    for (at, sql) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(sql)?;
        tx.pragma_update(None, "user_version", at as i64 + 1)?;
        tx.commit()?;
    }
    Ok(())
}

pub(crate) fn version(connection: &Connection) -> Result<i64, rusqlite::Error> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Store, access};
    use claviger_domain::access::{PlatformRole, Scope, ServiceRole};
    use claviger_domain::id::InstanceId;
    use claviger_domain::key::RootKey;
    use claviger_domain::policy::{Role, Target};

    #[test]
    fn roles_of_before_there_were_policies_count_as_they_did() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("claviger.db");
        let (instance, key) = (InstanceId::random(), claviger_domain::id::KeyId::random());
        let old = Connection::open(&path).expect("opens");
        for sql in &MIGRATIONS[..5] {
            old.execute_batch(sql).expect("migrates");
        }
        old.execute_batch(&format!(
            "PRAGMA user_version = 5;
             INSERT INTO resource_groups VALUES ('g', 'default', 1);
             INSERT INTO instances VALUES ('{instance}', 'i', 'local', 'g', 1);
             INSERT INTO principals (iam_id, kind, name, email, created)
                 VALUES ('IBMid-1', 'user', 'n', '', 7);
             INSERT INTO grants (iam_id, scope, role, instance, ring, key) VALUES
                 ('IBMid-1', 'platform', 'Administrator', NULL, NULL, NULL),
                 ('IBMid-1', 'service', 'Manager', NULL, NULL, NULL),
                 ('IBMid-1', 'service', 'Writer', '{instance}', NULL, NULL),
                 ('IBMid-1', 'service', 'Reader', '{instance}', 'r', NULL),
                 ('IBMid-1', 'service', 'KeyPurge', '{instance}', NULL, '{key}');"
        ))
        .expect("fills");
        drop(old);
        let store = Store::open(&path).expect("opens and migrates");
        let found = store.read("t", |tx| access::of_principal(tx, "IBMid-1")).expect("reads");
        let mut ids: Vec<_> = found.iter().map(|stored| stored.policy.id()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 5, "each has an id of its own");
        for (role, target) in [
            (Role::Platform(PlatformRole::Administrator), Target::Account),
            (Role::Service(ServiceRole::Manager), Target::Keys(Scope::Everywhere)),
            (Role::Service(ServiceRole::Writer), Target::Keys(Scope::Instance(instance))),
            (Role::Service(ServiceRole::Reader), Target::Keys(Scope::Ring(instance, "r".into()))),
            (
                Role::Service(ServiceRole::KeyPurge),
                Target::Keys(Scope::Key(RootKey { instance, key })),
            ),
        ] {
            let there = found.iter().any(|stored| {
                *stored.policy.roles() == [role] && *stored.policy.target() == target
            });
            assert!(there, "{role:?} {target:?}");
        }
    }
}
