"""Looking through decoded JSON for objects at any depth, without walking every large body to its end."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

OBJECTS_WALKED_FREELY = 1_000
"""Below so many objects a walk costs less than searching the body's bytes to find out whether it is needed."""

_ABSENT = object()
_HIDDEN_NAME = re.compile(rb"\\u00(?:3[0-9]|[4-7])")
"""An escape of an ASCII letter, digit or underscore: nobody writes one except to hide a name from a search
in the bytes. (Escapes of `<`, `>`, `&` and `'` are what careful encoders write, and hide nothing.)"""


def objects(root: Any, *, worth_it: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Every object in `root`, itself included, outer ones first; never recursive.

    A long walk asks once, after OBJECTS_WALKED_FREELY, whether it is worth going on. Level by level, as a
    comprehension over a whole level costs a third of a stack that is popped value by value.
    """
    walked = 0
    has_asked = False
    level = [root]
    while level:
        found = [node for node in level if type(node) is dict]
        inside = [node for node in level if type(node) is list]
        yield from found
        walked += len(found)
        if walked > OBJECTS_WALKED_FREELY and not has_asked:
            has_asked = True
            if not worth_it():
                return
        level = [value for node in found for value in node.values() if type(value) is not str]
        level += [value for node in inside for value in node if type(value) is not str]


def values_at(node: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[Any]:
    """What stands at a path below an object; a list on the way stands for each of its items."""
    value = node.get(keys[0], _ABSENT)
    if value is _ABSENT:
        return
    if len(keys) == 1:
        yield value
        return
    for item in value if type(value) is list else (value,):
        if type(item) is dict:
            yield from values_at(item, keys[1:])


def may_name(body: bytes, names: tuple[bytes, ...]) -> bool:
    """Whether a JSON text may hold one of `names` (with their quotes) as a key or a value."""
    return any(name in body for name in names) or _HIDDEN_NAME.search(body) is not None
