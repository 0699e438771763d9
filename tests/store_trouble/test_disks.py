"""Disks as they really fail: full in part, slow, damaged; and a store in trouble under load."""

import asyncio
import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.store_trouble.stage import NOISE_S, REFUSED_WITHIN_S, Stage, stage
from tests.support.faulty_disk import MAIN_FILE
from tests.support.gateway import messages_body

PAGE_BYTES = 4096
CLIENTS = 120
LOAD_S = 2.5
BODY = "x" * 50_000
GROWN_KB_MAX = 40_000
"""What a worker may grow by under load in trouble: far below what it would be if it kept each body."""
CHECKPOINT_PAGES = 1_000
"""SQLite copies the write-ahead log into the main file at so many pages."""


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A real file system of 3 MB at `folder`, where this machine lets us mount one; whether it did."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    is_mounted = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path) -> None:
    """Until the disk has no page left."""
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(PAGE_BYTES))


async def test_a_disk_that_is_really_full_refuses_and_serves_again_when_there_is_room(tmp_path, vendor):
    """Where no file system can be mounted, the faulty disk refuses all growth instead."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk) as is_real:
        async with stage(tmp_path, vendor, DATABASE_URL=f"sqlite:///{disk / 'ledger.db'}") as on:
            ballast = disk / "ballast"
            if is_real:
                fill(ballast)
            else:
                on.disk.set(growth_errno=errno.ENOSPC)
            served = on.vendor.requests_total
            await on.until_refused(on.known)  # the log may have room that it grew into before
            await on.refused(on.fresh)
            assert "database or disk is full: make room on the store's disk" in on.server.log()
            assert on.vendor.requests_total - served < CHECKPOINT_PAGES
            ballast.unlink(missing_ok=True)
            on.disk.mend()
            await on.until_served(on.known)
            await on.assert_booked()
            on.assert_quiet_log(troubles_max=2)


async def test_when_only_the_main_file_cannot_grow_the_log_holds_all_and_nothing_is_refused(tmp_path, vendor):
    """Checkpoints fail, commits do not: what is durable in the log counts, also for who starts anew."""
    async with stage(tmp_path, vendor) as on:
        on.disk.set(write_errno=errno.ENOSPC, only=MAIN_FILE)
        async with on.server.client(on.known) as client:  # one by one: each commits its own pages
            while on.wal.stat().st_size < 1.1 * CHECKPOINT_PAGES * PAGE_BYTES:
                assert (await client.post("/v1/messages", json=messages_body())).status_code == 200
        await on.server.until_nothing_is_held()
        await on.server.kill_all()
        await on.server.start()
        on.disk.mend()
        await on.until_served(on.known)
        await on.assert_booked()
        assert on.complaints() == []


async def test_a_slow_disk_that_takes_half_of_each_write_is_served_slowly(tmp_path, vendor):
    async with stage(tmp_path, vendor) as on:
        on.disk.set(sync_delay_us=500_000, short_writes=1)
        answers = await asyncio.gather(*(on.send(on.known) for _ in range(20)))
        assert {answer.status_code for answer, _ in answers} == {200}
        assert max(took_s for _, took_s in answers) < 3 * 0.5 + NOISE_S
        on.disk.mend()
        await on.assert_booked()
        assert on.complaints() == []


async def test_a_disk_slower_than_the_bound_refuses_and_books_nothing_for_the_refused(tmp_path, vendor):
    """Reservations that become durable after their clients were refused are given back."""
    async with stage(tmp_path, vendor, HEARTBEAT_S="4") as on:  # or beats would be all that hangs
        on.disk.set(sync_delay_us=2_500_000)
        answers = await asyncio.gather(*(on.send(on.known) for _ in range(10)))
        assert {answer.status_code for answer, _ in answers} <= {200, 503}
        assert max(took_s for answer, took_s in answers if answer.status_code == 503) < REFUSED_WITHIN_S
        on.disk.mend()
        await on.until_served(on.known)
        await on.assert_booked()
        assert on.server.rows("SELECT 1 FROM entries WHERE kind = 'void'"), "nobody was refused too late"


async def test_a_store_in_trouble_under_load_keeps_its_size(tmp_path, vendor):
    async with stage(tmp_path, vendor) as on:
        answers = await asyncio.gather(*(on.send(on.known, system=BODY) for _ in range(CLIENTS)))
        assert {answer.status_code for answer, _ in answers} == {200}
        await on.server.until_nothing_is_held()
        on.disk.set(write_errno=errno.EIO)
        await on.until_refused(on.known)
        ends_s = time.monotonic() + LOAD_S
        refused: list[float] = []
        grown_kb = []

        async def ask() -> None:
            while time.monotonic() < ends_s:
                answer, took_s = await on.send(on.known, system=BODY)
                assert answer.status_code == 503
                refused.append(took_s)

        before_kb = on.memory_kb()
        tasks = asyncio.gather(*(ask() for _ in range(CLIENTS)))
        while not tasks.done():
            grown_kb.append(on.memory_kb() - before_kb)
            await asyncio.sleep(0.1)
        await tasks
        print(f"{len(refused)} refused, the slowest in {max(refused):.2f} s; grown by {max(grown_kb)} KB")
        assert max(grown_kb) < GROWN_KB_MAX
        assert len(refused) >= CLIENTS
        on.disk.mend()
        await on.until_served(on.known)
        await on.assert_booked()
        on.assert_quiet_log(troubles_max=1)


# --- damage -----------------------------------------------------------------------------------------------


def page_of(on: Stage, table: str) -> int:
    """Where the first page of a table begins in the main file."""
    ((page,),) = on.server.rows("SELECT rootpage FROM sqlite_master WHERE name = ?1", table)
    return (int(page) - 1) * PAGE_BYTES


@contextmanager
def damaged(on: Stage, at: int) -> Iterator[None]:
    """A page overwritten by something else; put right again at the end."""
    with on.store.open("r+b") as file:
        file.seek(at)
        was = file.read(PAGE_BYTES)
        file.seek(at)
        file.write(b"\xff" * PAGE_BYTES)
        file.flush()
        yield
        file.seek(at)
        file.write(was)


async def checkpointed(on: Stage) -> None:
    """All pages in the main file, none in the log."""
    await on.server.until_nothing_is_held()
    with on.connect() as other:
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


@pytest.mark.parametrize("table", ["accounts", "gateway_tokens"])
async def test_a_damaged_page_refuses_who_needs_it_and_tells_the_operator_what_to_do(tmp_path, vendor, table):
    async with stage(tmp_path, vendor) as on:
        await checkpointed(on)
        with damaged(on, page_of(on, table)):
            with on.connect() as other:  # every page that the server remembers is old now
                other.execute("UPDATE users SET updated_at = updated_at + 1")
            await on.refused(on.fresh)
            assert (await on.get("/health")).status_code == 200
            limits = await on.get("/api/user/limits", on.known)
            if table == "accounts":
                await on.refused(on.known)
                assert limits.status_code == 503
                status, complaint = await on.command("ledger", "verify")
                assert status == 4
                assert "restore from a backup" in complaint
            else:  # who is known already needs no damaged page
                assert (await on.send(on.known))[0].status_code == 200
                assert limits.status_code == 200
            assert "restore from a backup" in on.server.log()
        await on.until_served(on.known)
        await on.until_served(on.fresh)
        await on.assert_booked()
        on.assert_quiet_log(troubles_max=2)
