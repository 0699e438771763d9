"""Mail at AgentMail: what goes out, when and once, and what comes in."""

import collections
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from metering.clock import day_of
from simulators import agentmail_content as contents
from simulators import agentmail_errors as errors
from simulators.agentmail_behaviour import ReportedUsage
from simulators.agentmail_content import bare
from simulators.agentmail_events import about
from simulators.agentmail_organization import Organization
from simulators.agentmail_parts import Content
from simulators.agentmail_state import Draft, Inbox, Message
from simulators.vendor import RefusedError

IDEMPOTENCY_MS = 24 * 3_600_000
"""How long the vendor remembers an Idempotency-Key."""
_IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9\-._~]{1,256}")


@dataclass(frozen=True, slots=True)
class Origin:
    """The request that a message came of; of a scheduled one, none."""

    via: str = "schedule"
    """send, reply, reply-all, forward, draft, or schedule."""
    request_number: int | None = None
    idempotency_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the request, names in lower case."""
    tag: str = ""
    """The request's `x-request-tag`."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One message that really went out. `recipients`: the bare addresses of to, cc and bcc."""

    inbox_id: str
    pod_id: str
    message_id: str
    thread_id: str
    recipients: tuple[str, ...]
    content: Content
    at_ms: int
    origin: Origin
    draft_id: str | None = None

    @property
    def usage(self) -> ReportedUsage:
        return ReportedUsage(messages=1, recipients=len(self.recipients))

    @property
    def tag(self) -> str:
        return self.origin.tag

    @property
    def idempotency_key(self) -> str | None:
        return self.origin.idempotency_key

    def as_json(self) -> dict[str, Any]:
        return {"message_id": self.message_id, "thread_id": self.thread_id}


@dataclass(frozen=True, slots=True)
class _Kept:
    """The first use of an Idempotency-Key."""

    at_ms: int
    request: object
    sent: Sent


