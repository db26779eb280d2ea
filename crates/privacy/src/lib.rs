//! Differential privacy as pure maths: events, accountants, calibration, noise and sampling. No I/O.
//!
//! In call order: [`event`] (what a mechanism is) → accountants (what it costs) → calibration
//! (how much noise a price needs) → sampling and noise (what the trainer draws).
#![forbid(unsafe_code)]

pub mod event;
