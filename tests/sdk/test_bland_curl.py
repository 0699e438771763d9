"""curl as Bland's documentation has it called, which has no SDK for Python: the key bare in a header, JSON as a text."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from tests.support.bland import TO
from tests.support.calls import MOUNT, NUMBERS, Caller, Exchange, exchange

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

FAILED = 22
"""curl's exit code for a status of 400 or more, with `--fail-with-body`."""
CALL = {"phone_number": TO, "task": "Book a table for two.", "voice": "maya", "max_duration": 5}


@pytest.fixture
async def at(tmp_path) -> AsyncIterator[Exchange]:
    async with exchange(tmp_path) as running:
        yield running


async def curl(at: Exchange, user: Caller | None, path: str, *options: str) -> tuple[int, Any]:
    """Its exit code, and what it printed, of the user's own token."""
    key = [] if user is None else ["--header", f"authorization: {user.token}"]
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--show-error", "--fail-with-body", "--noproxy", "*", "--max-time", "30"),
        *(*key, *options, f"{at.gateway.url}{MOUNT}{path}"),
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, orjson.loads(printed)


async def dial(at: Exchange, user: Caller | None, **more: Any) -> tuple[int, Any]:
    body = orjson.dumps({**CALL, **more}).decode()
    return await curl(at, user, "/v1/calls", "--header", "Content-Type: application/json", "--data", body)


async def test_a_call_is_dialled_looked_at_listed_and_stopped(at: Exchange):
    code, dialled = await dial(at, at.ada)
    (call,) = at.vendor.dialled
    assert (code, dialled["status"], dialled["call_id"]) == (0, "success", call.call_id)
    assert (call.to, call.from_number, call.fields["voice"]) == (TO, NUMBERS["ada"], "maya")
    assert all("curl/" in one.header(b"user-agent").decode() for one in at.vendor.requests)
    at.vendor.pick_up(call)
    one = f"/v1/calls/{call.call_id}"
    code, shown = await curl(at, at.ada, one)
    assert (code, shown["completed"], shown["metadata"]) == (0, False, {})
    for user, ids in ((at.ada, [call.call_id]), (at.bob, [])):
        code, listed = await curl(at, user, "/v1/calls?ascending=true")
        assert (code, [each["call_id"] for each in listed["calls"]]) == (0, ids)
    code, stopped = await curl(at, at.ada, f"{one}/stop", "--request", "POST")
    assert (code, stopped["status"], call.is_over) == (0, "success", True)
    await at.pass_time(20)
    (entry,) = await at.ada.booked()
    assert (entry["outcome"], entry["cost"]) == ("completed", at.vendor.billed[0].price_nanousd)


async def test_what_is_refused_fails_in_the_vendors_shape_and_dials_nothing(at: Exchange):
    code, refused = await dial(at, at.ada, webhook="https://eve.example.com")
    assert (code, refused["status"]) == (FAILED, "error")
    assert "webhook" in orjson.dumps(refused).decode()
    code, refused = await dial(at, None)
    assert (code, refused["errors"][0]["error"]) == (FAILED, "AUTH_FAILURE")
    assert at.vendor.requests == []


async def test_anothers_call_does_not_exist(at: Exchange):
    _, dialled = await dial(at, at.ada)
    one = f"/v1/calls/{dialled['call_id']}"
    for path, *how in (
        (one,),
        (f"{one}/stop", "--request", "POST"),
        (f"/v1/recordings/{dialled['call_id']}",),
    ):
        code, refused = await curl(at, at.bob, path, *how)
        assert (code, refused["status"]) == (FAILED, "error")
    (call,) = at.vendor.dialled
    assert not call.is_over
    at.vendor.end(call, status="failed")
    await at.pass_time(20)
