"""`backup` beside a working server, and `restore`: the commands, as an operator runs them."""

import asyncio
import json
import os
import resource
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from automna_proxy.commands.session import Status
from metering.store.database import Database
from metering.store.serving import StoreInUseError, not_served
from simulators.anthropic import ReportedUsage, stalls_after
from tests.support.gateway import messages_body
from tests.support.ledger import new_database
from tests.support.process import serving

USAGE = ReportedUsage(input_tokens=100, output_tokens=50)
AGENTS = 8
BACKUPS = 3
COMMAND_WITHIN_S = 60


def command(store, *words, file_bytes_max=None):
    """`automna-proxy WORDS` on a store, to its end."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))

    return subprocess.run(
        [sys.executable, "-m", "automna_proxy", *map(str, words)],
        env={**os.environ, "DATABASE_URL": f"sqlite:///{store}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_WITHIN_S,
        check=False,
        preexec_fn=limit if file_bytes_max else None,
    )


def one_line(done, status):
    """Nothing on standard output, one line for the operator, the exit status."""
    assert (done.returncode, done.stdout) == (status, ""), done
    (line,) = done.stderr.splitlines()
    return line.removeprefix("automna-proxy: ")


def rows(store, sql):
    with closing(sqlite3.connect(f"{Path(store).as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


@asynccontextmanager
async def load(client):
    """Agents that send one request after the other until the block is left; how many were answered whole."""
    answered = []

    async def agent():
        while True:
            async with client.stream("POST", "/v1/messages", json=messages_body(stream=True)) as answer:
                assert answer.status_code == 200, await answer.aread()
                async for _ in answer.aiter_bytes():
                    pass
            answered.append(answer.headers["x-automna-request-id"])

    async with asyncio.TaskGroup() as group:
        agents = [group.create_task(agent()) for _ in range(AGENTS)]
        yield answered
        for task in agents:
            task.cancel()


async def test_copies_made_under_load_are_whole_and_a_server_on_one_admits_again(tmp_path, vendor):
    vendor.next(stalls_after(5, usage=USAGE))
    async with serving(tmp_path, upstream=vendor.url, workers=2) as server:
        token = await server.new_token()
        async with server.client(token) as client:
            stuck = asyncio.get_running_loop().create_task(
                client.post("/v1/messages", json=messages_body(stream=True))
            )
            await vendor.until(lambda: vendor.requests_total == 1)
            async with load(client) as answered:
                for number in range(BACKUPS):
                    before = len(answered)
                    await server.until(lambda before=before: len(answered) >= before + AGENTS)
                    done_before = set(answered)
                    said = json.loads(
                        await server.command("backup", str(tmp_path / f"{number}.db"), "--json")
                    )
                    assert said["is_verified"] is True
                    assert said["held_reservations"] >= 1
                    booked = rows(tmp_path / f"{number}.db", "SELECT reservation_id FROM entries")
                    assert done_before <= {reservation_id for (reservation_id,) in booked}
            stuck.cancel()
            await asyncio.wait({stuck})
        refused = await asyncio.to_thread(command, server.store, "restore", tmp_path / "0.db", "--force")
        assert "in use" in one_line(refused, Status.NO)

        await server.kill_all()
        held = rows(tmp_path / "0.db", "SELECT COUNT(*) FROM reservations WHERE state = 'HELD'")[0][0]
        restored = await asyncio.to_thread(command, server.store, "restore", tmp_path / "0.db", "--force")
        assert restored.returncode == 0, restored
        assert restored.stdout.startswith(f"restored {server.store}: ")
        assert f"{held} requests were under way" in restored.stderr
        await server.start()
        await server.until_nothing_is_held()
        expired = server.rows("SELECT COUNT(*), MIN(cost_nanousd) FROM entries WHERE kind = 'expire'")
        assert expired[0][0] == held
        assert expired[0][1] > 0
        async with server.client(token) as client:
            answer = await client.post("/v1/messages", json=messages_body(stream=True))
            assert answer.status_code == 200
        await server.until_nothing_is_held()
        await server.assert_verified()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_server_beside_a_damaged_store_that_it_cannot_open_keeps_it_from_being_replaced(
    tmp_path, vendor, workers
):
    async with serving(tmp_path, upstream=vendor.url, workers=workers) as server:
        assert command(server.store, "backup", tmp_path / "copy").returncode == 0
        with server.store.open("r+b") as file:
            file.write(b"\xff" * 4_096)
        await server.until(lambda: "file is not a database" in server.log())
        for _ in range(100):  # between two attempts of the server nobody has the store open
            with pytest.raises(StoreInUseError), not_served(Database(server.store)):
                pass
            await asyncio.sleep(0)
        refused = await asyncio.to_thread(command, server.store, "restore", tmp_path / "copy", "--force")
        assert "in use" in one_line(refused, Status.NO)
        await server.kill_all()
        assert command(server.store, "restore", tmp_path / "copy", "--force").returncode == 0
        await server.start()
        await server.assert_verified()


async def test_a_full_disk_leaves_no_copy_and_the_store_as_it_was(tmp_path):
    store = new_database(tmp_path).path
    size = store.stat().st_size
    line = one_line(command(store, "backup", tmp_path / "copy", file_bytes_max=size // 2), Status.STORE)
    assert line.startswith(f"cannot copy {store} to {tmp_path / 'copy'}: ")
    assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == []
    assert command(store, "backup", tmp_path / "copy").returncode == 0


async def test_a_disk_that_fills_up_during_a_restore_leaves_the_store_as_it_was(tmp_path):
    store = new_database(tmp_path).path
    assert command(store, "backup", tmp_path / "copy").returncode == 0
    with closing(sqlite3.connect(tmp_path / "copy")) as connection, connection:
        connection.executemany(
            "INSERT INTO changes (kind, subject, at_ms) VALUES ('x', ?, 0)", [("y" * 1_000,)] * 500
        )
    limit = store.stat().st_size + 65_536
    full = command(store, "restore", tmp_path / "copy", "--force", file_bytes_max=limit)
    assert one_line(full, Status.STORE).startswith(f"cannot restore {store} from {tmp_path / 'copy'}: ")
    assert rows(store, "SELECT COUNT(*) FROM changes") == [(0,)]
    assert command(store, "ledger", "verify").returncode == 0
    assert command(store, "restore", tmp_path / "copy", "--force").returncode == 0
    assert rows(store, "SELECT COUNT(*) FROM changes") == [(500,)]


async def test_a_second_backup_needs_force(tmp_path):
    store = new_database(tmp_path).path
    assert command(store, "backup", tmp_path / "copy").returncode == 0
    again = command(store, "backup", tmp_path / "copy")
    assert one_line(again, Status.NO) == f"{tmp_path / 'copy'} exists; --force replaces it"
    forced = command(store, "backup", tmp_path / "copy", "--force", "--no-verify")
    assert forced.returncode == 0
    assert "NOT verified" in forced.stdout


async def test_what_is_not_there_is_named(tmp_path):
    absent = command(tmp_path / "none.db", "backup", tmp_path / "copy")
    assert "there is no store at" in one_line(absent, Status.STORE)
    store = new_database(tmp_path).path
    nowhere = command(store, "backup", tmp_path / "nowhere" / "copy")
    assert one_line(nowhere, Status.NO).endswith("No such file or directory")
    no_copy = command(store, "restore", tmp_path / "copy", "--force")
    assert one_line(no_copy, Status.NO).endswith("No such file or directory")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.db"]


async def test_a_cut_copy_is_refused(tmp_path):
    store = new_database(tmp_path).path
    assert command(store, "backup", tmp_path / "copy").returncode == 0
    os.truncate(tmp_path / "copy", (tmp_path / "copy").stat().st_size - 4_096)
    refused = command(tmp_path / "new.db", "restore", tmp_path / "copy")
    assert str(tmp_path / "copy") in one_line(refused, Status.NO)
    assert not (tmp_path / "new.db").exists()


async def test_a_server_refuses_a_store_of_a_later_version_in_one_line(tmp_path):
    store = new_database(tmp_path).path
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute("INSERT INTO schema_migrations VALUES (999, 'future', 0)")
    served = command(store, "serve", "--port", "0")
    assert served.returncode == Status.STORE
    assert "the store's schema is version 999" in served.stderr
    assert "Traceback" not in served.stderr


async def test_a_server_names_the_store_that_it_cannot_open(tmp_path):
    (tmp_path / "ledger.db").mkdir()
    served = command(tmp_path / "ledger.db", "serve", "--port", "0")
    assert served.returncode == Status.STORE
    assert f"the store at {tmp_path / 'ledger.db'} cannot be used: unable to open" in served.stderr
