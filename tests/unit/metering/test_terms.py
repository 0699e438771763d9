"""Scopes, caps and limits: how they are written, and that a chain never allows more than any of its tokens."""

from itertools import product
from typing import Any

import pytest

from metering.errors import Reason, Refused
from metering.ledger import REQUESTS, SPEND
from metering.money import CREDIT_NANOUSD
from metering.terms import (
    EVERYTHING,
    NO_LIMITS,
    PATTERNS_MAX,
    Cap,
    CapMeter,
    CapPeriod,
    Link,
    Scope,
    TermsError,
    TokenLimits,
    Whose,
    decode_caps,
    decode_scope,
    encode_caps,
    encode_scope,
    parse_caps,
    parse_limits,
    parse_scope,
    terms_of,
)

DAILY = Cap(CapMeter.CREDITS, CapPeriod.DAY, 50)
MONTHLY = Cap(CapMeter.REQUESTS, CapPeriod.MONTH, 7)

SCOPES = (
    EVERYTHING,
    Scope(surfaces=("anthropic",)),
    Scope(surfaces=("open*", "user")),
    Scope(operations=("POST *",)),
    Scope(operations=("*",)),
    Scope(operations=("POST /v1/messages", "tokens")),
    Scope(operations=("tokens", "gateway", "machine")),
    Scope(models=("claude-haiku-*",)),
    Scope(surfaces=("anthropic",), operations=("GET *",), models=("*",)),
)
REQUESTED = tuple(
    product(
        ("anthropic", "openai", "user"),
        ("POST /v1/messages", "GET /v1/models", "tokens", "gateway", "provision", "machine", "usage"),
        ("claude-haiku-9", "claude-opus-9"),
    )
)


def allows(chain: list[Link], surface: str, operation: str, model: str) -> bool:
    terms = terms_of(chain, "user:ada", ())
    if terms is None:
        return True
    try:
        terms.require(surface, operation)
        terms.require_models((model,))
    except Refused:
        return False
    return True


@pytest.mark.parametrize("mine", SCOPES, ids=repr)
@pytest.mark.parametrize("parents", SCOPES, ids=repr)
def test_a_child_may_what_its_own_scope_and_its_parents_include_and_nothing_else(
    mine: Scope, parents: Scope
) -> None:
    child, parent, first = Link("child", mine), Link("parent", parents), Link("first")
    for surface, operation, model in REQUESTED:
        may = allows([child, parent, first], surface, operation, model)
        included = all(
            scope.includes(surface, operation) and scope.includes_model(model) for scope in (mine, parents)
        )
        is_named = mine.names(operation) and parents.names(operation)
        must_be = surface == "user" and operation in {"tokens", "gateway", "provision"}
        assert may == (included and (is_named or not must_be)), (surface, operation, model)
        if may:
            assert allows([parent, first], surface, operation, model), "more than its parent"


def test_without_anything_beside_the_plan_there_are_no_terms() -> None:
    assert terms_of([Link("first")], "user:ada", ()) is None


@pytest.mark.parametrize(
    ("surfaces", "operations", "names"),
    [
        (None, None, False),
        (("user",), None, False),
        (None, ("tokens",), True),
        (None, ("*",), True),
        (("user",), ("tok*",), True),
        (("anthropic",), ("*",), False),
        (None, ("POST *",), False),
        (None, ("gateway",), False),
    ],
)
def test_a_scope_names_tokens_only_where_it_says_so(surfaces: Any, operations: Any, names: bool) -> None:
    assert Scope(surfaces, operations).names("tokens") is names


def test_what_is_outside_a_scope_is_told_as_the_scopes_doing() -> None:
    chain = [Link("child"), Link("parent", Scope(surfaces=("anthropic",), models=("a*",)))]
    terms = terms_of(chain, "user:ada", ())
    assert terms is not None
    with pytest.raises(Refused) as refusal:
        terms.require("openai", "POST /v1/responses")
    assert refusal.value.reason is Reason.FORBIDDEN
    assert refusal.value.message == (
        "The scope of the gateway token that this one comes from does not include the operation "
        "POST /v1/responses of the surface openai."
    )
    terms.require("anthropic", "POST /v1/messages")
    terms.require_models(("a1", "a2"))
    with pytest.raises(Refused, match="model: b") as refusal:
        terms.require_models(("a1", "b"))
    assert (refusal.value.reason, refusal.value.facts) == (Reason.MODEL_UNAVAILABLE, {"model": "b"})


