#!/usr/bin/env bash
# worlds.sh: simulated worlds under every configuration. SEEDS=a..b prints tables over many, and
# goes on where an earlier run of the same build was broken off; SEED=n shows one, 100 ms a line,
# WITHOUT=retry|per_try|…|plain another configuration of it. REAL=n plays so many small worlds in a
# real Envoy beside the simulation, with SEED=n that one. LONGER=n makes all faults n times as long.
# BEST=1 runs SEEDS with fixed limits too, and compares with the best of them.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_rust
[[ -z ${SEED:-} ]] || export HAVEN_WORLD=$SEED
[[ -z ${SIZE:-} ]] || export HAVEN_SIZE=$SIZE
[[ -z ${LONGER:-} ]] || export HAVEN_LONGER=$LONGER
[[ -z ${WITHOUT:-} ]] || export HAVEN_WITHOUT=$WITHOUT
if [[ -n ${REAL:-} ]]; then
  scripts/wasm.sh
  export HAVEN_REAL=$REAL HAVEN_WASM=$PWD/dist/haven.wasm
  HAVEN_ENVOY=$(scripts/envoy.sh)
  export HAVEN_ENVOY
  exec cargo test --quiet --test worlds real::compare -- --ignored --nocapture
fi
export HAVEN_WORLDS=${SEEDS:-0..1000}
if [[ -n ${BEST:-} ]]; then
  exec cargo test --quiet --profile worlds --test worlds best::best -- --ignored --nocapture
fi
cargo test --quiet --profile worlds --test worlds report::report -- --ignored --nocapture
