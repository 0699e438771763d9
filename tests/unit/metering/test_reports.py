"""Usage reports equal the ledger, whatever the grouping; tails and periods are what was asked for."""

import itertools
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from metering.clock import ManualClock, instant
from metering.ledger import (
    MONEY,
    NO_PERIOD,
    OPEN_REQUESTS,
    Hold,
    Intent,
    Ledger,
    Outcome,
    Reservation,
    Settlement,
)
from metering.prices import Priced, PricedLine
from metering.reports import (
    ENTRIES_MAX,
    SELECT_ENDS,
    SELECT_OF_REQUEST,
    SELECT_SINCE,
    SELECT_TAIL_OF_USER,
    GroupBy,
    Period,
    PeriodError,
    QuestionError,
    Sums,
    TokenName,
    balances_of,
    credits_as_json,
    entries_since,
    groupings_of,
    instant_ms,
    newest_seq,
    period_of,
    request_report,
    tail,
    usage_of,
    usage_statement,
)
from metering.store.database import Database
from metering.store.migrate import migrate
from metering.store.store import Store, open_store
from metering.users import Directory

NOON = 1_795_176_000_000
"""2026-11-20T12:00:00Z."""
DAY_MS = 86_400_000
NOVEMBER = Period(instant_ms("from", "2026-11-01"), instant_ms("to", "2026-12-01"))
HOLD = 1_000
EVERY_GROUPING = [by for count in (1, 2, 3) for by in itertools.permutations(GroupBy, count)]
BY_MODEL = (GroupBy.MODEL,)


@dataclass
class Books:
    """A ledger to write into, on a clock that moves when told to."""

    store: Store
    clock: ManualClock
    ledger: Ledger
    count: int = field(default=0)

    async def reserve(
        self, user: str = "alice", *, surface: str = "anthropic", token: str = "tok_1"
    ) -> Reservation:
        self.count += 1
        owner = f"user:{user}"
        holds = [
            Hold(owner, MONEY, "2026-11", HOLD, 10**12),
            Hold(owner, OPEN_REQUESTS, NO_PERIOD, 1, 1000),
        ]
        intent = Intent(
            f"req_{self.count:06}", user, token, surface, "POST /v1/messages", "claude-x", holds, 7
        )
        reservation = await self.ledger.reserve(intent)
        assert isinstance(reservation, Reservation)
        return reservation

    async def settle(self, reservation: Reservation, settlement: Settlement) -> None:
        await self.ledger.settle(reservation, settlement)

    async def book(
        self,
        cost: int = 100,
        *,
        user: str = "alice",
        surface: str = "anthropic",
        token: str = "tok_1",
        **how: Any,
    ) -> None:
        await self.settle(await self.reserve(user, surface=surface, token=token), settled(cost, **how))

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return await self.store.readers.rows(sql)


