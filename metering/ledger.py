"""The ledger's verbs: reserve, extend, checkpoint, settle, void, expire, and the late report.

A reservation is HELD, and then, once, SETTLED, VOIDED or EXPIRED:

    reserve -> HELD --settle--> SETTLED     what the vendor reported, or our estimate of it
                    --void----> VOIDED      the vendor never saw the request
                    --expire--> EXPIRED     its worker died; a late report may adjust it, once

Each resolution appends one entry (`settle`, `void`, `expire`) and moves the accounts in the same unit of
work. What a settle costs above the hold is an entry of its own (`overage`). Entries are never edited.

Accounts hold integers per (owner, meter, period): nano-USD for money and caps on it, counts for the rest. A *gauge*
(open requests) is only held, never spent; any other count is spent as it was held, unless a settle says otherwise.

Who has prepaid credit pays from two accounts, the month's money and the credit. How an amount is split between them
(metering/credit.py) depends on how they stand inside the transaction, so the lines of such a reservation and of its
entries are computed there, by the steps themselves. A reservation without a line on credit knows nothing of it.
"""

import asyncio
import enum
import json
import logging
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import orjson

from metering.charged import Charged
from metering.clock import Clock
from metering.credit import (
    ADD_CREDIT_CHARGED,
    CREDIT,
    HOLD_BESIDE_CREDIT,
    LOCK_ACCOUNT,
    Charge,
    Split,
    charged_to,
    corrected_on,
    held_on,
)
from metering.errors import Refused
from metering.prices import Priced
from metering.store.readers import Readers
from metering.store.store import Store
from metering.store.writer import (
    READS,
    AnyStep,
    Declined,
    Done,
    Params,
    QuickStep,
    Result,
    Row,
    Rows,
    Step,
    Unit,
    store_unavailable,
)
from metering.tasks import spawn
from metering.usage import TokenCounts, Usage, UsageLine, token_counts
from metering.values import immutable

logger = logging.getLogger(__name__)

MONEY = "money"
"""The plan's allowance: an account of the user and the month."""
SPEND = "spend"
"""Caps on what may be spent, whatever pays for it: accounts of a user or a token, by day or month."""
CHARGED = frozenset({MONEY, SPEND})
"""Meters in nano-USD: each account of them is charged the whole cost of a request, the user's money together with
the credit beside it."""
PURSE = frozenset({MONEY, CREDIT})
"""Meters of the accounts that pay: a user's month, and the prepaid credit beside it."""
OPEN_REQUESTS = "open_requests"
REQUESTS = "requests"
"""How many requests were sent to a vendor: caps on their number."""
OPEN_BROWSERS = "open_browsers"
"""How many browsers run at a vendor."""
OPEN_CALLS = "open_calls"
"""How many phone calls run at a vendor."""
GAUGES = frozenset({OPEN_REQUESTS, OPEN_BROWSERS, OPEN_CALLS})
"""Meters that are held while something runs and given back whole."""
NO_PERIOD = ""
"""The period of a gauge: it never ends."""

ALREADY_RESOLVED = "already_resolved"
ALREADY_RESERVED = "already_reserved"

NOT_FROM_USAGE = "cost_not_from_usage"
"""The note on an entry whose cost was meant to differ from its usage times unit prices."""


REPRICED = "repriced"
"""The note on an `adjust` that a corrected price table made necessary: see metering/reprice.py."""


class Outcome(enum.StrEnum):
    """How an exchange with a vendor ended."""

    COMPLETED = "completed"
    UPSTREAM_FAILED = "upstream_failed"
    CLIENT_LEFT = "client_left"
    TIMED_OUT = "timed_out"
    WORKER_DIED = "worker_died"
    NOT_SENT = "not_sent"
    word: str
    """Its value, which itself is looked up by code in Python."""

    def __init__(self, word: str) -> None:
        self.word = word

    BUDGET_ENDED = "budget_ended"
    """A stream for which no further slice of output was granted: we ended it."""
    ACCESS_LOST = "access_lost"
    """A stream whose caller's user was disabled, or whose token was revoked or expired: we ended it."""
    DEFERRED = "deferred"
    """In logs and metrics only: the work goes on, its entry comes when it has ended."""


class Hold(NamedTuple):
    """One line to be reserved: `amount` on an account whose allowance is known to the caller.

    One on CREDIT has no amount of its own: it takes what it can of the owner's MONEY, which must stand beside it.
    """

    owner: str
    meter: str
    period: str
    amount: int
    allowance: int


hold_of: Callable[[tuple[str, str, str, int, int]], Hold] = partial(tuple.__new__, Hold)
"""Of a plain tuple: without the two calls in Python that the class's own way costs."""


class Line(NamedTuple):
    """One line of a reservation or an entry: what it holds, or has spent, on an account."""

    owner: str
    meter: str
    period: str
    amount: int


_line: Callable[[tuple[str, str, str, int]], Line] = partial(tuple.__new__, Line)
"""As `hold_of`."""


class Balance(NamedTuple):
    """An account right after a hold was granted."""

    spent: int
    held: int
    allowance: int


_unit: Callable[[tuple[Sequence[AnyStep], bool, Sequence[QuickStep]]], Unit] = partial(tuple.__new__, Unit)
_balance: Callable[[tuple[int, int, int]], Balance] = partial(tuple.__new__, Balance)
"""As `hold_of`."""


@immutable
class Intent:
    """What is about to be asked of a vendor. `floor_nanousd` is booked if nothing better is ever learnt."""

    id: str
    user_id: str
    token_id: str
    surface: str
    operation: str
    model: str | None
    holds: Sequence[Hold]
    floor_nanousd: int = 0
    due_at_ms: int | None = None
    shown: Collection[str] = ()
    """Further meters, of one account each, whose balance is wanted."""
    is_under_way: bool = False
    """The vendor does it already: a hold of nothing is granted whatever is left, and a second reservation of its id refused as
    ALREADY_RESERVED."""


@dataclass(slots=True)
class Reservation:
    """A granted hold. Its owner is the exchange that made it; extending is the only thing that changes it."""

    intent: Intent
    lines: tuple[Line, ...]
    hold_nanousd: int
    """What its lines hold in all: kept beside them, because it is asked for more often than it changes."""
    created_at_ms: int
    balances: Mapping[str, Balance]
    """Of the money and credit accounts, and those that the intent wants shown, right after the hold, by meter."""
    has_credit: bool
    """One of its lines is on credit."""
    extension: "asyncio.Future[Result] | None" = None
    """An extension under way: a resolution waits for it, because it must give back all that is held."""
    refused_of_nanousd: int = 0
    """The month's allowance, once it was found spent when this was to be extended: noted when it is settled, because
    what it has used is most of what is left."""
    found: str | None = None
    """Its lines as they stood in the row when it was found there, or made, if its work may go on after its request: somebody else
    may extend or park it, and whoever knows less than the row has changes nothing. None where the exchange that made it
    alone extends it."""

    @property
    def id(self) -> str:
        return self.intent.id


@immutable
class Settlement:
    """How an exchange ended and what it cost. `amounts`: what is spent on meters other than money."""

    outcome: Outcome
    priced: Priced
    is_reported: bool
    notes: tuple[str, ...] = ()
    amounts: Mapping[str, int] = field(default_factory=dict)
    price_version: str | None = None
    upstream_status: int | None = None
    upstream_request_id: str | None = None
    more: tuple[Step, ...] = ()
    """What is written in the unit of its entry, whichever that is."""


