//! Which cluster this node believes in: the server's newest word, unless that lacks what the
//! node holds, came late, or could not be kept on disk.
//!
//! Only the cluster is ever held back. The states of root keys go through whatever happens to
//! the files: a full disk must not keep a suspended key from fencing the node.

use crate::file::FileError;
use crate::ring::{Kept, may_follow};
use claviger_domain::cluster::{Cluster, RootStatus};
use claviger_domain::id::{ClusterId, RestoreId, UnixMs};
use claviger_wire::agent::State;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long an answer may be under way. One that the server dated before a newer one is late
/// within this time; after it, the server's clock was set back.
const CROSSING: Duration = Duration::from_secs(10);

/// What the server said last of each root key, and when it said so itself.
#[derive(Debug, Default)]
pub(crate) struct Said(Vec<(RootStatus, Instant)>);

impl Said {
    /// Takes an answer that came `now`, and puts what was said before in the place of what is older,
    /// where an older answer comes late: two are under way at once when the loop commits, and the
    /// one that was read before a suspension must not hide it. What is kept so does not become
    /// newer by that: an event that is lower for longer than [`CROSSING`] is the word of a server
    /// that was restored, however often it answers meanwhile.
    pub(crate) fn take(&mut self, roots: &mut [RootStatus], now: Instant) {
        let known = std::mem::take(&mut self.0);
        for root in roots {
            let newer = known.iter().find(|(k, at)| {
                k.root == root.root
                    && k.event > root.event
                    && now.saturating_duration_since(*at) < CROSSING
            });
            let at = newer.map_or(now, |(_, at)| *at);
            if let Some((newer, _)) = newer {
                *root = newer.clone();
            }
            self.0.push((root.clone(), at));
        }
    }
}

/// The wrapped ring of the last believed word, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Truth {
    path: PathBuf,
    kept: Option<Kept>,
    /// Why the server's last word was not taken.
    ahead: Option<String>,
    /// Why the server does not take over what this node holds instead.
    refused: Option<String>,
    /// The restore of which the server's last word spoke.
    restored: Option<RestoreId>,
    /// What it said of the root keys.
    pub(crate) said: Said,
}

impl Truth {
    /// Reads what the last run kept of `cluster`.
    pub(crate) fn open(path: PathBuf, cluster: &ClusterId) -> Result<Self, FileError> {
        let kept = Kept::load(&path)?.filter(|k| k.cluster.id == *cluster);
        let said = Said::default();
        Ok(Self { path, kept, ahead: None, refused: None, restored: None, said })
    }

