"""The OpenAPI 3.1 document: the URL table, what each route is for, and the models."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from anabranch import __version__
from anabranch.services.gateway import answers
from anabranch.services.gateway.problems import MEDIA_TYPE, Kind
from anabranch.services.gateway.route_classes import CLASSES, SCOPES, RouteClass
from anabranch.shared.contracts.durations import DURATION_PATTERN
from anabranch.shared.contracts.limits import (
    MAX_IDEMPOTENCY_KEY_CHARS,
    MAX_PAGE_RUNS,
    MAX_SEARCHED_TEXT_CHARS,
    MAX_SEARCHED_VALUES,
)
from anabranch.shared.contracts.spec import PipelineSpec, closed
from anabranch.shared.record.search import STATUSES

JSON: Final = "application/json"
YAML: Final = "application/yaml"
# A model as JSON, a media type, one of some models, or nothing.
Content = type[BaseModel] | str | tuple[type[BaseModel], ...] | None

_ANYWHERE: Final = (
    Kind.BAD_REQUEST, Kind.METHOD_NOT_ALLOWED, Kind.EXPECTATION_FAILED, Kind.TOO_SLOW, Kind.HEAD_TOO_LARGE,
    Kind.INTERNAL, Kind.UNAVAILABLE, Kind.VERSION_NOT_SUPPORTED,
)  # fmt: skip
_COUNTED: Final = (Kind.UNAUTHENTICATED, Kind.FORBIDDEN, Kind.TOO_MANY)
_WITH_BODY: Final = (Kind.UNREADABLE, Kind.TOO_LARGE, Kind.UNSUPPORTED_MEDIA_TYPE, Kind.INVALID)


@dataclass(frozen=True, slots=True)
class Operation:
    """What one route takes and answers, in words and models; `problems` are those that not every route has."""

    summary: str
    answers: dict[int, tuple[str, Content]]
    takes: type[BaseModel] | None = None
    parameters: tuple[str, ...] = ()
    problems: tuple[Kind, ...] = ()
    links: tuple[tuple[str, str], ...] = ()  # what takes the id of the run that is answered
    takes_yaml: bool = True
    headers: tuple[str, ...] = ()  # of its answers


# By method and path as in the URL table; a test compares.
OPERATIONS: Final = {
    ("POST", "/v1/runs"): Operation(
        "Submit a run",
        {
            202: ("Kafka has the run; with `wait`, the run as it is", (answers.AcceptedDocument, answers.RunDocument)),
            200: ("It has ended; with `wait`, the run", (answers.AcceptedDocument, answers.RunDocument)),
        },
        takes=answers.SubmissionDocument,
        parameters=("wait", "key", "trace"),
        problems=(Kind.KEY_REUSED, Kind.OUTCOME_UNKNOWN),
        links=(("GET", "/v1/runs/{id}"), ("POST", "/v1/runs/{id}/cancel")),
        headers=("Anabranch-Stale",),
    ),
    ("POST", "/v1/runs:batch"): Operation(
        "Submit many runs",
        {200: ("What became of each", answers.BatchResultsDocument)},
        takes=answers.BatchDocument,
        takes_yaml=False,
        parameters=("trace",),
    ),
    ("GET", "/v1/runs"): Operation(
        "Search runs",
        {200: ("A page of runs, the newest first", answers.RunsDocument)},
        parameters=(
            "status",
            "of_pipeline",
            "revision",
            "since",
            "until",
            "label",
            "input",
            "error_type",
            "text",
            "limit",
            "cursor",
            "counts",
        ),
        headers=("Anabranch-Stale",),
    ),
    ("GET", "/v1/statistics"): Operation(
        "Read how long runs took and how often they failed",
        {200: ("Figures by pipeline, or by step", answers.StatisticsDocument)},
        parameters=("of_pipeline", "since", "by"),
        headers=("Anabranch-Stale",),
    ),
    ("GET", "/v1/runs/{id}"): Operation(
        "Read a run",
        {200: ("The run", answers.RunDocument), 304: ("It is as the client has it already", None)},
        parameters=("id", "wait", "known"),
        problems=(Kind.NOT_FOUND,),
        headers=("ETag", "Anabranch-Stale"),
    ),
    ("GET", "/v1/runs/{id}/steps/{step}/attempts"): Operation(
        "List the attempts of a step",
        {200: ("The first one first", answers.AttemptsDocument)},
        parameters=("id", "step"),
        problems=(Kind.NOT_FOUND,),
        headers=("Anabranch-Stale",),
    ),
    ("POST", "/v1/runs/{id}/cancel"): Operation(
        "Cancel a run",
        {202: ("Kafka has the cancellation", answers.AcceptedDocument)},
        parameters=("id", "trace"),
        problems=(Kind.NOT_FOUND, Kind.CONFLICT),
    ),
    ("GET", "/v1/runs/{id}/events"): Operation(
        "Follow a run's events",
        {
            200: ("Server-sent events, until the run's last one", "text/event-stream"),
            204: ("The run has ended, and Last-Event-ID is its last event's", None),
        },
        parameters=("id", "last_event_id", "last_event", "follow"),
        problems=(Kind.NOT_FOUND,),
    ),
    ("GET", "/v1/events"): Operation(
        "Follow the events of all runs",
        {200: ("Server-sent events, without end", "text/event-stream")},
        parameters=("last_event_id", "last_event"),
    ),
    ("POST", "/v1/pipelines:validate"): Operation(
        "Check a definition", {200: ("It may run", answers.ValidatedDocument)}, takes=PipelineSpec
    ),
    ("GET", "/v1/step-types"): Operation(
        "List the step types", {200: ("What a step may use", answers.StepTypesDocument)}
    ),
    ("GET", "/v1/doctor"): Operation(
        "Look at the installation", {200: ("What was found, and what to do", answers.DiagnosisDocument)}
    ),
    ("GET", "/openapi.json"): Operation("Read this document", {200: ("OpenAPI 3.1", JSON)}),
    ("GET", "/schemas/pipeline.json"): Operation(
        "Read the pipeline language as JSON Schema", {200: ("JSON Schema 2020-12", "application/schema+json")}
    ),
    ("GET", "/docs"): Operation("Read the documentation page", {200: ("The page", "text/html")}),
    ("GET", "/docs/{asset}"): Operation(
        "Read a file of the documentation page",
        {200: ("The file", "*/*")},
        parameters=("asset",),
        problems=(Kind.NOT_FOUND,),
    ),
    ("GET", "/healthz"): Operation("Ask whether the process lives", {200: ("It does", answers.HealthDocument)}),
    ("GET", "/readyz"): Operation(
        "Ask whether the process can take runs",
        {200: ("It can", answers.ReadinessDocument), 503: ("It cannot yet", answers.ReadinessDocument)},
    ),
    ("GET", "/metrics"): Operation("Read the metrics", {200: ("In Prometheus' format", "text/plain")}),
}

_RUN_ID: Final = {"type": "string", "format": "uuid"}
_TEXT: Final = {"type": "string"}
_SOME_TIME: Final = {
    "anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "pattern": DURATION_PATTERN}]
}
_PAIRS: Final = {"type": "array", "items": {"type": "string", "pattern": "^[^=]+="}, "maxItems": MAX_SEARCHED_VALUES}
_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "id": {"name": "id", "in": "path", "required": True, "description": "The run.", "schema": _RUN_ID},
    "step": {
        "name": "step",
        "in": "path",
        "required": True,
        "description": "The step's id in its definition.",
        "schema": {"type": "string"},
    },
    "known": {
        "name": "If-None-Match",
        "in": "header",
        "description": "`ETag`s of states that the client has: if the run is in one of them, the answer is 304.",
        "schema": {"type": "string"},
    },
    "asset": {"name": "asset", "in": "path", "required": True, "schema": {"type": "string"}},
    "wait": {
        "name": "wait",
        "in": "query",
        "description": "Answer when the run has ended or this time is up: like 30s, or seconds; 5m at most.",
        "schema": {"type": "string", "pattern": f"{DURATION_PATTERN}|^[0-9]{{1,9}}$"},
    },
    **{
        key: {"name": key.removeprefix("of_"), "in": "query", "description": words, "schema": schema}
        for key, words, schema in (
            ("status", "Any of these.", {"type": "array", "items": {"enum": list(STATUSES)}}),
            ("of_pipeline", "Of this name.", _TEXT),
            ("revision", "Of this revision.", {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}),
            ("since", "Begun at this time or later: RFC 3339, or so long ago: 15m, 7d.", _SOME_TIME),
            ("until", "Begun before this time.", _SOME_TIME),
            ("label", "With these labels: name=value.", _PAIRS),
            ("input", "With these inputs: name=value, JSON of what is no text.", _PAIRS),
            ("error_type", "Ended with an error of this type.", _TEXT),
            (
                "text",
                "In the pipeline's name, the error's message or the beginning of the id, whatever its case.",
                {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_SEARCHED_TEXT_CHARS,
                },
            ),
            ("limit", "Runs of a page.", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_RUNS, "default": 50}),
            ("cursor", "The `next_cursor` of the page before.", _TEXT),
            ("counts", "Count them by status, too.", {"type": "boolean", "default": False}),
            ("by", "Of whole runs, or of each step.", {"enum": ["pipeline", "step"], "default": "pipeline"}),
        )
    },
    "last_event_id": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "Go on after the event with this `id`.",
        "schema": {"type": "string"},
    },
    "follow": {
        "name": "follow",
        "in": "query",
        "description": "Go on after what there is by now, to the run's end.",
        "schema": {"type": "boolean", "default": True},
    },
    "last_event": {
        "name": "last_event_id",
        "in": "query",
        "description": "The same, for pages: their `EventSource` sends no header with its first request.",
        "schema": {"type": "string"},
    },
    "key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Submissions with the same key are one run.",
        "schema": {"type": "string", "pattern": rf"^[\x21-\x7e]{{1,{MAX_IDEMPOTENCY_KEY_CHARS}}}$"},
    },
    "trace": {
        "name": "traceparent",
        "in": "header",
        "description": "The run goes on in this trace (W3C Trace Context); what is none is passed over.",
        "schema": {"type": "string"},
    },
}
_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "ETag": {"description": "Names this state of the run.", "schema": {"type": "string"}},
    "Anabranch-Stale": {
        "description": "The read is behind the engine by so many seconds, at least; absent for one or less.",
        "schema": {"type": "integer", "minimum": 1},
    },
}
_SECURITY: Final = {
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or a token of the configured issuer."},
}


def openapi_document(*, asks_for_keys: bool) -> dict[str, Any]:
    """Return the document; `asks_for_keys`: requests without credentials are refused by this gateway."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, operation, asks_for_keys)
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "Anabranch",
            "version": __version__,
            "description": "Pipelines that fork, run in parallel and rejoin.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
            "securitySchemes": _SECURITY,
        },
    }


