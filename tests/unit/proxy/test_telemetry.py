"""The canonical line: written at once or field by field, it is the same."""

from types import SimpleNamespace
from typing import Any

import pytest

from metering.admission import Caller
from metering.errors import Reason, Refused
from metering.ledger import Outcome
from metering.plans import load_plans
from metering.prices import Priced, PricedLine
from proxy.exchange import Exchange
from proxy.surface import Demand
from proxy.telemetry import _as_text, _fields, _usual_line

LINE = PricedLine("claude-sonnet-4-5", {"input_tokens": 7, "output_tokens": 5}, {}, {})
USUAL: dict[str, Any] = {
    "caller": Caller("alice", "tok_1", load_plans()["pro"]),
    "demand": Demand(("claude-sonnet-4-5",)),
    "operation": SimpleNamespace(name="messages"),
    "admitted": SimpleNamespace(reservation=SimpleNamespace(hold_nanousd=9_000)),
    "admitted_s": 100.00249,
    "first_byte_s": 100.01251,
    "priced": Priced(12_345, (LINE,), ()),
    "status": 200,
    "outcome": Outcome.COMPLETED,
    "upstream_status": 200,
    "upstream_request_id": "req_011CSHoEeqs5C35K2UUqR7Fy",
}


def lines(**changed: Any) -> tuple[str | None, str]:
    surface, nobody = SimpleNamespace(name="anthropic"), SimpleNamespace(method="POST", raw_path=b"/v1/x")
    exchange = Exchange(surface, nobody, None, "req_0123", 100.0)  # type: ignore[arg-type]
    for name, value in (USUAL | changed).items():
        setattr(exchange, name, value)
    asked = (exchange, "completed", "messages", 100.02, (7, 5))
    return _usual_line(*asked), _as_text(_fields(*asked))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"caller": Caller('al"ice =', "tok_1", load_plans()["pro"])},
        {"demand": Demand(("claude sonnet", "another"))},
        {"upstream_request_id": "req 1\n\x1b[31m"},
        {"status": 499, "upstream_status": 207},
    ],
)
def test_the_usual_line_is_written_at_once_as_it_is_field_by_field(changed: dict[str, Any]) -> None:
    at_once, by_field = lines(**changed)
    assert at_once == by_field


@pytest.mark.parametrize(
    "changed",
    [
        {"caller": None},
        {"demand": Demand()},
        {"operation": None},
        {"admitted": None, "admitted_s": None},
        {"first_byte_s": None},
        {"priced": None},
        {"priced": Priced(12_345, (LINE,), ("unpriced_model:x",))},
        {"upstream_status": None},
        {"upstream_request_id": None},
        {"refused": Refused(Reason.BUDGET_EXHAUSTED, "spent", facts={"used_credits": 7})},
        {"client_left": True},
        {"is_estimated": True},
        {"notes": ("interrupted",)},
        {"cause": "no answer in time"},
        {"tally": SimpleNamespace(up=1, down=2, dropped=0, close_code=1000)},
        {"bytes_passed": (1, 2)},
    ],
    ids=lambda changed: next(reversed(changed)),
)
def test_whatever_has_other_fields_is_written_field_by_field(changed: dict[str, Any]) -> None:
    at_once, by_field = lines(**changed)
    assert at_once is None
    assert by_field.startswith("request=req_0123 surface=anthropic operation=messages ")
