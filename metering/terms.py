"""What a gateway token may, beside its user's plan: its scope, its caps, and limits of its own.

A token can be handed on: its holder mints children of it, for a sub-agent or a browser. The *chain* of a token is
itself, its parent, and so on up to the first, which an operator made. What a request may is what every token of
the chain allows, looked up at each request and never copied at minting: so a child never exceeds its parent, also
when that is narrowed later. Each token's caps are accounts of their own, and a request holds on all of them.

Callers for whom none of this is set have no terms at all (None), and cost nothing.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import orjson

from metering.errors import Reason, Refused
from metering.ledger import REQUESTS, SPEND
from metering.money import CREDIT_NANOUSD
from metering.plans import AMOUNT_MAX
from metering.values import immutable

PATTERNS_MAX, PATTERN_CHARS_MAX, PATTERN_STARS_MAX = 20, 100, 4
"""Of one list of a scope: it stands in a cache, and is compiled when it is matched."""
USER_SURFACE = "user"
"""Our own endpoints below /api/user, as scopes name them."""
TOKENS_OPERATION = "tokens"
"""Making, listing and revoking children."""
GATEWAY_OPERATION = "gateway"
"""The way into the user's machine, which has a gateway token of its own."""
PROVISION_OPERATION = "provision"
"""A machine for a user who has none: asking for the way into it makes one."""
TO_BE_NAMED = (TOKENS_OPERATION, GATEWAY_OPERATION, PROVISION_OPERATION)
"""Operations of USER_SURFACE that a child may only if its scope names them."""


class TermsError(ValueError):
    """A scope, cap or limit cannot be used; the message names the key, what was given and what is expected."""


# --- scopes ------------------------------------------------------------------------------------------


@immutable
class Scope:
    """Lists of glob patterns, as plans have; None is everything."""

    surfaces: tuple[str, ...] | None = None
    operations: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None

    def includes(self, surface: str, operation: str) -> bool:
        return _matches(self.surfaces, surface) and _matches(self.operations, operation)

    def includes_model(self, model: str) -> bool:
        return _matches(self.models, model)

    def names(self, operation: str) -> bool:
        """Whether it says that this operation of our own endpoints may be asked for: everything does not say it."""
        is_named = self.operations is not None and _matches(self.operations, operation)
        return is_named and _matches(self.surfaces, USER_SURFACE)

    def as_json(self) -> dict[str, list[str]]:
        lists = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(patterns) for name, patterns in lists.items() if patterns is not None}


SCOPE_KEYS = tuple(field.name for field in fields(Scope))
EVERYTHING = Scope()


def _matches(patterns: tuple[str, ...] | None, name: str) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


# --- caps and limits ---------------------------------------------------------------------------------


class CapMeter(enum.StrEnum):
    """What a cap counts."""

    CREDITS = "credits"
    REQUESTS = "requests"


class CapPeriod(enum.StrEnum):
    """When a cap returns (UTC)."""

    DAY = "day"
    MONTH = "month"


@immutable
class Cap:
    """The most that may be used in a period: credits, whatever pays for them, or requests sent to vendors."""

    meter: CapMeter
    period: CapPeriod
    limit: int

    def as_json(self) -> dict[str, str | int]:
        return {"meter": self.meter.value, "period": self.period.value, "limit": self.limit}


@immutable
class TokenLimits:
    """Rates of a token beside those of its user's plan; None is only the plan's."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None

    def as_json(self) -> dict[str, int | None]:
        return {name: getattr(self, name) for name in LIMIT_KEYS}


LIMIT_KEYS = tuple(field.name for field in fields(TokenLimits))
NO_LIMITS = TokenLimits()


class Whose(enum.StrEnum):
    """Whose cap or scope it is, as the holder of a token is told."""

    TOKEN = "this gateway token"
    PARENT = "the gateway token that this one comes from"
    USER = "this account"


class OwnedLimits(NamedTuple):
    """Limits and the owner on whose accounts they are counted."""

    whose: Whose
    owner: str
    limits: TokenLimits


@immutable
class OwnedCap:
    """A cap and the accounts it is counted on: those of `owner`, by period. `allowance` in the meter's unit."""

    whose: Whose
    owner: str
    meter: str
    period: CapPeriod
    allowance: int
    cap: Cap


