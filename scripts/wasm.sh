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
python3 scripts/wasm_post.py "${CARGO_TARGET_DIR:-target}/$target/release/haven.wasm" dist/haven.wasm
