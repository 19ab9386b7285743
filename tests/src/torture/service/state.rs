//! The model: what an instance of the key service holds, and which answers an operation may have
//! then. Nothing of the server's code; only the table of states is shared with it.

use super::call::{Actor, Answer, Call, Held, Material, Op, RETRIEVALS, Target, crn};
use super::call::{alias_name, key_name, ring_name};
use claviger_domain::key::{KeyAction, KeyState, Verdict, verdict};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Aliases that one key may have.
const ALIASES_MAX: usize = 5;

/// An instance.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    pub keys: BTreeMap<u32, Arc<Key>>,
    pub rings: BTreeSet<u32>,
    /// Its policies, if they were ever written.
    pub dual: Option<bool>,
    pub import: Option<bool>,
    /// Retrievals that are left of the import token.
    pub token: Option<u32>,
}

/// A key. What only the server can choose is `None` until an answer shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    pub id: Option<String>,
    pub root: bool,
    pub imported: bool,
    /// As it was last written; see [`states`](Self::states).
    pub state: KeyState,
    pub expires: Option<i64>,
    pub ring: Option<u32>,
    pub aliases: BTreeSet<u32>,
    /// Oldest first; none for a standard key.
    pub versions: Vec<Option<String>>,
    /// Of a standard key: base64.
    pub payload: Option<String>,
    pub dual: bool,
    pub rotation: Option<(bool, u8)>,
    pub set_by: Option<Actor>,
    /// Resources, whether each forbids deletion, and the version that it uses.
    pub registrations: BTreeMap<u32, (bool, usize)>,
    /// What those who follow the key were told, but for its expiry, which the clock does.
    pub events: Vec<&'static str>,
    /// Latest moment of the last disable or delete, and of the last rotation: whoever reads the
    /// clock before and comes to the database afterwards is told that he is too early.
    pub acted: i64,
    pub rotated: i64,
    pub age: Age,
}

/// How long ago a key seems to have been deleted; see `records`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// As long as it really was: seconds.
    Real,
    /// It may be purged.
    Hours,
    /// It cannot be restored any more.
    Month,
}

/// What an operation may lead to.
enum Outcome {
    Refused(u16, &'static str),
    Done(State),
    /// It may succeed, but not with this answer.
    Wrong(String),
}

use Outcome::{Done, Refused, Wrong};

impl Key {
    /// The states in which an operation between two moments may have found the key.
    fn states(&self, from: i64, to: i64) -> Vec<KeyState> {
        match (self.state, self.expires) {
            (KeyState::Active, Some(end)) if from >= end => vec![KeyState::Deactivated],
            (KeyState::Active, Some(end)) if to >= end => {
                vec![KeyState::Active, KeyState::Deactivated]
            }
            (state, _) => vec![state],
        }
    }

    /// Whether `id` can be the current version. Learns it if it was not known.
    fn current_is(&mut self, id: Option<&str>) -> bool {
        let Some(id) = id else { return false };
        let at = self.versions.len().wrapping_sub(1);
        self.version_is(at, id)
    }

    fn version_is(&mut self, at: usize, id: &str) -> bool {
        let known_elsewhere =
            self.versions.iter().enumerate().any(|(i, v)| i != at && v.as_deref() == Some(id));
        match self.versions.get_mut(at) {
            Some(Some(known)) => known == id,
            Some(unknown) if !known_elsewhere => {
                *unknown = Some(id.to_owned());
                true
            }
            _ => false,
        }
    }

