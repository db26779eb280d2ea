//! `bastionai dataset check|put|list|show|withdraw|rm`.

use crate::arguments::{
    CompositionArgument, ConnectionArguments, DatasetPutArguments, DatasetVerb, KindArgument,
};
use crate::connect::{connect, dataset_named};
use crate::{output, rows};
use anyhow::{Context, bail};
use bastionai_client::blocking::Client;
use bastionai_client::{
    Amount, CheckedRecords, Composition, DataContract, Dataset, DatasetKind, DatasetState, MayTrain,
    NewDataset, Policy, Principal, RecordBatch, RenyiTerms, Transfer,
};
use bastionai_graph::contract::declared_size_for;
use std::path::Path;
use std::str::FromStr;

/// Dispatches the sub-verb.
pub(crate) fn run(verb: &DatasetVerb, json: bool) -> anyhow::Result<()> {
    match verb {
        DatasetVerb::Put(arguments) => put(arguments, json),
        DatasetVerb::Check { file, contract } => check(file, contract, json),
        DatasetVerb::List { connection } => {
            let datasets = connect(connection)?.list_datasets()?;
            output::either(json, &datasets, || print_table(&datasets))
        }
        DatasetVerb::Show { connection, name } => {
            let dataset = dataset_named(&connect(connection)?, name)?;
            output::either(json, &dataset, || print_one(&dataset))
        }
        DatasetVerb::Withdraw { connection, name } => {
            let client = connect(connection)?;
            let withdrawn = client.withdraw_dataset(dataset_named(&client, name)?.id)?;
            eprintln!("withdrawn: no run starts on `{name}` any more; a run that had started goes on");
            output::either(json, &withdrawn, || print_one(&withdrawn))
        }
        DatasetVerb::Rm {
            connection,
            name,
            yes,
        } => remove(connection, name, *yes, json),
    }
}

fn remove(connection: &ConnectionArguments, name: &str, yes: bool, json: bool) -> anyhow::Result<()> {
    if !yes {
        bail!(
            "`{name}` would be erased for good; say --yes, or `bastionai dataset withdraw` to stop new runs alone"
        );
    }
    let client = connect(connection)?;
    let removed = client.remove_dataset(dataset_named(&client, name)?.id)?;
    eprintln!(
        "removed: the records of `{name}` are erased (best effort: docs/limitations.md); its account stays"
    );
    output::either(json, &removed, || print_one(&removed))
}

/// What `put` checks before it connects, and nothing more.
fn check(file: &Path, contract: &Path, json: bool) -> anyhow::Result<()> {
    let contract = read_contract(contract)?;
    let batches = rows::read_csv(file, &contract)?;
    let rows = check_rows(file, &contract, batches)?.rows();
    let found = serde_json::json!({ "rows": rows, "declared_size": contract.declared_size, "columns": contract.columns.len() });
    output::either(json, &found, || {
        println!(
            "{rows} rows keep the contract; {} are declared",
            contract.declared_size
        );
    })
}

/// Every row against the contract, and their number against the declared size.
fn check_rows(
    file: &Path,
    contract: &DataContract,
    batches: Vec<RecordBatch>,
) -> anyhow::Result<CheckedRecords> {
    let records = CheckedRecords::check(contract, batches).with_context(|| file.display().to_string())?;
    let rows = records.rows();
    if rows == 0 {
        bail!("{} has no rows: a dataset has at least one", file.display());
    }
    if rows > contract.declared_size {
        let larger = bastionai_graph::contract::declared_size_for(rows);
        bail!(
            "{}: more rows than the declared size {}{}",
            file.display(),
            contract.declared_size,
            larger.map_or(String::new(), |size| format!(
                "; declare {size}, which will be public"
            )),
        );
    }
    Ok(records)
}

/// Everything is checked locally, row by row, before a connection is made.
fn put(arguments: &DatasetPutArguments, json: bool) -> anyhow::Result<()> {
    let contract = read_contract(&arguments.contract)?;
    let policy = policy(arguments, arguments.epsilon.as_ref(), arguments.evaluation_only)?;
    let batches = rows::read_csv(&arguments.file, &contract)?;
    if let Some(fraction) = arguments.test_fraction {
        return put_split(arguments, contract, policy, batches, fraction, json);
    }
    let records = check_rows(&arguments.file, &contract, batches)?;
    let dataset = NewDataset {
        name: arguments.name.clone(),
        kind: kind(arguments.kind),
        contract,
        policy,
    };
    let kept = send(&connect(&arguments.connection)?, &dataset, records)?;
    output::either(json, &kept, || print_one(&kept))
}

