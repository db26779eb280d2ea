//! A server process for tests that kill it: `standalone_server CONFIG.toml`. Prints its address on standard
//! output, logs JSON on standard error, drains on SIGTERM.

use bastionai_server::{Config, Server, log};
use std::error::Error;
use std::path::Path;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: standalone_server CONFIG.toml")?;
    let config = Config::load(Path::new(&path))?;
    log::init(log::Format::Json, config.log.level);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        bastionai_server::harden_process();
        let server = Server::start(config).await?;
        println!("{}", server.address());
        let terminated = async {
            terminate.recv().await;
        };
        server.run_until(terminated).await?;
        Ok(())
    })
}
