//! How kube-apiserver seals a value for etcd: opened to prove that it can be, sealed to rewrite it.
//!
//! `info(32) ‖ nonce(12) ‖ ciphertext ‖ tag(16)`, AES-256-GCM under
//! HKDF-Expand(SHA-256, seed, info), the additional authenticated data being the full etcd key.
//! Source: k8s.io/apiserver `pkg/storage/value/encrypt/aes` and `envelope/kmsv2`.

use crate::sealed::OpenError;
use crate::secret::SecretBytes;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, rand};
use zeroize::Zeroizing;

const INFO: usize = 32;
const NONCE: usize = 12;
const TAG: usize = 16;

/// Bytes of a seed.
pub const SEED: usize = 32;

/// Bytes that sealing under a seed adds.
pub const OVERHEAD: usize = INFO + NONCE + TAG;

/// Opens a value that was sealed under `seed` for the etcd key `key`.
pub fn open_seeded(seed: &[u8], key: &[u8], body: &[u8]) -> Result<SecretBytes, OpenError> {
    let (info, rest) = body.split_at_checked(INFO).ok_or(OpenError)?;
    let dek = derive(seed, info).ok_or(OpenError)?;
    open_with(dek.as_slice(), key, rest)
}

/// Opens a value that was sealed under the DEK itself, as API servers did before 1.29:
/// `nonce(12) ‖ ciphertext ‖ tag(16)`.
pub fn open_with(dek: &[u8], key: &[u8], body: &[u8]) -> Result<SecretBytes, OpenError> {
    let (nonce, sealed) = body.split_first_chunk::<NONCE>().ok_or(OpenError)?;
    let dek = UnboundKey::new(&AES_256_GCM, dek).map_err(|_| OpenError)?;
    let mut buffer = Zeroizing::new(sealed.to_vec());
    let len = LessSafeKey::new(dek)
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(key), &mut buffer)
        .map_err(|_| OpenError)?
        .len();
    buffer.truncate(len);
    Ok(SecretBytes::new(std::mem::take(&mut *buffer)))
}

/// Seals `plaintext` under `seed` for the etcd key `key`, with a key derived for this value
/// alone. None if the seed is not 32 bytes.
///
/// # Panics
/// When the system's random source fails.
pub fn seal_seeded(seed: &[u8], key: &[u8], plaintext: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; INFO + NONCE];
    rand::fill(&mut out).expect("the system's random source answers");
    let dek = derive(seed, &out[..INFO])?;
    let dek = UnboundKey::new(&AES_256_GCM, dek.as_slice()).expect("AES-256 takes 32 bytes");
    let nonce: [u8; NONCE] = out[INFO..].try_into().expect("12 bytes behind the info");
    out.extend_from_slice(plaintext);
    let tag = LessSafeKey::new(dek)
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(key),
            &mut out[INFO + NONCE..],
        )
        .expect("AES-GCM seals anything under 64 GiB");
    out.extend_from_slice(tag.as_ref());
    Some(out)
}

fn derive(seed: &[u8], info: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    if seed.len() != SEED {
        return None;
    }
    let mut dek = Zeroizing::new([0u8; 32]);
    let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, seed);
    // The length type is ours only to ask for 32 bytes.
    prk.expand(&[info], hkdf::HKDF_SHA256).ok()?.fill(dek.as_mut_slice()).ok()?;
    Some(dek)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_under_its_seed_and_key_only() {
        let (seed, key) = ([7; 32], b"/registry/secrets/ns/a".as_slice());
        let body = seal_seeded(&seed, key, b"value").expect("32 bytes");
        assert_eq!(body.len(), OVERHEAD + 5);
        assert_eq!(open_seeded(&seed, key, &body).expect("opens").expose(), b"value");
        assert!(open_seeded(&[8; 32], key, &body).is_err());
        assert!(open_seeded(&seed, b"/registry/secrets/ns/b", &body).is_err());
        assert!(open_seeded(&seed[..31], key, &body).is_err());
        for i in 0..body.len() {
            let mut changed = body.clone();
            changed[i] ^= 1;
            assert!(open_seeded(&seed, key, &changed).is_err(), "byte {i}");
            assert!(open_seeded(&seed, key, &body[..i]).is_err(), "{i} bytes");
        }
        assert!(seal_seeded(&seed[..16], key, b"value").is_none());
    }
}
