//! Brings a database's schema up to date. Migrations are only ever added.

use crate::StoreError;
use rusqlite::{Connection, TransactionBehavior};

/// Every migration in order; the n-th brings schema n - 1 to n.
const MIGRATIONS: &[&str] =
    &[include_str!("../migrations/0001_keys.sql"), include_str!("../migrations/0002_clusters.sql")];

pub(crate) fn run(connection: &mut Connection) -> Result<(), StoreError> {
    let known = MIGRATIONS.len() as i64;
    let found = version(connection)?;
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    for (at, sql) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(sql)?;
        tx.pragma_update(None, "user_version", at as i64 + 1)?;
        tx.commit()?;
    }
    Ok(())
}

fn version(connection: &Connection) -> Result<i64, rusqlite::Error> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}
