//! Key material on its way here under an RSA key of ours.
//!
//! The material travels as RSAES-OAEP (RFC 8017, section 7.1, empty label, hash and MGF1 alike).
//! Whoever sends it proves that he has it in the clear: he encrypts our nonce under it, as
//! AES-GCM (12-byte iv, no additional data, tag behind) or AES-CBC with PKCS#7 (16-byte iv).
//! The formats are Key Protect's and Hyper Protect's. Both sides are here, ours and the sender's.

use crate::sealed::OpenError;
use crate::secret::SecretBytes;
use aws_lc_rs::aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    self, AES_128, AES_192, AES_256, DecryptionContext, EncryptionContext,
    PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey,
    OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Bytes of an iv for AES-GCM.
pub const GCM_IV: usize = 12;
/// Bytes of an iv for AES-CBC.
pub const CBC_IV: usize = 16;

/// Which hash RSAES-OAEP uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oaep {
    /// SHA-256: Key Protect.
    Sha256,
    /// SHA-1: Hyper Protect.
    Sha1,
}

impl Oaep {
    fn algorithm(self) -> &'static OaepAlgorithm {
        match self {
            Oaep::Sha256 => &OAEP_SHA256_MGF1SHA256,
            Oaep::Sha1 => &OAEP_SHA1_MGF1SHA1,
        }
    }
}

/// The private half of an RSA-4096 key pair.
pub struct TransportKey(PrivateDecryptingKey);

impl TransportKey {
    /// A new key pair. Takes seconds.
    ///
    /// # Panics
    /// When the system's random source fails.
    pub fn generate() -> TransportKey {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa4096);
        TransportKey(key.expect("the system's random source answers"))
    }

    /// Reads what [`to_pkcs8`](Self::to_pkcs8) gave.
    pub fn from_pkcs8(pkcs8: &SecretBytes) -> Result<TransportKey, OpenError> {
        PrivateDecryptingKey::from_pkcs8(pkcs8.expose()).map(TransportKey).map_err(|_| OpenError)
    }

    /// The key as PKCS#8.
    ///
    /// # Panics
    /// When memory runs out.
    pub fn to_pkcs8(&self) -> SecretBytes {
        // The library wipes its own copy when it is dropped.
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&self.0).expect("a key of ours has a DER");
        SecretBytes::new(der.as_ref().to_vec())
    }

    /// The public half: PEM of a SubjectPublicKeyInfo (RFC 7468, section 13).
    ///
    /// # Panics
    /// When memory runs out.
    pub fn public_pem(&self) -> String {
        let public = self.0.public_key();
        let der = AsDer::<PublicKeyX509Der<'_>>::as_der(&public).expect("a key of ours has a DER");
        let text = STANDARD.encode(der.as_ref());
        let mut pem = "-----BEGIN PUBLIC KEY-----\n".to_owned();
        for line in text.as_bytes().chunks(64) {
            pem.extend(line.iter().map(|b| char::from(*b)));
            pem.push('\n');
        }
        pem.push_str("-----END PUBLIC KEY-----\n");
        pem
    }

    /// Opens what was sealed for this key.
    pub fn open(&self, oaep: Oaep, sealed: &[u8]) -> Result<SecretBytes, OpenError> {
        let key = OaepPrivateDecryptingKey::new(self.0.clone()).map_err(|_| OpenError)?;
        let mut out = Zeroizing::new(vec![0; key.min_output_size()]);
        let opened = key.decrypt(oaep.algorithm(), sealed, &mut out, None);
        Ok(SecretBytes::new(opened.map_err(|_| OpenError)?.to_vec()))
    }
}

/// Seals material for the holder of the key whose public half is `pem`: the sender's side.
pub fn seal_for(pem: &str, oaep: Oaep, material: &[u8]) -> Result<Vec<u8>, OpenError> {
    let text: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(text).map_err(|_| OpenError)?;
    let key = PublicEncryptingKey::from_der(&der).map_err(|_| OpenError)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| OpenError)?;
    let mut out = vec![0; key.ciphertext_size()];
    let len = key.encrypt(oaep.algorithm(), material, &mut out, None).map_err(|_| OpenError)?.len();
    out.truncate(len);
    Ok(out)
}

/// Encrypts a nonce under the material: the sender's side. The length of `iv` says how; one iv
/// is for one material only.
pub fn seal_nonce(material: &[u8], iv: &[u8], nonce: &[u8]) -> Result<Vec<u8>, OpenError> {
    let mut out = nonce.to_vec();
    if let Ok(iv) = <[u8; GCM_IV]>::try_from(iv) {
        let iv = Nonce::assume_unique_for_key(iv);
        gcm(material)?
            .seal_in_place_append_tag(iv, Aad::empty(), &mut out)
            .map_err(|_| OpenError)?;
        return Ok(out);
    }
    let iv = <[u8; CBC_IV]>::try_from(iv).map_err(|_| OpenError)?;
    let key = PaddedBlockEncryptingKey::cbc_pkcs7(cbc(material)?).map_err(|_| OpenError)?;
    let context = EncryptionContext::Iv128(iv.into());
    key.less_safe_encrypt(&mut out, context).map_err(|_| OpenError)?;
    Ok(out)
}

