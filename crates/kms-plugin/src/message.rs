//! Encrypt and Decrypt as they are on the wire, read and written by hand.
//!
//! prost makes a string of each text and a map of the annotations, which are most of a message
//! and mostly not looked at. Here fields are borrowed from the request, and all that an answer
//! says beside its ciphertext is written once for each KEK. What is taken and what is refused is
//! what prost takes and refuses; tests compare the two.

use crate::frame;
use claviger_crypto::kek::ANNOTATION;
use prost::DecodeError;
use prost::encoding::{
    DecodeContext, WireType, check_wire_type, decode_key, decode_varint, encode_key, encode_varint,
    skip_field,
};
use thiserror::Error;

/// Most bytes in front of a field's content: its key, and a length below 512 MiB.
const HEAD_MAX: usize = 6;

/// Bytes that are not the message that they should be.
#[derive(Debug, Error)]
pub(crate) enum Malformed {
    #[error("the request is malformed: {0}")]
    Protobuf(#[from] DecodeError),
    #[error("the request is malformed: a text is not UTF-8")]
    Text(#[from] std::str::Utf8Error),
}

/// The plaintext of an EncryptRequest.
pub(crate) fn encrypt_request(message: &[u8]) -> Result<&[u8], Malformed> {
    let mut plaintext = [].as_slice();
    fields::<2>(message, |tag, content| {
        match tag {
            1 => plaintext = content,
            _ => text(content).map(drop)?,
        }
        Ok(())
    })?;
    Ok(plaintext)
}

/// A DecryptRequest, in so far as the plugin looks at it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored<'a> {
    /// The sealed seed.
    pub(crate) ciphertext: &'a [u8],
    /// The name of its KEK.
    pub(crate) key_id: &'a str,
    /// The annotation [`ANNOTATION`].
    pub(crate) carried: Option<&'a [u8]>,
}

impl<'a> Stored<'a> {
    /// Reads a DecryptRequest.
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut stored = Self::default();
        fields::<4>(message, |tag, content| {
            match tag {
                1 => stored.ciphertext = content,
                2 => text(content).map(drop)?,
                3 => stored.key_id = text(content)?,
                _ => {
                    let (name, value) = annotation(content)?;
                    // The last one of a name stands, as in a map.
                    if name == ANNOTATION {
                        stored.carried = Some(value);
                    }
                }
            }
            Ok(())
        })?;
        Ok(stored)
    }
}

/// An EncryptResponse: the ciphertext, of `len` bytes, that `write` appends, then `tail`.
/// Ready to be sent ([`frame`]).
pub(crate) fn encrypt_response(
    len: usize,
    tail: &[u8],
    write: impl FnOnce(&mut Vec<u8>),
) -> Vec<u8> {
    let mut out = frame::begin(HEAD_MAX + len + tail.len());
    head(1, len, &mut out);
    let before = out.len();
    write(&mut out);
    debug_assert_eq!(out.len() - before, len);
    out.extend_from_slice(tail);
    frame::end(&mut out);
    out
}

/// What follows the ciphertext in each EncryptResponse under one KEK: key id and annotations.
pub(crate) fn tail(key_id: &str, carried: &[u8]) -> Vec<u8> {
    let mut entry = Vec::new();
    field(1, ANNOTATION.as_bytes(), &mut entry);
    field(2, carried, &mut entry);
    let mut out = Vec::new();
    field(2, key_id.as_bytes(), &mut out);
    field(3, &entry, &mut out);
    out
}

/// A DecryptResponse, ready to be sent ([`frame`]). Its buffer does not grow, so no copy of the
/// seed is left behind.
pub(crate) fn decrypt_response(seed: &[u8]) -> Vec<u8> {
    let mut out = frame::begin(HEAD_MAX + seed.len());
    field(1, seed, &mut out);
    frame::end(&mut out);
    out
}

/// Gives each field from 1 to `LAST`, all of which are bytes, texts or map entries. Others are
/// skipped, as protobuf demands.
fn fields<'a, const LAST: u32>(
    mut rest: &'a [u8],
    mut each: impl FnMut(u32, &'a [u8]) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest)?;
        if tag <= LAST {
            check_wire_type(WireType::LengthDelimited, wire_type)?;
        }
        let mut content = rest;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default())?;
        if tag <= LAST {
            decode_varint(&mut content)?;
            each(tag, &content[..content.len() - rest.len()])?;
        }
    }
    Ok(())
}

fn annotation(entry: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let (mut name, mut value) = ("", [].as_slice());
    fields::<2>(entry, |tag, content| {
        match tag {
            1 => name = text(content)?,
            _ => value = content,
        }
        Ok(())
    })?;
    Ok((name, value))
}

