//! Checkpoints: the head of the chain, signed. One that has left the machine proves for ever what
//! the log said up to there.

use crate::WriterId;
use crate::format::{Bytes, Link, unsigned};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claviger_crypto::sign::{PublicKey, SIGNATURE_LEN, SigningKey};
use claviger_domain::id::UnixMs;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use uuid::Uuid;

/// Bytes of an [`Anchor`].
pub const ANCHOR_MAX: usize = 256;
/// In front of what is signed, so that a signature over anything else is none of a checkpoint.
const LABEL: &[u8] = b"claviger audit checkpoint 1";
const VERSION: u8 = 1;
/// In front of a checkpoint written as text.
const TEXT: &str = "claviger-audit-checkpoint-1:";

/// Signs checkpoints. The key lives where root keys do; this crate only asks.
pub trait Signer: Send {
    /// What others check the signatures with.
    fn public(&self) -> PublicKey;
    /// The signature over `message`. Called at most once a second or so; answers soon.
    fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE_LEN], SignError>;
}

/// The signer gave no signature.
#[derive(Debug, Error)]
#[error("the key that signs audit checkpoints gave no signature")]
pub struct SignError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

impl Signer for SigningKey {
    fn public(&self) -> PublicKey {
        SigningKey::public(self)
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE_LEN], SignError> {
        Ok(SigningKey::sign(self, message))
    }
}

/// Opaque bytes of the caller that a checkpoint signs with the rest: it binds another record (the
/// newest audit row of the database) to this place of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Anchor(Vec<u8>);

impl Anchor {
    /// None if there are more than [`ANCHOR_MAX`] bytes.
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() <= ANCHOR_MAX).then_some(Self(bytes))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Why a checkpoint was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It was time.
    Due,
    /// The segment was full.
    Full,
    /// The writer was closed.
    Closed,
    /// The segment was removed; the checkpoint stands for it.
    Removed,
}

impl Why {
    fn byte(self) -> u8 {
        match self {
            Why::Due => 0,
            Why::Full => 1,
            Why::Closed => 2,
            Why::Removed => 3,
        }
    }

    fn of(byte: u8) -> Option<Self> {
        [Why::Due, Why::Full, Why::Closed, Why::Removed].into_iter().find(|w| w.byte() == byte)
    }
}

/// What a checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statement {
    pub why: Why,
    pub writer: WriterId,
    pub start: u64,
    pub sequence: u64,
    pub offset: u64,
    pub records: u64,
    pub at: UnixMs,
    pub head: Link,
    pub key: [u8; 8],
    pub anchor: Anchor,
}

impl Statement {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, self.why.byte()];
        out.extend_from_slice(self.writer.0.as_bytes());
        for number in [self.start, self.sequence, self.offset, self.records, unsigned(self.at)] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&self.head);
        out.extend_from_slice(&self.key);
        let anchor = u16::try_from(self.anchor.0.len()).expect("anchors have at most ANCHOR_MAX");
        out.extend_from_slice(&anchor.to_be_bytes());
        out.extend_from_slice(&self.anchor.0);
        out
    }

    pub(crate) fn sign(self, signer: &dyn Signer) -> Result<Checkpoint, SignError> {
        let signature = signer.sign(&[LABEL, &self.encode()].concat())?;
        Ok(Checkpoint { statement: self, signature })
    }
}

/// A signed head of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub(crate) statement: Statement,
    signature: [u8; SIGNATURE_LEN],
}

impl Checkpoint {
    /// Whose log it is about.
    pub fn writer(&self) -> WriterId {
        self.statement.writer
    }

    /// Which start of the writer.
    pub fn start(&self) -> u64 {
        self.statement.start
    }

    /// Which segment.
    pub fn sequence(&self) -> u64 {
        self.statement.sequence
    }

    /// Bytes of the segment that it covers.
    pub fn offset(&self) -> u64 {
        self.statement.offset
    }

    /// The last record that it covers, counted over the writer's life.
    pub fn records(&self) -> u64 {
        self.statement.records
    }

    /// When it was signed, by the writer's clock.
    pub fn at(&self) -> UnixMs {
        self.statement.at
    }

    /// The hash over everything up to there.
    pub fn head(&self) -> &[u8; 32] {
        &self.statement.head
    }

    /// What the caller bound to it.
    pub fn anchor(&self) -> &Anchor {
        &self.statement.anchor
    }

