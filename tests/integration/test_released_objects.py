"""An object that an operator releases: its old owner's on no worker any more, another's at once, and never both's."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from metering.clock import SystemClock
from metering.objects import ObjectId, Objects, ObjectsError
from metering.store.database import Database
from metering.store.store import open_store
from simulators.agentmail import VENDOR_KEY as AGENTMAIL_KEY
from simulators.agentmail import AgentMailSimulator
from simulators.openai import VENDOR_KEY, OpenAISimulator, answers, streams
from simulators.script import Gate, WaitFor
from tests.support.openai import response_body
from tests.support.process import Serving, serving

WORKERS = 2
CONNECTIONS_MAX = 100
NEVER_S = "600"
RESPONSES = "/api/openai/v1/responses"


@asynccontextmanager
async def two_workers(folder: Path, vendor: OpenAISimulator) -> AsyncIterator[Serving]:
    """That hear of no change by themselves, however long it takes: what they remember is as old as can be."""
    env = {
        "OPENAI_API_KEY": VENDOR_KEY,
        "OPENAI_UPSTREAM_URL": vendor.url,
        "CHANGES_POLL_S": NEVER_S,
        "CHANGES_STALE_AFTER_S": NEVER_S,
    }
    async with serving(folder, upstream=vendor.url, workers=WORKERS, env=env) as server:
        yield server


async def on_each_worker(
    stack: AsyncExitStack, server: Serving, token: str, path: str = "/api/openai/v1/models"
) -> list[httpx.AsyncClient]:
    """A client for each worker, in their order, by a connection that stays with it."""
    found: dict[str, httpx.AsyncClient] = {}
    for _ in range(CONNECTIONS_MAX):
        client = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=server.url,
                headers={"authorization": f"Bearer {token}"},
                timeout=30,
                trust_env=False,
                limits=httpx.Limits(max_connections=1, keepalive_expiry=None),
            )
        )
        found.setdefault(server.worker_of(await client.get(path)), client)
        if len(found) == WORKERS:
            return [found[worker_id] for worker_id in sorted(found)]
    raise AssertionError("one worker takes every connection")


async def make(client: httpx.AsyncClient) -> dict[str, Any]:
    """A response that the vendor keeps."""
    answer = await client.post(RESPONSES, json=response_body())
    assert answer.status_code == 200
    made: dict[str, Any] = answer.json()
    return made


async def make_again(
    client: httpx.AsyncClient, vendor: OpenAISimulator, made: dict[str, Any]
) -> httpx.Response:
    """The vendor hands out what it has handed out before."""
    vendor.next(answers(made))
    return await client.post(RESPONSES, json=response_body())


async def statuses(clients: list[httpx.AsyncClient], made: dict[str, Any]) -> list[int]:
    return [(await client.get(f"{RESPONSES}/{made['id']}")).status_code for client in clients]


async def test_what_is_released_is_the_next_users_on_workers_that_remember_the_last(tmp_path):
    async with (
        OpenAISimulator() as vendor,
        two_workers(tmp_path, vendor) as server,
        AsyncExitStack() as stack,
    ):
        ada = await on_each_worker(stack, server, await server.new_token("ada"))
        bob = await on_each_worker(stack, server, await server.new_token("bob"))
        made = await make(ada[0])
        assert (await statuses(ada, made), await statuses(bob, made)) == ([200, 200], [404, 404])
        refused = await make_again(bob[0], vendor, made)
        assert (refused.status_code, made["id"] in refused.text) == (502, False)

        await server.until_nothing_is_held()
        listed = json.loads(await server.command("objects", "list", "ada", "--json"))["objects"]
        assert made["id"] in {each["id"] for each in listed}
        for each in listed:  # its items, too, which have owners of their own
            await server.command("objects", "release", each["vendor"], each["kind"], each["id"], "--yes")
        asked = vendor.requests_total
        assert (await statuses(ada[1:], made), await statuses(bob[1:], made)) == ([404], [404])
        assert vendor.requests_total == asked, "nobody's reaches the vendor for nobody"

        assert (await make_again(bob[1], vendor, made)).json()["id"] == made["id"]
        assert await statuses(bob, made) == [200, 200], "the first worker remembers ada's"
        assert await statuses(ada, made) == [404, 404]
        assert (await make_again(ada[0], vendor, made)).status_code == 502, "it is another's now"

        await server.kill_all()
        await server.start()
        again = [await on_each_worker(stack, server, await server.new_token(user)) for user in ("ada", "bob")]
        assert [await statuses(clients, made) for clients in again] == [[404, 404], [200, 200]]
        await server.until_nothing_is_held()
        await server.assert_verified()


async def test_however_busy_its_owner_is_no_request_of_theirs_reaches_what_is_another_s(tmp_path):
    """The owner asks on both workers without a pause; the operator tries until it is released."""
    async with (
        OpenAISimulator() as vendor,
        two_workers(tmp_path, vendor) as server,
        AsyncExitStack() as stack,
    ):
        ada = await on_each_worker(stack, server, await server.new_token("ada"))
        (bob, *_) = await on_each_worker(stack, server, await server.new_token("bob"))
        made = await make(ada[0])
        path = f"{RESPONSES}/{made['id']}"
        one = ObjectId("openai", "response", made["id"])
        store = await stack.enter_async_context(open_store(Database(server.store, busy_timeout_s=10)))
        objects = Objects(store, SystemClock())
        gate = Gate()
        vendor.next(streams(before=(WaitFor(gate),)))
        hanging = asyncio.get_running_loop().create_task(
            ada[1].post(RESPONSES, json=response_body(stream=True))
        )
        await gate.reached()
        with pytest.raises(ObjectsError, match="ada has requests under way"):
            await objects.release(one, "ada")
        gate.open()
        assert (await hanging).status_code == 200
        is_released = asyncio.Event()
        begun = asyncio.Event()

        async def ask(client: httpx.AsyncClient) -> list[tuple[bool, int]]:
            """(whether it was released before it was asked, the status) until some are refused."""
            got: list[tuple[bool, int]] = []
            while [status for _, status in got].count(404) < 5:
                was_released = is_released.is_set()
                got.append((was_released, (await client.get(path)).status_code))
                begun.set()
            return got

        asking = [asyncio.get_running_loop().create_task(ask(client)) for client in ada]
        await begun.wait()
        async with asyncio.timeout(60):
            while not is_released.is_set():
                with suppress(ObjectsError):  # it is in use just now
                    await objects.release(one, "ada")
                    is_released.set()
                    asked = vendor.requests_total
        assert (await make_again(bob, vendor, {**made, "output": []})).status_code == 200
        got = [each for answers in await asyncio.gather(*asking) for each in answers]
        assert {status for _, status in got} == {200, 404}
        assert {status for was_released, status in got if was_released} <= {404}
        assert vendor.requests_total == asked + 1, "bob's alone"
        await server.until_nothing_is_held()
        await server.assert_verified()


async def test_a_home_that_is_released_and_is_still_at_the_vendor_is_its_user_s_again(tmp_path):
    """A pod, which every worker remembers: the vendor has it for this user alone, so it comes back as it was."""
    async with AgentMailSimulator() as vendor, AsyncExitStack() as stack:
        env = {
            "AGENTMAIL_API_KEY": AGENTMAIL_KEY,
            "AGENTMAIL_UPSTREAM_URL": vendor.url,
            "CHANGES_POLL_S": NEVER_S,
            "CHANGES_STALE_AFTER_S": NEVER_S,
        }
        server = await stack.enter_async_context(
            serving(tmp_path, upstream=vendor.url, workers=WORKERS, env=env)
        )
        inboxes = "/api/agentmail/v0/inboxes"
        ada = await on_each_worker(stack, server, await server.new_token("ada"), inboxes)
        ((pod,),) = server.rows("SELECT upstream_id FROM owned_objects WHERE kind = 'pod'")
        await server.until_nothing_is_held()
        await server.command("objects", "release", "agentmail", "pod", pod, "--yes")
        assert server.rows("SELECT user_id FROM owned_objects WHERE kind = 'pod'") == []
        assert [(await client.get(inboxes)).status_code for client in ada] == [200, 200]
        assert server.rows("SELECT upstream_id, user_id FROM owned_objects WHERE kind = 'pod'") == [
            (pod, "ada")
        ]
