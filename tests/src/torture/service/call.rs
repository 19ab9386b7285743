//! What clients ask of the key service, and what they are answered.

use serde_json::{Value, json};
use std::sync::Arc;

/// Whose API key a client uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// The administrator, a Manager.
    First,
    /// Another person who is a Manager: deletes what the first sets for deletion.
    Second,
    /// A service that registers its resources.
    Service,
    /// Who may purge, and nothing else.
    Purger,
}

impl Actor {
    /// Everybody.
    pub const ALL: [Actor; 4] = [Actor::First, Actor::Second, Actor::Service, Actor::Purger];
}

/// How a request names a key. Keys, aliases, rings and resources are numbers here.
#[derive(Debug, Clone)]
pub enum Target {
    /// By its id.
    Key(u32, String),
    /// By an alias, whichever key has it.
    Alias(u32),
}

/// The material of a new key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Material {
    /// Made by the server.
    Made,
    /// Sent in the clear: base64.
    Plain(String),
    /// Sent under an import token, base64: payload, nonce and iv.
    Sealed(String, String, String),
}

/// A ciphertext that the server answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    /// The key that wrapped it, and the version.
    pub key: u32,
    pub version: String,
    pub ciphertext: String,
    pub aad: Vec<String>,
    /// What it must open to: base64.
    pub plaintext: String,
}

/// One operation.
#[derive(Debug, Clone)]
pub enum Op {
    Create {
        key: u32,
        root: bool,
        material: Material,
        ring: Option<u32>,
        aliases: Vec<u32>,
        /// Milliseconds since the Unix epoch.
        expires: Option<i64>,
    },
    Wrap {
        target: Target,
        /// Base64; the server makes one if there is none.
        plaintext: Option<String>,
        aad: Vec<String>,
    },
    Unwrap {
        target: Target,
        held: Arc<Held>,
    },
    Rewrap {
        target: Target,
        held: Arc<Held>,
    },
    Rotate {
        target: Target,
        payload: Option<String>,
    },
    Disable(Target),
    Enable(Target),
    SetForDeletion(Target),
    UnsetForDeletion(Target),
    Delete {
        target: Target,
        force: bool,
    },
    Restore(Target),
    Purge(Target),
    Sync(Target),
    Move {
        target: Target,
        ring: Option<u32>,
    },
    AddAlias(Target, u32),
    RemoveAlias(Target, u32),
    SetDual {
        target: Target,
        enabled: bool,
    },
    SetRotation {
        target: Target,
        enabled: bool,
        months: u8,
    },
    Register {
        target: Target,
        resource: u32,
        prevent: bool,
    },
    ChangeRegistration {
        target: Target,
        resource: u32,
        prevent: bool,
    },
    Unregister {
        target: Target,
        resource: u32,
    },
    MakeRing(u32),
    DeleteRing {
        ring: u32,
        force: bool,
    },
    /// Whether new keys of the instance need two persons for their deletion.
    SetInstanceDual(bool),
    /// Whether standard keys may be imported.
    SetImport(bool),
    MakeToken,
    TakeToken,
    Look(Target),
    Versions(Target),
    Registrations(Target),
    List,
    Rings,
    InstancePolicies,
}

/// What an operation depends on, or changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thing {
    Key(u32),
    Alias(u32),
    Ring(u32),
    Policies,
    Token,
    All,
}

/// A request, and its answer if there was one.
#[derive(Debug, Clone)]
pub struct Call {
    pub actor: Actor,
    pub op: Op,
    /// The correlation id, by which its audit record is found.
    pub id: String,
    /// Before it was sent: milliseconds since the Unix epoch.
    pub from: i64,
    /// After it was answered, or the server was dead.
    pub to: i64,
    pub answer: Option<Answer>,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// The reason code of a refusal, else empty.
    pub code: String,
    pub body: Value,
}

/// As HTTP has it.
pub struct Request {
    pub method: &'static str,
    pub path: String,
    pub body: Value,
    pub ring: Option<String>,
}

pub fn key_name(key: u32) -> String {
    format!("key-{key}")
}

pub fn alias_name(alias: u32) -> String {
    format!("alias-{alias}")
}

/// The ring `default` has no number.
pub fn ring_name(ring: Option<u32>) -> String {
    ring.map_or_else(|| "default".to_owned(), |ring| format!("ring-{ring}"))
}