class Resolved(enum.StrEnum):
    """What a resolution found."""

    DONE = "done"
    ALREADY_RESOLVED = "already_resolved"
    NOT_YET = "not_yet"
    """Nothing so far: whoever waited for it waits no longer."""


# --- statements: numbered placeholders, no dialect, accounts touched in sorted order -------------------
#
# What mostly is NULL is a 0 or an empty text among the parameters of what every request writes: before it binds None, Python's
# module looks for an adapter, which costs as much as six other parameters.

HOLD_ACCOUNT = """
INSERT INTO accounts (owner, meter, period, allowance, spent, held)
SELECT ?1, ?2, ?3, ?4, 0, ?5 WHERE ?5 <= ?4
ON CONFLICT (owner, meter, period) DO UPDATE
SET held = accounts.held + excluded.held, allowance = excluded.allowance
WHERE accounts.spent + accounts.held + excluded.held <= excluded.allowance"""

# By the allowance that stands in the row, which is that of the newest hold: plans and caps change while a stream runs.
HOLD_MORE = """
INSERT INTO accounts (owner, meter, period, allowance, spent, held)
SELECT ?1, ?2, ?3, ?4, 0, ?5 WHERE ?5 <= ?4
    OR EXISTS (SELECT 1 FROM accounts WHERE owner = ?1 AND meter = ?2 AND period = ?3)
ON CONFLICT (owner, meter, period) DO UPDATE SET held = accounts.held + excluded.held
WHERE excluded.held = 0 OR accounts.spent + accounts.held + excluded.held <= accounts.allowance"""

MOVE_ACCOUNT = """
UPDATE accounts SET spent = spent + ?4, held = held - ?5 WHERE owner = ?1 AND meter = ?2 AND period = ?3"""

# Both accounts of a request that nothing but its user's plan bounds: each statement is a turn of the thread that writes with the
# loop. Grants each of the two by itself: who finds that it changed one row must undo that.
HOLD_TOGETHER = """
INSERT INTO accounts (owner, meter, period, allowance, spent, held)
VALUES (?1, 'money', ?2, ?3, 0, ?4), (?1, 'open_requests', '', ?5, 0, ?6)
ON CONFLICT (owner, meter, period) DO UPDATE
SET held = accounts.held + excluded.held, allowance = excluded.allowance
WHERE accounts.spent + accounts.held + excluded.held <= excluded.allowance"""

# They have rows, as all accounts have on which something is held: none is made by it.
MOVE_TOGETHER = """
INSERT INTO accounts (owner, meter, period, allowance, spent, held)
VALUES (?1, 'money', ?2, 0, ?3, ?4), (?1, 'open_requests', '', 0, ?5, ?6)
ON CONFLICT (owner, meter, period) DO UPDATE SET spent = accounts.spent + excluded.spent, held = accounts.held - excluded.held"""

INSERT_RESERVATION = """
INSERT INTO reservations (id, state, worker_id, user_id, token_id, surface, operation, model, lines,
    hold_nanousd, checkpoint_nanousd, created_at_ms, due_at_ms)
VALUES (?1, 'HELD', ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, NULLIF(?12, 0))"""

INSERT_RESERVATION_ONCE = f"{INSERT_RESERVATION} ON CONFLICT (id) DO NOTHING"

EXTEND_RESERVATION = """
UPDATE reservations SET lines = ?2, hold_nanousd = ?3 WHERE id = ?1 AND state = 'HELD'"""

CHECKPOINT_RESERVATION = """
UPDATE reservations SET checkpoint_nanousd = ?2, checkpoint_usage = ?3
WHERE id = ?1 AND state = 'HELD'"""

EXTEND_AS_FOUND = """
UPDATE reservations SET lines = ?2, hold_nanousd = ?3 WHERE id = ?1 AND state = 'HELD' AND lines = ?4"""

PARK_RESERVATION = """
UPDATE reservations SET lines = ?2 WHERE id = ?1 AND state = 'HELD' AND lines = ?3"""

# No RETURNING where the number of changed rows says it: SQLite keeps what is returned in a temporary B-tree.
RESOLVE_RESERVATION = """
UPDATE reservations SET state = ?2, booked_nanousd = ?3, resolved_at_ms = ?4
WHERE id = ?1 AND state = 'HELD'"""

RESOLVE_AS_FOUND = """
UPDATE reservations SET state = ?2, booked_nanousd = ?3, resolved_at_ms = ?4
WHERE id = ?1 AND state = 'HELD' AND lines = ?5"""

EXPIRE_RESERVATION = """
UPDATE reservations SET state = 'EXPIRED', booked_nanousd = ?2, resolved_at_ms = ?3
WHERE id = ?1 AND state = 'HELD' AND checkpoint_nanousd = ?4 AND lines = ?5 AND (due_at_ms IS NULL OR due_at_ms < ?3)"""

ADJUST_RESERVATION = """
UPDATE reservations SET booked_nanousd = ?2, adjusted_at_ms = ?3
WHERE id = ?1 AND state = 'EXPIRED' AND adjusted_at_ms IS NULL AND booked_nanousd = ?4 RETURNING credit_nanousd"""

INSERT_ENTRY = """
INSERT INTO entries (kind, reservation_id, user_id, token_id, at_ms, surface, operation, model, outcome, basis,
    cost_nanousd, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, usage, notes, lines,
    price_version, upstream_status, upstream_request_id, duration_ms)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, NULLIF(?17, ''), ?18, ?19, ?20, ?21, ?22)"""

HELD_COLUMNS = """id, user_id, token_id, surface, operation, model, lines, checkpoint_nanousd,
    checkpoint_usage, created_at_ms, worker_id"""

SELECT_HELD_OF_WORKER = f"""
SELECT {HELD_COLUMNS} FROM reservations
WHERE worker_id = ?1 AND state = 'HELD' AND due_at_ms IS NULL ORDER BY id LIMIT ?2"""

# Silence counts only where somebody has asked: what was to be asked about before then is asked about first.
SELECT_HELD_OVERDUE = f"""
SELECT {HELD_COLUMNS} FROM reservations r
WHERE state = 'HELD' AND due_at_ms IS NOT NULL AND due_at_ms < ?1 AND NOT EXISTS
    (SELECT 1 FROM deferred_work d WHERE d.reservation_id = r.id AND d.poll_at_ms <= r.due_at_ms
     AND d.scheduled_at_ms IS NULL)
ORDER BY id LIMIT ?2"""

SELECT_HELD = f"""
SELECT {HELD_COLUMNS} FROM reservations WHERE id = ?1 AND state = 'HELD'"""

IS_RESOLUTION = "(e.kind = 'settle' OR e.kind = 'void' OR e.kind = 'expire')"
"""Of an entry `e`: in the words of the index `entries_resolution`, or it is not found by that."""

SELECT_USER_OF = "SELECT user_id FROM reservations WHERE id = ?1"

SELECT_BOOKED = """
SELECT state, booked_nanousd, lines, adjusted_at_ms FROM reservations WHERE id = ?1"""

