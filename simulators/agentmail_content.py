"""What a request to AgentMail says of a message: its fields checked, its addresses taken apart."""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from email.utils import getaddresses, quote
from typing import Any

from simulators import agentmail_errors as errors
from simulators.agentmail_parts import Attachment, Content
from simulators.agentmail_state import Message

ADDRESS_FIELDS = ("to", "cc", "bcc", "reply_to")
_ADDRESS = re.compile(r"[^@\s<>,;\"]+@[^@\s<>,;\"]+")
_PLAIN_NAME = re.compile(r"[\w !#$%&'*+/=?^`{|}~-]+")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def bare(address: str) -> str:
    """The address alone, in lower case, of `Name <a@b>`."""
    return getaddresses([address])[0][1].lower()


def addresses(value: Any, *path: str) -> tuple[str, ...]:
    """One address each: a field is a string or a list, and each string may hold several, with names.

    Raises RefusedError(400).
    """
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(each, str) for each in strings):
        raise errors.invalid("Expected string or list of strings", *path)
    found = []
    for name, address in getaddresses(strings):
        if not _ADDRESS.fullmatch(address):
            raise errors.invalid(f"Invalid email address: {address or strings}", *path)
        found.append(_with_name(name, address))
    return tuple(found)


def content_of(fields: Mapping[str, Any], new_id: Callable[[], str]) -> Content:
    """The content that a request's fields give; `new_id` names its attachments. Raises RefusedError(400)."""
    given: dict[str, Any] = {name: addresses(fields.get(name), name) for name in ADDRESS_FIELDS}
    for name in ("subject", "text", "html"):
        given[name] = _text(fields.get(name), name)
    if any(end in (given["subject"] or "") for end in "\r\n"):
        raise errors.invalid("Line breaks are not allowed", "subject")
    return Content(
        **given,
        labels=strings(fields.get("labels"), "labels"),
        headers=_headers(fields.get("headers")),
        attachments=attachments_of(fields.get("attachments"), new_id),
    )


def changed(content: Content, fields: Mapping[str, Any], new_id: Callable[[], str]) -> Content:
    """A draft's content after a PATCH: what is absent stays, null clears. Raises RefusedError(400)."""
    told = content_of({name: value for name, value in fields.items() if name != "attachments"}, new_id)
    names = (*ADDRESS_FIELDS, "subject", "text", "html")
    content = replace(content, **{name: getattr(told, name) for name in names if name in fields})
    removed = set(strings(fields.get("remove_attachments"), "remove_attachments"))
    kept = tuple(each for each in content.attachments if each.attachment_id not in removed)
    added = attachments_of(fields.get("add_attachments"), new_id)
    return replace(content, attachments=(*kept, *added), labels=relabelled(content.labels, fields))


def relabelled(labels: tuple[str, ...] | list[str], fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels after `add_labels` and `remove_labels`; what is in both is removed."""
    removed = set(strings(fields.get("remove_labels"), "remove_labels"))
    added = strings(fields.get("add_labels"), "add_labels")
    return tuple(label for label in dict.fromkeys([*labels, *added]) if label not in removed)


def strings(value: Any, *path: str) -> tuple[str, ...]:
    """A string or a list of strings, as a tuple. Raises RefusedError(400)."""
    if value is None:
        return ()
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise errors.invalid("Expected string or list of strings", *path)
    return tuple(given)


def attachments_of(value: Any, new_id: Callable[[], str]) -> tuple[Attachment, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise errors.invalid("Expected list", "attachments")
    return tuple(_attachment(fields, number, new_id()) for number, fields in enumerate(value))


def answering(content: Content, original: Message, *, own: str, is_to_all: bool) -> Content:
    """`content` as a reply: addressed as the original says, unless it names recipients itself.

    A reply to a message of one's own goes to those it went to.
    """
    if content.has_recipients and is_to_all:
        raise errors.invalid("reply_all excludes to, cc, and bcc", "reply_all")
    if not content.has_recipients:
        asked = original.content
        is_own = bare(original.sender) == own.lower()
        to = asked.to if is_own else asked.reply_to or (original.sender,)
        cc: tuple[str, ...] = ()
        if is_to_all:
            to, cc = (to if is_own else (*to, *asked.to)), asked.cc
        seen = {own.lower()}
        content = replace(content, to=_others(to, seen), cc=_others(cc, seen))
    return replace(content, subject=_prefixed("Re: ", content.subject or original.content.subject))


def forwarding(content: Content, original: Message) -> Content:
    """`content` with the original's text and files behind its own."""
    quoted = (
        f"---------- Forwarded message ----------\nFrom: {original.sender}\n\n{original.content.text or ''}"
    )
    return replace(
        content,
        subject=content.subject or _prefixed("Fwd: ", original.content.subject),
        text=f"{content.text}\n\n{quoted}" if content.text else quoted,
        attachments=(*content.attachments, *original.content.attachments),
    )


def _with_name(name: str, address: str) -> str:
    if not name:
        return address
    return f"{name} <{address}>" if _PLAIN_NAME.fullmatch(name) else f'"{quote(name)}" <{address}>'


def _others(given: tuple[str, ...], seen: set[str]) -> tuple[str, ...]:
    """Each address once over all calls that share `seen`, which begins with one's own."""
    kept = []
    for address in given:
        if bare(address) not in seen:
            seen.add(bare(address))
            kept.append(address)
    return tuple(kept)


def _prefixed(prefix: str, subject: str | None) -> str:
    subject = subject or ""
    return subject if subject.lower().startswith(prefix.lower()) else prefix + subject


def _text(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise errors.invalid("Expected string", name)
    return value


def _headers(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise errors.invalid("Expected object", "headers")
    for name, text in value.items():
        if not _HEADER_NAME.fullmatch(name) or not isinstance(text, str) or "\r" in text or "\n" in text:
            raise errors.invalid("Invalid header", "headers", name)
    return value


def _attachment(fields: Any, number: int, attachment_id: str) -> Attachment:
    path = ("attachments", number)
    if not isinstance(fields, dict):
        raise errors.invalid("Expected object", *path)
    encoded, url = fields.get("content"), fields.get("url")
    if (encoded is None) == (url is None):
        raise errors.invalid("Provide either content or url", *path)
    try:
        content = b"" if encoded is None else base64.b64decode(encoded, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise errors.invalid("Invalid base64", *path, "content") from error
    names = ("filename", "content_type", "content_disposition", "content_id")
    named = {name: _text(fields.get(name), name) for name in names}
    return Attachment(attachment_id=attachment_id, content=content, url=_text(url, "url"), **named)
