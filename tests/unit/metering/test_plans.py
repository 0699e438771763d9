"""Plans: what ships, what a file may say, and how it is refused when it says something else."""

from pathlib import Path

import pytest

from metering.money import CREDIT_NANOUSD
from metering.plans import AMOUNT_MAX, DEFAULT_PLAN, PlansFileError, load_plans

SHIPPED = [
    # plan, credits, requests/min, tokens/min, concurrent, searches, browser min, browsers, e-mails, call min
    ("free", 10_000, 5, 50_000, 2, 100, 10, 1, 10, 0),
    ("lite", 50_000, 10, 100_000, 4, 500, 60, 1, 50, 30),
    ("starter", 200_000, 20, 200_000, 8, 2_000, 300, 2, 50, 60),
    ("pro", 1_000_000, 60, 500_000, 16, 5_000, 600, 4, 50, 120),
    ("power", 1_000_000, 60, 500_000, 16, 10_000, 1_000, 4, 100, 120),
    ("business", 5_000_000, 120, 1_000_000, 32, 10_000, 2_000, 8, 200, 300),
]

WHOLE = """
[plans.pro]
credits_per_month = 1
requests_per_minute = 2
tokens_per_minute = 3
concurrent_requests = 4
searches_per_month = 5
browser_minutes_per_month = 6
concurrent_browsers = 7
emails_per_day = 8
call_minutes_per_month = 9
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "plans.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_plans_that_ship_are_those_of_the_table() -> None:
    plans = load_plans()
    assert [
        (
            plan.name,
            plan.credits_per_month,
            plan.requests_per_minute,
            plan.tokens_per_minute,
            plan.concurrent_requests,
            plan.searches_per_month,
            plan.browser_minutes_per_month,
            plan.concurrent_browsers,
            plan.emails_per_day,
            plan.call_minutes_per_month,
        )
        for plan in plans.values()
    ] == SHIPPED
    assert DEFAULT_PLAN in plans
    assert all(
        (plan.surfaces, plan.models, plan.budget) == (("*",), ("*",), "hard") for plan in plans.values()
    )


def test_a_file_of_before_calls_were_counted_says_nothing_of_them(tmp_path: Path) -> None:
    assert load_plans(written(tmp_path, WHOLE))["pro"].concurrent_calls == 2
    more = WHOLE + "concurrent_calls = 10\n"
    assert load_plans(written(tmp_path, more))["pro"].concurrent_calls == 10


def test_a_file_replaces_all_plans(tmp_path: Path) -> None:
    text = WHOLE + 'surfaces = ["anthropic"]\nmodels = ["claude-*"]\nbudget = "soft"\n'
    plans = load_plans(written(tmp_path, text))
    assert list(plans) == ["pro"]
    assert plans["pro"].allowance_nanousd == CREDIT_NANOUSD
    assert plans["pro"].budget == "soft"


def test_the_largest_plan_stays_far_inside_64_bits(tmp_path: Path) -> None:
    text = WHOLE.replace("credits_per_month = 1\n", f"credits_per_month = {AMOUNT_MAX}\n")
    assert load_plans(written(tmp_path, text))["pro"].allowance_nanousd < 2**62


GLOBS = [
    # patterns, name, is_allowed
    ('["*"]', "anything", True),
    ("[]", "anything", False),
    ('["claude-*"]', "claude-opus-9", True),
    ('["claude-*"]', "gpt-9", False),
    ('["claude-*"]', "Claude-opus-9", False),
    ('["claude-haiku-*", "gpt-?"]', "gpt-9", True),
    ('["claude-haiku-*", "gpt-?"]', "gpt-10", False),
    ('["claude-[hs]*"]', "claude-sonnet-9", True),
    ('["claude"]', "claude-opus-9", False),
    ('["gpt-9", "*"]', "anything", True),
]


@pytest.mark.parametrize(("patterns", "name", "is_allowed"), GLOBS)
def test_patterns_match_names_whole_and_by_case(
    tmp_path: Path, patterns: str, name: str, is_allowed: bool
) -> None:
    text = WHOLE + f"surfaces = {patterns}\nmodels = {patterns}\n"
    plan = load_plans(written(tmp_path, text))["pro"]
    assert plan.allows_model(name) is is_allowed
    assert plan.allows_surface(name) is is_allowed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected at least one \[plans\.NAME\] table"),
        ("plans = 3", r"expected at least one"),
        ("[plans]\npro = 3", r"plans\.pro: given 3, expected a table"),
        ("not toml", r"plans\.toml: "),
        (WHOLE + "credit_per_month = 3", r"plans\.pro: unknown key 'credit_per_month'"),
        (WHOLE.replace("credits_per_month = 1\n", ""), r"plans\.pro\.credits_per_month: missing"),
        (WHOLE.replace("= 1\n", "= 1.5\n"), r"plans\.pro\.credits_per_month: given 1\.5, expected a whole"),
        (WHOLE.replace("= 1\n", "= true\n"), r"plans\.pro\.credits_per_month: given True"),
        (WHOLE.replace("= 1\n", "= -1\n"), r"plans\.pro\.credits_per_month: given -1"),
        (
            WHOLE.replace("= 1\n", f"= {AMOUNT_MAX + 1}\n"),
            r"plans\.pro\.credits_per_month: given 1000000000001",
        ),
        (WHOLE + 'surfaces = "anthropic"', r"plans\.pro\.surfaces: given 'anthropic', expected a list"),
        (WHOLE + "models = [3]", r"plans\.pro\.models: given \[3\]"),
        (WHOLE + 'budget = "none"', r'plans\.pro\.budget: given \'none\', expected "hard" or "soft"'),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_key_and_what_was_expected(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(PlansFileError, match=message):
        load_plans(written(tmp_path, text))


def test_a_file_that_is_missing_or_no_text_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PlansFileError, match=r"absent\.toml"):
        load_plans(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PlansFileError, match=r"binary\.toml"):
        load_plans(tmp_path / "binary.toml")
