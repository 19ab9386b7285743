//! The keys that sign access tokens: ECDSA on P-256 with SHA-256 (ES256, RFC 7518), private
//! halves sealed by the custodian, public halves told at `/identity/keys`.
//!
//! A token names its key by `kid`, and a key is for ES256 alone: nothing in a token chooses how
//! it is verified.

use super::token::LEEWAY_S;
use crate::first::StartError;
use claviger_crypto::SecretBytes;
use claviger_crypto::digest::{hex, sha256};
use claviger_custody::Custodian;
use claviger_domain::id::UnixMs;
use claviger_store::{StoreError, Tx, meta};
use jsonwebtoken::{DecodingKey, EncodingKey};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};

/// Names the keys that there are, newest first.
const LIST: &str = "signing-keys";
/// When all keys before were ended at once, in milliseconds since the Unix epoch.
const ENDED: &str = "signing-keys-ended";
/// Keys at a time whose tokens may live.
const KEYS_MAX: usize = 4;
/// Octets of a coordinate on P-256.
const COORDINATE: usize = 32;

/// One key, as the list has it.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) kid: String,
    /// Since when it signs, milliseconds since the Unix epoch.
    pub(crate) from: i64,
}

/// A key that is in use.
pub(crate) struct SigningKey {
    pub(crate) listed: Listed,
    pub(crate) sign: EncodingKey,
    pub(crate) verify: DecodingKey,
    /// Coordinates of the public point, base64url.
    pub(crate) point: (String, String),
}

/// Every key whose tokens may live; the first one signs.
pub(crate) struct SigningKeys {
    keys: Vec<SigningKey>,
    ended: UnixMs,
}

impl SigningKeys {
    /// Reads them.
    pub(crate) fn load(tx: &Tx<'_>, custodian: &dyn Custodian) -> Result<SigningKeys, StartError> {
        let missing = || StartError::Missing(LIST);
        let keys = list(tx)?
            .into_iter()
            .map(|listed| {
                let name = place(&listed.kid);
                let sealed = meta::get(tx, &name)?.ok_or_else(missing)?;
                let opened = custodian.open_column(&["meta", &name], &sealed);
                key(listed, &opened.map_err(|_| StartError::MasterKey)?)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let ended = meta::get(tx, ENDED)?.map(|bytes| serde_json::from_slice(&bytes));
        let ended = ended.transpose().map_err(|_| StartError::Missing(ENDED))?;
        let ended = UnixMs(ended.unwrap_or(i64::MIN));
        if keys.is_empty() { Err(missing()) } else { Ok(SigningKeys { keys, ended }) }
    }

    /// When all keys before were ended at once: no login up to then counts.
    pub(crate) fn ended(&self) -> UnixMs {
        self.ended
    }

    /// The one that signs.
    pub(crate) fn current(&self) -> &SigningKey {
        self.keys.first().expect("there is always one: see `load`")
    }

    /// The key of this name.
    pub(crate) fn named(&self, kid: &str) -> Option<&SigningKey> {
        self.keys.iter().find(|key| key.listed.kid == kid)
    }

    /// All of them, the current one first.
    pub(crate) fn all(&self) -> &[SigningKey] {
        &self.keys
    }

    /// When the key of this name was taken over from; none of the current one.
    pub(crate) fn retired(&self, kid: &str) -> Option<UnixMs> {
        let at = self.keys.iter().position(|key| key.listed.kid == kid)?;
        self.keys.get(at.checked_sub(1)?).map(|next| UnixMs(next.listed.from))
    }
}

/// Whether a key that was taken over from at `retired` verifies still: its last token lived for
/// `life_s` seconds after that.
pub(crate) fn verifies(retired: Option<UnixMs>, life_s: i64, now: UnixMs) -> bool {
    let life_ms = life_s.saturating_add(LEEWAY_S).saturating_mul(1000);
    retired.is_none_or(|retired| now.0 <= retired.0.saturating_add(life_ms))
}

fn list(tx: &Tx<'_>) -> Result<Vec<Listed>, StoreError> {
    let Some(bytes) = meta::get(tx, LIST)? else { return Ok(Vec::new()) };
    serde_json::from_slice(&bytes).map_err(|_| StoreError::Damaged(LIST.to_owned()))
}

/// Makes a key that signs from now on. The ones before it verify until no token of theirs can
/// live, `life_s` seconds after the next one took over; without `life_s` they end at once. None
/// if there are as many as may be whose tokens live.
pub(crate) fn rotate(
    tx: &Tx<'_>,
    custodian: &dyn Custodian,
    now: UnixMs,
    life_s: Option<i64>,
) -> Result<Option<Listed>, StartError> {
    let (mut kept, mut over, mut retired) = (Vec::new(), Vec::new(), now);
    for old in list(tx)? {
        let lives = life_s.is_some_and(|life_s| verifies(Some(retired), life_s, now));
        retired = UnixMs(old.from);
        if lives { kept.push(old) } else { over.push(old) }
    }
    if kept.len() >= KEYS_MAX {
        return Ok(None);
    }
    for old in &over {
        meta::remove(tx, &place(&old.kid))?;
    }
    if life_s.is_none() && !over.is_empty() {
        meta::put(tx, ENDED, now.0.to_string().as_bytes())?;
    }
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let kid = hex(&sha256(pair.public_key_raw())[..8]);
    let der = SecretBytes::new(pair.serialize_der());
    let name = place(&kid);
    meta::put(tx, &name, &custodian.seal_column(&["meta", &name], der.expose()))?;
    let made = Listed { kid, from: now.0 };
    let keys = [vec![made.clone()], kept].concat();
    let text = serde_json::to_vec(&keys).expect("names and numbers are valid JSON");
    meta::put(tx, LIST, &text)?;
    Ok(Some(made))
}

/// Whether there is a key; databases of before have none.
pub(crate) fn there(tx: &Tx<'_>) -> Result<bool, StoreError> {
    Ok(!list(tx)?.is_empty())
}

fn place(kid: &str) -> String {
    format!("signing-key/{kid}")
}

fn key(listed: Listed, der: &SecretBytes) -> Result<SigningKey, StartError> {
    let pair = KeyPair::try_from(der.expose())?;
    // An uncompressed point: 4, x, y (SEC 1, section 2.3.3).
    let raw = pair.public_key_raw();
    let (x, y) = raw
        .strip_prefix(&[4])
        .filter(|point| point.len() == 2 * COORDINATE)
        .map(|point| point.split_at(COORDINATE))
        .ok_or(StartError::Missing(LIST))?;
    let point = (base64url(x), base64url(y));
    let verify = DecodingKey::from_ec_components(&point.0, &point.1)
        .map_err(|_| StartError::Missing(LIST))?;
    Ok(SigningKey { listed, sign: EncodingKey::from_ec_der(der.expose()), verify, point })
}

/// Base64 with the alphabet of URLs, without padding (RFC 4648, section 5).
pub(crate) fn base64url(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}
