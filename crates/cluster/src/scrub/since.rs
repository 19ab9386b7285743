//! What came to etcd after its keys were counted, while every API server was stopped. etcd itself
//! deletes what hangs on a lease that ends, which is nobody's write.

use claviger_etcd::bolt::Revision;
use std::collections::HashSet;

/// The records of a database, looked at one by one, oldest first.
#[derive(Debug)]
pub(super) struct Since {
    taken: i64,
    /// Keys that hang on a lease.
    leased: HashSet<Vec<u8>>,
    /// Keys that do not.
    pub(super) lasting: u64,
    /// The newest revision that somebody else wrote.
    pub(super) strange: Option<i64>,
}

impl Since {
    /// After revision `taken`, at which history was compacted: of each key that lived then there is
    /// one record.
    pub(super) fn new(taken: i64) -> Self {
        Self { taken, leased: HashSet::new(), lasting: 0, strange: None }
    }

    pub(super) fn add(&mut self, at: Revision, key: &[u8], lease: i64) {
        if at.main > self.taken {
            if !(at.tombstone && self.leased.contains(key)) {
                self.strange = Some(at.main);
            }
        } else if !at.tombstone && lease == 0 {
            self.lasting += 1;
        } else if !at.tombstone {
            self.leased.insert(key.to_vec());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ends_with_its_lease_is_nobodys_write() {
        let put = |main, key: &'static str, lease| (main, false, key, lease);
        let deleted = |main, key: &'static str| (main, true, key, 0);
        let before = [put(3, "secret", 0), put(5, "event", 7), deleted(9, "gone")];
        for (name, after, strange) in [
            ("nothing", vec![], None),
            ("a lease ended", vec![deleted(11, "event")], None),
            ("a key without one was deleted", vec![deleted(11, "secret")], Some(11)),
            ("a key was written", vec![put(12, "secret", 0)], Some(12)),
            ("a key with a lease was written", vec![put(12, "event", 7)], Some(12)),
            ("both", vec![put(12, "new", 0), deleted(13, "event")], Some(12)),
        ] {
            let mut since = Since::new(10);
            for (main, tombstone, key, lease) in before.into_iter().chain(after) {
                since.add(Revision { main, sub: 0, tombstone }, key.as_bytes(), lease);
            }
            assert_eq!((since.strange, since.lasting), (strange, 1), "{name}");
        }
    }
}
