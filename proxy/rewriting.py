"""What a request's body must say at a vendor beside what its caller says, and how an answer is shown without it.

Two words of the declarations: `namespaced`, names within the whole account that become the user's own by a prefix, and
`Tag`, by which what a request makes is known again.
"""

import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any

import orjson

from metering.errors import Reason, Refused
from metering.objects import user_tag
from proxy.json_walk import value_at
from proxy.surface import Keeps, Operation, Tag

MARK = "automna-"
"""Begins every tag. No name of a user's does: theirs begin with their own prefix."""
NO_OPTIONS: Mapping[str, str] = {}
PATTERNS_MAX = 256
"""Sets of keys, compiled: a few for each surface."""


def tag_of(request_id: str) -> str:
    """What stands at a vendor for the request that makes something. Letters, digits, `-` and `_`."""
    return MARK + request_id


def request_of(tag: object) -> str | None:
    """The request that a tag names; None for what is none of ours."""
    return tag.removeprefix(MARK) if isinstance(tag, str) and tag.startswith(MARK) else None


def prefix_of(user_id: str) -> str:
    """What stands before a user's names within an account."""
    return f"{user_tag(user_id)}-"


def body_of(
    operation: Operation,
    fields: Mapping[str, Any],
    *,
    user_id: str,
    request_id: str,
    options: Mapping[str, str] = NO_OPTIONS,
    says: Mapping[str, str] = NO_OPTIONS,
) -> bytes | None:
    """What goes up instead of the body with these fields and what it `says` beside them; None where that goes up as it is. Raises Refused(BAD_REQUEST): a name
    that is no text, of which a vendor may make one; what is ours to say."""
    said = _namespaced(fields, operation.namespaced, user_id)
    if says:
        said = {**said, **says}
    if operation.forces:
        forced = {name: options[option] for name, option in operation.forces}
        said = {name: value for name, value in {**said, **forced}.items() if value or name not in forced}
    if operation.tag is not None:
        said = _tagged(said, operation.tag, request_id)
    return None if said is fields else orjson.dumps(said)


def shown(operation: Operation, user_id: str, own_ids: Collection[str] = ()) -> Callable[[bytes], bytes]:
    """What makes of an answer what its user sees: without prefixes and tags, all else byte for byte; of a list that others
    share, the items with `own_ids`."""
    prefix = prefix_of(user_id).encode() if operation.namespaced else b""
    tags = () if operation.tag is None else (operation.tag.key,)
    pattern = _tags_under((*operation.namespaced, *tags, *operation.hides))

    def edit(body: bytes) -> bytes:
        if operation.keeps is not None:
            body = _kept(body, operation.keeps, own_ids)
        if prefix:
            body = body.replace(prefix, b"")
        return pattern.sub(b"", body) if MARK.encode() in body else body

    return edit


def _namespaced(fields: Mapping[str, Any], names: tuple[str, ...], user_id: str) -> Mapping[str, Any]:
    """With the user's prefix before each of these."""
    found = {name: fields[name] for name in names if fields.get(name) is not None}
    if not found:
        return fields
    for name, value in found.items():
        if not isinstance(value, str):
            raise Refused(Reason.BAD_REQUEST, f"{name}: must be a text.")
    prefix = prefix_of(user_id)
    return {**fields, **{name: prefix + value for name, value in found.items()}}


def _tagged(fields: Mapping[str, Any], tag: Tag, request_id: str) -> Mapping[str, Any]:
    *way, key = tag.field.split(".")
    top = holder = dict(fields)
    for name in way:
        below = holder.get(name)
        if below is not None and not isinstance(below, dict):
            raise Refused(Reason.BAD_REQUEST, f"{name}: must be an object.")
        holder[name] = below = dict(below or {})
        holder = below
    if holder.get(key) is None:
        holder[key] = tag_of(request_id)
        return top
    if not tag.is_optional:
        raise Refused(Reason.BAD_REQUEST, f"{tag.field}: is the gateway's own.")
    return fields


def _kept(body: bytes, keeps: Keeps, own_ids: Collection[str]) -> bytes:
    """Nothing of a body that is not as it was declared."""
    answer = holder = orjson.loads(body)
    *way, last = keeps.items.split(".")
    if last:
        holder = value_at(answer, way)
        listed = holder.get(last) if isinstance(holder, dict) else None
    else:
        listed = answer
    own = [
        item
        for item in (listed if isinstance(listed, list) else ())
        if isinstance(item, dict)
        and isinstance(item.get(keeps.id_field), str)
        and item[keeps.id_field] in own_ids
    ]
    if not last:
        return orjson.dumps(own)
    if not isinstance(holder, dict) or not isinstance(answer, dict):
        return b"{}"
    holder[last] = own
    answer.update({name: len(own) for name in keeps.counts if name in answer})
    return orjson.dumps(answer)


@lru_cache(maxsize=PATTERNS_MAX)
def _tags_under(keys: tuple[str, ...]) -> re.Pattern[bytes]:
    """Finds tags of ours under these keys, with the comma that goes with them. Not within texts, where quotes are
    escaped."""
    names = "|".join(map(re.escape, dict.fromkeys(keys)))
    pair = rf'"(?:{names})"\s*:\s*"{MARK}\w+"'
    return re.compile(rf"\s*,\s*{pair}|{pair}\s*,?\s*".encode(), re.ASCII)
