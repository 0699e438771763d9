"""What a phone call uses, by what the vendor tells of it; which numbers may be dialled."""

from typing import Any

import orjson
import pytest

from metering.errors import Refused
from metering.prices import PriceTable
from metering.usage import CALL_SECONDS, UsageLine
from proxy.surface import AnswerHead, Demand, Inbound, Pricing
from routes.bland_meter import CallMeter, CallReport, is_running, waited_s
from routes.bland_requests import ABROAD, e164, number_to_dial

OPTIONS = {
    "BLAND_BYOT_KEY": "",
    "BLAND_MAX_DURATION_MINUTES": "10",
    "BLAND_MAX_DURATION_MAX_MINUTES": "60",
    "BLAND_DESTINATIONS": "+1",
    "BLAND_NOT_DESTINATIONS": ABROAD,
}
TO = "+13105550111"
HEAD = AnswerHead(200, [])


def demand(fields: dict[str, Any] | None = None, *, left_s: int | None = None, **options: str) -> Demand:
    pricing = Pricing(PriceTable.load(), 1_795_176_000_000, 2, {**OPTIONS, **options})
    said = {"phone_number": TO, "task": "x", **(fields or {})}
    return CallMeter().read(Inbound("POST", {}, b"", [], b"", said, time_left_s=left_s), pricing)


def told(**call: Any) -> CallReport:
    report = CallReport(demand())
    body = orjson.dumps({"call_id": "c1", **call})
    assert report.feed(body[:9]) == report.feed(body[9:]) == -1
    report.end()
    return report


@pytest.mark.parametrize(
    ("asked", "left_s", "minutes"),
    [
        (None, None, 10),
        (5, None, 5),
        (2.5, None, 2.5),
        (0.5, None, 1),
        (720, None, 60),  # the operator's most
        (30, 179, 2),  # what is left, in whole minutes
        (None, 60, 1),
        (5, 10, 1),  # less than a minute: admission says that it is too much
    ],
)
def test_a_call_has_a_bounded_time(asked: float | None, left_s: int | None, minutes: float) -> None:
    wanted = demand({} if asked is None else {"max_duration": asked}, left_s=left_s)
    assert wanted.fields == {"phone_number": TO, "task": "x", "max_duration": minutes}
    assert wanted.ceiling.lines == (UsageLine("call", {CALL_SECONDS: round(minutes * 60)}),)
    assert wanted.floor.lines == (UsageLine("call", {CALL_SECONDS: 0}),)
    assert (wanted.is_deferred, wanted.sought) == (True, {"number": TO})


def test_by_the_operators_twilio_account_it_is_another_product() -> None:
    assert demand(BLAND_BYOT_KEY="secret").ceiling.lines[0].model == "byot_call"


@pytest.mark.parametrize("minutes", [0, -1, 721, "5", True, float("nan"), [5]])
def test_what_is_no_length_is_refused(minutes: object) -> None:
    with pytest.raises(Refused, match="max_duration"):
        demand({"max_duration": minutes})


OVER = {"completed": True, "status": "completed", "queue_status": "complete"}


@pytest.mark.parametrize(
    ("call", "seconds", "is_exact", "notes"),
    [
        ({"corrected_duration": "11", "call_length": 0.1833333}, 11, True, ()),
        ({"corrected_duration": 11, "call_length": 0.2}, 11, True, ()),
        ({"corrected_duration": "11", "call_length": 0.25}, 11, True, ("call_lengths_differ",)),
        ({"corrected_duration": "11.2"}, 12, True, ()),
        ({"corrected_duration": None, "call_length": 1.5}, 90, True, ("call_length_from_minutes",)),
        ({"corrected_duration": "much", "call_length": 1.5}, 90, True, ("call_length_from_minutes",)),
        ({"corrected_duration": "-4", "call_length": 1.5}, 90, True, ("call_length_from_minutes",)),
        ({"status": "busy"}, 0, True, ()),
        (
            {"started_at": "2026-11-20T12:00:00Z", "end_at": "2026-11-20T12:00:30.2Z"},
            31,
            False,
            ("call_length_not_told",),
        ),
        ({}, 0, False, ("call_length_not_told",)),
    ],
)
def test_a_call_that_is_over_used_its_connected_seconds(
    call: dict[str, Any], seconds: int, is_exact: bool, notes: tuple[str, ...]
) -> None:
    report = told(**{**OVER, **call})
    assert report.is_complete
    assert not is_running(report)
    usage = report.usage()
    assert (usage.total(CALL_SECONDS), usage.is_exact, usage.notes) == (seconds, is_exact, notes)


