//! The formats of `docs/formats.md` against vectors that a second implementation made
//! (`vectors.py`), so that a change of format cannot pass unseen: old ciphertexts live for ever.

use claviger_crypto::kek::{Carried, Kek};
use claviger_crypto::wrapped::Wrapped;
use claviger_crypto::{Key32, SealingKey};
use claviger_domain::id::Serial;
use claviger_domain::key::{RootKey, RootVersion};
use serde_json::Value;

fn cases(kind: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("vectors.json")).expect("JSON");
    let cases = all[kind].as_array().expect("a list").clone();
    assert!(cases.len() >= 5, "{kind}: vectors that pass and vectors that fail");
    cases
}

fn text<'v>(case: &'v Value, field: &str) -> &'v str {
    case[field].as_str().unwrap_or_else(|| panic!("{field} of {}", case["name"]))
}

fn bytes(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2));
    let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digits).collect()
}

fn wanted(case: &Value) -> Option<Vec<u8>> {
    case["opens"].as_str().map(bytes)
}

fn root(case: &Value) -> RootVersion {
    let id = |field| text(case, field).parse::<uuid::Uuid>().expect("a UUID");
    let root = RootKey {
        instance: claviger_domain::id::InstanceId(id("instance")),
        key: claviger_domain::id::KeyId(id("key")),
    };
    RootVersion { root, version: claviger_domain::id::KeyVersionId(id("version")) }
}

#[test]
fn sealed_boxes() {
    for case in cases("sealed") {
        let key = SealingKey::of_material(&bytes(text(&case, "key")));
        let parts: Vec<Vec<u8>> = case["context"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|part| bytes(part.as_str().expect("text")))
            .collect();
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let opened = key.open(b"vector", &parts, &bytes(text(&case, "sealed")));
        let opened = opened.ok().map(|secret| secret.expose().to_vec());
        assert_eq!(opened, wanted(&case), "{}", case["name"]);
    }
}

#[test]
fn wrapped_deks() {
    for case in cases("wrapped") {
        let material = SealingKey::of_material(&bytes(text(&case, "material")));
        let aad: Vec<String> = serde_json::from_value(case["aad"].clone()).expect("texts");
        let opened = Wrapped::parse(text(&case, "text"))
            .and_then(|wrapped| wrapped.open(&material, &root(&case), &aad));
        let opened = opened.ok().map(|secret| secret.expose().to_vec());
        assert_eq!(opened, wanted(&case), "{}", case["name"]);
    }
}

#[test]
fn seeds() {
    for case in cases("seed") {
        let key = Key32::take(&mut bytes(text(&case, "kek"))).expect("32 bytes");
        let serial = Serial(case["serial"].as_u64().expect("a number"));
        let kek = Kek::new(serial, text(&case, "key_id").to_owned(), &key);
        let opened = kek.open(&bytes(text(&case, "sealed")));
        let opened = opened.ok().map(|secret| secret.expose().to_vec());
        assert_eq!(opened, wanted(&case), "{}", case["name"]);
    }
}

#[test]
fn carried_keks() {
    for case in cases("carried") {
        let given = bytes(text(&case, "bytes"));
        let want = case["reads"].as_bool().expect("yes or no").then(|| Carried {
            serial: Serial(case["serial"].as_u64().expect("a number")),
            root: root(&case),
            wrapped: text(&case, "wrapped").to_owned(),
        });
        assert_eq!(Carried::parse(&given), want, "{}", case["name"]);
        if let Some(carried) = want {
            assert_eq!(carried.to_bytes(), given, "{}", case["name"]);
        }
    }
}
