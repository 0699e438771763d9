"""Refuses bodies that would reach another user's objects, and bodies that can be read in two ways."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import orjson

from metering.errors import Reason, Refused
from metering.values import immutable
from proxy.json_walk import Walk, values_at
from proxy.surface import ForbiddenField, Inbound

ANYWHERE = "**"
PAIR = 2
RULE_SETS_MAX = 1_024
"""Bound of the cache of compiled declarations: one per operation."""

_compiled: dict[int, tuple[tuple[ForbiddenField, ...], "_Rules"]] = {}
"""By the identity of a declaration, as hashing one takes as long as checking a small body; with the declaration,
so that nothing else can come to have its identity."""


def check(forbidden: tuple[ForbiddenField, ...], inbound: Inbound) -> None:
    """Raise Refused(BAD_REQUEST) when a request's body holds a forbidden field or hides one.

    Paths go through lists: `a.b` is `b` in `a`, or in each item of `a`. `**` stands for any depth, at the
    front or after the keys it is limited to (`messages.**.source.file_id`).
    """
    fields = inbound.fields
    if inbound.body:
        _refuse_ambiguous(fields, inbound.body)
    if not forbidden:
        return
    rules = _rules_of(forbidden)
    if not rules.fixed_keys.isdisjoint(fields):
        _refuse_fixed(rules, inbound)
    for scope in rules.scopes:
        scope.refuse_in(inbound.at(scope.keys))


def _refuse_fixed(rules: "_Rules", inbound: Inbound) -> None:
    fields = inbound.fields
    for rule in rules.fixed:
        rule.refuse_in(fields)
    for key, below, is_walked in rules.fixed_pairs:
        if not is_walked or any(map(inbound.below(key).may_hold, below)):
            _refuse_below(fields.get(key), below)


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


@immutable
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


@immutable
class _Scope:
    """Rules for any depth below `keys`."""

    keys: tuple[str, ...]
    by_value: Mapping[str, Mapping[str, _Rule]]
    """Rules about one value of one key: most objects have a `type`, so that these are looked up together."""
    others: Sequence[_Rule]
    last_keys: frozenset[str]
    """Of the other rules: none of them can be broken without one of these."""
    value_names: tuple[bytes, ...]
    other_names: tuple[bytes, ...]
    """What the body must contain, quotes included, for any of the rules of either kind to be broken."""

    def refuse_in(self, walk: Walk) -> None:
        if self.by_value and walk.objects(self.by_value.keys(), self.value_names):
            for key, rules in self.by_value.items():
                for value in walk.texts_at(key) & rules.keys():
                    rules[value].refuse()
        if self.others and (found := walk.objects(self.last_keys, self.other_names)):
            for rule in self.others:
                first, last = rule.keys[0], rule.keys[-1]
                if walk.has_met(first) and walk.has_met(last):
                    for one in found:
                        if first in one:
                            rule.refuse_in(one)


def _refuse_below(value: Any, below: Mapping[str, _Rule]) -> None:
    for item in value if type(value) is list else (value,):
        if type(item) is dict:
            for key, rule in below.items():
                if item.get(key) is not None:
                    rule.refuse()


@immutable
class _Rules:
    fixed_keys: frozenset[str]
    """Those at the top of a body without which none of the next two can be broken."""
    fixed: tuple[_Rule, ...]
    fixed_pairs: tuple[tuple[str, Mapping[str, _Rule], bool], ...]
    """Rules about one key below another, and whether all objects there are found anyway."""
    scopes: tuple[_Scope, ...]


def _rules_of(forbidden: tuple[ForbiddenField, ...]) -> _Rules:
    known = _compiled.get(id(forbidden))
    if known is None:
        if len(_compiled) >= RULE_SETS_MAX:
            _compiled.clear()
        known = _compiled[id(forbidden)] = forbidden, _rules_from(forbidden)
    return known[1]


def _rules_from(forbidden: tuple[ForbiddenField, ...]) -> _Rules:
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
        frozenset([*pairs, *(rule.keys[0] for rule in fixed)]),
        tuple(fixed),
        tuple((key, below, (key,) in scoped) for key, below in pairs.items()),
        tuple(_scope_of(keys, rules) for keys, rules in scoped.items()),
    )


def _scope_of(keys: tuple[str, ...], rules: Sequence[_Rule]) -> _Scope:
    by_value: dict[str, dict[str, _Rule]] = {}
    others: list[_Rule] = []
    for rule in rules:
        if len(rule.keys) == 1 and rule.field.value is not None:
            by_value.setdefault(rule.keys[0], {})[rule.field.value] = rule
        else:
            others.append(rule)
    values = {value for by_key in by_value.values() for value in by_key}
    return _Scope(
        keys,
        by_value,
        others,
        frozenset(rule.keys[-1] for rule in others),
        _quoted(values),
        _quoted({rule.field.value or rule.keys[-1] for rule in others}),
    )


def _quoted(names: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(f'"{name}"'.encode() for name in sorted(names))
