//! The envelope of a platform's evidence: a collection of conceptual messages (draft-ietf-rats-msg-wrap, JSON form).
//!
//! Whoever attests staples what the evidence needs to be verified, so that a relying party asks no other host: each
//! item has a media type, its bytes, and says whether it is evidence or an endorsement. The media type of the whole
//! ([`crate::Evidence`]) names the kind of platform, and with it the items that belong in it.
//!
//! ```json
//! {"__cmwc_t": "tag:bastionai,2026:evidence",
//!  "0": ["application/vnd.bastionai.snp-report", "<base64url>", 4],
//!  "1": ["application/pkix-cert", "<base64url>", 2]}
//! ```

use crate::verify::VerifyError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A certificate in DER (RFC 2585).
pub const CERTIFICATE: &str = "application/pkix-cert";
/// A certificate revocation list in DER (RFC 2585).
pub const REVOCATION_LIST: &str = "application/pkix-crl";

/// Most items of an envelope: a report, chains, lists, the reports of eight GPUs.
pub const MAX_ITEMS: usize = 64;

/// Evidence and what it needs to be verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// What the platform signed, and what stands behind what it signed.
    pub evidence: Vec<Item>,
    /// Certificates, revocation lists, collateral: each authenticates itself.
    pub endorsements: Vec<Item>,
}

/// One conceptual message.
#[derive(Clone, PartialEq, Eq)]
pub struct Item {
    /// What the bytes are.
    pub media_type: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Item({:?}, {} bytes)", self.media_type, self.bytes.len())
    }
}

impl Item {
    /// Bytes of this type.
    pub fn new(media_type: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            media_type: media_type.to_owned(),
            bytes: bytes.into(),
        }
    }
}

impl Envelope {
    /// The JSON collection, items in order: the same envelope gives the same bytes.
    ///
    /// # Panics
    /// With more than [`MAX_ITEMS`] items: whoever attests has a fixed number of them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let evidence = self.evidence.iter().map(|item| (item, EVIDENCE));
        let items: Vec<_> = evidence
            .chain(self.endorsements.iter().map(|item| (item, ENDORSEMENTS)))
            .collect();
        assert!(items.len() <= MAX_ITEMS, "at most {MAX_ITEMS} items");
        let mut collection = BTreeMap::from([(TYPE_KEY.to_owned(), Member::Type(TYPE.to_owned()))]);
        collection.extend(items.into_iter().enumerate().map(|(index, (item, indicator))| {
            let record = Record(
                item.media_type.clone(),
                URL_SAFE_NO_PAD.encode(&item.bytes),
                indicator,
            );
            (format!("{index:02}"), Member::Record(record))
        }));
        serde_json::to_vec(&collection).expect("texts and numbers are JSON")
    }

    /// Reads a JSON collection of records.
    ///
    /// # Errors
    /// [`VerifyError::Malformed`] for anything else: another type of collection, a collection in a collection, a
    /// record that is neither evidence nor an endorsement, a label twice, more than [`MAX_ITEMS`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, VerifyError> {
        let malformed = |why: String| VerifyError::Malformed(format!("the envelope: {why}"));
        let Members(members) = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        let mut envelope = Self::default();
        let mut is_typed = false;
        for (label, member) in members {
            match member {
                Member::Type(found) if label == TYPE_KEY && found == TYPE => is_typed = true,
                Member::Type(_) => return Err(malformed(format!("{label:?} is no record"))),
                Member::Record(Record(media_type, text, indicator)) => {
                    let bytes = URL_SAFE_NO_PAD
                        .decode(text)
                        .map_err(|error| malformed(format!("{label:?}: {error}")))?;
                    let items = match indicator {
                        EVIDENCE => &mut envelope.evidence,
                        ENDORSEMENTS => &mut envelope.endorsements,
                        other => return Err(malformed(format!("{label:?} has indicator {other}"))),
                    };
                    items.push(Item { media_type, bytes });
                }
            }
        }
        if !is_typed {
            return Err(malformed(format!("not a collection of type {TYPE}")));
        }
        Ok(envelope)
    }

    /// The one piece of evidence of a type.
    pub(crate) fn one(&self, media_type: &str) -> Result<&[u8], VerifyError> {
        self.at_most_one(media_type)?
            .ok_or_else(|| VerifyError::Malformed(format!("the envelope holds no {media_type}")))
    }

    /// The piece of evidence of a type, if there is one.
    pub(crate) fn at_most_one(&self, media_type: &str) -> Result<Option<&[u8]>, VerifyError> {
        let mut found = self.evidence.iter().filter(|item| item.media_type == media_type);
        let first = found.next();
        if found.next().is_some() {
            return Err(VerifyError::Malformed(format!(
                "the envelope holds more than one {media_type}"
            )));
        }
        Ok(first.map(|item| &item.bytes[..]))
    }

    /// All endorsements of a type, in order.
    pub(crate) fn endorsements(&self, media_type: &str) -> impl Iterator<Item = &[u8]> {
        let of_type = self
            .endorsements
            .iter()
            .filter(move |item| item.media_type == media_type);
        of_type.map(|item| &item.bytes[..])
    }
}

