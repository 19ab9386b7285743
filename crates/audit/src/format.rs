//! Bytes of a segment: its header, then frames, each with the link that chains it.
//! `docs/formats.md` is the description; these functions only put bytes into places.

use crate::{Record, WriterId};
use claviger_crypto::digest::Sha256;
use claviger_domain::id::UnixMs;
use uuid::Uuid;

/// Bytes of one record's body. The longest that the server writes is below 4 KiB.
pub const BODY_MAX: usize = 16 * 1024;
/// Bytes of one group's payload: bounds what waits, what a write takes, and what a reader holds.
pub const GROUP_MAX: usize = 1024 * 1024;

const MAGIC: &[u8; 17] = b"claviger-audit-1\n";
/// Bytes of a segment's header.
pub(crate) const HEADER_LEN: usize = 154;
/// Bytes of a frame before its payload: length and kind.
pub(crate) const FRAME_HEAD: usize = 5;
/// Bytes of a link.
pub(crate) const LINK_LEN: usize = 32;
/// Bytes of a record before its body: length, time, kind.
const RECORD_HEAD: usize = 12;

/// Numbers and times are below this, which no writer reaches, so that sums of what a forged file
/// says stay in range.
const NUMBER_MAX: u64 = 1 << 48;

/// Kinds of frames.
pub(crate) const KIND_GROUP: u8 = 1;
pub(crate) const KIND_CHECKPOINT: u8 = 2;

/// SHA-256 over everything up to here: of a segment's header, or of the link before and a frame.
pub(crate) type Link = [u8; LINK_LEN];

/// A place between two frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Bytes of the segment up to here.
    pub len: u64,
    /// The chain up to here.
    pub link: Link,
    /// Number of the last record before here, counted over the writer's life.
    pub records: u64,
}

/// How the segment before this one ended, as its writer found or left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// There is none: this is the writer's first.
    First,
    /// With a checkpoint: it was full, or its writer closed it.
    Whole,
    /// It was full, but nobody signed a checkpoint; the next one covers it.
    Unsigned,
    /// Its writer was stopped. Bytes behind the last whole frame, if any, were torn and cut off.
    Torn,
    /// The disk failed to flush it. Bytes behind the last flush that succeeded are no part of the
    /// log; whatever in them was answered stands in this segment again.
    Doubtful,
    /// A start found it damaged, or shorter than a checkpoint says.
    Damaged,
}

impl Ended {
    fn byte(self) -> u8 {
        match self {
            Ended::First => 0,
            Ended::Whole => 1,
            Ended::Unsigned => 2,
            Ended::Torn => 3,
            Ended::Doubtful => 4,
            Ended::Damaged => 5,
        }
    }

    fn of(byte: u8) -> Option<Self> {
        [Ended::First, Ended::Whole, Ended::Unsigned, Ended::Torn, Ended::Doubtful, Ended::Damaged]
            .into_iter()
            .find(|ended| ended.byte() == byte)
    }
}

/// What a segment says of itself and of the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub ended: Ended,
    pub writer: WriterId,
    /// Counts the writer's starts, from 1.
    pub start: u64,
    /// Counts the writer's segments, from 1, over all starts.
    pub sequence: u64,
    /// Number of the first record in here.
    pub first_record: u64,
    pub created: UnixMs,
    /// No record before this segment is newer.
    pub newest: UnixMs,
    /// Bytes of the segment before that belong to the log.
    pub before_len: u64,
    /// At most so many bytes may follow them in that file; they are no part of the log.
    pub before_cut: u64,
    /// Link at the end of the segment before.
    pub before_head: Link,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend_from_slice(MAGIC);
        out.push(self.ended.byte());
        out.extend_from_slice(self.writer.0.as_bytes());
        for number in [
            self.start,
            self.sequence,
            self.first_record,
            unsigned(self.created),
            unsigned(self.newest),
            self.before_len,
            self.before_cut,
        ] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&self.before_head);
        let link = hash(&[&out]);
        out.extend_from_slice(&link);
        out.try_into().expect("the fields have fixed lengths")
    }

    /// The header and the first link of the chain; none if these are not its bytes.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Option<(Header, Link)> {
        let (fields, link) = bytes.split_at(HEADER_LEN - LINK_LEN);
        if hash(&[fields]) != link {
            return None;
        }
        let mut rest = Bytes(fields);
        if rest.array()? != *MAGIC {
            return None;
        }
        let header = Header {
            ended: Ended::of(rest.array::<1>()?[0])?,
            writer: WriterId(Uuid::from_bytes(rest.array()?)),
            start: rest.number()?,
            sequence: rest.number()?,
            first_record: rest.number()?,
            created: rest.time()?,
            newest: rest.time()?,
            before_len: rest.number()?,
            before_cut: rest.number()?,
            before_head: rest.array()?,
        };
        Some((header, link.try_into().ok()?))
    }

    /// Where the frames of this segment begin.
    pub(crate) fn mark(&self, link: Link) -> Mark {
        Mark { len: HEADER_LEN as u64, link, records: self.first_record.saturating_sub(1) }
    }
}