fn text(content: &[u8]) -> Result<&str, Malformed> {
    Ok(std::str::from_utf8(content)?)
}

/// Key and length of a field of bytes; its content comes next.
fn head(tag: u32, len: usize, out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
}

/// A field of bytes or text. Empty ones are left out, as proto3 does.
fn field(tag: u32, content: &[u8], out: &mut Vec<u8>) {
    if !content.is_empty() {
        head(tag, content.len(), out);
        out.extend_from_slice(content);
    }
}

/// Fails unless prost, the oracle, takes and refuses the same bytes, and reads the same in them.
#[cfg(any(test, fuzzing))]
pub(crate) fn agrees(bytes: &[u8]) {
    use crate::proto::{DecryptRequest, EncryptRequest};
    use prost::Message;
    let ours = encrypt_request(bytes).ok();
    let oracle = EncryptRequest::decode(bytes).ok();
    assert_eq!(ours, oracle.as_ref().map(|r| r.plaintext.as_slice()), "{bytes:02x?}");
    let ours = Stored::parse(bytes).ok();
    let oracle = DecryptRequest::decode(bytes).ok();
    let oracle = oracle.as_ref().map(|r| Stored {
        ciphertext: &r.ciphertext,
        key_id: &r.key_id,
        carried: r.annotations.get(ANNOTATION).map(Vec::as_slice),
    });
    assert_eq!(ours, oracle, "{bytes:02x?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{DecryptRequest, DecryptResponse, EncryptResponse};
    use proptest::prelude::*;
    use prost::Message;
    use std::collections::HashMap;

    /// The message in a frame of gRPC.
    fn framed(bytes: &[u8]) -> &[u8] {
        let (prefix, message) = bytes.split_first_chunk::<5>().expect("a prefix");
        assert_eq!(prefix[0], 0, "not compressed");
        assert_eq!(prefix[1..], u32::try_from(message.len()).unwrap().to_be_bytes());
        message
    }

    fn varint(value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        encode_varint(value, &mut out);
        out
    }

    /// A field of any kind, mostly a well-formed one that is known.
    fn any_field() -> impl Strategy<Value = Vec<u8>> {
        let content = prop_oneof![
            4 => proptest::collection::vec(any::<u8>(), 0..40),
            4 => "\\PC{0,12}".prop_map(String::into_bytes),
            6 => (any_name(), proptest::collection::vec(any::<u8>(), 0..20))
                .prop_map(|(name, value)| entry(&name, &value)),
            1 => (any_name(), any_name()).prop_map(|(a, b)| [entry(&a, b"1"), entry(&b, b"")].concat()),
            1 => any_varint(),
        ];
        prop_oneof![
            12 => (0u32..8, content.clone()).prop_map(|(tag, content)| {
                [varint(u64::from(tag << 3 | 2)), varint(content.len() as u64), content].concat()
            }),
            2 => (any_varint(), any_varint()).prop_map(|(key, value)| [key, value].concat()),
            1 => (any_varint(), any_varint(), content)
                .prop_map(|(key, len, content)| [key, len, content].concat()),
            // A group, closed by its own end or by another's.
            1 => (5u64..8, 5u64..8, any_varint()).prop_map(|(open, close, value)| {
                [varint(open << 3 | 3), vec![8], value, varint(close << 3 | 4)].concat()
            }),
            1 => (0u64..8, any::<[u8; 8]>())
                .prop_map(|(tag, value)| [varint(tag << 3 | 1), value.to_vec()].concat()),
            1 => (0u64..8, any::<[u8; 4]>())
                .prop_map(|(tag, value)| [varint(tag << 3 | 5), value.to_vec()].concat()),
        ]
    }

    fn any_name() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            3 => Just(ANNOTATION.as_bytes().to_vec()),
            1 => "[a-z.]{0,8}".prop_map(String::into_bytes),
            1 => proptest::collection::vec(any::<u8>(), 0..4),
        ]
    }

    /// Also overlong ones, and ones that do not end.
    fn any_varint() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            (0u64..64).prop_map(varint),
            any::<u64>().prop_map(varint),
            proptest::collection::vec(0x80u8.., 0..12),
            (proptest::collection::vec(0x80u8.., 0..11), 0u8..4).prop_map(|(head, last)| [
                head,
                vec![last]
            ]
            .concat()),
        ]
    }

    fn entry(name: &[u8], value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        field(1, name, &mut out);
        field(2, value, &mut out);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn prost_takes_and_refuses_the_same(
            parts in proptest::collection::vec(any_field(), 0..8),
            cut in proptest::option::of(any::<prop::sample::Index>()),
            flip in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let mut bytes = parts.concat();
            if let (Some((at, with)), false) = (flip, bytes.is_empty()) {
                let at = at.index(bytes.len());
                bytes[at] = with;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            agrees(&bytes);
        }

        #[test]
        fn any_bytes_are_read_as_by_prost(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            agrees(&bytes);
        }

        #[test]
        fn prost_reads_what_is_written(
            ciphertext in proptest::collection::vec(any::<u8>(), 0..1100),
            key_id in "\\PC{0,40}",
            carried in proptest::collection::vec(any::<u8>(), 0..1000),
        ) {
            let tail = tail(&key_id, &carried);
            let written = encrypt_response(ciphertext.len(), &tail, |out| {
                out.extend_from_slice(&ciphertext);
            });
            let read = EncryptResponse::decode(framed(&written)).unwrap();
            let annotations = HashMap::from([(ANNOTATION.to_owned(), carried)]);
            prop_assert_eq!(read, EncryptResponse { ciphertext: ciphertext.clone(), key_id, annotations });
            let read = DecryptResponse::decode(framed(&decrypt_response(&ciphertext))).unwrap();
            prop_assert_eq!(read.plaintext, ciphertext);
        }
    }

    #[test]
    fn a_real_request_is_read() {
        let annotations = [(ANNOTATION, vec![1u8; 405]), ("other.example", vec![2; 9])];
        let request = DecryptRequest {
            ciphertext: vec![3; 97],
            uid: "2f1b8e0a-6a58-4a3c-8b4e-1f3c9d2a7e55".to_owned(),
            key_id: "v2:0a1b2c3d:7:4e5f6a7b".to_owned(),
            annotations: annotations.map(|(name, value)| (name.to_owned(), value)).into(),
        };
        let bytes = request.encode_to_vec();
        agrees(&bytes);
        let stored = Stored::parse(&bytes).unwrap();
        assert_eq!(stored.ciphertext, [3; 97]);
        assert_eq!(stored.key_id, "v2:0a1b2c3d:7:4e5f6a7b");
        assert_eq!(stored.carried, Some([1; 405].as_slice()));
        for len in 0..bytes.len() {
            agrees(&bytes[..len]);
        }
    }

    #[test]
    fn malformed_and_unusual_messages() {
        let cases: &[(&str, &[u8], bool)] = &[
            ("nothing at all", &[], true),
            ("the last of two stands", &[0x0a, 1, 7, 0x0a, 1, 8], true),
            ("an empty one after a full one stands", &[0x0a, 1, 7, 0x0a, 0], true),
            ("unknown varint", &[0x48, 0x96, 0x01], true),
            ("unknown group", &[0x4b, 0x08, 0x01, 0x4c], true),
            ("group in a group", &[0x4b, 0x53, 0x54, 0x4c], true),
            ("group that does not end", &[0x4b, 0x08, 0x01], false),
            ("group that another's end closes", &[0x4b, 0x54], false),
            ("end without a group", &[0x4c], false),
            ("field 0", &[0x02, 0x00], false),
            ("wire type 6", &[0x4e], false),
            ("known field of another type", &[0x08, 0x01], false),
            ("key above 32 bits", &[0x80, 0x80, 0x80, 0x80, 0x10, 0x00], false),
            ("length beyond the end", &[0x0a, 2, 7], false),
            (
                "length of 2^64 - 1",
                &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
                false,
            ),
            (
                "varint of 11 bytes",
                &[0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00],
                false,
            ),
            ("uid that is no text", &[0x12, 1, 0xff], false),
        ];
        for (what, bytes, ok) in cases {
            agrees(bytes);
            assert_eq!(encrypt_request(bytes).is_ok(), *ok, "{what}");
            assert_eq!(Stored::parse(bytes).is_ok(), *ok, "{what}");
        }
        // Field 4 is a map entry in the one message and unknown to the other.
        let cases: &[(&str, &[u8], bool)] = &[
            ("empty entry", &[0x22, 0], true),
            ("unknown field in an entry", &[0x22, 2, 0x18, 1], true),
            ("name that is no text", &[0x22, 3, 0x0a, 1, 0xff], false),
            ("value that is a varint", &[0x22, 2, 0x10, 1], false),
            ("field beyond the end of its entry", &[0x22, 2, 0x0a, 1, 0x61], false),
        ];
        for (what, bytes, ok) in cases {
            agrees(bytes);
            assert_eq!(Stored::parse(bytes).is_ok(), *ok, "{what}");
        }
        // As deep as prost goes, and deeper.
        for depth in [99, 100, 101, 5000] {
            agrees(&[vec![0x4b; depth], vec![0x4c; depth]].concat());
        }
    }
}
