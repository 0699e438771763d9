"""The real service on a real socket in the test's own event loop, over a store in a temporary folder."""

import asyncio
import functools
import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn.server

from automna_proxy.server import Server, listen, make_server
from automna_proxy.service import Service
from automna_proxy.settings import Settings
from metering.clock import Clock, SystemClock
from metering.store.database import Database
from metering.store.migrate import migrate
from metering.users import Directory
from metering.verify import verify
from simulators.anthropic import VENDOR_KEY
from tests.support.ledger import migrated_store

STARTED_WITHIN_S = 60.0
SETTLED_WITHIN_S = 60.0
POLL_S = 0.005
TICK_S = 0.1
"""Between two looks at whether to stop, and at the clock: uvicorn's own."""


class ShortPauses:
    """uvicorn's `asyncio`, but for its pauses of a tenth of a second while it stops: thousands of tests would wait them out."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(min(delay_s, POLL_S))


uvicorn.server.asyncio = ShortPauses()  # type: ignore[attr-defined]


QUICK = {
    "DRAIN_NOTICE_S": "0",
    "DRAIN_STREAMS_S": "5",
    "HEARTBEAT_S": "0.1",
    "WORKER_DEAD_AFTER_S": "0.5",
    "CHANGES_POLL_S": "0.05",
    "CHANGES_STALE_AFTER_S": "30",
    "SETTLE_WAIT_S": "20",
    "LOG_FORMAT": "json",
}
"""Waits that only a person or a network needs; and a store that may be slow: the machine is busy with tests."""

PLAN = """
[plans.{name}]
credits_per_month = {credits_per_month}
requests_per_minute = {requests_per_minute}
tokens_per_minute = {tokens_per_minute}
concurrent_requests = {concurrent}
searches_per_month = {searches}
browser_minutes_per_month = {browser_minutes}
concurrent_browsers = {browsers}
emails_per_day = {emails}
call_minutes_per_month = {call_minutes}
concurrent_calls = {calls}
models = {models}
surfaces = {surfaces}
budget = "{budget}"
"""


def plan_table(
    name: str = "test",
    *,
    credits_per_month: int = 10_000_000,
    requests_per_minute: int = 1_000_000,
    tokens_per_minute: int = 1_000_000_000,
    concurrent: int = 10_000,
    searches: int = 1_000_000,
    emails: int = 1_000_000,
    browser_minutes: int = 1_000_000,
    browsers: int = 1_000_000,
    call_minutes: int = 1_000_000,
    calls: int = 1_000_000,
    models: tuple[str, ...] = ("*",),
    surfaces: tuple[str, ...] = ("*",),
    budget: str = "hard",
) -> str:
    """A plan of a plans file, roomy unless told otherwise."""
    return PLAN.format(
        name=name,
        credits_per_month=credits_per_month,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent=concurrent,
        searches=searches,
        emails=emails,
        browser_minutes=browser_minutes,
        browsers=browsers,
        call_minutes=call_minutes,
        calls=calls,
        models=json.dumps(list(models)),
        surfaces=json.dumps(list(surfaces)),
        budget=budget,
    )


def plans_file(folder: Path, **limits: Any) -> Path:
    """A plans file with one plan, `test`."""
    path = folder / "plans.toml"
    path.write_text(plan_table(**limits))
    return path


class DatedClock(SystemClock):
    """The machine's clock as if the service had been started on another day: prices and periods are that day's."""

    __slots__ = ("_shift_ms",)

    def __init__(self, year: int, month: int, day: int) -> None:
        self._shift_ms = round(datetime(year, month, day, tzinfo=UTC).timestamp() * 1000) - super().now_ms()

    def now_ms(self) -> int:
        return super().now_ms() + self._shift_ms

    def advance(self, seconds: float) -> None:
        """Move the date; what waits does not notice."""
        self._shift_ms += round(seconds * 1000)


class Lines(logging.Handler):
    """The canonical lines, taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(record.getMessage()))


