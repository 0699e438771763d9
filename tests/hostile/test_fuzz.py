"""A few thousand mutated requests; `python -m tests.hostile.fuzz` for as many as one likes."""

import os

import pytest

from tests.hostile.fuzz import FoundError, case_of, fuzz, run_case, seeds
from tests.hostile.stage import small_body

pytestmark = pytest.mark.asyncio(loop_scope="module")

CASES = int(os.environ.get("FUZZ_CASES", "2400"))
SEED = int(os.environ.get("FUZZ_SEED", "20261120"))
PARTS = 4
"""So that workers share them."""


@pytest.mark.parametrize("part", range(PARTS))
async def test_nothing_but_valid_requests_reaches_the_vendor(stage, part):
    """What is found names its seed and case."""
    ran, found = await fuzz(stage, seed=SEED, cases=CASES // PARTS, first=part * (CASES // PARTS))
    assert (ran, found) == (CASES // PARTS, [])


async def test_unmutated_every_request_is_served(stage):
    reached = {}
    for number, wire in enumerate(seeds(stage)):
        await run_case(stage, case_of([wire], SEED, 0), name=f"original {number}")
        reached[number] = len(stage.vendor.requests)
    assert list(reached.values()) == [
        *(1, 1, 1, 1, 1, 3, 3, 1, 1, 1, 2, 1, 1, 3, 2, 1, 2, 1, 2, 2),
        *(2, 3, 2, 3, 2),
    ]


async def test_the_judge_finds_a_request_that_nobody_sent(stage):
    """A vendor that sees one request more than was sent, or another body, is reported."""
    case = case_of([stage.post()], SEED, 0)
    await run_case(stage, case, name="good")
    (request,) = stage.vendor.requests
    conversation = await stage.converse(*case.pieces, answers=1)
    with pytest.raises(AssertionError, match="nobody sent"):
        await stage.assert_held(case.data, conversation)
    stage.vendor.requests[:] = [request]
    with pytest.raises(AssertionError, match="nobody sent"):
        await stage.assert_held(case.data.replace(b"Hello", b"Hallo"), conversation)


async def test_a_case_is_made_by_its_seed_and_number_alone(stage):
    originals = seeds(stage)
    assert case_of(originals, 7, 1_234) == case_of(originals, 7, 1_234)
    assert case_of(originals, 7, 1_234) != case_of(originals, 8, 1_234)


async def test_what_is_found_names_its_case(stage):
    case = case_of([stage.post(body=small_body())], 7, 0)
    stage.gateway.defects.append("a defect")
    with pytest.raises(FoundError, match="seed 7, case 3"):
        await run_case(stage, case, name="seed 7, case 3")
