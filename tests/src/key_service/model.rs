//! What a key must look like, without a line of the server's code.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Active = 1,
    Suspended = 2,
    Deactivated = 3,
    Destroyed = 5,
}

impl State {
    pub(super) fn from_number(number: Option<u64>) -> Option<State> {
        match number? {
            1 => Some(State::Active),
            2 => Some(State::Suspended),
            3 => Some(State::Deactivated),
            5 => Some(State::Destroyed),
            _ => None,
        }
    }
}

/// All of a key that can be seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) state: State,
    pub(super) root: bool,
    pub(super) imported: bool,
    pub(super) ring: String,
    pub(super) aliases: BTreeSet<String>,
    /// Months between rotations by policy.
    pub(super) rotation: Option<u64>,
    /// Whether two are needed to delete it.
    pub(super) dual: bool,
    /// Whether the first of them has said so.
    pub(super) set: bool,
    /// Ids of its versions, the oldest first.
    pub(super) versions: Vec<String>,
    /// Who is registered on it, and whether that forbids its deletion.
    pub(super) users: BTreeMap<String, bool>,
}

/// A change of an existing key.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Rotate,
    Disable,
    Enable,
    Delete { force: bool },
    Restore,
    Purge,
    Move(String),
    AddAlias(String),
    DropAlias(String),
    SetRotation(u64),
    NeedTwo,
    SetForDeletion,
    UnsetForDeletion,
    Register(String, bool),
    Unregister(String),
}

/// Most aliases of a key.
const ALIASES_MAX: usize = 5;

impl View {
    /// Whether the server must do it; it must refuse otherwise. NIST SP 800-57 part 1, section 7,
    /// with Key Protect's rules.
    pub(super) fn allows(&self, change: &Change) -> bool {
        use State::*;
        let (alive, imported) = (self.state != Destroyed, self.imported);
        match change {
            // An imported key's new material would have to come along.
            Change::Rotate => self.root && !imported && matches!(self.state, Active | Deactivated),
            Change::Disable => self.root && self.state == Active,
            Change::Enable => self.root && self.state == Suspended,
            Change::Delete { force } => {
                let unused = match force {
                    true => self.users.values().all(|prevents| !prevents),
                    false => self.users.is_empty(),
                };
                alive && unused && (!self.dual || self.set)
            }
            Change::Restore => !alive,
            // Four hours after the deletion at the earliest.
            Change::Purge => false,
            Change::Move(_) => alive,
            Change::AddAlias(alias) => {
                alive && !self.aliases.contains(alias) && self.aliases.len() < ALIASES_MAX
            }
            Change::DropAlias(alias) => alive && self.aliases.contains(alias),
            Change::SetRotation(_) => alive && self.root && !imported,
            Change::NeedTwo => alive,
            Change::SetForDeletion | Change::UnsetForDeletion => alive && self.dual,
            Change::Register(crn, _) => {
                self.root && self.state == Active && !self.users.contains_key(crn)
            }
            Change::Unregister(crn) => alive && self.users.contains_key(crn),
        }
    }

    /// Itself after an allowed change. A rotation adds a version whose id only the server knows:
    /// an empty one here.
    pub(super) fn after(&self, change: &Change) -> View {
        let mut key = self.clone();
        match change.clone() {
            Change::Rotate => key.versions.push(String::new()),
            Change::Disable => key.state = State::Suspended,
            Change::Enable => key.state = State::Active,
            Change::Delete { .. } => {
                key.state = State::Destroyed;
                key.users.clear();
            }
            Change::Restore => {
                key.state = State::Active;
                key.set = false;
            }
            Change::Purge => {}
            Change::Move(ring) => key.ring = ring,
            Change::AddAlias(alias) => drop(key.aliases.insert(alias)),
            Change::DropAlias(alias) => drop(key.aliases.remove(&alias)),
            Change::SetRotation(months) => key.rotation = Some(months),
            Change::NeedTwo => key.dual = true,
            Change::SetForDeletion => key.set = true,
            Change::UnsetForDeletion => key.set = false,
            Change::Register(crn, prevents) => drop(key.users.insert(crn, prevents)),
            Change::Unregister(crn) => drop(key.users.remove(&crn)),
        }
        key
    }

    /// Whether `seen` is this key; an empty id of a version stands for any new one.
    pub(super) fn is(&self, seen: &View) -> bool {
        let mut known = self.clone();
        if known.versions.len() == seen.versions.len() {
            for (known, seen) in known.versions.iter_mut().zip(&seen.versions) {
                if known.is_empty() {
                    known.clone_from(seen);
                }
            }
        }
        known == *seen
    }

    /// Whether it may open what it sealed.
    pub(super) fn opens(&self) -> bool {
        self.root && matches!(self.state, State::Active | State::Deactivated)
    }

    /// Whether it may seal.
    pub(super) fn seals(&self) -> bool {
        self.root && self.state == State::Active
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> View {
        View {
            state: State::Active,
            root: true,
            imported: false,
            ring: "default".to_owned(),
            aliases: BTreeSet::new(),
            rotation: None,
            dual: false,
            set: false,
            versions: vec!["v1".to_owned()],
            users: BTreeMap::new(),
        }
    }

    #[test]
    fn a_lost_change_is_there_whole_or_not_at_all() {
        let (before, after) = (key(), key().after(&Change::Rotate));
        let mut seen = key();
        assert!(before.is(&seen) && !after.is(&seen));
        seen.versions.push("v2".to_owned());
        assert!(!before.is(&seen) && after.is(&seen));
        seen.versions[0] = "another".to_owned();
        assert!(!after.is(&seen), "only the new version may have any id");
        let half = View { state: State::Destroyed, ..key() };
        assert!(!key().after(&Change::Disable).is(&half));
    }

    #[test]
    fn two_are_needed_where_two_are_needed() {
        let delete = Change::Delete { force: false };
        assert!(key().allows(&delete));
        let dual = key().after(&Change::NeedTwo);
        assert!(!dual.allows(&delete));
        assert!(dual.after(&Change::SetForDeletion).allows(&delete));
        let used = key().after(&Change::Register("crn".to_owned(), true));
        assert!(!used.allows(&Change::Delete { force: true }));
    }
}
