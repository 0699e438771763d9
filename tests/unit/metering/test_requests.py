"""A user's requests: one item each with all that was booked for it, in pages that what is added does not move."""

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from metering.ledger import REPRICED, Reservation
from metering.reports import QuestionError, TokenName
from metering.requests import (
    OUTCOMES,
    REQUESTS_MAX,
    SELECT_FLOOR,
    Position,
    UserRequest,
    Wanted,
    corrections_statement,
    limit_of,
    outcome_of,
    page_statement,
    position_of,
    requests_of,
    running_statement,
)
from metering.store.writer import Step, Unit
from metering.users import Directory
from tests.support.ledger import MODEL, NOW_MS, Bench, gauge, money, open_bench, settlement


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        yield bench


async def reserved(bench: Bench, user: str = "ada", amount: int = 100) -> Reservation:
    owner = f"user:{user}"
    bench.clock.advance(0.5)
    return await bench.reserve(
        money(amount, of=10**12, owner=owner), gauge(owner=owner), user_id=user, floor=10
    )


async def booked(bench: Bench, cost: int = 50, *, user: str = "ada", **how: Any) -> str:
    reservation = await reserved(bench, user)
    await bench.ledger.settle(reservation, settlement(cost, **how))
    return reservation.id


async def requests(bench: Bench, **how: Any) -> tuple[UserRequest, ...]:
    return (await requests_of(bench.store.readers, "ada", **how)).requests


async def read_through(bench: Bench, **how: Any) -> list[str]:
    """All pages, one after the other."""
    found: list[str] = []
    page = await requests_of(bench.store.readers, "ada", **how)
    while True:
        found += [request.request_id for request in page.requests]
        if page.next is None:
            return found
        page = await requests_of(bench.store.readers, "ada", before=position_of(str(page.next)), **how)


async def change_entries(bench: Bench, assignment: str, request_id: str) -> None:
    """What the factories of requests cannot say."""
    step = Step(f"UPDATE entries SET {assignment} WHERE reservation_id = ?1", (request_id,))
    await bench.store.writer.submit(Unit((step,)))


async def test_a_request_is_one_item_with_what_came_above_its_hold(bench: Bench) -> None:
    request_id = await booked(bench, 250)
    assert await bench.entries() == [("settle", 100), ("overage", 150)]
    (request,) = await requests(bench)
    assert request.as_json() == {
        "request_id": request_id,
        "at": "2026-11-20T12:00:00.500Z",
        "token": "tok_ada",
        "token_prefix": None,
        "token_label": None,
        "surface": "anthropic",
        "operation": "POST /v1/messages",
        "model": MODEL,
        "outcome": "completed",
        "basis": "reported",
        "input_tokens": 125,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "output_tokens": 125,
        "cost_nanousd": 250,
        "cost_usd": "0.000000250",
        "credits": 1,
        "upstream_status": None,
        "upstream_request_id": "up_1",
        "duration_ms": 0,
        "notes": [],
    }


async def test_what_expired_is_estimated_until_it_is_reported(bench: Bench) -> None:
    reservation = await reserved(bench)
    await bench.ledger.expire_worker("wrk_a")
    (request,) = await requests(bench)
    assert (request.cost_nanousd, request.basis, request.outcome) == (10, "estimated", "worker_died")
    bench.clock.advance(3600)
    assert await bench.ledger.report_late(reservation.id, settlement(70))
    (request,) = await requests(bench)
    assert (request.cost_nanousd, request.basis, request.outcome) == (70, "reported", "worker_died")
    assert request.tokens == (35, 0, 0, 35)
    assert request.upstream_request_id == "up_1"
    assert request.position.at_ms == NOW_MS + 500, "a correction does not move it"


async def test_a_corrected_price_is_no_report_of_what_was_used(bench: Bench) -> None:
    request_id = await booked(bench, is_reported=False)
    columns = "kind, reservation_id, user_id, at_ms, basis, cost_nanousd, input_tokens, cache_read_tokens, "
    columns += "cache_write_tokens, output_tokens, lines, notes"
    for cost in (7, -2):
        sql = f"INSERT INTO entries ({columns}) VALUES ('adjust', ?1, 'ada', ?2, 'reported', ?3, 0, 0, 0, 0, '[]', ?4)"
        step = Step(sql, (request_id, NOW_MS + 9_000, cost, f'["{REPRICED}"]'))
        await bench.store.writer.submit(Unit((step,)))
    (request,) = await requests(bench)
    assert (request.cost_nanousd, request.basis, request.notes) == (55, "estimated", (REPRICED,))


async def test_what_was_never_sent_is_listed_too(bench: Bench) -> None:
    await bench.ledger.void(await reserved(bench), note="abandoned_while_admitted")
    (request,) = await requests(bench)
    assert (request.outcome, request.cost_nanousd) == ("not_sent", 0)
    assert request.notes == ("abandoned_while_admitted",)


