//! Whether a data directory is new. A database that is not where it was must not be taken for one
//! that was never made: SQLite would throw away the log that lies beside it, and an empty server
//! would answer in the name of the one that was lost.

use crate::backup::DATABASE;
use crate::record::DIRECTORY as AUDIT;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Name of the master key in the data directory, unless the operator keeps it elsewhere.
pub const MASTER_KEY: &str = "master.key";

/// The database is gone; what belongs to it is there.
#[derive(Debug, Error)]
#[error("the database {database} is not there or empty, but {remains} is: it was lost or moved")]
pub struct Lost {
    /// Where it should be.
    pub database: PathBuf,
    /// What was found in its stead.
    pub remains: PathBuf,
}

/// Whether no server ever ran in `data`; changes nothing. A master key in it counts as a server's
/// unless `given`: one that the operator named may be there before the first start.
///
/// # Errors
/// When one ran, and its database is gone.
pub fn is_new(data: &Path, given: bool) -> Result<bool, Lost> {
    let holds = |path: &Path| std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() > 0);
    let database = data.join(DATABASE);
    if holds(&database) {
        return Ok(false);
    }
    let log = data.join(format!("{DATABASE}-wal"));
    let audit = data.join(AUDIT);
    let key = data.join(MASTER_KEY);
    let audited = std::fs::read_dir(&audit).is_ok_and(|mut entries| entries.next().is_some());
    let remains = if holds(&log) {
        log
    } else if audited {
        audit
    } else if !given && holds(&key) {
        key
    } else {
        return Ok(true);
    };
    Err(Lost { database, remains })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_its_database_is_not_new() {
        let whole = [DATABASE, "claviger.db-wal", MASTER_KEY, "audit/1"];
        // What is there, whether the master key is named; what it is.
        let rows: [(&[&str], bool, Result<bool, &str>); 8] = [
            (&[], false, Ok(true)),
            (&whole, false, Ok(false)),
            (&whole[1..], false, Err("claviger.db-wal")),
            (&whole[2..], false, Err(AUDIT)),
            (&whole[2..3], false, Err(MASTER_KEY)),
            (&whole[2..3], true, Ok(true)),
            (&whole[1..2], true, Err("claviger.db-wal")),
            (&whole[3..], true, Err(AUDIT)),
        ];
        for (there, given, expected) in rows {
            for empty in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                std::fs::create_dir(dir.path().join(AUDIT)).unwrap();
                for name in there {
                    std::fs::write(dir.path().join(name), "x").unwrap();
                }
                if empty && !there.contains(&DATABASE) {
                    std::fs::write(dir.path().join(DATABASE), "").unwrap();
                }
                let found = is_new(dir.path(), given).map_err(|lost| lost.remains);
                let expected = expected.map_err(|name| dir.path().join(name));
                assert_eq!(found, expected, "{there:?} {given} {empty}");
            }
        }
    }
}
