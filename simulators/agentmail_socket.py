"""The WebSocket on which AgentMail tells of events: one client's connection, and what it subscribed to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from simulators import agentmail_errors as errors
from simulators.agentmail_behaviour import CODES, NAMES
from simulators.agentmail_content import strings
from simulators.agentmail_events import Event
from simulators.agentmail_organization import View
from simulators.script import Line
from simulators.vendor import RefusedError
from simulators.websocket import Peer


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a client asked for. Without ids it gets everything that its key may see."""

    event_types: tuple[str, ...] = ()
    inbox_ids: tuple[str, ...] = ()
    pod_ids: tuple[str, ...] = ()

    def wants(self, event: Event) -> bool:
        if self.event_types and event.event_type not in self.event_types:
            return False
        is_unconfined = not (self.inbox_ids or self.pod_ids)
        return is_unconfined or event.inbox_id in self.inbox_ids or event.pod_id in self.pod_ids


class EventSocket(Peer):
    """One client. A second subscription adds to the first; whether the vendor does so is not known."""

    def __init__(self, line: Line, view: View, happened: Callable[[], None]) -> None:
        super().__init__(line)
        self.heard: list[str] = []
        """Every text message of the client."""
        self.subscriptions: list[Subscription] = []
        self.told: list[Event] = []
        """The events sent to it, in order."""
        self._view = view
        self._happened = happened
        view.organization.events.listeners.append(self._tell)

    def said(self, text: str) -> None:
        self.heard.append(text)
        try:
            self._subscribe(_subscribing(text))
        except RefusedError as refusal:
            code = refusal.more.get("error_type") or CODES[refusal.status]
            message = f"{refusal.message}. {refusal.more.get('fix', '')}"
            self._say({"type": "error", "name": NAMES[code], "message": message})
        self._happened()

    def gone(self) -> None:
        self._view.organization.events.listeners.remove(self._tell)
        self._happened()

    def _subscribe(self, fields: Mapping[str, Any]) -> None:
        asked = {name: fields[name] for name in Subscription.__slots__ if fields.get(name) is not None}
        given = {name: strings(value, name) for name, value in asked.items()}
        for pod_id in given.get("pod_ids", ()):
            self._view.pod(pod_id)
        if "inbox_ids" in given:
            given["inbox_ids"] = tuple(self._view.inbox(each).inbox_id for each in given["inbox_ids"])
        self.subscriptions.append(Subscription(**given))
        self._say({"type": "subscribed", **asked})

    def _tell(self, event: Event) -> None:
        is_seen = self._view.sees(event.pod_id, event.inbox_id)
        if is_seen and any(subscription.wants(event) for subscription in self.subscriptions):
            self.told.append(event)
            self._say(event.body)

    def _say(self, message: Mapping[str, Any]) -> None:
        self.send_text(orjson.dumps(message).decode())


def _subscribing(text: str) -> dict[str, Any]:
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise errors.invalid("Invalid JSON") from error
    if not isinstance(fields, dict) or fields.get("type") != "subscribe":
        raise errors.invalid("Expected a subscribe message", "type")
    return fields
