"""Work that goes on after its request, polled to its end. Knows no vendor: the declaration says where to ask and
how to read the answer.

A row is written before the client knows the work's id (see metering/deferred.py). From then on any worker may
ask the vendor about it, with the operation's own reader; the first that finds it ended settles its reservation.
Reading the same result again, by us or by its user, books nothing.
"""

import asyncio
import logging
import urllib.parse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import orjson

from metering.admission import Caller, token_rates_of
from metering.clock import Clock
from metering.deferred import ARRIVED, DeferredWork, DeferredWorks
from metering.errors import Refused
from metering.hooks import Hooks, endpoint_of
from metering.json_text import json_of
from metering.ledger import Ledger, Outcome, Reservation, Resolved, Settlement, bounded
from metering.objects import ObjectId
from metering.orphans import Maker
from metering.outbox import adding, new_message
from metering.plans import HARD
from metering.prices import PriceTable
from metering.quotas import quotas_used
from metering.scheduled import ScheduledWorks
from metering.store.writer import Step
from metering.tasks import spawn, stop
from metering.tokens_per_minute import TokensPerMinute, counted_tokens
from metering.usage import Usage, UsageLine
from metering.values import immutable
from proxy.exchange import Exchange
from proxy.mounted import Mounted
from proxy.running import FOR_BUDGET, Running, RunningWork
from proxy.scheduling import UNHEARD_POLL_S, Scheduling
from proxy.side_calls import SideCalls
from proxy.surface import AnswerHead, Deferred, Demand, Inbound, Observer, Operation, Scheduled
from proxy.telemetry import Telemetry
from proxy.upstream import UpstreamClient, UpstreamError

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""Between two looks for work that is due."""
POLLS_AT_ONCE = 16
"""Of one surface, by one worker: a vendor that is silent keeps nobody from asking another."""
DUE_AT_ONCE = 128
"""Rows of one look; more than can be asked about at once."""
POLL_TIMEOUT_S = 60.0
"""For one poll, whole: work that its vendor is silent about must not take the places of all other for long."""
ANSWER_BYTES_MAX = 32 * 1024 * 1024
"""A poll's answer that is longer is not read: what it was about expires as an estimate."""
UNKNOWN_POLL_S, UNKNOWN_POLLS_MAX = 600.0, 144
"""Rows of operations that this release does not know are left for the one that does, for a day."""
OK, NOT_FOUND = 200, 404
LOST_AFTER_POLLS = 3
"""Work is lost when the vendor has said so often in a row: right after it began, not all of its machines may know of it."""
OPEN_STATES = frozenset({"HELD", "EXPIRED"})
"""Of reservations to which a report is still booked."""
NOTE_LOST = "lost_at_vendor"
"""The vendor knows nothing of the work any more: it is booked at its estimate."""
NOTE_OTHER_PRICE = "vendor_price_differs"
"""The vendor says itself what the work cost, and it is not what the price table says."""
LOOKED_FOR_AFTER_S = 2.0
"""After a request whose answer was lost, before what it started is looked for."""
ABSENCES_MAX = 3
"""What is not found so often was never begun: not all of a vendor's machines may know at once."""
NEVER_BEGUN = Usage((), is_exact=True, notes=("not_found_at_vendor",))
"""Of a request whose answer was lost, or was an error that may have been too late."""


@immutable
class _Kind:
    """A declared kind of deferred work, where it is mounted."""

    mounted: Mounted
    operation: Operation
    deferred: Deferred | Scheduled