async def test_other_users_requests_are_not_listed(bench: Bench) -> None:
    mine = await booked(bench)
    theirs = await booked(bench, user="bob")
    await reserved(bench, "bob")
    page = await requests_of(bench.store.readers, "ada")
    assert ([request.request_id for request in page.requests], page.running) == ([mine], ())
    page = await requests_of(bench.store.readers, "bob")
    assert [request.request_id for request in page.requests] == [theirs]


async def test_a_token_of_another_user_is_not_named(bench: Bench) -> None:
    directory = Directory(bench.store, bench.clock)
    for user in ("ada", "bob"):
        await directory.add_user(user, plan="free")
    _, mine = await directory.create_token("ada", label="laptop")
    _, theirs = await directory.create_token("bob", label="secret")
    first, second = await booked(bench), await booked(bench)
    await change_entries(bench, f"token_id = '{mine.id}'", first)
    await change_entries(bench, f"token_id = '{theirs.id}'", second)
    assert [request.token for request in await requests(bench)] == [
        TokenName(None, None),
        TokenName(mine.prefix, "laptop"),
    ]


async def test_pages_hold_every_request_once_whatever_is_added_meanwhile(bench: Bench) -> None:
    """Workers' clocks differ: the order of times is not that of the rows, and some share their millisecond."""
    seed = random.randrange(2**32)
    dice = random.Random(seed)

    async def book() -> str:
        reservation = await reserved(bench)
        bench.clock.ms = NOW_MS + dice.randrange(20)
        if dice.randrange(4):
            await bench.ledger.settle(reservation, settlement(dice.randrange(300)))
        else:
            await bench.ledger.void(reservation)
        return reservation.id

    before = {await book() for _ in range(40)}
    limit = dice.randrange(1, 12)
    found: list[str] = []
    page = await requests_of(bench.store.readers, "ada", limit=limit)
    while True:
        assert len(page.requests) <= limit
        found += [request.request_id for request in page.requests]
        if page.next is None:
            break
        await book()
        page = await requests_of(bench.store.readers, "ada", limit=limit, before=page.next)
    assert len(found) == len(set(found)), f"seed {seed}"
    assert before <= set(found), f"seed {seed}"


async def test_costs_add_up_to_the_ledgers(bench: Bench) -> None:
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    late = []
    for _ in range(60):
        reservation = await reserved(bench)
        if dice.randrange(3):
            await bench.ledger.settle(reservation, settlement(dice.randrange(300)))
        else:
            late.append(reservation.id)
    await bench.ledger.expire_worker("wrk_a")
    for request_id in late[::2]:
        assert await bench.ledger.report_late(request_id, settlement(dice.randrange(300)))
    listed = {request.request_id: request for request in await requests(bench, limit=REQUESTS_MAX)}
    rows = await bench.store.readers.rows("SELECT id, booked_nanousd FROM reservations")
    assert {name: request.cost_nanousd for name, request in listed.items()} == dict(rows), f"seed {seed}"
    ((cost, tokens),) = await bench.store.readers.rows(
        "SELECT SUM(cost_nanousd), SUM(input_tokens + output_tokens) FROM entries"
    )
    assert sum(request.cost_nanousd for request in listed.values()) == cost, f"seed {seed}"
    assert sum(sum(request.tokens) for request in listed.values()) == tokens, f"seed {seed}"


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        ("surface = 'brave'", Wanted(surface="brave")),
        ("model = 'other'", Wanted(model="other")),
        ("outcome = 'timed_out'", Wanted(outcome="timed_out")),
        ("token_id = 'tok_2'", Wanted(token_id="tok_2")),
    ],
)
async def test_only_what_is_wanted_is_listed(bench: Bench, column: str, wanted: Wanted) -> None:
    ids = [await booked(bench) for _ in range(6)]
    for request_id in ids[::2]:
        await change_entries(bench, column, request_id)
    assert await read_through(bench, wanted=wanted, limit=2) == sorted(ids[::2], reverse=True)
    assert await read_through(bench, limit=2) == sorted(ids, reverse=True)


async def test_a_page_looks_at_so_many_entries_and_says_where_to_go_on(bench: Bench) -> None:
    oldest = await booked(bench)
    await change_entries(bench, "model = 'rare'", oldest)
    for _ in range(7):
        await booked(bench)
    wanted = Wanted(model="rare")
    page = await requests_of(bench.store.readers, "ada", wanted=wanted, scanned_max=3)
    assert page.requests == ()
    assert page.next is not None
    assert await read_through(bench, wanted=wanted, scanned_max=3) == [oldest]
    assert await read_through(bench, wanted=Wanted(model=MODEL), scanned_max=3, limit=1) == [
        request.request_id for request in (await requests(bench))[:-1]
    ]


