//! `bastionai config check`.

use crate::arguments::ConfigVerb;
use crate::output;
use bastionai_server::config::{Config, explain};

/// Says everything that is wrong with a file, or prints it with every default filled in and every limit explained.
pub(crate) fn run(verb: &ConfigVerb, json: bool) -> anyhow::Result<()> {
    let ConfigVerb::Check { file } = verb;
    let config = Config::load(file)?;
    config.check()?;
    if json {
        return output::json(&config);
    }
    eprintln!("{} is fine; with every default filled in:", file.display());
    print!("{}", explain::annotated(&config));
    Ok(())
}
