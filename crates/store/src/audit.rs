//! One row for each act: who, what, on what, how it ended. Never payloads, plaintexts or tokens.

use crate::{StoreError, Tx};
use claviger_crypto::digest::Sha256;
use claviger_domain::audit::{Credential, Record};
use claviger_domain::id::UnixMs;
use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, Row, params};

/// Rows that one page looks at, at most: bounds how long a rare thing is looked for at once.
const LOOKED_MAX: usize = 10_000;
/// Bytes of data in one page, about; a record has at most some tens of KiB, most have 200 bytes.
const BYTES_MAX: usize = 2 << 20;

/// What binds a row to all rows before it.
pub type Link = [u8; 32];

/// The newest row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub id: i64,
    /// Its link; none for a row of before rows were chained.
    pub link: Option<Link>,
}

/// The columns that a link is over, in its order.
const CHAINED: &str =
    "id, at, who, action, target, outcome, status, reason, correlation, credential, address, data";
/// How many they are.
const CHAINED_LEN: usize = 12;

/// Adds a row, and binds it to the one before. Of texts is kept what [`Record::kept`] says.
pub fn add(tx: &Tx<'_>, record: &Record) -> Result<(), StoreError> {
    let before = head(tx)?;
    let id = before.map_or(1, |head| head.id + 1);
    // The link is over what stands there, so that whoever reads the row finds the same.
    let sql = format!(
        "INSERT INTO audit (id, at, who, action, target, outcome, status, reason,
        correlation, credential, address, data)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) RETURNING {CHAINED}"
    );
    let row = params![
        id,
        record.at.0,
        Record::kept(&record.who),
        record.action,
        Record::kept(&record.target),
        if record.succeeded() { "success" } else { "failure" },
        record.status,
        Record::kept(&record.reason),
        Record::kept(&record.correlation),
        record.credential.map(Credential::as_str),
        record.address.map(|address| address.to_string()),
        serde_json::to_string(&record.data).expect("facts are valid JSON"),
    ];
    let before = before.and_then(|head| head.link).unwrap_or_default();
    let link = tx.prepare_cached(&sql)?.query_row(row, |row| link_of(row, &before))?;
    tx.prepare_cached("UPDATE audit SET link = ?2 WHERE id = ?1")?.execute(params![id, link])?;
    Ok(())
}

/// The newest row; none if there is none.
pub fn head(tx: &Tx<'_>) -> Result<Option<Head>, StoreError> {
    let sql = "SELECT id, link FROM audit ORDER BY id DESC LIMIT 1";
    let head = |row: &Row<'_>| Ok(Head { id: row.get(0)?, link: row.get(1)? });
    Ok(tx.prepare_cached(sql)?.query_row([], head).optional()?)
}

/// `docs/formats.md`, "Audit rows".
fn link_of(row: &Row<'_>, before: &Link) -> rusqlite::Result<Link> {
    let mut hash = Sha256::new();
    hash.update(b"claviger audit row 1\n");
    hash.update(before);
    for column in 0..CHAINED_LEN {
        match row.get_ref(column)? {
            ValueRef::Integer(number) => {
                hash.update(&[1]);
                hash.update(&number.to_be_bytes());
            }
            ValueRef::Text(text) => {
                hash.update(&[2]);
                hash.update(&(text.len() as u64).to_be_bytes());
                hash.update(text);
            }
            ValueRef::Null => hash.update(&[0]),
            // No column holds these; a row that does was not written here.
            ValueRef::Real(_) | ValueRef::Blob(_) => hash.update(&[3]),
        }
    }
    Ok(hash.finish())
}

/// A row, as [`walk`] finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Number and link, as they stand there.
    pub head: Head,
    /// The link that its columns and the row before it ask for.
    pub due: Link,
    /// When it happened, by what stands there.
    pub at: UnixMs,
}

/// Visits every row, oldest first. Takes time in proportion to their number.
pub fn walk(tx: &Tx<'_>, visit: &mut dyn FnMut(Found)) -> Result<(), StoreError> {
    let sql = format!("SELECT {CHAINED}, link FROM audit ORDER BY id");
    let mut query = tx.prepare(&sql)?;
    let mut rows = query.query([])?;
    let mut before = Link::default();
    while let Some(row) = rows.next()? {
        let link: Option<Link> = row.get(CHAINED_LEN)?;
        let due = link_of(row, &before)?;
        let head = Head { id: row.get(0)?, link };
        visit(Found { head, due, at: UnixMs(row.get(1)?) });
        before = link.unwrap_or_default();
    }
    Ok(())
}

