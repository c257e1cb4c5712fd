#!/usr/bin/env bash
# Formatting, clippy on both targets, and what cargo-deny finds about licences, sources and banned
# crates.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

DENY=0.20.2

need_wasm_target
for part in rustfmt clippy; do
  cargo "${part/rust/}" --version >/dev/null 2>&1 && continue
  say "adding $part"
  rustup component add "$part" >&2 ||
    die "$part could not be added" "try: rustup component add $part"
done

say "Cargo.lock is up to date"
cargo metadata --locked --format-version 1 >/dev/null ||
  die "Cargo.lock does not fit Cargo.toml" "run cargo build and commit Cargo.lock"
say "rustfmt"
for package in . fuzz benches/floor examples/upstream; do
  cargo fmt --manifest-path "$package/Cargo.toml" --check ||
    die "some files are not formatted" "run: cargo fmt --manifest-path $package/Cargo.toml"
done
say "clippy, native"
cargo clippy --quiet --workspace --all-targets -- -D warnings ||
  die "clippy reports problems (native)" "they stand above"
say "clippy, wasm32"
cargo clippy --quiet --lib --target wasm32-unknown-unknown -- -D warnings ||
  die "clippy reports problems (wasm32)" "they stand above"
deny=$(crate_binary cargo-deny "$DENY" cargo-deny)
say "cargo deny"
"$deny" check bans licenses sources ||
  die "cargo-deny refuses a dependency" "its reason stands above, the rules in deny.toml"
say "lint: all clean"