/// Name of the file of segment `sequence`.
pub(crate) fn name(sequence: u64) -> String {
    format!("{sequence:012}.segment")
}

/// Number in the name of a segment's file; none of other files.
pub(crate) fn sequence(file: &str) -> Option<u64> {
    let sequence = file.strip_suffix(".segment")?.parse().ok()?;
    (sequence > 0 && sequence < NUMBER_MAX && name(sequence) == file).then_some(sequence)
}

/// Records on their way into one frame, in the frame's own bytes. Nothing is copied twice.
pub(crate) struct Group {
    frame: Vec<u8>,
    count: u32,
    newest: UnixMs,
}

impl Group {
    pub(crate) fn new() -> Self {
        let mut group = Self { frame: Vec::new(), count: 0, newest: UnixMs(0) };
        group.clear();
        group
    }

    pub(crate) fn clear(&mut self) {
        self.frame.clear();
        self.frame.resize(FRAME_HEAD + 4, 0);
        self.count = 0;
        self.newest = UnixMs(0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Time of the newest record.
    pub(crate) fn newest(&self) -> UnixMs {
        self.newest
    }

    /// Whether a body of so many bytes finds room.
    pub(crate) fn has_room(&self, body: usize) -> bool {
        self.frame.len() - FRAME_HEAD + RECORD_HEAD + body <= GROUP_MAX
    }

    /// Adds a record; the caller has looked for room and at the body's bound.
    pub(crate) fn push(&mut self, record: Record<'_>) {
        let len = u16::try_from(record.body.len()).expect("bodies have at most BODY_MAX bytes");
        self.frame.extend_from_slice(&len.to_be_bytes());
        self.frame.extend_from_slice(&unsigned(record.at).to_be_bytes());
        self.frame.extend_from_slice(&record.kind.to_be_bytes());
        self.frame.extend_from_slice(record.body);
        self.count += 1;
        self.newest = self.newest.max(record.at);
    }

    /// The frame, to be chained; adds the place of its link, so only once.
    pub(crate) fn frame(&mut self) -> &mut [u8] {
        let payload = self.frame.len() - FRAME_HEAD;
        head(&mut self.frame, payload, KIND_GROUP);
        self.frame[FRAME_HEAD..FRAME_HEAD + 4].copy_from_slice(&self.count.to_be_bytes());
        self.frame.resize(FRAME_HEAD + payload + LINK_LEN, 0);
        &mut self.frame
    }
}

/// The frame of a checkpoint, to be chained.
pub(crate) fn checkpoint_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; FRAME_HEAD];
    head(&mut frame, payload.len(), KIND_CHECKPOINT);
    frame.extend_from_slice(payload);
    frame.resize(FRAME_HEAD + payload.len() + LINK_LEN, 0);
    frame
}

fn head(frame: &mut [u8], payload: usize, kind: u8) {
    let len = u32::try_from(payload).expect("payloads have at most GROUP_MAX bytes");
    frame[..4].copy_from_slice(&len.to_be_bytes());
    frame[4] = kind;
}

