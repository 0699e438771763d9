"""The parts of a message at AgentMail: what it says and to whom, and its files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

PREVIEW_CHARS = 100


def present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what has no value."""
    return {name: value for name, value in fields.items() if value not in (None, (), [], {})}


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file. One given by URL has no content here: nothing is fetched."""

    attachment_id: str
    filename: str | None
    content_type: str | None
    content_disposition: str | None
    content_id: str | None
    content: bytes = b""
    url: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "attachment_id": self.attachment_id,
            "size": len(self.content),
            **present(
                {
                    "filename": self.filename,
                    "content_type": self.content_type,
                    "content_disposition": self.content_disposition,
                    "content_id": self.content_id,
                }
            ),
        }


@dataclass(frozen=True, slots=True)
class Content:
    """What a message says and to whom: of a send, a reply, or a draft. Addresses as they were given, one each."""

    to: tuple[str, ...] = ()
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()
    reply_to: tuple[str, ...] = ()
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    attachments: tuple[Attachment, ...] = ()
    labels: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_recipients(self) -> bool:
        return bool(self.to or self.cc or self.bcc)

    @property
    def preview(self) -> str | None:
        return self.text[:PREVIEW_CHARS] if self.text else None


def attachment_of(attachments: Iterable[Attachment], attachment_id: str) -> Attachment | None:
    """The one with this id, if it is among them."""
    return next((found for found in attachments if found.attachment_id == attachment_id), None)