class Defects(logging.Handler):
    """What was logged as a failure of our own: exceptions, and uvicorn's and asyncio's complaints."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.name.startswith(("uvicorn", "asyncio")):
            self.found.append(self.format(record))


@dataclass
class Gateway:
    """A running service and what a test does with it."""

    url: str
    service: Service
    server: Server
    database: Database
    clock: Clock
    lines: list[dict[str, Any]] = field(default_factory=list)
    """The canonical lines so far: one per exchange."""
    defects: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Directory:
        return Directory(self.service.store, self.clock)

    async def new_token(self, user_id: str = "u1", plan: str = "test", **more: Any) -> str:
        """A gateway token; the user is made when there is none of that id."""
        if user_id not in {user.id for user in await self.directory.users()}:
            await self.directory.add_user(user_id, plan=plan)
        token, _ = await self.directory.create_token(user_id, **more)
        return token

    def metric(self, name: str, **labels: str) -> float:
        """A sample of this worker, 0 where there is none yet."""
        only = self.service.telemetry.registry.restricted_registry([name])
        samples = (sample for metric in only.collect() for sample in metric.samples)
        return next((sample.value for sample in samples if sample.labels == labels), 0.0)

    async def until(self, condition: Callable[[], Any], within_s: float = SETTLED_WITHIN_S) -> None:
        """Wait for what the service does by itself. TimeoutError after `within_s`."""
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(POLL_S)

    @contextmanager
    def locked_store(self) -> Iterator[sqlite3.Connection]:
        """Another process writes and does not end its transaction; `rollback()` on what is yielded lets go."""
        with closing(sqlite3.connect(self.database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield other

    async def spent_and_held(self, user_id: str = "u1") -> tuple[int, int]:
        """The user's money in nano-USD, of all periods."""
        sums = "SELECT COALESCE(SUM(spent), 0), COALESCE(SUM(held), 0) FROM accounts"
        where = "WHERE owner = ?1 AND meter = 'money'"
        (row,) = await self.service.store.readers.rows(f"{sums} {where}", (f"user:{user_id}",))
        return row  # type: ignore[return-value]  # two integers

    async def entries(self) -> list[dict[str, Any]]:
        """The ledger's rows, oldest first, once nothing is being served any more."""
        await self.quiet()
        columns = (
            "kind, reservation_id, user_id, operation, model, outcome, basis, cost_nanousd, input_tokens, "
            "cache_read_tokens, cache_write_tokens, output_tokens, usage, notes, upstream_status, upstream_request_id"
        )
        rows = await self.service.store.readers.rows(f"SELECT {columns} FROM entries ORDER BY seq")
        return [dict(zip(columns.split(", "), row, strict=True)) for row in rows]

    async def quiet(self) -> None:
        """Wait until no exchange is open and every settle is in; websockets may be open."""
        async with asyncio.timeout(SETTLED_WITHIN_S):
            requests, sockets = self.server.server_state.tasks, self.service.engine.sockets
            while (
                len(requests) > len(sockets)
                or self.service.engine.open_exchanges
                or self.service.store.writer.queued_units
            ):
                await asyncio.sleep(POLL_S)
            held = "SELECT COUNT(*) FROM reservations WHERE state = 'HELD'"
            while (await self.service.store.readers.row(held)) != (0,):
                await asyncio.sleep(POLL_S)

    async def assert_clean(self) -> None:
        """The ledger proves itself, nothing is held, no vendor connection is in use, nothing of ours failed."""
        await self.until(lambda: not self.service.engine.sockets)
        await self.quiet()
        assert self.defects == []
        report = await verify(self.service.store)
        assert report.is_clean, report.problems
        held = await self.service.store.readers.rows("SELECT * FROM accounts WHERE held <> 0")
        assert held == []
        client = self.service.client  # a look for work that goes on may be under way
        await self.until(lambda: client.open_connections == client.idle_connections)
        for gauge in (
            "automna_open_exchanges",
            "automna_open_streams",
            "automna_open_sockets",
            "automna_drains",
        ):
            assert self.metric(gauge) == 0, gauge

    async def only_entry(self) -> dict[str, Any]:
        """The one entry of the one exchange there was, which left one canonical line and a clean ledger."""
        await self.assert_clean()
        (entry,) = await self.entries()
        (line,) = self.lines
        assert (line["request"], line["outcome"]) == (entry["reservation_id"], entry["outcome"])
        return entry


@asynccontextmanager
async def running_gateway(
    folder: Path,
    *,
    upstream: str = "http://127.0.0.1:1",
    env: Mapping[str, str | None] | None = None,
    clock: Clock | None = None,
    **plan: Any,
) -> AsyncIterator[Gateway]:
    """Start the service; `plan` are the limits of the plan `test`, `env` further settings (None unsets one)."""
    variables = {
        "DATABASE_URL": f"sqlite:///{folder / 'ledger.db'}",
        "PLANS_FILE": str(plans_file(folder, **plan)),
        "ANTHROPIC_API_KEY": VENDOR_KEY,
        "ANTHROPIC_UPSTREAM_URL": upstream,
        **QUICK,
        **(env or {}),
    }
    settings = Settings.from_env({name: value for name, value in variables.items() if value is not None})
    clock = clock or SystemClock()
    database = Database.from_url(settings.database_url)
    if database.path.exists():
        migrate(database, clock)
    else:
        database.path.write_bytes(migrated_store())
    listener = listen("127.0.0.1", 0)
    server, told_to_stop = make_server(settings, clock=clock), asyncio.Event()
    server.main_loop = functools.partial(_main_loop, server, told_to_stop)  # type: ignore[method-assign]
    # `_serve` is uvicorn's `serve` without taking the process's signals, which belong to pytest.
    task = asyncio.get_running_loop().create_task(server._serve(sockets=[listener]))
    async with asyncio.timeout(STARTED_WITHIN_S):
        while not server.started:
            if task.done():
                task.result()
                raise RuntimeError("the server did not start")
            await asyncio.sleep(POLL_S)
    port = listener.getsockname()[1]
    service = server._app.service
    assert service is not None
    lines, defects = Lines(), Defects()
    logging.getLogger().addHandler(defects)
    requests_logger = logging.getLogger("automna_proxy.requests")
    requests_logger.setLevel(logging.INFO)
    requests_logger.addHandler(lines)
    try:
        yield Gateway(
            f"http://127.0.0.1:{port}", service, server, database, clock, lines.lines, defects.found
        )
    finally:
        server.should_exit = True
        told_to_stop.set()
        await task
        requests_logger.removeHandler(lines)
        logging.getLogger().removeHandler(defects)


async def _main_loop(server: Server, told_to_stop: asyncio.Event) -> None:
    """uvicorn's, but that its sleep ends when the test does."""
    counter = 0
    while not await server.on_tick(counter):
        counter += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await told_to_stop.wait()


def messages_body(
    *, stream: bool = False, model: str = "claude-sonnet-4-5", max_tokens: int = 100, **more: Any
) -> dict[str, Any]:
    """A small request of the Messages API."""
    body = {
        "model": model,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": "Hello"}],
        **more,
    }
    return {**body, "stream": True} if stream else body


def client_of(gateway: Gateway, token: str) -> httpx.AsyncClient:
    """A plain HTTP client of the Anthropic surface."""
    return httpx.AsyncClient(
        base_url=f"{gateway.url}/api/llm",
        headers={"x-api-key": token, "anthropic-version": "2023-06-01"},
        timeout=30,
        trust_env=False,
    )
