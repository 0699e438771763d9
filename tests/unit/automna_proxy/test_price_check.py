"""`prices check`: every kind of finding, on tables made for it, and the shipped table clean."""

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from automna_proxy import price_check
from automna_proxy.cli import app
from automna_proxy.commands import catalog
from automna_proxy.price_check import (
    OVERRIDE,
    Finding,
    check_litellm,
    check_sources,
    check_table,
)
from metering.clock import ManualClock
from metering.prices import PriceFileError, PriceTable, table_content
from metering.usage import CACHE_READ, INPUT, OUTPUT

NOW_MS = int(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()) * 1000
DAY_MS = 86_400_000
SHIPPED = table_content(None)


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The shipped table with a change, as a file."""
    content = copy.deepcopy(SHIPPED)
    change(content)
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(content))
    return path


def model(content: dict[str, Any], provider: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        each for each in content["providers"][provider]["models"] if each["id"] == name
    )
    return found


def wrong(findings: list[Finding]) -> list[tuple[str, str, str, str]]:
    return [(each.check, each.provider, each.model, each.detail) for each in findings if each.is_wrong]


def run(*args: str, **env: str) -> Any:
    return CliRunner().invoke(app, ["prices", "check", *args], env=env, prog_name="automna-proxy")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    clock = ManualClock(NOW_MS)
    monkeypatch.setattr(catalog, "CLOCK", clock)
    return clock


def test_the_shipped_table_is_clean_and_came_from_its_sources() -> None:
    findings = check_table(PriceTable.load(), now_ms=NOW_MS) + check_sources(SHIPPED, OVERRIDE)
    assert wrong(findings) == []
    assert not [each for each in findings if each.check == "source"], (
        "it was rebuilt, and nothing is said of it"
    )


# --- each kind of finding -------------------------------------------------------------------------------


def no_limit(content: dict[str, Any]) -> None:
    del model(content, "openai", "gpt-6.1-sol")["max_output_tokens"]


def no_flex(content: dict[str, Any]) -> None:
    found = model(content, "gemini", "gemini-2.5-pro")
    found["modifiers"] = [each for each in found["modifiers"] if each["value"] != "flex"]


def odd_modifier(content: dict[str, Any]) -> None:
    model(content, "openai", "o1")["modifiers"][0]["modifier"] = "sevrice_tier"


def priced_standard(content: dict[str, Any]) -> None:
    content["providers"]["anthropic"]["standard_values"]["speed"].append("fast")
    content["providers"]["anthropic"]["models"] = [model(content, "anthropic", "claude-opus-5")]


def no_date(content: dict[str, Any]) -> None:
    del content["as_of"]


def no_ultrafast(content: dict[str, Any]) -> None:
    gone = {"gpt-6-astra", "gpt-6.1-sol"}
    models = content["providers"]["openai"]["models"]
    content["providers"]["openai"]["models"] = [each for each in models if each["id"] not in gone]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (no_limit, ("max_output", "openai", "gpt-6.1-sol", "none named: 128,000 is assumed")),
        (no_flex, ("tier", "gemini", "gemini-2.5-pro", "service_tier=flex is offered, but has no price")),
        (odd_modifier, ("tier", "openai", "o1", "sevrice_tier is reported by no usage reader")),
        (priced_standard, ("tier", "anthropic", "claude-opus-5", "speed=fast is priced, and standard")),
        (no_ultrafast, ("tier", "openai", "", "service_tier=ultrafast is offered, but used by no rule")),
        (no_date, ("date", "", "", "as_of: the table does not say when it was last checked")),
    ],
)
def test_a_gap_is_found_and_fails_the_command(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], expected: tuple[str, str, str, str]
) -> None:
    path = changed(tmp_path, change)
    assert wrong(check_table(PriceTable.load(path), now_ms=NOW_MS)) == [expected]
    result = run("--prices", str(path))
    assert result.exit_code == 1
    assert "NOT CLEAN" in result.stdout
    assert expected[3] in result.stdout


@pytest.mark.parametrize(
    ("days", "stale_days", "expected"),
    [
        (30, 30, []),
        (31, 30, ["as_of is 2026-11-20, 31 days ago: more than 30"]),
        (31, 31, []),
        (1, 0, ["as_of is 2026-11-20, 1 days ago: more than 0"]),
        (-1, 30, ["as_of is 2026-11-20, in the future"]),
    ],
)
def test_a_table_that_was_not_checked_for_long_is_stale(
    days: int, stale_days: int, expected: list[str]
) -> None:
    findings = check_table(PriceTable.load(), now_ms=NOW_MS + days * DAY_MS, stale_days=stale_days)
    assert [detail for _, _, _, detail in wrong(findings)] == expected


def test_a_price_that_starts_later_is_only_information() -> None:
    findings = [each for each in check_table(PriceTable.load(), now_ms=NOW_MS) if each.check == "date"]
    assert (
        Finding("date", "gemini", "gemini-4-argon", "a price starts on 2026-12-01", is_wrong=False)
        in findings
    )
    later = check_table(PriceTable.load(), now_ms=NOW_MS + 12 * DAY_MS)
    assert not [each for each in later if each.model == "gemini-4-argon"]


# --- the sources ----------------------------------------------------------------------------------------


def dearer(content: dict[str, Any]) -> None:
    model(content, "openai", "gpt-5")["prices"][0]["units"][INPUT] += 1


def another_model(content: dict[str, Any]) -> None:
    model(content, "openai", "gpt-5")["id"] = "gpt-5-mine"


def another_suffix(content: dict[str, Any]) -> None:
    content["providers"]["gemini"]["version_suffix"] = "-x"


def another_version(content: dict[str, Any]) -> None:
    content["version"] = "mine"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (dearer, [("openai", "gpt-5", "differs from the sources: prices")]),
        (
            another_model,
            [
                ("openai", "gpt-5", "in the sources, not in the table"),
                ("openai", "gpt-5-mine", "not in the sources"),
            ],
        ),
        (another_suffix, [("gemini", "", "differs from the sources: version_suffix")]),
        (another_version, [("", "", "differs from the sources: version")]),
    ],
)
def test_a_difference_from_the_sources_is_found(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], expected: list[tuple[str, str, str]]
) -> None:
    path = changed(tmp_path, change)
    findings = check_sources(table_content(path), OVERRIDE)
    assert wrong(findings) == [("source", *each) for each in expected]
    assert run("--prices", str(path)).exit_code == 1


def test_without_the_package_it_says_so_and_checks_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price_check, "SOURCE_PACKAGE", "genai_prices_that_is_not_there")
    result = run("--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert said["is_clean"]
    (finding,) = (each for each in said["findings"] if each["check"] == "source")
    assert finding["detail"].startswith("genai-prices is not installed")
    assert not finding["is_wrong"]
    assert any(each["check"] == "max_output" for each in said["findings"])


def test_without_an_override_file_it_says_so(tmp_path: Path) -> None:
    (finding,) = check_sources(SHIPPED, tmp_path / "none.toml")
    assert (finding.is_wrong, "was not rebuilt" in finding.detail) == (False, True)


def test_an_override_file_that_cannot_be_used_is_status_5(tmp_path: Path) -> None:
    override = tmp_path / "override.toml"
    override.write_text(OVERRIDE.read_text().replace('"claude-haiku-5-5"', '"claude-gone"'))
    result = run("--override", str(override))
    assert result.exit_code == 5
    assert "'claude-gone' means no model" in result.stderr


# --- another price file -----------------------------------------------------------------------------------

LITELLM = """{
    "gpt-5": {"input_cost_per_token": 1.25e-06, "output_cost_per_token": 1.0e-05,
              "cache_read_input_token_cost": 1.25e-07},
    "claude-haiku-4-5": {"input_cost_per_token": 1e-06, "output_cost_per_token": %s},
    "gemini/gemini-3.6-flash": {"input_cost_per_token": 7.5e-07, "output_cost_per_token": 3.75e-06},
    "gpt-5-pro": {"input_cost_per_token": 1.5e-05, "cache_read_input_token_cost": 1e-06},
    "gemini-2.5-pro": {"input_cost_per_token": 1}, "sample_spec": {"input_cost_per_token": "text"}, "o1": 5
}"""


def test_base_rates_are_compared_exactly_with_another_price_file(tmp_path: Path) -> None:
    path = tmp_path / "litellm.json"
    path.write_text(LITELLM % "5.000000000001e-06")
    findings = check_litellm(PriceTable.load(), path, now_ms=NOW_MS)
    detail = f"{OUTPUT}: USD 5 per million here, 5.000000000001 there"
    assert wrong(findings) == [("litellm", "anthropic", "claude-haiku-4-5", detail)]
    known = [(each.model, each.detail) for each in findings if not each.is_wrong]
    assert known == [
        ("gpt-5-pro", f"{CACHE_READ}: no price here, cache_read_input_token_cost there"),
        ("", "litellm.json: 4 models compared"),
    ]
    assert run("--litellm", str(path)).exit_code == 1
    path.write_text(LITELLM % "5e-06")
    assert run("--litellm", str(path)).exit_code == 0


def test_it_is_compared_at_the_price_of_the_day(tmp_path: Path) -> None:
    path = tmp_path / "litellm.json"
    path.write_text('{"gemini/gemini-3.6-flash": {"input_cost_per_token": 1.5e-06}}')
    new_year_ms = int(datetime(2027, 1, 1, tzinfo=UTC).timestamp()) * 1000
    assert wrong(check_litellm(PriceTable.load(), path, now_ms=new_year_ms)) == []
    assert len(wrong(check_litellm(PriceTable.load(), path, now_ms=new_year_ms - 1))) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "No such file"),
        ("{", "LiteLLM's format"),
        ("[]", "given 'list'"),
        ("x" * 11, "at most 10 bytes"),
    ],
)
def test_a_price_file_that_cannot_be_read_is_status_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, expected: str
) -> None:
    monkeypatch.setattr(price_check, "LITELLM_BYTES_MAX", 10)
    path = tmp_path / "litellm.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PriceFileError, match=expected):
        check_litellm(PriceTable.load(), path, now_ms=NOW_MS)
    assert run("--litellm", str(path)).exit_code == 5


# --- the command ------------------------------------------------------------------------------------------


def test_a_clean_table_ends_with_status_0_and_says_what_is_worth_knowing() -> None:
    result = run()
    assert result.exit_code == 0
    assert result.stdout.startswith("clean: price table ")
    assert "max_output\topenai\twhisper-1\tspeech, at /v1/audio alone" in result.stdout


def test_days_are_counted_by_the_clock(clock: ManualClock) -> None:
    clock.ms += 15 * DAY_MS
    assert run("--stale-days", "14").exit_code == 1
    assert run("--stale-days", "15").exit_code == 0


def test_the_table_in_use_is_the_one_checked(tmp_path: Path) -> None:
    path = changed(tmp_path, no_limit)
    assert run(PRICES_FILE=str(path)).exit_code == 1