    /// Compares with the key as the server shows it, and learns what was not known.
    fn seen(&mut self, key: u32, shown: &Value, from: i64, to: i64) -> Result<(), String> {
        let is = |what: &str, expected: Value| {
            let found = shown.get(what).cloned().unwrap_or(Value::Null);
            if found == expected {
                Ok(())
            } else {
                Err(format!("{what} of key {key} is {found}, expected {expected}"))
            }
        };
        let id = shown["id"].as_str().unwrap_or_default().to_owned();
        is("id", self.id.get_or_insert(id).as_str().into())?;
        is("name", key_name(key).into())?;
        is("extractable", (!self.root).into())?;
        is("imported", self.imported.into())?;
        is("keyRingID", ring_name(self.ring).into())?;
        let aliases: Vec<String> = self.aliases.iter().map(|a| alias_name(*a)).collect();
        is("aliases", if aliases.is_empty() { Value::Null } else { aliases.into() })?;
        let state = shown["state"].as_u64();
        let states = self.states(from, to);
        if !states.iter().any(|s| Some(*s as u64) == state) {
            return Err(format!("state of key {key} is {state:?}, expected one of {states:?}"));
        }
        is("deleted", (self.state == KeyState::Destroyed).into())?;
        if self.root && !self.current_is(shown.pointer("/keyVersion/id").and_then(Value::as_str)) {
            let (found, versions) = (&shown["keyVersion"], &self.versions);
            return Err(format!(
                "version of key {key} is {found}, expected the last of {versions:?}"
            ));
        }
        let rotation = self.rotation.map_or(
            Value::Null,
            |(enabled, months)| serde_json::json!({ "enabled": enabled, "interval_month": months }),
        );
        is("rotation", rotation)?;
        let dual = &shown["dualAuthDelete"];
        let set = self.dual.then_some(self.set_by.is_some());
        if dual["enabled"] != self.dual || dual["keySetForDeletion"].as_bool() != set {
            return Err(format!("dualAuthDelete of key {key} is {dual}, expected {set:?}"));
        }
        let expires = shown["expirationDate"].as_str().map(str::len);
        if expires.is_some() != self.expires.is_some() {
            return Err(format!("expirationDate of key {key} is {}", shown["expirationDate"]));
        }
        Ok(())
    }

    /// Compares the payload of a standard key, and learns it if it was not known.
    fn payload_seen(&mut self, key: u32, shown: &Value) -> Result<(), String> {
        let shown = shown["payload"].as_str();
        if self.root || self.state == KeyState::Destroyed {
            return shown.map_or(Ok(()), |_| Err(format!("key {key} shows a payload")));
        }
        let shown = shown.ok_or_else(|| format!("key {key} shows no payload"))?;
        if self.payload.get_or_insert_with(|| shown.to_owned()) == shown {
            return Ok(());
        }
        Err(format!("key {key} has another payload than before"))
    }
}

/// What the table of states says, as an answer; none if it allows the action.
fn refused(state: KeyState, action: KeyAction) -> Option<Outcome> {
    match verdict(state, action) {
        Verdict::Allowed => None,
        Verdict::Gone => Some(Refused(410, "KEY_DELETED_ERR")),
        Verdict::WrongState => Some(match action {
            KeyAction::Register | KeyAction::Unregister => Refused(422, "KEY_INVALID_STATE_ERR"),
            _ => Refused(409, "KEY_ACTION_INVALID_STATE_ERR"),
        }),
    }
}

impl State {
    /// The states that may follow `call` and fit its answer; if it has none, those of success.
    /// No state: with this answer it cannot have been done now; then why.
    pub fn after(&self, call: &Call) -> Result<Vec<State>, String> {
        let mut next = Vec::new();
        let mut why = Vec::new();
        for outcome in self.outcomes(call) {
            match (outcome, &call.answer) {
                (Done(state), None) => next.push(state),
                (Done(state), Some(answer)) if answer.status < 300 => next.push(state),
                (Refused(status, code), Some(answer))
                    if answer.status == status && answer.code == code =>
                {
                    next.push(self.clone());
                }
                (Done(_), _) => why.push("success".to_owned()),
                (Refused(status, code), _) => why.push(format!("{status} {code}")),
                (Wrong(text), _) => why.push(format!("success, but {text}")),
            }
        }
        if next.is_empty() { Err(format!("possible: {}", why.join(", or "))) } else { Ok(next) }
    }

