//! Callers that were looked up, by the hash of their token: to verify a signature and to compile
//! policies costs more than most requests.
//!
//! An entry counts only under the epoch of access that it was compiled under, so a change counts
//! with the next request.

use super::token::Bearer;
use claviger_domain::key::RootKey;
use claviger_domain::policy::Access;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Tokens in each of the two generations. An entry has a rule of some hundred bytes for each policy
/// about its caller: mostly one or two, at most 1,100 for one who is in ten groups.
const EACH: usize = 512;

/// What a look-up found.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) bearer: Arc<Bearer>,
    /// Which signing keys were in use when its signature was verified.
    pub(crate) generation: u64,
    pub(crate) found: Found,
}

/// Who a bearer is.
#[derive(Clone)]
pub(crate) struct Found {
    /// The epoch of the view that it was read from; none if it rests on more than that.
    pub(crate) epoch: Option<u64>,
    pub(crate) service: bool,
    pub(crate) access: Arc<Access>,
    pub(crate) missing: Arc<[RootKey]>,
}

type Digest = [u8; 32];

/// Bounded: when the young generation is full, it becomes the old one, which is forgotten.
#[derive(Default)]
pub(crate) struct Known(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<Digest, Entry>,
    old: HashMap<Digest, Entry>,
}

impl Known {
    pub(crate) fn get(&self, token: &Digest) -> Option<Entry> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = all.young.get(token) {
            return Some(entry.clone());
        }
        let entry = all.old.remove(token)?;
        all.put(*token, entry.clone());
        Some(entry)
    }

    pub(crate) fn put(&self, token: Digest, entry: Entry) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put(token, entry);
    }
}

impl Generations {
    fn put(&mut self, token: Digest, entry: Entry) {
        if self.young.len() >= EACH {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(token, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::super::token::Credential;
    use super::*;

    fn entry() -> Entry {
        let credential = Credential::ApiKey(uuid::Uuid::nil());
        let bearer = Bearer { iam_id: "x".to_owned(), credential, expires_s: 0 };
        let found = Found {
            epoch: Some(1),
            service: false,
            access: Arc::default(),
            missing: Arc::default(),
        };
        Entry { bearer: Arc::new(bearer), generation: 0, found }
    }

    fn digest(n: usize) -> Digest {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&n.to_le_bytes());
        digest
    }

    #[test]
    fn who_is_asked_for_stays_and_the_rest_is_bounded() {
        let known = Known::default();
        for n in 0..10 * EACH {
            known.put(digest(n), entry());
            assert!(known.get(&digest(0)).is_some(), "asked for again and again");
        }
        let held = {
            let all = known.0.lock().expect("not poisoned");
            all.young.len() + all.old.len()
        };
        assert!(held <= 2 * EACH, "{held}");
        assert!(known.get(&digest(1)).is_none());
    }
}
