"""The `google-genai` SDK, driven from outside as `driving.py` says."""

import contextlib

from driving import drive
from google import genai
from google.genai import types

MODEL = "gemini-2.5-flash"
EMBEDDING_MODEL = "gemini-embedding-2"
QUESTION = "Name a bird."
BIRD = {"type": "OBJECT", "properties": {"name": {"type": "STRING"}}, "required": ["name"]}
WEATHER = {
    "name": "weather",
    "description": "The weather of a place.",
    "parameters_json_schema": {"type": "object"},
}


def config_of(more):
    """A user's config: an answer of a hundred tokens at most, and no calls that the SDK makes by itself."""
    return {
        "max_output_tokens": 100,
        "automatic_function_calling": types.AutomaticFunctionCallingConfig(disable=True),
        **more,
    }


def asked(model=MODEL, contents=QUESTION, **more):
    return {"model": model, "contents": contents, "config": config_of(more)}


def plain(answer):
    return answer.model_dump(mode="json", exclude_none=True)


@contextlib.contextmanager
def client_of(base_url, api_key):
    with genai.Client(api_key=api_key, http_options={"base_url": base_url}) as client:
        yield client


@contextlib.asynccontextmanager
async def async_client_of(base_url, api_key):
    with client_of(base_url, api_key) as client:
        async with client.aio as async_client:
            yield async_client


class Sync:
    """What callers do with `genai.Client`."""

    is_async = False
    client_class = staticmethod(client_of)

    def __init__(self, client, seen):
        self.models = client.models
        self.seen = seen

    def generate(self, **more):
        return plain(self.models.generate_content(**asked(**more)))

    def stream(self, **more):
        for chunk in self.models.generate_content_stream(**asked(**more)):
            self.seen.append(chunk.text or "")

    def structured(self):
        answer = self.models.generate_content(
            **asked(response_mime_type="application/json", response_schema=BIRD)
        )
        return answer.parsed

    def call(self):
        answer = self.models.generate_content(**asked(tools=[{"function_declarations": [WEATHER]}]))
        return [[call.name, call.args] for call in answer.function_calls]

    def embed(self, texts, model=EMBEDDING_MODEL):
        answer = self.models.embed_content(model=model, contents=texts)
        return [embedding.values for embedding in answer.embeddings]

    def count(self):
        return self.models.count_tokens(model=MODEL, contents=QUESTION).total_tokens

    def list(self, page_size):
        return [model.name for model in self.models.list(config={"page_size": page_size})]

    def get(self, name):
        return self.models.get(model=name).name


class Async:
    """The same with `genai.Client(...).aio`."""

    is_async = True
    client_class = staticmethod(async_client_of)

    def __init__(self, client, seen):
        self.models = client.models
        self.seen = seen

    async def generate(self, **more):
        return plain(await self.models.generate_content(**asked(**more)))

    async def stream(self, **more):
        async for chunk in await self.models.generate_content_stream(**asked(**more)):
            self.seen.append(chunk.text or "")

    async def structured(self):
        more = {"response_mime_type": "application/json", "response_schema": BIRD}
        return (await self.models.generate_content(**asked(**more))).parsed

    async def call(self):
        answer = await self.models.generate_content(**asked(tools=[{"function_declarations": [WEATHER]}]))
        return [[call.name, call.args] for call in answer.function_calls]

    async def embed(self, texts, model=EMBEDDING_MODEL):
        answer = await self.models.embed_content(model=model, contents=texts)
        return [embedding.values for embedding in answer.embeddings]

    async def count(self):
        return (await self.models.count_tokens(model=MODEL, contents=QUESTION)).total_tokens

    async def list(self, page_size):
        return [model.name async for model in await self.models.list(config={"page_size": page_size})]

    async def get(self, name):
        return (await self.models.get(model=name)).name


if __name__ == "__main__":
    drive(genai.__version__, {"sync": Sync, "async": Async})
