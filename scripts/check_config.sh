#!/usr/bin/env bash
# check_config.sh FILE: validates a filter config with the filter's own code.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ -n ${1:-} ]] || die "no file given" "make check-config FILE=path/to/config.json"
[[ -r $1 ]] || die "$1 cannot be read"
need_rust
say "building the checker"
cargo build --quiet --example check_config ||
  die "the checker does not compile" "what went wrong stands above"
cargo run --quiet --example check_config -- "$1"
