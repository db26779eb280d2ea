#!/bin/bash
# Writes a vault of the current format version into crates/vault/tests/fixtures/vault-vN. Run it once, beside a bump
# of FORMAT_VERSION (crates/vault/src/error.rs); a fixture that exists is never overwritten (docs/formats.md).
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^pub const FORMAT_VERSION: u32 = \([0-9]*\);$/\1/p' crates/vault/src/error.rs)
fixture=crates/vault/tests/fixtures/vault-v$version
if [ -e "$fixture" ]; then
  echo "$fixture exists: a released format is never written again; bump FORMAT_VERSION first" >&2
  exit 1
fi
BASTIONAI_WRITE_FIXTURES=1 cargo test --release --locked --workspace --test formats -- --exact the_current_format_has_a_fixture
ls -R "$fixture"
