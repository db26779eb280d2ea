"""Breaks the mechanism in one place at a time and expects the test that is about that place to fail.

No hook in the production code: a mutant is a piece of source text and what it is replaced by, applied to a copy of the
working tree in ``target/mutants/tree`` that builds into ``target/mutants/build``. Every text must be found exactly once
and every named test must exist and pass on the unbroken copy, so that no mutant goes stale unnoticed. Exit status 0 if
all mutants are killed.

    scripts/mutants.py                 # all of them
    scripts/mutants.py half-noise ...  # some
    scripts/mutants.py --check         # only whether the texts and the tests are there; builds nothing
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "target" / "mutants" / "tree"
BUILD = ROOT / "target" / "mutants" / "build"
TRAINER = "crates/trainer/src"
TESTS = "crates/trainer/tests/audit"


@dataclass(frozen=True)
class Mutant:
    """One thing gone wrong, and the test that is about it."""

    name: str
    file: str
    source: str
    replacement: str
    test: str


MUTANTS = [
    Mutant(
        "no-noise",
        f"{TRAINER}/optimizer.rs",
        "first_index, chunk.sums, deviation)",
        "first_index, &mut chunk.sums.to_vec(), deviation)",
        "released::the_noise_of_a_released_sum_has_the_deviation_that_was_priced",
    ),
    Mutant(
        "half-noise",
        f"{TRAINER}/training.rs",
        "standard_deviation: job.noise_multiplier",
        "standard_deviation: 0.5 * job.noise_multiplier",
        "released::the_noise_of_a_released_sum_has_the_deviation_that_was_priced",
    ),
    Mutant(
        "half-noise-on-losses",
        f"{TRAINER}/training.rs",
        "release.noise_multiplier * LOSS_UNITS",
        "0.5 * release.noise_multiplier * LOSS_UNITS",
        "released::the_noise_of_a_released_loss_has_the_deviation_that_was_priced",
    ),
    Mutant(
        "true-batch-size-as-divisor",
        f"{TRAINER}/training.rs",
        "let (noise, mean, threads) = (&self.noise, self.mean, settings.threads as usize);",
        "let true_size = places.iter().flatten().count().max(1) as f64;\n"
        "        let mean = NoisyMean { scale: self.engine.grid().width() / true_size, ..self.mean };\n"
        "        let (noise, threads) = (&self.noise, settings.threads as usize);",
        "released::a_step_divides_by_the_public_batch_size_whatever_the_number_of_records_is",
    ),
    Mutant(
        "mean-for-sum",
        f"{TRAINER}/clipping.rs",
        "let list: Vec<f64> = norms.iter().zip(&magnitudes).zip(&usable).map(factor).collect();",
        "let counted = usable.iter().filter(|usable| **usable).count().max(1) as f64;\n"
        "    let factors = norms.iter().zip(&magnitudes).zip(&usable).map(factor);\n"
        "    let list: Vec<f64> = factors.map(|factor| factor / counted).collect();",
        "released::a_step_releases_a_sum_each_record_adds_its_clipped_gradient",
    ),
    Mutant(
        "a-layer-left-out-of-the-norm",
        f"{TRAINER}/gradients.rs",
        "        norm_squared = norm_squared.f_add(&squared)?;\n"
        "        magnitude_squared = magnitude_squared.f_add(&magnitude)?;\n",
        "        if !parameters.is_empty() {\n"
        "            norm_squared = norm_squared.f_add(&squared)?;\n"
        "            magnitude_squared = magnitude_squared.f_add(&magnitude)?;\n"
        "        }\n",
        "released::the_norm_that_is_clipped_is_that_of_all_layers",
    ),
    Mutant(
        "no-clipping",
        f"{TRAINER}/clipping.rs",
        "            rule.factor(norm, magnitude.sqrt())\n",
        "            rule.factor(norm, magnitude.sqrt()).max(1.0)\n",
        "step::no_record_moves_the_sum_of_a_step_by_more_than_is_charged",
    ),
    Mutant(
        "noise-of-the-first-step-again",
        f"{TRAINER}/training.rs",
        "sums, noise, step, mean, threads)?;",
        "sums, noise, 1, mean, threads)?;",
        "released::the_noise_of_two_steps_is_unrelated",
    ),
    Mutant(
        "noise-of-the-first-chunk-again",
        f"{TRAINER}/optimizer.rs",
        "        index: chunk * CHUNK as u64,\n",
        "        index: chunk * 0,\n",
        "released::the_noise_of_two_coordinates_is_unrelated",
    ),
    Mutant(
        "a-fixed-seed",
        f"{TRAINER}/training.rs",
        "        .fill(&mut key[..])\n",
        "        .fill(&mut [0; 32][..])\n",
        "released::two_runs_of_one_job_share_no_noise",
    ),
    Mutant(
        "sample-of-the-first-step-again",
        f"{TRAINER}/training.rs",
        "let places = self.sampler.places(step)?;",
        "let places = self.sampler.places(1)?;",
        "released::the_samples_of_two_steps_are_independent",
    ),
    Mutant(
        "shuffle-for-poisson",
        f"{TRAINER}/sample.rs",
        "        let rank = |(thing, unit)| Ok((self.rank(step, Purpose::Cut, thing)?, unit));\n",
        "        let all = self.datasets.iter().scan(0, |first, shape| {\n"
        "            let rows = *first..*first + shape.rows;\n"
        "            *first += shape.capacity;\n"
        "            Some(rows)\n"
        "        });\n"
        "        let all: Vec<u64> = all.flatten().collect();\n"
        "        let size = (all.len() as f64 * self.sampler.probability()).round() as usize;\n"
        "        let order = all.into_iter().map(|row| Ok((self.rank(step, Purpose::Cut, row)?, row)));\n"
        "        let mut order = order.collect::<Result<Vec<(u128, u64)>>>()?;\n"
        "        order.sort_unstable();\n"
        "        pooled = order.into_iter().take(size).map(|(_, row)| (row, Unit::Row(row))).collect();\n"
        "        let rank = |(thing, unit)| Ok((self.rank(step, Purpose::Cut, thing)?, unit));\n",
        "released::the_sample_of_a_step_is_a_poisson_sample",
    ),
    Mutant(
        "padding-drawn",
        f"{TRAINER}/sample.rs",
        ".filter(|&&row| row < shape.rows)",
        ".filter(|&&row| row < shape.capacity)",
        "released::the_sample_of_a_step_is_a_poisson_sample",
    ),
    Mutant(
        "no-clipping-of-losses",
        f"{TRAINER}/training.rs",
        "loss.clamp(0.0, max_loss) / max_loss",
        "loss / max_loss",
        "step::a_hostile_record_moves_what_a_training_releases_by_no_more_than_is_charged",
    ),
    Mutant(
        "noise-of-a-band-for-one-step",
        f"{TRAINER}/training.rs",
        "job.noise_multiplier * column_norm",
        "job.noise_multiplier",
        "banded::the_noise_of_a_band_is_independent_and_as_large_as_was_priced_once_the_band_is_undone",
    ),
    Mutant(
        "a-band-that-forgets",
        f"{TRAINER}/optimizer.rs",
        "place, chunk.sums, chunk.memory)",
        "place, chunk.sums, &mut vec![0; chunk.memory.len()])",
        "banded::the_noise_of_a_band_is_independent_and_as_large_as_was_priced_once_the_band_is_undone",
    ),
    Mutant(
        "a-turn-at-every-step",
        f"{TRAINER}/sample.rs",
        "u64::from(classes.of_slot[slot as usize]) == step % classes.count",
        "u64::from(classes.of_slot[slot as usize]) < classes.count.max(step)",
        "banded::turns_are_told_apart_no_better_than_priced_and_nearly_as_well",
    ),
    Mutant(
        "new-classes-at-every-start",
        f"{TRAINER}/training.rs",
        "band.class_key.0",
        "*fresh()?",
        "banded::a_record_has_one_turn_in_a_band_of_steps_at_every_start_and_is_then_drawn_independently",
    ),
]


def missing(mutant: Mutant) -> str | None:
    """What a mutant needs and the sources do not have."""
    found = (ROOT / mutant.file).read_text().count(mutant.source)
    if found != 1:
        return f"{mutant.name}: its text is in {mutant.file} {found} times; it must be there once"
    module, name = mutant.test.split("::")
    tests = (ROOT / TESTS / f"{module}.rs").read_text()
    if len(re.findall(rf"#\[test\]\nfn {name}\(\)", tests)) != 1:
        return f"{mutant.name}: {TESTS}/{module}.rs has no test {name}"
    return None


def copy_tree() -> None:
    """Brings the copy up to date; files that did not change keep their times, for cargo."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    for old in [path for path in TREE.rglob("*") if path.is_file() or path.is_symlink()]:
        if str(old.relative_to(TREE)) not in files:
            old.unlink()
    for name in files:
        source, target = ROOT / name, TREE / name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def copy_dependencies() -> None:
    """Starts from the dependencies that are built already (torch-sys alone takes minutes), but nothing of ours."""
    built = ROOT / "target" / "release"
    if BUILD.exists() or not built.exists():
        return
    for folder in ["deps", "build", ".fingerprint"]:
        ours = shutil.ignore_patterns("*bastionai*", "*internal-*", "lib_internal*")
        shutil.copytree(built / folder, BUILD / "release" / folder, ignore=ours, symlinks=True)


