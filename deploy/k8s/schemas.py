"""Write JSON schemas for kubeconform: of Kubernetes' own kinds, and of operators' kinds.

    python3 deploy/k8s/schemas.py DIRECTORY SWAGGER.json [DIRECTORY_OF_CRDS…]

A file a kind, named `<kind>-<group>-<version>.json` as kubeconform looks for it. Objects take no field that their
schema does not name, unless it says so: that is how a typing error is found. Needs PyYAML for CRDs alone.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_DEFINITIONS: Final = "_definitions.json"
_NUMBER_OR_TEXT: Final = {"oneOf": [{"type": "string"}, {"type": "integer"}]}
_QUANTITY: Final = "io.k8s.apimachinery.pkg.api.resource.Quantity"


def tidied(node: Any) -> Any:
    """Return a schema that refuses unknown fields and knows Kubernetes' two-typed values."""
    if isinstance(node, list):
        return [tidied(each) for each in node]
    if not isinstance(node, dict):
        return node
    if node.get("format") == "int-or-string" or node.get("x-kubernetes-int-or-string"):
        return _NUMBER_OR_TEXT
    found = {
        key: {name: tidied(each) for name, each in value.items()} if key == "properties" else tidied(value)
        for key, value in node.items()
    }
    if isinstance(reference := found.get("$ref"), str):
        found["$ref"] = reference.replace("#/definitions/", f"{_DEFINITIONS}#/definitions/")
    if _is_closed(found):
        found["additionalProperties"] = False
    return found


def _is_closed(schema: dict[str, Any]) -> bool:
    open_ended = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    return isinstance(schema.get("properties"), dict) and not open_ended


def file_name(kind: str, group: str, version: str) -> str:
    """Return the name by which kubeconform looks for a kind: the group up to its first dot."""
    return "-".join(part for part in (kind.lower(), group.partition(".")[0], version.lower()) if part) + ".json"


def of_kubernetes(swagger: Path) -> Iterator[tuple[str, Any]]:
    """Yield the files of Kubernetes' own kinds, and one with what they refer to."""
    definitions = json.loads(swagger.read_text())["definitions"]
    found = {name: tidied(each) for name, each in definitions.items()}
    found[_QUANTITY] = {"oneOf": [{"type": "string"}, {"type": "number"}]}
    yield _DEFINITIONS, {"definitions": found}
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", []):
            named = file_name(kind["kind"], kind["group"], kind["version"])
            yield named, {"$ref": f"{_DEFINITIONS}#/definitions/{name}"}


def of_operators(directory: Path) -> Iterator[tuple[str, Any]]:
    """Yield the files of the kinds that a directory of CustomResourceDefinitions declares."""
    import yaml  # noqa: PLC0415 - for these alone

    # `=` alone is a text in these files, as in YAML 1.2.
    yaml.SafeLoader.add_constructor("tag:yaml.org,2002:value", lambda _, node: node.value)
    for path in sorted(directory.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if not document or document.get("kind") != "CustomResourceDefinition":
                continue
            spec = document["spec"]
            for version in spec["versions"]:
                schema = tidied(version["schema"]["openAPIV3Schema"])
                schema.setdefault("properties", {})["metadata"] = {"type": "object"}
                yield file_name(spec["names"]["kind"], spec["group"], version["name"]), schema


def main(directory: Path, swagger: Path, crds: list[Path]) -> None:
    """Write all files."""
    directory.mkdir(parents=True)
    for name, schema in of_kubernetes(swagger):
        (directory / name).write_text(json.dumps(schema))
    for folder in crds:
        for name, schema in of_operators(folder):
            (directory / name).write_text(json.dumps(schema))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(argument) for argument in sys.argv[3:]])
