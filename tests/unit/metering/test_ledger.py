"""The ledger's verbs on real stores: what accounts and entries say after each."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from metering import ledger as ledger_module
from metering.errors import Reason, Refused
from metering.ledger import (
    COST_NANOUSD_MAX,
    MONEY,
    NO_PERIOD,
    OPEN_REQUESTS,
    REQUESTS,
    SPEND,
    UNBOOKABLE_REPORT,
    Balance,
    Hold,
    Outcome,
    Reservation,
    Resolved,
    Settlement,
)
from metering.outbox import adding, new_message
from metering.prices import Priced, PricedLine
from metering.store import writer as writer_module
from metering.store.writer import Declined, Done, Unit
from metering.tasks import spawn
from metering.usage import CACHE_READ, CACHE_WRITE_1H, CACHE_WRITE_5M, INPUT, OUTPUT
from metering.verify import verify
from tests.support.ledger import (
    MODEL,
    NOW_MS,
    Bench,
    gauge,
    intent,
    money,
    open_bench,
    prepaid,
    priced,
    request_id,
    settlement,
)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        yield bench
        await bench.assert_clean()


# --- settle ------------------------------------------------------------------------------------------

SETTLES = [
    # hold, cost, spent, entries
    (100, 60, 60, [("settle", 60)]),
    (100, 100, 100, [("settle", 100)]),
    (100, 0, 0, [("settle", 0)]),
    (100, 130, 130, [("settle", 100), ("overage", 30)]),
    (100, 5_000, 5_000, [("settle", 100), ("overage", 4_900)]),
    (0, 7, 7, [("settle", 0), ("overage", 7)]),
    (0, 0, 0, [("settle", 0)]),
]


@pytest.mark.parametrize(("hold", "cost", "spent", "entries"), SETTLES)
async def test_settling_books_the_cost_and_gives_back_the_hold(
    bench: Bench, hold: int, cost: int, spent: int, entries: list[tuple[str, int]]
) -> None:
    reservation = await bench.reserve(money(hold), gauge())
    assert await bench.account() == (0, hold)
    assert await bench.gauge() == 1
    assert await bench.ledger.settle(reservation, settlement(cost)) is Resolved.DONE
    assert await bench.account() == (spent, 0)
    assert await bench.gauge() == 0
    assert await bench.entries() == entries
    assert await bench.state(reservation.id) == "SETTLED"


RESERVES = [
    # spent, held before, hold, allowance, granted
    (0, 0, 1_000, 1_000, True),
    (0, 0, 1_001, 1_000, False),
    (0, 0, 0, 0, True),
    (0, 0, 1, 0, False),
    (400, 0, 600, 1_000, True),
    (400, 0, 601, 1_000, False),
    (0, 400, 600, 1_000, True),
    (0, 400, 601, 1_000, False),
    (300, 300, 400, 1_000, True),
    (300, 300, 401, 1_000, False),
    (1_500, 0, 1, 1_000, False),
    (0, 0, 2**62, 2**63 - 1, True),
    (2**49, 2**62, 2**62, 2**63 - 1, False),
]


@pytest.mark.parametrize(("spent", "held", "hold", "allowance", "is_granted"), RESERVES)
async def test_a_hold_is_granted_within_the_allowance_only(
    bench: Bench, spent: int, held: int, hold: int, allowance: int, is_granted: bool
) -> None:
    huge = 2**63 - 1
    if spent:
        await bench.ledger.settle(await bench.reserve(money(0, of=huge)), settlement(spent))
    if held:
        await bench.reserve(money(held, of=huge))
    granted = await bench.ledger.reserve(intent(money(hold, of=allowance)))
    if is_granted:
        assert isinstance(granted, Reservation)
        assert granted.balances == {MONEY: Balance(spent, held + hold, allowance)}
        assert await bench.account() == (spent, held + hold)
    else:
        assert granted == Declined(MONEY)
        assert await bench.account() == (spent, held)


async def test_a_reservation_that_one_account_refuses_holds_nothing_on_the_others(bench: Bench) -> None:
    first = await bench.reserve(gauge(of=1), money(10))
    assert await bench.ledger.reserve(intent(gauge(of=1), money(10))) == Declined("open_requests")
    assert await bench.account() == (0, 10)
    await bench.ledger.settle(first, settlement(10))
    assert await bench.ledger.reserve(intent(gauge(of=1), money(1_000))) == Declined(MONEY)
    assert await bench.gauge() == 0


async def test_user_and_token_are_both_charged_by_one_reservation(bench: Bench) -> None:
    token = money(100, of=150, owner="token:t1")
    reservation = await bench.reserve(money(100), token, gauge())
    assert await bench.account("token:t1") == (0, 100)
    await bench.ledger.settle(reservation, settlement(120))
    assert await bench.account() == (120, 0)
    assert await bench.account("token:t1") == (120, 0)
    assert await bench.entries() == [("settle", 100), ("overage", 20)]
    assert await bench.ledger.reserve(intent(money(31), token._replace(amount=31))) == Declined(MONEY)
    assert await bench.account() == (120, 0)


async def test_caps_are_charged_beside_the_money_and_counts_are_spent_as_held(bench: Bench) -> None:
    caps = [
        Hold("user:ada", SPEND, "2026-11-20", 100, 200),
        Hold("token:t1", SPEND, "2026-11", 100, 200),
        Hold("token:t1", REQUESTS, "2026-11-20", 1, 2),
    ]
    day, month, count = ((hold.owner, hold.meter, hold.period) for hold in caps)
    first, second = await bench.reserve(money(100), *caps), await bench.reserve(money(100), *caps)
    assert await bench.ledger.reserve(intent(money(0), caps[2])) == Declined(REQUESTS)
    await bench.ledger.settle(first, settlement(130))
    await bench.ledger.void(second)
    assert [await bench.account(*one) for one in (day, month, count)] == [(130, 0), (130, 0), (1, 0)]
    assert await bench.account() == (130, 0)
    assert await bench.entries(first.id) == [("settle", 100), ("overage", 30)]


async def test_accounts_that_hold_different_amounts_are_charged_the_same_cost(bench: Bench) -> None:
    reservation = await bench.reserve(money(100), money(40, owner="token:t1"))
    await bench.ledger.settle(reservation, settlement(90))
    assert (await bench.account(), await bench.account("token:t1")) == ((90, 0), (90, 0))


async def test_counts_are_spent_as_reported(bench: Bench) -> None:
    searches = money(3, of=10)._replace(meter="searches")
    reservation = await bench.reserve(money(100), searches)
    await bench.ledger.settle(reservation, settlement(60, searches=2))
    assert await bench.account(meter="searches") == (2, 0)


async def test_an_allowance_that_shrinks_counts_for_the_next_reservation(bench: Bench) -> None:
    await bench.ledger.settle(await bench.reserve(money(500)), settlement(500))
    assert await bench.ledger.reserve(intent(money(1, of=500))) == Declined(MONEY)
    assert isinstance(await bench.ledger.reserve(intent(money(1, of=501))), Reservation)


async def test_a_negative_hold_is_a_defect(bench: Bench) -> None:
    with pytest.raises(AssertionError, match="negative hold"):
        await bench.ledger.reserve(intent(money(-1)))


async def test_an_id_that_is_taken_fails_and_holds_nothing(bench: Bench) -> None:
    await bench.reserve(money(10), named="req_same")
    with pytest.raises(sqlite3.IntegrityError):
        await bench.ledger.reserve(intent(money(10), named="req_same"))
    assert await bench.account() == (0, 10)


async def test_parallel_first_reservations_of_a_new_user_cannot_overshoot(bench: Bench) -> None:
    granted = await asyncio.gather(*(bench.ledger.reserve(intent(money(100, of=1_000))) for _ in range(200)))
    assert sum(isinstance(one, Reservation) for one in granted) == 10
    assert await bench.account() == (0, 1_000)


# --- resolved once -----------------------------------------------------------------------------------


async def test_a_second_resolution_of_any_kind_finds_it_resolved(bench: Bench) -> None:
    verbs = {
        "settle": lambda reservation: bench.ledger.settle(reservation, settlement(10)),
        "void": bench.ledger.void,
    }
    for first in verbs.values():
        for second in verbs.values():
            reservation = await bench.reserve(money(100), gauge())
            before = await bench.account()
            one, two = first(reservation), second(reservation)
            assert await one is Resolved.DONE
            assert await two is Resolved.ALREADY_RESOLVED
            assert len(await bench.entries(reservation.id)) == 1
            assert (await bench.account())[1] == before[1] - 100
            assert await bench.gauge() == 0


async def test_the_database_itself_refuses_a_second_resolution_entry(bench: Bench) -> None:
    reservation = await bench.reserve(money(100))
    await bench.ledger.settle(reservation, settlement(10))
    copy = """
        INSERT INTO entries (kind, reservation_id, user_id, at_ms, basis, cost_nanousd, input_tokens,
            cache_read_tokens, cache_write_tokens, output_tokens, lines)
        VALUES (?, ?, 'ada', 0, 'reported', 0, 0, 0, 0, 0, '[]')"""
    with closing(sqlite3.connect(bench.store.database.path)) as connection:
        for kind in ("settle", "void", "expire"):
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(copy, (kind, reservation.id))
        connection.execute(copy, ("adjust", reservation.id))


async def test_a_settle_is_booked_though_its_waiter_is_cancelled(bench: Bench) -> None:
    reservation = await bench.reserve(money(100))
    bench.ledger.settle(reservation, settlement(60)).cancel()
    other = await bench.reserve(money(1))
    await bench.ledger.void(other)
    assert await bench.account() == (60, 0)


async def test_voiding_gives_all_back_and_leaves_an_entry_that_says_why(bench: Bench) -> None:
    reservation = await bench.reserve(money(100), gauge())
    assert await bench.ledger.void(reservation, note="because") is Resolved.DONE
    assert (await bench.account(), await bench.gauge()) == ((0, 0), 0)
    assert await bench.entries() == [("void", 0)]
    row = await bench.store.readers.row("SELECT outcome, notes, lines FROM entries")
    assert row == ("not_sent", '["because"]', "[]")


# --- extend ------------------------------------------------------------------------------------------


async def test_extending_holds_more_and_settling_gives_all_of_it_back(bench: Bench) -> None:
    reservation = await bench.reserve(money(100), gauge())
    assert await bench.ledger.extend(reservation, [money(50)]) is None
    assert (await bench.account(), reservation.hold_nanousd) == ((0, 150), 150)
    await bench.ledger.settle(reservation, settlement(140))
    assert await bench.account() == (140, 0)
    assert await bench.entries() == [("settle", 140)]


async def test_an_extension_beyond_the_allowance_changes_nothing(bench: Bench) -> None:
    reservation = await bench.reserve(money(100))
    assert await bench.ledger.extend(reservation, [money(901)]) is not None
    assert (await bench.account(), reservation.hold_nanousd) == ((0, 100), 100)
    await bench.ledger.settle(reservation, settlement(100))


async def test_an_extension_by_nothing_is_granted_on_an_overspent_account(bench: Bench) -> None:
    overspent, running = await bench.reserve(money(100)), await bench.reserve(money(100))
    await bench.ledger.settle(overspent, settlement(1_500))
    assert await bench.ledger.extend(running, [money(1)]) is not None
    assert await bench.ledger.extend(running, [money(0)]) is None
    assert await bench.account() == (1_500, 100)
    await bench.ledger.settle(running, settlement(100))


async def test_an_extension_of_what_is_resolved_holds_nothing(bench: Bench) -> None:
    reservation = await bench.reserve(money(100))
    resolved = bench.ledger.settle(reservation, settlement(100))
    assert await bench.ledger.extend(reservation, [money(50)]) is not None
    assert await resolved is Resolved.DONE
    assert await bench.account() == (100, 0)


@pytest.mark.parametrize("verb", ["settle", "void"])
@pytest.mark.parametrize(("more", "is_granted"), [(50, True), (5_000, False)])
async def test_a_resolution_during_an_extension_waits_for_it_and_leaks_nothing(
    bench: Bench, verb: str, more: int, is_granted: bool
) -> None:
    reservation = await bench.reserve(money(100), gauge())
    extending = asyncio.gather(bench.ledger.extend(reservation, [money(more)]))
    await asyncio.sleep(0)
    assert reservation.extension is not None
    if verb == "settle":
        resolved = bench.ledger.settle(reservation, settlement(120))
    else:
        resolved = bench.ledger.void(reservation)
    assert await resolved is Resolved.DONE
    assert [declined is None for declined in await extending] == [is_granted]
    assert (await bench.account(), await bench.gauge()) == ((120 if verb == "settle" else 0, 0), 0)


async def test_what_others_extend_is_extended_and_resolved_by_what_they_have_made_of_it(bench: Bench) -> None:
    """Two workers find the same reservation: whoever is second knows less than its row, and changes nothing."""
    reservation = await bench.reserve(money(10), gauge())
    first, second = [await bench.ledger.held(reservation.id) for _ in range(2)]
    assert first is not None
    assert second is not None
    assert await bench.ledger.extend(first, [money(20)]) is None
    assert await bench.ledger.extend(second, [money(20)]) is not None
    assert await bench.ledger.settle(second, settlement(5)) is Resolved.ALREADY_RESOLVED
    assert await bench.account() == (0, 30)
    assert await bench.ledger.extend(first, [money(3)]) is None
    assert await bench.account() == (0, 33)
    found = await bench.ledger.resolve_found(
        reservation.id, lambda held: bench.ledger.settle(held, settlement(5))
    )
    assert found is Resolved.DONE
    assert await bench.account() == (5, 0)
    found = await bench.ledger.resolve_found(reservation.id, bench.ledger.void)
    assert found is Resolved.ALREADY_RESOLVED


@pytest.mark.parametrize("verb", ["settle", "void"])
async def test_what_others_have_parked_is_not_resolved_by_what_it_held_before(
    bench: Bench, verb: str
) -> None:
    """A worker that stood still was taken for dead: its request's place is given back once, not again by its own end."""
    mine = await bench.reserve(money(10), gauge(), due_at_ms=NOW_MS + 60_000)
    found = await bench.worker("wrk_b").held(mine.id)
    assert found is not None
    await bench.store.writer.submit(Unit(bench.ledger.parking(found)))
    resolved = bench.ledger.settle(mine, settlement(0)) if verb == "settle" else bench.ledger.void(mine)
    assert await resolved is Resolved.ALREADY_RESOLVED
    assert (await bench.account(), await bench.gauge()) == ((0, 10), 0)
    await bench.assert_clean()
    await bench.ledger.resolve_found(mine.id, bench.ledger.void)
    assert (await bench.account(), await bench.gauge()) == ((0, 0), 0)


