"""A user's requests, newest first: one item for each, with all that was booked for it.

A request is listed at the place of the entry that resolved it (`settle`, `void`, `expire`), and everything booked
beside that (above its hold, or corrected later) is summed up into it. What still runs is no entry: it stands apart,
with what is held for it.

Pages are cut by position, (time, seq) of that entry, not by number: what is booked while somebody reads on comes
before the first page, moves nothing, and is neither repeated nor skipped. The time comes first because it is what
the user's index is sorted by; workers' clocks may differ, so `seq` alone would need an index of its own, written
with every request.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from operator import add
from typing import Any, NamedTuple, cast

from metering.clock import instant
from metering.ledger import REPRICED, Outcome
from metering.money import credits_of, usd
from metering.reports import QuestionError, TokenName, placeholders
from metering.store.readers import Readers
from metering.store.writer import Row, Value
from metering.values import immutable

REQUESTS_MAX = 200
"""Requests on a page, and of those that run."""
REQUESTS_SHOWN = 50
SCANNED_MAX = 10_000
"""Entries looked at for a page of requests of one kind: where there are few of it, a page may be short, or empty,
and still have a next one."""
RUNNING = "running"
"""Instead of an outcome: the request has none yet."""
OUTCOMES = (*(outcome.value for outcome in Outcome if outcome is not Outcome.DEFERRED), RUNNING)

_POSITION = re.compile(r"([0-9]{1,15})-([0-9]{1,15})")
_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")


class Position(NamedTuple):
    """Where a page ends; as text, a cursor."""

    at_ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.at_ms}-{self.seq}"


NEWEST = Position(2**62, 2**62)
OLDEST = Position(-1, -1)


@immutable
class Wanted:
    """Which requests: all, or those with exactly these values."""

    surface: str | None = None
    model: str | None = None
    outcome: str | None = None
    token_id: str | None = None


ALL = Wanted()


@immutable
class UserRequest:
    """A request that is over. Tokens and cost are those of all its entries; `at_ms` is when it was booked."""

    request_id: str
    position: Position
    token_id: str | None
    token: TokenName
    surface: str | None
    operation: str | None
    model: str | None
    outcome: str | None
    basis: str
    """`reported`, or `estimated` as long as there is no exact report."""
    tokens: tuple[int, int, int, int]
    """Input, cache read, cache write, output."""
    cost_nanousd: int
    upstream_status: int | None
    upstream_request_id: str | None
    duration_ms: int | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        input_tokens, cache_read_tokens, cache_write_tokens, output_tokens = self.tokens
        return {
            "request_id": self.request_id,
            "at": instant(self.position.at_ms),
            **_token_as_json(self.token_id, self.token),
            "surface": self.surface,
            "operation": self.operation,
            "model": self.model,
            "outcome": self.outcome,
            "basis": self.basis,
            "input_tokens": input_tokens,
            "cache_read_tokens": cache_read_tokens,
            "cache_write_tokens": cache_write_tokens,
            "output_tokens": output_tokens,
            "cost_nanousd": self.cost_nanousd,
            "cost_usd": usd(self.cost_nanousd),
            "credits": credits_of(self.cost_nanousd),
            "upstream_status": self.upstream_status,
            "upstream_request_id": self.upstream_request_id,
            "duration_ms": self.duration_ms,
            "notes": list(self.notes),
        }


@immutable
class RunningRequest:
    """A request that is not resolved. `due_at_ms`: work that goes on after its request is given up then."""

    request_id: str
    at_ms: int
    token_id: str
    token: TokenName
    surface: str
    operation: str
    model: str | None
    held_nanousd: int
    due_at_ms: int | None

    def as_json(self) -> dict[str, Any]:
        return {
            "request_id": self.request_id,
            "at": instant(self.at_ms),
            **_token_as_json(self.token_id, self.token),
            "surface": self.surface,
            "operation": self.operation,
            "model": self.model,
            "outcome": RUNNING,
            "held_nanousd": self.held_nanousd,
            "held_usd": usd(self.held_nanousd),
            "held_credits": credits_of(self.held_nanousd),
            "due_at": None if self.due_at_ms is None else instant(self.due_at_ms),
        }


@immutable
class RequestsPage:
    """Some of a user's requests. `next`: where the next page begins, None after the oldest."""

    user_id: str
    requests: tuple[UserRequest, ...]
    next: Position | None
    running: tuple[RunningRequest, ...] | None
    """None where nobody looked: on every page but the first."""

    def as_json(self) -> dict[str, Any]:
        return {
            "user": self.user_id,
            "running": None if self.running is None else [request.as_json() for request in self.running],
            "requests": [request.as_json() for request in self.requests],
            "next": None if self.next is None else str(self.next),
        }


