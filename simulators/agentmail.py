"""AgentMail, simulated: an organization of pods and inboxes that sends, receives, schedules and tells of it.

Unlike the simulated models it keeps state: what one request makes, the next one finds. Facts about the vendor come from
its documentation and its SDK for Python (agentmail 2.0.18); what neither says is marked as a guess where it is decided.
What an answer does comes as `simulators.vendor` says, and whether the work behind it is done as
`simulators.agentmail_behaviour` says.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack

import httpx

from metering.clock import Clock, SystemClock
from simulators import agentmail_content as contents
from simulators import agentmail_errors as errors
from simulators import agentmail_events
from simulators.agentmail_account import Account
from simulators.agentmail_api import Api
from simulators.agentmail_behaviour import (
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
from simulators.agentmail_events import WEBHOOK_SECRET, Event, Events, Tamper, about
from simulators.agentmail_extras import Extras
from simulators.agentmail_mail import Mail, Sent
from simulators.agentmail_organization import (
    DOMAIN,
    Organization,
    Plan,
    Scope,
    View,
    awkward_message_id,
    plain_message_id,
)
from simulators.agentmail_parts import Content
from simulators.agentmail_routes import PREFIX, Call, Handler
from simulators.agentmail_socket import EventSocket
from simulators.agentmail_state import Inbox, Message, Pod
from simulators.agentmail_turn import Answered, Turn
from simulators.behaviour import Ending
from simulators.deliveries import post
from simulators.paths import decoded, found
from simulators.script import Answer, Line, Ready, Script, head
from simulators.server import ReceivedRequest
from simulators.vendor import Options, VendorSimulator
from simulators.websocket import accept, wants_websocket

__all__ = [
    "PLAIN",
    "VENDOR_KEY",
    "WEBHOOK_SECRET",
    "AgentMailSimulator",
    "Answered",
    "Behaviour",
    "Ending",
    "Event",
    "Plan",
    "ReportedUsage",
    "Sent",
    "Tamper",
    "answers",
    "answers_late",
    "awkward_message_id",
    "breaks_after",
    "drops",
    "fails",
    "hangs",
    "loses_reply",
    "plain_message_id",
    "replays",
    "stalls_after",
]

VENDOR_KEY = "am_us_simulated_vendor_key"
"""The platform's own key, of the whole organization."""
LINK_PATH = "/cdn/"
LINK_MS = 3_600_000
"""How long a signed URL is good; a guess."""


