//! Finds records in the audit log's segments, newest first. The log can only be read forwards, so
//! it is read in windows of time that grow until enough is found.

use super::body;
use claviger_audit::{Dir, Entry, ReadError, Reader};
use claviger_domain::audit::Record;
use claviger_domain::id::UnixMs;
use claviger_store::audit::Wanted;
use std::collections::VecDeque;
use std::io;
use std::path::Path;

/// Entries that one search looks at in one window, about a second's work. A window of the first
/// size is read whole all the same.
const LOOKED_MAX: usize = 300_000;
/// The first window, and how much longer each further one is.
const WINDOW_MS: i64 = 60_000;
const GROWS: i64 = 8;
/// So many entries in a row that are clearly later than what is looked for end a window.
const BEYOND_MAX: u32 = 10_000;

/// Where a search goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Entries before this number.
    pub number: u64,
    /// They happened about here, or before.
    pub at: UnixMs,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Newest first, by their numbers; each with its own place.
    pub records: Vec<(Record, Place)>,
    /// Where to go on; none if there is nothing more.
    pub next: Option<Place>,
    /// Places of the log that cannot be read; `verify` says more.
    pub damaged: u64,
    /// The oldest entry that was looked at.
    oldest: Option<Place>,
}

/// At most `limit` wanted records before `before`. Damaged places are passed over and counted:
/// what can be read is shown.
pub fn page(
    dir: &Path,
    wanted: &Wanted,
    before: Option<Place>,
    limit: usize,
    now: UnixMs,
) -> io::Result<Found> {
    if !dir.is_dir() {
        return Ok(Found::default());
    }
    let newest = before.map_or(now, |place| place.at);
    let end = wanted.to.map_or(newest, |to| to.min(newest));
    let floor = wanted.from.unwrap_or(UnixMs(0)).0.max(0);
    let mut window = WINDOW_MS;
    let mut last: Option<Found> = None;
    loop {
        let from = end.0.saturating_sub(window).max(floor);
        let whole = from <= floor;
        let read = read(dir, wanted, (UnixMs(from), end), before, limit, last.is_some())?;
        let Some(mut found) = read else {
            // Too many at once: what the window before found, and the rest the next time.
            let mut found = last.unwrap_or_default();
            let reached = UnixMs(end.0.saturating_sub(window / GROWS));
            let number = before.map_or(u64::MAX, |place| place.number);
            found.next = found.oldest.or(Some(Place { number, at: reached }));
            return Ok(found);
        };
        if found.next.is_some() || whole {
            return Ok(found);
        }
        if found.records.len() == limit {
            found.next = found.records.last().map(|(_, place)| *place);
            return Ok(found);
        }
        last = Some(found);
        window = window.saturating_mul(GROWS);
    }
}

/// Reads one window. None if `bounded` and it has too many entries.
fn read(
    dir: &Path,
    wanted: &Wanted,
    (from, end): (UnixMs, UnixMs),
    before: Option<Place>,
    limit: usize,
    bounded: bool,
) -> io::Result<Option<Found>> {
    let mut kept: VecDeque<(Record, Place)> = VecDeque::new();
    let (mut found, mut more) = (Found::default(), false);
    let (mut looked, mut beyond) = (0, 0);
    for entry in Reader::open(Dir::existing(dir)?, from)? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(ReadError::Damaged { .. }) => {
                found.damaged += 1;
                continue;
            }
            Err(ReadError::Io { source, .. }) => return Err(source),
        };
        let place = Place { number: entry.number, at: entry.at };
        if before.is_some_and(|before| place.number >= before.number) {
            break;
        }
        // Entries lie in the order in which they were recorded, so about in that of their times.
        beyond = if place.at.0 > end.0.saturating_add(WINDOW_MS) { beyond + 1 } else { 0 };
        if beyond > BEYOND_MAX {
            break;
        }
        looked += 1;
        if bounded && looked > LOOKED_MAX {
            return Ok(None);
        }
        found.oldest.get_or_insert(place);
        if let Some(record) = matching(&entry, wanted) {
            if kept.len() == limit {
                kept.pop_front();
                more = true;
            }
            kept.push_back((record, place));
        }
    }
    found.records = kept.into_iter().rev().collect();
    found.next = more.then(|| found.records.last().map(|(_, place)| *place)).flatten();
    Ok(Some(found))
}

fn matching(entry: &Entry, wanted: &Wanted) -> Option<Record> {
    if wanted.to.is_some_and(|to| entry.at >= to) || wanted.from.is_some_and(|from| entry.at < from)
    {
        return None;
    }
    if entry.kind != body::ACT {
        return None;
    }
    let record = body::decode(entry.at, &entry.body)?;
    wanted.has(&record.action, &record.target).then_some(record)
}
