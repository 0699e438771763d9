"""Every way in which an exchange can end, for every operation: booked exactly once, told in dialect."""

import asyncio
from contextlib import suppress

import orjson
import pytest

from metering.errors import Reason, Refused
from proxy.surface import Surface
from simulators.script import Disconnect, Gate, Reset, Script, Send, WaitFor
from tests.conformance.test_surfaces import (
    ANY_TEXT,
    OPERATIONS,
    Case,
    Stage,
    each_operation,
    each_surface,
    in_header,
    staged,
)
from tests.support.raw_http import exchange_bytes

ACCOUNT = {
    401: Reason.UPSTREAM_ACCOUNT,
    402: Reason.UPSTREAM_ACCOUNT,
    403: Reason.UPSTREAM_ACCOUNT,
    429: Reason.UPSTREAM_BUSY,
}
"""A vendor's statuses about the key we sent, and what the client is told instead."""


def vendors_words(surface: Surface, status: int) -> bytes:
    """An error as the vendor words it, with something in it that is about the platform's account."""
    rendered = surface.dialect.refusal(
        Refused(Reason.INTERNAL, f"account org-planted, {status}"), "req_vendors"
    )
    return rendered.body


async def only_entry(stage: Stage) -> dict[str, object]:
    (entry,) = await stage.gateway.entries()
    await stage.gateway.assert_clean()
    return entry


@each_operation
async def test_an_error_of_the_request_passes_untouched_and_costs_nothing(tmp_path, case: Case):
    surface, operation = case
    for status in (404, 422, 500, 503):
        folder = tmp_path / str(status)
        folder.mkdir()
        async with staged(surface, folder) as stage:
            body = orjson.dumps({"error": {"message": "about the request", "status": "X", "type": "x"}})
            stage.vendor.fails_with = (status, body)
            answer = await stage.ask(operation)
            shown = surface.dialect.shown_error(body)
            if (problem := surface.dialect.account_problem(status, body, [])) is not None:
                assert answer.status == surface.dialect.refusal(problem, "").status
            else:
                assert (answer.status, answer.body) == (status, body if shown is None else shown)
            entry = await only_entry(stage)
            assert (entry["kind"], entry["outcome"], entry["cost_nanousd"]) == (
                "settle",
                "upstream_failed",
                0,
            )


@each_operation
@pytest.mark.parametrize("status", ACCOUNT)
async def test_an_error_about_the_platforms_account_is_not_passed_on(tmp_path, case: Case, status: int):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        stage.vendor.fails_with = (status, vendors_words(surface, status))
        answer = await stage.ask(operation)
        message = stage.assert_dialect(answer, ACCOUNT[status])
        assert "planted" not in message
        assert answer.status in {429, 503}
        assert answer.header(b"retry-after").isdigit()
        alarms = {"surface": surface.name, "status": str(status)}
        assert stage.gateway.metric("automna_upstream_account_alarms_total", **alarms) == 1
        entry = await only_entry(stage)
        assert (entry["outcome"], entry["cost_nanousd"]) == ("upstream_failed", 0)


@each_operation
@pytest.mark.parametrize("end", [Disconnect(), Reset()], ids=["closed", "reset"])
async def test_a_vendor_that_hangs_up_before_it_answers_is_booked_once_and_told_in_dialect(
    tmp_path, case: Case, end: Disconnect | Reset
):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        stage.vendor.answers_with = Script(before=(end,))
        stage.assert_dialect(await stage.ask(operation), Reason.UPSTREAM_UNREACHABLE)
        keys = [request.header(b"idempotency-key") for request in stage.vendor.asked]
        if operation.is_repeatable:
            assert len(keys) > 1, "an answer that was lost is asked for again"
            assert bool(keys[0]) == operation.is_idempotent
            assert len(set(keys)) == 1, "under its key"
        else:
            assert keys == [b""], "nobody knows what the vendor did: it is not asked twice"
        entry = await only_entry(stage)
        assert (entry["kind"], entry["outcome"]) == ("settle", "upstream_failed")
        is_known = operation.meter.is_free or operation.timed is not None
        assert entry["basis"] == ("reported" if is_known else "estimated")


