//! A disk that can fail or lose power at any write or sync, and builders shared by the vault's tests.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use bastionai_ledger::*;
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::filter::renyi::RenyiCost;
use bastionai_privacy::filter::terms::{Order, RenyiTerms};
use bastionai_vault::*;
use redb::StorageBackend;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

pub const T0: u64 = 1_700_000_000_000;

// ---- the disk ----

/// What the disk does at its `at`-th write or sync, counted from 0 since the last power-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Power is lost: this operation and all later ones fail; what was not synced may be lost.
    PowerLoss { at: u64 },
    /// This operation alone fails, as on a full disk; the process lives on.
    Error { at: u64 },
}

/// One disk under the database file and the block store. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The database file as the process sees it.
    file: Vec<u8>,
    /// The database file as of its last sync.
    durable_file: Vec<u8>,
    /// Changes since, in order.
    pending: Vec<Change>,
    blocks: BTreeMap<(ObjectId, u64), Vec<u8>>,
    durable_blocks: BTreeMap<(ObjectId, u64), Vec<u8>>,
    /// Blocks read: index and bytes, in order.
    reads: Vec<(u64, usize)>,
    fault: Option<Fault>,
    operations: u64,
    dead: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Length(u64),
    Write(u64, Vec<u8>),
}

impl Change {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Self::Length(length) => file.resize(*length as usize, 0),
            Self::Write(offset, data) => {
                let (start, end) = (*offset as usize, *offset as usize + data.len());
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[start..end].copy_from_slice(data);
            }
        }
    }
}

/// What survives of unsynced changes when power is lost.
#[derive(Clone, Copy, Debug)]
pub enum Survival {
    Nothing,
    Everything,
    /// Each change whole, torn at a sector, or not at all; blocks likewise.
    Random(u64),
}

impl Disk {
    /// A disk that holds an empty vault. (`Vault::open` makes a database beside its name and renames it.)
    pub fn formatted() -> Self {
        let disk = Self::default();
        drop(disk.open().unwrap());
        disk.kill_process();
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Plans a fault, counted from now.
    pub fn plan(&self, fault: Option<Fault>) {
        let mut state = self.state();
        state.fault = fault;
        state.operations = 0;
    }

    /// Writes and syncs since the last plan.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// Cuts the power now, if a fault has not yet, and switches it on again.
    pub fn power_cycle(&self, survival: Survival) {
        let mut state = self.state();
        let mut random = Random(if let Survival::Random(seed) = survival {
            seed
        } else {
            0
        });
        let mut file = std::mem::take(&mut state.durable_file);
        for change in std::mem::take(&mut state.pending) {
            match (survival, &change) {
                (Survival::Nothing, _) => {}
                (Survival::Everything, _) | (Survival::Random(_), Change::Length(_)) => {
                    change.apply(&mut file)
                }
                (Survival::Random(_), Change::Write(offset, data)) => match random.below(3) {
                    0 => {}
                    1 => change.apply(&mut file),
                    _ => {
                        let kept = (random.below(data.len() as u64 / 512 + 1) * 512) as usize;
                        Change::Write(*offset, data[..kept].to_vec()).apply(&mut file);
                    }
                },
            }
        }
        let mut blocks = state.durable_blocks.clone();
        for (key, bytes) in &state.blocks {
            let kept = match survival {
                Survival::Nothing => continue,
                Survival::Everything => bytes.len(),
                Survival::Random(_) => random.below(bytes.len() as u64 + 1) as usize,
            };
            blocks.entry(*key).or_insert_with(|| bytes[..kept].to_vec());
        }
        *state = State {
            durable_file: file.clone(),
            file,
            durable_blocks: blocks.clone(),
            blocks,
            ..State::default()
        };
    }

    /// Ends the process without losing power: what was written stays.
    pub fn kill_process(&self) {
        self.power_cycle(Survival::Everything);
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> Self {
        let state = self.state();
        Self(Arc::new(Mutex::new(State {
            file: state.file.clone(),
            durable_file: state.file.clone(),
            blocks: state.blocks.clone(),
            durable_blocks: state.blocks.clone(),
            ..State::default()
        })))
    }

    pub fn file(&self) -> Vec<u8> {
        self.state().file.clone()
    }

    pub fn set_file(&self, file: Vec<u8>) {
        let mut state = self.state();
        state.durable_file = file.clone();
        state.file = file;
    }

    pub fn blocks(&self) -> BTreeMap<(ObjectId, u64), Vec<u8>> {
        self.state().blocks.clone()
    }

    pub fn set_blocks(&self, blocks: BTreeMap<(ObjectId, u64), Vec<u8>>) {
        let mut state = self.state();
        state.durable_blocks = blocks.clone();
        state.blocks = blocks;
    }

    /// Blocks read since the last call: index and bytes, in order.
    pub fn take_reads(&self) -> Vec<(u64, usize)> {
        std::mem::take(&mut self.state().reads)
    }

    pub fn objects(&self) -> BTreeSet<ObjectId> {
        self.state().blocks.keys().map(|(object, _)| *object).collect()
    }

    pub fn open(&self) -> Result<Vault, OpenError> {
        self.open_with_key(&root())
    }

    pub fn open_with_key(&self, root: &RootKey) -> Result<Vault, OpenError> {
        Vault::open_with(
            DiskFile(self.clone()),
            Box::new(DiskBlocks(self.clone())),
            root,
            config(),
            T0,
        )
    }

    /// Opens and starts a boot with this number.
    pub fn boot(&self, number: u8) -> Vault {
        let vault = self.open().unwrap();
        vault.start_boot(boot(number), |_| false, T0).unwrap();
        vault
    }
}

impl State {
    /// Counts a write or sync and fails it when the plan says so.
    fn step(&mut self) -> io::Result<()> {
        self.alive()?;
        let now = self.operations;
        self.operations += 1;
        match self.fault {
            Some(Fault::PowerLoss { at }) if now >= at => {
                self.dead = true;
                self.alive()
            }
            Some(Fault::Error { at }) if now == at => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "no space left (planned)",
            )),
            _ => Ok(()),
        }
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead {
            Err(io::Error::other("power lost (planned)"))
        } else {
            Ok(())
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.file);
        self.pending.push(change);
    }
}

