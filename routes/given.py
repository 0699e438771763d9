"""What a request to one of our own endpoints says: its query and its body, bounded, and nothing in them that is not known."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request

from metering.errors import Reason, Refused
from metering.reports import QuestionError

BODY_BYTES_MAX = 16 * 1024
"""Of a request: twenty patterns of each kind of a gateway token's scope fit."""
BODY_TIMEOUT_S = 10.0
"""For such a body to arrive."""
SHOWN_CHARS_MAX = 100
"""Of what was given, in a refusal."""

T = TypeVar("T")
Query = Mapping[str, str]


def query_of(request: Request, names: Collection[str]) -> Query:
    """The query's parameters, each known and given once. Raises Refused."""
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            expected = f"one of {', '.join(names)}" if names else "none"
            raise bad(f"query parameter: given {name!r}, expected {expected}")
        if name in query:
            raise bad(f"query parameter: given {name} twice, expected it once")
        query[name] = value
    return query


def understood(read: Callable[[str], T], text: str) -> T:
    """Raises Refused with what `read` has to say."""
    try:
        return read(text)
    except QuestionError as error:
        raise bad(str(error)) from None


async def body_of(request: Request) -> bytes:
    """Bounded in length and time. Raises Refused."""
    body = b""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_BYTES_MAX:
                    raise Refused(
                        Reason.TOO_LARGE, f"The request's body is longer than {BODY_BYTES_MAX:,} bytes."
                    )
    except TimeoutError:
        raise bad(f"The request's body did not arrive within {BODY_TIMEOUT_S:g} seconds.") from None
    except ClientDisconnect:
        raise bad("The request's body broke off.") from None
    return body


def object_of(body: bytes, keys: Collection[str]) -> dict[str, Any]:
    """The JSON object of a body, {} of none. Raises Refused."""
    try:
        given = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise bad(f"The request's body is not valid JSON: {error}") from None
    if not isinstance(given, dict):
        raise bad("The request's body must be a JSON object.")
    if unknown := set(given).difference(keys):
        expected = f"any of {', '.join(sorted(keys))}" if keys else "none"
        raise bad(f"unknown key {min(unknown)[:SHOWN_CHARS_MAX]!r}, expected {expected}")
    return given


def whole(name: str, given: Any, at_least: int, at_most: int) -> int:
    """A whole number of a body. Raises Refused."""
    if type(given) is not int or not at_least <= given <= at_most:
        raise bad(f"{name}: given {shown(given)}, expected a whole number from {at_least} to {at_most}")
    return given


def shown(given: Any) -> str:
    """What was given, as a refusal repeats it."""
    return repr(given)[:SHOWN_CHARS_MAX]


def bad(message: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, message)
