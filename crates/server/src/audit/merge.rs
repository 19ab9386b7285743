//! Rows of the database and entries of the segments as one list, newest first. Pure.

use super::segments::{self, Found};
use claviger_domain::audit::Record;
use claviger_domain::id::UnixMs;
use claviger_store::audit::{Page, Place};
use std::fmt;
use std::str::FromStr;

/// How far one of the two has been listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mark<P> {
    /// Nothing of it.
    #[default]
    Start,
    /// All down to here.
    At(P),
    /// All of it.
    End,
}

impl<P> Mark<P> {
    fn of(next: Option<P>) -> Self {
        next.map_or(Mark::End, Mark::At)
    }
}

/// How far both have been listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// The database.
    pub rows: Mark<Place>,
    /// The segments.
    pub segments: Mark<segments::Place>,
}

/// As a page says it in `next`: `time.number` of both, `-` for what has not begun, `x` for what
/// is done.
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rows {
            Mark::Start => f.write_str("-")?,
            Mark::At(Place { at, id }) => write!(f, "{}.{id}", at.0)?,
            Mark::End => f.write_str("x")?,
        }
        match self.segments {
            Mark::Start => f.write_str("~-"),
            Mark::At(segments::Place { at, number }) => write!(f, "~{}.{number}", at.0),
            Mark::End => f.write_str("~x"),
        }
    }
}

impl Cursor {
    /// Reads what [`Display`](fmt::Display) wrote.
    pub fn parse(text: &str) -> Option<Cursor> {
        let (rows, segments) = text.split_once('~')?;
        Some(Cursor {
            rows: mark(rows, |at, id| Place { at, id })?,
            segments: mark(segments, |at, number| segments::Place { at, number })?,
        })
    }
}

fn mark<N: FromStr, P>(text: &str, place: impl Fn(UnixMs, N) -> P) -> Option<Mark<P>> {
    match text {
        "-" => Some(Mark::Start),
        "x" => Some(Mark::End),
        _ => {
            let (at, number) = text.split_once('.')?;
            Some(Mark::At(place(UnixMs(at.parse().ok()?), number.parse().ok()?)))
        }
    }
}