def settled(
    cost: int,
    *,
    model: str = "claude-x",
    tokens: tuple[int, int, int, int] = (1, 2, 3, 4),
    reported: bool = True,
) -> Settlement:
    names = ("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "output_tokens")
    counts = dict(zip(names, tokens, strict=True))
    line = PricedLine(model, counts, {}, dict.fromkeys(counts, 1))
    return Settlement(Outcome.COMPLETED, Priced(cost, (line,), ()), is_reported=reported)


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    clock = ManualClock(NOON)
    database = Database(tmp_path / "store.db")
    migrate(database, clock)
    async with open_store(database) as store:
        yield Books(store, clock, Ledger(store, clock, "wrk_1"))


async def test_totals_equal_the_ledger_to_the_nanousd_whatever_the_grouping(books: Books) -> None:
    """Settled, above the hold, voided, expired, adjusted, in random order."""
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    expected_tokens = [0, 0, 0, 0]
    late: list[Reservation] = []
    requests = 0
    for _ in range(150):
        books.clock.advance(dice.randrange(80_000))
        reservation = await books.reserve(
            surface=dice.choice(["anthropic", "brave"]), token=dice.choice(["tok_1", "tok_2"])
        )
        tokens = tuple(dice.randrange(1000) for _ in range(4))
        model = dice.choice(["claude-x", "claude-y"])
        match dice.randrange(4):
            case 0:
                await books.ledger.void(reservation)
                continue
            case 1:
                late.append(reservation)
            case _:
                await books.settle(reservation, settled(dice.randrange(3 * HOLD), model=model, tokens=tokens))
                expected_tokens = [a + b for a, b in zip(expected_tokens, tokens, strict=True)]
        requests += 1
    assert await books.ledger.expire_worker("wrk_1") == len(late)
    for reservation in late[::2]:
        tokens = tuple(dice.randrange(1000) for _ in range(4))
        books.clock.advance(1)
        assert await books.ledger.report_late(
            reservation.id, settled(dice.randrange(2 * HOLD), tokens=tokens)
        )
        expected_tokens = [a + b for a, b in zip(expected_tokens, tokens, strict=True)]

    ((cost, kinds),) = await books.rows("SELECT SUM(cost_nanousd), COUNT(DISTINCT kind) FROM entries")
    ((spent,),) = await books.rows("SELECT spent FROM accounts WHERE meter = 'money'")
    assert kinds == 5, f"seed {seed}"
    for by in EVERY_GROUPING:
        report = await usage_of(books.store.readers, "alice", Period(0, NOON * 2), by)
        total = report.total
        assert total.cost_nanousd == cost == spent, f"seed {seed} by {by}"
        assert total.requests == requests
        assert total.not_sent == 150 - requests
        assert total.estimated == len(late) - len(late[::2])
        found = [total.input_tokens, total.cache_read_tokens, total.cache_write_tokens, total.output_tokens]
        assert found == expected_tokens, f"seed {seed} by {by}"


async def test_each_grouping_names_its_rows_in_order(books: Books) -> None:
    await books.book(1, model="claude-b")
    books.clock.advance(86_400)
    await books.book(2, surface="brave")
    await books.book(4, model="claude-b")
    readers = books.store.readers

    async def costs(by: GroupBy) -> dict[str, int]:
        report = await usage_of(readers, "alice", NOVEMBER, (by,))
        return {key: sums.cost_nanousd for (key,), sums in report.groups.items()}

    assert list((await costs(GroupBy.MODEL)).items()) == [("claude-b", 5), ("claude-x", 2)]
    assert list((await costs(GroupBy.DAY)).items()) == [("2026-11-20", 1), ("2026-11-21", 6)]
    assert list((await costs(GroupBy.SURFACE)).items()) == [("anthropic", 5), ("brave", 2)]


async def test_a_period_holds_its_first_instant_and_not_its_last(books: Books) -> None:
    for cost, at_ms in ((1, NOON - 1), (2, NOON), (4, NOON + 999), (8, NOON + 1000)):
        books.clock.ms = at_ms
        await books.book(cost)
    report = await usage_of(books.store.readers, "alice", Period(NOON, NOON + 1000), BY_MODEL)
    assert report.total.cost_nanousd == 2 + 4


async def test_other_users_are_not_counted(books: Books) -> None:
    await books.book(1)
    await books.book(2, user="bob")
    report = await usage_of(books.store.readers, "bob", NOVEMBER, BY_MODEL)
    assert (report.total.cost_nanousd, report.total.requests) == (2, 1)


async def test_a_late_report_adds_its_difference_and_leaves_the_month_before_alone(books: Books) -> None:
    reservation = await books.reserve()
    books.ledger.checkpoint(reservation, settled(300, tokens=(10, 0, 0, 5)).priced)
    await books.book(user="bob")  # checkpoints are not waited for; what is queued behind one is
    await books.ledger.expire_worker("wrk_1")
    before = await usage_of(books.store.readers, "alice", NOVEMBER, BY_MODEL)
    assert (before.total.requests, before.total.estimated) == (1, 1)
    books.clock.advance(15 * 86_400)
    await books.ledger.report_late(reservation.id, settled(250, tokens=(10, 0, 0, 30)))

    november = await usage_of(books.store.readers, "alice", NOVEMBER, BY_MODEL)
    december = await usage_of(
        books.store.readers, "alice", Period(NOVEMBER.to_ms, NOVEMBER.to_ms + 30 * DAY_MS), BY_MODEL
    )
    assert november.total == Sums(requests=1, input_tokens=10, output_tokens=5, cost_nanousd=300)
    assert december.total == Sums(output_tokens=25, cost_nanousd=-50)


async def test_an_estimated_settle_counts_as_estimated(books: Books) -> None:
    await books.book(reported=False)
    await books.book()
    report = await usage_of(books.store.readers, "alice", NOVEMBER, BY_MODEL)
    assert (report.total.requests, report.total.estimated) == (2, 1)


async def test_a_report_as_json_has_exact_and_readable_amounts(books: Books) -> None:
    await books.book(711_001)
    report = await usage_of(books.store.readers, "alice", NOVEMBER, (GroupBy.DAY,))
    document = report.as_json()
    assert document["user"] == "alice"
    assert (document["from"], document["to"]) == ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")
    assert document["groups"] == [{"day": "2026-11-20", **document["total"]}]
    assert document["total"]["cost_nanousd"] == 711_001
    assert document["total"]["cost_usd"] == "0.000711001"
    assert document["total"]["credits"] == 8


@pytest.mark.parametrize("token_ids", [None, 2])
async def test_every_report_reads_by_indexes_only(books: Books, token_ids: int | None) -> None:
    for by in EVERY_GROUPING:
        months = 3 if GroupBy.MONTH in by else 0
        sql = usage_statement(by, months=months, token_ids=token_ids)
        params = (1,) * (4 + 3 * months + (token_ids or 0))
        plan = await books.store.readers.rows(f"EXPLAIN QUERY PLAN {sql}", params)
        steps = [str(step[3]) for step in plan]
        scanned = {step for step in steps if "SCAN" in step}
        assert scanned <= {"SCAN m", "SCAN g", "SCAN 3 CONSTANT ROWS"}, "the months, and the groups"
        assert any("entries_by_user (user_id=? AND at_ms>? AND at_ms<?)" in step for step in steps), by


async def test_the_ends_of_a_period_are_looked_up(books: Books) -> None:
    plan = await books.store.readers.rows(f"EXPLAIN QUERY PLAN {SELECT_ENDS}", ("alice", 0, NOON))
    searches = [str(step[3]) for step in plan if "entries" in str(step[3])]
    assert len(searches) == 2
    assert all("(user_id=? AND at_ms>? AND at_ms<?)" in step for step in searches)


async def test_months_are_those_of_the_calendar_cut_to_the_period(books: Books) -> None:
    for cost, at in (
        (1, "2024-02-29"),
        (2, "2026-10-01"),
        (4, "2026-10-31"),
        (8, "2026-11-01"),
        (16, "2027-01-01"),
    ):
        books.clock.ms = instant_ms("at", at)
        await books.book(cost)
    books.clock.ms = NOVEMBER.from_ms - 1
    await books.book(32)

    async def costs(period: Period) -> dict[tuple[str, ...], int]:
        report = await usage_of(books.store.readers, "alice", period, (GroupBy.MONTH,))
        return {key: sums.cost_nanousd for key, sums in report.groups.items()}

    ever = Period(0, instant_ms("to", "2999-01-01"))
    assert await costs(ever) == {("2024-02",): 1, ("2026-10",): 38, ("2026-11",): 8, ("2027-01",): 16}
    cut = Period(instant_ms("from", "2026-10-15"), instant_ms("to", "2027-01-01"))
    assert await costs(cut) == {("2026-10",): 36, ("2026-11",): 8}
    assert await costs(Period(0, 1)) == {}


async def test_several_groupings_stand_in_the_order_in_which_they_were_asked_for(books: Books) -> None:
    await books.book(1, model="b", surface="x")
    await books.book(2, model="a", surface="y")
    await books.book(4, model="a", surface="x")
    report = await usage_of(books.store.readers, "alice", NOVEMBER, (GroupBy.SURFACE, GroupBy.MODEL))
    assert {key: sums.cost_nanousd for key, sums in report.groups.items()} == {
        ("x", "a"): 4,
        ("x", "b"): 1,
        ("y", "a"): 2,
    }
    assert list(report.groups) == sorted(report.groups)
    document = report.as_json()
    assert document["by"] == "surface,model"
    assert [(group["surface"], group["model"]) for group in document["groups"]] == list(report.groups)


async def test_gateway_tokens_are_named_if_they_are_the_users_own(books: Books) -> None:
    directory = Directory(books.store, books.clock)
    for user in ("alice", "bob"):
        await directory.add_user(user, plan="free")
    _, mine = await directory.create_token("alice", label="=my agent")
    _, theirs = await directory.create_token("bob", label="secret")
    for cost, token in ((1, mine.id), (2, "tok_gone"), (4, theirs.id)):
        await books.book(cost, token=token)
    report = await usage_of(books.store.readers, "alice", NOVEMBER, (GroupBy.MODEL, GroupBy.TOKEN))
    assert report.tokens == {
        mine.id: TokenName(mine.prefix, "=my agent"),
        theirs.id: TokenName(None, None),
        "tok_gone": TokenName(None, None),
    }
    named = {group["token"]: group for group in report.as_json()["groups"]}
    assert (named[mine.id]["token_prefix"], named[mine.id]["token_label"]) == (mine.prefix, "=my agent")
    assert named[mine.id]["cost_nanousd"] == 1


@pytest.mark.parametrize("by", [(GroupBy.MONTH,), (GroupBy.TOKEN, GroupBy.DAY), BY_MODEL])
async def test_a_report_can_be_of_some_gateway_tokens_only(books: Books, by: tuple[GroupBy, ...]) -> None:
    for cost, token in ((1, "tok_1"), (2, "tok_2"), (4, "tok_3")):
        await books.book(cost, token=token)

    async def cost(*token_ids: str) -> int:
        report = await usage_of(books.store.readers, "alice", NOVEMBER, by, token_ids=token_ids)
        return report.total.cost_nanousd

    assert [await cost("tok_1", "tok_3"), await cost("tok_2"), await cost("tok_9"), await cost()] == [
        5,
        2,
        0,
        0,
    ]


async def test_more_rows_than_a_report_may_have_are_refused_and_not_cut(books: Books) -> None:
    for model in ("a", "b", "c"):
        await books.book(model=model)
    readers = books.store.readers
    assert len((await usage_of(readers, "alice", NOVEMBER, BY_MODEL, groups_max=3)).groups) == 3
    with pytest.raises(QuestionError, match="usage by model has more than 2 rows: expected a shorter period"):
        await usage_of(readers, "alice", NOVEMBER, BY_MODEL, groups_max=2)


async def test_entries_of_a_clock_that_was_wrong_by_a_century_are_no_question(books: Books) -> None:
    for at in ("1970-01-02", "2999-01-01"):
        books.clock.ms = instant_ms("at", at)
        await books.book()
    with pytest.raises(QuestionError, match="more than 1,200 months"):
        await usage_of(books.store.readers, "alice", Period(0, books.clock.ms + 1), (GroupBy.MONTH,))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("day", (GroupBy.DAY,)), ("token,day,model", (GroupBy.TOKEN, GroupBy.DAY, GroupBy.MODEL))],
)
def test_groupings_are_read_in_order(text: str, expected: tuple[GroupBy, ...]) -> None:
    assert groupings_of(text) == expected


