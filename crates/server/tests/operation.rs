//! What the operator's listener says, and that it says nothing about data (docs/operation.md).
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod common;

use bastionai_client::runs::RunState;
use common::process::ServerProcess;
use common::{identity, rows, start, upload, watch};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Status and body of a GET.
fn get(address: SocketAddr, path: &str) -> (u16, String) {
    request(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    )
}

/// Status 0 when the connection was closed without an answer.
fn request(address: SocketAddr, text: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = String::new();
    let asked = stream.write_all(text.as_bytes());
    // A listener that gave up resets the connection: that is an answer of its own.
    let _ = asked.and_then(|()| stream.read_to_string(&mut answer));
    let status = answer
        .split(' ')
        .nth(1)
        .unwrap_or_default()
        .parse()
        .unwrap_or_default();
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

/// Where the listener is, from the log.
fn operations(directory: &Path) -> SocketAddr {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let log = std::fs::read_to_string(directory.join("server.log")).unwrap_or_default();
        let event = log
            .lines()
            .rev()
            .find(|line| line.contains("operations_listening"));
        if let Some(event) = event {
            let event: serde_json::Value = serde_json::from_str(event).unwrap();
            return event["address"].as_str().unwrap().parse().unwrap();
        }
        assert!(Instant::now() < deadline, "{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn server(directory: &Path, mode: &str) -> (ServerProcess, SocketAddr) {
    let server = ServerProcess::start(directory, mode, |config| {
        config.operations.listen = Some("127.0.0.1:0".parse().unwrap());
    });
    (server, operations(directory))
}

/// A strict reader of the text format 0.0.4: every family declared once, before its samples, with help and type;
/// names, labels and values well-formed; histograms cumulative, with a last bucket equal to their count.
fn parse(page: &str) -> BTreeMap<String, f64> {
    assert!(page.ends_with('\n'), "the last line ends");
    let mut families: BTreeMap<String, String> = BTreeMap::new();
    let mut samples = BTreeMap::new();
    let (mut helped, mut current) = (String::new(), String::new());
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect(line);
            assert!(is_name(name) && !help.trim().is_empty(), "{line}");
            helped = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect(line);
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(name, helped, "help comes first");
            assert!(
                families.insert(name.to_owned(), kind.to_owned()).is_none(),
                "twice: {line}"
            );
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            current = name.to_owned();
        } else {
            let (sample, value) = line.rsplit_once(' ').expect(line);
            let value: f64 = value.parse().expect(line);
            let name = sample.split('{').next().unwrap();
            let suffixes: &[&str] = match families[&current].as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            let belongs = suffixes.iter().any(|suffix| name == format!("{current}{suffix}"));
            assert!(is_name(name) && belongs, "{line}");
            if let Some(labels) = sample.strip_prefix(name).filter(|rest| !rest.is_empty()) {
                let labels = labels
                    .strip_prefix('{')
                    .and_then(|rest| rest.strip_suffix('}'))
                    .expect(line);
                for label in labels.split(',') {
                    let (key, of) = label.split_once('=').expect(line);
                    assert!(
                        is_name(key) && of.len() > 2 && of.starts_with('"') && of.ends_with('"'),
                        "{line}"
                    );
                }
            }
            assert!(
                samples.insert(sample.to_owned(), value).is_none(),
                "twice: {line}"
            );
        }
    }
    check_histograms(&samples);
    samples
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

fn check_histograms(samples: &BTreeMap<String, f64>) {
    let counts = samples.iter().filter(|(name, _)| name.contains("_count{"));
    for (name, count) in counts {
        let (family, labels) = name.split_once("_count{").unwrap();
        let labels = labels.trim_end_matches('}');
        let prefix = format!("{family}_bucket{{{labels},le=\"");
        let mut buckets: Vec<(f64, f64)> = samples
            .iter()
            .filter_map(|(name, value)| {
                let bound = name.strip_prefix(&prefix)?.strip_suffix("\"}")?;
                let bound = if bound == "+Inf" {
                    f64::INFINITY
                } else {
                    bound.parse().unwrap()
                };
                Some((bound, *value))
            })
            .collect();
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name}");
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{name}");
    }
}

