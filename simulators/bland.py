"""Bland.ai, simulated: an account that dials, answers, records, texts, bills, and tells of it by webhooks.

It keeps state: what one request makes, the next one finds. Facts about the vendor come from its documentation; what that
does not say is marked as a guess where it is decided. What an answer does comes as `simulators.vendor` says, and whether
the work behind it is done as `simulators.stateful` says.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import httpx

from metering.clock import Clock, SystemClock, instant
from simulators import bland_errors as errors
from simulators import bland_webhooks as webhooks
from simulators.behaviour import Ending
from simulators.bland_account import Account, Number, Plan
from simulators.bland_api import Api
from simulators.bland_behaviour import (
    FOREIGN_NUMBER,
    PLAIN,
    PLANTED,
    Behaviour,
    ReportedUsage,
    answers,
    answers_late,
    breaks_after,
    drops,
    fails,
    hangs,
    loses_reply,
    parse_simulate,
    replays,
    stalls_after,
)
from simulators.bland_call import Call, Fate, truth
from simulators.bland_calls import Calls
from simulators.bland_owner import Owner
from simulators.bland_prices import BUILD, SCALE, START, Billed, Tariff
from simulators.bland_requests import leaves_text, voicemail_message
from simulators.bland_texts import Text, Texts
from simulators.bland_turn import PREFIX, Answered, Handler, Request, Turn
from simulators.bland_webhooks import (
    COMPLETION,
    RETRY_DELAYS_S,
    WEBHOOK_SECRET,
    Courier,
    Delivery,
    Post,
    Tamper,
)
from simulators.deliveries import post
from simulators.paths import decoded, found
from simulators.script import Answer, Ready, Script
from simulators.server import ReceivedRequest
from simulators.vendor import Options, VendorSimulator

__all__ = [
    "BUILD",
    "BYOT_KEY",
    "FATES",
    "FOREIGN_NUMBER",
    "PLAIN",
    "PLANTED",
    "SCALE",
    "START",
    "VENDOR_KEY",
    "WEBHOOK_SECRET",
    "Answered",
    "Behaviour",
    "Billed",
    "BlandSimulator",
    "Call",
    "Delivery",
    "Ending",
    "Fate",
    "Number",
    "Plan",
    "Post",
    "ReportedUsage",
    "Tamper",
    "Tariff",
    "Text",
    "answers",
    "answers_late",
    "breaks_after",
    "drops",
    "fails",
    "hangs",
    "loses_reply",
    "replays",
    "stalls_after",
]

VENDOR_KEY = "sk-bland-simulated-vendor-key"
"""The platform's own key, of the whole account."""
BYOT_KEY = "byot-simulated-encrypted-key"
"""What `encrypted_key` must be: that of the platform's Twilio account."""
FATES: Mapping[str, Fate] = {
    "+12025550100": Fate(seconds=42),
    "+12025550101": Fate("busy", answered_by=None),
    "+12025550102": Fate("no-answer", answered_by="no-answer"),
    "+12025550103": Fate(answered_by="voicemail", seconds=19),
    "+12025550104": Fate("failed", answered_by=None),
    "+12025550105": Fate(talks_s=None),
}
"""Numbers whose calls go their way by themselves, and whose webhooks are delivered without being asked: a talk, nobody
free, nobody there, a voicemail, a failure, and one that talks until it is cut off. They are reserved for fiction."""
TICK_S_MIN = 0.001


