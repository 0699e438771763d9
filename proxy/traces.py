"""What the items of a vendor's list tell of where they come from, as `Swept` declares it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from metering.objects import ObjectId
from metering.orphans import Trace
from proxy.json_walk import value_at
from proxy.mounted import Mounted
from proxy.ownership import ID_CHARS_MAX
from proxy.rewriting import request_of
from proxy.side_calls import SideCalls
from proxy.surface import Swept


def traces(vendor: str, swept: Swept, answer: Any) -> list[Trace]:
    """Of the items of a page; what has no id is none."""
    items = value_at(answer, swept.items.split(".")) if swept.items else answer
    found = [trace_of(vendor, swept, item) for item in items] if isinstance(items, list) else []
    return [trace for trace in found if trace is not None]


async def whole(calls: SideCalls, mounted: Mounted, swept: Swept, trace: Trace) -> Trace:
    """With the tag that the list does not show. Raises Refused."""
    if not swept.details or trace.request_id is not None:
        return trace
    path = swept.details.replace("{id}", quote(trace.one.upstream_id, safe=""))
    return replace(trace, request_id=request_of(_text(await calls.get(mounted, path.encode()), swept.tag)))


def trace_of(vendor: str, swept: Swept, item: Any) -> Trace | None:
    """Of one item; None of what has no id."""
    upstream_id = _text(item, swept.id_field)
    if upstream_id is None:
        return None
    one = ObjectId(vendor, swept.kind, upstream_id.lower() if swept.is_caseless else upstream_id)
    within = None
    if swept.within is not None and (outer := _text(item, swept.within[1])) is not None:
        within = ObjectId(vendor, swept.within[0], outer)
    return Trace(one, request_of(_text(item, swept.tag)) if swept.tag else None, within)


def _text(item: Any, field: str) -> str | None:
    value = value_at(item, field.split(".")) if isinstance(item, Mapping) else None
    return value if isinstance(value, str) and 0 < len(value) <= ID_CHARS_MAX else None
