//! Opens the cluster's KEKs: one unwrap by the key service for each KEK in the life of this
//! process. Opened keys are in locked memory only; on disk there is the wrapped ring, so that a
//! restarted agent needs no more than unwraps.

use crate::file::{self, FileError};
use crate::keys::{KeyFailure, Keys};
use claviger_crypto::digest;
use claviger_crypto::kek::wrap_aad;
use claviger_crypto::{Key32, SecretBytes};
use claviger_domain::cluster::ring::{Kek, Role};
use claviger_domain::cluster::{Cluster, RootStatus};
use claviger_domain::id::{ClusterId, Serial};
use claviger_domain::key::{KeyState, RootKey};
use claviger_kms_plugin::{OpenKek, OpenRing, RingError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// First pause after a KEK did not open; it doubles from there.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// Longest pause: short against the minute in which an enabled key is to be usable again.
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// Longest pause for a KEK that only old revisions and backups may need: each try that is refused is
/// a line in the audit log.
const PAUSE_SPARE_MAX: Duration = Duration::from_secs(3600);
/// How long a look may take for such KEKs.
const SPARE_TIME: Duration = Duration::from_secs(1);
/// Bytes of one opened KEK on its way to a successor.
const HANDED: usize = 8 + 32 + 32;

/// What a restarted agent needs before the server gives it the cluster's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The cluster, its ring wrapped.
    pub cluster: Cluster,
    /// Base URL of the key service.
    pub key_service: String,
}

impl Kept {
    /// Reads what the last run kept; none on the first.
    pub fn load(path: &Path) -> Result<Option<Self>, FileError> {
        file::read_json(path)
    }

    /// Writes it, durably.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        file::write_json(path, self)
    }
}

/// Whether `new` may take the place of `old`. A server that was restored from a backup may be
/// behind; what its agents know of the ring must not be lost by that, or serials and key ids
/// would come back with other meanings.
pub fn may_follow(old: &Cluster, new: &Cluster) -> Result<(), String> {
    if old.id != new.id {
        return Err(format!("the state is that of cluster {}, not {}", new.id, old.id));
    }
    for kek in &old.ring.keks {
        match new.ring.get(kek.serial) {
            Some(k) if k.wrapped == kek.wrapped && k.root == kek.root => {}
            // Its operation was given up before it sealed anything; its serial stays spent.
            None if kek.role == Role::Staged && new.ring.minted >= kek.serial.0 => {}
            _ => {
                return Err(format!(
                    "the server's ring (revision {}) lacks KEK {} that this node holds (revision {}); was the server restored from an old backup? This node goes on with its own ring",
                    new.revision, kek.serial, old.revision
                ));
            }
        }
    }
    let write = |c: &Cluster| c.ring.write().map(|k| k.serial);
    if write(new) < write(old) {
        return Err(format!(
            "the server's ring (revision {}) seals with an older KEK than this node's (revision {}); was the server restored from an old backup?",
            new.revision, old.revision
        ));
    }
    Ok(())
}

/// How an attempt to open the ring ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// Every KEK that records may be under is open.
    Whole,
    /// Some are not, for this reason; try again.
    Lacking(String),
    /// The key service says that a root key in use is not active.
    Denied {
        /// Which.
        root: RootKey,
        /// Its state.
        state: KeyState,
        /// The service's words.
        message: String,
    },
}

struct Opened {
    wrapped: [u8; 32],
    key: Key32,
}

struct Pause {
    since: Instant,
    failures: u32,
    why: String,
}

impl Pause {
    /// Whether the KEK may be tried again `now`. By what its role is now, not by what it was.
    fn is_over(&self, role: Role, now: Instant) -> bool {
        let max = if is_spare(role) { PAUSE_SPARE_MAX } else { PAUSE_MAX };
        let pause = PAUSE_FIRST.saturating_mul(1 << (self.failures - 1).min(13)).min(max);
        now.saturating_duration_since(self.since) >= jitter(pause)
    }
}

/// The opened KEKs of this process.
#[derive(Default)]
pub struct Opener {
    opened: BTreeMap<Serial, Opened>,
    pauses: BTreeMap<Serial, Pause>,
}

/// The order in which KEKs are opened: what serves first, then what will.
fn rank(role: Role) -> u8 {
    match role {
        Role::Write => 0,
        Role::Read => 1,
        Role::Staged | Role::Retained | Role::Lost => 2,
    }
}

/// Whether live records are not known to be under it.
fn is_spare(role: Role) -> bool {
    matches!(role, Role::Retained | Role::Lost)
}