/// Which records are wanted. What is none or empty matches all.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Not before this.
    pub from: Option<UnixMs>,
    /// Before this.
    pub to: Option<UnixMs>,
    /// The action, or with a `*` at its end what it begins with.
    pub action: String,
    /// What the target begins with: the CRN of an instance without its last segments, or that of
    /// a key.
    pub target: String,
}

impl Wanted {
    /// Whether a record with this action and target is wanted, whenever it was.
    pub fn has(&self, action: &str, target: &str) -> bool {
        let action_fits = match self.action.strip_suffix('*') {
            Some(begin) => action.starts_with(begin),
            None => self.action.is_empty() || action == self.action,
        };
        action_fits && target.starts_with(&self.target)
    }
}

/// A place in the order of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The moment of the record there.
    pub at: UnixMs,
    /// Its number.
    pub id: i64,
}

/// Some records, newest first.
#[derive(Debug, Default)]
pub struct Page {
    /// May be fewer than asked for, or none, where there are more. Each with its place.
    pub records: Vec<(Record, Place)>,
    /// Go on from here; none if there are no more.
    pub next: Option<Place>,
}

/// At most `limit` records that are wanted, newest first, older than what is at `before`. Looks at
/// 10,000 rows and reads 2 MiB at most, and says where to go on.
pub fn page(
    tx: &Tx<'_>,
    wanted: &Wanted,
    before: Option<Place>,
    limit: usize,
) -> Result<Page, StoreError> {
    let sql = "SELECT at, id, action, target, who, status, reason, correlation, credential,
        address, data FROM audit
        WHERE (at, id) < (?1, ?2) AND at >= ?3 ORDER BY at DESC, id DESC LIMIT ?4";
    let end = wanted.to.map_or(i64::MAX, |to| to.0);
    let start = match before {
        Some(place) if place.at.0 < end => (place.at.0, place.id),
        _ => (end, i64::MIN),
    };
    let from = wanted.from.map_or(i64::MIN, |from| from.0);
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query(params![start.0, start.1, from, LOOKED_MAX as i64])?;
    let mut page = Page { records: Vec::new(), next: None };
    let (mut looked, mut bytes) = (0, 0);
    while let Some(row) = rows.next()? {
        looked += 1;
        let (action, target) = (row.get_ref(2)?, row.get_ref(3)?);
        let text =
            |value: rusqlite::types::ValueRef<'_>| value.as_str().unwrap_or_default().to_owned();
        let (action, target) = (text(action), text(target));
        let place = Place { at: UnixMs(row.get(0)?), id: row.get(1)? };
        page.next = Some(place);
        if wanted.has(&action, &target) {
            let (record, size) = read(row, action, target)?;
            page.records.push((record, place));
            bytes += size;
            if page.records.len() >= limit || bytes >= BYTES_MAX {
                return Ok(page);
            }
        }
    }
    if looked < LOOKED_MAX {
        page.next = None;
    }
    Ok(page)
}

