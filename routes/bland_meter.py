"""What a phone call at Bland uses: seconds that it was connected, prorated; and each that is dialled costs a minimum, whatever
becomes of it (its pricing page, in force from 2025-12-05). Told by the call itself, whoever asks for it.
"""

import math
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from metering.errors import Reason, Refused
from metering.money import NANO_PER_USD
from metering.usage import CALL_SECONDS, Usage, UsageLine
from proxy.surface import AnswerHead, Demand, Inbound, Observer, Pricing
from routes.bland_requests import check_fields, number_to_dial
from routes.told_object import ToldObject, instant_of

PRODUCT, BYOT_PRODUCT = "call", "byot_call"
"""Their names in the price table: by the vendor's own telephony, and by the operator's Twilio account."""
BYOT_ENV = "BLAND_BYOT_KEY"
MINUTES_ENV, MINUTES_MAX_ENV = "BLAND_MAX_DURATION_MINUTES", "BLAND_MAX_DURATION_MAX_MINUTES"
VENDOR_MINUTES_MAX = 720
"""What the vendor takes as a `max_duration`."""
SECONDS_PER_MINUTE = 60
MINUTES_MIN = 1
"""No call may be bounded to less."""
CALL_SECONDS_MAX = VENDOR_MINUTES_MAX * SECONDS_PER_MINUTE
"""A call that is told to be longer was not read right."""
OVER = frozenset({"completed", "failed", "busy", "no-answer", "canceled"})
"""What a call's `status` says at its end."""
QUEUE_OVER = frozenset(
    {"complete", "completed", "pre_queue_error", "queue_error", "call_error", "complete_error"}
)
"""And its `queue_status`, also where the other is `unknown`."""
NOT_CONNECTED = OVER - {"completed"}
APART_S = 1.0
"""How far the two lengths that are told may be apart: one is rounded to the second."""
NOTE_APART, NOTE_LENGTH = "call_lengths_differ", "call_length_from_minutes"
NOTE_NO_LENGTH = "call_length_not_told"


class CallMeter:
    """A new call: held for its time in slices, billed by what the vendor tells of it at its end."""

    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        """Raises Refused(BAD_REQUEST): what may not be asked for."""
        check_fields(request.fields)
        number = number_to_dial(request.fields, pricing.options)
        minutes = _minutes(request, pricing)
        product = BYOT_PRODUCT if pricing.options[BYOT_ENV] else PRODUCT
        return Demand(
            ceiling=_used(product, math.ceil(minutes * SECONDS_PER_MINUTE), is_exact=False),
            floor=_used(product, 0, is_exact=False),
            is_deferred=True,
            fields={**request.fields, "phone_number": number, "max_duration": minutes},
            sought={"number": number},
            made={"to": number, "from": request.fields.get("from")},
            costs_less="a shorter max_duration" if minutes > MINUTES_MIN else "",
        )

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return CallReport(demand)


def inbound_demand(options: Mapping[str, str]) -> Demand:  # noqa: ARG001 - as Arrives.demand
    """What a call that comes in may use: as long as the vendor lets one be, and without the minimum of one that is dialled,
    which is the price of the operator's own telephony."""
    return Demand(
        ceiling=_used(BYOT_PRODUCT, CALL_SECONDS_MAX, is_exact=False),
        floor=_used(BYOT_PRODUCT, 0, is_exact=False),
        is_deferred=True,
    )


