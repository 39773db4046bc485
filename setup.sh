#!/usr/bin/env bash
# Makes .venv with everything: the package (editable), its extras, the test tools. Run again, it only updates.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
base=${PYTHON:-python3}
"$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "memcomp needs Python >= 3.10; name one with PYTHON=..." >&2; exit 1; }
stamp=.venv/.memcomp-installed
installed() { [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt setup.sh ]; }
installed || echo "Installing into .venv; on Linux that is about 6 GB, most of it CUDA libraries of torch, and takes minutes."
make_venv() { "$base" -m venv .venv >/dev/null 2>&1; }
if ! [ -x .venv/bin/pip ]; then
  rm -rf .venv
  make_venv || {
    # Debian and Ubuntu ship Python without its venv module
    sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
    command -v apt-get >/dev/null || { echo "$base -m venv failed" >&2; exit 1; }
    echo "python3-venv is missing: installing it with apt-get"
    $sudo apt-get update -qq && $sudo apt-get install -qq -y python3-venv
    make_venv || { echo "$base -m venv failed: is the venv package of this Python installed?" >&2; exit 1; }
  }
fi
if ! installed; then
  quiet=--quiet  # in a log; on a terminal pip shows how far it is
  [ ! -t 1 ] || quiet=
  .venv/bin/python -m pip install $quiet --upgrade pip "setuptools>=77,<81" wheel
  .venv/bin/python -m pip install $quiet -e '.[all,ui,dev]'
  touch "$stamp"
fi