    fn outcomes(&self, call: &Call) -> Vec<Outcome> {
        if let Some(target) = call.op.target() {
            let Some((number, key)) = self.find(target) else {
                return vec![Refused(404, "KEY_NOT_FOUND_ERR")];
            };
            let states = key.states(call.from, call.to);
            return states.into_iter().flat_map(|s| self.on_key(number, key, s, call)).collect();
        }
        vec![match &call.op {
            Op::Create { .. } => self.create(call),
            Op::MakeRing(ring) if self.rings.contains(ring) => {
                Refused(409, "KEY_RING_NOT_UNIQUE_ERR")
            }
            Op::MakeRing(ring) => self.with(|state| {
                state.rings.insert(*ring);
                Ok(())
            }),
            Op::DeleteRing { ring, force } => self.delete_ring(*ring, *force),
            Op::SetInstanceDual(enabled) => Done(State { dual: Some(*enabled), ..self.clone() }),
            Op::SetImport(allowed) => Done(State { import: Some(*allowed), ..self.clone() }),
            Op::MakeToken => Done(State { token: Some(RETRIEVALS), ..self.clone() }),
            Op::TakeToken => match self.token {
                None => Refused(404, "IMPORT_TOKEN_NOT_FOUND_ERR"),
                Some(0) => Refused(409, "IMPORT_TOKEN_RETRIEVALS_ERR"),
                Some(left) => self.with(|state| {
                    state.token = Some(left - 1);
                    let Some(answer) = &call.answer else { return Ok(()) };
                    let shown = answer.body["remainingRetrievals"].as_u64();
                    if shown == Some(u64::from(left - 1)) {
                        return Ok(());
                    }
                    Err(format!("{shown:?} retrievals left, expected {}", left - 1))
                }),
            },
            Op::List => self.list(call),
            Op::Rings => self.with(|state| {
                let Some(found) = resources(call, "id") else { return Ok(()) };
                let mut expected: Vec<String> =
                    state.rings.iter().map(|r| ring_name(Some(*r))).collect();
                expected.push(ring_name(None));
                same(found, expected)
            }),
            Op::InstancePolicies => self.with(|state| {
                let Some(answer) = &call.answer else { return Ok(()) };
                let empty = Vec::new();
                let found = answer.body["resources"].as_array().unwrap_or(&empty);
                let of = |kind: &str, path: &str| {
                    let policy = found.iter().find(|p| p["policy_type"] == kind);
                    policy.and_then(|p| p.pointer(path)).and_then(Value::as_bool)
                };
                let dual = of("dualAuthDelete", "/policy_data/enabled");
                let import =
                    of("keyCreateImportAccess", "/policy_data/attributes/import_standard_key");
                if (dual, import) == (state.dual, state.import) {
                    return Ok(());
                }
                Err(format!(
                    "policies {dual:?}, {import:?}, expected {:?}, {:?}",
                    state.dual, state.import
                ))
            }),
            _ => unreachable!("every other operation names a key"),
        }]
    }

    fn find(&self, target: &Target) -> Option<(u32, &Arc<Key>)> {
        let (number, key) = match target {
            Target::Key(number, _) => self.keys.get_key_value(number)?,
            Target::Alias(alias) => {
                self.keys.iter().find(|(_, key)| key.aliases.contains(alias))?
            }
        };
        Some((*number, key))
    }

    fn with(&self, change: impl FnOnce(&mut State) -> Result<(), String>) -> Outcome {
        let mut state = self.clone();
        match change(&mut state) {
            Ok(()) => Done(state),
            Err(why) => Wrong(why),
        }
    }

    fn with_key(
        &self,
        number: u32,
        change: impl FnOnce(&mut Key) -> Result<(), String>,
    ) -> Outcome {
        self.with(|state| {
            state.keys.get_mut(&number).map_or(Ok(()), |key| change(Arc::make_mut(key)))
        })
    }