# --- statements --------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def page_statement(token_ids: int | None = None) -> str:
    """?1 user, ?2 ?3 before, ?4 ?5 not before, ?6 the most rows, ?7 on what is wanted; then gateway tokens."""
    return f"""
SELECT e.reservation_id, e.at_ms, e.seq, e.token_id, t.token_prefix, t.label, e.surface, e.operation, e.model, e.outcome,
    e.basis, e.input_tokens, e.cache_read_tokens, e.cache_write_tokens, e.output_tokens, e.cost_nanousd,
    e.upstream_status, e.upstream_request_id, e.duration_ms, e.notes
FROM entries e LEFT JOIN gateway_tokens t ON t.id = e.token_id AND t.user_id = ?1
WHERE e.user_id = ?1 AND (e.at_ms, e.seq) < (?2, ?3) AND (e.at_ms, e.seq) >= (?4, ?5)
    AND e.kind IN ('settle', 'void', 'expire') AND (?7 IS NULL OR e.surface = ?7) AND (?8 IS NULL OR e.model = ?8)
    AND (?9 IS NULL OR e.outcome = ?9) AND (?10 IS NULL OR e.token_id = ?10){_among("e", 11, token_ids)}
ORDER BY e.at_ms DESC, e.seq DESC LIMIT ?6"""


# Few requests are under way at once, of all users together: they are looked through, by the index of those that are
# held. Without a word of the worker, the planner would rather read all reservations there ever were.
@lru_cache(maxsize=256)
def running_statement(token_ids: int | None = None) -> str:
    """?1 user, ?2 the most rows, ?3 on what is wanted; then gateway tokens."""
    return f"""
SELECT r.id, r.created_at_ms, r.token_id, t.token_prefix, t.label, r.surface, r.operation, r.model, r.hold_nanousd,
    r.due_at_ms
FROM reservations r LEFT JOIN gateway_tokens t ON t.id = r.token_id AND t.user_id = ?1
WHERE r.state = 'HELD' AND r.worker_id > '' AND r.user_id = ?1 AND (?3 IS NULL OR r.surface = ?3)
    AND (?4 IS NULL OR r.model = ?4) AND (?5 IS NULL OR r.token_id = ?5){_among("r", 6, token_ids)}
ORDER BY r.created_at_ms DESC, r.id DESC LIMIT ?2"""


SELECT_FLOOR = """
SELECT at_ms, seq FROM entries WHERE user_id = ?1 AND (at_ms, seq) < (?2, ?3)
ORDER BY at_ms DESC, seq DESC LIMIT 1 OFFSET ?4"""


def corrections_statement(requests: int) -> str:
    """Of requests by their ids, which are the user's own. Not by the user too: the planner would take that index."""
    return f"""
SELECT reservation_id, basis, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, cost_nanousd,
    upstream_request_id, notes
FROM entries WHERE kind IN ('overage', 'adjust') AND reservation_id IN ({placeholders(1, requests)})
ORDER BY seq"""


def _among(table: str, first: int, token_ids: int | None) -> str:
    return "" if token_ids is None else f" AND {table}.token_id IN ({placeholders(first, token_ids)})"


# --- reading -----------------------------------------------------------------------------------------


