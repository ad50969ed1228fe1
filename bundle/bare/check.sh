#!/usr/bin/env bash
# The reader on machines without an operating system: that it links without std, alloc and a way to panic of its own,
# that it gives a golden bundle the same id everywhere, and how much flash and stack it takes.
#
#   bundle/bare/check.sh [--prefix DIR]     DIR: where targets/setup.sh --bare put its toolchain (/opt/arm-rust)
#
# Machines: a Cortex-M4F (thumbv7em), a 64-bit ARM, and for its byte order an s390x, all under qemu's user mode.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

prefix=/opt/arm-rust
if [ "${1:-}" = --prefix ]; then prefix=$2; fi
golden=../../tests/golden/bundles
expected=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["verify"]["bundle_id"])' \
  "$golden/embeddings-f32-stored-linear-mean.json")
given=$(cat "$golden/embeddings-f32-stored-linear-mean.preface" "$golden/trust" | wc -c)
# The budgets: a change that goes beyond them is a decision, not an accident.
flash_limit=$((90 * 1024)) stack_limit=$((24 * 1024))

. "$prefix/env"
# The prefix's compiler is a stable one; building its own core needs this.
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=../../target/bare

fail() { printf 'check.sh: %s\n' "$*" >&2; exit 1; }

machine() { # TARGET LINKER EMULATOR [FLAGS]
  local target=$1 program found id stack text data places size
  size=$(command -v "${2%ld}size" || command -v size)
  RUSTFLAGS="-Clinker=$2 -Clinker-flavor=ld -Crelocation-model=static ${4:-}" cargo build --quiet --release --locked --target "$target" \
    -Zbuild-std=core -Zbuild-std-features=compiler-builtins-mem
  program=$CARGO_TARGET_DIR/$target/release/preface-bare
  # A panic that cannot be ruled out has the name of its source file in the program.
  places=$(strings -n 5 "$program" | grep -oE '[a-z0-9_.-]+/src/[a-z0-9_/]+\.rs' | sort -u | tr '\n' ' ' || true)
  case $places in
    '' | 'curve25519-dalek-'*'/src/window.rs ') ;;
    *) fail "$target: a panic is possible in: $places" ;;
  esac
  found=$("$3" "$program") || fail "$target: ended with $?: $found"
  id=${found% *} stack=${found#* }
  [ "$id" = "$expected" ] || fail "$target: read bundle $id, expected $expected"
  read -r text data _ < <("$size" "$program" | tail -n 1)
  text=$((text + data - given))
  [ "$text" -le "$flash_limit" ] || fail "$target: $text bytes of flash, at most $flash_limit"
  [ "$stack" -le "$stack_limit" ] || fail "$target: $stack bytes of stack, at most $stack_limit"
  printf '%-28s bundle %s... read; %d bytes of flash, %d bytes of stack; panics left in: %s\n' \
    "$target" "${id:0:12}" "$text" "$stack" "${places:-nothing}"
}

machine thumbv7em-none-eabihf arm-none-eabi-ld qemu-arm
machine aarch64-unknown-none aarch64-linux-gnu-ld qemu-aarch64
machine s390x-unknown-linux-gnu s390x-linux-gnu-ld qemu-s390x
