"""A server whose store gets into trouble: the ways it can, and who looks on meanwhile."""

import asyncio
import json
import re
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from metering.store.database import Database
from metering.store.store import open_store
from metering.users import hash_of
from metering.verify import verify
from simulators.anthropic import AnthropicSimulator, ReportedUsage
from tests.support.faulty_disk import FaultyDisk
from tests.support.gateway import messages_body
from tests.support.process import Serving, group_members, serving

BUSY_TIMEOUT_S = 0.4
SETTLE_WAIT_S = 0.25
STALL_GRACE_S = 1.0
RETRY_MAX_S = 1.0
"""The last two as in metering/store/writer.py."""
NOISE_S = 12.0
"""What a busy machine may add to any bound."""
REFUSED_WITHIN_S = RETRY_MAX_S + 2 * BUSY_TIMEOUT_S + STALL_GRACE_S + NOISE_S
RECOVERED_WITHIN_S = RETRY_MAX_S + 2 * BUSY_TIMEOUT_S + NOISE_S
USAGE = ReportedUsage(input_tokens=100, output_tokens=50)
EXACT_NANOUSD = 100 * 3_000 + 50 * 15_000
SETTINGS = {
    "STORE_BUSY_TIMEOUT_S": str(BUSY_TIMEOUT_S),
    "SETTLE_WAIT_S": str(SETTLE_WAIT_S),
    "WORKER_DEAD_AFTER_S": "10",
}


