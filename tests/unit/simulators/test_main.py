"""The simulator in a process of its own."""

import asyncio
import signal
import sys

import httpx
import pytest

from simulators.anthropic import VENDOR_KEY
from simulators.server import read_record

HEADERS = {"x-api-key": VENDOR_KEY, "anthropic-version": "2026-10-21"}
ASKED = {"model": "claude-sonnet-5", "max_tokens": 100, "messages": [], "stream": True}


@pytest.mark.parametrize("stopped_by", [signal.SIGTERM, signal.SIGINT])
async def test_it_prints_its_url_serves_and_ends_on_a_signal(tmp_path, stopped_by):
    record = tmp_path / "record.jsonl"
    arguments = ["anthropic", "--burst-events", "30", "--no-record", "--record-to", str(record)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulators", *arguments, stdout=asyncio.subprocess.PIPE
    )
    url = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
    async with httpx.AsyncClient(base_url=url, headers=HEADERS) as client:
        answer = await client.post("/v1/messages", json=ASKED)
    assert answer.content.count(b"event: ") == 30
    process.send_signal(stopped_by)
    assert await asyncio.wait_for(process.wait(), 20) == 0
    assert [line["event"] for line in read_record(record)] == ["seen", "ended"]