pub fn crn(resource: u32) -> String {
    format!("crn:v1:bluemix:public:databases:local:a/1:unit-{resource}::")
}

/// RFC 3339, to the millisecond, without a library: days from civil, Howard Hinnant's algorithm.
pub fn date(ms: i64) -> String {
    let (days, rest) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, s, ms) =
        (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60, rest.rem_euclid(1000));
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

impl Target {
    /// What stands in the path.
    pub fn name(&self) -> String {
        match self {
            Target::Key(_, id) => id.clone(),
            Target::Alias(alias) => alias_name(*alias),
        }
    }

    fn thing(&self) -> Thing {
        match self {
            Target::Key(key, _) => Thing::Key(*key),
            // Whichever key has it.
            Target::Alias(_) => Thing::All,
        }
    }
}

fn envelope(kind: &str, resource: Value) -> Value {
    let kind = format!("application/vnd.ibm.kms.{kind}+json");
    json!({
        "metadata": { "collectionType": kind, "collectionTotal": 1 }, "resources": [resource],
    })
}

impl Op {
    /// The key that is named.
    pub fn target(&self) -> Option<&Target> {
        match self {
            Op::Wrap { target, .. }
            | Op::Unwrap { target, .. }
            | Op::Rewrap { target, .. }
            | Op::Rotate { target, .. }
            | Op::Disable(target)
            | Op::Enable(target)
            | Op::SetForDeletion(target)
            | Op::UnsetForDeletion(target)
            | Op::Delete { target, .. }
            | Op::Restore(target)
            | Op::Purge(target)
            | Op::Sync(target)
            | Op::Move { target, .. }
            | Op::AddAlias(target, _)
            | Op::RemoveAlias(target, _)
            | Op::SetDual { target, .. }
            | Op::SetRotation { target, .. }
            | Op::Register { target, .. }
            | Op::ChangeRegistration { target, .. }
            | Op::Unregister { target, .. }
            | Op::Look(target)
            | Op::Versions(target)
            | Op::Registrations(target) => Some(target),
            Op::Create { .. }
            | Op::MakeRing(_)
            | Op::DeleteRing { .. }
            | Op::SetInstanceDual(_)
            | Op::SetImport(_)
            | Op::MakeToken
            | Op::TakeToken
            | Op::List
            | Op::Rings
            | Op::InstancePolicies => None,
        }
    }

    /// Whether it changes nothing: such an operation without an answer need not be explained.
    pub fn only_reads(&self) -> bool {
        matches!(
            self,
            Op::Wrap { .. }
                | Op::Unwrap { .. }
                | Op::Rewrap { .. }
                | Op::Look(_)
                | Op::Versions(_)
                | Op::Registrations(_)
                | Op::List
                | Op::Rings
                | Op::InstancePolicies
        )
    }

    /// Whether it is done once for one correlation id.
    pub fn is_done_once(&self) -> bool {
        !self.only_reads() && !matches!(self, Op::MakeToken | Op::TakeToken)
    }

    /// What it depends on, and whether it changes that.
    pub fn touches(&self) -> Vec<(Thing, bool)> {
        let writes = !self.only_reads();
        let mut all: Vec<(Thing, bool)> =
            self.target().iter().map(|target| (target.thing(), writes)).collect();
        match self {
            Op::Create { key, ring, aliases, .. } => {
                all.push((Thing::Key(*key), true));
                all.push((Thing::Policies, false));
                all.extend(ring.map(|ring| (Thing::Ring(ring), false)));
                all.extend(aliases.iter().map(|alias| (Thing::Alias(*alias), true)));
            }
            Op::Move { ring: Some(ring), .. } => all.push((Thing::Ring(*ring), false)),
            Op::AddAlias(_, alias) | Op::RemoveAlias(_, alias) => {
                all.push((Thing::Alias(*alias), true));
            }
            Op::MakeRing(ring) => all.push((Thing::Ring(*ring), true)),
            // Frees the key's aliases; looks at all keys.
            Op::Purge(_) | Op::DeleteRing { .. } => all.push((Thing::All, true)),
            Op::SetInstanceDual(_) | Op::SetImport(_) => all.push((Thing::Policies, true)),
            Op::MakeToken | Op::TakeToken => all.push((Thing::Token, true)),
            Op::InstancePolicies => all.push((Thing::Policies, false)),
            Op::List | Op::Rings => all.push((Thing::All, false)),
            _ => {}
        }
        all
    }

