//! Against a real etcd: the client, the census of its records, its files.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use claviger_domain::id::UnixMs;
use claviger_etcd::bolt::{BoltError, Database};
use claviger_etcd::census::{Census, Keep};
use claviger_etcd::client::{Swap, Swapped};
use claviger_etcd::record::{DekType, KmsV2};
use claviger_etcd::residue;
use claviger_etcd::resource::Resource;
use claviger_etcd::{Etcd, EtcdConfig, EtcdError};
use common::Member;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// What an API server stores for a Secret in plaintext, with `size` bytes of data.
fn plain(marker: &str, size: usize) -> Vec<u8> {
    [residue::PROTOBUF_SECRET, b"\x12", marker.as_bytes(), &vec![b'x'; size]].concat()
}

fn sealed() -> Vec<u8> {
    let record = KmsV2 {
        provider: "kms1",
        key_id: "k1",
        encrypted_dek: &[1; 60],
        annotations: Vec::new(),
        dek_type: DekType::Seed,
        body: &[2; 300],
    };
    record.to_value()
}

fn key(i: usize) -> Vec<u8> {
    format!("/registry/secrets/ns/s{i:05}").into_bytes()
}

/// Creates a key: it must not exist, so it was "read" at revision 0.
async fn create(etcd: &Etcd, key: Vec<u8>, value: Vec<u8>) {
    let swap = Swap { key, mod_revision: 0, value };
    assert!(matches!(etcd.put_if_unchanged(swap).await.unwrap(), Swapped::Done(_)));
}

#[tokio::test]
async fn counts_agree_however_they_are_taken_and_files_come_clean() {
    let (mut member, etcd) = Member::start().await;
    let resources = [Resource::secrets()];
    let total = 1_203;
    for i in 0..total {
        // Some need overflow pages, and pages of 500 make three.
        let size = if i % 400 == 0 { 100_000 } else { 700 };
        create(&etcd, key(i), plain("marker", size)).await;
    }
    create(&etcd, b"/registry/secretsx/ns/a".to_vec(), plain("not ours", 10)).await;
    let endpoint = etcd.endpoints().next().unwrap().to_owned();

    let before = Census::take(&etcd, &resources, Keep::Keys, UnixMs(1)).await.unwrap();
    assert_eq!((before.total(), before.plaintext()), (total as u64, total as u64));
    // etcd writes its database down every 100 ms.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let found = residue::scan(&member.data_dir(), None).unwrap();
    assert!(found.db >= total as u64 && found.wal >= total as u64, "{found:?}");

    // A revision that is being read stays the same while records change.
    let mut pages = etcd.range(b"/registry/secrets/", 0);
    let first = pages.next().await.unwrap().unwrap();
    assert_eq!(first.len(), 500);

    let swaps: Vec<Swap> = first
        .iter()
        .take(60)
        .map(|kv| Swap { key: kv.key.to_vec(), mod_revision: kv.mod_revision, value: sealed() })
        .collect();
    assert!(matches!(etcd.swap_all(&swaps).await.unwrap(), Swapped::Done(_)));
    // One of them changed: nothing at all is stored.
    assert_eq!(etcd.swap_all(&swaps[59..]).await.unwrap(), Swapped::Changed);
    let mut seen = first.len();
    while let Some(page) = pages.next().await.unwrap() {
        assert!(page.iter().all(|kv| kv.mod_revision <= pages.revision()));
        seen += page.len();
    }
    assert_eq!(seen, total);

    let mut rest = etcd.range(b"/registry/secrets/", 0);
    let mut due = Vec::new();
    while let Some(page) = rest.next().await.unwrap() {
        due.extend(page);
    }
    for batch in due[60..].chunks(64) {
        let swaps: Vec<_> = batch
            .iter()
            .map(|kv| Swap { key: kv.key.to_vec(), mod_revision: kv.mod_revision, value: sealed() })
            .collect();
        assert!(matches!(etcd.swap_all(&swaps).await.unwrap(), Swapped::Done(_)));
    }

    let live = Census::take(&etcd, &resources, Keep::Counts, UnixMs(1)).await.unwrap();
    assert_eq!((live.total(), live.plaintext()), (total as u64, 0));
    assert_eq!(live.resources["secrets"].under[0].records, total as u64);

    // The snapshot says the same of what is live, and shows what was overwritten.
    let file = member.dir.path().join("snapshot");
    let taken = etcd.snapshot(&file).await.unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().len(), taken.size);
    let database = Database::open_snapshot(&file).unwrap();
    let of_file = Census::of_database(&database, &resources, true, UnixMs(1)).unwrap();
    assert_eq!(of_file.resources, live.resources);
    assert_eq!(of_file.revision, live.revision);
    let old = &of_file.history.as_ref().unwrap()["secrets"];
    assert_eq!((old.records, old.plaintext.records), (total as u64, total as u64));

    // Half a read at a revision that is then compacted cannot be completed.
    let mut late = etcd.range(b"/registry/secrets/", before.revision);
    late.next().await.unwrap();
    etcd.compact(live.revision, true).await.unwrap();
    etcd.compact(live.revision, true).await.unwrap();
    assert!(matches!(late.next().await, Err(EtcdError::Compacted(_))));

    let big = etcd.status(&endpoint).await.unwrap();
    assert_eq!(etcd.defragment_all().await.unwrap(), 1);
    let small = etcd.status(&endpoint).await.unwrap();
    assert!(small.db_size < big.db_size, "{big:?} {small:?}");
    assert_eq!(small.leader, small.member);
    let found = residue::scan(&member.data_dir(), None).unwrap();
    // The key next to ours is still plaintext; the log keeps everything.
    assert_eq!(found.db, 1, "{found:?}");
    assert!(found.wal >= total as u64, "{found:?}");

    // The file of a stopped member reads as well.
    member.stop();
    let at_rest = Database::open(&member.data_dir().join("member/snap/db")).unwrap();
    let of_rest = Census::of_database(&at_rest, &resources, true, UnixMs(1)).unwrap();
    assert_eq!(of_rest.resources, live.resources);
    assert_eq!(of_rest.history.as_ref().unwrap()["secrets"].records, 0);
    assert!(matches!(etcd.get(b"x").await, Err(EtcdError::Unreachable { .. })));
    damaged_files_never_pass(&file);
}

