//! Differential privacy as pure maths: events, accountants, calibration, noise and sampling. No I/O.
//!
//! In call order: [`event`] (what a mechanism is; [`specification`] reads it from a file) → [`joint`] and [`truncation`] (what the trainer's
//! mechanism adds to the textbook one) → [`accountant`] (what it costs), [`renyi`] (the same by Rényi divergences) → [`calibrate`] (how much noise
//! a price needs) → [`filter`] (how runs add up) → [`cap`], [`planner`] and [`banded`] (how large a sample may be; which batch size
//! and steps; whether noise is correlated over steps) →
//! [`sampling`], [`order`] and [`noise`] (what the trainer draws, on [`vectors`]); [`histogram`] (what an evaluation counts).
//!
//! ```
//! use bastionai_privacy::accountant::{self, PrivacyProfile};
//! use bastionai_privacy::calibrate::Target;
//! use bastionai_privacy::event::{DpEvent, NeighboringRelation::AddOrRemoveOne};
//!
//! let training = DpEvent::dp_sgd(1.0, 0.01, 10_000);
//! let epsilon = accountant::epsilon(&training, AddOrRemoveOne, 1e-5)?;
//! assert!((epsilon - 6.188).abs() < 1e-3);
//! let noise = Target::new(3.0, 1e-5).noise_multiplier(&|noise| DpEvent::dp_sgd(noise, 0.01, 10_000))?;
//! assert!((noise - 1.565).abs() < 1e-3);
//! let both = DpEvent::Composed { events: vec![training, DpEvent::Laplace { noise_multiplier: 10.0 }] };
//! assert!(PrivacyProfile::new(&both, AddOrRemoveOne, 1e-9)?.epsilon(1e-5)? > epsilon);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod accountant;
pub mod banded;
pub mod calibrate;
pub mod cap;
pub mod event;
pub mod filter;
pub mod histogram;
pub mod joint;
pub mod noise;
pub mod order;
pub mod planner;
pub mod renyi;
pub mod sampling;
pub mod sensitivity;
pub mod specification;
mod stream;
mod tails;
pub mod truncation;
pub mod vectors;
