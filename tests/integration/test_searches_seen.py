"""Web searches in a stream that broke off: the vendor has made them, and its usage, which would count them, never came."""

from collections.abc import Sequence
from typing import Any

import httpx
import orjson
import pytest

from metering.usage import WEB_SEARCHES, WEB_SEARCHES_PREVIEW
from simulators.anthropic import AnthropicSimulator
from simulators.anthropic_messages import Content, Message, ReportedUsage, event, message_start
from simulators.openai import OpenAISimulator, breaks_after
from simulators.openai import ReportedUsage as OpenAIUsage
from simulators.script import Disconnect, Script, Send
from tests.support.gateway import Gateway, client_of, messages_body, running_gateway
from tests.support.openai import chat_body, openai_client_of, response_body, serving_openai

HELD = 4
SEARCHES_SHOWN = (4, 6)
"""Events of a response until its first search is done, and its second: two stand before them, and each has two."""


async def booked(gateway: Gateway) -> dict[str, int]:
    """The counts of the one entry, an estimate."""
    entry = await gateway.only_entry()
    assert (entry["outcome"], entry["basis"]) == ("upstream_failed", "estimated")
    (line,) = orjson.loads(entry["usage"])
    counts: dict[str, int] = line["counts"]
    return counts


async def cut(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post(path, json={**body, "stream": True})


@pytest.mark.parametrize(("events", "searches"), [(3, 0), (SEARCHES_SHOWN[0], 1), (5, 1), (9, 2)])
@pytest.mark.parametrize(
    ("tool", "unit"), [("web_search", WEB_SEARCHES), ("web_search_preview", WEB_SEARCHES_PREVIEW)]
)
async def test_a_response_costs_the_searches_that_it_showed(tmp_path, events, searches, tool, unit):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        vendor.next(breaks_after(events, usage=OpenAIUsage(web_searches=2)))
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            await cut(client, "/responses", response_body(tools=[{"type": tool}], max_tool_calls=HELD))
        assert (await booked(gateway)).get(unit, 0) == searches


@pytest.mark.parametrize(
    ("model", "unit"),
    [("gpt-5-search-api", WEB_SEARCHES), ("gpt-4o-search-preview", WEB_SEARCHES_PREVIEW)],
)
async def test_a_chat_that_searches_costs_its_fee_once_it_answered(tmp_path, model, unit):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        vendor.next(breaks_after(3))
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            await cut(client, "/chat/completions", chat_body(model=model))
        assert (await booked(gateway))[unit] == 1


@pytest.mark.parametrize(("blocks", "searches"), [(1, 0), (2, 1), (4, 2)])
async def test_a_message_costs_the_searches_whose_results_it_showed(tmp_path, blocks, searches):
    async with AnthropicSimulator() as vendor, running_gateway(tmp_path, upstream=vendor.url) as gateway:
        vendor.next(Script(200, (("content-type", "text/event-stream"),), message_of(blocks)))
        async with client_of(gateway, await gateway.new_token()) as client:
            tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": HELD}
            await cut(client, "/v1/messages", messages_body(tools=[tool]))
        assert (await booked(gateway)).get(WEB_SEARCHES, 0) == searches


def message_of(blocks: int) -> Sequence[Send | Disconnect]:
    """A message that breaks off after so many blocks: searches and their results, in turn."""
    found = {"type": "web_search_result", "title": "Birds", "url": "https://example.com", "page_age": None}
    both = (
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [found]},
    )
    pieces = [message_start(Message("msg_1", "claude-sonnet-4-5", Content(""), ReportedUsage(30, 60)))]
    for index in range(blocks):
        start = {"type": "content_block_start", "index": index, "content_block": both[index % 2]}
        pieces.append(event("content_block_start", start))
    return (*map(Send, pieces), Disconnect())