class Deferrals:
    """The deferred work of all surfaces, as one worker sees it."""

    def __init__(
        self,
        *,
        works: DeferredWorks,
        scheduled: ScheduledWorks,
        mounted: Sequence[Mounted],
        ledger: Ledger,
        prices: PriceTable,
        client: UpstreamClient,
        telemetry: Telemetry,
        clock: Clock,
        tokens: TokensPerMinute,
        running: Running,
        hooks: Hooks,
    ) -> None:
        self._hooks = hooks
        self._running = running
        self._works = works
        self._ledger = ledger
        self._prices = prices
        self._client = client
        self._telemetry = telemetry
        self._clock = clock
        self._tokens = tokens
        self.scheduling = Scheduling(scheduled, SideCalls(client), clock, encoded=_encoded)
        self._kinds: Mapping[tuple[str, str], _Kind] = {
            (item.surface.name, name): _Kind(item, operation, deferred)
            for item in mounted
            for name, operation in item.surface.works
            if (deferred := operation.deferred or operation.scheduled) is not None
        }
        self._polls: dict[str, dict[str, asyncio.Task[bool]]] = {}
        """Under way, by surface and reservation."""
        self._has_place = asyncio.Event()

    def steps(self, exchange: Exchange, ids: Sequence[ObjectId]) -> tuple[Step, ...]:
        """What must be written with ids that an answer hands out, where its work may go on under one of them."""
        operation, demand, caller = exchange.operation, exchange.demand, exchange.caller
        assert operation is not None
        assert caller is not None
        if operation.deferred is None or not demand.is_deferred or exchange.is_deferred:
            return ()
        for one in ids:
            if one.kind == operation.deferred.kind:
                exchange.is_deferred = True
                work = _work(exchange, demand, caller, one.upstream_id)
                adding = self._works.adding(replace(work, is_seen=1), poll_in_s=operation.deferred.poll_s)
                return (adding, *recorded(operation.deferred, exchange.request_id, demand.made))
        return ()

    def opening(self, exchange: Exchange) -> Step:
        """What must be written with the reservation of a request that starts what goes on by itself: whatever becomes of the
        request, somebody asks what became of that."""
        assert exchange.caller is not None
        return self._works.opening(_work(exchange, exchange.demand, exchange.caller, ""))

    def leave_open(self, exchange: Exchange) -> "asyncio.Future[Resolved]":
        """Nobody was told what a request started, if it did. It is looked for, and ended."""
        left: asyncio.Future[Resolved] = asyncio.get_running_loop().create_future()
        writing = self._works.leave_open(exchange.request_id, poll_in_s=LOOKED_FOR_AFTER_S)

        def tell(_: object) -> None:
            if not left.done():
                left.set_result(Resolved.DONE)

        writing.add_done_callback(tell)
        return left

    def reported(self, one: ObjectId) -> Sequence[Step]:
        """A vendor's word that something became of an object: what must be written for the work under its id, or that
        belongs to it, to be asked about at once. Nothing is booked by that word alone."""
        ways = {
            (surface, kind.deferred.kind != one.kind)
            for (surface, _), kind in self._kinds.items()
            if kind.mounted.surface.provider == one.vendor and one.kind in _kinds_of(kind.deferred)
        }
        return [
            self._works.poll_now(surface, one.upstream_id, is_about=is_about)
            for surface, is_about in sorted(ways)
        ]

    def reported_of(self, request_id: str, upstream_id: str) -> Step:
        """The same of one request, whose work goes on under this id, or under one that nobody knows yet."""
        return self._works.poll_request_now(request_id, upstream_id)

    async def keep_polling(self) -> None:
        """Look forever; a store in trouble is waited out. Who has work waiting for a place looks as soon as there is one."""
        try:
            while self._kinds:
                self._has_place.clear()
                try:
                    await self._begin_due()
                except Refused as error:
                    logger.debug(
                        "no look for deferred work: %s", error
                    )  # the store has said what is wrong with it
                except Exception:
                    logger.exception("deferred work cannot be looked for")
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._has_place.wait()
        finally:
            for task in [task for polls in self._polls.values() for task in polls.values()]:
                await stop(task)

    async def poll_due(self) -> int:
        """Ask about all that is due and finds a place, to its end; how much of it was asked about. Raises
        Refused(STORE_UNAVAILABLE)."""
        return sum(await asyncio.gather(*await self._begin_due()))

    async def _begin_due(self) -> "list[asyncio.Task[bool]]":
        """Begin to ask about what is due, each once, until nothing more finds a place."""
        begun: dict[str, asyncio.Task[bool]] = {}
        is_more = True
        while is_more:
            full = [surface for surface, polls in self._polls.items() if len(polls) >= POLLS_AT_ONCE]
            due = await self._works.due(at_most=DUE_AT_ONCE, without=full)
            new = {
                work.reservation_id: task
                for work in due
                if work.reservation_id not in begun and (task := self._begin(work)) is not None
            }
            begun, is_more = begun | new, bool(new)
        return list(begun.values())

    def _begin(self, work: DeferredWork) -> "asyncio.Task[bool] | None":
        """None where it has no place, or is asked about already."""
        polls = self._polls.setdefault(work.surface, {})
        if len(polls) >= POLLS_AT_ONCE or work.reservation_id in polls:
            return None
        task = spawn(self._poll_safely(work), name=f"poll {work.reservation_id}")
        polls[work.reservation_id] = task
        task.add_done_callback(lambda _: self._leave_place(work, task))
        return task

    def _leave_place(self, work: DeferredWork, task: "asyncio.Task[bool]") -> None:
        polls = self._polls[work.surface]
        was_asked = not task.cancelled() and task.exception() is None and task.result()
        # A store that takes no claim is not to be asked at once again.
        if was_asked and len(polls) >= POLLS_AT_ONCE:
            self._has_place.set()
        del polls[work.reservation_id]

    async def _poll_safely(self, work: DeferredWork) -> bool:
        """One bad row must not keep the others from being asked about."""
        try:
            return await self._poll(work)
        except Refused as error:
            logger.warning("deferred work of %s was not asked about: %s", work.reservation_id, error)
        except Exception:
            logger.exception("deferred work of %s cannot be read", work.reservation_id)
        return False

    async def _poll(self, work: DeferredWork) -> bool:
        kind = self._kinds.get((work.surface, work.operation))
        if kind is None:  # another release's, which may come back
            if (
                await self._works.claim(work, next_poll_in_s=UNKNOWN_POLL_S)
                and work.polls >= UNKNOWN_POLLS_MAX
            ):
                await self._works.forget(work)
            return False
        if isinstance(kind.deferred, Scheduled):
            return await self._poll_scheduled(kind, kind.deferred, work)
        return await self._poll_going_on(kind, kind.deferred, work)

    async def _poll_going_on(self, kind: _Kind, deferred: Deferred, work: DeferredWork) -> bool:
        if not await self._works.claim(work, next_poll_in_s=deferred.poll_s):
            return False
        is_awaited = await self._ledger.awaits_report(work.reservation_id)
        if not is_awaited or await self._is_given_up(deferred, work):
            await self._works.forget(work)
            return False
        demand = _decoded(work.demand)
        if not work.upstream_id:
            work = replace(work, upstream_id=await self._found(kind, deferred, work), absences=0)
        if not work.upstream_id:
            return True
        status, observer, found = await self._ask(kind, deferred, work, demand)
        if status == NOT_FOUND:
            if await self._works.absent(work, poll_in_s=deferred.poll_s) >= LOST_AFTER_POLLS:
                lost = Usage(demand.floor.lines, is_exact=False, notes=(NOTE_LOST,))
                await self._book(kind, work, lost, status)
        elif observer is not None and deferred.is_running(observer):
            await self._works.goes_on(work, due_in_s=deferred.due_s)
            if kind.operation.timed is not None:
                timed, budget = kind.operation.timed, _budget_in(work.demand)
                running = RunningWork(kind.mounted, kind.operation, timed, work, demand, budget)
                await self._running.go_on(running, timed.waited_s(observer))
        elif observer is not None and observer.is_complete:
            more = await self._at_end(deferred, work, found)
            await self._book(kind, work, observer.usage(), status, more)
        return True

    async def _at_end(self, deferred: Deferred, work: DeferredWork, found: bytes) -> tuple[Step, ...]:
        """For the unit of its entry: what is kept of work that has ended, and what tells its user's agent."""
        if deferred.records is None and deferred.tells is None:
            return ()
        ended = json_of(found)
        if not isinstance(ended, dict):
            return ()
        told = await self._told(deferred, work, ended)
        return (*recorded(deferred, work.reservation_id, ended), *told)

    async def _told(
        self, deferred: Deferred, work: DeferredWork, ended: Mapping[str, Any]
    ) -> tuple[Step, ...]:
        """What tells the agent of its user, where that has said where, that the work has ended."""
        user_id = None if deferred.tells is None else await self._ledger.user_of(work.reservation_id)
        if deferred.tells is None or user_id is None or await self._hooks.of(user_id) is None:
            return ()
        told = deferred.tells(ended)
        if told is None:
            return ()
        kind, document = told
        return (adding(new_message(kind, endpoint_of(user_id), document, self._clock.now_ms())),)

    async def _is_given_up(self, deferred: Deferred, work: DeferredWork) -> bool:
        """By its age: what others have had asked about in between makes no work old, but tells when to look."""
        may_be = work.polls * deferred.poll_s > deferred.given_up_after_s
        return may_be and await self._ledger.age_s(work.reservation_id) > deferred.given_up_after_s

    async def _found(self, kind: _Kind, deferred: Deferred, work: DeferredWork) -> str:
        """The id of what a request began whose answer was lost; empty where there is none, which is booked when it is sure."""
        found = await self._running.look_for(kind.mounted, deferred, work, _sought_in(work.demand))
        if found is None and await self._works.absent(work, poll_in_s=deferred.poll_s) >= ABSENCES_MAX:
            await self._book(kind, work, NEVER_BEGUN, 0)
        return found or ""

    async def _poll_scheduled(self, kind: _Kind, scheduled: Scheduled, work: DeferredWork) -> bool:
        assert work.scheduled_at_ms is not None
        if not await self._works.claim(work, next_poll_in_s=UNHEARD_POLL_S):
            return False
        if work.is_open:
            await self.scheduling.adopt(work)
        ahead_s = (work.scheduled_at_ms - self._clock.now_ms()) / 1000
        is_old = (
            -ahead_s > scheduled.given_up_after_s and await self._ledger.held(work.reservation_id) is None
        )
        if is_old or not await self._ledger.awaits_report(work.reservation_id):
            await self._works.forget(work)
            return False
        demand = _decoded(work.demand)
        used = await self.scheduling.outcome(kind.mounted, scheduled, work, demand)
        if used is not None:
            await self._book(kind, work, used, OK)
            self.scheduling.look_soon(work.reservation_id)
            return True
        await self._works.keep(work, due_in_s=max(ahead_s, 0.0) + scheduled.due_s)
        return True

    async def _ask(
        self, kind: _Kind, deferred: Deferred, work: DeferredWork, demand: Demand
    ) -> tuple[int, Observer | None, bytes]:
        """The vendor's status, and the observer and body of a good answer; (0, None, b"") when there was none."""
        mounted = kind.mounted
        path = deferred.path.replace("{id}", urllib.parse.quote(work.upstream_id, safe=""))
        headers = [
            *mounted.fixed_headers,
            (b"accept-encoding", b"identity"),
            mounted.credential(kind.operation),
        ]
        try:
            # Not asyncio.timeout: cancelled before it has written anything, the client raises a cancellation of its
            # own, which Python 3.11 lets through as ours.
            patience = replace(
                mounted.timeouts,
                first_byte_s=min(POLL_TIMEOUT_S, mounted.timeouts.first_byte_s),
                answer_s=min(POLL_TIMEOUT_S, mounted.timeouts.answer_s),
            )
            answer = await self._client.open(mounted.origin, b"GET", path.encode(), headers, b"", patience)
        except UpstreamError as error:
            logger.warning("%s was not asked about deferred work: %s", mounted.surface.name, error)
            return 0, None, b""
        try:
            if answer.status != OK:
                logger.warning(
                    "%s answered %d about deferred work of %s",
                    mounted.surface.name,
                    answer.status,
                    work.reservation_id,
                )
                return answer.status, None, b""
            head = AnswerHead(answer.status, answer.headers)
            observer = kind.operation.meter.observe(Inbound("GET", {}, b"", [], b"", {}), demand, head)
            pieces, size = [], 0
            while chunk := await answer.read():
                size += len(chunk)
                if size > ANSWER_BYTES_MAX:
                    return answer.status, None, b""
                pieces.append(chunk)
                observer.feed(chunk)
            observer.end()
        except UpstreamError as error:
            logger.warning("%s broke off its word of deferred work: %s", mounted.surface.name, error)
            return 0, None, b""
        else:
            return answer.status, observer, b"".join(pieces)
        finally:
            answer.close()

    async def _book(
        self, kind: _Kind, work: DeferredWork, usage: Usage, status: int, more: tuple[Step, ...] = ()
    ) -> None:
        """Settle, or adjust what has expired meanwhile; with what is written of it. Only then is the row forgotten. What is
        estimated is no less than the time that it was seen to run."""
        if not usage.is_exact:
            known = await self._ledger.known_usage(work.reservation_id)
            if known.seconds > usage.seconds:
                usage = replace(usage, lines=known.lines)
        priced = self._prices.price(kind.mounted.surface.provider, usage, at_ms=self._clock.now_ms())
        notes = usage.notes
        if usage.told_nanousd is not None and usage.told_nanousd != priced.cost_nanousd:
            notes = (*notes, NOTE_OTHER_PRICE)
            self._telemetry.told_other_price(kind.mounted.surface.name)
            logger.error(
                "%s says that %s cost %d nano-USD, by the price table it is %d",
                kind.mounted.surface.name,
                work.reservation_id,
                usage.told_nanousd,
                priced.cost_nanousd,
            )
        settlement = Settlement(
            _outcome(work, usage),
            priced,
            is_reported=usage.is_exact,
            notes=notes,
            amounts=quotas_used(usage, kind.operation.quotas),
            price_version=self._prices.version,
            upstream_status=status,
            more=more,
        )

        def settle(reservation: Reservation) -> "asyncio.Future[Resolved]":
            nonlocal settlement
            if not usage.is_exact:
                settlement = replace(settlement, priced=bounded(priced, 0, reservation.hold_nanousd))
            return self._ledger.settle(reservation, settlement)

        is_booked = await self._ledger.resolve_found(work.reservation_id, settle) is Resolved.DONE
        if not is_booked and usage.is_exact:
            is_booked = await self._ledger.report_late(work.reservation_id, settlement)
        await self._works.forget(work)
        if is_booked:
            tokens = counted_tokens(settlement.priced)
            for owner, tokens_per_minute in _rates_in(work.demand):
                self._tokens.charge(owner, tokens_per_minute, tokens)
            self._telemetry.finish_deferred(
                kind.mounted.surface,
                work.operation,
                work.reservation_id,
                settlement,
                polls=work.polls + 1,
            )


