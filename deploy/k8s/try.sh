#!/usr/bin/env bash
# Start a real Kubernetes on this machine, give it our images, try the local overlay on it, stop it: make k8s.
#
# Needs root and what deploy/k8s/cluster.sh and deploy/docker/debian-base.sh need. K8S_KEEP=1 leaves the cluster running.
# TRIAL_ARGS go to anabranch.deploy.k8s.trial.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

cluster=deploy/k8s/cluster.sh
data=${CLUSTER_DATA:-${XDG_CACHE_HOME:-$HOME/.cache}/anabranch/cluster}
export DOCKER_BUILDKIT=0 KUBECONFIG=$data/run/admin.kubeconfig KUBECTL=$data/bin/kubectl
images=$data/images.tar
took() { echo "$1: $((SECONDS - began)) s"; began=$SECONDS; }
began=$SECONDS

build() { # build DOCKERFILE TAG ARGUMENT... : with pip's settings of this machine, which do not stay in the image
  local file=$1 tag=$2 name arguments=(); shift 2
  for name in PIP_CERT PIP_EXTRA_INDEX_URL PIP_INDEX_URL PIP_TRUSTED_HOST REQUESTS_CA_BUNDLE; do
    if [ -n "${!name:-}" ] && grep -q "^ARG.*\b$name\b" "$file"; then
      arguments+=(--build-arg "$name=${!name}")
    fi
  done
  docker build --quiet --network=host --file "$file" --tag "$tag" "${arguments[@]}" "$@" . >/dev/null
}

if docker version >/dev/null 2>&1; then
  base=${ANABRANCH_TEST_BASE:-anabranch-base:latest} build_base=${ANABRANCH_TEST_BUILD_BASE:-anabranch-base:build}
  docker image inspect "$base" "$build_base" >/dev/null 2>&1 || deploy/docker/debian-base.sh
  build deploy/docker/Dockerfile anabranch:local --build-arg "BASE=$base" --build-arg "BUILD_BASE=$build_base"
  build deploy/docker/stores.Dockerfile anabranch-stores:local \
    --build-arg ANABRANCH=anabranch:local --build-arg "BUILD_BASE=$build_base"
  docker save --output "$images" anabranch:local anabranch-stores:local
elif [ ! -e "$images" ]; then
  echo "make k8s: no Docker engine to build the images with, and no $images" >&2
  exit 1
fi
took "images built"
"$cluster" build
took "cluster compiled"
"$cluster" up node
[ -n "${K8S_KEEP:-}" ] || trap '"$cluster" down' EXIT
took "cluster up"
"$cluster" load "$images" >/dev/null
took "images loaded"
# shellcheck disable=SC2086
.venv/bin/python -m anabranch.deploy.k8s.trial ${TRIAL_ARGS:-}
