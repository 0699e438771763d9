"""The vendor's own SDK takes the simulator for the vendor."""

import anthropic
import pytest

from simulators.anthropic import (
    MODELS,
    VENDOR_KEY,
    AnthropicSimulator,
    breaks_after,
    errors_after,
    fails,
    streams,
)

MODEL = "claude-haiku-4-5"
QUESTION = [{"role": "user", "content": "Name a bird."}]


@pytest.fixture
async def simulator():
    async with AnthropicSimulator(gzip=True) as running:
        yield running


@pytest.fixture
async def sdk(simulator):
    async with anthropic.AsyncAnthropic(api_key=VENDOR_KEY, base_url=simulator.url, max_retries=0) as client:
        yield client


async def test_create_returns_the_message(sdk, simulator):
    message = await sdk.messages.create(model=MODEL, max_tokens=100, messages=QUESTION)
    (told,) = simulator.answers
    assert message.content[0].text == "You said: Name a bird."
    assert (message.id, message.model) == (told.message_id, told.model)
    assert message.usage.input_tokens == told.usage.input_tokens
    assert message.usage.output_tokens == told.usage.output_tokens


async def test_stream_yields_the_text_and_the_final_usage(sdk, simulator):
    simulator.next(streams(events=60, thinking="a robin?"))
    async with sdk.messages.stream(model=MODEL, max_tokens=100, messages=QUESTION) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    (told,) = simulator.answers
    assert text == final.content[1].text
    assert final.content[0].thinking == "a robin?"
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == told.usage.output_tokens


async def test_count_tokens_and_the_model_list_work(sdk):
    counted = await sdk.messages.count_tokens(model=MODEL, messages=QUESTION)
    assert counted.input_tokens > 0
    listed = [model async for model in await sdk.models.list(limit=3)]
    assert [model.id for model in listed] == [model.id for model in MODELS]
    assert (await sdk.models.retrieve(MODEL)).max_tokens == 64_000


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, anthropic.BadRequestError),
        (402, anthropic.APIStatusError),
        (403, anthropic.PermissionDeniedError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
        (529, anthropic.InternalServerError),
    ],
)
async def test_an_error_raises_the_class_of_its_status(sdk, simulator, status, error):
    simulator.next(fails(status))
    with pytest.raises(error) as raised:
        await sdk.messages.create(model=MODEL, max_tokens=100, messages=QUESTION)
    assert raised.value.status_code == status
    assert raised.value.request_id == simulator.answers[0].request_id


async def test_a_wrong_key_and_an_unknown_model_raise_theirs(sdk):
    with pytest.raises(anthropic.AuthenticationError):
        await sdk.with_options(api_key="wrong").models.list()
    with pytest.raises(anthropic.NotFoundError):
        await sdk.models.retrieve("claude-none")


async def test_an_error_inside_the_stream_raises(sdk, simulator):
    simulator.next(errors_after(4))
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        async with sdk.messages.stream(model=MODEL, max_tokens=100, messages=QUESTION) as stream:
            await stream.until_done()


async def test_a_stream_that_breaks_off_raises(sdk, simulator):
    simulator.next(breaks_after(4))
    # The SDK passes on what its HTTP library raises; which class that is belongs to neither of us.
    with pytest.raises(Exception, match="incomplete chunked read"):
        async with sdk.messages.stream(model=MODEL, max_tokens=100, messages=QUESTION) as stream:
            await stream.until_done()
