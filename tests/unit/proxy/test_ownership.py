"""What stands for the user's own where a request names nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metering.errors import Reason, Refused
from metering.objects import ObjectId, Objects
from proxy.ownership import fill
from proxy.surface import Fills, Inbound
from tests.support.ledger import Bench, open_bench

FROM = Fills("number", "from", "No phone number is assigned.", "This number is not yours.")
ADAS, BOBS = "+14155550100", "+14155550101"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        objects = Objects(bench.store, bench.clock)
        await objects.bind([ObjectId("bland", "number", ADAS)], "ada", "operator")
        await objects.bind([ObjectId("bland", "number", BOBS)], "bob", "operator")
        yield bench


async def filled(bench: Bench, user_id: str, **fields: object) -> dict[str, str]:
    objects = Objects(bench.store, bench.clock)
    return await fill(objects, "bland", user_id, (FROM,), Inbound("POST", {}, b"", [], b"", fields))


@pytest.mark.parametrize("fields", [{}, {"from": None}])
async def test_a_field_that_is_not_given_is_the_users_own(bench: Bench, fields: dict[str, object]) -> None:
    assert await filled(bench, "ada", **fields) == {"from": ADAS}
    assert await filled(bench, "bob", **fields) == {"from": BOBS}


async def test_a_field_that_is_given_is_left_alone_where_it_is_the_users(bench: Bench) -> None:
    assert await filled(bench, "ada", **{"from": ADAS}) == {}


@pytest.mark.parametrize("number", [BOBS, "+19995550100"])
async def test_anothers_is_as_if_there_were_none(bench: Bench, number: str) -> None:
    with pytest.raises(Refused) as refused:
        await filled(bench, "ada", **{"from": number})
    assert (refused.value.reason, refused.value.message) == (
        Reason.OBJECT_NOT_FOUND,
        "This number is not yours.",
    )


@pytest.mark.parametrize("number", [7, [ADAS], {}, ""])
async def test_what_is_no_number_is_refused(bench: Bench, number: object) -> None:
    with pytest.raises(Refused) as refused:
        await filled(bench, "ada", **{"from": number})
    assert refused.value.reason is Reason.BAD_REQUEST


async def test_who_has_none_is_told_so(bench: Bench) -> None:
    with pytest.raises(Refused) as refused:
        await filled(bench, "cyd")
    assert (refused.value.reason, refused.value.message) == (
        Reason.BAD_REQUEST,
        "No phone number is assigned.",
    )
