"""The `anthropic` SDK, driven from outside: runs in any interpreter that has one, knows nothing of the gateway.

Usage: driver.py sync|async. Reads one JSON object per line, `{"do": name, "url": ..., "token": ..., "credential":
"api_key" or "auth_token", "client": {options}, "pauses": true or false, "with": {arguments}}`, and answers each with one:
`{"returned": ...}` or `{"raised": {...}}`, with `seen`, what the caller had got before. Without pauses (only sync), what
the SDK would wait before another try is not waited but told as `waits`, in seconds. The client is what a user of the
SDK writes.
"""

import asyncio
import contextlib
import json
import sys
import time
from unittest import mock

import anthropic

MODEL = "claude-haiku-4-5"
QUESTION = [{"role": "user", "content": "Name a bird."}]
SMALL = {"model": MODEL, "max_tokens": 100, "messages": QUESTION}


def plain(value):
    """As JSON knows it."""
    return value.to_dict() if hasattr(value, "to_dict") else value


class Sync:
    """What callers do with `anthropic.Anthropic`."""

    client_class = anthropic.Anthropic

    def __init__(self, client, seen):
        self.client = client
        self.seen = seen

    def create(self, **more):
        return plain(self.client.messages.create(**{**SMALL, **more}))

    def text_stream(self, **more):
        with self.client.messages.stream(**{**SMALL, **more}) as stream:
            for text in stream.text_stream:
                self.seen.append(text)
            return plain(stream.get_final_message())

    def raw_events(self, **more):
        with self.client.messages.create(stream=True, **{**SMALL, **more}) as stream:
            for event in stream:
                self.seen.append(event.type)

    def beta_create(self, **more):
        return plain(self.client.beta.messages.create(betas=["made-up-2026-01-01"], **{**SMALL, **more}))

    def beta_stream(self, **more):
        with self.client.beta.messages.stream(betas=["made-up-2026-01-01"], **{**SMALL, **more}) as stream:
            for text in stream.text_stream:
                self.seen.append(text)
            return plain(stream.get_final_message())

    def count_tokens(self, **more):
        return self.client.messages.count_tokens(
            **{"model": MODEL, "messages": QUESTION, **more}
        ).input_tokens

    def models(self, limit):
        return [model.id for model in self.client.models.list(limit=limit)]

    def model(self, name):
        return self.client.models.retrieve(name).id

    def get(self, path):
        return self.client.get(path, cast_to=object)

    def post(self, path, body=None):
        return self.client.post(path, body=SMALL if body is None else body, cast_to=object)


class Async:
    """The same with `anthropic.AsyncAnthropic`."""

    client_class = anthropic.AsyncAnthropic

    def __init__(self, client, seen):
        self.client = client
        self.seen = seen

    async def create(self, **more):
        return plain(await self.client.messages.create(**{**SMALL, **more}))

    async def text_stream(self, **more):
        async with self.client.messages.stream(**{**SMALL, **more}) as stream:
            async for text in stream.text_stream:
                self.seen.append(text)
            return plain(await stream.get_final_message())

    async def raw_events(self, **more):
        async with await self.client.messages.create(stream=True, **{**SMALL, **more}) as stream:
            async for event in stream:
                self.seen.append(event.type)

    async def beta_create(self, **more):
        answer = await self.client.beta.messages.create(betas=["made-up-2026-01-01"], **{**SMALL, **more})
        return plain(answer)

    async def beta_stream(self, **more):
        asked = {"betas": ["made-up-2026-01-01"], **SMALL, **more}
        async with self.client.beta.messages.stream(**asked) as stream:
            async for text in stream.text_stream:
                self.seen.append(text)
            return plain(await stream.get_final_message())

    async def count_tokens(self, **more):
        asked = {"model": MODEL, "messages": QUESTION, **more}
        return (await self.client.messages.count_tokens(**asked)).input_tokens

    async def models(self, limit):
        return [model.id async for model in self.client.models.list(limit=limit)]

    async def model(self, name):
        return (await self.client.models.retrieve(name)).id

    async def get(self, path):
        return await self.client.get(path, cast_to=object)

    async def post(self, path, body=None):
        return await self.client.post(path, body=SMALL if body is None else body, cast_to=object)


def raised(error):
    """All that a caller can ask an exception."""
    response = getattr(error, "response", None)
    return {
        "classes": [kind.__name__ for kind in type(error).__mro__],
        "message": str(error),
        "status": getattr(error, "status_code", None),
        "body": getattr(error, "body", None),
        "request_id": getattr(error, "request_id", None),
        "headers": {} if response is None else dict(response.headers),
    }


def run_sync(asked, seen):
    with Sync.client_class(**client_options(asked)) as client:
        return getattr(Sync(client, seen), asked["do"])(**asked["with"])


async def run_async(asked, seen):
    async with Async.client_class(**client_options(asked)) as client:
        return await getattr(Async(client, seen), asked["do"])(**asked["with"])


def client_options(asked):
    return {"base_url": asked["url"], asked["credential"]: asked["token"], **asked["client"]}


def answer(mode, asked):
    seen, waits = [], []
    began_s = time.monotonic()
    pauses = contextlib.nullcontext() if asked["pauses"] else mock.patch("time.sleep", waits.append)
    try:
        with pauses:
            returned = run_sync(asked, seen) if mode == "sync" else asyncio.run(run_async(asked, seen))
        told = {"returned": returned}
    except Exception as error:  # noqa: BLE001 - whatever a caller would have to catch, the test shall see
        told = {"raised": raised(error)}
    return {**told, "seen": seen, "waits": waits, "elapsed_s": time.monotonic() - began_s}


def main(mode):
    print(json.dumps({"version": anthropic.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(mode, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
