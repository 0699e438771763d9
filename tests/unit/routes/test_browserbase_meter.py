"""What a browser session uses, by what the vendor tells of it."""

from typing import Any

import orjson
import pytest

from metering.errors import Refused
from metering.prices import PriceTable
from metering.usage import BROWSER_SECONDS, PROXY_BYTES, Usage, UsageLine
from proxy.surface import AnswerHead, Demand, Inbound, Pricing
from routes.browserbase_meter import PRODUCT, SessionMeter, SessionReport, is_running

OPTIONS = {
    "BROWSERBASE_TIMEOUT_S": "300",
    "BROWSERBASE_TIMEOUT_MAX_S": "3600",
    "BROWSERBASE_PROXY_BYTES_PER_S": "1000",
}
PRICING = Pricing(PriceTable.load(), 1_795_176_000_000, 2, OPTIONS)
BEGAN = "2026-11-20T12:00:00.000+00:00"
HEAD = AnswerHead(200, [(b"date", b"Fri, 20 Nov 2026 12:10:10 GMT")])


def demand(fields: dict[str, Any] | None = None, *, left_s: int | None = None) -> Demand:
    inbound = Inbound("POST", {}, b"", [], b"", fields or {}, time_left_s=left_s)
    return SessionMeter().read(inbound, PRICING)


def told(asked: Demand | None = None, head: AnswerHead = HEAD, **session: Any) -> SessionReport:
    report = SessionReport(asked or demand(), head)
    body = orjson.dumps({"id": "s1", "status": "RUNNING", "startedAt": BEGAN, "proxyBytes": 0, **session})
    assert report.feed(body[:9]) == report.feed(body[9:]) == -1
    report.end()
    return report


def session(seconds: int, proxy_bytes: int = 0) -> tuple[UsageLine, ...]:
    counts = {BROWSER_SECONDS: seconds, PROXY_BYTES: proxy_bytes}
    return (UsageLine(PRODUCT, {unit: count for unit, count in counts.items() if count}),)


@pytest.mark.parametrize(
    ("asked", "left_s", "seconds"),
    [
        (None, None, 300),
        (60, None, 60),
        (3_600, None, 3_600),
        (21_600, None, 3_600),  # the operator's most
        (3_600, 100, 100),  # what is left
        (None, 100, 100),
        (60, 10, 60),  # less than the vendor bills: admission says that it is too much
    ],
)
def test_a_session_has_a_bounded_time(asked, left_s, seconds):
    fields = {} if asked is None else {"timeout": asked}
    wanted = demand({"region": "us-west-2", **fields}, left_s=left_s)
    assert wanted.fields == {"region": "us-west-2", "timeout": seconds}
    assert wanted.ceiling.lines == session(seconds)
    assert wanted.floor.lines == session(60)
    assert wanted.is_deferred


@pytest.mark.parametrize("timeout", [59, 21_601, 60.5, "300", True, [], -1])
def test_a_timeout_that_the_vendor_would_not_take_is_refused(timeout):
    with pytest.raises(Refused, match=r"timeout: must be a whole number of seconds from 60 to 21,600\."):
        demand({"timeout": timeout})


@pytest.mark.parametrize("proxies", [True, [{"type": "browserbase"}], [{"type": "external", "server": "x"}]])
def test_proxies_are_held_by_the_time(proxies):
    assert demand({"proxies": proxies, "timeout": 100}).ceiling.lines == session(100, 100_000)


def test_a_session_that_runs_has_used_its_least():
    report = told()
    assert (is_running(report), report.is_complete) == (True, True)
    assert report.usage() == Usage(session(60), is_exact=False)


@pytest.mark.parametrize("status", ["COMPLETED", "ERROR", "TIMED_OUT", "SOMETHING_NEW"])
@pytest.mark.parametrize(
    ("ended", "seconds"),
    [
        ("2026-11-20T12:00:01.000+00:00", 60),
        ("2026-11-20T12:01:00.000+00:00", 60),
        ("2026-11-20T12:01:00.001Z", 61),
        ("2026-11-20T12:10:00", 600),
        ("2026-11-20T14:10:00+02:00", 600),
    ],
)
def test_a_session_that_has_ended_is_billed_from_its_start_to_its_end(status, ended, seconds):
    report = told(status=status, endedAt=ended, proxyBytes=12)
    assert not is_running(report)
    assert report.usage() == Usage(session(seconds, 12), is_exact=True)