SELECT_EXPIRED_TOKENS = """
SELECT input_tokens, cache_read_tokens, cache_write_tokens, output_tokens
FROM entries WHERE reservation_id = ?1 AND kind = 'expire'"""

SELECT_ACCOUNT = """
SELECT spent, held, allowance FROM accounts WHERE owner = ?1 AND meter = ?2 AND period = ?3"""

COST_NANOUSD_MAX = 10**15
"""A million USD: what claims to cost more is a defect of ours or the vendor's. It keeps sums inside 64 bits."""
COUNT_BOOKED_MAX = 10**15
"""The same of anything that is counted."""
UNBOOKABLE_REPORT = "unbookable_report"
"""The note on an entry that lost its details."""
EXTEND_TIMEOUT_S = 3.0
"""As long as the writer lets a commit hang at its usual busy timeout."""
FOUND_ATTEMPTS_MAX = 5
"""How often a reservation that others extend is looked at again before it is resolved."""
LATE_REPORT_ATTEMPTS_MAX = 5
"""A late report loses the race against the expiry at most once; the rest is for a store in trouble."""


class Ledger:
    """The verbs, bound to one store and one worker."""

    def __init__(self, store: Store, clock: Clock, worker_id: str) -> None:
        self._store = store
        self._clock = clock
        self.worker_id = worker_id
        self.charged = Charged()
        """Whose money this process has charged, durably."""

    # --- holding ---------------------------------------------------------------------------------

    async def reserve(self, intent: Intent, *more: Step) -> Reservation | Declined:
        """Hold what `intent` may cost, durably, with `more` steps in the same unit; or Declined(meter) when an account
        has not enough left (which one, `declined_hold` tells), or what one of `more` was refused for.

        Raises Refused(STORE_UNAVAILABLE). Cancelled meanwhile, it voids what may still be granted.
        """
        holds, now_ms, shown = sorted(intent.holds), self._clock.now_ms(), intent.shown
        held: _HeldLines
        if _fit_together(holds) and not (more or shown or intent.is_under_way):
            money, place = holds
            of_money, of_place, hold_nanousd = money[:4], place[:4], money[3]
            held, looked_at = (_line(of_money), _line(of_place)), holds[:1]
            text = orjson.dumps((of_money, of_place)).decode()
            unit = _unit_together(money, place, self._row(intent, text, hold_nanousd, now_ms))
        else:
            # Read apart: RETURNING would make each hold three times as dear, and few are ever shown.
            looked_at = [hold for hold in holds if hold[1] in PURSE or hold[1] in shown]
            steps, held, hold_nanousd = _hold_steps(holds, is_under_way=intent.is_under_way)
            steps += [self._insertion(intent, held, hold_nanousd, now_ms), *more, *_looks(looked_at)]
            unit = Unit(steps)

        def granted(result: Result) -> Reservation | Declined:
            if isinstance(result, Declined):
                return result
            rows = result.rows
            balances = {}
            for at, hold in enumerate(looked_at, -len(looked_at)):  # they were read last
                balances[hold[1]] = _balance(cast("tuple[int, int, int]", rows[at] or (0, 0, 0)))
            lines = held(rows) if callable(held) else held
            found = None if intent.due_at_ms is None else encode_lines(lines)
            return Reservation(intent, lines, hold_nanousd, now_ms, balances, callable(held), found=found)

        def abandon(result: Result | Exception) -> None:
            if isinstance(result, Done):
                self.void(cast("Reservation", granted(result)), note="abandoned_while_admitted")

        waiting = self._store.writer.submit(unit, abandon)
        try:
            return granted(await waiting)
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                abandon(waiting.result())
            raise

    def _row(self, intent: Intent, lines: str, hold_nanousd: int, now_ms: int) -> Params:
        """Of a reservation."""
        floor_nanousd = intent.floor_nanousd if intent.floor_nanousd < hold_nanousd else hold_nanousd
        return (
            intent.id,
            self.worker_id,
            intent.user_id,
            intent.token_id,
            intent.surface,
            intent.operation,
            intent.model,
            lines,
            hold_nanousd,
            floor_nanousd,
            now_ms,
            intent.due_at_ms or 0,
        )

    def _insertion(self, intent: Intent, held: "_HeldLines", hold_nanousd: int, now_ms: int) -> AnyStep:
        """The step that makes its row."""
        params: Params | Callable[[Rows], Params]
        if callable(held):
            params = lambda rows: self._row(intent, encode_lines(held(rows)), hold_nanousd, now_ms)  # noqa: E731
        else:
            params = self._row(intent, encode_lines(held), hold_nanousd, now_ms)
        if intent.is_under_way:
            return INSERT_RESERVATION_ONCE, params, ALREADY_RESERVED
        return INSERT_RESERVATION, params, None

    async def extend(self, reservation: Reservation, more: Sequence[Hold]) -> Declined | None:
        """Hold more on a reservation; Declined when an account has not enough left (`declined_hold` tells which), or
        it is resolved already.

        What accounts allow is what they allowed at their newest hold. An extension by nothing is granted, on an
        overspent account too: what runs there may go on to what it has.

        One extension of a reservation at a time: one under way is waited for. Raises Refused(STORE_UNAVAILABLE): not
        granted by EXTEND_TIMEOUT_S. What is refused so may still come to be held; the resolution, which waits for
        it, gives it back.
        """
        await self.extension_of(reservation)
        holds = sorted([*more, *_credit_beside(more, reservation.lines)])
        steps, held_lines, _ = _hold_steps(holds, is_more=True)
        before, hold_nanousd = reservation.lines, _money(_added(reservation.lines, more))

        def extended(rows: Rows) -> tuple[Line, ...]:
            return _added(before, _lines_by(held_lines, rows))

        lines = extended if callable(held_lines) else _added(before, held_lines)
        statement, after = EXTEND_RESERVATION, cast("Params", (hold_nanousd,))
        if reservation.found is not None:
            statement, after = EXTEND_AS_FOUND, (hold_nanousd, reservation.found)
        steps.append((statement, with_lines((reservation.id,), lines, after), ALREADY_RESOLVED))

        def apply(waiting: "asyncio.Future[Result]") -> None:
            reservation.extension = None
            if waiting.exception() is None and isinstance(result := waiting.result(), Done):
                reservation.lines = _lines_by(lines, result.rows)
                reservation.hold_nanousd = hold_nanousd
                if reservation.found is not None:
                    reservation.found = encode_lines(reservation.lines)

        # Kept: a unit that the writer may refuse can be committed after it was refused, by a disk that hung, and
        # then nobody would know that it must be given back.
        waiting = self._store.writer.submit(Unit(steps, must_keep=True))
        waiting.add_done_callback(apply)
        reservation.extension = waiting
        result = await self.extension_of(reservation)
        return result if isinstance(result, Declined) else None

    async def extension_of(self, reservation: Reservation) -> Result | None:
        """What becomes of an extension under way; None when there is none. Raises Refused(STORE_UNAVAILABLE)."""
        if reservation.extension is None:
            return None
        try:
            async with asyncio.timeout(EXTEND_TIMEOUT_S):
                return await asyncio.shield(reservation.extension)
        except TimeoutError:
            raise store_unavailable("does not answer") from None

    def checkpoint(self, reservation: Reservation, priced: Priced) -> None:
        """Note durably what has been used so far; booked if this worker dies. Never waits, may be lost."""
        cost_nanousd = min(priced.cost_nanousd, reservation.hold_nanousd)
        try:
            usage = encode_usage(priced)
        except TypeError as error:
            logger.warning("checkpoint of %s not written: %s", reservation.id, error)
            return
        step = Step(CHECKPOINT_RESERVATION, (reservation.id, cost_nanousd, usage))
        self._store.writer.submit(Unit((step,)))

    # --- resolving -------------------------------------------------------------------------------

    def settle(self, reservation: Reservation, settlement: Settlement) -> "asyncio.Future[Resolved]":
        """Book what an exchange used. Queued at once, whatever happens to the caller; the future is durable.

        A reservation that expired meanwhile is adjusted by the difference if this report is exact, and the future
        is done when that is. A report that no row can take (counts beyond 64 bits, ill-formed text) is booked
        without its details.
        """
        if reservation.extension is not None:
            return _after(reservation.extension, lambda: self.settle(reservation, settlement))

        if not _is_sane(settlement):
            logger.error("cost of %s: %s", reservation.id, _told(settlement))
            return self._settle(reservation, _reduced(settlement, reservation.hold_nanousd))
        try:
            return self._settle(reservation, settlement, may_reduce=True)
        except (TypeError, ValueError) as error:
            logger.error("report of %s: %s", reservation.id, error)  # noqa: TRY400 - the text is all there is
            return self._settle(reservation, _reduced(settlement, reservation.hold_nanousd))

    def _settle(
        self, reservation: Reservation, settlement: Settlement, *, may_reduce: bool = False
    ) -> "asyncio.Future[Resolved]":
        """`may_reduce`: to what can be booked of a report that the store refuses."""
        cost_nanousd, now_ms = settlement.priced.cost_nanousd, self._clock.now_ms()
        within_nanousd = cost_nanousd if cost_nanousd < reservation.hold_nanousd else reservation.hold_nanousd
        above_nanousd = cost_nanousd - within_nanousd
        steps: list[AnyStep] = [_resolution(reservation, "SETTLED", cost_nanousd, now_ms)]
        of_settle: _Lines
        of_overage: _Lines
        if _are_together(reservation.lines) and not settlement.amounts:
            (owner, _, period, held), (_, _, _, place) = reservation.lines
            steps.append((MOVE_TOGETHER, (owner, period, cost_nanousd, held, 0, place), None))
            of_settle = encode_line((owner, MONEY, period, within_nanousd))
            of_overage = ((owner, MONEY, period, above_nanousd),)
        else:
            spending, of_settle, of_overage = _spending(reservation, settlement, within_nanousd)
            steps += spending
        shared = (reservation.intent, settlement, now_ms, _duration_ms(reservation.created_at_ms, now_ms))
        used = (encode_usage(settlement.priced), settlement.priced.tokens)
        steps.append(_entry("settle", within_nanousd, of_settle, shared, used))
        if above_nanousd:
            steps.append(_entry("overage", above_nanousd, of_overage, shared))
        steps += settlement.more
        return self._resolve(reservation, steps, settlement, may_reduce=may_reduce)

    def void(
        self, reservation: Reservation, *, outcome: Outcome = Outcome.NOT_SENT, note: str | None = None
    ) -> "asyncio.Future[Resolved]":
        """Give a hold back: the vendor never saw the request."""
        if reservation.extension is not None:
            return _after(reservation.extension, lambda: self.void(reservation, outcome=outcome, note=note))
        now_ms = self._clock.now_ms()
        steps: list[AnyStep] = [
            _resolution(reservation, "VOIDED", 0, now_ms),
            *_release_steps(reservation.lines),
        ]
        settlement = Settlement(outcome, NO_COST, is_reported=True, notes=(note,) if note else ())
        shared = (reservation.intent, settlement, now_ms, _duration_ms(reservation.created_at_ms, now_ms))
        steps.append(_entry("void", 0, (), shared))
        return self._resolve(reservation, steps, None)

    async def resolve_found(
        self, reservation_id: str, resolve: "Callable[[Reservation], asyncio.Future[Resolved]]"
    ) -> Resolved:
        """Resolve a reservation that others may extend meanwhile, by what `resolve` makes of it as it is found.

        Raises Refused(STORE_UNAVAILABLE), also when it is extended faster than it can be looked at.
        """
        for _ in range(FOUND_ATTEMPTS_MAX):
            reservation = await self.held(reservation_id)
            if reservation is None:
                return Resolved.ALREADY_RESOLVED
            if await resolve(reservation) is Resolved.DONE:
                return Resolved.DONE
        raise store_unavailable("the reservation is being extended")

    def parking(self, reservation: Reservation) -> list[Step]:
        """The steps that give back a reservation's place among the concurrent requests, as its request is over and its
        work is not; refused as ALREADY_RESOLVED when that was done, or it is resolved. Nobody may resolve it meanwhile by
        what it held before."""
        kept = [line for line in reservation.lines if line.meter not in GAUGES]
        params = (reservation.id, encode_lines(kept), encode_lines(reservation.lines))
        return [
            Step(PARK_RESERVATION, params, refusal=ALREADY_RESOLVED),
            *(_move(line, 0) for line in reservation.lines if line.meter in GAUGES),
        ]

    async def expire_worker(self, worker_id: str, *, reservations_max: int = 500) -> int:
        """Expire what a dead worker held (not what is due later); how many there were. Safe to race."""
        rows = await self._store.readers.rows(SELECT_HELD_OF_WORKER, (worker_id, reservations_max))
        return await self._expire(rows)

    async def expire_overdue(self, *, reservations_max: int = 500) -> int:
        """Expire what should have been reported by its `due_at`, and was asked about by then."""
        rows = await self._store.readers.rows(SELECT_HELD_OVERDUE, (self._clock.now_ms(), reservations_max))
        return await self._expire(rows)

    async def report_late(self, reservation_id: str, settlement: Settlement) -> bool:
        """An exact report for a reservation that expired: append an `adjust` for the difference, of money and of what was
        counted, once.

        False when it is unknown, was not expired, or has been adjusted already; or costs what nothing does: then the
        estimate stands. What it was repriced to meanwhile is part of what is booked. Raises Refused(STORE_UNAVAILABLE).
        """
        if not _is_sane(settlement):
            logger.error("late report of %s: %s", reservation_id, _told(settlement))
            return False
        for _ in range(LATE_REPORT_ATTEMPTS_MAX):  # It may be repriced between the look and the entry.
            row = await self._store.readers.row(SELECT_BOOKED, (reservation_id,))
            if row is None or row[0] != "EXPIRED" or row[3] is not None:
                return False
            intent = await self.intent_of(reservation_id)
            tokens = await self._store.readers.row(SELECT_EXPIRED_TOKENS, (reservation_id,))
            assert tokens is not None, f"{reservation_id} is EXPIRED without an entry that says so"
            booked = _Booked(cast("int", row[1]), cast("TokenCounts", tokens), str(row[2]))
            if await self._adjust(intent, settlement, booked):
                return True
        raise store_unavailable("the reservation is being repriced")

    # --- reading ---------------------------------------------------------------------------------

    async def balance(self, owner: str, meter: str, period: str) -> Balance:
        """An account as it stands; zeros when nothing was ever held on it."""
        return await balance_of(self._store.readers, owner, meter, period)

    async def held(self, reservation_id: str) -> Reservation | None:
        """A reservation that nobody has resolved yet, whichever worker made it; None when there is none.

        Raises Refused(STORE_UNAVAILABLE).
        """
        row = await self._store.readers.row(SELECT_HELD, (reservation_id,))
        if row is None:
            return None
        intent, lines, _, _, created_at_ms = _held(row)
        has_credit = _purse(lines) is not None
        return Reservation(intent, lines, _money(lines), created_at_ms, {}, has_credit, found=str(row[6]))

    async def user_of(self, reservation_id: str) -> str | None:
        """Whose a reservation is; None where there is none. Raises Refused(STORE_UNAVAILABLE)."""
        row = await self._store.readers.row(SELECT_USER_OF, (reservation_id,))
        return None if row is None else str(row[0])

    async def awaits_report(self, reservation_id: str) -> bool:
        """Whether an exact report would still be booked: it is held, or expired and not adjusted yet.

        Raises Refused(STORE_UNAVAILABLE).
        """
        row = await self._store.readers.row(SELECT_BOOKED, (reservation_id,))
        return row is not None and (row[0] == "HELD" or (row[0] == "EXPIRED" and row[3] is None))

    async def intent_of(self, reservation_id: str) -> Intent:
        """What a reservation that exists is for, whatever became of it. Raises Refused(STORE_UNAVAILABLE)."""
        return _held(await self._any(reservation_id))[0]

    async def known_usage(self, reservation_id: str) -> Usage:
        """What a reservation that exists had used by its last checkpoint. Raises Refused(STORE_UNAVAILABLE)."""
        _, _, _, usage, _ = _held(await self._any(reservation_id))
        lines = [
            UsageLine(one["model"], one["counts"], one["modifiers"]) for one in orjson.loads(usage or "[]")
        ]
        return Usage(tuple(lines), is_exact=False)

    async def age_s(self, reservation_id: str) -> float:
        """Since a reservation that exists was made. Raises Refused(STORE_UNAVAILABLE)."""
        *_, created_at_ms = _held(await self._any(reservation_id))
        return (self._clock.now_ms() - created_at_ms) / 1000

    async def _any(self, reservation_id: str) -> Row:
        sql = f"SELECT {HELD_COLUMNS} FROM reservations WHERE id = ?1"
        row = await self._store.readers.row(sql, (reservation_id,))
        assert row is not None
        return row

    # --- inside ----------------------------------------------------------------------------------

    def _resolve(
        self,
        reservation: Reservation,
        steps: Sequence[AnyStep],
        settlement: Settlement | None,
        *,
        may_reduce: bool = False,
    ) -> "asyncio.Future[Resolved]":
        """`settlement`: what was settled, and is reported late if it expired meanwhile; `may_reduce`, as `_settle`."""
        resolved: asyncio.Future[Resolved] = asyncio.get_running_loop().create_future()

        def told(result: Result | Exception) -> None:
            if isinstance(result, Done):
                if settlement is not None and settlement.priced.cost_nanousd:
                    self._note(reservation.lines, spent_nanousd=reservation.refused_of_nanousd)
                _tell(resolved, Resolved.DONE)
            elif isinstance(result, Exception):
                logger.error("reservation %s could not be resolved: %s", reservation.id, result)
                if may_reduce and settlement is not None and not isinstance(result, Refused):
                    reduced = _reduced(settlement, reservation.hold_nanousd)
                    _pass_on(self._settle(reservation, reduced), resolved)
                elif not resolved.done():
                    resolved.set_exception(result)
                    resolved.exception()
            elif settlement is None or not settlement.is_reported:
                _tell(resolved, Resolved.ALREADY_RESOLVED)
            else:  # whoever waits for the entry waits for the one that has the exact cost
                reporting = spawn(
                    self._report_late_surely(reservation.id, settlement),
                    name=f"late report {reservation.id}",
                )
                self._store.writer.stay_open_for(reporting)
                reporting.add_done_callback(lambda _: _tell(resolved, Resolved.ALREADY_RESOLVED))

        self._store.writer.keep(steps, told)
        return resolved

    async def _report_late_surely(self, reservation_id: str, settlement: Settlement) -> None:
        for attempt in range(1, LATE_REPORT_ATTEMPTS_MAX + 1):
            try:
                await self.report_late(reservation_id, settlement)
            except Refused as error:
                cause = self._store.writer.trouble or error.__cause__ or "it did not take it"
                logger.warning("late report of %s, attempt %d: the store: %s", reservation_id, attempt, cause)
                await asyncio.sleep(attempt)
            else:
                return
        logger.error("late report of %s given up: the estimate stands", reservation_id)

    async def _expire(self, rows: Sequence[Row]) -> int:
        waiting = [self._store.writer.submit(self._expiry(row)) for row in rows]
        results = await asyncio.gather(*waiting)
        for row, result in zip(rows, results, strict=True):
            if isinstance(result, Done):
                self._note(_held(row)[1])
        return sum(isinstance(result, Done) for result in results)

    def _expiry(self, row: Row) -> Unit:
        """Book the last checkpoint. Held counts (searches, e-mails) are booked as held: they were asked for."""
        intent, lines, checkpoint_nanousd, usage, created_at_ms = _held(row)
        now_ms = self._clock.now_ms()
        settlement = Settlement(Outcome.WORKER_DIED, NO_COST, is_reported=False)
        steps: list[AnyStep] = [
            Step(
                EXPIRE_RESERVATION,
                (intent.id, checkpoint_nanousd, now_ms, checkpoint_nanousd, str(row[6])),
                refusal=ALREADY_RESOLVED,
            )
        ]
        payment = _payment(intent.id, lines, checkpoint_nanousd, at=len(steps))
        if payment is not None:
            steps += payment.steps
            lines = tuple(line for line in lines if not payment.is_on(line.owner, line.meter))
        spent = [(line, _expired(line, checkpoint_nanousd)) for line in lines]
        steps += [_move(line, amount) for line, amount in spent]
        booked = [line._replace(amount=amount) for line, amount in spent]
        of_expiry: _Lines = booked
        if payment is not None:
            of_expiry = payment.lines(lambda charge: charge.spent, booked)
        shared = (intent, settlement, now_ms, _duration_ms(created_at_ms, now_ms))
        used = (usage, _decoded_counts(usage))
        steps.append(_entry("expire", checkpoint_nanousd, of_expiry, shared, used))
        return Unit(steps)

    async def _adjust(self, intent: Intent, settlement: Settlement, booked: "_Booked") -> bool:
        cost_nanousd = settlement.priced.cost_nanousd
        difference_nanousd = cost_nanousd - booked.cost_nanousd
        now_ms = self._clock.now_ms()
        lines = decode_lines(booked.lines)
        moves, moved = correction_steps(
            intent.id, lines, difference_nanousd, beside=_recounted(lines, settlement.amounts)
        )
        more = cast("TokenCounts", tuple(map(operator.sub, settlement.priced.tokens, booked.tokens)))
        used = (encode_usage(settlement.priced), more)
        steps: list[AnyStep] = [
            Step(
                ADJUST_RESERVATION,
                (intent.id, cost_nanousd, now_ms, booked.cost_nanousd),
                refusal=ALREADY_RESOLVED,
            ),
            *moves,
            _entry("adjust", difference_nanousd, moved, (intent, settlement, now_ms, None), used),
            *settlement.more,
        ]
        is_done = isinstance(await self._store.writer.submit(Unit(steps, must_keep=True)), Done)
        if is_done:
            self._note(lines)
        return is_done

    def _note(self, lines: Sequence[Line], *, spent_nanousd: int = 0) -> None:
        for owner, meter, period, _ in lines:
            if meter == MONEY:
                self.charged.note(owner, period, spent_nanousd)


