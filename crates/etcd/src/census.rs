//! Counts stored records by the key that opens them, from etcd's bytes alone.
//!
//! A [`Census`] says what is stored; whether that is good depends on the ring ([`Census::tally`])
//! or on the root-key version that the key service calls current ([`Census::verdict`]). It never
//! opens a record, so a count needs no key, and it never believes a record that contradicts
//! itself: such records count as forged.

use crate::bolt::{BoltError, Database};
use crate::client::{Etcd, EtcdError};
use crate::record::Record;
use crate::resource::Resource;
use claviger_crypto::digest::{hex, sha256};
use claviger_crypto::kek::{self, Carried};
use claviger_domain::cluster::ring::{self, Kek, Ring, Role};
use claviger_domain::cluster::{PROVIDER, Tally};
use claviger_domain::id::{ClusterId, Serial, UnixMs};
use claviger_domain::key::{RootKey, RootVersion};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

mod verdict;
pub use verdict::{Shortfall, Verdict};

/// Keys named as examples in each class.
pub const EXAMPLES: usize = 20;

/// Distinct keys told apart in one resource. A cluster has a handful; whoever can write etcd
/// could make any number of names up, and those beyond the bound are counted as unknown.
pub const GROUPS_MAX: usize = 4096;

/// How often a count starts again because etcd compacted the revision under it. etcd compacts
/// every five minutes at most in practice and a count takes seconds.
const RESTARTS: usize = 3;

/// How many records, and which for example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Class {
    /// How many.
    pub records: u64,
    /// The first [`EXAMPLES`] keys, in the order of etcd.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

impl Class {
    fn add(&mut self, key: &[u8]) {
        self.records += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(String::from_utf8_lossy(key).into_owned());
        }
    }
}

/// Records under one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Under {
    /// Name of the provider.
    pub provider: String,
    /// The key, by the name in the record; empty where a provider names none (KMS v1).
    pub key_id: String,
    /// The root-key version that wraps the KEK, as the records carry it; none for others' keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<RootVersion>,
    /// The KEK's number; none for others' keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    /// SHA-256 of the wrapped KEK that the records carry, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kek_sha256: Option<String>,
    /// How many.
    pub records: u64,
}

/// What one resource's records are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Counts {
    /// All of them.
    pub records: u64,
    /// Not encrypted.
    pub plaintext: Class,
    /// Encrypted, by key.
    pub under: Vec<Under>,
    /// Encrypted, but under no key that a record of KMS v2 names: `aescbc`, `aesgcm`,
    /// `secretbox`, KMS v1, and whatever exceeds [`GROUPS_MAX`].
    pub unknown: Class,
    /// Neither plaintext nor an encrypted record.
    pub undecodable: Class,
    /// Named as ours, but key id, sealed seed and carried KEK do not agree.
    pub forged: Class,
}

/// A count of etcd's records at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Census {
    /// etcd's revision.
    pub revision: i64,
    /// When it was taken.
    pub at: UnixMs,
    /// Live records, by resource.
    pub resources: BTreeMap<String, Counts>,
    /// Overwritten and deleted records that are still in the database, by resource; only in a
    /// count of a database file that asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<BTreeMap<String, Counts>>,
    /// The live records one by one, if they were asked for. Not part of the wire.
    #[serde(skip)]
    keys: Vec<Located>,
}

/// Whether a count remembers each record, so that [`Census::stale`] can name those to rewrite:
/// about 100 bytes for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Numbers and examples only.
    Counts,
    /// Every key too.
    Keys,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Located {
    key: Vec<u8>,
    mod_revision: i64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plaintext,
    /// Index into `under` of the resource that the key belongs to.
    Under(u16),
    /// Unknown, undecodable or forged.
    Foreign,
}

/// A record to be rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale<'a> {
    /// Its key in etcd.
    pub key: &'a [u8],
    /// The revision at which it was last written.
    pub mod_revision: i64,
    /// Whether it is plaintext.
    pub plaintext: bool,
}

/// Groups of one resource while it is counted.
#[derive(Default)]
struct Counting {
    counts: Counts,
    index: HashMap<(String, String, Option<Serial>, Option<String>), u16>,
}