/// Chains a frame behind `before`: writes its link into its last bytes and gives it back.
pub(crate) fn chain(before: &Link, frame: &mut [u8]) -> Link {
    let at = frame.len() - LINK_LEN;
    let link = hash(&[before, &frame[..at]]);
    frame[at..].copy_from_slice(&link);
    link
}

/// Length of the payload, and kind, of a frame that begins with `head`; none if no frame begins
/// so.
pub(crate) fn frame_head(head: [u8; FRAME_HEAD]) -> Option<(usize, u8)> {
    let [a, b, c, d, kind] = head;
    let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    let known = kind == KIND_GROUP || kind == KIND_CHECKPOINT;
    (known && (1..=GROUP_MAX).contains(&len)).then_some((len, kind))
}

/// Whether the frame's last bytes chain it behind `before`; then its link.
pub(crate) fn chained(before: &Link, frame: &[u8]) -> Option<Link> {
    let (bytes, link) = frame.split_at(frame.len().checked_sub(LINK_LEN)?);
    (hash(&[before, bytes]) == link).then(|| link.try_into().ok())?
}

/// Records of a group's payload, in order; none if these are not its bytes.
pub(crate) fn records(payload: &[u8]) -> Option<Vec<Record<'_>>> {
    let mut rest = Bytes(payload);
    let count = u32::from_be_bytes(rest.array()?) as usize;
    if count == 0 || count > payload.len() / RECORD_HEAD {
        return None;
    }
    let mut records = Vec::with_capacity(count);
    for _ in 0..count {
        let len = usize::from(u16::from_be_bytes(rest.array()?));
        let at = rest.time()?;
        let kind = u16::from_be_bytes(rest.array()?);
        records.push(Record { at, kind, body: rest.take(len)? });
        if len > BODY_MAX {
            return None;
        }
    }
    rest.0.is_empty().then_some(records)
}

fn hash(parts: &[&[u8]]) -> Link {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finish()
}

/// A time as it is stored: before 1970 nothing was recorded, nor will be after the year 10889.
pub(crate) fn unsigned(at: UnixMs) -> u64 {
    u64::try_from(at.0).unwrap_or(0).min(NUMBER_MAX - 1)
}

/// Takes fields off the front of bytes.
pub(crate) struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes).filter(|number| *number < NUMBER_MAX)
    }

    pub(crate) fn time(&mut self) -> Option<UnixMs> {
        i64::try_from(self.number()?).ok().map(UnixMs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_gives_its_records_back() {
        let mut group = Group::new();
        let bodies: [&[u8]; 3] = [b"one", b"", &[7; BODY_MAX]];
        for (at, body) in (5..).zip(bodies) {
            group.push(Record { at: UnixMs(at), kind: 9, body });
        }
        let before = [1; 32];
        let link = chain(&before, group.frame());
        let frame = group.frame.clone();
        assert_eq!(chained(&before, &frame), Some(link));
        assert_eq!(chained(&[2; 32], &frame), None);
        let (len, kind) = frame_head(frame[..FRAME_HEAD].try_into().expect("5")).expect("a frame");
        assert_eq!((len + FRAME_HEAD + LINK_LEN, kind), (frame.len(), KIND_GROUP));
        let payload = &frame[FRAME_HEAD..FRAME_HEAD + len];
        let read = records(payload).expect("records");
        assert_eq!(read.iter().map(|r| r.body).collect::<Vec<_>>(), bodies);
        assert_eq!(read.iter().map(|r| r.at.0).collect::<Vec<_>>(), [5, 6, 7]);
        assert!(records(&payload[..len - 1]).is_none(), "cut");
        assert!(records(&[payload, &[0]].concat()).is_none(), "more than counted");
    }

    #[test]
    fn names_are_read_back() {
        assert_eq!(sequence(&name(17)), Some(17));
        for other in ["17.segment", "heads", "000000000000.segment", "00000000000x.segment"] {
            assert_eq!(sequence(other), None, "{other}");
        }
    }
}