/// Two datasets from one file: what is trained on, and `NAME.test`, held out under a budget of its own.
fn put_split(
    arguments: &DatasetPutArguments,
    contract: DataContract,
    policy: Policy,
    batches: Vec<RecordBatch>,
    fraction: f64,
    json: bool,
) -> anyhow::Result<()> {
    let (train, test) = rows::split(batches, &contract, fraction)?;
    let test_contract = DataContract {
        declared_size: declared_size_for(test.rows)
            .context("the held-out part is too large for a dataset")?,
        ..contract.clone()
    };
    let origin = || arguments.file.display().to_string();
    let train = CheckedRecords::check(&contract, vec![train]).with_context(origin)?;
    let test = CheckedRecords::check(&test_contract, vec![test]).with_context(origin)?;
    let epsilon = arguments.test_epsilon.as_ref().or(arguments.epsilon.as_ref());
    let named = |name: String, contract: DataContract, policy: Policy| NewDataset {
        name,
        kind: kind(arguments.kind),
        contract,
        policy,
    };
    let held_out = named(
        format!("{}.test", arguments.name),
        test_contract,
        self::policy(arguments, epsilon, true)?,
    );
    let client = connect(&arguments.connection)?;
    if client
        .list_datasets()?
        .iter()
        .any(|dataset| dataset.name == held_out.name)
    {
        bail!(
            "a dataset named `{}` exists already; choose another --name",
            held_out.name
        );
    }
    let kept = [
        send(&client, &named(arguments.name.clone(), contract, policy), train)?,
        send(&client, &held_out, test)
            .context("the part to train on is uploaded, the held-out part is not")?,
    ];
    output::either(json, &kept, || kept.iter().for_each(print_one))
}

fn send(client: &Client, dataset: &NewDataset, records: CheckedRecords) -> anyhow::Result<Dataset> {
    let rows = records.rows();
    let kept = client.upload_checked(dataset, records, &mut |transfer: Transfer| {
        let total = transfer.total_bytes.unwrap_or(transfer.done_bytes).max(1);
        eprint!("\ruploading {:3} %", 100 * transfer.done_bytes / total);
    })?;
    eprintln!("\ruploaded {rows} rows of `{}`, sealed", dataset.name);
    Ok(kept)
}

/// Reads and validates a contract file.
pub(crate) fn read_contract(path: &std::path::Path) -> anyhow::Result<DataContract> {
    let bytes =
        std::fs::read(path).with_context(|| format!("cannot read the contract {}", path.display()))?;
    DataContract::parse_json(&bytes).with_context(|| format!("contract {}", path.display()))
}

fn kind(argument: KindArgument) -> DatasetKind {
    match argument {
        KindArgument::Private => DatasetKind::Private,
        KindArgument::Public => DatasetKind::Public,
        KindArgument::Synthetic => DatasetKind::Synthetic,
    }
}

fn policy(
    arguments: &DatasetPutArguments,
    epsilon: Option<&String>,
    evaluation_only: bool,
) -> anyhow::Result<Policy> {
    let lifetime = match (arguments.kind, epsilon) {
        (KindArgument::Private, Some(epsilon)) => Some(Amount {
            epsilon: epsilon.parse().with_context(|| format!("--epsilon {epsilon}"))?,
            delta: arguments
                .delta
                .parse()
                .with_context(|| format!("--delta {}", arguments.delta))?,
        }),
        (KindArgument::Private, None) => bail!("a private dataset needs its lifetime budget: --epsilon"),
        (_, Some(_)) => bail!("a public or synthetic dataset has no budget: drop --epsilon"),
        (_, None) => None,
    };
    let may_train = match arguments.may_train.as_slice() {
        [only] if only == "anyone" => MayTrain::Anyone,
        named => MayTrain::Only(principals(named)?),
    };
    Ok(Policy {
        lifetime,
        composition: composition(arguments)?,
        may_train,
        recipients: principals(&arguments.recipient)?,
        scientist_receives: true,
        expires_unix_ms: None,
        evaluation_only,
        require_hardened: arguments.require_hardened,
    })
}

