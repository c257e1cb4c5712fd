# shellcheck shell=bash
# Sourced by each finding. Everything it makes lies in one temporary folder, which is gone at the end.
#
#   packages NAME==VERSION...   a virtual environment with these packages from PyPI
#   experiment                  runs the Python program on standard input in it, with lab.py
#
# Ends with 0 if all is as the finding says, 1 if something has changed, 2 if it could not be tried.
set -euo pipefail
home=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lab=$(mktemp -d "${TMPDIR:-/tmp}/finding.XXXXXX")
trap 'rm -rf "$lab"' EXIT
trap 'exit 2' INT TERM

packages() {
  printf 'versions: %s\n' "$*"
  python3 -m venv "$lab/venv" >&2 || exit 2
  "$lab/venv/bin/python" -m pip --disable-pip-version-check --quiet install --no-compile "$@" >&2 || exit 2
}

experiment() {
  TMPDIR=$lab PYTHONPATH=$home PYTHONDONTWRITEBYTECODE=1 PYTHONWARNINGS=ignore \
    "$lab/venv/bin/python" -
}