#[derive(Debug)]
struct DiskFile(Disk);

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        let state = self.0.state();
        state.alive()?;
        Ok(state.file.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.state();
        state.alive()?;
        let bytes = state.file.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.0.state();
        state.step()?;
        state.change(Change::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.state();
        state.step()?;
        state.pending.clear();
        state.durable_file = state.file.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.0.state();
        state.step()?;
        state.change(Change::Write(offset, data.to_vec()));
        Ok(())
    }
}

struct DiskBlocks(Disk);

impl BlockStore for DiskBlocks {
    fn put(&self, object: ObjectId, index: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.state();
        state.step()?;
        state.blocks.insert((object, index), bytes.to_vec());
        Ok(())
    }

    fn sync(&self, object: ObjectId) -> io::Result<()> {
        let mut state = self.0.state();
        state.step()?;
        let synced: Vec<_> = state
            .blocks
            .range((object, 0)..=(object, u64::MAX))
            .map(|(key, value)| (*key, value.clone()))
            .collect();
        state.durable_blocks.extend(synced);
        Ok(())
    }

    fn get(&self, object: ObjectId, index: u64, max_bytes: u64) -> io::Result<Vec<u8>> {
        let mut state = self.0.state();
        state.alive()?;
        let block = state
            .blocks
            .get(&(object, index))
            .ok_or(io::ErrorKind::NotFound)?
            .clone();
        state.reads.push((index, block.len()));
        if block.len() as u64 > max_bytes {
            Err(io::ErrorKind::InvalidData.into())
        } else {
            Ok(block)
        }
    }

    fn delete(&self, object: ObjectId) -> io::Result<()> {
        let mut state = self.0.state();
        state.step()?;
        // Worst case: a deletion is durable at once.
        state.blocks.retain(|(owner, _), _| *owner != object);
        state.durable_blocks.retain(|(owner, _), _| *owner != object);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<ObjectId>> {
        self.0.state().alive()?;
        Ok(self.0.objects().into_iter().collect())
    }
}

/// SplitMix64: enough for choosing faults, and reproducible from a printed seed.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

// ---- builders ----

pub fn root() -> RootKey {
    RootKey::from_bytes([0x42; 32])
}

/// Small blocks and segments, so that small datasets have many of both.
pub fn config() -> VaultConfig {
    VaultConfig {
        block_bytes: 64,
        blocks_per_segment: 3,
        object_block_bytes: 64,
        cache_bytes: 1 << 20,
    }
}

pub fn conditions() -> Digest32 {
    Digest32::of(b"this very program")
}

/// What every run of these tests is ordered with: 150 bytes in three parts.
pub fn order() -> RunOrder<'static> {
    RunOrder {
        conditions: conditions(),
        parts: &[&[0xaa; 100], &[], &[0xbb; 50]],
    }
}

pub fn order_bytes() -> Vec<u8> {
    order().parts.concat()
}

/// The checkpoint of a step says which it is in every byte; as large as `weights`.
pub fn checkpoint(step: u64) -> Checkpoint<'static> {
    let state: &'static [u8] = Box::leak(vec![step as u8; 150].into_boxed_slice());
    let (one, other) = state.split_at(70);
    Checkpoint {
        step,
        parts: Box::leak(Box::new([one, other])),
    }
}

pub fn principal(n: u8) -> Principal {
    Principal::from_bytes([n; 32])
}

pub fn scientist() -> Principal {
    principal(100)
}

pub fn amount(epsilon: &str, delta: &str) -> Amount {
    Amount::new(epsilon.parse().unwrap(), delta.parse().unwrap())
}

pub fn lifetime() -> Amount {
    amount("6", "1e-5")
}

pub fn key() -> LedgerKey {
    LedgerKey::from_seed(&[7; 32])
}

pub fn boot(number: u8) -> Boot {
    Boot {
        evidence: RuntimeEvidence {
            boot: BootId::from_bytes([number; 16]),
            ledger_key: key().public_key(),
            claims: format!("claims {number}").into_bytes(),
            evidence_media_type: "application/vnd.bastionai.test".into(),
            evidence: vec![number; 5],
        },
        freshness: Freshness::None,
    }
}

