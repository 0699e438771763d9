"""The demo's phone call: asked for in the words of the simple API, and what its status says afterwards."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from automna_proxy.demo_json import object_from

PATH = "/api/user/call"
OK = 200


class DialError(Exception):
    """The call could not be asked for; the message is for the person who watches."""


@dataclass(frozen=True, slots=True)
class Dial:
    """A call that a user asks for, from the number that is theirs."""

    user: str
    own: str
    to: str
    task: str


def dialled(url: str, gateway_token: str, dial: Dial) -> Mapping[str, Any]:
    """What the caller is told. Raises DialError."""
    return _asked(url, gateway_token, "POST", PATH, json.dumps({"to": dial.to, "task": dial.task}).encode())


def status_of(url: str, gateway_token: str, call_id: str) -> Mapping[str, Any]:
    """What became of a call. Raises DialError."""
    return _asked(url, gateway_token, "GET", f"{PATH}/status?call_id={call_id}", None)


def _asked(url: str, gateway_token: str, method: str, path: str, body: bytes | None) -> Mapping[str, Any]:
    return object_from(
        url,
        (method, path, body),
        {"authorization": f"Bearer {gateway_token}"},
        status=OK,
        failed=lambda why: DialError(f"no call: {why}"),
    )
