"""`prices`, `plan` and `settings`: what is configured."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from automna_proxy.commands.session import (
    CLOCK,
    CommandError,
    Json,
    Status,
    current_plans,
    current_settings,
)
from automna_proxy.price_check import (
    OVERRIDE,
    STALE_DAYS,
    Finding,
    check_litellm,
    check_sources,
    check_table,
)
from automna_proxy.settings import SettingRow
from automna_proxy.settings import table as settings_table
from automna_proxy.tables import Table
from automna_proxy.terminal import say, show, show_json
from metering.prices import ModelRates, PriceTable, Tier, table_content
from routes import SURFACES

plan_app = typer.Typer(no_args_is_help=True, help="Plans: what a user may.")
prices_app = typer.Typer(no_args_is_help=True, help="Prices: what a unit costs.")

_PICOUSD_DIGITS = 12
_TOKENS = "_tokens"
_TOKENS_SHOWN_DIGITS = 6
"""Token prices are shown per million."""


@plan_app.command("list")
def list_plans(as_json: Json = False) -> None:
    """List all plans with their limits."""
    plans = [asdict(plan) for plan in current_plans().values()]
    if as_json:
        show_json({"plans": plans})
        return
    limits = [name for name in plans[0] if name != "name"]
    rows = [(limit, *(_listed(plan[limit]) for plan in plans)) for limit in limits]
    show(Table("Plans", ("limit", *(plan["name"] for plan in plans)), rows))


@prices_app.command("show")
def show_prices(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="As a request would name it.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Show what a model costs: by date, length of prompt, and what a request may ask for beside.

    Example: automna-proxy prices show claude-haiku-4-5
    """
    prices = PriceTable.load(current_settings().prices_path)
    providers = sorted({surface.provider for surface in SURFACES})
    found = [(provider, rates) for provider in providers if (rates := prices.rates(provider, model))]
    if not found:
        raise CommandError(Status.NOT_FOUND, _no_such_model(prices, providers, model))
    if as_json:
        show_json(
            {
                "version": prices.version,
                "models": [{"provider": provider, **_rates_as_json(rates)} for provider, rates in found],
            }
        )
        return
    for provider, rates in found:
        show(_rates_table(provider, rates, prices.version))


