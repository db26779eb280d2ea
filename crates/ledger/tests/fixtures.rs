//! Every format, byte for byte. `tests/fixtures/v1.txt` was written by version 0.1.0; a change of it is a change
//! of format: bump the version, keep reading the old one, add `v2.txt` beside it. To write a new file, run
//! with `BASTIONAI_WRITE_FIXTURES=1`.
#![allow(clippy::unwrap_used)]
mod common;

use bastionai_ledger::*;
use common::*;
use std::fmt::Write;
use std::path::Path;

fn current() -> String {
    let ledger = full_ledger();
    let mut text = String::new();
    for entry in ledger.entries() {
        writeln!(
            text,
            "entry {} {} {}",
            entry.body().kind(),
            hex::encode(entry.to_bytes()),
            entry.hash()
        )
        .unwrap();
        writeln!(text, "json {}", entry.to_json()).unwrap();
    }
    for link in ledger.extension(0).unwrap() {
        writeln!(text, "link {}", hex::encode(link.to_bytes())).unwrap();
    }
    let signed = key().sign_head(ledger.head());
    writeln!(
        text,
        "head {} {} {}",
        signed.head.entry_hash,
        signed.public_key,
        hex::encode(signed.signature)
    )
    .unwrap();
    for n in [1, 2, 3] {
        writeln!(
            text,
            "policy {}",
            ledger.dataset(&dataset_id(n)).unwrap().policy_digest()
        )
        .unwrap();
    }
    for event in events() {
        writeln!(text, "event {}", hex::encode(event::encode(&event))).unwrap();
    }
    let tensor = WeightTensor {
        names: vec!["a".into(), "b".into()],
        dtype: "float32".into(),
        shape: vec![2, 1],
        size_bytes: 8,
    };
    writeln!(
        text,
        "weights {}",
        weights_digest(&[tensor], &[1, 2, 3, 4, 5, 6, 7, 8])
    )
    .unwrap();
    let receipt = Receipt::issue(&ledger, &run_id(1), evidence(1), None, Vec::new(), T0).unwrap();
    writeln!(
        text,
        "receipt {}",
        String::from_utf8(receipt.sign(&key())).unwrap()
    )
    .unwrap();
    text
}

fn events() -> Vec<bastionai_privacy::event::DpEvent> {
    use bastionai_privacy::event::DpEvent;
    let gaussian = DpEvent::Gaussian {
        noise_multiplier: 2.0,
    };
    let sampled = DpEvent::PoissonSampled {
        sampling_probability: 0.5,
        event: Box::new(gaussian.clone()),
    };
    vec![
        DpEvent::NoOp,
        DpEvent::NonPrivate,
        DpEvent::Composed {
            events: vec![gaussian, sampled],
        },
        event(),
    ]
}

#[test]
fn formats_are_what_version_1_wrote() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1.txt");
    if std::env::var_os("BASTIONAI_WRITE_FIXTURES").is_some() {
        std::fs::write(&path, current()).unwrap();
    }
    let pinned = std::fs::read_to_string(&path).unwrap();
    for (number, (pinned, current)) in pinned.lines().zip(current().lines()).enumerate() {
        assert_eq!(pinned, current, "line {}", number + 1);
    }
    assert_eq!(pinned, current());
}

#[test]
fn pinned_bytes_still_read() {
    let pinned = include_str!("fixtures/v1.txt");
    let entries = pinned
        .lines()
        .filter_map(|line| line.strip_prefix("entry "))
        .map(|line| {
            let bytes = line.split(' ').nth(1).unwrap();
            Entry::from_bytes(&hex::decode(bytes).unwrap()).unwrap()
        });
    let ledger = Ledger::replay(entries).unwrap();
    assert_eq!(ledger.head(), full_ledger().head());
    for (line, event) in pinned
        .lines()
        .filter_map(|line| line.strip_prefix("event "))
        .zip(events())
    {
        assert_eq!(event::decode(&hex::decode(line).unwrap()).unwrap(), event);
    }
    let receipt = pinned
        .lines()
        .find_map(|line| line.strip_prefix("receipt "))
        .unwrap();
    Receipt::verify_offline(receipt.as_bytes(), &key().public_key()).unwrap();
}