/// Whether the node cannot serve without it.
fn needed(kek: &Kek, cluster: &Cluster) -> bool {
    match kek.role {
        Role::Write | Role::Read => true,
        // At first enablement the staged KEK is the one that API servers are told of; afterwards
        // it is needed only before it is promoted, and the planner waits for that.
        Role::Staged => cluster.ring.write().is_none(),
        Role::Retained | Role::Lost => false,
    }
}

impl Opener {
    /// Wipes every opened KEK, and begins anew.
    pub fn wipe(&mut self) {
        self.opened.clear();
        self.pauses.clear();
    }

    /// Wipes every opened KEK; what did not open is still not tried again before its pause is
    /// over.
    pub fn forget(&mut self) {
        self.opened.clear();
    }

    /// Everything that is open, for a successor: of each KEK its serial, the hash of the wrapped
    /// text it was opened from, the key.
    pub fn hand(&self) -> SecretBytes {
        // Room for all at once: a vector that grows leaves copies behind.
        let mut bytes = Vec::with_capacity(self.opened.len() * HANDED);
        for (serial, opened) in &self.opened {
            bytes.extend_from_slice(&serial.0.to_be_bytes());
            bytes.extend_from_slice(&opened.wrapped);
            bytes.extend_from_slice(opened.key.expose());
        }
        SecretBytes::new(bytes)
    }

    /// Takes what a predecessor opened, as far as `cluster` has the same wrapped KEKs. How many
    /// those are.
    pub fn adopt(&mut self, cluster: &Cluster, handed: &SecretBytes) -> usize {
        let mut count = 0;
        for one in handed.expose().chunks_exact(HANDED) {
            let (serial, rest) = one.split_at(8);
            let (wrapped, key) = rest.split_at(32);
            let serial = Serial(u64::from_be_bytes(serial.try_into().unwrap_or_default()));
            let same = cluster
                .ring
                .get(serial)
                .is_some_and(|k| digest::sha256(k.wrapped.as_bytes()) == wrapped);
            let mut copy = key.to_vec();
            // Wipes the copy.
            let key = Key32::take(&mut copy);
            if let (true, Some(key), Ok(wrapped)) = (same, key, wrapped.try_into()) {
                self.opened.insert(serial, Opened { wrapped, key });
                count += 1;
            }
        }
        count
    }

    /// Forgets pauses, so that the next attempt is made at once.
    pub fn hurry(&mut self) {
        self.pauses.clear();
    }

    /// Opens what backups alone may need, for a second at most: for who asks for such records, and
    /// for the moment at which they are needed. `roots` is the server's word of the root keys, if
    /// there is one: under one that is not active nothing is tried. May be dropped as
    /// [`open`](Self::open) may.
    pub async fn open_spare(
        &mut self,
        cluster: &Cluster,
        roots: Option<&[RootStatus]>,
        keys: &dyn Keys,
    ) {
        let begun = Instant::now();
        let usable = |kek: &&Kek| {
            let active = |r: &RootStatus| r.root == kek.root.root && r.state == KeyState::Active;
            is_spare(kek.role) && roots.is_none_or(|roots| roots.iter().any(active))
        };
        // The newest first: of old ones there may be hundreds.
        for kek in cluster.ring.keks.iter().rev().filter(usable) {
            let paused = self.pauses.get(&kek.serial).is_some_and(|p| !p.is_over(kek.role, begun));
            if paused || self.opened.contains_key(&kek.serial) {
                continue;
            }
            if begun.elapsed() >= SPARE_TIME {
                break;
            }
            if let Err(failure) = self.try_one(cluster, kek, keys).await {
                self.pause(kek.serial, format!("KEK {} is not open: {failure}", kek.serial));
                if matches!(failure, KeyFailure::Away(_)) {
                    break;
                }
            }
        }
    }

    async fn try_one(
        &mut self,
        cluster: &Cluster,
        kek: &Kek,
        keys: &dyn Keys,
    ) -> Result<(), KeyFailure> {
        let key = unwrap(&cluster.id, kek, keys).await?;
        self.pauses.remove(&kek.serial);
        let wrapped = digest::sha256(kek.wrapped.as_bytes());
        self.opened.insert(kek.serial, Opened { wrapped, key });
        Ok(())
    }