fn read(row: &Row<'_>, action: String, target: String) -> Result<(Record, usize), StoreError> {
    let credential: Option<String> = row.get(8)?;
    let credential = match credential {
        None => None,
        Some(name) => {
            let known = Credential::ALL.into_iter().find(|kind| kind.as_str() == name);
            Some(known.ok_or_else(|| StoreError::Damaged(format!("credential {name:?}")))?)
        }
    };
    let address: Option<String> = row.get(9)?;
    // Rows of before schema 4 have none.
    let data: Option<String> = row.get(10)?;
    let damaged = || StoreError::Damaged("the data of an audit record".to_owned());
    let size = data.as_ref().map_or(0, String::len);
    let data = data.map(|text| serde_json::from_str(&text).map_err(|_| damaged())).transpose()?;
    let record = Record {
        at: UnixMs(row.get(0)?),
        who: row.get(4)?,
        credential,
        address: address.map(|text| text.parse().map_err(|_| damaged())).transpose()?,
        action: action.into(),
        target,
        status: row.get(5)?,
        reason: row.get::<_, String>(6)?.into(),
        correlation: row.get(7)?,
        data: data.unwrap_or_default(),
    };
    Ok((record, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;
    use claviger_domain::audit::Data;

    fn record(at: i64, action: &'static str, target: &str) -> Record {
        Record {
            at: UnixMs(at),
            who: "IBMid-1".to_owned(),
            credential: Some(Credential::Token),
            address: Some("192.0.2.7".parse().expect("an address")),
            action: action.into(),
            target: target.to_owned(),
            status: 200,
            reason: "".into(),
            correlation: format!("c-{at}"),
            data: Data { uri: "/x".to_owned(), total: Some(7), ..Data::default() },
        }
    }

    #[test]
    fn a_changed_row_no_longer_fits_the_chain() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("claviger.db")).expect("opens");
        let added = store.tx("t", |tx| {
            (0..5).try_for_each(|n| add(tx, &record(n, "kms.secrets.rotate", "crn:1")))
        });
        added.expect("adds");
        let broken = |change: &str| {
            let mut at = Vec::new();
            let looked = store.tx("t", |tx| {
                tx.execute_batch(change)?;
                let mut last = 0;
                walk(tx, &mut |found| {
                    if found.head.link != Some(found.due) || found.head.id != last + 1 {
                        at.push(found.head.id);
                    }
                    last = found.head.id;
                })?;
                // Nothing of the change stays.
                Err::<(), _>(StoreError::Damaged("taken back".to_owned()))
            });
            assert!(looked.is_err_and(|e| e.to_string().contains("taken back")));
            at
        };
        assert_eq!(broken(""), [0_i64; 0]);
        for (change, at) in [
            ("UPDATE audit SET who = 'IBMid-2' WHERE id = 3", vec![3]),
            ("UPDATE audit SET status = 201 WHERE id = 5", vec![5]),
            ("UPDATE audit SET address = NULL WHERE id = 1", vec![1]),
            // Texts that only meet elsewhere.
            ("UPDATE audit SET reason = 'c', correlation = '-1' WHERE id = 2", vec![2]),
            ("UPDATE audit SET link = zeroblob(32) WHERE id = 2", vec![2, 3]),
            ("DELETE FROM audit WHERE id = 3", vec![4]),
            ("UPDATE audit SET id = 9 WHERE id = 5", vec![9]),
        ] {
            assert_eq!(broken(change), at, "{change}");
        }
        let found = store.read("t", head).expect("reads").expect("a row");
        assert_eq!(found.id, 5);
    }

    #[test]
    fn records_are_found_page_by_page_newest_first() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("claviger.db")).expect("opens");
        let all: Vec<Record> = (0..10)
            .map(|n| {
                let action = if n % 2 == 0 { "kms.secrets.wrap" } else { "kms.secrets.unwrap" };
                // Two at each moment, and one whose clock went back.
                let at = if n == 9 { 2 } else { n / 2 };
                record(at, action, if n < 5 { "crn:1:key:a" } else { "crn:1:key:ab" })
            })
            .collect();
        store
            .tx("t", |tx| {
                // As of before schema 4.
                tx.execute(
                    "INSERT INTO audit (at, who, action, target, outcome, status, reason, correlation)
                     VALUES (-1, 'w', 'kms.old', 't', 'failure', 409, 'R', 'c')",
                    [],
                )?;
                all.iter().try_for_each(|record| add(tx, record))
            })
            .expect("adds");
        let ask = |wanted: &Wanted, limit: usize| {
            let (mut out, mut before) = (Vec::new(), None);
            loop {
                let page = store.read("t", |tx| page(tx, wanted, before, limit)).expect("a page");
                assert!(page.records.len() <= limit);
                out.extend(page.records.into_iter().map(|(record, _)| record));
                match page.next {
                    Some(next) => before = Some(next),
                    None => return out,
                }
            }
        };
        let mut want = all.clone();
        want.reverse();
        want.sort_by_key(|record| std::cmp::Reverse(record.at));
        for limit in [1, 2, 3, 100] {
            let found = ask(&Wanted::default(), limit);
            assert_eq!(found[..10], want[..], "{limit}");
            assert_eq!((found[10].status, &*found[10].reason, found.len()), (409, "R", 11));
            assert_eq!(found[10].data, Data::default());
        }
        let wanted = |action: &str, target: &str| Wanted {
            action: action.to_owned(),
            target: target.to_owned(),
            ..Wanted::default()
        };
        for (wanted, count) in [
            (wanted("kms.secrets.wrap", ""), 5),
            (wanted("kms.secrets.*", ""), 10),
            (wanted("kms.secrets", ""), 0),
            (wanted("", "crn:1:key:ab"), 5),
            (wanted("*", "crn:1"), 10),
            (Wanted { from: Some(UnixMs(2)), ..Wanted::default() }, 6),
            (Wanted { to: Some(UnixMs(2)), ..Wanted::default() }, 5),
            (Wanted { from: Some(UnixMs(1)), to: Some(UnixMs(2)), ..Wanted::default() }, 2),
        ] {
            assert_eq!(ask(&wanted, 2).len(), count, "{wanted:?}");
        }
    }
}