# --- two accounts that pay ---------------------------------------------------------------------------

_PlainLine = tuple[str, str, str, int]
"""A Line, or the same without names: only to be written."""
_HeldLines = tuple[Line, ...] | Callable[[Rows], tuple[Line, ...]]
_Lines = str | Sequence[_PlainLine] | Callable[[Rows], Sequence[_PlainLine]]
"""Lines, as they are written or before that, or what they are by the rows of the unit's steps so far."""


class _Payment(NamedTuple):
    """How one request is paid from money and credit: the steps, and what each account was charged.

    The steps lock both accounts, credit first, and split by what they find there.
    """

    reservation_id: str
    owner: str
    period: str
    held: Split
    at: int
    """Where in the unit its steps begin."""
    split: Callable[[Rows, Row | None, Row | None], Charge]
    """By the rows of the unit so far, and those of the money and the credit account."""

    @property
    def steps(self) -> list[Step]:
        credit, money = (self.owner, CREDIT, NO_PERIOD), (self.owner, MONEY, self.period)
        return [
            Step(LOCK_ACCOUNT, credit),
            Step(LOCK_ACCOUNT, money),
            Step(MOVE_ACCOUNT, lambda rows: (*credit, self.charge(rows).credit, self.held.credit)),
            Step(MOVE_ACCOUNT, lambda rows: (*money, self.charge(rows).spent.money, self.held.money)),
            Step(ADD_CREDIT_CHARGED, lambda rows: (self.reservation_id, self.charge(rows).credit)),
        ]

    def is_on(self, owner: str, meter: str) -> bool:
        """Whether a line of the reservation is one of the two."""
        return meter in PURSE and owner == self.owner

    def charge(self, rows: Rows) -> Charge:
        return self.split(rows, rows[self.at + 1], rows[self.at])

    def lines(
        self, part: Callable[[Charge], Split], beside: Sequence[_PlainLine]
    ) -> Callable[[Rows], list[_PlainLine]]:
        """Lines of an entry with a part of the charge, among those beside it."""

        def sorted_lines(rows: Rows) -> list[_PlainLine]:
            money, credit = part(self.charge(rows))
            return sorted(
                (
                    *beside,
                    Line(self.owner, CREDIT, NO_PERIOD, credit),
                    Line(self.owner, MONEY, self.period, money),
                )
            )

        return sorted_lines


