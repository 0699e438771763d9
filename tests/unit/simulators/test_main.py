"""The simulator in a process of its own."""

import asyncio
import signal
import sys

import httpx
import pytest

from simulators import agentmail, anthropic, bland, browserbase, fly, openai, twilio
from simulators.server import read_record

ASKED = {
    "anthropic": (
        "/v1/messages",
        {"x-api-key": anthropic.VENDOR_KEY, "anthropic-version": "2026-10-21"},
        {"model": "claude-sonnet-5", "max_tokens": 100, "messages": [], "stream": True},
    ),
    "openai": (
        "/v1/responses",
        {"authorization": f"Bearer {openai.VENDOR_KEY}"},
        {"model": "gpt-5", "input": "", "stream": True},
    ),
}


@pytest.mark.parametrize(("vendor", "stopped_by"), [("anthropic", signal.SIGTERM), ("openai", signal.SIGINT)])
async def test_it_prints_its_url_serves_and_ends_on_a_signal(tmp_path, vendor, stopped_by):
    record = tmp_path / "record.jsonl"
    path, headers, asked = ASKED[vendor]
    arguments = [vendor, "--burst-events", "30", "--no-record", "--record-to", str(record)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulators", *arguments, stdout=asyncio.subprocess.PIPE
    )
    url = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
    async with httpx.AsyncClient(base_url=url, headers=headers) as client:
        answer = await client.post(path, json=asked)
    assert answer.content.count(b"event: ") == 30
    process.send_signal(stopped_by)
    assert await asyncio.wait_for(process.wait(), 20) == 0
    assert [line["event"] for line in read_record(record)] == ["seen", "ended"]


STATEFUL = {
    "agentmail": (
        {"authorization": f"Bearer {agentmail.VENDOR_KEY}"},
        ("/v0/inboxes", {"json": {"username": "me"}}, "inbox_id"),
        "/v0/inboxes/{}",
    ),
    "bland": (
        {"authorization": bland.VENDOR_KEY},
        ("/v1/calls", {"json": {"phone_number": "+12025550100", "task": "Hi"}}, "call_id"),
        "/v1/calls/{}",
    ),
    "fly": (
        {"authorization": f"FlyV1 {fly.VENDOR_KEY}"},
        ("/v1/apps", {"json": {"name": "u-ada", "org_slug": fly.ORG_SLUG}}, "id"),
        "/v1/apps/u-ada?{}",
    ),
    "twilio": (
        {"authorization": httpx.BasicAuth(twilio.ACCOUNT_SID, twilio.AUTH_TOKEN)._auth_header},
        (f"{twilio.ACCOUNT_PATH}/IncomingPhoneNumbers.json", {"data": {"AreaCode": "725"}}, "sid"),
        twilio.ACCOUNT_PATH + "/IncomingPhoneNumbers/{}.json",
    ),
}


@pytest.mark.parametrize("vendor", STATEFUL)
async def test_a_vendor_that_keeps_state_is_served_too(vendor):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulators", vendor, stdout=asyncio.subprocess.PIPE
    )
    url = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
    headers, (path, asked, name), again = STATEFUL[vendor]
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        made = (await client.post(path, **asked)).json()
        assert (await client.get(again.format(made[name]))).json()[name] == made[name]
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_browserbase_is_served_with_a_browser_of_ones_own(tmp_path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simulators", "browserbase", "--chromium", str(tmp_path / "none")),
        stdout=asyncio.subprocess.PIPE,
    )
    url = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
    headers = {"x-bb-api-key": browserbase.VENDOR_KEY}
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        session = (await client.post("/v1/sessions")).json()
        assert (await client.get(f"/v1/sessions/{session['id']}/debug")).json()["pages"] == []
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_only_browserbase_has_browsers():
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simulators", "openai", "--chromium", "x"), stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, b"--chromium is for browserbase" in said) == (2, True)
