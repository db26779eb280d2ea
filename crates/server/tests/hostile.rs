//! A trainer that turned hostile, as code execution inside libtorch would make it: whatever it tries is refused or
//! ends the run, with the right charge and a clear word in the log; the server stays up.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::runs::RunState;
use common::example::example;
use common::process::ServerProcess;
use common::{epsilon_of, identity, start, upload, watch};
use std::path::{Path, PathBuf};

/// A link named `mode` to the hostile build of the trainer (crates/trainer/examples/hostile_trainer.rs).
fn hostile(directory: &Path, mode: &str) -> PathBuf {
    let cargo = "cargo build --release -p bastionai-trainer --examples";
    let program = example("hostile_trainer", cargo);
    let link = directory.join(mode);
    std::os::unix::fs::symlink(program, &link).unwrap();
    link
}

/// Longer than anything here takes on a busy machine.
const PATIENCE_MS: u64 = 60_000;

struct Outcome {
    state: RunState,
    committed: u64,
    reserved: u64,
    log: String,
}

/// One run under a trainer in this mode; afterwards the server must still answer.
async fn outcome(mode: &str, step_timeout_ms: u64) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let program = hostile(directory.path(), mode);
    let server = ServerProcess::start(directory.path(), "unused-0", |config| {
        config.trainer.path = Some(program);
        config.trainer.memory_bytes = 2 << 30;
        config.trainer.step_timeout_ms = step_timeout_ms;
    });
    let peer = common::peer(&server.address, &identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 1.0, 5).await;
    let (_, state) = watch(&peer, run).await;
    let (committed, reserved, _) = epsilon_of(&peer, "north").await;
    server.kill();
    let log = std::fs::read_to_string(directory.path().join("server.log")).unwrap();
    Outcome {
        state,
        committed,
        reserved,
        log,
    }
}

fn assert_charged(outcome: &Outcome, mode: &str, word: &str) {
    assert_eq!(outcome.state, RunState::Failed, "{mode}");
    assert!(
        outcome.committed > 900_000_000 && outcome.reserved == 0,
        "{mode}: charged {}, reserved {}",
        outcome.committed,
        outcome.reserved
    );
    assert!(outcome.log.contains(word), "{mode}: {}", outcome.log);
}

#[tokio::test]
async fn it_opens_no_file_no_socket_no_process_and_harms_no_other() {
    let outcome = outcome("attempts-0", PATIENCE_MS).await;
    // It exits with status 99 as soon as anything works, before or after records came.
    assert_eq!(outcome.state, RunState::Succeeded, "{}", outcome.log);
    for left in ["/tmp/bastionai-hostile", "/tmp/bastionai-hostile-folder"] {
        assert!(!Path::new(left).exists(), "{left}");
    }
}

#[tokio::test]
async fn it_gets_no_more_memory_than_allowed_and_no_more_threads_than_fit() {
    assert_charged(
        &outcome("greedy-0", PATIENCE_MS).await,
        "greedy",
        "while training",
    );
    assert_charged(&outcome("flood-0", PATIENCE_MS).await, "flood", "while training");
}

#[tokio::test]
async fn it_cannot_run_for_ever() {
    assert_charged(&outcome("spin-0", 1_500).await, "spin", "trainer.step_timeout_ms");
}

#[tokio::test]
async fn a_crash_is_named_in_the_log_and_charged_once_records_came() {
    for (mode, word) in [("segv-0", "SIGSEGV"), ("abort-0", "SIGABRT")] {
        assert_charged(
            &outcome(mode, PATIENCE_MS).await,
            mode,
            &format!("was ended by {word}"),
        );
    }
    let early = outcome("earlysegv-0", PATIENCE_MS).await;
    assert_eq!(
        (early.state, early.committed, early.reserved),
        (RunState::Failed, 0, 0)
    );
    assert!(early.log.contains("while starting"), "{}", early.log);
}