# --- what all tokens of a chain say together ---------------------------------------------------------


@immutable
class Link:
    """One token of a chain. `family`: the token whose accounts its caps are, which rotating does not change."""

    family: str
    scope: Scope = EVERYTHING
    caps: tuple[Cap, ...] = ()
    limits: TokenLimits = NO_LIMITS

    @property
    def owner(self) -> str:
        """The owner of the token's accounts."""
        return f"token:{self.family}"


@immutable
class Terms:
    """What a caller may, beside the plan. Lists begin with the token itself and go up its chain."""

    scopes: tuple[tuple[Whose, Scope], ...] = ()
    caps: tuple[OwnedCap, ...] = ()
    limits: tuple[OwnedLimits, ...] = ()
    withheld: tuple[str, ...] = ()
    """Of TO_BE_NAMED, those that are not named by its scope and by each between. The first of a chain may them all."""
    is_child: bool = False
    """Made of another token: it sees of its user's requests only its own, and those of its own children."""

    def require(self, surface: str, operation: str) -> None:
        """Raises Refused(FORBIDDEN), which says that it is the scope's doing."""
        for whose, scope in self.scopes:
            if not scope.includes(surface, operation):
                raise Refused(
                    Reason.FORBIDDEN,
                    f"The scope of {whose} does not include the operation {operation} of the surface {surface}.",
                )
        if surface == USER_SURFACE and operation in self.withheld:
            raise Refused(
                Reason.FORBIDDEN,
                f"This gateway token was handed on: it may ask for the operation {operation} only if its scope names it "
                "(and each token's between).",
            )

    def require_models(self, models: Sequence[str]) -> None:
        """Raises Refused(MODEL_UNAVAILABLE): a model outside the scope does not exist for this token."""
        for whose, scope in self.scopes:
            for model in models:
                if not scope.includes_model(model):
                    raise Refused(
                        Reason.MODEL_UNAVAILABLE,
                        f"model: {model} (not in the scope of {whose})",
                        facts={"model": model},
                    )


def terms_of(chain: Sequence[Link], user_owner: str, user_caps: Sequence[Cap]) -> Terms | None:
    """What a chain, the token itself first, and its user's caps amount to; None when nothing beside the plan."""
    owned = [(_whose(place), link.owner, link.caps) for place, link in enumerate(chain)]
    terms = Terms(
        scopes=tuple(
            (_whose(place), link.scope) for place, link in enumerate(chain) if link.scope != EVERYTHING
        ),
        caps=tuple(
            _owned(whose, owner, cap)
            for whose, owner, caps in (*owned, (Whose.USER, user_owner, user_caps))
            for cap in caps
        ),
        limits=tuple(
            OwnedLimits(_whose(place), link.owner, link.limits)
            for place, link in enumerate(chain)
            if link.limits != NO_LIMITS
        ),
        withheld=tuple(
            operation
            for operation in TO_BE_NAMED
            if not all(link.scope.names(operation) for link in chain[:-1])
        ),
        is_child=len(chain) > 1,
    )
    return None if terms == _NOTHING else terms


_NOTHING = Terms()


def _whose(place: int) -> Whose:
    return Whose.PARENT if place else Whose.TOKEN


def caps_of_token(link: Link) -> tuple[OwnedCap, ...]:
    """The caps of one token alone."""
    return tuple(_owned(Whose.TOKEN, link.owner, cap) for cap in link.caps)


def caps_of_user(owner: str, caps: Sequence[Cap]) -> tuple[OwnedCap, ...]:
    return tuple(_owned(Whose.USER, owner, cap) for cap in caps)


def _owned(whose: Whose, owner: str, cap: Cap) -> OwnedCap:
    is_money = cap.meter is CapMeter.CREDITS
    allowance = cap.limit * CREDIT_NANOUSD if is_money else cap.limit
    return OwnedCap(whose, owner, SPEND if is_money else REQUESTS, cap.period, allowance, cap)