impl Counting {
    fn add(&mut self, key: &[u8], value: &[u8]) -> Kind {
        self.counts.records += 1;
        let (provider, key_id, carried) = match Record::parse(value) {
            Record::Plaintext(_) => {
                self.counts.plaintext.add(key);
                return Kind::Plaintext;
            }
            Record::Undecodable { .. } => {
                self.counts.undecodable.add(key);
                return Kind::Foreign;
            }
            Record::Other { .. } | Record::KmsV1 { .. } => {
                self.counts.unknown.add(key);
                return Kind::Foreign;
            }
            Record::KmsV2(r) if r.provider != PROVIDER => (r.provider, r.key_id, None),
            Record::KmsV2(r) => {
                let carried = r.annotation(kek::ANNOTATION).and_then(Carried::parse);
                let named = ring::serial_of(r.key_id);
                let agree = carried.as_ref().is_some_and(|c| {
                    named == Some(c.serial)
                        && kek::serial_of(r.encrypted_dek) == Some(c.serial)
                        && names_version(r.key_id, &c.root)
                });
                if !agree {
                    self.counts.forged.add(key);
                    return Kind::Foreign;
                }
                (r.provider, r.key_id, carried)
            }
        };
        let digest = carried.as_ref().map(|c| hex(&sha256(c.wrapped.as_bytes())));
        let root = carried.as_ref().map(|c| c.root);
        let serial = carried.as_ref().map(|c| c.serial);
        let group = (
            provider.to_owned(),
            key_id.to_owned(),
            serial,
            carried.map(|c| hex(&sha256(&c.to_bytes()))),
        );
        if let Some(at) = self.index.get(&group) {
            self.counts.under[usize::from(*at)].records += 1;
            return Kind::Under(*at);
        }
        if self.counts.under.len() == GROUPS_MAX {
            self.counts.unknown.add(key);
            return Kind::Foreign;
        }
        let at = u16::try_from(self.counts.under.len()).expect("bounded by GROUPS_MAX");
        self.counts.under.push(Under {
            provider: group.0.clone(),
            key_id: group.1.clone(),
            root,
            serial,
            kek_sha256: digest,
            records: 1,
        });
        self.index.insert(group, at);
        Kind::Under(at)
    }
}

/// Whether the version in a `key_id` of ours is that of `root`: its first eight digits.
fn names_version(key_id: &str, root: &RootVersion) -> bool {
    let version = root.version.0.simple().to_string();
    key_id.rsplit(':').next() == version.get(..8)
}

impl Census {
    /// Counts the live records of `resources` in a running etcd, all at one revision.
    pub async fn take(
        etcd: &Etcd,
        resources: &[Resource],
        keep: Keep,
        now: UnixMs,
    ) -> Result<Census, EtcdError> {
        for _ in 0..RESTARTS {
            match Self::take_once(etcd, resources, keep, now).await {
                Err(EtcdError::Compacted(_)) => {}
                done => return done,
            }
        }
        Self::take_once(etcd, resources, keep, now).await
    }

    async fn take_once(
        etcd: &Etcd,
        resources: &[Resource],
        keep: Keep,
        now: UnixMs,
    ) -> Result<Census, EtcdError> {
        let mut census = Census { at: now, ..Census::default() };
        for resource in resources {
            let mut counting = Counting::default();
            let mut pages = etcd.range(resource.prefix().as_bytes(), census.revision);
            while let Some(page) = pages.next().await? {
                for kv in page {
                    let kind = counting.add(&kv.key, &kv.value);
                    if keep == Keep::Keys {
                        let (key, mod_revision) = (kv.key.to_vec(), kv.mod_revision);
                        census.keys.push(Located { key, mod_revision, kind });
                    }
                }
            }
            census.revision = pages.revision();
            census.resources.insert(resource.name().to_owned(), counting.counts);
        }
        Ok(census)
    }

