#!/usr/bin/env bash
# Cross-building for 64-bit ARM boards, and running them under qemu, on Debian 12 (bookworm) x86-64.
#
#   targets/setup.sh [--prefix DIR] [--no-link] [--bare]
#
#   --prefix DIR  where the toolchain goes (default /opt/arm-rust)
#   --no-link     do not register the toolchain with rustup under the name `arm`
#   --bare        also what bundle/bare/check.sh needs: the source of the standard library (45 MB), and linkers
#
# The compiler is Debian's rustc-web with its arm64 standard library, unpacked into DIR and not installed:
# neither rustup's default nor dpkg's list of architectures changes. The C cross compiler and qemu are
# ordinary packages, installed with apt where they are missing (needs root). Run it again at will: it does
# only what is missing. Afterwards `. DIR/env` puts cargo, rustc and qemu-board on the PATH.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
prefix=/opt/arm-rust
link=yes
bare=no

say() { printf '== %s\n' "$*" >&2; }
fail() { printf 'setup.sh: %s\n' "$*" >&2; exit 1; }

while [ $# -gt 0 ]; do
  case $1 in
    --prefix) [ $# -gt 1 ] || fail "--prefix needs a folder"; prefix=$2; shift ;;
    --no-link) link=no ;;
    --bare) bare=yes ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) fail "unknown option $1 (see --help)" ;;
  esac
  shift
done

[ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || fail "needs Debian on x86-64"
mkdir -p "$prefix"
prefix=$(cd "$prefix" && pwd)
state=$prefix/.state
mkdir -p "$state" "$prefix/bin" "$prefix/lib"

# --- packages of the host ---

host_packages=(
  gcc-aarch64-linux-gnu libc6-dev-arm64-cross lld-19 qemu-user patchelf gcc libc6-dev ca-certificates
  # shared libraries of rustc and cargo
  libcurl4 libedit2 libffi8 libgssapi-krb5-2 libpcre2-8-0 libsqlite3-0 libssh2-1 libssl3 libstdc++6
  libxml2 libz3-4 libzstd1 zlib1g
)

[ $bare = no ] || host_packages+=(binutils binutils-arm-none-eabi binutils-s390x-linux-gnu)

is_installed() { [ "$(dpkg-query -Wf '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

install_host_packages() {
  local package missing=()
  for package in "${host_packages[@]}"; do is_installed "$package" || missing+=("$package"); done
  python3 -c 'import tomllib' 2>/dev/null || missing+=(python3)
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  [ "$(id -u)" = 0 ] || fail "root is needed: apt-get install ${missing[*]}"
  apt-get update -qq || true
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$state/install.log" 2>&1 ||
    { tail -20 "$state/install.log" >&2; fail "apt-get install failed: $state/install.log"; }
}

# --- the toolchain: apt with lists of its own, which knows both architectures ---

mirror() { # SUITE: the address this machine already uses for it
  apt-get indextargets --format '$(REPO_URI)' "Release: $1" 2>/dev/null | sort -u | head -n 1
}

private_apt() {
  local apt=$state/apt keyring=/usr/share/keyrings/debian-archive-keyring.gpg main security
  main=${DEBIAN_MIRROR:-$(mirror bookworm)}
  security=${DEBIAN_SECURITY_MIRROR:-$(mirror bookworm-security)}
  [ -n "$main" ] && [ -n "$security" ] ||
    fail "no apt source for bookworm and bookworm-security: run apt-get update, or set DEBIAN_MIRROR and DEBIAN_SECURITY_MIRROR"
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts"
  printf 'deb [signed-by=%s] %s main\n' "$keyring" "$main bookworm" "$keyring" "$security bookworm-security" >"$apt/sources.list"
  cat >"$apt/apt.conf" <<END
APT::Architecture "amd64";
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "root";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "$apt/parts";
Dir::State::Lists "$apt/lists";
END
  export APT_CONFIG=$apt/apt.conf
}

depends_on() { apt-cache depends "$1" | awk -v name="$2" '$1 == "Depends:" && $2 ~ name {print $2; exit}'; }

unpack() { # PACKAGE: downloaded by apt, which checks it against the signed index
  local folder=$state/deb
  [ ! -e "$state/done.$1" ] || return 0
  rm -rf "$folder"
  mkdir -p "$folder"
  (cd "$folder" && apt-get download -qq "$1")
  dpkg -x "$folder"/*.deb "$prefix"
  basename "$folder"/*.deb >"$state/done.$1"
  rm -rf "$folder"
}

install_toolchain() {
  [ ! -e "$state/toolchain" ] || return 0
  (
    private_apt
    say "package lists"
    apt-get update -qq
    standard=$(depends_on libstd-rust-web-dev:amd64 '^libstd-rust-web-[0-9]')
    llvm=$(depends_on "$standard" '^libllvm[0-9]')
    [ -n "$standard" ] && [ -n "$llvm" ] || fail "rustc-web is not in the package lists"
    say "rustc-web and cargo-web"
    for package in rustc-web cargo-web libstd-rust-web-dev:amd64 libstd-rust-web-dev:arm64 "$standard" "$llvm" \
      libgit2-1.5 libhttp-parser2.9 libmbedcrypto7 libmbedtls14 libmbedx509-1; do
      unpack "$package"
    done
  )
  local libraries=$prefix/usr/lib/x86_64-linux-gnu file
  for file in rustc rustdoc cargo; do patchelf --set-rpath '$ORIGIN/../lib/x86_64-linux-gnu' "$prefix/usr/bin/$file"; done
  for file in "$libraries"/*.so*; do [ -L "$file" ] || patchelf --set-rpath '$ORIGIN' "$file"; done
  touch "$state/toolchain"
}

# The compiler's own core, for machines that no package has one for.
install_source() {
  [ ! -e "$state/source" ] || return 0
  (
    private_apt
    say "source of the standard library"
    apt-get update -qq
    unpack rust-web-src
  )
  local source
  source=$(ls -d "$prefix"/usr/src/rustc-*)
  mkdir -p "$prefix/usr/lib/rustlib/src"
  ln -sfn "../../../src/$(basename "$source")" "$prefix/usr/lib/rustlib/src/rust"
  touch "$state/source"
}

# The compiler looks for this linker under the name of its target.
link_linker() { ln -sfn "$(command -v ld.lld-19)" "$prefix/bin/aarch64-linux-gnu-ld.lld"; }

# --- boards and the emulator ---

install_emulator() {
  python3 "$here/boards.py" "$here/boards" "$prefix/boards"
  install -m 755 "$here/qemu/qemu-board" "$prefix/bin/qemu-board"
  gcc -O2 -Wall -Wextra -fPIC -shared -fvisibility=hidden "$here/qemu/insncount.c" -o "$prefix/lib/libinsncount.so.partial"
  mv "$prefix/lib/libinsncount.so.partial" "$prefix/lib/libinsncount.so"
}

write_env() {
  local quoted
  quoted=$(printf '%s' "$prefix" | sed "s/'/'\\\\''/g")
  printf "export PATH='%s/usr/bin:%s/bin':\"\$PATH\"\nunset RUSTUP_TOOLCHAIN RUSTC\n" "$quoted" "$quoted" >"$prefix/env"
}

smoke_test() {
  local profile board wanted found
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  cat >"$folder/part.rs" <<'END'
fn main() {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").expect("cpuinfo");
    let part = cpuinfo.lines().find_map(|line| line.strip_prefix("CPU part\t: ")).expect("part");
    println!("{} {part}", std::env::consts::ARCH);
}
END
  "$prefix/usr/bin/rustc" --target aarch64-unknown-linux-gnu -Clinker=aarch64-linux-gnu-gcc -o "$folder/part" "$folder/part.rs"
  for profile in "$here"/boards/*.toml; do
    board=$(basename "$profile" .toml)
    wanted="aarch64 $(sed -n 's/^part = "\(.*\)"/\1/p' "$profile")"
    found=$(ARM_INSN=$folder/count "$prefix/bin/qemu-board" "$board" "$folder/part")
    [ "$found" = "$wanted" ] || fail "$board: emulated program printed '$found', not '$wanted'"
    grep -q '^total [0-9]' "$folder/count" || fail "$board: no instruction count"
    say "$board: $found, $(sed -n 's/^total //p' "$folder/count") instructions"
  done
}

install_host_packages
install_toolchain
[ $bare = no ] || install_source
link_linker
install_emulator
write_env
smoke_test
if [ $link = yes ] && command -v rustup >/dev/null; then rustup toolchain link arm "$prefix/usr" || say "rustup could not link the toolchain; source $prefix/env instead"; fi
say "$("$prefix/usr/bin/rustc" --version) in $prefix; next: . $prefix/env"