def _payment(reservation_id: str, lines: Sequence[Line], cost_nanousd: int, *, at: int) -> _Payment | None:
    """Of a resolution that costs so much; None when the reservation knows nothing of credit."""
    purse = _purse(lines)
    if purse is None:
        return None
    credit, money = purse
    held = Split(money.amount, credit.amount)
    return _Payment(
        reservation_id,
        credit.owner,
        money.period,
        held,
        at,
        lambda _, money_row, credit_row: charged_to(cost_nanousd, held, money=money_row, credit=credit_row),
    )


def correction_steps(
    reservation_id: str, lines: Sequence[Line], difference_nanousd: int, *, beside: Sequence[Line] = ()
) -> tuple[list[Step], _Lines]:
    """The steps that move a difference on the accounts that paid at first, and the lines of its entry. `beside`: what moves on
    accounts that count no money.

    They are to follow one step, which returns the reservation's `credit_nanousd`.
    """
    moved = [
        *(line._replace(amount=difference_nanousd) for line in lines if line.meter in CHARGED),
        *beside,
    ]
    purse = _purse(lines)
    if purse is None:
        return [_move_only(line) for line in moved], moved

    def split(rows: Rows, money_row: Row | None, credit_row: Row | None) -> Charge:
        (credit_charged,) = cast("tuple[int]", rows[0])
        return corrected_on(difference_nanousd, credit_charged, money=money_row, credit=credit_row)

    payment = _Payment(reservation_id, purse[0].owner, purse[1].period, Split(0, 0), 1, split)
    others = [line for line in moved if not payment.is_on(line.owner, line.meter)]
    steps = [*payment.steps, *(_move_only(line) for line in others)]
    return steps, payment.lines(lambda charge: charge.spent, others)


