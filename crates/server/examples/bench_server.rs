//! The server's side of `make bench`, driven by benches/server.py: one word a line on standard input, the seconds it
//! took on standard output.
//!
//! - `upload`: a dataset through client, TLS, contract checks and sealing to its ledger entry, on a server whose data
//!   lies in memory (/dev/shm);
//! - `upload-to-disk`: the same on a server whose data lies in the temporary folder;
//! - `disk`: the same bytes written there in blocks of 1 MiB, each made durable, as the vault does;
//! - `tls`: the same bytes over a bare TLS 1.3 connection on the loopback, to the last byte's acknowledgement;
//! - `gcm`: the same bytes sealed with AES-256-GCM in memory;
//! - `run`: a fixed run through the server, as `START RUN`: from StartRun's answer to the first record, and from
//!   there to the committed end;
//! - `bare`: the very same job and records given to a trainer process by hand, as `START RUN` too.
//!
//! Usage: `bench_server TRAINER STANDIN MODEL.pt2`. The stand-in records the job that `bare` replays.

use bastionai_client::datasets::{DatasetKind, MayTrain, NewDataset, Policy};
use bastionai_client::runs::{
    Clipping, Compute, LossRelease, NoiseMode, Optimizer, Privacy, RunSpec, RunState, Schedule,
};
use bastionai_client::session::AppraisedPeer;
use bastionai_client::{
    AppraisalPolicy, ConnectOptions, DataContract, HeadMemory, Identity, RecordBatch, connect,
};
use bastionai_server::{Config, Server};
use bastionai_wire::trainer::{Report, TRAINER_ENVIRONMENT, read_message};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// 16384 records of 784 f32 and a label: 51.5 MB.
const ROWS: u64 = 16_384;
const WIDTH: usize = 784;
const BATCH: u64 = 1_024;
/// Steps of the fixed run.
const STEPS: u64 = 4_000;
/// What is sealed at once, as the vault does.
const BLOCK: usize = 1 << 20;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let (Some(trainer), Some(standin), Some(model)) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: bench_server TRAINER STANDIN MODEL.pt2".into());
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let directory = tempfile::tempdir()?;
        let job = record(directory.path(), &standin, &model).await?;
        let memory = tempfile::tempdir_in("/dev/shm")?;
        let bench = Bench::new(memory.path(), trainer.clone(), &model).await?;
        let on_disk = Bench::new(&directory.path().join("disk"), trainer.clone(), &model).await?;
        println!("{} bytes, {STEPS} steps", bench.bytes());
        for line in std::io::stdin().lock().lines() {
            match line?.as_str() {
                "upload" => println!("{}", bench.upload().await?),
                "upload-to-disk" => println!("{}", on_disk.upload().await?),
                "disk" => println!("{}", bench.disk(directory.path())?),
                "tls" => println!("{}", bench.tls().await?),
                "gcm" => println!("{}", bench.gcm()?),
                "run" => println!("{}", bench.run().await?),
                "bare" => println!("{}", bare(&trainer, &job)?),
                other => return Err(format!("no such measurement: {other}").into()),
            }
        }
        Ok(())
    })
}

/// Runs the fixed run once under the stand-in, which writes down what it was sent.
async fn record(directory: &Path, standin: &Path, model: &Path) -> Outcome<Vec<u8>> {
    let link = directory.join("record-0");
    std::os::unix::fs::symlink(std::fs::canonicalize(standin)?, &link)?;
    let bench = Bench::new(&directory.join("recorded"), link.clone(), model).await?;
    bench.run().await?;
    Ok(std::fs::read(link.with_file_name("record.bin"))?)
}

struct Bench {
    peer: AppraisedPeer,
    model: Vec<u8>,
    batches: Vec<RecordBatch>,
}

impl Bench {
    async fn new(directory: &Path, trainer: PathBuf, model: &Path) -> Outcome<Self> {
        let mut config = Config::insecure_development(directory.join("data"));
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.trainer.path = Some(trainer);
        config.trainer.threads = 1;
        let server = Server::start(config).await?;
        let address = server.address().to_string();
        tokio::spawn(server.run_until(std::future::pending()));
        let session = connect(&address, &Identity::generate()?, &ConnectOptions::default()).await?;
        let policy = AppraisalPolicy::insecure_development();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
        Ok(Self {
            peer: session.appraise(&policy, now, &HeadMemory::in_process()).await?,
            model: std::fs::read(model)?,
            batches: (0..ROWS / BATCH).map(images).collect(),
        })
    }

