"""Where callers stand: made up for dialects, and read from the headers of answers."""

from collections.abc import Mapping
from typing import Any

from http_sf import parse

from metering.rate_state import RateState, Standing

MINUTE_S = 60
MONTHS_S = {days * 86_400 for days in (28, 29, 30, 31)}


def standing(*, requests: RateState, tokens: RateState | None = None, **more: Any) -> Standing:
    """As admission tells it; what a test does not look at is of no account."""
    values: dict[str, Any] = {
        "concurrent_requests": 4,
        "budget_limit_nanousd": 10**9,
        "budget_remaining_nanousd": None,
        "budget_began_ms": 0,
        "budget_reset_ms": 2_592_000_000,
        "quotas": (),
        **more,
    }
    return Standing(requests, tokens or RateState(True, 1_000, 1_000, 0, 0.0), **values)


def policies_of(headers: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """`RateLimit-Policy` by the policies' names, each as the draft has it."""
    found = _items(headers["ratelimit-policy"])
    for parameters in found.values():
        assert type(parameters["q"]) is int
        assert parameters["q"] >= 0
        assert type(parameters.get("w", 1)) is int
        assert parameters.get("w", 1) > 0
    return found


def limits_of(headers: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """`RateLimit` by the policies' names: what is left, and for so many seconds. It names none without a policy."""
    found = _items(headers["ratelimit"])
    assert set(found) <= set(policies_of(headers))
    for parameters in found.values():
        assert set(parameters) == {"r", "t"}
        assert all(type(value) is int and value >= 0 for value in parameters.values())
    return {name: (parameters["r"], parameters["t"]) for name, parameters in found.items()}


def assert_limits(headers: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """The standard headers of any answer to a caller whom we know, and what they say is left."""
    policies, limits = policies_of(headers), limits_of(headers)
    assert {"requests", "tokens", "concurrency", "credits"} <= set(policies)
    assert {"requests", "tokens"} <= set(limits)
    assert {policies[name]["w"] for name in ("requests", "tokens")} == {MINUTE_S}
    assert policies["credits"]["w"] in MONTHS_S
    assert all(left <= policies[name]["q"] for name, (left, _) in limits.items())
    if headers.get("retry-after"):
        assert any(time_s <= int(headers["retry-after"]) for _, time_s in limits.values())
    return limits


def _items(field: str) -> dict[str, dict[str, Any]]:
    items = parse(field.encode(), tltype="list")
    assert isinstance(items, list)
    names = [name for name, _ in items]
    assert all(type(name) is str for name in names), names  # a String, not a Token
    assert len(set(names)) == len(names)
    return dict(items)
