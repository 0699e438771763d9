"""The soak in its short form: the same kinds of requests and the same account at the end."""

import asyncio
import sys

import pytest

from tests.support.process import ROOT

REQUESTS = 30_000
ENDS_WITHIN_S = 900


@pytest.mark.chaos
@pytest.mark.heavy
async def test_after_tens_of_thousands_of_mixed_requests_nothing_is_lost_and_nothing_has_grown():
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.soak", "--requests", str(REQUESTS)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(ENDS_WITHIN_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    print(output.decode())
    assert process.returncode == 0, output.decode()
    assert "nothing lost, nothing grown" in output.decode()
