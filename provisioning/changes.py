"""How a running machine is changed: what of its configuration is not as wanted, and the same configuration with only that changed.

Ours is what the wanted configuration names. Its volume is never changed: Fly wants another machine for that.

A name that the template does not have any more stays on machines made before: nothing there tells that it was ours.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_NAMED = ("env", "metadata")
"""Texts by names, of which some may be others'."""
_KEPT = "mounts"


def differences(actual: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The dotted names of what is ours and not as wanted, in order; never a value, which may be a secret.

    `actual` is a configuration as Fly answers it: with more in it, without what is false, zero or empty, and with autostop in its
    older form.
    """
    found: list[str] = []
    for key, value in wanted.items():
        if key in _NAMED:
            has = actual.get(key) or {}
            found += [f"{key}.{name}" for name, text in value.items() if has.get(name) != text]
        elif key == "files":
            files = _by_path(actual)
            found += [
                f"files.{one['guest_path']}"
                for one in value
                if _differing("", files.get(one["guest_path"]), one)
            ]
        elif key != _KEPT:
            found += _differing(key, actual.get(key), value)
    return sorted(set(found))


def merged(actual: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The actual configuration with what is ours as wanted, and all else as it is."""
    config = copy.deepcopy(dict(actual))
    for key, value in wanted.items():
        has = config.get(key)
        if key in _NAMED:
            config[key] = {**(has or {}), **value}
        elif key == "files":
            ours = {one["guest_path"] for one in value}
            kept = [one for one in has or [] if one.get("guest_path") not in ours]
            config[key] = [*kept, *copy.deepcopy(value)]
        elif key != _KEPT:
            config[key] = _overlaid(has, value)
    return config


def _by_path(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {one["guest_path"]: one for one in config.get("files") or [] if "guest_path" in one}


def _differing(at: str, actual: Any, wanted: Any) -> list[str]:
    """Where `actual` lacks something of `wanted`. What is in a list goes by its list's name."""
    if isinstance(wanted, Mapping) and isinstance(actual, Mapping):
        return [
            each
            for key, value in wanted.items()
            for each in _differing(f"{at}.{key}", *_in_words(key, actual.get(key), value))
        ]
    if _is_list(wanted) and _is_list(actual) and len(wanted) == len(actual):
        pairs = zip(actual, wanted, strict=True)
        return [each for has, value in pairs for each in _differing(at, has, value)]
    return [] if actual == wanted or not (actual or wanted) else [at]


def _in_words(key: str, *values: Any) -> Iterator[Any]:
    """Autostop in its older form is a boolean, and off where nothing is said of it."""
    for value in values:
        is_older = key == "autostop" and (value is None or isinstance(value, bool))
        yield ("stop" if value else "off") if is_older else value


def _overlaid(actual: Any, wanted: Any) -> Any:
    if isinstance(wanted, Mapping) and isinstance(actual, Mapping):
        return {**actual, **{key: _overlaid(actual.get(key), value) for key, value in wanted.items()}}
    if _is_list(wanted) and _is_list(actual) and len(wanted) == len(actual):
        return [_overlaid(has, value) for has, value in zip(actual, wanted, strict=True)]
    return copy.deepcopy(wanted)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