async def test_a_page_can_be_of_some_gateway_tokens_only(bench: Bench) -> None:
    first, second, third = [await booked(bench) for _ in range(3)]
    await change_entries(bench, "token_id = 'tok_2'", second)
    await change_entries(bench, "token_id = 'tok_3'", third)
    running = await reserved(bench)
    assert await read_through(bench, token_ids=("tok_ada", "tok_2"), limit=1) == [second, first]
    assert await read_through(bench, token_ids=()) == []
    page = await requests_of(bench.store.readers, "ada", token_ids=("tok_2",))
    assert page.running == ()
    page = await requests_of(bench.store.readers, "ada", token_ids=("tok_ada",))
    assert page.running is not None
    assert [request.request_id for request in page.running] == [running.id]


async def test_what_runs_stands_apart_with_what_is_held(bench: Bench) -> None:
    older, newer = await reserved(bench, amount=100), await reserved(bench, amount=150_000)
    page = await requests_of(bench.store.readers, "ada")
    assert page.requests == ()
    assert page.running is not None
    assert [request.request_id for request in page.running] == [newer.id, older.id]
    assert page.as_json()["running"][0] == {
        "request_id": newer.id,
        "at": "2026-11-20T12:00:01Z",
        "token": "tok_ada",
        "token_prefix": None,
        "token_label": None,
        "surface": "anthropic",
        "operation": "POST /v1/messages",
        "model": MODEL,
        "outcome": "running",
        "held_nanousd": 150_000,
        "held_usd": "0.000150000",
        "held_credits": 2,
        "due_at": None,
    }


@pytest.mark.parametrize(
    ("how", "is_looked_for", "is_found"),
    [
        ({}, True, True),
        ({"wanted": Wanted(outcome="running")}, True, True),
        ({"wanted": Wanted(surface="anthropic", model=MODEL, token_id="tok_ada")}, True, True),
        ({"wanted": Wanted(surface="brave")}, True, False),
        ({"wanted": Wanted(model="other")}, True, False),
        ({"wanted": Wanted(token_id="tok_2")}, True, False),
        ({"wanted": Wanted(outcome="completed")}, False, False),
        ({"before": Position(NOW_MS, 1)}, False, False),
    ],
)
async def test_what_runs_is_looked_for_on_the_first_page_if_it_may_be_wanted(
    bench: Bench, how: dict[str, Any], is_looked_for: bool, is_found: bool
) -> None:
    await reserved(bench)
    page = await requests_of(bench.store.readers, "ada", **how)
    assert (page.running is not None) is is_looked_for
    assert bool(page.running) is is_found


async def test_no_statement_reads_more_than_it_must(bench: Bench) -> None:
    """Not even once there are many rows: the store has no statistics, the plan is the same."""
    plans = {
        page_statement(): (10, "entries_by_user (user_id=? AND at_ms>? AND at_ms<?)"),
        page_statement(2): (12, "entries_by_user (user_id=? AND at_ms>? AND at_ms<?)"),
        running_statement(): (5, "reservations_held (worker_id>?)"),
        running_statement(2): (7, "reservations_held (worker_id>?)"),
        corrections_statement(REQUESTS_MAX): (REQUESTS_MAX, "entries_corrections (reservation_id=?)"),
        SELECT_FLOOR: (4, "entries_by_user (user_id=? AND at_ms<?)"),
    }
    for sql, (params, index) in plans.items():
        plan = await bench.store.readers.rows(f"EXPLAIN QUERY PLAN {sql}", (1,) * params)
        steps = [str(step[3]) for step in plan]
        assert index in steps[0], steps
        assert not any("SCAN" in step for step in steps), steps


def test_a_cursor_is_read_as_it_was_written() -> None:
    assert position_of(str(Position(NOW_MS, 17))) == Position(NOW_MS, 17)


@pytest.mark.parametrize("text", ["", "17", "-1-2", "1-", "1 - 2", "1-2-3", "\u0661-\u0662", f"{10**15}-1"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(QuestionError, match=r"^before: given .* expected the `next` of a page before"):
        position_of(text)


@pytest.mark.parametrize("text", ["", "0", "201", "-1", "1.0", "ten", "\u0663"])
def test_a_limit_is_a_number_of_requests(text: str) -> None:
    with pytest.raises(QuestionError, match=r"^limit: given .* expected a whole number from 1 to 200"):
        limit_of(text)
    assert limit_of("200") == REQUESTS_MAX


def test_an_outcome_is_one_of_those_there_are() -> None:
    assert [outcome_of(outcome) for outcome in OUTCOMES] == list(OUTCOMES)
    for text in ("", "deferred", "done"):
        with pytest.raises(QuestionError, match=r"^outcome: given .* expected one of completed, .*, running"):
            outcome_of(text)