    /// Why it was made.
    pub fn why(&self) -> Why {
        self.statement.why
    }

    /// Whether one of the keys in `trusted` signed it.
    pub fn signed_by(&self, trusted: &[PublicKey]) -> bool {
        let message = [LABEL, &self.statement.encode()].concat();
        trusted
            .iter()
            .filter(|key| key.id() == self.statement.key)
            .any(|key| key.signed(&message, &self.signature))
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.statement.encode();
        out.extend_from_slice(&self.signature);
        out
    }

    /// The checkpoint whose bytes these are; says nothing about the signature.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Bytes(bytes);
        let checkpoint = Self::take(&mut rest)?;
        rest.0.is_empty().then_some(checkpoint)
    }

    /// The checkpoint that `rest` begins with.
    pub(crate) fn take(rest: &mut Bytes<'_>) -> Option<Self> {
        if rest.array()? != [VERSION] {
            return None;
        }
        let why = Why::of(rest.array::<1>()?[0])?;
        let statement = Statement {
            why,
            writer: WriterId(Uuid::from_bytes(rest.array()?)),
            start: rest.number()?,
            sequence: rest.number()?,
            offset: rest.number()?,
            records: rest.number()?,
            at: rest.time()?,
            head: rest.array()?,
            key: rest.array()?,
            anchor: {
                let len = usize::from(u16::from_be_bytes(rest.array()?));
                Anchor::new(rest.take(len)?.to_vec())?
            },
        };
        Some(Self { statement, signature: rest.array()? })
    }
}

/// As one line of text without a line feed, in which it leaves the machine.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TEXT}{}", STANDARD.encode(self.encode()))
    }
}

/// A text is no checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the line holds what begins like an audit checkpoint and is none")]
pub struct CheckpointError;

impl FromStr for Checkpoint {
    type Err = CheckpointError;

    fn from_str(text: &str) -> Result<Self, CheckpointError> {
        let text = text.strip_prefix(TEXT).ok_or(CheckpointError)?;
        let bytes = STANDARD.decode(text).map_err(|_| CheckpointError)?;
        Self::decode(&bytes).ok_or(CheckpointError)
    }
}

/// Every checkpoint in `text`, one for each line that holds one anywhere: as a file sink wrote
/// them, or as a syslog daemon did behind fields of its own. Lines without one are passed over.
pub fn checkpoints_of(text: &str) -> impl Iterator<Item = Result<Checkpoint, CheckpointError>> {
    text.lines().filter_map(|line| {
        let found = &line[line.find(TEXT)?..];
        Some(found.split_whitespace().next()?.parse())
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use claviger_crypto::Key32;

    pub(crate) fn key(seed: u8) -> SigningKey {
        SigningKey::of_seed(&Key32::take(&mut [seed; 32]).expect("32 bytes"))
    }

    pub(crate) fn checkpoint() -> Checkpoint {
        let key = key(1);
        let statement = Statement {
            why: Why::Due,
            writer: WriterId(Uuid::from_u128(7)),
            start: 1,
            sequence: 2,
            offset: 3,
            records: 4,
            at: UnixMs(5),
            head: [6; 32],
            key: key.public().id(),
            anchor: Anchor::new(b"row 8".to_vec()).expect("short"),
        };
        statement.sign(&key).expect("signs")
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let bytes = checkpoint().encode();
        let trusted = [key(2).public(), key(1).public()];
        assert!(Checkpoint::decode(&bytes).expect("decodes").signed_by(&trusted));
        assert!(!Checkpoint::decode(&bytes).expect("decodes").signed_by(&trusted[..1]));
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            let passes = Checkpoint::decode(&bytes).is_some_and(|c| c.signed_by(&trusted));
            assert!(!passes, "byte {at}");
        }
        for len in 0..bytes.len() {
            assert!(Checkpoint::decode(&bytes[..len]).is_none(), "{len} bytes");
        }
    }

    #[test]
    fn lines_of_a_syslog_are_read() {
        let wanted = checkpoint();
        let text =
            format!("noise\n<109>1 - host claviger 7 - - {wanted}\n{wanted}\n\n{TEXT}AAAA\n");
        let read: Vec<_> = checkpoints_of(&text).collect();
        assert_eq!(read, [Ok(wanted.clone()), Ok(wanted), Err(CheckpointError)]);
    }
}
