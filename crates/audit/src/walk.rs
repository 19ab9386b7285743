//! Reads one segment frame by frame, holding the chain against each; at most a frame in memory.

use crate::checkpoint::Checkpoint;
use crate::files::File;
use crate::format::{
    self, Bytes, FRAME_HEAD, GROUP_MAX, HEADER_LEN, Header, KIND_CHECKPOINT, LINK_LEN, Mark,
};
use claviger_crypto::sign::PublicKey;
use claviger_domain::id::UnixMs;
use std::io;
use std::ops::Range;

/// A torn tail is no longer than what one flush covers. Anything longer is damage.
pub(crate) const CUT_MAX: u64 = 4 * 1024 * 1024;
/// Bytes that are read at once, and so the memory of a reader.
const READ: usize = 2 * GROUP_MAX;

/// What comes next in a segment.
pub(crate) enum Step {
    /// A group of records, in [`Walk::payload`].
    Group { newest: UnixMs },
    /// A checkpoint that stands in the log; its signature has not been looked at.
    Checkpoint(Box<Checkpoint>),
    /// Nothing; ask again when the file may have grown.
    End,
    /// Bytes that are no frame of this chain.
    Broken,
}

/// A segment that is being read.
pub(crate) struct Walk<A> {
    file: A,
    header: Header,
    /// Behind the last frame that was read.
    mark: Mark,
    len: u64,
    window: Vec<u8>,
    window_at: u64,
    payload: Range<usize>,
}

/// A segment whose header cannot be read.
pub(crate) struct NoHeader {
    /// Bytes of the file.
    pub len: u64,
}

impl NoHeader {
    /// Whether its writer was stopped before the header was durable. It writes nothing behind a
    /// header before that.
    pub(crate) fn unborn(&self) -> bool {
        self.len <= HEADER_LEN as u64
    }
}

impl<A: File> Walk<A> {
    /// Reads the header.
    pub(crate) fn open(file: A) -> io::Result<Result<Self, NoHeader>> {
        let len = file.size()?;
        let mut bytes = [0; HEADER_LEN];
        let read = file.read_at(&mut bytes, 0)?;
        let Some((header, link)) = (read == HEADER_LEN).then(|| Header::decode(&bytes)).flatten()
        else {
            return Ok(Err(NoHeader { len }));
        };
        let mark = header.mark(link);
        let (window, window_at) = (Vec::new(), mark.len);
        Ok(Ok(Self { file, header, mark, len, window, window_at, payload: 0..0 }))
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn mark(&self) -> Mark {
        self.mark
    }

    pub(crate) fn file(&self) -> &A {
        &self.file
    }

    pub(crate) fn into_file(self) -> A {
        self.file
    }

    /// Bytes of the file, as of the last look.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Looks anew how long the file is, and forgets what was read ahead.
    pub(crate) fn look_again(&mut self) -> io::Result<()> {
        self.len = self.file.size()?;
        self.window.clear();
        Ok(())
    }

    /// Payload of the group that [`Walk::step`] gave last.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.window[self.payload.clone()]
    }

    /// The next frame; [`Walk::mark`] is behind it then.
    pub(crate) fn step(&mut self) -> io::Result<Step> {
        if self.mark.len >= self.len {
            return Ok(Step::End);
        }
        let Some(head) = self.view(FRAME_HEAD)? else { return Ok(Step::Broken) };
        let head = self.window[head].try_into().expect("the view has this length");
        let Some((payload, kind)) = format::frame_head(head) else { return Ok(Step::Broken) };
        let Some(frame) = self.view(FRAME_HEAD + payload + LINK_LEN)? else {
            return Ok(Step::Broken);
        };
        self.payload = frame.start + FRAME_HEAD..frame.start + FRAME_HEAD + payload;
        let Some(link) = format::chained(&self.mark.link, &self.window[frame.clone()]) else {
            return Ok(Step::Broken);
        };
        let (step, records) = if kind == KIND_CHECKPOINT {
            match Checkpoint::decode(self.payload()) {
                Some(checkpoint) => (Step::Checkpoint(Box::new(checkpoint)), 0),
                None => return Ok(Step::Broken),
            }
        } else {
            let Some(records) = format::records(self.payload()) else { return Ok(Step::Broken) };
            let count = u32::try_from(records.len()).expect("a group has at most GROUP_MAX bytes");
            let newest = records.iter().map(|record| record.at).max().unwrap_or_default();
            (Step::Group { newest }, count)
        };
        self.mark = Mark {
            len: self.mark.len + frame.len() as u64,
            link,
            records: self.mark.records + u64::from(records),
        };
        Ok(step)
    }

    /// Where in the window the next `len` bytes stand; none if the file ends before.
    fn view(&mut self, len: usize) -> io::Result<Option<Range<usize>>> {
        if self.mark.len + len as u64 > self.len {
            return Ok(None);
        }
        let mut from = usize::try_from(self.mark.len - self.window_at).unwrap_or(usize::MAX);
        if from.saturating_add(len) > self.window.len() {
            let left = usize::try_from(self.len - self.mark.len).unwrap_or(READ);
            self.window.resize(left.min(READ), 0);
            self.window_at = self.mark.len;
            from = 0;
            let read = self.file.read_at(&mut self.window, self.window_at)?;
            self.window.truncate(read);
            if read < len {
                return Ok(None);
            }
        }
        Ok(Some(from..from + len))
    }

    /// Whether the bytes from [`Walk::mark`] on were damaged rather than torn by a stop: there
    /// are more of them than a stop can tear, or a signed checkpoint follows, which is written
    /// only when everything before it is durable.
    pub(crate) fn damaged(&self, trusted: &[PublicKey]) -> io::Result<bool> {
        let tail = self.len.saturating_sub(self.mark.len);
        if tail > CUT_MAX {
            return Ok(true);
        }
        let mut bytes = vec![0; usize::try_from(tail).expect("CUT_MAX fits")];
        let read = self.file.read_at(&mut bytes, self.mark.len)?;
        let writer = self.header.writer.0.as_bytes();
        // A checkpoint's payload begins with version and reason, then its writer.
        let found = bytes[..read].windows(2 + writer.len()).enumerate().any(|(at, window)| {
            if &window[2..] != writer || at < FRAME_HEAD {
                return false;
            }
            let checkpoint = Checkpoint::take(&mut Bytes(&bytes[at..read]));
            checkpoint.is_some_and(|checkpoint| {
                checkpoint.sequence() == self.header.sequence
                    && checkpoint.offset() == self.mark.len + (at - FRAME_HEAD) as u64
                    && checkpoint.offset() > self.mark.len
                    && checkpoint.signed_by(trusted)
            })
        });
        Ok(found)
    }
}
