"""The command line as people use it: a run from keys to fetched weights, and what it refuses."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import bastionai

ROOT = Path(__file__).resolve().parents[1]
BINARY = ROOT / "target" / "release" / "bastionai"

CONTRACT = {
    "version": 1,
    "columns": [
        {"name": "x", "dtype": "f32", "shape": [3], "domain": {"range": {"minimum": [-1.0], "maximum": [1.0]}}},
        {"name": "label", "dtype": "i64", "shape": [], "domain": {"classes": {"names": ["no", "yes"]}}},
    ],
    "privacy_unit": "record",
    "declared_size": 96,
}


def bastionai_command(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the command and expects its exit code."""
    words = [str(word) for word in arguments]
    done = subprocess.run([str(BINARY), *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


class Person:
    """An identity that talks to one server."""

    def __init__(self, identity: Path, address: str, heads: Path) -> None:
        self.flags = ["--host", address, "--identity", identity, "--heads", heads, "--allow-simulated"]

    def does(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs a verb."""
        return bastionai_command(*arguments, *self.flags, code=code)

    def asks(self, *arguments: object) -> Any:
        """Runs a verb for its JSON."""
        return json.loads(self.does(*arguments, "--json").stdout)


@pytest.fixture
def person(server: Any, people: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Person]:
    return lambda name: Person(people(name), server.address, tmp_path / f"{name}.heads.json")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A contract, 80 rows that keep it, and an exported classifier."""
    (tmp_path / "contract.json").write_text(json.dumps(CONTRACT))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((80, 3), generator=generator) * 2 - 1
    write_rows(tmp_path / "rows.csv", x.tolist(), ["yes" if row.sum() > 0 else "no" for row in x])
    bastionai.export(Classifier(), (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)), tmp_path / "mlp.pt2")
    return tmp_path


class Classifier(torch.nn.Module):
    """One loss per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, sample by sample."""
        return -torch.log_softmax(self.layer(x), -1).gather(1, label[:, None])[:, 0]


def write_rows(path: Path, x: list[list[float]], labels: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x_0", "x_1", "x_2", "label"])
        writer.writerows([*row, label] for row, label in zip(x, labels, strict=True))


def put(owner: Person, files: Path, name: str, *more: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    contract = ["--contract", files / "contract.json"]
    return owner.does("dataset", "put", files / "rows.csv", *contract, "--name", name, *more, code=code)


def test_a_run_from_a_csv_file_to_safetensors(person: Callable[[str], Person], files: Path) -> None:
    owner, scientist = person("cli-owner"), person("cli-scientist")
    put(owner, files, "cli", "--epsilon", "3.0", "--may-train", "anyone")
    start = ["run", "start", files / "mlp.pt2", "--dataset", "cli", "--epsilon", "2", "--batch-size", "16"]
    start += ["--max-batch-size", "16", "--steps", "5", "--lr", "0.1", "--max-loss", "4"]
    priced = scientist.does(*start, "--price-only")
    assert "cli" in priced.stdout
    run = scientist.asks(*start)["id"]
    watched = scientist.does("run", "watch", run, "--json").stdout.splitlines()
    assert json.loads(watched[-1])["run"]["state"] == "succeeded"
    scientist.does("run", "fetch", run, "--out", files / "out")
    weights = load_file(files / "out" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        "layer.weight": (2, 3),
        "layer.bias": (2,),
    }
    assert json.loads((files / "out" / "receipt.dsse.json").read_text())["signatures"]
    receipt = files / "out" / "receipt.dsse.json"
    audited = bastionai_command("receipt", "check", receipt, "--allow-simulated", "--json")
    assert json.loads(audited.stdout)["receipt"]["run"]["id"] == run
    assert "simulated" in bastionai_command("receipt", "check", receipt, code=1).stderr
    forged = receipt.read_text().replace('"sig":"', '"sig":"AA', 1)
    (files / "forged.json").write_text(forged)
    bastionai_command("receipt", "check", files / "forged.json", "--allow-simulated", code=1)
    assert scientist.asks("run", "list")[0]["id"] == run
    shown = owner.asks("dataset", "show", "cli")
    assert float(shown["budget"]["remaining"]["epsilon"]) == pytest.approx(1.0, abs=1e-3)
    kinds = [entry["kind"] for entry in owner.asks("ledger", "show", "--dataset", "cli")["entries"]]
    assert kinds[0] == "dataset_created"
    assert "run_committed" in kinds
    again = scientist.does(*start, "--json", code=1)
    assert "budget exceeded: cli" in again.stderr
    assert "budget exceeded: cli" in json.loads(again.stdout)["error"]


def test_a_lifetime_of_renyi_divergences_is_shown_priced_in_both_currencies_and_exhausted(
    person: Callable[[str], Person], files: Path
) -> None:
    owner, scientist = person("cli-owner"), person("cli-scientist")
    terms = ["--epsilon", "6.0", "--may-train", "anyone", "--composition", "renyi"]
    put(owner, files, "orders", *terms, "--renyi-order", "4", "--renyi-order", "10.5:3")
    shown = owner.asks("dataset", "show", "orders")
    assert [each["order"] for each in shown["renyi_budget"]["orders"]] == ["4", "10.5"]
    assert shown["policy"]["composition"]["renyi"][1]["weight"] == 3
    assert shown["renyi_budget"]["remaining_epsilon"] == "6.0"
    assert "one order has enough" in owner.does("dataset", "show", "orders").stdout
    start = [
        "run",
        "start",
        files / "mlp.pt2",
        "--dataset",
        "orders",
        "--batch-size",
        "16",
        "--steps",
        "3",
        "--lr",
        "1",
    ]
    priced = scientist.does(*start, "--epsilon", "1", "--price-only").stdout
    assert "by Rényi divergences" in priced
    [charge] = scientist.asks(*start, "--epsilon", "1", "--price-only")["charges"]
    assert charge["by_renyi"]
    assert charge["renyi"]["orders"] == ["4", "10.5"]
    assert float(charge["renyi"]["epsilon_before"]) == 0 < float(charge["renyi"]["epsilon_after"])
    run = scientist.asks(*start, "--epsilon", "1")["id"]
    scientist.does("run", "watch", run)
    used = owner.asks("dataset", "show", "orders")["renyi_budget"]["used_epsilon"]
    assert used == charge["renyi"]["epsilon_after"]
    refused = scientist.does(*start, "--epsilon", "5.9", code=1).stderr
    assert "budget exceeded: orders" in refused
    for more, reason in (
        (["--renyi-order", "1"], "1.1"),
        (["--renyi-order", "8", "--renyi-order", "4"], "ris"),
        (["--renyi-order", "8:0"], "weight"),
    ):
        assert reason in put(owner, files, "never", *terms, *more, code=1).stderr
    basic = put(owner, files, "never", *terms[:-1], "basic", "--renyi-order", "8", code=1)
    assert "--composition renyi" in basic.stderr


def test_an_owner_may_require_noise_mode_hardened(person: Callable[[str], Person], files: Path) -> None:
    owner, scientist = person("cli-owner"), person("cli-scientist")
    put(owner, files, "strict", "--epsilon", "6", "--may-train", "anyone", "--require-hardened")
    assert owner.asks("dataset", "show", "strict")["policy"]["require_hardened"]
    assert "hardened" in owner.does("dataset", "show", "strict").stdout
    start = ["run", "start", files / "mlp.pt2", "--dataset", "strict", "--batch-size", "16", "--steps", "3"]
    start += ["--lr", "0.1", "--epsilon", "1", "--price-only"]
    refused = scientist.does(*start, code=1).stderr
    assert "`strict` requires noise_mode hardened" in refused
    assert scientist.asks(*start, "--noise-mode", "hardened")["spec"]["noise_mode"] == "hardened"


def test_a_value_outside_the_contract_is_refused_locally_with_its_row(
    person: Callable[[str], Person], files: Path
) -> None:
    write_rows(files / "rows.csv", [[0.0, 0.0, 0.0], [0.0, 7.25, 0.0]], ["no", "yes"])
    refused = put(person("cli-owner"), files, "never", "--epsilon", "1", "--may-train", "anyone", code=1)
    assert "row 1" in refused.stderr
    assert "x" in refused.stderr
    assert "7.25" not in refused.stderr
    assert "never" not in [dataset["name"] for dataset in person("cli-owner").asks("dataset", "list")]


def test_a_label_that_is_no_class_is_refused_without_its_value(person: Callable[[str], Person], files: Path) -> None:
    write_rows(files / "rows.csv", [[0.0, 0.0, 0.0]], ["secret"])
    refused = put(person("cli-owner"), files, "never", "--epsilon", "1", "--may-train", "anyone", code=1)
    assert "label" in refused.stderr
    assert "secret" not in refused.stderr


def by_patient(files: Path, patients: list[str]) -> None:
    """A contract that protects patients, and a column of them in the rows."""
    unit = {"name": "patient_id", "dtype": "string", "max_records": 3, "declared_units": 32}
    (files / "contract.json").write_text(json.dumps({**CONTRACT, "privacy_unit": {"column": unit}}))
    with (files / "rows.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    with (files / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, "patient_id"])
        writer.writerows([*row, patient] for row, patient in zip(rows, patients, strict=False))


def test_patients_are_protected_as_one_and_one_above_the_cap_is_refused_by_its_row(
    person: Callable[[str], Person], files: Path
) -> None:
    owner, scientist = person("cli-owner"), person("cli-scientist")
    by_patient(files, [f"zyx-{row % 30}" for row in range(80)])
    put(owner, files, "cli-units", "--epsilon", "3.0", "--may-train", "anyone")
    assert "all records of a patient_id together" in owner.does("dataset", "show", "cli-units").stdout
    start = ["run", "start", files / "mlp.pt2", "--dataset", "cli-units", "--epsilon", "2", "--batch-size", "8"]
    start += ["--steps", "5", "--lr", "0.1", "--max-loss", "4", "--price-only"]
    assert "per patient_id" in scientist.does(*start).stdout
    priced = scientist.asks(*start, "--records-per-unit", 2)
    assert (priced["spec"]["records_per_unit"], priced["declared_size"]) == (2, 32)
    write_rows(files / "rows.csv", [[0.0, 0.0, 0.0]] * 4, ["no"] * 4)
    by_patient(files, ["zyx-1"] * 4)
    check = ["dataset", "check", files / "rows.csv", "--contract", files / "contract.json"]
    refused = bastionai_command(*check, code=1)
    assert "row 3" in refused.stderr
    assert "more than 3 records" in refused.stderr
    assert "zyx" not in refused.stderr
    split = put(owner, files, "never", "--epsilon", "1", "--test-fraction", "0.5", "--may-train", "anyone", code=1)
    assert "--test-fraction splits by record" in split.stderr


def test_simulated_evidence_is_refused_unless_named(person: Callable[[str], Person]) -> None:
    owner = person("cli-owner")
    owner.flags.remove("--allow-simulated")
    refused = owner.does("dataset", "list", code=1)
    assert "simulated" in refused.stderr
    assert "reference value" in refused.stderr


def test_check_prints_the_typed_graph_or_every_refusal(files: Path) -> None:
    fine = bastionai_command("check", files / "mlp.pt2")
    assert "linear" in fine.stdout
    document = json.loads(bastionai_command("check", files / "mlp.pt2", "--json").stdout)
    assert document["accepted"] is True
    leaky = ROOT / "crates/graph/tests/fixtures/refused_batch_mean.pt2"
    refused = bastionai_command("check", leaky, code=2)
    assert refused.stdout == ""
    assert ".py:" in refused.stderr
    document = json.loads(bastionai_command("check", leaky, "--json", code=2).stdout)
    assert document["accepted"] is False
    assert {"node", "operator", "reason", "remedy"} <= set(document["refusals"][0])


def test_an_archive_that_is_none_is_refused(files: Path) -> None:
    (files / "junk.pt2").write_bytes(b"PK\x03\x04 not an archive")
    assert bastionai_command("check", files / "junk.pt2", code=2).stderr.strip()


def test_config_check_says_everything_that_is_wrong(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text(
        'data_dir = "vault"\nattester = "insecure-simulated"\nroot_key = "insecure-file"\n'
        "[limits]\nconnections = 0\nsteps = 0\n"
    )
    refused = bastionai_command("config", "check", config, code=1)
    assert "limits.connections" in refused.stderr
    assert "limits.steps" in refused.stderr
    config.write_text('data_dir = "vault"\nattester = "insecure-simulated"\nroot_key = "insecure-file"\ntypo = 1\n')
    assert "typo" in bastionai_command("config", "check", config, code=1).stderr


def test_every_verb_answers_in_json(person: Callable[[str], Person], files: Path) -> None:
    owner = person("json-owner")
    kept = json.loads(put(owner, files, "json", "--epsilon", "1", "--may-train", "anyone", "--json").stdout)
    assert kept["name"] == "json"
    assert owner.asks("run", "list") == []
    assert owner.asks("ledger", "show")["head"]
    query = ["--noise-multiplier", "1", "--sample-rate", "0.01", "--steps", "100", "--delta", "1e-5"]
    assert json.loads(bastionai_command("epsilon", *query, "--json").stdout)["epsilon"] > 0
    key = json.loads(bastionai_command("keygen", "--out", files / "key.pem", "--json").stdout)
    assert len(key["principal"]) == 64
    unknown = owner.does("run", "cancel", "0" * 32, "--json", code=1)
    assert json.loads(unknown.stdout)["error"]
    unknown = owner.does("run", "fetch", "0" * 32, "--out", files / "none", "--json", code=1)
    assert json.loads(unknown.stdout)["error"]
    assert not (files / "none").exists()


def test_sigterm_drains_and_the_run_goes_on_at_the_next_start(
    own_server: Any, people: Callable[[str], Path], files: Path
) -> None:
    everyone = Person(people("drained"), own_server.address, files / "heads.json")
    put(everyone, files, "drained", "--epsilon", "3", "--may-train", "anyone")
    start = ["run", "start", files / "mlp.pt2", "--dataset", "drained", "--epsilon", "1", "--batch-size", "16"]
    run = everyone.asks(*start, "--max-batch-size", "16", "--steps", "200000", "--lr", "0.1")["id"]
    watch = subprocess.Popen(
        [str(BINARY), "run", "watch", run, *map(str, everyone.flags)], stderr=subprocess.PIPE, text=True
    )
    assert watch.stderr is not None
    # Step 0 is a run that waits: nothing was started, nothing would be charged.
    while not re.match(r"step [1-9]", line := watch.stderr.readline()):
        assert line, "the watch ended before the first step"
    started = time.monotonic()
    assert own_server.stop() == 0
    assert time.monotonic() - started < 60
    watch.communicate(timeout=30)
    own_server.start()
    everyone = Person(people("drained"), own_server.address, files / "heads.json")
    kept = everyone.asks("run", "list")[0]
    assert kept["state"] in ("queued", "running")
    assert kept["released_step"] >= 1
    assert everyone.asks("run", "suspend", run)["state"] == "suspended"
    assert everyone.asks("run", "resume", run)["state"] in ("queued", "running")
    assert everyone.asks("run", "cancel", run)["state"] == "cancelled"
    left = everyone.asks("dataset", "show", "drained")["budget"]["remaining"]["epsilon"]
    assert float(left) == pytest.approx(2.0, abs=1e-3)


def test_serve_without_an_attester_says_that_it_must_be_named(tmp_path: Path) -> None:
    refused = bastionai_command("serve", "--data-dir", tmp_path / "vault", code=1)
    assert "insecure-simulated" in refused.stderr
    assert not (tmp_path / "vault").exists()


def test_a_live_server_is_appraised_with_its_claims_and_a_verdict(server: Any, tmp_path: Path) -> None:
    heads = ["--heads", tmp_path / "heads.json"]
    refused = bastionai_command("appraise", server.address, *heads, code=2)
    assert "trainer" in refused.stdout
    assert "reference value" in refused.stdout
    document = json.loads(bastionai_command("appraise", server.address, *heads, "--json", code=2).stdout)
    assert document["accepted"] is False
    assert {"simulated", "measurement", "trainer"} <= {refusal["rule"] for refusal in document["refusals"]}
    accepted = bastionai_command("appraise", server.address, *heads, "--allow-simulated")
    assert "SIMULATED" in accepted.stdout
    assert "for the first time" in accepted.stdout
    again = bastionai_command("appraise", server.address, *heads, "--allow-simulated", "--json")
    document = json.loads(again.stdout)
    assert document["accepted"] is True
    assert document["server"]["first_contact"] is False
    claims = document["attestation"]["runtime_claims"]
    pinned = ["--trainer-digest", claims["trainer_digest"], "--minimum-freshness", "none"]
    found = json.loads(bastionai_command("appraise", server.address, *heads, *pinned, "--json", code=2).stdout)
    rules = {refusal["rule"] for refusal in found["refusals"]}
    assert "trainer" not in rules
    assert "libtorch" in rules
    policy = tmp_path / "policy.json"
    policy.write_text(bastionai.AppraisalPolicy(trainer_digests="any", ledger_id="00" * 16).to_json())
    found = json.loads(
        bastionai_command("appraise", server.address, *heads, "--policy", policy, "--json", code=2).stdout
    )
    rules = {refusal["rule"] for refusal in found["refusals"]}
    assert "trainer" not in rules
    assert "ledger" in rules
    policy.write_text('{"trainer_digest": []}')
    assert "trainer_digest" in bastionai_command("appraise", server.address, "--policy", policy, code=1).stderr
    bastionai_command("appraise", server.address, "--policy", policy, "--allow-simulated", code=2)
    assert "cannot reach" in bastionai_command("appraise", "127.0.0.1:1", *heads, code=1).stderr


def test_rows_are_checked_without_a_server(files: Path) -> None:
    check = ["dataset", "check", files / "rows.csv", "--contract", files / "contract.json"]
    assert "80 rows keep the contract" in bastionai_command(*check).stdout
    assert json.loads(bastionai_command(*check, "--json").stdout)["rows"] == 80
    write_rows(files / "rows.csv", [[0.0, 0.0, 0.0]] * 97, ["no"] * 97)
    assert "declare 128" in bastionai_command(*check, code=1).stderr
    write_rows(files / "rows.csv", [[0.0, 0.0, 0.0], [0.0, 7.25, 0.0]], ["no", "yes"])
    refused = bastionai_command(*check, "--json", code=1)
    assert "row 1" in json.loads(refused.stdout)["error"]
    assert json.loads(refused.stdout)["kind"] == "row-refused"
    assert "7.25" not in refused.stderr


def test_an_owner_withdraws_removes_and_keeps_receipts(person: Callable[[str], Person], files: Path) -> None:
    owner, scientist = person("lender"), person("borrower")
    put(owner, files, "lent", "--epsilon", "3.0", "--may-train", "anyone")
    start = ["run", "start", files / "mlp.pt2", "--dataset", "lent", "--epsilon", "1", "--batch-size", "16"]
    run = scientist.asks(*start, "--max-batch-size", "16", "--steps", "5", "--lr", "0.1")["id"]
    scientist.does("run", "watch", run)
    assert "do not all allow you" in owner.does("run", "fetch", run, "--out", files / "none", code=1).stderr
    owner.does("receipt", "fetch", run, "--out", files / "receipt.json")
    audited = bastionai_command("receipt", "check", files / "receipt.json", "--allow-simulated", "--json")
    assert json.loads(audited.stdout)["receipt"]["run"]["id"] == run
    assert "exists already" in owner.does("receipt", "fetch", run, "--out", files / "receipt.json", code=1).stderr
    assert owner.asks("run", "show", run)["charges"][0]["dataset_name"] == "lent"
    assert "does not concern you" in person("passer-by").does("run", "show", run, code=1).stderr

    foreign = scientist.does("dataset", "withdraw", "lent", "--json", code=1)
    assert json.loads(foreign.stdout)["kind"] == "not-found"
    assert owner.asks("dataset", "withdraw", "lent")["state"] == "withdrawn"
    assert "lent" not in [dataset["name"] for dataset in scientist.asks("dataset", "list")]
    assert "--yes" in owner.does("dataset", "rm", "lent", code=1).stderr
    assert owner.asks("dataset", "rm", "lent", "--yes")["state"] == "removed"
    kinds = [entry["kind"] for entry in owner.asks("ledger", "show", "--dataset", "lent")["entries"]]
    assert kinds[-2:] == ["dataset_withdrawn", "dataset_removed"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_name_every_verb(shell: str) -> None:
    script = bastionai_command("completions", shell).stdout
    for verb in ("appraise", "dataset", "withdraw", "receipt", "completions"):
        assert verb in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_every_verb_has_a_manual_page(tmp_path: Path) -> None:
    pages = json.loads(bastionai_command("man", tmp_path / "man", "--json").stdout)["pages"]
    assert {"bastionai.1", "bastionai-appraise.1", "bastionai-dataset-rm.1", "bastionai-run-start.1"} <= set(pages)
    for page in pages:
        assert (tmp_path / "man" / page).read_text().startswith((".ie", ".TH"))


def test_a_model_is_evaluated_on_rows_held_out_of_the_same_file(person, files):
    owner = person("owner")
    put = ["dataset", "put", files / "rows.csv", "--contract", files / "contract.json", "--may-train", "anyone"]
    kept = owner.asks(*put, "--name", "split", "--epsilon", "3", "--test-fraction", "0.25", "--test-epsilon", "50")
    assert [each["name"] for each in kept] == ["split", "split.test"]
    assert kept[1]["policy"]["evaluation_only"]
    assert kept[1]["budget"]["lifetime"]["epsilon"] == "50.0"
    assert kept[1]["contract"]["declared_size"] == 24  # 20 rows
    assert (
        "held out"
        in owner.does(
            "run",
            "start",
            files / "mlp.pt2",
            "--dataset",
            "split.test",
            "--epsilon",
            "1",
            "--batch-size",
            "8",
            "--steps",
            "2",
            "--lr",
            "0.1",
            code=1,
        ).stderr
    )

    contract = bastionai.DataContract(
        [
            bastionai.Column("x", "float32", (3,), range=(-1, 1)),
            bastionai.Column("label", "int64", classes=["no", "yes"]),
        ]
    )
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-5.0, -5, -5], [5, 5, 5]]))
        model.bias.zero_()
    scores = bastionai.export_scores(model, contract.with_declared_size(96), files / "scores.pt2")
    scientist = person("scientist")
    evaluate = ["run", "evaluate", scores, "--dataset", "split.test"]
    price = scientist.asks(*evaluate, "--eps", "20", "--metrics", "accuracy", "--price-only")
    assert price["classes"] == 2
    receipt = files / "evaluation.dsse.json"
    found = scientist.asks(*evaluate, "--eps", "20", "--metrics", "accuracy,f1,auroc,confusion", "--receipt", receipt)
    assert set(found["metrics"]) == {"accuracy", "f1", "auroc"}
    accuracy = found["metrics"]["accuracy"]
    assert abs(accuracy["value"] - 1.0) <= 5 * accuracy["std_error"]
    assert found["receipt"]["run"]["kind"] == "evaluation"
    assert len(found["confusion"]["counts"]) == 2
    bastionai_command("receipt", "check", receipt, "--allow-simulated")
    table = scientist.does(*evaluate, "--eps", "20", "--metrics", "confusion,accuracy").stdout
    assert "error (noise)" in table
    assert "no finite score" in table
    assert "evaluation" in scientist.does("run", "list").stdout
    wrong = scientist.does(*evaluate, "--eps", "1", "--metrics", "precision", code=2).stderr
    assert "choose from accuracy, auroc" in wrong
    assert "budget exceeded" in scientist.does(*evaluate, "--eps", "40", code=1).stderr
    assert "target_epsilon" in scientist.does(*evaluate, "--eps=-1", code=1).stderr
    both = owner.does(*put, "--name", "x", "--epsilon", "1", "--test-fraction", "0.2", "--evaluation-only", code=2)
    assert "cannot be used with" in both.stderr
    assert (
        "share between 0 and 1"
        in owner.does(*put, "--name", "x", "--epsilon", "1", "--test-fraction", "1.5", code=1).stderr
    )
