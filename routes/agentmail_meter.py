"""How many e-mails a request to AgentMail sends: its recipients, each of which the vendor counts as one.

Where they come from: the request itself, the message that is answered, or the draft that is sent; the last two are read
before anything is reserved.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import getaddresses
from typing import Any

from metering.errors import Reason, Refused
from metering.usage import MESSAGES, RECIPIENTS, Usage, UsageLine
from proxy.meters import NothingToRead
from proxy.surface import AnswerHead, Demand, Inbound, Observer, Pricing

PRODUCT = "email"
"""Its name in the price table."""
RECIPIENTS_MAX = 1_000
"""Of one message; vendors allow a few dozen."""
_TO, _BESIDE = ("to",), ("cc", "bcc")

Count = Callable[[Inbound], int]


@dataclass(frozen=True, slots=True)
class SendMeter:
    """One message, to as many as `recipients` finds."""

    recipients: Count

    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:  # noqa: ARG002 - the protocol's
        """Raises Refused(BAD_REQUEST): no recipients, or more than anybody writes to at once."""
        number = self.recipients(request)
        if not 0 < number <= RECIPIENTS_MAX:
            raise Refused(
                Reason.BAD_REQUEST,
                f"to, cc, bcc: given {number:,} recipients, expected 1 to {RECIPIENTS_MAX:,}.",
            )
        usage = Usage((UsageLine(PRODUCT, {RECIPIENTS: number, MESSAGES: 1}),), is_exact=False)
        return Demand(ceiling=usage, floor=usage)

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return NothingToRead(demand.ceiling.lines)


def of_request(request: Inbound) -> int:
    """Those that the request names."""
    return _number(request.fields, (*_TO, *_BESIDE))


def of_reply(request: Inbound) -> int:
    """Whoever wrote the message, or those that the request names instead; with `reply_all` all that had it."""
    if request.fields.get("reply_all") is True:
        return of_reply_all(request)
    named = _number(request.fields, _TO)
    return (named or _writers(request.looked_up)) + _number(request.fields, _BESIDE)


def of_reply_all(request: Inbound) -> int:
    """Whoever wrote the message and all that had it, our own address too: it may be none of them."""
    written_to = _number(request.looked_up, (*_TO, *_BESIDE))
    return _writers(request.looked_up) + written_to + _number(request.fields, (*_TO, *_BESIDE))


def of_draft(request: Inbound) -> int:
    """Those that the draft names."""
    return _number(request.looked_up, (*_TO, *_BESIDE))


def _writers(message: Mapping[str, Any]) -> int:
    return _number(message, ("reply_to",)) or _number(message, ("from",))


def _number(fields: Mapping[str, Any], names: Iterable[str]) -> int:
    return sum(number_in(name, fields.get(name)) for name in names)


def number_in(name: str, value: Any) -> int:
    """How many addresses a field has: a text with one or several, or a list of those. Never fewer than somebody else may
    find in it: as many as are understood, or as there are `@`. Raises Refused(BAD_REQUEST)."""
    if value is None:
        return 0
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise Refused(Reason.BAD_REQUEST, f"{name}: must be an address, or a list of addresses.")
    return sum(max(len(getaddresses([text])), text.count("@")) for text in texts if text.strip())
