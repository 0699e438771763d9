"""Grants: once by their source, as far as there is something to take back, and heard of by running workers."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metering.grants import (
    GRANT_NANOUSD_MAX,
    Granted,
    GrantError,
    credit_as_json,
    credit_of,
    credits_of_users,
    grant,
    grants_of,
)
from metering.ledger import Balance
from metering.money import CREDIT_NANOUSD, nanousd_of_usd
from metering.users import Directory, NotFoundError, hash_of
from tests.support.ledger import Bench, money, open_bench, prepaid, settlement


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        for user_id in ("ada", "bob"):
            await Directory(bench.store, bench.clock).add_user(user_id, plan="free")
        yield bench
        await bench.assert_clean()


async def give(
    bench: Bench, amount: int, source: str, *, user_id: str = "ada", note: str | None = None
) -> Granted:
    return await grant(bench.store, bench.clock, user_id, amount, source=source, note=note)


async def test_a_grant_is_an_entry_without_cost_and_raises_what_may_be_spent(bench: Bench) -> None:
    granted = await give(bench, 500, "inv_1", note="a gift")
    assert granted.is_new
    assert await bench.credit() == (0, 0, 500)
    assert await bench.entries() == [("grant", 0)]
    assert await grants_of(bench.store.readers, "ada") == [granted.grant]
    assert granted.grant.as_json() == {
        "source": "inv_1",
        "user": "ada",
        "amount_nanousd": 500,
        "amount_usd": "0.000000500",
        "note": "a gift",
        "at": "2026-11-20T12:00:00Z",
    }


async def test_the_same_source_is_granted_once_however_often_it_is_delivered(bench: Bench) -> None:
    answers = await asyncio.gather(*(give(bench, 500, "inv_1") for _ in range(50)))
    assert sum(answer.is_new for answer in answers) == 1
    assert len({answer.grant for answer in answers}) == 1
    bench.clock.advance(60)
    again = await give(bench, 500, "inv_1", note="another word")
    assert (again.is_new, again.grant) == (False, answers[0].grant)
    assert await bench.credit() == (0, 0, 500)
    assert await bench.entries() == [("grant", 0)]


@pytest.mark.parametrize(("amount", "user_id"), [(501, "ada"), (500, "bob"), (-500, "ada")])
async def test_a_source_that_was_used_for_something_else_is_refused(
    bench: Bench, amount: int, user_id: str
) -> None:
    await give(bench, 500, "inv_1")
    with pytest.raises(GrantError, match=r"'inv_1' was granted already, USD 0\.000000500 to ada"):
        await give(bench, amount, "inv_1", user_id=user_id)
    assert await bench.credit() == (0, 0, 500)
    assert await bench.credit("user:bob") == (0, 0, 0)


async def test_what_is_neither_spent_nor_held_can_be_taken_back_once(bench: Bench) -> None:
    await give(bench, 500, "inv_1")
    await bench.ledger.settle(await bench.reserve(money(100, of=0), prepaid()), settlement(100))
    running = await bench.reserve(money(150, of=0), prepaid())
    with pytest.raises(GrantError, match=r"0\.000000251 cannot be taken back from ada: USD 0\.000000250"):
        await give(bench, -251, "refund_1")
    assert (await give(bench, -250, "refund_1")).is_new
    assert not (await give(bench, -250, "refund_1")).is_new, "a repetition is one, though nothing is left"
    assert await bench.credit() == (100, 150, 250)
    await bench.ledger.settle(running, settlement(150))
    assert [one.amount_nanousd for one in await grants_of(bench.store.readers, "ada")] == [-250, 500]


async def test_nothing_can_be_taken_from_who_has_nothing(bench: Bench) -> None:
    with pytest.raises(GrantError, match="cannot be taken back"):
        await give(bench, -1, "refund_1")
    assert await bench.entries() == []


async def test_an_unknown_user_is_granted_nothing(bench: Bench) -> None:
    with pytest.raises(NotFoundError, match="there is no user nobody"):
        await give(bench, 1, "inv_1", user_id="nobody")
    assert (await give(bench, 1, "inv_1")).is_new, "the source is free still"


@pytest.mark.parametrize(
    ("amount", "source", "note", "said"),
    [
        (0, "s", None, "amount: given USD 0.000000000"),
        (GRANT_NANOUSD_MAX + 1, "s", None, "expected more than 0 and up to USD 1000000.000000000"),
        (1, "", None, "source: given ''"),
        (1, " s", None, "source"),
        (1, "a\nb", None, "source"),
        (1, "s" * 201, None, "expected 1 to 200 printable characters"),
        (1, "s", "\x1b[31m", "note"),
        (1, "s", "n" * 501, "expected up to 500 printable characters"),
    ],
)
async def test_what_cannot_be_granted_is_told_with_what_is_expected(
    bench: Bench, amount: int, source: str, note: str | None, said: str
) -> None:
    with pytest.raises(GrantError) as error:
        await give(bench, amount, source, note=note)
    assert said in str(error.value)
    assert await bench.entries() == []


async def test_all_grants_of_a_user_stay_inside_64_bits(bench: Bench) -> None:
    for number in range(1_000):
        await give(bench, GRANT_NANOUSD_MAX, f"inv_{number}")
    with pytest.raises(GrantError, match="it would be more than USD 1000000000"):
        await give(bench, 1, "one_more")


async def test_running_workers_hear_of_a_grant_and_know_who_has_credit(bench: Bench) -> None:
    directory = Directory(bench.store, bench.clock)
    secret, _ = await directory.create_token("ada")
    before = await directory.credential(hash_of(secret))
    start = await directory.last_change()
    await give(bench, 500, "inv_1")
    await give(bench, 500, "inv_1")
    changes = await directory.changes_since(start)
    assert changes is not None
    assert [change[1:] for change in changes][-1:] == [("user", "ada")]
    after = await directory.credential(hash_of(secret))
    assert before is not None
    assert after is not None
    assert (before.granted_nanousd, after.granted_nanousd) == (0, 500)


async def test_balances_and_grants_are_listed_newest_first(bench: Bench) -> None:
    assert await credits_of_users(bench.store.readers) == {}
    for number, user_id in enumerate(("ada", "bob", "ada")):
        await give(bench, 100, f"inv_{number}", user_id=user_id)
    assert await credits_of_users(bench.store.readers) == {"ada": (0, 0, 200), "bob": (0, 0, 100)}
    assert await credit_of(bench.store.readers, "nobody") == Balance(0, 0, 0)
    found = await grants_of(bench.store.readers, grants_max=2)
    assert [(one.source, one.user_id) for one in found] == [("inv_2", "ada"), ("inv_1", "bob")]
    assert [one.source for one in await grants_of(bench.store.readers, "ada")] == ["inv_2", "inv_0"]


def test_what_is_shown_never_promises_more_than_can_be_spent() -> None:
    shown = credit_as_json(Balance(spent=CREDIT_NANOUSD + 1, held=1, allowance=5 * CREDIT_NANOUSD - 1))
    assert [shown[name] for name in ("granted", "spent", "held", "left")] == [4, 2, 1, 3]


@pytest.mark.parametrize(
    ("text", "nanousd"),
    [
        ("5", 5_000_000_000), ("4.99", 4_990_000_000), ("0.000000001", 1), ("0", 0), ("007.10", 7_100_000_000),
        ("", None), ("-1", None), ("1e3", None), ("1.", None), (".5", None), ("1.0000000001", None),
        ("1,5", None), ("1234567890", None), ("٣", None), ("NaN", None), (" 1", None),
    ],
)  # fmt: skip
def test_decimal_usd_is_read_exactly_or_not_at_all(text: str, nanousd: int | None) -> None:
    assert nanousd_of_usd(text) == nanousd
