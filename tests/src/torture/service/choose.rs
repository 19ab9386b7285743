//! What a client does next, and what all clients know so far.

use super::super::Dice;
use super::call::{Actor, Answer, Held, Material, Op, Target};
use crate::Outcome;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claviger_crypto::transport::{Oaep, seal_for, seal_nonce};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Keys of one run; bounds what is looked at after each start.
const KEYS_MAX: u32 = 16;
/// Ciphertexts that are kept of one run.
const HELD_MAX: usize = 60;
const ALIASES: u64 = 9;
const RINGS: u64 = 4;
const RESOURCES: u64 = 3;

/// A key that a client can name.
#[derive(Clone)]
pub struct Known {
    pub id: String,
    pub root: bool,
    pub imported: bool,
}

/// What clients know together.
#[derive(Default)]
pub struct Ground {
    made: u32,
    wanted: BTreeMap<u32, (bool, bool)>,
    pub keys: BTreeMap<u32, Known>,
    pub held: Vec<Arc<Held>>,
    /// PEM and nonce of the import token.
    token: Option<(String, Vec<u8>)>,
    calls: u64,
}

impl Ground {
    /// An id for the next call.
    pub fn next_id(&mut self) -> String {
        self.calls += 1;
        format!("call-{}", self.calls)
    }

    /// How a request names a key.
    pub fn target(&self, key: u32) -> Target {
        let id = self.keys.get(&key).map(|known| known.id.clone()).unwrap_or_default();
        Target::Key(key, id)
    }

    /// Takes from an answer what later calls need.
    pub fn learn(&mut self, op: &Op, answer: &Answer) -> Outcome<()> {
        if answer.status >= 300 {
            return Ok(());
        }
        let text = |path: &str| {
            let text = answer.body.pointer(path).and_then(Value::as_str);
            text.map(str::to_owned).unwrap_or_default()
        };
        match op {
            Op::Create { .. } | Op::List => {
                let shown = answer.body["resources"].as_array();
                for shown in shown.into_iter().flatten() {
                    let name = shown["name"].as_str().unwrap_or_default();
                    let number = name.strip_prefix("key-").and_then(|n| n.parse().ok());
                    let Some(number) = number else { continue };
                    let Some((root, imported)) = self.wanted.get(&number).copied() else {
                        continue;
                    };
                    let id = shown["id"].as_str().unwrap_or_default().to_owned();
                    self.keys.insert(number, Known { id, root, imported });
                }
            }
            Op::Wrap { target: Target::Key(key, _), plaintext, aad } => {
                let plaintext = plaintext.clone().unwrap_or_else(|| text("/plaintext"));
                let (version, ciphertext) = (text("/keyVersion/id"), text("/ciphertext"));
                self.hold(Held { key: *key, version, ciphertext, aad: aad.clone(), plaintext });
            }
            Op::Unwrap { held, .. } | Op::Rewrap { held, .. } => {
                let (version, ciphertext) = (text("/rewrappedKeyVersion/id"), text("/ciphertext"));
                if !ciphertext.is_empty() && self.held.iter().all(|h| h.version != version) {
                    let (aad, plaintext) = (held.aad.clone(), held.plaintext.clone());
                    self.hold(Held { key: held.key, version, ciphertext, aad, plaintext });
                }
            }
            Op::TakeToken => {
                let decoded = |path| STANDARD.decode(text(path)).map_err(|e| e.to_string());
                let pem = String::from_utf8(decoded("/payload")?).map_err(|e| e.to_string())?;
                self.token = Some((pem, decoded("/nonce")?));
            }
            _ => {}
        }
        Ok(())
    }

    fn hold(&mut self, held: Held) {
        if self.held.len() < HELD_MAX {
            self.held.push(Arc::new(held));
        }
    }

