"""What is put into the texts and files of a machine, and what of them is left out where there is nothing to put.

A value that a machine does not have (no browser vendor, no inbox, no hooks) takes with it the variable that needs it, and from a
JSON file the object that names the variable. That is no nicety: OpenClaw takes the text `${NAME}` of a variable that is not set
for the value itself, so that a hook without its token would be open to everybody who knows the name.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import orjson

from metering.values import immutable

PLACEHOLDERS = frozenset(
    {
        "gateway_token",
        "proxy",
        "ticket_key",
        "hook_token",
        "project_id",
        "context_id",
        "inbox_id",
    }
)
"""What may stand in braces. `proxy` is this service's public address, without a slash at its end."""

_BRACED = re.compile(r"(?<!\$)\{([a-z_]+)\}")
_NAMED = re.compile(r"(?<!\$)\$\{([A-Z_][A-Z0-9_]*)\}")
"""A variable in a configuration of OpenClaw; a doubled dollar sign makes it plain text there."""
_GONE = object()


@immutable
class MachineFile:
    """A file that Fly writes into the machine. `content` may have placeholders; `data` is it, parsed, where that is JSON."""

    guest_path: str
    mode: int
    content: str
    data: dict[str, Any] | None

    def filled(self, values: Mapping[str, str], left_out: Collection[str]) -> bytes | None:
        """`left_out`: variables that this machine does not have. None: nothing of it does without what is not there."""
        whole = self.content if self.data is None else self.data
        kept = _kept(whole, values, frozenset(left_out) if self.data is not None else frozenset())
        if kept is _GONE:
            return None
        return kept.encode() if isinstance(kept, str) else orjson.dumps(kept, option=orjson.OPT_INDENT_2)


def placeholders(text: str) -> set[str]:
    """Whatever stands in braces like one."""
    return set(_BRACED.findall(text))


def filled(text: str, values: Mapping[str, str]) -> str:
    """Other braces are the text's own business."""
    return _BRACED.sub(lambda found: values.get(found[1], found[0]), text)


def named_variables(node: Any) -> set[str]:
    """The variables that JSON names."""
    if isinstance(node, str):
        return set(_NAMED.findall(node))
    if isinstance(node, dict | list):
        inner = node.values() if isinstance(node, dict) else node
        return {name for each in inner for name in named_variables(each)}
    return set()


def _kept(node: Any, values: Mapping[str, str], left_out: Collection[str]) -> Any:
    """A node with its placeholders filled, without the objects of which a text needs what is not there; _GONE if that is all."""
    if isinstance(node, str):
        lacks = (placeholders(node) & PLACEHOLDERS) - values.keys() or named_variables(node) & set(left_out)
        return _GONE if lacks else filled(node, values)
    if not isinstance(node, dict | list):
        return node
    items = list(node.items() if isinstance(node, dict) else enumerate(node))
    kept = {key: _kept(each, values, left_out) for key, each in items}
    if any(kept[key] is _GONE and not isinstance(each, dict) for key, each in items):
        return _GONE
    rest = {key: each for key, each in kept.items() if each is not _GONE}
    return rest if isinstance(node, dict) else list(rest.values())
