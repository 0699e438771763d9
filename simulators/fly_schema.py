"""Whether a request fits Fly's OpenAPI document (3.0), which stays where it lies.

It is read more strictly than it is written: a field that it does not name is none, because Fly ignores what it does not
know, and a misspelt setting would be lost in silence. What of it is behind the vendor's own reality stands in one table.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import orjson

from simulators.paths import decoded
from simulators.server import ReceivedRequest

Schema = Mapping[str, Any]

PREFIX = "/v1"
SCHEMA_PATH = "#/components/schemas/"
CHECKED = {
    "$ref",
    "additionalProperties",
    "allOf",
    "enum",
    "items",
    "nullable",
    "properties",
    "required",
    "type",
}
SAYING_NOTHING = {"default", "description", "example", "format", "title"}
"""Words of a schema that refuse nothing here. Any other is one that the document did not have, and must be taught."""

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
STRINGS_OR_NULL: Schema = {
    "type": "object",
    "additionalProperties": {"type": "string", "nullable": True},
}

TOLERATED_FIELDS: Mapping[tuple[str, str], Schema] = {
    # What the guides and clients in use send; the document has `name` alone.
    ("CreateAppRequest", "app_name"): STRING,
    # The older form, which the field's own description allows and the API itself answers.
    ("fly.MachineService", "autostop"): BOOLEAN,
    # In the document's own Lease, and sent by the vendor's own client.
    ("CreateLeaseRequest", "description"): STRING,
    # null deletes one of several secrets.
    ("AppSecretsUpdateRequest", "values"): STRINGS_OR_NULL,
}
"""Fields by schema and name that reality has beside the document, or in another form too, each with its reason."""

TOLERATED_QUERY: Mapping[tuple[str, str], Schema] = {
    # The vendor's own client waits so for a new app.
    ("POST /apps", "wait"): BOOLEAN,
    # Documented in the guide, and in its blueprints.
    ("DELETE /apps/{app_name}", "force"): BOOLEAN,
    # Documented in the guide: a filter by any key.
    ("GET /apps/{app_name}/machines", "metadata.*"): STRING,
}
"""Parameters of a query likewise."""

_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}
_PARSED: Mapping[str, Callable[[str], Any]] = {
    "boolean": lambda text: {"true": True, "false": False}.get(text, text),
    "integer": lambda text: int(text) if re.fullmatch(r"-?\d+", text, re.ASCII) else text,
}
"""What the text of a parameter means; any other type is text."""


class Operation:
    """One method on one path of the document."""

    def __init__(self, line: str, fields: Mapping[str, Any]) -> None:
        self.line = line
        self.pattern = re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(line)))
        body = fields.get("requestBody") or {}
        schemas = [media["schema"] for media in (body.get("content") or {}).values()]
        self.body: Schema | None = schemas[0] if schemas else None
        self.needs_body = bool(body.get("required"))
        self.query = {each["name"]: each for each in fields.get("parameters", ()) if each["in"] == "query"}


class OpenApi:
    """The document at `path`. Raises ValueError when it uses words that are not checked here."""

    def __init__(self, path: Path) -> None:
        document = orjson.loads(path.read_bytes())
        self._schemas: Mapping[str, Schema] = document["components"]["schemas"]
        self._operations = [
            Operation(f"{method.upper()} {template}", fields)
            for template, methods in document["paths"].items()
            for method, fields in methods.items()
        ]
        for name, schema in self._schemas.items():
            _check_words(schema, name)

    def problems(self, request: ReceivedRequest) -> list[str]:
        """What of a request does not fit; [] if all of it does."""
        line = f"{request.method} {decoded(request.path).removeprefix(PREFIX)}"
        for operation in self._operations:
            if operation.pattern.fullmatch(line):
                query = request.target.partition("?")[2]
                return [*self._of_query(operation, query), *self._of_body(operation, request.body)]
        return [f"{line}: no such operation"]

    def _of_query(self, operation: Operation, query: str) -> Iterator[str]:
        pairs = parse_qsl(query, keep_blank_values=True)
        for name, text in pairs:
            schema = self._parameter(operation, name)
            if schema is None:
                yield f"?{name}: unknown parameter"
                continue
            values = text.split(",") if "enum" in schema else [text]
            for value in values:
                parsed = _PARSED.get(schema.get("type", ""), str)(value)
                yield from self._of_value(schema, parsed, f"?{name}")
        given = {name for name, _ in pairs}
        for name, parameter in operation.query.items():
            if parameter.get("required") and name not in given:
                yield f"?{name}: missing"

    def _parameter(self, operation: Operation, name: str) -> Schema | None:
        if name in operation.query:
            schema: Schema = operation.query[name].get("schema", STRING)
            return schema
        wildcard = f"{name.partition('.')[0]}.*" if "." in name else name
        return TOLERATED_QUERY.get((operation.line, wildcard))

    def _of_body(self, operation: Operation, body: bytes) -> Iterator[str]:
        if not body:
            if operation.needs_body:
                yield "body: missing"
            return
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            yield "body: no JSON"
            return
        if operation.body is not None:
            yield from self._of_value(operation.body, value, "body")
        elif value:
            yield "body: this operation has none"

    def _of_value(self, schema: Schema, value: Any, at: str, name: str = "") -> Iterator[str]:
        """`name` is that of the schema, for what is tolerated of it."""
        if "$ref" in schema:
            name = schema["$ref"].removeprefix(SCHEMA_PATH)
            yield from self._of_value(self._schemas[name], value, at, name)
            return
        for part in schema.get("allOf", ()):
            yield from self._of_value(part, value, at, name)
        if value is None:
            if not schema.get("nullable"):
                yield f"{at}: null"
            return
        kind = schema.get("type")
        if kind is not None and not _TYPES[kind](value):
            yield f"{at}: not of type {kind}"
            return
        if "enum" in schema and value not in schema["enum"]:
            yield f"{at}: {value!r} is none of {', '.join(schema['enum'])}"
        if isinstance(value, dict):
            yield from self._of_object(schema, value, at, name)
        elif isinstance(value, list) and "items" in schema:
            for number, each in enumerate(value):
                yield from self._of_value(schema["items"], each, f"{at}[{number}]")

    def _of_object(self, schema: Schema, value: dict[str, Any], at: str, name: str) -> Iterator[str]:
        for key in schema.get("required", ()):
            if key not in value:
                yield f"{at}.{key}: missing"
        known: Mapping[str, Schema] = schema.get("properties") or {}
        others = schema.get("additionalProperties")
        for key, each in value.items():
            tolerated = TOLERATED_FIELDS.get((name, key))
            inner = known.get(key, others if isinstance(others, dict) else None)
            if inner is not None:
                found = list(self._of_value(inner, each, f"{at}.{key}"))
                is_tolerated = tolerated is not None and not self._any(tolerated, each)
                yield from () if is_tolerated else found
            elif tolerated is not None:
                yield from self._of_value(tolerated, each, f"{at}.{key}")
            elif known and not others:
                yield f"{at}.{key}: unknown field"

    def _any(self, schema: Schema, value: Any) -> bool:
        return any(True for _ in self._of_value(schema, value, ""))


def _check_words(schema: Schema, at: str) -> None:
    unknown = {word for word in schema if not word.startswith("x-")} - CHECKED - SAYING_NOTHING
    if unknown:
        raise ValueError(f"{at}: words that are not checked: {', '.join(sorted(unknown))}")
    for inner in _inner(schema):
        _check_words(inner, at)


def _inner(schema: Schema) -> Iterable[Schema]:
    yield from (schema.get("properties") or {}).values()
    yield from schema.get("allOf", ())
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            yield schema[word]
