//! A client that changes keys of its own and knows what must have become of them.

use super::RINGS;
use super::client::{Answered, Client, Who};
use super::model::{Change, State, View};
use crate::dice::Dice;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Keys of one client; more would only make the comparison slow.
const KEYS_MAX: usize = 12;
/// Calls in one life of the server, a bound.
const CALLS_MAX: usize = 2_000;
/// Ciphertexts kept for each key.
const SEALED_MAX: usize = 12;

/// A ciphertext that was handed out.
struct Sealed {
    ciphertext: String,
    plaintext: String,
    aad: Vec<String>,
}

struct Known {
    id: String,
    view: View,
    /// Of a standard key.
    payload: Option<String>,
    sealed: Vec<Sealed>,
}

/// A call whose answer was lost.
enum Lost {
    Change { key: usize, change: Change },
    Create { name: String, view: View, payload: Option<String> },
}

pub(super) struct Worker {
    pub(super) number: u64,
    client: Client,
    dice: Dice,
    made: u64,
    keys: Vec<Known>,
    lost: Option<Lost>,
    /// Changes that were acknowledged, by the action of their audit records.
    pub(super) acknowledged: BTreeMap<&'static str, u64>,
}

impl Worker {
    pub(super) fn new(number: u64, client: Client, dice: Dice) -> Self {
        let (keys, acknowledged) = (Vec::new(), BTreeMap::new());
        Self { number, client, dice, made: 0, keys, lost: None, acknowledged }
    }

    /// Calls until one is not answered.
    pub(super) async fn work(&mut self) -> Result<(), String> {
        for _ in 0..CALLS_MAX {
            let going = match self.dice.below(10) {
                _ if self.keys.is_empty() => self.create().await?,
                0 if self.keys.len() < KEYS_MAX => self.create().await?,
                1..=3 => self.seal().await?,
                4 => self.open().await?,
                _ => self.change().await?,
            };
            if !going {
                return Ok(());
            }
        }
        Ok(())
    }

    fn bytes(&mut self) -> String {
        let bytes: Vec<u8> = (0..32).map(|_| self.dice.below(256) as u8).collect();
        STANDARD.encode(bytes)
    }

    async fn create(&mut self) -> Result<bool, String> {
        self.made += 1;
        let name = format!("client-{}-{}", self.number, self.made);
        let (root, imported) = (self.dice.below(4) > 0, self.dice.below(4) == 0);
        let payload = imported.then(|| self.bytes());
        let aliases: BTreeSet<String> =
            (self.dice.below(3) == 0).then(|| format!("alias-{name}")).into_iter().collect();
        let mut key = json!({
            "type": "application/vnd.ibm.kms.key+json", "name": name, "extractable": !root,
            "aliases": aliases,
        });
        if let Some(payload) = &payload {
            key["payload"] = json!(payload);
        }
        let body = envelope("key", key);
        let view = View {
            state: State::Active,
            root,
            imported,
            ring: "default".to_owned(),
            aliases,
            rotation: None,
            dual: false,
            set: false,
            versions: if root { vec![String::new()] } else { Vec::new() },
            users: BTreeMap::new(),
        };
        match self.client.call(Who::Manager, Method::POST, "/api/v2/keys", &body).await? {
            Answered::Done(answer) => {
                let id = answer["resources"][0]["id"].as_str().ok_or("a key without an id")?;
                self.note("kms.secrets.create");
                self.take(id.to_owned(), view, payload);
                Ok(true)
            }
            Answered::Refused(status, text) => Err(format!("create {name}: {status} {text}")),
            Answered::Lost => {
                self.lost = Some(Lost::Create { name, view, payload });
                Ok(false)
            }
        }
    }

    /// A new key. The id of its version is learnt when it is looked at.
    fn take(&mut self, id: String, view: View, payload: Option<String>) {
        // A root key's material is never shown, and a generated one's is the server's choice.
        let payload = payload.filter(|_| !view.root);
        self.keys.push(Known { id, view, payload, sealed: Vec::new() });
    }

    fn note(&mut self, action: &'static str) {
        *self.acknowledged.entry(action).or_insert(0) += 1;
    }

    fn choose(&mut self) -> usize {
        usize::try_from(self.dice.below(self.keys.len() as u64)).expect("an index")
    }

