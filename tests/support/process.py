"""`automna-proxy serve` in a process of its own, as an operator runs it: to be signalled, killed, started again."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import httpx

from metering.clock import SystemClock
from metering.store.database import Database
from metering.store.store import open_store
from metering.users import Directory
from simulators.anthropic import VENDOR_KEY
from tests.support.gateway import plans_file

ROOT = Path(__file__).parents[2]
STARTED_WITHIN_S = 60.0
HAPPENS_WITHIN_S = 60.0
POLL_S = 0.01

QUICK = {
    "DRAIN_NOTICE_S": "0",
    "DRAIN_STREAMS_S": "5",
    "HEARTBEAT_S": "0.25",
    "WORKER_DEAD_AFTER_S": "2",
    "CHANGES_POLL_S": "0.1",
    "CHANGES_STALE_AFTER_S": "30",
    "STORE_BUSY_TIMEOUT_S": "10",
    "SETTLE_WAIT_S": "20",
    "LOG_FORMAT": "json",
}
"""Waits that only a person or a network needs; and a store that may be slow: the machine is busy with tests."""


class NotStartedError(AssertionError):
    """The server ended before it served."""

    def __init__(self, status: int, log: str) -> None:
        super().__init__(log)
        self.status = status


class Serving:
    """A server process, perhaps with workers below it. `folder` outlives it: ledger, plans, log.

    `port` is any free one; setting it keeps the next start where clients look for it."""

    def __init__(
        self, folder: Path, env: Mapping[str, str], *, workers: int, module: str = "automna_proxy"
    ) -> None:
        self.folder = folder
        self.env = env
        self.workers = workers
        self.module = module
        """What `python -m` runs: the program, or a stand-in of the tests that runs it."""
        self.port = 0
        self.url = ""
        self.store = Path(env["DATABASE_URL"].removeprefix("sqlite:///"))
        self._process: asyncio.subprocess.Process | None = None

    # --- the process -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start, and wait until every worker serves. What served before must be gone."""
        offset = await self.spawn()
        await self.until(lambda: self._is_serving(offset), within_s=STARTED_WITHIN_S)

    async def spawn(self) -> int:
        """Start, and wait for nothing; where in the log its lines begin."""
        with (self.folder / "server.log").open("ab") as log:
            offset = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self.module, "serve", "--host", "127.0.0.1"),
                *("--port", str(self.port)),
                *("--workers", str(self.workers)),
                env=dict(self.env),
                cwd=self.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a group of its own, to be killed as one
            )
        return offset

    def _is_serving(self, offset: int) -> bool:
        assert self._process is not None
        if self._process.returncode is not None:
            raise NotStartedError(self._process.returncode, self.log())
        found = re.search(r"serving on (http://[0-9.:]+)", self.log(offset))
        if found is None:
            return False
        self.url = found[1]
        return len(self.workers_alive()) == self.workers

    @property
    def pid(self) -> int:
        """The server's, or the supervisor's."""
        assert self._process is not None
        return self._process.pid

    async def exit_status(self, within_s: float = HAPPENS_WITHIN_S) -> int:
        assert self._process is not None
        async with asyncio.timeout(within_s):
            return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """To the server alone, or to the supervisor."""
        os.kill(self.pid, number)

    async def kill_all(self) -> None:
        """`kill -9` of server and workers at one instant; returns when all are gone."""
        self.kill_group()
        await self.exit_status()
        await self.until(lambda: not group_members(self.pid))

    def kill_group(self) -> None:
        """`kill -9` without waiting for it to be done."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def log(self, offset: int = 0) -> str:
        return (self.folder / "server.log").read_bytes()[offset:].decode(errors="replace")

    # --- what is in the store ----------------------------------------------------------------------------

    def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        """Read the store from outside, writing nothing; no rows before it is migrated."""
        if not self.store.exists():
            return []
        address = f"{self.store.as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=10, isolation_level=None)) as connection:
            try:
                return list(connection.execute(sql, params))
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def workers_alive(self) -> dict[int, str]:
        """Worker id by pid, of those that are in the store and running."""
        members = set(group_members(self.pid))
        return {pid: str(ident) for pid, ident in self.rows("SELECT pid, id FROM workers") if pid in members}

    async def until(self, condition: Callable[[], Any], *, within_s: float = HAPPENS_WITHIN_S) -> None:
        """Wait for what other processes do. Fails with the server's log after `within_s`."""
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise AssertionError(f"not within {within_s:g} s; the server's log:\n{self.log()}") from None

    async def until_nothing_is_held(self) -> None:
        await self.until(lambda: not self.rows("SELECT id FROM reservations WHERE state = 'HELD'"))

    # --- the operator's commands -------------------------------------------------------------------------

    async def command(self, *words: str) -> str:
        """Run `automna-proxy WORDS` beside the server; its standard output. Fails unless it exits with 0."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "automna_proxy", *words),
            env=dict(self.env),
            cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(STARTED_WITHIN_S):
            output, complaint = await process.communicate()
        assert process.returncode == 0, f"{' '.join(words)}: {output.decode()}{complaint.decode()}"
        return output.decode().strip()

    @asynccontextmanager
    async def directory(self) -> AsyncIterator[Directory]:
        """Users and tokens without the time that a command takes to start."""
        async with open_store(Database(self.store, busy_timeout_s=10)) as store:
            yield Directory(store, SystemClock())

    async def new_token(self, user_id: str = "u1") -> str:
        """A gateway token of a user of the plan `test`, who is made when there is none."""
        if not self.rows("SELECT id FROM users WHERE id = ?1", user_id):
            await self.command("user", "add", user_id, "--plan", "test")
        return await self.command("token", "create", user_id)

    async def assert_verified(self) -> None:
        """`ledger verify` finds nothing wrong, and nothing is held."""
        report = json.loads(await self.command("ledger", "verify", "--json"))
        assert report["is_clean"] is True, report
        assert self.rows("SELECT * FROM accounts WHERE held <> 0") == []
        assert self.rows("SELECT id FROM reservations WHERE state = 'HELD'") == []

    # --- clients -----------------------------------------------------------------------------------------

    def client(self, token: str) -> httpx.AsyncClient:
        """A client with connections of its own."""
        return httpx.AsyncClient(
            base_url=f"{self.url}/api/llm",
            headers={"x-api-key": token, "anthropic-version": "2023-06-01"},
            timeout=30,
            trust_env=False,
        )

    def worker_of(self, answer: httpx.Response) -> str:
        """The id of the worker that served an admitted request."""
        request_id = answer.headers["x-automna-request-id"]
        ((worker_id,),) = self.rows("SELECT worker_id FROM reservations WHERE id = ?1", request_id)
        return str(worker_id)


@asynccontextmanager
async def serving(
    folder: Path,
    *,
    upstream: str,
    workers: int = 1,
    module: str = "automna_proxy",
    env: Mapping[str, str] | None = None,
    **plan: Any,
) -> AsyncIterator[Serving]:
    """A server that is up; whatever is left of it is killed at the end. `plan` as for `running_gateway`."""
    server = Serving(
        folder,
        {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": f"sqlite:///{folder / 'ledger.db'}",
            "PLANS_FILE": str(plans_file(folder, **plan)),
            "ANTHROPIC_API_KEY": VENDOR_KEY,
            "ANTHROPIC_UPSTREAM_URL": upstream,
            **QUICK,
            **(env or {}),
        },
        workers=workers,
        module=module,
    )
    try:
        await server.start()
        yield server
    finally:
        if server._process is not None:
            await server.kill_all()


def group_members(group: int) -> list[int]:
    """Living processes of a process group (zombies are dead)."""
    return [pid for pid in pids() if _is_member(pid, group)]


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def is_alive(pid: int) -> bool:
    state = _stat(pid)
    return state is not None and state[0] not in "ZX"


def _is_member(pid: int, group: int) -> bool:
    state = _stat(pid)
    return is_alive(pid) and state is not None and int(state[2]) == group


def _stat(pid: int) -> list[str] | None:
    """State, parent, group... of a process (proc(5)); None when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
