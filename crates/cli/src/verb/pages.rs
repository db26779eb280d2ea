//! `bastionai completions` and `bastionai man`: what shells and readers need, made from the arguments themselves.

use crate::arguments::{Arguments, CompletionsArguments, ManArguments};
use anyhow::Context;
use clap::CommandFactory;
use std::io::Write;

/// A completion script on stdout.
pub(crate) fn completions(arguments: &CompletionsArguments) -> anyhow::Result<()> {
    let mut script = Vec::new();
    let shell: clap_complete::Shell = arguments.shell.into();
    clap_complete::generate(shell, &mut Arguments::command(), "bastionai", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}

/// `bastionai.1` and one page per verb.
pub(crate) fn man(arguments: &ManArguments, json: bool) -> anyhow::Result<()> {
    let folder = &arguments.folder;
    let failed = || format!("cannot write man pages to {}", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    clap_mangen::generate_to(Arguments::command(), folder).with_context(failed)?;
    let mut pages: Vec<String> = std::fs::read_dir(folder)
        .with_context(failed)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("bastionai") && name.ends_with(".1"))
        .collect();
    pages.sort();
    if json {
        return crate::output::json(&serde_json::json!({ "folder": folder, "pages": pages }));
    }
    eprintln!(
        "wrote {} pages; read one with `man -l {}/bastionai.1`",
        pages.len(),
        folder.display()
    );
    Ok(())
}
