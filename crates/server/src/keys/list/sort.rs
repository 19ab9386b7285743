//! The `sort` of a list.

use crate::http::error::KpError;
use crate::keys::query::Query;
use claviger_domain::id::UnixMs;
use claviger_store::keys::Key;

const KNOWN: [&str; 9] = [
    "id",
    "state",
    "extractable",
    "imported",
    "creationDate",
    "lastUpdateDate",
    "lastRotateDate",
    "deletionDate",
    "expirationDate",
];

/// Sorts by property names, `-` before one for descending; by id at last. A key without the date
/// comes before every key with it.
pub(super) fn sort(found: &mut [Key], query: &Query, now: UnixMs) -> Result<(), KpError> {
    let by: Vec<(&str, bool)> = query
        .list("sort")
        .into_iter()
        .map(|name| name.strip_prefix('-').map_or((name, false), |name| (name, true)))
        .collect();
    if by.len() > KNOWN.len() || by.iter().any(|(name, _)| !KNOWN.contains(name)) {
        let what = format!("The query_param 'sort' must be: out of {}", KNOWN.join(", "));
        return Err(KpError::query("sort", what));
    }
    found.sort_by(|a, b| {
        for (name, descending) in &by {
            let order = match *name {
                "id" => a.root.key.cmp(&b.root.key),
                name => value(a, name, now).cmp(&value(b, name, now)),
            };
            let order = if *descending { order.reverse() } else { order };
            if order.is_ne() {
                return order;
            }
        }
        a.root.key.cmp(&b.root.key)
    });
    Ok(())
}

fn value(key: &Key, name: &str, now: UnixMs) -> i64 {
    let date = |at: Option<UnixMs>| at.map_or(i64::MIN, |at| at.0);
    match name {
        "state" => key.state_at(now) as i64,
        "extractable" => i64::from(key.extractable),
        "imported" => i64::from(key.imported),
        "creationDate" => key.created.0,
        "lastUpdateDate" => date(key.updated),
        "lastRotateDate" => date(key.rotated),
        "deletionDate" => date(key.deleted),
        _ => date(key.expires),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::list::some_key;

    #[test]
    fn by_several_properties_and_by_id_at_last() {
        let mut keys: Vec<Key> = (0..4).map(|_| some_key()).collect();
        for (at, key) in keys.iter_mut().enumerate() {
            key.created = UnixMs([3, 1, 2, 1][at]);
            key.extractable = at == 3;
            key.deleted = (at == 2).then_some(UnixMs(9));
        }
        let order = |by: &str| {
            let mut keys = keys.clone();
            sort(&mut keys, &Query::parse(&format!("sort={by}")), UnixMs(0)).expect(by);
            keys.iter().map(|key| key.created.0).collect::<Vec<_>>()
        };
        assert_eq!(order("creationDate"), [1, 1, 2, 3]);
        assert_eq!(order("-creationDate"), [3, 2, 1, 1]);
        assert_eq!(order("-deletionDate,-creationDate"), [2, 3, 1, 1]);
        assert_eq!(order("-extractable,creationDate"), [1, 1, 2, 3]);
        keys.sort_by_key(|key| key.root.key);
        let ids: Vec<_> = keys.iter().map(|key| key.root.key).collect();
        for (by, want) in [("", &ids), ("id", &ids)] {
            let mut found: Vec<Key> = keys.iter().rev().cloned().collect();
            sort(&mut found, &Query::parse(&format!("sort={by}")), UnixMs(0)).expect(by);
            assert_eq!(&found.iter().map(|key| key.root.key).collect::<Vec<_>>(), want);
        }
        let mut none = Vec::new();
        for bad in ["colour", "--id", "ID", "id,id,id,id,id,id,id,id,id,id"] {
            let query = Query::parse(&format!("sort={bad}"));
            assert!(sort(&mut none, &query, UnixMs(0)).is_err(), "{bad}");
        }
    }
}
