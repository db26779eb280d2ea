"""From a release's files to an appraisal: measure, sign, appraise with the manifest."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from server_process import ServerProcess

from bastionai import AppraisalPolicy

ROOT = Path(__file__).resolve().parents[1]
BINARY = ROOT / "target" / "release" / "bastionai"
IMAGES = ROOT / "crates/attestation/tests/fixtures/reference"


def command(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the command and expects its exit code."""
    done = subprocess.run([str(BINARY), *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def boot(tmp_path: Path) -> list[object]:
    """The machine of the tests' images, as flags."""
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"initrd of the tests")
    files = ["--ovmf", IMAGES / "ovmf.fd", "--kernel", IMAGES / "kernel.efi", "--initrd", initrd]
    return [*files, "--cmdline", "console=ttyS0 ro"]


def test_launch_digests_are_measured_for_every_shape(binaries: None, boot: list[object]) -> None:
    shapes = ["--vcpus", 1, "--vcpus", 4, "--vcpu-type", "EPYC-Milan", "--vcpu-type", "EPYC-Genoa"]
    measured = json.loads(command("measure", "snp", *boot, *shapes, "--json").stdout)
    values = {(each["vcpu_type"], each["vcpus"]): each["measurement"] for each in measured["reference_values"]["snp"]}
    assert len(values) == 4
    # sev-snp-measure 0.0.13: crates/attestation/tests/fixtures/reference/make.py
    assert values["EPYC-Milan", 4].startswith("95351946b0c26d90")
    people = command("measure", "snp", *boot, *shapes).stdout
    assert "measurements = [" in people
    assert all(value in people for value in values.values())
    assert "EPYC-Turin" in command("measure", "snp", *boot, "--vcpus", 1, "--vcpu-type", "Xeon", code=1).stderr
    alone = ["--ovmf", IMAGES / "ovmf.fd", "--vcpus", 1, "--vcpu-type", "EPYC-Milan"]
    assert "not measured" in command("measure", "snp", *alone).stderr


def test_registers_of_a_trust_domain_come_with_their_events(binaries: None, boot: list[object]) -> None:
    measured = json.loads(command("measure", "tdx", *boot, "--json").stdout)
    (registers,) = measured["reference_values"]["tdx"]
    assert set(registers) == {"mrtd", "rtmr1", "rtmr2", "rtmr3"}
    assert [len(measured["events"][name]) for name in ("rtmr0", "rtmr1", "rtmr2")] == [7, 5, 2]
    people = command("measure", "tdx", *boot)
    assert f'rtmr1 = [\n  "{registers["rtmr1"]}"' in people.stdout
    assert "reference boot" in people.stderr
    kernel = ["--ovmf", IMAGES / "ovmf.fd", "--kernel", IMAGES / "ovmf.fd", "--cmdline", "x"]
    assert "no EFI image" in command("measure", "tdx", *kernel, code=1).stderr


def test_a_signed_release_fills_a_policy_and_no_other_does(
    server: ServerProcess, boot: list[object], tmp_path: Path
) -> None:
    live = ["appraise", server.address, "--heads", tmp_path / "heads.json"]
    shown: dict[str, Any] = json.loads(command(*live, "--allow-simulated", "--json").stdout)
    claims = shown["attestation"]["runtime_claims"]

    snp = tmp_path / "snp.json"
    shape = ["--vcpus", 2, "--vcpu-type", "EPYC-Milan"]
    snp.write_text(command("measure", "snp", *boot, *shape, "--json").stdout)
    key, manifest = tmp_path / "release.pem", tmp_path / "release.dsse.json"
    command("keygen", "--out", key)
    release = ["release-manifest", "--key", key, "--release", "0.1.0", "--source-revision", "abc", "--artifact", BINARY]
    digests = ["--trainer-digest", claims["trainer_digest"], "--libtorch-digest", claims["libtorch_digest"]]
    made = command(*release, "--measured", snp, *digests, "--pcr", f"4={'0a' * 32}", "--out", manifest)
    public = made.stdout.strip()
    assert "exists" in command(*release, *digests, "--out", manifest, code=1).stderr
    assert "no reference value" in command(*release, "--out", tmp_path / "empty", code=1).stderr

    def rules(*flags: object) -> set[str]:
        refused = json.loads(command(*live, *flags, "--json", code=2).stdout)["refusals"]
        return {refusal["rule"] for refusal in refused}

    with_manifest = ["--manifest", manifest, "--manifest-key", public]
    unfilled = {"measurement", "trainer", "libtorch", "configuration"}
    assert unfilled <= rules()
    # The simulated launch measurement is not the release's: still refused, as is what the release does not say.
    assert unfilled & rules(*with_manifest) == {"measurement", "configuration"}
    assert "trainer" in rules(*with_manifest, "--trainer-digest", "00" * 32), "the relying party's own list wins"

    policy = AppraisalPolicy(libtorch_digests=["00" * 32], manifest=manifest, manifest_key=public)
    written = tmp_path / "policy.json"
    written.write_text(policy.to_json())
    assert {"trainer", "libtorch"} & rules("--policy", written) == {"libtorch"}
    with pytest.raises(ValueError, match="go together"):
        AppraisalPolicy(manifest=manifest).to_json()

    (tmp_path / "release.pub").write_text(public + "\n")
    assert "trainer" not in rules("--manifest", manifest, "--manifest-key", tmp_path / "release.pub")
    command("keygen", "--out", tmp_path / "other.pem")
    other = json.loads(
        command(
            *("release-manifest", "--key", tmp_path / "other.pem", "--release", "1", "--source-revision", "abc"),
            *("--artifact", BINARY, *digests, "--out", tmp_path / "other.json", "--json"),
        ).stdout
    )
    assert (
        "expected key" in command(*live, "--manifest", manifest, "--manifest-key", other["manifest_key"], code=1).stderr
    )
    manifest.write_text(manifest.read_text().replace("keyid", "kid"))
    assert "canonical" in command(*live, *with_manifest, code=1).stderr
    command(*live, "--manifest", manifest, code=2)  # usage: a manifest without a key counts for nothing
