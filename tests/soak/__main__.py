"""`python -m tests.soak --requests 2000000`: run, watch memory and descriptors, and settle accounts with the vendor.

Prints its progress and a summary; exits with 1 when anything is not as it must be, and keeps the folder then.
"""

import argparse
import asyncio
import itertools
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import uvloop

from metering.money import usd
from metering.store.database import Database
from metering.store.store import open_store
from metering.tasks import spawn, stop
from metering.verify import verify
from simulators import anthropic, brave, gemini, openai
from tests.soak.agents import Agents
from tests.soak.audit import Audit, audit
from tests.support.process import ROOT, Serving, group_members, serving

AGENTS, USERS = 48, 20
KEYS = {
    "anthropic": anthropic.VENDOR_KEY,
    "openai": openai.VENDOR_KEY,
    "gemini": gemini.VENDOR_KEY,
    "brave": brave.VENDOR_KEY,
}
SAMPLE_EVERY_S = 1.0
WINDOWS = 10
WARM_UP_REQUESTS = 15_000
"""Until then caches, pools and the allocator's arenas fill."""
GROWTH_MAX = 0.10
DESCRIPTORS_GROWTH_MAX = 32
"""Files that SQLite opens for a moment, sockets on their way out, and connections kept to four vendors."""
SETTLED_WITHIN_S = 60.0
VENDOR_STARTED_WITHIN_S, VENDOR_STOPPED_WITHIN_S = 15.0, 60.0
PROGRESS_EVERY_S = 30.0
PLAN = """
[plans.{name}]
credits_per_month = {credits}
requests_per_minute = 1_000_000_000
tokens_per_minute = 1_000_000_000
concurrent_requests = 10_000
searches_per_month = {searches}
browser_minutes_per_month = 0
concurrent_browsers = 0
emails_per_day = 0
call_minutes_per_month = 0
"""
CREDITS = 1_000_000_000_000
SEARCHES = 1_000_000_000
COMPLAINTS_MAX = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """Of all processes of the server together."""

    requests: int
    rss_kb: int
    descriptors: int


def take_sample(server: Serving, requests: int) -> Sample:
    members = group_members(server.pid)
    return Sample(requests, sum(map(_rss_kb, members)), sum(map(_descriptors, members)))