def cargo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Cargo on the copy, with what it printed."""
    command = ["cargo", "test", "--release", "--locked", "-p", "bastionai-trainer", "--test", "audit", *arguments]
    libtorch = os.environ.get("LIBTORCH", str(ROOT / ".venv" / "libtorch"))
    environment = {**os.environ, "CARGO_TARGET_DIR": str(BUILD), "LIBTORCH": libtorch}
    environment.pop("BASTIONAI_SLOW", None)
    return subprocess.run(
        command, cwd=TREE, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def outcomes(tests: list[str]) -> tuple[dict[str, str], str]:
    """Builds and runs these tests; ``ok`` or ``FAILED`` for each, and what the first that failed said."""
    printed = cargo("--", "--exact", *tests).stdout
    found = dict(re.findall(r"^test (\S+) \.\.\. (ok|FAILED)$", printed, re.MULTILINE))
    unknown = [test for test in tests if test not in found]
    if unknown:
        sys.exit(f"no outcome of {', '.join(unknown)}:\n{printed[-4000:]}")
    said = re.search(r"panicked at .*\n(.*)", printed)
    return found, said[1] if said else ""


def verdict(mutant: Mutant) -> tuple[str, float, str]:
    """Builds the mutant and runs its test: what became of it, seconds, and what the test said."""
    file = TREE / mutant.file
    source = file.read_text()
    started = time.monotonic()
    try:
        file.write_text(source.replace(mutant.source, mutant.replacement))
        outcome, said = outcomes([mutant.test])
    finally:
        file.write_text(source)
    became = "killed" if outcome[mutant.test] == "FAILED" else "SURVIVED"
    return became, time.monotonic() - started, said


def main() -> int:
    """Checks, builds, breaks, reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="mutants to run; all of them by default")
    parser.add_argument("--check", action="store_true", help="only check that every mutant still fits the sources")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    stale = [text for text in map(missing, MUTANTS) if text]
    if stale:
        print("\n".join(stale), file=sys.stderr)
        return 1
    if arguments.check:
        print(f"mutants: {len(MUTANTS)}, each fits the sources and has its test")
        return 0
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    copy_dependencies()
    copy_tree()
    broken = [test for test, outcome in outcomes(sorted({m.test for m in chosen}))[0].items() if outcome != "ok"]
    if broken:
        print(f"fail without any mutant: {', '.join(broken)}", file=sys.stderr)
        return 1
    survivors = 0
    for mutant in chosen:
        result, seconds, said = verdict(mutant)
        survivors += result != "killed"
        print(f"{mutant.name:32} {result:9} {seconds:5.0f} s  {mutant.test}\n    {said[:160]}", flush=True)
    print(f"mutants: {len(chosen) - survivors} of {len(chosen)} killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