@prices_app.command("check")
def check_prices(
    prices_path: Annotated[
        Path | None,
        typer.Option(
            "--prices", metavar="FILE", help="The table to check; else the one in use.", show_default=False
        ),
    ] = None,
    stale_days: Annotated[
        int, typer.Option("--stale-days", min=0, metavar="N", help="How old as_of may be.")
    ] = STALE_DAYS,
    override: Annotated[
        Path,
        typer.Option("--override", metavar="FILE", help="What is added to genai-prices.", show_default=False),
    ] = OVERRIDE,
    litellm: Annotated[
        Path | None,
        typer.Option(
            "--litellm",
            metavar="FILE",
            help="Compare with prices in LiteLLM's format, too.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look for what is missing in the price table, out of date, or different from its sources.

    Exit status 1 when something is wrong: a model that writes without a maximum output, a tier that its vendor
    offers without a price, a table not checked for too long, a price that its sources do not give (compared
    where genai-prices is installed, in a development checkout). Prices that start later are only named.

    Example: automna-proxy prices check --stale-days 14 --litellm model_prices.json
    """
    path = prices_path or current_settings().prices_path
    table = PriceTable.load(path)
    now_ms = CLOCK.now_ms()
    findings = check_table(table, now_ms=now_ms, stale_days=stale_days)
    findings += check_sources(table_content(path), override)
    if litellm is not None:
        findings += check_litellm(table, litellm, now_ms=now_ms)
    wrong = [finding for finding in findings if finding.is_wrong]
    if as_json:
        show_json(
            {
                "version": table.version,
                "as_of": table.as_of,
                "is_clean": not wrong,
                "findings": [asdict(finding) for finding in findings],
            }
        )
    else:
        _show_findings(findings, table.version)
    if wrong:
        raise typer.Exit(Status.NO)


def _show_findings(findings: Sequence[Finding], version: str) -> None:
    wrong = [finding for finding in findings if finding.is_wrong]
    say(f"{f'NOT CLEAN: {len(wrong)} findings' if wrong else 'clean'}: price table {version}")
    if wrong:
        show(_findings_table("Wrong", wrong))
    if worth_knowing := [finding for finding in findings if not finding.is_wrong]:
        show(_findings_table("Worth knowing", worth_knowing))


def _findings_table(title: str, findings: Sequence[Finding]) -> Table:
    rows = [(each.check, each.provider, each.model, each.detail) for each in findings]
    return Table(title, ("check", "provider", "model", "detail"), rows)


def settings(
    as_json: Json = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The table for README.md.")] = False,
) -> None:
    """List every setting: an environment variable with default, unit and meaning. No values are shown."""
    rows = settings_table()
    if as_markdown:
        say("\n".join(settings_markdown(rows)))
    elif as_json:
        show_json({"settings": [{**asdict(row), "is_set": _is_set(row)} for row in rows]})
    else:
        cells = [
            (row.variable, row.default, row.unit, "yes" if _is_set(row) else None, row.meaning)
            for row in rows
        ]
        show(
            Table(
                "Settings (environment variables)", ("variable", "default", "unit", "set", "meaning"), cells
            )
        )


def settings_markdown(rows: Sequence[SettingRow]) -> list[str]:
    """The lines of the table in README.md."""
    lines = ["| variable | default | unit | meaning |", "|---|---|---|---|"]
    for row in rows:
        default = f"`{row.default}`" if row.default else ""
        cells = (f"`{row.variable}`", default, row.unit, row.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _is_set(row: SettingRow) -> bool:
    return bool(os.environ.get(row.variable))


def _listed(value: Any) -> str | int:
    if isinstance(value, int):
        return value
    return ", ".join(value) if isinstance(value, list | tuple) else str(value)


# --- prices -----------------------------------------------------------------------------------------------


def _no_such_model(prices: PriceTable, providers: Sequence[str], model: str) -> str:
    known = [info.id for provider in providers for info in prices.models(provider)]
    near = get_close_matches(model, known)
    return f"no price for model {model!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _rates_table(provider: str, rates: ModelRates, version: str) -> Table:
    units = list(dict.fromkeys(unit for _, tier in _tiers(rates) for unit in tier.units))
    rows = [
        (when, *(_price(unit, tier.units[unit]) if unit in tier.units else None for unit in units))
        for when, tier in _tiers(rates)
    ]
    rows += [
        (_when(f"{rate.modifier}={rate.value}", rate.starts_on), *_factors(units, rate.times))
        for rate in rates.modifiers
        if rate.times is not None
    ]
    info = rates.info
    title = (
        f"{info.id} ({provider}): context {info.context_tokens:,}, output up to {info.max_output_tokens:,} tokens; "
        f"USD per million tokens, USD each for the rest; price table {version}"
    )
    return Table(title, ("when", *(unit.removesuffix(_TOKENS) for unit in units)), rows)


def _tiers(rates: ModelRates) -> Iterator[tuple[str, Tier]]:
    """Every price list of a model, with the circumstances in which it holds."""
    for period in rates.periods:
        for tier in period.tiers:
            yield _when(_length(tier), period.starts_on), tier
    for rate in rates.modifiers:
        for tier in rate.tiers:
            yield _when(f"{rate.modifier}={rate.value}{_length(tier)}", rate.starts_on), tier


def _length(tier: Tier) -> str:
    return f" prompt > {tier.above_prompt_tokens:,}" if tier.above_prompt_tokens else ""


def _when(circumstances: str, starts_on: object) -> str:
    return f"{circumstances} from {starts_on}".strip() if starts_on else circumstances.strip() or "always"


def _factors(units: Sequence[str], times: tuple[int, int]) -> list[str | None]:
    """A modifier multiplies token prices only."""
    numerator, denominator = times
    factor = f"x{numerator}/{denominator}"
    return [factor if unit.endswith(_TOKENS) else None for unit in units]


def _price(unit: str, picousd: int) -> str:
    """Exact decimal USD: per million for tokens, each for everything else."""
    digits = _TOKENS_SHOWN_DIGITS if unit.endswith(_TOKENS) else _PICOUSD_DIGITS
    whole, rest = divmod(picousd, 10**digits)
    fraction = f"{rest:0{digits}d}".rstrip("0")
    return f"{whole}.{fraction.ljust(2, '0')}"


def _rates_as_json(rates: ModelRates) -> dict[str, Any]:
    """Unit prices in pico-USD, as the price table has them."""
    return {
        "model": asdict(rates.info),
        "periods": [
            {"from": period.starts_on, "tiers": [_tier_as_json(tier) for tier in period.tiers]}
            for period in rates.periods
        ],
        "modifiers": [
            {
                "modifier": rate.modifier,
                "value": rate.value,
                "from": rate.starts_on,
                "times": rate.times,
                "tiers": [_tier_as_json(tier) for tier in rate.tiers],
            }
            for rate in rates.modifiers
        ],
    }


def _tier_as_json(tier: Tier) -> dict[str, Any]:
    return {"above_prompt_tokens": tier.above_prompt_tokens, "unit_prices_picousd": dict(tier.units)}
