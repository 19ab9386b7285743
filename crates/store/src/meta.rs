//! Settings and sealed secrets of the server itself, by name.

use crate::{StoreError, Tx};
use rusqlite::{OptionalExtension, params};

/// The value of `name`.
pub fn get(tx: &Tx<'_>, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let mut query = tx.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
    Ok(query.query_row([name], |row| row.get(0)).optional()?)
}

/// Sets `name`, whatever it was.
pub fn put(tx: &Tx<'_>, name: &str, value: &[u8]) -> Result<(), StoreError> {
    let sql = "INSERT INTO meta (name, value) VALUES (?1, ?2)
               ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    tx.prepare_cached(sql)?.execute(params![name, value])?;
    Ok(())
}

/// Forgets `name`.
pub fn remove(tx: &Tx<'_>, name: &str) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM meta WHERE name = ?1")?.execute([name])?;
    Ok(())
}