def _rss_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def _descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def windows(samples: list[Sample], requests: int) -> list[tuple[float, float]]:
    """Per tenth of the run: the median resident memory in MB and number of descriptors."""
    parts: list[list[Sample]] = [[] for _ in range(WINDOWS)]
    for sample in samples:
        parts[min(sample.requests * WINDOWS // requests, WINDOWS - 1)].append(sample)
    return [
        (
            statistics.median(sample.rss_kb for sample in part) / 1024,
            statistics.median(sample.descriptors for sample in part),
        )
        for part in parts
        if part
    ]


def growth_problems(by_window: list[tuple[float, float]], requests: int) -> list[str]:
    """Every later tenth against the first that begins after the warm-up."""
    first = max(1, -(-WARM_UP_REQUESTS * WINDOWS // requests))
    if first >= len(by_window) - 1:
        return [f"too short to tell growth: more than {WARM_UP_REQUESTS * 2:,} requests are needed"]
    base_mb, base_descriptors = by_window[first]
    problems = []
    for number, (rss_mb, descriptors) in enumerate(by_window[first + 1 :], start=first + 2):
        if rss_mb > base_mb * (1 + GROWTH_MAX):
            problems.append(f"tenth {number}: {rss_mb:.1f} MB resident, {base_mb:.1f} in tenth {first + 1}")
        if descriptors > base_descriptors + DESCRIPTORS_GROWTH_MAX:
            problems.append(
                f"tenth {number}: {descriptors:g} descriptors, {base_descriptors:g} in tenth {first + 1}"
            )
    return problems


@asynccontextmanager
async def vendor_process(folder: Path) -> AsyncIterator[dict[str, str]]:
    """The vendors' addresses and our keys, as settings of the server; when left, it has written what they saw."""
    folder.mkdir()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.soak.vendor", str(folder)), cwd=ROOT
    )
    try:
        async with asyncio.timeout(VENDOR_STARTED_WITHIN_S):
            while not (folder / "ports").exists():
                await asyncio.sleep(0.02)
        env = {}
        for surface, port in orjson.loads((folder / "ports").read_bytes()).items():
            env[f"{surface.upper()}_UPSTREAM_URL"] = f"http://127.0.0.1:{port}"
            env[f"{surface.upper()}_API_KEY"] = KEYS[surface]
        yield env
    finally:
        process.terminate()
        async with asyncio.timeout(VENDOR_STOPPED_WITHIN_S):
            await process.wait()


async def tokens_for(server: Serving) -> dict[str, list[str]]:
    async with server.directory() as directory:
        agents = []
        for number in range(USERS):
            await directory.add_user(f"user{number}", plan="rich")
            agents.append((await directory.create_token(f"user{number}"))[0])
        await directory.add_user("poor", plan="poor")
        poor, _ = await directory.create_token("poor")
    unknown = poor[:-8] + "A" * 8
    return {"agent": agents, "poor": [poor], "nobody": [unknown]}


async def soak(folder: Path, *, requests: int, workers: int, seed: int) -> list[str]:
    """Run it; what is wrong, which should be nothing."""
    samples: list[Sample] = []
    plans = folder / "soak-plans.toml"
    rich = PLAN.format(name="rich", credits=CREDITS, searches=SEARCHES)
    plans.write_text(rich + PLAN.format(name="poor", credits=0, searches=0))
    async with (
        vendor_process(folder / "vendor") as env,
        serving(folder, upstream="", workers=workers, env={"PLANS_FILE": str(plans), **env}) as server,
    ):
        agents = Agents(_address(server), await tokens_for(server), requests=requests, seed=seed)
        watching = spawn(_watch(server, agents, samples), name="watch")
        began_s = time.monotonic()
        await agents.run(AGENTS)
        took_s = time.monotonic() - began_s
        await stop(watching)
        await server.until(lambda: not _held(server), within_s=SETTLED_WITHIN_S)
        server.signal(signal.SIGTERM)
        exit_status = await server.exit_status()
    verified = await _verified(server)
    tally, found = agents.tally, audit(server.store, folder / "vendor")
    by_window = windows(samples, requests)
    _tell(took_s, agents, found, by_window)
    if tally.raced > found.raced:
        found.complain(
            f"{tally.raced} clients were told 502 for {found.raced} requests that the vendor never saw"
        )
    problems = [*tally.wrong, *found.problems, *_complaints(folder / "server.log")]
    if tally.wrong_total or found.problems_total:
        problems.append(f"in all {tally.wrong_total} wrong answers, {found.problems_total} wrong entries")
    if exit_status:
        problems.append(f"the server left with {exit_status}")
    return problems + verified + growth_problems(by_window, requests)


def _address(server: Serving) -> tuple[str, int]:
    parts = urlsplit(server.url)
    return str(parts.hostname), int(parts.port or 0)


def _held(server: Serving) -> int:
    ((held,),) = server.rows("SELECT COUNT(*) FROM reservations WHERE state = 'HELD'")
    return int(held)


async def _watch(server: Serving, agents: Agents, samples: list[Sample]) -> None:
    told_s = time.monotonic()
    while True:
        await asyncio.sleep(SAMPLE_EVERY_S)
        samples.append(take_sample(server, agents.tally.total))
        if time.monotonic() - told_s > PROGRESS_EVERY_S:
            told_s = time.monotonic()
            newest = samples[-1]
            print(
                f"{newest.requests:,} requests, {newest.rss_kb / 1024:.1f} MB, {newest.descriptors} descriptors",
                flush=True,
            )


async def _verified(server: Serving) -> list[str]:
    async with open_store(Database(server.store, busy_timeout_s=10)) as store:
        report = await verify(store)
    return [] if report.is_clean else [f"ledger verify: {problem}" for problem in report.problems]


def _complaints(log: Path) -> list[str]:
    """Errors and tracebacks in the server's log."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        found = (line.strip() for line in lines if '"level":"error"' in line or "Traceback" in line)
        return list(itertools.islice(found, COMPLAINTS_MAX))


def _tell(took_s: float, agents: Agents, found: Audit, by_window: list[tuple[float, float]]) -> None:
    tally = agents.tally
    print(f"{tally.total:,} requests on {tally.connections:,} connections in {took_s:.0f} s:")
    for name, count in sorted(tally.asked.items(), key=lambda item: -item[1]):
        print(f"  {count:>9,} {name}")
    print(
        f"the vendor saw {found.seen:,}; the ledger has {found.entries:,}: {found.exact:,} exact, "
        f"{found.estimated:,} estimated, {found.voided:,} void, {found.raced:,} of connections that "
        f"the vendor closed meanwhile; problems: {found.problems_total}"
    )
    print(
        f"{found.searches:,} searches counted; booked {usd(found.cost_nanousd)} USD, of it exact {usd(found.exact_nanousd)}; "
        f"the vendor reported {usd(found.reported_nanousd)}"
    )
    for number, (rss_mb, descriptors) in enumerate(by_window, start=1):
        print(f"  tenth {number:>2}: {rss_mb:6.1f} MB resident, {descriptors:g} descriptors")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=2_000_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"seed {asked.seed}, {asked.workers} worker(s), in {folder}", flush=True)
    problems = uvloop.run(soak(folder, requests=asked.requests, workers=asked.workers, seed=asked.seed))
    if problems:
        print("\n".join(["NOT AS IT MUST BE:", *problems, f"left in {folder}"]))
        return 1
    shutil.rmtree(folder)
    print("nothing lost, nothing grown")
    return 0


if __name__ == "__main__":
    sys.exit(main())
