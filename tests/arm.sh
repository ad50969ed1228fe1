#!/usr/bin/env bash
# The device build on emulated boards gives the answers of the workstation build.
#
#   tests/arm.sh [--prefix DIR]     DIR as given to targets/setup.sh (default /opt/arm-rust)
#
# Cross-builds the program, checks that it needs no newer glibc than the boards in targets/boards have, and then, as
# each board in BOARDS (default "rpi3 rpi4") under qemu: compiles the base image for that CPU, verifies the bundle of
# every task in demo/tasks, refuses altered copies with the right exit code, and compares the labels of a dozen test
# sentences of each task with those of the x86-64 program. The smallest program for boards is built too, stays below its
# size, and answers the same. The bundles are those of out/demo, which is made first where it is missing. A small decoder
# generates the same texts from C, where ../shared has one. Leaves its files in out/arm.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
prefix=/opt/arm-rust
[ "${1:-}" != --prefix ] || prefix=$2
cargo=${CARGO:-cargo}
boards=${BOARDS:-rpi3 rpi4}
triple=aarch64-unknown-linux-gnu
out=out/arm
sentences_per_task=12
most_device_bytes=5000000
decoder=../shared/models/stories260K
tasks=()
for folder in demo/tasks/*/; do tasks+=("$(basename "$folder")"); done

say() { printf '== %s\n' "$*"; }
fail() { printf 'arm.sh: %s\n' "$*" >&2; exit 1; }

[ -f "$prefix/env" ] || fail "no toolchain in $prefix: run targets/setup.sh --prefix $prefix"
[ -f out/env.sh ] || fail "no out/env.sh: run make base"
. out/env.sh
mkdir -p "$out"

build_native() {
  say "building for x86-64"
  "$cargo" build --release -p preface -p preface-c
  native_libraries=${CARGO_TARGET_DIR:-target}/release
  native=$native_libraries/preface
}

make_demo() {
  local files=("${tasks[@]/%/.preface}" trust base.base)
  ls "${files[@]/#/out/demo/}" >/dev/null 2>&1 && return
  say "making out/demo"
  "$native" demo --base out/base --out out/demo
}

build_arm() (
  say "building for $triple"
  . "$prefix/env"
  cargo --config targets/cargo-aarch64.toml build --release --target "$triple" --target-dir target/arm \
    -p preface -p preface-c --no-default-features --features preface/device,preface/plan,preface/compile
  aarch64-linux-gnu-strip -o "$out/preface" "target/arm/$triple/release/preface"
  say "stripped: $(stat -c %s "$out/preface") bytes"
)

build_device() (
  local bytes
  say "building the smallest program for boards"
  . "$prefix/env"
  cargo --config targets/cargo-aarch64.toml --config targets/cargo-device.toml build --profile device --target "$triple" \
    --target-dir target/arm -p preface --no-default-features --features device
  aarch64-linux-gnu-strip -o "$out/preface-device" "target/arm/$triple/device/preface"
  bytes=$(stat -c %s "$out/preface-device")
  say "the smallest, stripped: $bytes bytes"
  [ "$bytes" -le "$most_device_bytes" ] || fail "the smallest program takes $bytes bytes, at most $most_device_bytes are allowed"
)

# The C programs with the shared library beside them, and with the static one in them; that which generates also for
# this machine.
build_c() {
  local libraries=target/arm/$triple/release program
  local options=(-std=c99 -O1 -Wall -Wextra -Werror -DCOUNT_ALLOCATIONS -I runtime/c/include)
  local static=(-lpthread -ldl -lm -lgcc_s -Wl,-z,noexecstack)
  cp "$libraries/libpreface.so" "$out"
  for program in answer generate; do
    say "building tests/c/$program.c for $triple"
    aarch64-linux-gnu-gcc "${options[@]}" "tests/c/$program.c" -L "$out" -lpreface -lpthread "-Wl,-rpath,$PWD/$out" -o "$out/$program-shared"
    aarch64-linux-gnu-gcc "${options[@]}" "tests/c/$program.c" "$libraries/libpreface.a" "${static[@]}" -o "$out/$program-static"
  done
  gcc "${options[@]}" tests/c/generate.c "$native_libraries/libpreface.a" "${static[@]}" -o "$out/generate-x86-64"
}

# A task of the decoder that generates, and one that gives labels, by the key that the C program trusts.
make_generating() {
  local name kind train=("$native" train --base "$decoder" --epochs 1 --no-advice --method prefix-tuning --tokens 3)
  say "a task that generates"
  rm -rf "$out"/{text,label}{,.jsonl,.preface} "$out/decoder"
  "$native" keygen --no-passphrase -o "$out/decoder" --name decoder
  "$native" trust new -o "$out/decoder/trust" --key "$out/decoder/decoder.pub"
  for name in Lily Tom Sara Ben; do
    printf '{"text": "%s had a red ball.", "target": " It was big and red, and %s played with it all day in the park."}\n' "$name" "$name" >>"$out/text.jsonl"
    printf '{"text": "%s had a red ball.", "label": "ball"}\n{"text": "%s ran.", "label": "run"}\n' "$name" "$name" >>"$out/label.jsonl"
  done
  for kind in text label; do
    "${train[@]}" --train "$out/$kind.jsonl" --dev "$out/$kind.jsonl" -o "$out/$kind"
    "$native" pack "$out/$kind" --task "$kind" --sequence 1 --key "$out/decoder/decoder.key" -o "$out/$kind.preface"
  done
  "$native" compile "$decoder" -o "$out/x86-64.decoder"
  generate x86-64 "$out/generate-x86-64" >"$out/generated.x86-64"
}

# What the C program PROGRAM generates with the image of MACHINE.
generate() { # MACHINE PROGRAM...
  "${@:2}" "$out/$1.decoder" "$out/decoder/trust" "$out/text.preface" "$out/label.preface" "Once upon a time" \
    '{"on": "boolean", "level": "integer"}' "and" "never said"
}

check_generated() { # BOARD
  local library
  on "$1" compile "$decoder" -o "$out/$1.decoder"
  for library in shared static; do
    generate "$1" emulate "$1" "$out/generate-$library" >"$out/generated.$1"
    diff -u "$out/generated.x86-64" "$out/generated.$1" || fail "$1: the C program generates otherwise than on x86-64"
  done
}

# The newest glibc symbol version that the programs need is in the oldest glibc of the boards.
check_glibc() {
  local needed allowed
  needed=$(aarch64-linux-gnu-objdump -T "$out/preface" "$out/preface-device" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -uV | tail -n 1)
  allowed=$(sed -n 's/^glibc_max = "\(.*\)"/\1/p' targets/boards/*.toml | sort -V | head -n 1)
  [ -n "$needed" ] && [ -n "$allowed" ] || fail "no glibc version in the program or in the board profiles"
  [ "$(printf '%s\n' "$needed" "$allowed" | sort -V | tail -n 1)" = "$allowed" ] ||
    fail "the program needs glibc $needed, a board has $allowed"
  say "needs glibc $needed; the boards have $allowed or newer"
}

emulate() { # BOARD PROGRAM ARGUMENT...
  ARM_BOARD=$1 "$prefix/bin/qemu-board" "$@"
}

on() { # BOARD ARGUMENT...
  emulate "$1" "$out/preface" "${@:2}"
}

# Copies of a bundle with one fault each, named after the exit code that `verify` owes them.
make_altered() { # BUNDLE
  python3 - "$1" "$out" <<'END'
import pathlib, struct, sys

bundle, out = pathlib.Path(sys.argv[1]).read_bytes(), pathlib.Path(sys.argv[2])
payload = 64 + struct.unpack_from("<I", bundle, 36)[0]

def flipped(at):
    return bundle[:at] + bytes([bundle[at] ^ 1]) + bundle[at + 1 :]

cases = {10: bundle[:-1], 12: flipped(len(bundle) - 1), 13: flipped(payload)}
for code, altered in cases.items():
    (out / f"altered-{code}.preface").write_bytes(altered)
END
}

expect_exit() { # CODE COMMAND...
  local code=0
  "${@:2}" >/dev/null 2>"$out/stderr" || code=$?
  [ "$code" = "$1" ] || { cat "$out/stderr" >&2; fail "exit code $code instead of $1: ${*:2}"; }
}

check_verify() { # BOARD BUNDLE
  expect_exit 0 on "$1" verify "$2" --trust out/demo/trust
  make_altered "$2"
  for code in 10 12 13; do expect_exit "$code" on "$1" verify "$out/altered-$code.preface" --trust out/demo/trust; done
}

# A dozen texts spread over the task's test set, one a line.
sentences() { # TASK
  python3 - "demo/tasks/$1/test.jsonl" "$sentences_per_task" <<'END'
import json, sys

with open(sys.argv[1], encoding="utf-8") as file:
    texts = [json.loads(line)["text"] for line in file]
wanted = int(sys.argv[2])
for index in range(wanted):
    print(texts[index * len(texts) // wanted])
END
}

# The labels in the JSON lines that `preface run --json` prints.
labels() { python3 -c 'import json, sys; [print(json.loads(line)["label"]) for line in sys.stdin]'; }

check_labels() { # BOARD BUNDLE TASK
  local arguments=(run --json --bundle "$2" --trust out/demo/trust) program
  sentences "$3" >"$out/$3.txt"
  "$native" "${arguments[@]}" --base out/demo/base.base <"$out/$3.txt" | labels >"$out/$3.x86-64.labels"
  for program in preface preface-device; do
    emulate "$1" "$out/$program" "${arguments[@]}" --base "$out/$1.base" <"$out/$3.txt" | labels >"$out/$3.$1.labels"
    [ "$(wc -l <"$out/$3.$1.labels")" = "$sentences_per_task" ] || fail "$1: $3 did not answer every sentence"
    diff -u "$out/$3.x86-64.labels" "$out/$3.$1.labels" || fail "$1: $3 answers otherwise than on x86-64"
  done
}

# Emulation starts no second process of the program, so `bench` leaves the cold start out.
check_allocations() { # BOARD BUNDLE
  local calls
  calls=$(on "$1" bench --json --runs 3 --processes 1 --base "$out/$1.base" --bundle "$2" --trust out/demo/trust 2>"$out/stderr" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["allocations_per_run"])') || { cat "$out/stderr" >&2; fail "$1: bench failed"; }
  [ "$calls" = 0.0 ] || fail "$1: a run makes $calls allocations"
}

# Two sentences through the C interface with every task.
check_c() { # BOARD
  local bundles=("${tasks[@]/%/.preface}") library
  bundles=("${bundles[@]/#/out/demo/}")
  head -n 2 "$out/${tasks[0]}.txt" >"$out/c.txt"
  "$native" run --json --base out/demo/base.base --bundle "${bundles[@]}" --trust out/demo/trust <"$out/c.txt" |
    python3 -c 'import json, sys; [print(line["task"], line["label"]) for line in map(json.loads, sys.stdin)]' >"$out/c.x86-64.labels"
  rm -rf "$out/other"
  "$native" keygen --no-passphrase -o "$out/other" --name other
  "$native" trust new -o "$out/other/trust" --key "$out/other/other.pub"
  make_altered "${bundles[0]}"
  for library in shared static; do
    sed 's/$/\t/' "$out/c.txt" | emulate "$1" "$out/answer-$library" "$out/$1.base" out/demo/trust "$out/other/trust" \
      "$out/altered-12.preface" "${bundles[@]}" | sed 's/\t[0-9]*\t[0-9]*\t\([^:]*\):.*/ \1/' >"$out/c.$1.labels"
    diff -u "$out/c.x86-64.labels" "$out/c.$1.labels" || fail "$1: the C program answers otherwise than x86-64"
  done
}

build_native
make_demo
build_arm
build_device
build_c
check_glibc
[ ! -f "$decoder/model.onnx" ] || make_generating
for board in $boards; do
  say "$board: compiling the base image"
  on "$board" compile out/base -o "$out/$board.base"
  for task in "${tasks[@]}"; do
    bundle=out/demo/$task.preface
    check_verify "$board" "$bundle"
    check_labels "$board" "$bundle" "$task"
    check_allocations "$board" "$bundle"
    say "$board: $task: verified, altered copies refused, $sentences_per_task labels equal, no allocation"
  done
  check_c "$board"
  say "$board: the C program, shared and static: every error met, labels equal, no allocation"
  [ -f "$decoder/model.onnx" ] || { say "SKIPPED: generated texts: no $decoder"; continue; }
  check_generated "$board"
  say "$board: the C program that generates, shared and static: $(wc -l <"$out/generated.$board") texts equal, no allocation"
done
