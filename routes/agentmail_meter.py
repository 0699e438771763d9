"""How many e-mails a request to AgentMail sends: its recipients, each of which the vendor counts as one.

Where they come from: the request itself, the message that is answered, or the draft that is sent; the last two are read
before anything is reserved.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from metering.errors import Reason, Refused
from metering.usage import MESSAGES, RECIPIENTS, Usage, UsageLine
from metering.values import immutable
from proxy.meters import NothingToRead
from proxy.rewriting import MARK
from proxy.surface import AnswerHead, Demand, Inbound, Observer, Pricing

PRODUCT = "email"
"""Its name in the price table."""
RECIPIENTS_MAX = 1_000
"""Of one message; vendors allow a few dozen."""
ADDRESSED = frozenset({"to", "cc", "bcc", "resent-to", "resent-cc", "resent-bcc"})
"""Headers of a message that say whom it goes to."""
_TO, _BESIDE = ("to",), ("cc", "bcc")
_LABELS = ("labels", "add_labels", "remove_labels")

Count = Callable[[Inbound], int]


@immutable
class SendMeter:
    """One message, to as many as `recipients` finds."""

    recipients: Count

    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:  # noqa: ARG002 - the protocol's
        """Raises Refused(BAD_REQUEST): no recipients, or more than anybody writes to at once; labels of ours."""
        refuse_recipients_in(request.fields.get("headers"))
        refuse_labels_of_ours(request.fields)
        usage = usage_of(self.recipients(request))
        return Demand(ceiling=usage, floor=usage)

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return NothingToRead(demand.ceiling.lines)


def usage_of(number: int) -> Usage:
    """Of a message that will go to so many. Raises Refused(BAD_REQUEST): to none, or to more than anybody writes to at
    once."""
    if not 0 < number <= RECIPIENTS_MAX:
        raise Refused(
            Reason.BAD_REQUEST,
            f"to, cc, bcc: given {number:,} recipients, expected 1 to {RECIPIENTS_MAX:,}.",
        )
    return Usage((UsageLine(PRODUCT, {RECIPIENTS: number, MESSAGES: 1}),), is_exact=False)


def of_request(request: Inbound) -> int:
    """Those that the request names."""
    return named_in(request.fields)


def of_reply(request: Inbound) -> int:
    """Those whom the message asks to be answered, or that the request names instead; with `reply_all` all that had it.
    Raises Refused(BAD_REQUEST): a `reply_all` that the vendor may read in another way than we."""
    if not isinstance(request.fields.get("reply_all", False), bool | None):
        raise Refused(Reason.BAD_REQUEST, "reply_all: must be true or false.")
    return of_answer(request.fields, request.looked_up, own_address(request))


def of_reply_all(request: Inbound) -> int:
    """Whom an answer goes to, and all that had the message, but for ourselves: nobody answers themselves."""
    return of_answer({**request.fields, "reply_all": True}, request.looked_up, own_address(request))


def of_answer(fields: Mapping[str, Any], message: Mapping[str, Any], own: str) -> int:
    """Those whom `fields`, as an answer to a message, go to from the address `own`."""
    if fields.get("reply_all") is not True:
        named = _number(fields, _TO)
        return (named or _answered(message, own)) + _number(fields, _BESIDE)
    had_it = _number(message, _BESIDE, but=own)
    if not _is_written_by(message, own):
        had_it += _number(message, _TO, but=own)
    return _answered(message, own) + had_it + named_in(fields)


def of_draft(request: Inbound) -> int:
    """Those that the draft names; of one that answers a message and names nobody, all that its vendor may find in that."""
    draft = request.looked_up
    refuse_recipients_in(draft.get("headers"))
    return named_in(draft) or of_answered(draft, request)


def of_answered(draft: Mapping[str, Any], request: Inbound) -> int:
    """Those whom a draft may go to by the message that it answers: whether to all of them, a draft does not say."""
    if not request.looked_behind:
        return 0
    return of_answer({**draft, "reply_all": True}, request.looked_behind, own_address(request))


def named_in(fields: Mapping[str, Any]) -> int:
    """The recipients that stand in a request, draft or message."""
    return _number(fields, (*_TO, *_BESIDE))


def refuse_recipients_in(headers: Any) -> None:
    """Nobody counts recipients that a message has in its own headers. Raises Refused(BAD_REQUEST)."""
    if isinstance(headers, dict) and any(name.strip().lower() in ADDRESSED for name in headers):
        raise Refused(Reason.BAD_REQUEST, "headers: recipients belong into to, cc and bcc.")


def no_model(request: Inbound, pricing: Pricing) -> tuple[str, ...]:  # noqa: ARG001 - as Free asks
    """Of what costs nothing, and may change labels. Raises Refused(BAD_REQUEST)."""
    refuse_labels_of_ours(request.fields)
    return ()


def refuse_labels_of_ours(fields: Mapping[str, Any]) -> None:
    """By such a label it is told what became of a schedule, and for how many it is paid. Raises Refused(BAD_REQUEST)."""
    if any(is_ours(label) for name in _LABELS for label in strings_in(fields.get(name))):
        raise Refused(Reason.BAD_REQUEST, f"labels: those that begin with {MARK} are the proxy's own.")


def is_ours(label: str) -> bool:
    return label.strip().lower().startswith(MARK)


def strings_in(value: Any) -> Sequence[str]:
    """A text, or those in a list."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str)]


def _answered(message: Mapping[str, Any], own: str) -> int:
    """Whoever wrote the message. One of our own is followed up: to those it went to."""
    if _is_written_by(message, own):
        return max(1, _number(message, _TO, but=own))
    return _number(message, ("reply_to",)) or _number(message, ("from",))


def own_address(request: Inbound) -> str:
    """The address that the request sends from."""
    return request.path_params["inbox_id"].lower()


def _is_written_by(message: Mapping[str, Any], own: str) -> bool:
    sender = str(message.get("from", "")).lower().strip()
    return sender == own or sender.endswith(f"<{own}>")


def _number(fields: Mapping[str, Any], names: Iterable[str], *, but: str = "") -> int:
    return sum(number_in(name, fields.get(name), but=but) for name in names)


def number_in(name: str, value: Any, *, but: str = "") -> int:
    """How many addresses a field has: a text with one or several, or a list of those; without the address `but`. Never
    fewer than somebody else may find in it: there is an `@` in every one. Raises Refused(BAD_REQUEST)."""
    if value is None:
        return 0
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise Refused(Reason.BAD_REQUEST, f"{name}: must be an address, or a list of addresses.")
    return sum(max(1, text.count("@")) for text in texts if text.strip() and not (but and _is(text, but)))


def _is(text: str, address: str) -> bool:
    """Whether a text is this one address, with a name or without."""
    lower = text.lower().strip()
    return lower == address or (text.count("@") == 1 and lower.endswith(f"<{address}>"))
