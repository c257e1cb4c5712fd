#!/usr/bin/env bash
# test_versions.sh: the tests in a real Envoy with each version of scripts/tools/envoy.txt, or with
# those of $VERSIONS, and one line for each at the end. ONLY=name as in `make test-envoy`.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ -z ${ENVOY:-} ]] || die "ENVOY names one Envoy, and this command is about several" "unset it"
read -r -a versions <<<"${VERSIONS:-$(scripts/envoy.sh --versions | paste -s -d ' ')}"
summary="" failed=""
for version in "${versions[@]}"; do
  say "Envoy $version"
  last=$(mktemp)
  if ENVOY_VERSION=$version scripts/test.sh envoy 2>&1 | tee /dev/stderr | tail -n 2 >"$last"; then
    summary+="  $version: $(tail -n 1 "$last")"$'\n'
  else
    failed+="${failed:+, }$version"
    summary+="  $version: $(grep '^error: ' "$last" || echo failed)"$'\n'
  fi
  rm -f "$last"
done
printf '%s' "$summary"
[[ -z $failed ]] || die "tests failed with Envoy $failed" "each failure stands above"
