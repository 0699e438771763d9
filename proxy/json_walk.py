"""Looking through decoded JSON: at a path, or at any depth without walking every large body for every question."""

import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

WALKED_FREELY = 2_000
BYTES_EACH_WALKED_FREELY = 100
"""Values looked at by a walk before it asks whether it is needed: so many, and one for so many bytes of the body.
Up to there it costs less than the search in the bytes that answers that."""

_ABSENT = object()
_NO_TEXTS: AbstractSet[str] = frozenset()
_HIDDEN_NAME = re.compile(rb"\\u00(?:3[0-9]|[4-7])")
"""An escape of an ASCII letter, digit or underscore: nobody writes one except to hide a name from a search
in the bytes. (Escapes of `<`, `>`, `&` and `'` are what careful encoders write, and hide nothing.)"""


class Walk:
    """Every object in one value of a body, found once for all who look there.

    Most questions end at the set of all keys: whoever looks for `file_id` has seen a body of hundreds of objects
    when no object has that key. A long walk stops early, and goes on when a search in the body's bytes says that
    there may be something to find.
    """

    __slots__ = ("_body", "_keys", "_level", "_objects", "_texts")

    def __init__(self, root: Any, body: bytes) -> None:
        self._body = body
        self._objects: list[dict[str, Any]] = []
        self._keys: set[str] = set()
        self._texts: dict[str, AbstractSet[str]] = {}
        self._level: list[Any] = root if type(root) is list else [root]
        """Where the walk goes on, if it is not over; not changed."""
        self._walk_on(max(WALKED_FREELY, len(body) // BYTES_EACH_WALKED_FREELY))

    def objects(self, keys: AbstractSet[str], names: Sequence[bytes]) -> Sequence[dict[str, Any]]:
        """All objects, outer ones first, where one of `keys` stands in any of them; otherwise none.

        `names`: what the body's text must contain, quotes included, for the caller to find anything. If it does
        not, the objects of a long body may be left out that were not come to yet.
        """
        if self._level and may_name(self._body, names):
            self._walk_on(None)
        return () if self._keys.isdisjoint(keys) else self._objects

    def has_met(self, key: str) -> bool:
        """Whether an object that the walk has come to has this key."""
        return key in self._keys

    def texts_at(self, key: str) -> AbstractSet[str]:
        """The strings that stand at this key in any object that the walk has come to; found once for all who ask."""
        if key not in self._keys:
            return _NO_TEXTS
        texts = self._texts.get(key)
        if texts is None:
            texts = self._texts[key] = {one[key] for one in self._objects if type(one.get(key)) is str}
        return texts

    def may_hold(self, key: str) -> bool:
        """Whether any object may have this key."""
        return key in self._keys or (bool(self._level) and may_name(self._body, (f'"{key}"'.encode(),)))

    def _walk_on(self, walked_max: int | None) -> None:
        """Level by level, never recursive."""
        found, level, walked = self._objects, self._level, 0
        begin = len(found)
        while level and (walked_max is None or walked <= walked_max):
            walked += len(level)
            below: list[Any] = []
            for node in level:
                if type(node) is dict:
                    found.append(node)
                    for value in node.values():
                        # Most are strings, and told by one look.
                        if type(value) is not str and (type(value) is dict or type(value) is list):
                            below.append(value)  # noqa: PERF401 - a comprehension for each object takes longer
                elif type(node) is list:
                    below += node
            level = below
        self._level = level
        self._texts.clear()
        self._keys.update(*found[begin:])


def value_at(node: Any, keys: Sequence[str]) -> Any:
    """What stands at a path of objects; None where there is nothing."""
    for key in keys:
        if type(node) is not dict and not isinstance(node, Mapping):  # a dict is known ten times as fast
            return None
        node = node.get(key)
    return node


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


def may_name(body: bytes, names: Sequence[bytes]) -> bool:
    """Whether a JSON text may hold one of `names` (with their quotes) as a key or a value."""
    return any(name in body for name in names) or _HIDDEN_NAME.search(body) is not None
