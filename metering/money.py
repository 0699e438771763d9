"""Money as integers: nano-USD for amounts, pico-USD for unit prices, credits for display."""

import re

PICO_PER_NANO = 1_000
NANO_PER_USD = 1_000_000_000
CREDIT_NANOUSD = 100_000
"""A credit is a unit of display: 100 micro-USD."""

_USD = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?", re.ASCII)


def nanousd_of_picousd(picousd: int) -> int:
    """Round an amount in pico-USD half up to nano-USD; done once per entry."""
    return (picousd + PICO_PER_NANO // 2) // PICO_PER_NANO


def credits_of(nanousd: int) -> int:
    """An amount in credits, rounded up, so that what is shown never understates what is spent."""
    return -(-nanousd // CREDIT_NANOUSD)


def credits_left(nanousd: int) -> int:
    """An amount still available in credits, rounded down, so that what is shown can be spent."""
    return nanousd // CREDIT_NANOUSD if nanousd > 0 else 0


def usd(nanousd: int) -> str:
    """An amount as decimal USD with nine places: exact, for people and JSON (`"0.000711000"`)."""
    if nanousd < 0:
        return "-" + usd(-nanousd)
    return "%d.%09d" % divmod(nanousd, NANO_PER_USD)  # noqa: UP031 - half the time of an f-string


def nanousd_of_usd(text: str) -> int | None:
    """Decimal USD as people write them (`5`, `4.99`), exactly; None for anything else."""
    found = _USD.fullmatch(text)
    if found is None:
        return None
    return int(found[1]) * NANO_PER_USD + int((found[2] or "").ljust(9, "0"))
