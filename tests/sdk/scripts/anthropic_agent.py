"""An agent that knows nothing of us: the vendor's SDK, unmodified, with our base URL and gateway tokens.

`python anthropic_agent.py sync|async BASE_URL`, tokens by name as JSON on standard input; prints what it saw as
JSON. Runs with every SDK version under test, so it imports nothing but the SDK.
"""

import asyncio
import inspect
import json
import sys
import time

import anthropic

MODEL = "claude-haiku-4-5"
QUESTION = [{"role": "user", "content": "Name a bird."}]
ASKED = {"model": MODEL, "max_tokens": 100, "messages": QUESTION}


async def value_of(result):
    return await result if inspect.isawaitable(result) else result


def message_facts(message):
    return {
        "text": message.content[0].text,
        "stop_reason": message.stop_reason,
        "input": message.usage.input_tokens,
        "output": message.usage.output_tokens,
        "id": message.id,
    }


def simulate(words):
    return {"x-simulate": words}


class Agent:
    """The scenarios, over either client."""

    def __init__(self, mode, base_url, tokens):
        self.kind = anthropic.Anthropic if mode == "sync" else anthropic.AsyncAnthropic
        self.is_async = mode == "async"
        self.base_url = base_url
        self.tokens = tokens

    def client(self, token="good", **more):
        return self.kind(api_key=self.tokens[token], base_url=self.base_url, **more)

    # --- what works

    async def create(self):
        return message_facts(await value_of(self.client().messages.create(**ASKED)))

    async def create_by_auth_token(self):
        client = self.kind(auth_token=self.tokens["good"], api_key=None, base_url=self.base_url)
        return message_facts(await value_of(client.messages.create(**ASKED)))

    async def stream(self):
        return await self.streamed()

    async def streamed(self, words="events=40"):
        asked = {**ASKED, "extra_headers": simulate(words)}
        if not self.is_async:
            with self.client().messages.stream(**asked) as stream:
                text = "".join(stream.text_stream)
                return {**message_facts(stream.get_final_message()), "streamed": text}
        async with self.client().messages.stream(**asked) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            return {**message_facts(await stream.get_final_message()), "streamed": text}

    async def events(self, words="events=40"):
        """The raw iterator, which takes a clean end without `message_stop` for success."""
        events = await value_of(
            self.client().messages.create(**ASKED, stream=True, extra_headers=simulate(words))
        )
        if self.is_async:
            return [event.type async for event in events]
        return [event.type for event in events]

    async def count_tokens(self):
        counted = await value_of(self.client().messages.count_tokens(model=MODEL, messages=QUESTION))
        return counted.input_tokens

    async def models(self):
        client = self.client()
        page = await value_of(client.models.list(limit=3))
        rest = await value_of(page.get_next_page())
        one = await value_of(client.models.retrieve(MODEL))
        return {"ids": [model.id for model in [*page.data, *rest.data]], "one": one.id}

    async def beta(self):
        message = await value_of(
            self.client().beta.messages.create(**ASKED, betas=["context-management-2025-06-27"])
        )
        return message_facts(message)

    # --- what fails

    async def unknown_token(self):
        return await value_of(self.client("unknown").messages.create(**ASKED))

    async def unknown_model(self):
        return await value_of(self.client().messages.create(**{**ASKED, "model": "claude-unheard-of-9"}))

    async def unknown_operation(self):
        return await value_of(self.client().messages.batches.list())

    async def shared_object(self):
        body = {"container": "container_of_somebody"}
        return await value_of(self.client().messages.create(**ASKED, extra_body=body))

    async def minute_spent(self):
        """The second request of a user who has one a minute."""
        client = self.client("slow", max_retries=0)
        await value_of(client.messages.create(**ASKED))
        return await value_of(client.messages.create(**ASKED))

    async def vendor_busy(self):
        """The vendor limits us, for a second: the SDK waits that long and tries again, once."""
        client = self.client("busy", max_retries=1)
        words = simulate("error_before=429,retry_after=1")
        return await value_of(client.messages.create(**ASKED, extra_headers=words))

    async def budget_spent(self):
        return await value_of(self.client("poor").messages.create(**ASKED))

    async def vendor_rejects(self):
        words = simulate("error_before=400")
        return await value_of(self.client().messages.create(**ASKED, extra_headers=words))

    async def error_in_stream(self):
        return await self.streamed("events=40,error_after=10")

    async def stream_cut(self):
        return await self.streamed("events=40,cut_after=10")

    async def stream_cut_cleanly(self):
        return await self.events("events=40,cut_after=10,cut=clean")

    async def stream_cut_inside_gzip(self):
        return await self.events("events=40,cut_after=10,cut=reset,gzip=1")


def problem(error):
    response = getattr(error, "response", None)
    headers = {} if response is None else response.headers
    return {
        "raised": [kind.__name__ for kind in type(error).__mro__],
        "status": getattr(error, "status_code", None),
        "message": str(error),
        "retry_after": headers.get("retry-after"),
    }


async def main():
    mode, base_url = sys.argv[1:]
    agent = Agent(mode, base_url, json.load(sys.stdin))
    seen = {"version": anthropic.__version__}
    scenarios = [name for name, made in vars(Agent).items() if inspect.iscoroutinefunction(made)]
    for name in scenarios:
        if name == "streamed":
            continue
        began_s = time.monotonic()
        try:
            seen[name] = await getattr(agent, name)()
        except Exception as error:  # noqa: BLE001 - whatever it is, an agent would see it
            seen[name] = problem(error) | {"took_s": time.monotonic() - began_s}
    print(json.dumps(seen, default=repr))


asyncio.run(main())
