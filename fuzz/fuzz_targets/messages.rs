//! Messages of kube-apiserver to the KMS plugin: read as prost reads them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &[u8]| claviger_kms_plugin::agrees_with_prost(message));
