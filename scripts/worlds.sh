#!/usr/bin/env bash
# worlds.sh: simulated worlds under every configuration. SEEDS=a..b prints tables over many, and
# goes on where an earlier run of the same build was broken off; SEED=n shows one, 100 ms a line,
# WITHOUT=retry|per_try|…|plain another configuration of it.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_rust
[[ -z ${SEED:-} ]] || export HAVEN_WORLD=$SEED
[[ -z ${WITHOUT:-} ]] || export HAVEN_WITHOUT=$WITHOUT
export HAVEN_WORLDS=${SEEDS:-0..1000}
cargo test --quiet --profile worlds --test worlds report::report -- --ignored --nocapture
