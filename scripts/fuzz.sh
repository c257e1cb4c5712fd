#!/usr/bin/env bash
# fuzz.sh TARGET [SECONDS]: fuzzes one target of fuzz/ from its kept corpus. New inputs go to
# fuzz/grown/TARGET, findings to fuzz/artifacts/TARGET.
# fuzz.sh --keep TARGET: adds to the kept corpus the few grown inputs that reach what it does not.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

CARGO_FUZZ=0.13.2

keep=false
if [[ ${1:-} == --keep ]]; then
  keep=true
  shift
fi
target=${1:-} seconds=${2:-60}
mapfile -t known < <(basename -s .rs fuzz/fuzz_targets/*.rs)
[[ -n $target && " ${known[*]} " == *" $target "* ]] ||
  die "no fuzz target ${target:-is named}" "one of: ${known[*]}" \
    "like this: make fuzz TARGET=cost SECONDS=300"
[[ $seconds =~ ^[0-9]+$ ]] || die "SECONDS=$seconds: want a whole number"

need rustup "install it from https://rustup.rs, then open a new shell"
need c++ "on Debian and Ubuntu: sudo apt-get install g++ (libFuzzer itself is C++)"
# Instrumentation for coverage is a nightly feature; this script installs nothing unasked.
rustup run nightly rustc --version >/dev/null 2>&1 ||
  die "a nightly Rust toolchain is missing" \
    "add one: rustup toolchain install nightly --profile minimal"
fuzz=$(crate_binary cargo-fuzz "$CARGO_FUZZ" cargo-fuzz)
export RUSTUP_TOOLCHAIN=nightly

grown=fuzz/grown/$target corpus=fuzz/corpus/$target
mkdir -p "$grown" "$corpus"
dictionary=fuzz/dictionaries/$target.dict
options=(-timeout=10 -rss_limit_mb=2048)
[[ ! -f $dictionary ]] || options+=("-dict=$PWD/$dictionary")
# No sanitizer: there is no unsafe code for it to watch, and without it the fuzzer tries several
# times as many inputs. Overflow checks and debug assertions are on.
run() { "$fuzz" run --sanitizer none "$target" "$@"; }

"$fuzz" build --sanitizer none "$target" ||
  die "the fuzz target $target does not compile" "what went wrong stands above"

if $keep; then
  # The smallest cover, and of edges alone: counting how often each is taken keeps thousands of
  # files.
  run "$corpus" "$grown" -- -set_cover_merge=1 -use_counters=0 "${options[@]}"
else
  run "$grown" "$corpus" -- -max_total_time="$seconds" -print_final_stats=1 "${options[@]}" ||
    die "$target has a finding: fuzz/artifacts/$target" \
      "fix it, and put the input into $corpus under a name that says what it shows" \
      "the native tests then replay it: cargo test --test replay"
fi
