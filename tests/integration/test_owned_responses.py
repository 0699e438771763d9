"""OpenAI's stored responses: kept by the vendor in one account, and yet each user's own."""

import asyncio
from typing import Any

import httpx
import orjson
import pytest

from simulators.openai import OpenAISimulator, replays, streams
from simulators.script import Gate, WaitFor
from tests.support.gateway import Gateway
from tests.support.openai import openai_client_of, response_body, serving_openai


async def owned(gateway: Gateway) -> dict[str, str]:
    rows = await gateway.service.store.readers.rows("SELECT upstream_id, user_id FROM owned_objects")
    return {str(upstream_id): str(user_id) for upstream_id, user_id in rows}


def ids_in(answer: httpx.Response) -> list[str]:
    """Of a response, whole or as its stream, and of all its items."""
    found = []
    is_stream = answer.headers["content-type"].startswith("text/event-stream")
    texts = [line[5:] for line in answer.text.splitlines() if line.startswith("data:")]
    for text in texts if is_stream else [answer.text]:
        data = orjson.loads(text)
        response, item = data.get("response", {} if is_stream else data), data.get("item", {})
        found += [one.get("id") for one in (response, item, *response.get("output", []))]
    return [one for one in dict.fromkeys(found) if one]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_and_its_items_are_read_by_their_user_alone(tmp_path, stream):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        mine = openai_client_of(gateway, await gateway.new_token("ada"))
        theirs = openai_client_of(gateway, await gateway.new_token("bob"))
        async with mine, theirs:
            made = await mine.post("/responses", json=response_body(stream=stream))
            ids = ids_in(made)
            response_id = ids[0]
            assert response_id.startswith("resp_")
            assert len(ids) > 1
            assert {one: (await owned(gateway))[one] for one in ids} == dict.fromkeys(ids, "ada")
            billed = len(vendor.answers)
            for again in (f"/responses/{response_id}", f"/responses/{response_id}?stream=true"):
                assert (await mine.get(again)).status_code == 200
            before = vendor.requests_total
            for refused in (
                await theirs.get(f"/responses/{response_id}"),
                await theirs.get(f"/responses/{response_id}?stream=true&starting_after=1"),
                await theirs.get(f"/responses/{response_id.replace('_', '%5F')}"),
                await theirs.post(f"/responses/{response_id}/cancel"),
                await theirs.post("/responses", json=response_body(previous_response_id=response_id)),
                await theirs.post("/responses/compact", json=response_body(previous_response_id=response_id)),
                await theirs.post(
                    "/responses/input_tokens", json=response_body(previous_response_id=response_id)
                ),
                await theirs.post(
                    "/responses", json=response_body(input=[{"type": "item_reference", "id": ids[1]}])
                ),
                await theirs.post("/responses", json=response_body(input=[{"id": ids[1]}])),
            ):
                assert refused.status_code == 404
                error = refused.json()["error"]
                assert error["type"] == "invalid_request_error"
                assert "not found" in error["message"]
            assert vendor.requests_total == before
        entries = await gateway.entries()
        await gateway.assert_clean()
        assert sum(entry["cost_nanousd"] > 0 for entry in entries) == billed == 1


async def test_a_conversation_is_continued_by_its_user(tmp_path):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            first = (await client.post("/responses", json=response_body())).json()
            named = response_body(previous_response_id=first["id"])
            assert (await client.post("/responses", json=named)).status_code == 200
            items = [*first["output"], {"role": "user", "content": "More."}]
            assert (await client.post("/responses", json=response_body(input=items))).status_code == 200
            reference = [{"type": "item_reference", "id": first["output"][-1]["id"]}]
            assert (await client.post("/responses", json=response_body(input=reference))).status_code == 200
        await gateway.assert_clean()


async def test_what_is_not_stored_has_no_owner_and_is_found_by_nobody(tmp_path):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            made = (await client.post("/responses", json=response_body(store=False))).json()
            assert (await client.get(f"/responses/{made['id']}")).status_code == 404
        assert await owned(gateway) == {}
        assert vendor.requests_total == 1