    async fn seal(&mut self) -> Result<bool, String> {
        let key = self.choose();
        let plaintext = self.bytes();
        let aad: Vec<String> = (0..self.dice.below(3)).map(|n| format!("context {n}")).collect();
        let path = format!("/api/v2/keys/{}/actions/wrap", self.keys[key].id);
        let body = json!({"plaintext": plaintext, "aad": aad});
        let answer = self.client.call(Who::Manager, Method::POST, &path, &body).await?;
        let known = &mut self.keys[key];
        match (answer, known.view.seals()) {
            (Answered::Lost, _) => return Ok(false),
            (Answered::Done(answer), true) => {
                let ciphertext = answer["ciphertext"].as_str().ok_or("no ciphertext")?.to_owned();
                if known.sealed.len() < SEALED_MAX {
                    known.sealed.push(Sealed { ciphertext, plaintext, aad });
                }
            }
            (Answered::Refused(..), false) => {}
            (Answered::Done(_), false) => return Err(format!("wrapped: {:?}", known.view)),
            (Answered::Refused(status, text), true) => {
                return Err(format!("wrap: {status} {text}: {:?}", known.view));
            }
        }
        Ok(true)
    }

    async fn open(&mut self) -> Result<bool, String> {
        let key = self.choose();
        if self.keys[key].sealed.is_empty() {
            return Ok(true);
        }
        let index =
            usize::try_from(self.dice.below(self.keys[key].sealed.len() as u64)).unwrap_or(0);
        opened(&self.client, &self.keys[key], index).await
    }

    fn next_change(&mut self, key: usize) -> Change {
        let view = self.keys[key].view.clone();
        match self.dice.below(16) {
            0 | 1 => Change::Rotate,
            2 => Change::Disable,
            3 | 4 => Change::Enable,
            5 => Change::Delete { force: self.dice.below(2) == 0 },
            6 | 7 => Change::Restore,
            8 if self.dice.below(4) == 0 => Change::Purge,
            8 => Change::Move((*self.dice.pick(&["default", RINGS[0], RINGS[1]])).to_owned()),
            9 => {
                self.made += 1;
                Change::AddAlias(format!("alias-{}-{}", self.number, self.made))
            }
            10 => match view.aliases.first() {
                Some(alias) => Change::DropAlias(alias.clone()),
                None => Change::DropAlias("nobody".to_owned()),
            },
            11 => Change::SetRotation(1 + self.dice.below(12)),
            12 if self.dice.below(3) == 0 => Change::NeedTwo,
            12 => Change::SetForDeletion,
            13 => Change::UnsetForDeletion,
            14 => {
                let crn = format!(
                    "crn:v1:bluemix:public:example:local:a/one:user-{}::",
                    self.dice.below(3)
                );
                Change::Register(crn, self.dice.below(2) == 0)
            }
            _ => match view.users.keys().next() {
                Some(crn) => Change::Unregister(crn.clone()),
                None => Change::Rotate,
            },
        }
    }

    async fn change(&mut self) -> Result<bool, String> {
        let key = self.choose();
        let change = self.next_change(key);
        let (who, method, path, body, action) = request(&self.keys[key].id, &change);
        let answer = self.client.call(who, method, &path, &body).await?;
        let known = &mut self.keys[key];
        match (answer, known.view.allows(&change)) {
            (Answered::Lost, true) => {
                self.lost = Some(Lost::Change { key, change });
                return Ok(false);
            }
            (Answered::Lost, false) => return Ok(false),
            (Answered::Done(_), true) => {
                known.view = known.view.after(&change);
                self.note(action);
            }
            (Answered::Refused(..), false) => {}
            (Answered::Done(_), false) => {
                return Err(format!("{change:?} was done: {:?}", known.view));
            }
            (Answered::Refused(status, text), true) => {
                return Err(format!("{change:?}: {status} {text}: {:?}", known.view));
            }
        }
        Ok(true)
    }

    /// Holds everything against the server, which answers again.
    pub(super) async fn compare(&mut self) -> Result<(), String> {
        match self.lost.take() {
            None => {}
            Some(Lost::Create { name, view, payload }) => {
                let mut found = self.client.named(&name).await?;
                if found.len() > 1 {
                    return Err(format!("{name} was created {} times", found.len()));
                }
                if let Some(id) = found.pop() {
                    self.take(id, view, payload);
                }
            }
            Some(Lost::Change { key, change }) => {
                let known = &mut self.keys[key];
                let after = known.view.after(&change);
                if after.is(&self.client.view(&known.id).await?) {
                    known.view = after;
                }
            }
        }
        for known in &mut self.keys {
            let seen = self.client.view(&known.id).await?;
            if !known.view.is(&seen) {
                return Err(format!("key {}: expected {:?}, found {seen:?}", known.id, known.view));
            }
            known.view = seen;
            for index in 0..known.sealed.len() {
                if !opened(&self.client, known, index).await? {
                    return Err("the server does not answer".to_owned());
                }
            }
            material(&self.client, known).await?;
        }
        Ok(())
    }
}

