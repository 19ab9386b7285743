//! A key's life as types: each state has the transitions that lead out of it as methods and no
//! others, so that a wrong one does not compile. What is answered where an action is asked of a key
//! in another state is said by the table of states alone, [`verdict`]; a test holds the two together.

use crate::key::{KeyAction, KeyState, Verdict, verdict};

/// In use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Active(());

/// Disabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspended(());

/// Expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deactivated(());

/// Deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destroyed(());

impl Active {
    /// At `disable`.
    pub fn disable(self) -> Suspended {
        Suspended(())
    }

    /// When the expiration date comes.
    pub fn expire(self) -> Deactivated {
        Deactivated(())
    }

    /// At `delete`.
    pub fn delete(self) -> Destroyed {
        Destroyed(())
    }
}

impl Suspended {
    /// At `enable`. Whether the key has expired meanwhile, its date says.
    pub fn enable(self) -> Active {
        Active(())
    }

    /// At `delete`.
    pub fn delete(self) -> Destroyed {
        Destroyed(())
    }
}

impl Deactivated {
    /// At `delete`.
    pub fn delete(self) -> Destroyed {
        Destroyed(())
    }
}

impl Destroyed {
    /// At `restore`, whatever the key was before its deletion.
    pub fn restore(self) -> Active {
        Active(())
    }
}

/// Where a key is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // Each state says it.
pub enum Life {
    Active(Active),
    Suspended(Suspended),
    Deactivated(Deactivated),
    Destroyed(Destroyed),
}

/// An action was asked of a key whose state does not allow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The state.
    pub state: KeyState,
    /// The action.
    pub action: KeyAction,
    /// Whether the key is gone; else it is in a wrong state.
    pub gone: bool,
}

impl Life {
    /// How every key begins.
    pub fn begin() -> Life {
        Life::Active(Active(()))
    }

    /// As it was stored. For what reads keys, not for what changes them.
    pub fn stored(state: KeyState) -> Life {
        match state {
            KeyState::Active => Life::Active(Active(())),
            KeyState::Suspended => Life::Suspended(Suspended(())),
            KeyState::Deactivated => Life::Deactivated(Deactivated(())),
            KeyState::Destroyed => Life::Destroyed(Destroyed(())),
        }
    }

    /// The state's name and number.
    pub fn state(self) -> KeyState {
        match self {
            Life::Active(_) => KeyState::Active,
            Life::Suspended(_) => KeyState::Suspended,
            Life::Deactivated(_) => KeyState::Deactivated,
            Life::Destroyed(_) => KeyState::Destroyed,
        }
    }

    /// Whether the state allows `action`, by the table.
    ///
    /// # Errors
    /// When it does not.
    pub fn allows(self, action: KeyAction) -> Result<(), Refused> {
        match verdict(self.state(), action) {
            Verdict::Allowed => Ok(()),
            _ => Err(self.refused(action)),
        }
    }

    /// Suspends an active key.
    ///
    /// # Errors
    /// As [`allows`](Self::allows).
    pub fn disable(self) -> Result<Suspended, Refused> {
        match self {
            Life::Active(state) => Ok(state.disable()),
            _ => Err(self.refused(KeyAction::Disable)),
        }
    }

    /// Ends a suspension.
    ///
    /// # Errors
    /// As [`allows`](Self::allows).
    pub fn enable(self) -> Result<Active, Refused> {
        match self {
            Life::Suspended(state) => Ok(state.enable()),
            _ => Err(self.refused(KeyAction::Enable)),
        }
    }

    /// Destroys a key that is not destroyed.
    ///
    /// # Errors
    /// As [`allows`](Self::allows).
    pub fn delete(self) -> Result<Destroyed, Refused> {
        match self {
            Life::Active(state) => Ok(state.delete()),
            Life::Suspended(state) => Ok(state.delete()),
            Life::Deactivated(state) => Ok(state.delete()),
            Life::Destroyed(_) => Err(self.refused(KeyAction::Delete)),
        }
    }

    /// Brings a destroyed key back.
    ///
    /// # Errors
    /// As [`allows`](Self::allows).
    pub fn restore(self) -> Result<Active, Refused> {
        match self {
            Life::Destroyed(state) => Ok(state.restore()),
            _ => Err(self.refused(KeyAction::Restore)),
        }
    }

    fn refused(self, action: KeyAction) -> Refused {
        let state = self.state();
        Refused { state, action, gone: verdict(state, action) == Verdict::Gone }
    }
}

impl From<Active> for Life {
    fn from(state: Active) -> Life {
        Life::Active(state)
    }
}

impl From<Suspended> for Life {
    fn from(state: Suspended) -> Life {
        Life::Suspended(state)
    }
}

impl From<Deactivated> for Life {
    fn from(state: Deactivated) -> Life {
        Life::Deactivated(state)
    }
}

impl From<Destroyed> for Life {
    fn from(state: Destroyed) -> Life {
        Life::Destroyed(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every state against every transition: it is there where the table allows the action, leads
    /// where the picture of states says, and is refused elsewhere in the table's words.
    #[test]
    fn transitions_are_those_that_the_table_allows() {
        let all = [
            (KeyAction::Disable, KeyState::Suspended),
            (KeyAction::Enable, KeyState::Active),
            (KeyAction::Delete, KeyState::Destroyed),
            (KeyAction::Restore, KeyState::Active),
        ];
        for state in KeyState::ALL {
            let life = Life::stored(state);
            assert_eq!(life.state(), state);
            for (action, leads_to) in all {
                let done = match action {
                    KeyAction::Disable => life.disable().map(Life::from),
                    KeyAction::Enable => life.enable().map(Life::from),
                    KeyAction::Delete => life.delete().map(Life::from),
                    _ => life.restore().map(Life::from),
                };
                let want = match verdict(state, action) {
                    Verdict::Allowed => Ok(leads_to),
                    verdict => Err(Refused { state, action, gone: verdict == Verdict::Gone }),
                };
                assert_eq!(done.map(Life::state), want, "{action:?} on a {state} key");
            }
            for action in KeyAction::ALL {
                let allowed = verdict(state, action) == Verdict::Allowed;
                assert_eq!(life.allows(action).is_ok(), allowed, "{action:?} on a {state} key");
            }
        }
        let Life::Active(active) = Life::begin() else { panic!("every key begins active") };
        assert_eq!(Life::from(active.expire()).state(), KeyState::Deactivated);
    }
}
