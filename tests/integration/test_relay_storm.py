"""Everything at once: good streams, broken ones, errors, silence, clients that leave. Nothing is lost or doubled."""

import asyncio
import random
from collections import Counter

import httpx
import pytest

from simulators.anthropic import (
    Ending,
    ReportedUsage,
    breaks_after,
    drops,
    errors_after,
    fails,
    stalls_after,
    streams,
)
from simulators.script import AtRandom, Pause
from tests.support.gateway import client_of, messages_body, running_gateway

REQUESTS = 250
USAGE = ReportedUsage(input_tokens=200, output_tokens=40)
EXACT_NANOUSD = 200 * 3_000 + 40 * 15_000
ENV = {"STREAM_SILENCE_S": "0.05", "IDLE_TIMEOUT_S": "3", "FIRST_BYTE_TIMEOUT_S": "5", "DRAINS_MAX": "20"}


def behaviour_of(rng):
    """What the vendor does with a request: as likely to go wrong as not."""
    good = {
        "usage": USAGE,
        "events": rng.randint(8, 40),
        "pace_s": rng.choice([0, 0.001, 0.01]),
        "gzip": rng.random() < 0.3,
        "split": rng.choice([None, AtRandom(rng.randrange(1000), 300)]),
        "before": rng.choice([(), (Pause(0.15),)]),
    }
    point = rng.randint(0, 20)
    return rng.choice(
        [
            *[streams(**good)] * 6,
            breaks_after(point, ending=rng.choice(list(Ending)), **good),
            errors_after(point, **good),
            stalls_after(point, **good),
            drops(is_reset=rng.random() < 0.5),
            fails(rng.choice([400, 401, 429, 500, 529]), before=good["before"]),
        ]
    )


async def one_request(client, tag, *, is_stream, leaves_after_s):
    """Whether the answer ended as a good one does."""
    body = messages_body(stream=is_stream, metadata={"user_id": tag})
    try:
        async with asyncio.timeout(leaves_after_s):
            answer = await client.post("/v1/messages", json=body)
    except (httpx.HTTPError, TimeoutError):
        return False
    return answer.status_code == 200 and (not is_stream or b'"message_stop"' in answer.content)


@pytest.mark.parametrize("seed", [1, 2, random.randrange(10**6)], ids=["1", "2", "random"])
async def test_in_any_mixture_every_request_is_booked_once(tmp_path, vendor, seed):
    print("seed", seed)  # shown when it fails
    rng = random.Random(seed)
    behaviours = {str(number): behaviour_of(rng) for number in range(REQUESTS)}
    vendor.script = lambda request: behaviours[request.json()["metadata"]["user_id"]]
    async with (
        running_gateway(tmp_path, upstream=vendor.url, env=ENV) as gateway,
        client_of(gateway, await gateway.new_token()) as client,
    ):
        tasks = []
        for tag in behaviours:
            leaves_after_s = rng.choice([None, None, None, rng.uniform(0, 0.5)])
            request = one_request(client, tag, is_stream=rng.random() < 0.7, leaves_after_s=leaves_after_s)
            tasks.append(asyncio.get_running_loop().create_task(request))
        whole = dict(zip(behaviours, await asyncio.gather(*tasks), strict=True))
        await gateway.assert_clean()
        entries = await gateway.entries()
        booked = Counter(entry["reservation_id"] for entry in entries)
        assert set(booked.values()) == {1}
        assert len(vendor.answers) == len({told.tag for told in vendor.answers})
        sent = [entry for entry in entries if entry["kind"] == "settle"]
        assert len(sent) >= len(vendor.answers)
        by_upstream_id = {
            entry["upstream_request_id"]: entry for entry in sent if entry["upstream_request_id"]
        }
        for told in vendor.answers:
            entry = by_upstream_id.get(told.request_id)
            if whole[told.tag]:
                assert (entry["outcome"], entry["basis"]) == ("completed", "reported")
                assert entry["cost_nanousd"] == EXACT_NANOUSD
        lines = Counter(line["request"] for line in gateway.lines)
        assert set(lines.values()) == {1}
        assert booked.keys() <= lines.keys()
        assert sum(whole.values()) >= 10  # fewer on a busy machine: clients and vendors lose patience
