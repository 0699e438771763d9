"""Work that goes on after its request: OpenAI's responses in the background, settled once, by a poll."""

import asyncio

import pytest

from metering.ledger import NO_COST, Outcome, Settlement
from metering.objects import ObjectId
from metering.store.writer import Unit
from proxy import deferral
from simulators.openai import VENDOR_KEY, OpenAISimulator, fails, hangs, replays, streams
from simulators.script import Gate, WaitFor
from tests.support.background import BACKGROUND, LATER_S, polled, start, states, works
from tests.support.calls import exchange
from tests.support.gateway import DatedClock, Gateway
from tests.support.limits import limits_of
from tests.support.openai import openai_client_of, response_body, serving_openai

SLOW = 60
"""Tokens per minute of which one flows back a second."""


@pytest.fixture
def clock() -> DatedClock:
    return DatedClock(2026, 11, 20)


async def test_background_work_is_held_until_a_poll_finds_it_ended_and_booked_once(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        token = await gateway.new_token()
        response_id = await start(gateway, token)
        _, held = await gateway.spent_and_held()
        assert held > 0
        (line,) = gateway.lines
        assert (line["outcome"], "cost_usd" in line) == ("deferred", False)
        await polled(gateway, clock)
        assert (await states(gateway), await gateway.spent_and_held()) == (["HELD"], (0, held))
        vendor.finish(response_id)
        async with openai_client_of(gateway, token) as client:  # its user reads it first: that books nothing
            answer = await client.get(f"/responses/{response_id}")
            assert answer.json()["status"] == "completed"
        assert (await gateway.spent_and_held())[1] == held
        await polled(gateway, clock)
        await polled(gateway, clock)
        entries = [entry for entry in await gateway.entries() if entry["model"] is not None]
        (entry,) = entries
        (told,) = vendor.answers
        assert (entry["kind"], entry["outcome"], entry["basis"]) == ("settle", "completed", "reported")
        assert entry["output_tokens"] == told.usage.completion_tokens
        assert await works(gateway) == 0
        last = gateway.lines[-1]
        assert last["request"] == line["request"]
        assert (last["outcome"], last["output_tokens"]) == ("completed", told.usage.completion_tokens)
        assert last["polls"] >= 2
        await gateway.assert_clean()


async def test_a_vendors_word_of_it_has_work_asked_about_at_once_and_books_nothing(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        response_id = await start(gateway, await gateway.new_token())
        deferrals, writer = gateway.service.engine._deferrals, gateway.service.store.writer
        one = ObjectId("openai", "response", response_id)
        for other in (one._replace(kind="file"), one._replace(vendor="agentmail")):
            assert not deferrals.reported(other)
        asked = len(vendor.requests)
        for _ in range(2):
            await writer.submit(Unit(deferrals.reported(one)))
            await deferrals.poll_due()
            await gateway.until(lambda asked=asked: len(vendor.requests) > asked)
            assert await states(gateway) == ["HELD"]
            asked = len(vendor.requests)
        vendor.finish(response_id)
        await writer.submit(Unit(deferrals.reported(one)))
        await deferrals.poll_due()
        await gateway.assert_clean()


@pytest.mark.parametrize("is_another", [False, True], ids=["the same process", "another process"])
async def test_background_work_counts_against_the_minutes_tokens_when_it_is_booked(
    tmp_path, clock, is_another
):
    async with OpenAISimulator() as vendor:
        async with serving_openai(tmp_path, vendor, clock=clock, tokens_per_minute=1) as gateway:
            token = await gateway.new_token()
            response_id = await start(gateway, token)
            assert gateway.service.own.rate_limits.tokens.used("user:u1", 1) == 0
            if not is_another:
                vendor.finish(response_id)
                await polled(gateway, clock)
                await gateway.entries()
                await assert_tokens_are_spent(gateway, token)
                return
        vendor.finish(response_id)
        clock.advance(LATER_S)
        async with serving_openai(tmp_path, vendor, clock=clock, tokens_per_minute=1) as gateway:
            await gateway.entries()
            await assert_tokens_are_spent(gateway, token)


async def assert_tokens_are_spent(gateway: Gateway, token: str) -> None:
    async with openai_client_of(gateway, token) as client:
        refused = await client.post("/responses", json=response_body())
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "tokens"
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        (limits, left) = limits_of(refused.headers)["tokens"]
        assert (limits, left) == (0, int(refused.headers["retry-after"]))


async def test_nobody_has_to_ask_for_the_poll(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        vendor.finish(await start(gateway, await gateway.new_token()))
        clock.advance(LATER_S)
        (entry,) = await gateway.entries()
        assert entry["basis"] == "reported"
        await gateway.assert_clean()


@pytest.mark.parametrize("silent", [deferral.POLLS_AT_ONCE + 1, 1], ids=["another vendor", "its own work"])
async def test_work_of_which_a_vendor_says_nothing_keeps_nobody_from_asking_about_other(
    tmp_path, monkeypatch, silent
):
    monkeypatch.setattr("proxy.deferral.LOOK_EVERY_S", 0.02)
    async with OpenAISimulator() as vendor:
        env = {"OPENAI_API_KEY": VENDOR_KEY, "OPENAI_UPSTREAM_URL": vendor.url}
        async with exchange(tmp_path, env=env) as at:
            charged = "SELECT user_id, basis FROM entries WHERE cost_nanousd > 0"
            ids = [await start(at.gateway, at.ada.token) for _ in range(silent)]
            gate = Gate()
            for response_id in ids:
                vendor.next_on(f"GET .*/{response_id}", hangs(gate=gate))
            at.clock.advance(LATER_S)
            asked = silent + min(silent, deferral.POLLS_AT_ONCE)
            await at.gateway.until(lambda: vendor.requests_total == asked)
            if silent == 1:
                vendor.finish(await start(at.gateway, at.bob.token))
            else:
                call = await at.dialled(at.bob)
                await at.bob.http.post(f"/v1/calls/{call.call_id}/stop")
            for _ in range(60):  # until the holds of what is silent are about to expire
                at.clock.advance(LATER_S)
                at.vendor.advance(0)
                await asyncio.sleep(0.3)
                booked = await at.gateway.service.store.readers.rows(charged)
                if booked:
                    break
            assert booked == [("bob", "reported")]
            for response_id in ids:
                vendor.finish(response_id)
            gate.open()
            async with asyncio.timeout(60):
                while await works(at.gateway):
                    await polled(at.gateway, at.clock)
                    await asyncio.sleep(0.01)


async def test_after_a_restart_all_that_waits_is_asked_about_as_fast_as_the_vendor_answers(
    tmp_path, monkeypatch, clock
):
    many = 3 * deferral.POLLS_AT_ONCE
    async with OpenAISimulator() as vendor:
        async with serving_openai(tmp_path, vendor, clock=clock) as gateway:
            token = await gateway.new_token()
            for response_id in [await start(gateway, token) for _ in range(many)]:
                vendor.finish(response_id)
        clock.advance(LATER_S)
        monkeypatch.setattr("proxy.deferral.LOOK_EVERY_S", 600.0)
        async with serving_openai(tmp_path, vendor, clock=clock) as gateway:
            async with asyncio.timeout(60):
                while await works(gateway):
                    await asyncio.sleep(0.02)
            assert len(await gateway.entries()) == many
            await gateway.assert_clean()


async def test_a_stream_in_the_background_whose_client_leaves_is_settled_by_a_poll(tmp_path, clock):
    env: dict[str, str | None] = {"DRAIN_AFTER_CLIENT_LEFT_S": "0.1"}
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock, env=env) as gateway:
        async with (
            openai_client_of(gateway, await gateway.new_token()) as client,
            client.stream("POST", "/responses", json={**BACKGROUND, "stream": True}) as answer,
        ):
            lines = answer.aiter_lines()
            while "response.queued" not in await anext(lines):
                pass
        await gateway.until(lambda: gateway.lines)
        assert gateway.lines[0]["outcome"] == "deferred"
        (response_id,) = vendor.kept
        vendor.finish(response_id)
        await polled(gateway, clock)
        entry = (await gateway.entries())[-1]
        assert (entry["kind"], entry["basis"]) == ("settle", "reported")
        await gateway.assert_clean()


async def test_a_stream_in_the_background_that_is_read_to_its_end_is_settled_there(tmp_path, clock):
    async with (
        OpenAISimulator() as vendor,
        serving_openai(tmp_path, vendor, clock=clock, tokens_per_minute=SLOW) as gateway,
    ):
        async with (
            openai_client_of(gateway, await gateway.new_token()) as client,
            client.stream("POST", "/responses", json={**BACKGROUND, "stream": True}) as answer,
        ):
            lines = answer.aiter_lines()
            while "response.queued" not in await anext(lines):
                pass
            (response_id,) = vendor.kept
            vendor.finish(response_id)
            assert any("response.completed" in line for line in [line async for line in lines])
        entry = await gateway.only_entry()
        assert (entry["outcome"], entry["basis"]) == ("completed", "reported")
        counted = entry["input_tokens"] + entry["cache_write_tokens"] + entry["output_tokens"]
        tokens = gateway.service.own.rate_limits.tokens
        assert counted - 10 <= tokens.used("user:u1", SLOW) <= counted
        before = vendor.requests_total
        await polled(gateway, clock)
        assert (await works(gateway), vendor.requests_total) == (0, before)
        await gateway.only_entry()


@pytest.mark.parametrize("how", ["cancel", "fail"])
async def test_work_that_ends_otherwise_is_booked_once_too(tmp_path, clock, how):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        token = await gateway.new_token()
        response_id = await start(gateway, token)
        if how == "cancel":
            async with openai_client_of(gateway, token) as client:
                answer = await client.post(f"/responses/{response_id}/cancel")
                assert answer.json()["status"] == "cancelled"
        else:
            vendor.fail(response_id)
        await polled(gateway, clock)
        assert set(await states(gateway)) == {"SETTLED"}
        assert await works(gateway) == 0
        await gateway.assert_clean()


async def test_work_outlives_its_process(tmp_path, clock):
    async with OpenAISimulator() as vendor:
        async with serving_openai(tmp_path, vendor, clock=clock) as gateway:
            response_id = await start(gateway, await gateway.new_token())
            assert await states(gateway) == ["HELD"]
        vendor.finish(response_id)
        clock.advance(LATER_S)
        async with serving_openai(tmp_path, vendor, clock=clock) as gateway:
            (entry,) = await gateway.entries()
            assert (entry["kind"], entry["basis"]) == ("settle", "reported")
            await gateway.assert_clean()


async def test_of_many_who_poll_at_once_one_asks(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        vendor.finish(await start(gateway, await gateway.new_token()))
        clock.advance(LATER_S)
        deferrals = gateway.service.engine._deferrals
        asked = await asyncio.gather(*(deferrals.poll_due() for _ in range(20)))
        assert sum(asked) <= 1, "the service's own look may have been first"
        assert vendor.requests_total == 2
        (entry,) = await gateway.entries()
        assert entry["basis"] == "reported"
        await gateway.assert_clean()


async def test_a_vendor_that_cannot_tell_is_asked_again(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        response_id = await start(gateway, await gateway.new_token())
        for status in (500, 429, 401):
            vendor.next(fails(status))
            await polled(gateway, clock)
            assert await states(gateway) == ["HELD"]
        vendor.finish(response_id)
        await polled(gateway, clock)
        (entry,) = await gateway.entries()
        assert entry["basis"] == "reported"
        await gateway.assert_clean()


async def test_work_of_which_the_vendor_knows_nothing_is_booked_as_an_estimate(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        response_id = await start(gateway, await gateway.new_token())
        del vendor.kept[response_id]
        for _ in range(deferral.LOST_AFTER_POLLS - 1):
            await polled(gateway, clock)
            assert await states(gateway) == ["HELD"], "it may not know of it yet"
        await polled(gateway, clock)
        (entry,) = await gateway.entries()
        assert (entry["basis"], entry["notes"]) == ("estimated", '["lost_at_vendor"]')
        assert entry["cost_nanousd"] > 0
        await gateway.assert_clean()


async def test_work_of_which_nothing_is_heard_expires_and_a_late_report_adjusts_it(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        response_id = await start(gateway, await gateway.new_token())
        vendor.script = lambda _: fails(503)
        async with asyncio.timeout(60):
            while await states(gateway) != ["EXPIRED"]:
                await polled(gateway, clock, 60)
                await asyncio.sleep(0.05)
        vendor.script = None
        vendor.finish(response_id)
        async with asyncio.timeout(60):
            while await works(gateway):
                await polled(gateway, clock)
        entries = await gateway.entries()
        assert [entry["kind"] for entry in entries] == ["expire", "adjust"]
        (told,) = vendor.answers
        assert sum(entry["output_tokens"] for entry in entries) == told.usage.completion_tokens
        await gateway.assert_clean()


async def test_work_in_the_background_counts_as_a_request_in_flight(tmp_path, clock):
    async with (
        OpenAISimulator() as vendor,
        serving_openai(tmp_path, vendor, clock=clock, concurrent=1) as gateway,
    ):
        token = await gateway.new_token()
        response_id = await start(gateway, token)
        async with openai_client_of(gateway, token) as client:
            assert (await client.post("/responses", json=response_body())).status_code == 429
            vendor.finish(response_id)
            await polled(gateway, clock)
            await gateway.quiet()
            assert (await client.post("/responses", json=response_body())).status_code == 200
        await gateway.assert_clean()


async def test_work_is_asked_about_although_the_end_of_its_answer_came_apart(tmp_path, clock):
    """What ends a chunked body often comes with a read of its own: nobody knew that the bytes before were all."""
    told = b'{"id":"resp_apart","object":"response","status":"queued","model":"gpt-5.6-sol","usage":null}'
    end = Gate()
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        vendor.next(replays(told, "application/json", stalls_after=len(told), gate=end))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(start(gateway, await gateway.new_token()))
            await end.reached()
            (exchange,) = gateway.service.engine._open
            await gateway.until(lambda: exchange.observer is not None and exchange.observer._bytes_fed)
            end.open()
        assert (await works(gateway), await states(gateway)) == (1, ["HELD"])
        await gateway.until(lambda: gateway.lines)
        assert gateway.lines[0]["outcome"] == "deferred"


async def test_one_silent_poll_does_not_keep_the_others_waiting(tmp_path, clock, monkeypatch):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        response_id = await start(gateway, await gateway.new_token())
        vendor.next(hangs())
        with monkeypatch.context() as patched:
            patched.setattr(deferral, "POLL_TIMEOUT_S", 0.2)
            await polled(gateway, clock)
        vendor.finish(response_id)
        await polled(gateway, clock)
        (entry,) = await gateway.entries()
        assert entry["basis"] == "reported"
        await gateway.assert_clean()


async def test_work_whose_row_cannot_be_written_is_booked_at_once(tmp_path, clock):
    env: dict[str, str | None] = {"STORE_BUSY_TIMEOUT_S": "0.2", "SETTLE_WAIT_S": "1"}
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock, env=env) as gateway:
        gate = Gate()
        vendor.next(streams(before=(WaitFor(gate),)))
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            asking = asyncio.get_running_loop().create_task(client.post("/responses", json=BACKGROUND))
            await gate.reached()
            with gateway.locked_store() as other:
                gate.open()
                answer = await asking
                other.rollback()
            assert (answer.status_code, "resp_" in answer.text) == (503, False)
        (entry,) = await gateway.entries()
        assert (entry["kind"], entry["basis"], entry["notes"]) == ("settle", "estimated", '["not_polled"]')
        assert await works(gateway) == 0
        await gateway.assert_clean()


async def test_a_row_of_another_release_is_left_for_it(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        response_id = await start(gateway, await gateway.new_token())
        deferrals = gateway.service.engine._deferrals
        kinds, deferrals._kinds = deferrals._kinds, {}
        await polled(gateway, clock)
        assert await works(gateway) == 1
        deferrals._kinds = kinds
        vendor.finish(response_id)
        await polled(gateway, clock, 601)
        (entry,) = await gateway.entries()
        assert entry["basis"] == "reported"
        await gateway.assert_clean()


async def test_a_stream_whose_work_a_poll_has_booked_already_counts_no_cost_again(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        async with (
            openai_client_of(gateway, await gateway.new_token()) as client,
            client.stream("POST", "/responses", json={**BACKGROUND, "stream": True}) as answer,
        ):
            lines = answer.aiter_lines()
            while "response.queued" not in await anext(lines):
                pass
            ledger = gateway.service.engine._booking._ledger
            reservation = await ledger.held(answer.headers["x-automna-request-id"])
            assert reservation is not None
            await ledger.settle(reservation, Settlement(Outcome.COMPLETED, NO_COST, is_reported=True))
            (response_id,) = vendor.kept
            vendor.finish(response_id)
            assert any("response.completed" in line for line in [line async for line in lines])
        await gateway.entries()
        (line,) = gateway.lines
        assert (line["outcome"], "cost_usd" in line) == ("deferred", False)
        assert gateway.service.own.rate_limits.tokens.used("user:u1", 1) == 0, "whoever booked it counts it"
        await gateway.assert_clean()