@pytest.mark.parametrize(
    ("call", "runs"),
    [
        ({"status": "success"}, True),  # the answer to the request for it
        ({"status": None, "queue_status": "new", "completed": False}, True),
        ({"status": "started", "queue_status": "started"}, True),
        ({"status": "unknown", "queue_status": "started"}, True),
        ({"status": "unknown", "queue_status": "call_error"}, False),
        ({"status": "unknown", "completed": True}, False),
        ({"status": "no-answer"}, False),
        ({"queue_status": "COMPLETED"}, False),
    ],
)
def test_a_call_runs_until_something_says_that_it_is_over(call: dict[str, Any], runs: bool) -> None:
    report = told(**call)
    assert (report.is_complete, is_running(report)) == (True, runs)
    if runs:
        assert report.usage() == report.demand.floor


def test_what_is_no_call_is_neither_running_nor_over() -> None:
    report = CallReport(demand())
    report.feed(b'{"status":"error"}')
    report.end()
    assert (report.is_complete, is_running(report)) == (False, False)


@pytest.mark.parametrize(
    ("price", "nanousd"),
    [(0.017, 17_000_000), (0, 0), (None, None), ("0.017", None), (-1, None), (True, None)],
)
def test_the_vendors_own_price_is_told_beside(price: object, nanousd: int | None) -> None:
    assert told(**OVER, corrected_duration="7", price=price).usage().told_nanousd == nanousd


def test_it_waits_until_somebody_answers() -> None:
    created = "2026-11-20T12:00:00.000Z"
    assert waited_s(told(created_at=created, started_at=None)) is None
    assert waited_s(told(created_at=created, started_at="2026-11-20T12:00:07.500Z")) == 7.5
    assert waited_s(told(started_at=created)) == 0.0
    assert waited_s(told(created_at=created, started_at="2026-11-20T11:00:00Z")) == 0.0


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ("3105550111", TO),
        ("13105550111", TO),
        ("+1 (310) 555-0111", TO),
        ("310.555.0111", TO),
        ("+442071838750", "+442071838750"),
        ("911", None),
        ("+911", None),
        ("1105550111", None),
        ("٣١٠٥٥٥٠١١١", None),
        ("+1310555011x", None),
        ("", None),
        ("+" + "1" * 16, None),
    ],
)
def test_a_number_in_full(given: str, number: str | None) -> None:
    assert e164(given) == number


@pytest.mark.parametrize(
    ("number", "destinations", "is_allowed"),
    [
        (TO, "+1", True),
        (TO, "+1310, +44", True),
        (TO, "+44", False),
        (TO, "", False),
        (TO, "1", False),  # no prefix at all
        ("+442071838750", "+1,+44", True),
        ("+19005550111", "+1", False),
        ("+13109760111", "+1", False),
        ("+13109110111", "+1", False),
        ("+19115550111", "+1", False),
        ("+1310555011", "+1", False),
        ("+131055501111", "+1", False),
        ("+18095550111", "+1", False),
        ("+17875550111", "+1", True),  # Puerto Rico
    ],
)
def test_a_number_may_be_dialled_where_the_operator_says_so(
    number: str, destinations: str, is_allowed: bool
) -> None:
    options = {**OPTIONS, "BLAND_DESTINATIONS": destinations}
    if is_allowed:
        assert number_to_dial({"phone_number": number}, options) == number
        return
    with pytest.raises(Refused, match="phone_number"):
        number_to_dial({"phone_number": number}, options)


def test_the_operator_may_let_the_islands_be_called() -> None:
    options = {**OPTIONS, "BLAND_NOT_DESTINATIONS": ""}
    assert number_to_dial({"phone_number": "+18095550111"}, options) == "+18095550111"
