#!/usr/bin/env bash
# Fuzzes all targets, or the named ones, for SECONDS each. README.md describes the checks.
# Needs Rust (any toolchain of rust-version or newer) and a C++ compiler; installs cargo-fuzz if missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

SECONDS_EACH=${1-60}
[[ $SECONDS_EACH =~ ^[1-9][0-9]*$ ]] || { echo "usage: bash tests/fuzz/run.sh [SECONDS [TARGET...]]" >&2; exit 2; }
[ $# -eq 0 ] || shift
TARGETS=("$@")
[ $# -gt 0 ] || TARGETS=(route templates purge webhook entry policy rules location query config)

command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
# Coverage needs unstable compiler flags, which RUSTC_BOOTSTRAP enables in a stable compiler. No sanitizer: the
# crate forbids unsafe code, and the targets look for broken properties.
export RUSTC_BOOTSTRAP=1
cargo fuzz build --fuzz-dir . --sanitizer none
for target in "${TARGETS[@]}"; do
  mkdir -p "corpus/$target"
  options=(-max_total_time="$SECONDS_EACH" -max_len=512 -timeout=60)
  [ ! -f "dictionaries/$target.dict" ] || options+=(-dict="dictionaries/$target.dict")
  cargo fuzz run --fuzz-dir . --sanitizer none "$target" "corpus/$target" "seeds/$target" -- "${options[@]}"
done
