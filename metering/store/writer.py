"""The group-committing writer: one thread, one connection, many units of work per commit.

Theory of operation. `submit` appends a unit to a queue and returns a future at once; nothing that happens
to the caller afterwards (cancelled, gone) takes the unit back. When the loop's turn has ended, the thread takes
whatever has gathered, runs it as one transaction, commits, and delivers all results in one hop to the event loop.
While a commit waits for the disk, the next batch gathers: the busier the store, the larger its batches. Whoever comes while
a batch waits for the lock that another worker has joins it.

A unit is a list of steps, all or none. A step that names a `refusal` must return or change a row; when it does
none, the unit is undone and answers `Declined(refusal)`. Statements never raise in normal life: their
conditions decide, and the rows they touch tell who was admitted.

Trouble (locked, full, read-only, damaged) fails the whole batch: units that `must_keep` stay in the queue
and are tried again until they are in; the others answer StoreUnavailable. The writer mends itself when the
store does: it opens a new connection for each attempt after a failure. A unit whose statements cannot run in
a store that is well is no trouble: it fails alone, or it would be tried again for ever before all others.

A disk may also hang, and with it the thread. The loop watches it: when one attempt has outlasted its bound,
whoever may be refused is refused at once, until the attempt ends. What it commits then for somebody who was
refused is unclaimed.
"""

import asyncio
import collections
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import field
from functools import lru_cache
from typing import NamedTuple

from metering.errors import Reason, Refused
from metering.store.database import Database, StoreMovedError
from metering.store.trouble import TroubleLog, explained, is_statements_defect
from metering.values import immutable

logger = logging.getLogger(__name__)

BATCH_UNITS_MAX = 256
"""Units per commit: bounds how long the write lock is held (about 25 us a unit)."""
SAVEPOINT_UNITS = 1_000
"""Run with savepoints after one that had to be undone: where somebody is refused, more will be."""
QUEUE_UNITS_MAX = 20_000
"""Units waiting: beyond it new ones are refused; those that must be kept are bounded by open requests."""
STATEMENTS_MAX = 256
"""Statements of which it is remembered whether they return rows: about as many as there are."""
RETRY_MIN_S, RETRY_MAX_S = 0.05, 1.0
"""Pause between attempts while the store is in trouble."""
STALL_GRACE_S = 1.0
"""Beyond the busy timeout: an attempt that takes longer is a store that hangs."""
WATCH_EVERY_S = 0.25
CLOSING_S = 5.0
"""How long closing tries to write to a store in trouble before it gives up."""
STORE_RETRY_AFTER_S = 2.0
"""What a refused client is told."""

Row = tuple[object, ...]
Rows = Sequence[Row | None]
"""For each step so far its first returned row, if any."""
Value = str | int | None
Params = tuple[Value, ...]
Told = Callable[["Result | Exception"], None]
"""What hears of a result on the event loop; it does not raise."""


class Step(NamedTuple):
    """One statement with numbered placeholders. With a `refusal`, no row returned or changed undoes the unit.

    Parameters that depend on what earlier steps of the unit found are a function of their rows. The writer's thread
    calls it inside the transaction, and once more when a batch is tried again: arithmetic, nothing else.
    """

    sql: str
    params: Params | Callable[[Rows], Params]
    refusal: str | None = None


AnyStep = tuple[str, Params | Callable[[Rows], Params], str | None]
"""A Step, or the same as a plain tuple: a request has eight, and each name of a tuple costs as much as a short statement's
parameters."""


QuickStep = tuple[str, Params, int]
"""Of a unit's quick way, and how many rows it must change; READS where it only reads."""
READS = -1


class Unit(NamedTuple):
    """Steps that happen together or not at all."""

    steps: Sequence[AnyStep]
    must_keep: bool = False
    quick: Sequence[QuickStep] = ()
    """The same in fewer statements, for the usual case that nothing is refused: tried first. Where one of these changes fewer rows
    than it must, all are undone, and the steps tell who is refused what."""


@immutable
class Done:
    """A unit that is committed: for each step its first returned row, if any."""

    rows: list[Row | None]


@immutable
class Declined:
    """A unit that was undone, by the name of the step's refusal; `step` is its place in the unit."""

    refusal: str
    step: int = field(default=0, compare=False)


Result = Done | Declined


@immutable
class _Ticket:
    """A unit in the queue and who is told: a future, or `told` alone."""

    unit: Unit
    future: "asyncio.Future[Result] | None"
    told: Told | None
    """With a future, only where nobody waits for that any more."""


class _UndoError(Exception):
    """A unit was refused by a step that is not its first."""


