"""The `anthropic` SDK, driven from outside as `driving.py` says."""

import anthropic
from driving import drive, plain

MODEL = "claude-haiku-4-5"
QUESTION = [{"role": "user", "content": "Name a bird."}]
SMALL = {"model": MODEL, "max_tokens": 100, "messages": QUESTION}


class Sync:
    """What callers do with `anthropic.Anthropic`."""

    client_class = anthropic.Anthropic
    is_async = False

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
    is_async = True

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


if __name__ == "__main__":
    drive(anthropic.__version__, {"sync": Sync, "async": Async})
