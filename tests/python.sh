#!/usr/bin/env bash
# The wheel of runtime/python, built by maturin and installed by pip, answers as the program does.
#
#   tests/python.sh
#
# Builds out/wheels/preface-*.whl for every CPython from 3.10 on, installs it into a new environment out/python, compares
# the stubs with the module, and runs tests/python on the bundles of out/demo, which is made first where it is missing.
# PYTHON names the interpreter (default python3).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo=${CARGO:-cargo}
target=${CARGO_TARGET_DIR:-target}
host_python=${PYTHON:-python3}
maturin=1.16.0
numpy=2.4.6
mypy=2.4.1
demo=(base.base trust home_command.preface message_urgency.preface)

say() { printf '== %s\n' "$*"; }
fail() { printf 'python.sh: %s\n' "$*" >&2; exit 1; }

install() { # VENV PACKAGE...
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"
}

make_maturin() {
  out/maturin/bin/maturin --version 2>/dev/null | grep -qx "maturin $maturin" && return
  say "installing maturin $maturin"
  "$host_python" -m venv --clear out/maturin
  install out/maturin "maturin==$maturin"
}

make_demo() {
  ls "${demo[@]/#/out/demo/}" >/dev/null 2>&1 && return
  say "making out/demo"
  "$target/release/preface" demo --base out/base --out out/demo
}

build_wheel() {
  say "building the wheel"
  rm -rf out/wheels
  CARGO="$cargo" out/maturin/bin/maturin build --quiet --release --manifest-path runtime/python/Cargo.toml \
    --target-dir "$target" --interpreter "$host_python" --out out/wheels
  wheels=(out/wheels/preface-*-abi3-*.whl)
  [ -f "${wheels[0]}" ] || fail "no abi3 wheel among $(ls out/wheels)"
  say "$(basename "${wheels[0]}"): $(stat -c %s "${wheels[0]}") bytes"
}

install_wheel() {
  "$host_python" -m venv --clear out/python
  install out/python "numpy==$numpy" "mypy==$mypy" "${wheels[0]}"
}

[ -f out/env.sh ] || fail "no out/env.sh: run make base"
. out/env.sh
"$cargo" build --release -p preface
make_demo
make_maturin
build_wheel
install_wheel
say "stubs and tests"
# The stubs are of the package; the library inside it is nobody's to import.
out/python/bin/python -m mypy.stubtest preface --allowlist <(echo 'preface\.preface')
PREFACE=$target/release/preface PREFACE_DEMO=out/demo out/python/bin/python -m unittest discover --start-directory tests/python --verbose
