#!/usr/bin/env bash
# Create .venv, install what requirements.lock pins, fetch Kafka's jars; then leave the stamp file given as argument.
set -euo pipefail

new_enough='import sys; sys.exit(sys.version_info < (3, 11))'

python=
for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
  if "$candidate" -c "$new_enough" 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "No Python 3.11 or newer found (tried python3 and python3.11 to python3.14)." >&2
  exit 1
fi

if ! .venv/bin/python -c "$new_enough" 2>/dev/null; then
  if ! "$python" -m venv --clear .venv; then
    echo "$python cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 1
  fi
fi

pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" --require-hashes -r requirements.lock
"${pip[@]}" --no-deps --no-build-isolation -e .
.venv/bin/python -m anabranch.deploy.local.jars fetch
rm -f .venv/installed-*
touch "$1"
