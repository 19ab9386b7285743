use super::*;
use crate::record::{DekType, KmsV2};
use claviger_domain::id::{InstanceId, KeyId, KeyVersionId};

fn kek(serial: u64, root: RootKey, role: Role) -> Kek {
    let root = RootVersion { root, version: KeyVersionId::random() };
    Kek {
        serial: Serial(serial),
        root,
        wrapped: format!("wrapped {serial}"),
        role,
        created: UnixMs(0),
    }
}

fn carried(kek: &Kek) -> Carried {
    Carried { serial: kek.serial, root: kek.root, wrapped: kek.wrapped.clone() }
}

/// A record whose parts are those of three KEKs; sound when they are one.
fn value(cluster: &ClusterId, id: &Kek, dek: &Kek, annotated: Option<&Carried>) -> Vec<u8> {
    let sealed = [&dek.serial.0.to_be_bytes()[..], &[5; 60]].concat();
    let annotation = annotated.map(Carried::to_bytes);
    let annotations = annotation.iter().map(|a| (kek::ANNOTATION, a.as_slice())).collect();
    let record = KmsV2 {
        provider: PROVIDER,
        key_id: &id.key_id(cluster),
        encrypted_dek: &sealed,
        annotations,
        dek_type: DekType::Seed,
        body: &[1; 100],
    };
    record.to_value()
}

fn census(values: &[Vec<u8>]) -> Census {
    let mut counting = Counting::default();
    let mut census = Census { revision: 9, ..Census::default() };
    for (i, value) in values.iter().enumerate() {
        let key = format!("/registry/secrets/ns/{i}").into_bytes();
        let kind = counting.add(&key, value);
        census.keys.push(Located { key, mod_revision: i as i64, kind });
    }
    census.resources.insert("secrets".to_owned(), counting.counts);
    census
}

#[test]
fn records_are_told_apart_by_the_ring() {
    let cluster = ClusterId::random();
    let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
    let (old, new) = (kek(1, root, Role::Read), kek(2, root, Role::Write));
    let lost = kek(3, root, Role::Read);
    let ring = Ring { keks: vec![old.clone(), new.clone()], minted: 3 };
    let foreign = KmsV2 { provider: "kms1", ..sample() }.to_value();
    let swapped = Carried { wrapped: "another".to_owned(), ..carried(&new) };
    let c = census(&[
        value(&cluster, &new, &new, Some(&carried(&new))),
        value(&cluster, &old, &old, Some(&carried(&old))),
        b"k8s\0plain".to_vec(),
        value(&cluster, &new, &old, Some(&carried(&new))),
        value(&cluster, &new, &new, Some(&carried(&old))),
        value(&cluster, &new, &new, None),
        value(&cluster, &new, &new, Some(&swapped)),
        value(&cluster, &lost, &lost, Some(&carried(&lost))),
        foreign,
        b"k8s:enc:aescbc:v1:k:body".to_vec(),
        b"rubbish".to_vec(),
    ]);
    let tally = c.tally(&cluster, &ring);
    let expected =
        Tally { revision: 9, total: 11, current: 1, stale: 1, plaintext: 1, unknown: 8, ..tally };
    assert_eq!(tally, expected);
    let secrets = &c.resources["secrets"];
    assert_eq!(secrets.forged.records, 3);
    assert_eq!(secrets.forged.examples[0], "/registry/secrets/ns/3");
    let resources = [Resource::secrets()];
    let due = c.stale(&cluster, &ring, &resources).map(|s| (s.mod_revision, s.plaintext));
    assert_eq!(due.collect::<Vec<_>>(), [(1, false), (2, true)]);
    // Another cluster's records are not ours, whatever they carry.
    assert_eq!(c.tally(&ClusterId::random(), &ring).current, 0);
}

fn sample() -> KmsV2<'static> {
    KmsV2 {
        provider: PROVIDER,
        key_id: "k",
        encrypted_dek: &[1; 60],
        annotations: Vec::new(),
        dek_type: DekType::Seed,
        body: &[1; 100],
    }
}