    fn bytes(&self) -> usize {
        self.batches
            .iter()
            .flat_map(|batch| &batch.columns)
            .map(Vec::len)
            .sum()
    }

    async fn upload(&self) -> Outcome<f64> {
        let new = NewDataset {
            name: format!("images-{}", nanoseconds()?),
            kind: DatasetKind::Synthetic,
            contract: DataContract::parse_json(image_contract().as_bytes())?,
            policy: free_policy(),
        };
        let batches = self.batches.clone();
        let start = Instant::now();
        self.peer.upload_dataset(&new, batches, &mut |_| {}).await?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Handshake apart: sessions live longer than uploads.
    async fn tls(&self) -> Outcome<f64> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate)?;
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let expected = self.bytes();
        let receiving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await?;
            let mut stream = TlsAcceptor::from(Arc::new(server)).accept(stream).await?;
            let mut buffer = vec![0; 64 << 10];
            let mut received = 0;
            while received < expected {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    length => received += length,
                }
            }
            stream.write_all(&[1]).await?;
            stream.flush().await
        });
        let stream = TcpStream::connect(address).await?;
        let connector = TlsConnector::from(Arc::new(client));
        let mut stream = connector
            .connect(ServerName::try_from("localhost")?, stream)
            .await?;
        let start = Instant::now();
        for column in self.batches.iter().flat_map(|batch| &batch.columns) {
            stream.write_all(column).await?;
        }
        stream.flush().await?;
        stream.read_exact(&mut [0]).await?;
        let taken = start.elapsed().as_secs_f64();
        receiving.await??;
        Ok(taken)
    }

    fn gcm(&self) -> Outcome<f64> {
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(|_| "no key")?;
        let key = LessSafeKey::new(key);
        let mut columns: Vec<Vec<u8>> = self
            .batches
            .iter()
            .flat_map(|batch| batch.columns.clone())
            .collect();
        let start = Instant::now();
        let blocks = columns.iter_mut().flat_map(|column| column.chunks_mut(BLOCK));
        for (count, block) in (0u64..).zip(blocks) {
            let mut nonce = [0; 12];
            nonce[..8].copy_from_slice(&count.to_le_bytes());
            let nonce = Nonce::assume_unique_for_key(nonce);
            let tag = key
                .seal_in_place_separate_tag(nonce, Aad::empty(), block)
                .map_err(|_| "not sealed")?;
            std::hint::black_box(&tag);
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn disk(&self, directory: &Path) -> Outcome<f64> {
        let folder = tempfile::tempdir_in(directory)?;
        let columns = self.batches.iter().flat_map(|batch| &batch.columns);
        let start = Instant::now();
        for (index, block) in columns.flat_map(|column| column.chunks(BLOCK)).enumerate() {
            let mut file = std::fs::File::create(folder.path().join(index.to_string()))?;
            file.write_all(block)?;
            file.sync_data()?;
        }
        Ok(start.elapsed().as_secs_f64())
    }

    async fn run(&self) -> Outcome<String> {
        let new = NewDataset {
            name: format!("records-{}", nanoseconds()?),
            kind: DatasetKind::Synthetic,
            contract: DataContract::parse_json(record_contract().as_bytes())?,
            policy: free_policy(),
        };
        let dataset = self
            .peer
            .upload_dataset(&new, vec![small_records()], &mut |_| {})
            .await?;
        let model = self.peer.upload_model("mlp", &self.model, &mut |_| {}).await?;
        let spec = RunSpec {
            model_id: model,
            initial_weights: None,
            ema_decay: None,
            tail_average: None,
            bands: Default::default(),
            keep_steps: vec![],
            keep_every: None,
            dataset_ids: vec![dataset.id],
            input_columns: vec!["x".into(), "y".into()],
            model_name: "mlp".into(),
            batch_size: 16,
            records_per_unit: None,
            max_batch_size: 0,
            steps: STEPS,
            max_grad_norm: 1.0,
            clipping: Clipping::Flat,
            compute: Compute::Float32,
            noise_mode: NoiseMode::Standard,
            privacy: Privacy::NoiseMultiplier(1.0),
            target_delta: None,
            schedule: Schedule::default(),
            loss_release: Some(LossRelease {
                max_loss: 4.0,
                share: 0.05,
            }),
            optimizer: Optimizer::Sgd {
                lr: 0.1,
                momentum: 0.0,
                dampening: 0.0,
                weight_decay: 0.0,
                nesterov: false,
            },
        };
        let quote = self.peer.price(&spec).await?;
        let start = Instant::now();
        let run = self.peer.start_run(quote.run_digest).await?;
        let mut watch = self.peer.watch_run(run.id, 0).await?;
        let mut running = None;
        let mut last = RunState::Queued;
        while let Some(progress) = watch.next().await? {
            last = progress.run.state;
            if last != RunState::Queued {
                running.get_or_insert_with(Instant::now);
            }
        }
        let running = running.ok_or("the run never started")?;
        if last != RunState::Succeeded {
            return Err("the run did not succeed".into());
        }
        Ok(format!(
            "{} {}",
            (running - start).as_secs_f64(),
            running.elapsed().as_secs_f64()
        ))
    }
}

/// The recorded job and records, straight into a trainer.
fn bare(trainer: &Path, job: &[u8]) -> Outcome<String> {
    let start = Instant::now();
    let mut child = Command::new(trainer)
        .env_clear()
        .envs(TRAINER_ENVIRONMENT)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut input = child.stdin.take().ok_or("no stdin")?;
    let job = job.to_vec();
    let writing = std::thread::spawn(move || input.write_all(&job).map(|()| input));
    let mut output = BufReader::new(child.stdout.take().ok_or("no stdout")?);
    let ready = match read_message::<Report>(&mut output, 1 << 20)? {
        Report::Ready => Instant::now(),
        other => return Err(format!("the trainer said {other:?}").into()),
    };
    let mut rest = Vec::new();
    output.read_to_end(&mut rest)?;
    let taken = ready.elapsed().as_secs_f64();
    drop(writing.join().map_err(|_| "the writer panicked")??);
    if !child.wait()?.success() {
        return Err("the trainer failed".into());
    }
    Ok(format!("{} {taken}", (ready - start).as_secs_f64()))
}

fn nanoseconds() -> Outcome<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())
}

