"""What an agent's machine is: a TOML file that is checked key by key when it is read, and what Fly is given for one user from it."""

import base64
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import orjson

from metering.values import immutable
from provisioning.placeholders import PLACEHOLDERS, MachineFile, filled, named_variables, placeholders

PACKAGED = "machines.toml"
REQUIRED = frozenset({"gateway_token", "proxy", "ticket_key"})
"""Without one of these it is no agent's machine."""
FILE_BYTES_MAX = 64 * 1024
"""Of one file, which is a part of every machine's configuration and of each look at it."""
MODE = 0o644
"""Of a file that says none: written by root, read by whoever the image runs."""

_IMAGE = re.compile(r"[a-z0-9][a-z0-9._:/-]*@sha256:[0-9a-f]{64}")
_ABSOLUTE = re.compile(r"(/(?!\.\.?(?:/|$))[^/\x00]+)+")
_PROBE = re.compile(r"/[^\s?#]*")
_REGION = re.compile(r"[a-z]{3}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class TemplateError(ValueError):
    """What a machine is cannot be told; the message names file, key, what was given and what is expected."""


def check_image(image: str) -> None:
    """Raises TemplateError: a tag may be another image tomorrow, and no two machines would be the same."""
    if _IMAGE.fullmatch(image) is None:
        raise TemplateError(
            f"MACHINE_IMAGE: given {image!r}, expected an image by its digest as in "
            "registry.example.com/agent@sha256:<64 hexadecimal digits>"
        )


@immutable
class MachineTemplate:
    """The machine of one plan. The fields are the keys of the file; `regions`: the usual one first."""

    regions: tuple[str, ...]
    cpu_kind: str
    cpus: int
    memory_mb: int
    volume_gb: int
    volume_path: str
    internal_port: int
    ports: tuple[Mapping[str, Any], ...]
    autostop: str
    min_machines_running: int
    restart: str
    restarts_max: int
    stop_signal: str
    stop_timeout_s: int
    probe_path: str
    env: Mapping[str, str]
    files: tuple[MachineFile, ...]

    @property
    def guest(self) -> dict[str, Any]:
        """Its size."""
        return {"cpu_kind": self.cpu_kind, "cpus": self.cpus, "memory_mb": self.memory_mb}

    def config(
        self, values: Mapping[str, str], *, image: str, volume_id: str, metadata: Mapping[str, str]
    ) -> dict[str, Any]:
        """The whole configuration of a machine, as Fly wants it. `values`: of the placeholders; what has none is left out.

        Raises TemplateError.
        """
        check_image(image)
        known = {name: value for name, value in values.items() if value}
        if unknown := known.keys() - PLACEHOLDERS:
            raise TemplateError(f"{{{min(unknown)}}}: no placeholder, expected {_listed(PLACEHOLDERS)}")
        if lacking := REQUIRED - known.keys():
            raise TemplateError(f"{{{min(lacking)}}}: no value given, and every machine needs one")
        env = {
            name: filled(text, known) for name, text in self.env.items() if known.keys() >= placeholders(text)
        }
        left_out = {name for name in self.env if not env.get(name)}
        return {
            "image": image,
            "guest": self.guest,
            "env": env,
            "services": [self._service()],
            "mounts": [{"volume": volume_id, "path": self.volume_path}],
            "files": [_written(one, known, left_out) for one in self.files],
            "restart": self._restart(),
            "stop_config": {"signal": self.stop_signal, "timeout": _duration(self.stop_timeout_s)},
            "metadata": dict(metadata),
        }

    def _service(self) -> dict[str, Any]:
        """What the world reaches. It may always be woken: what shall stay asleep is cordoned."""
        return {
            "protocol": "tcp",
            "internal_port": self.internal_port,
            "ports": [dict(port) for port in self.ports],
            "autostart": True,
            "autostop": self.autostop,
            "min_machines_running": self.min_machines_running,
        }

    def _restart(self) -> dict[str, Any]:
        counted = {"max_retries": self.restarts_max} if self.restart == "on-failure" else {}
        return {"policy": self.restart, **counted}


class Templates:
    """What a machine is, for each plan."""

    def __init__(self, machine: MachineTemplate, plans: Mapping[str, MachineTemplate]) -> None:
        self._machine = machine
        self._plans = plans

    @classmethod
    def load(cls, path: Path | None = None) -> "Templates":
        """Those of the file at `path`, or those that ship with the package. Raises TemplateError."""
        return _Reader(path).templates()

    def of(self, plan: str) -> MachineTemplate:
        """A plan of which the file says nothing has the machine of all plans."""
        return self._plans.get(plan, self._machine)


# --- read ----------------------------------------------------------------------------------------


@immutable
class _Kind:
    """What a key may be set to. `read` gives None for anything else."""

    expected: str
    read: Callable[[Any], Any]


def _whole(least: int, most: int, *, step: int = 1) -> _Kind:
    def read(value: Any) -> int | None:
        is_one = type(value) is int and least <= value <= most and value % step == 0
        return value if is_one else None

    multiple = f", a multiple of {step}" if step > 1 else ""
    return _Kind(f"a whole number from {least} to {most}{multiple}", read)


def _word(*words: str) -> _Kind:
    return _Kind(f"one of {', '.join(words)}", lambda value: value if value in words else None)


def _text(pattern: re.Pattern[str], expected: str) -> _Kind:
    def read(value: Any) -> str | None:
        return value if isinstance(value, str) and pattern.fullmatch(value) else None

    return _Kind(expected, read)


def _regions(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not value or len(set(map(str, value))) < len(value):
        return None
    is_each_one = all(isinstance(one, str) and _REGION.fullmatch(one) for one in value)
    return tuple(value) if is_each_one else None


def _ports(value: Any) -> tuple[Mapping[str, Any], ...] | None:
    is_list = isinstance(value, list) and value and all(isinstance(one, dict) for one in value)
    if not is_list or not all(_is_port(one) for one in value):
        return None
    return tuple(value) if len({one["port"] for one in value}) == len(value) else None


def _is_port(one: Mapping[str, Any]) -> bool:
    port, handlers = one.get("port"), one.get("handlers")
    return (
        one.keys() <= {"port", "handlers", "force_https"}
        and _PORT.read(port) is not None
        and isinstance(handlers, list)
        and all(handler in {"tls", "http"} for handler in handlers)
        and isinstance(one.get("force_https", False), bool)
    )


_PORT = _whole(1, 65_535)
_PATH = _text(_ABSOLUTE, "an absolute path without a slash at its end")
_KINDS: Mapping[str, _Kind] = {
    "regions": _Kind('a list of Fly\'s regions, each once, such as ["sjc", "lax"]', _regions),
    "cpu_kind": _word("shared", "performance"),
    "cpus": _whole(1, 16),
    "memory_mb": _whole(256, 131_072, step=256),
    "volume_gb": _whole(1, 500),
    "volume_path": _PATH,
    "internal_port": _PORT,
    "ports": _Kind(
        'a list of ports, each once, such as [{ port = 443, handlers = ["tls", "http"] }] (and force_https)',
        _ports,
    ),
    "autostop": _word("off", "stop", "suspend"),
    "min_machines_running": _whole(0, 1),
    "restart": _word("no", "on-failure", "always"),
    "restarts_max": _whole(0, 100),
    "stop_signal": _word("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL"),
    "stop_timeout_s": _whole(1, 300),
    "probe_path": _text(_PROBE, "a path that begins with a slash, without a query"),
}
_MODE = _whole(0, 0o777)
_FILE_KEYS = frozenset({"guest_path", "packaged", "content", "mode"})


class _Reader:
    """One file being read: whatever is wrong in it is said with its name."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def templates(self) -> Templates:
        document = self._document()
        if unknown := document.keys() - {"machine", "plans"}:
            raise self._error(min(unknown), "unknown key, expected [machine] and [plans.NAME]")
        base = self._keys("machine", document.get("machine"))
        plans = self._table("plans", document.get("plans", {}))
        if lacking := [key for key, kind in _KINDS.items() if key not in base]:
            raise self._error(f"machine.{lacking[0]}", f"missing, expected {_KINDS[lacking[0]].expected}")
        base.setdefault("env", {})
        base.setdefault("files", ())
        machine = self._made("machine", base)
        return Templates(machine, {name: self._of_plan(name, table, base) for name, table in plans.items()})

    def _of_plan(self, name: str, table: Any, base: Mapping[str, Any]) -> MachineTemplate:
        keys = self._keys(f"plans.{name}", table)
        env = {**base["env"], **keys.get("env", {})}
        return self._made(f"plans.{name}", {**base, **keys, "env": env})

    def _document(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self._text(self._path or _packaged(PACKAGED)))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise TemplateError(f"{self._name}: {error}") from error

    def _keys(self, at: str, table: Any) -> dict[str, Any]:
        """What a table sets, read."""
        table = self._table(at, table)
        if unknown := table.keys() - _KINDS.keys() - {"env", "files"}:
            raise self._error(
                f"{at}.{min(unknown)}", f"unknown key, expected one of {', '.join(_KINDS)}, env, files"
            )
        keys = {key: self._value(f"{at}.{key}", _KINDS[key], table[key]) for key in _KINDS if key in table}
        if "env" in table:
            keys["env"] = dict(self._variables(f"{at}.env", self._table(f"{at}.env", table["env"])))
        if "files" in table:
            keys["files"] = tuple(self._files(f"{at}.files", table["files"]))
        return keys

    def _value(self, at: str, kind: _Kind, value: Any) -> Any:
        read = kind.read(value)
        if read is None:
            raise self._error(at, f"given {value!r}, expected {kind.expected}")
        return read

    def _table(self, at: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            given = "missing" if value is None else f"given {value!r}"
            raise self._error(at, f"{given}, expected a table")
        return value

    def _variables(self, at: str, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What is given is not shown: it may be a secret."""
        for name, text in table.items():
            if _VARIABLE.fullmatch(name) is None:
                raise self._error(
                    f"{at}.{name}", "expected the name of a variable: letters, digits, underscores"
                )
            if not isinstance(text, str) or "\0" in text:
                raise self._error(f"{at}.{name}", f"given a {type(text).__name__}, expected a text")
            if unknown := placeholders(text) - PLACEHOLDERS:
                raise self._error(
                    f"{at}.{name}", f"given {{{min(unknown)}}}, expected one of {_listed(PLACEHOLDERS)}"
                )
            yield name, text

    def _files(self, at: str, value: Any) -> Iterator[MachineFile]:
        if not isinstance(value, list):
            raise self._error(at, f"given {value!r}, expected [[machine.files]] tables")
        for number, each in enumerate(value, 1):
            yield self._file(f"{at}.{number}", self._table(f"{at}.{number}", each))

    def _file(self, at: str, table: Mapping[str, Any]) -> MachineFile:
        if unknown := table.keys() - _FILE_KEYS:
            raise self._error(
                f"{at}.{min(unknown)}", f"unknown key, expected one of {', '.join(sorted(_FILE_KEYS))}"
            )
        guest_path = self._value(f"{at}.guest_path", _PATH, table.get("guest_path"))
        mode = self._value(f"{at}.mode", _MODE, table.get("mode", MODE))
        content = self._content(at, table)
        if not guest_path.endswith(".json"):
            return MachineFile(guest_path, mode, content, None)
        try:
            data = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise self._error(at, f"the content of {guest_path} is no JSON: {error}") from error
        if not isinstance(data, dict):
            raise self._error(
                at, f"the content of {guest_path} is a JSON {type(data).__name__}, expected an object"
            )
        return MachineFile(guest_path, mode, content, data)

    def _content(self, at: str, table: Mapping[str, Any]) -> str:
        given = [key for key in ("packaged", "content") if isinstance(table.get(key), str)]
        if len(given) != 1 or len(table.keys() & {"packaged", "content"}) != 1:
            raise self._error(
                at,
                "expected either `content`, a file beside this one, or `packaged`, one that ships with the package",
            )
        (key,) = given
        name: str = table[key]
        if key == "packaged" and name not in _SHIPPED:
            raise self._error(
                f"{at}.packaged", f"given {name!r}, expected one of {', '.join(sorted(_SHIPPED))}"
            )
        beside = None if key == "packaged" or self._path is None else self._path.parent / name
        try:
            return self._text(beside or _packaged(name))
        except UnicodeDecodeError as error:
            raise self._error(f"{at}.{key}", f"{name}: {error}") from error

    def _made(self, at: str, keys: Mapping[str, Any]) -> MachineTemplate:
        """Raises TemplateError: the keys do not go together."""
        template = MachineTemplate(**keys)
        paths = [one.guest_path for one in template.files]
        for path in paths:
            if paths.count(path) > 1:
                raise self._error(f"{at}.files", f"{path} twice, expected each guest_path once")
            if f"{path}/".startswith(f"{template.volume_path}/"):
                raise self._error(
                    f"{at}.files", f"given {path}, expected no file on the volume: the mount may hide it"
                )
        for one in template.files:
            if unknown := named_variables(one.data) - template.env.keys():
                raise self._error(
                    f"{at}.files",
                    f"{one.guest_path} names ${{{min(unknown)}}}, expected only variables of [machine.env]: OpenClaw takes "
                    "the text of one that is not set for its value",
                )
        return template

    def _text(self, path: Path | Traversable) -> str:
        try:
            with path.open("rb") as opened:
                data = opened.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise TemplateError(f"{self._name}: {error}") from error
        if len(data) > FILE_BYTES_MAX:
            raise TemplateError(f"{self._name}: {path} is longer than {FILE_BYTES_MAX} bytes")
        return data.decode()

    @property
    def _name(self) -> str:
        return str(self._path or PACKAGED)

    def _error(self, at: str, words: str) -> TemplateError:
        return TemplateError(f"{self._name}: {at}: {words}")


_SHIPPED = frozenset({"openclaw.json"})


def _packaged(name: str) -> Traversable:
    """A file that ships with the package."""
    return resources.files("provisioning").joinpath(name)


def _written(one: MachineFile, values: Mapping[str, str], left_out: Collection[str]) -> dict[str, Any]:
    content = one.filled(values, left_out)
    if content is None:
        raise TemplateError(f"{one.guest_path}: it has no part that does without a value which is not there")
    return {"guest_path": one.guest_path, "raw_value": base64.b64encode(content).decode(), "mode": one.mode}


def _duration(seconds: int) -> str:
    """As Fly answers it, so that it can be compared: Go's way to write one."""
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names))
