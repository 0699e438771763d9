"""What the drivers of all SDKs have in common: they run in any interpreter that has one, and know nothing of the gateway.

Usage: DRIVER sync|async. Reads one JSON object per line, `{"do": name, "url": ..., "token": ..., "credential":
the client's option for the token, "client": {options}, "pauses": true or false, "with": {arguments}}`, and answers each
with one: `{"returned": ...}` or `{"raised": {...}}`, with `seen`, what the caller had got before. Without pauses (only
sync), what the SDK would wait before another try is not waited but told as `waits`, in seconds. The client is what a
user of the SDK writes.
"""

import asyncio
import contextlib
import json
import sys
import time
from unittest import mock


def plain(value):
    """As JSON knows it."""
    return value.to_dict() if hasattr(value, "to_dict") else value


def raised(error):
    """All that a caller can ask an exception."""
    response = getattr(error, "response", None)
    return {
        "classes": [kind.__name__ for kind in type(error).__mro__],
        "message": str(error),
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "body": getattr(error, "body", None),
        "request_id": getattr(error, "request_id", None),
        "headers": {} if response is None else dict(response.headers),
    }


def run_sync(caller, asked, seen):
    with caller.client_class(**client_options(asked)) as client:
        return getattr(caller(client, seen), asked["do"])(**asked["with"])


async def run_async(caller, asked, seen):
    async with caller.client_class(**client_options(asked)) as client:
        return await getattr(caller(client, seen), asked["do"])(**asked["with"])


def client_options(asked):
    return {"base_url": asked["url"], asked["credential"]: asked["token"], **asked["client"]}


def answer(caller, asked):
    seen, waits = [], []
    began_s = time.monotonic()
    pauses = contextlib.nullcontext() if asked["pauses"] else mock.patch("time.sleep", waits.append)
    try:
        with pauses:
            returned = (
                asyncio.run(run_async(caller, asked, seen))
                if caller.is_async
                else run_sync(caller, asked, seen)
            )
        told = {"returned": returned}
    except Exception as error:  # noqa: BLE001 - whatever a caller would have to catch, the test shall see
        told = {"raised": raised(error)}
    return {**told, "seen": seen, "waits": waits, "elapsed_s": time.monotonic() - began_s}


def drive(version, callers):
    """Serve the lines of standard input with the caller of the mode asked for on the command line."""
    print(json.dumps({"version": version}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(callers[sys.argv[1]], json.loads(line))), flush=True)
