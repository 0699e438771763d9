"""The metadata that a caller may put on a session, and how sessions are found by it."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from simulators import browserbase_errors as errors
from simulators.browserbase_state import Session

METADATA_CHARS_MAX = 512
"""As JSON; it must be shorter."""
_QUERY = re.compile(r"user_metadata((?:\['[^']+'\])+):'([^']*)'")
_KEY = re.compile(r"\['([^']+)'\]")


def checked_metadata(given: Any) -> dict[str, Any]:
    """A create's `userMetadata`. Raises RefusedError."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise errors.invalid("body/userMetadata must be object")
    if len(orjson.dumps(given).decode()) >= METADATA_CHARS_MAX:
        raise errors.invalid(f"body/userMetadata must be shorter than {METADATA_CHARS_MAX} characters")
    if _holds_list(given):
        raise errors.invalid("body/userMetadata must not hold arrays")
    return given


def matching(sessions: Iterable[Session], query: str) -> list[Session]:
    """Those whose metadata says what `user_metadata['key']:'value'` asks for, letter by letter. Raises RefusedError."""
    asked = _QUERY.fullmatch(query)
    if asked is None:
        raise errors.invalid("querystring/q is no query: expected user_metadata['key']:'value'")
    keys = _KEY.findall(asked[1])
    return [session for session in sessions if _found(session.user_metadata, keys) == asked[2]]


def _found(metadata: Mapping[str, Any], keys: Iterable[str]) -> Any:
    value: Any = metadata
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _holds_list(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_list, value.values()))
    return isinstance(value, list)