    /// As its audit record names it.
    pub fn action(&self) -> &'static str {
        match self {
            Op::Create { .. } => "kms.secrets.create",
            Op::Wrap { .. } => "kms.secrets.wrap",
            Op::Unwrap { .. } => "kms.secrets.unwrap",
            Op::Rewrap { .. } => "kms.secrets.rewrap",
            Op::Rotate { .. } => "kms.secrets.rotate",
            Op::Disable(_) => "kms.secrets.disable",
            Op::Enable(_) => "kms.secrets.enable",
            Op::SetForDeletion(_) => "kms.secrets.setkeyfordeletion",
            Op::UnsetForDeletion(_) => "kms.secrets.unsetkeyfordeletion",
            Op::Delete { .. } => "kms.secrets.delete",
            Op::Restore(_) => "kms.secrets.restore",
            Op::Purge(_) => "kms.secrets.purge",
            Op::Sync(_) => "kms.secrets.sync",
            Op::Move { .. } => "kms.secrets.patch",
            Op::AddAlias(..) => "kms.secrets-alias.create",
            Op::RemoveAlias(..) => "kms.secrets-alias.delete",
            Op::SetDual { .. } | Op::SetRotation { .. } => "kms.policies.write",
            Op::Register { .. } | Op::ChangeRegistration { .. } => "kms.registrations.default",
            Op::Unregister { .. } => "kms.registrations.delete",
            Op::MakeRing(_) => "kms.key-rings.create",
            Op::DeleteRing { .. } => "kms.key-rings.delete",
            Op::SetInstanceDual(_) | Op::SetImport(_) => "kms.instance-policies.write",
            Op::MakeToken => "kms.import-token.create",
            Op::TakeToken => "kms.import-token.read",
            Op::Look(_) => "kms.secrets.read",
            Op::Versions(_) => "kms.secrets-key-versions.list",
            Op::Registrations(_) => "kms.registrations.list",
            Op::List => "kms.secrets.list",
            Op::Rings => "kms.key-rings.list",
            Op::InstancePolicies => "kms.instance-policies.read",
        }
    }

    /// The request.
    pub fn request(&self) -> Request {
        let named = self.target().map(Target::name).unwrap_or_default();
        let key = format!("/api/v2/keys/{named}");
        let mut ring_header = None;
        let sealed = |held: &Held| json!({ "ciphertext": held.ciphertext, "aad": held.aad });
        let user =
            |resource: u32| format!("{key}/registrations/{}", crn(resource).replace('/', "%2F"));
        let uses = |prevent: bool| envelope("registration", json!({"preventKeyDeletion": prevent}));
        let (method, path, body) = match self {
            Op::Create { key, root, material, ring, aliases, expires } => {
                let mut new = json!({
                    "type": "application/vnd.ibm.kms.key+json", "name": key_name(*key),
                    "extractable": !root,
                });
                if !aliases.is_empty() {
                    let names: Vec<String> = aliases.iter().map(|a| alias_name(*a)).collect();
                    new["aliases"] = json!(names);
                }
                if let Some(expires) = expires {
                    new["expirationDate"] = json!(date(*expires));
                }
                match material {
                    Material::Made => {}
                    Material::Plain(payload) => new["payload"] = json!(payload),
                    Material::Sealed(payload, nonce, iv) => {
                        new["payload"] = json!(payload);
                        new["encryptedNonce"] = json!(nonce);
                        new["iv"] = json!(iv);
                    }
                }
                ring_header = ring.map(|ring| ring_name(Some(ring)));
                ("POST", "/api/v2/keys".to_owned(), envelope("key", new))
            }
            Op::Wrap { plaintext, aad, .. } => {
                let mut body = json!({ "aad": aad });
                if let Some(plaintext) = plaintext {
                    body["plaintext"] = json!(plaintext);
                }
                ("POST", format!("{key}/actions/wrap"), body)
            }
            Op::Unwrap { held, .. } => ("POST", format!("{key}/actions/unwrap"), sealed(held)),
            Op::Rewrap { held, .. } => ("POST", format!("{key}/actions/rewrap"), sealed(held)),
            Op::Rotate { payload, .. } => {
                let body = payload.as_ref().map_or(Value::Null, |text| json!({"payload": text}));
                ("POST", format!("{key}/actions/rotate"), body)
            }
            Op::Disable(_) => ("POST", format!("{key}/actions/disable"), Value::Null),
            Op::Enable(_) => ("POST", format!("{key}/actions/enable"), Value::Null),
            Op::SetForDeletion(_) => {
                ("POST", format!("{key}/actions/setKeyForDeletion"), Value::Null)
            }
            Op::UnsetForDeletion(_) => {
                ("POST", format!("{key}/actions/unsetKeyForDeletion"), Value::Null)
            }
            Op::Sync(_) => ("POST", format!("{key}/actions/sync"), Value::Null),
            Op::Delete { force, .. } => ("DELETE", format!("{key}?force={force}"), Value::Null),
            Op::Restore(_) => ("POST", format!("{key}/restore"), Value::Null),
            Op::Purge(_) => ("DELETE", format!("{key}/purge"), Value::Null),
            Op::Move { ring, .. } => ("PATCH", key, json!({ "keyRingID": ring_name(*ring) })),
            Op::AddAlias(_, alias) => {
                ("POST", format!("{key}/aliases/{}", alias_name(*alias)), Value::Null)
            }
            Op::RemoveAlias(_, alias) => {
                ("DELETE", format!("{key}/aliases/{}", alias_name(*alias)), Value::Null)
            }
            Op::SetDual { enabled, .. } => {
                let policy = json!({ "dualAuthDelete": { "enabled": enabled } });
                ("PUT", format!("{key}/policies"), envelope("policy", policy))
            }
            Op::SetRotation { enabled, months, .. } => {
                let rotation = json!({ "enabled": enabled, "interval_month": months });
                let policy = envelope("policy", json!({ "rotation": rotation }));
                ("PUT", format!("{key}/policies"), policy)
            }
            Op::Register { resource, prevent, .. } => ("POST", user(*resource), uses(*prevent)),
            Op::ChangeRegistration { resource, prevent, .. } => {
                ("PATCH", user(*resource), uses(*prevent))
            }
            Op::Unregister { resource, .. } => ("DELETE", user(*resource), Value::Null),
            Op::MakeRing(ring) => {
                ("POST", format!("/api/v2/key_rings/{}", ring_name(Some(*ring))), Value::Null)
            }
            Op::DeleteRing { ring, force } => {
                let name = ring_name(Some(*ring));
                ("DELETE", format!("/api/v2/key_rings/{name}?force={force}"), Value::Null)
            }
            Op::SetInstanceDual(enabled) => {
                let data = json!({ "enabled": enabled });
                let policy = json!({ "policy_type": "dualAuthDelete", "policy_data": data });
                ("PUT", "/api/v2/instance/policies".to_owned(), envelope("policy", policy))
            }
            Op::SetImport(allowed) => {
                let data = json!({
                    "enabled": true, "attributes": { "import_standard_key": allowed },
                });
                let policy = json!({ "policy_type": "keyCreateImportAccess", "policy_data": data });
                ("PUT", "/api/v2/instance/policies".to_owned(), envelope("policy", policy))
            }
            Op::MakeToken => {
                let body = json!({ "expiration": 86_400, "maxAllowedRetrievals": RETRIEVALS });
                ("POST", "/api/v2/import_token".to_owned(), body)
            }
            Op::TakeToken => ("GET", "/api/v2/import_token".to_owned(), Value::Null),
            Op::Look(_) => ("GET", key, Value::Null),
            Op::Versions(_) => ("GET", format!("{key}/versions?allKeyStates=true"), Value::Null),
            Op::Registrations(_) => ("GET", format!("{key}/registrations"), Value::Null),
            Op::List => ("GET", "/api/v2/keys?state=1,2,3,5&limit=5000".to_owned(), Value::Null),
            Op::Rings => ("GET", "/api/v2/key_rings".to_owned(), Value::Null),
            Op::InstancePolicies => ("GET", "/api/v2/instance/policies".to_owned(), Value::Null),
        };
        Request { method, path, body, ring: ring_header }
    }
}

/// How often an import token may be retrieved.
pub const RETRIEVALS: u32 = 40;

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(date(1_583_984_252_120), "2020-03-12T03:37:32.120Z");
        assert_eq!(date(1_709_164_800_000), "2024-02-29T00:00:00.000Z");
    }
}
