//! What kube-apiserver stores for an object: plaintext, or an envelope that names its key.
//!
//! Source: k8s.io/apiserver `pkg/storage/value/encrypt/envelope/kmsv2/v2/api.proto` (KMS v2),
//! `encrypt/envelope/envelope.go` (v1), `pkg/server/options/encryptionconfig` (prefixes). Names
//! of keys are readable without any key; nothing in a record proves them.

use claviger_crypto::{OpenError, SecretBytes, value};

/// What each plaintext object in protobuf begins with.
pub const PROTOBUF: &[u8] = b"k8s\0";

/// Largest encrypted DEK or seed and key id, in bytes: kube-apiserver refuses longer ones.
pub const FIELD_MAX: usize = 1024;

/// How a plaintext object is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `k8s\0` and a protobuf.
    Protobuf,
    /// A JSON object.
    Json,
    /// Self-described CBOR (RFC 8949, 3.4.6), as custom resources may be stored.
    Cbor,
}

/// What the encrypted DEK source of a KMS v2 record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DekType {
    /// The DEK itself (Kubernetes before 1.29).
    Key,
    /// A seed from which the DEK of each value is derived.
    Seed,
}

/// A stored value, taken apart. Borrows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record<'a> {
    /// Not encrypted.
    Plaintext(Encoding),
    /// Under a KMS v2 provider.
    KmsV2(KmsV2<'a>),
    /// Under a KMS v1 provider, which names no key.
    KmsV1 {
        /// Name of the provider.
        provider: &'a str,
        /// The DEK as its plugin encrypted it.
        encrypted_dek: &'a [u8],
        /// The sealed object.
        body: &'a [u8],
    },
    /// Under a key that stands in an EncryptionConfiguration.
    Other {
        /// `aescbc`, `aesgcm` or `secretbox`.
        transformer: &'a str,
        /// Name of the key.
        key_name: &'a str,
    },
    /// Nothing that kube-apiserver would have written, or cut off.
    Undecodable {
        /// In what way.
        why: &'static str,
    },
}

/// A KMS v2 record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsV2<'a> {
    /// Name of the provider.
    pub provider: &'a str,
    /// The key, by the name that the plugin gave it.
    pub key_id: &'a str,
    /// The DEK or seed as the plugin encrypted it.
    pub encrypted_dek: &'a [u8],
    /// What the plugin added, in the order of the record; not authenticated.
    pub annotations: Vec<(&'a str, &'a [u8])>,
    /// What `encrypted_dek` holds.
    pub dek_type: DekType,
    /// The sealed object.
    pub body: &'a [u8],
}

const KMS_V2: &[u8] = b"k8s:enc:kms:v2:";
const KMS_V1: &[u8] = b"k8s:enc:kms:v1:";
const OTHERS: [(&str, &[u8]); 3] = [
    ("aescbc", b"k8s:enc:aescbc:v1:"),
    ("aesgcm", b"k8s:enc:aesgcm:v1:"),
    ("secretbox", b"k8s:enc:secretbox:v1:"),
];

/// Nonce and tag of AES-GCM.
const GCM: usize = 12 + 16;

impl<'a> Record<'a> {
    /// Takes a stored value apart. Never fails: what cannot be decoded says so.
    pub fn parse(value: &'a [u8]) -> Record<'a> {
        if value.starts_with(PROTOBUF) {
            return Record::Plaintext(Encoding::Protobuf);
        }
        if value.first() == Some(&b'{') {
            return Record::Plaintext(Encoding::Json);
        }
        if value.starts_with(&[0xd9, 0xd9, 0xf7]) {
            return Record::Plaintext(Encoding::Cbor);
        }
        let parsed = if let Some(rest) = value.strip_prefix(KMS_V2) {
            kms_v2(rest).map(Record::KmsV2)
        } else if let Some(rest) = value.strip_prefix(KMS_V1) {
            kms_v1(rest)
        } else {
            other(value)
        };
        parsed.unwrap_or_else(|why| Record::Undecodable { why })
    }
}

impl<'a> KmsV2<'a> {
    /// The annotation with this name.
    pub fn annotation(&self, name: &str) -> Option<&'a [u8]> {
        self.annotations.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }

    /// The stored value, as kube-apiserver would write it.
    pub fn to_value(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.encrypted_dek.len() + self.body.len());
        out.extend_from_slice(KMS_V2);
        out.extend_from_slice(self.provider.as_bytes());
        out.push(b':');
        field(&mut out, 1, self.body);
        field(&mut out, 2, self.key_id.as_bytes());
        field(&mut out, 3, self.encrypted_dek);
        for (name, value) in &self.annotations {
            let mut entry = Vec::new();
            field(&mut entry, 1, name.as_bytes());
            field(&mut entry, 2, value);
            out.push(4 << 3 | 2);
            varint(&mut out, entry.len() as u64);
            out.extend_from_slice(&entry);
        }
        if self.dek_type == DekType::Seed {
            out.extend_from_slice(&[5 << 3, 1]);
        }
        out
    }

    /// Opens the object under `dek`, the opened DEK or seed. `key` is its full key in etcd, which
    /// the record is bound to.
    pub fn open(&self, dek: &[u8], key: &[u8]) -> Result<SecretBytes, OpenError> {
        match self.dek_type {
            DekType::Seed => value::open_seeded(dek, key, self.body),
            DekType::Key => value::open_with(dek, key, self.body),
        }
    }
}

