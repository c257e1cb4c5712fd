#!/usr/bin/env bash
# stand_in_images.sh IMAGE...: makes local images of the names that deploy/docker/Dockerfile starts
# from, out of Debian packages, this machine's Rust toolchain and the Envoy of `make envoy`. For
# machines that cannot pull; needs root.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
label=haven.stand-in=true # compose_test.py removes what carries it

# image TAG: builds $work/context, whose Dockerfile comes from stdin
image() {
  cat >"$work/context/Dockerfile"
  docker build --quiet --label "$label" --tag "$1" "$work/context" >&2
  rm -rf "$work/context"
}

# The mirror that this machine's apt takes Debian's packages from; nothing if it has none.
debian_mirror() {
  if [[ -n ${DEBIAN_MIRROR:-} ]]; then
    printf '%s\n' "$DEBIAN_MIRROR"
  elif command -v apt-get >/dev/null; then
    # shellcheck disable=SC2016 # fields of apt's
    apt-get indextargets --format '$(SITE) $(CODENAME)' 'Identifier: Packages' 'Origin: Debian' |
      awk '$2 !~ /-/ { print $1; exit }'
  fi
}

debian() {
  say "making a stand-in for $1 with debootstrap"
  [[ $(id -u) -eq 0 ]] || die "debootstrap needs root" "run this command as root"
  need debootstrap "sudo apt-get install debootstrap"
  local mirror
  mirror=$(debian_mirror)
  [[ -n $mirror ]] || die "apt has no Debian mirror here" "set DEBIAN_MIRROR to the address of one"
  debootstrap --variant=minbase --include=ca-certificates bookworm "$work/root" "$mirror" \
    >"$work/log" || {
    tail -n 5 "$work/log" >&2
    die "debootstrap failed" "set DEBIAN_MIRROR if $mirror is not the right one here"
  }
  # What this machine trusts, so that a build step reaches the registries as this machine does.
  cp -L /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/"
  tar -C "$work/root" --exclude='./var/cache/apt/*' --exclude='./usr/share/doc' \
    --exclude='./usr/share/locale' -c . |
    docker import --change "LABEL $label" --change 'CMD ["bash"]' - "$1" >&2
}

rust() {
  need_wasm_target
  say "making a stand-in for $1 with the toolchain of this machine"
  local sysroot name
  sysroot=$(rustc --print sysroot)
  name=$(basename "$sysroot")
  mkdir -p "$work/context/rustup/toolchains/$name" "$work/context/cargo/bin"
  tar -C "$sysroot" --exclude=./share -c . | tar -C "$work/context/rustup/toolchains/$name" -x
  cp -L "$(command -v rustup)" "$work/context/cargo/bin/rustup"
  for proxy in cargo rustc; do ln -s rustup "$work/context/cargo/bin/$proxy"; done
  image "$1" <<EOF
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \\
 && rm -rf /var/lib/apt/lists/*
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo
ENV PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY . /usr/local/
RUN rustup default $name
EOF
}

envoy() {
  say "making a stand-in for $1 with the binary of make envoy"
  mkdir -p "$work/context"
  cp -L "$(scripts/envoy.sh)" "$work/context/envoy"
  image "$1" <<'EOF'
FROM debian:bookworm-slim
COPY envoy /usr/local/bin/envoy
EOF
}

for tag; do
  case $tag in
    debian:bookworm-slim) debian "$tag" ;;
    rust:*) rust "$tag" ;;
    envoyproxy/envoy:*) envoy "$tag" ;;
    *) die "no stand-in is known for $tag" ;;
  esac
done
