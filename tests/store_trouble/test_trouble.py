"""What holds in every trouble of a running server's store: nothing unpaid goes to the vendor, nobody is told that
his key is wrong, what runs comes to its end, and afterwards all of it is in the ledger without a restart."""

import asyncio
import errno
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import pytest

from simulators.anthropic import stalls_after
from simulators.script import Gate
from tests.store_trouble.stage import EXACT_NANOUSD, NOISE_S, SETTLE_WAIT_S, USAGE, Stage, stage
from tests.support.gateway import messages_body

HANGS_US = 10**9


@contextmanager
def locked(on: Stage) -> Iterator[None]:
    """Another process writes, and does not come to an end for long."""
    with closing(sqlite3.connect(on.store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        on.revoke(other)
        yield
        other.execute("COMMIT")


def faulty(**faults: int) -> Callable[[Stage], AbstractContextManager[None]]:
    @contextmanager
    def on_a_faulty_disk(on: Stage) -> Iterator[None]:
        on.disk.set(**faults)
        with closing(sqlite3.connect(on.store, isolation_level=None, timeout=10)) as other:
            other.execute("BEGIN IMMEDIATE")
            on.revoke(other)
            other.execute("COMMIT")
        yield
        on.disk.mend()

    return on_a_faulty_disk


@contextmanager
def hanging(on: Stage) -> Iterator[None]:
    """Syncing does not come to an end, and the lock stays with whoever syncs."""
    on.disk.set(sync_delay_us=HANGS_US)
    yield
    on.disk.mend()
    with closing(sqlite3.connect(on.store, isolation_level=None, timeout=10)) as other:
        other.execute("BEGIN IMMEDIATE")
        on.revoke(other)
        other.execute("COMMIT")


@contextmanager
def moved(on: Stage) -> Iterator[None]:
    """The file is somewhere else for a while."""
    away = on.store.with_name("away.db")
    with closing(sqlite3.connect(on.store, isolation_level=None)) as other:
        on.store.rename(away)
        yield
        assert not on.store.exists(), "an empty store was made in its place"
        away.rename(on.store)
        other.execute("BEGIN IMMEDIATE")
        on.revoke(other)
        other.execute("COMMIT")


class Exchanges:
    """Two requests that begin before the trouble and end in it: one streamed, one not."""

    def __init__(self, on: Stage) -> None:
        self._on = on
        self._stream_gate, self._whole_gate = Gate(), Gate()
        self._tasks: list[asyncio.Task[bytes]] = []

    async def begin(self) -> None:
        loop = asyncio.get_running_loop()
        for gate, is_streaming in ((self._stream_gate, True), (self._whole_gate, False)):
            self._on.vendor.next(stalls_after(1 if is_streaming else 0, gate=gate, usage=USAGE))
            self._tasks.append(loop.create_task(self._ask(is_streaming=is_streaming)))
            await gate.reached()

    async def _ask(self, *, is_streaming: bool) -> bytes:
        async with self._on.server.client(self._on.known) as client:
            answer = await client.post("/v1/messages", json=messages_body(stream=is_streaming))
            assert answer.status_code == 200
            return answer.content

    async def end(self) -> None:
        """Both come to their ends, whole, no later than a settle is waited for."""
        self._stream_gate.open()
        self._whole_gate.open()
        began_s = time.monotonic()
        stream, whole = await asyncio.gather(*self._tasks)
        took_s = time.monotonic() - began_s
        assert stream.rstrip().endswith(b'data: {"type":"message_stop"               }')
        assert b'"stop_reason"' in whole
        assert took_s < SETTLE_WAIT_S + NOISE_S
        self._on.measured_s["stream ended"] = took_s


async def live_through(
    on: Stage, trouble: Callable[[Stage], AbstractContextManager[None]], *, reads_work: bool
) -> None:
    exchanges = Exchanges(on)
    await exchanges.begin()
    with trouble(on):
        await on.until_refused(on.known)
        await exchanges.end()
        await asyncio.gather(on.refused(on.known), on.refused(on.fresh), on.refused(on.known))
        unknown, _ = await on.send(on.unknown)
        assert unknown.status_code == (401 if reads_work else 503)
        revoked, _ = await on.send(on.revoked)
        assert revoked.status_code in {401, 503}
        await look_around(on, reads_work=reads_work)
        status, complaint = await on.command("token", "create", "u1")
        assert status == 4
        assert complaint.count("\n") == 1, complaint
        await on.refused(on.known)
    await on.until_served(on.known)
    await on.server.until(lambda: on.server.rows("SELECT 1 FROM gateway_tokens WHERE revoked_at_ms = 1"))
    async with asyncio.timeout(60):
        while (await on.send(on.revoked))[0].status_code != 401:
            pass
    assert (await on.send(on.fresh))[0].status_code == 200
    assert (await on.get("/readyz")).status_code == 200
    await on.assert_booked()
    ended = on.server.rows("SELECT COUNT(*) FROM entries WHERE cost_nanousd = ?1", EXACT_NANOUSD)
    assert ended >= [(2,)]
    on.assert_quiet_log(troubles_max=2)
    print({name: round(seconds, 2) for name, seconds in on.measured_s.items()})


async def look_around(on: Stage, *, reads_work: bool) -> None:
    """What needs no store works; what needs it says so."""
    assert (await on.get("/health")).status_code == 200
    assert (await on.get("/no/such/path")).status_code == 404
    ready = await on.get("/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "the store cannot be written")
    assert int(ready.headers["retry-after"]) >= 1
    for path in ("/api/user/limits", "/api/user/usage"):
        answer = await on.get(path, on.known)
        assert answer.status_code == (200 if reads_work else 503), (path, answer.text)
        assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1
    async with asyncio.timeout(60):
        while "automna_store_in_trouble 0.0" in (await on.get("/metrics")).text:
            await asyncio.sleep(0.05)


IN_ONE = {
    "full": (faulty(write_errno=errno.ENOSPC), True),
    "read-only": (faulty(write_errno=errno.EROFS, open_errno=errno.EROFS), True),
    "cannot-sync": (faulty(sync_errno=errno.EIO), True),
    "cannot-read": (faulty(read_errno=errno.EIO), False),
    "moved": (moved, False),
}
IN_TWO = {"locked": locked, "hanging": hanging}
"""What one worker does to another."""


@pytest.mark.parametrize("kind", IN_ONE)
async def test_a_store_in_trouble_refuses_loses_nothing_and_mends_itself(tmp_path, vendor, kind):
    trouble, reads_work = IN_ONE[kind]
    async with stage(tmp_path, vendor) as on:
        await live_through(on, trouble, reads_work=reads_work)


@pytest.mark.parametrize("kind", IN_TWO)
async def test_two_workers_live_through_it_together(tmp_path, vendor, kind):
    async with stage(tmp_path, vendor, workers=2) as on:
        await live_through(on, IN_TWO[kind], reads_work=True)