_Amount = TypeVar("_Amount", Hold, Line)


def _purse(lines: Sequence[_Amount]) -> tuple[_Amount, _Amount] | None:
    """The lines on credit and on the money beside it; None when nothing is on credit."""
    for credit in lines:
        if credit.meter == CREDIT:
            for money in lines:
                if money.meter == MONEY and money.owner == credit.owner:
                    return credit, money
            raise ValueError(f"credit of {credit.owner} without its money: {lines}")
    return None


STEPS_OF_CREDIT = 2
"""To hold on credit: a look, and what it says."""


def _hold_steps(
    holds: Sequence[Hold], *, is_more: bool = False, is_under_way: bool = False
) -> tuple[list[AnyStep], _HeldLines, int]:
    """The steps that hold, the lines that are held then (known before, unless some of it is on credit), and what they hold
    in nano-USD, as `_money` says."""
    statement = HOLD_MORE if is_more else HOLD_ACCOUNT
    if is_under_way:
        statement = HOLD_BESIDE_CREDIT  # what holds nothing is granted
    steps: list[AnyStep] = []
    lines, purse, hold_nanousd = [], None, 0
    for owner, meter, period, amount, allowance in holds:
        assert amount >= 0, f"a negative hold would give others' money away: {holds}"
        steps.append((statement, (owner, meter, period, allowance, amount), meter))
        lines.append(_line((owner, meter, period, amount)))
        if meter in CHARGED:
            hold_nanousd = max(hold_nanousd, amount)
        elif meter == CREDIT:
            purse = _purse(holds)
    if purse is None:
        return steps, tuple(lines), hold_nanousd
    steps, held_lines = _steps_on_credit(holds, lines, purse, statement, is_more=is_more)
    return steps, held_lines, _money(lines)


TOGETHER = 2
"""The accounts of a request that nothing but its user's plan bounds: its money, and its place among the open requests."""


def _are_together(lines: Sequence[Hold] | Sequence[Line]) -> bool:
    """Whether these are the two, in the order in which accounts are touched."""
    if len(lines) != TOGETHER:
        return False
    money, place = lines
    return money[1] == MONEY and place[1] == OPEN_REQUESTS and money[0] == place[0]


def _fit_together(holds: Sequence[Hold]) -> bool:
    """Whether these are the two, and neither is refused for its size alone."""
    return _are_together(holds) and 0 <= holds[0][3] <= holds[0][4] and 0 <= holds[1][3] <= holds[1][4]


def _unit_together(money: Hold, place: Hold, row: Params) -> Unit:
    """To reserve in fewer statements, where these two are held."""
    owner, _, period, amount, allowance = money
    hold = (HOLD_TOGETHER, (owner, period, allowance, amount, place[4], place[3]), TOGETHER)
    quick = (hold, (INSERT_RESERVATION, row, 1), (SELECT_ACCOUNT, money[:3], READS))
    return _unit((_StepsTogether(money, place, row), False, quick))


