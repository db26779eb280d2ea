//! Trainers that die, hang, lie or never start: the run fails with the right charge, and says no more.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::runs::RunState;
use bastionai_client::{ClientError, Principal};
#[cfg(target_os = "linux")]
use common::process::ServerProcess;
use common::{TestServer, epsilon_of, identity, open_policy, start, upload, watch};

/// Starts a run of 20 steps under a trainer in this mode; returns (releases, state, committed ε, reserved ε).
async fn outcome(mode: &str) -> (usize, RunState, u64, u64) {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), mode, |config| {
        config.trainer.step_timeout_ms = 600;
        config.trainer.start_timeout_ms = 5_000;
    })
    .await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 1.0, 20).await;
    let (losses, state) = watch(&peer, run).await;
    let (committed, reserved, _) = epsilon_of(&peer, "north").await;
    if state != RunState::Succeeded {
        let error = peer.fetch_run(run, None, &mut |_| {}).await.unwrap_err();
        assert_eq!(error.server_reason(), Some("not-releasable"), "{mode}: {error}");
    }
    server.stop().await;
    (losses.len(), state, committed, reserved)
}

#[tokio::test]
async fn a_trainer_that_dies_or_hangs_fails_the_run_and_the_whole_reserve_stays_charged() {
    for mode in ["die-0", "die-7", "hang-0", "hang-7"] {
        let (released, state, committed, reserved) = outcome(mode).await;
        assert_eq!(state, RunState::Failed, "{mode}");
        assert!(
            released <= 7,
            "{mode}: {released} steps were released, 7 were taken"
        );
        assert!(
            committed > 900_000_000 && reserved == 0,
            "{mode}: charged {committed}, reserved {reserved}"
        );
    }
}

#[tokio::test]
async fn a_trainer_that_lies_fails_the_run_and_no_weights_are_kept() {
    for mode in ["nan", "short", "skip"] {
        let (_, state, committed, reserved) = outcome(mode).await;
        assert_eq!(state, RunState::Failed, "{mode}");
        assert!(
            committed > 900_000_000 && reserved == 0,
            "{mode}: charged {committed}, reserved {reserved}"
        );
    }
}

#[tokio::test]
async fn a_trainer_that_never_got_a_record_costs_nothing() {
    for mode in ["refuse", "unready", "garbage"] {
        let (released, state, committed, reserved) = outcome(mode).await;
        assert_eq!(
            (released, state, committed, reserved),
            (0, RunState::Failed, 0, 0),
            "{mode}"
        );
    }
}

#[tokio::test]
async fn a_crash_at_any_phase_ends_in_failed_with_the_right_charge_and_the_log_names_it() {
    let cases = [
        (
            "earlysegv-0",
            false,
            "was ended by SIGSEGV (a crash in libtorch, or a stack that ran over) while starting",
        ),
        ("earlyexit-0", false, "exited with status 3 while starting"),
        ("segv-0", true, "was ended by SIGSEGV"),
        ("abort-3", true, "was ended by SIGABRT"),
        (
            "kill-7",
            true,
            "was ended by SIGKILL (by the system when memory ran out, or by hand) while training",
        ),
        ("exit-2", true, "exited with status 3 while training"),
        ("lateabort-0", true, "was ended by SIGABRT"),
    ];
    for (mode, charged, words) in cases {
        let directory = tempfile::tempdir().unwrap();
        let server = ServerProcess::start(directory.path(), mode, |_| {});
        let peer = common::peer(&server.address, &identity()).await;
        let id = upload(&peer, "north", "6.0").await;
        let run = start(&peer, &[id], 1.0, 20).await;
        assert_eq!(watch(&peer, run).await.1, RunState::Failed, "{mode}");
        let (committed, reserved, _) = epsilon_of(&peer, "north").await;
        assert_eq!(
            (committed > 900_000_000, reserved),
            (charged, 0),
            "{mode}: charged {committed}"
        );
        // The server is up and the trainer's place is free: another run gets as far.
        let again = start(&peer, &[id], 1.0, 21).await;
        assert_eq!(watch(&peer, again).await.1, RunState::Failed, "{mode}");
        server.kill();
        let log = std::fs::read_to_string(directory.path().join("server.log")).unwrap();
        assert!(log.contains(words), "{mode}: {log}");
    }
}

