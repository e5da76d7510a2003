"""A pipeline in a file: its value, the lines that errors point at, and inputs typed by its schema."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from anabranch.client.model import Fault
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.source import Source, SourceError, parse_source
from anabranch.shared.contracts.text import printable

_SUBMITTED_UNDER = "/definition"  # where a submission's body holds the pipeline


class InputError(AnabranchError):
    """An input on the command line that cannot be what the pipeline declares."""


@dataclass(frozen=True)
class PipelineFile:
    """A file that holds a pipeline; its text may still be wrong in every way but syntax."""

    name: str
    text: str
    source: Source

    @property
    def definition(self) -> Any:
        """The pipeline as a JSON value."""
        return self.source.value

    @property
    def step_names(self) -> tuple[str, ...]:
        """The steps, in the order they are written."""
        return tuple(_mapping(self.definition, "steps"))

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """What each step needs."""
        steps = _mapping(self.definition, "steps")
        return {step: tuple(map(str, _list(spec, "needs"))) for step, spec in steps.items()}

    def located(self, faults: Iterable[Fault]) -> list[Fault]:
        """Return what is wrong with a submission of this file: the pipeline's faults at their place in the file."""
        found = [self._locate(fault) for fault in faults]
        return sorted(found, key=lambda fault: (fault.line or 0, fault.column or 0))

    def described(self, fault: Fault) -> str:
        """Return a fault as `file:line:column: pointer: message`, with the line it is about."""
        place = ":".join(str(part) for part in (self.name, fault.line, fault.column) if part is not None)
        where = fault.pointer.removeprefix("/").replace("/", ".")
        head = f"{place}: {where}: {fault.message}" if where else f"{place}: {fault.message}"
        return printable(head) + self._excerpt(fault)

    def _locate(self, fault: Fault) -> Fault:
        # Lines and columns that the gateway names are those of the body that was sent, which nobody sees.
        if not f"{fault.pointer}/".startswith(f"{_SUBMITTED_UNDER}/"):
            return fault.model_copy(update={"line": None, "column": None})
        pointer = fault.pointer.removeprefix(_SUBMITTED_UNDER)
        line, column = self.source.position(pointer) or (None, None)
        return fault.model_copy(update={"pointer": pointer, "line": line, "column": column})

    def _excerpt(self, fault: Fault) -> str:
        lines = self.text.splitlines()
        if fault.line is None or not 1 <= fault.line <= len(lines):
            return ""
        number, line = f"{fault.line:>5} | ", lines[fault.line - 1].expandtabs(1)
        return f"\n{number}{line}\n{' ' * (len(number) - 2)}| {' ' * ((fault.column or 1) - 1)}^"


def read_pipeline(path: str) -> PipelineFile:
    """Read a pipeline from a file, or from standard input for `-`. Raises `SourceError` and `OSError`."""
    body = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    media_type = "application/json" if path.endswith(".json") else "application/yaml"
    name = "standard input" if path == "-" else path
    return PipelineFile(name, body.decode("utf-8-sig", "replace"), parse_source(body, media_type))


def unreadable(path: str, error: SourceError) -> str:
    """Return what is wrong with a file that is not YAML or JSON, with the line it is about."""
    text = "" if path == "-" else Path(path).read_text(encoding="utf-8-sig", errors="replace")
    fault = Fault(message=error.message, line=error.line, column=error.column)
    return PipelineFile(path, text, Source(None)).described(fault)


def read_inputs(file: PipelineFile, inputs_file: str | None, pairs: Iterable[str]) -> dict[str, Any]:
    """Return the inputs of a run: those of a file, then `name=value` pairs over them. Raises `InputError`."""
    inputs = _inputs_of(inputs_file) if inputs_file else {}
    declared = _mapping(file.definition, "inputs")
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--input is name=value, not {pair!r}")
        inputs[name] = typed(name, _text_of(name, text), declared.get(name))
    return inputs


def typed(name: str, text: str, schema: Any) -> Any:
    """Return an input's text as what its schema says: a string stays one, anything else is JSON."""
    types = _types(schema)
    if types == {"string"}:
        return text
    try:
        return parse_source(text.encode()).value
    except SourceError as error:
        if not types or "string" in types:
            return text
        raise InputError(f"input {name} is {' or '.join(sorted(types))}, and {text!r} is {error.message}") from error


def _types(schema: Any) -> set[str]:
    declared = schema.get("type") if isinstance(schema, Mapping) else None
    return {declared} if isinstance(declared, str) else {str(one) for one in declared or ()}


def _text_of(name: str, text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"input {name}: cannot read {text[1:]}: {error}") from error


def _inputs_of(path: str) -> dict[str, Any]:
    media_type = "application/json" if path.endswith(".json") else "application/yaml"
    try:
        value = parse_source(Path(path).read_bytes(), media_type).value
    except (OSError, SourceError) as error:
        raise InputError(f"cannot read the inputs in {path}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"the inputs in {path} are one mapping from name to value")
    return value


def _mapping(value: Any, key: str) -> dict[str, Any]:
    """Return a part of a definition that nobody has validated yet, or nothing where it is something else."""
    part = value.get(key) if isinstance(value, Mapping) else None
    return part if isinstance(part, dict) else {}


def _list(value: Any, key: str) -> list[Any]:
    part = value.get(key) if isinstance(value, Mapping) else None
    return part if isinstance(part, list) else []


def indented(value: Any) -> str:
    """Return a value as indented JSON."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
