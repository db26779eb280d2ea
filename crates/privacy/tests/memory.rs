//! The whole range users ask for, in a process of its own, so that its peak memory is that of the accountant.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use bastionai_privacy::accountant::{PrivacyProfile, epsilon, epsilon_lower_bound};
use bastionai_privacy::event::{DpEvent, NeighboringRelation::AddOrRemoveOne};
use bastionai_privacy::renyi;

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn extremes_are_priced_in_less_than_200_megabytes() {
    for sigma in [0.3, 1.0, 100.0] {
        for q in [1e-6, 1e-3, 0.3, 1.0] {
            for steps in [1, 100, 1_000_000] {
                for release in [
                    DpEvent::Gaussian {
                        noise_multiplier: sigma,
                    },
                    DpEvent::Laplace {
                        noise_multiplier: sigma,
                    },
                ] {
                    let event = release.sampled(q).repeated(steps);
                    let prices = [1e-12, 1e-2].map(|delta| epsilon(&event, AddOrRemoveOne, delta).unwrap());
                    assert!(
                        prices[0] >= prices[1] && prices[0].is_finite() && prices[1] >= 0.0,
                        "{event:?}: {prices:?}"
                    );
                    let moments = renyi::epsilon(&event, AddOrRemoveOne, 1e-12).unwrap();
                    assert!(
                        moments >= prices[0] * (1.0 - 1e-3) - 1e-9,
                        "{event:?}: {moments} below {}",
                        prices[0]
                    );
                }
            }
        }
    }
    let long = DpEvent::dp_sgd(0.3, 0.3, 1_000_000);
    assert!(epsilon_lower_bound(&long, AddOrRemoveOne, 1e-5).unwrap() > 0.0);
    assert!(
        PrivacyProfile::new(&long, AddOrRemoveOne, 1e-12)
            .unwrap()
            .epsilon(1e-5)
            .unwrap()
            .is_finite()
    );
    let mixed = DpEvent::Composed {
        events: (1..20)
            .map(|part| DpEvent::dp_sgd(0.5 + f64::from(part), 0.1, 10_000))
            .collect(),
    };
    assert!(epsilon(&mixed, AddOrRemoveOne, 1e-9).unwrap().is_finite());
    let peak = peak_bytes();
    println!("peak: {} MB", peak / 1_000_000);
    assert!(peak < 200_000_000, "{peak} bytes");
}
