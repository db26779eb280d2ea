//! The pinned binary form of a `DpEvent`, and which events the ledger takes.
//!
//! Entries hold the event itself, never ε alone, so that a later accountant can reprice history. The
//! encoding is written out here: it must not move when crate `privacy` reorders or adds variants.
//! Depth and count are bounded on both sides, so that no bytes can exhaust the stack.

use bastionai_privacy::event::DpEvent;

/// Why an event is refused or its bytes are not one.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// Unprotected releases have no place in a ledger.
    #[error("the event releases something without protection")]
    NonPrivate,
    /// A parameter no mechanism can have.
    #[error("event parameter `{parameter}` is {value}, outside its range")]
    Parameter {
        /// Field of the event.
        parameter: &'static str,
        /// Its value.
        value: f64,
    },
    /// Deeper or longer than any mechanism of ours.
    #[error("the event nests deeper than {MAX_DEPTH} levels or composes more than {MAX_COMPOSED} events")]
    TooComplex,
    /// Not an encoding of an event.
    #[error("not a canonical encoding of an event")]
    Malformed,
}

/// Checks that an event is protected, bounded and has parameters in range.
///
/// # Errors
/// [`EventError`] says what is wrong.
pub fn check(event: &DpEvent) -> Result<(), EventError> {
    check_at(event, MAX_DEPTH)
}

fn check_at(event: &DpEvent, depth: u32) -> Result<(), EventError> {
    let depth = depth.checked_sub(1).ok_or(EventError::TooComplex)?;
    match event {
        DpEvent::NoOp => Ok(()),
        DpEvent::NonPrivate => Err(EventError::NonPrivate),
        DpEvent::Gaussian { noise_multiplier } => check_noise(*noise_multiplier),
        DpEvent::PoissonSampled {
            sampling_probability,
            event,
        } => {
            check_probability(*sampling_probability)?;
            check_at(event, depth)
        }
        DpEvent::TruncatedSubsampledGaussian {
            sampling_probability,
            noise_multiplier,
            ..
        } => {
            check_probability(*sampling_probability)?;
            check_noise(*noise_multiplier)
        }
        DpEvent::SelfComposed { event, .. } => check_at(event, depth),
        DpEvent::Banded { bands: 0, .. } => Err(EventError::Parameter {
            parameter: "bands",
            value: 0.0,
        }),
        DpEvent::Banded { event, .. } => check_at(event, depth),
        DpEvent::Composed { events } if events.len() > MAX_COMPOSED => Err(EventError::TooComplex),
        DpEvent::Composed { events } => events.iter().try_for_each(|event| check_at(event, depth)),
        DpEvent::Laplace { noise_multiplier } => check_noise(*noise_multiplier),
        DpEvent::Histograms {
            standard_deviation, ..
        } => check_noise(*standard_deviation),
    }
}

fn check_noise(value: f64) -> Result<(), EventError> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(EventError::Parameter {
            parameter: "noise_multiplier",
            value,
        })
    }
}

fn check_probability(value: f64) -> Result<(), EventError> {
    if (0.0..=1.0).contains(&value) {
        Ok(())
    } else {
        Err(EventError::Parameter {
            parameter: "sampling_probability",
            value,
        })
    }
}

/// One tag byte per event, then its fields in declaration order, little-endian.
pub fn encode(event: &DpEvent) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_into(event, &mut bytes);
    bytes
}

fn encode_into(event: &DpEvent, out: &mut Vec<u8>) {
    match event {
        DpEvent::NoOp => out.push(TAG_NO_OP),
        DpEvent::NonPrivate => out.push(TAG_NON_PRIVATE),
        DpEvent::Gaussian { noise_multiplier } => {
            out.push(TAG_GAUSSIAN);
            out.extend(noise_multiplier.to_le_bytes());
        }
        DpEvent::PoissonSampled {
            sampling_probability,
            event,
        } => {
            out.push(TAG_POISSON_SAMPLED);
            out.extend(sampling_probability.to_le_bytes());
            encode_into(event, out);
        }
        DpEvent::TruncatedSubsampledGaussian {
            dataset_size,
            sampling_probability,
            truncated_batch_size,
            noise_multiplier,
        } => {
            out.push(TAG_TRUNCATED_SUBSAMPLED_GAUSSIAN);
            out.extend(dataset_size.to_le_bytes());
            out.extend(sampling_probability.to_le_bytes());
            out.extend(truncated_batch_size.to_le_bytes());
            out.extend(noise_multiplier.to_le_bytes());
        }
        DpEvent::SelfComposed { event, count } => {
            out.push(TAG_SELF_COMPOSED);
            out.extend(count.to_le_bytes());
            encode_into(event, out);
        }
        DpEvent::Banded { bands, steps, event } => {
            out.push(TAG_BANDED);
            out.extend(bands.to_le_bytes());
            out.extend(steps.to_le_bytes());
            encode_into(event, out);
        }
        DpEvent::Composed { events } => {
            out.push(TAG_COMPOSED);
            out.extend((events.len() as u64).to_le_bytes());
            events.iter().for_each(|event| encode_into(event, out));
        }
        DpEvent::Laplace { noise_multiplier } => {
            out.push(TAG_LAPLACE);
            out.extend(noise_multiplier.to_le_bytes());
        }
        DpEvent::Histograms {
            histograms,
            standard_deviation,
        } => {
            out.push(TAG_HISTOGRAMS);
            out.extend(histograms.to_le_bytes());
            out.extend(standard_deviation.to_le_bytes());
        }
    }
}

