//! Callers that were looked up, by the hash of their token: to verify a signature and to compile
//! policies costs more than most requests.
//!
//! An entry counts only under the epoch of access that it was compiled under, so a change counts
//! with the next request.

use super::token::Bearer;
use claviger_domain::key::RootKey;
use claviger_domain::policy::Access;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Tokens in each of the two generations. Beside them is what their callers may do, a rule of some
/// hundred bytes for each policy about one: mostly one or two, at most 1,100 for one who is in ten
/// groups.
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
    /// What callers may do, by IAM id and epoch: one for all tokens of a caller.
    shared: HashMap<String, (u64, Weak<Access>)>,
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
    fn put(&mut self, token: Digest, mut entry: Entry) {
        if self.young.len() >= EACH {
            self.old = std::mem::take(&mut self.young);
            self.shared.retain(|_, (_, access)| access.strong_count() > 0);
        }
        if let Some(epoch) = entry.found.epoch {
            self.share(epoch, &mut entry);
        }
        self.young.insert(token, entry);
    }

    fn share(&mut self, epoch: u64, entry: &mut Entry) {
        let shared = self.shared.get(&entry.bearer.iam_id);
        let same = shared.filter(|(of, _)| *of == epoch).and_then(|(_, access)| access.upgrade());
        match same {
            Some(access) => entry.found.access = access,
            None => {
                let access = Arc::downgrade(&entry.found.access);
                self.shared.insert(entry.bearer.iam_id.clone(), (epoch, access));
            }
        }
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

    #[test]
    fn all_tokens_of_a_caller_share_what_it_may_do() {
        let known = Known::default();
        let of = |n| known.get(&digest(n)).expect("there").found.access;
        for n in 0..3 {
            known.put(digest(n), entry());
        }
        assert!(Arc::ptr_eq(&of(0), &of(1)) && Arc::ptr_eq(&of(0), &of(2)));
        let mut later = entry();
        later.found.epoch = Some(2);
        known.put(digest(3), later);
        assert!(!Arc::ptr_eq(&of(0), &of(3)), "under another epoch it is another");
        for n in 0..4 * EACH {
            let mut other = entry();
            let bearer = Arc::get_mut(&mut other.bearer).expect("its own");
            bearer.iam_id = n.to_string();
            known.put(digest(10 + n), other);
        }
        let shared = known.0.lock().expect("not poisoned").shared.len();
        assert!(shared <= 3 * EACH, "{shared}");
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
