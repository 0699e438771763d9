"""The demo's phone call: asked for in the words of the simple API, and what its status says afterwards."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

PATH = "/api/user/call"
TIMEOUT_S = 10.0
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
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
    headers = {"authorization": f"Bearer {gateway_token}", "content-type": "application/json"}
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise DialError(f"no call: {error}") from error
    finally:
        connection.close()
    if answer.status != OK:
        raise DialError(f"no call: {answer.status} {said.decode(errors='replace')}")
    told: dict[str, Any] = json.loads(said)
    return told
