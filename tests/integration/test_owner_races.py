"""Many tasks of two users at once, and the same ids: one owner each, whoever is first, and nobody else sees them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import orjson

from simulators.openai import Behaviour, OpenAISimulator, answers, replays
from tests.support.gateway import DatedClock, Gateway
from tests.support.openai import openai_client_of, response_body, serving_openai

TASKS = 50
IDS = 10
INPUT_TOKENS, OUTPUT_TOKENS = 7, 3
USAGE = {
    "input_tokens": INPUT_TOKENS,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": OUTPUT_TOKENS,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
}
SETTLED_LATE_S = 11


def made(number: int) -> dict[str, Any]:
    """A response with an id of its number, as no vendor would hand it out twice."""
    item = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [],
    }
    return {
        "id": f"resp_{number}",
        "object": "response",
        "status": "completed",
        "model": "gpt-5.6-sol",
        "output": [item],
        "service_tier": "default",
        "store": True,
        "usage": USAGE,
    }


def streamed(number: int) -> bytes:
    events = [
        (
            "response.created",
            {"response": {**made(number), "status": "in_progress", "usage": None, "output": []}},
        ),
        ("response.completed", {"response": made(number)}),
    ]
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **fields}))
        for name, fields in events
    )


async def owners(gateway: Gateway) -> dict[str, list[str]]:
    """The users of every id, of whatever kind."""
    found: dict[str, list[str]] = {}
    rows = await gateway.service.store.readers.rows("SELECT upstream_id, user_id FROM owned_objects")
    for upstream_id, user_id in rows:
        found.setdefault(str(upstream_id), []).append(str(user_id))
    return found


async def of_two_users(
    gateway: Gateway, act: Callable[[httpx.AsyncClient, int], Awaitable[httpx.Response]]
) -> list[tuple[str, int, httpx.Response]]:
    """What TASKS tasks of two users by turns got for numbers below IDS, all at once: (user, number, answer)."""
    async with (
        openai_client_of(gateway, await gateway.new_token("ada")) as ada,
        openai_client_of(gateway, await gateway.new_token("bob")) as bob,
    ):
        clients = {"ada": ada, "bob": bob}
        asked = [("ada" if task % 2 else "bob", task // 2 % IDS) for task in range(TASKS)]
        got = await asyncio.gather(*(act(clients[user], number) for user, number in asked))
    return [(user, number, answer) for (user, number), answer in zip(asked, got, strict=True)]


async def test_an_id_that_the_vendor_hands_to_two_users_is_seen_by_one_of_them_alone(tmp_path):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        vendor.script = lambda request: answers(made(int(request.header(b"x-number"))))

        async def ask(client: httpx.AsyncClient, number: int) -> httpx.Response:
            return await client.post("/responses", json=response_body(), headers={"x-number": str(number)})

        await assert_each_is_seen_by_its_owner_alone(gateway, await of_two_users(gateway, ask))


async def test_in_streams_too(tmp_path):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        vendor.script = lambda request: replays(
            streamed(int(request.header(b"x-number"))), "text/event-stream; charset=utf-8"
        )

        async def ask(client: httpx.AsyncClient, number: int) -> httpx.Response:
            body = response_body(stream=True)
            return await client.post("/responses", json=body, headers={"x-number": str(number)})

        await assert_each_is_seen_by_its_owner_alone(gateway, await of_two_users(gateway, ask))


async def assert_each_is_seen_by_its_owner_alone(
    gateway: Gateway, got: list[tuple[str, int, httpx.Response]]
) -> None:
    entries = await gateway.entries()
    found = await owners(gateway)
    assert all(len(users) == 1 for users in found.values()), found
    assert set(found) == {f"{kind}_{number}" for kind in ("resp", "msg") for number in range(IDS)}
    refused = 0
    for user, number, answer in got:
        is_owner = found[f"resp_{number}"] == [user]
        assert (f"resp_{number}" in answer.text, f"msg_{number}" in answer.text) == (is_owner, is_owner)
        refused += not is_owner
    assert refused == TASKS // 2
    assert found == {f"msg_{n}": found[f"resp_{n}"] for n in range(IDS)} | {
        f"resp_{n}": found[f"resp_{n}"] for n in range(IDS)
    }, "a response and its items have one owner"
    assert len(entries) == TASKS, "the vendor was paid for each of them"
    assert all((entry["basis"], entry["output_tokens"]) == ("reported", OUTPUT_TOKENS) for entry in entries)
    await gateway.assert_clean()


async def test_of_many_readers_the_owner_s_alone_find_it_while_it_is_made_and_polled_and_it_is_booked_once(
    tmp_path,
):
    clock = DatedClock(2026, 11, 20)
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        async with openai_client_of(gateway, await gateway.new_token("ada")) as ada:
            begun = [await ada.post("/responses", json=response_body(background=True)) for _ in range(IDS)]
        ids = [answer.json()["id"] for answer in begun]
        vendor.default = Behaviour()
        for ident in ids:
            vendor.finish(ident)
        polls = gateway.service.engine._deferrals

        async def read(client: httpx.AsyncClient, number: int) -> httpx.Response:
            clock.advance(SETTLED_LATE_S)
            answer, _ = await asyncio.gather(client.get(f"/responses/{ids[number]}"), polls.poll_due())
            return answer

        got = await of_two_users(gateway, read)
        for user, number, answer in got:
            assert answer.status_code == (200 if user == "ada" else 404)
            assert ("usage" in answer.text) == (user == "ada")
            assert (await owners(gateway))[ids[number]] == ["ada"]
        entries = [entry for entry in await gateway.entries() if entry["operation"] == "POST /v1/responses"]
        assert sorted(entry["reservation_id"] for entry in entries) == sorted(
            answer.headers["x-automna-request-id"] for answer in begun
        )
        told = {one.usage.completion_tokens for one in vendor.answers}
        assert {entry["output_tokens"] for entry in entries} == told
        await gateway.assert_clean()