    fn create(&self, call: &Call) -> Outcome {
        let Op::Create { key: number, root, material, ring, aliases, expires } = &call.op else {
            unreachable!("asked for a new key only");
        };
        let imported = *material != Material::Made;
        if imported && !root && self.import == Some(false) {
            return Refused(409, "KEY_CREATE_IMPORT_ACCESS_ERR");
        }
        if ring.is_some_and(|ring| !self.rings.contains(&ring)) {
            return Refused(404, "KEY_RING_NOT_FOUND_ERR");
        }
        if aliases.iter().any(|alias| self.keys.values().any(|key| key.aliases.contains(alias))) {
            return Refused(409, "KEY_ALIAS_NOT_UNIQUE_ERR");
        }
        let payload = match material {
            Material::Plain(payload) if !root => Some(payload.clone()),
            _ => None,
        };
        let mut key = Key {
            id: None,
            root: *root,
            imported,
            state: KeyState::Active,
            expires: *expires,
            ring: *ring,
            aliases: aliases.iter().copied().collect(),
            versions: if *root { vec![None] } else { Vec::new() },
            payload,
            dual: self.dual == Some(true),
            rotation: None,
            set_by: None,
            registrations: BTreeMap::new(),
            events: Vec::new(),
            acted: 0,
            rotated: 0,
            age: Age::Real,
        };
        if let Some(answer) = &call.answer
            && answer.status == 201
        {
            let shown = &answer.body["resources"][0];
            let checked = key
                .seen(*number, shown, call.from, call.to)
                .and_then(|()| key.payload_seen(*number, shown));
            if let Err(why) = checked {
                return Wrong(why);
            }
        }
        self.with(|state| {
            state.keys.insert(*number, Arc::new(key));
            Ok(())
        })
    }

    fn delete_ring(&self, ring: u32, force: bool) -> Outcome {
        if !self.rings.contains(&ring) {
            return Refused(404, "KEY_RING_NOT_FOUND_ERR");
        }
        let inside = || self.keys.iter().filter(|(_, key)| key.ring == Some(ring));
        let live = inside().any(|(_, key)| key.state != KeyState::Destroyed);
        if live || (inside().next().is_some() && !force) {
            return Refused(409, "KEY_RING_NOT_EMPTY_ERR");
        }
        self.with(|state| {
            state.rings.remove(&ring);
            for key in state.keys.values_mut().filter(|key| key.ring == Some(ring)) {
                Arc::make_mut(key).ring = None;
            }
            Ok(())
        })
    }

    fn list(&self, call: &Call) -> Outcome {
        self.with(|state| {
            let Some(found) = resources(call, "name") else { return Ok(()) };
            same(found, state.keys.keys().map(|key| key_name(*key)).collect())?;
            let shown = call.answer.as_ref().and_then(|a| a.body["resources"].as_array());
            for shown in shown.into_iter().flatten() {
                let number = shown["name"].as_str().and_then(|name| name.strip_prefix("key-"));
                let number: u32 = number.and_then(|n| n.parse().ok()).unwrap_or_default();
                if let Some(key) = state.keys.get_mut(&number) {
                    Arc::make_mut(key).seen(number, shown, call.from, call.to)?;
                }
            }
            Ok(())
        })
    }

