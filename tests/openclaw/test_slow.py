"""What takes OpenClaw long: locks of keys, outages that do not end, the index of its memory. By hand: `make openclaw-test`."""

import asyncio

import pytest

from simulators.anthropic import breaks_after, errors_after, fails
from tests.support.openclaw import command

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.openclaw,
    pytest.mark.slow,
]

LOCK_S_MAX = 100.0
"""A key that was refused rests about a minute; ten, where OpenClaw takes the refusal for final or for billing."""
GIVES_UP_WITHIN_S = 200.0


async def until_served(stage, agent: str) -> float:
    """Seconds until a turn of the agent succeeds."""
    began_s = asyncio.get_running_loop().time()
    async with asyncio.timeout(LOCK_S_MAX):
        while (await stage.openclaw.turn(agent, "And now?")).status != 200:
            await asyncio.sleep(5)
    return asyncio.get_running_loop().time() - began_s


async def test_a_token_that_replaces_a_revoked_one_is_used_within_two_minutes(stage):
    successor = await stage.revoke("replaced")
    assert (await stage.openclaw.turn("replaced", "Hello.")).status == 401
    await stage.openclaw.restart_with("replaced", successor)
    print(f"served {await until_served(stage, 'replaced'):.0f} s after the restart")


async def test_a_user_who_is_enabled_again_is_served_within_two_minutes(stage):
    async with stage.server.directory() as directory:
        await directory.disable("disabled")
        await asyncio.sleep(1)
        turn = await stage.openclaw.turn("disabled", "Hello.")
        assert turn.status == 403, turn
        await directory.enable("disabled")
    print(f"served {await until_served(stage, 'disabled'):.0f} s after the refusal")


async def test_the_minutes_rate_is_waited_for(stage):
    assert (await stage.openclaw.turn("hurried", "Hello.")).status == 200
    turn = await stage.openclaw.turn("hurried", "And on.", within_s=GIVES_UP_WITHIN_S)
    print(f"{turn}, {len(stage.refusals('rate_limited', 'hurried'))} refusals")
    assert turn.status == 200


async def test_memory_is_indexed_and_searched_and_every_embedding_is_booked(stage, tmp_path):
    notes = stage.openclaw.workspace("gemini") / "memory"
    notes.mkdir(parents=True, exist_ok=True)
    (notes / "birds.md").write_text("The robin nests in the old teapot.\n")
    env = stage.openclaw.env_with_memory(tmp_path, stage.server.url, "gemini")
    status, output = await command(env, "memory", "index", "--agent", "gemini")
    assert status == 0, output
    status, output = await command(env, "memory", "search", "--agent", "gemini", "--json", "teapot")
    assert status == 0, output
    assert "The robin nests in the old teapot." in output
    methods = {request.path.partition(":")[2] for request in stage.gemini.simulator.requests}
    assert {"batchEmbedContents", "embedContent"} <= methods
    await stage.server.until_nothing_is_held()
    rows = stage.bookings("gemini", "gemini-embedding-001")
    assert rows
    assert {(row.kind, row.basis, row.outcome) for row in rows} == {("settle", "reported", "completed")}


ENDLESS = {
    "overloaded": fails(529),
    "overloaded in mid-stream": errors_after(6, text="A robin, or a wren."),
    "broken off": breaks_after(6, text="A robin, or a wren."),
}


@pytest.mark.parametrize("outage", ENDLESS)
async def test_an_outage_without_end_is_given_up(stage, outage):
    seen = stage.vendor.requests_total
    stage.script += [ENDLESS[outage]] * 20
    turn = await stage.openclaw.turn("custom", "Name a bird.", within_s=GIVES_UP_WITHIN_S)
    stage.script.clear()
    tries = stage.vendor.requests_total - seen
    print(f"{outage}: {tries} requests in {turn.elapsed_s:.0f} s: {turn.status} {turn.text}")
    assert turn.status != 200
    assert 2 <= tries <= 10