/// Decodes [`encode`].
///
/// # Errors
/// [`EventError::Malformed`] unless the bytes are exactly one encoding; [`EventError::TooComplex`].
pub fn decode(bytes: &[u8]) -> Result<DpEvent, EventError> {
    let mut rest = bytes;
    let event = decode_at(&mut rest, MAX_DEPTH)?;
    if rest.is_empty() {
        Ok(event)
    } else {
        Err(EventError::Malformed)
    }
}

fn decode_at(rest: &mut &[u8], depth: u32) -> Result<DpEvent, EventError> {
    let depth = depth.checked_sub(1).ok_or(EventError::TooComplex)?;
    let [tag] = take(rest)?;
    Ok(match tag {
        TAG_NO_OP => DpEvent::NoOp,
        TAG_NON_PRIVATE => DpEvent::NonPrivate,
        TAG_GAUSSIAN => DpEvent::Gaussian {
            noise_multiplier: f64::from_le_bytes(take(rest)?),
        },
        TAG_POISSON_SAMPLED => DpEvent::PoissonSampled {
            sampling_probability: f64::from_le_bytes(take(rest)?),
            event: Box::new(decode_at(rest, depth)?),
        },
        TAG_TRUNCATED_SUBSAMPLED_GAUSSIAN => DpEvent::TruncatedSubsampledGaussian {
            dataset_size: u64::from_le_bytes(take(rest)?),
            sampling_probability: f64::from_le_bytes(take(rest)?),
            truncated_batch_size: u64::from_le_bytes(take(rest)?),
            noise_multiplier: f64::from_le_bytes(take(rest)?),
        },
        TAG_SELF_COMPOSED => {
            let count = u64::from_le_bytes(take(rest)?);
            DpEvent::SelfComposed {
                event: Box::new(decode_at(rest, depth)?),
                count,
            }
        }
        TAG_BANDED => {
            let bands = u64::from_le_bytes(take(rest)?);
            let steps = u64::from_le_bytes(take(rest)?);
            let event = Box::new(decode_at(rest, depth)?);
            DpEvent::Banded { bands, steps, event }
        }
        TAG_COMPOSED => {
            let count = u64::from_le_bytes(take(rest)?);
            if count > MAX_COMPOSED as u64 {
                return Err(EventError::TooComplex);
            }
            let events = (0..count)
                .map(|_| decode_at(rest, depth))
                .collect::<Result<_, _>>()?;
            DpEvent::Composed { events }
        }
        TAG_LAPLACE => DpEvent::Laplace {
            noise_multiplier: f64::from_le_bytes(take(rest)?),
        },
        TAG_HISTOGRAMS => DpEvent::Histograms {
            histograms: u64::from_le_bytes(take(rest)?),
            standard_deviation: f64::from_le_bytes(take(rest)?),
        },
        _ => return Err(EventError::Malformed),
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], EventError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(EventError::Malformed)?;
    *rest = tail;
    Ok(*head)
}

/// For `#[serde(with)]`: the pinned bytes in binary formats, the event's own JSON for people.
pub(crate) mod pinned {
    use super::{DpEvent, decode, encode};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(event: &DpEvent, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            event.serialize(serializer)
        } else {
            encode(event).serialize(serializer)
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DpEvent, D::Error> {
        if deserializer.is_human_readable() {
            return DpEvent::deserialize(deserializer);
        }
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        decode(&bytes).map_err(serde::de::Error::custom)
    }
}

/// Deepest nesting of events.
pub const MAX_DEPTH: u32 = 8;
/// Most events in one `Composed`.
pub const MAX_COMPOSED: usize = 64;

const TAG_NO_OP: u8 = 0;
const TAG_NON_PRIVATE: u8 = 1;
const TAG_GAUSSIAN: u8 = 2;
const TAG_POISSON_SAMPLED: u8 = 3;
const TAG_TRUNCATED_SUBSAMPLED_GAUSSIAN: u8 = 4;
const TAG_SELF_COMPOSED: u8 = 5;
const TAG_COMPOSED: u8 = 6;
const TAG_LAPLACE: u8 = 7;
const TAG_HISTOGRAMS: u8 = 8;
const TAG_BANDED: u8 = 9;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events() -> impl Strategy<Value = DpEvent> {
        let leaf = prop_oneof![
            Just(DpEvent::NoOp),
            (0.1f64..10.0).prop_map(|noise_multiplier| DpEvent::Gaussian { noise_multiplier }),
            (0.1f64..10.0).prop_map(|noise_multiplier| DpEvent::Laplace { noise_multiplier }),
            (any::<u64>(), 0.1f64..10.0).prop_map(|(histograms, standard_deviation)| DpEvent::Histograms {
                histograms,
                standard_deviation
            }),
            (any::<u64>(), 0.0f64..=1.0, any::<u64>(), 0.1f64..10.0).prop_map(
                |(dataset_size, sampling_probability, truncated_batch_size, noise_multiplier)| {
                    DpEvent::TruncatedSubsampledGaussian {
                        dataset_size,
                        sampling_probability,
                        truncated_batch_size,
                        noise_multiplier,
                    }
                }
            ),
        ];
        leaf.prop_recursive(4, 16, 3, |inner| {
            prop_oneof![
                (inner.clone(), any::<u64>()).prop_map(|(event, count)| DpEvent::SelfComposed {
                    event: Box::new(event),
                    count
                }),
                (inner.clone(), 1..u64::MAX, any::<u64>()).prop_map(|(event, bands, steps)| {
                    DpEvent::Banded {
                        bands,
                        steps,
                        event: Box::new(event),
                    }
                }),
                (inner.clone(), 0.0f64..=1.0).prop_map(|(event, sampling_probability)| {
                    DpEvent::PoissonSampled {
                        sampling_probability,
                        event: Box::new(event),
                    }
                }),
                prop::collection::vec(inner, 0..3).prop_map(|events| DpEvent::Composed { events }),
            ]
        })
    }

    proptest! {
        #[test]
        fn encoding_round_trips(event in events()) {
            check(&event).unwrap();
            let bytes = encode(&event);
            prop_assert_eq!(decode(&bytes).unwrap(), event);
            prop_assert!(decode(&bytes[..bytes.len() - 1]).is_err());
            prop_assert!(decode(&[&bytes[..], &[0]].concat()).is_err());
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(0u8..10, 0..200)) {
            if let Ok(event) = decode(&bytes) {
                prop_assert_eq!(encode(&event), bytes);
            }
        }
    }

    /// What ledgers hold: tag, then fields, little-endian.
    #[test]
    fn bytes_once_defined_never_change_their_meaning() {
        let one = 1.0_f64.to_le_bytes().to_vec();
        let seven = 7_u64.to_le_bytes().to_vec();
        let gaussian = DpEvent::Gaussian {
            noise_multiplier: 1.0,
        };
        for (event, bytes) in [
            (DpEvent::NoOp, vec![0]),
            (DpEvent::NonPrivate, vec![1]),
            (gaussian.clone(), [vec![2], one.clone()].concat()),
            (
                gaussian.clone().sampled(1.0),
                [vec![3], one.clone(), vec![2], one.clone()].concat(),
            ),
            (
                DpEvent::TruncatedSubsampledGaussian {
                    dataset_size: 7,
                    sampling_probability: 1.0,
                    truncated_batch_size: 7,
                    noise_multiplier: 1.0,
                },
                [vec![4], seven.clone(), one.clone(), seven.clone(), one.clone()].concat(),
            ),
            (
                gaussian.clone().repeated(7),
                [vec![5], seven.clone(), vec![2], one.clone()].concat(),
            ),
            (
                DpEvent::Composed {
                    events: vec![DpEvent::NoOp; 7],
                },
                [vec![6], seven.clone(), vec![0; 7]].concat(),
            ),
            (
                DpEvent::Laplace {
                    noise_multiplier: 1.0,
                },
                [vec![7], one.clone()].concat(),
            ),
            (
                DpEvent::Histograms {
                    histograms: 7,
                    standard_deviation: 1.0,
                },
                [vec![8], seven.clone(), one.clone()].concat(),
            ),
            (
                DpEvent::Banded {
                    bands: 7,
                    steps: 7,
                    event: Box::new(gaussian),
                },
                [vec![9], seven.clone(), seven, vec![2], one].concat(),
            ),
        ] {
            assert_eq!(encode(&event), bytes, "{event:?}");
            assert_eq!(decode(&bytes).unwrap(), event);
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let mut bytes = Vec::new();
        for _ in 0..100_000 {
            bytes.extend([TAG_POISSON_SAMPLED, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(decode(&bytes), Err(EventError::TooComplex));
        let mut event = DpEvent::NoOp;
        for _ in 0..MAX_DEPTH {
            event = DpEvent::SelfComposed {
                event: Box::new(event),
                count: 1,
            };
        }
        assert_eq!(check(&event), Err(EventError::TooComplex));
    }

    #[test]
    fn refuses_parameters_no_mechanism_has() {
        for noise_multiplier in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(check(&DpEvent::Gaussian { noise_multiplier }).is_err());
        }
        for sampling_probability in [-0.1, 1.1, f64::NAN] {
            assert!(
                check(&DpEvent::PoissonSampled {
                    sampling_probability,
                    event: Box::new(DpEvent::NoOp)
                })
                .is_err()
            );
        }
        let no_bands = DpEvent::Banded {
            bands: 0,
            steps: 1,
            event: Box::new(DpEvent::NoOp),
        };
        assert!(matches!(
            check(&no_bands),
            Err(EventError::Parameter {
                parameter: "bands",
                ..
            })
        ));
        assert_eq!(check(&DpEvent::NonPrivate), Err(EventError::NonPrivate));
    }
}