def test_an_end_that_is_not_told_is_what_last_changed():
    report = told(status="COMPLETED", updatedAt="2026-11-20T12:03:00Z")
    assert report.usage() == Usage(session(180), is_exact=False, notes=("end_not_told",))
    report = told(status="COMPLETED", startedAt=None, createdAt=BEGAN, endedAt="2026-11-20T12:03:00Z")
    assert report.usage() == Usage(session(180), is_exact=True)
    assert told(status="COMPLETED").usage() == Usage(session(60), is_exact=False)
    assert told(status="COMPLETED", endedAt="soon", updatedAt=7).usage().is_exact is False


@pytest.mark.parametrize(
    "session_fields",
    [
        {"endedAt": "2026-11-20T11:00:00Z"},
        {"endedAt": "9999-12-31T23:59:59Z"},
        {"endedAt": "2026-11-20T12:10:00Z", "startedAt": "1970-01-01T00:00:00Z"},
        {"updatedAt": "2027-11-20T12:10:00Z"},
    ],
)
def test_times_that_cannot_be_are_billed_as_the_least(session_fields):
    usage = told(status="COMPLETED", **session_fields).usage()
    assert (usage.lines, usage.is_exact) == (session(60), False)
    assert usage.notes[-1] == "session_times_unsound"


@pytest.mark.parametrize("moved", [-1, 10**18, 1e300, "12", True, None])
def test_bytes_that_cannot_be_are_those_that_were_held_for(moved):
    asked = demand({"proxies": True})
    usage = told(asked, status="COMPLETED", endedAt="2026-11-20T12:01:40Z", proxyBytes=moved).usage()
    assert usage == Usage(session(100, 100_000), is_exact=False, notes=("proxy_bytes_unsound",))


def test_what_uses_no_proxies_need_not_tell_of_them():
    usage = told(status="COMPLETED", endedAt="2026-11-20T12:01:40Z", proxyBytes=None).usage()
    assert usage == Usage(session(100), is_exact=True)
    usage = told(status="COMPLETED", endedAt="2026-11-20T12:01:40Z", proxyBytes=12.5).usage()
    assert usage == Usage(session(100, 13), is_exact=True)


@pytest.mark.parametrize("status", ["PAUSED", "running", "", None, 7, [], {}])
def test_a_word_that_is_not_known_ends_nothing(status):
    assert is_running(told(status=status))
    assert not is_running(told(status=status, endedAt="2026-11-20T12:01:40Z"))


def test_a_date_without_a_zone_is_read():
    head = AnswerHead(200, [(b"date", b"Fri, 20 Nov 2026 12:10:10 -0000")])
    assert is_running(told(demand({"proxies": True}), head, status="ERROR", endedAt="2026-11-20T12:10:00Z"))


def test_bytes_of_proxies_are_waited_for():
    asked = demand({"proxies": True})
    assert is_running(told(asked, status="COMPLETED", endedAt="2026-11-20T12:10:00Z"))
    assert not is_running(told(asked, status="COMPLETED", endedAt="2026-11-20T12:09:30Z"))
    assert not is_running(
        told(asked, AnswerHead(200, []), status="COMPLETED", endedAt="2026-11-20T12:10:00Z")
    )


def test_bytes_of_proxies_are_not_waited_for_by_a_date_that_is_none():
    asked = demand({"proxies": True})
    slightly_behind, nonsense = b"Fri, 20 Nov 2026 12:09:55 GMT", b"Thu, 01 Jan 1970 00:00:00 GMT"
    for date, waits in ((slightly_behind, True), (nonsense, False)):
        report = told(
            asked, AnswerHead(200, [(b"date", date)]), status="COMPLETED", endedAt="2026-11-20T12:10:00Z"
        )
        assert is_running(report) is waits


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"status":7}', b'"x"', b"{}" + b" " * 2_000_000]
)
def test_what_is_no_session_says_nothing(body):
    report = SessionReport(demand(), HEAD)
    report.feed(body)
    report.end()
    assert not report.is_complete
    assert not is_running(report)
    assert report.usage() == demand().floor
