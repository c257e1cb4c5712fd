#!/usr/bin/env bash
# Prints the folder of gRPC's own Python client, fetched into .tools/ if missing: a test asks the
# filter with it.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [[ -n ${HAVEN_GRPCIO:-} ]]; then
  printf "%s\n" "$HAVEN_GRPCIO"
  exit
fi
python_packages grpcio "set HAVEN_GRPCIO to a folder with the packages of scripts/tools/grpcio.txt"
