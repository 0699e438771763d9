"""For whoever holds a gateway token: what was used and cost, what is left, and the requests one by one.

A query parameter that an endpoint does not take, or that is given twice, is refused: a misspelt `form=` would
otherwise be answered with another period than was asked for. Reports read by connections of their own, few at a time and so many a minute per user: authentication and
the look-out for revocations share another connection and must not wait behind a long month.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from metering.admission import Caller, owner_of
from metering.call_records import NANOUSD_PER_CENT, recent_of, totals_of
from metering.caps import states_of
from metering.clock import Clock, day_of, instant, month_of
from metering.errors import Reason, Refused
from metering.exports import CSV_TYPE, usage_csv
from metering.grants import prepaid_credit
from metering.ledger import MONEY, balance_of
from metering.phone_numbers import number_of
from metering.quotas import QUOTAS, quota_limits
from metering.reports import (
    USAGE_TIMEOUT_S,
    GroupBy,
    PeriodError,
    QuestionError,
    UsageReport,
    groupings_of,
    period_of,
    usage_of,
)
from metering.requests import (
    REQUESTS_SHOWN,
    RequestsPage,
    Wanted,
    limit_of,
    outcome_of,
    position_of,
    requests_of,
)
from metering.standing import accounts_of, meters_as_json, overshoot_as_json, rates_as_json
from metering.store.readers import Readers
from metering.store.writer import store_unavailable
from metering.users import line_of
from routes.callers import Callers, OwnRate
from routes.given import Query, query_of, understood

REPORTS_AT_ONCE_MAX = 4
"""Connections to the store, and threads, for reports in one worker; further ones wait their turn."""
REPORTS_OF_A_USER_MAX = 2
"""Of those: the years of one user, each of which takes a second, leave turns to others."""
TURN_TIMEOUT_S = 5.0
"""For a turn: only a store that hangs lets a report wait so long, or many long reports of one user."""
REPORTS = OwnRate("reports", "usage reports", 60)
"""Per user, and per token that was handed on."""
CALL_PATHS = ("/api/user/call/usage", "/api/call/usage")
"""Below mounts of a surface, and our own all the same."""
CALL_METER, SECONDS_PER_MINUTE = "call_seconds", 60
USAGE_PARAMETERS = ("from", "to", "by", "format")
REQUESTS_PARAMETERS = ("limit", "before", "surface", "model", "outcome", "token")
FORMATS = ("json", "csv")


class Reports:
    """Authenticated reading for the endpoints below."""

    def __init__(
        self,
        *,
        callers: Callers,
        readers: Readers,
        clock: Clock,
        bytes_per_output_token: int,
    ) -> None:
        self._callers = callers
        self._shared_readers = readers
        self._clock = clock
        self._bytes_per_output_token = bytes_per_output_token
        self._turns = asyncio.Semaphore(REPORTS_AT_ONCE_MAX)
        self._users: dict[str, _Turns] = {}

    async def usage(self, caller: Caller, query: Query) -> UsageReport:
        """The report that the query asks for. Raises Refused."""
        by = understood(groupings_of, query.get("by", GroupBy.MODEL))
        try:
            period = period_of(query.get("from"), query.get("to"), self._clock.now_ms())
        except PeriodError as error:
            raise Refused(Reason.BAD_REQUEST, f"{error} (in a URL, + is written %2B)") from None
        async with self._readers(caller, read_timeout_s=USAGE_TIMEOUT_S) as readers:
            try:
                seen = await _tokens_seen(readers, caller)
                return await usage_of(readers, caller.user_id, period, by, token_ids=seen)
            except QuestionError as error:
                raise Refused(Reason.BAD_REQUEST, str(error)) from None

    async def limits(self, caller: Caller) -> dict[str, Any]:
        """Where the caller stands against each limit that is enforced. Raises Refused."""
        owner, now_ms, plan = owner_of(caller.user_id), self._clock.now_ms(), caller.plan
        month = month_of(now_ms)
        async with self._readers(caller) as readers:
            accounts = await accounts_of(readers, owner, now_ms)
            prepaid = await prepaid_credit(readers, caller.user_id)
            caps = await states_of(readers, caller.token.caps if caller.token else (), now_ms)
            of_tokens = [
                (whose, token, limits, await accounts_of(readers, token, now_ms))
                for whose, token, limits in caller.limits
            ]
        rates = self._callers.rate_limits
        return {
            "user": caller.user_id,
            "plan": plan.name,
            "period": month,
            "meters": {
                **meters_as_json(
                    accounts,
                    now_ms,
                    {
                        (MONEY, month): plan.allowance_nanousd,
                        **quota_limits(plan, {"day": day_of(now_ms), "month": month}),
                    },
                ),
                "prepaid_credit": prepaid,
            },
            "overshoot": overshoot_as_json(
                plan, accounts, bytes_per_output_token=self._bytes_per_output_token
            ),
            **rates_as_json(rates, owner, plan, accounts),
            "caps": [cap.as_json() for cap in caps],
            "token_limits": [
                {"of": whose.value, **rates_as_json(rates, token, limits, of_token)}
                for whose, token, limits, of_token in of_tokens
            ],
            "at": instant(now_ms),
        }

    async def calls(self, caller: Caller) -> dict[str, Any]:
        """What the service before said of a user's phone calls. What only the vendors know is null; who has a token that was
        handed on sees no calls. Raises Refused."""
        now_ms, month = self._clock.now_ms(), month_of(self._clock.now_ms())
        async with self._readers(caller) as readers:
            number = await number_of(readers, caller.user_id)
            used = await balance_of(readers, owner_of(caller.user_id), CALL_METER, month)
            is_whole = await _tokens_seen(readers, caller) is None
            calls, cost_nanousd = await totals_of(readers, caller.user_id) if is_whole else (None, None)
            recent = await recent_of(readers, caller.user_id) if is_whole else []
        limit = QUOTAS[CALL_METER].of(caller.plan)
        left = max(0, limit - used.spent - used.held)
        return {
            "phone_number": number,
            "voice_id": None,
            "agent_name": None,
            "plan": caller.plan.name,
            "usage": {
                "used_minutes": -(-used.spent // SECONDS_PER_MINUTE),
                "limit_minutes": limit // SECONDS_PER_MINUTE,
                "remaining_minutes": left // SECONDS_PER_MINUTE,
                "total_calls": calls,
                "total_cost_cents": None if cost_nanousd is None else -(-cost_nanousd // NANOUSD_PER_CENT),
            },
            "recent_calls": recent,
            "at": instant(now_ms),
        }

    async def requests(self, caller: Caller, query: Query) -> RequestsPage:
        """The page of the caller's requests that the query asks for. Raises Refused."""
        limit = understood(limit_of, query.get("limit", str(REQUESTS_SHOWN)))
        before = understood(position_of, query["before"]) if "before" in query else None
        outcome = understood(outcome_of, query["outcome"]) if "outcome" in query else None
        wanted = Wanted(query.get("surface"), query.get("model"), outcome, query.get("token"))
        async with self._readers(caller) as readers:
            seen = await _tokens_seen(readers, caller)
            return await requests_of(
                readers, caller.user_id, before=before, wanted=wanted, limit=limit, token_ids=seen
            )

    async def caller(self, request: Request) -> Caller:
        """Who asks for a report, which is named as its endpoint. Raises Refused."""
        caller = await self._callers.identified(request, request.scope["endpoint"].__name__)
        is_child = caller.token is not None and caller.token.is_child
        # No child blinds its user.
        self._callers.count(request, REPORTS, caller.token_id if is_child else caller.user_id)
        return caller

    @asynccontextmanager
    async def _readers(
        self, caller: Caller, *, read_timeout_s: float | None = None
    ) -> AsyncIterator[Readers]:
        async with self._turn_of(caller.user_id):
            readers = self._shared_readers.another(read_timeout_s=read_timeout_s)
            try:
                yield readers
            finally:
                await readers.aclose()

    @asynccontextmanager
    async def _turn_of(self, user_id: str) -> AsyncIterator[None]:
        """The user's own turn first, or those of one who waits would be kept from others."""
        turns = self._users.setdefault(user_id, _Turns())
        turns.wanted += 1
        async with AsyncExitStack() as taken:
            taken.callback(self._forget, user_id, turns)
            try:
                async with asyncio.timeout(TURN_TIMEOUT_S):
                    await taken.enter_async_context(turns.semaphore)
                    await taken.enter_async_context(self._turns)
            except TimeoutError:
                raise store_unavailable("too many reports wait for it") from None
            yield

    def _forget(self, user_id: str, turns: "_Turns") -> None:
        turns.wanted -= 1
        if not turns.wanted:
            del self._users[user_id]


