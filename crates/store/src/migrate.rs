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
