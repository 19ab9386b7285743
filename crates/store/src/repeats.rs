//! Changes that may be asked for again, since their answers may have been lost.

use crate::{StoreError, Tx};
use claviger_domain::id::{KeyId, UnixMs};
use rusqlite::{OptionalExtension, params};

/// Most changes that are remembered, some 40 MiB; the oldest are forgotten first. A server makes a
/// few hundred a second at most, and remembers them for minutes.
pub const MOST: i64 = 100_000;
/// Most that [`forget`] forgets at once, so that others need not wait for it.
pub const AT_ONCE: usize = 1_000;

/// A change that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeat {
    /// The key that its answer shows; none where it shows none.
    pub key: Option<KeyId>,
    /// When it was made.
    pub at: UnixMs,
}

/// The change that this very request made at `since` or later; none if it made none, or if what it
/// changed was changed again. One of later than `now` was made while the clock was ahead, and counts
/// not.
pub fn find(
    tx: &Tx<'_>,
    request: &[u8; 32],
    since: UnixMs,
    now: UnixMs,
) -> Result<Option<Repeat>, StoreError> {
    let sql = "SELECT key, at FROM repeats WHERE request = ?1 AND at >= ?2 AND at <= ?3";
    let found: Option<(Option<String>, i64)> = tx
        .prepare_cached(sql)?
        .query_row(params![request, since.0, now.0], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((key, at)) = found else { return Ok(None) };
    let key = key.as_deref().map(crate::keys::id).transpose()?;
    Ok(Some(Repeat { key, at: UnixMs(at) }))
}

/// Notes that `subject`, or if it ends in a blank all whose name begins so, was changed: what changed it before cannot be repeated any more, but
/// `request` can, if it is one that may be.
pub fn changed(
    tx: &Tx<'_>,
    subject: &str,
    request: Option<&[u8; 32]>,
    repeat: Repeat,
) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM repeats WHERE subject = ?1")?.execute([subject])?;
    if subject.ends_with(' ') {
        // A whole thing: what is part of it may have changed with it.
        let sql = "DELETE FROM repeats WHERE subject > ?1 AND subject < ?1 || char(1114111)";
        tx.prepare_cached(sql)?.execute([subject])?;
    }
    let Some(request) = request else { return Ok(()) };
    let key = repeat.key.map(|key| key.to_string());
    let sql = "INSERT OR REPLACE INTO repeats (request, subject, key, at) VALUES (?1, ?2, ?3, ?4)";
    tx.prepare_cached(sql)?.execute(params![request, subject, key, repeat.at.0])?;
    let oldest = tx.last_insert_rowid() - MOST;
    tx.prepare_cached("DELETE FROM repeats WHERE number <= ?1")?.execute([oldest])?;
    Ok(())
}

/// Whether there is something of before `before`.
pub fn due(tx: &Tx<'_>, before: UnixMs) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM repeats WHERE at < ?1)";
    Ok(tx.prepare_cached(sql)?.query_row([before.0], |row| row.get(0))?)
}

/// Forgets what is of before `before`, at most [`AT_ONCE`] of it; how many.
pub fn forget(tx: &Tx<'_>, before: UnixMs) -> Result<usize, StoreError> {
    let sql = "DELETE FROM repeats WHERE number IN
        (SELECT number FROM repeats WHERE at < ?1 ORDER BY at LIMIT ?2)";
    Ok(tx.prepare_cached(sql)?.execute(params![before.0, AT_ONCE as i64])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    fn request(n: i64) -> [u8; 32] {
        let mut request = [0; 32];
        request[..8].copy_from_slice(&n.to_le_bytes());
        request
    }

    #[test]
    fn a_change_is_remembered_until_the_next_one_or_its_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("claviger.db")).expect("opens");
        let key = Some(KeyId::random());
        let at = |at: i64| Repeat { key, at: UnixMs(at) };
        let done = store.tx("t", |tx| -> Result<(), StoreError> {
            let known = |n: i64, since: i64| find(tx, &request(n), UnixMs(since), UnixMs(100));
            changed(tx, "a", Some(&request(1)), at(10))?;
            changed(tx, "b", Some(&request(2)), at(20))?;
            assert_eq!(known(1, 10)?, Some(at(10)));
            assert_eq!(known(1, 11)?, None, "too long ago");
            assert_eq!(known(3, 0)?, None);
            changed(tx, "a", Some(&request(3)), at(30))?;
            assert_eq!(known(1, 0)?, None, "another change of the same");
            assert_eq!(known(2, 0)?, Some(at(20)));
            changed(tx, "a", None, at(40))?;
            assert_eq!(known(3, 0)?, None, "by a call that cannot be repeated, too");
            changed(tx, "c", Some(&request(2)), at(50))?;
            assert_eq!(known(2, 0)?, Some(at(50)), "the same request later");
            changed(tx, "d", Some(&request(4)), at(60))?;
            let early = find(tx, &request(4), UnixMs(0), UnixMs(59))?;
            assert_eq!(early, None, "of a clock that was ahead");
            changed(tx, "k alias", Some(&request(8)), at(60))?;
            changed(tx, "l alias", Some(&request(9)), at(60))?;
            changed(tx, "k ", Some(&request(10)), at(60))?;
            assert_eq!(known(8, 0)?, None, "a part of what changed");
            assert!(known(9, 0)?.is_some() && known(10, 0)?.is_some());
            assert!(!due(tx, UnixMs(50))?);
            assert!(due(tx, UnixMs(51))?);
            assert_eq!(forget(tx, UnixMs(60))?, 1);
            assert_eq!((known(2, 0)?, known(4, 0)?), (None, Some(at(60))));
            Ok(())
        });
        done.expect("writes");
    }

    #[test]
    fn memory_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("claviger.db")).expect("opens");
        let done = store.tx("t", |tx| -> Result<(), StoreError> {
            let one = |n: i64| Repeat { key: None, at: UnixMs(n) };
            changed(tx, "0", Some(&request(0)), one(0))?;
            // As if there had been many.
            tx.execute("UPDATE repeats SET number = ?1", [1])?;
            let sql = "INSERT INTO repeats VALUES (?1, ?2, 'x', NULL, 0)";
            tx.execute(sql, params![MOST, request(-1)])?;
            changed(tx, "1", Some(&request(1)), one(1))?;
            assert_eq!(find(tx, &request(0), UnixMs(0), UnixMs(9))?, None, "the oldest goes");
            assert!(find(tx, &request(-1), UnixMs(0), UnixMs(9))?.is_some());
            assert!(find(tx, &request(1), UnixMs(0), UnixMs(9))?.is_some());
            for n in 0..=AT_ONCE as i64 {
                changed(tx, &format!("s{n}"), Some(&request(100 + n)), one(2))?;
            }
            assert_eq!(forget(tx, UnixMs(3))?, AT_ONCE);
            Ok(())
        });
        done.expect("writes");
    }
}
