#!/usr/bin/env bash
# The reader on machines without an operating system: that it links without std, alloc and a way to panic, that it gives
# a golden bundle the same id everywhere, and how much flash and stack it takes.
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

# curve25519-dalek has one bounds check that a compiler cannot remove: its recoding keeps the digits of a scalar below
# sixteen (or 128, in the larger table), and `select` looks up half of one in eight (or 64) multiples. A copy in which
# these two lines say so stands in for it where the link must fail at every other panic.
bounded=$PWD/$CARGO_TARGET_DIR/curve25519-dalek
bound_digits() {
  local manifest line='        self.0[x / 2]' lines
  manifest=$(cargo metadata --format-version 1 --locked | python3 -c 'import json, sys
print(*(each["manifest_path"] for each in json.load(sys.stdin)["packages"] if each["name"] == "curve25519-dalek"))')
  rm -rf "$bounded"
  mkdir -p "$bounded"
  cp -R "$(dirname "$manifest")/." "$bounded"
  lines=$(grep -cFx "$line" "$bounded/src/window.rs" || true)
  [ "$lines" = 2 ] || fail "curve25519-dalek: $lines lines of window.rs are '$line', not 2: see whether they can panic"
  sed -i 's|^        self\.0\[x / 2\]$|        self.0[(x / 2).min(self.0.len() - 1)]|' "$bounded/src/window.rs"
}

build() { # TARGET LINKER [OPTION...]
  local target=$1 linker=$2
  shift 2
  RUSTFLAGS="-Clinker=$linker -Clinker-flavor=ld -Crelocation-model=static" cargo build --quiet --release --locked \
    --target "$target" -Zbuild-std=core -Zbuild-std-features=compiler-builtins-mem "$@"
}

places() { # TARGET: source files that the program names, which it does where a panic there cannot be ruled out
  strings -n 5 "$CARGO_TARGET_DIR/$1/release/preface-bare" | grep -oE '[a-z0-9_.-]+/src/[a-z0-9_/]+\.rs' | sort -u | tr '\n' ' ' || true
}

# The panic handler calls a symbol that nothing has: the program, with all that a reader can call, links only if no
# panic is reachable. That this tells is shown by the same program with one panic more, which must not link.
link_without_panics() { # TARGET LINKER
  local log symbol='undefined reference to .a_panic_is_possible' digits=(--config "paths=['$bounded']")
  log=$(build "$1" "$2" "${digits[@]}" --features no-panic,everything 2>&1) || {
    grep -q "$symbol" <<<"$log" || fail "$1: the program does not build: $log"
    build "$1" "$2" "${digits[@]}" --features everything
    fail "$1: a panic is possible in: $(places "$1")"
  }
  log=$(build "$1" "$2" "${digits[@]}" --features no-panic,everything,panic 2>&1) &&
    fail "$1: a program that can panic links, so that the link shows nothing"
  grep -q "$symbol" <<<"$log" || fail "$1: the control fails for another reason: $log"
}

machine() { # TARGET LINKER EMULATOR
  local target=$1 program found id stack text data places size
  size=$(command -v "${2%ld}size" || command -v size)
  link_without_panics "$target" "$2"
  build "$target" "$2"
  program=$CARGO_TARGET_DIR/$target/release/preface-bare
  places=$(places "$target")
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
  printf '%-28s bundle %s... read; %d bytes of flash, %d bytes of stack; it cannot panic but in: %s\n' \
    "$target" "${id:0:12}" "$text" "$stack" "${places:-nothing}"
}

bound_digits
machine thumbv7em-none-eabihf arm-none-eabi-ld qemu-arm
machine aarch64-unknown-none aarch64-linux-gnu-ld qemu-aarch64
machine s390x-unknown-linux-gnu s390x-linux-gnu-ld qemu-s390x
