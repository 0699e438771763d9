"""Addresses of ours in the place of a vendor's, as `Links` declares them: what they lead to is reached through us alone."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from metering.admission import Caller
from metering.objects import ObjectId
from metering.tickets import Tickets
from proxy.mounted import Mounted
from proxy.surface import Headers, Links

DEPTH_MAX = 32
"""Of objects within each other that are looked into; a vendor's answer has a handful."""
_HOST = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
_HTTP = re.compile("^http")


def base_of(public_url: str, headers: Headers, scheme: str) -> str:
    """Where the caller of a request reaches us: as the operator says, or as the request itself does. Scheme and host."""
    if public_url:
        return public_url
    said = {
        name: value.decode("latin-1") for name, value in headers if name in {b"host", b"x-forwarded-proto"}
    }
    host, forwarded = said.get(b"host", ""), said.get(b"x-forwarded-proto", "")
    if _HOST.fullmatch(host) is None:
        host = "localhost"
    return f"{forwarded if forwarded in {'http', 'https'} else scheme}://{host}"


def websocket_url(base: str, mounted: Mounted, path: str) -> str:
    """Of a websocket below a surface's mount."""
    return _HTTP.sub("ws", base) + mounted.surface.mounts[0] + path


def relinker(
    links: Links, mounted: Mounted, tickets: Tickets, caller: Caller, base: str
) -> Callable[[bytes], bytes]:
    """What makes of a body one with our addresses; what has none of the vendor's stays as it is. `tickets` are prepared."""
    valid_s = float(mounted.options[links.valid_env])

    def ticket_of(holder: Mapping[str, Any]) -> str:
        upstream_id = holder.get(links.id_field)
        if not isinstance(upstream_id, str) or not upstream_id:
            return ""
        one = ObjectId(mounted.surface.provider, links.kind, upstream_id)
        return tickets.mint(one, caller.user_id, caller.token_id, valid_s=valid_s)

    def replace_in(value: Any, depth: int) -> bool:
        if depth > DEPTH_MAX:
            return False
        if isinstance(value, list):
            return sum(replace_in(item, depth + 1) for item in value) > 0  # in all of them
        if not isinstance(value, dict):
            return False
        is_changed = sum(replace_in(item, depth + 1) for item in value.values()) > 0
        found = [name for name in (*links.sockets, *links.keys, *links.others) if value.get(name) is not None]
        if not found:
            return is_changed
        ticket = ticket_of(value)
        address = websocket_url(base, mounted, links.path.replace("{ticket}", ticket)) if ticket else ""
        ours = {
            **dict.fromkeys(links.sockets, address),
            **dict.fromkeys(links.keys, ticket),
            **dict.fromkeys(links.others, ""),
        }
        value.update({name: ours[name] for name in found})
        return True

    def edit(body: bytes) -> bytes:
        answer = orjson.loads(body) if body else None
        return orjson.dumps(answer) if replace_in(answer, 0) else body

    return edit
