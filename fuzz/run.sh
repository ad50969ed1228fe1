#!/usr/bin/env bash
# Every fuzz target for a bounded time, from the seeds and the golden bundles; says how many inputs were run.
#
#   fuzz/run.sh [SECONDS] [TARGET...]       default: 20 seconds each, all targets
#
# Needs a nightly compiler, cargo-fuzz (cargo install cargo-fuzz) and a C++ compiler. Where one is missing it says so
# and ends with exit code 3: nothing was fuzzed. What is found stays in fuzz/artifacts, what is learnt in fuzz/corpus.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

seconds=${1:-20}
[ $# -lt 1 ] || shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(frame manifest trust state payload verify_resigned)

missing() { printf 'fuzz: NOT RUN: %s is not here\n' "$*" >&2; exit 3; }
cargo +nightly --version >/dev/null 2>&1 || missing 'a nightly compiler (rustup toolchain install nightly)'
cargo +nightly fuzz --version >/dev/null 2>&1 || missing 'cargo-fuzz (cargo install --locked cargo-fuzz)'
command -v c++ >/dev/null || missing 'a C++ compiler'

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/../target/fuzz}
cargo +nightly fuzz build
total=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for target in "${targets[@]}"; do
  mkdir -p "corpus/$target"
  cargo +nightly fuzz run "$target" "corpus/$target" "seeds/$target" ../tests/golden/bundles -- \
    -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 >"$log" 2>&1 ||
    { tail -n 60 "$log" >&2; printf 'fuzz: FAILED: %s\n' "$target" >&2; exit 1; }
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  printf '%-16s %10d inputs in %d s\n' "$target" "$runs" "$seconds"
  total=$((total + runs))
done
printf '%-16s %10d inputs, nothing found\n' 'all targets' "$total"