/// Unwraps a ciphertext and holds it against its plaintext. False when there is no answer.
async fn opened(client: &Client, known: &Known, index: usize) -> Result<bool, String> {
    let sealed = &known.sealed[index];
    let path = format!("/api/v2/keys/{}/actions/unwrap", known.id);
    let body = json!({"ciphertext": sealed.ciphertext, "aad": sealed.aad});
    let answer = client.call(Who::Manager, Method::POST, &path, &body).await?;
    match (answer, known.view.opens()) {
        (Answered::Lost, _) => Ok(false),
        (Answered::Done(answer), true) if answer["plaintext"] == sealed.plaintext => Ok(true),
        (Answered::Done(_), true) => Err(format!("key {} opens to something else", known.id)),
        (Answered::Refused(..), false) => Ok(true),
        (Answered::Done(_), false) => Err(format!("unwrapped: {:?}", known.view)),
        (Answered::Refused(status, text), true) => {
            Err(format!("unwrap: {status} {text}: {:?}", known.view))
        }
    }
}

/// A standard key's payload never changes.
async fn material(client: &Client, known: &mut Known) -> Result<(), String> {
    if known.view.root || known.view.state != State::Active {
        return Ok(());
    }
    let path = format!("/api/v2/keys/{}", known.id);
    let Answered::Done(found) = client.call(Who::Manager, Method::GET, &path, &Value::Null).await?
    else {
        return Err(format!("the standard key {} cannot be read", known.id));
    };
    let payload = found["resources"][0]["payload"].as_str().ok_or("no payload")?.to_owned();
    match &known.payload {
        Some(before) if *before != payload => Err(format!("key {} has another payload", known.id)),
        Some(_) => Ok(()),
        None => {
            known.payload = Some(payload);
            Ok(())
        }
    }
}

fn envelope(kind: &str, resource: Value) -> Value {
    json!({
        "metadata": {
            "collectionType": format!("application/vnd.ibm.kms.{kind}+json"), "collectionTotal": 1,
        },
        "resources": [resource],
    })
}

/// Who calls what, and the action of the audit record.
fn request(id: &str, change: &Change) -> (Who, Method, String, Value, &'static str) {
    let key = format!("/api/v2/keys/{id}");
    let action = |name: &str| format!("{key}/actions/{name}");
    let of = |crn: &str| format!("{key}/registrations/{}", crn.replace('/', "%2F"));
    let policy = |mut policy: Value| {
        policy["type"] = json!("application/vnd.ibm.kms.policy+json");
        envelope("policy", policy)
    };
    let none = Value::Null;
    match change {
        Change::Rotate => {
            (Who::Manager, Method::POST, action("rotate"), none, "kms.secrets.rotate")
        }
        Change::Disable => {
            (Who::Manager, Method::POST, action("disable"), none, "kms.secrets.disable")
        }
        Change::Enable => {
            (Who::Manager, Method::POST, action("enable"), none, "kms.secrets.enable")
        }
        Change::Delete { force } => {
            let path = format!("{key}?force={force}");
            (Who::Second, Method::DELETE, path, none, "kms.secrets.delete")
        }
        Change::Restore => {
            (Who::Manager, Method::POST, format!("{key}/restore"), none, "kms.secrets.restore")
        }
        Change::Purge => {
            (Who::Second, Method::DELETE, format!("{key}/purge"), none, "kms.secrets.purge")
        }
        Change::Move(ring) => {
            (Who::Manager, Method::PATCH, key, json!({"keyRingID": ring}), "kms.secrets.patch")
        }
        Change::AddAlias(alias) => {
            let path = format!("{key}/aliases/{alias}");
            (Who::Manager, Method::POST, path, none, "kms.secrets-alias.create")
        }
        Change::DropAlias(alias) => {
            let path = format!("{key}/aliases/{alias}");
            (Who::Manager, Method::DELETE, path, none, "kms.secrets-alias.delete")
        }
        Change::SetRotation(months) => {
            let body = policy(json!({"rotation": {"enabled": true, "interval_month": months}}));
            (Who::Manager, Method::PUT, format!("{key}/policies"), body, "kms.policies.write")
        }
        Change::NeedTwo => {
            let body = policy(json!({"dualAuthDelete": {"enabled": true}}));
            (Who::Manager, Method::PUT, format!("{key}/policies"), body, "kms.policies.write")
        }
        Change::SetForDeletion => {
            let path = action("setKeyForDeletion");
            (Who::Manager, Method::POST, path, none, "kms.secrets.setkeyfordeletion")
        }
        Change::UnsetForDeletion => {
            let path = action("unsetKeyForDeletion");
            (Who::Manager, Method::POST, path, none, "kms.secrets.unsetkeyfordeletion")
        }
        Change::Register(crn, prevents) => {
            let body = envelope("registration", json!({"preventKeyDeletion": prevents}));
            (Who::Service, Method::POST, of(crn), body, "kms.registrations.default")
        }
        Change::Unregister(crn) => {
            (Who::Service, Method::DELETE, of(crn), none, "kms.registrations.delete")
        }
    }
}
