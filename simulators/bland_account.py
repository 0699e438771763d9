"""The account at Bland: its time, its money, its numbers. One for all tenants."""

import random
import re
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from metering.clock import Clock
from simulators import bland_errors as errors
from simulators.bland_prices import Tariff

BALANCE_USD = Decimal("1913.407")
POOL_NUMBER = "+14155550000"
"""What a call comes from that says nothing else and has no Twilio account of its own."""
_E164 = re.compile(r"\+[1-9]\d{7,14}")
_US_DIGITS = re.compile(r"1?([2-9]\d{9})")
_PUNCTUATION = str.maketrans("", "", " ().-")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the account may do; None: as much as it likes. Of the vendor's Start plan: 10 at once, 100 a day, 1,000 an hour."""

    at_once_max: int | None = None
    per_hour_max: int | None = None
    per_day_max: int | None = None


@dataclass(slots=True)
class Number:
    """A number that the account answers and calls from. `is_byot`: it came from the operator's own Twilio account."""

    phone_number: str
    is_byot: bool
    created_ms: int
    settings: dict[str, Any] = field(default_factory=dict)


class Account:
    """Ids of `seed`; time that runs `ahead_ms` of the clock; numbers by their E.164."""

    def __init__(self, clock: Clock, *, plan: Plan, tariff: Tariff, byot_key: str, seed: int) -> None:
        self.plan = plan
        self.tariff = tariff
        self.byot_key = byot_key
        self.balance_usd = BALANCE_USD
        self.numbers: dict[str, Number] = {}
        self.ahead_ms = 0
        self.rng = random.Random(seed)
        self._clock = clock
        self._count = 0

    def now_ms(self) -> int:
        return self._clock.now_ms() + self.ahead_ms

    def new_id(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def count(self) -> int:
        """1, 2, 3, ...: an order for what happens in one millisecond."""
        self._count += 1
        return self._count

    def add_number(self, phone_number: str, *, is_byot: bool) -> Number:
        number = self.numbers[phone_number] = Number(phone_number, is_byot, self.now_ms())
        return number

    def number(self, given: str) -> Number:
        """The account's number that is meant. Raises RefusedError(404)."""
        found = self.numbers.get(e164(given) or "")
        if found is None:
            raise errors.not_found("Inbound number")
        return found

    def caller(self, given: str | None, *, is_byot: bool) -> str:
        """What a call comes from. Without a wish and with a Twilio account, any number that was imported from one,
        whoever it was meant for. Raises RefusedError(400)."""
        own = [number.phone_number for number in self.numbers.values() if number.is_byot == is_byot]
        if given is None:
            if not is_byot:
                return POOL_NUMBER
            if not own:
                raise errors.invalid("from: no number was imported from this Twilio account")
            return self.rng.choice(own)
        wished = e164(given)
        if wished not in own:
            raise errors.invalid("from: this number does not belong to your account")
        return wished


def e164(given: str) -> str | None:
    """A number as the vendor takes it: `+`, or a US number with or without its 1. None for what is none."""
    bare = given.translate(_PUNCTUATION)
    if _E164.fullmatch(bare):
        return bare
    match = _US_DIGITS.fullmatch(bare)
    return f"+1{match[1]}" if match else None
