//! Ciphertexts of the key service and of records. What opens is what was sealed, and nothing
//! that differs from it.
#![no_main]

use claviger_crypto::kek::{Carried, Kek, serial_of};
use claviger_crypto::wrapped::Wrapped;
use claviger_crypto::{Key32, SealingKey, value};
use claviger_domain::id::{InstanceId, KeyId, KeyVersionId, Serial};
use claviger_domain::key::{RootKey, RootVersion};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use std::sync::LazyLock;

/// The vectors of the formats.
static VECTORS: LazyLock<Value> = LazyLock::new(|| {
    let text = include_str!("../../crates/crypto/tests/vectors.json");
    serde_json::from_str(text).expect("JSON")
});

struct Sealed {
    material: SealingKey,
    root: RootVersion,
    aad: Vec<String>,
    opens: Vec<u8>,
}

static WRAPPED: LazyLock<Vec<Sealed>> = LazyLock::new(|| {
    let cases = VECTORS["wrapped"].as_array().expect("a list").iter();
    let cases = cases.filter(|case| case["opens"].is_string());
    cases
        .map(|case| {
            let id = |field: &str| case[field].as_str().expect("text").parse().expect("a UUID");
            let (instance, key) = (InstanceId(id("instance")), KeyId(id("key")));
            let version = KeyVersionId(id("version"));
            Sealed {
                material: SealingKey::of_material(&bytes(&case["material"])),
                root: RootVersion { root: RootKey { instance, key }, version },
                aad: serde_json::from_value(case["aad"].clone()).expect("texts"),
                opens: bytes(&case["opens"]),
            }
        })
        .collect()
});

static KEK: LazyLock<(Kek, Vec<u8>)> = LazyLock::new(|| {
    let case = &VECTORS["seed"][0];
    let key = Key32::take(&mut bytes(&case["kek"])).expect("32 bytes");
    let serial = Serial(case["serial"].as_u64().expect("a number"));
    let key_id = case["key_id"].as_str().expect("text").to_owned();
    (Kek::new(serial, key_id, &key), bytes(&case["sealed"]))
});

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().expect("text");
    let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digits).collect()
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 4 {
        0 => {
            let Ok(text) = std::str::from_utf8(rest) else { return };
            let Ok(wrapped) = Wrapped::parse(text) else { return };
            for known in WRAPPED.iter() {
                if let Ok(opened) = wrapped.open(&known.material, &known.root, &known.aad) {
                    let sealed = WRAPPED.iter().any(|other| other.opens == opened.expose());
                    assert!(sealed, "it opens to what nobody has sealed");
                }
            }
        }
        1 => {
            let Some(carried) = Carried::parse(rest) else { return };
            assert_eq!(carried.to_bytes(), rest, "it reads back as something else");
        }
        2 => {
            let (kek, sealed) = &*KEK;
            let _ = serial_of(rest);
            assert!(kek.open(rest).is_err() || rest == sealed, "a changed seed opens");
        }
        _ => {
            // Nobody has sealed anything under this seed.
            assert!(value::open_seeded(&[3; 32], b"/registry/secrets/a/b", rest).is_err());
            assert!(value::open_with(&[3; 32], b"/registry/secrets/a/b", rest).is_err());
        }
    }
});