    /// Opens what is not open yet of the KEKs that serve or are to serve, one after the other. May be
    /// dropped at any point: what was opened until then is kept.
    pub async fn open(&mut self, cluster: &Cluster, keys: &dyn Keys) -> Opening {
        let serve = |k: &&Kek| !is_spare(k.role);
        let mut entries: Vec<&Kek> = cluster.ring.keks.iter().filter(serve).collect();
        entries.sort_by_key(|k| (rank(k.role), std::cmp::Reverse(k.serial)));
        self.opened.retain(|serial, opened| {
            cluster
                .ring
                .get(*serial)
                .is_some_and(|k| digest::sha256(k.wrapped.as_bytes()) == opened.wrapped)
        });
        let mut lacking = None;
        for kek in entries {
            if self.opened.contains_key(&kek.serial) {
                continue;
            }
            let needed = needed(kek, cluster);
            if let Some(pause) = self.pauses.get(&kek.serial)
                && !pause.is_over(kek.role, Instant::now())
            {
                if needed {
                    lacking.get_or_insert_with(|| pause.why.clone());
                }
                continue;
            }
            match self.try_one(cluster, kek, keys).await {
                Ok(()) => {}
                Err(KeyFailure::NotActive { root, state, message })
                    if matches!(kek.role, Role::Write | Role::Read) =>
                {
                    self.pause(kek.serial, format!("root key {root} is {state}: {message}"));
                    return Opening::Denied { root, state, message };
                }
                Err(failure) => {
                    let why = format!("KEK {} is not open: {failure}", kek.serial);
                    self.pause(kek.serial, why.clone());
                    if needed {
                        lacking.get_or_insert(why);
                    }
                    if matches!(failure, KeyFailure::Away(_)) {
                        // The others would only wait for the same silence.
                        break;
                    }
                }
            }
        }
        let missing = cluster
            .ring
            .keks
            .iter()
            .find(|k| needed(k, cluster) && !self.opened.contains_key(&k.serial));
        match (missing, lacking) {
            (None, _) => Opening::Whole,
            (Some(_), Some(why)) => Opening::Lacking(why),
            (Some(kek), None) => Opening::Lacking(format!("KEK {} is not open yet", kek.serial)),
        }
    }

    fn pause(&mut self, serial: Serial, why: String) {
        let failures = self.pauses.get(&serial).map_or(0, |p| p.failures);
        if failures == 0 {
            tracing::warn!(%serial, %why, "cannot open a KEK; trying again");
        }
        let failures = failures.saturating_add(1);
        self.pauses.insert(serial, Pause { since: Instant::now(), failures, why });
    }

    /// Numbers of the KEKs that are open.
    pub fn serials(&self) -> Vec<Serial> {
        self.opened.keys().copied().collect()
    }

    /// The ring for the plugin, of all that is open.
    pub fn ring(&self, cluster: &Cluster) -> Result<OpenRing, RingError> {
        let keks = cluster.ring.keks.iter().filter_map(|entry| {
            let opened = self.opened.get(&entry.serial)?;
            Some(OpenKek::new(&cluster.id, entry, &opened.key))
        });
        let reported = cluster.ring.reported().map(|k| k.serial);
        OpenRing::new(cluster.revision, keks.collect(), reported)
    }
}

/// Unwraps one KEK.
pub async fn unwrap(cluster: &ClusterId, kek: &Kek, keys: &dyn Keys) -> Result<Key32, KeyFailure> {
    let aad = wrap_aad(cluster, kek.serial);
    let opened = keys.unwrap(kek.root.root, &kek.wrapped, &aad).await?;
    // The copy is wiped by `take`, the original when it is dropped.
    let mut copy = opened.expose().to_vec();
    Key32::take(&mut copy).ok_or_else(|| {
        KeyFailure::Refused(format!("KEK {} has {} bytes, not 32", kek.serial, opened.len()))
    })
}

/// Between three quarters of `pause` and the whole of it, so that agents do not call in step.
pub(crate) fn jitter(pause: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    let part = u64::from(random % 256);
    pause * 3 / 4 + pause / 4 * u32::try_from(part).unwrap_or(0) / 256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_grows_to_seconds_for_what_serves_and_to_an_hour_for_what_does_not() {
        let since = Instant::now();
        for (failures, role, at_least_ms, at_most_ms) in [
            (1, Role::Read, 375, 500),
            (5, Role::Write, 6_000, 8_000),
            (400, Role::Read, 6_000, 8_000),
            (5, Role::Retained, 6_000, 8_000),
            (400, Role::Retained, 2_700_000, 3_600_000),
            (400, Role::Lost, 2_700_000, 3_600_000),
        ] {
            let pause = Pause { since, failures, why: String::new() };
            let over = |ms| pause.is_over(role, since + Duration::from_millis(ms));
            assert!(!over(at_least_ms - 1) && over(at_most_ms), "{failures} {role:?}");
        }
    }
}
