"""The account at AgentMail: who is in it, and what a key or a path lets one see of it."""

import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from metering.clock import Clock
from simulators import agentmail_errors as errors
from simulators.agentmail_behaviour import ORGANIZATION_ID
from simulators.agentmail_events import Events
from simulators.agentmail_state import Draft, Inbox, LabelEvent, Message, Pod, Thread

DOMAIN = "agentmail.to"
_NAME_PARTS = (("brave", "calm", "eager", "quiet"), ("heron", "lynx", "otter", "wren"))


KindT = TypeVar("KindT", Pod, Inbox, Draft)


def plain_message_id(number: int) -> str:
    """An id as mail servers make them: the brackets and the `@` belong to it."""
    return f"<{number:08d}.simulated@mail.agentmail.to>"


def awkward_message_id(number: int) -> str:
    """An id that no path may carry as it is: with slashes, a space, and the names of the vendor's own actions."""
    return f"<CAF/+={number:x} b/reply@mail.x>"


@dataclass(frozen=True, slots=True)
class Plan:
    """What the organization may do; None: as much as it likes."""

    inboxes_max: int | None = None
    recipients_per_day: int | None = None
    """Each recipient counts as one email (the vendor's pricing page). Days are UTC."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a key is confined to; without ids, the whole organization."""

    pod_id: str | None = None
    inbox_id: str | None = None


class Organization:
    """Pods, inboxes and what is in them. `client_id`s and usernames are one space for all of it."""

    organization_id = ORGANIZATION_ID

    def __init__(
        self,
        clock: Clock,
        *,
        plan: Plan,
        message_ids: Callable[[int], str],
        domains: Sequence[str],
        ignores_case: bool,
        seed: int,
    ) -> None:
        self.plan = plan
        self.domains = tuple(domains)
        self.pods: dict[str, Pod] = {}
        self.inboxes: dict[str, Inbox] = {}
        self.ahead_ms = 0
        """How far this organization's time is ahead of its clock."""
        self.events = Events(self.now_ms)
        self.label_events: list[LabelEvent] = []
        self._clock = clock
        self._message_ids = message_ids
        self._ignores_case = ignores_case
        self._rng = random.Random(seed)
        self._numbers = 0
        self._by_client_id: dict[tuple[str, str], Any] = {}
        self.default_pod = self.create_pod({"name": "Default"})

    def now_ms(self) -> int:
        return self._clock.now_ms() + self.ahead_ms

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    def new_id(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))

    def new_message_id(self, number: int) -> str:
        return self._message_ids(number)

    # pods

    def create_pod(self, fields: Mapping[str, Any]) -> Pod:
        client_id = client_id_of(fields)
        known = self.known(Pod, client_id)
        if known is not None:
            return known
        number, pod_id = self.number(), self.new_id()
        name = _text(fields, "name") or f"pod-{number}"
        pod = self.pods[pod_id] = Pod(number, pod_id, name, client_id, self.now_ms())
        self.remember(client_id, pod)
        return pod

    def delete_pod(self, pod: Pod) -> None:
        if pod is self.default_pod or any(inbox.pod_id == pod.pod_id for inbox in self.inboxes.values()):
            raise errors.cannot_delete("Pod has inboxes, or is the default one")
        del self.pods[pod.pod_id]
        self.forget(pod.client_id, pod)

    # inboxes

    def create_inbox(self, pod: Pod, fields: Mapping[str, Any]) -> Inbox:
        """A known `client_id` gives the original inbox, whichever pod it is in."""
        client_id = client_id_of(fields)
        known = self.known(Inbox, client_id)
        if known is not None:
            return known
        domain = _text(fields, "domain") or self.domains[0]
        if domain not in self.domains:
            raise errors.domain_not_verified(domain)
        username = _text(fields, "username") or self._made_up_name()
        if not username.isascii() or any(sign in username for sign in '@/ <>,"\r\n'):
            raise errors.invalid("Invalid username", "username")
        address = f"{username}@{domain}"
        holder = self.inboxes.get(self.key(address))
        if holder is not None:
            raise errors.taken(address, holder.pod_id)
        if self.plan.inboxes_max is not None and len(self.inboxes) >= self.plan.inboxes_max:
            raise errors.limit_exceeded(len(self.inboxes), self.plan.inboxes_max)
        inbox = Inbox(self.number(), address, pod.pod_id, self.now_ms(), self.now_ms(), client_id=client_id)
        self.update_inbox(inbox, fields)
        self.inboxes[self.key(address)] = inbox
        self.remember(client_id, inbox)
        return inbox

    def update_inbox(self, inbox: Inbox, fields: Mapping[str, Any]) -> None:
        status, metadata = fields.get("status"), inbox.metadata
        if status not in (None, "active", "paused"):
            raise errors.invalid("Expected active or paused", "status")
        if "metadata" in fields:
            given = fields["metadata"]
            if given is not None and (not isinstance(given, dict) or not given):
                raise errors.invalid("Expected an object with a key, or null", "metadata")
            merged = {} if given is None else {**metadata, **given}
            metadata = {name: value for name, value in merged.items() if value is not None}
        if "display_name" in fields:
            inbox.display_name = _text(fields, "display_name")
        if status is not None:
            inbox.is_paused = status == "paused"
        inbox.metadata = metadata
        inbox.updated_ms = self.now_ms()

    def delete_inbox(self, inbox: Inbox) -> None:
        del self.inboxes[self.key(inbox.inbox_id)]
        self.forget(inbox.client_id, inbox)
        for draft in inbox.drafts.values():
            self.forget(draft.client_id, draft)

    def key(self, inbox_id: str) -> str:
        return inbox_id.lower() if self._ignores_case else inbox_id

    def relabel(self, inbox: Inbox, message: Message, labels: tuple[str, ...]) -> None:
        """Give a message other labels, and record what that changes."""
        now_ms = self.now_ms()
        for label in dict.fromkeys([*message.labels, *labels]):
            if (label in labels) != (label in message.labels):
                where = (inbox.pod_id, inbox.inbox_id, message.message_id)
                self.label_events.append(LabelEvent(self.number(), *where, label, label in labels, now_ms))
        message.labels, message.updated_ms = list(labels), now_ms

    # client ids

    def known(self, kind: type[KindT], client_id: str | None) -> KindT | None:
        """What was made with this `client_id` before, by whomever."""
        made = None if client_id is None else self._by_client_id.get((kind.__name__, client_id))
        return made if isinstance(made, kind) else None

    def remember(self, client_id: str | None, made: Any) -> None:
        if client_id is not None:
            self._by_client_id[type(made).__name__, client_id] = made

    def forget(self, client_id: str | None, made: Any) -> None:
        if client_id is not None:
            self._by_client_id.pop((type(made).__name__, client_id), None)

    def _made_up_name(self) -> str:
        while True:
            name = "".join(map(self._rng.choice, _NAME_PARTS)) + str(self._rng.randint(100, 9999))
            if not any(inbox.inbox_id.startswith(f"{name}@") for inbox in self.inboxes.values()):
                return name