async def test_an_item_with_an_id_of_the_clients_own_passes(tmp_path):
    message = {"id": "msg_0", "type": "message", "role": "assistant"}
    text = [{"type": "output_text", "text": "Red.", "annotations": []}]
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            body = response_body(input=[{**message, "content": text}, {"role": "user", "content": "More."}])
            assert (await client.post("/responses", json=body)).status_code == 200
        await gateway.assert_clean()


async def test_the_owner_is_durable_before_the_client_sees_the_id(tmp_path):
    """At a store that takes no write, the id does not come; when it takes writes again, it does."""
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            gate = Gate()
            vendor.next(stalled_before_its_head(gate))
            request = client.build_request("POST", "/responses", json=response_body(stream=True))
            asking = asyncio.get_running_loop().create_task(client.send(request, stream=True))
            await gate.reached()
            with gateway.locked_store() as other:
                gate.open()
                answer = await asking
                events = answer.aiter_lines()
                first = asyncio.get_running_loop().create_task(anext(events))
                done, _ = await asyncio.wait({first}, timeout=0.3)
                assert not done, "an event passed whose id has no owner yet"
                other.rollback()
                assert (await first).startswith("event: response.created")
            rest = [line async for line in events]
            assert any("response.completed" in line for line in rest)
            await answer.aclose()
        await gateway.only_entry()


@pytest.mark.parametrize("stream", [False, True])
async def test_at_a_store_that_takes_no_owner_the_id_never_comes_and_the_request_is_booked(tmp_path, stream):
    env = {"STORE_BUSY_TIMEOUT_S": "0.2", "SETTLE_WAIT_S": "1"}
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, env=env) as gateway:
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            gate = Gate()
            vendor.next(stalled_before_its_head(gate))
            request = client.post("/responses", json=response_body(stream=stream))
            asking = asyncio.get_running_loop().create_task(request)
            await gate.reached()
            with gateway.locked_store() as other:
                gate.open()
                answer = await asking
                other.rollback()
            assert "resp_" not in answer.text
            assert answer.status_code == (200 if stream else 503)
            assert "temporarily unavailable" in answer.text
        (told,) = vendor.answers
        entry = await gateway.only_entry()
        assert (entry["kind"], entry["basis"]) == ("settle", "reported")
        assert entry["output_tokens"] == told.usage.completion_tokens
        assert await owned(gateway) == {}


def stalled_before_its_head(gate: Gate) -> Any:
    return streams(before=(WaitFor(gate),))


CUT_WITHIN_A_SIGN = (
    b'{"id":"resp_cut","object":"response","status":"completed","error":null,"model":"gpt-5.6-sol","output":'
    b'[{"id":"msg_cut","type":"message","content":[{"type":"output_text","text":"half \\ud83d"}]}],'
    b'"usage":{"input_tokens":320,"output_tokens":40}}'
)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_with_half_a_surrogate_pair_passes_and_is_booked_as_reported(tmp_path, stream):
    """It is JSON, and OpenAI's own client reads it: the ids are found, and the usage."""
    completed = b'event: response.completed\ndata: {"type":"response.completed","response":%s}\n\n'
    body = completed % CUT_WITHIN_A_SIGN if stream else CUT_WITHIN_A_SIGN
    content_type = "text/event-stream" if stream else "application/json"
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor) as gateway:
        vendor.next(replays(body, content_type))
        async with openai_client_of(gateway, await gateway.new_token("ada")) as client:
            answer = await client.post("/responses", json=response_body(stream=stream))
            assert (answer.status_code, answer.content) == (200, body)
        entry = await gateway.only_entry()
        assert (entry["outcome"], entry["basis"]) == ("completed", "reported")
        assert (entry["input_tokens"], entry["output_tokens"]) == (320, 40)
        assert await owned(gateway) == {"resp_cut": "ada", "msg_cut": "ada"}