/// Puts what one search found in both into one list of at most `limit`, and says where to go on;
/// none if that was all. `before` is where both searches began.
///
/// Each of the two keeps its own order, so nothing is left out or shown twice however clocks
/// went. What may have something newer before it, in what the other has not searched yet, waits.
pub fn merge(
    rows: Page,
    found: Found,
    before: Cursor,
    limit: usize,
) -> (Vec<Record>, Option<Cursor>) {
    let mut cursor = before;
    let (rows_next, found_next) = (rows.next, found.next);
    let mut rows = rows.records.into_iter().peekable();
    let mut entries = found.records.into_iter().peekable();
    let mut out = Vec::new();
    while out.len() < limit {
        let row = rows.peek().map(|(record, _)| record.at);
        let entry = entries.peek().map(|(record, _)| record.at);
        let take_row = match (row, entry) {
            (None, None) => break,
            (Some(row), Some(entry)) => row >= entry,
            (Some(row), None) if found_next.is_some_and(|next| next.at > row) => break,
            (Some(_), None) => true,
            (None, Some(entry)) if rows_next.is_some_and(|next| next.at > entry) => break,
            (None, Some(_)) => false,
        };
        if take_row {
            let taken = rows.next();
            out.extend(taken.map(|(record, place)| {
                cursor.rows = Mark::At(place);
                record
            }));
        } else {
            let taken = entries.next();
            out.extend(taken.map(|(record, place)| {
                cursor.segments = Mark::At(place);
                record
            }));
        }
    }
    if rows.peek().is_none() {
        cursor.rows = Mark::of(rows_next);
    }
    if entries.peek().is_none() {
        cursor.segments = Mark::of(found_next);
    }
    let more = cursor != Cursor { rows: Mark::End, segments: Mark::End };
    (out, more.then_some(cursor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_domain::audit::Data;

    fn record(at: i64, who: &str) -> Record {
        Record {
            at: UnixMs(at),
            who: who.to_owned(),
            credential: None,
            address: None,
            action: "a.b".into(),
            target: String::new(),
            status: 200,
            reason: "".into(),
            correlation: String::new(),
            data: Data::default(),
        }
    }

    /// Pages over rows and entries that happened at these times, `rows` and `entries` oldest
    /// first, each source searched `looks` at a time.
    fn all(rows: &[i64], entries: &[i64], limit: usize, looks: usize) -> Vec<(i64, String)> {
        let mut rows: Vec<_> = rows.iter().copied().zip(1..).collect();
        rows.sort_unstable();
        let (mut cursor, mut out) = (Cursor::default(), Vec::new());
        for _ in 0..1000 {
            let bound = match cursor.rows {
                Mark::Start => Some(rows.len()),
                Mark::At(place) => Some(rows.partition_point(|row| *row < (place.at.0, place.id))),
                Mark::End => None,
            };
            let mut page = Page::default();
            if let Some(bound) = bound {
                let from = bound.saturating_sub(looks.min(limit));
                for (at, id) in rows[from..bound].iter().rev().copied() {
                    page.records
                        .push((record(at, &format!("r{id}")), Place { at: UnixMs(at), id }));
                }
                page.next =
                    (from > 0).then(|| Place { at: UnixMs(rows[from].0), id: rows[from].1 });
            }
            let bound = match cursor.segments {
                Mark::Start => Some(entries.len()),
                Mark::At(place) => Some(place.number as usize - 1),
                Mark::End => None,
            };
            let mut found = Found::default();
            if let Some(bound) = bound {
                let from = bound.saturating_sub(looks.min(limit));
                for at in (from..bound).rev() {
                    let place = segments::Place { number: at as u64 + 1, at: UnixMs(entries[at]) };
                    found.records.push((record(entries[at], &format!("s{at}")), place));
                }
                found.next = found.records.last().map(|(_, place)| *place).filter(|_| from > 0);
            }
            let (records, next) = merge(page, found, cursor, limit);
            assert!(records.len() <= limit);
            out.extend(records.into_iter().map(|record| (record.at.0, record.who)));
            match next {
                None => return out,
                Some(next) => {
                    assert_ne!(next, cursor, "it goes on");
                    assert_eq!(Cursor::parse(&next.to_string()), Some(next));
                    cursor = next;
                }
            }
        }
        panic!("it does not end");
    }

    #[test]
    fn everything_comes_once_and_newest_first() {
        let rows = [1, 2, 2, 5, 9, 9, 12, 30];
        let entries = [2, 3, 4, 9, 10, 11, 13, 14, 15, 29];
        for limit in 1..6 {
            for looks in 1..6 {
                let found = all(&rows, &entries, limit, looks);
                assert_eq!(found.len(), rows.len() + entries.len(), "{limit} {looks}");
                let times: Vec<i64> = found.iter().map(|(at, _)| *at).collect();
                let mut sorted = times.clone();
                sorted.sort_unstable_by_key(|at| std::cmp::Reverse(*at));
                assert_eq!(times, sorted, "{limit} {looks}");
                let mut names: Vec<_> = found.into_iter().map(|(_, who)| who).collect();
                names.sort();
                names.dedup();
                assert_eq!(names.len(), times.len());
            }
        }
        assert_eq!(all(&[], &[], 3, 3), []);
        assert_eq!(all(&[], &[1, 2], 3, 3).len(), 2);
        assert_eq!(all(&[1, 2], &[], 1, 1).len(), 2);
    }

    #[test]
    fn a_clock_that_went_back_loses_nothing() {
        for limit in 1..5 {
            assert_eq!(all(&[5, 6, 1, 2], &[7, 8, 3, 9, 1], limit, 2).len(), 9, "{limit}");
        }
    }

    #[test]
    fn nonsense_is_no_cursor() {
        for text in ["", "~", "-", "1.2", "1~2", "a.b~-", "-~1.-1", "-~-~-"] {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
    }
}