_Delivery = tuple[_Ticket, Result | Exception]
"""What is to be told to whoever waits."""


class CommitStats(NamedTuple):
    """What one commit did: for the metrics."""

    units: int
    began_s: float
    ended_s: float
    """As `time.perf_counter` has it."""
    is_ok: bool

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s


class CommitTimes(NamedTuple):
    """What passed before and after a commit: where a slow request may have waited."""

    waits_s: Sequence[float]
    """Of each of its units, from when it was queued to when the commit began; 0 for those that joined it."""
    heard_s: float
    """From its end until the loop heard of it."""


def store_unavailable(detail: str) -> Refused:
    """The refusal for a store that cannot be written or heard of now."""
    return Refused(
        Reason.STORE_UNAVAILABLE,
        f"The proxy's ledger is temporarily unavailable ({detail}). Nothing was sent or charged; retry shortly.",
        retry_after_s=STORE_RETRY_AFTER_S,
    )


class GroupCommitWriter:
    """The only writer of this process. Make it on the event loop that will wait for its results."""

    def __init__(self, database: Database, *, on_commit: Callable[[CommitStats], None] | None = None) -> None:
        self._database = database
        self._loop = asyncio.get_running_loop()
        self._on_commit = on_commit
        self._queue: collections.deque[_Ticket] = collections.deque()
        self._wake = threading.Condition()
        self._is_sleeping = False
        self._is_being_called = False
        self._is_closing = False
        self._is_stopped = False
        self._closing_ends_s = 0.0
        self._undelivered_batches = 0
        self._followers: set[asyncio.Future[None]] = set()
        self._savepoint_units = 0
        """How many units more are run with savepoints."""
        self._connection: sqlite3.Connection | None = None
        self._trouble: str | None = None
        self._log = TroubleLog(logger, "the store")
        self._batch: list[_Ticket] = []
        """What the attempt under way is about; empty between attempts."""
        self._looks_at_batch = 0
        """How often in a row the loop has found this batch under way. Counted, not timed: a loop that was
        stuck itself has seen nothing."""
        self._is_stalled = False
        self._flushed: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()
        self._watcher = self._loop.call_later(WATCH_EVERY_S, self._watch)

    @property
    def queued_units(self) -> int:
        return len(self._queue)

    @property
    def trouble(self) -> str | None:
        """What the last attempt failed with, or that this one hangs; None while the store works."""
        return "it does not answer" if self._is_stalled else self._trouble

    def submit(self, unit: Unit, on_unclaimed: Told | None = None) -> "asyncio.Future[Result]":
        """Queue a unit. The future carries Done, Declined, or raises Refused(STORE_UNAVAILABLE).

        `on_unclaimed` is called with the result when the waiter has gone by the time it is there.
        """
        future = self._loop.create_future()
        self._put(_Ticket(unit, future, on_unclaimed))
        return future

    def keep(self, steps: Sequence[AnyStep], told: Told) -> None:
        """Queue a unit that must be kept. `told` is called with the result, or with what a future would raise; later, on the
        loop: a future would cost a turn more. It may be called again, for what hung when it was given up on and is in
        after all."""
        self._put(_Ticket(Unit(steps, True), None, told))

    def _put(self, ticket: _Ticket) -> None:
        if self._is_closing or self._is_stalled or len(self._queue) >= QUEUE_UNITS_MAX:
            self._put_if_possible(ticket)
            return
        self._queue.append(ticket)
        if self._is_sleeping and not self._is_being_called:
            self._is_being_called = True
            self._loop.call_soon(self._call_thread)

    def _call_thread(self) -> None:
        """At the end of the turn, so that its group has all that came in it: each commit costs as much as several units."""
        self._is_being_called = False
        with self._wake:
            self._wake.notify()

    def _put_if_possible(self, ticket: _Ticket) -> None:
        """When closing, under the lock under which the thread decides to stop: what is taken will be tried."""
        why = None
        with self._wake:
            if self._is_closing and (self._is_stopped or not ticket.unit.must_keep):
                why = "shutting down"
            elif not ticket.unit.must_keep:
                why = "does not answer" if self._is_stalled else "overloaded"
            else:
                self._queue.append(ticket)
                self._wake.notify()
        if why is not None and ticket.future is not None:
            _tell(ticket, store_unavailable(why))
        elif why is not None:
            self._loop.call_soon(_tell, ticket, store_unavailable(why))

    def stay_open_for(self, follower: "asyncio.Future[None]") -> None:
        """Closing waits, within its bound, for a task that makes further units of what was delivered."""
        with self._wake:
            self._followers.add(follower)
        follower.add_done_callback(self._follower_ended)

    def _follower_ended(self, follower: "asyncio.Future[None]") -> None:
        with self._wake:
            self._followers.discard(follower)
            self._wake.notify()

    async def aclose(self) -> None:
        """Commit what is queued, then stop. Units of a store that stays in trouble are given up on, loudly."""
        with self._wake:
            if not self._is_closing:
                self._is_closing = True
                self._closing_ends_s = time.monotonic() + CLOSING_S
            self._wake.notify()
        try:
            async with asyncio.timeout(CLOSING_S + self._database.busy_timeout_s):
                await asyncio.shield(self._flushed)
        except TimeoutError:
            self._abandon_thread()
        else:
            self._thread.join()
        finally:
            self._watcher.cancel()

    def _abandon_thread(self) -> None:
        """It hangs in a system call, and nothing can end it but the end of the process; or it waits for a follower."""
        with self._wake:
            self._is_stopped = True
            waiting = [*self._batch, *self._queue]
            self._queue.clear()
            self._wake.notify()
        if self._followers:
            logger.error("stopping with %d late reports unwritten: the estimates stand", len(self._followers))
        if waiting:
            self._log_unwritten(sum(ticket.unit.must_keep for ticket in waiting))
        for ticket in waiting:
            _tell(ticket, store_unavailable("cannot be written"))

    # --- the loop's eye on the thread ------------------------------------------------------------------

    def _watch(self) -> None:
        with self._wake:
            self._looks_at_batch = self._looks_at_batch + 1 if self._batch else 0
            stalled_after_s = self._database.busy_timeout_s + STALL_GRACE_S
            self._is_stalled = self._looks_at_batch * WATCH_EVERY_S > stalled_after_s
            refused = self._take_refusable() if self._is_stalled else []
        if self._is_stalled:
            self._log.failed(f"a commit has not ended for {stalled_after_s:g} s: look at the store's disk")
        for ticket in refused:
            _tell(ticket, store_unavailable("does not answer"))
        self._watcher = self._loop.call_later(WATCH_EVERY_S, self._watch)

    def _take_refusable(self) -> list[_Ticket]:
        """All who may be refused: out of the queue, and those of the batch, which cannot be taken back."""
        waiting = list(self._queue)
        self._queue.clear()
        self._queue.extend(ticket for ticket in waiting if ticket.unit.must_keep)
        return [ticket for ticket in (*self._batch, *waiting) if not ticket.unit.must_keep]

    # --- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        pause_s = 0.0
        while True:
            batch = self._take(pause_s)
            if not batch:
                break
            started_s = time.perf_counter()
            results = self._attempt(batch)
            is_ok = self._trouble is None
            pause_s = 0.0 if is_ok else min(max(pause_s * 2, RETRY_MIN_S), RETRY_MAX_S)
            self._hand_over(results, CommitStats(len(batch), started_s, time.perf_counter(), is_ok))
        self._give_up_on_rest()
        self._disconnect()
        self._call_loop(self._flushed.set_result, None)

    def _hand_over(self, results: list[_Delivery], stats: CommitStats) -> None:
        with self._wake:
            self._undelivered_batches += 1
            self._batch, self._looks_at_batch, self._is_stalled = [], 0, False
        self._call_loop(self._deliver, results, stats)

    def _call_loop(self, callback: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            logger.warning("the event loop closed before the ledger's writer did")

    def _take(self, pause_s: float) -> list[_Ticket]:
        """The next batch; an empty one means to stop. In trouble, waits `pause_s` before the next attempt."""
        with self._wake:
            if pause_s:
                was_closing = self._is_closing
                self._wake.wait_for(lambda: self._is_closing and not was_closing, timeout=pause_s)
            self._is_sleeping = True
            while not self._queue and not self._may_stop():
                self._wake.wait()
            self._is_sleeping = False
            is_hopeless = bool(pause_s) and self._is_closing and time.monotonic() > self._closing_ends_s
            if not self._queue or is_hopeless or self._is_stopped:
                self._is_stopped = True
                return []
            self._batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_UNITS_MAX))]
            return self._batch

    def _let_join(self) -> None:
        """Whoever came while another worker had the store's lock need not wait for the next commit, too."""
        with self._wake:
            room = BATCH_UNITS_MAX - len(self._batch)
            self._batch += [self._queue.popleft() for _ in range(min(len(self._queue), room))]

    def _may_stop(self) -> bool:
        """Not before all results are delivered: what nobody claims, or what follows from a result, makes new
        units."""
        has_more = self._undelivered_batches or self._followers
        return self._is_stopped or (self._is_closing and not has_more)

    def _attempt(self, batch: list[_Ticket]) -> list[_Delivery]:
        """Commit a batch. In trouble, what is not committed goes back into the queue or is refused."""
        results: list[_Delivery] = []
        try:
            self._database.require_same_file()
            connection = self._connection = self._connection or self._database.connect()
            self._commit(connection, batch, results)
        except Exception as error:  # noqa: BLE001 - the thread outlives whatever it was
            self._trouble = explained(error)
            self._log.failed(self._trouble)
            if not isinstance(
                error, StoreMovedError
            ):  # the opened file lives as long as somebody has it open
                self._disconnect()
            return results + self._keep_or_refuse(batch[len(results) :])
        self._trouble = None
        self._log.worked()
        return results

    def _commit(self, connection: sqlite3.Connection, batch: list[_Ticket], results: list[_Delivery]) -> None:
        """Together; or, when a unit in the batch is defective, one by one, so that it fails alone.

        Appends to `results` as commits succeed: trouble half-way takes none of them back.
        """
        try:
            results += self._commit_together(connection, batch)
        except Exception as error:
            if not is_statements_defect(error):
                raise
            for ticket in batch:
                results.append(self._commit_alone(connection, ticket))

    def _commit_alone(self, connection: sqlite3.Connection, ticket: _Ticket) -> _Delivery:
        try:
            ((_, result),) = self._commit_together(connection, [ticket])
        except Exception as error:
            if not is_statements_defect(error):
                raise
            _require_tables(connection)
            logger.exception("the store refused a unit of work: %s", ticket.unit.steps[0][0])
            return ticket, error
        return ticket, result

    def _commit_together(self, connection: sqlite3.Connection, batch: list[_Ticket]) -> list[_Delivery]:
        cursor = connection.cursor()  # one for all: a cursor a statement costs as much as a short one
        cursor.execute("BEGIN IMMEDIATE")
        try:
            if batch is self._batch:
                self._let_join()
            results = self._run_units(cursor, batch)
            cursor.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                cursor.execute("ROLLBACK")
            raise
        return results

    def _run_units(self, cursor: sqlite3.Cursor, batch: list[_Ticket]) -> list[_Delivery]:
        """Within a transaction. Few units must be undone, and a savepoint for each costs as much as a short step: so a
        batch runs without, and the quick way; begins once more when one must, and savepoints are set for a while."""
        if not self._savepoint_units:
            try:
                return [(ticket, _run_quickly(cursor, ticket.unit)) for ticket in batch]
            except _UndoError:
                self._savepoint_units = SAVEPOINT_UNITS
                cursor.execute("ROLLBACK")
                cursor.execute("BEGIN IMMEDIATE")
        self._savepoint_units = max(0, self._savepoint_units - len(batch))
        return [(ticket, _run_unit(cursor, ticket.unit.steps)) for ticket in batch]

    def _keep_or_refuse(self, batch: list[_Ticket]) -> list[_Delivery]:
        """Put back what must be kept, in its order; refuse all else that waits, or it would wait for ever
        behind a full batch of the kept."""
        with self._wake:
            waiting = [*batch, *(self._queue.popleft() for _ in range(len(self._queue)))]
            self._queue.extendleft(reversed([ticket for ticket in waiting if ticket.unit.must_keep]))
        return [
            (ticket, store_unavailable("cannot be written"))
            for ticket in waiting
            if not ticket.unit.must_keep
        ]

    def _give_up_on_rest(self) -> None:
        """After the decision to stop: nothing is added to the queue any more."""
        if not self._queue:
            return
        self._log_unwritten(len(self._queue))
        results: list[_Delivery] = [
            (ticket, store_unavailable("cannot be written")) for ticket in self._queue
        ]
        self._queue.clear()
        now_s = time.perf_counter()
        self._hand_over(results, CommitStats(len(results), now_s, now_s, is_ok=False))

    def _log_unwritten(self, units: int) -> None:
        logger.error(
            "stopping with %d units unwritten (%s): their reservations stay held and will expire",
            units,
            self.trouble,
        )

    def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            try:
                connection.close()
            except sqlite3.Error as error:
                logger.warning("closing the store's connection: %s", error)

    # --- back on the loop --------------------------------------------------------------------------

    def _deliver(self, results: list[_Delivery], stats: CommitStats) -> None:
        for ticket, result in results:
            _tell(ticket, result)
        self._loop.call_soon(self._delivered)  # after the callbacks of these futures: they may make new units
        if self._on_commit is not None:
            self._on_commit(stats)

    def _delivered(self) -> None:
        with self._wake:
            self._undelivered_batches -= 1
            if self._is_closing:  # else nobody waits for that
                self._wake.notify()