#[tokio::test]
async fn what_the_kernel_lacks_is_in_the_claims_or_refuses_the_start() {
    for (mode, flagged) in [("normal-0", false), ("nolandlock-0", true)] {
        let directory = tempfile::tempdir().unwrap();
        let server = TestServer::start(directory.path(), mode).await;
        let peer = server.peer(&identity()).await;
        let flags = &peer.attestation().runtime_claims().insecure_flags;
        let found = flags.iter().any(|flag| flag == "insecure-trainer-sandbox");
        assert_eq!(found, flagged, "{mode}: {flags:?}");
        server.stop().await;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut config = common::config(directory.path(), "nolandlock-0");
    config.trainer.require_landlock = true;
    let error = bastionai_server::Server::start(config).await.err().unwrap();
    assert!(error.to_string().contains("trainer.require_landlock"), "{error}");
}

#[tokio::test]
async fn a_trainer_replaced_after_boot_is_not_run() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("normal");
    std::fs::copy(common::standin(directory.path(), "source-0"), &copy).unwrap();
    let server = TestServer::start_with(directory.path(), "unused", |config| {
        config.trainer.path = Some(copy.clone())
    })
    .await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let mut bytes = std::fs::read(&copy).unwrap();
    bytes.push(0);
    std::fs::remove_file(&copy).unwrap();
    std::fs::write(&copy, bytes).unwrap();
    let run = start(&peer, &[id], 1.0, 5).await;
    assert_eq!(
        watch(&peer, run).await.1,
        RunState::Failed,
        "evidence names the program that was there at boot"
    );
    assert_eq!(epsilon_of(&peer, "north").await.0, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_trainer_gets_no_more_memory_than_the_configuration_allows() {
    for (allowed_gib, ends) in [(1, RunState::Failed), (8, RunState::Succeeded)] {
        let directory = tempfile::tempdir().unwrap();
        let server = TestServer::start_with(directory.path(), "greedy-3072", |config| {
            config.trainer.memory_bytes = allowed_gib << 30;
        })
        .await;
        let peer = server.peer(&identity()).await;
        let id = upload(&peer, "north", "6.0").await;
        let run = start(&peer, &[id], 1.0, 5).await;
        assert_eq!(
            watch(&peer, run).await.1,
            ends,
            "{allowed_gib} GiB allowed, 3 asked for"
        );
        assert!(
            epsilon_of(&peer, "north").await.0 > 900_000_000,
            "it had started: charged"
        );
        server.stop().await;
    }
}

#[tokio::test]
async fn a_run_that_takes_too_long_fails_and_stays_charged() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-50", |config| {
        config.trainer.run_timeout_ms = 400
    })
    .await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 1.0, 1000).await;
    assert_eq!(watch(&peer, run).await.1, RunState::Failed);
    let (committed, reserved, _) = epsilon_of(&peer, "north").await;
    assert!(committed > 900_000_000 && reserved == 0);
    server.stop().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_server_leaves_no_core_and_its_trainer_dies_first_in_a_group_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(directory.path(), "hang-0", |_| {});
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    assert!(
        core.is_some_and(|line| line.split_whitespace().nth(4) == Some("0")),
        "{core:?}"
    );
    let peer = common::peer(&server.address, &identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 1.0, 5).await;
    let mut found = None;
    for _ in 0..200 {
        found = child_of(server.id());
        if found.is_some_and(|(trainer, _)| oom_score(trainer) == "1000") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    let (trainer, group) = found.expect("a trainer is running");
    assert_eq!(trainer, group, "it leads a process group");
    assert_eq!(oom_score(trainer), "1000");
    peer.cancel_run(run).await.unwrap();
    assert_eq!(child_of(server.id()), None, "a cancelled run leaves no process");
    server.kill();
}

#[cfg(target_os = "linux")]
fn oom_score(process: u32) -> String {
    let score = std::fs::read_to_string(format!("/proc/{process}/oom_score_adj")).unwrap_or_default();
    score.trim().to_owned()
}

/// A child of this process that has become the trainer, and its process group.
#[cfg(target_os = "linux")]
fn child_of(parent: u32) -> Option<(u32, u32)> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok())
        .filter(|stat| stat.contains("(hang-0)"))
        .find_map(|stat| {
            let id: u32 = stat.split_once(' ')?.0.parse().ok()?;
            let mut after_name = stat.rsplit_once(") ")?.1.split(' ').skip(1);
            let found: u32 = after_name.next()?.parse().ok()?;
            let group: u32 = after_name.next()?.parse().ok()?;
            (found == parent).then_some((id, group))
        })
}

#[tokio::test]
async fn failures_count_against_the_dataset_and_end_its_use() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "die-0", |config| {
        config.limits.failed_runs_per_dataset = 2
    })
    .await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    for _ in 0..2 {
        let run = start(&peer, &[id], 0.5, 5).await;
        assert_eq!(watch(&peer, run).await.1, RunState::Failed);
    }
    let model = common::upload_mlp(&peer).await;
    let quote = peer.price(&common::spec(model, &[id], 0.5, 5)).await.unwrap();
    let error = peer.start_run(quote.run_digest).await.unwrap_err();
    assert_eq!(error.server_reason(), Some("too-many-failures"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn starts_per_day_are_limited() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(directory.path(), "normal-0", |config| {
        config.limits.starts_per_day = 1
    })
    .await;
    let peer = server.peer(&identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 0.5, 5).await;
    assert_eq!(watch(&peer, run).await.1, RunState::Succeeded);
    let model = common::upload_mlp(&peer).await;
    let quote = peer.price(&common::spec(model, &[id], 0.5, 6)).await.unwrap();
    let error = peer.start_run(quote.run_digest).await.unwrap_err();
    assert!(matches!(error, ClientError::LimitExceeded(_)), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn an_expired_policy_takes_no_run() {
    let directory = tempfile::tempdir().unwrap();
    let server = TestServer::start(directory.path(), "normal-0").await;
    let peer = server.peer(&identity()).await;
    let soon = common::now_unix_ms() + 500;
    let policy = bastionai_client::Policy {
        expires_unix_ms: Some(soon),
        ..open_policy("6.0", "1e-5")
    };
    let id = common::upload_under(&peer, "north", policy).await;
    let model = common::upload_mlp(&peer).await;
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    let error = peer.price(&common::spec(model, &[id], 0.5, 5)).await.unwrap_err();
    assert!(matches!(error, ClientError::NotAllowed(_)), "{error}");
    assert_ne!(peer.principal(), Principal::from_bytes([0; 32]));
    server.stop().await;
}