fn kms_v2(rest: &[u8]) -> Result<KmsV2<'_>, &'static str> {
    let (provider, mut rest) = name(rest)?;
    let mut record = KmsV2 {
        provider,
        key_id: "",
        encrypted_dek: &[],
        annotations: Vec::new(),
        dek_type: DekType::Key,
        body: &[],
    };
    while !rest.is_empty() {
        match next_field(&mut rest)? {
            (1, Field::Bytes(body)) => record.body = body,
            (2, Field::Bytes(id)) => record.key_id = text(id)?,
            (3, Field::Bytes(dek)) => record.encrypted_dek = dek,
            (4, Field::Bytes(mut entry)) => {
                let (mut key, mut value): (&str, &[u8]) = ("", &[]);
                while !entry.is_empty() {
                    match next_field(&mut entry)? {
                        (1, Field::Bytes(b)) => key = text(b)?,
                        (2, Field::Bytes(b)) => value = b,
                        _ => {}
                    }
                }
                // As in a map: the last one counts.
                record.annotations.retain(|(k, _)| *k != key);
                record.annotations.push((key, value));
            }
            (5, Field::Varint(0)) => record.dek_type = DekType::Key,
            (5, Field::Varint(1)) => record.dek_type = DekType::Seed,
            (5, _) => return Err("a type of DEK source that is not known"),
            (1..=4, _) => return Err("a field of the wrong type"),
            _ => {}
        }
    }
    let bounded = |len: usize| (1..=FIELD_MAX).contains(&len);
    if !bounded(record.key_id.len()) || !bounded(record.encrypted_dek.len()) {
        return Err("no key id or no encrypted DEK of 1 to 1024 bytes");
    }
    let least = if record.dek_type == DekType::Seed { value::OVERHEAD } else { GCM };
    if record.body.len() < least {
        return Err("the sealed object is cut off");
    }
    Ok(record)
}

fn kms_v1(rest: &[u8]) -> Result<Record<'_>, &'static str> {
    // A name may contain colons here, so the first one behind which everything fits ends it.
    let colons = rest.iter().enumerate().filter(|(_, b)| **b == b':').map(|(i, _)| i);
    for colon in colons.take_while(|i| *i <= FIELD_MAX) {
        let Ok(provider) = text(&rest[..colon]) else { break };
        let Some((len, behind)) = rest[colon + 1..].split_first_chunk::<2>() else { break };
        let len = usize::from(u16::from_be_bytes(*len));
        if provider.is_empty() || len == 0 || behind.len() < len + GCM {
            continue;
        }
        let (encrypted_dek, body) = behind.split_at(len);
        return Ok(Record::KmsV1 { provider, encrypted_dek, body });
    }
    Err("a KMS v1 record that is cut off")
}

fn other(value: &[u8]) -> Result<Record<'_>, &'static str> {
    for (transformer, prefix) in OTHERS {
        if let Some(rest) = value.strip_prefix(prefix) {
            let (key_name, body) = name(rest)?;
            if body.is_empty() {
                return Err("the sealed object is cut off");
            }
            return Ok(Record::Other { transformer, key_name });
        }
    }
    if value.is_empty() {
        Err("an empty value")
    } else if value.starts_with(b"k8s:enc:") {
        Err("a transformer that is not known")
    } else {
        Err("neither an object nor an encrypted record")
    }
}

/// A name of 1 to [`FIELD_MAX`] bytes that ends in a colon, and what follows.
fn name(rest: &[u8]) -> Result<(&str, &[u8]), &'static str> {
    let colon = rest.iter().take(FIELD_MAX + 1).position(|b| *b == b':').ok_or("no name")?;
    if colon == 0 {
        return Err("an empty name");
    }
    Ok((text(&rest[..colon])?, &rest[colon + 1..]))
}

fn text(bytes: &[u8]) -> Result<&str, &'static str> {
    std::str::from_utf8(bytes).map_err(|_| "a name that is not UTF-8")
}

enum Field<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The next field of a protobuf: its number and what it holds.
fn next_field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Field<'a>), &'static str> {
    let tag = take_varint(rest)?;
    let field = match tag & 7 {
        0 => Field::Varint(take_varint(rest)?),
        1 => take(rest, 8).map(|_| Field::Fixed)?,
        2 => {
            let len = usize::try_from(take_varint(rest)?).map_err(|_| CUT)?;
            Field::Bytes(take(rest, len)?)
        }
        5 => take(rest, 4).map(|_| Field::Fixed)?,
        _ => return Err("a protobuf field of a type that is not known"),
    };
    if tag >> 3 == 0 {
        return Err("a protobuf field without a number");
    }
    Ok((tag >> 3, field))
}

