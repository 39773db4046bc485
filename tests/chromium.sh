#!/usr/bin/env bash
# Installs a Chromium for the tests of pages, unless there is one: Debian's package, elsewhere the build that playwright
# (in .venv) fetches; Ubuntu's package is a snap, which containers lack.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for found in "${MEMCOMP_CHROMIUM:-}" chromium google-chrome google-chrome-stable; do
  [ -z "$found" ] || ! command -v "$found" >/dev/null || exit 0
done
of_debian() {
  grep -qx ID=debian /etc/os-release 2>/dev/null || return 1
  sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
  echo "chromium is missing: installing it with apt-get"
  $sudo apt-get update -qq || :  # the lists from before may do
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null
}
of_debian || .venv/bin/python -m playwright install --with-deps chromium ||
  echo "no Chromium could be installed here: name one by MEMCOMP_CHROMIUM, else tests of pages are skipped, with CI=true they fail" >&2
