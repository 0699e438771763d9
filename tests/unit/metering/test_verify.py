"""`ledger verify`: clean ledgers are clean, and every kind of damage is found and named."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from metering import verify as verify_module
from metering.ledger import NOT_FROM_USAGE, Outcome, Settlement
from metering.prices import Priced
from metering.verify import Report, verify
from tests.support.ledger import Bench, gauge, money, open_bench, prepaid, priced, settlement


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A ledger with one of everything: settled, over the hold, voided, expired, adjusted, held."""
    async with open_bench(tmp_path) as bench:
        for named, cost in (("req_settled", 60), ("req_over", 130)):
            reservation = await bench.reserve(money(100), money(100, owner="token:t"), gauge(), named=named)
            await bench.ledger.settle(reservation, settlement(cost))
        await bench.ledger.void(await bench.reserve(money(100), named="req_voided"))
        for named in ("req_expired", "req_adjusted"):
            bench.ledger.checkpoint(await bench.reserve(money(100), named=named), priced(30))
        await bench.ledger.void(await bench.reserve(named="req_free"))
        await bench.ledger.expire_worker("wrk_a")
        assert await bench.ledger.report_late("req_adjusted", settlement(45))
        await bench.reserve(money(100), gauge(), named="req_held")
        yield bench


def damage(bench: Bench, sql: str) -> None:
    with closing(sqlite3.connect(bench.store.database.path)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        with connection:
            connection.execute(sql)


async def test_a_clean_ledger_is_clean_and_counted(bench: Bench) -> None:
    assert await verify(bench.store) == Report(
        accounts=3,
        reservations={"SETTLED": 2, "VOIDED": 2, "EXPIRED": 2, "HELD": 1},
        entries={"settle": 2, "overage": 1, "void": 2, "expire": 2, "adjust": 1},
        cost_nanousd=60 + 130 + 30 + 45,
        problems=(),
        problems_total=0,
    )


REPRICED = "INSERT INTO entries (kind, reservation_id, user_id, at_ms, basis, cost_nanousd, input_tokens, \
cache_read_tokens, cache_write_tokens, output_tokens, lines, usage, notes) VALUES ('adjust', '{}', 'ada', 0, \
'reported', {}, 0, 0, 0, 0, '[[\"user:ada\", \"money\", \"2026-11\", {}]]', {}, '[\"repriced\"]')"
USAGE = '\'[{{"model": "m", "counts": {{"input_tokens": {}}}, "modifiers": {{}}, \
"unit_prices": {{"input_tokens": 1000}}}}]\''


def repriced(name: str, cost: int, usage: str) -> str:
    return REPRICED.format(name, cost, cost, usage)


async def test_what_was_repriced_any_number_of_times_is_clean(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        await bench.ledger.settle(await bench.reserve(money(100), named="req_1"), settlement(130))
        for cost, arrived in ((20, 150), (-100, 50)):
            damage(bench, repriced("req_1", cost, USAGE.format(arrived)))
        damage(bench, "UPDATE accounts SET spent = 50")
        damage(bench, "UPDATE reservations SET booked_nanousd = 50")
        report = await verify(bench.store)
        assert report.problems == ()
        damage(bench, "UPDATE entries SET cost_nanousd = 10 WHERE cost_nanousd = 20")
        assert "usage times unit prices is 150, its entries cost 140" in "".join(
            (await verify(bench.store)).problems
        )


@pytest.mark.parametrize(
    ("damaging", "problem"),
    [
        (repriced("req_settled", 1, "NULL"), "reservation req_settled (SETTLED): repriced without a usage"),
        (repriced("req_settled", 1, USAGE.format(99)), "usage times unit prices is 99, its entries cost 61"),
        (repriced("req_settled", 1, USAGE.format(61)), "booked is 60, its entries cost 61"),
        (repriced("req_voided", 1, USAGE.format(1)), "expected one void entry, found adjust, void"),
        (repriced("req_held", 1, USAGE.format(1)), "entries of what is not resolved: adjust"),
        (repriced("req_none", 1, USAGE.format(1)), "adjust of req_none: no such reservation"),
    ],
)
async def test_a_wrong_correction_is_found(bench: Bench, damaging: str, problem: str) -> None:
    damage(bench, damaging)
    assert any(problem in found for found in (await verify(bench.store)).problems)


async def test_an_empty_ledger_is_clean(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        assert (await verify(bench.store)).is_clean


ENTRY = "INSERT INTO entries (kind, reservation_id, user_id, at_ms, basis, cost_nanousd, input_tokens, \
cache_read_tokens, cache_write_tokens, output_tokens, lines) VALUES "
DAMAGES = [
    # what is done, what is said
    ("UPDATE accounts SET held = held + 1 WHERE owner = 'user:ada' AND meter = 'money'",
     "account user:ada money 2026-11: held is 101, its HELD reservations add up to 100"),
    ("UPDATE accounts SET held = 0 WHERE meter = 'open_requests'",
     "account user:ada open_requests: held is 0, its HELD reservations add up to 1"),
    ("UPDATE accounts SET held = -5 WHERE meter = 'open_requests'", "held is negative (-5)"),
    ("UPDATE accounts SET spent = spent - 1 WHERE owner = 'token:t'",
     "account token:t money 2026-11: spent is 189, its entries add up to 190"),
    ("DELETE FROM accounts WHERE owner = 'token:t'",
     "account token:t money 2026-11: 190 spent, but there is no such account"),
    ("DELETE FROM accounts WHERE meter = 'open_requests'",
     "account user:ada open_requests: 1 held, but there is no such account"),
    ("DELETE FROM entries WHERE reservation_id = 'req_settled'",
     "reservation req_settled (SETTLED): expected one settle entry, found none"),
    ("DELETE FROM entries WHERE reservation_id = 'req_over' AND kind = 'overage'",
     "reservation req_over (SETTLED): booked is 130, its entries cost 100"),
    ("DELETE FROM entries WHERE kind = 'adjust'",
     "reservation req_adjusted (EXPIRED): booked is 45, its entries cost 30"),
    ("DELETE FROM entries WHERE reservation_id = 'req_voided'", "expected one void entry, found none"),
    ("UPDATE entries SET kind = 'void' WHERE reservation_id = 'req_settled'",
     "reservation req_settled (SETTLED): expected one settle entry, found void"),
    ("UPDATE entries SET kind = 'overage' WHERE kind = 'adjust'",
     "reservation req_adjusted (EXPIRED): expected one expire entry, found expire, overage"),
    ("UPDATE reservations SET state = 'HELD' WHERE id = 'req_settled'",
     "reservation req_settled (HELD): entries of what is not resolved: settle"),
    ("UPDATE reservations SET state = 'SETTLED' WHERE id = 'req_held'",
     "reservation req_held (SETTLED): expected one settle entry, found none"),
    ("UPDATE reservations SET booked_nanousd = 61 WHERE id = 'req_settled'", "booked is 61, its entries cost 60"),
    ("UPDATE reservations SET booked_nanousd = NULL WHERE id = 'req_settled'",
     "booked is None, its entries cost 60"),
    ("UPDATE reservations SET hold_nanousd = 29 WHERE id = 'req_expired'",
     "expired at 30, above its hold of 29"),
    ("DELETE FROM reservations WHERE id = 'req_settled'", "settle of req_settled: no such reservation"),
    ("DELETE FROM reservations WHERE id = 'req_voided'", "void of req_voided: no such reservation"),
    ("UPDATE entries SET cost_nanousd = 61 WHERE reservation_id = 'req_settled'",
     "settle of req_settled: cost is 61, its charged lines are"),
    ("UPDATE entries SET lines = '[]' WHERE reservation_id = 'req_settled'",
     "settle of req_settled: cost is 60, its charged lines are []"),
    ("UPDATE entries SET usage = replace(usage, '30', '31') WHERE reservation_id = 'req_settled'",
     "usage times unit prices is 62, its entries cost 60"),
    ("UPDATE entries SET usage = replace(usage, '1000', '2000') WHERE reservation_id = 'req_over'",
     "usage times unit prices is 260, its entries cost 130"),
    ("UPDATE entries SET usage = replace(usage, '22', '0') WHERE kind = 'adjust'",
     "usage times unit prices is 23, its entries cost 45"),
    (ENTRY + "('adjust', NULL, 'ada', 0, 'reported', 0, 0, 0, 0, 0, '[]')",
     "adjust of no reservation: no such reservation"),
    (ENTRY + "('overage', 'req_settled', 'ada', 0, 'reported', 0, 0, 0, 0, 0, '[]'),"
     "('overage', 'req_settled', 'ada', 0, 'reported', 0, 0, 0, 0, 0, '[]')",
     "expected one settle entry, found overage, overage, settle"),
    (ENTRY + "('overage', 'zzz', 'ada', 0, 'reported', 0, 0, 0, 0, 0, '[]')",
     "overage of zzz: no such reservation"),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "problem"), DAMAGES)
async def test_damage_is_found_and_named(bench: Bench, sql: str, problem: str) -> None:
    damage(bench, sql)
    report = await verify(bench.store)
    assert not report.is_clean
    assert any(problem in found for found in report.problems), report.problems


async def with_credit(bench: Bench) -> None:
    """Beside the rest: a grant, some of it taken back, some spent."""
    await bench.grant(50, user_id="cyd", source="in")
    await bench.grant(-10, user_id="cyd", source="out")
    holds = (money(30, of=20, owner="user:cyd"), prepaid(owner="user:cyd"))
    await bench.ledger.settle(await bench.reserve(*holds, named="req_prepaid", user_id="cyd"), settlement(25))
    assert await bench.credit("user:cyd") == (5, 0, 40)


async def test_prepaid_credit_is_clean_and_counted(bench: Bench) -> None:
    await with_credit(bench)
    report = await verify(bench.store)
    assert report.problems == ()
    assert report.entries["grant"] == 2
    assert report.cost_nanousd == 60 + 130 + 30 + 45 + 25, "a grant costs nothing"


CREDIT_DAMAGES = [
    ("UPDATE accounts SET allowance = 41 WHERE meter = 'credit'",
     "account user:cyd credit: granted is 41, its grants add up to 40"),
    ("UPDATE accounts SET spent = 41 WHERE meter = 'credit'",
     "account user:cyd credit: spent and held is 41, granted only 40"),
    ("DELETE FROM accounts WHERE meter = 'credit'",
     "account user:cyd credit: 40 granted, but there is no such account"),
    ("DELETE FROM grants WHERE source = 'in'", "no source says what for"),
    ("DELETE FROM entries WHERE kind = 'grant' AND lines LIKE '%-10%'", "grant out: there is no entry"),
    ("UPDATE grants SET amount_nanousd = 51 WHERE source = 'in'", "grant in: 51 to cyd, its entry of cyd has"),
    ("UPDATE grants SET user_id = 'ada' WHERE source = 'in'", "grant in: 50 to ada, its entry of cyd has"),
    ("UPDATE entries SET cost_nanousd = 1 WHERE kind = 'grant'", "its entry is of None and costs 1"),
    ("UPDATE entries SET reservation_id = 'req_prepaid' WHERE kind = 'grant'", "its entry is of req_prepaid"),
    ("UPDATE reservations SET credit_nanousd = 6 WHERE id = 'req_prepaid'",
     "reservation req_prepaid (SETTLED): charged on credit is 6, its entries say 5"),
    ("UPDATE entries SET lines = replace(lines, '20', '21') WHERE reservation_id = 'req_prepaid'",
     "settle of req_prepaid: cost is 25, its charged lines are"),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "problem"), CREDIT_DAMAGES)
async def test_damage_to_prepaid_credit_is_found_and_named(bench: Bench, sql: str, problem: str) -> None:
    await with_credit(bench)
    damage(bench, sql)
    found = (await verify(bench.store)).problems
    assert any(problem in each for each in found), found


async def test_a_cost_that_was_meant_to_differ_from_its_usage_says_so(bench: Bench) -> None:
    reservation = await bench.reserve(money(100), named="req_flat")
    flat = Settlement(Outcome.COMPLETED, Priced(50, priced(20).lines, ()), is_reported=False)
    await bench.ledger.settle(reservation, flat)
    assert (await verify(bench.store)).problems == (
        "reservation req_flat (SETTLED): usage times unit prices is 20, its entries cost 50",
    )
    damage(bench, f"UPDATE entries SET notes = '[\"{NOT_FROM_USAGE}\"]' WHERE reservation_id = 'req_flat'")
    assert (await verify(bench.store)).is_clean


async def test_problems_are_described_up_to_a_bound_and_counted_beyond(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "PROBLEMS_MAX", 3)
    damage(bench, "DELETE FROM entries")
    report = await verify(bench.store)
    assert (len(report.problems), report.problems_total) == (3, 8)


async def test_it_sees_one_instant_while_the_service_writes(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        is_over = False

        async def serve(number: int) -> None:
            while not is_over:
                reservation = await bench.reserve(
                    money(10, of=10**9), money(10, of=10**9, owner=f"token:{number}")
                )
                await bench.ledger.settle(reservation, settlement(7))

        serving = asyncio.gather(*(serve(number) for number in range(8)))
        totals: list[int] = []
        while len(set(totals)) < 10:
            report = await verify(bench.store)
            assert report.is_clean, report.problems
            totals.append(sum(report.entries.values()))
        is_over = True
        await serving
        assert totals == sorted(totals)


async def test_it_cannot_write_and_leaves_the_store_to_others(bench: Bench) -> None:
    connection = bench.store.database.connect_read_only()
    with closing(connection), pytest.raises(sqlite3.OperationalError):
        connection.execute("DELETE FROM entries")
    await bench.reserve(money(1))


async def test_a_verification_that_nobody_waits_for_stops(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, i, i, i, i FROM n WHERE i < 0"
    monkeypatch.setattr(verify_module, "SELECT_RESERVATIONS", endless)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(verify(bench.store), 0.1)
    await asyncio.get_running_loop().shutdown_default_executor()  # waits for the thread: it must end


async def test_a_store_in_a_folder_with_an_odd_name_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "a b%20?c#d"
    folder.mkdir()
    async with open_bench(folder) as bench:
        await bench.reserve(money(1))
        assert (await verify(bench.store)).reservations == {"HELD": 1}
