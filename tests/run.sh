#!/usr/bin/env bash
# Sets everything up in .venv (kept between runs) and runs the linter, the type checker and the tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash setup.sh
python=.venv/bin/python

echo "== ruff"
"$python" -m ruff check .
"$python" -m ruff format --check .

echo "== mypy, on an installed copy"
site=$(mktemp -d) && trap 'rm -rf "$site"' EXIT
"$python" -m pip install --quiet --no-deps --no-build-isolation --target "$site" .
rm -rf build
report=$(cd "$site" && MYPYPATH="$site" "$OLDPWD/$python" -m mypy --config-file "$OLDPWD/pyproject.toml" -p memcomp) || { echo "$report"; exit 1; }
echo "$report"
files=$(git ls-files 'memcomp/*.py' 'adapters/*.py' 'experiments/*.py' 'recipes/*.py' | wc -l)
# without this count a checker that silently looked at one file would pass
[[ $report == *"no issues found in $((files)) source files"* ]] || { echo "mypy did not check all $((files)) files of the rooms"; exit 1; }

echo "== tests"
# two processes of one thread each: the networks of the tests are too small to share among threads
OMP_NUM_THREADS=1 "$python" -m pytest -q -n 2 --dist loadfile "$@"
