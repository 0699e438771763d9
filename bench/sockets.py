"""What a relayed websocket costs: `python -m bench.sockets`.

Long messages: many browsers at once (the simulated Browserbase in a process of its own), each is sent one message and sends
it back; all must come back byte for byte, while the proxy's memory is watched. Short frames: one client's round trips, to the
vendor itself and through the proxy in turns; what is added is the difference of the percentiles.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import httpx
import uvloop
from websockets.asyncio.client import ClientConnection, connect

from bench.machine import cpu_s, rss_mb
from simulators.browserbase import PROJECT_ID, VENDOR_KEY

SOCKETS, MESSAGE_MB, ROUND_TRIPS = 200, 10, 2_000
TURN = 50
"""Round trips to one side, before the other's turn."""
TURN_LENGTH_S, STARTED_WITHIN_S = 600, 30
ROOT = Path(__file__).parents[1]
PLANS = """
[plans.bench]
credits_per_month = 1_000_000_000
requests_per_minute = 1_000_000
tokens_per_minute = 1_000_000
concurrent_requests = 1_000
searches_per_month = 0
browser_minutes_per_month = 1_000_000
concurrent_browsers = 10_000
emails_per_day = 0
call_minutes_per_month = 0
"""


class LostError(RuntimeError):
    """A message did not come back as it was sent."""


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def long_messages(http: httpx.AsyncClient, pid: int, *, sockets: int, size: int) -> dict[str, Any]:
    """Each of `sockets` sends `size` bytes and gets them back."""
    message = os.urandom(size)
    urls = [(await _session(http))["connectUrl"] for _ in range(sockets)]
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(connect(url, proxy=None, max_size=None, compression=None))
            for url in urls
        ]
        idle_mb, cpu_before_s, began_s = rss_mb(pid), cpu_s(pid), time.monotonic()
        await asyncio.gather(*(_there_and_back(socket, message) for socket in opened))
        took_s, used_s = time.monotonic() - began_s, cpu_s(pid) - cpu_before_s
        if (cut := sum(socket.close_code is not None for socket in opened)) > 0:
            raise LostError(f"{cut} websockets were cut")
    moved_mb = 2 * sockets * size / 1e6
    return {
        "sockets": sockets,
        "message_mb": size / 1e6,
        "took_s": round(took_s, 1),
        "mb_per_s": round(moved_mb / took_s),
        "proxy_cpu_s_per_gb": round(used_s / moved_mb * 1_000, 2),
        "proxy_rss_mb_idle": round(idle_mb),
        "proxy_rss_mb_most": round(rss_mb(pid, "VmHWM")),
    }


async def short_frames(
    http: httpx.AsyncClient, vendor: httpx.AsyncClient, *, round_trips: int
) -> dict[str, Any]:
    """Round trips of a small message, in milliseconds."""
    session = await _session(http)
    direct_url = (await vendor.get(f"/v1/sessions/{session['id']}")).json()["connectUrl"]
    took: dict[str, list[float]] = {"direct": [], "through": []}
    async with (
        connect(direct_url, proxy=None, compression=None) as direct,
        connect(session["connectUrl"], proxy=None, compression=None) as through,
    ):
        for _ in range(round_trips // TURN):
            for name, socket in (("direct", direct), ("through", through)):
                for _ in range(TURN):
                    began_s = time.perf_counter()
                    await socket.send(b"x" * 100)
                    await socket.recv()
                    took[name].append((time.perf_counter() - began_s) * 1_000)
    shares = {"p50": 0.5, "p99": 0.99}
    by_side = {
        f"{name}_{label}_ms": round(percentile(values, share), 3)
        for name, values in took.items()
        for label, share in shares.items()
    }
    added = {
        f"added_{label}_ms": round(by_side[f"through_{label}_ms"] - by_side[f"direct_{label}_ms"], 3)
        for label in shares
    }
    return {"round_trips": round_trips, **by_side, **added}


async def _there_and_back(socket: ClientConnection, message: bytes) -> None:
    async with asyncio.timeout(TURN_LENGTH_S):
        _, back = await asyncio.gather(socket.send(message), socket.recv())
    if back != message:
        raise LostError("a message came back changed")


async def _session(http: httpx.AsyncClient) -> dict[str, Any]:
    answer = await http.post("/v1/sessions", json={"keepAlive": True, "timeout": 3_600})
    answer.raise_for_status()
    session: dict[str, Any] = answer.json()
    return session


def _started(arguments: list[str], environ: dict[str, str], log: Path, said: str) -> tuple[Any, str]:
    """A process of ours, and the address that it writes into its log."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=ROOT, env=environ, stdout=output, stderr=output
        )
    until_s = time.monotonic() + STARTED_WITHIN_S
    while time.monotonic() < until_s and process.poll() is None:
        if found := re.search(said, log.read_text(errors="replace")):
            return process, found[1]
        time.sleep(0.05)
    process.kill()
    raise RuntimeError(f"{arguments[0]} did not start: {log.read_text(errors='replace')[-2_000:]}")


def _command(words: list[str], environ: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "automna_proxy", *words],
        cwd=ROOT,
        env=environ,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


async def measure(vendor_url: str, proxy_url: str, pid: int, token: str, options: Any) -> dict[str, Any]:
    async with (
        httpx.AsyncClient(
            base_url=f"{proxy_url}/api/browserbase", headers={"x-bb-api-key": token}, trust_env=False
        ) as http,
        httpx.AsyncClient(
            base_url=vendor_url, headers={"x-bb-api-key": VENDOR_KEY}, trust_env=False
        ) as vendor,
    ):
        return {
            "short_frames": await short_frames(http, vendor, round_trips=options.round_trips),
            "long_messages": await long_messages(
                http, pid, sockets=options.sockets, size=options.megabytes * 1_000_000
            ),
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sockets", description=__doc__)
    parser.add_argument("--sockets", type=int, default=SOCKETS)
    parser.add_argument("--megabytes", type=int, default=MESSAGE_MB, help="of a long message")
    parser.add_argument("--round-trips", type=int, default=ROUND_TRIPS, help="of a short frame, to each side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "plans.toml").write_text(PLANS)
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        vendor, vendor_url = _started(
            ["simulators", "browserbase"], environ, folder / "vendor.log", r"(http://\S+)"
        )
        stack.callback(vendor.terminate)
        environ |= {
            "DATABASE_URL": f"sqlite:///{folder}/ledger.db",
            "PLANS_FILE": str(folder / "plans.toml"),
            "BROWSERBASE_API_KEY": VENDOR_KEY,
            "BROWSERBASE_UPSTREAM_URL": vendor_url,
            "BROWSERBASE_PROJECT_ID": PROJECT_ID,
            "SOCKETS_PER_USER": "10000",
            "SOCKETS_MAX": "10000",
        }
        proxy, proxy_url = _started(
            ["automna_proxy", "serve", "--port", "0"],
            environ,
            folder / "proxy.log",
            r"serving on (http://\S+)",
        )
        stack.callback(proxy.terminate)
        _command(["user", "add", "ada", "--plan", "bench"], environ)
        token = _command(["token", "create", "ada"], environ).split()[-1]
        running = measure(vendor_url, proxy_url, proxy.pid, token, options)
        figures = uvloop.run(running)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