class _StepsTogether(Sequence[AnyStep]):
    """What tells who is refused, where the quick way did not go through: made when the writer asks for it, of few requests."""

    __slots__ = ("_money", "_place", "_row")

    def __init__(self, money: Hold, place: Hold, row: Params) -> None:
        self._money = money
        self._place = place
        self._row = row

    def _made(self) -> list[AnyStep]:
        steps, _, _ = _hold_steps((self._money, self._place))
        return [*steps, (INSERT_RESERVATION, self._row, None), *_looks((self._money,))]

    def __len__(self) -> int:
        return len(self._made())

    def __iter__(self) -> Iterator[AnyStep]:
        return iter(self._made())

    def __getitem__(self, at: Any) -> Any:
        return self._made()[at]


def _looks(holds: Sequence[Hold]) -> list[AnyStep]:
    return [(SELECT_ACCOUNT, hold[:3], None) for hold in holds]


def _steps_on_credit(
    holds: Sequence[Hold], lines: Sequence[Line], purse: tuple[Hold, Hold], statement: str, *, is_more: bool
) -> tuple[list[AnyStep], _HeldLines]:
    """As `_hold_steps`, where a hold is split between credit and money by how they stand."""
    credit, money = purse
    locked_at = holds.index(credit)

    def split(rows: Rows) -> Split:
        return held_on(money.amount, rows[locked_at])

    steps: list[AnyStep] = []
    for hold in holds:
        if hold == credit:
            steps.append((LOCK_ACCOUNT, credit[:3], None))
            steps.append((MOVE_ACCOUNT, lambda rows: (*credit[:3], 0, -split(rows).credit), None))
        elif hold == money:
            steps.append(
                (
                    HOLD_MORE if is_more else HOLD_BESIDE_CREDIT,
                    lambda rows: (*money[:3], money.allowance, split(rows).money),
                    MONEY,
                )
            )
        else:
            params = (hold.owner, hold.meter, hold.period, hold.allowance, hold.amount)
            steps.append((statement, params, hold.meter))

    def held_lines(rows: Rows) -> tuple[Line, ...]:
        amounts = {credit[:3]: split(rows).credit, money[:3]: split(rows).money}
        return tuple(line._replace(amount=amounts.get(line[:3], line.amount)) for line in lines)

    return steps, held_lines


def _credit_beside(more: Sequence[Hold], lines: Sequence[Line]) -> list[Hold]:
    """For an extension: the credit of the reservation, where it extends the money beside it."""
    purse = _purse(lines)
    if purse is None or not any(hold[:3] == purse[1][:3] for hold in more):
        return []
    return [Hold(*purse[0][:3], amount=0, allowance=0)]


def _lines_by(lines: _HeldLines, rows: Rows) -> tuple[Line, ...]:
    return lines(rows) if callable(lines) else lines


def with_lines(
    before: Params, lines: _Lines, after: Params, *, without_zeros: bool = False
) -> Params | Callable[[Rows], Params]:
    """Parameters with lines among them: computed when they are."""
    if isinstance(lines, str):
        return before + (lines,) + after  # noqa: RUF005 - as below
    if callable(lines):
        return lambda rows: (*before, encode_lines(lines(rows), without_zeros=without_zeros), *after)
    return before + (encode_lines(lines, without_zeros=without_zeros),) + after  # noqa: RUF005 - in a third of the time of stars


# --- rows --------------------------------------------------------------------------------------------


async def balance_of(readers: Readers, owner: str, meter: str, period: str) -> Balance:
    """An account as it stands; zeros when nothing was ever held on it. Raises Refused(STORE_UNAVAILABLE)."""
    row = await readers.row(SELECT_ACCOUNT, (owner, meter, period))
    return Balance(*cast("tuple[int, int, int]", row)) if row else Balance(0, 0, 0)


NO_COST = Priced(cost_nanousd=0, lines=(), flags=())


def bounded(priced: Priced, at_least_nanousd: int, at_most_nanousd: int) -> Priced:
    """An estimate: between what is certain and the hold."""
    cost_nanousd = min(max(priced.cost_nanousd, at_least_nanousd), at_most_nanousd)
    if cost_nanousd == priced.cost_nanousd:
        return priced
    return replace(priced, cost_nanousd=cost_nanousd, flags=(*priced.flags, NOT_FROM_USAGE))


class _Booked(NamedTuple):
    """What an expiry has booked: nano-USD, tokens, and the accounts that paid (JSON)."""

    cost_nanousd: int
    tokens: TokenCounts
    lines: str


_Shared = tuple[Intent, Settlement, int, int | None]
"""What the entries of one resolution share; the last two are its instant, and how long the request took, in ms."""
_Used = tuple[str | None, TokenCounts]
"""What an entry says was used: usage as `encode_usage` has it, and its tokens."""
NOTHING_USED: _Used = (None, (0, 0, 0, 0))


def _entry(
    kind: str, cost_nanousd: int, lines: _Lines, shared: _Shared, used: "_Used" = NOTHING_USED
) -> AnyStep:
    """The step that appends an entry. `used` stands in one entry of a resolution: the columns of all entries together are what
    was used."""
    intent, settlement, at_ms, duration_ms = shared
    usage, tokens = used
    priced, notes = settlement.priced, settlement.notes
    if priced.flags:
        notes = (*notes, *priced.flags)
    model = priced.lines[0].model if priced.lines else intent.model
    basis = "reported" if settlement.is_reported else "estimated"
    noted = orjson.dumps(notes).decode() if notes else ""
    who = (kind, intent.id, intent.user_id, intent.token_id, at_ms)
    what = (intent.surface, intent.operation, model, settlement.outcome.word, basis, cost_nanousd)
    status, request_id = settlement.upstream_status, settlement.upstream_request_id
    after = (settlement.price_version, status, request_id, duration_ms)
    before = who + what + tokens + (usage, noted)
    return INSERT_ENTRY, with_lines(before, lines, after, without_zeros=True), None


def _after(
    extension: "asyncio.Future[Result]", resolve: "Callable[[], asyncio.Future[Resolved]]"
) -> "asyncio.Future[Resolved]":
    """Resolve as soon as an extension is in or refused; the future of that resolution."""
    chained: asyncio.Future[Resolved] = asyncio.get_running_loop().create_future()
    extension.add_done_callback(lambda _: _pass_on(resolve(), chained))
    return chained


def _pass_on(source: "asyncio.Future[Resolved]", target: "asyncio.Future[Resolved]") -> None:
    """Give the outcome of one future to another, unless nobody waits for that any more."""

    def copy(source: "asyncio.Future[Resolved]") -> None:
        if target.done():
            return
        if (error := source.exception()) is not None:
            target.set_exception(error)
            target.exception()  # a waiter that never looks is not a defect
        else:
            target.set_result(source.result())

    source.add_done_callback(copy)


def _tell(resolved: "asyncio.Future[Resolved]", found: Resolved) -> None:
    if not resolved.done():
        resolved.set_result(found)


