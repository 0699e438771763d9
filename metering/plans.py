"""What a user bought: plans from a TOML file, checked key by key when it is read."""

import tomllib
from collections.abc import Mapping
from dataclasses import field, fields
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

from metering.money import CREDIT_NANOUSD
from metering.values import immutable

DEFAULT_PLAN = "free"
HARD, SOFT = "hard", "soft"
"""Budgets: no more than the allowance; or finish what runs, then refuse."""
AMOUNT_MAX = 10**12
"""No limit of a plan exceeds this: it keeps every sum far inside 64 bits."""


class PlansFileError(ValueError):
    """PLANS_FILE cannot be used; the message names plan, key, what was given and what is expected."""


@immutable
class Plan:
    """Limits of one plan. Credits are 100 micro-USD; periods are UTC; a count of 0 means none."""

    name: str
    credits_per_month: int
    requests_per_minute: int
    tokens_per_minute: int
    concurrent_requests: int
    searches_per_month: int
    browser_minutes_per_month: int
    concurrent_browsers: int
    emails_per_day: int
    call_minutes_per_month: int
    concurrent_calls: int = 2
    surfaces: tuple[str, ...] = ("*",)
    models: tuple[str, ...] = ("*",)
    budget: str = HARD

    allowance_nanousd: int = field(init=False, compare=False)
    """The month's money."""
    includes_all: bool = field(init=False, compare=False)
    """Every surface and every model."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "allowance_nanousd", self.credits_per_month * CREDIT_NANOUSD)
        object.__setattr__(self, "includes_all", self.surfaces == ("*",) and self.models == ("*",))

    def allows_surface(self, surface: str) -> bool:
        return self.surfaces == ("*",) or any(fnmatchcase(surface, pattern) for pattern in self.surfaces)

    def allows_model(self, model: str) -> bool:
        return self.models == ("*",) or any(fnmatchcase(model, pattern) for pattern in self.models)


Plans = Mapping[str, Plan]


def load_plans(path: Path | None = None) -> Plans:
    """The plans of `path`, or those that ship with the package. Raises PlansFileError."""
    try:
        text = (
            path.read_text(encoding="utf-8")
            if path
            else resources.files("metering").joinpath("plans.toml").read_text(encoding="utf-8")
        )
        document = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PlansFileError(f"{path or 'plans.toml'}: {error}") from error
    tables = document.get("plans")
    if not isinstance(tables, dict) or not tables:
        raise PlansFileError(f"{path or 'plans.toml'}: expected at least one [plans.NAME] table")
    return {name: _plan(name, table) for name, table in tables.items()}


_PATTERNS = ("surfaces", "models")
_COUNTS = tuple(
    one.name for one in fields(Plan) if one.init and one.name not in {"name", "budget", *_PATTERNS}
)
_MAY_LACK = frozenset({"concurrent_calls"})
"""Counts that files of before they were known do not have."""


def _plan(name: str, table: Any) -> Plan:
    if not isinstance(table, dict):
        raise PlansFileError(f"plans.{name}: given {table!r}, expected a table")
    if unknown := set(table) - {*_COUNTS, *_PATTERNS, "budget"}:
        raise PlansFileError(f"plans.{name}: unknown key {min(unknown)!r}")
    values: dict[str, Any] = {
        key: _count(name, key, table) for key in _COUNTS if key in table or key not in _MAY_LACK
    }
    values |= {key: _strings(name, key, table[key]) for key in _PATTERNS if key in table}
    budget = table.get("budget", HARD)
    if budget not in {HARD, SOFT}:
        raise PlansFileError(f'plans.{name}.budget: given {budget!r}, expected "hard" or "soft"')
    return Plan(name=name, budget=budget, **values)


def _count(plan: str, key: str, table: Mapping[str, Any]) -> int:
    if key not in table:
        raise PlansFileError(f"plans.{plan}.{key}: missing, expected a whole number")
    value = table[key]
    if type(value) is not int or not 0 <= value <= AMOUNT_MAX:
        raise PlansFileError(
            f"plans.{plan}.{key}: given {value!r}, expected a whole number from 0 to {AMOUNT_MAX}"
        )
    return value


def _strings(plan: str, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise PlansFileError(
            f'plans.{plan}.{key}: given {value!r}, expected a list of patterns such as ["*"]'
        )
    return tuple(value)