class AgentMailSimulator(VendorSimulator[Behaviour, Turn]):
    """`https://api.agentmail.to` and `wss://ws.agentmail.to` on one loopback port.

    Time is `clock`'s, and runs ahead of it by what `advance` adds. `message_ids` makes an id of a number: plain or
    awkward ones. `ignores_case`: an inbox id is found whatever its case, which is a guess. `keeps_labels`: a message has
    those of the draft that it was, which is another. `bounces` and `is_blocked`
    judge the bare addresses that mail goes to. `seed` is that of all ids. Call its methods in its own event loop.
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
        message_ids: Callable[[int], str] = plain_message_id,
        domains: Sequence[str] = (DOMAIN,),
        ignores_case: bool = True,
        keeps_labels: bool = True,
        seed: int = 0,
        webhook_secret: str = WEBHOOK_SECRET,
        bounces: Callable[[str], bool] = lambda address: address.startswith("bounce"),
        is_blocked: Callable[[str], bool] = lambda address: address.startswith("blocked"),
        **options: Unpack[Options[Behaviour]],
    ) -> None:
        super().__init__(**options)
        self.organization = Organization(
            clock or SystemClock(),
            plan=plan,
            message_ids=message_ids,
            domains=domains,
            ignores_case=ignores_case,
            seed=seed,
        )
        self.mail = Mail(self.organization, bounces=bounces, is_blocked=is_blocked, keeps_labels=keeps_labels)
        self.account = Account(self.organization, webhook_secret)
        self.sockets: list[EventSocket] = []
        """Every WebSocket that was accepted, also those that are gone."""
        self.webhook_secret = webhook_secret
        self._links: dict[str, tuple[bytes, str, int]] = {}
        api, extras = Api(self.organization, self.mail, self._link), Extras(self.organization)
        self._routes = [*api.routes, *extras.routes, *self.account.routes]

    # what happened

    @property
    def sent(self) -> list[Sent]:
        """Every message that really went out, in order: by requests, repeated ones not counted, and by schedule."""
        return self.mail.sent

    @property
    def answers(self) -> list[Answered]:
        """What the answers to requests that send say, in order of arrival, whether or not their end was reached."""
        return self.answers_of(Answered)

    @property
    def events(self) -> Events:
        """The record of all that webhooks and sockets tell of."""
        return self.organization.events

    def account_words(self) -> set[str]:
        """What errors may name that is not the caller's: to be allowed for where it is the caller's own."""
        return {
            *PLANTED,
            *self.organization.pods,
            *(each.inbox_id for each in self.organization.inboxes.values()),
        }

    # what a test makes happen

    def add_pod(self, name: str = "tenant") -> Pod:
        return self.organization.create_pod({"name": name})

    def add_inbox(self, username: str | None = None, *, pod: Pod | None = None) -> Inbox:
        """In the organization's default pod, unless told otherwise."""
        return self.organization.create_inbox(pod or self.organization.default_pod, {"username": username})

    def key_for(self, *, pod_id: str | None = None, inbox_id: str | None = None) -> str:
        """A key confined to a pod or an inbox; everything else is not found with it."""
        return self.account.mint(Scope(pod_id, inbox_id))

    def advance(self, seconds: float) -> list[Sent]:
        """Let time pass for this organization, and send what is due then."""
        self.organization.ahead_ms += round(seconds * 1000)
        return self.send_due()

    def send_due(self) -> list[Sent]:
        """Send the drafts whose time has come, with no request. Every request does so first, too."""
        sent = self.mail.send_due()
        self._happened()
        return sent

    def receive(
        self,
        inbox_id: str,
        from_: str,
        subject: str = "",
        text: str = "",
        *,
        html: str | None = None,
        to: str | Sequence[str] | None = None,
        cc: str | Sequence[str] = (),
        reply_to: str | Sequence[str] = (),
        attachments: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        in_reply_to: str | None = None,
        message_id: str | None = None,
        label: str | None = None,
    ) -> Message:
        """Mail arrives. `attachments` as a send takes them; `label` is spam, blocked or unauthenticated."""
        inbox = View(self.organization).inbox(inbox_id)
        fields = {
            "to": _listed(inbox.inbox_id if to is None else to),
            "cc": _listed(cc),
            "reply_to": _listed(reply_to),
            "subject": subject,
            "text": text,
            "html": html,
            "attachments": list(attachments),
            "headers": headers,
        }
        content: Content = contents.content_of(fields, self.organization.new_id)
        message = self.mail.receive(
            inbox, content, sender=from_, message_id=message_id, in_reply_to=in_reply_to, label=label
        )
        self._happened()
        return message

    def complain(self, sent: Sent) -> Event:
        """A recipient marked a message as spam."""
        more = {"type": "abuse", "sub_type": "", "recipients": list(sent.recipients)}
        return self._tell("message.complained", "complaint", sent, **more)

    def reject(self, sent: Sent, reason: str = "Bad content") -> Event:
        """A message that was accepted is not carried after all."""
        return self._tell("message.rejected", "reject", sent, reason=reason)

    def open(self, sent: Sent) -> Event:
        """A recipient opened a message."""
        return self._tell("message.opened", "open", sent)

    def bounce(self, sent: Sent) -> Event:
        """A message bounced, later than `bounces` would have had it."""
        recipients = [{"address": address, "status": "5.1.1"} for address in sent.recipients]
        more = {"type": "Permanent", "sub_type": "General", "recipients": recipients}
        return self._tell("message.bounced", "bounce", sent, **more)

    def _tell(self, event_type: str, name: str, sent: Sent, **more: Any) -> Event:
        payload = about(name, sent, self.organization.now_ms(), **more)
        return self.events.happen(event_type, inbox_id=sent.inbox_id, pod_id=sent.pod_id, payload=payload)

    # webhooks

    def signed(self, event: Event, *, tamper: Tamper | None = None) -> tuple[dict[str, str], bytes]:
        """Headers and body of a delivery now."""
        at_s = self.organization.now_ms() // 1000
        return agentmail_events.signed(event, secret=self.webhook_secret, at_s=at_s, tamper=tamper)

    async def deliver(
        self,
        url: str,
        *events: Event,
        times: int = 1,
        tamper: Tamper | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> list[int]:
        """POST the events in the order given, each `times` times in a row; the statuses that were answered."""
        signed = [self.signed(event, tamper=tamper) for event in events for _ in range(times)]
        return [answer.status_code for answer in await post(url, signed, client)]

    # answering

    def answer(self, request: ReceivedRequest) -> Answer:
        self.mail.send_due()
        return super().answer(request)

    def route(self, request: ReceivedRequest) -> Callable[[Turn], Answer]:
        path = decoded(request.path)
        if path == PREFIX and wants_websocket(request):
            return self._upgrade
        if path.startswith(LINK_PATH) and request.method == "GET":
            return self._download
        match = found(self._routes, request.method, path)
        if match is None:
            raise errors.not_found("Route")
        handler, ids = match
        return lambda turn: self._handle(turn, handler, ids)

    def authenticate(self, request: ReceivedRequest) -> None:
        if not request.path.startswith(LINK_PATH):
            self._scope(request)

    def _scope(self, request: ReceivedRequest) -> Scope:
        """What the request's key may see. Only an upgrade may carry it in its query."""
        given = request.header(b"authorization")
        key = given.removeprefix(b"Bearer ") if given.startswith(b"Bearer ") else b""
        if not given and wants_websocket(request):
            key = request.query.get("api_key", "").encode()
        if not key:
            raise errors.unauthorized() if given else errors.missing_authorization()
        if self.api_key is None or key == self.api_key:
            return Scope()
        scope = self.account.keys.get(key.decode("latin-1"))
        if scope is None:
            raise errors.unknown_api_key()
        return scope

    def _view(self, request: ReceivedRequest) -> View:
        return View(self.organization, (self._scope(request),))

    def _handle(self, turn: Turn, handler: Handler, ids: dict[str, str]) -> Script | Ready:
        if not turn.behaviour.takes_effect:
            return turn.give_nothing()
        view = self._view(turn.request).within(pod_id=ids.get("pod"))
        call = Call(turn.request, ids, view.within(inbox_id=ids.get("inbox")))
        answer = handler(call)
        turn.report(call)
        return turn.give(answer)

    def _upgrade(self, turn: Turn) -> Answer:
        """A socket; with a behaviour that fails, waits or breaks, no socket but that, and 503 after a silence."""
        if not (turn.is_ordinary and turn.behaviour.is_burst):
            return turn.give_nothing()
        view = self._view(turn.request)

        def connect(line: Line) -> EventSocket:
            socket = EventSocket(line, view, self._happened)
            self.sockets.append(socket)
            return socket

        return accept(turn.request, connect, turn.reports)

    def _link(self, content: bytes, content_type: str) -> tuple[str, int]:
        """A URL that anyone may fetch who knows it, and when it expires."""
        expires_ms = self.organization.now_ms() + LINK_MS
        path = f"{LINK_PATH}{self.organization.new_id()}"
        self._links[path] = (content, content_type, expires_ms)
        return (
            f"{self.url}{path}?Expires={expires_ms // 1000}&Signature={self.organization.new_id()}",
            expires_ms,
        )

    def _download(self, turn: Turn) -> Script | Ready:
        content, content_type, expires_ms = self._links.get(turn.request.path, (b"", "", 0))
        if expires_ms <= self.organization.now_ms():
            raise errors.forbidden("Access denied")
        fields = (("Content-Type", content_type), ("Content-Length", str(len(content))))
        return Ready(head(200, fields) + content)


def _listed(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
