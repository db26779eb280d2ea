//! Every setting in words: what it bounds, and what whoever meets it is told. `bastionai config check` prints it,
//! docs/operation.md tabulates it, and a test holds both to [`Config`]'s fields.

use super::Config;

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Explained {
    /// Table and field, e.g. `limits.steps`.
    pub key: &'static str,
    /// What it bounds or chooses.
    pub says: &'static str,
    /// What a caller hears, or what happens, where it is met; empty where nobody can meet it.
    pub met: &'static str,
    /// The test that meets it, as `file::name` below `crates/server`.
    pub test: &'static str,
}

const fn row(key: &'static str, says: &'static str, met: &'static str, test: &'static str) -> Explained {
    Explained { key, says, met, test }
}

/// Every setting, in the order of the file.
pub const EXPLAINED: &[Explained] = &[
    row("listen", "address for clients; port 0 takes a free one", "", ""),
    row(
        "data_dir",
        "directory of the vault: one server at a time",
        "the second server does not start",
        "",
    ),
    row(
        "attester",
        "who vouches for this server: auto (the TEE that is there), snp, tdx, azure, or insecure-simulated, which proves nothing; no default",
        "the server does not start where that TEE is not, and says where it looked",
        "src/attester/tests.rs::a_machine_without_a_tee_is_told_what_was_looked_for_where_and_what_to_do",
    ),
    row(
        "root_key",
        "where the vault's root key comes from; no default",
        "",
        "",
    ),
    row(
        "root_key_file",
        "file of the root key (32 bytes); absent: `insecure-root-key` in data_dir, made at the first start",
        "the server does not start without the file it names",
        "src/root_key.rs::a_named_key_file_is_read_and_never_made",
    ),
    row(
        "attestation.endorsements",
        "directory whose certificates (pem, der, cer, crt), revocation lists (crl), Intel collateral (json) and TD quote (quote) are stapled to evidence; read anew each time",
        "the server does not start with a directory that holds anything else",
        "src/attester/endorsements.rs::what_is_no_endorsement_is_refused_by_name_and_none_is_needed",
    ),
    row(
        "attestation.tsm",
        "directory where the kernel makes reports of SEV-SNP and TDX (configfs-tsm)",
        "",
        "",
    ),
    row(
        "attestation.tpm",
        "the vTPM of an Azure confidential VM: a device, or a Unix socket",
        "",
        "",
    ),
    row(
        "attestation.event_log",
        "the firmware's log of a TD (ACPI table CCEL), stapled to evidence where it is",
        "",
        "",
    ),
    row(
        "limits.message_bytes",
        "longest single message",
        "`upload-too-large`: a message is longer than … bytes",
        "tests/uploads.rs::hostile_uploads_are_refused_with_a_reason_and_leave_nothing",
    ),
    row(
        "limits.upload_bytes",
        "largest dataset, in bytes of its columns at the declared size",
        "`upload-too-large`: the server stores at most … for one dataset",
        "tests/uploads.rs::hostile_uploads_are_refused_with_a_reason_and_leave_nothing",
    ),
    row(
        "limits.model_bytes",
        "largest model archive",
        "`model-too-large`: the archive has … bytes, the server accepts …",
        "tests/uploads.rs::models_that_are_no_archive_or_another_than_announced_are_refused",
    ),
    row(
        "limits.models_total_bytes",
        "model archives held in memory, all together",
        "the oldest makes room; pricing it again says `unknown-model`",
        "src/models.rs::the_oldest_make_room_and_a_repeat_counts_once",
    ),
    row(
        "limits.stored_bytes",
        "storage of all datasets, padded, uploads in progress included",
        "`storage-quota`: more than is left of the … that the server stores",
        "tests/limits.rs::storage_in_all_is_bounded_and_said",
    ),
    row(
        "limits.stored_bytes_per_principal",
        "the same, of one owner",
        "`storage-quota`: one principal may store …",
        "tests/uploads.rs::one_owner_cannot_fill_the_disk",
    ),
    row(
        "limits.free_bytes_reserve",
        "free disk space that uploads leave for the ledger; below it the server is not ready",
        "`storage-full`: the server's disk has too little room",
        "tests/uploads.rs::uploads_stop_before_the_ledger_has_no_room",
    ),
    row(
        "limits.concurrent_uploads",
        "uploads at once",
        "`too-many-uploads`: as many uploads are in progress as the server takes",
        "tests/uploads.rs::a_client_that_disappears_or_falls_silent_in_an_upload_leaves_nothing_and_its_place",
    ),
    row(
        "limits.uploads_per_principal",
        "uploads at once of one principal",
        "`too-many-uploads`: you have … uploads in progress",
        "tests/uploads.rs::an_upload_ends_in_time_and_takes_no_place_beyond_its_owners_share",
    ),
    row(
        "limits.upload_idle_ms",
        "silence within an upload",
        "`upload-idle`: the upload sent nothing for too long",
        "tests/uploads.rs::a_client_that_disappears_or_falls_silent_in_an_upload_leaves_nothing_and_its_place",
    ),
    row(
        "limits.upload_timeout_ms",
        "length of an upload",
        "`upload-idle`: … or took too long in all",
        "tests/uploads.rs::an_upload_ends_in_time_and_takes_no_place_beyond_its_owners_share",
    ),
    row(
        "limits.concurrent_runs",
        "trainers at once; the memory of all must fit the machine",
        "the run waits in the queue",
        "tests/runs.rs::cancelling_a_queued_run_is_free_and_a_started_one_is_charged_in_full_without_weights",
    ),
    row(
        "limits.queued_runs",
        "runs waiting for a trainer",
        "`queue-full`: the queue of runs is full; nothing was charged",
        "tests/runs.rs::a_full_queue_refuses_and_charges_nothing",
    ),
    row(
        "limits.runs_per_principal",
        "runs of one principal, queued and running",
        "`queue-full`: you have as many runs queued and running as one may",
        "tests/limits.rs::one_scientist_cannot_take_the_whole_queue",
    ),
    row(
        "limits.connections",
        "open connections",
        "closed at once; `connection_refused` in the log",
        "tests/sessions.rs::silent_and_surplus_connections_are_dropped_and_others_served",
    ),
    row(
        "limits.handshake_timeout_ms",
        "length of a TLS handshake",
        "closed; `connection_refused` in the log",
        "tests/sessions.rs::silent_and_surplus_connections_are_dropped_and_others_served",
    ),
    row(
        "limits.attest_timeout_ms",
        "time until a session has asked for evidence and got it",
        "closed",
        "tests/sessions.rs::a_session_that_asks_for_no_evidence_is_closed_and_one_that_does_stays",
    ),
    row(
        "limits.calls_per_connection",
        "calls at once on one connection",
        "the next call waits until one ends (HTTP/2)",
        "tests/limits.rs::calls_beyond_a_connections_share_wait_and_other_connections_do_not",
    ),
    row(
        "limits.quote_lifetime_ms",
        "how long a quote can be started",
        "`quote-expired`: ask for a new one",
        "tests/runs.rs::quotes_end_with_their_time_and_with_the_boot",
    ),
    row(
        "limits.quotes_per_principal",
        "quotes held for one principal",
        "the oldest makes room; starting it says `quote-unknown`",
        "tests/limits.rs::a_new_quote_takes_the_place_of_the_oldest",
    ),
    row(
        "limits.quotes",
        "quotes held in all",
        "the oldest makes room; starting it says `quote-unknown`",
        "tests/limits.rs::a_new_quote_takes_the_place_of_the_oldest",
    ),
    row(
        "limits.concurrent_prices",
        "prices computed at once; others wait 20 seconds for a place",
        "`too-many-prices`: as many prices are being computed as the server does at once",
        "src/places.rs::one_principal_never_has_more_than_its_share_nor_all_more_than_there_are",
    ),
    row(
        "limits.prices_per_principal",
        "the same, of one principal",
        "`too-many-prices`: as many prices of yours are being computed as one may ask at once",
        "src/places.rs::one_principal_never_has_more_than_its_share_nor_all_more_than_there_are",
    ),
    row(
        "limits.failed_runs_per_dataset",
        "failed runs after which a private dataset takes no more (rule G4); enters each new dataset's policy",
        "`too-many-failures`",
        "tests/trainers.rs::failures_count_against_the_dataset_and_end_its_use",
    ),
    row(
        "limits.starts_per_day",
        "runs started on one private dataset in 24 hours (rule A13); enters each new dataset's policy",
        "`too-many-starts`",
        "tests/trainers.rs::starts_per_day_are_limited",
    ),
    row(
        "limits.steps",
        "steps of one run",
        "`run-spec-invalid`: steps must be between 1 and …",
        "tests/limits.rs::more_steps_than_allowed_are_refused_before_anything_is_priced",
    ),
    row(
        "limits.kept_iterates",
        "steps before the last whose weights one run may keep; at most 2047",
        "`run-spec-invalid`: … steps to keep: this server keeps the weights of at most …",
        "tests/kept.rs::what_a_run_may_keep_is_bounded_and_checked",
    ),
    row(
        "limits.kept_bytes",
        "weights that one run may keep besides its last, all together",
        "`run-spec-invalid`: the run would keep … bytes of weights besides its last",
        "tests/kept.rs::what_a_run_may_keep_is_bounded_and_checked",
    ),
    row(
        "trainer.path",
        "the trainer's program; absent: `bastionai-trainer` beside this one",
        "the server does not start",
        "src/config.rs::every_bad_value_is_reported_at_once_with_a_remedy",
    ),
    row(
        "trainer.device",
        "where runs are computed: cpu, or cuda, the first GPU that the NVIDIA driver shows",
        "the server does not start where the device cannot be used, and says what is missing",
        "src/program.rs::a_device_that_cannot_be_used_is_an_error_in_its_own_words",
    ),
    row(
        "trainer.insecure_unattested_gpu",
        "what `device = \"cuda\"` needs as well: records and models reach a GPU that no evidence covers",
        "the server does not start without it; with it clients see `insecure-unattested-gpu` and refuse by default",
        "tests/devices.rs::a_gpu_is_in_the_claims_and_refused_by_whoever_does_not_name_it",
    ),
    row(
        "trainer.threads",
        "threads of one trainer; 0: all cores over limits.concurrent_runs",
        "",
        "",
    ),
    row(
        "trainer.start_timeout_ms",
        "from the trainer's start to its readiness",
        "the run fails and costs nothing; `trainer_lost` in the log",
        "tests/limits.rs::a_trainer_that_is_never_ready_costs_nothing",
    ),
    row(
        "trainer.step_timeout_ms",
        "longest silence between two steps",
        "the trainer is killed, the run fails, charged in full",
        "tests/trainers.rs::a_trainer_that_dies_or_hangs_fails_the_run_and_the_whole_reserve_stays_charged",
    ),
    row(
        "trainer.run_timeout_ms",
        "from readiness to the last weight",
        "the trainer is killed, the run fails, charged in full",
        "tests/trainers.rs::a_run_that_takes_too_long_fails_and_stays_charged",
    ),
    row(
        "trainer.memory_bytes",
        "largest memory estimate of a run, and the most private memory a trainer gets; 0: three quarters of what the machine has at the start, over limits.concurrent_runs",
        "`run-spec-invalid`, with the batch that would fit; beyond it the trainer dies, the run fails, charged",
        "tests/trainers.rs::a_trainer_gets_no_more_memory_than_the_configuration_allows",
    ),
    row(
        "trainer.commit_ms",
        "progress is made durable with a checkpoint and released this often, and after the last step; for states up to 16 MiB",
        "",
        "",
    ),
    row(
        "trainer.checkpoint_ms",
        "the same for models whose state (parameters and optimizer) is larger, and whose checkpoints take seconds",
        "",
        "",
    ),
    row(
        "trainer.require_landlock",
        "refuse to start on a kernel without Landlock, rather than say `insecure-trainer-sandbox` in the claims",
        "the server does not start",
        "tests/trainers.rs::what_the_kernel_lacks_is_in_the_claims_or_refuses_the_start",
    ),
    row(
        "trainer.drain_timeout_ms",
        "at shutdown, how long running trainers get to finish a step and hand over a checkpoint",
        "the trainer is killed; the next start goes on from the checkpoint before",
        "tests/resume.rs::a_trainer_that_does_not_stop_in_time_is_killed_and_its_run_goes_on_from_the_checkpoint_before",
    ),
    row(
        "operations.listen",
        "loopback address of /livez, /readyz and /metrics; absent: none",
        "the server does not start on another address",
        "src/config.rs::probes_and_metrics_stay_on_the_machine",
    ),
    row(
        "log.level",
        "info, warn or error: the least severe events that are written",
        "",
        "",
    ),
];

