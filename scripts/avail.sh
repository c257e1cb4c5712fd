#!/usr/bin/env bash
# avail.sh: availability under faults in a real Envoy, plain, with Envoy's own filters and with
# haven. SEED=7, or 7,8,9 for medians; SCENARIOS=regex leaves out those that it does not match.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_rust
export HAVEN_SEED=${SEED:-$RANDOM} HAVEN_SCENARIOS=${SCENARIOS:-} HAVEN_WASM=$PWD/dist/haven.wasm
HAVEN_ENVOY=$(scripts/envoy.sh)
export HAVEN_ENVOY
cargo test --quiet --test avail --no-run ||
  die "the comparison does not compile" "what went wrong stands above"
say "seed $HAVEN_SEED; about 20 s a scenario," \
  "longer where the machine was too busy and a run is repeated"
cargo test --quiet --test avail -- --ignored --nocapture --exact compare ||
  die "the comparison failed" "what went wrong stands above"