class _Turns:
    """Of one user, who has asked for `wanted` reports that are not answered yet."""

    __slots__ = ("semaphore", "wanted")

    def __init__(self) -> None:
        self.semaphore = asyncio.Semaphore(REPORTS_OF_A_USER_MAX)
        self.wanted = 0


def usage_routes(reports: Reports) -> list[Route]:
    """`/api/user/usage`, `/api/user/limits` and `/api/user/requests`; and what was called (CALL_PATHS)."""

    async def usage(request: Request) -> Response:
        caller = await reports.caller(request)
        query = query_of(request, USAGE_PARAMETERS)
        as_csv = _wants_csv(query, request)
        report = await reports.usage(caller, query)
        # In a thread: ten thousand rows take a while, which whoever is being streamed to should not notice.
        return await asyncio.to_thread(_csv if as_csv else _json, report)

    async def limits(request: Request) -> Response:
        caller = await reports.caller(request)
        query_of(request, ())
        return private(await reports.limits(caller))

    async def requests(request: Request) -> Response:
        caller = await reports.caller(request)
        page = await reports.requests(caller, query_of(request, REQUESTS_PARAMETERS))
        return private(page.as_json())

    async def calls(request: Request) -> Response:
        caller = await reports.caller(request)
        query_of(request, ())
        return private(await reports.calls(caller))

    return [
        *(Route(path, calls, methods=["GET"]) for path in CALL_PATHS),
        Route("/api/user/usage", usage, methods=["GET"]),
        Route("/api/user/limits", limits, methods=["GET"]),
        Route("/api/user/requests", requests, methods=["GET"]),
    ]