    /// The next operation of a client, and who does it.
    pub fn choose(&mut self, dice: &mut Dice) -> Outcome<(Actor, Op)> {
        let manager = if dice.once_in(2) { Actor::First } else { Actor::Second };
        // Most operations need a root key.
        let any = dice.once_in(4);
        let known: Vec<u32> =
            self.keys.iter().filter(|(_, k)| any || k.root).map(|(key, _)| *key).collect();
        if self.made < KEYS_MAX && (known.len() < 3 || dice.once_in(12)) {
            return Ok((manager, self.create(dice)?));
        }
        let ring = dice.below(RINGS) as u32;
        // Not all can be about keys while there is none.
        let Some(key) = dice.pick(&known).copied() else {
            return Ok((manager, Op::MakeRing(ring)));
        };
        let Known { root, imported, .. } = self.keys[&key].clone();
        let target = self.target(key);
        let alias = dice.below(ALIASES) as u32;
        let resource = dice.below(RESOURCES) as u32;
        let (yes, prevent) = (dice.once_in(2), dice.once_in(4));
        let force = !dice.once_in(3);
        let op = match dice.below(100) {
            0..14 => self.wrap(target, dice),
            14..26 => match dice.pick(&self.held).cloned() {
                None => self.wrap(target, dice),
                Some(held) => {
                    // Once in a while under a key that did not wrap it.
                    let other = dice.once_in(8);
                    let target = if other { target } else { self.target(held.key) };
                    if yes { Op::Unwrap { target, held } } else { Op::Rewrap { target, held } }
                }
            },
            26..35 => {
                let wrong = dice.once_in(10);
                let bytes = dice.bytes(if yes { 32 } else { 16 });
                let payload = (imported != wrong).then(|| STANDARD.encode(bytes));
                Op::Rotate { target, payload }
            }
            35..41 => Op::Disable(target),
            41..51 => Op::Enable(target),
            51..56 => Op::SetForDeletion(target),
            56..57 => Op::UnsetForDeletion(target),
            57..62 => Op::Delete { target, force },
            62..69 => Op::Restore(target),
            69..71 => return Ok((Actor::Purger, Op::Purge(target))),
            71..75 => Op::Move { target, ring: (!dice.once_in(3)).then_some(ring) },
            75..79 => Op::AddAlias(target, alias),
            79..81 => Op::RemoveAlias(target, alias),
            81..83 => Op::SetDual { target, enabled: yes },
            83..85 => {
                Op::SetRotation { target, enabled: !prevent, months: 1 + dice.below(3) as u8 }
            }
            85..89 => return Ok((Actor::Service, Op::Register { target, resource, prevent })),
            89..91 => {
                return Ok((Actor::Service, Op::ChangeRegistration { target, resource, prevent }));
            }
            91..93 => return Ok((Actor::Service, Op::Unregister { target, resource })),
            93..95 => Op::MakeRing(ring),
            95..96 => Op::DeleteRing { ring, force },
            96..97 => match dice.below(4) {
                0 => Op::SetInstanceDual(yes),
                1 => Op::SetImport(!prevent),
                _ if self.token.is_some() => Op::TakeToken,
                _ => Op::InstancePolicies,
            },
            97..98 if root => Op::Sync(target),
            98..99 => Op::Look(Target::Alias(alias)),
            _ if root => Op::Versions(target),
            _ => Op::Look(target),
        };
        Ok((manager, op))
    }

    fn wrap(&self, target: Target, dice: &mut Dice) -> Op {
        let len = dice.below(100) as usize;
        let plaintext = (!dice.once_in(4)).then(|| STANDARD.encode(dice.bytes(len)));
        let aad = (0..dice.below(3)).map(|_| format!("aad {}", dice.below(1000))).collect();
        Op::Wrap { target, plaintext, aad }
    }

    fn create(&mut self, dice: &mut Dice) -> Outcome<Op> {
        let key = self.made;
        self.made += 1;
        let root = !dice.once_in(4);
        let bytes = dice.bytes(32);
        let material = match (&self.token, dice.below(4)) {
            (Some((pem, nonce)), 0..2) if root => {
                let iv = dice.bytes(12);
                let failed = |_| "the sender's side of an import failed".to_owned();
                let payload = seal_for(pem, Oaep::Sha256, &bytes).map_err(failed)?;
                let nonce = seal_nonce(&bytes, &iv, nonce).map_err(failed)?;
                Material::Sealed(
                    STANDARD.encode(payload),
                    STANDARD.encode(nonce),
                    STANDARD.encode(iv),
                )
            }
            (_, 0) => Material::Plain(STANDARD.encode(bytes)),
            _ => Material::Made,
        };
        self.wanted.insert(key, (root, material != Material::Made));
        let aliases: Vec<u32> =
            if dice.once_in(2) { vec![dice.below(ALIASES) as u32] } else { Vec::new() };
        let ring = dice.once_in(5).then(|| dice.below(RINGS) as u32);
        // Soon enough to come in the middle of a run, but not before the request arrives.
        let soon = 2_000 + dice.below(5_000);
        let expires =
            dice.once_in(6).then(|| super::now().saturating_add(i64::try_from(soon).unwrap_or(0)));
        Ok(Op::Create { key, root, material, ring, aliases, expires })
    }
}