@dataclass
class Stage:
    """A server, its store's disk, and four gateway tokens: one that the server knows already, one that it does not,
    one that was never made, and one that is revoked while the store is in trouble."""

    server: Serving
    vendor: AnthropicSimulator
    disk: FaultyDisk
    known: str = ""
    fresh: str = ""
    unknown: str = "amp_" + "x" * 43
    revoked: str = ""
    measured_s: dict[str, float] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        return self.server.store

    @property
    def wal(self) -> Path:
        return Path(f"{self.store}-wal")

    @contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """Another process, on a disk that works; every statement commits."""
        with closing(sqlite3.connect(self.store, isolation_level=None, timeout=10)) as other:
            yield other

    async def prepare(self) -> None:
        async with self.server.directory() as directory:
            await directory.add_user("u1", plan="test")
            self.known, self.fresh, self.revoked = [(await directory.create_token("u1"))[0] for _ in range(3)]
        for token in (self.known, self.revoked):
            async with asyncio.timeout(60):
                while len({await self._serving_worker(token) for _ in range(4)}) < self.server.workers:
                    pass
        await self.server.until_nothing_is_held()

    async def _serving_worker(self, token: str) -> str:
        answer, _ = await self.send(token)
        assert answer.status_code == 200, answer.text
        return self.server.worker_of(answer)

    # --- requests ------------------------------------------------------------------------------------------

    async def send(self, token: str, **more: Any) -> tuple[httpx.Response, float]:
        """One request on a connection of its own, and how long it took."""
        async with self._client() as client:
            headers = {"x-api-key": token, "anthropic-version": "2023-06-01"}
            began_s = time.monotonic()
            url = f"{self.server.url}/api/llm/v1/messages"
            answer = await client.post(url, json=messages_body(**more), headers=headers)
            return answer, time.monotonic() - began_s

    def _client(self) -> httpx.AsyncClient:
        """Without the certificates that a client usually loads: a tenth of a second each."""
        return httpx.AsyncClient(trust_env=False, timeout=30, verify=False)

    async def get(self, path: str, token: str = "") -> httpx.Response:
        headers = {"x-api-key": token} if token else {}
        async with self._client() as client:
            return await client.get(self.server.url + path, headers=headers)

    async def refused(self, token: str) -> None:
        """503 in the surface's dialect, soon, and the vendor has not seen it."""
        before = self.vendor.requests_total
        answer, took_s = await self.send(token)
        assert answer.status_code == 503, (answer.status_code, answer.text)
        assert answer.json()["error"]["type"] == "api_error"
        assert 1 <= int(answer.headers["retry-after"]) <= 5
        assert took_s < REFUSED_WITHIN_S
        self.measured_s["refused"] = max(took_s, self.measured_s.get("refused", 0))
        assert self.vendor.requests_total == before

    async def until_refused(self, token: str) -> None:
        """Trouble is noticed at the next write or read, or when what was read before has become stale."""
        async with asyncio.timeout(REFUSED_WITHIN_S):
            while (await self.send(token))[0].status_code == 200:
                pass

    async def until_served(self, token: str) -> None:
        """503 until it is 200, and nothing else."""
        began_s = time.monotonic()
        while True:
            answer, _ = await self.send(token)
            if answer.status_code == 200:
                break
            assert answer.status_code == 503, answer.text
            assert time.monotonic() - began_s < RECOVERED_WITHIN_S, self.server.log()
        self.measured_s["recovered"] = time.monotonic() - began_s

    async def command(self, *words: str, within_s: float = 20) -> tuple[int, str]:
        """A command beside the server: its exit status and what it said on standard error."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "automna_proxy", *words),
            env=dict(self.server.env),
            cwd=self.server.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(within_s):
            _, complaint = await process.communicate()
        assert process.returncode is not None
        assert "Traceback" not in complaint.decode()
        return process.returncode, complaint.decode()

    # --- what holds at the end -----------------------------------------------------------------------------

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.server.log().splitlines() if line.startswith("{")]

    def complaints(self) -> list[str]:
        """Messages of errors, of the server itself."""
        return [line["message"] for line in self.log_lines() if line["level"] == "error"]

    def assert_quiet_log(self, *, troubles_max: int) -> None:
        """A line or two for each trouble and worker, however many requests it hit."""
        assert "Traceback" not in self.server.log()
        begun = [text for text in self.complaints() if "is in trouble: " in text]
        assert 1 <= len(begun) <= troubles_max * self.server.workers, self.server.log()
        assert self.complaints() == begun, self.server.log()
        warnings = [line for line in self.log_lines() if line["level"] == "warning"]
        assert len(warnings) <= len(begun), self.server.log()

    async def assert_booked(self) -> None:
        """What the vendor saw is what the ledger has, each once and exactly; nothing is held."""
        await self.server.until_nothing_is_held()
        seen = sorted(told.request_id for told in self.vendor.answers)
        rows = self.server.rows("SELECT upstream_request_id, basis, kind FROM entries WHERE kind <> 'void'")
        assert sorted(row[0] for row in rows) == seen
        assert {row[1:] for row in rows} == {("reported", "settle")}
        ((asked,),) = self.server.rows("SELECT COUNT(*) FROM reservations WHERE state <> 'VOIDED'")
        assert asked == self.vendor.requests_total == len(seen)
        async with open_store(Database(self.store)) as store:
            report = await verify(store)
        assert report.is_clean, report.problems

    def memory_kb(self) -> int:
        """Resident memory of server and workers."""
        sizes = []
        for pid in group_members(self.server.pid):
            found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
            sizes.append(int(found[1]) if found else 0)
        return sum(sizes)

    def revoke(self, connection: sqlite3.Connection) -> None:
        """As the command does, on a connection that works."""
        where = "token_hash = ?1"
        connection.execute(
            f"UPDATE gateway_tokens SET revoked_at_ms = 1 WHERE {where}", [hash_of(self.revoked)]
        )
        change = f"SELECT 'token', id, 1 FROM gateway_tokens WHERE {where}"
        connection.execute(f"INSERT INTO changes (kind, subject, at_ms) {change}", [hash_of(self.revoked)])


@asynccontextmanager
async def stage(
    folder: Path, vendor: AnthropicSimulator, *, workers: int = 1, **env: str
) -> AsyncIterator[Stage]:
    """A server with everything prepared, on a disk that works so far."""
    disk = FaultyDisk(folder)
    settings = {**SETTINGS, **disk.env, **env}
    async with serving(folder, upstream=vendor.url, workers=workers, env=settings) as server:
        found = Stage(server, vendor, disk)
        await found.prepare()
        try:
            yield found
        finally:
            disk.mend()
