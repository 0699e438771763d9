"""The paths of a vendor's API: `METHOD /path/{parameter}`, and what answers each.

Ids are percent-decoded once, before the path is matched: some SDKs send an id with its slashes as they are, others
encode them, and both mean the same.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

HandlerT = TypeVar("HandlerT")
_PARAMETER = re.compile(r"{(\w+)}")


@dataclass(frozen=True, slots=True)
class Route(Generic[HandlerT]):
    method: str
    pattern: re.Pattern[str]
    handler: HandlerT


def routes(
    table: Mapping[str, HandlerT], *prefixes: str, slashed: Collection[str] = ()
) -> list[Route[HandlerT]]:
    """Routes of `METHOD /path/{parameter}`, behind each of the prefixes; the first that matches is meant.

    `slashed`: parameters that may hold a slash.
    """
    return [
        Route(line.split()[0], _compiled(prefix + line.split()[1], slashed), handler)
        for prefix in prefixes or ("",)
        for line, handler in table.items()
    ]


def found(table: list[Route[HandlerT]], method: str, path: str) -> tuple[HandlerT, dict[str, str]] | None:
    """What answers a decoded path, and its parameters."""
    for route in table:
        match = route.pattern.fullmatch(path) if route.method == method else None
        if match is not None:
            return route.handler, match.groupdict()
    return None


def decoded(path: str) -> str:
    """The path percent-decoded once; "" for what is no UTF-8, which no route matches."""
    try:
        return unquote_to_bytes(path.encode("latin-1")).decode()
    except UnicodeDecodeError:
        return ""


def _compiled(template: str, slashed: Collection[str]) -> re.Pattern[str]:
    return re.compile("".join(_pieces(template, slashed)))


def _pieces(template: str, slashed: Collection[str]) -> Iterator[str]:
    for number, piece in enumerate(_PARAMETER.split(template)):
        if number % 2 == 0:
            yield re.escape(piece)
        else:
            yield f"(?P<{piece}>.+)" if piece in slashed else f"(?P<{piece}>[^/]+)"
