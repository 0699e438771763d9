"""Webhooks that come in: who sent one is known by its signature alone (Standard Webhooks; Svix has the same under names of
its own; others sign the body alone)."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping

SKEW_S = 300
"""How far a delivery's time may be from ours: what is older is a replay."""
ID_CHARS_MAX = 256
_PREFIXES = ("webhook-", "svix-")


class ForgedError(Exception):
    """A delivery is not what its sender signed, or not of now; the message says which, and no more."""


def verified_id(keys: tuple[bytes, ...], headers: Mapping[str, str], body: bytes, now_s: int) -> str:
    """The id of a delivery, which is the same in every attempt. `headers` by lower-case names. Raises ForgedError."""
    for prefix in _PREFIXES:
        if f"{prefix}id" in headers:
            parts = [headers.get(f"{prefix}{name}", "") for name in ("id", "timestamp", "signature")]
            break
    else:
        raise ForgedError("it is not signed")
    delivery_id, timestamp, signatures = parts
    if not 0 < len(delivery_id) <= ID_CHARS_MAX or not timestamp.isascii() or not timestamp.isdigit():
        raise ForgedError("its id or its time cannot be read")
    if abs(now_s - int(timestamp[:18])) > SKEW_S:
        raise ForgedError("its time is not ours")
    signed = b".".join((delivery_id.encode(), timestamp.encode(), body))
    given = [_decoded(item.removeprefix("v1,")) for item in signatures.split() if item.startswith("v1,")]
    for key in keys:
        expected = hmac.digest(key, signed, hashlib.sha256)
        if any(hmac.compare_digest(expected, one) for one in given):
            return delivery_id
    raise ForgedError("its signature is not its sender's")


def verify_body(keys: tuple[bytes, ...], given: str, body: bytes) -> None:
    """Of senders that sign nothing but the body: HMAC-SHA256 in lower-case hexadecimal. It says nothing of when, so what it
    says must do nothing twice. Raises ForgedError."""
    expected = [hmac.new(key, body, hashlib.sha256).hexdigest().encode() for key in keys]
    if not any(hmac.compare_digest(one, given.encode()) for one in expected):
        raise ForgedError("its signature is not its sender's" if given else "it is not signed")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
