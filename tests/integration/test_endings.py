"""What still runs at the vendor for who may do nothing any more: ended there, and booked once as the vendor reports it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from metering.deferred import DeferredWorks
from metering.users import Directory
from proxy.endings import ATTEMPTS_MAX, ENDED_AT_ONCE, LOOK_EVERY_S, RETRY_S
from simulators.openai import VENDOR_KEY, OpenAISimulator, drops, fails, hangs
from simulators.script import Gate
from tests.support.background import BACKGROUND, polled, start, states, works
from tests.support.calls import exchange
from tests.support.endings import endings_of
from tests.support.gateway import DatedClock, Gateway
from tests.support.openai import openai_client_of, serving_openai
from tests.support.process import serving

EVER_S = RETRY_S * 2**ATTEMPTS_MAX


@pytest.fixture
def clock() -> DatedClock:
    return DatedClock(2026, 11, 20)


def directory_of(gateway: Gateway) -> Directory:
    return Directory(gateway.service.store, gateway.clock)


def cancels(vendor: OpenAISimulator) -> int:
    return sum(request.path.endswith("/cancel") for request in vendor.requests)


def on_cancel(behaviour: Callable[[], Any]) -> Callable[[Any], Any]:
    return lambda request: behaviour() if request.path.endswith("/cancel") else None


async def token_ids(gateway: Gateway, user_id: str = "u1") -> list[str]:
    return [token.id for token in await directory_of(gateway).tokens(user_id)]


async def assert_booked_once(gateway: Gateway, *, notes: str | None = None) -> None:
    (entry,) = [entry for entry in await gateway.entries() if entry["operation"] == "POST /v1/responses"]
    assert (entry["kind"], entry["notes"]) == ("settle", notes)
    assert await works(gateway) == 0
    await gateway.assert_clean()


async def test_the_work_of_a_disabled_user_is_ended_at_once_and_that_of_others_goes_on(
    tmp_path, clock, monkeypatch
):
    monkeypatch.setattr("proxy.endings.LOOK_EVERY_S", EVER_S)
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        response_id = await start(gateway, await gateway.new_token())
        others = await start(gateway, await gateway.new_token("bob"))
        await directory_of(gateway).disable("u1")
        await gateway.until(lambda: not vendor.kept[response_id].is_unfinished)
        assert cancels(vendor) == 1
        await gateway.until(lambda: len(gateway.lines) == 3)  # its second line: a poll has booked it
        assert await states(gateway) == ["SETTLED", "HELD"]
        assert vendor.kept[others].is_unfinished
        assert gateway.metric("automna_endings_total", surface="openai", outcome="told") == 1
        assert await endings_of(gateway).end_abandoned() == 0
        await directory_of(gateway).disable("bob")
        await gateway.until(lambda: len(gateway.lines) == 4)
        assert cancels(vendor) == 2
        assert [entry["user_id"] for entry in await gateway.entries()] == ["u1", "bob"]
        await gateway.assert_clean()


async def test_a_stream_in_the_background_of_a_disabled_user_is_ended_too(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        async with (
            openai_client_of(gateway, await gateway.new_token()) as client,
            client.stream("POST", "/responses", json={**BACKGROUND, "stream": True}) as answer,
        ):
            lines = answer.aiter_lines()
            while "response.queued" not in await anext(lines):
                pass
            await directory_of(gateway).disable("u1")
            await gateway.until(lambda: cancels(vendor) == 1)
            async for _ in lines:
                pass
        await polled(gateway, clock)
        await assert_booked_once(gateway)


async def test_a_vendor_that_is_silent_keeps_no_work_of_another_running(tmp_path):
    async with OpenAISimulator() as vendor:
        env = {"OPENAI_API_KEY": VENDOR_KEY, "OPENAI_UPSTREAM_URL": vendor.url}
        async with exchange(tmp_path, env=env) as at:
            ids = [await start(at.gateway, at.ada.token) for _ in range(ENDED_AT_ONCE + 1)]
            call, gate = await at.dialled(at.ada), Gate()
            for response_id in ids:
                vendor.next_on(f"POST .*/{response_id}/cancel", hangs(gate=gate))
            await directory_of(at.gateway).disable("ada")
            await at.gateway.until(lambda: call.is_over)
            gate.open()
            await at.gateway.until(lambda: cancels(vendor) == len(ids))
            async with asyncio.timeout(60):
                while await works(at.gateway):
                    await polled(at.gateway, at.clock)
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_only_without_any_token_that_lives_is_work_ended(tmp_path, clock, how):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        response_id, directory = await start(gateway, await gateway.new_token()), directory_of(gateway)
        await directory.create_token("u1", expires_at_ms=clock.now_ms() + 3_600_000)
        first, second = await token_ids(gateway)
        await directory.revoke(first)
        looked = endings_of(gateway)
        assert (await looked.end_abandoned(), cancels(vendor)) == (0, 0), "another lives"
        if how == "revoked":
            await directory.revoke(second)
            await gateway.until(lambda: not vendor.kept[response_id].is_unfinished)
        else:
            await polled(gateway, clock, 3_599)
            assert await looked.end_abandoned() == 0
            clock.advance(1)
            assert await looked.end_abandoned() == 1
        assert cancels(vendor) == 1
        await polled(gateway, clock)
        await assert_booked_once(gateway)


async def test_a_child_that_lives_is_a_token_that_lives(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        response_id, directory = await start(gateway, await gateway.new_token()), directory_of(gateway)
        (parent,) = await token_ids(gateway)
        await directory.create_token("u1", parent_id=parent)
        await directory.rotate(parent, overlap_s=0)
        assert await endings_of(gateway).end_abandoned() == 0
        for token in await token_ids(gateway):
            await directory.revoke(token)
        await gateway.until(lambda: not vendor.kept[response_id].is_unfinished)
        await polled(gateway, clock)
        await assert_booked_once(gateway)


async def test_who_is_enabled_again_meanwhile_keeps_what_runs(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        vendor.script = on_cancel(lambda: fails(503))
        response_id, directory = await start(gateway, await gateway.new_token()), directory_of(gateway)
        looked, rows = endings_of(gateway), DeferredWorks(gateway.service.store, clock)
        await directory.disable("u1")
        await gateway.until(lambda: cancels(vendor) == 1)
        vendor.script = None
        clock.advance(RETRY_S)
        (seen,) = await rows.abandoned(after="", attempts_max=ATTEMPTS_MAX, at_most=10)
        await directory.enable("u1")
        assert not await rows.claim_ending(seen, next_attempt_in_s=RETRY_S), "it was so a moment ago"
        clock.advance(EVER_S)
        assert (await looked.end_abandoned(), cancels(vendor)) == (0, 1)
        vendor.finish(response_id)
        await polled(gateway, clock)
        (entry,) = [entry for entry in await gateway.entries() if entry["kind"] != "expire"]
        assert entry["basis"] == "reported"
        await gateway.assert_clean()


async def test_of_many_workers_one_tells_the_vendor(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        token = await gateway.new_token()
        ids = [await start(gateway, token) for _ in range(40)]
        await directory_of(gateway).disable("u1")
        made = await asyncio.gather(*(endings_of(gateway).end_abandoned() for _ in range(5)))
        await gateway.until(lambda: not any(vendor.kept[one].is_unfinished for one in ids))
        assert cancels(vendor) == 40
        assert sum(made) <= 40, "the service's own look may have been first"
        await polled(gateway, clock)
        assert len(await gateway.entries()) == 40
        await gateway.assert_clean()


@pytest.mark.parametrize(
    ("behaviour", "is_done"),
    [
        (lambda: fails(500), False),
        (lambda: fails(429), False),
        (lambda: fails(404), False),
        (drops, False),
        (lambda: fails(400), True),
        (lambda: fails(409), True),
    ],
    ids=["500", "429", "404", "dropped", "400", "409"],
)
async def test_a_vendor_that_does_not_hear_is_told_again_and_not_for_ever(
    tmp_path, clock, behaviour, is_done
):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        vendor.script = on_cancel(behaviour)
        response_id = await start(gateway, await gateway.new_token())
        looked = endings_of(gateway)
        await directory_of(gateway).disable("u1")
        await gateway.until(lambda: cancels(vendor) == 1)
        await gateway.until(
            lambda: gateway.metric("automna_endings_total", surface="openai", outcome="failed") or is_done
        )
        if not is_done:
            for attempt in range(1, ATTEMPTS_MAX):
                clock.advance(RETRY_S * 2 ** (attempt - 1) - 1)
                assert await looked.end_abandoned() == 0
                clock.advance(1)
                assert await looked.end_abandoned() == 1
                assert cancels(vendor) == attempt + 1
            assert gateway.metric("automna_endings_total", surface="openai", outcome="gave_up") == 1
        clock.advance(EVER_S)
        assert (await looked.end_abandoned(), cancels(vendor)) == (0, 1 if is_done else ATTEMPTS_MAX)
        vendor.finish(response_id)
        await polled(gateway, clock)
        await gateway.entries()
        assert await works(gateway) == 0
        await gateway.assert_clean()


async def test_work_that_has_ended_by_itself_is_left_to_the_poll(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        vendor.finish(await start(gateway, await gateway.new_token()))
        await directory_of(gateway).disable("u1")
        await gateway.until(lambda: len(gateway.lines) == 2)
        (entry,) = await gateway.entries()
        (told,) = vendor.answers
        assert (entry["basis"], entry["output_tokens"]) == ("reported", told.usage.completion_tokens)
        await gateway.assert_clean()


async def test_who_died_between_claim_and_word_is_followed_by_another(tmp_path, clock):
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        vendor.script = on_cancel(lambda: fails(503))  # for the service's own
        response_id = await start(gateway, await gateway.new_token())
        await directory_of(gateway).disable("u1")
        await gateway.until(lambda: cancels(vendor) == 1)
        rows = DeferredWorks(gateway.service.store, clock)
        clock.advance(RETRY_S)
        (seen,) = await rows.abandoned(after="", attempts_max=ATTEMPTS_MAX, at_most=10)
        assert await rows.claim_ending(seen, next_attempt_in_s=2 * RETRY_S)
        assert not await rows.claim_ending(seen, next_attempt_in_s=2 * RETRY_S)
        vendor.script = None
        assert await endings_of(gateway).end_abandoned() == 0
        clock.advance(2 * RETRY_S)
        assert await endings_of(gateway).end_abandoned() == 1
        assert not vendor.kept[response_id].is_unfinished
        await polled(gateway, clock)
        await assert_booked_once(gateway)


async def test_a_server_that_was_down_when_a_user_was_disabled_ends_their_work_when_it_is_up(tmp_path):
    """And it is killed while it tells the vendor, which has heard: whatever comes after, it is booked once."""
    async with OpenAISimulator() as vendor:
        env = {"OPENAI_API_KEY": VENDOR_KEY, "OPENAI_UPSTREAM_URL": vendor.url}
        async with serving(tmp_path, upstream=vendor.url, env=env) as server:
            token = await server.new_token("ada")
            async with server.client(token) as client:
                headers = {"authorization": f"Bearer {token}"}
                url = f"{server.url}/api/openai/v1/responses"
                answer = await client.post(url, json=BACKGROUND, headers=headers)
                response_id = answer.json()["id"]
            await server.kill_all()
            told = await server.command("user", "disable", "ada")
            assert "still running at openai: 1 of POST /v1/responses, which is ended" in told
            gate = Gate()
            vendor.script = on_cancel(lambda: hangs(gate=gate))
            await server.start()
            await gate.reached()
            await server.kill_all()
            vendor.cancel(response_id)  # it had heard
            vendor.script = None
            await server.start()
            await server.until_nothing_is_held()
            await server.until(lambda: not server.rows("SELECT * FROM deferred_work"))
            assert len(server.rows("SELECT seq FROM entries WHERE kind <> 'void'")) == 1
            await server.assert_verified()


async def test_changes_are_heard_and_time_is_looked_at(tmp_path, clock, monkeypatch):
    """Expiry leaves no change: it is found by looking."""
    assert LOOK_EVERY_S <= 60
    monkeypatch.setattr("proxy.endings.LOOK_EVERY_S", 0.05)
    async with OpenAISimulator() as vendor, serving_openai(tmp_path, vendor, clock=clock) as gateway:
        token = await gateway.new_token()
        response_id = await start(gateway, token)
        (first,) = await token_ids(gateway)
        await directory_of(gateway).create_token("u1", expires_at_ms=clock.now_ms() + 60_000)
        await directory_of(gateway).revoke(first)
        clock.advance(61)
        await gateway.until(lambda: not vendor.kept[response_id].is_unfinished)
        await polled(gateway, clock)
        await assert_booked_once(gateway)