def client_id_of(fields: Mapping[str, Any]) -> str | None:
    client_id = _text(fields, "client_id")
    if client_id is not None and (not client_id or "@" in client_id):
        raise errors.invalid("client_id may not be empty or contain @", "client_id")
    return client_id


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise errors.invalid("Expected string", name)
    return value


@dataclass(frozen=True, slots=True)
class View:
    """What a request may see: the scope of its key, narrowed by its path. Everything else is not found."""

    organization: Organization
    scopes: tuple[Scope, ...] = field(default=(Scope(),))

    def within(self, *, pod_id: str | None = None, inbox_id: str | None = None) -> "View":
        """Narrowed to what a path names. Raises RefusedError(404) when that is out of sight."""
        view = self
        if pod_id is not None:
            view = replace(view, scopes=(*view.scopes, Scope(pod_id=view.pod(pod_id).pod_id)))
        if inbox_id is not None:
            view = replace(view, scopes=(*view.scopes, Scope(inbox_id=view.inbox(inbox_id).inbox_id)))
        return view

    @property
    def is_whole(self) -> bool:
        return all(scope == Scope() for scope in self.scopes)

    def sees(self, pod_id: str, inbox_id: str | None) -> bool:
        return all(
            scope.pod_id in (None, pod_id)
            and (scope.inbox_id is None or (inbox_id is not None and scope.inbox_id == inbox_id))
            for scope in self.scopes
        )

    def pods(self) -> list[Pod]:
        return [pod for pod in self.organization.pods.values() if self.sees(pod.pod_id, None)]

    def pod(self, pod_id: str) -> Pod:
        pod = self.organization.pods.get(pod_id)
        if pod is None or not self.sees(pod_id, None):
            raise self._not_found("Pod")
        return pod

    def inboxes(self) -> list[Inbox]:
        found = self.organization.inboxes.values()
        return [inbox for inbox in found if self.sees(inbox.pod_id, inbox.inbox_id)]

    def inbox(self, inbox_id: str) -> Inbox:
        inbox = self.organization.inboxes.get(self.organization.key(inbox_id))
        if inbox is None or not self.sees(inbox.pod_id, inbox.inbox_id):
            raise self._not_found("Inbox")
        return inbox

    def message(self, inbox: Inbox, message_id: str) -> Message:
        message = inbox.messages.get(message_id)
        if message is None:
            raise self._not_found("Message")
        return message

    def threads(self) -> list[Thread]:
        return [thread for inbox in self.inboxes() for thread in inbox.threads()]

    def thread(self, thread_id: str) -> Thread:
        for thread in self.threads():
            if thread.thread_id == thread_id:
                return thread
        raise self._not_found("Thread")

    def drafts(self) -> list[Draft]:
        return [draft for inbox in self.inboxes() for draft in inbox.drafts.values()]

    def draft(self, draft_id: str) -> Draft:
        for draft in self.drafts():
            if draft.draft_id == draft_id:
                return draft
        raise self._not_found("Draft")

    def _not_found(self, kind: str) -> Exception:
        return errors.not_found(kind, [inbox.inbox_id for inbox in self.organization.inboxes.values()])