#[test]
fn a_verdict_needs_every_record_under_the_current_version() {
    let cluster = ClusterId::random();
    let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
    let (old, new) = (kek(1, root, Role::Read), kek(2, root, Role::Write));
    let sound = |k: &Kek| value(&cluster, k, k, Some(&carried(k)));
    let all_new = census(&[sound(&new), sound(&new)]);
    assert_eq!(all_new.verdict(Some(new.root)), Verdict::Good);
    assert_eq!(all_new.verdict(None), Verdict::Unknown);
    assert_eq!(census(&[]).verdict(None), Verdict::Unknown);
    let behind = vec![Shortfall::Behind { records: 2, root: new.root }];
    assert_eq!(all_new.verdict(Some(old.root)), Verdict::FallsShort { reasons: behind });
    // Plaintext is wrong whatever the current version is.
    let leaky = census(&[sound(&new), b"{}".to_vec()]);
    let reasons = vec![Shortfall::Plaintext { records: 1 }];
    assert_eq!(leaky.verdict(None), Verdict::FallsShort { reasons });
    let mixed = census(&[b"?".to_vec(), value(&cluster, &new, &old, None), sound(&old)]);
    let Verdict::FallsShort { reasons } = mixed.verdict(Some(new.root)) else { panic!("good?") };
    assert_eq!(reasons.len(), 3);
    assert_eq!(mixed.roots(), [root]);
}

/// A KEK is wrapped once: who carries another wrapped text under its name could not be opened by it.
#[test]
fn records_that_carry_another_key_than_the_others_fall_short() {
    let cluster = ClusterId::random();
    let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
    let new = kek(2, root, Role::Write);
    let sound = || value(&cluster, &new, &new, Some(&carried(&new)));
    let mut changed = new.clone();
    changed.wrapped.push('x');
    let changed = value(&cluster, &new, &new, Some(&carried(&changed)));
    let verdict = census(&[sound(), changed, sound()]).verdict(Some(new.root));
    let reasons = vec![Shortfall::Forged { records: 1 }];
    assert_eq!(verdict, Verdict::FallsShort { reasons });
}

#[test]
fn history_falls_short_of_anything_but_older_versions() {
    let cluster = ClusterId::random();
    let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
    let (old, new) = (kek(1, root, Role::Read), kek(2, root, Role::Write));
    let sound = |k: &Kek| value(&cluster, k, k, Some(&carried(k)));
    let with = |history: &[Vec<u8>]| Census {
        history: Some(census(history).resources),
        ..census(&[sound(&new)])
    };
    assert_eq!(with(&[sound(&old)]).verdict(Some(new.root)), Verdict::Good);
    let leaky = with(&[sound(&old), b"{}".to_vec(), b"?".to_vec()]).verdict(Some(new.root));
    let reasons = vec![Shortfall::History { plaintext: 1, forged: 0, undecodable: 1, unknown: 0 }];
    assert_eq!(leaky, Verdict::FallsShort { reasons });
}

#[test]
fn made_up_keys_are_bounded() {
    let values: Vec<_> = (0..GROUPS_MAX + 50)
        .map(|i| KmsV2 { provider: "kms1", key_id: &format!("k{i}"), ..sample() }.to_value())
        .collect();
    let c = census(&values);
    assert_eq!(c.resources["secrets"].under.len(), GROUPS_MAX);
    assert_eq!(c.resources["secrets"].unknown.records, 50);
    assert_eq!(c.resources["secrets"].unknown.examples.len(), EXAMPLES);
}

#[test]
fn a_census_reads_back_from_json() {
    let c = census(&[b"{}".to_vec()]);
    let text = serde_json::to_string(&c).expect("serde");
    let back: Census = serde_json::from_str(&text).expect("json");
    assert_eq!(back.resources, c.resources);
    assert_eq!(back.revision, 9);
}