def adoption(
    works: DeferredWorks, mounted: Sequence[Mounted], maker: Maker, one: ObjectId
) -> tuple[Step, ...]:
    """What must be written with an object that a request made and whose owner was found later, where work goes on under it
    that is not booked yet. What the request asked for is no longer known: its model, and what the vendor reports, is all."""
    is_open = maker.state in OPEN_STATES and any(
        operation.deferred is not None and operation.deferred.kind == one.kind
        for item in mounted
        if item.surface.name == maker.surface
        for operation in item.surface.operations
        if operation.name == maker.operation
    )
    if not is_open:
        return ()
    demand = Demand(models=() if maker.model is None else (maker.model,))
    work = DeferredWork(
        maker.request_id, maker.surface, maker.operation, one.upstream_id, _encoded(demand, ())
    )
    return (works.adding(work, poll_in_s=0.0),)


def _outcome(work: DeferredWork, usage: Usage) -> Outcome:
    """How a request ended whose work is booked."""
    if usage is NEVER_BEGUN:
        return Outcome.UPSTREAM_FAILED
    return Outcome.BUDGET_ENDED if work.ended_because == FOR_BUDGET else Outcome.COMPLETED


def _kinds_of(deferred: Deferred | Scheduled) -> tuple[str, ...]:
    """Of ids by which a vendor tells of such work."""
    if isinstance(deferred, Scheduled):
        return deferred.kind, deferred.about[0]
    return (deferred.kind,)


