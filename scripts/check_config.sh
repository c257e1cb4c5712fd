#!/usr/bin/env bash
# check_config.sh FILE [BOOTSTRAP]: validates a filter config with the filter's own code, and warns of
# routes in an Envoy's bootstrap that go round the filter, and of clusters there whose endpoints are
# not those of the filter. HOST=nginx: refuses what nginx lacks.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage="make check-config FILE=path/to/config.json [BOOTSTRAP=path/to/envoy.yaml | HOST=nginx]"
[[ -n ${1:-} ]] || die "no file given" "$usage"
for file in "$@"; do
  [[ -r $file ]] || die "$file cannot be read"
done
need_rust
say "building the checker"
cargo build --quiet --example check_config ||
  die "the checker does not compile" "what went wrong stands above"
case ${HOST:-envoy} in
envoy) flags=(${2:+--envoy "$2"}) ;;
nginx) flags=(--nginx) ;;
*) die "HOST=$HOST is not known" "$usage" ;;
esac
cargo run --quiet --example check_config -- "$1" "${flags[@]}"
