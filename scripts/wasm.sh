#!/usr/bin/env bash
# Builds dist/haven.wasm, for Envoy, and dist/haven-portable.wasm, which nginx can load too; each with
# its sha256.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

target=wasm32-unknown-unknown
need python3 "install Python 3.9 or newer"
need_wasm_target
# No path of the building machine in the module: the same sources give the same bytes anywhere.
remap="'--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo', '--remap-path-prefix=$PWD=/haven'"
mkdir -p dist

# build NAME CARGO-ARGUMENTS...
build() {
  local name=$1 fresh size
  say "building $name for $target"
  cargo build --release --lib --target "$target" --config "target.$target.rustflags=[$remap]" \
    "${@:2}" || die "the filter does not compile" "what went wrong stands above"
  # By rename, as a running proxy or test may be reading the old file.
  cp "${CARGO_TARGET_DIR:-target}/$target/release/haven.wasm" "dist/$name.new"
  python3 -c 'import hashlib, sys
module = open(f"dist/{sys.argv[1]}.new", "rb").read()
print(hashlib.sha256(module).hexdigest() + "  " + sys.argv[1])' "$name" >"dist/$name.sha256.new"
  for fresh in "dist/$name" "dist/$name.sha256"; do mv "$fresh.new" "$fresh"; done
  size=$(wc -c <"dist/$name")
  printf 'dist/%s: %d bytes (%d KiB)\nsha256 %s\n' \
    "$name" "$size" $((size / 1024)) "$(cut -d' ' -f1 "dist/$name.sha256")"
}

build haven-portable.wasm --features portable
build haven.wasm
