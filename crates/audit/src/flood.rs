//! Counts what comes in floods, so that a flood of refusals is a few records and not a full disk.

use claviger_domain::id::UnixMs;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};

/// Sources that are told apart within one second; all others are counted together. Bounds memory
/// to some 100 KiB.
pub const SOURCES_COUNTED: usize = 1024;
/// Sources that get a record of their own for one second: those with the most. Bounds what a
/// flood writes to so many records and one more, each second.
pub const SOURCES_NAMED: usize = 64;

/// Where something came from: an address (see [`source_of`]), or whatever else tells callers apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source<K = IpAddr> {
    /// One of them.
    One(K),
    /// All that got no record of their own.
    Others,
}

/// How often something came from a source within one second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted<K = IpAddr> {
    /// The second, by its first millisecond.
    pub second: UnixMs,
    /// From where.
    pub source: Source<K>,
    /// How often.
    pub count: u64,
}

/// A counter of one kind of thing.
pub struct Flood<K = IpAddr> {
    second: i64,
    counts: HashMap<K, u64>,
    others: u64,
}

impl<K> Default for Flood<K> {
    fn default() -> Self {
        Self { second: 0, counts: HashMap::new(), others: 0 }
    }
}

impl<K: Ord + Hash> Flood<K> {
    /// Nothing counted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one. Gives what [`Flood::take`] gives, so a second that is over is never mixed
    /// with the next.
    pub fn count(&mut self, at: UnixMs, source: K) -> Vec<Counted<K>> {
        let over = self.take(at);
        self.second = at.0.div_euclid(1000);
        let full = self.counts.len() >= SOURCES_COUNTED;
        match self.counts.get_mut(&source) {
            Some(count) => *count += 1,
            None if full => self.others += 1,
            None => {
                self.counts.insert(source, 1);
            }
        }
        over
    }

    /// The counts of a second that is over at `now`, most first; nothing while it lasts. Call it
    /// about once a second, and with [`UnixMs`]`(i64::MAX)` at the end.
    pub fn take(&mut self, now: UnixMs) -> Vec<Counted<K>> {
        // A clock that went back ends the second too.
        if now.0.div_euclid(1000) == self.second {
            return Vec::new();
        }
        let mut counts: Vec<(K, u64)> = self.counts.drain().collect();
        counts.sort_unstable_by(|(a, first), (b, second)| (second, a).cmp(&(first, b)));
        let named = counts.len().min(SOURCES_NAMED);
        let rest: u64 = counts.drain(named..).map(|(_, count)| count).sum();
        let others = std::mem::take(&mut self.others) + rest;
        let second = UnixMs(self.second.saturating_mul(1000));
        let one = |(source, count)| Counted { second, source: Source::One(source), count };
        let mut over: Vec<Counted<K>> = counts.into_iter().map(one).collect();
        if others > 0 {
            over.push(Counted { second, source: Source::Others, count: others });
        }
        over
    }
}

/// What counts as one source: an IPv4 address, or the /64 network of an IPv6 one.
pub fn source_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn a_second_of_each_source_is_one_record() {
        let mut flood = Flood::new();
        for (at, source) in [(5_000, 1), (5_400, 2), (5_999, 2)] {
            assert_eq!(flood.count(UnixMs(at), v4(source)), []);
        }
        assert_eq!(flood.take(UnixMs(5_999)), [], "the second lasts");
        let over = flood.count(UnixMs(6_000), v4(1));
        let second = UnixMs(5_000);
        assert_eq!(
            over,
            [
                Counted { second, source: Source::One(v4(2)), count: 2 },
                Counted { second, source: Source::One(v4(1)), count: 1 },
            ]
        );
        assert_eq!(flood.take(UnixMs(i64::MAX)).len(), 1, "the next second has its own");
        assert_eq!(flood.take(UnixMs(i64::MAX)), []);
    }

    #[test]
    fn a_flood_from_everywhere_is_bounded_and_loses_no_count() {
        let mut flood = Flood::new();
        let loud = v4(7);
        for n in 0..50_000 {
            flood.count(UnixMs(1), v4(n));
            flood.count(UnixMs(1), loud);
        }
        assert!(flood.counts.len() <= SOURCES_COUNTED);
        let over = flood.take(UnixMs(1_000));
        assert_eq!(over.len(), SOURCES_NAMED + 1);
        assert_eq!(over[0].source, Source::One(loud));
        assert_eq!(over[0].count, 50_001);
        assert_eq!(over.iter().map(|counted| counted.count).sum::<u64>(), 100_000);
    }

    #[test]
    fn addresses_of_one_network_are_one_source() {
        let mut flood = Flood::new();
        for address in ["2001:db8::1", "2001:db8::ffff:2", "::ffff:10.0.0.1", "10.0.0.1"] {
            flood.count(UnixMs(1), source_of(address.parse().expect("an address")));
        }
        let counts: Vec<u64> = flood.take(UnixMs(9_000)).iter().map(|c| c.count).collect();
        assert_eq!(counts, [2, 2]);
    }
}
