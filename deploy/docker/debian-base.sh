#!/usr/bin/env bash
# Make base images of Debian's own packages, for a machine that reaches no registry of images:
#
#   deploy/docker/debian-base.sh [SUITE]      # bookworm has Python 3.11
#   docker build -f deploy/docker/Dockerfile --build-arg BASE=anabranch-base --build-arg BUILD_BASE=anabranch-base:build .
#
# Needs root, debootstrap and a Docker engine. The authorities that this machine trusts are trusted in them too.
set -euo pipefail

suite=${1:-bookworm}
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

import() { # import TAG : everything that a running container never reads is left out
  tar -C "$tree" --numeric-owner --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
    --exclude='./var/log/*' --exclude='./usr/share/doc/*' --exclude='./usr/share/info/*' \
    --exclude='./usr/share/locale/*' --exclude='./usr/share/man/*' --exclude='./dev/*' --exclude='./proc/*' \
    --exclude='./sys/*' -c . |
    docker import --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$1" >/dev/null
}

mirror=$(grep -rhoE --include=*.sources --include=*.list 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list* 2>/dev/null | head -1 || true)
debootstrap --variant=minbase --include=python3,libpython3-stdlib,ca-certificates "$suite" "$tree" ${mirror:+"$mirror"} >&2
cp /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/ca-certificates.crt"
import anabranch-base:latest
chroot "$tree" apt-get install -y -qq --no-install-recommends python3-venv >&2
import anabranch-base:build
docker images anabranch-base
