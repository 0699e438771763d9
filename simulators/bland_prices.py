"""What Bland charges, computed as the vendor does: by the connected second, told in US dollars with three decimals."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

THOUSANDTH = Decimal("0.001")
SECONDS_PER_MINUTE = 60
NANOUSD_PER_USD = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Tariff:
    """US dollars, by plan (the vendor's pricing page, in force from 2025-12-05).

    A transfer costs nothing with the customer's own Twilio account. Whether an outbound attempt has its minimum there, too,
    the page does not say: `has_minimum_with_byot`.
    """

    minute_usd: Decimal
    transfer_minute_usd: Decimal
    attempt_min_usd: Decimal = Decimal("0.015")
    text_usd: Decimal = Decimal("0.02")
    has_minimum_with_byot: bool = False

    def price_usd(self, *, talk_s: int, transfer_s: int, is_outbound: bool, is_byot: bool) -> Decimal:
        """Of one call: `talk_s` with the agent, `transfer_s` after it was handed on. Half a thousandth is rounded up."""
        minutes_usd = talk_s * self.minute_usd
        if not is_byot:
            minutes_usd += transfer_s * self.transfer_minute_usd
        usd = (minutes_usd / SECONDS_PER_MINUTE).quantize(THOUSANDTH, ROUND_HALF_UP)
        has_minimum = is_outbound and (not is_byot or self.has_minimum_with_byot)
        return max(usd, self.attempt_min_usd) if has_minimum else usd


START = Tariff(Decimal("0.14"), Decimal("0.05"))
BUILD = Tariff(Decimal("0.12"), Decimal("0.04"))
SCALE = Tariff(Decimal("0.11"), Decimal("0.03"))


@dataclass(frozen=True, slots=True)
class Billed:
    """What one call cost, once it was over: for every call exactly one. One that was called off before it was dialled
    cost nothing."""

    call_id: str
    is_inbound: bool
    is_byot: bool
    seconds: int
    """Connected, in all."""
    transfer_s: int
    """Of those, after a transfer."""
    price_usd: Decimal

    @property
    def price_nanousd(self) -> int:
        return int(self.price_usd * NANOUSD_PER_USD)
