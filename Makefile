# BastionAI. `make demo` runs the main job, `make test` passes the tests; both set up what is missing.
# A Rust toolchain (rustup), a C++ compiler and Python 3.11+ are assumed; the rest comes once.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := target/release
JOBS ?= 2
STAMPS := .setup
CARGO_FLAGS := --release --locked -j $(JOBS)
PY := $(VENV)/bin/python
RUST_SOURCES := Cargo.toml Cargo.lock rust-toolchain.toml .cargo/config.toml $(shell find proto crates python/src python/Cargo.toml -type f)

say = @printf '\033[1m==> %s\033[0m\n' $(1)

.PHONY: demo test test-all mutants test-gpu check coverage bench fuzz-smoke docs setup binaries package wheel clean-setup

demo: setup
	$(call say,"demo: three hospitals train one cancer model")
	@$(PY) examples/three_hospitals.py --server $(BIN)/bastionai

test: setup
	$(call say,"test 1/3: Rust (cargo test)")
	@cargo test $(CARGO_FLAGS) --workspace
	$(call say,"test 2/3: Python (pytest)")
	@$(PY) -m pytest -q
	$(call say,"test 3/3: structure")
	@$(PY) scripts/check_structure.py
	$(call say,"all tests passed")

# Everything, the slow forms included.
test-all: setup check
	@BASTIONAI_SLOW=1 cargo test $(CARGO_FLAGS) --workspace -- --include-ignored
	@BASTIONAI_SLOW=1 $(PY) -m pytest -q
	@$(PY) scripts/mutants.py

# Breaks sum, norm, noise, divisor and sample one at a time: the test that is about it must fail each time.
mutants: setup
	@$(PY) scripts/mutants.py $(MUTANTS)

# Needs a CUDA device; fails where there is none.
test-gpu: setup
	@BASTIONAI_GPU=1 cargo test $(CARGO_FLAGS) -p bastionai-trainer --test gpu -- --ignored --test-threads=1
	@BASTIONAI_GPU=1 $(PY) -m pytest -q -m gpu

# docs/coverage.md, from a whole run of the zoo's tests: an hour on two busy cores. Commit first: the page names the commit.
coverage: setup
	@cargo build $(CARGO_FLAGS) --workspace --bins --lib --examples
	@BASTIONAI_SLOW=1 BASTIONAI_WRITE_COVERAGE=1 $(PY) -m pytest -q python/tests/test_zoo.py python/tests/test_zoo_whole.py

# What a reviewer need not look for: formatting, lints, types, dependency directions, licences.
check: setup
	@cargo fmt --all --check
	@cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	@$(VENV)/bin/ruff check python examples benches scripts tests
	@$(VENV)/bin/ruff format --check python examples benches scripts tests
	@cd python && ../$(VENV)/bin/mypy bastionai
	@$(PY) scripts/check_structure.py
	@if command -v cargo-deny >/dev/null; then cargo deny --offline check bans licenses sources; \
	  else echo "cargo-deny is not installed: bans and licences were not checked (cargo install cargo-deny)"; fi

bench: setup
	$(call say,"bench: ratios from one interleaved run")
	@cargo build $(CARGO_FLAGS) --workspace --bins --lib --examples
	@$(PY) benches/run.py

# Half a minute for each parser (FUZZ_SECONDS), from seeds made of fixtures and, where it is there, of ../shared/evidence.
# Needs a nightly toolchain and cargo-fuzz.
FUZZ_SECONDS ?= 30
fuzz-smoke:
	@cargo fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: cargo install cargo-fuzz, and rustup toolchain install nightly"; exit 1; }
	@python3 scripts/fuzz_seeds.py
	@for target in $$(cargo +nightly fuzz list); do \
		echo "fuzz-smoke: $$target"; cargo +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; done

# The manual of the crates, and what `bastionai` says about itself: manual pages and shell completions, in target/.
docs: binaries
	@RUSTDOCFLAGS="-D warnings" cargo doc $(CARGO_FLAGS) --workspace --no-deps
	@$(BIN)/bastionai man target/man
	@mkdir -p target/completions
	@for shell in bash zsh fish; do $(BIN)/bastionai completions $$shell > target/completions/bastionai.$$shell || exit 1; done

# ---- set-up: once, idempotent; every step is a stamp in $(STAMPS) ----

setup: binaries package

$(STAMPS)/venv: requirements.txt
	$(call say,"set-up 1/3: Python packages (torch is 5 GB: some minutes)")
	@mkdir -p $(STAMPS)
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=python3.x"; exit 1; }
	@$(VENV)/bin/pip install --disable-pip-version-check --progress-bar on --no-input -q -r requirements.txt
	@ln -sfn "$$($(PY) -c 'import os, torch; print(os.path.relpath(os.path.dirname(torch.__file__), "$(VENV)"))')" $(VENV)/libtorch
	@touch $@

# All of the workspace in one invocation: cargo unifies features over what it builds, so a second selection
# (maturin's, say) would build the TLS stack a second time.
binaries: $(STAMPS)/binaries
$(STAMPS)/binaries: $(STAMPS)/venv $(RUST_SOURCES)
	$(call say,"set-up 2/3: release binaries (the first build takes some minutes)")
	@cargo build $(CARGO_FLAGS) --workspace --bins --lib
	@touch $@

# What `maturin develop` does, from the library just built.
package: $(STAMPS)/package
$(STAMPS)/package: $(STAMPS)/binaries
	$(call say,"set-up 3/3: the Python package")
	@cp target/release/lib_internal.so python/bastionai/_internal.abi3.so.new
	@mv python/bastionai/_internal.abi3.so.new python/bastionai/_internal.abi3.so
	@echo "$(CURDIR)/python" > "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/bastionai.pth"
	@touch $@

# A wheel for users who have no checkout, in target/wheels.
wheel: $(STAMPS)/venv
	@$(VENV)/bin/maturin build --release --locked -m python/Cargo.toml

clean-setup:
	rm -rf $(STAMPS)
