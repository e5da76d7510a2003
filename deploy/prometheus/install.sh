#!/usr/bin/env bash
# Unpack Debian's prometheus and promtool into .venv/prometheus: no root, no service that is started. Else say so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if command -v promtool >/dev/null || [ -x .venv/prometheus/usr/bin/promtool ]; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "promtool is not installed, and there is no apt-get to fetch it: install Prometheus 2.42 or newer." >&2
  exit 1
fi
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }
cd - >/dev/null
dpkg-deb -x "$directory"/prometheus_*.deb .venv/prometheus
.venv/prometheus/usr/bin/promtool --version >/dev/null
