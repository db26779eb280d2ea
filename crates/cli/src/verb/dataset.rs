//! `bastionai dataset put|list|show`.

use crate::arguments::{DatasetPutArguments, DatasetVerb, KindArgument};
use crate::connect::{connect, dataset_named};
use crate::{output, rows};
use anyhow::{Context, bail};
use bastionai_client::{
    Amount, CheckedRecords, DataContract, Dataset, DatasetKind, MayTrain, NewDataset, Policy, Principal,
    Transfer,
};
use std::str::FromStr;

/// Dispatches the sub-verb.
pub(crate) fn run(verb: &DatasetVerb, json: bool) -> anyhow::Result<()> {
    match verb {
        DatasetVerb::Put(arguments) => put(arguments, json),
        DatasetVerb::List { connection } => {
            let datasets = connect(connection)?.list_datasets()?;
            output::either(json, &datasets, || print_table(&datasets))
        }
        DatasetVerb::Show { connection, name } => {
            let dataset = dataset_named(&connect(connection)?, name)?;
            output::either(json, &dataset, || print_one(&dataset))
        }
    }
}

/// Everything is checked locally, row by row, before a connection is made.
fn put(arguments: &DatasetPutArguments, json: bool) -> anyhow::Result<()> {
    let contract = read_contract(&arguments.contract)?;
    let policy = policy(arguments)?;
    let batches = rows::read_csv(&arguments.file, &contract)?;
    let records =
        CheckedRecords::check(&contract, batches).with_context(|| arguments.file.display().to_string())?;
    let rows = records.rows();
    let dataset = NewDataset {
        name: arguments.name.clone(),
        kind: kind(arguments.kind),
        contract,
        policy,
    };
    let client = connect(&arguments.connection)?;
    let kept = client.upload_checked(&dataset, records, &mut |transfer: Transfer| {
        let total = transfer.total_bytes.unwrap_or(transfer.done_bytes).max(1);
        eprint!("\ruploading {:3} %", 100 * transfer.done_bytes / total);
    })?;
    eprintln!("\ruploaded {rows} rows, sealed");
    output::either(json, &kept, || print_one(&kept))
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

fn policy(arguments: &DatasetPutArguments) -> anyhow::Result<Policy> {
    let lifetime = match (arguments.kind, &arguments.epsilon) {
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
        may_train,
        recipients: principals(&arguments.recipient)?,
        scientist_receives: true,
        expires_unix_ms: None,
    })
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
            let remaining = dataset.budget.map_or("no budget needed".to_owned(), |budget| {
                format!("{} of {}", budget.remaining.epsilon, budget.lifetime.epsilon)
            });
            vec![
                dataset.name.clone(),
                format!("{:?}", dataset.kind).to_lowercase(),
                dataset.contract.declared_size.to_string(),
                remaining,
                if dataset.trainable_by_caller { "yes" } else { "no" }.to_owned(),
                dataset.id.to_string(),
            ]
        })
        .collect();
    output::table(
        &["name", "kind", "declared size", "ε left", "may I train", "id"],
        &rows,
    );
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
}