#[tokio::test]
async fn liveness_readiness_and_metrics_follow_what_happens() {
    let directory = tempfile::tempdir().unwrap();
    let (server, at) = server(directory.path(), "normal-0");
    assert_eq!(get(at, "/livez"), (200, "alive\n".to_owned()));
    let (status, checks) = get(at, "/readyz");
    assert_eq!(status, 200, "{checks}");
    assert_eq!(checks, "ok boot\nok vault\nok trainer\nok disk\nok draining\n");
    let before = parse(&get(at, "/metrics").1);
    assert_eq!(before["bastionai_sessions"], 0.0);

    let peer = common::peer(&server.address, &identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 1.0, 5).await;
    assert_eq!(watch(&peer, run).await.1, RunState::Succeeded);
    assert!(
        peer.start_run(bastionai_client::Digest32::from_bytes([7; 32]))
            .await
            .is_err()
    );

    let after = parse(&get(at, "/metrics").1);
    for (sample, expected) in [
        ("bastionai_ready", 1.0),
        ("bastionai_sessions", 1.0),
        ("bastionai_sessions_accepted_total", 1.0),
        (
            "bastionai_calls_total{call=\"upload_dataset\",outcome=\"ok\"}",
            1.0,
        ),
        ("bastionai_calls_total{call=\"start_run\",outcome=\"ok\"}", 1.0),
        (
            "bastionai_calls_total{call=\"start_run\",outcome=\"refused\"}",
            1.0,
        ),
        ("bastionai_call_seconds_count{call=\"price_run\"}", 1.0),
        ("bastionai_runs{state=\"succeeded\"}", 1.0),
        ("bastionai_runs_ended_total{outcome=\"succeeded\"}", 1.0),
        ("bastionai_trainers_started_total", 1.0),
        ("bastionai_trainers_lost_total", 0.0),
        ("bastionai_datasets", 1.0),
        ("bastionai_panics_total", 0.0),
    ] {
        assert_eq!(after.get(sample), Some(&expected), "{sample}");
    }
    assert!(after["bastionai_ledger_entries"] > before["bastionai_ledger_entries"]);
    assert!(after["bastionai_disk_free_bytes"] % f64::from(64 << 20) == 0.0);
    server.kill();
}

/// The very same life with 5 rows or with 60, losses and names that would be seen: the pages differ in durations
/// and the disk only.
#[tokio::test]
async fn no_series_depends_on_the_records_or_names_anybody() {
    let mut pages = Vec::new();
    for count in [5, 60] {
        let directory = tempfile::tempdir().unwrap();
        let (server, at) = server(directory.path(), "normal-0");
        let me = identity();
        let peer = common::peer(&server.address, &me).await;
        let new = common::dataset("canary-name", common::open_policy("6.0", "1e-5"));
        let id = peer
            .upload_dataset(&new, vec![rows(count, 7.5)], &mut |_| {})
            .await
            .unwrap()
            .id;
        let run = start(&peer, &[id], 1.0, 5).await;
        watch(&peer, run).await;
        let page = get(at, "/metrics").1;
        for forbidden in [
            "canary",
            "mlp",
            "row",
            "loss",
            "step",
            &id.to_string(),
            &run.to_string(),
            &peer.principal().to_string(),
        ] {
            let text = page
                .lines()
                .filter(|line| !line.starts_with('#'))
                .collect::<Vec<_>>()
                .join("\n");
            assert!(!text.contains(forbidden), "{forbidden}: {text}");
        }
        let mut samples = parse(&page);
        samples.retain(|name, _| {
            !name.starts_with("bastionai_call_seconds") && name != "bastionai_disk_free_bytes"
        });
        // Watchers' calls and their number are the same; only how a call is counted while open may differ.
        pages.push(samples);
        server.kill();
    }
    assert_eq!(pages[0], pages[1]);
}

