//! What the command line accepts: one struct per verb, nothing decided here.

use crate::appraisal::AppraisalArguments;
use crate::verb::measure::MeasureVerb;
use crate::verb::release_manifest::ReleaseManifestArguments;
use bastionai_client::{Bands, Metric};
use bastionai_privacy::event::{NeighboringRelation, UnpricedRelation};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Confidential deep learning: attested, differentially private training on data nobody may see.
#[derive(Debug, Parser)]
#[command(name = "bastionai", version, max_term_width = 110)]
pub(crate) struct Arguments {
    /// Machine-readable output: one JSON value on stdout.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make an Ed25519 identity; prints its principal (the fingerprint others name in policies).
    Keygen(KeygenArguments),
    /// Run the server inside its trusted execution environment.
    Serve(ServeArguments),
    /// Configuration of the server.
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Ask a live server for evidence and judge it under your terms: exit 0 accepted, 2 refused.
    Appraise(AppraiseArguments),
    /// Compute what honest hardware will report of a machine, from the files that it boots: reference values for a policy.
    #[command(subcommand)]
    Measure(MeasureVerb),
    /// Sign the reference values of a release, for `appraise --manifest`.
    ReleaseManifest(ReleaseManifestArguments),
    /// Prove that each sample's loss in an exported model depends on that sample alone, or say why not.
    Check(CheckArguments),
    /// The ε of DP-SGD or of any composition: a tight upper bound by privacy loss distributions.
    Epsilon(EpsilonArguments),
    /// The noise, sample rate, steps or epochs that meet a target (ε, δ); never overshoots.
    Calibrate(CalibrateArguments),
    /// Check, upload, list, withdraw and remove datasets.
    #[command(subcommand)]
    Dataset(DatasetVerb),
    /// Start, watch, list and fetch training runs.
    #[command(subcommand)]
    Run(RunVerb),
    /// The server's budget ledger.
    #[command(subcommand)]
    Ledger(LedgerVerb),
    /// Receipts, checked offline by anyone.
    #[command(subcommand)]
    Receipt(ReceiptVerb),
    /// Print a shell's completion script, e.g. `source <(bastionai completions bash)`.
    Completions(CompletionsArguments),
    /// Write manual pages, one a verb, into a folder.
    Man(ManArguments),
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArguments {
    /// The shell.
    #[arg(value_enum)]
    pub(crate) shell: ShellArgument,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ShellArgument {
    /// GNU bash.
    Bash,
    /// Z shell.
    Zsh,
    /// fish.
    Fish,
}

impl From<ShellArgument> for clap_complete::Shell {
    fn from(shell: ShellArgument) -> Self {
        match shell {
            ShellArgument::Bash => Self::Bash,
            ShellArgument::Zsh => Self::Zsh,
            ShellArgument::Fish => Self::Fish,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ManArguments {
    /// The folder; made if it is missing.
    pub(crate) folder: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct AppraiseArguments {
    /// Host and port of the server.
    #[arg(env = "BASTIONAI_HOST", default_value = "127.0.0.1:7443")]
    pub(crate) host: String,
    /// Your identity; by default a key made for this one session: looking needs no name.
    #[arg(long, env = "BASTIONAI_IDENTITY")]
    pub(crate) identity: Option<PathBuf>,
    /// Remembers the highest ledger head seen of each server, to detect rollback.
    #[arg(long, env = "BASTIONAI_HEADS")]
    pub(crate) heads: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) appraisal: AppraisalArguments,
}

#[derive(Debug, Args)]
pub(crate) struct KeygenArguments {
    /// Where to write the key (PKCS#8 PEM, mode 0600); an existing file is never overwritten.
    #[arg(long, short, default_value = "identity.pem")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// TOML configuration; flags override it.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Address to listen on, e.g. 0.0.0.0:7443; port 0 picks a free one.
    #[arg(long)]
    pub(crate) listen: Option<String>,
    /// Where sealed data and the ledger live.
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Who vouches for this server: auto (the TEE of this machine), snp, tdx, azure, or insecure-simulated, which proves nothing.
    #[arg(long)]
    pub(crate) attester: Option<String>,
    /// The trainer binary; by default `bastionai-trainer` beside this one.
    #[arg(long)]
    pub(crate) trainer: Option<PathBuf>,
    /// Written with the bound address once the server is ready.
    #[arg(long)]
    pub(crate) ready_file: Option<PathBuf>,
    /// Form of the log on stderr.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line an event, for people.
    Text,
    /// A JSON object an event.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Read a configuration and say everything that is wrong with it.
    Check {
        /// The TOML file.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    /// A `.pt2` archive, as `bastionai.export` writes it.
    pub(crate) model: PathBuf,
    /// The data contract (JSON) whose columns the model takes; without it, the archive's own example
    /// shapes are assumed, axis 0 being the batch.
    #[arg(long)]
    pub(crate) contract: Option<PathBuf>,
    /// Contract columns in the order of the model's inputs, comma-separated; by default the contract's order.
    #[arg(long, value_delimiter = ',', requires = "contract")]
    pub(crate) columns: Vec<String>,
}

/// How prices are computed.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct AccountingArguments {
    /// By privacy loss distributions (`pld`, tight) or Rényi divergences (`rdp`, as most papers report).
    #[arg(long, value_enum, default_value_t = AccountantArgument::Pld)]
    pub(crate) accountant: AccountantArgument,
    /// Which datasets are neighbours: only `add_or_remove_one` has prices.
    #[arg(long, default_value = "add_or_remove_one", value_parser = relation)]
    pub(crate) relation: NeighboringRelation,
}

fn relation(name: &str) -> Result<NeighboringRelation, UnpricedRelation> {
    name.parse()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AccountantArgument {
    /// Privacy loss distributions.
    Pld,
    /// Rényi differential privacy.
    Rdp,
}

#[derive(Debug, Args)]
pub(crate) struct EpsilonArguments {
    /// Noise standard deviation over the L2 sensitivity.
    #[arg(long, required_unless_present_any = ["csv", "composition"])]
    pub(crate) noise_multiplier: Option<f64>,
    /// Probability with which each record enters a step's sample.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) sample_rate: f64,
    /// Number of steps.
    #[arg(long, default_value_t = 1)]
    pub(crate) steps: u64,
    /// Target δ; of a --profile the smallest, by default 1e-10.
    #[arg(long, required_unless_present_any = ["csv", "profile"])]
    pub(crate) delta: Option<f64>,
    /// Cap of the sample (truncated Poisson); needs --dataset-size.
    #[arg(long, requires = "dataset_size")]
    pub(crate) truncated_batch_size: Option<u64>,
    /// Upper bound on the number of records, for the truncation's tail.
    #[arg(long, requires = "truncated_batch_size")]
    pub(crate) dataset_size: Option<u64>,
    #[command(flatten)]
    pub(crate) accounting: AccountingArguments,
    /// Also say an ε that certainly does not suffice: how tight the answer is.
    #[arg(long, conflicts_with = "csv")]
    pub(crate) lower_bound: bool,
    /// The whole curve instead of one ε: δ from ½ down by equal factors, with its ε, composed once. `--profile=csv` for a
    /// CSV file, --json for JSON.
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "table", require_equals = true,
          conflicts_with_all = ["csv", "lower_bound"])]
    pub(crate) profile: Option<ProfileForm>,
    /// Points of a --profile.
    #[arg(long, requires = "profile", default_value_t = 50, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub(crate) points: u32,
    /// Price what a JSON file (`-`: stdin) lists: `[{"type":"sg","sigma":1.1,"q":0.01,"steps":5000}, …]`; further types
    /// are gaussian (sigma, count), laplace (scale, count), sl (scale, q, steps), tsg (sigma, q, steps, size, cap) and
    /// histograms (histograms, deviation, count).
    #[arg(long, conflicts_with_all = ["noise_multiplier", "sample_rate", "steps", "truncated_batch_size", "dataset_size", "csv"])]
    pub(crate) composition: Option<PathBuf>,
    /// Read queries from a CSV file (`-`: stdin) with columns sigma,q,steps,delta; writes the same rows plus eps.
    #[arg(long, conflicts_with_all = ["noise_multiplier", "delta"])]
    pub(crate) csv: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProfileForm {
    /// Columns for people.
    Table,
    /// Comma-separated, with a header.
    Csv,
}

#[derive(Debug, Args)]
pub(crate) struct CalibrateArguments {
    /// Target ε.
    #[arg(long, required_unless_present = "csv")]
    pub(crate) target_epsilon: Option<f64>,
    /// Target δ.
    #[arg(long, required_unless_present = "csv")]
    pub(crate) delta: Option<f64>,
    /// What is sought; the others are given.
    #[arg(long, value_enum, default_value_t = SoughtArgument::NoiseMultiplier)]
    pub(crate) find: SoughtArgument,
    /// Noise standard deviation over the L2 sensitivity, where something else is sought.
    #[arg(long)]
    pub(crate) noise_multiplier: Option<f64>,
    /// Probability with which each record enters a step's sample; 1 where none is named.
    #[arg(long)]
    pub(crate) sample_rate: Option<f64>,
    /// Number of steps; 1 where none is named.
    #[arg(long)]
    pub(crate) steps: Option<u64>,
    #[command(flatten)]
    pub(crate) accounting: AccountingArguments,
    /// Read queries from a CSV file (`-`: stdin) with columns eps,q,steps,delta; writes the same rows plus sigma.
    #[arg(long, conflicts_with_all = ["target_epsilon", "delta", "find"])]
    pub(crate) csv: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SoughtArgument {
    /// The least noise.
    NoiseMultiplier,
    /// The largest sample rate.
    SampleRate,
    /// The most steps.
    Steps,
    /// The same as passes over the data: steps times sample rate.
    Epochs,
}

/// How to reach and judge a server.
#[derive(Debug, Args)]
pub(crate) struct ConnectionArguments {
    /// Host and port of the server.
    #[arg(long, env = "BASTIONAI_HOST", default_value = "127.0.0.1:7443")]
    pub(crate) host: String,
    /// Your identity, from `bastionai keygen`.
    #[arg(long, env = "BASTIONAI_IDENTITY", default_value = "identity.pem")]
    pub(crate) identity: PathBuf,
    /// Remembers the highest ledger head seen of each server, to detect rollback.
    #[arg(long, env = "BASTIONAI_HEADS")]
    pub(crate) heads: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) appraisal: AppraisalArguments,
}

/// How runs add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompositionArgument {
    Basic,
    Renyi,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum KindArgument {
    /// Charged from its budget.
    Private,
    /// Anyone may know the rows: no budget.
    Public,
    /// No person's data: no budget.
    Synthetic,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DatasetVerb {
    /// Check a CSV file against a data contract, row by row, and upload it sealed.
    Put(Box<DatasetPutArguments>),
    /// Check a CSV file against a data contract, row by row, on this machine alone.
    Check {
        /// CSV with a header; a column of the contract is `name`, or `name_0 … name_{n-1}` for n elements.
        file: PathBuf,
        /// The data contract, JSON.
        #[arg(long)]
        contract: PathBuf,
    },
    /// All datasets: contract, budget left, never a row.
    List {
        #[command(flatten)]
        connection: ConnectionArguments,
    },
    /// One dataset.
    Show {
        #[command(flatten)]
        connection: ConnectionArguments,
        /// Its name.
        name: String,
    },
    /// Lend no more: no run starts on the dataset from now on. A run that has started goes on (cancel it to stop it).
    Withdraw {
        #[command(flatten)]
        connection: ConnectionArguments,
        /// Its name.
        name: String,
    },
    /// Withdraw a dataset and erase its records (best effort below freshness `unlock`); its account stays. Refused
    /// while a run uses it.
    Rm {
        #[command(flatten)]
        connection: ConnectionArguments,
        /// Its name.
        name: String,
        /// Yes, erase: it cannot be undone.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DatasetPutArguments {
    #[command(flatten)]
    pub(crate) connection: ConnectionArguments,
    /// CSV with a header; a column of the contract is `name`, or `name_0 … name_{n-1}` (row-major) for n elements.
    pub(crate) file: PathBuf,
    /// The data contract, JSON.
    #[arg(long)]
    pub(crate) contract: PathBuf,
    /// Name of the dataset, unique on the server.
    #[arg(long)]
    pub(crate) name: String,
    /// What it is.
    #[arg(long, value_enum, default_value_t = KindArgument::Private)]
    pub(crate) kind: KindArgument,
    /// Lifetime ε of a private dataset.
    #[arg(long, required_if_eq("kind", "private"))]
    pub(crate) epsilon: Option<String>,
    /// Lifetime δ of a private dataset.
    #[arg(long, default_value = "1e-5")]
    pub(crate) delta: String,
    /// How runs add up to the lifetime of a private dataset, for ever: sums of (ε, δ), or sums of Rényi divergences, which
    /// admit several times as many runs.
    #[arg(long, value_enum, default_value_t = CompositionArgument::Basic)]
    pub(crate) composition: CompositionArgument,
    /// An order of --composition renyi, from 1.1 to 1024, with its weight in the split of δ if not 1 (repeatable, rising);
    /// by default the server's.
    #[arg(long, value_name = "ORDER[:WEIGHT]")]
    pub(crate) renyi_order: Vec<String>,
    /// Training runs sum in integers, record by record (--noise-mode hardened): for heads, adapters and small models.
    #[arg(long)]
    pub(crate) require_hardened: bool,
    /// A principal that may train on it (repeatable), or `anyone`; who may evaluate, with --evaluation-only.
    #[arg(long, required = true)]
    pub(crate) may_train: Vec<String>,
    /// A principal beside the scientist that may receive weights (repeatable).
    #[arg(long)]
    pub(crate) recipient: Vec<String>,
    /// Held out: models are evaluated on it, nobody trains.
    #[arg(long)]
    pub(crate) evaluation_only: bool,
    /// Hold this share of the rows out, drawn at random, as a dataset of its own: NAME.test.
    #[arg(long, conflicts_with = "evaluation_only")]
    pub(crate) test_fraction: Option<f64>,
    /// Lifetime ε of NAME.test; by default that of --epsilon.
    #[arg(long, requires = "test_fraction")]
    pub(crate) test_epsilon: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunVerb {
    /// Price a run, show the price, start it.
    Start(Box<RunStartArguments>),
    /// Evaluate a model on held-out records: price, run, and the metrics with their errors.
    Evaluate(Box<RunEvaluateArguments>),
    /// Follow a run's released progress.
    Watch {
        #[command(flatten)]
        connection: ConnectionArguments,
        /// Run id, hex.
        run: String,
    },
    /// Your runs, and the runs on your datasets.
    List {
        #[command(flatten)]
        connection: ConnectionArguments,
    },
    /// One run: state, charges, digests.
    Show {
        #[command(flatten)]
        connection: ConnectionArguments,
        /// Run id, hex.
        run: String,
    },
    /// Cancel a run: what was started stays charged, its weights are destroyed.
    Cancel {
        #[command(flatten)]
        connection: ConnectionArguments,
        /// Run id, hex.
        run: String,
    },
    /// Suspend a run on a dataset of yours: it stops, and releases nothing until you resume it.
    Suspend {
        #[command(flatten)]
        connection: ConnectionArguments,
        /// Run id, hex.
        run: String,
    },
    /// Resume a run that you suspended: it goes on from its last checkpoint.
    Resume {
        #[command(flatten)]
        connection: ConnectionArguments,
        /// Run id, hex.
        run: String,
    },
    /// Fetch the receipt and the weights of a finished run, both checked.
    Fetch {
        #[command(flatten)]
        connection: ConnectionArguments,
        /// Run id, hex.
        run: String,
        /// Folder for `model.safetensors` and `receipt.dsse.json`.
        #[arg(long, short)]
        out: PathBuf,
        /// The weights kept after this step instead of the last.
        #[arg(long)]
        step: Option<u64>,
        /// The average of the iterates up to that step instead of the iterate.
        #[arg(long)]
        ema: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RunStartArguments {
    #[command(flatten)]
    pub(crate) connection: ConnectionArguments,
    /// The `.pt2` archive.
    pub(crate) model: PathBuf,
    /// A dataset by name (repeatable: pooled).
    #[arg(long = "dataset", required = true)]
    pub(crate) datasets: Vec<String>,
    /// Contract columns in the order of the model's inputs; by default the contract's order.
    #[arg(long, value_delimiter = ',')]
    pub(crate) columns: Vec<String>,
    /// Target ε of the run.
    #[arg(long)]
    pub(crate) epsilon: f64,
    /// Target δ; by default a tenth of the smallest lifetime δ.
    #[arg(long)]
    pub(crate) delta: Option<f64>,
    /// Expected logical batch size over all datasets; planned when absent.
    #[arg(long)]
    pub(crate) batch_size: Option<u64>,
    /// Physical batch size.
    #[arg(long, default_value_t = 64)]
    pub(crate) max_batch_size: u32,
    /// Records of a unit that a step uses, where datasets protect a unit column; by default the fewest they declare
    #[arg(long)]
    pub(crate) records_per_unit: Option<u32>,
    /// Steps; from --epochs, or planned, when absent.
    #[arg(long)]
    pub(crate) steps: Option<u64>,
    /// Expected uses of each declared record, instead of --steps.
    #[arg(long, conflicts_with = "steps")]
    pub(crate) epochs: Option<f64>,
    /// Clipping norm of a per-sample gradient.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) max_grad_norm: f64,
    /// How gradients are held to it.
    #[arg(long, value_enum, default_value_t = ClippingArgument::Flat)]
    pub(crate) clipping: ClippingArgument,
    /// Precision of the graph's matrix products and convolutions: speed, not privacy.
    #[arg(long, value_enum, default_value_t = ComputeArgument::Float32)]
    pub(crate) compute: ComputeArgument,
    /// What the sum's sensitivity rests on: bounded rounding, or integers record by record (for heads and adapters).
    #[arg(long, value_enum, default_value_t = NoiseModeArgument::Standard)]
    pub(crate) noise_mode: NoiseModeArgument,
    /// Clip of the released per-sample loss; 0 releases no loss.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) max_loss: f64,
    /// Learning rate.
    #[arg(long)]
    pub(crate) lr: f64,
    /// Optimizer.
    #[arg(long, value_enum, default_value_t = OptimizerArgument::Sgd)]
    pub(crate) optimizer: OptimizerArgument,
    /// Momentum of SGD.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) momentum: f64,
    /// Weight decay.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) weight_decay: f64,
    /// Adam and AdamW: subtract the noise's variance from the second moment, but leave at least this (e.g. 5e-8;
    /// DP-AdamBC).
    #[arg(long)]
    pub(crate) noise_correction: Option<f64>,
    /// How the learning rate moves after its warm-up.
    #[arg(long, value_enum, default_value_t = ScheduleArgument::Constant)]
    pub(crate) schedule: ScheduleArgument,
    /// Steps over which the learning rate rises from 0.
    #[arg(long, default_value_t = 0)]
    pub(crate) warmup_steps: u64,
    /// The same as a share of the steps, rounded up.
    #[arg(long, conflicts_with = "warmup_steps")]
    pub(crate) warmup_ratio: Option<f64>,
    /// Share of the learning rate that a linear or cosine schedule falls to; by default 0.
    #[arg(long)]
    pub(crate) final_ratio: Option<f64>,
    /// Decay of an average of the iterates to release beside the weights, e.g. 0.999.
    #[arg(long)]
    pub(crate) ema_decay: Option<f64>,
    /// Instead: part of the steps, from the last back, whose iterates are averaged with equal weights, e.g. 0.25.
    #[arg(long, conflicts_with = "ema_decay")]
    pub(crate) tail_average: Option<f64>,
    /// Steps over which the noise is correlated (BandMF): a number, or `auto` for what leaves the least noise at this ε.
    /// More bands than 1 take 8 bytes of memory a trainable parameter each.
    #[arg(long, default_value = "1", value_parser = bands)]
    pub(crate) bands: Bands,
    /// Steps whose weights to keep and release with the run's, comma-separated.
    #[arg(long, value_delimiter = ',')]
    pub(crate) keep_steps: Vec<u64>,
    /// The same, every so many steps.
    #[arg(long, conflicts_with = "keep_steps")]
    pub(crate) keep_every: Option<u64>,
    /// Weights to start from instead of the archive's: a run whose weights you may receive (RUN, or with @STEP for a
    /// kept step and @ema for the average), or another `.pt2` archive. Matched by name, shape and dtype.
    #[arg(long)]
    pub(crate) initial_weights: Option<String>,
    /// Show the price and stop.
    #[arg(long)]
    pub(crate) price_only: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunEvaluateArguments {
    #[command(flatten)]
    pub(crate) connection: ConnectionArguments,
    /// A `.pt2` archive that returns scores and label, as `bastionai.export_scores` writes it.
    pub(crate) model: PathBuf,
    /// A dataset by name (repeatable: counted together).
    #[arg(long = "dataset", required = true)]
    pub(crate) datasets: Vec<String>,
    /// Contract columns in the order of the model's inputs; by default the contract's order.
    #[arg(long, value_delimiter = ',')]
    pub(crate) columns: Vec<String>,
    /// Of accuracy, auroc, f1, f1_macro, confusion; each histogram they need widens the noise.
    #[arg(long, value_delimiter = ',', default_value = "accuracy,auroc")]
    pub(crate) metrics: Vec<Metric>,
    /// ε of the evaluation, for every dataset.
    #[arg(long)]
    pub(crate) eps: f64,
    /// δ; by default a tenth of the smallest lifetime δ.
    #[arg(long)]
    pub(crate) delta: Option<f64>,
    /// Bins of the scores for auroc.
    #[arg(long, default_value_t = 32)]
    pub(crate) score_bins: u32,
    /// Physical batch size; 0: the server's choice.
    #[arg(long, default_value_t = 0)]
    pub(crate) max_batch_size: u32,
    /// Weights to evaluate instead of the archive's: a run whose weights you may receive (RUN, or with @STEP for a kept
    /// step and @ema for the average), or another `.pt2` archive. Matched by name, shape and dtype.
    #[arg(long)]
    pub(crate) weights: Option<String>,
    /// Where to write the receipt.
    #[arg(long)]
    pub(crate) receipt: Option<PathBuf>,
    /// Show the price and stop.
    #[arg(long)]
    pub(crate) price_only: bool,
}

/// `auto`, or how many.
fn bands(text: &str) -> Result<Bands, String> {
    match text {
        "auto" => Ok(Bands::Planned),
        _ => match text.parse() {
            Ok(0) | Err(_) => Err("expected a number from 1, or auto".to_owned()),
            Ok(bands) => Ok(Bands::Fixed(bands)),
        },
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OptimizerArgument {
    /// `torch.optim.SGD`.
    Sgd,
    /// `torch.optim.Adam`; weight decay is an L2 penalty.
    Adam,
    /// `torch.optim.AdamW`; weight decay is decoupled.
    Adamw,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ClippingArgument {
    /// The whole gradient, cut to the norm.
    Flat,
    /// Each of K parameter tensors by itself, cut to the norm over √K.
    #[value(name = "per_layer", alias = "per-layer")]
    PerLayer,
    /// The whole gradient, scaled to nearly the norm, small ones up (AUTO-S).
    Automatic,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ComputeArgument {
    /// As the model has it.
    Float32,
    /// Operands rounded to bfloat16, sums in float32; for processors with instructions for it.
    Bfloat16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum NoiseModeArgument {
    /// Sums in floating point; what rounding may change is bounded and paid for in noise.
    Standard,
    /// Each record's clipped gradient rounded by itself, checked and summed in integers.
    Hardened,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ScheduleArgument {
    /// Stays.
    Constant,
    /// Falls linearly.
    Linear,
    /// Falls along half a cosine.
    Cosine,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerVerb {
    /// The entries that concern you, and the signed head.
    Show {
        #[command(flatten)]
        connection: ConnectionArguments,
        /// Only entries of this dataset (name).
        #[arg(long)]
        dataset: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReceiptVerb {
    /// Verify signature and evidence, appraise the server, and recompute every price.
    Check {
        /// `receipt.dsse.json`, as `bastionai run fetch` writes it.
        file: PathBuf,
        #[command(flatten)]
        appraisal: AppraisalArguments,
    },
    /// Fetch the receipt of a run that was charged: for its scientist, and for owners who receive no weights.
    Fetch {
        #[command(flatten)]
        connection: ConnectionArguments,
        /// Run id, hex.
        run: String,
        /// Where to write it; an existing file is never overwritten.
        #[arg(long, short, default_value = "receipt.dsse.json")]
        out: PathBuf,
    },
}