/// Decrypts a nonce under the material. The length of `iv` says how.
pub fn open_nonce(material: &[u8], iv: &[u8], sealed: &[u8]) -> Result<SecretBytes, OpenError> {
    let mut buffer = Zeroizing::new(sealed.to_vec());
    let len = if let Ok(iv) = <[u8; GCM_IV]>::try_from(iv) {
        let iv = Nonce::assume_unique_for_key(iv);
        let key = gcm(material)?;
        key.open_in_place(iv, Aad::empty(), &mut buffer).map_err(|_| OpenError)?.len()
    } else {
        let iv = <[u8; CBC_IV]>::try_from(iv).map_err(|_| OpenError)?;
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(cbc(material)?).map_err(|_| OpenError)?;
        let context = DecryptionContext::Iv128(iv.into());
        key.decrypt(&mut buffer, context).map_err(|_| OpenError)?.len()
    };
    buffer.truncate(len);
    Ok(SecretBytes::new(std::mem::take(&mut *buffer)))
}

fn gcm(material: &[u8]) -> Result<LessSafeKey, OpenError> {
    let algorithm = match material.len() {
        16 => &AES_128_GCM,
        24 => &AES_192_GCM,
        32 => &AES_256_GCM,
        _ => return Err(OpenError),
    };
    UnboundKey::new(algorithm, material).map(LessSafeKey::new).map_err(|_| OpenError)
}

fn cbc(material: &[u8]) -> Result<UnboundCipherKey, OpenError> {
    let algorithm: &'static cipher::Algorithm = match material.len() {
        16 => &AES_128,
        24 => &AES_192,
        32 => &AES_256,
        _ => return Err(OpenError),
    };
    UnboundCipherKey::new(algorithm, material).map_err(|_| OpenError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn material_arrives_under_the_right_key_and_hash_only() {
        let key = TransportKey::generate();
        let pem = key.public_pem();
        let key = TransportKey::from_pkcs8(&key.to_pkcs8()).expect("our own");
        for oaep in [Oaep::Sha256, Oaep::Sha1] {
            let mut sealed = seal_for(&pem, oaep, &[7; 32]).expect("seals");
            assert_eq!(sealed.len(), 512);
            assert_eq!(key.open(oaep, &sealed).expect("opens").expose(), [7; 32]);
            let other = if oaep == Oaep::Sha1 { Oaep::Sha256 } else { Oaep::Sha1 };
            assert!(key.open(other, &sealed).is_err());
            assert!(key.open(oaep, &sealed[..511]).is_err());
            sealed[100] ^= 1;
            assert!(key.open(oaep, &sealed).is_err());
        }
        assert!(seal_for("rubbish", Oaep::Sha256, &[7; 32]).is_err());
    }

    #[test]
    fn nonces_open_under_the_same_material_and_iv() {
        for (iv, sealed_len) in [(&[1_u8; GCM_IV][..], 28), (&[1_u8; CBC_IV][..], 16)] {
            for len in [16, 24, 32] {
                let material = vec![9; len];
                let sealed = seal_nonce(&material, iv, b"twelve bytes").expect("seals");
                assert_eq!(sealed.len(), sealed_len);
                let opened = open_nonce(&material, iv, &sealed).expect("opens");
                assert_eq!(opened.expose(), b"twelve bytes");
                // CBC has no tag: another key may leave sane padding, but never the nonce.
                if let Ok(other) = open_nonce(&vec![8; len], iv, &sealed) {
                    assert_ne!(other.expose(), b"twelve bytes");
                }
            }
            assert!(open_nonce(&[9; 15], iv, &[0; 28]).is_err());
            assert!(open_nonce(&[9; 32], iv, &[]).is_err());
        }
        assert!(open_nonce(&[9; 32], &[1; 13], &[0; 28]).is_err());
    }

    /// NIST SP 800-38D's algorithm on a published case: McGrew and Viega, "The Galois/Counter
    /// Mode of Operation", test case 3 with its first 16 bytes of text, without the tag.
    #[test]
    fn the_nonce_is_plain_gcm() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len() / 2)
                .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hexadecimal"))
                .collect()
        };
        let key = hex("feffe9928665731c6d6a8f9467308308");
        let iv = hex("cafebabefacedbaddecaf888");
        let text = hex("d9313225f88406e5a55909c5aff5269a");
        let sealed = seal_nonce(&key, &iv, &text).expect("seals");
        assert_eq!(sealed[..16], hex("42831ec2217774244b7221b784d0d49c"));
    }
}