async def test_extensions_and_resolutions_of_what_was_found_race_to_one_resolution_without_a_leak(
    bench: Bench,
) -> None:
    other = bench.worker("wrk_b")
    reservation = await bench.reserve(money(10, of=10_000), gauge())

    async def keep_extending() -> None:
        while (found := await other.held(reservation.id)) is not None:
            await other.extend(found, [money(1, of=10_000)])

    extending = spawn(keep_extending(), name="extending")
    resolved = []
    while Resolved.DONE not in resolved:
        with contextlib.suppress(Refused):  # it was extended faster than it could be looked at
            resolved.append(
                await bench.ledger.resolve_found(
                    reservation.id, lambda held: bench.ledger.settle(held, settlement(7))
                )
            )
    await extending
    assert resolved == [Resolved.DONE]
    assert await bench.account() == (7, 0)


async def test_an_extension_whose_waiter_is_cancelled_leaks_nothing(bench: Bench) -> None:
    for steps in range(6):
        reservation = await bench.reserve(money(100))
        await cancelled_after(bench.ledger.extend(reservation, [money(50)]), steps)
        await bench.ledger.settle(reservation, settlement(0))
        assert await bench.account() == (0, 0)


async def test_extending_touches_accounts_that_were_not_held_before(bench: Bench) -> None:
    reservation = await bench.reserve(money(100))
    assert await bench.ledger.extend(reservation, [money(100, owner="token:t1"), gauge()]) is None
    await bench.ledger.settle(reservation, settlement(30))
    assert (await bench.account(), await bench.account("token:t1")) == ((30, 0), (30, 0))
    assert await bench.gauge() == 0