/// Changes bytes of a real file: it reads as before, or it is refused; it never panics.
fn damaged_files_never_pass(file: &std::path::Path) {
    let sound = std::fs::read(file).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let database = Database::open(&path)?;
        let mut count = 0u64;
        database.revisions(|_, _| count += 1)?;
        Ok::<u64, BoltError>(count)
    };
    let whole = read(&sound).unwrap();
    let mut flipped = sound.clone();
    flipped[5000] ^= 1;
    std::fs::write(&path, &flipped).unwrap();
    assert!(matches!(Database::open_snapshot(&path), Err(BoltError::Damaged { .. })));
    assert!(read(&sound[..sound.len() / 2]).is_err());
    assert!(read(b"").is_err());
    let pages = sound.len() / 4096;
    let mut runner = TestRunner::new(Config { cases: 150, ..Config::default() });
    // Page headers and elements, where structure lives; values are etcd's own bytes.
    let change = (0..pages, 0usize..64, any::<u8>(), 1usize..6);
    runner
        .run(&change, |(page, at, byte, len)| {
            let mut bytes = sound.clone();
            bytes[page * 4096 + at..][..len].fill(byte);
            if let Ok(count) = read(&bytes) {
                // A page that is free, or in the half of the meta pages that does not count.
                prop_assert!(count <= whole);
            }
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn a_wrong_ca_and_no_certificate_are_refused_with_the_reason() {
    let (member, _etcd) = Member::start().await;
    let bare = EtcdConfig { cert: None, key: None, ..member.config.clone() };
    assert!(Etcd::connect(&bare).await.is_err());
    // Our own certificate is not the CA.
    let stranger = EtcdConfig { ca: member.config.cert.clone(), ..member.config.clone() };
    let Err(e) = Etcd::connect(&stranger).await else { panic!("believed a stranger") };
    assert!(e.to_string().contains("certificate"), "{e}");
    let half = EtcdConfig { key: None, ..member.config.clone() };
    assert!(matches!(Etcd::connect(&half).await, Err(EtcdError::Config(_))));
    let absent = EtcdConfig { ca: Some("/nowhere/ca.pem".into()), ..member.config.clone() };
    assert!(matches!(Etcd::connect(&absent).await, Err(EtcdError::File { .. })));
    // The first endpoint is down: the second answers.
    let dead = format!("https://127.0.0.1:{}", common::port());
    let two = EtcdConfig {
        endpoints: vec![dead, member.config.endpoints[0].clone()],
        ..member.config.clone()
    };
    let etcd = Etcd::connect(&two).await.unwrap();
    assert_eq!(etcd.members().await.unwrap()[0].name, "m1");
    assert_eq!(etcd.defragment_all().await.unwrap(), 1);
}