    /// Counts the records of `resources` in a database file: those that a reader of etcd would
    /// get and, with `history`, all that were overwritten or deleted and not yet removed.
    pub fn of_database(
        database: &Database,
        resources: &[Resource],
        history: bool,
        now: UnixMs,
    ) -> Result<Census, BoltError> {
        let of = |key: &[u8]| resources.iter().position(|r| key.starts_with(r.prefix().as_bytes()));
        // The newest revision of each key comes last; a tombstone ends a key.
        let mut newest: HashMap<Vec<u8>, (i64, i64)> = HashMap::new();
        let mut revision = 0;
        database.revisions(|rev, kv| {
            revision = rev.main;
            if of(&kv.key).is_some() {
                if rev.tombstone {
                    newest.remove(kv.key.as_ref());
                } else {
                    newest.insert(kv.key.to_vec(), (rev.main, rev.sub));
                }
            }
        })?;
        let mut live: Vec<Counting> = resources.iter().map(|_| Counting::default()).collect();
        let mut old: Vec<Counting> = resources.iter().map(|_| Counting::default()).collect();
        database.revisions(|rev, kv| {
            let Some(at) = of(&kv.key) else { return };
            if rev.tombstone {
                return;
            }
            if newest.get(kv.key.as_ref()) == Some(&(rev.main, rev.sub)) {
                live[at].add(&kv.key, &kv.value);
            } else if history {
                old[at].add(&kv.key, &kv.value);
            }
        })?;
        let named = |all: Vec<Counting>| {
            let names = resources.iter().map(|r| r.name().to_owned());
            names.zip(all.into_iter().map(|c| c.counts)).collect::<BTreeMap<_, _>>()
        };
        Ok(Census {
            revision,
            at: now,
            resources: named(live),
            history: history.then(|| named(old)),
            keys: Vec::new(),
        })
    }

    /// All live records.
    pub fn total(&self) -> u64 {
        self.resources.values().map(|c| c.records).sum()
    }

    /// Live records that are not encrypted.
    pub fn plaintext(&self) -> u64 {
        self.resources.values().map(|c| c.plaintext.records).sum()
    }

    /// The root keys that live records are under, most records first.
    pub fn roots(&self) -> Vec<RootKey> {
        let mut counts: BTreeMap<RootKey, u64> = BTreeMap::new();
        for under in self.resources.values().flat_map(|c| &c.under) {
            if let Some(root) = under.root {
                *counts.entry(root.root).or_default() += under.records;
            }
        }
        let mut roots: Vec<_> = counts.into_iter().collect();
        roots.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        roots.into_iter().map(|(root, _)| root).collect()
    }

    /// What the planner needs: how the live records stand to the ring of their cluster.
    pub fn tally(&self, cluster: &ClusterId, ring: &Ring) -> Tally {
        let mut tally = Tally { revision: self.revision, at: self.at, ..Tally::default() };
        for counts in self.resources.values() {
            tally.total += counts.records;
            tally.plaintext += counts.plaintext.records;
            tally.unknown +=
                counts.unknown.records + counts.undecodable.records + counts.forged.records;
            for under in &counts.under {
                match opener(under, cluster, ring).map(|k| k.role) {
                    Some(Role::Write) => tally.current += under.records,
                    Some(Role::Lost) => tally.unknown += under.records,
                    Some(_) => tally.stale += under.records,
                    None => tally.unknown += under.records,
                }
            }
        }
        tally
    }

    /// The records that the write KEK does not open though the ring does, and those that are
    /// plaintext: what a rewrite has to touch. Empty unless the count kept its keys.
    pub fn stale<'a>(
        &'a self,
        cluster: &'a ClusterId,
        ring: &'a Ring,
        resources: &'a [Resource],
    ) -> impl Iterator<Item = Stale<'a>> {
        self.keys.iter().filter_map(move |located| {
            let due = match located.kind {
                Kind::Plaintext => true,
                Kind::Foreign => false,
                Kind::Under(at) => {
                    let of = |r: &&Resource| located.key.starts_with(r.prefix().as_bytes());
                    let counts = self.resources.get(resources.iter().find(of)?.name())?;
                    let kek = opener(counts.under.get(usize::from(at))?, cluster, ring)?;
                    !matches!(kek.role, Role::Write | Role::Lost)
                }
            };
            let plaintext = located.kind == Kind::Plaintext;
            let (key, mod_revision) = (&located.key, located.mod_revision);
            due.then_some(Stale { key, mod_revision, plaintext })
        })
    }
}

/// The KEK of the ring that opens these records, if they carry exactly that KEK.
fn opener<'a>(under: &Under, cluster: &ClusterId, ring: &'a Ring) -> Option<&'a Kek> {
    let kek = ring.get(under.serial?)?;
    let same = under.provider == PROVIDER
        && under.key_id == kek.key_id(cluster)
        && under.root == Some(kek.root)
        && under.kek_sha256.as_deref() == Some(hex(&sha256(kek.wrapped.as_bytes())).as_str());
    same.then_some(kek)
}

#[cfg(test)]
mod tests;
