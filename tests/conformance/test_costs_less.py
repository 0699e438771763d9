"""Who asks for more than is left is told what would cost less: what does, in the words of the operation itself; and nothing where
nothing helps."""

import re

import orjson
import pytest

from metering.errors import Reason
from metering.terms import Cap, CapMeter, CapPeriod
from tests.conformance.test_surfaces import OPERATIONS, Case, Stage, staged
from tests.support.raw_http import RawAnswer

CAP = Cap(CapMeter.CREDITS, CapPeriod.DAY, 1)
LEAST = {
    "max_tokens": {"max_tokens": 1},
    "max_completion_tokens": {"max_completion_tokens": 1},
    "max_output_tokens": {"max_output_tokens": 1},
    "maxOutputTokens": {"generationConfig": {"maxOutputTokens": 1}},
    "max_duration": {"max_duration": 1},
    "timeout": {"timeout": 60},
}
"""What may be named, and a body that asks for the least of it."""
COSTLY = [case for case in OPERATIONS if not case.values[0][1].meter.is_free]
_TOO_LARGE = re.compile(
    r"it may cost up to ([\d,]+) credits.* are left(?: \(an? \w+ (\w+) costs less\))?\. Resets"
)


def told(stage: Stage, answer: RawAnswer) -> tuple[int, str | None] | None:
    """How many credits it might have cost, and what would have cost less; None where it was not refused for its size."""
    if stage.gateway.lines[-1].get("reason") != Reason.BUDGET_EXHAUSTED:
        return None
    found = _TOO_LARGE.search(orjson.dumps(answer.json()).decode())
    assert found is not None, answer.body
    return int(found[1].replace(",", "")), found[2]


@pytest.mark.parametrize("case", COSTLY)
async def test_what_is_said_to_cost_less_does_and_it_is_said_wherever_anything_does(tmp_path, case: Case):
    surface, operation = case
    async with staged(surface, tmp_path) as stage:
        whole = told(stage, await stage.ask(operation, token=await stage.gateway.new_token(caps=[CAP])))
        if whole is None:  # it cannot cost a credit
            return
        credits_, named = whole
        fields = (
            {}
            if operation.takes_any_body or not operation.example.body
            else orjson.loads(operation.example.body)
        )
        helping = set()
        for name, least in LEAST.items():
            body, token = orjson.dumps({**fields, **least}), await stage.gateway.new_token(caps=[CAP])
            answer = await stage.ask(operation, body=body, token=token)
            then = told(stage, answer)
            if answer.status == 200 or (then is not None and then[0] < credits_):
                helping.add(name)
        assert named in helping if helping else named is None