pub fn policy() -> Policy {
    Policy {
        lifetime: Some(lifetime()),
        composition: Composition::Basic,
        may_train: MayTrain::Anyone,
        recipients: [principal(200)].into(),
        scientist_receives: true,
        require_hardened: false,
        expires_unix_ms: None,
        freshness: Freshness::None,
        limits: RunLimits {
            max_starts_per_day: 1_000_000,
            max_failed_runs: 1_000_000,
        },
    }
}

/// As [`policy`], and runs add up in Rényi divergences at orders 4 and 16.
pub fn renyi_policy() -> Policy {
    let orders = [4_000, 16_000].map(|order| Order::from_thousandths(order).unwrap());
    Policy {
        composition: Composition::Renyi(RenyiTerms::new(&orders, &[]).unwrap()),
        ..policy()
    }
}

/// Rényi charges of a run for those of its datasets that have them, one for each at each order.
pub fn renyi_charges(vault: &Vault, datasets: &[DatasetId], rho: Rho) -> Vec<RenyiCharge> {
    let has_account = |dataset: &&DatasetId| {
        vault.read(|ledger| {
            ledger
                .dataset(dataset)
                .is_some_and(|known| known.renyi_account().is_some())
        })
    };
    let charge = |dataset: &DatasetId| RenyiCharge {
        dataset: *dataset,
        cost: RenyiCost::new(vec![rho; 2]),
    };
    datasets.iter().filter(has_account).map(charge).collect()
}

/// Columns of 4 and 10 bytes, declared size 32: eight blocks of 4 rows in three segments.
pub fn header(name: &str) -> UploadHeader {
    UploadHeader {
        name: name.into(),
        kind: DatasetKind::Private,
        owner: principal(1),
        contract_json: "{\"version\":1}".into(),
        declared_size: 32,
        column_bytes: vec![4, 10],
        policy: policy(),
    }
}

/// Reproducible rows of the two columns above.
pub fn rows(count: u64, seed: u64) -> Vec<Vec<u8>> {
    let mut random = Random(seed);
    [4, 10]
        .map(|width| (0..count * width).map(|_| random.next() as u8 | 1).collect())
        .to_vec()
}

pub fn upload(vault: &Vault, name: &str, count: u64, seed: u64) -> Result<DatasetId, UploadError> {
    upload_under(vault, header(name), count, seed)
}

pub fn upload_under(
    vault: &Vault,
    header: UploadHeader,
    count: u64,
    seed: u64,
) -> Result<DatasetId, UploadError> {
    let mut upload = vault.begin_upload(header)?;
    let columns = rows(count, seed);
    // Two batches that do not end at a block.
    let cut = count * 2 / 5;
    let [first, second]: [Vec<&[u8]>; 2] = [
        columns
            .iter()
            .zip([4, 10])
            .map(|(column, width)| &column[..(cut * width) as usize])
            .collect(),
        columns
            .iter()
            .zip([4, 10])
            .map(|(column, width)| &column[(cut * width) as usize..])
            .collect(),
    ];
    upload.push(cut, &first)?;
    upload.push(count - cut, &second)?;
    upload.finish(count, T0)
}

pub fn run_on(vault: &Vault, datasets: &[DatasetId], amount: Amount) -> RunReserved {
    let boot = vault.read(|ledger| ledger.current_boot().unwrap().boot);
    let charge = |dataset: &DatasetId| Charge {
        dataset: *dataset,
        event: DpEvent::SelfComposed {
            event: Box::new(DpEvent::Gaussian {
                noise_multiplier: 3.0,
            }),
            count: 10,
        },
        relation: NeighboringRelation::AddOrRemoveOne,
        amount,
    };
    RunReserved {
        run: vault.new_run_id().unwrap(),
        boot,
        run_digest: Digest32::of(b"run"),
        graph_digest: Digest32::of(b"graph"),
        scientist: scientist(),
        model_name: "mlp".into(),
        steps: 10,
        noise_mode: NoiseMode::Standard,
        charges: datasets.iter().map(charge).collect(),
    }
}

/// Weights of 150 bytes (three blocks) that follow from the seed.
pub fn weights(seed: u64) -> Weights {
    let mut random = Random(seed);
    let data: Vec<u8> = (0..150).map(|_| random.next() as u8).collect();
    let tensors = [100, 50].map(|size_bytes| WeightTensor {
        names: vec![format!("w{size_bytes}")],
        dtype: "uint8".into(),
        shape: vec![size_bytes],
        size_bytes,
    });
    Weights {
        tensors: tensors.to_vec(),
        data: data.into(),
    }
}

pub fn value(step: u64) -> ReleasedValue {
    ReleasedValue {
        step,
        noisy_loss: (!step.is_multiple_of(3)).then_some(step as f64 / 7.0),
    }
}

pub fn budget(vault: &Vault, dataset: &DatasetId) -> Budget {
    vault.read(|ledger| ledger.dataset(dataset).unwrap().budget().unwrap())
}
