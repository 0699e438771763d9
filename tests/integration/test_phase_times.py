"""PHASE_TIMES: what each phase of a request took, in the phases that it had and in no other."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from metering.tasks import spawn
from proxy.exchange import ADMIT, AUTHENTICATE, FORWARD, MATCH, PHASES, READ, RELAY, SETTLE
from simulators.agentmail import AgentMailSimulator
from simulators.anthropic import AnthropicSimulator, drops, fails, streams
from tests.support.agentmail import MOUNT, house
from tests.support.gateway import Gateway, client_of, messages_body, running_gateway

ON = {"PHASE_TIMES": "1", "HEARTBEAT_S": "60", "WORKER_DEAD_AFTER_S": "600"}
"""No beats: what the ledger does is what requests let it do."""
REFUSED_AT_ADMISSION = (MATCH, AUTHENTICATE, READ, ADMIT)
UNANSWERED = (*REFUSED_AT_ADMISSION, FORWARD, SETTLE)
OWN_METRICS = {"automna_phase_seconds", "automna_ledger_wait_seconds", "automna_ledger_heard_seconds"}
COUNT = "automna_phase_seconds_count"
COMMITS = "automna_ledger_commit_seconds_count"
NOBODY = "amp_" + "x" * 43


def counted(gateway: Gateway) -> dict[str, float]:
    """How many requests had each phase, of those that any had."""
    only = gateway.service.telemetry.registry.restricted_registry([COUNT])
    samples = (sample for metric in only.collect() for sample in metric.samples)
    return {sample.labels["phase"]: sample.value for sample in samples}


def taken_s(gateway: Gateway, phase: str) -> float:
    return gateway.metric("automna_phase_seconds_sum", phase=phase)


@pytest.mark.parametrize(
    ("path", "body", "token", "status", "phases"),
    [
        ("/v1/messages", messages_body(), None, 200, PHASES),
        ("/v1/messages", messages_body(stream=True), None, 200, PHASES),
        ("/v1/files", {}, None, 404, (MATCH,)),
        ("/v1/messages", messages_body(), NOBODY, 401, (MATCH, AUTHENTICATE)),
        ("/v1/messages", {"model": 7}, None, 400, (MATCH, AUTHENTICATE, READ)),
        ("/v1/messages", messages_body(max_tokens=10**9), None, 402, REFUSED_AT_ADMISSION),
    ],
    ids=["whole", "streamed", "no such operation", "nobody's token", "no demand", "no money"],
)
async def test_a_request_counts_in_the_phases_that_it_had(tmp_path, path, body, token, status, phases):
    async with (
        AnthropicSimulator() as vendor,
        running_gateway(tmp_path, upstream=vendor.url, env=ON, credits_per_month=1_000) as gateway,
    ):
        async with client_of(gateway, token or await gateway.new_token()) as client:
            assert (await client.post(path, json=body)).status_code == status
        await gateway.quiet()
        assert counted(gateway) == dict.fromkeys(phases, 1)


@pytest.mark.parametrize(
    ("behaviour", "phases"),
    [(fails(500), PHASES), (drops(), UNANSWERED)],
    ids=["an error", "no answer"],
)
async def test_a_vendor_that_fails_is_left_out_where_it_was_not_heard(tmp_path, behaviour, phases):
    async with (
        AnthropicSimulator() as vendor,
        running_gateway(tmp_path, upstream=vendor.url, env=ON) as gateway,
    ):
        vendor.next(behaviour)
        async with client_of(gateway, await gateway.new_token()) as client:
            assert (await client.post("/v1/messages", json=messages_body())).status_code >= 500
        await gateway.only_entry()
        assert counted(gateway) == dict.fromkeys(phases, 1)


async def test_a_vendor_that_is_down_is_asked_for_and_the_hold_is_let_go(tmp_path):
    async with running_gateway(tmp_path, env=ON) as gateway:  # its vendor is where nobody listens
        async with client_of(gateway, await gateway.new_token()) as client:
            assert (await client.post("/v1/messages", json=messages_body())).status_code == 502
        await gateway.only_entry()
        assert counted(gateway) == dict.fromkeys(UNANSWERED, 1)


async def test_a_websocket_is_relayed_for_as_long_as_it_is_open(tmp_path):
    async with AgentMailSimulator() as vendor, house(tmp_path, vendor, env=ON) as at:
        url = f"{at.gateway.url.replace('http', 'ws')}{MOUNT}/v0"
        async with connect(url, additional_headers={"authorization": f"Bearer {at.ada.token}"}, proxy=None):
            await at.gateway.entries()
            await asyncio.sleep(0.1)
        await at.gateway.until(lambda: not at.gateway.service.engine.sockets)
        assert counted(at.gateway) == dict.fromkeys(PHASES, 1)
        assert taken_s(at.gateway, RELAY) >= 0.1


async def test_a_wait_is_told_of_the_phase_that_had_it_and_all_phases_together_are_the_request(tmp_path):
    async with (
        AnthropicSimulator() as vendor,
        running_gateway(tmp_path, upstream=vendor.url, env=ON) as gateway,
    ):
        vendor.next(streams(events=8, pace_s=0.02))
        async with client_of(gateway, await gateway.new_token()) as client:
            with gateway.locked_store() as lock:
                asking = spawn(client.post("/v1/messages", json=messages_body(stream=True)), name="asking")
                await gateway.until(lambda: gateway.service.store.writer._batch)
                await asyncio.sleep(0.1)
                lock.rollback()
            assert (await asking).status_code == 200
        await gateway.quiet()
        taken = {phase: taken_s(gateway, phase) for phase in PHASES}
        whole = {
            "surface": "anthropic",
            "operation": "POST /v1/messages",
            "outcome": "completed",
        }
        request_s = gateway.metric("automna_request_seconds_sum", **whole)
    assert taken[ADMIT] >= 0.1, "the ledger was locked"
    assert taken[RELAY] >= 7 * 0.02, "the vendor took its time"
    assert sum(taken.values()) == pytest.approx(request_s, abs=1e-6)


async def test_the_ledgers_waits_are_of_each_unit_and_the_loops_of_each_commit(tmp_path):
    async with (
        AnthropicSimulator() as vendor,
        running_gateway(tmp_path, upstream=vendor.url, env=ON) as gateway,
    ):
        async with client_of(gateway, await gateway.new_token()) as client:
            for _ in range(3):
                await client.post("/v1/messages", json=messages_body())
        await gateway.quiet()
        units, commits = gateway.metric("automna_ledger_units_total"), gateway.metric(COMMITS)
        assert gateway.metric("automna_ledger_wait_seconds_count") == units > 0
        assert gateway.metric("automna_ledger_heard_seconds_count") == commits > 0


@pytest.mark.parametrize("env", [{}, {"PHASE_TIMES": "off"}, ON], ids=["unset", "off", "on"])
async def test_without_the_setting_there_are_no_such_metrics(tmp_path: Path, env) -> None:
    async with (
        AnthropicSimulator() as vendor,
        running_gateway(tmp_path, upstream=vendor.url, env=env) as gateway,
    ):
        async with client_of(gateway, await gateway.new_token()) as client:
            assert (await client.post("/v1/messages", json=messages_body())).status_code == 200
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
            told = (await client.get("/metrics")).text
    metrics = set(re.findall(r"^# TYPE (\w+) histogram", told, re.MULTILINE))
    assert metrics & OWN_METRICS == (OWN_METRICS if env is ON else set())
    assert "automna_ledger_commit_seconds" in metrics