const CUT: &str = "a protobuf that is cut off";

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], &'static str> {
    let (taken, behind) = rest.split_at_checked(len).ok_or(CUT)?;
    *rest = behind;
    Ok(taken)
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0u64;
    for (i, byte) in rest.iter().enumerate().take(10) {
        // The tenth byte has one bit left.
        if i == 9 && *byte > 1 {
            return Err("a number that is too large");
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            *rest = &rest[i + 1..];
            return Ok(value);
        }
    }
    Err(CUT)
}

fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample<'a>(body: &'a [u8]) -> KmsV2<'a> {
        KmsV2 {
            provider: "claviger",
            key_id: "v2:abcdefgh:1:01234567",
            encrypted_dek: &[9; 97],
            annotations: vec![("kek.claviger.io", b"carried")],
            dek_type: DekType::Seed,
            body,
        }
    }

    #[test]
    fn a_record_as_kube_apiserver_1_36_wrote_it() {
        // Beginning of a live record: provider, 264 bytes sealed, key id, then as below.
        let mut value = b"k8s:enc:kms:v2:kms1:\x0a\x88\x02".to_vec();
        value.extend([7; 264]);
        value.extend(b"\x12\x08crk-1/v1\x1a\x3c");
        value.extend([8; 60]);
        value.extend(b"\x22\x0a\x0a\x03a.b\x12\x03xyz\x28\x01");
        let Record::KmsV2(r) = Record::parse(&value) else { panic!("not KMS v2") };
        assert_eq!((r.provider, r.key_id, r.dek_type), ("kms1", "crk-1/v1", DekType::Seed));
        assert_eq!((r.body.len(), r.encrypted_dek.len()), (264, 60));
        assert_eq!(r.annotation("a.b"), Some(b"xyz".as_slice()));
        assert_eq!(r.to_value(), value);
    }

    #[test]
    fn each_kind_is_told_apart() {
        let body = [1; 60];
        assert_eq!(Record::parse(b"k8s\0\x0a"), Record::Plaintext(Encoding::Protobuf));
        assert_eq!(Record::parse(b"{\"kind\""), Record::Plaintext(Encoding::Json));
        assert_eq!(Record::parse(&sample(&body).to_value()), Record::KmsV2(sample(&body)));
        let v1 = [b"k8s:enc:kms:v1:a:b:\0\x03dek".as_slice(), &body].concat();
        let expected = Record::KmsV1 { provider: "a:b", encrypted_dek: b"dek", body: &body };
        assert_eq!(Record::parse(&v1), expected);
        for t in ["aescbc", "aesgcm", "secretbox"] {
            let value = format!("k8s:enc:{t}:v1:key1:xxxx");
            let expected = Record::Other { transformer: t, key_name: "key1" };
            assert_eq!(Record::parse(value.as_bytes()), expected);
        }
        for bad in
            ["", "x", "k8s:enc:", "k8s:enc:new:v1:k:x", "k8s:enc:aescbc:v1:", "k8s:enc:kms:v2:p:"]
        {
            assert!(matches!(Record::parse(bad.as_bytes()), Record::Undecodable { .. }), "{bad}");
        }
    }

    #[test]
    fn a_cut_record_is_undecodable_never_plaintext() {
        let value = sample(&[1; 60]).to_value();
        for len in 0..value.len() - 2 {
            let record = Record::parse(&value[..len]);
            // Behind the encrypted DEK only optional fields follow.
            let whole = matches!(&record, Record::KmsV2(r) if r.dek_type == DekType::Key);
            assert!(whole || matches!(record, Record::Undecodable { .. }), "{len}: {record:?}");
        }
    }

    #[test]
    fn an_object_opens_under_its_key_only() {
        let (seed, key) = ([3; 32], b"/registry/secrets/a/b");
        let body = value::seal_seeded(&seed, key, b"k8s\0object").expect("a seed");
        let stored = sample(&body).to_value();
        let Record::KmsV2(record) = Record::parse(&stored) else { panic!("not KMS v2") };
        assert_eq!(record.open(&seed, key).expect("opens").expose(), b"k8s\0object");
        assert!(record.open(&seed, b"/registry/secrets/a/c").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(value in proptest::collection::vec(any::<u8>(), 0..300), kind in 0usize..6) {
            let prefix = [KMS_V2, KMS_V1, OTHERS[0].1, b"k8s:enc:kms:v2:p:", b"k8s:enc:kms:v1:p:", b""][kind];
            let _ = Record::parse(&[prefix, &value].concat());
        }

        #[test]
        fn what_we_write_reads_back(
            body in proptest::collection::vec(any::<u8>(), 60..400),
            dek in proptest::collection::vec(any::<u8>(), 1..FIELD_MAX),
            key_id in "[a-z:0-9]{1,64}",
            names in proptest::collection::btree_map("[a-z.]{1,20}", proptest::collection::vec(any::<u8>(), 0..200), 0..4),
            seed in any::<bool>(),
        ) {
            let record = KmsV2 {
                provider: "p", key_id: &key_id, encrypted_dek: &dek, body: &body,
                annotations: names.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect(),
                dek_type: if seed { DekType::Seed } else { DekType::Key },
            };
            let stored = record.to_value();
            prop_assert_eq!(Record::parse(&stored), Record::KmsV2(record));
        }
    }
}
