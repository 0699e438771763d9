"""Refuses bodies that would reach another user's objects, and bodies that can be read in two ways."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import orjson

from metering.errors import Reason, Refused
from proxy.json_walk import may_name, objects, values_at
from proxy.surface import ForbiddenField

ANYWHERE = "**"
PAIR = 2
RULE_SETS_MAX = 1_024
"""Bound of the cache of compiled declarations: one per operation."""


def check(forbidden: tuple[ForbiddenField, ...], fields: Mapping[str, Any], body: bytes) -> None:
    """Raise Refused(BAD_REQUEST) when `fields`, the decoded `body`, hold a forbidden field or hide one.

    Paths go through lists: `a.b` is `b` in `a`, or in each item of `a`. `**` stands for any depth, at the
    front or after the keys it is limited to (`messages.**.source.file_id`).
    """
    if body:
        _refuse_ambiguous(fields, body)
    if not forbidden:
        return
    rules = _rules_of(forbidden)
    for rule in rules.fixed:
        rule.refuse_in(fields)
    for key, below in rules.fixed_pairs:
        _refuse_below(fields.get(key), below)
    for scope in rules.scopes:
        scope.refuse_in(_at(fields, scope.keys), body)


def _refuse_ambiguous(fields: Mapping[str, Any], body: bytes) -> None:
    """A key that stands twice in one object is decided by whoever parses: we might check one value, the
    vendor obey the other. Parsing dropped the earlier one, so writing the result again tells:

    1. the same bytes: nothing was dropped (what compact encoders send; 20 us for 100 kB);
    2. the same number of quotes, none of them escaped as a number: whatever else differs (blanks, escapes,
       the writing of numbers), no key was dropped;
    3. otherwise it is parsed again, slowly, watching the keys.
    """
    try:
        again = orjson.dumps(fields)
    except TypeError:  # Deeper than orjson writes (254), though not deeper than it reads.
        raise Refused(Reason.BAD_REQUEST, "The body is nested too deeply.") from None
    if again == body:
        return
    if again.count(b'"') == body.count(b'"') and b"\\u0022" not in body:
        return
    json.loads(body, object_pairs_hook=_refuse_repeated)


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise Refused(Reason.BAD_REQUEST, f"{key[:64]}: stands twice in the same object of the body.")
        seen.add(key)


@dataclass(frozen=True, slots=True)
class _Rule:
    keys: tuple[str, ...]
    field: ForbiddenField

    def refuse_in(self, node: Mapping[str, Any]) -> None:
        for value in values_at(node, self.keys):
            if value is not None and self.field.value in (None, value):
                self.refuse()

    def refuse(self) -> NoReturn:
        what = ".".join(self.keys) + (f" {self.field.value!r}" if self.field.value is not None else "")
        raise Refused(Reason.BAD_REQUEST, f"{what}: {self.field.why}")


@dataclass(frozen=True, slots=True)
class _Scope:
    """Rules for any depth below `keys`."""

    keys: tuple[str, ...]
    by_value: Mapping[str, Mapping[str, _Rule]]
    """Rules about one value of one key: most objects have a `type`, so that these are looked up at once."""
    pairs: Mapping[str, Mapping[str, _Rule]]
    """Rules about one key below another, whatever its value: looked at without a call where the first is a text, as
    it mostly is."""
    by_first_key: Mapping[str, Sequence[_Rule]]
    """All other rules."""
    names: tuple[bytes, ...]
    """What the body must contain, quotes included, for any of these rules to be broken."""

    def refuse_in(self, root: Any, body: bytes) -> None:
        for found in objects(root, worth_it=lambda: may_name(body, self.names)):
            for key, values in self.by_value.items():
                value = found.get(key)
                if isinstance(value, str) and value in values:
                    values[value].refuse()
            for key, below in self.pairs.items():
                value = found.get(key)
                if type(value) is list or type(value) is dict:
                    _refuse_below(value, below)
            for key, rules in self.by_first_key.items():
                if key in found:
                    for rule in rules:
                        rule.refuse_in(found)


def _refuse_below(value: Any, below: Mapping[str, _Rule]) -> None:
    for item in value if type(value) is list else (value,):
        if type(item) is dict:
            for key, rule in below.items():
                if item.get(key) is not None:
                    rule.refuse()


@dataclass(frozen=True, slots=True)
class _Rules:
    fixed: tuple[_Rule, ...]
    fixed_pairs: tuple[tuple[str, Mapping[str, _Rule]], ...]
    scopes: tuple[_Scope, ...]


@lru_cache(maxsize=RULE_SETS_MAX)
def _rules_of(forbidden: tuple[ForbiddenField, ...]) -> _Rules:
    fixed: list[_Rule] = []
    pairs: dict[str, dict[str, _Rule]] = {}
    scoped: dict[tuple[str, ...], list[_Rule]] = {}
    for field in forbidden:
        keys = tuple(field.path.split("."))
        if ANYWHERE in keys:
            depth = keys.index(ANYWHERE)
            scoped.setdefault(keys[:depth], []).append(_Rule(keys[depth + 1 :], field))
        elif len(keys) == PAIR and field.value is None:
            pairs.setdefault(keys[0], {})[keys[1]] = _Rule(keys, field)
        else:
            fixed.append(_Rule(keys, field))
    return _Rules(
        tuple(fixed), tuple(pairs.items()), tuple(_scope_of(keys, rules) for keys, rules in scoped.items())
    )


def _scope_of(keys: tuple[str, ...], rules: Sequence[_Rule]) -> _Scope:
    by_value: dict[str, dict[str, _Rule]] = {}
    pairs: dict[str, dict[str, _Rule]] = {}
    by_first_key: dict[str, list[_Rule]] = {}
    for rule in rules:
        if len(rule.keys) == 1 and rule.field.value is not None:
            by_value.setdefault(rule.keys[0], {})[rule.field.value] = rule
        elif len(rule.keys) == PAIR and rule.field.value is None:
            pairs.setdefault(rule.keys[0], {})[rule.keys[1]] = rule
        else:
            by_first_key.setdefault(rule.keys[0], []).append(rule)
    names = tuple({f'"{rule.field.value or rule.keys[-1]}"'.encode() for rule in rules})
    return _Scope(keys, by_value, pairs, by_first_key, names)


def _at(node: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