def _operation(method: str, path: str, operation: Operation, asks_for_keys: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": _id_of(method, path),
        "summary": operation.summary,
        "security": _security(method, path, asks_for_keys),
        "responses": _answers(operation),
    }
    if operation.parameters:
        found["parameters"] = [{"$ref": f"#/components/parameters/{name}"} for name in operation.parameters]
    if operation.takes is not None:
        content = _content(operation.takes)
        found["requestBody"] = {
            "required": True,
            "content": content | ({YAML: content[JSON]} if operation.takes_yaml else {}),
        }
    kinds = [*_ANYWHERE, *operation.problems]
    kinds += _WITH_BODY if operation.takes is not None else ()
    kinds += _COUNTED if CLASSES[method, path] is not RouteClass.OPEN else ()
    for status, answer in _problems(kinds).items():
        if status in found["responses"]:
            found["responses"][status]["content"] |= answer["content"]
        else:
            found["responses"][status] = answer
    return found


def _security(method: str, path: str, asks_for_keys: bool) -> list[dict[str, list[str]]]:
    if CLASSES[method, path] is RouteClass.OPEN:
        return []
    scope = SCOPES[method, path].value
    asked = [{name: [scope]} for name in _SECURITY]
    return asked if asks_for_keys else [*asked, {}]