@immutable
class _TimedTicket(_Ticket):
    """One that says since when it waits."""

    queued_s: float


class TimedWriter(GroupCommitWriter):
    """A writer that tells of each commit what its units waited for it, and how long the loop took to hear of it."""

    def __init__(
        self,
        database: Database,
        *,
        on_commit: Callable[[CommitStats], None] | None = None,
        on_times: Callable[[CommitTimes], None],
    ) -> None:
        super().__init__(database, on_commit=on_commit)
        self._on_times = on_times

    def _put(self, ticket: _Ticket) -> None:
        super()._put(_TimedTicket(ticket.unit, ticket.future, ticket.told, time.perf_counter()))

    def _deliver(self, results: list[_Delivery], stats: CommitStats) -> None:
        if stats.is_ok:
            heard_s = time.perf_counter() - stats.ended_s
            tickets = [ticket for ticket, _ in results if isinstance(ticket, _TimedTicket)]
            waits_s = [max(0.0, stats.began_s - ticket.queued_s) for ticket in tickets]
            self._on_times(CommitTimes(waits_s, heard_s))
        super()._deliver(results, stats)


def _require_tables(connection: sqlite3.Connection) -> None:
    """A store whose file was emptied knows no table: that is not the fault of the statements. Raises
    sqlite3.Error."""
    if connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None:
        raise sqlite3.DatabaseError("the store is empty: restore from a backup")