# --- cancelled while being admitted ------------------------------------------------------------------


async def cancelled_after(coroutine, iterations: int) -> bool:
    """Cancel a coroutine after so many turns of the event loop; whether it was too late."""
    task = asyncio.get_running_loop().create_task(coroutine)
    for _ in range(iterations):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
        return True
    return False


async def test_a_reservation_abandoned_at_any_moment_is_voided(bench: Bench) -> None:
    """Cancelled k turns of the loop after the start, for growing k until the reservation is returned."""
    was_abandoned = False
    for iterations in range(2_000):
        ident = request_id()
        is_granted = await cancelled_after(
            bench.ledger.reserve(intent(money(100), gauge(), named=ident)), iterations
        )
        await bench.ledger.void(await bench.reserve(named=request_id()))  # whatever was queued is committed
        if is_granted and await bench.state(ident) == "HELD":
            assert iterations > 1
            break
        await eventually_resolved(bench, ident)
        assert (await bench.account(), await bench.gauge()) == ((0, 0), 0)
        was_abandoned = was_abandoned or await bench.entries(ident) == [("void", 0)]
    else:
        pytest.fail("no reservation was ever granted")
    assert was_abandoned


async def eventually_resolved(bench: Bench, reservation_id: str) -> None:
    for _ in range(200):
        if await bench.state(reservation_id) != "HELD":
            return
    pytest.fail(f"{reservation_id} stays HELD")


