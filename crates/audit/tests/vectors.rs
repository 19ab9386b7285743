//! The audit log of `docs/formats.md` against vectors that a second implementation made
//! (`vectors.py`), so that a change of format cannot pass unseen.

use claviger_audit::{Checkpoint, Dir, Reader, checkpoints_of, verify};
use claviger_crypto::sign::PublicKey;
use claviger_domain::id::UnixMs;
use serde_json::Value;
use std::path::Path;

fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors.json")).expect("JSON")
}

fn bytes(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2));
    let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digits).collect()
}

fn lay_out(case: &Value, dir: &Path) -> Dir {
    for (name, hex) in case["files"].as_object().expect("files") {
        std::fs::write(dir.join(name), bytes(hex.as_str().expect("text"))).expect("writes");
    }
    Dir::existing(dir).expect("opens")
}

#[test]
fn logs_that_are_whole_and_logs_that_are_not() {
    let vectors = vectors();
    let public = bytes(vectors["public"].as_str().expect("text"));
    let trusted = [PublicKey(public.try_into().expect("32 bytes"))];
    let cases = vectors["cases"].as_array().expect("cases");
    assert!(cases.len() > 20);
    for case in cases {
        let name = case["name"].as_str().expect("a name");
        let dir = tempfile::tempdir().expect("a directory");
        let files = lay_out(case, dir.path());
        let outside: Vec<Checkpoint> = case["outside"]
            .as_array()
            .expect("a list")
            .iter()
            .flat_map(|text| checkpoints_of(text.as_str().expect("text")))
            .collect::<Result<_, _>>()
            .expect("checkpoints");
        let report = verify(&files, &trusted, &outside, &mut |_| {}).expect("reads");
        match case["finding"].as_str() {
            None => {
                assert_eq!(report.findings, [], "{name}");
                let (from, to) = (case["from"].as_u64(), case["to"].as_u64());
                assert_eq!((Some(report.from), Some(report.to)), (from, to), "{name}");
                let writer = report.writer.expect("a writer").to_string();
                assert_eq!(Some(writer.as_str()), vectors["writer"].as_str(), "{name}");
            }
            Some(finding) => {
                let found = report.findings.iter().any(|f| {
                    let what = format!("{:?}", f.what);
                    what.split([' ', '(']).next() == Some(finding)
                });
                assert!(found, "{name}: {:?}", report.findings);
            }
        }
    }
}

#[test]
fn records_are_read_from_vectors() {
    let vectors = vectors();
    let case = &vectors["cases"][0];
    let dir = tempfile::tempdir().expect("a directory");
    let reader = Reader::open(lay_out(case, dir.path()), UnixMs(0)).expect("opens");
    let read: Vec<_> = reader
        .map(|entry| entry.expect("reads"))
        .map(|entry| (entry.number, entry.at.0, entry.kind, entry.body))
        .collect();
    let wanted: Vec<(u64, i64, u16, Vec<u8>)> = vec![
        (1, 5, 1, b"one".to_vec()),
        (2, 7, 2, Vec::new()),
        (3, 6, 1, vec![0; 300]),
        (4, 30, 1, b"four".to_vec()),
        (5, 40, 65535, b"five".to_vec()),
        (6, 41, 1, b"six".to_vec()),
    ];
    assert_eq!(read, wanted);
}
