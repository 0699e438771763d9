"""AgentMail's drafts: free, until one is to go out by itself (`send_at`) or answers a message.

A draft that the vendor sends later is deleted by that, as by every sending; a message does not say which draft it was. So a
scheduled draft bears a label with the id of the request that scheduled it, which its message keeps. Sources: the
vendor's page on drafts; `CreateDraftRequest`, `UpdateDraftRequest`, `Draft` of agentmail 2.0.18 (Python).
That a message keeps the labels of its draft is nowhere said: without them, what is gone when its time has come counts as sent.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import orjson

from metering.clock import MS_PER_DAY, ms_of
from metering.errors import Reason, Refused
from metering.usage import MESSAGES, NOTHING, RECIPIENTS, Usage, UsageLine
from metering.values import immutable
from proxy.meters import NothingToRead
from proxy.rewriting import tag_of
from proxy.surface import AnswerHead, Demand, Inbound, Observer, Pricing
from routes.agentmail_meter import (
    PRODUCT,
    is_ours,
    named_in,
    of_answer,
    of_answered,
    own_address,
    refuse_labels_of_ours,
    refuse_recipients_in,
    strings_in,
    usage_of,
)

SCHEDULED_DAYS_ENV = "AGENTMAIL_SCHEDULED_DAYS"
_ADDRESSED = ("to", "cc", "bcc")
_WAITING = frozenset({"scheduled", "sending"})
"""What the vendor says of a draft that it will send (`DraftSendStatus`); `failed` is one that it has not."""


@immutable
class DraftMeter:
    """A new draft, or a change of one, which is free; and what it will cost when the vendor sends it, where it will."""

    @property
    def is_free(self) -> bool:
        return True

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        """Raises Refused(BAD_REQUEST)."""
        fields = request.fields
        refuse_recipients_in(fields.get("headers"))
        refuse_labels_of_ours(fields)
        at_ms = _scheduled_ms(request)
        if at_ms is None:
            return Demand()
        days = int(pricing.options[SCHEDULED_DAYS_ENV])
        if at_ms > pricing.now_ms + days * MS_PER_DAY:
            raise Refused(Reason.BAD_REQUEST, f"send_at: must be within {days} days.")
        usage = usage_of(_recipients(request))
        return Demand(ceiling=usage, floor=usage, scheduled_ms=at_ms)

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return DraftObserver()


class DraftObserver(NothingToRead):
    """Keeps the draft that an answer shows."""

    __slots__ = ("_pieces", "draft")

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []
        self.draft: Mapping[str, Any] = {}

    def feed(self, chunk: bytes) -> int:
        self._pieces.append(chunk)
        return super().feed(chunk)

    def end(self) -> None:
        super().end()
        try:
            shown = orjson.loads(b"".join(self._pieces))
        except orjson.JSONDecodeError:
            shown = None
        self.draft = shown if isinstance(shown, dict) else {}
        self._pieces.clear()


def names_message(request: Inbound) -> bool:
    """Whether a draft is made from a message. Raises Refused(BAD_REQUEST)."""
    named = [name for name in ("in_reply_to", "forward_of") if request.fields.get(name) is not None]
    if len(named) > 1:
        raise Refused(Reason.BAD_REQUEST, "in_reply_to and forward_of: only one of them may be given.")
    return bool(named)


def named_message(request: Inbound) -> Mapping[str, str]:
    """The id of that message, or of the one that the draft answers which was looked up. Raises Refused(BAD_REQUEST)."""
    fields = request.looked_up or request.fields
    message_id = fields.get("in_reply_to") or fields.get("forward_of")
    if not isinstance(message_id, str):
        raise Refused(Reason.BAD_REQUEST, "in_reply_to, forward_of: must be the id of a message.")
    return {"message_id": message_id}


def is_without_recipients(request: Inbound) -> bool:
    """Whether the draft that was looked up answers a message and names nobody: then that one tells whom it goes to."""
    draft = {**request.looked_up, **_addressed(request.fields)}
    return bool(draft.get("in_reply_to")) and not named_in(draft)


def may_schedule(request: Inbound) -> bool:
    """Whether what a change costs depends on the draft as it is."""
    return request.fields.get("send_at") is not None or bool(_addressed(request.fields))


def is_scheduled_without_recipients(request: Inbound) -> bool:
    """The same of a draft that this change schedules. Raises Refused(BAD_REQUEST)."""
    return _scheduled_ms(request) is not None and is_without_recipients(request)


# --- what is scheduled ---------------------------------------------------------------------------------


def marked(request: Inbound, request_id: str) -> Mapping[str, Any]:
    """The labels that go up: ours with the client's, and no older one of ours."""
    fields, label = request.fields, tag_of(request_id)
    if request.method == "POST":
        return {"labels": [*strings_in(fields.get("labels")), label]}
    before = [one for one in strings_in(request.looked_up.get("labels")) if is_ours(one)]
    removed = [*strings_in(fields.get("remove_labels")), *before]
    more = {"remove_labels": removed} if removed else {}
    return {"add_labels": [*strings_in(fields.get("add_labels")), label], **more}


