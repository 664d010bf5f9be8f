#!/bin/sh
# The browser tests. Gets playwright and Chromium; where they cannot be had it says so, which is an
# error in CI alone.
# Usage: sh tests/browser.sh .venv/bin
set -u
bin=$1
skip() {
  echo "browser tests skipped: $1"
  [ "${CI:-}" = true ] && exit 1
  exit 0
}
extra='import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["browser"])'
needed=$("$bin/python" -c "$extra") || exit 1
"$bin/pip" install --quiet --disable-pip-version-check --retries 1 --timeout 15 -c constraints.txt $needed ||
  skip "$needed cannot be installed"
if ! { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || skip "there is no Chromium; on Debian: apt-get install chromium"
  echo "installing Chromium"
  quick="-qq -o Acquire::Retries=0 -o Acquire::http::Timeout=15"
  { timeout 60 apt-get update $quick && timeout 300 apt-get install $quick -y --no-install-recommends chromium; } \
    >/dev/null 2>&1 ||
    skip "Chromium cannot be installed; on Debian: apt-get install chromium"
fi
exec "$bin/python" -m pytest -q -m browser tests/serving/test_playground.py
