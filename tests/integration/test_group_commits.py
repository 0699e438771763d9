"""How often the ledger is flushed: a request alone waits for one commit before it is forwarded; many at once share theirs."""

import asyncio
from collections.abc import Callable

import httpx
import pytest

from metering.tasks import spawn
from simulators.anthropic import AnthropicSimulator, hangs
from simulators.server import ReceivedRequest
from tests.support.gateway import Gateway, client_of, messages_body, running_gateway

STILL = {"HEARTBEAT_S": "60", "WORKER_DEAD_AFTER_S": "600"}
"""Nothing writes but for requests."""
REQUESTS = 50


class LookingSimulator(AnthropicSimulator):
    """A vendor that looks at what the proxy had committed whenever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.look: Callable[[], float] = float
        self.saw: list[float] = []

    def route(self, request: ReceivedRequest):
        self.saw.append(self.look())
        return super().route(request)


def commits(gateway: Gateway) -> float:
    assert gateway.metric("automna_ledger_commit_failures_total") == 0
    return gateway.metric("automna_ledger_commit_seconds_count")


def units(gateway: Gateway) -> float:
    return gateway.metric("automna_ledger_units_total")


@pytest.mark.parametrize("is_streaming", [False, True], ids=["whole", "streamed"])
async def test_a_request_alone_is_committed_once_before_the_vendor_sees_it_and_once_after(
    tmp_path, is_streaming
):
    async with (
        LookingSimulator() as vendor,
        running_gateway(tmp_path, upstream=vendor.url, env=STILL) as gateway,
    ):
        async with client_of(gateway, await gateway.new_token()) as client:
            for _ in range(3):  # of somebody unknown, and of somebody remembered
                await gateway.quiet()
                before = commits(gateway)
                vendor.look = lambda: commits(gateway)
                answer = await client.post("/v1/messages", json=messages_body(stream=is_streaming))
                assert answer.status_code == 200
                await gateway.quiet()
                assert (vendor.saw.pop() - before, commits(gateway) - before) == (1, 2)
        assert vendor.saw == []
        await gateway.assert_clean()


async def test_requests_at_once_share_their_commits(tmp_path):
    """While the store is busy with somebody else, whatever takes it so long: the longer the wait, the larger the group."""
    patient = {**STILL, "STORE_BUSY_TIMEOUT_S": "30", "SETTLE_WAIT_S": "30"}
    async with (
        AnthropicSimulator() as vendor,
        running_gateway(tmp_path, upstream=vendor.url, env=patient) as gateway,
        client_of(gateway, await gateway.new_token()) as client,
    ):
        gate = asyncio.Event()
        vendor.next(*(hangs(gate=gate) for _ in range(REQUESTS)))
        await gateway.quiet()
        commits_before, units_before = commits(gateway), units(gateway)
        with gateway.locked_store() as store:
            asking = [spawn(ask(client), name="asking") for _ in range(REQUESTS)]
            await gateway.until(lambda: waiting(gateway) == REQUESTS)
            store.rollback()
            await gateway.until(lambda: vendor.requests_total == REQUESTS)
            assert commits(gateway) - commits_before == 1
            store.execute("BEGIN IMMEDIATE")
            gate.set()
            await gateway.until(lambda: waiting(gateway) == REQUESTS)
            store.rollback()
            assert await asyncio.gather(*asking) == [200] * REQUESTS
        await gateway.assert_clean()
        assert units(gateway) - units_before == 2 * REQUESTS
        assert commits(gateway) - commits_before == 2


async def ask(client: httpx.AsyncClient) -> int:
    return (await client.post("/v1/messages", json=messages_body())).status_code


def waiting(gateway: Gateway) -> int:
    """Units that are queued, or in a commit that has not begun."""
    writer = gateway.service.store.writer
    return writer.queued_units + len(writer._batch)