def draft_id_of(observer: Observer, request_id: str) -> str | None:
    """Of the draft that an answer shows, if this request has scheduled it. One that was there already, by its `client_id`,
    an earlier request has."""
    assert isinstance(observer, DraftObserver)
    draft_id = observer.draft.get("draft_id")
    return draft_id if isinstance(draft_id, str) and _is_by(observer.draft, request_id) else None


def listed_draft(found: Mapping[str, Any], request_id: str) -> tuple[str, Mapping[str, Any]] | None:
    """The draft in a list that this request has scheduled."""
    for draft in _objects(found.get("drafts")):
        draft_id = draft.get("draft_id")
        if isinstance(draft_id, str) and _is_by(draft, request_id):
            return draft_id, draft
    return None


def will_be_sent(draft: Mapping[str, Any], request_id: str) -> bool:
    """As this request has scheduled it."""
    return draft.get("send_status") in _WAITING and _is_by(draft, request_id)


def sent_by(found: Mapping[str, Any], request_id: str) -> Usage | None:
    """The message in a list that became of what this request has scheduled; None where there is none."""
    for message in _objects(found.get("messages")):
        if _is_by(message, request_id):
            number = named_in(message)
            return Usage((UsageLine(PRODUCT, {RECIPIENTS: number, MESSAGES: 1}),)) if number else NOTHING
    return None


def _is_by(one: Mapping[str, Any], request_id: str) -> bool:
    """Whether a draft, or the message that became of it, is as this request has left it: the newest label counts."""
    ours = [label for label in strings_in(one.get("labels")) if is_ours(label)]
    return bool(ours) and max(ours) == tag_of(request_id)


def _scheduled_ms(request: Inbound) -> int | None:
    """When the vendor will send what this request makes or changes; None where it will not, or this changes nothing
    that is paid for. Raises Refused(BAD_REQUEST)."""
    fields, draft = request.fields, request.looked_up
    if "send_at" in fields:
        return None if fields["send_at"] is None else _instant_ms(fields["send_at"])
    if request.method == "POST" or draft.get("send_status") not in _WAITING or not _addressed(fields):
        return None
    return _instant_ms(draft.get("send_at"))


def _recipients(request: Inbound) -> int:
    """Of a draft as this request leaves it."""
    if request.method == "POST":
        if request.fields.get("in_reply_to") is None:
            return named_in(request.fields)
        return of_answer(request.fields, request.looked_up, own_address(request))
    draft = {**request.looked_up, **_addressed(request.fields)}
    refuse_recipients_in(draft.get("headers"))
    return named_in(draft) or of_answered(draft, request)


def _addressed(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a change of a draft says of its recipients."""
    return {name: fields[name] for name in _ADDRESSED if name in fields}


def _instant_ms(value: Any) -> int:
    """Of a text like `2026-12-01T09:00:00Z`. Raises Refused(BAD_REQUEST)."""
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
        if at is not None and at.tzinfo is not None:
            return ms_of(at + timedelta(microseconds=999))
    except (ValueError, OverflowError):
        pass
    raise Refused(Reason.BAD_REQUEST, "send_at: must be an instant with its zone, like 2026-12-01T09:00:00Z.")


def _objects(value: Any) -> Sequence[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
