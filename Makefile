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
RUST_SOURCES := Cargo.toml Cargo.lock proto/bastionai/v1/bastionai.proto $(shell find crates python/src python/Cargo.toml -name '*.rs' -o -name '*.toml' -o -name '*.cpp' -o -name '*.h')

say = @printf '\033[1m==> %s\033[0m\n' $(1)

.PHONY: demo test test-all check bench docs setup binaries package clean-setup

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

# What a reviewer need not look for: formatting, lints, types, dependency directions, licences.
check: setup
	@cargo fmt --all --check
	@cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	@$(VENV)/bin/ruff check python examples benches scripts tests
	@$(VENV)/bin/ruff format --check python examples benches scripts tests
	@$(VENV)/bin/mypy python/bastionai
	@$(PY) scripts/check_structure.py
	@if command -v cargo-deny >/dev/null; then cargo deny --offline check bans licenses sources; \
	  else echo "cargo-deny is not installed: bans and licences were not checked (cargo install cargo-deny)"; fi

bench: setup
	$(call say,"bench: ratios from one interleaved run")
	@cargo build $(CARGO_FLAGS) -p bastionai-trainer --examples
	@$(PY) benches/run.py

docs:
	@RUSTDOCFLAGS="-D warnings" cargo doc $(CARGO_FLAGS) --workspace --no-deps

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

binaries: $(STAMPS)/binaries
$(STAMPS)/binaries: $(STAMPS)/venv $(RUST_SOURCES)
	$(call say,"set-up 2/3: release binaries (the first build takes some minutes)")
	@cargo build $(CARGO_FLAGS) -p bastionai-cli -p bastionai-trainer --bins
	@touch $@

package: $(STAMPS)/package
$(STAMPS)/package: $(STAMPS)/binaries python/pyproject.toml
	$(call say,"set-up 3/3: the Python package")
	@cd python && VIRTUAL_ENV=$(CURDIR)/$(VENV) $(CURDIR)/$(VENV)/bin/maturin develop --release --locked -q
	@touch $@

clean-setup:
	rm -rf $(STAMPS)