async def requests_of(
    readers: Readers,
    user_id: str,
    *,
    before: Position | None = None,
    wanted: Wanted = ALL,
    limit: int = REQUESTS_SHOWN,
    token_ids: Collection[str] | None = None,
    scanned_max: int = SCANNED_MAX,
) -> RequestsPage:
    """The newest requests of a user, or those before a position; by all their gateway tokens or by some.

    Raises Refused(STORE_UNAVAILABLE).
    """
    assert 0 < limit <= REQUESTS_MAX
    among, tokens = None if token_ids is None else len(token_ids), tuple(token_ids or ())
    running: tuple[RunningRequest, ...] | None = None
    if before is None and wanted.outcome in {None, RUNNING}:
        narrowed = (wanted.surface, wanted.model, wanted.token_id)
        rows = await readers.rows(running_statement(among), (user_id, REQUESTS_MAX, *narrowed, *tokens))
        running = tuple(map(_running, rows))
    if wanted.outcome == RUNNING:
        return RequestsPage(user_id, (), None, running)

    before = before or NEWEST
    floor = (
        await _floor(readers, user_id, before, scanned_max)
        if wanted != Wanted() or token_ids is not None
        else None
    )
    narrowed_by = (wanted.surface, wanted.model, wanted.outcome, wanted.token_id)
    params: tuple[Value, ...] = (user_id, *before, *(floor or OLDEST), limit + 1, *narrowed_by, *tokens)
    rows = await readers.rows(page_statement(among), params)
    corrections = await _corrections(readers, [cast("str", row[0]) for row in rows[:limit]])
    requests = tuple(_request(row, corrections.get(str(row[0]), ())) for row in rows[:limit])
    if running:  # looked for first, so that none is missed; what has ended meanwhile is among the others
        ended = {request.request_id for request in requests}
        running = tuple(request for request in running if request.request_id not in ended)
    return RequestsPage(user_id, requests, requests[-1].position if len(rows) > limit else floor, running)


async def _floor(readers: Readers, user_id: str, before: Position, scanned_max: int) -> Position | None:
    """The last entry that is looked at; None when there are not so many."""
    row = await readers.row(SELECT_FLOOR, (user_id, *before, scanned_max - 1))
    return None if row is None else Position(*cast("tuple[int, int]", row))


async def _corrections(readers: Readers, request_ids: Sequence[str]) -> Mapping[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    if request_ids:
        for row in await readers.rows(corrections_statement(len(request_ids)), request_ids):
            found.setdefault(str(row[0]), []).append(row[1:])
    return found


# --- questions ---------------------------------------------------------------------------------------


def position_of(text: str) -> Position:
    """Raises QuestionError."""
    found = _POSITION.fullmatch(text)
    if found is None:
        raise QuestionError(f"before: given {text!r}, expected the `next` of a page before")
    return Position(int(found[1]), int(found[2]))


def limit_of(text: str) -> int:
    """Raises QuestionError."""
    if not _WHOLE_NUMBER.fullmatch(text) or not 0 < int(text) <= REQUESTS_MAX:
        raise QuestionError(f"limit: given {text!r}, expected a whole number from 1 to {REQUESTS_MAX}")
    return int(text)


def outcome_of(text: str) -> str:
    """Raises QuestionError."""
    if text not in OUTCOMES:
        raise QuestionError(f"outcome: given {text!r}, expected one of {', '.join(OUTCOMES)}")
    return text


# --- inside ------------------------------------------------------------------------------------------


def _request(row: Row, corrections: Sequence[Row]) -> UserRequest:
    values: list[Any] = list(row)
    request_id, at_ms, seq, token_id, prefix, label, surface, operation, model, outcome, basis = values[:11]
    tokens, cost_nanousd = values[11:15], values[15]
    upstream_status, upstream_request_id, duration_ms, notes = values[16:]
    told = dict.fromkeys(json.loads(notes or "[]"))
    for correction in corrections:
        correction_basis, *counts, cost, its_upstream_request_id, its_notes = cast("Any", correction)
        tokens = list(map(add, tokens, counts))
        cost_nanousd += cost
        upstream_request_id = upstream_request_id or its_upstream_request_id
        its_told = json.loads(its_notes or "[]")
        told |= dict.fromkeys(its_told)
        if correction_basis == "reported" and REPRICED not in its_told:  # the late report of what had expired
            basis = correction_basis
    return UserRequest(
        request_id,
        Position(at_ms, seq),
        token_id,
        TokenName(prefix, label),
        surface,
        operation,
        model,
        outcome,
        basis,
        tuple(tokens),
        cost_nanousd,
        upstream_status,
        upstream_request_id,
        duration_ms,
        tuple(told),
    )


def _running(row: Row) -> RunningRequest:
    request_id, at_ms, token_id, prefix, label, *rest = cast("Any", row)
    return RunningRequest(request_id, at_ms, token_id, TokenName(prefix, label), *rest)


def _token_as_json(token_id: str | None, token: TokenName) -> dict[str, str | None]:
    return {"token": token_id, "token_prefix": token.prefix, "token_label": token.label}