async def _tokens_seen(readers: Readers, caller: Caller) -> list[str] | None:
    """Whose requests a caller sees: all of the user's (None); with a token that was handed on, those of that token and
    of what comes from it."""
    if caller.token is None or not caller.token.is_child:
        return None
    return await line_of(readers, caller.user_id, caller.token_id)


def _wants_csv(query: Query, request: Request) -> bool:
    """What the query says; or, where it says nothing, whether CSV and not JSON is accepted. Raises Refused."""
    if "format" in query:
        if query["format"] not in FORMATS:
            raise Refused(
                Reason.BAD_REQUEST, f"format: given {query['format']!r}, expected {' or '.join(FORMATS)}"
            )
        return query["format"] == "csv"
    accepted = {
        part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")
    }
    return "text/csv" in accepted and "application/json" not in accepted


def _json(report: UsageReport) -> Response:
    return private(report.as_json())


def _csv(report: UsageReport) -> Response:
    dates = (instant(at_ms)[:10] for at_ms in (report.period.from_ms, report.period.to_ms))
    return Response(
        usage_csv(report),
        headers={
            "cache-control": "no-store",
            "content-disposition": f'attachment; filename="usage_{"_".join(dates)}.csv"',
            "content-type": CSV_TYPE,
        },
    )


def private(document: dict[str, Any], status: int = 200) -> Response:
    """An answer for the token's holder alone."""
    return Response(
        orjson.dumps(document), status, headers={"cache-control": "no-store"}, media_type="application/json"
    )