    /// What an operation on a key leads to that finds the key in `state`.
    fn on_key(&self, number: u32, key: &Key, state: KeyState, call: &Call) -> Vec<Outcome> {
        let one = |outcome| vec![outcome];
        let action = match &call.op {
            Op::Wrap { .. } => KeyAction::Wrap,
            Op::Unwrap { .. } => KeyAction::Unwrap,
            Op::Rewrap { .. } => KeyAction::Rewrap,
            Op::Rotate { .. } => KeyAction::Rotate,
            Op::Disable(_) => KeyAction::Disable,
            Op::Enable(_) => KeyAction::Enable,
            Op::SetForDeletion(_) => KeyAction::SetForDeletion,
            Op::UnsetForDeletion(_) => KeyAction::UnsetForDeletion,
            Op::Delete { .. } => KeyAction::Delete,
            Op::Restore(_) => KeyAction::Restore,
            Op::Purge(_) => KeyAction::Purge,
            Op::Sync(_) => KeyAction::Sync,
            Op::Move { .. } => KeyAction::Patch,
            Op::AddAlias(..) | Op::RemoveAlias(..) => KeyAction::Alias,
            Op::SetDual { .. } | Op::SetRotation { .. } => KeyAction::SetPolicy,
            Op::Register { .. } | Op::ChangeRegistration { .. } => KeyAction::Register,
            Op::Unregister { .. } => KeyAction::Unregister,
            Op::Registrations(_) => KeyAction::ReadRegistrations,
            _ => KeyAction::Read,
        };
        let needs_root = matches!(
            action,
            KeyAction::Wrap
                | KeyAction::Unwrap
                | KeyAction::Rewrap
                | KeyAction::Rotate
                | KeyAction::Disable
                | KeyAction::Enable
                | KeyAction::Sync
                | KeyAction::ReadRegistrations
        ) || matches!(call.op, Op::Versions(_));
        if needs_root && !key.root {
            return one(Refused(400, "KEY_ROOT_REQ_ERR"));
        }
        let user = matches!(action, KeyAction::Register | KeyAction::Unregister);
        if user && !key.root {
            return one(Refused(422, "KEY_ROOT_REQ_REG_ERR"));
        }
        // What is not registered can be taken away in no state.
        if let Op::Unregister { resource, .. } = &call.op
            && !key.registrations.contains_key(resource)
        {
            return one(Refused(404, "REGISTRATION_NOT_FOUND_ERR"));
        }
        if let Some(refused) = refused(state, action) {
            return one(refused);
        }
        match &call.op {
            Op::Wrap { plaintext, .. } => one(self.with_key(number, |key| {
                let Some(answer) = success(call) else { return Ok(()) };
                let version = answer.body.pointer("/keyVersion/id").and_then(Value::as_str);
                let made = answer.body["plaintext"].is_string();
                if !answer.body["ciphertext"].is_string() || made == plaintext.is_some() {
                    return Err("a ciphertext, and a plaintext if none was given".to_owned());
                }
                if key.current_is(version) {
                    return Ok(());
                }
                Err(format!("the last version of {:?}", key.versions))
            })),
            Op::Unwrap { held, .. } | Op::Rewrap { held, .. } if held.key != number => {
                one(Refused(422, "UNPROCESSABLE_CIPHERTEXT_ERR"))
            }
            Op::Unwrap { held, .. } => one(self.opened(number, held, true, call)),
            Op::Rewrap { held, .. } => one(self.opened(number, held, false, call)),
            Op::Rotate { payload, .. } => {
                let too_early = "KEY_ROTATION_NOT_PERMITTED";
                match (key.imported, payload.is_some()) {
                    (true, false) => one(Refused(400, "KEY_PAYLOAD_REQ_ERR")),
                    (false, true) => one(Refused(400, "INVALID_QUERY_PARAM_ERR")),
                    _ => self.unless_early(key.rotated, too_early, number, call, |key| {
                        key.versions.push(None);
                        key.rotated = call.to;
                        key.events.push("rotate");
                    }),
                }
            }
            Op::Disable(_) => one(self.with_key(number, |key| {
                key.state = KeyState::Suspended;
                key.acted = call.to;
                key.events.push("disable");
                Ok(())
            })),
            Op::Enable(_) => {
                self.unless_early(key.acted, "REQ_TOO_EARLY_ERR", number, call, |key| {
                    key.state = KeyState::Active;
                    key.events.push("enable");
                })
            }
            Op::SetForDeletion(_) | Op::UnsetForDeletion(_) if !key.dual => {
                one(Refused(409, "NOT_DUAL_AUTH_ERR"))
            }
            Op::SetForDeletion(_) => one(self.with_key(number, |key| {
                key.set_by = Some(call.actor);
                Ok(())
            })),
            Op::UnsetForDeletion(_) => one(self.with_key(number, |key| {
                key.set_by = None;
                Ok(())
            })),
            Op::Delete { force, .. } => one(self.delete(number, key, *force, call)),
            Op::Restore(_) => {
                if key.expires.is_some_and(|end| call.from >= end) {
                    return one(Refused(400, "KEY_EXPIRED_ERR"));
                }
                if key.age == Age::Month {
                    return one(Refused(400, "KEY_RESTORE_EXPIRED"));
                }
                let code = "REQ_TOO_EARLY_ERR";
                let mut all = self.unless_early(key.acted, code, number, call, |key| {
                    key.state = KeyState::Active;
                    key.set_by = None;
                    key.age = Age::Real;
                    if key.root {
                        key.events.push("restore");
                    }
                });
                if key.expires.is_some_and(|end| call.to >= end) {
                    all.push(Refused(400, "KEY_EXPIRED_ERR"));
                }
                all
            }
            Op::Purge(_) if key.age == Age::Real => one(Refused(409, "REQ_TOO_EARLY_ERR")),
            Op::Purge(_) => one(self.with(|state| {
                state.keys.remove(&number);
                Ok(())
            })),
            Op::Sync(_) if !key.events.is_empty() => one(Refused(409, "REQ_TOO_EARLY_ERR")),
            Op::Sync(_) => one(self.with_key(number, |key| {
                // Without an event so far the key can be in one state only.
                key.events.push("enable");
                Ok(())
            })),
            Op::Move { ring, .. } => match ring {
                Some(ring) if !self.rings.contains(ring) => {
                    one(Refused(404, "KEY_RING_NOT_FOUND_ERR"))
                }
                ring => one(self.with_key(number, |key| {
                    key.ring = *ring;
                    Ok(())
                })),
            },
            Op::AddAlias(_, alias) => {
                if self.keys.values().any(|key| key.aliases.contains(alias)) {
                    return one(Refused(409, "KEY_ALIAS_NOT_UNIQUE_ERR"));
                }
                if key.aliases.len() >= ALIASES_MAX {
                    return one(Refused(409, "KEY_ALIAS_QUOTA_ERR"));
                }
                one(self.with_key(number, |key| {
                    key.aliases.insert(*alias);
                    Ok(())
                }))
            }
            Op::RemoveAlias(_, alias) if !key.aliases.contains(alias) => {
                one(Refused(404, "KEY_ALIAS_NOT_FOUND_ERR"))
            }
            Op::RemoveAlias(_, alias) => one(self.with_key(number, |key| {
                key.aliases.remove(alias);
                Ok(())
            })),
            Op::SetDual { enabled: false, .. } if key.dual => {
                one(Refused(409, "DUAL_AUTH_DELETE_ERR"))
            }
            Op::SetDual { enabled, .. } => one(self.with_key(number, |key| {
                key.dual = *enabled;
                Ok(())
            })),
            Op::SetRotation { .. } if !key.root => one(Refused(400, "KEY_ROOT_REQ_ERR")),
            Op::SetRotation { .. } if key.imported => one(Refused(400, "KEY_PAYLOAD_REQ_ERR")),
            Op::SetRotation { enabled, months, .. } => one(self.with_key(number, |key| {
                key.rotation = Some((*enabled, *months));
                Ok(())
            })),
            Op::Register { resource, .. } if key.registrations.contains_key(resource) => {
                one(Refused(409, "REGISTRATION_EXISTS_ERR"))
            }
            Op::Register { resource, prevent, .. } => one(self.with_key(number, |key| {
                key.registrations.insert(*resource, (*prevent, key.versions.len() - 1));
                Ok(())
            })),
            Op::ChangeRegistration { resource, prevent, .. } => {
                if !key.registrations.contains_key(resource) {
                    return one(Refused(404, "REGISTRATION_NOT_FOUND_ERR"));
                }
                one(self.with_key(number, |key| {
                    if let Some(registration) = key.registrations.get_mut(resource) {
                        registration.0 = *prevent;
                    }
                    Ok(())
                }))
            }
            Op::Unregister { resource, .. } => one(self.with_key(number, |key| {
                key.registrations.remove(resource);
                Ok(())
            })),
            Op::Look(_) => one(self.with_key(number, |key| {
                let Some(answer) = success(call) else { return Ok(()) };
                let shown = &answer.body["resources"][0];
                key.seen(number, shown, call.from, call.to)?;
                key.payload_seen(number, shown)
            })),
            Op::Versions(_) => one(self.with_key(number, |key| {
                let Some(mut found) = resources(call, "id") else { return Ok(()) };
                // Newest first.
                found.reverse();
                let fit = found.len() == key.versions.len()
                    && found.iter().enumerate().all(|(at, id)| key.version_is(at, id));
                if fit { Ok(()) } else { Err(format!("versions {:?}", key.versions)) }
            })),
            Op::Registrations(_) => one(self.with_key(number, |key| registered(key, call))),
            _ => unreachable!("every other operation names no key"),
        }
    }

