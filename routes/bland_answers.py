"""What of Bland's answers is about the platform's account, and is not shown."""

from typing import Any

import orjson

from metering.rate_state import Standing
from routes.counting import json_of

OURS = frozenset({"user_id", "org_id", "webhook", "webhook_url"})
"""Whose account it is, and where we are told of a call: at any depth, but within texts."""
_NAMES = tuple(f'"{name}"'.encode() for name in OURS)


def without_account(body: bytes, standing: Standing) -> bytes:  # noqa: ARG001 - as Operation.renders
    """The same byte for byte where there is nothing of that."""
    if not any(name in body for name in _NAMES):
        return body
    return orjson.dumps(_without(json_of(body)))


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(one) for name, one in value.items() if name not in OURS}
    return [_without(one) for one in value] if isinstance(value, list) else value