async def test_a_reservation_cancelled_when_its_result_is_there_already_is_voided(bench: Bench) -> None:
    """The narrowest window: the commit is delivered, the task is not yet resumed."""
    task = asyncio.get_running_loop().create_task(bench.ledger.reserve(intent(money(100), named="req_late")))
    await asyncio.sleep(0)
    original = bench.store.writer._deliver

    def deliver_and_cancel(results, stats) -> None:
        original(results, stats)
        task.cancel()

    bench.store.writer._deliver = deliver_and_cancel  # type: ignore[method-assign]
    with contextlib.suppress(asyncio.CancelledError):
        await task
    bench.store.writer._deliver = original  # type: ignore[method-assign]
    await bench.ledger.void(await bench.reserve())
    if task.cancelled():
        assert await bench.state("req_late") == "VOIDED"
        assert await bench.account() == (0, 0)
    else:  # the thread had delivered before the patch: the caller owns the hold
        await bench.ledger.void(task.result())  # type: ignore[arg-type]


# --- expire and late reports -------------------------------------------------------------------------


async def test_a_dead_workers_holds_expire_at_their_floor_or_last_checkpoint(bench: Bench) -> None:
    plain = await bench.reserve(money(100), gauge(), floor=7)
    seen = await bench.reserve(money(100), gauge(), floor=7)
    above = await bench.reserve(money(100), gauge(), floor=700)
    bench.ledger.checkpoint(seen, priced(33))
    greedy = await bench.reserve(money(100), gauge())
    bench.ledger.checkpoint(greedy, priced(1_000))
    bystander = await bench.reserve(money(100), gauge(), ledger=bench.worker("wrk_b"))
    assert await bench.worker("wrk_c").expire_worker("wrk_a") == 4
    assert await bench.entries(plain.id) == [("expire", 7)]
    assert await bench.entries(seen.id) == [("expire", 33)]
    assert await bench.entries(above.id) == [("expire", 100)]
    assert await bench.entries(greedy.id) == [("expire", 100)]
    assert await bench.state(bystander.id) == "HELD"
    assert (await bench.account(), await bench.gauge()) == ((240, 100), 1)
    assert await bench.account(meter=OPEN_REQUESTS, period=NO_PERIOD) == (0, 1)  # a gauge is never spent
    row = await bench.store.readers.row(
        "SELECT basis, outcome, input_tokens, output_tokens, model FROM entries WHERE reservation_id = ?1",
        (seen.id,),
    )
    assert row == ("estimated", "worker_died", 16, 17, MODEL)
    assert await bench.worker("wrk_c").expire_worker("wrk_a") == 0


async def test_expiring_goes_in_bounded_batches(bench: Bench) -> None:
    for _ in range(5):
        await bench.reserve(money(10))
    counts = [await bench.ledger.expire_worker("wrk_a", reservations_max=2) for _ in range(4)]
    assert counts == [2, 2, 1, 0]


async def test_counts_that_were_held_are_booked_as_asked_for_when_the_worker_dies(bench: Bench) -> None:
    await bench.reserve(money(100), money(3, of=10)._replace(meter="searches"))
    await bench.ledger.expire_worker("wrk_a")
    assert await bench.account(meter="searches") == (3, 0)


async def test_work_that_ends_later_lives_until_it_is_due_whoever_started_it(bench: Bench) -> None:
    call = await bench.reserve(money(100), floor=20, due_at_ms=NOW_MS + 60_000)
    assert await bench.ledger.expire_worker("wrk_a") == 0
    bench.clock.advance(60)
    assert await bench.ledger.expire_overdue() == 0
    bench.clock.advance(0.001)
    assert await bench.ledger.expire_overdue() == 1
    assert await bench.entries(call.id) == [("expire", 20)]