fn free_policy() -> Policy {
    Policy {
        lifetime: None,
        composition: Default::default(),
        may_train: MayTrain::Anyone,
        recipients: Vec::new(),
        scientist_receives: true,
        require_hardened: false,
        expires_unix_ms: None,
        evaluation_only: false,
    }
}

fn image_contract() -> String {
    format!(
        r#"{{"version":1,"columns":[
        {{"name":"x","dtype":"f32","shape":[{WIDTH}],"domain":{{"range":{{"minimum":[0.0],"maximum":[1.0]}}}}}},
        {{"name":"y","dtype":"i64","shape":[],"domain":{{"classes":{{"names":["no","yes"]}}}}}}],
        "privacy_unit":"record","declared_size":{ROWS}}}"#
    )
}

fn record_contract() -> &'static str {
    r#"{"version":1,"columns":[
    {"name":"x","dtype":"f32","shape":[4],"domain":{"range":{"minimum":[-10.0],"maximum":[10.0]}}},
    {"name":"y","dtype":"i64","shape":[],"domain":{"classes":{"names":["benign","malignant"]}}}],
    "privacy_unit":"record","declared_size":64}"#
}

/// Made-up images: no two rows alike, none compressible.
fn images(index: u64) -> RecordBatch {
    let mut state = index + 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let x = (0..BATCH as usize * WIDTH)
        .flat_map(|_| next().to_le_bytes())
        .collect();
    let y = (0..BATCH)
        .flat_map(|row| ((row % 2) as i64).to_le_bytes())
        .collect();
    RecordBatch {
        rows: BATCH,
        columns: vec![x, y],
    }
}

fn small_records() -> RecordBatch {
    let x = (0..60 * 4)
        .flat_map(|value| (value as f32 / 100.0).to_le_bytes())
        .collect();
    let y = (0..60i64).flat_map(|row| (row % 2).to_le_bytes()).collect();
    RecordBatch {
        rows: 60,
        columns: vec![x, y],
    }
}