    fn delete(&self, number: u32, key: &Key, force: bool, call: &Call) -> Outcome {
        if key.dual && key.set_by.is_none_or(|first| first == call.actor) {
            return Refused(409, "AUTHORIZATIONS_NOT_MET");
        }
        if key.registrations.values().any(|(prevent, _)| *prevent) {
            return Refused(409, "PREV_KEY_DEL_ERR");
        }
        if !force && !key.registrations.is_empty() {
            return Refused(409, "PROTECTED_RESOURCE_ERR");
        }
        self.with_key(number, |key| {
            key.registrations.clear();
            key.state = KeyState::Destroyed;
            key.acted = call.to;
            if key.root {
                key.events.push("delete");
            }
            Ok(())
        })
    }

    /// Done, or refused as too early if the clock may have been read before `last`.
    fn unless_early(
        &self,
        last: i64,
        code: &'static str,
        number: u32,
        call: &Call,
        change: impl FnOnce(&mut Key),
    ) -> Vec<Outcome> {
        let mut all = vec![self.with_key(number, |key| {
            change(key);
            Ok(())
        })];
        if call.from <= last {
            all.push(Refused(409, code));
        }
        all
    }

    /// What was wrapped comes back, and under the current version where that is another one.
    fn opened(&self, number: u32, held: &Held, plain: bool, call: &Call) -> Outcome {
        self.with_key(number, |key| {
            if !key.versions.iter().any(|v| v.as_ref() == Some(&held.version)) {
                return Err(format!("no success: key {number} has no version {}", held.version));
            }
            let Some(answer) = success(call) else { return Ok(()) };
            let text = |path: &str| answer.body.pointer(path).and_then(Value::as_str);
            let expected = plain.then_some(held.plaintext.as_str());
            if text("/plaintext") != expected || text("/keyVersion/id") != Some(&held.version) {
                return Err(format!("{expected:?} of version {}", held.version));
            }
            let newer = text("/rewrappedKeyVersion/id");
            let current = newer.unwrap_or(&held.version).to_owned();
            let again = text("/ciphertext").is_some();
            if again != newer.is_some() || (!plain && !again) || !key.current_is(Some(&current)) {
                return Err(format!("rewrapped under the last version of {:?}", key.versions));
            }
            Ok(())
        })
    }
}

fn success(call: &Call) -> Option<&Answer> {
    call.answer.as_ref().filter(|answer| answer.status < 300)
}

/// One field of each resource in the answer; none without a success.
fn resources(call: &Call, field: &str) -> Option<Vec<String>> {
    let list = success(call)?.body["resources"].as_array()?;
    Some(list.iter().map(|r| r[field].as_str().unwrap_or_default().to_owned()).collect())
}

fn same(mut found: Vec<String>, mut expected: Vec<String>) -> Result<(), String> {
    found.sort();
    expected.sort();
    if found == expected { Ok(()) } else { Err(format!("{expected:?}, not {found:?}")) }
}

fn registered(key: &mut Key, call: &Call) -> Result<(), String> {
    let Some(found) = resources(call, "resourceCrn") else { return Ok(()) };
    same(found, key.registrations.keys().map(|r| crn(*r)).collect())?;
    let shown = success(call).and_then(|answer| answer.body["resources"].as_array());
    for (resource, (prevent, version)) in key.registrations.clone() {
        let shown = shown.and_then(|all| all.iter().find(|r| r["resourceCrn"] == crn(resource)));
        let Some(shown) = shown else { continue };
        let id = shown.pointer("/keyVersion/id").and_then(Value::as_str).unwrap_or_default();
        if shown["preventKeyDeletion"] != prevent || !key.version_is(version, id) {
            return Err(format!("registration {resource}: {prevent}, version {version}"));
        }
    }
    Ok(())
}
