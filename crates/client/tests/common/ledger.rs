//! A ledger as far as clients see it: a chain of links, its signed head, its boot.

use bastionai_attestation::{
    Attester, BootBinding, Freshness, InsecureSimulatedAttester, RuntimeClaims, claims, insecure_simulated,
};
use bastionai_ledger::chain::{Head, Link, genesis_digest};
use bastionai_ledger::entry::{Outcome, entry_hash};
use bastionai_ledger::id::{BootId, DatasetId, Digest32, EntryHash, LedgerId, Principal, RunId};
use bastionai_ledger::key::{LedgerKey, SignedHead};
use bastionai_ledger::policy::{DatasetKind, NoiseMode, RunKind};
use bastionai_ledger::receipt::{
    AccountingStatement, DatasetStatement, RECEIPT_VERSION, Receipt, RunStatement, RuntimeEvidence,
};
use bastionai_ledger::{Delta, Epsilon, WeightTensor};
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_wire::v1;
use std::sync::Arc;

pub const LEDGER: LedgerId = LedgerId::from_bytes([5; 16]);
pub const RUN: RunId = RunId::from_bytes([7; 16]);

/// One boot of a server over one ledger.
#[derive(Clone)]
pub struct TestLedger {
    pub key: Arc<LedgerKey>,
    pub boot: [u8; 16],
    /// One byte stands for one entry.
    pub entries: Vec<u8>,
    /// The platform it runs on.
    pub attester: Arc<dyn Attester>,
}

impl TestLedger {
    pub fn new(entries: &[u8]) -> Self {
        Self {
            key: Arc::new(LedgerKey::from_seed(&[9; 32])),
            boot: [4; 16],
            entries: entries.to_vec(),
            attester: Arc::new(InsecureSimulatedAttester::new()),
        }
    }

    pub fn on(attester: &Arc<dyn Attester>) -> Self {
        Self {
            attester: attester.clone(),
            ..Self::new(&[1, 2, 3])
        }
    }

    pub fn links(&self) -> Vec<Link> {
        let link = |(index, byte): (usize, &u8)| Link {
            time_unix_ms: u64::from(*byte),
            body_digest: if index == 0 {
                genesis_digest(LEDGER)
            } else {
                Digest32::from_bytes([*byte; 32])
            },
        };
        self.entries.iter().enumerate().map(link).collect()
    }

    pub fn head(&self) -> SignedHead {
        let hash = (0u64..)
            .zip(self.links())
            .fold(EntryHash::NONE, |previous, (sequence, link)| {
                entry_hash(sequence, previous, link.time_unix_ms, link.body_digest)
            });
        self.key.sign_head(Head {
            ledger: LEDGER,
            sequence: self.entries.len() as u64,
            entry_hash: hash,
        })
    }

    pub fn wire_head(&self) -> v1::LedgerHead {
        let head = self.head();
        v1::LedgerHead {
            ledger_id: head.head.ledger.as_bytes().to_vec(),
            sequence: head.head.sequence,
            entry_hash: head.head.entry_hash.as_bytes().to_vec(),
            signature: head.signature.to_vec(),
            public_key: head.public_key.as_bytes().to_vec(),
        }
    }

    pub fn claims(&self) -> RuntimeClaims {
        let head = self.head().head;
        let mut insecure_flags = vec![claims::INSECURE_FILE_ROOT_KEY.to_owned()];
        if self.attester.media_type() == insecure_simulated::MEDIA_TYPE {
            insecure_flags.push(claims::INSECURE_SIMULATED_EVIDENCE.to_owned());
        }
        RuntimeClaims {
            server_version: "0.1.0".into(),
            root_key_provider: "InsecureFileRootKey".into(),
            insecure_flags,
            configuration_digest: [1; 32],
            trainer_digest: [2; 32],
            libtorch_digest: [3; 32],
            boot_id: self.boot,
            ledger_id: *LEDGER.as_bytes(),
            ledger_public_key: *self.key.public_key().as_bytes(),
            ledger_sequence: head.sequence,
            ledger_head: *head.entry_hash.as_bytes(),
            freshness: Freshness::None,
        }
    }

    pub fn boot_evidence(&self) -> RuntimeEvidence {
        self.evidence_of(&self.claims())
    }

    pub fn evidence_of(&self, claims: &RuntimeClaims) -> RuntimeEvidence {
        let binding = BootBinding {
            ledger_public_key: *self.key.public_key().as_bytes(),
            boot_id: self.boot,
            genesis_digest: *genesis_digest(LEDGER).as_bytes(),
            claims_sha256: claims.digest(),
        };
        let evidence = self.attester.attest(&binding.report_data()).unwrap();
        RuntimeEvidence {
            boot: BootId::from_bytes(self.boot),
            ledger_key: self.key.public_key(),
            claims: claims.to_bytes(),
            evidence_media_type: evidence.media_type,
            evidence: evidence.bytes,
        }
    }

    /// A true receipt of run [`RUN`] with these weights.
    pub fn receipt(&self, weights_digest: Digest32) -> Receipt {
        Receipt {
            version: RECEIPT_VERSION,
            issued_unix_ms: 50,
            ledger_head: self.head().head,
            freshness: bastionai_ledger::Freshness::None,
            run: RunStatement {
                started_steps: None,
                kind: RunKind::Training,
                kept: Vec::new(),
                id: RUN,
                run_digest: Digest32::from_bytes([8; 32]),
                graph_digest: Digest32::from_bytes([9; 32]),
                weights_digest: Some(weights_digest),
                scientist: Principal::from_bytes([1; 32]),
                model_name: "mlp".into(),
                outcome: Outcome::Succeeded,
                steps: 10,
                released_step: 10,
                noise_mode: NoiseMode::Standard,
                boot: BootId::from_bytes(self.boot),
                resumed_by: Vec::new(),
                reserved_unix_ms: 10,
                committed_unix_ms: 40,
            },
            datasets: vec![DatasetStatement {
                renyi: None,
                id: DatasetId::from_bytes([2; 16]),
                name: "made up".into(),
                kind: DatasetKind::Synthetic,
                owner: Principal::from_bytes([3; 32]),
                contract_digest: Digest32::from_bytes([4; 32]),
                policy_digest: Digest32::from_bytes([5; 32]),
                root: Digest32::from_bytes([6; 32]),
                declared_size: 16,
                privacy_unit: None,
                event: DpEvent::Gaussian {
                    noise_multiplier: 1.0,
                },
                relation: NeighboringRelation::AddOrRemoveOne,
                epsilon: Epsilon::ZERO,
                delta: Delta::ZERO,
                budget: None,
            }],
            accounting: AccountingStatement {
                privacy_unit: "per record, per dataset".into(),
                composition: "basic".into(),
                assumptions: vec![],
            },
            issuer: self.boot_evidence(),
            runner: None,
            resumers: Vec::new(),
        }
    }
}

/// The weights of run [`RUN`]: described, and their bytes.
pub fn weights() -> (Vec<WeightTensor>, Vec<u8>) {
    let tensor = |names: &[&str], shape: &[u64]| WeightTensor {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        dtype: "float32".into(),
        shape: shape.to_vec(),
        size_bytes: shape.iter().product::<u64>() * 4,
    };
    let tensors = vec![
        tensor(&["fc.weight", "tied"], &[2, 3]),
        tensor(&["fc.bias"], &[2]),
    ];
    (tensors, (0..32).collect())
}