@pytest.mark.parametrize(
    "text", ["", "hour", "day,", "day,day", "day, model", "Day", "day,month,model,token"]
)
def test_what_is_no_grouping_is_refused(text: str) -> None:
    with pytest.raises(
        QuestionError, match=r"^by: given .* expected up to 3 of day, month, surface, operation, "
    ):
        groupings_of(text)


async def test_tails_read_by_indexes_only(books: Books) -> None:
    for sql, params in ((SELECT_TAIL_OF_USER, (10, "alice")), (SELECT_SINCE, (1, 10))):
        plan = await books.store.readers.rows(f"EXPLAIN QUERY PLAN {sql}", params)
        assert all("SEARCH" in str(step[3]) for step in plan)


async def test_the_tail_is_the_newest_entries_oldest_first(books: Books) -> None:
    for cost in (1, 2, 3, 4):
        await books.book(cost, user="alice" if cost % 2 else "bob")
    readers = books.store.readers
    assert [entry.cost_nanousd for entry in await tail(readers, 3)] == [2, 3, 4]
    assert [entry.cost_nanousd for entry in await tail(readers, 3, user_id="alice")] == [1, 3]
    assert await newest_seq(readers) == (await tail(readers, 1))[0].seq


async def test_following_goes_on_where_it_stopped(books: Books) -> None:
    readers = books.store.readers
    assert await newest_seq(readers) == 0
    await books.book(1)
    seq = await newest_seq(readers)
    assert await entries_since(readers, seq) == []
    await books.book(2 * HOLD)
    entries = await entries_since(readers, seq)
    assert [(entry.kind, entry.cost_nanousd) for entry in entries] == [("settle", HOLD), ("overage", HOLD)]
    assert len(entries) < ENTRIES_MAX


