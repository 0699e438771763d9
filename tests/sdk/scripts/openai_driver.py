"""The `openai` SDK, driven from outside as `driving.py` says."""

import openai
import pydantic
from driving import drive, plain

MODEL = "gpt-4o-mini"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Name a bird."}], "max_tokens": 100}
RESPONSE = {"model": MODEL, "input": "Name a bird.", "max_output_tokens": 100}
EMBEDDING = {"model": "text-embedding-3-small", "input": ["a robin", "a wren"]}
COMPLETION = {"model": "gpt-3.5-turbo-instruct", "prompt": "Name a bird.", "max_tokens": 100}


class Bird(pydantic.BaseModel):
    name: str
    can_fly: bool


class Sync:
    """What callers do with `openai.OpenAI`."""

    client_class = openai.OpenAI
    is_async = False

    def __init__(self, client, seen):
        self.client = client
        self.seen = seen

    def chat(self, **more):
        return plain(self.client.chat.completions.create(**{**CHAT, **more}))

    def chat_chunks(self, **more):
        with self.client.chat.completions.create(stream=True, **{**CHAT, **more}) as stream:
            for chunk in stream:
                self.seen.append(plain(chunk))

    def chat_stream(self, **more):
        with self.client.chat.completions.stream(**{**CHAT, **more}) as stream:
            for event in stream:
                self.seen.append(event.type)
            return plain(stream.get_final_completion())

    def chat_parse(self, **more):
        completion = self.client.chat.completions.parse(response_format=Bird, **{**CHAT, **more})
        return completion.choices[0].message.parsed.model_dump()

    def response(self, **more):
        return plain(self.client.responses.create(**{**RESPONSE, **more}))

    def response_events(self, **more):
        with self.client.responses.create(stream=True, **{**RESPONSE, **more}) as stream:
            for event in stream:
                self.seen.append(plain(event))

    def response_stream(self, **more):
        with self.client.responses.stream(**{**RESPONSE, **more}) as stream:
            for event in stream:
                self.seen.append(event.type)
            return plain(stream.get_final_response())

    def response_parse(self, **more):
        response = self.client.responses.parse(text_format=Bird, **{**RESPONSE, **more})
        return response.output_parsed.model_dump()

    def retrieve(self, response_id):
        return plain(self.client.responses.retrieve(response_id))

    def retrieve_events(self, response_id, **more):
        with self.client.responses.retrieve(response_id, stream=True, **more) as stream:
            for event in stream:
                self.seen.append(plain(event))

    def cancel(self, response_id):
        return plain(self.client.responses.cancel(response_id))

    def completion(self, **more):
        return plain(self.client.completions.create(**{**COMPLETION, **more}))

    def embeddings(self, **more):
        return plain(self.client.embeddings.create(**{**EMBEDDING, **more}))

    def moderation(self):
        return plain(self.client.moderations.create(input="a robin"))

    def models(self):
        return [model.id for model in self.client.models.list()]

    def model(self, name):
        return self.client.models.retrieve(name).id

    def get(self, path):
        return self.client.get(path, cast_to=object)

    def post(self, path, body):
        return self.client.post(path, body=body, cast_to=object)


class Async:
    """The same with `openai.AsyncOpenAI`."""

    client_class = openai.AsyncOpenAI
    is_async = True

    def __init__(self, client, seen):
        self.client = client
        self.seen = seen

    async def chat(self, **more):
        return plain(await self.client.chat.completions.create(**{**CHAT, **more}))

    async def chat_chunks(self, **more):
        async with await self.client.chat.completions.create(stream=True, **{**CHAT, **more}) as stream:
            async for chunk in stream:
                self.seen.append(plain(chunk))

    async def chat_stream(self, **more):
        async with self.client.chat.completions.stream(**{**CHAT, **more}) as stream:
            async for event in stream:
                self.seen.append(event.type)
            return plain(await stream.get_final_completion())

    async def chat_parse(self, **more):
        completion = await self.client.chat.completions.parse(response_format=Bird, **{**CHAT, **more})
        return completion.choices[0].message.parsed.model_dump()

    async def response(self, **more):
        return plain(await self.client.responses.create(**{**RESPONSE, **more}))

    async def response_events(self, **more):
        async with await self.client.responses.create(stream=True, **{**RESPONSE, **more}) as stream:
            async for event in stream:
                self.seen.append(plain(event))

    async def response_stream(self, **more):
        async with self.client.responses.stream(**{**RESPONSE, **more}) as stream:
            async for event in stream:
                self.seen.append(event.type)
            return plain(await stream.get_final_response())

    async def response_parse(self, **more):
        response = await self.client.responses.parse(text_format=Bird, **{**RESPONSE, **more})
        return response.output_parsed.model_dump()

    async def retrieve(self, response_id):
        return plain(await self.client.responses.retrieve(response_id))

    async def retrieve_events(self, response_id, **more):
        async with await self.client.responses.retrieve(response_id, stream=True, **more) as stream:
            async for event in stream:
                self.seen.append(plain(event))

    async def cancel(self, response_id):
        return plain(await self.client.responses.cancel(response_id))

    async def completion(self, **more):
        return plain(await self.client.completions.create(**{**COMPLETION, **more}))

    async def embeddings(self, **more):
        return plain(await self.client.embeddings.create(**{**EMBEDDING, **more}))

    async def moderation(self):
        return plain(await self.client.moderations.create(input="a robin"))

    async def models(self):
        return [model.id async for model in self.client.models.list()]

    async def model(self, name):
        return (await self.client.models.retrieve(name)).id

    async def get(self, path):
        return await self.client.get(path, cast_to=object)

    async def post(self, path, body):
        return await self.client.post(path, body=body, cast_to=object)


if __name__ == "__main__":
    drive(openai.__version__, {"sync": Sync, "async": Async})
