//! One row for each act: who, what, on what, how it ended. Never payloads, plaintexts or tokens.

use crate::{StoreError, Tx};
use claviger_domain::audit::{Credential, Record};
use claviger_domain::id::UnixMs;
use rusqlite::{Row, params};

/// Rows that one page looks at, at most: bounds how long a rare thing is looked for at once.
const LOOKED_MAX: usize = 10_000;
/// Bytes of data in one page, about; a record has at most some tens of KiB, most have 200 bytes.
const BYTES_MAX: usize = 2 << 20;

/// Adds a row. Texts are cut to 512 characters: they come from requests.
pub fn add(tx: &Tx<'_>, record: &Record) -> Result<(), StoreError> {
    let cut = |text: &str| text.chars().take(512).collect::<String>();
    let sql = "INSERT INTO audit (at, who, action, target, outcome, status, reason, correlation,
        credential, address, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    tx.prepare_cached(sql)?.execute(params![
        record.at.0,
        cut(&record.who),
        record.action,
        cut(&record.target),
        if record.succeeded() { "success" } else { "failure" },
        record.status,
        cut(&record.reason),
        cut(&record.correlation),
        record.credential.map(Credential::as_str),
        record.address.map(|address| address.to_string()),
        serde_json::to_string(&record.data).expect("facts are valid JSON"),
    ])?;
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
    fn has(&self, action: &str, target: &str) -> bool {
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
#[derive(Debug)]
pub struct Page {
    /// May be fewer than asked for, or none, where there are more.
    pub records: Vec<Record>,
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
        page.next = Some(Place { at: UnixMs(row.get(0)?), id: row.get(1)? });
        if wanted.has(&action, &target) {
            let (record, size) = read(row, action, target)?;
            page.records.push(record);
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

/// Number of acts with this action; for tests and health.
pub fn count(tx: &Tx<'_>, action: &str) -> Result<u64, StoreError> {
    let sql = "SELECT count(*) FROM audit WHERE action = ?1";
    let count: i64 = tx.prepare_cached(sql)?.query_row([action], |row| row.get(0))?;
    Ok(count as u64)
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
                out.extend(page.records);
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
