//! How a policy for GPUs is written in a file: reference values are lists, or `"any"`.
//!
//! ```toml
//! minimum_count = 1
//! modes = ["confidential"]
//! device_serials = ["412921CE551E4EEDA3"]
//! [[firmware]]
//! driver_version = "590.12"
//! vbios_version = "96.00.A5.00.01"
//! [firmware.measurements]
//! 2 = ["<48 bytes in hexadecimal>", "<an alternative>"]
//! 35 = "any"
//! ```

use super::appraise::Firmware;
use super::spdm::Digest;
use crate::policy::ReferenceValues;
use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, Error, SeqAccess, Unexpected, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// Reference values that are each written as a `T`.
struct Written<T>(ReferenceValues<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Written<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyOrList<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for AnyOrList<T> {
            type Value = Written<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list or \"any\"")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Written<T>, E> {
                match word {
                    "any" => Ok(Written(ReferenceValues::AcceptAny)),
                    _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Written<T>, A::Error> {
                let values = Vec::deserialize(SeqAccessDeserializer::new(list))?;
                Ok(Written(ReferenceValues::AnyOf(values)))
            }
        }
        deserializer.deserialize_any(AnyOrList(PhantomData))
    }
}

/// A list of releases, or `"any"`.
pub(super) fn releases<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<ReferenceValues<Firmware>, D::Error> {
    Written::deserialize(deserializer).map(|Written(values)| values)
}

/// By index, as decimal keys of one spelling each.
pub(super) fn measurements<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<u8, ReferenceValues<Digest>>, D::Error> {
    let written = BTreeMap::<String, Written<String>>::deserialize(deserializer)?;
    let entry = |(key, Written(values)): (String, Written<String>)| {
        let index: Option<u8> = key.parse().ok();
        let index = index
            .filter(|index| *index != 0 && index.to_string() == key)
            .ok_or_else(|| D::Error::custom(format!("{key:?} is no index of a measurement (1 to 255)")))?;
        let values = match values {
            ReferenceValues::AnyOf(texts) => {
                ReferenceValues::AnyOf(texts.iter().map(|text| digest(text)).collect::<Result<_, _>>()?)
            }
            ReferenceValues::AcceptAny => ReferenceValues::AcceptAny,
            ReferenceValues::Missing => ReferenceValues::Missing,
        };
        Ok((index, values))
    };
    written.into_iter().map(entry).collect()
}

fn digest<E: Error>(text: &str) -> Result<Digest, E> {
    let mut digest = [0; 48];
    hex::decode_to_slice(text, &mut digest)
        .map_err(|error| E::custom(format!("{text:?} is not 48 bytes in hexadecimal: {error}")))?;
    Ok(digest)
}