class Mail:
    """Sends and receives for an organization. `bounces` and `is_blocked` judge bare addresses."""

    def __init__(
        self,
        organization: Organization,
        *,
        bounces: Callable[[str], bool],
        is_blocked: Callable[[str], bool],
        keeps_labels: bool = True,
    ) -> None:
        self._keeps_labels = keeps_labels
        self.sent: list[Sent] = []
        self._organization = organization
        self._bounces = bounces
        self._is_blocked = is_blocked
        self._kept: dict[str, _Kept] = {}
        self._recipients_on: collections.Counter[str] = collections.Counter()

    # sending

    def once(self, key: str | None, request: object, send: Callable[[], Sent]) -> tuple[Sent, bool]:
        """What `send` sent, or what the same request with the same key did before; and whether it was sent now.

        A key is one for the whole organization. One whose request was refused stays unused.
        """
        if key is None:
            return send(), True
        if not _IDEMPOTENCY_KEY.fullmatch(key):
            raise errors.invalid("Expected 1 to 256 of A-Z a-z 0-9 - . _ ~", "headers", "Idempotency-Key")
        kept = self._kept.get(key)
        if kept is not None and self._organization.now_ms() - kept.at_ms < IDEMPOTENCY_MS:
            if kept.request != request:
                raise errors.conflict(
                    f"Idempotency-Key was used by inbox {kept.sent.inbox_id} for another request"
                )
            return kept.sent, False
        sent = send()
        self._kept[key] = _Kept(self._organization.now_ms(), request, sent)
        return sent, True

    def send(
        self,
        inbox: Inbox,
        content: Content,
        origin: Origin,
        *,
        answers: Message | None = None,
        draft_id: str | None = None,
    ) -> Sent:
        """Send `content`, in the thread of the message that it answers. Raises RefusedError."""
        recipients = tuple(map(bare, (*content.to, *content.cc, *content.bcc)))
        self._check(inbox, recipients)
        now_ms, number = self._organization.now_ms(), self._organization.number()
        message = Message(
            number=number,
            inbox_id=inbox.inbox_id,
            thread_id=answers.thread_id if answers else self._organization.new_id(),
            message_id=self._organization.new_message_id(number),
            labels=["sent", *content.labels],
            at_ms=now_ms,
            sender=inbox.sender,
            content=content,
            in_reply_to=answers.message_id if answers else None,
            references=(*answers.references, answers.message_id) if answers else (),
        )
        inbox.messages[message.message_id] = message
        ids = (inbox.inbox_id, inbox.pod_id, message.message_id, message.thread_id)
        sent = Sent(*ids, recipients, content, now_ms, origin, draft_id)
        self.sent.append(sent)
        self._recipients_on[day_of(now_ms)] += len(recipients)
        self.tell("message.sent", inbox, about("send", message, now_ms, recipients=list(recipients)))
        self._carry(inbox, message, recipients)
        return sent

    def _check(self, inbox: Inbox, recipients: tuple[str, ...]) -> None:
        if inbox.is_paused:
            raise errors.forbidden(f"Inbox {inbox.inbox_id} is paused")
        if not recipients:
            raise errors.unprocessable("At least one of to, cc, or bcc is required")
        for address in recipients:
            if self._is_blocked(address):
                raise errors.rejected(address)
        limit = self._organization.plan.recipients_per_day
        used = self._recipients_on[day_of(self._organization.now_ms())]
        if limit is not None and used + len(recipients) > limit:
            raise errors.daily_limit(used, limit)

    def _carry(self, inbox: Inbox, message: Message, recipients: tuple[str, ...]) -> None:
        """What becomes of a message: it bounces, arrives elsewhere, or in an inbox of the organization."""
        bounced = [address for address in recipients if self._bounces(address)]
        delivered = [address for address in recipients if address not in bounced]
        now_ms = message.at_ms
        if delivered:
            self.tell("message.delivered", inbox, about("delivery", message, now_ms, recipients=delivered))
        if bounced:
            message.labels.append("bounced")
            failed = [{"address": address, "status": "5.1.1"} for address in bounced]
            bounce = about("bounce", message, now_ms, type="Permanent", sub_type="General", recipients=failed)
            self.tell("message.bounced", inbox, bounce)
        for address in dict.fromkeys(delivered):
            own = self._organization.inboxes.get(self._organization.key(address))
            if own is not None and own is not inbox and not own.is_paused:
                self.receive(
                    own,
                    message.content,
                    sender=message.sender,
                    message_id=message.message_id,
                    in_reply_to=message.in_reply_to,
                )

    def tell(self, event_type: str, inbox: Inbox, payload: Mapping[str, Any]) -> None:
        self._organization.events.happen(
            event_type, inbox_id=inbox.inbox_id, pod_id=inbox.pod_id, payload=payload
        )

    # receiving

    def receive(
        self,
        inbox: Inbox,
        content: Content,
        *,
        sender: str,
        message_id: str | None = None,
        in_reply_to: str | None = None,
        label: str | None = None,
    ) -> Message:
        """Mail for an inbox: in the thread of what it answers, `label` one of spam, blocked, unauthenticated."""
        number, now_ms = self._organization.number(), self._organization.now_ms()
        answered = inbox.messages.get(in_reply_to or "")
        message = Message(
            number=number,
            inbox_id=inbox.inbox_id,
            thread_id=answered.thread_id if answered else self._organization.new_id(),
            message_id=message_id or self._organization.new_message_id(number),
            labels=["received", label] if label else ["received", "unread"],
            at_ms=now_ms,
            sender=sender,
            content=replace(content, bcc=(), labels=()),
            in_reply_to=in_reply_to,
            references=(*answered.references, answered.message_id) if answered else (),
        )
        inbox.messages[message.message_id] = message
        thread = next(thread for thread in inbox.threads() if thread.thread_id == message.thread_id)
        event_type = f"message.received.{label}" if label else "message.received"
        self.tell(event_type, inbox, {"message": message.as_json(), "thread": thread.item()})
        return message

    def delete(self, inbox: Inbox, *messages: Message) -> None:
        for message in messages:
            inbox.messages.pop(message.message_id, None)

    # drafts

    def composed(
        self,
        inbox: Inbox,
        fields: Mapping[str, Any],
        *,
        forward_of: Message | None = None,
        reply_to: Message | None = None,
    ) -> Content:
        """The content of a send, or of a reply or forward of a message."""
        content = contents.content_of(fields, self._organization.new_id)
        if reply_to is not None:
            is_to_all = fields.get("reply_all") is True
            return contents.answering(content, reply_to, own=inbox.inbox_id, is_to_all=is_to_all)
        return contents.forwarding(content, forward_of) if forward_of is not None else content

    def send_draft(
        self, inbox: Inbox, draft: Draft, origin: Origin, *, labels: tuple[str, ...] | None = None
    ) -> Sent:
        """Send a draft, which is no draft afterwards; with other labels, if given. Raises RefusedError."""
        kept = draft.content.labels if labels is None else labels
        content = replace(draft.content, labels=kept if self._keeps_labels else ())
        answered = inbox.messages.get(draft.in_reply_to or draft.forward_of or "")
        if draft.forward_of is not None and answered is not None:
            content = contents.forwarding(content, answered)
        sent = self.send(inbox, content, origin, answers=answered, draft_id=draft.draft_id)
        del inbox.drafts[draft.draft_id]
        self._organization.forget(draft.client_id, draft)
        return sent

    def send_due(self) -> list[Sent]:
        """Send every draft whose time has come, in the order of their times. One that is refused has failed."""
        now_ms = self._organization.now_ms()
        due = [
            (draft.send_at_ms, draft.number, inbox, draft)
            for inbox in self._organization.inboxes.values()
            for draft in inbox.drafts.values()
            if draft.send_status == "scheduled"
            and draft.send_at_ms is not None
            and draft.send_at_ms <= now_ms
        ]
        sent = []
        for _, _, inbox, draft in sorted(due, key=lambda each: each[:2]):
            try:
                sent.append(self.send_draft(inbox, draft, Origin()))
            except RefusedError:
                draft.send_status = "failed"
        return sent