def _tell(ticket: _Ticket, result: Result | Exception) -> None:
    """Tell who waits, or what is told in their place, of a result or of why there is none."""
    future, told = ticket.future, ticket.told
    if future is not None and not future.done():
        if isinstance(result, Exception):
            future.set_exception(result)
            future.exception()  # a waiter that never looks is not a defect
        else:
            future.set_result(result)
    elif told is not None and (future is None or not isinstance(result, Exception)):
        try:
            told(result)
        except Exception:
            logger.exception("what became of a unit could not be handled")  # the others are still delivered


def _run_unit(cursor: sqlite3.Cursor, steps: Sequence[AnyStep]) -> Result:
    """Run one unit inside the batch's transaction. A savepoint only where an earlier step may need undoing."""
    if any(refusal for _, _, refusal in steps[1:]):
        cursor.execute("SAVEPOINT unit")
        result = _run_steps(cursor, steps, may_undo=True)
        if isinstance(result, Declined):
            cursor.execute("ROLLBACK TO unit")
        cursor.execute("RELEASE unit")
        return result
    return _run_steps(cursor, steps)


@lru_cache(maxsize=STATEMENTS_MAX)
def _is_silent(sql: str) -> bool:
    """Whether a statement changes rows and returns none. `executemany` is for these, and does not ask for the id of the
    last row: it gives the processor away twice where `execute` does three times, each time to a loop that may be long in giving
    it back."""
    return sql.split(None, 1)[0] in {"INSERT", "UPDATE", "DELETE"} and "RETURNING" not in sql