def test_caps_of_all_the_chain_and_of_the_user_are_accounts_of_their_own() -> None:
    chain = [Link("c", caps=(DAILY,)), Link("p", caps=(DAILY, MONTHLY)), Link("f")]
    terms = terms_of(chain, "user:ada", (MONTHLY,))
    assert terms is not None
    assert [(cap.whose, cap.owner, cap.meter, cap.period.value, cap.allowance) for cap in terms.caps] == [
        (Whose.TOKEN, "token:c", SPEND, "day", 50 * CREDIT_NANOUSD),
        (Whose.PARENT, "token:p", SPEND, "day", 50 * CREDIT_NANOUSD),
        (Whose.PARENT, "token:p", REQUESTS, "month", 7),
        (Whose.USER, "user:ada", REQUESTS, "month", 7),
    ]


def test_limits_are_told_with_the_owner_they_are_of() -> None:
    slow = TokenLimits(requests_per_minute=3)
    terms = terms_of([Link("c"), Link("p", limits=slow)], "user:ada", ())
    assert terms is not None
    assert terms.limits == ((Whose.PARENT, "token:p", slow),)


@pytest.mark.parametrize("scope", SCOPES, ids=repr)
def test_a_scope_is_read_back_from_its_row(scope: Scope) -> None:
    assert decode_scope(encode_scope(scope)) == scope
    assert parse_scope(scope.as_json()) == scope


@pytest.mark.parametrize("caps", [(), (DAILY,), (DAILY, MONTHLY)])
def test_caps_are_read_back_from_their_row(caps: tuple[Cap, ...]) -> None:
    assert decode_caps(encode_caps(caps)) == caps


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("anthropic", "surfaces: given 'anthropic', expected a list of 1 to 20 patterns"),
        ([], "surfaces: given [], expected a list"),
        ([1], "surfaces: given [1], expected a list"),
        ([""], "surfaces: given [''], expected a list"),
        (["a" * 101], "of at most 100 characters"),
        (["a"] * (PATTERNS_MAX + 1), "expected a list of 1 to 20"),
        ({"a": 1}, "surfaces: given {'a': 1}, expected a list"),
    ],
)
def test_a_list_of_a_scope_that_makes_no_sense_is_refused_by_name(given: Any, expected: str) -> None:
    with pytest.raises(TermsError) as error:
        parse_scope({"surfaces": given})
    assert expected in str(error.value)
    assert len(str(error.value)) < 400


GOOD = {"meter": "credits", "period": "day", "limit": 5}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "caps: given {}, expected a list of {"),
        ([GOOD] * 5, "caps: given ["),
        ([3], "caps[0]: given 3, expected {"),
        ([GOOD, {"meter": "credits"}], "caps[1]: given {'meter': 'credits'}, expected {"),
        ([{**GOOD, "more": 1}], "caps[0]: given"),
        ([{**GOOD, "meter": "searches"}], "caps[0]: given"),
        ([{**GOOD, "period": "week"}], "caps[0]: given"),
        ([{**GOOD, "period": ["day"]}], "caps[0]: given"),
        ([{**GOOD, "limit": -1}], "caps[0].limit: given -1, expected a whole number from 0 to 1000000000000"),
        ([{**GOOD, "limit": 10**12 + 1}], "caps[0].limit: given"),
        ([{**GOOD, "limit": True}], "caps[0].limit: given True"),
        ([{**GOOD, "limit": 1.0}], "caps[0].limit: given 1.0"),
        ([GOOD, {**GOOD, "limit": 6}], "given two for the same meter and period"),
    ],
)
def test_caps_that_make_no_sense_are_refused_by_name(given: Any, expected: str) -> None:
    with pytest.raises(TermsError) as error:
        parse_caps(given)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (3, "limits: given 3, expected an object with any of requests_per_minute, "),
        ({"per_hour": 3}, "limits: given {'per_hour': 3}, expected"),
        (
            {"requests_per_minute": 0},
            "limits.requests_per_minute: given 0, expected a whole number from 1 to",
        ),
        ({"concurrent_requests": "3"}, "limits.concurrent_requests: given '3'"),
    ],
)
def test_limits_that_make_no_sense_are_refused_by_name(given: Any, expected: str) -> None:
    with pytest.raises(TermsError) as error:
        parse_limits(given)
    assert expected in str(error.value)


def test_limits_may_be_some_or_none() -> None:
    assert parse_limits({"tokens_per_minute": 5, "requests_per_minute": None}) == TokenLimits(None, 5, None)
    assert parse_limits(None) is NO_LIMITS