async def test_an_extended_reservation_expires_with_all_that_it_holds(bench: Bench) -> None:
    reservation = await bench.reserve(money(100))
    await bench.ledger.extend(reservation, [money(50)])
    bench.ledger.checkpoint(reservation, priced(120))
    await bench.ledger.void(await bench.reserve())
    await bench.ledger.expire_worker("wrk_a")
    assert await bench.account() == (120, 0)


LATE_REPORTS = [
    # checkpoint, cost, is_reported, spent, entries
    (30, 80, True, 80, [("expire", 30), ("adjust", 50)]),
    (30, 10, True, 10, [("expire", 30), ("adjust", -20)]),
    (30, 30, True, 30, [("expire", 30), ("adjust", 0)]),
    (30, 500, True, 500, [("expire", 30), ("adjust", 470)]),
    (30, 0, True, 0, [("expire", 30), ("adjust", -30)]),
    (30, 80, False, 30, [("expire", 30)]),
]


@pytest.mark.parametrize(("checkpoint", "cost", "is_reported", "spent", "entries"), LATE_REPORTS)
async def test_a_settle_after_the_expiry_is_done_when_its_adjustment_is_durable(
    bench: Bench, checkpoint: int, cost: int, is_reported: bool, spent: int, entries: list[tuple[str, int]]
) -> None:
    reservation = await bench.reserve(money(100), money(100, owner="token:t1"), gauge(), floor=checkpoint)
    await bench.worker("wrk_b").expire_worker("wrk_a")
    for _ in range(2):
        found = await bench.ledger.settle(reservation, settlement(cost, is_reported=is_reported))
        assert found is Resolved.ALREADY_RESOLVED
    assert await bench.entries(reservation.id) == entries
    assert (await bench.account(), await bench.account("token:t1")) == ((spent, 0), (spent, 0))
    assert await bench.gauge() == 0


async def test_an_adjustment_counts_the_tokens_that_the_expiry_did_not(bench: Bench) -> None:
    reservation = await bench.reserve(money(100))
    bench.ledger.checkpoint(reservation, priced(30))
    await bench.ledger.void(await bench.reserve())
    await bench.ledger.expire_worker("wrk_a")
    await bench.ledger.settle(reservation, settlement(80))
    columns = "kind, input_tokens, output_tokens"
    rows = await bench.store.readers.rows(f"SELECT {columns} FROM entries WHERE kind <> 'void' ORDER BY seq")
    assert rows == [("expire", 15, 15), ("adjust", 25, 25)]


@pytest.mark.parametrize("reports", [1, 30])
async def test_late_reports_under_way_at_the_end_are_written_before_the_store_closes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reports: int
) -> None:
    async with open_bench(tmp_path) as bench:
        reservations = [await bench.reserve(money(100, of=10_000), floor=10) for _ in range(reports)]
        await bench.worker("wrk_b").expire_worker("wrk_a")
        resolved = [bench.ledger.settle(reservation, settlement(70)) for reservation in reservations]
    assert [future.result() for future in resolved] == [Resolved.ALREADY_RESOLVED] * reports
    async with open_bench(tmp_path, database=bench.store.database) as again:
        assert await again.account() == (70 * reports, 0)
        assert len(await again.entries()) == 2 * reports
        await again.assert_clean()
    assert not caplog.records