class BlandSimulator(VendorSimulator[Behaviour, Turn]):
    """`https://api.bland.ai` on a loopback port.

    Time is `clock`'s, and runs ahead of it by what `advance` adds. A call whose number has a fate by `fate_of` goes
    its way by itself, any other as the test says. Webhooks are recorded; they are delivered by `deliver`, and by itself where the call goes by itself or
    `delivers` says so, after the seconds that `schedule` says and again after `retry_delays_s`. A new call is found only
    after `appears_after_s`. `is_blacklisted` judges the numbers that are dialled. `seed` is that of all ids. Call its
    methods in its own event loop.
    """

    vendor_key = VENDOR_KEY
    behaviour_type = Behaviour
    turn_type = Turn
    parse_simulate = staticmethod(parse_simulate)

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        plan: Plan = Plan(),  # noqa: B008 - it cannot change
        tariff: Tariff = BUILD,
        fate_of: Callable[[str], Fate | None] = FATES.get,
        byot_key: str = BYOT_KEY,
        webhook_secret: str = WEBHOOK_SECRET,
        delivers: bool = False,
        schedule: Callable[[Post], Sequence[float]] = lambda post: (0.0,),  # noqa: ARG005 - the same for all
        retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
        appears_after_s: float = 0.0,
        is_blacklisted: Callable[[str], bool] = lambda number: number == FOREIGN_NUMBER,
        seed: int = 0,
        **options: Unpack[Options[Behaviour]],
    ) -> None:
        super().__init__(**options)
        self.webhook_secret = webhook_secret
        self.delivers = delivers
        self.appears_after_s = appears_after_s
        self.account = Account(clock or SystemClock(), plan=plan, tariff=tariff, byot_key=byot_key, seed=seed)
        self.posts: list[Post] = []
        """All that there was to tell, in order, whether or not anybody was told."""
        self._texts = Texts(self.account)
        self._calls = Calls(
            self.account,
            fate_of=fate_of,
            is_blacklisted=is_blacklisted,
            happened=self.happen,
            ended=self._completed,
        )
        self.courier = Courier(
            self.account.now_ms,
            self._send,
            schedule=schedule,
            retry_delays_s=retry_delays_s,
            happened=self._again,
        )
        self._timer: asyncio.TimerHandle | None = None
        api = Api(
            self.account,
            self._calls,
            self._texts,
            posts=self.posts,
            appears_after_ms=lambda: round(self.appears_after_s * 1000),
            details=lambda call: {**self._truth(call), **call.details_say},
        )
        owner = Owner(self.account, self._calls)
        self._routes = [*owner.routes, *api.routes, *owner.collections]

    # what happened

    @property
    def dialled(self) -> list[Call]:
        """Every call that was really dialled, in order: by requests, also where their answer was lost, and by itself."""
        return self._calls.dialled

    @property
    def billed(self) -> list[Billed]:
        """What every call cost that is over, in the order of their ends."""
        return self._calls.billed

    @property
    def texts(self) -> list[Text]:
        """Every text that was sent or received, in order."""
        return self._texts.all

    @property
    def is_quiet(self) -> bool:
        """No call is running, and nothing is on its way or due to be delivered."""
        return not self._calls.running and self.courier.is_idle

    @property
    def answers(self) -> list[Answered]:
        """What the answers to requests that dial, text or analyze say, in order of arrival, whether or not their end was reached."""
        return self.answers_of(Answered)

    def call(self, call_id: str) -> Call:
        return self._calls.by_id[call_id]

    def account_words(self) -> set[str]:
        """What errors and answers may name that is not the caller's: to be allowed for where it is the caller's own."""
        return {*PLANTED, *self.account.numbers, *self._calls.by_id}

    # what a test makes happen

    def add_number(self, phone_number: str, *, is_byot: bool = True, **settings: Any) -> Number:
        """A number to call from and to be called at."""
        number = self.account.add_number(phone_number, is_byot=is_byot)
        number.settings.update(settings)
        return number

    def advance(self, seconds: float) -> None:
        """Let time pass for this account, and let everything happen that is due then."""
        self.account.ahead_ms += round(seconds * 1000)
        self._again()

    def receive(self, to: str, from_number: str, *, fate: Fate | None = None) -> Call:
        """Somebody calls a number of the account; it rings."""
        call = self._calls.receive(to, from_number, fate=fate)
        self._again()
        return call

    def pick_up(self, call: Call, *, answered_by: str = "human") -> None:
        """The call is answered: it is connected, and costs from now on."""
        self._calls.pick_up(call, answered_by=answered_by)
        self._again()

    def transfer(self, call: Call, to: str, *, is_warm: bool = False) -> Call | None:
        """The agent hands the call on; of a warm transfer, the call that the proxy agent makes for it."""
        proxy = self._calls.transfer(call, to, is_warm=is_warm)
        self._again()
        return proxy

    def end(self, call: Call, **how: Any) -> Post:
        """The call is over, as `Calls.end` says; the completion that there is to tell."""
        self._calls.end(call, **how)
        self._again()
        return self.completion(call)

    def receive_text(self, user_number: str, agent_number: str, message: str) -> Text:
        return self._texts.receive(user_number, agent_number, message)

    def happen(self, call: Call, message: str, category: str = "call", level: str = "info") -> None:
        """An event of a running call; it is told where `webhook_events` names its category."""
        told = webhooks.about_event(call, message, category, level, self.account.now_ms())
        seen = {"timestamp": instant(told.at_ms), "level": level, "message": message, "category": category}
        call.events.append({"call_id": call.call_id, **seen})
        if category in (call.fields.get("webhook_events") or ()):
            self._tell(told, call)

    def tell(self, call: Call, event_type: str, *, is_retry: bool = False, **more: Any) -> Post:
        """What comes after a completion: `citations`, `evals`, `post_transfer_transcript` or `multiple`. That it repeats
        all of the completion is a guess, and the worst case."""
        body = {**self._said(call), "event_type": event_type, "isRetry": is_retry, **more}
        told = Post(event_type, call.call_id, call.webhook, body, self.account.now_ms())
        self._tell(told, call)
        self._again()
        return told

    def completion(self, call: Call) -> Post:
        """What was told when it ended. ValueError while it runs."""
        for told in self.posts:
            if told.kind == COMPLETION and told.call_id == call.call_id:
                return told
        raise ValueError(f"call {call.call_id} is not over")

    # webhooks

    def signed(self, told: Post, *, tamper: Tamper | None = None) -> tuple[dict[str, str], bytes]:
        """Headers and body of a delivery."""
        return webhooks.signed(told, self.webhook_secret, tamper=tamper)

    async def deliver(
        self,
        what: Call | Post,
        *,
        url: str | None = None,
        times: int = 1,
        tamper: Tamper | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> httpx.Response:
        """POST a completion or something else, `times` times in a row, to its call's webhook or to `url`; the last answer."""
        told = self.completion(what) if isinstance(what, Call) else what
        target = url or told.url
        if target is None:
            raise ValueError(f"call {told.call_id} has no webhook")
        return (await post(target, [self.signed(told, tamper=tamper)] * times, client))[-1]

    async def quiet(self) -> None:
        """Until no call is running and nothing is on its way or due to be delivered."""
        await self.until(lambda: self.is_quiet)

    async def _send(self, told: Post) -> httpx.Response:
        return await self.deliver(told)

    def _tell(self, told: Post, call: Call) -> None:
        self.posts.append(told)
        if self.delivers or call.fate is not None:
            self.courier.take(told)

    def _completed(self, call: Call) -> None:
        self._tell(
            Post(COMPLETION, call.call_id, call.webhook, self._said(call), self.account.now_ms()), call
        )
        if call.answered_by == "voicemail" and not call.is_inbound and leaves_text(call.fields):
            self._texts.leave(call.to, call.from_number, voicemail_message(call.fields))

    def _said(self, call: Call) -> dict[str, Any]:
        return {**self._truth(call), **call.webhook_says}

    def _truth(self, call: Call) -> dict[str, Any]:
        return truth(call, self.account.now_ms(), f"{self.url}{PREFIX}/recordings/")

    # time

    def _again(self) -> None:
        """Do what is due, and come back when something is due again."""
        self._calls.tick()
        with contextlib.suppress(
            RuntimeError
        ):  # outside an event loop nothing is delivered, and no timer runs
            loop = asyncio.get_running_loop()
            self.courier.tick()
            self._set_timer(loop)
        self._happened()

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = [due for due in (self._calls.due_ms(), self.courier.due_ms()) if due is not None]
        if due and self._listener is not None:
            wait_s = (min(due) - self.account.now_ms()) / 1000
            self._timer = loop.call_later(max(wait_s, TICK_S_MIN), self._again)

    async def start(self, *, host: str = "127.0.0.1", port: int = 0) -> str:
        url = await super().start(host=host, port=port)
        self._again()
        return url

    async def stop(self) -> None:
        await self.courier.stop()
        if self._timer is not None:
            self._timer.cancel()
        await super().stop()

    # answering

    def answer(self, request: ReceivedRequest) -> Answer:
        self._calls.tick()
        answer = super().answer(request)
        self._again()
        return answer

    def route(self, request: ReceivedRequest) -> Callable[[Turn], Answer]:
        match = found(self._routes, request.method, decoded(request.path))
        if match is None:
            raise errors.not_found("Route")
        handler, ids = match
        return lambda turn: self._handle(turn, handler, ids)

    def authenticate(self, request: ReceivedRequest) -> None:
        """`authorization` with the bare key or as a bearer; `x-api-key` is not looked at."""
        key = request.header(b"authorization").removeprefix(b"Bearer ")
        if not key or self.api_key not in (None, key):
            raise errors.unauthorized()

    def _handle(self, turn: Turn, handler: Handler, ids: dict[str, str]) -> Script | Ready:
        if not turn.behaviour.takes_effect:
            return turn.give_nothing()
        request = Request(turn.request, ids)
        answer = handler(request)
        turn.report(request)
        return turn.give(answer)
