"""Stores made for a benchmark: many users and a long history, without a commit for each."""

import asyncio
import contextlib
import http.server
import sqlite3
import threading

import pytest

from bench.beside import asking
from bench.books import Books, UncountedError
from metering.clock import SystemClock
from metering.ids import new_id
from metering.ledger import Ledger, Reservation
from metering.store.store import open_store
from metering.users import Directory, hash_of
from tests.support.ledger import gauge, intent, money, settlement

USERS = 5


async def test_each_of_many_users_has_a_token_that_lets_it_in(tmp_path):
    books = await asyncio.to_thread(Books.open, tmp_path / "books", users=USERS)
    tokens = books.tokens.read_text().split()
    async with open_store(books.database) as store:
        directory = Directory(store, SystemClock())
        found = [await directory.credential(hash_of(token)) for token in tokens]
    assert [one.user_id for one in found if one is not None] == [f"user{number}" for number in range(USERS)]
    assert {one.plan for one in found if one is not None} == {"bench"}
    assert books.users() == USERS


def test_few_tokens_are_listed_again_and_again(tmp_path):
    books = Books.open(tmp_path / "books", users=2, listed=5)
    first, second, *more = books.tokens.read_text().split()
    assert more == [first, second, first]


async def _book(books, user):
    async with open_store(books.database) as store:
        ledger = Ledger(store, SystemClock(), "wrk_bench")
        holds = [money(20, owner=f"user:{user}"), gauge(owner=f"user:{user}")]
        reservation = await ledger.reserve(
            intent(*holds, named=new_id("req", SystemClock().now_ms()), user_id=user)
        )
        assert isinstance(reservation, Reservation)
        await ledger.settle(reservation, settlement(7))


async def test_a_history_is_copies_of_what_was_booked_and_adds_up(tmp_path):
    books = await asyncio.to_thread(Books.open, tmp_path / "books", users=USERS)
    await _book(books, "user0")
    await _book(books, "user1")
    books.add_history(40)
    books.check_clean()
    assert (books.settled(), books.users_who_asked()) == (42, 2)
    with contextlib.closing(sqlite3.connect(books.database.path)) as connection:
        spent = connection.execute("SELECT owner, spent FROM accounts WHERE meter = 'money'").fetchall()
        by_time = connection.execute("SELECT id FROM reservations ORDER BY created_at_ms, id").fetchall()
    assert sorted(spent) == [("user:user0", 21 * 7), ("user:user1", 21 * 7)]
    assert by_time == sorted(by_time), "ids are sorted by time, as real ones are"


async def test_a_ledger_that_does_not_add_up_is_found_out(tmp_path):
    books = await asyncio.to_thread(Books.open, tmp_path / "books", users=1)
    await _book(books, "user0")
    with contextlib.closing(sqlite3.connect(books.database.path)) as connection, connection:
        connection.execute("UPDATE accounts SET spent = spent + 1 WHERE meter = 'money'")
    with pytest.raises(UncountedError, match="add up"):
        books.check_clean()


class _Slow(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held = threading.Event()
    asked = threading.Semaphore(0)

    def do_GET(self) -> None:
        self.asked.release()
        self.held.wait(10)
        self.send_response(404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the library names it
        """Not to standard error."""


def test_who_asks_beside_a_load_waits_as_long_as_the_server_is_busy():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with asking(f"http://127.0.0.1:{server.server_port}") as asker:
            assert _Slow.asked.acquire(timeout=10)
            timer = threading.Timer(0.1, _Slow.held.set)
            timer.start()
            timer.join()
            assert _Slow.asked.acquire(timeout=10)
        server.shutdown()
    assert asker.figures()["beside_max_ms"] >= 99


def test_who_asks_beside_a_load_says_when_nobody_answers():
    with asking("http://127.0.0.1:1") as asker:
        asker.join(10)
    with pytest.raises(ConnectionRefusedError):
        asker.figures()


async def test_who_has_not_asked_yet_is_found_by_what_is_in_the_ledger(tmp_path):
    books = await asyncio.to_thread(Books.open, tmp_path / "books", users=3, listed=7)
    await _book(books, "user1")
    first, second, third, *_ = books.tokens.read_text().split()
    async with open_store(books.database) as store:
        found = await Directory(store, SystemClock()).credential(hash_of(second))
    assert found is not None
    with contextlib.closing(sqlite3.connect(books.database.path)) as connection, connection:
        connection.execute("UPDATE reservations SET token_id = ?1", (found.token_id,))
    missing = books.of_users_who_have_not_asked()
    assert missing.tokens.read_text().split() == [first, third]
    assert missing.database == books.database