def _answers(operation: Operation) -> dict[str, Any]:
    links = {
        _id_of(*route): {"operationId": _id_of(*route), "parameters": {"id": "$response.body#/id"}}
        for route in operation.links
    }
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in operation.headers}
    more = ({"links": links} if links else {}) | ({"headers": headers} if headers else {})
    return {
        str(status): {"description": words} | ({"content": _content(content)} if content is not None else {}) | more
        for status, (words, content) in operation.answers.items()
    }


def _id_of(method: str, path: str) -> str:
    return f"{method.lower()} {path}"


def _content(content: type[BaseModel] | str | tuple[type[BaseModel], ...]) -> dict[str, Any]:
    if isinstance(content, str):
        return {content: {}}
    if isinstance(content, tuple):
        return {JSON: {"schema": {"oneOf": [_reference(each) for each in content]}}}
    return {JSON: {"schema": _reference(content)}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _models(content: Content) -> tuple[type[BaseModel], ...]:
    if content is None or isinstance(content, str):
        return ()
    return content if isinstance(content, tuple) else (content,)


def _problems(kinds: Iterable[Kind]) -> dict[str, Any]:
    """Return the answers by status, each with the types of problem that have it."""
    by_status: dict[int, list[Kind]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, []).append(kind)
    return {
        str(status): {
            "description": "; ".join(kind.title for kind in of_status),
            "content": {
                MEDIA_TYPE: {
                    "schema": {
                        "allOf": [
                            {"$ref": "#/components/schemas/ProblemDocument"},
                            {"properties": {"type": {"enum": [kind.urn for kind in of_status]}}},
                        ]
                    }
                }
            },
        }
        for status, of_status in sorted(by_status.items())
    }


def _schemas() -> dict[str, Any]:
    contents = [content for operation in OPERATIONS.values() for _, content in operation.answers.values()]
    models = {model for content in contents for model in _models(content)}
    models |= {each.takes for each in OPERATIONS.values() if each.takes is not None} | {answers.ProblemDocument}
    named = sorted(models, key=lambda model: model.__name__)
    _, schema = models_json_schema(
        [(model, "validation") for model in named], ref_template="#/components/schemas/{model}"
    )
    found: dict[str, Any] = closed(schema["$defs"])
    return found
