#!/usr/bin/env bash
# Runs the demo story (examples/demo.rs) with a real Envoy and demo upstreams; KEEP=1 leaves them
# running.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_rust
HAVEN_ENVOY=$(scripts/envoy.sh)
export HAVEN_ENVOY HAVEN_WASM=$PWD/dist/haven.wasm
say "building the demo"
cargo build --quiet --example demo || die "the demo does not compile" "what went wrong stands above"
say "running the demo"
# In place of this shell: a signal to it is then the demo's, which stops what it has started.
exec cargo run --quiet --example demo
