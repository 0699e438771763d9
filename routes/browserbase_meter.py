"""What a browser session at Browserbase uses: seconds from its start to its end, one minute at least, and the bytes that
went through the vendor's proxies. Told by the session itself, whoever asks for it (its OpenAPI document, 2026-11).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from metering.errors import Reason, Refused
from metering.usage import BROWSER_SECONDS, PROXY_BYTES, Usage, UsageLine
from proxy.surface import AnswerHead, Demand, Inbound, Observer, Pricing
from routes.told_object import ToldObject, instant_of

PRODUCT = "session"
"""Its name in the price table."""
TIMEOUT_ENV, TIMEOUT_MAX_ENV = "BROWSERBASE_TIMEOUT_S", "BROWSERBASE_TIMEOUT_MAX_S"
BYTES_PER_S_ENV = "BROWSERBASE_PROXY_BYTES_PER_S"
PROXY_LAG_S = 30
"""How long after its end the bytes of a session's proxies may still be counted; that they are counted late is a guess."""
LATE_S_MAX = 3_600
"""How long after its `timeout` a session may have ended at most."""
SESSION_S_MIN, SESSION_S_MAX = 60, 21_600
"""What the vendor takes as a `timeout`; and the shortest session that it bills."""
BYTES_PER_S_MAX = 125_000_000
"""A gigabit: what moves more through proxies was not read right."""
RUNNING = frozenset({"PENDING", "RUNNING"})
OVER = frozenset({"COMPLETED", "ERROR", "TIMED_OUT"})
"""What is neither has ended where its end is told."""
NOTE_NO_END = "end_not_told"
"""The vendor says that a session has ended, but not when: what it last changed stands for it."""
NOTE_TIMES, NOTE_BYTES = "session_times_unsound", "proxy_bytes_unsound"
"""It ended before it began, or ran longer than any may; moved what cannot be moved in its time, or does not say."""


class SessionMeter:
    """A new session: held for its time in slices, billed by what the vendor tells of it at its end."""

    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        """Raises Refused(BAD_REQUEST): a timeout that is none."""
        seconds = self._timeout_s(request, pricing)
        counts = {BROWSER_SECONDS: seconds}
        if uses_proxies(request.fields):
            counts[PROXY_BYTES] = seconds * int(pricing.options[BYTES_PER_S_ENV])
        return Demand(
            ceiling=Usage((UsageLine(PRODUCT, counts),), is_exact=False),
            floor=Usage((UsageLine(PRODUCT, {BROWSER_SECONDS: SESSION_S_MIN}),), is_exact=False),
            is_deferred=True,
            fields={**request.fields, "timeout": seconds},
            costs_less="a shorter timeout" if seconds > SESSION_S_MIN else "",
        )

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return SessionReport(demand, answer)

    def _timeout_s(self, request: Inbound, pricing: Pricing) -> int:
        """What was asked for, as far as the operator, the plan and the budget allow it."""
        asked = request.fields.get("timeout")
        if asked is None:
            asked = int(pricing.options[TIMEOUT_ENV])
        if (
            not isinstance(asked, int)
            or isinstance(asked, bool)
            or not SESSION_S_MIN <= asked <= SESSION_S_MAX
        ):
            raise Refused(
                Reason.BAD_REQUEST,
                f"timeout: must be a whole number of seconds from {SESSION_S_MIN} to {SESSION_S_MAX:,}.",
            )
        most = int(pricing.options[TIMEOUT_MAX_ENV])
        if request.time_left_s is not None:
            most = min(most, request.time_left_s)
        return max(SESSION_S_MIN, min(asked, most))


class SessionReport(ToldObject):
    """Reads a session as the vendor tells it: about a kilobyte."""

    __slots__ = ("_told_at",)

    def __init__(self, demand: Demand, answer: AnswerHead) -> None:
        super().__init__(demand)
        self._told_at = _date_of(answer)

    @staticmethod
    def is_one(told: Mapping[str, Any]) -> bool:
        return isinstance(told.get("id"), str)

    @property
    def is_running(self) -> bool:
        """Not at its end yet, or too shortly after it for the bytes of its proxies to be counted."""
        session = self.told
        if session is None:
            return False
        if _goes_on(session):
            return True
        ended = instant_of(session.get("endedAt"))
        if not self.demand.ceiling.total(PROXY_BYTES) or ended is None or self._told_at is None:
            return False
        # A date further off than that, on either side, is no clock to wait by.
        return abs((self._told_at - ended).total_seconds()) < PROXY_LAG_S

    def usage(self) -> Usage:
        """Of a session that has ended, exact where its end is told; of another one, its least."""
        session = self.told
        if session is None or _goes_on(session):
            return self.demand.floor
        began = instant_of(session.get("startedAt")) or instant_of(session.get("createdAt"))
        ended = instant_of(session.get("endedAt"))
        notes: tuple[str, ...] = ()
        if ended is None:
            ended, notes = instant_of(session.get("updatedAt")), (NOTE_NO_END,)
        if began is None or ended is None:
            return self.demand.floor
        told_s = math.ceil((ended - began).total_seconds())
        if not 0 <= told_s <= SESSION_S_MAX + LATE_S_MAX:
            return replace(self.demand.floor, notes=(*notes, NOTE_TIMES))
        counts = {BROWSER_SECONDS: max(SESSION_S_MIN, told_s)}
        moved = self._moved(counts[BROWSER_SECONDS])
        if moved is None:
            notes = (*notes, NOTE_BYTES)
            moved = self.demand.ceiling.with_time_at_most(counts[BROWSER_SECONDS]).total(PROXY_BYTES)
        if moved:
            counts[PROXY_BYTES] = moved
        return Usage((UsageLine(PRODUCT, counts),), is_exact=not notes, notes=notes)

    def _moved(self, seconds: int) -> int | None:
        """Bytes through proxies; None where what is told cannot be."""
        assert self.told is not None
        moved = self.told.get("proxyBytes")
        if moved is None and not self.demand.ceiling.total(PROXY_BYTES):
            return 0
        if isinstance(moved, bool) or not isinstance(moved, int | float):
            return None
        return math.ceil(moved) if 0 <= moved <= seconds * BYTES_PER_S_MAX else None


def _goes_on(session: Mapping[str, Any]) -> bool:
    """Whether it has not ended. A word that is not known ends nothing."""
    told = session.get("status")
    status = told if isinstance(told, str) else ""
    return status in RUNNING or (status not in OVER and instant_of(session.get("endedAt")) is None)


def uses_proxies(fields: Mapping[str, Any]) -> bool:
    """Whether a session asks for the vendor's proxies; what it brings of its own counts as one of them, as nobody has said that
    it costs nothing."""
    return bool(fields.get("proxies"))


def is_running(observer: Observer) -> bool:
    """Whether a session goes on, by what was last told of it."""
    return isinstance(observer, SessionReport) and observer.is_running


def _date_of(answer: AnswerHead) -> datetime | None:
    """When the vendor said what it says. A date without a zone is UTC."""
    try:
        said = parsedate_to_datetime(answer.header(b"date").decode("latin-1"))
    except ValueError:
        return None
    return said if said.tzinfo is not None else said.replace(tzinfo=UTC)
