#!/usr/bin/env bash
# Build the tools that check the manifests, from their Go modules, into .tools/bin; and fetch what they check against:
# the schemas of three versions of Kubernetes, and those of the operators' own kinds that stand in Go modules.
#
#   deploy/k8s/tools.sh            # make tools
#
# Needs go and kubectl. Strimzi and CloudNativePG publish their schemas elsewhere (docs/kubernetes.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3) # with PyYAML
kubernetes=(v1.35.4 v1.36.3 v1.37.2)
programs=(github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0 github.com/zegl/kube-score/cmd/kube-score@v1.20.0)
operators=(
  github.com/kedacore/keda/v2@v2.21.0/config/crd/bases
  github.com/cert-manager/cert-manager@v1.21.2/deploy/crds
  github.com/prometheus-operator/prometheus-operator@v0.85.0/example/prometheus-operator-crd
  github.com/external-secrets/external-secrets@v1.3.2/config/crds/bases
)

module() { go mod download -json "$1" | sed -n 's/.*"Dir": "\(.*\)",/\1/p'; } # where a module's files are

export CGO_ENABLED=0 GOFLAGS=-trimpath
mkdir -p .tools/bin
for program in "${programs[@]}"; do
  name=$(basename "${program%@*}")
  if [ "$(cat ".tools/$name.version" 2>/dev/null)" != "$program" ]; then
    GOBIN=$PWD/.tools/bin go install -p 2 "$program"
    echo "$program" > ".tools/$name.version"
  fi
done

wanted="${kubernetes[*]} ${operators[*]}"
if [ "$(cat .tools/schemas.version 2>/dev/null)" != "$wanted" ]; then
  directories=()
  for operator in "${operators[@]}"; do
    version=${operator#*@}
    directories+=("$(module "${operator%%@*}@${version%%/*}")/${version#*/}")
  done
  rm -rf .tools/schemas .tools/crds
  mkdir -p .tools/crds
  for directory in "${directories[@]}"; do # for an API server (deploy/k8s/trial.py)
    grep -l '^kind: CustomResourceDefinition$' "$directory"/*.yaml | xargs cp --no-preserve=mode -t .tools/crds
  done
  for version in "${kubernetes[@]}"; do
    "$python" deploy/k8s/schemas.py ".tools/schemas/$version" \
      "$(module "k8s.io/kubernetes@$version")/api/openapi-spec/swagger.json" "${directories[@]}"
  done
  echo "$wanted" > .tools/schemas.version
fi
ls .tools/bin