def _run_quickly(cursor: sqlite3.Cursor, unit: Unit) -> Result:
    """Raises _UndoError, as below."""
    steps, _, quick = unit
    if not quick:
        return _run_steps(cursor, steps)
    rows: list[Row | None] = []
    for sql, params, changes in quick:
        if changes == READS:
            cursor.execute(sql, params)
            rows.append(cursor.fetchone())
            continue
        cursor.executemany(sql, (params,))  # see `_is_silent`
        if cursor.rowcount < changes:
            raise _UndoError
        rows.append(None)
    return Done(rows)


def _run_steps(cursor: sqlite3.Cursor, steps: Sequence[AnyStep], *, may_undo: bool = False) -> Result:
    """Raises _UndoError where what was done must be undone, and nobody can do that here."""
    execute, execute_silent, fetch = cursor.execute, cursor.executemany, cursor.fetchone
    rows: list[Row | None] = []
    for sql, params, refusal in steps:
        bound = params if isinstance(params, tuple) else params(rows)
        if _is_silent(sql):
            execute_silent(sql, (bound,))
            rows.append(None)
        else:
            execute(sql, bound)
            rows.append(fetch())
        # Of what only reads, -1 rows have changed.
        if refusal is not None and cursor.rowcount <= 0 and rows[-1] is None:
            if len(rows) > 1 and not may_undo:
                raise _UndoError
            return Declined(refusal, len(rows) - 1)
    return Done(rows)