async def test_a_settle_that_waits_for_an_extension_at_the_end_is_written(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        reservation = await bench.reserve(money(100))
        extending = asyncio.gather(bench.ledger.extend(reservation, [money(50)]))
        await asyncio.sleep(0)
        resolved = bench.ledger.settle(reservation, settlement(60))
    assert await extending == [None]
    assert resolved.result() is Resolved.DONE


@pytest.mark.parametrize("credit", [(), (prepaid(),)], ids=["month", "credit"])
@pytest.mark.parametrize("searches", [0, 3, 7])
async def test_a_late_report_corrects_the_counts_that_were_booked_as_held(
    bench: Bench, credit: tuple[Hold, ...], searches: int
) -> None:
    if credit:
        await bench.grant(50)
    reservation = await bench.reserve(
        money(100), money(3, of=10)._replace(meter="searches"), gauge(), *credit, floor=30
    )
    await bench.ledger.expire_worker("wrk_a")
    assert await bench.ledger.report_late(reservation.id, settlement(20, searches=searches))
    assert await bench.account(meter="searches") == (searches, 0)
    *_, (kind, lines) = await bench.lines(reservation.id)
    assert (kind, lines.get("searches", 0)) == ("adjust", searches - 3)
    assert await bench.account() == (20, 0)
    await bench.assert_clean()


async def test_late_reports_that_race_adjust_once(bench: Bench) -> None:
    reservation = await bench.reserve(money(100), floor=30)
    await bench.ledger.expire_worker("wrk_a")
    reports = await asyncio.gather(
        *(bench.ledger.report_late(reservation.id, settlement(cost)) for cost in (50, 60, 70))
    )
    assert sorted(reports) == [False, False, True]
    assert len(await bench.entries(reservation.id)) == 2


async def test_a_late_report_of_what_did_not_expire_says_so(bench: Bench) -> None:
    held, settled, voided = [await bench.reserve(money(100)) for _ in range(3)]
    await bench.ledger.settle(settled, settlement(10))
    await bench.ledger.void(voided)
    for ident in (held.id, settled.id, voided.id, "req_unknown"):
        assert not await bench.ledger.report_late(ident, settlement(50))
    assert await bench.account() == (10, 100)


async def test_expiry_and_settle_race_to_exactly_one_resolution(bench: Bench) -> None:
    """Many at once: whichever unit is committed first wins; in the end the exact cost stands either way."""
    reservations = [await bench.reserve(money(10, of=10_000), floor=3) for _ in range(60)]
    reaper = bench.worker("wrk_b")
    expiring = asyncio.gather(*(reaper.expire_worker("wrk_a", reservations_max=20) for _ in range(3)))
    await asyncio.sleep(0)
    found = []
    for reservation in reservations:
        found.append(bench.ledger.settle(reservation, settlement(8)))
        await asyncio.sleep(0)
    found = await asyncio.gather(*found)
    await expiring
    kinds = [kind for kind, _ in await bench.entries()]
    assert kinds.count("expire") + kinds.count("settle") == 60
    assert kinds.count("expire") == kinds.count("adjust") == found.count(Resolved.ALREADY_RESOLVED)
    assert await bench.account() == (480, 0)


async def test_an_expiry_that_read_an_old_checkpoint_leaves_the_reservation_to_the_next_look(
    bench: Bench,
) -> None:
    reservation = await bench.reserve(money(100), floor=1)
    columns = "id, user_id, token_id, surface, operation, model, lines, checkpoint_nanousd"
    rows = await bench.store.readers.rows(
        f"SELECT {columns}, checkpoint_usage, created_at_ms, worker_id FROM reservations"
    )
    bench.ledger.checkpoint(reservation, priced(50))
    assert await bench.ledger._expire(rows) == 0
    assert await bench.ledger.expire_worker("wrk_a") == 1
    assert await bench.entries() == [("expire", 50)]


# --- what rows cannot take ---------------------------------------------------------------------------

UNBOOKABLE = {
    "more tokens than 64 bits": Priced(60, (PricedLine(MODEL, {INPUT: 2**70}, {}, {INPUT: 0}),), ()),
    "tokens that only the column cannot take": Priced(
        60, (PricedLine(MODEL, {INPUT: 2**63, OUTPUT: 1}, {}, {INPUT: 0, OUTPUT: 0}),), ()
    ),
    "a surrogate in the model's name": Priced(
        60, (PricedLine("\ud800", {INPUT: 1}, {}, {INPUT: 60_000}),), ()
    ),
    "a surrogate in a flag": Priced(60, (), ("\udfff",)),
}


@pytest.mark.parametrize("report", UNBOOKABLE.values(), ids=UNBOOKABLE)
async def test_a_report_that_no_row_can_take_is_booked_without_its_details(
    bench: Bench, report: Priced
) -> None:
    reservation = await bench.reserve(money(100), gauge())
    assert (
        await bench.ledger.settle(reservation, Settlement(Outcome.COMPLETED, report, is_reported=True))
        is Resolved.DONE
    )
    assert (await bench.account(), await bench.gauge()) == ((60, 0), 0)
    row = await bench.store.readers.row("SELECT basis, notes, usage FROM entries")
    assert row == ("estimated", f'["{UNBOOKABLE_REPORT}"]', None)


@pytest.mark.parametrize("cost", [COST_NANOUSD_MAX + 1, 2**63, 2**80, -1])
async def test_a_cost_beyond_reason_is_booked_at_the_hold(bench: Bench, cost: int) -> None:
    reservation = await bench.reserve(money(100))
    report = Settlement(Outcome.COMPLETED, Priced(cost, (), ()), is_reported=True)
    assert await bench.ledger.settle(reservation, report) is Resolved.DONE
    assert await bench.account() == (100, 0)


@pytest.mark.parametrize(
    ("cost", "searches"), [(COST_NANOUSD_MAX + 1, 7), (60, 2**62), (60, 2**70), (60, -1)]
)
async def test_counts_beyond_reason_are_booked_as_they_were_held(
    bench: Bench, cost: int, searches: int
) -> None:
    reservation = await bench.reserve(money(100), money(3, of=10)._replace(meter="searches"))
    assert await bench.ledger.settle(reservation, settlement(cost, searches=searches)) is Resolved.DONE
    assert (await bench.account(), await bench.account(meter="searches")) == ((100, 0), (3, 0))
    await bench.assert_clean()


@pytest.mark.parametrize(("cost", "searches"), [(COST_NANOUSD_MAX + 1, 1), (2**80, 1), (-1, 1), (60, 2**70)])
async def test_a_late_report_beyond_reason_leaves_the_estimate(
    bench: Bench, cost: int, searches: int
) -> None:
    reservation = await bench.reserve(money(100), money(3, of=10)._replace(meter="searches"), floor=30)
    await bench.ledger.expire_worker("wrk_a")
    assert not await bench.ledger.report_late(reservation.id, settlement(cost, searches=searches))
    assert (await bench.account(), await bench.account(meter="searches")) == ((30, 0), (3, 0))
    await bench.assert_clean()


async def test_an_upstream_request_id_that_is_no_text_does_not_keep_the_hold(bench: Bench) -> None:
    reservation = await bench.reserve(money(100))
    report = Settlement(Outcome.COMPLETED, priced(60), is_reported=True, upstream_request_id="\ud800")
    assert await bench.ledger.settle(reservation, report) is Resolved.DONE
    assert await bench.account() == (60, 0)


async def test_a_checkpoint_that_no_row_can_take_is_left_out(bench: Bench) -> None:
    reservation = await bench.reserve(money(100), floor=5)
    for report in UNBOOKABLE.values():
        bench.ledger.checkpoint(reservation, report)
    await bench.ledger.void(await bench.reserve())
    assert await bench.state(reservation.id) == "HELD"
    await bench.ledger.settle(reservation, settlement(9))


async def test_a_clock_set_back_gives_no_negative_duration(bench: Bench) -> None:
    reservation = await bench.reserve(money(100))
    bench.clock.ms -= 3_600_000
    await bench.ledger.settle(reservation, settlement(10))
    assert await bench.store.readers.row("SELECT duration_ms FROM entries") == (0,)


# --- the store in trouble ----------------------------------------------------------------------------


async def test_a_locked_store_refuses_reservations_and_settles_when_it_is_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "EXTEND_TIMEOUT_S", 0.2)
    async with open_bench(tmp_path, busy_timeout_s=0.05) as bench:
        reservation = await bench.reserve(money(100), gauge())
        with closing(sqlite3.connect(bench.store.database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            resolved = bench.ledger.settle(reservation, settlement(60))
            with pytest.raises(Refused):
                await bench.ledger.reserve(intent(money(10)))
            with pytest.raises(Refused):
                await bench.ledger.extend(reservation, [money(10)])
            assert not resolved.done()
            other.execute("ROLLBACK")
        assert await resolved is Resolved.DONE
        assert (await bench.account(), await bench.gauge()) == ((60, 0), 0)
        await bench.assert_clean()


async def test_a_settle_whose_extension_found_the_store_locked_is_booked_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "EXTEND_TIMEOUT_S", 0.2)
    async with open_bench(tmp_path, busy_timeout_s=0.05) as bench:
        reservation = await bench.reserve(money(100), gauge())
        with closing(sqlite3.connect(bench.store.database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            extending = asyncio.gather(bench.ledger.extend(reservation, [money(50)]), return_exceptions=True)
            await asyncio.sleep(0)
            resolved = bench.ledger.settle(reservation, settlement(60))
            assert [type(result) for result in await extending] == [Refused]
            other.execute("ROLLBACK")
        assert await resolved is Resolved.DONE
        assert (await bench.account(), await bench.gauge()) == ((60, 0), 0)
        await bench.assert_clean()


@pytest.mark.parametrize("end", ["settle_meanwhile", "settle_afterwards", "void_meanwhile", "expire"])
async def test_an_extension_that_a_disk_which_hung_commits_after_its_refusal_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(ledger_module, "EXTEND_TIMEOUT_S", 0.2)
    monkeypatch.setattr(writer_module, "STALL_GRACE_S", 0.1)
    monkeypatch.setattr(writer_module, "WATCH_EVERY_S", 0.02)
    commit_together, goes_on = writer_module.GroupCommitWriter._commit_together, threading.Event()

    def hangs(*args):
        goes_on.wait(10)
        return commit_together(*args)

    async with open_bench(tmp_path, busy_timeout_s=0.0) as bench:
        reservation = await bench.reserve(money(100), gauge())
        monkeypatch.setattr(writer_module.GroupCommitWriter, "_commit_together", hangs)
        with pytest.raises(Refused) as refusal:
            await bench.ledger.extend(reservation, [money(50)])
        assert refusal.value.reason is Reason.STORE_UNAVAILABLE
        with pytest.raises(Refused, match="does not answer"):
            await bench.ledger.extend(reservation, [money(50)])
        monkeypatch.setattr(writer_module, "STALL_GRACE_S", 60.0)
        if end == "settle_meanwhile":
            resolved = bench.ledger.settle(reservation, settlement(130))
        elif end == "void_meanwhile":
            resolved = bench.ledger.void(reservation)
        goes_on.set()
        if end == "settle_afterwards":
            resolved = bench.ledger.settle(reservation, settlement(130))
        if end == "expire":
            assert isinstance(await reservation.extension, Done)
            assert await bench.worker("wrk_b").expire_worker("wrk_a") == 1
        else:
            assert await resolved is Resolved.DONE
        assert (await bench.account())[1] == 0
        assert await bench.gauge() == 0
        assert len(await bench.entries()) == 1
        await bench.assert_clean()


async def test_settles_queued_at_the_end_are_written_before_the_store_closes(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        reservations = [await bench.reserve(money(1)) for _ in range(20)]
        resolved = [bench.ledger.settle(reservation, settlement(1)) for reservation in reservations]
    assert [future.result() for future in resolved] == [Resolved.DONE] * 20
    async with open_bench(tmp_path, database=bench.store.database) as again:
        assert await again.account() == (20, 0)
        await again.assert_clean()


# --- rows --------------------------------------------------------------------------------------------


async def test_an_entry_says_all_that_is_known(bench: Bench) -> None:
    counts = {INPUT: 1, CACHE_READ: 2, CACHE_WRITE_5M: 4, CACHE_WRITE_1H: 8, OUTPUT: 16}
    line = PricedLine("claude-answered-1", counts, {"speed": "fast"}, dict.fromkeys(counts, 1_000))
    reservation = await bench.reserve(money(100), named="req_1")
    bench.clock.advance(1.5)
    report = Settlement(
        Outcome.CLIENT_LEFT,
        Priced(31, (line,), ("unpriced_unit:x",)),
        is_reported=True,
        notes=("odd",),
        price_version="2026-11-20",
        upstream_status=200,
        upstream_request_id="up_9",
    )
    await bench.ledger.settle(reservation, report)
    columns = """kind, reservation_id, user_id, token_id, at_ms, surface, operation, model, outcome, basis,
        cost_nanousd, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, notes, lines,
        price_version, upstream_status, upstream_request_id, duration_ms"""
    row = await bench.store.readers.row(f"SELECT {columns} FROM entries")
    assert row == (
        *("settle", "req_1", "ada", "tok_ada", NOW_MS + 1_500, "anthropic", "POST /v1/messages"),
        *("claude-answered-1", "client_left", "reported", 31, 1, 2, 12, 16, '["odd","unpriced_unit:x"]'),
        *('[["user:ada","money","2026-11",31]]', "2026-11-20", 200, "up_9", 1_500),
    )


async def test_the_records_of_the_replaced_service_exist_with_its_columns(bench: Bench) -> None:
    failed = await bench.reserve(money(10_000_000, of=10**9), named="req_1")
    bench.clock.advance(2)
    await bench.ledger.settle(failed, settlement(711_000, outcome=Outcome.UPSTREAM_FAILED, is_reported=False))
    await bench.ledger.void(await bench.reserve())
    rows = await bench.store.readers.rows(
        "SELECT id, user_id, timestamp, provider, model, endpoint, input_tokens, output_tokens, "
        "cache_creation_tokens, cache_read_tokens, cost_microdollars, session_key, request_id, duration_ms, "
        "error FROM llm_usage"
    )
    at_s = NOW_MS // 1_000 + 2
    assert rows == [
        (
            *("1", "ada", at_s, "anthropic", MODEL, "POST /v1/messages", 355_500, 355_500, 0, 0, 711, None),
            *("req_1", 2_000, "upstream_failed"),
        )
    ]
    events = await bench.store.readers.rows(
        "SELECT id, user_id, timestamp, event_type, automna_tokens, cost_microdollars, metadata, error "
        "FROM usage_events"
    )
    assert [event[:6] + event[7:] for event in events] == [
        ("1", "ada", at_s, "llm", 8, 711, "upstream_failed")
    ]
    assert "claude-test-1" in str(events[0][6])


async def test_sent_mail_is_among_the_records_of_the_replaced_service(bench: Bench) -> None:
    """What was charged; not what failed, was not sent, or was a model's."""
    for surface, cost_nanousd in (
        ("agentmail", 4_000_000),
        ("email", 2_000_000),
        ("email", 0),
        ("openai", 5),
    ):
        reservation = await bench.reserve(money(10_000_000, of=10**9), surface=surface)
        await bench.ledger.settle(reservation, settlement(cost_nanousd))
    await bench.ledger.void(await bench.reserve(surface="agentmail"))
    rows = await bench.store.readers.rows(
        "SELECT id, user_id, sent_at, recipient, subject, cost_microdollars, request_id FROM email_sends"
    )
    at_s = NOW_MS // 1_000
    assert [row[:6] for row in rows] == [
        ("1", "ada", at_s, None, None, 4_000),
        ("2", "ada", at_s, None, None, 2_000),
    ]
    assert all(row[6] for row in rows)


async def test_what_verify_counts_is_what_happened(bench: Bench) -> None:
    await bench.ledger.settle(await bench.reserve(money(100)), settlement(130))
    await bench.ledger.void(await bench.reserve(money(100)))
    await bench.reserve(money(100))
    report = await verify(bench.store)
    assert report.reservations == {"SETTLED": 1, "VOIDED": 1, "HELD": 1}
    assert report.entries == {"settle": 1, "overage": 1, "void": 1}
    assert (report.cost_nanousd, report.accounts, report.is_clean) == (130, 1, True)


async def test_two_processes_on_one_store_keep_one_budget(bench: Bench) -> None:
    """Two writers with connections of their own, as two worker processes have."""
    async with open_bench(Path(), database=bench.store.database) as other:
        granted = await asyncio.gather(
            *(one.ledger.reserve(intent(money(100))) for _ in range(60) for one in (bench, other))
        )
        assert sum(isinstance(one, Reservation) for one in granted) == 10
        for reservation in granted:
            if isinstance(reservation, Reservation):
                assert await other.ledger.settle(reservation, settlement(100)) is Resolved.DONE
    assert await bench.account() == (1_000, 0)


# --- what is written with an entry ----------------------------------------------------------------------


async def told(bench: Bench) -> int:
    (row,) = await bench.store.readers.rows("SELECT COUNT(*) FROM outbox")
    return int(str(row[0]))


def telling(bench: Bench, cost: int) -> Settlement:
    step = adding(new_message("call.completed", "hook:ada", {}, bench.clock.now_ms()))
    return replace(settlement(cost), more=(step,))


async def test_what_goes_with_an_entry_is_written_once_with_a_settle(bench: Bench) -> None:
    reservation = await bench.reserve(money(100))
    for _ in range(3):
        await bench.ledger.settle(reservation, telling(bench, 10))
    assert await told(bench) == 1


async def test_and_once_with_the_adjust_of_a_report_that_comes_late(bench: Bench) -> None:
    reservation = await bench.reserve(money(100), due_at_ms=bench.clock.now_ms())
    bench.clock.ms += 1
    assert await bench.ledger.expire_overdue() == 1
    assert await told(bench) == 0
    await bench.ledger.settle(reservation, telling(bench, 10))
    assert await told(bench) == 1
    assert not await bench.ledger.report_late(reservation.id, telling(bench, 10))
    assert await told(bench) == 1