def _work(exchange: Exchange, demand: Demand, caller: Caller, upstream_id: str) -> DeferredWork:
    assert exchange.operation is not None
    written = _encoded(demand, token_rates_of(caller), budget=caller.plan.budget)
    return DeferredWork(
        exchange.request_id, exchange.surface.name, exchange.operation.name, upstream_id, written
    )


def recorded(deferred: Deferred, reservation_id: str, known: Mapping[str, Any]) -> tuple[Step, ...]:
    """What is kept of an object of which so much is known."""
    return () if deferred.records is None else (deferred.records(reservation_id, known),)


def arrived(mounted: Mounted, name: str, one: ObjectId, demand: Demand, budget: str) -> DeferredWork:
    """Work that nobody has asked for, which stands as `name` in the ledger."""
    written = _encoded(demand, (), budget=budget)
    return DeferredWork(
        f"{ARRIVED}{one.upstream_id}", mounted.surface.name, name, one.upstream_id, written, is_seen=1
    )


def _encoded(demand: Demand, rates: Sequence[tuple[str, int]], *, budget: str = HARD) -> str:
    """With whose tokens per minute the work will count against, and their limits, and the kind of their plan's budget: whoever
    books it knows no caller."""
    return orjson.dumps(
        {
            "rates": rates,
            "budget": budget,
            "models": demand.models,
            "sought": dict(demand.sought),
            "ceiling": [_line_as_json(line) for line in demand.ceiling.lines],
            "floor": [_line_as_json(line) for line in demand.floor.lines],
        }
    ).decode()


def _line_as_json(line: UsageLine) -> list[object]:
    return [line.model, dict(line.counts), dict(line.modifiers)]


def _rates_in(text: str) -> Sequence[tuple[str, int]]:
    """Rows of before there were any have none."""
    return [(owner, limit) for owner, limit in orjson.loads(text).get("rates", [])]


def _budget_in(text: str) -> str:
    """Rows of before there were any have none."""
    return str(orjson.loads(text).get("budget", HARD))


def _sought_in(text: str) -> Mapping[str, str]:
    """Rows of before there was any have none."""
    sought: Mapping[str, str] = orjson.loads(text).get("sought", {})
    return sought


def _decoded(text: str) -> Demand:
    fields = orjson.loads(text)
    return Demand(
        models=tuple(fields["models"]),
        ceiling=Usage(tuple(UsageLine(*line) for line in fields["ceiling"]), is_exact=False),
        floor=Usage(tuple(UsageLine(*line) for line in fields["floor"]), is_exact=False),
    )
