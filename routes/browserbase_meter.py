"""What a browser session at Browserbase uses: seconds from its start to its end, one minute at least, and the bytes that
went through the vendor's proxies. Told by the session itself, whoever asks for it (its OpenAPI document, 2026-11).
"""

import math
from collections.abc import Mapping
from datetime import datetime
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
SESSION_S_MIN, SESSION_S_MAX = 60, 21_600
"""What the vendor takes as a `timeout`; and the shortest session that it bills."""
RUNNING = frozenset({"PENDING", "RUNNING"})
NOTE_NO_END = "end_not_told"
"""The vendor says that a session has ended, but not when: what it last changed stands for it."""


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
        return isinstance(told.get("status"), str)

    @property
    def is_running(self) -> bool:
        """Not at its end yet, or too shortly after it for the bytes of its proxies to be counted."""
        session = self.told or {}
        if session.get("status") in RUNNING:
            return True
        ended = instant_of(session.get("endedAt"))
        if not self.demand.ceiling.total(PROXY_BYTES) or ended is None or self._told_at is None:
            return False
        # A date further off than that, on either side, is no clock to wait by.
        return abs((self._told_at - ended).total_seconds()) < PROXY_LAG_S

    def usage(self) -> Usage:
        """Of a session that has ended, exact where its end is told; of another one, its least."""
        session = self.told
        if session is None or session.get("status") in RUNNING:
            return self.demand.floor
        began = instant_of(session.get("startedAt")) or instant_of(session.get("createdAt"))
        ended = instant_of(session.get("endedAt"))
        notes: tuple[str, ...] = ()
        if ended is None:
            ended, notes = instant_of(session.get("updatedAt")), (NOTE_NO_END,)
        if began is None or ended is None:
            return self.demand.floor
        seconds = max(SESSION_S_MIN, math.ceil((ended - began).total_seconds()))
        counts = {BROWSER_SECONDS: seconds}
        moved = session.get("proxyBytes")
        if isinstance(moved, int) and not isinstance(moved, bool) and moved > 0:
            counts[PROXY_BYTES] = moved
        return Usage((UsageLine(PRODUCT, counts),), is_exact=not notes, notes=notes)


def uses_proxies(fields: Mapping[str, Any]) -> bool:
    """Whether a session asks for the vendor's proxies; what it brings of its own counts as one of them, as nobody has said that
    it costs nothing."""
    return bool(fields.get("proxies"))


def is_running(observer: Observer) -> bool:
    """Whether a session goes on, by what was last told of it."""
    return isinstance(observer, SessionReport) and observer.is_running


def _date_of(answer: AnswerHead) -> datetime | None:
    """When the vendor said what it says."""
    try:
        return parsedate_to_datetime(answer.header(b"date").decode("latin-1"))
    except ValueError:
        return None
