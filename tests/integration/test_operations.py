"""What operators are told: the canonical lines, the metrics, and that docs/operations.md names all of them."""

import asyncio
import json
import re
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from metering.errors import Reason
from metering.ledger import Outcome
from proxy.telemetry import shown_path
from routes.anthropic_meter import MessagesMeter
from simulators.anthropic import AnthropicSimulator, breaks_after, drops, errors_after, fails, streams
from tests.support.gateway import client_of, messages_body, running_gateway

DOCUMENT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
NAMED = set(re.findall(r"`([a-z_]+)`", DOCUMENT))


async def test_an_answered_request_leaves_one_line_with_all_that_an_operator_asks_for(tmp_path):
    async with AnthropicSimulator() as vendor, running_gateway(tmp_path, upstream=vendor.url) as gateway:
        token = await gateway.new_token()
        async with client_of(gateway, token) as client:
            answer = await client.post("/v1/messages", json=messages_body())
        entry = await gateway.only_entry()
    (line,) = gateway.lines
    told = answer.json()["usage"]
    assert line["request"] == answer.headers["x-automna-request-id"] == entry["reservation_id"]
    assert line["upstream_request"] == answer.headers["request-id"] == entry["upstream_request_id"]
    assert (line["status"], line["outcome"], line["operation"]) == (200, "completed", "POST /v1/messages")
    assert (line["input_tokens"], line["output_tokens"]) == (told["input_tokens"], told["output_tokens"])
    assert float(line["cost_usd"]) == entry["cost_nanousd"] / 1e9
    assert 0 < line["admitted_ms"] <= line["first_byte_ms"] <= line["ms"]
    assert {"estimated", "cause", "reason", "notes", "path"}.isdisjoint(line)
    assert token not in json.dumps(line)


@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [
        (drops(), "closed"),
        (breaks_after(6), "closed"),
        (errors_after(6), "overloaded_error"),
    ],
)
async def test_what_went_wrong_at_the_vendor_is_in_the_line_itself(tmp_path, behaviour, cause):
    async with AnthropicSimulator() as vendor, running_gateway(tmp_path, upstream=vendor.url) as gateway:
        vendor.next(behaviour)
        async with client_of(gateway, await gateway.new_token()) as client:
            with suppress(httpx.HTTPError):
                await client.post("/v1/messages", json=messages_body(stream=True))
        await gateway.only_entry()
        estimates = gateway.metric("automna_estimates_total", surface="anthropic", outcome="upstream_failed")
    (line,) = gateway.lines
    assert cause in line["cause"]
    assert (line["estimated"], estimates) == (True, 1)
    assert float(line["cost_usd"]) <= float(line["hold_usd"])


async def test_a_request_for_something_that_nobody_serves_shows_its_path_but_nothing_as_long_as_a_secret(
    tmp_path,
):
    async with running_gateway(tmp_path) as gateway:
        token = await gateway.new_token()
        async with client_of(gateway, token) as client:
            await client.delete(f"/v1/files/{token}?key={token}")
        (line,) = gateway.lines
    assert (line["reason"], line["method"], line["path"]) == (
        "unknown_operation",
        "DELETE",
        "/api/llm/v1/files/...",
    )


def test_a_path_in_a_line_is_bounded():
    assert shown_path(b"/a" * 10_000) == "/a" * 100


async def test_our_own_endpoints_leave_a_line_too_but_not_those_that_machines_ask(tmp_path):
    async with running_gateway(tmp_path) as gateway:
        token = await gateway.new_token()
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
            for path in ("/health", "/readyz", "/metrics"):
                assert (await client.get(path)).status_code == 200
            limits = await client.get("/api/user/limits", headers={"authorization": f"Bearer {token}"})
            unknown = await client.get("/api/user/limits", headers={"authorization": "Bearer amp_nobody"})
            nothing = await client.get("/api/nothing")
        counted = gateway.metric(
            "automna_requests_total", surface="own", operation="readyz", outcome="completed", status="200"
        ) or gateway.metric(
            "automna_requests_total", surface="own", operation="ready", outcome="completed", status="200"
        )
    first, second, third = gateway.lines
    assert (first["operation"], first["status"], first["user"]) == ("limits", 200, "u1")
    assert first["request"] == limits.headers["x-automna-request-id"]
    assert (second["status"], second["reason"]) == (401, "unauthenticated")
    assert second["request"] == unknown.headers["x-automna-request-id"] == unknown.json()["request_id"]
    assert (third["operation"], third["status"], third["path"]) == ("unknown", 404, "/api/nothing")
    assert third["request"] == nothing.headers["x-automna-request-id"]
    assert counted == 1


