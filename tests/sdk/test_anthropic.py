"""The vendor's own SDK, today's and one below 1.0, sync and async, takes us for the vendor."""

import asyncio
import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from simulators.anthropic import MODELS, AnthropicSimulator
from tests.support.gateway import plans_file, running_gateway

ROOT = Path(__file__).resolve().parents[2]
AGENT = Path(__file__).parent / "scripts" / "anthropic_agent.py"
OLD_SDK = ROOT / ".venv-anthropic-0" / "bin" / "python"
AGENT_WITHIN_S = 60


def interpreter_of(sdk):
    if sdk == "new":
        return sys.executable
    if not OLD_SDK.exists():
        missing = f"no {OLD_SDK.relative_to(ROOT)}: `make test` builds it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    return str(OLD_SDK)


def three_plans(folder):
    """Roomy; one request a minute; nothing to spend."""
    text = plans_file(folder).read_text()
    slow = text.replace("plans.test", "plans.slow").replace("minute = 1000000\n", "minute = 1\n", 1)
    poor = text.replace("plans.test", "plans.poor").replace("month = 10000000\n", "month = 0\n", 1)
    path = folder / "three-plans.toml"
    path.write_text(text + slow + poor)
    return path


async def run_agent(sdk, mode, base_url, tokens):
    """What it saw."""
    environment = {"PATH": os.environ["PATH"]}
    process = await asyncio.create_subprocess_exec(
        *(interpreter_of(sdk), str(AGENT), mode, base_url),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(AGENT_WITHIN_S):
        printed, _ = await process.communicate(json.dumps(tokens).encode())
    assert process.returncode == 0
    return json.loads(printed)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("sdk", ["new", "old"])
async def test_it_works_unmodified_and_raises_its_own_errors(tmp_path, sdk, mode):
    interpreter_of(sdk)
    env = {"PLANS_FILE": str(three_plans(tmp_path))}
    async with (
        AnthropicSimulator() as vendor,
        running_gateway(tmp_path, upstream=vendor.url, env=env) as gateway,
    ):
        tokens = {
            "good": await gateway.new_token("good"),
            "busy": await gateway.new_token("busy"),
            "slow": await gateway.new_token("slow", plan="slow"),
            "poor": await gateway.new_token("poor", plan="poor"),
            "unknown": "amp_unknown",
        }
        seen = await run_agent(sdk, mode, f"{gateway.url}/api/llm", tokens)
        assert seen["version"].startswith("2." if sdk == "new" else "0.")
        check_what_works(seen, vendor)
        check_what_fails(seen, sdk)
        await gateway.assert_clean()
        check_tries(gateway, seen)
        check_wire(vendor, sdk, tokens)


def check_what_works(seen, vendor):
    told = {answer.message_id: answer for answer in vendor.answers}
    for name in ("create", "create_by_auth_token", "stream", "beta"):
        usage = told[seen[name]["id"]].usage
        assert (seen[name]["input"], seen[name]["output"]) == (usage.input_tokens, usage.output_tokens), name
        assert seen[name]["stop_reason"] == "end_turn", name
    assert seen["create"]["text"] == "You said: Name a bird."
    assert seen["stream"]["streamed"] == seen["stream"]["text"] != ""
    assert len(seen["events"]) == 39  # pings are not for the caller
    assert seen["events"][-1] == "message_stop"
    assert seen["count_tokens"] > 0
    assert seen["models"] == {"ids": [model.id for model in MODELS[:6]], "one": "claude-haiku-4-5-20251001"}


FAILS = {
    "unknown_token": ("AuthenticationError", 401, "invalid x-api-key"),
    "unknown_model": ("NotFoundError", 404, "model: claude-unheard-of-9"),
    "unknown_operation": ("NotFoundError", 404, "GET /v1/messages/batches is not available"),
    "shared_object": ("BadRequestError", 400, "container"),
    "minute_spent": ("RateLimitError", 429, "1 requests per minute"),
    "vendor_busy": ("RateLimitError", 429, "limiting this gateway's rate"),
    "vendor_rejects": ("BadRequestError", 400, "Simulated error"),
}


def check_what_fails(seen, sdk):
    fails = {**FAILS, "budget_spent": ("PaymentRequiredError", 402, "Monthly usage limit reached (0 of 0")}
    if sdk == "old":
        fails["budget_spent"] = ("APIStatusError", 402, "Monthly usage limit reached (0 of 0")
    for name, (kind, status, words) in fails.items():
        raised = seen[name]
        assert kind in raised["raised"], (name, raised)
        assert raised["status"] == status, (name, raised)
        assert words in raised["message"], (name, raised)
    assert seen["budget_spent"]["retry_after"] is None
    assert 1 <= int(seen["minute_spent"]["retry_after"]) <= 61
    assert 1.0 <= seen["vendor_busy"]["took_s"] < 10
    assert "APIStatusError" in seen["error_in_stream"]["raised"]
    assert "Overloaded" in seen["error_in_stream"]["message"]
    for name in ("stream_cut", "stream_cut_cleanly", "stream_cut_inside_gzip"):
        assert "raised" in seen[name], (name, seen[name])


def check_tries(gateway, seen):
    """Only what may succeed is tried again."""
    lines = gateway.lines
    tries = Counter((line.get("user"), line["status"]) for line in lines if line["status"] != 200)
    assert tries.pop((None, 401)) == 1
    assert tries == {
        (None, 404): 1,  # an unknown operation: nobody was asked who calls
        ("good", 404): 1,
        ("good", 400): 2,
        ("slow", 429): 1,
        ("busy", 429): 2,
        ("poor", 402): 1,
    }


def check_wire(vendor, sdk, tokens):
    """Both dialects arrived, each with the vendor's key and nothing of ours."""
    versions = {request.header(b"anthropic-version").decode() for request in vendor.requests}
    assert versions == ({"2026-10-21"} if sdk == "new" else {"2023-06-01"})
    betas = [request for request in vendor.requests if request.header(b"anthropic-beta")]
    assert {request.query.get("beta") for request in betas} == ({None} if sdk == "new" else {"true"})
    assert [request.header(b"anthropic-beta") for request in betas] == [b"context-management-2025-06-27"]
    received = repr([(request.target, request.headers, request.body) for request in vendor.requests])
    assert not [name for name, token in tokens.items() if token in received]
