"""One request of the demonstration's own for a JSON object."""

import http.client
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 30.0


def object_from(
    url: str,
    request: tuple[str, str, bytes | None],
    headers: Mapping[str, str],
    *,
    status: int,
    failed: Callable[[str], Exception],
) -> Mapping[str, Any]:
    """What is answered to `request` (method, path, body) with this status. Raises what `failed` makes of all else."""
    address, (method, path, body) = urlsplit(url), request
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, {**headers, "content-type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise failed(str(error)) from error
    finally:
        connection.close()
    if answer.status != status:
        raise failed(f"{answer.status} {said.decode(errors='replace')}")
    told: dict[str, Any] = json.loads(said)
    return told