fn composition(arguments: &DatasetPutArguments) -> anyhow::Result<Composition> {
    match (arguments.composition, arguments.renyi_order.as_slice()) {
        (CompositionArgument::Basic, []) => Ok(Composition::Basic),
        (CompositionArgument::Basic, _) => bail!("--renyi-order belongs to --composition renyi"),
        (CompositionArgument::Renyi, []) => Ok(Composition::Renyi(None)),
        (CompositionArgument::Renyi, named) => {
            let mut orders = Vec::new();
            let mut weights = Vec::new();
            for text in named {
                let (order, weight) = text.split_once(':').unwrap_or((text, "1"));
                orders.push(order.parse().with_context(|| format!("--renyi-order {text}"))?);
                weights.push(weight.parse().with_context(|| format!("--renyi-order {text}"))?);
            }
            let terms = RenyiTerms::new(&orders, &weights).context("--renyi-order")?;
            Ok(Composition::Renyi(Some(terms)))
        }
    }
}

fn principals(named: &[String]) -> anyhow::Result<Vec<Principal>> {
    let parse = |name: &String| {
        Principal::from_str(name)
            .with_context(|| format!("`{name}` is no principal: 64 hex digits, as `bastionai keygen` prints"))
    };
    named.iter().map(parse).collect()
}

fn print_table(datasets: &[Dataset]) {
    let rows: Vec<Vec<String>> = datasets
        .iter()
        .map(|dataset| {
            let remaining = match (dataset.epsilon_left(), dataset.budget) {
                (Some(left), Some(budget)) => format!("{left} of {}", budget.lifetime.epsilon),
                _ => "no budget needed".to_owned(),
            };
            vec![
                dataset.name.clone(),
                format!("{:?}", dataset.kind).to_lowercase(),
                dataset.contract.declared_size.to_string(),
                remaining,
                state_name(dataset.state).to_owned(),
                may_i(dataset).to_owned(),
                dataset.id.to_string(),
            ]
        })
        .collect();
    output::table(
        &["name", "kind", "declared size", "ε left", "state", "may I", "id"],
        &rows,
    );
}

fn may_i(dataset: &Dataset) -> &'static str {
    match (dataset.trainable_by_caller, dataset.evaluable_by_caller) {
        (true, _) => "train, evaluate",
        (false, true) => "evaluate",
        (false, false) => "no",
    }
}

fn state_name(state: DatasetState) -> &'static str {
    match state {
        DatasetState::Offered => "offered",
        DatasetState::Withdrawn => "withdrawn",
        DatasetState::Removed => "removed",
    }
}

fn print_one(dataset: &Dataset) {
    print_table(std::slice::from_ref(dataset));
    println!();
    let rows: Vec<Vec<String>> = dataset
        .contract
        .columns
        .iter()
        .map(|column| {
            vec![
                column.name.clone(),
                column.dtype.torch_name().to_owned(),
                format!("{:?}", column.shape),
                output::domain(&column.domain),
            ]
        })
        .collect();
    output::table(&["column", "dtype", "shape", "declared values"], &rows);
    if dataset.policy.require_hardened {
        println!();
        println!("Training runs have noise mode hardened: others are refused.");
    }
    if let Some(unit) = dataset.contract.unit_column() {
        println!(
            "\nprotected: all records of a {} together, at most {} of each, {} declared",
            unit.name, unit.max_records, unit.declared_units
        );
    }
    if let Some(budget) = dataset.budget {
        println!();
        let line = |what: &str, amount: Amount| {
            vec![
                what.to_owned(),
                amount.epsilon.to_string(),
                amount.delta.to_string(),
            ]
        };
        let rows = [
            line("lifetime", budget.lifetime),
            line("committed", budget.committed),
            line("reserved", budget.reserved),
            line("remaining", budget.remaining),
        ];
        output::table(&["budget", "ε", "δ"], &rows);
    }
    if let Some(account) = &dataset.renyi_budget {
        println!();
        println!(
            "Runs add up in Rényi divergences, and a run is admitted while one order has enough: {} of ε is left. The sums \
             above are shown and decide nothing.",
            account.remaining_epsilon
        );
        let rows: Vec<Vec<String>> = account
            .orders
            .iter()
            .map(|each| {
                vec![
                    each.order.to_string(),
                    each.budget.map_or("none".to_owned(), |budget| budget.to_string()),
                    each.committed.to_string(),
                    each.reserved.to_string(),
                ]
            })
            .collect();
        output::table(&["order", "budget", "committed", "reserved"], &rows);
    }
}
