"""The calls of an account: dialled or received, picked up, handed on, over; and what each of them cost.

A call with a `Fate` goes its way by itself, on the account's time. Any other waits for the test, but ends at its
`max_duration` in any case.
"""

import collections
import heapq
from collections.abc import Callable, Mapping
from typing import Any

from simulators import bland_errors as errors
from simulators.bland_account import Account, e164
from simulators.bland_call import Call, Fate, Origin
from simulators.bland_prices import SECONDS_PER_MINUTE, Billed
from simulators.bland_requests import MAX_DURATION_DEFAULT_MINUTES, asked, retry_wait_s

SAME_NUMBER_MS = 10_000
"""A number is not dialled twice within ten seconds, whoever asks (the vendor's error reference)."""
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
STATUSES = ("completed", "failed", "busy", "no-answer", "canceled", "unknown")


class Calls:
    """`fate_of` says what becomes of a call by the number dialled. `happened` is told of what a call goes through: with
    a message and a category; `ended`, of its end."""

    def __init__(
        self,
        account: Account,
        *,
        fate_of: Callable[[str], Fate | None],
        is_blacklisted: Callable[[str], bool],
        happened: Callable[[Call, str, str], None],
        ended: Callable[[Call], None],
    ) -> None:
        self.by_id: dict[str, Call] = {}
        self.dialled: list[Call] = []
        self.billed: list[Billed] = []
        self._account = account
        self._fate_of = fate_of
        self._is_blacklisted = is_blacklisted
        self._happened = happened
        self._ended = ended
        self._running: dict[str, Call] = {}
        self._plans: list[tuple[int, int, int, Call]] = []
        """A heap of what happens by itself: when, to which call; what was planned otherwise since is skipped."""
        self._accepted_ms: collections.deque[int] = collections.deque()
        """Of the last day."""
        self._last_ms: dict[str, int] = {}

    @property
    def running(self) -> list[Call]:
        """Those that are not over, in order."""
        return list(self._running.values())

    # how calls begin

    def dial(self, fields: Mapping[str, Any], origin: Origin, *, is_byot: bool) -> Call:
        """Accept a request to dial, and dial unless it says when. Raises RefusedError."""
        wish = asked(fields)
        from_number = self._account.caller(wish.from_number, is_byot=is_byot)
        self._check(wish.to)
        now_ms = self._account.now_ms()
        self._accepted_ms.append(now_ms)
        self._last_ms[wish.to] = now_ms
        call = Call(
            number=self._account.count(),
            call_id=self._account.new_id(),
            to=wish.to,
            from_number=from_number,
            created_ms=now_ms,
            fields=fields,
            max_duration_minutes=wish.max_duration_minutes,
            origin=origin,
            is_byot=is_byot,
            fate=self._fate_of(wish.to),
            dials_ms=max(now_ms, wish.start_ms or 0),
        )
        self._add(call)
        self.tick()
        return call

    def receive(self, to: str, from_number: str, *, fate: Fate | None = None) -> Call:
        """Somebody calls one of the account's numbers. It rings. Raises RefusedError(404)."""
        number = self._account.number(to)
        now_ms = self._account.now_ms()
        call = Call(
            number=self._account.count(),
            call_id=self._account.new_id(),
            to=number.phone_number,
            from_number=e164(from_number) or from_number,
            created_ms=now_ms,
            fields=dict(number.settings),
            max_duration_minutes=number.settings.get("max_duration") or MAX_DURATION_DEFAULT_MINUTES,
            is_inbound=True,
            is_byot=number.is_byot,
            fate=fate,
            dials_ms=now_ms,
            is_dialled=True,
        )
        self._add(call)
        return call

    def _check(self, to: str) -> None:
        account, now_ms = self._account, self._account.now_ms()
        if self._is_blacklisted(to):
            raise errors.blacklisted(to)
        if now_ms - self._last_ms.get(to, -SAME_NUMBER_MS) < SAME_NUMBER_MS:
            raise errors.same_number(to)
        while self._accepted_ms and now_ms - self._accepted_ms[0] >= DAY_MS:
            self._accepted_ms.popleft()
        plan = account.plan
        in_hour = 0 if plan.per_hour_max is None else self._accepted_since(now_ms - HOUR_MS)
        for used, limit, span in (
            (len(self._running), plan.at_once_max, "at once"),
            (in_hour, plan.per_hour_max, "within an hour"),
            (len(self._accepted_ms), plan.per_day_max, "within a day"),
        ):
            if limit is not None and used >= limit:
                raise errors.rate_limited(used, limit, span)
        if account.balance_usd <= 0:
            raise errors.insufficient_balance(account.balance_usd)

    def _accepted_since(self, after_ms: int) -> int:
        return sum(each > after_ms for each in self._accepted_ms)

    def _add(self, call: Call) -> None:
        self.by_id[call.call_id] = self._running[call.call_id] = call
        self._plan(call)
        self._happened(call, "Call queued", "queue")

    def _dial(self, call: Call) -> None:
        call.is_dialled = True
        self.dialled.append(call)
        self._plan(call)
        self._happened(call, f"Dialling {call.to}", "queue")

    # how they go on

    def pick_up(self, call: Call, *, answered_by: str | None = "human", at_ms: int | None = None) -> None:
        """Somebody, or something, answers. ValueError for a call that is connected or over."""
        if call.is_over or call.is_connected:
            raise ValueError(f"call {call.call_id} is {call.queue_status(self._account.now_ms())}")
        if not call.is_dialled:
            self._dial(call)
        call.started_ms = self._account.now_ms() if at_ms is None else at_ms
        call.answered_by = answered_by
        self._plan(call)
        self._happened(call, "Call connected", "call")

    def transfer(self, call: Call, to: str, *, is_warm: bool = False) -> Call | None:
        """Hand a connected call on; of a warm transfer, the call of the proxy agent who talks to `to` first."""
        if call.is_over or not call.is_connected:
            raise ValueError(f"call {call.call_id} is not connected")
        call.transferred_ms, call.transferred_to = self._account.now_ms(), to
        self._happened(call, f"Transferring to {to}", "call")
        if not is_warm:
            return None
        proxy = self._successor(call, to=to, dials_ms=self._account.now_ms())
        proxy.is_proxy_agent = True
        call.proxy_agent_calls.append(proxy)
        self._add(proxy)
        self._dial(proxy)
        return proxy

    def end(
        self,
        call: Call,
        *,
        seconds: int | None = None,
        status: str = "completed",
        answered_by: str | None = None,
        ended_by: str | None = "ASSISTANT",
        error_message: str | None = None,
        error_queue_status: str | None = None,
        length_minutes: float | None = None,
        at_ms: int | None = None,
    ) -> None:
        """The call is over, and billed.

        It was connected for `seconds`, or since it was picked up until now; a completed one that nobody picked up was
        picked up so long ago. One that ends in another way without seconds was never connected. `length_minutes`: a
        `call_length` that does not fit.
        """
        if call.is_over or status not in STATUSES:
            raise ValueError(f"call {call.call_id} cannot end as {status}: over since {call.ended_ms}")
        now_ms = self._account.now_ms() if at_ms is None else at_ms
        is_connected = status == "completed" or seconds is not None
        if is_connected and not call.is_connected:
            self.pick_up(call, at_ms=now_ms - (seconds or 0) * 1000)
        if not is_connected:
            call.started_ms = call.answered_by = None
        if seconds is not None and call.started_ms is not None:
            now_ms = call.started_ms + seconds * 1000
        call.ended_ms, call.status, call.error_message = now_ms, status, error_message
        call.answered_by = answered_by or call.answered_by
        call.ended_by = ended_by if call.is_connected else None
        call.error_queue_status = error_queue_status
        del self._running[call.call_id]
        self._bill(call, now_ms)
        exact = call.billed.seconds / SECONDS_PER_MINUTE if call.billed else 0.0
        call.length_minutes = round(exact, 7) if length_minutes is None else length_minutes
        self._happened(call, "Call ended", "call")
        self._ended(call)
        self._repeat(call)

    def stop(self, call: Call) -> None:
        """On request, which is then what ended it: a guess. Raises RefusedError(400) when it is over."""
        if call.is_over:
            raise errors.nothing_to_stop()
        self.end(call, status="completed" if call.is_connected else "canceled", ended_by="API")

    def _bill(self, call: Call, at_ms: int) -> None:
        """A call that was called off before it was dialled was no attempt, and costs nothing."""
        seconds, transfer_s = call.seconds_at(at_ms), call.transfer_s_at(at_ms)
        price_usd = self._account.tariff.price_usd(
            talk_s=seconds - transfer_s,
            transfer_s=transfer_s,
            is_outbound=not call.is_inbound and call.is_dialled,
            is_byot=call.is_byot,
        )
        billed = Billed(call.call_id, call.is_inbound, call.is_byot, seconds, transfer_s, price_usd)
        call.billed = billed
        self._account.balance_usd -= price_usd
        self.billed.append(billed)

    def _repeat(self, call: Call) -> None:
        """A voicemail with a `retry` is dialled again: a call that nobody asked for by a request of its own."""
        if call.answered_by != "voicemail" or call.is_inbound or call.ended_ms is None:
            return
        wait_s = retry_wait_s(call.fields)
        if wait_s is not None:
            self._add(self._successor(call, to=call.to, dials_ms=call.ended_ms + round(wait_s * 1000)))

    def _successor(self, call: Call, *, to: str, dials_ms: int) -> Call:
        """A call that comes of another one, with no request; it has no `retry` of its own."""
        return Call(
            number=self._account.count(),
            call_id=self._account.new_id(),
            to=to,
            from_number=call.from_number,
            created_ms=self._account.now_ms(),
            fields={name: value for name, value in call.fields.items() if name != "retry"},
            max_duration_minutes=call.max_duration_minutes,
            is_byot=call.is_byot,
            dials_ms=dials_ms,
        )

    # time

    def due_ms(self) -> int | None:
        """When something happens by itself next."""
        while self._plans and self._plans[0][0] != _due_ms(self._plans[0][-1]):
            heapq.heappop(self._plans)
        return self._plans[0][0] if self._plans else None

    def tick(self) -> None:
        """Let everything happen whose time has come, in the order of its time."""
        while (due_ms := self.due_ms()) is not None and due_ms <= self._account.now_ms():
            self._go_on(self._plans[0][-1], due_ms)

    def _plan(self, call: Call) -> None:
        due_ms = _due_ms(call)
        if due_ms is not None:
            heapq.heappush(self._plans, (due_ms, call.number, self._account.count(), call))

    def _go_on(self, call: Call, at_ms: int) -> None:
        fate = call.fate
        if not call.is_dialled:
            self._dial(call)
        elif not call.is_connected and fate is not None:
            if fate.status == "completed":
                self.pick_up(call, answered_by=fate.answered_by, at_ms=at_ms)
            else:
                self.end(call, status=fate.status, answered_by=fate.answered_by, at_ms=at_ms)
        else:
            self.end(call, seconds=None if fate is None else fate.seconds, at_ms=at_ms)


def _due_ms(call: Call) -> int | None:
    """When something happens to a call by itself, as things stand."""
    if call.is_over:
        return None
    if not call.is_dialled:
        return call.dials_ms
    fate, cut_off_ms = call.fate, call.cut_off_ms
    if call.started_ms is None or cut_off_ms is None:
        return None if fate is None else call.dials_ms + round(fate.rings_s * 1000)
    if fate is None or fate.talks_s is None:
        return cut_off_ms
    return min(cut_off_ms, call.started_ms + round(fate.talks_s * 1000))