def _is_sane(settlement: Settlement) -> bool:
    if not 0 <= settlement.priced.cost_nanousd <= COST_NANOUSD_MAX:
        return False
    amounts = settlement.amounts
    return not amounts or all(0 <= amount <= COUNT_BOOKED_MAX for amount in amounts.values())


def _told(settlement: Settlement) -> str:
    return f"{settlement.priced.cost_nanousd} nano-USD, {dict(settlement.amounts)}"


def _reduced(settlement: Settlement, hold_nanousd: int) -> Settlement:
    """What can be booked of a report that no row can take: what it comes to if that is sane, or all that was held."""
    is_sane = _is_sane(settlement)
    return replace(
        settlement,
        priced=Priced(settlement.priced.cost_nanousd if is_sane else hold_nanousd, (), ()),
        is_reported=False,
        notes=(UNBOOKABLE_REPORT,),
        amounts=settlement.amounts if is_sane else {},
        upstream_request_id=None,
    )


def declined_hold(holds: Sequence[Hold], declined: Declined) -> Hold | None:
    """The one of these holds that was declined: they are tried in sorted order, before anything else. None when it
    was none of them."""
    by_step = [hold for hold in sorted(holds) for _ in range(STEPS_OF_CREDIT if hold.meter == CREDIT else 1)]
    return by_step[declined.step] if declined.step < len(by_step) else None


def encode_lines(lines: Sequence[_PlainLine], *, without_zeros: bool = False) -> str:
    """Lines as the JSON of a row."""
    if without_zeros:
        lines = [line for line in lines if line[3]]
    return orjson.dumps(lines, default=tuple).decode()


def encode_line(line: _PlainLine) -> str:
    """As `encode_lines` without zeros, of one that is a plain tuple."""
    return orjson.dumps((line,)).decode() if line[3] else "[]"


def decode_lines(text: str) -> tuple[Line, ...]:
    """Lines from the JSON of a row."""
    return tuple(Line(*line) for line in orjson.loads(text))


def encode_usage(priced: Priced) -> str | None:
    """Usage and unit prices as the JSON of a row: enough to recompute the charge. None when nothing was used."""
    if not priced.lines:
        return None
    # As dicts: it writes them three times as fast as objects.
    lines = [
        {
            "model": line.model,
            "counts": line.counts,
            "modifiers": line.modifiers,
            "unit_prices": line.unit_prices,
        }
        for line in priced.lines
    ]
    return orjson.dumps(lines).decode()


def _decoded_counts(usage: str | None) -> tuple[int, int, int, int]:
    return token_counts([UsageLine(line["model"], line["counts"]) for line in json.loads(usage or "[]")])


def _held(row: Row) -> tuple[Intent, tuple[Line, ...], int, str | None, int]:
    """A row of HELD_COLUMNS: intent, lines, checkpoint in nano-USD, its usage, creation in ms."""
    reservation_id, user_id, token_id, surface, operation, model = (cast("str", value) for value in row[:6])
    lines = decode_lines(cast("str", row[6]))
    intent = Intent(reservation_id, user_id, token_id, surface, operation, model, ())
    return intent, lines, cast("int", row[7]), cast("str | None", row[8]), cast("int", row[9])


def _resolution(reservation: Reservation, state: str, cost_nanousd: int, now_ms: int) -> AnyStep:
    params = (reservation.intent.id, state, cost_nanousd, now_ms)
    if reservation.found is None:
        return RESOLVE_RESERVATION, params, ALREADY_RESOLVED
    return RESOLVE_AS_FOUND, (*params, reservation.found), ALREADY_RESOLVED


def _spending(
    reservation: Reservation, settlement: Settlement, within_nanousd: int
) -> tuple[list[AnyStep], _Lines, _Lines]:
    """The steps that spend what a settlement costs, and its lines within the hold and above it."""
    cost_nanousd, payment = settlement.priced.cost_nanousd, None
    above_nanousd = cost_nanousd - within_nanousd
    steps: list[AnyStep] = []
    if reservation.has_credit:  # the resolution is the step before
        payment = _payment(reservation.id, reservation.lines, cost_nanousd, at=1)
    if payment is not None:
        steps += payment.steps
    within: list[_PlainLine] = []
    above: list[_PlainLine] = []
    for owner, meter, period, held in reservation.lines:
        if payment is not None and payment.is_on(owner, meter):
            continue
        if meter in CHARGED:
            spent, booked = cost_nanousd, within_nanousd
            above.append((owner, meter, period, above_nanousd))
        else:
            spent = booked = settlement.amounts.get(meter, 0 if meter in GAUGES else held)
        within.append((owner, meter, period, booked))
        steps.append((MOVE_ACCOUNT, (owner, meter, period, spent, held), None))
    if payment is None:
        return steps, within, above
    of_settle = payment.lines(lambda charge: charge.within(within_nanousd), within)
    return steps, of_settle, payment.lines(lambda charge: charge.above(within_nanousd), above)


def _release_steps(lines: Sequence[Line]) -> list[AnyStep]:
    """To give all that is held back."""
    if _are_together(lines):
        (owner, _, period, held), (_, _, _, place) = lines
        return [(MOVE_TOGETHER, (owner, period, 0, held, 0, place), None)]
    return [(MOVE_ACCOUNT, (*line[:3], 0, line[3]), None) for line in lines]


def _move(line: Line, spent: int) -> Step:
    return Step(MOVE_ACCOUNT, (line.owner, line.meter, line.period, spent, line.amount))


def _move_only(line: Line) -> Step:
    """Spend a line, of which nothing is held."""
    return Step(MOVE_ACCOUNT, (line.owner, line.meter, line.period, line.amount, 0))


def _duration_ms(started_at_ms: int, now_ms: int) -> int:
    """Never negative, though the wall clock may be set back."""
    return now_ms - started_at_ms if now_ms > started_at_ms else 0


def _money(lines: Sequence[Line]) -> int:
    """The hold in nano-USD: what every account of the reservation that is charged holds, or, of a user with credit,
    both accounts together. Credit stands right before the money of its owner."""
    hold_nanousd = beside_nanousd = 0
    for _, meter, _, amount in lines:
        if meter == CREDIT:
            beside_nanousd = amount
        elif meter in CHARGED:
            together_nanousd = amount
            if meter == MONEY:
                together_nanousd, beside_nanousd = amount + beside_nanousd, 0
            hold_nanousd = max(hold_nanousd, together_nanousd)
    return hold_nanousd


def _expired(line: Line, checkpoint_nanousd: int) -> int:
    if line.meter in CHARGED:
        return checkpoint_nanousd
    return 0 if line.meter in GAUGES else line.amount


def _recounted(lines: Sequence[Line], amounts: Mapping[str, int]) -> list[Line]:
    """What an expiry has counted as it was held, by how much the report differs from that."""
    counted = [line for line in lines if line.meter in amounts and line.meter not in CHARGED | GAUGES]
    differences = [line._replace(amount=amounts[line.meter] - line.amount) for line in counted]
    return [line for line in differences if line.amount]


def _added(lines: Sequence[Line], more: Sequence[Hold | Line]) -> tuple[Line, ...]:
    amounts = {line[:3]: line.amount for line in lines}
    for hold in more:
        amounts[hold[:3]] = amounts.get(hold[:3], 0) + hold.amount
    return tuple(Line(*key, amount) for key, amount in sorted(amounts.items()))
