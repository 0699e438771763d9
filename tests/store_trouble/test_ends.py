"""How a server starts on a store in trouble, and how it stops beside one."""

import asyncio
import errno
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from metering.clock import SystemClock
from metering.store.database import Database
from metering.store.migrate import migrate
from tests.store_trouble.stage import NOISE_S, Stage, stage
from tests.store_trouble.test_trouble import HANGS_US, Exchanges
from tests.support.process import NotStartedError, serving

CLOSING_S = 5.0
"""As in metering/store/writer.py."""
STOPPED_WITHIN_S = CLOSING_S + 3.0 + NOISE_S


async def stop(on: Stage) -> float:
    """SIGTERM; how long it took. The exit status is that of a clean end: what could be done was done."""
    on.server.signal(signal.SIGTERM)
    began_s = time.monotonic()
    assert await on.server.exit_status(within_s=STOPPED_WITHIN_S) == 0, on.server.log()
    took_s = time.monotonic() - began_s
    print(f"stopped in {took_s:.2f} s")
    return took_s


FULL, HANGS = {"write_errno": errno.ENOSPC}, {"sync_delay_us": HANGS_US}


@pytest.mark.parametrize(("faults", "workers"), [(FULL, 1), (HANGS, 2)], ids=["full", "hanging"])
async def test_stopped_in_trouble_it_ends_within_its_bound_and_what_was_held_is_booked_later(
    tmp_path, vendor, faults, workers
):
    async with stage(tmp_path, vendor, workers=workers, WORKER_DEAD_AFTER_S="1") as on:
        exchanges = Exchanges(on)
        await exchanges.begin()
        on.disk.set(**faults)
        await on.until_refused(on.known)
        await exchanges.end()
        await stop(on)
        log = on.server.log()
        assert "units unwritten" in log
        assert "Traceback" not in log
        on.disk.mend()
        held = {ident for (ident,) in on.server.rows("SELECT id FROM reservations WHERE state = 'HELD'")}
        said = {ident for ident in held if f"reservation {ident} could not be resolved" in log}
        # A commit that hung when its process ended may be found in the log, though its client was refused.
        refused = {line["request"] for line in on.log_lines() if line.get("reason") == "store_unavailable"}
        assert held - said <= (refused if faults is HANGS else set()), log
        await on.server.start()
        await on.server.until_nothing_is_held()
        entries = dict(on.server.rows("SELECT reservation_id, kind FROM entries WHERE kind <> 'void'"))
        assert {ident for ident, kind in entries.items() if kind == "expire"} == held
        assert len(entries.keys() - (held - said)) == on.vendor.requests_total
        await on.server.assert_verified()


# --- the start --------------------------------------------------------------------------------------------


async def starts_not(folder: Path, **env: str) -> list[str]:
    """The lines of a server that cannot start, and says so by the exit status for a store."""
    async with asyncio.timeout(30):
        with pytest.raises(NotStartedError) as found:
            async with serving(folder, upstream="http://127.0.0.1:1", env=env):
                pass
    assert found.value.status == 4
    return (folder / "server.log").read_text().splitlines()


GARBAGE = b"\xff" * 8192
FIRST_TABLE = 4096
"""Where the second page begins: of a table that starting reads."""


@pytest.mark.parametrize(
    ("bytes_", "at", "said"),
    [(GARBAGE, 0, "file is not a database"), (GARBAGE, FIRST_TABLE, "database disk image is malformed")],
    ids=["no database", "a damaged page"],
)
async def test_a_damaged_store_is_one_line_and_an_exit_status(tmp_path, bytes_, at, said):
    store = tmp_path / "ledger.db"
    migrate(Database(store), SystemClock())
    with store.open("r+b") as file:
        file.seek(at)
        file.write(bytes_)
    before = store.read_bytes()
    (line,) = await starts_not(tmp_path)
    assert line.startswith(f"automna-proxy: the store at {store} cannot be used: {said}: ")
    assert "restore from a backup" in line
    assert store.read_bytes() == before


async def test_a_folder_that_cannot_hold_a_store_is_one_line_and_an_exit_status(tmp_path):
    url = "sqlite:////proc/nowhere/ledger.db"
    (line,) = await starts_not(tmp_path, DATABASE_URL=url)
    assert line == (
        "automna-proxy: the store at /proc/nowhere/ledger.db cannot be used: "
        "/proc/nowhere: No such file or directory"
    )


async def test_a_worker_that_starts_beside_a_store_in_trouble_waits_for_it_and_stops_nobody(tmp_path, vendor):
    async with stage(tmp_path, vendor, workers=2, WORKER_DEAD_AFTER_S="2") as on:
        victim = next(iter(on.server.workers_alive()))
        with closing(sqlite3.connect(on.store, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            os.kill(victim, signal.SIGKILL)
            await on.server.until(lambda: "starting another" in on.server.log())
            for _ in range(8):  # whichever worker it is
                await on.refused(on.known)
            other.execute("COMMIT")
        await on.until_served(on.known)
        await on.server.until(lambda: len(on.server.workers_alive()) == 2)
        assert victim not in on.server.workers_alive()
        await on.server.until(lambda: len(on.server.rows("SELECT id FROM workers")) == 2)
        await on.assert_booked()
        assert "Traceback" not in on.server.log()