async def test_a_request_shows_all_of_its_entries_though_the_clock_was_set_back_since_it_was_admitted(
    books: Books,
) -> None:
    reservation = await books.reserve()
    books.clock.advance(-2)
    await books.settle(reservation, settled(2 * HOLD))
    await books.book(5)
    report = await request_report(books.store.readers, reservation.id)
    assert report is not None
    assert [(entry.kind, entry.cost_nanousd) for entry in report.entries] == [
        ("settle", HOLD), ("overage", HOLD),
    ]  # fmt: skip


async def test_a_request_is_looked_up_by_indexes_only(books: Books) -> None:
    plan = await books.store.readers.rows(f"EXPLAIN QUERY PLAN {SELECT_OF_REQUEST}", ("req_1",))
    found = [str(step[3]) for step in plan if "entries" in str(step[3])]
    assert [word for step in found for word in step.split() if word.startswith("entries_")] == [
        "entries_resolution", "entries_corrections",
    ]  # fmt: skip
    assert all("SEARCH" in step for step in found)


async def test_an_entry_as_json_is_decoded(books: Books) -> None:
    await books.book(100)
    (entry,) = await tail(books.store.readers, 1)
    document = entry.as_json()
    assert document["at"] == "2026-11-20T12:00:00Z"
    assert document["usage"][0]["counts"]["output_tokens"] == 4
    assert document["notes"] == []
    assert document["cost_usd"] == "0.000000100"
    assert "at_ms" not in document