    /// The cluster, if any was ever believed.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.kept.as_ref().map(|k| &k.cluster)
    }

    /// Why the server's last word was not taken, if so, and why the server does not take this
    /// node's.
    pub(crate) fn ahead(&self) -> Option<String> {
        let why = self.ahead.as_ref()?;
        Some(match &self.refused {
            Some(refused) => format!("{why}. It cannot be given back: {refused}"),
            None => why.clone(),
        })
    }

    /// The restore of the server by whose word [`ahead`](Self::ahead) was judged.
    pub(crate) fn restored(&self) -> Option<RestoreId> {
        self.restored
    }

    /// Notes why the server does not take over what this node holds. Whether that is news.
    pub(crate) fn refused(&mut self, why: String) -> bool {
        self.refused.replace(why.clone()) != Some(why)
    }

    /// The URL that the server named last.
    pub(crate) fn key_service(&self) -> Option<&str> {
        self.kept.as_ref().map(|k| k.key_service.as_str())
    }

    /// Replaces `state.cluster` by this node's own where that is to be believed, and keeps what
    /// is new, durably. `newest` is the server's date on the newest word so far and how long ago
    /// that came. After an error `state` may be used all the same.
    pub(crate) fn take(
        &mut self,
        state: &mut State,
        newest: Option<(UnixMs, Duration)>,
    ) -> Result<(), FileError> {
        let Some(known) = &self.kept else { return self.keep(state) };
        let late = newest.is_some_and(|(now, age)| state.now < now && age < CROSSING);
        let ahead = may_follow(&known.cluster, &state.cluster).err();
        // The same at each look is one line, not many.
        if let Some(why) = ahead.as_ref().filter(|why| self.ahead.as_ref() != Some(why)) {
            tracing::error!(%why, "the server's truth is not taken");
        }
        self.ahead = ahead;
        self.restored = state.restored;
        if self.ahead.is_none() {
            self.refused = None;
        }
        let overtaken = late && state.cluster.revision < known.cluster.revision;
        if self.ahead.is_some() || overtaken {
            state.cluster = known.cluster.clone();
        }
        // A lower revision that is not late is that of a restored server: its word counts.
        self.keep(state)
    }

    /// Writes what is believed as it is now. Between changes of the ring only memory knows the
    /// newest revision.
    pub(crate) fn settle(&self) -> Result<(), FileError> {
        self.kept.as_ref().map_or(Ok(()), |kept| kept.save(&self.path))
    }

    fn keep(&mut self, state: &mut State) -> Result<(), FileError> {
        let new = Kept { cluster: state.cluster.clone(), key_service: state.key_service.clone() };
        let changed = self.kept.as_ref().is_none_or(|k| {
            k.cluster.ring != new.cluster.ring
                || k.cluster.servers != new.cluster.servers
                || k.key_service != new.key_service
                || k.cluster.operation.is_some() != new.cluster.operation.is_some()
        });
        if changed && let Err(error) = new.save(&self.path) {
            // Durable before visible: a ring that a restart would forget is not used. Of a first
            // one there is nothing to fall back to, and `cluster` goes on to give none.
            if let Some(known) = &self.kept {
                state.cluster = known.cluster.clone();
            }
            return Err(error);
        }
        self.kept = Some(new);
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use claviger_domain::cluster::ring::{Kek, Ring, Role};
    use claviger_domain::id::{InstanceId, KeyId, KeyVersionId, Serial};
    use claviger_domain::key::{RootKey, RootVersion};
    use std::collections::BTreeMap;

    const SOON: Duration = Duration::from_millis(5);

    pub(crate) fn state(revision: u64, serials: u64, now: i64, template: Option<&State>) -> State {
        let root = match template {
            Some(t) => t.cluster.ring.keks[0].root,
            None => RootVersion {
                root: RootKey { instance: InstanceId::random(), key: KeyId::random() },
                version: KeyVersionId::random(),
            },
        };
        let keks = (1..=serials).map(|n| Kek {
            serial: Serial(n),
            root,
            wrapped: format!("wrapped {n}"),
            role: if n == serials { Role::Write } else { Role::Read },
            created: UnixMs(0),
        });
        State {
            cluster: Cluster {
                revision,
                ring: Ring { keks: keks.collect(), minted: serials },
                ..Cluster::new(
                    template.map_or_else(ClusterId::random, |t| t.cluster.id.clone()),
                    "c".to_owned(),
                    UnixMs(0),
                )
            },
            seen: BTreeMap::new(),
            roots: Vec::new(),
            lease: None,
            jobs: Vec::new(),
            key_service: "https://keys".to_owned(),
            restored: None,
            now: UnixMs(now),
            crn: "crn".to_owned(),
        }
    }

    #[test]
    fn which_word_is_believed() {
        let first = state(10, 2, 1000, None);
        // Revision, KEKs, the server's date, age of the newest word; the revision believed then.
        let cases = [
            ("newer", 11, 2, 2000, SOON, 11),
            ("an answer that was overtaken", 9, 2, 900, SOON, 10),
            ("a server restored from a backup, same ring", 4, 2, 2000, SOON, 4),
            ("restored, its clock set back too", 4, 2, 900, CROSSING, 4),
            ("restored to before a KEK that this node holds", 4, 1, 2000, SOON, 10),
            ("a new KEK", 11, 3, 2000, SOON, 11),
        ];
        for (name, revision, keks, now, age, expected) in cases {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("ring.json");
            let mut truth = Truth::open(path.clone(), &first.cluster.id).unwrap();
            truth.take(&mut first.clone(), None).unwrap();
            let mut next = state(revision, keks, now, Some(&first));
            truth.take(&mut next, Some((first.now, age))).unwrap();
            assert_eq!(next.cluster.revision, expected, "{name}");
            assert_eq!(truth.cluster().map(|c| c.revision), Some(expected), "{name}");
            assert_eq!(truth.ahead().is_some(), keks < 2, "{name}");
            assert!(truth.refused("no".to_owned()) && !truth.refused("no".to_owned()));
            let told = truth.ahead().is_some_and(|why| why.ends_with("given back: no"));
            assert_eq!(told, keks < 2, "{name}");
            let again = Truth::open(path, &first.cluster.id).unwrap();
            let ring = again.cluster().map(|c| c.ring.clone());
            assert_eq!(ring, truth.cluster().map(|c| c.ring.clone()), "{name}: durable");
        }
    }

    #[test]
    fn a_first_ring_that_cannot_be_kept_is_not_used_either() {
        let dir = tempfile::tempdir().unwrap();
        let first = state(10, 1, 1000, None);
        let path = dir.path().join("missing").join("ring.json");
        let mut truth = Truth::open(path, &first.cluster.id).unwrap();
        assert!(truth.take(&mut first.clone(), None).is_err());
        assert_eq!(truth.cluster(), None);
        std::fs::create_dir(dir.path().join("missing")).unwrap();
        truth.take(&mut first.clone(), None).unwrap();
        assert_eq!(truth.cluster(), Some(&first.cluster));
    }

    /// An operation that was given up takes its staged KEK along; a restored server lacks one
    /// that it never heard of.
    #[test]
    fn a_kek_may_go_if_it_never_sealed_and_its_serial_is_spent() {
        let mut held = state(10, 2, 1000, None);
        held.cluster.ring.keks[0].role = Role::Write;
        held.cluster.ring.keks[1].role = Role::Staged;
        let sealed = {
            let mut held = held.clone();
            held.cluster.ring.keks[0].role = Role::Read;
            held.cluster.ring.keks[1].role = Role::Write;
            held
        };
        for (name, held, minted, taken) in [
            ("given up", &held, 2, true),
            ("restored from before it was made", &held, 1, false),
            ("it has sealed", &sealed, 2, false),
        ] {
            let mut new = state(11, 1, 2000, Some(held));
            new.cluster.ring.minted = minted;
            let dir = tempfile::tempdir().unwrap();
            let mut truth = Truth::open(dir.path().join("ring.json"), &held.cluster.id).unwrap();
            truth.take(&mut held.clone(), None).unwrap();
            truth.take(&mut new, Some((held.now, SOON))).unwrap();
            assert_eq!(new.cluster.ring.keks.len() == 1, taken, "{name}");
        }
    }

    #[test]
    fn a_ring_that_cannot_be_kept_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("state");
        std::fs::create_dir(&home).unwrap();
        let first = state(10, 1, 1000, None);
        let mut truth = Truth::open(home.join("ring.json"), &first.cluster.id).unwrap();
        truth.take(&mut first.clone(), None).unwrap();
        std::fs::remove_dir_all(&home).unwrap();
        let mut next = state(11, 2, 2000, Some(&first));
        assert!(truth.take(&mut next, Some((first.now, SOON))).is_err());
        assert_eq!(next.cluster, first.cluster);
    }

    #[test]
    fn an_answer_that_comes_late_does_not_hide_a_suspension() {
        use claviger_domain::key::KeyState;
        let root = state(1, 1, 0, None).cluster.ring.keks[0].root;
        let status = |state, event| RootStatus {
            root: root.root,
            name: "r".to_owned(),
            state,
            current: Some(root.version),
            event,
            expires: None,
            restorable_until: None,
        };
        let (active, off, start) = (KeyState::Active, KeyState::Suspended, Instant::now());
        // What was said at first; then, each second, this; the second in which it is believed.
        let rows = [
            ("read before, came after", (off, 7), (active, 6), 10),
            ("enabled again", (off, 7), (active, 8), 0),
            ("a restored server suspends the key", (active, 7), (off, 6), 10),
        ];
        for (name, first, then, believed) in rows {
            let mut said = Said::default();
            said.take(&mut [status(first.0, first.1)], start);
            for second in 0..20 {
                let mut roots = [status(then.0, then.1)];
                said.take(&mut roots, start + Duration::from_secs(second));
                assert_eq!(roots[0].state == then.0, second >= believed, "{name}, {second} s");
            }
        }
    }
}
