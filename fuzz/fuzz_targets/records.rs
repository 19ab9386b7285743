//! Values of etcd, which anybody who can write to it can forge.
#![no_main]

use claviger_crypto::kek::{ANNOTATION, Carried};
use claviger_etcd::record::{KmsV2, Record};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|value: &[u8]| {
    let Record::KmsV2(record) = Record::parse(value) else { return };
    // What is written again says the same.
    let written = record.to_value();
    assert_eq!(Record::parse(&written), Record::KmsV2(KmsV2 { ..record.clone() }));
    assert!(record.open(&[3; 32], b"/registry/secrets/a/b").is_err(), "nobody has sealed this");
    if let Some(carried) = record.annotation(ANNOTATION).and_then(Carried::parse) {
        let _ = carried.to_bytes();
    }
});
