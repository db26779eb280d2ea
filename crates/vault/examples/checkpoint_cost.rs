//! What a checkpoint costs: seconds from the state in memory to state, ledger entry and values durable on this disk,
//! the checkpoint before deleted. `checkpoint_cost MIB...`; docs/design.md quotes it.
#![allow(clippy::print_stdout)]

use bastionai_ledger::*;
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_vault::*;
use std::error::Error;
use std::time::Instant;

/// Checkpoints of each size; the median is told.
const ROUNDS: u64 = 5;

fn main() -> Result<(), Box<dyn Error>> {
    for mib in std::env::args().skip(1) {
        let mib: usize = mib.parse()?;
        let (median, written) = measure(mib << 20)?;
        println!("{mib} MiB: {:.1} ms, {written:.0} MiB/s", median * 1e3);
    }
    Ok(())
}

/// Median seconds, and MiB a second.
fn measure(bytes: usize) -> Result<(f64, f64), Box<dyn Error>> {
    // Beside the build: temporary directories may lie in memory.
    let directory = tempfile::tempdir_in(std::env::current_exe()?.parent().ok_or("no directory")?)?;
    let vault = Vault::open(directory.path(), &RootKey::generate()?, VaultConfig::default(), 0)?;
    let (started, state) = (started(&vault)?, vec![0x5a; bytes]);
    let mut seconds = Vec::new();
    for step in 1..=ROUNDS {
        let begin = Instant::now();
        let checkpoint = Checkpoint {
            step,
            parts: &[&state],
        };
        vault.advance_run(
            &started,
            checkpoint,
            &[ReleasedValue {
                step,
                noisy_loss: Some(0.5),
            }],
            step,
        )?;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    Ok((median, bytes as f64 / median / f64::from(1 << 20)))
}

fn started(vault: &Vault) -> Result<StartedRun, Box<dyn Error>> {
    let key = LedgerKey::from_seed(&[7; 32]);
    let evidence = RuntimeEvidence {
        boot: vault.new_boot_id()?,
        ledger_key: key.public_key(),
        claims: Vec::new(),
        evidence_media_type: "application/example".into(),
        evidence: Vec::new(),
    };
    let boot = evidence.boot;
    vault.start_boot(
        Boot {
            evidence,
            freshness: Freshness::None,
        },
        |_| false,
        0,
    )?;
    let owner = Principal::from_bytes([1; 32]);
    let mut upload = vault.begin_upload(UploadHeader {
        name: "a".into(),
        kind: DatasetKind::Public,
        owner,
        contract_json: "{}".into(),
        declared_size: 1,
        column_bytes: vec![1],
        policy: Policy {
            lifetime: None,
            composition: Composition::Basic,
            may_train: MayTrain::Anyone,
            recipients: [].into(),
            scientist_receives: true,
            require_hardened: false,
            expires_unix_ms: None,
            freshness: Freshness::None,
            limits: RunLimits::default(),
        },
    })?;
    upload.push(1, &[[0u8]])?;
    let dataset = upload.finish(1, 0)?;
    let run = vault.new_run_id()?;
    let reserved = RunReserved {
        run,
        boot,
        run_digest: Digest32::of(b"run"),
        graph_digest: Digest32::of(b"graph"),
        scientist: owner,
        model_name: "a".into(),
        steps: ROUNDS,
        noise_mode: NoiseMode::Standard,
        charges: vec![Charge {
            dataset,
            event: DpEvent::NoOp,
            relation: NeighboringRelation::AddOrRemoveOne,
            amount: Amount::ZERO,
        }],
    };
    let order = RunOrder {
        conditions: Digest32::of(b""),
        parts: &[],
    };
    let reservation = vault.reserve_run(reserved, order, 0)?;
    Ok(vault.start_run(reservation, 0)?)
}