class CallReport(ToldObject):
    """Reads a call as the vendor tells it, with all that was said; and the answer to the request for it, which has its id
    alone."""

    __slots__ = ()

    BODY_BYTES_MAX = 8 * 1024 * 1024

    @staticmethod
    def is_one(told: Mapping[str, Any]) -> bool:
        return isinstance(told.get("call_id"), str)

    @property
    def is_running(self) -> bool:
        """Not over yet, by all that says so."""
        return self.told is not None and not is_over(self.told)

    @property
    def waited_s(self) -> float | None:
        """From the request for it until somebody answered, by the vendor's own clock; None while it rings."""
        told = self.told or {}
        began, created = instant_of(told.get("started_at")), instant_of(told.get("created_at"))
        if began is None:
            return None
        return 0.0 if created is None else max(0.0, (began - created).total_seconds())

    def usage(self) -> Usage:
        """Of a call that is over, exact where its length is told; of another one, its least."""
        told = self.told
        if told is None or not is_over(told):
            return self.demand.floor
        seconds, is_exact, notes = length_of(told)
        return _used(
            self.demand.ceiling.lines[0].model,
            seconds,
            is_exact=is_exact,
            notes=notes,
            told_nanousd=_price_nanousd(told.get("price")),
        )


def is_running(observer: Observer) -> bool:
    """Whether a call goes on, by what was last told of it."""
    return isinstance(observer, CallReport) and observer.is_running


def waited_s(observer: Observer) -> float | None:
    """As Timed.waited_s."""
    return observer.waited_s if isinstance(observer, CallReport) else None


def is_over(told: Mapping[str, Any]) -> bool:
    """Whether a call has come to its end, whichever."""
    return (
        told.get("completed") is True
        or _word(told.get("status")) in OVER
        or _word(told.get("queue_status")) in QUEUE_OVER
    )


def length_of(told: Mapping[str, Any]) -> tuple[int, bool, tuple[str, ...]]:
    """Seconds, whether they are told, and what is odd about them. `corrected_duration` has them, as a text; `call_length` has
    minutes."""
    seconds, minutes = _number(told.get("corrected_duration")), _number(told.get("call_length"))
    if seconds is None:
        if minutes is not None:
            return round(minutes * SECONDS_PER_MINUTE), True, (NOTE_LENGTH,)
        if _word(told.get("status")) in NOT_CONNECTED:
            return 0, True, ()
        return _spanned_s(told), False, (NOTE_NO_LENGTH,)
    is_apart = minutes is not None and abs(minutes * SECONDS_PER_MINUTE - seconds) > APART_S
    return math.ceil(seconds), True, (NOTE_APART,) if is_apart else ()


def _spanned_s(told: Mapping[str, Any]) -> int:
    """From when somebody answered to the end."""
    began, ended = instant_of(told.get("started_at")), instant_of(told.get("end_at"))
    if began is None or ended is None:
        return 0
    return min(max(0, math.ceil((ended - began).total_seconds())), CALL_SECONDS_MAX)


def _minutes(request: Inbound, pricing: Pricing) -> float:
    """What was asked for, as far as the operator, the plan and the budget allow it: a minute at least. What is cut is whole
    minutes, as it is not known that the vendor takes others."""
    asked = request.fields.get("max_duration")
    if asked is None:
        asked = int(pricing.options[MINUTES_ENV])
    if not isinstance(asked, int | float) or isinstance(asked, bool) or not 0 < asked <= VENDOR_MINUTES_MAX:
        raise Refused(
            Reason.BAD_REQUEST,
            f"max_duration: must be minutes, more than 0 and at most {VENDOR_MINUTES_MAX}.",
        )
    most = int(pricing.options[MINUTES_MAX_ENV])
    if request.time_left_s is not None:
        most = min(most, request.time_left_s // SECONDS_PER_MINUTE)
    return max(MINUTES_MIN, min(asked, most))


def _used(product: str, seconds: int, **more: Any) -> Usage:
    return Usage((UsageLine(product, {CALL_SECONDS: seconds}),), **more)


def _word(value: Any) -> str:
    return value.lower() if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    """A length as it is told, in digits or in a text of them."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if 0 <= found <= CALL_SECONDS_MAX else None


def _price_nanousd(price: Any) -> int | None:
    if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price < NANO_PER_USD:
        return None
    return int((Decimal(str(price)) * NANO_PER_USD).to_integral_value(ROUND_HALF_UP))
