//! Whether what is stored is what the operator wants.

use super::{Census, Counts};
use claviger_domain::key::RootVersion;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The answer to: is every live record under this root-key version?
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// Yes.
    Good,
    /// No, for these reasons; at least one.
    FallsShort {
        /// Why, worst first.
        reasons: Vec<Shortfall>,
    },
    /// Nothing speaks against it, but the current version could not be learned.
    Unknown,
}

/// Records that fall short, in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Shortfall {
    /// Not encrypted.
    Plaintext {
        /// How many.
        records: u64,
    },
    /// Contradict themselves, or carry another key than the others of the same key id.
    Forged {
        /// How many.
        records: u64,
    },
    /// Cannot be decoded.
    Undecodable {
        /// How many.
        records: u64,
    },
    /// Under a key that is not Claviger's.
    Unknown {
        /// How many.
        records: u64,
    },
    /// Under another root key, or another version of it.
    Behind {
        /// How many.
        records: u64,
        /// Under which.
        root: RootVersion,
    },
    /// Overwritten or deleted, and still in the file.
    History {
        /// Not encrypted.
        plaintext: u64,
        /// Contradict themselves or the others.
        forged: u64,
        /// Cannot be decoded.
        undecodable: u64,
        /// Under a key that is not Claviger's.
        unknown: u64,
    },
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shortfall::Plaintext { records } => write!(f, "{records} not encrypted"),
            Shortfall::Forged { records } => {
                write!(
                    f,
                    "{records} forged: their key id and the key they carry do not agree, with each other or with the other records"
                )
            }
            Shortfall::Undecodable { records } => write!(f, "{records} undecodable"),
            Shortfall::Unknown { records } => write!(f, "{records} under a key that is not ours"),
            Shortfall::Behind { records, root } => write!(f, "{records} under {root}"),
            Shortfall::History { plaintext, forged, undecodable, unknown } => write!(
                f,
                "in its history {plaintext} not encrypted, {forged} forged, {undecodable} undecodable, {unknown} under a key that is not ours"
            ),
        }
    }
}

/// Records of which no key of the cluster is said, or a wrong one.
#[derive(Default, PartialEq)]
struct Bad {
    plaintext: u64,
    forged: u64,
    undecodable: u64,
    unknown: u64,
}

impl Bad {
    fn add(&mut self, counts: &Counts) {
        self.plaintext += counts.plaintext.records;
        self.forged += counts.forged.records;
        self.undecodable += counts.undecodable.records;
        self.unknown += counts.unknown.records;
        let foreign = counts.under.iter().filter(|under| under.root.is_none());
        self.unknown += foreign.map(|under| under.records).sum::<u64>();
        // A KEK is wrapped once, so one name stands for one wrapped KEK: that of most records. Who
        // carries another could not be opened by what it carries.
        let mut by_name: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for under in counts.under.iter().filter(|under| under.root.is_some()) {
            let (all, most) = by_name.entry(&under.key_id).or_default();
            *all += under.records;
            *most = under.records.max(*most);
        }
        self.forged += by_name.values().map(|(all, most)| all - most).sum::<u64>();
    }

    fn reasons(&self) -> Vec<Shortfall> {
        let Bad { plaintext, forged, undecodable, unknown } = *self;
        let counted = [
            (plaintext, Shortfall::Plaintext { records: plaintext }),
            (forged, Shortfall::Forged { records: forged }),
            (undecodable, Shortfall::Undecodable { records: undecodable }),
            (unknown, Shortfall::Unknown { records: unknown }),
        ];
        counted.into_iter().filter(|(n, _)| *n > 0).map(|(_, reason)| reason).collect()
    }
}

impl Census {
    /// Whether every live record is under `current`, the root-key version that the key service
    /// calls current for this cluster; none if that could not be learned. Where history was
    /// counted too, older versions are what it is made of; anything else falls short.
    pub fn verdict(&self, current: Option<RootVersion>) -> Verdict {
        let mut behind = Vec::new();
        let mut live = Bad::default();
        for counts in self.resources.values() {
            live.add(counts);
            for under in &counts.under {
                if let Some(root) = under.root
                    && current.is_some_and(|c| c != root)
                {
                    behind.push(Shortfall::Behind { records: under.records, root });
                }
            }
        }
        let mut history = Bad::default();
        self.history.iter().flat_map(|h| h.values()).for_each(|counts| history.add(counts));
        let mut reasons = live.reasons();
        reasons.extend(behind);
        if history != Bad::default() {
            let Bad { plaintext, forged, undecodable, unknown } = history;
            reasons.push(Shortfall::History { plaintext, forged, undecodable, unknown });
        }
        match (reasons.is_empty(), current) {
            (false, _) => Verdict::FallsShort { reasons },
            (true, Some(_)) => Verdict::Good,
            (true, None) => Verdict::Unknown,
        }
    }
}