async def test_what_is_no_request_is_counted(tmp_path):
    async with running_gateway(tmp_path) as gateway:
        address = httpx.URL(gateway.url)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        assert gateway.metric("automna_malformed_requests_total") == 1
        assert gateway.lines == []


async def test_the_document_names_every_field_metric_reason_and_outcome(tmp_path):
    timed = {"PHASE_TIMES": "on"}
    async with (
        AnthropicSimulator() as vendor,
        running_gateway(tmp_path, upstream=vendor.url, env=timed) as gateway,
    ):
        vendor.next(streams(events=8), drops(), fails(400), breaks_after(6), errors_after(6))
        async with client_of(gateway, await gateway.new_token()) as client:
            for _ in range(5):
                with suppress(httpx.HTTPError):
                    await client.post("/v1/messages", json=messages_body(stream=True))
            await client.get("/v1/files")
            await client.post("/v1/messages", json=messages_body(model="claude-nothing"))
            await client.post("/v1/messages", json=messages_body(max_tokens=10**9))
            async with client.stream("POST", "/v1/messages", json=messages_body(stream=True)) as answer:
                async for _ in answer.aiter_raw():
                    break
        await gateway.quiet()
        exposition = gateway.service.telemetry.exposition().decode()
    fields = {name for line in gateway.lines for name in line}
    assert len(fields) > 15
    assert fields <= NAMED
    metrics = set(re.findall(r"^# TYPE (\w+) ", exposition, re.MULTILINE))
    metrics = {name for name in metrics if not name.endswith("_created")}
    assert metrics <= NAMED
    assert {name for name in NAMED if name.startswith("automna_")} <= metrics, "a metric that is no more"
    assert {*Reason, *Outcome} <= NAMED


async def test_a_defect_of_ours_is_named_as_one_and_costs_nothing_before_anything_is_sent(
    tmp_path, monkeypatch
):
    async with AnthropicSimulator() as vendor, running_gateway(tmp_path, upstream=vendor.url) as gateway:
        async with client_of(gateway, await gateway.new_token()) as client:
            with monkeypatch.context() as patch:
                patch.setattr(MessagesMeter, "read", broken)
                before_admission = await client.post("/v1/messages", json=messages_body())
            with monkeypatch.context() as patch:
                patch.setattr(gateway.service.engine, "_request_up", broken)
                after_it = await client.post("/v1/messages", json=messages_body())
        entries = await gateway.entries()
        counted = sum(
            sample.value
            for metric in gateway.service.telemetry.registry.collect()
            for sample in metric.samples
            if sample.name == "automna_requests_total" and sample.labels["outcome"] == "internal"
        )
        defects, gateway.defects[:] = list(gateway.defects), []
    assert (before_admission.status_code, after_it.status_code) == (500, 500)
    assert [(line["status"], line["outcome"]) for line in gateway.lines] == [(500, "internal")] * 2
    assert [(entry["kind"], entry["cost_nanousd"]) for entry in entries] == [("void", 0)]
    assert (counted, len(defects), vendor.requests_total) == (2, 2, 0)


def broken(*_):
    raise RuntimeError("a defect")


async def test_a_body_that_stops_being_http_is_refused_under_one_id_in_answer_and_line(tmp_path):
    async with running_gateway(tmp_path) as gateway:
        address = httpx.URL(gateway.url)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(
            b"POST /api/llm/v1/messages HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b'x-api-key: %b\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"a":'
            % (await gateway.new_token()).encode()
        )
        await gateway.until(lambda: gateway.server.server_state.tasks)
        writer.write(b"\r\nno chunk\r\n")
        answer = await reader.read()
        writer.close()
        await gateway.quiet()
    (line,) = gateway.lines
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["request_id"] == line["request"]
    assert (line["status"], line["outcome"], line["reason"]) == (400, "refused", "bad_request")


def test_a_token_at_the_end_of_a_long_path_is_not_shown_in_part():
    token = "amp_" + "x" * 43
    assert shown_path(b"/abc" * 45 + b"/" + token.encode()) == "/abc" * 45 + "/..."


async def test_how_late_the_event_loop_is_is_told_for_the_worst_of_some_seconds(tmp_path: Path) -> None:
    """What a gauge shows that is looked at now and then, and not at the moment."""
    async with running_gateway(tmp_path) as gateway:
        await gateway.until(lambda: gateway.metric("automna_loop_lag_seconds") > 0)  # it is looked at
        time.sleep(0.2)  # at a stretch, on the loop that it serves on
        await gateway.until(lambda: gateway.metric("automna_loop_lag_seconds") >= 0.15)
