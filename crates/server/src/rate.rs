//! How often something may happen: the generic cell rate algorithm (ITU-T I.371, appendix I), a token
//! bucket that keeps one number for each who is told apart.

use claviger_domain::id::UnixMs;
use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// So many at once, and one more each time `apart_ns` has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// At once; at least one.
    pub(crate) burst: u32,
    /// Nanoseconds between two for good; at least one.
    pub(crate) apart_ns: i64,
}

impl Rate {
    /// So many in each second, and at once as many as two seconds give; none for 0.
    pub(crate) fn per_second(many: u32) -> Option<Rate> {
        let apart_ns = 1_000_000_000_i64.checked_div(i64::from(many))?.max(1);
        Some(Rate { burst: many.saturating_mul(2), apart_ns })
    }

    /// Takes one of a bucket; false if there is none left.
    fn take(self, bucket: &mut Bucket, now: UnixMs) -> bool {
        let now_ns = ns(now);
        let most = now_ns.saturating_add(i64::from(self.burst).saturating_mul(self.apart_ns));
        // A clock that was set back forgives.
        let since = if bucket.whole_ns > most { now_ns } else { now_ns.max(bucket.whole_ns) };
        let next = since.saturating_add(self.apart_ns);
        if next > most {
            return false;
        }
        bucket.whole_ns = next;
        true
    }
}

/// Good until the year 2262.
fn ns(at: UnixMs) -> i64 {
    at.0.saturating_mul(1_000_000)
}

/// What is left to one.
#[derive(Debug, Default)]
struct Bucket {
    /// When it is whole again (the algorithm's theoretical arrival time), in nanoseconds since the
    /// Unix epoch.
    whole_ns: i64,
    /// How many were refused within `second`.
    refused: u32,
    second: i64,
}

/// There is none left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Empty {
    /// How many were refused within this second before.
    pub(crate) refused: u32,
}

/// A bucket for each who is told apart, in bounded memory: who is not among those that are
/// remembered shares one bucket with all others of that kind.
pub(crate) struct Buckets<K> {
    rate: Rate,
    most: usize,
    each: HashMap<K, Bucket>,
    others: Bucket,
    /// The second in which those who are whole again were forgotten last.
    swept: i64,
}

impl<K: Hash + Eq> Buckets<K> {
    /// At most `most` are remembered, some 100 bytes for each.
    pub(crate) fn new(rate: Rate, most: usize) -> Self {
        let (each, others) = (HashMap::new(), Bucket::default());
        Self { rate, most, each, others, swept: i64::MIN }
    }

    /// Takes one of `who`.
    pub(crate) fn take<Q>(&mut self, who: &Q, now: UnixMs) -> Result<(), Empty>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let second = now.0.div_euclid(1000);
        let known = self.each.contains_key(who);
        if !known && self.each.len() >= self.most && self.swept != second {
            // Once a second: it looks at all of them.
            self.swept = second;
            let now_ns = ns(now);
            self.each.retain(|_, bucket| bucket.whole_ns > now_ns);
        }
        if !known && self.each.len() < self.most {
            self.each.insert(who.to_owned(), Bucket::default());
        }
        let bucket = self.each.get_mut(who).unwrap_or(&mut self.others);
        if self.rate.take(bucket, now) {
            return Ok(());
        }
        if bucket.second != second {
            (bucket.second, bucket.refused) = (second, 0);
        }
        let refused = bucket.refused;
        bucket.refused = refused.saturating_add(1);
        Err(Empty { refused })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Rate = Rate { burst: 20, apart_ns: 3_000_000_000 };

    fn taken(buckets: &mut Buckets<String>, ms: i64, who: &str, times: usize) -> usize {
        (0..times).filter(|_| buckets.take(who, UnixMs(ms)).is_ok()).count()
    }

    #[test]
    fn a_bucket_fills_one_by_one_and_each_has_its_own() {
        let mut buckets = Buckets::new(SLOW, 10);
        for (what, ms, who, times, want) in [
            ("as many as the burst at once", 0, "a", 25, 20),
            ("another has its own", 0, "b", 20, 20),
            ("too early for one more", 2_999, "a", 1, 0),
            ("one more", 3_000, "a", 2, 1),
            ("whole again, and not more than that", 3_600_000, "a", 21, 20),
            ("a clock that was set back forgives", 1_000, "a", 21, 20),
        ] {
            assert_eq!(taken(&mut buckets, ms, who, times), want, "{what}");
        }
    }

    #[test]
    fn so_many_in_each_second_whatever_was_asked() {
        for many in [1, 3, 500, 7_000] {
            let rate = Rate::per_second(many).expect("a rate");
            let mut buckets = Buckets::new(rate, 10);
            taken(&mut buckets, 0, "a", many as usize * 2);
            let within: usize =
                (1..=100).map(|n| taken(&mut buckets, n * 100, "a", many as usize * 2)).sum();
            assert!(within.abs_diff(many as usize * 10) <= 1, "{many}: {within}");
        }
        assert_eq!(Rate::per_second(0), None);
    }

    #[test]
    fn refusals_are_counted_within_their_second() {
        let mut buckets = Buckets::new(Rate { burst: 1, apart_ns: 60_000_000_000 }, 10);
        let mut refused = |ms: i64| buckets.take("a", UnixMs(ms)).err().map(|e| e.refused);
        let seen: Vec<_> = [0, 1, 2, 999, 1_000, 1_001].map(&mut refused).into();
        assert_eq!(seen, [None, Some(0), Some(1), Some(2), Some(0), Some(1)]);
    }

    #[test]
    fn memory_is_bounded_and_who_finds_no_room_shares() {
        let mut buckets = Buckets::new(SLOW, 100);
        for n in 0..100 {
            assert_eq!(taken(&mut buckets, 0, &n.to_string(), 1), 1);
        }
        let over = |buckets: &mut Buckets<String>, ms| {
            (100..130).map(|n| taken(buckets, ms, &n.to_string(), 1)).sum::<usize>()
        };
        assert_eq!(over(&mut buckets, 0), 20, "one bucket for all of them");
        assert_eq!(buckets.each.len(), 100);
        assert_eq!(taken(&mut buckets, 0, "5", 25), 19, "who is known keeps his own");
        assert_eq!(over(&mut buckets, 10_000), 30, "whoever is whole again is forgotten");
        assert_eq!(buckets.each.len(), 31);
    }
}
