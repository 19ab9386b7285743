//! Key material as it arrives under an import token: RSA-OAEP, and a nonce under the material.
#![no_main]

use claviger_crypto::transport::{
    CBC_IV, GCM_IV, Oaep, TransportKey, open_nonce, seal_for, seal_nonce,
};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

/// The server's key pair and the sender's half.
static KEY: LazyLock<(TransportKey, String)> = LazyLock::new(|| {
    let key = TransportKey::generate();
    let pem = key.public_pem();
    (key, pem)
});

fuzz_target!(|input: &[u8]| {
    let [kind, rest @ ..] = input else { return };
    let oaep = if kind & 1 == 0 { Oaep::Sha256 } else { Oaep::Sha1 };
    let iv_len = [GCM_IV, CBC_IV, 13][usize::from(kind >> 1) % 3];
    let material_len = [16, 24, 32, 15][usize::from(kind >> 3) % 4];
    match kind >> 5 {
        0 => {
            // RSA is slow, so only what has the right length is tried.
            let (key, _) = &*KEY;
            let mut sealed = rest.to_vec();
            sealed.resize(512, 0);
            assert!(key.open(oaep, &sealed).is_err(), "nobody has sealed this");
            assert!(key.open(oaep, rest).is_err(), "nobody has sealed this");
        }
        1 => {
            let (key, pem) = &*KEY;
            let Ok(mut sealed) =
                seal_for(pem, oaep, rest.get(..rest.len().min(190)).unwrap_or(&[]))
            else {
                return;
            };
            let opened = key.open(oaep, &sealed).expect("our own");
            assert_eq!(opened.expose(), &rest[..rest.len().min(190)]);
            let at = rest.len() % sealed.len();
            sealed[at] ^= 1;
            assert!(key.open(oaep, &sealed).is_err(), "a changed one opens");
        }
        2 => {
            let _ = seal_for(&String::from_utf8_lossy(rest), oaep, &[7; 32]);
        }
        _ => {
            if rest.len() < iv_len + material_len {
                return;
            }
            let (material, rest) = rest.split_at(material_len);
            let (iv, nonce) = rest.split_at(iv_len);
            let _ = open_nonce(material, iv, nonce);
            if let Ok(sealed) = seal_nonce(material, iv, nonce) {
                let opened = open_nonce(material, iv, &sealed).expect("our own");
                assert_eq!(opened.expose(), nonce);
            }
        }
    }
});