@pytest.mark.parametrize("case", [one for one in OPERATIONS if one.values[0][1].timed is not None])
@pytest.mark.parametrize("end", [Disconnect(), Reset(), None], ids=["closed", "reset", "an error"])
async def test_what_began_although_its_answer_was_lost_is_found_and_billed_as_reported(
    tmp_path, case: Case, end: Disconnect | Reset | None
):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        stage.vendor.has_begun = True
        if end is None:
            stage.vendor.fails_with = (500, b"{}")
        else:
            stage.vendor.answers_with = Script(before=(end,))
        assert (await stage.ask(operation)).status >= 500
        entry = await only_entry(stage)
        assert (entry["kind"], entry["outcome"], entry["basis"]) == ("settle", "completed", "reported")
        counts = [line["counts"] for line in orjson.loads(str(entry["usage"]))]
        assert counts == [dict(line.counts) for line in operation.example.usage.lines]
        assert [line["outcome"] for line in stage.gateway.lines] == ["deferred", "completed"]


@each_operation
async def test_a_vendor_that_cannot_be_reached_costs_nothing(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        await stage.vendor.stop()
        stage.assert_dialect(await stage.ask(operation), Reason.UPSTREAM_UNREACHABLE)
        looks_up = operation.looks_up
        if looks_up is not None and looks_up.when is None:  # it did not come so far as to be held
            assert await stage.gateway.entries() == []
            return
        entry = await only_entry(stage)
        assert (entry["kind"], entry["outcome"], entry["cost_nanousd"]) == ("void", "not_sent", 0)


@each_operation
async def test_an_answer_that_breaks_off_is_never_a_clean_end(tmp_path, case: Case):
    surface, operation = case
    example = operation.example
    half = example.answer[: len(example.answer) // 2]
    async with staged(surface, tmp_path) as stage:
        content = (("Content-Type", example.answer_content_type),)
        stage.vendor.answers_with = Script(headers=content, steps=(Send(half), Reset()))
        wire = await ask_bytes(stage, case)
        body = wire.partition(b"\r\n\r\n")[2]
        is_error = wire.split(b" ", 2)[1] in {b"502", b"504"} or b'"error"' in body
        assert is_error or not body.endswith(b"0\r\n\r\n"), "a broken answer looks whole"
        entry = await only_entry(stage)
        assert (entry["kind"], entry["outcome"]) == ("settle", "upstream_failed")


@each_operation
async def test_a_client_that_leaves_is_billed_for_what_the_vendor_reports(tmp_path, case: Case):
    surface, operation = case
    example = operation.example
    gate = Gate()
    half = len(example.answer) // 2
    async with staged(surface, tmp_path) as stage:
        content = (("Content-Type", example.answer_content_type),)
        steps = (Send(example.answer[:half]), WaitFor(gate), Send(example.answer[half:]))
        stage.vendor.answers_with = Script(headers=content, steps=steps)
        asking = asyncio.get_running_loop().create_task(ask_bytes(stage, case))
        await gate.reached()
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        await stage.gateway.until(lambda: stage.gateway.metric("automna_drains") == 1)
        gate.open()
        entry = await only_entry(stage)
        assert (entry["kind"], entry["outcome"], entry["basis"]) == ("settle", "client_left", "reported")
        counts = [line["counts"] for line in orjson.loads(str(entry["usage"] or "[]"))]
        assert counts == [dict(line.counts) for line in example.usage.lines]


@each_surface
async def test_every_refusal_is_json_in_the_surfaces_own_shape(surface: Surface):
    shapes = [
        orjson.loads(surface.dialect.refusal(Refused(reason, ANY_TEXT), "req_1").body)
        for reason in (Reason.INTERNAL, Reason.UNAUTHENTICATED)  # of which a vendor may have one of its own
    ]
    for reason in Reason:
        rendered = surface.dialect.refusal(Refused(reason, "what happened", retry_after_s=2.0), "req_1")
        body = orjson.loads(rendered.body)
        assert list(body) in [list(shape) for shape in shapes]
        headers = dict(rendered.headers)
        assert 400 <= rendered.status < 600
        assert not (headers.get(b"x-should-retry") == b"false" and b"retry-after" in headers)
        assert b"what happened" in rendered.body


async def ask_bytes(stage: Stage, case: Case) -> bytes:
    """The example on a connection of its own; all that comes, whole or not."""
    surface, operation = case
    stage.vendor.about = operation
    await stage.own_named(operation)
    example = operation.example
    target = f"{surface.mounts[0]}{example.path}".encode()
    token = in_header(surface, stage.token)
    return await exchange_bytes(stage.gateway.url, target, [token], example.body, method=operation.method)