/// Type, value in base64url, indicator.
#[derive(Deserialize, Serialize)]
struct Record(String, String, u8);

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Member {
    Type(String),
    Record(Record),
}

/// In order of their labels, each label once.
struct Members(BTreeMap<String, Member>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a collection of conceptual messages")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                use serde::de::Error;
                let mut members = BTreeMap::new();
                while let Some((label, member)) = map.next_entry::<String, Member>()? {
                    if members.len() > MAX_ITEMS {
                        return Err(A::Error::custom(format!("more than {MAX_ITEMS} items")));
                    }
                    if members.insert(label.clone(), member).is_some() {
                        return Err(A::Error::custom(format!("the label {label:?} twice")));
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Once)
    }
}

const TYPE_KEY: &str = "__cmwc_t";
const TYPE: &str = "tag:bastionai,2026:evidence";
/// Bits of the indicator (draft-ietf-rats-msg-wrap, section 3.1).
const ENDORSEMENTS: u8 = 2;
const EVIDENCE: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Envelope {
        Envelope {
            evidence: vec![Item::new("application/vnd.example", [1, 2, 3])],
            endorsements: vec![Item::new(CERTIFICATE, [4]), Item::new(CERTIFICATE, [])],
        }
    }

    #[test]
    fn an_envelope_is_the_json_written_in_the_protocol() {
        let expected = r#"{"00":["application/vnd.example","AQID",4],"01":["application/pkix-cert","BA",2],"02":["application/pkix-cert","",2],"__cmwc_t":"tag:bastionai,2026:evidence"}"#;
        assert_eq!(String::from_utf8(example().to_bytes()).unwrap(), expected);
    }

    #[test]
    fn what_was_put_in_comes_out() {
        assert_eq!(Envelope::from_bytes(&example().to_bytes()).unwrap(), example());
        let many = Envelope {
            evidence: (0..MAX_ITEMS as u8)
                .map(|index| Item::new("a/b", [index]))
                .collect(),
            endorsements: vec![],
        };
        assert_eq!(Envelope::from_bytes(&many.to_bytes()).unwrap(), many);
    }

    #[test]
    fn what_is_no_collection_of_evidence_and_endorsements_is_refused() {
        let typed = |members: &str| format!(r#"{{"__cmwc_t":"{TYPE}"{members}}}"#);
        let many: String = (0..=MAX_ITEMS)
            .map(|index| format!(r#","{index}":["a/b","",4]"#))
            .collect();
        for (json, reason) in [
            ("[]".to_owned(), "collection"),
            (r#"{"0":["a/b","AA",4]}"#.to_owned(), "type"),
            (r#"{"__cmwc_t":"tag:other"}"#.to_owned(), "no record"),
            (typed(r#","0":["a/b","AA",8]"#), "indicator 8"),
            (typed(r#","0":["a/b","A",4]"#), "\"0\""),
            (typed(r#","0":["a/b","AA"]"#), "did not match"),
            (typed(r#","0":["a/b","AA",4],"0":["a/b","AA",4]"#), "twice"),
            (typed(r#","0":{"__cmwc_t":"x"}"#), "did not match"),
            (typed(&many), "more than"),
        ] {
            let error = Envelope::from_bytes(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Envelope::from_bytes(&bytes).is_err());
        }
    }
}