async def test_balances_are_those_of_the_month_and_the_gauge(books: Books) -> None:
    await books.book(300)
    await books.reserve()
    money, open_requests = await balances_of(books.store.readers, "user:alice", NOON)
    assert (money.spent, money.held) == (300, HOLD)
    assert open_requests.held == 1
    money, open_requests = await balances_of(books.store.readers, "user:alice", NOON + 30 * DAY_MS)
    assert (money.spent, money.held, open_requests.held) == (0, 0, 1)


async def test_credits_never_promise_more_than_can_be_spent(books: Books) -> None:
    await books.book(300)
    await books.reserve()
    money, _ = await balances_of(books.store.readers, "user:alice", NOON)
    shown = credits_as_json(money, 300_000)
    assert (shown["limit"], shown["used"], shown["held"], shown["left"]) == (3, 1, 1, 2)
    assert shown["left_nanousd"] == 300_000 - 300 - HOLD
    assert credits_as_json(money, 0)["left"] == 0


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (None, None, ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")),
        ("2026-11-05", None, ("2026-11-05T00:00:00Z", "2026-12-01T00:00:00Z")),
        (None, "2026-11-01", ("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z")),
        (None, "2026-11-05", ("2026-11-01T00:00:00Z", "2026-11-05T00:00:00Z")),
        (
            "2026-11-05T01:30:00+02:00",
            "2026-11-06t00:00:00.25z",
            ("2026-11-04T23:30:00Z", "2026-11-06T00:00:00.250Z"),
        ),
        ("", "", ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")),
    ],
)
def test_a_period_is_completed_from_what_was_given(
    since: str | None, until: str | None, expected: tuple[str, str]
) -> None:
    period = period_of(since, until, NOON)
    assert (instant(period.from_ms), instant(period.to_ms)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "yesterday",
        "2026-13-01",
        "2026-11-20T12:00:00",
        "20261120",
        "2026-W47",
        "1969-12-31",
        "3000-01-01",
        "2026-11-20 ",
        "٢٠٢٦-11-20",
    ],
)
def test_what_is_no_instant_is_refused_by_name(text: str) -> None:
    with pytest.raises(PeriodError, match=r"^from: given .* expected YYYY-MM-DD or RFC 3339"):
        period_of(text, None, NOON)


@pytest.mark.parametrize("until", ["2026-11-04", "2026-11-05"])
def test_a_period_must_not_be_empty(until: str) -> None:
    with pytest.raises(PeriodError, match="is not before"):
        period_of("2026-11-05", until, NOON)


def test_milliseconds_survive_the_way_through_text() -> None:
    for ms in (NOON + 1, NOON + 123, NOON + 999):
        assert instant_ms("from", instant(ms)) == ms
