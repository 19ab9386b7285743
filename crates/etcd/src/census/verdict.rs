//! Whether what is stored is what the operator wants.

use super::Census;
use claviger_domain::key::RootVersion;
use serde::Serialize;
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
    /// Contradict themselves.
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
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shortfall::Plaintext { records } => write!(f, "{records} not encrypted"),
            Shortfall::Forged { records } => {
                write!(f, "{records} forged: their key id and the key they carry do not agree")
            }
            Shortfall::Undecodable { records } => write!(f, "{records} undecodable"),
            Shortfall::Unknown { records } => write!(f, "{records} under a key that is not ours"),
            Shortfall::Behind { records, root } => write!(f, "{records} under {root}"),
        }
    }
}

impl Census {
    /// Whether every live record is under `current`, the root-key version that the key service
    /// calls current for this cluster; none if that could not be learned.
    pub fn verdict(&self, current: Option<RootVersion>) -> Verdict {
        let mut behind = Vec::new();
        let (mut plaintext, mut forged, mut undecodable, mut unknown) = (0, 0, 0, 0);
        for counts in self.resources.values() {
            plaintext += counts.plaintext.records;
            forged += counts.forged.records;
            undecodable += counts.undecodable.records;
            unknown += counts.unknown.records;
            for under in &counts.under {
                match under.root {
                    None => unknown += under.records,
                    Some(root) if current.is_some_and(|c| c != root) => {
                        behind.push(Shortfall::Behind { records: under.records, root });
                    }
                    Some(_) => {}
                }
            }
        }
        let counted = [
            (plaintext, Shortfall::Plaintext { records: plaintext }),
            (forged, Shortfall::Forged { records: forged }),
            (undecodable, Shortfall::Undecodable { records: undecodable }),
            (unknown, Shortfall::Unknown { records: unknown }),
        ];
        let mut reasons: Vec<_> =
            counted.into_iter().filter(|(n, _)| *n > 0).map(|(_, reason)| reason).collect();
        reasons.extend(behind);
        match (reasons.is_empty(), current) {
            (false, _) => Verdict::FallsShort { reasons },
            (true, Some(_)) => Verdict::Good,
            (true, None) => Verdict::Unknown,
        }
    }
}
