"""Several workers on one socket: each serves, one ledger, metrics that add up."""

import asyncio
import signal
from contextlib import closing

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from automna_proxy.server import listen
from proxy.exchange import PHASES
from tests.support.process import serving

REQUESTS = 40


async def once(server, token):
    """A request on a connection of its own."""
    async with server.client(token) as client:
        answer = await client.get("/v1/models")
        assert answer.status_code == 200


async def samples(server):
    """All samples by name, added up, as whichever worker tells them."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{server.url}/metrics")).text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("surface") == "own":  # which these looks are
                continue
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return text, found


def free_port():
    with closing(listen("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_port_of_their_own_opens_the_metrics_there_and_closes_them_elsewhere(
    tmp_path, vendor, workers
):
    port = free_port()
    env = {"METRICS_PORT": str(port)}
    async with serving(tmp_path, upstream=vendor.url, workers=workers, env=env) as server:
        async with httpx.AsyncClient(trust_env=False) as client:
            own = await client.get(f"http://127.0.0.1:{port}/metrics")
            assert (own.status_code, "automna_open_exchanges" in own.text) == (200, True)
            pretended = {"host": f"127.0.0.1:{port}", "x-forwarded-port": str(port)}
            for headers in ({}, pretended):
                assert (await client.get(f"{server.url}/metrics", headers=headers)).status_code == 401
        server.signal(signal.SIGTERM)
        assert await server.exit_status() == 0


async def test_two_workers_share_the_work_and_their_metrics_add_up(tmp_path, vendor):
    async with serving(tmp_path, upstream=vendor.url, workers=2, env={"PHASE_TIMES": "on"}) as server:
        async with server.directory() as directory:
            await directory.add_user("u1", plan="test")
            token, _ = await directory.create_token("u1")
        rounds = 0
        while server.rows("SELECT COUNT(DISTINCT worker_id) FROM reservations") != [(2,)] or not rounds:
            assert rounds < 20, "one worker takes every connection"
            await asyncio.gather(*(once(server, token) for _ in range(REQUESTS)))
            rounds += 1
        await server.until_nothing_is_held()
        for _ in range(4):  # whoever is asked
            text, found = await samples(server)
            assert found["automna_requests_total"] == rounds * REQUESTS
            assert found["automna_request_seconds_count"] == rounds * REQUESTS
            assert found["automna_phase_seconds_count"] == rounds * REQUESTS * len(PHASES)
            assert found["automna_ledger_wait_seconds_count"] > rounds * REQUESTS
            assert found["automna_open_exchanges"] == 0
            assert "u1" not in text
            assert token not in text
        await server.assert_verified()
