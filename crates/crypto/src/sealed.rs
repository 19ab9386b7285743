//! The sealed box that every format of ours is built on.
//!
//! `0x01 ‖ salt(24) ‖ commitment(16) ‖ ciphertext ‖ tag(16)`, with
//! `message key(32) ‖ commitment(16) = HKDF-Expand(PRK, label ‖ salt)` and a nonce of zeros,
//! which is safe because the message key is used once. The PRK is the 256-bit key itself: it is
//! uniformly random, so HKDF's extract step adds nothing (RFC 5869, section 3.3).

use crate::secret::{Key32, SecretBytes};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{constant_time, hkdf, rand};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

const VERSION: u8 = 1;
const SALT: usize = 24;
const COMMITMENT: usize = 16;
const TAG: usize = 16;

/// Bytes that sealing adds to a plaintext.
pub const OVERHEAD: usize = 1 + SALT + COMMITMENT + TAG;

/// Largest plaintext: 1 MiB, far above anything that is wrapped here.
pub const PLAINTEXT_MAX: usize = 1 << 20;

/// A sealed text that does not open. One variant, so that nobody can tell a wrong key from a
/// wrong context or a changed byte.
#[derive(Debug, Error, PartialEq, Eq, Clone, Copy)]
#[error("does not open: wrong key, wrong context, or changed bytes")]
pub struct OpenError;

/// A key that seals and opens boxes. Holds its key schedule, so that sealing is fast.
///
/// Boxed, so that moving it (into a map, out of a vector) leaves no unwiped copy behind: only
/// the last place is wiped on drop.
pub struct SealingKey(Box<hkdf::Prk>);

struct Len(usize);
impl hkdf::KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

impl SealingKey {
    /// Makes a sealing key of a 256-bit key.
    pub fn new(key: &Key32) -> Self {
        Self::of_material(key.expose())
    }

    /// Makes a sealing key of uniformly random material of 16, 24 or 32 bytes.
    pub fn of_material(material: &[u8]) -> Self {
        let key = boxed(material);
        scrub_stack();
        Self(key)
    }

    /// Seals `plaintext` for `label`, bound to `context`.
    ///
    /// # Panics
    /// On more than [`PLAINTEXT_MAX`] bytes, or when the system's random source fails.
    pub fn seal(&self, label: &'static [u8], context: &[&[u8]], plaintext: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(OVERHEAD + plaintext.len());
        self.seal_bound(label, &aad(context), plaintext, &mut out);
        out
    }

    /// Appends to `out` what [`seal`](Self::seal) makes for the context that `aad` came of.
    pub(crate) fn seal_bound(
        &self,
        label: &'static [u8],
        aad: &[u8],
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) {
        assert!(plaintext.len() <= PLAINTEXT_MAX, "callers bound their plaintexts");
        let mut salt = [0; SALT];
        rand::fill(&mut salt).expect("the system's random source answers");
        let (key, commitment) = self.message_key(label, &salt);
        out.push(VERSION);
        out.extend_from_slice(&salt);
        out.extend_from_slice(&commitment);
        let body = out.len();
        out.extend_from_slice(plaintext);
        let tag = key
            .seal_in_place_separate_tag(nonce(), Aad::from(aad), &mut out[body..])
            .expect("AES-GCM seals anything under 64 GiB");
        out.extend_from_slice(tag.as_ref());
    }

    /// Opens what [`seal`](Self::seal) made for the same label and context.
    pub fn open(
        &self,
        label: &'static [u8],
        context: &[&[u8]],
        sealed: &[u8],
    ) -> Result<SecretBytes, OpenError> {
        self.open_bound(label, &aad(context), sealed)
    }

    /// As [`open`](Self::open), for the context that `aad` came of.
    pub(crate) fn open_bound(
        &self,
        label: &'static [u8],
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<SecretBytes, OpenError> {
        let rest = sealed.strip_prefix(&[VERSION]).ok_or(OpenError)?;
        if rest.len() < SALT + COMMITMENT + TAG || rest.len() > OVERHEAD + PLAINTEXT_MAX {
            return Err(OpenError);
        }
        let (salt, rest) = rest.split_at(SALT);
        let (claimed, body) = rest.split_at(COMMITMENT);
        let (key, commitment) = self.message_key(label, salt);
        constant_time::verify_slices_are_equal(claimed, &commitment).map_err(|_| OpenError)?;
        let mut buffer = Zeroizing::new(body.to_vec());
        let len =
            key.open_in_place(nonce(), Aad::from(aad), &mut buffer).map_err(|_| OpenError)?.len();
        buffer.truncate(len);
        Ok(SecretBytes::new(std::mem::take(&mut *buffer)))
    }

    fn message_key(&self, label: &[u8], salt: &[u8]) -> (LessSafeKey, [u8; COMMITMENT]) {
        let mut okm = Zeroizing::new([0u8; 32 + COMMITMENT]);
        self.0
            .expand(&[label, salt], Len(okm.len()))
            .and_then(|expanded| expanded.fill(okm.as_mut_slice()))
            .expect("HKDF gives up to 255 blocks");
        let (key, commitment) = okm.split_at(32);
        let key = UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes 32 bytes");
        (LessSafeKey::new(key), commitment.try_into().expect("split at 32 of 48"))
    }
}

/// Not inlined, so that what it leaves on the stack lies where [`scrub_stack`] writes.
#[inline(never)]
fn boxed(material: &[u8]) -> Box<hkdf::Prk> {
    Box::new(hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, material))
}

/// Overwrites the stack below the caller: the library hands keys over by value, and each move
/// leaves a copy in a dead frame. 8 KiB is several times what those frames need.
#[inline(never)]
fn scrub_stack() {
    let mut dead = [0u8; 8 << 10];
    dead.zeroize();
    std::hint::black_box(&mut dead);
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// Each part behind its length, so that no two contexts give the same bytes.
pub(crate) fn aad(context: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(context.iter().map(|part| 4 + part.len()).sum());
    for part in context {
        let len = u32::try_from(part.len()).expect("context parts are short");
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_with_the_same_key_label_context_and_bytes() {
        let (key, other) = (Key32::generate(), Key32::generate());
        let (key, other) = (SealingKey::new(&key), SealingKey::new(&other));
        let sealed = key.seal(b"label", &[b"a", b"bc"], b"secret");
        assert_eq!(sealed.len(), OVERHEAD + 6);
        let open = |k: &SealingKey, label, context: &[&[u8]], bytes: &[u8]| {
            k.open(label, context, bytes).map(|s| s.expose().to_vec())
        };
        assert_eq!(open(&key, b"label", &[b"a", b"bc"], &sealed), Ok(b"secret".to_vec()));
        assert_eq!(open(&other, b"label", &[b"a", b"bc"], &sealed), Err(OpenError));
        assert_eq!(open(&key, b"lab", &[b"a", b"bc"], &sealed), Err(OpenError));
        assert_eq!(open(&key, b"label", &[b"ab", b"c"], &sealed), Err(OpenError));
        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert_eq!(open(&key, b"label", &[b"a", b"bc"], &changed), Err(OpenError), "byte {i}");
            assert_eq!(open(&key, b"label", &[b"a", b"bc"], &sealed[..i]), Err(OpenError));
        }
    }

    #[test]
    fn two_seals_of_one_text_differ() {
        let key = SealingKey::new(&Key32::generate());
        assert_ne!(key.seal(b"l", &[], b"x"), key.seal(b"l", &[], b"x"));
    }
}