/// The setting's words.
pub fn of(key: &str) -> Option<&'static Explained> {
    EXPLAINED.iter().find(|explained| explained.key == key)
}

/// The configuration as TOML with every default filled in and every setting explained.
pub fn annotated(config: &Config) -> String {
    let mut out = String::new();
    let mut table = String::new();
    for line in config.to_toml().lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = format!("{name}.");
        } else if let Some((field, _)) = line.split_once(" = ")
            && let Some(explained) = of(&format!("{table}{field}"))
        {
            out.push_str(&format!("# {}", explained.says));
            if !explained.met.is_empty() {
                out.push_str(&format!(". Met: {}", explained.met));
            }
            out.push('\n');
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeMap;
    use std::path::Path;

    /// Keys and default values of every field.
    fn fields() -> BTreeMap<String, Value> {
        let config = serde_json::to_value(Config::insecure_development("/var/lib/bastionai")).unwrap();
        let mut fields = BTreeMap::new();
        for (name, value) in config.as_object().unwrap() {
            match value.as_object() {
                Some(table) => {
                    let inner = table
                        .iter()
                        .map(|(field, value)| (format!("{name}.{field}"), value.clone()));
                    fields.extend(inner);
                }
                None => drop(fields.insert(name.clone(), value.clone())),
            }
        }
        fields
    }

    #[test]
    fn every_setting_is_explained_and_nothing_else() {
        let mut explained: Vec<String> = EXPLAINED.iter().map(|each| each.key.to_owned()).collect();
        explained.sort_unstable();
        let fields: Vec<String> = fields().into_keys().collect();
        assert_eq!(explained, fields);
    }

    #[test]
    fn every_limit_names_the_test_that_meets_it() {
        let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        for explained in EXPLAINED {
            let Some((file, name)) = explained.test.split_once("::") else {
                assert!(
                    explained.met.is_empty() || explained.key == "data_dir",
                    "{}",
                    explained.key
                );
                continue;
            };
            let source = std::fs::read_to_string(crate_folder.join(file)).unwrap_or_default();
            assert!(
                source.contains(&format!("fn {name}(")),
                "{}: no {}",
                explained.key,
                explained.test
            );
        }
    }

    /// docs/operation.md: `| key | default | says | met |`.
    #[test]
    fn the_manual_has_the_same_table_with_the_true_defaults() {
        let manual = include_str!("../../../../docs/operation.md");
        let (_, manual) = manual.split_once("\n## Every setting and limit\n").unwrap();
        let manual = manual.split("\n## ").next().unwrap();
        let mut rows = BTreeMap::new();
        for line in manual.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            if let [key, default, says, met] = cells[..] {
                rows.insert(key.trim_matches('`').to_owned(), (default.to_owned(), says, met));
            }
        }
        for (key, value) in fields() {
            let explained = of(&key).unwrap();
            let expected = match &value {
                _ if ["data_dir", "attester", "root_key"].contains(&&key[..]) => "required".to_owned(),
                Value::Null => "absent".to_owned(),
                Value::String(text) => format!("`{text}`"),
                other => format!("{other}"),
            };
            let (default, says, met) = rows
                .remove(&key)
                .unwrap_or_else(|| panic!("{key} is not in the manual"));
            assert_eq!(
                (default, says, met),
                (expected, explained.says, explained.met),
                "{key}"
            );
        }
        assert!(rows.is_empty(), "no such settings: {:?}", rows.keys());
    }

    #[test]
    fn the_annotated_configuration_is_the_configuration() {
        let config = Config::insecure_development("/tmp/x");
        let text = annotated(&config);
        assert_eq!(Config::from_toml(&text, "annotated").unwrap(), config);
        assert!(
            text.contains("# longest single message. Met: `upload-too-large`"),
            "{text}"
        );
    }
}
