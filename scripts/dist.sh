#!/usr/bin/env bash
# dist.sh: all that a release is made of, into dist/. --check builds it in another folder too, with
# another $CARGO_HOME, and compares: the same sources give the same bytes.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

CYCLONEDX=0.5.9
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

build() {
  local cyclonedx bom=haven-bill # no name of any file that is there
  scripts/wasm.sh
  cp config.schema.json dist/haven.schema.json

  say "writing the images"
  scripts/image.py dist/haven.wasm "$version" dist/haven-image.tar dist/haven-artifact.tar
  scripts/image.py --check dist/haven.wasm dist/haven-image.tar dist/haven-artifact.tar

  say "writing the bill of materials"
  cyclonedx=$(crate_binary cargo-cyclonedx "$CYCLONEDX" cargo-cyclonedx)
  # It writes beside the Cargo.toml of each member of the workspace, and the folder into the file.
  SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0} "$cyclonedx" cyclonedx --quiet --format json \
    --spec-version 1.5 --target wasm32-unknown-unknown --override-filename "$bom" >&2 ||
    die "the bill of materials could not be written" "what went wrong stands above"
  sed "s|path+file://$PWD|path+file:///haven|g" "$bom.json" >dist/haven.cdx.json
  rm -f "$bom.json" examples/*/"$bom.json"

  (
    cd dist
    sha256sum haven.wasm haven-portable.wasm haven.schema.json haven.cdx.json haven-image.tar \
      haven-artifact.tar >SHA256SUMS
    cat SHA256SUMS
  )
}

check() {
  local work home=${CARGO_HOME:-$HOME/.cargo} id
  work=$(mktemp -d)
  # shellcheck disable=SC2064 # the folder of now
  trap "rm -rf '$work'" EXIT
  mkdir -p "$work/a/longer/path" "$work/cargo"
  git ls-files -z --cached --others --exclude-standard | tar --null --files-from - -c |
    tar -C "$work/a/longer/path" -x
  ln -s "$home"/* "$work/cargo/"
  ln -s "$TOOLS" "$work/a/longer/path/.tools"
  say "the same in another folder"
  (cd "$work/a/longer/path" && env -u CARGO_TARGET_DIR CARGO_HOME="$work/cargo" scripts/dist.sh >&2) ||
    die "the build in another folder failed" "what went wrong stands above"
  diff dist/SHA256SUMS "$work/a/longer/path/dist/SHA256SUMS" ||
    die "two builds of the same sources differ" "the lines above say in what"
  say "two builds in two folders: the same bytes"

  docker info >/dev/null 2>&1 || { say "no Docker engine: the image is not loaded" && return; }
  say "loading the image into Docker's engine"
  docker load --quiet --input dist/haven-image.tar >&2
  id=$(docker create "haven:$version" none)
  docker cp --quiet "$id:/plugin.wasm" "$work/plugin.wasm"
  docker rm "$id" >/dev/null
  cmp "$work/plugin.wasm" dist/haven.wasm || die "the image holds another module" "see above"
  say "the image that Docker loaded holds dist/haven.wasm"
}

build
[[ ${1:-} != --check ]] || check
