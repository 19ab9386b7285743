//! What every custodian must do, as functions that each implementation's tests call.

use crate::{Custodian, CustodyError, SealedMaterial};
use claviger_crypto::SecretBytes;
use claviger_domain::id::{InstanceId, KeyId, KeyVersionId};
use claviger_domain::key::{RootKey, RootVersion};

fn fresh() -> RootVersion {
    let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
    RootVersion { root, version: KeyVersionId::random() }
}

/// Runs the suite. `again` is the same custodian after a restart.
///
/// # Panics
/// When the custodian does not pass.
pub fn run(custodian: &dyn Custodian, again: &dyn Custodian) {
    let version = fresh();
    let material = custodian.generate(&version).expect("generates");
    let aad = ["a".to_owned(), "b".to_owned()];

    for plaintext in [&b""[..], b"x", &[7; 4096]] {
        let text = custodian.wrap(&version, &material, &aad, plaintext).expect("wraps");
        for who in [custodian, again] {
            let opened = who.unwrap(&version, &material, &aad, &text).expect("unwraps");
            assert_eq!(opened.expose(), plaintext);
        }
        let swapped = ["b".to_owned(), "a".to_owned()];
        let wrong = custodian.unwrap(&version, &material, &swapped, &text);
        assert!(matches!(wrong, Err(CustodyError::Open(_))), "the order of aad counts");
        let rubbish = custodian.unwrap(&version, &material, &aad, "rubbish");
        assert!(matches!(rubbish, Err(CustodyError::Open(_))));
    }

    // Material is bound to its version: it cannot be moved to another row.
    let other = fresh();
    let moved = again.wrap(&other, &material, &[], b"x");
    assert!(matches!(moved, Err(CustodyError::Material(_))));
    let cut = SealedMaterial(material.0[1..].to_vec());
    custodian.forget(&version);
    assert!(custodian.wrap(&version, &cut, &[], b"x").is_err());
    custodian.wrap(&version, &material, &[], b"x").expect("whole material opens again");

    for len in [16, 24, 32] {
        let version = fresh();
        let material = custodian.import(&version, &SecretBytes::random(len)).expect("imports");
        let text = custodian.wrap(&version, &material, &[], b"x").expect("wraps");
        let opened = again.unwrap(&version, &material, &[], &text).expect("unwraps");
        assert_eq!(opened.expose(), b"x");
    }
    for len in [0, 15, 31, 33] {
        let refused = custodian.import(&fresh(), &SecretBytes::random(len));
        assert!(matches!(refused, Err(CustodyError::MaterialLength(l)) if l == len));
    }

    let sealed = custodian.seal_column(&["keys", "1"], b"payload");
    assert_eq!(again.open_column(&["keys", "1"], &sealed).expect("opens").expose(), b"payload");
    assert!(again.open_column(&["keys", "2"], &sealed).is_err(), "bound to its place");
}

/// A custodian with another master key opens nothing.
///
/// # Panics
/// When it does.
pub fn foreign(custodian: &dyn Custodian, foreign: &dyn Custodian) {
    let version = fresh();
    let material = custodian.generate(&version).expect("generates");
    let text = custodian.wrap(&version, &material, &[], b"x").expect("wraps");
    let opened = foreign.unwrap(&version, &material, &[], &text);
    assert!(matches!(opened, Err(CustodyError::Material(_))));
    let sealed = custodian.seal_column(&["a"], b"x");
    assert!(foreign.open_column(&["a"], &sealed).is_err());
}
