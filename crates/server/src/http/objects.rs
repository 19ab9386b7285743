//! Reads JSON in which a struct is an object. Serde's own reading also takes an array for a
//! struct, its fields in the order of the code: nothing that anybody described, and a field that
//! moves would change what such a body means.

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use std::fmt;

/// Reads a whole text.
///
/// # Errors
/// When it is not JSON, or not of the form of `T`.
pub(crate) fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = T::deserialize(Objects(&mut reader))?;
    reader.end()?;
    Ok(value)
}

/// Around a deserializer, and around all that it hands out.
struct Objects<T>(T);

macro_rules! forward {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => {
        $(fn $name<V: Visitor<'de>>(self, $($arg: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.0.$name($($arg,)* Objects(visitor))
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Objects<D> {
    type Error = D::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(Objects(visitor))
    }

    forward! {
        deserialize_any();
        deserialize_bool();
        deserialize_i8();
        deserialize_i16();
        deserialize_i32();
        deserialize_i64();
        deserialize_u8();
        deserialize_u16();
        deserialize_u32();
        deserialize_u64();
        deserialize_f32();
        deserialize_f64();
        deserialize_char();
        deserialize_str();
        deserialize_string();
        deserialize_bytes();
        deserialize_byte_buf();
        deserialize_option();
        deserialize_unit();
        deserialize_unit_struct(name: &'static str);
        deserialize_newtype_struct(name: &'static str);
        deserialize_seq();
        deserialize_tuple(len: usize);
        deserialize_tuple_struct(name: &'static str, len: usize);
        deserialize_map();
        deserialize_enum(name: &'static str, variants: &'static [&'static str]);
        deserialize_identifier();
        deserialize_ignored_any();
    }
}

macro_rules! visit {
    ($($name:ident: $type:ty;)*) => {
        $(fn $name<E: serde::de::Error>(self, value: $type) -> Result<V::Value, E> {
            self.0.$name(value)
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Objects<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    visit! {
        visit_bool: bool;
        visit_i64: i64;
        visit_u64: u64;
        visit_f64: f64;
        visit_str: &str;
        visit_borrowed_str: &'de str;
        visit_string: String;
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Objects(inner))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(Objects(inner))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, all: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Objects(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, all: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Objects(all))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, one: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(Objects(one))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Objects<S> {
    type Value = S::Value;
    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Objects(inner))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Objects<A> {
    type Error = A::Error;
    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Objects(seed))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Objects<A> {
    type Error = A::Error;
    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(Objects(seed))
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Objects<A> {
    type Error = A::Error;
    type Variant = Objects<A::Variant>;
    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let (value, variant) = self.0.variant_seed(seed)?;
        Ok((value, Objects(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Objects<A> {
    type Error = A::Error;
    fn unit_variant(self) -> Result<(), A::Error> {
        self.0.unit_variant()
    }
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.0.newtype_variant_seed(Objects(seed))
    }
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.0.tuple_variant(len, Objects(visitor))
    }
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.0.struct_variant(fields, Objects(visitor))
    }
}

#[cfg(test)]
mod tests {
    use super::read;
    use claviger_wire::agent::CommitRequest;
    use claviger_wire::iam::NewPrincipal;
    use claviger_wire::kp::policies::KeyPolicyInput;
    use claviger_wire::kp::{Envelope, NewKey, RegistrationInput, WrapRequest};
    use claviger_wire::ks::{CancelOperation, OpenOperation};
    use serde_json::Value;

    #[test]
    fn what_serde_reads_of_objects_is_read() {
        let body = br#"{"metadata":{"collectionType":"x","collectionTotal":1},
            "resources":[{"name":"n","Tags":["t"],"extractable":true,"rotation":{"enabled":true}}]}"#;
        let read_ = read::<Envelope<NewKey>>(body).unwrap();
        let (new, rotation) = (&read_.resources[0], read_.resources[0].rotation.as_ref());
        assert_eq!((new.tags.as_slice(), new.extractable), (&["t".to_owned()][..], true));
        assert_eq!(rotation.and_then(|r| r.enabled), Some(true));
        let wrap = read::<WrapRequest>(br#"{"aad":["a",null]}"#).unwrap();
        assert_eq!(wrap.aad, Some(vec![Some("a".to_owned()), None]));
        let id = "00000000-0000-4000-8000-000000000001";
        let open = format!(r#"{{"instance_id":"{id}","crk_id":"{id}","take_up":"reload"}}"#);
        assert_eq!(read::<OpenOperation>(open.as_bytes()).unwrap().crk_id.to_string(), id);
        let commit = br#"{"fencing":1,"revision":2,"commit":{"commit":"stuck","reason":null}}"#;
        assert_eq!(read::<CommitRequest>(commit).unwrap().revision, 2);
        let roles = br#"{"name":"n","roles":[{"role":"Reader"}],"platform":["Viewer"]}"#;
        assert_eq!(read::<NewPrincipal>(roles).unwrap().roles.len(), 1);
        assert_eq!(read::<Value>(b"[1,{\"a\":[2]}]").unwrap()[1]["a"][0], 2);
    }

    #[test]
    fn an_array_is_no_struct() {
        assert!(read::<WrapRequest>(br#"["AAAA",[null]]"#).is_err());
        assert!(read::<WrapRequest>(b"[]").is_err());
        assert!(read::<CancelOperation>(b"[true]").is_err());
        assert!(read::<Envelope<NewKey>>(br#"[["x",1],[["x","n",false]]]"#).is_err());
        let inner = br#"{"metadata":["x",1],"resources":[{"preventKeyDeletion":true}]}"#;
        assert!(read::<Envelope<RegistrationInput>>(inner).is_err());
        let inner = br#"{"metadata":{"collectionType":"x","collectionTotal":1},"resources":[[]]}"#;
        assert!(read::<Envelope<RegistrationInput>>(inner).is_err());
        let option = br#"{"dualAuthDelete":[true]}"#;
        assert!(read::<KeyPolicyInput>(option).is_err());
        assert!(read::<WrapRequest>(b"{} x").is_err(), "something follows");
    }

    #[test]
    fn an_unknown_field_is_named() {
        let refused = read::<KeyPolicyInput>(br#"{"colour":1}"#).err().unwrap().to_string();
        assert!(refused.starts_with("unknown field `colour`"), "{refused}");
    }
}