#[tokio::test]
async fn a_server_that_cannot_work_is_alive_and_not_ready() {
    let directory = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(directory.path(), "normal-0", |config| {
        config.operations.listen = Some("127.0.0.1:0".parse().unwrap());
        config.limits.free_bytes_reserve = u64::MAX / 2;
    });
    let at = operations(directory.path());
    let (status, checks) = get(at, "/readyz");
    assert_eq!(status, 503);
    assert!(
        checks.contains("failed disk: less is free than limits.free_bytes_reserve"),
        "{checks}"
    );
    assert_eq!(get(at, "/livez").0, 200);
    assert_eq!(parse(&get(at, "/metrics").1)["bastionai_ready"], 0.0);
    server.kill();

    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("normal-0");
    std::fs::copy(common::standin(directory.path(), "source-0"), &copy).unwrap();
    let (server, at) = self::server(directory.path(), "normal-0");
    assert_eq!(get(at, "/readyz").0, 200);
    std::fs::write(&copy, "another program").unwrap_or_else(|_| {
        std::fs::remove_file(&copy).unwrap();
    });
    let (status, checks) = get(at, "/readyz");
    assert_eq!(status, 503);
    assert!(checks.contains("failed trainer:"), "{checks}");
    server.kill();
}

#[tokio::test]
async fn a_draining_server_is_alive_and_not_ready() {
    let directory = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(directory.path(), "normal-200", |config| {
        config.operations.listen = Some("127.0.0.1:0".parse().unwrap());
        config.trainer.drain_timeout_ms = 4_000;
    });
    let at = operations(directory.path());
    let peer = common::peer(&server.address, &identity()).await;
    let id = upload(&peer, "north", "6.0").await;
    let run = start(&peer, &[id], 1.0, 1000).await;
    let mut watching = peer.watch_run(run, 0).await.unwrap();
    common::timeout(watching.next()).await.unwrap();
    terminate(server.id());
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let (status, checks) = get(at, "/readyz");
        if status == 503 {
            assert!(checks.contains("failed draining"), "{checks}");
            break;
        }
        assert!(Instant::now() < deadline, "{checks}");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(get(at, "/livez").0, 200);
    server.kill();
}

fn terminate(process: u32) {
    let status = std::process::Command::new("kill")
        .args(["-TERM", &process.to_string()])
        .status();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn anything_but_a_short_get_of_a_known_path_is_refused_and_slow_ones_do_not_stay() {
    let directory = tempfile::tempdir().unwrap();
    let (server, at) = server(directory.path(), "normal-0");
    assert_eq!(get(at, "/").0, 404);
    assert_eq!(get(at, "/metrics?x").0, 404);
    assert_eq!(request(at, "POST /metrics HTTP/1.1\r\n\r\n").0, 405);
    assert_eq!(request(at, "nonsense\r\n\r\n").0, 400);
    assert_eq!(
        request(at, &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000))).0,
        0
    );
    // Sixteen that say nothing hold every place for a moment, no longer.
    let idle: Vec<TcpStream> = (0..16).map(|_| TcpStream::connect(at).unwrap()).collect();
    let deadline = Instant::now() + Duration::from_secs(15);
    while get(at, "/livez").0 != 200 {
        assert!(Instant::now() < deadline, "idle probes hold the listener");
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(idle);
    server.kill();
}

/// docs/operation.md lists exactly the series that there are.
#[tokio::test]
async fn the_documented_list_of_metrics_is_complete() {
    let directory = tempfile::tempdir().unwrap();
    let (server, at) = server(directory.path(), "normal-0");
    let page = get(at, "/metrics").1;
    server.kill();
    let families: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operation.md");
    let manual = std::fs::read_to_string(manual).unwrap();
    let documented: Vec<&str> = manual
        .lines()
        .filter_map(|line| line.strip_prefix("| `bastionai_")?.split(['`', '{']).next())
        .collect();
    let mut families: Vec<&str> = families
        .iter()
        .map(|name| name.trim_start_matches("bastionai_"))
        .collect();
    let mut documented = documented;
    families.sort_unstable();
    documented.sort_unstable();
    assert_eq!(families, documented);
}
