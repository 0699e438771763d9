"""The vendor's own SDK takes the simulator for the vendor."""

import openai
import pydantic
import pytest

from simulators.openai import (
    MODELS,
    VENDOR_KEY,
    OpenAISimulator,
    ToolCall,
    breaks_after,
    errors_after,
    fails,
    streams,
)

MODEL = "gpt-4o-mini"
QUESTION = [{"role": "user", "content": "Name a bird."}]
CHAT = {"model": MODEL, "messages": QUESTION}
RESPONSE = {"model": MODEL, "input": "Name a bird."}


class Bird(pydantic.BaseModel):
    name: str


@pytest.fixture
async def simulator():
    async with OpenAISimulator(gzip=True) as running:
        yield running


@pytest.fixture
async def sdk(simulator):
    url = f"{simulator.url}/v1"
    async with openai.AsyncOpenAI(api_key=VENDOR_KEY, base_url=url, max_retries=0) as client:
        yield client


async def test_a_chat_is_read_whole_and_in_chunks(sdk, simulator):
    whole = await sdk.chat.completions.create(**CHAT)
    chunks = [chunk async for chunk in await sdk.chat.completions.create(stream=True, **CHAT)]
    assert whole.choices[0].message.content == "You said: Name a bird."
    assert whole.usage.completion_tokens == simulator.answers[0].usage.completion_tokens
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: Name a bird."
    assert {chunk.usage for chunk in chunks} == {None}


async def test_the_final_chat_of_a_stream_has_the_usage_that_was_asked_for(sdk, simulator):
    options = {"include_usage": True}
    async with sdk.chat.completions.stream(stream_options=options, **CHAT) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "You said: Name a bird."
    assert final.usage.total_tokens == simulator.answers[0].usage.total_tokens


async def test_structured_output_and_tools_are_parsed(sdk, simulator):
    simulator.next(
        *[streams(text='{"name":"wren"}')] * 2, streams(tool_calls=(ToolCall("look", '{"at":1}'),))
    )
    chat = await sdk.chat.completions.parse(response_format=Bird, **CHAT)
    response = await sdk.responses.parse(text_format=Bird, **RESPONSE)
    called = await sdk.chat.completions.create(**CHAT)
    assert chat.choices[0].message.parsed == response.output_parsed == Bird(name="wren")
    assert called.choices[0].message.tool_calls[0].function.arguments == '{"at":1}'


async def test_a_response_is_streamed_fetched_and_continued(sdk, simulator):
    simulator.next(streams(thinking="hm", tool_calls=(ToolCall("look"),), text="A wren.", keepalives=1))
    async with sdk.responses.stream(**RESPONSE) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert final.output_text == "A wren."
    assert (await sdk.responses.retrieve(final.id)).output_text == "A wren."
    replayed = [event async for event in await sdk.responses.retrieve(final.id, stream=True)]
    assert [event.type for event in replayed] == kinds
    assert (await sdk.responses.create(previous_response_id=final.id, **RESPONSE)).status == "completed"


async def test_the_background_is_polled_and_cancelled(sdk, simulator):
    first = await sdk.responses.create(background=True, **RESPONSE)
    second = await sdk.responses.create(background=True, **RESPONSE)
    assert (first.status, first.usage) == ("queued", None)
    simulator.finish(first.id)
    assert (await sdk.responses.retrieve(first.id)).status == "completed"
    assert (await sdk.responses.cancel(second.id)).status == "cancelled"


async def test_the_smaller_endpoints_are_read(sdk, simulator):
    embedded = await sdk.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    floats = await sdk.embeddings.create(
        model="text-embedding-3-small", input=["a", "b"], encoding_format="float"
    )
    assert [one.embedding for one in embedded.data] == [one.embedding for one in floats.data]
    completion = await sdk.completions.create(model="gpt-3.5-turbo-instruct", prompt="hi")
    assert completion.choices[0].text == "You said: hi"
    assert not (await sdk.moderations.create(input="x")).results[0].flagged
    assert [model.id async for model in await sdk.models.list()] == [model.id for model in MODELS]
    compacted = await sdk.responses.compact(**RESPONSE)
    assert compacted.output[-1].type == "compaction"
    assert (await sdk.responses.input_tokens.count(**RESPONSE)).input_tokens > 0


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_an_error_raises_the_class_of_its_status(sdk, simulator, status, error):
    simulator.next(fails(status))
    with pytest.raises(error) as raised:
        await sdk.chat.completions.create(**CHAT)
    assert raised.value.status_code == status
    assert raised.value.request_id == simulator.answers[0].request_id


async def test_a_wrong_key_and_an_unknown_model_raise_theirs(sdk):
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        await sdk.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError) as raised:
        await sdk.models.retrieve("gpt-none")
    assert raised.value.code == "model_not_found"


async def test_an_error_inside_a_stream_raises(sdk, simulator):
    simulator.next(errors_after(2), errors_after(3, nests_error=True))
    for asked in (
        sdk.chat.completions.create(stream=True, **CHAT),
        sdk.responses.create(stream=True, **RESPONSE),
    ):
        stream = await asked
        with pytest.raises(openai.APIError, match="Overloaded"):
            async for _ in stream:
                pass


async def test_a_stream_that_breaks_off_raises(sdk, simulator):
    simulator.next(breaks_after(3))
    stream = await sdk.chat.completions.create(stream=True, **CHAT)
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass
