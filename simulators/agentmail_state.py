"""What AgentMail keeps, and how it shows it: pods, inboxes, messages, threads, drafts, attachments.

The shapes are those of the vendor's SDK (agentmail 2.0.18). A field without a value is left out, as its types say.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from metering.clock import instant
from simulators.agentmail_behaviour import ORGANIZATION_ID
from simulators.agentmail_parts import Attachment, Content, attachment_of, present

HIDDEN_LABELS = ("spam", "blocked", "unauthenticated", "trash")
"""Lists leave out what bears one of these, unless asked by `include_...`."""
SYSTEM_LABELS = frozenset({"sent", "received", "bounced", "draft", "scheduled", *HIDDEN_LABELS} - {"trash"})
"""Labels that a request may not change. The vendor names sent, received and bounced, and says "etc."."""


@dataclass(slots=True)
class Pod:
    """A tenant of the organization's own."""

    number: int
    pod_id: str
    name: str
    client_id: str | None
    created_ms: int

    @property
    def position(self) -> tuple[int, int]:
        return self.created_ms, self.number

    def as_json(self) -> dict[str, Any]:
        at = instant(self.created_ms)
        return {
            **present({"pod_id": self.pod_id, "client_id": self.client_id}),
            "name": self.name,
            "updated_at": at,
            "created_at": at,
        }


@dataclass(slots=True)
class Message:
    """One message in one inbox, sent or received."""

    number: int
    inbox_id: str
    thread_id: str
    message_id: str
    labels: list[str]
    at_ms: int
    sender: str
    content: Content
    in_reply_to: str | None = None
    references: tuple[str, ...] = ()
    updated_ms: int = 0

    @property
    def position(self) -> tuple[int, int]:
        return self.at_ms, self.number

    @property
    def recipients(self) -> tuple[str, ...]:
        return (*self.content.to, *self.content.cc, *self.content.bcc)

    def attachment(self, attachment_id: str) -> Attachment | None:
        return attachment_of(self.content.attachments, attachment_id)

    def item(self) -> dict[str, Any]:
        """As lists show it: without bodies."""
        content = self.content
        return {
            "inbox_id": self.inbox_id,
            "thread_id": self.thread_id,
            "message_id": self.message_id,
            "labels": list(self.labels),
            "timestamp": instant(self.at_ms),
            "from": self.sender,
            "to": list(content.to),
            **present(
                {
                    "cc": list(content.cc),
                    "bcc": list(content.bcc),
                    "subject": content.subject,
                    "preview": content.preview,
                    "attachments": [attachment.as_json() for attachment in content.attachments],
                    "in_reply_to": self.in_reply_to,
                    "references": list(self.references),
                    "headers": dict(content.headers),
                }
            ),
            "size": len(self.raw()),
            "updated_at": instant(self.updated_ms or self.at_ms),
            "created_at": instant(self.at_ms),
        }

    def as_json(self) -> dict[str, Any]:
        content = self.content
        bodies = {
            "reply_to": list(content.reply_to),
            "text": content.text,
            "html": content.html,
            "extracted_text": content.text if "received" in self.labels else None,
        }
        return {**self.item(), **present(bodies)}

    def raw(self) -> bytes:
        """The message as an .eml file: plain, with its attachments after the text."""
        content = self.content
        heads = {
            "From": self.sender,
            "To": ", ".join(content.to),
            "Cc": ", ".join(content.cc),
            "Subject": content.subject,
            "Message-ID": self.message_id,
            "In-Reply-To": self.in_reply_to,
            "References": " ".join(self.references),
            **content.headers,
        }
        lines = [f"{name}: {value}" for name, value in heads.items() if value]
        files = [base64.b64encode(attachment.content).decode() for attachment in content.attachments]
        return "\r\n".join([*lines, "", content.text or "", content.html or "", *files]).encode()


@dataclass(frozen=True, slots=True)
class Thread:
    """The messages of one conversation in one inbox, oldest first."""

    inbox_id: str
    thread_id: str
    messages: tuple[Message, ...]

    @property
    def position(self) -> tuple[int, int]:
        return self.messages[-1].position

    @property
    def labels(self) -> list[str]:
        return _unique(label for message in self.messages for label in message.labels)

    @property
    def senders(self) -> list[str]:
        return _unique(message.sender for message in self.messages)

    @property
    def recipients(self) -> list[str]:
        return _unique(address for message in self.messages for address in message.recipients)

    def attachment(self, attachment_id: str) -> Attachment | None:
        return attachment_of(
            (a for message in self.messages for a in message.content.attachments), attachment_id
        )

    def item(self) -> dict[str, Any]:
        first, last = self.messages[0], self.messages[-1]
        shown: dict[str, Any] = {
            "inbox_id": self.inbox_id,
            "thread_id": self.thread_id,
            "labels": self.labels,
            "timestamp": instant(last.at_ms),
        }
        for label in ("received", "sent"):
            times = [message.at_ms for message in self.messages if label in message.labels]
            if times:
                shown[f"{label}_timestamp"] = instant(max(times))
        attachments = [a.as_json() for message in self.messages for a in message.content.attachments]
        return {
            **shown,
            "senders": self.senders,
            "recipients": self.recipients,
            **present(
                {
                    "subject": first.content.subject,
                    "preview": last.content.preview,
                    "attachments": attachments,
                }
            ),
            "last_message_id": last.message_id,
            "message_count": len(self.messages),
            "size": sum(len(message.raw()) for message in self.messages),
            "updated_at": instant(max(message.updated_ms or message.at_ms for message in self.messages)),
            "created_at": instant(first.at_ms),
        }


@dataclass(slots=True)
class Draft:
    """A message not yet sent; with `send_at_ms` it goes out by itself."""

    number: int
    inbox_id: str
    draft_id: str
    content: Content
    created_ms: int
    updated_ms: int
    client_id: str | None = None
    in_reply_to: str | None = None
    forward_of: str | None = None
    send_at_ms: int | None = None
    send_status: str | None = None

    @property
    def position(self) -> tuple[int, int]:
        return self.updated_ms, self.number

    @property
    def labels(self) -> list[str]:
        return ["draft", *(["scheduled"] if self.send_status == "scheduled" else []), *self.content.labels]

    def attachment(self, attachment_id: str) -> Attachment | None:
        return attachment_of(self.content.attachments, attachment_id)

    def item(self) -> dict[str, Any]:
        content = self.content
        return {
            "inbox_id": self.inbox_id,
            "draft_id": self.draft_id,
            "labels": self.labels,
            **present(
                {
                    "to": list(content.to),
                    "cc": list(content.cc),
                    "bcc": list(content.bcc),
                    "subject": content.subject,
                    "preview": content.preview,
                    "attachments": [attachment.as_json() for attachment in content.attachments],
                    "in_reply_to": self.in_reply_to,
                    "forward_of": self.forward_of,
                    "send_status": self.send_status,
                    "send_at": None if self.send_at_ms is None else instant(self.send_at_ms),
                }
            ),
            "updated_at": instant(self.updated_ms),
        }

    def as_json(self) -> dict[str, Any]:
        content = self.content
        more = {
            "client_id": self.client_id,
            "reply_to": list(content.reply_to),
            "text": content.text,
            "html": content.html,
        }
        return {**self.item(), **present(more), "created_at": instant(self.created_ms)}


@dataclass(frozen=True, slots=True)
class LabelEvent:
    """A label that a request put on a message, or took off."""

    number: int
    pod_id: str
    inbox_id: str
    message_id: str
    label: str
    is_added: bool
    at_ms: int

    @property
    def position(self) -> tuple[int, int]:
        return self.at_ms, self.number

    def as_json(self) -> dict[str, Any]:
        at = instant(self.at_ms)
        return {
            "organization_id": ORGANIZATION_ID,
            "pod_id": self.pod_id,
            "inbox_id": self.inbox_id,
            "event_id": f"{self.number:012d}",
            "event_type": "label.added" if self.is_added else "label.removed",
            "message_id": self.message_id,
            "label": self.label,
            "event_at": at,
            "created_at": at,
        }


@dataclass(slots=True)
class Inbox:
    """An address, with what lies in it. `inbox_id` is the address."""

    number: int
    inbox_id: str
    pod_id: str
    created_ms: int
    updated_ms: int
    display_name: str | None = None
    client_id: str | None = None
    is_paused: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    messages: dict[str, Message] = field(default_factory=dict)
    drafts: dict[str, Draft] = field(default_factory=dict)

    @property
    def position(self) -> tuple[int, int]:
        return self.created_ms, self.number

    @property
    def sender(self) -> str:
        return f"{self.display_name} <{self.inbox_id}>" if self.display_name else self.inbox_id

    def threads(self) -> list[Thread]:
        by_id: dict[str, list[Message]] = {}
        for message in sorted(self.messages.values(), key=lambda message: message.position):
            by_id.setdefault(message.thread_id, []).append(message)
        return [Thread(self.inbox_id, thread_id, tuple(messages)) for thread_id, messages in by_id.items()]

    def as_json(self) -> dict[str, Any]:
        return {
            "pod_id": self.pod_id,
            "inbox_id": self.inbox_id,
            "email": self.inbox_id,
            **present(
                {
                    "display_name": self.display_name,
                    "client_id": self.client_id,
                    "status": "paused" if self.is_paused else None,
                    "metadata": self.metadata,
                }
            ),
            "updated_at": instant(self.updated_ms),
            "created_at": instant(self.created_ms),
        }


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