# --- as they are written: in a request, and in a row --------------------------------------------------


def parse_scope(given: Mapping[str, Any]) -> Scope:
    """From the keys `surfaces`, `operations` and `models`, each of which may be absent. Raises TermsError."""
    return Scope(**{key: _patterns(key, given[key]) for key in SCOPE_KEYS if given.get(key) is not None})


def parse_caps(given: Any) -> tuple[Cap, ...]:
    """From a list of {meter, period, limit}; None is no caps. Raises TermsError."""
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > len(CapMeter) * len(CapPeriod):
        raise TermsError(f"caps: given {_shown(given)}, expected a list of {_CAP_SHAPE}, one for each kind")
    caps = tuple(_cap(f"caps[{place}]", item) for place, item in enumerate(given))
    if len({(cap.meter, cap.period) for cap in caps}) < len(caps):
        raise TermsError("caps: given two for the same meter and period, expected one")
    return caps


def parse_limits(given: Any) -> TokenLimits:
    """From an object with any of the fields of TokenLimits; None is none of them. Raises TermsError."""
    if given is None:
        return NO_LIMITS
    if not isinstance(given, dict) or not set(given) <= set(LIMIT_KEYS):
        raise TermsError(
            f"limits: given {_shown(given)}, expected an object with any of {', '.join(LIMIT_KEYS)}"
        )
    return TokenLimits(
        **{
            key: _whole(f"limits.{key}", value, at_least=1)
            for key, value in given.items()
            if value is not None
        }
    )


def encode_scope(scope: Scope) -> str | None:
    """As the JSON of a row; None when it is everything."""
    return None if scope == EVERYTHING else orjson.dumps(scope.as_json()).decode()


def encode_caps(caps: Sequence[Cap]) -> str | None:
    """As the JSON of a row; None when there are none."""
    return orjson.dumps([cap.as_json() for cap in caps]).decode() if caps else None


def decode_scope(text: str | None) -> Scope:
    return parse_scope(orjson.loads(text)) if text else EVERYTHING


def decode_caps(text: str | None) -> tuple[Cap, ...]:
    return parse_caps(orjson.loads(text)) if text else ()


_CAP_SHAPE = '{"meter": "credits" or "requests", "period": "day" or "month", "limit": a whole number}'
_SHOWN_CHARS_MAX = 100


def _cap(name: str, given: Any) -> Cap:
    if not isinstance(given, dict) or set(given) != {"meter", "period", "limit"}:
        raise TermsError(f"{name}: given {_shown(given)}, expected {_CAP_SHAPE}")
    try:
        meter, period = CapMeter(given["meter"]), CapPeriod(given["period"])
    except ValueError:
        raise TermsError(f"{name}: given {_shown(given)}, expected {_CAP_SHAPE}") from None
    return Cap(meter, period, _whole(f"{name}.limit", given["limit"], at_least=0))


def _patterns(name: str, given: Any) -> tuple[str, ...]:
    is_good = (
        isinstance(given, list)
        and 1 <= len(given) <= PATTERNS_MAX
        and all(isinstance(item, str) and 1 <= len(item) <= PATTERN_CHARS_MAX for item in given)
        and all(item.count("*") <= PATTERN_STARS_MAX for item in given)
    )
    if not is_good:
        raise TermsError(
            f"{name}: given {_shown(given)}, expected a list of 1 to {PATTERNS_MAX} patterns "
            f'of at most {PATTERN_CHARS_MAX} characters and {PATTERN_STARS_MAX} stars, such as ["claude-*"]'
        )
    return tuple(given)


def _whole(name: str, given: Any, *, at_least: int) -> int:
    if type(given) is not int or not at_least <= given <= AMOUNT_MAX:
        raise TermsError(
            f"{name}: given {_shown(given)}, expected a whole number from {at_least} to {AMOUNT_MAX}"
        )
    return given


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= _SHOWN_CHARS_MAX else text[:_SHOWN_CHARS_MAX] + "..."
