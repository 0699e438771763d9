"""The standard headers, as a parser of structured fields reads them."""

import pytest

from metering.rate_state import RateState, Standing
from proxy.limit_headers import limit_headers, with_own_limit
from tests.support.limits import assert_limits, limits_of, policies_of, standing

NOW = 1_795_176_000_000
CREDIT = 100_000


def text(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers}


def stands(**more: object) -> Standing:
    values: dict[str, object] = {
        "requests": RateState(True, 60, 50, NOW + 29_001, 0.0),
        "tokens": RateState(True, 500_000, 499_000, NOW + 120, 0.0),
        "concurrent_requests": 16,
        "budget_limit_nanousd": 1_000 * CREDIT,
        "budget_remaining_nanousd": 7 * CREDIT + 99_999,
        "budget_began_ms": 1_793_491_200_000,
        "budget_reset_ms": 1_796_083_200_000,
        **more,
    }
    return standing(**values)  # type: ignore[arg-type]


def test_policies_and_what_is_left_of_them() -> None:
    headers = text(limit_headers(stands(), NOW))
    assert policies_of(headers) == {
        "requests": {"q": 60, "w": 60},
        "tokens": {"q": 500_000, "qu": "tokens", "w": 60},
        "concurrency": {"q": 16, "qu": "concurrent-requests"},
        "credits": {"q": 1_000, "qu": "credits", "w": 30 * 86_400},
    }
    assert assert_limits(headers) == {"requests": (50, 30), "tokens": (499_000, 1), "credits": (7, 907_200)}
    assert (headers["x-automna-credits-limit"], headers["x-automna-credits-remaining"]) == ("1000", "7")


def test_nothing_is_said_of_credits_that_nobody_looked_at() -> None:
    headers = text(limit_headers(stands(budget_remaining_nanousd=None), NOW))
    assert set(headers) == {"ratelimit-policy", "ratelimit"}
    assert set(limits_of(headers)) == {"requests", "tokens"}
    assert "credits" in policies_of(headers)


@pytest.mark.parametrize(("retry_after_s", "told"), [(0.001, 1), (1.0, 1), (30.001, 31), (60.0, 60)])
def test_of_a_limit_that_refuses_the_time_is_the_wait(retry_after_s: float, told: int) -> None:
    tokens = RateState(False, 50_000, 0, NOW + 120_000, retry_after_s)
    assert limits_of(text(limit_headers(stands(tokens=tokens), NOW)))["tokens"] == (0, told)


def test_no_number_is_negative_or_a_time_of_nothing() -> None:
    late = stands(budget_remaining_nanousd=-CREDIT)
    headers = text(limit_headers(late, late.budget_reset_ms + 5_000))
    assert limits_of(headers) == {"requests": (50, 1), "tokens": (499_000, 1), "credits": (0, 1)}
    assert headers["x-automna-credits-remaining"] == "0"


def test_the_largest_limits_are_integers_of_a_structured_field() -> None:
    most = RateState(True, 10**12, 10**12, NOW, 0.0)
    headers = text(limit_headers(stands(requests=most, tokens=most, budget_limit_nanousd=10**17), NOW))
    assert limits_of(headers)["tokens"][0] == policies_of(headers)["credits"]["q"] == 10**12


def test_endpoints_may_add_a_limit_of_their_own() -> None:
    rate = RateState(False, 60, 0, NOW + 500, 3.2)
    headers = text(with_own_limit(limit_headers(stands(), NOW), b"reports", rate, NOW))
    assert policies_of(headers)["reports"] == {"q": 60, "w": 60}
    assert limits_of(headers)["reports"] == (0, 4)
    assert headers["x-automna-credits-limit"] == "1000"
