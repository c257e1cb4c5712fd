#!/usr/bin/env bash
# Builds dist/haven.wasm and dist/haven.wasm.sha256.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

target=wasm32-unknown-unknown
need python3 "install Python 3.9 or newer"
need_wasm_target
say "building the filter for $target"
# No path of the building machine in the module: the same sources give the same bytes anywhere.
remap="'--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo', '--remap-path-prefix=$PWD=/haven'"
cargo build --release --lib --target "$target" --config "target.$target.rustflags=[$remap]" ||
  die "the filter does not compile" "what went wrong stands above"
# By rename, as a running Envoy or test may be reading the old file.
mkdir -p dist
cp "${CARGO_TARGET_DIR:-target}/$target/release/haven.wasm" dist/haven.wasm.new
python3 -c 'import hashlib
module = open("dist/haven.wasm.new", "rb").read()
print(hashlib.sha256(module).hexdigest() + "  haven.wasm")' >dist/haven.wasm.sha256.new
for fresh in dist/haven.wasm dist/haven.wasm.sha256; do mv "$fresh.new" "$fresh"; done
size=$(wc -c <dist/haven.wasm)
printf 'dist/haven.wasm: %d bytes (%d KiB)\nsha256 %s\n' \
  "$size" $((size / 1024)) "$(cut -d' ' -f1 dist/haven.wasm.sha256)"
