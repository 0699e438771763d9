"""Every setting: one frozen class, read from the environment once, each field with unit, default and meaning.

The table in README.md is held to this file by a test.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provisioning.names import APP_HASH_CHARS
from proxy.outbox import SECRETS_MAX, Endpoint, EndpointError, parse_secrets, parse_url
from proxy.surface import Option
from routes import SURFACES


class SettingError(ValueError):
    """A setting cannot be used: names the variable, what was given and what is expected."""


def _setting(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    is_secret: bool = False,
) -> Any:
    metadata = {"meaning": meaning, "unit": unit, "minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata=metadata, repr=not is_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The service's settings. A field's variable is its name in capitals."""

    database_url: str = _setting(
        "sqlite:///automna-proxy.db", "the store; `sqlite:////absolute/path.db` for an absolute path"
    )
    plans_file: str = _setting("", "a TOML file that replaces the plans that ship with the package")
    prices_file: str = _setting("", "a JSON file that replaces the price table that ships with the package")
    public_url: str = _setting(
        "",
        "where this service is reached from outside (`https://proxy.example.com`, no path): in addresses that it hands out, "
        "and for vendors to tell it of what ends later; unset, the former name the host that a request was sent to",
    )
    upgrade_url: str = _setting(
        "/dashboard/settings/billing",
        "where users get another plan: in refusals of what theirs does not include (`upgrade_url`)",
    )
    metrics_token: str = _setting(
        "", "bearer token of `/metrics`; unset, it is open, unless METRICS_PORT is set", is_secret=True
    )
    metrics_port: int = _setting(
        0,
        "a further port, for scrapers that cannot send a token: there `/metrics` is open, elsewhere it is not; 0: none",
        unit="port",
        minimum=0,
        maximum=65_535,
    )
    notices_url: str = _setting(
        "",
        "where notices of budgets are sent, as signed webhooks; unset, they are noted and not sent",
        is_secret=True,
    )
    notices_secret: str = _setting(
        "",
        "signs them: `whsec_` and base64; two, separated by a space, while one replaces the other",
        is_secret=True,
    )
    log_format: str = _setting("console", "`console` or `json`: one line per request either way")
    log_level: str = _setting("info", "`debug`, `info`, `warning` or `error`")
    phase_times: bool = _setting(
        False,
        "take the time of each phase of a request, and of each wait for the ledger, into metrics: `on` (or 1) or `off`",
    )

    body_bytes_max: int = _setting(32 * 1024 * 1024, "longest request body", unit="bytes", minimum=1)
    head_bytes_max: int = _setting(64 * 1024, "longest request line and headers", unit="bytes", minimum=1024)
    headers_max: int = _setting(200, "most request headers", unit="headers", minimum=1)
    body_timeout_s: float = _setting(60.0, "longest wait for a whole request body", unit="s", minimum=0.001)
    client_stall_timeout_s: float = _setting(
        120.0, "a client that takes no bytes for so long has left", unit="s", minimum=0.001
    )
    client_connections_max: int = _setting(
        10_000,
        "client connections per worker; further ones are closed at once",
        unit="connections",
        minimum=1,
    )
    keep_alive_s: float = _setting(75.0, "an idle client connection is closed", unit="s", minimum=1)

    sockets_per_user: int = _setting(
        4, "websockets that a user may have open at once, per worker", unit="websockets", minimum=0
    )
    sockets_max: int = _setting(1_000, "open websockets per worker", unit="websockets", minimum=0)

    upstream_connections_max: int = _setting(
        2_000, "connections to vendors per worker", unit="connections", minimum=1
    )
    connect_timeout_s: float = _setting(5.0, "to connect to a vendor", unit="s", minimum=0.001)
    first_byte_timeout_s: float = _setting(
        600.0, "from the request's last byte to the vendor's answer", unit="s", minimum=0.001
    )
    idle_timeout_s: float = _setting(600.0, "between two reads of a vendor's answer", unit="s", minimum=0.001)
    answer_timeout_s: float = _setting(
        14_400.0, "a vendor's whole answer, from its head; one that never ends", unit="s", minimum=0.001
    )
    pool_idle_s: float = _setting(
        30.0, "an unused vendor connection is closed; below what vendors keep", unit="s", minimum=0.001
    )
    stream_silence_s: float = _setting(
        20.0, "a stream whose vendor is silent gets its 200 and comments", unit="s", minimum=0.001
    )

    drain_after_client_left_s: float = _setting(
        300.0, "a vendor's answer is read on after its client left", unit="s", minimum=0
    )
    drains_max: int = _setting(
        500,
        "answers read on at once per worker; beyond it they are cut and estimated",
        unit="answers",
        minimum=0,
    )
    drain_notice_s: float = _setting(5.0, "after SIGTERM: not ready, still serving", unit="s", minimum=0)
    drain_streams_s: float = _setting(120.0, "after the notice: streams may finish", unit="s", minimum=0)

    settle_wait_s: float = _setting(
        0.25, "an answer's end waits for its entry to be durable", unit="s", minimum=0
    )
    checkpoint_s: float = _setting(3.0, "between checkpoints of a stream", unit="s", minimum=0.01)
    heartbeat_s: float = _setting(1.0, "between heartbeats of a worker", unit="s", minimum=0.01)
    worker_dead_after_s: float = _setting(
        10.0,
        "a worker without heartbeat is dead, its holds expire; two heartbeats at least",
        unit="s",
        minimum=0.05,
    )
    changes_poll_s: float = _setting(
        0.25, "between looks for revocations and plan changes", unit="s", minimum=0.01
    )
    changes_stale_after_s: float = _setting(
        1.0,
        "a worker that could not look for so long answers 503; `CHANGES_POLL_S` at least",
        unit="s",
        minimum=0.05,
    )
    store_busy_timeout_s: float = _setting(
        2.0, "a locked store is waited for before it counts as unavailable", unit="s", minimum=0
    )
    sweep_every_s: float = _setting(
        600.0, "between looks for objects at vendors that have no owner here; 0: none", unit="s", minimum=0
    )
    estimate_bytes_per_token: int = _setting(
        2, "the input estimate: a token for so many bytes of body", unit="bytes", minimum=1
    )
    output_slice_tokens: int = _setting(
        2_000, "output of a stream held at once, granted ahead of what it shows", unit="tokens", minimum=16
    )
    output_bytes_per_token: int = _setting(
        3,
        "what a stream shows counts as a token for so many bytes; with 1 no text can be denser",
        unit="bytes",
        minimum=1,
    )
    credential_cache_max: int = _setting(
        200_000,
        "gateway tokens remembered per worker, about a kilobyte each; beyond, each request of a forgotten one asks the store",
        unit="tokens",
        minimum=1,
    )

    agentmail_webhook_secret: str = _setting(
        "",
        "signs what AgentMail tells (`whsec_...`, two while one replaces the other); unset, it is answered 503",
        is_secret=True,
    )
    bland_webhook_secret: str = _setting(
        "",
        "signs what Bland tells of calls (two while one replaces the other); unset, it is answered 503, and calls are only asked "
        "about",
        is_secret=True,
    )
    hooks_secret: str = _setting(
        "",
        "makes the tokens under which users' agents are told of mail and calls (`user set-hook`); unset, they are not",
        is_secret=True,
    )

    admin_token: str = _setting(
        "",
        "bearer token of the operators' endpoints below `/admin`, 32 characters or more; unset, they are answered 503",
        is_secret=True,
    )
    fly_api_token: str = _setting(
        "",
        "an organization's token at Fly (`fly tokens create org`), for agents' machines; unset, none are made, and whoever asks "
        "for one is answered 503",
        is_secret=True,
    )
    fly_org: str = _setting("", "the slug of that organization; needed with FLY_API_TOKEN")
    fly_api_url: str = _setting("https://api.machines.dev", "where Fly's Machines API is reached (no path)")
    fly_gateway_url: str = _setting(
        "https://{app}.fly.dev", "where the world reaches the machine of an app: `{app}` is the app's name"
    )
    fly_app_prefix: str = _setting(
        "automna-u-",
        "what the names of users' apps begin with: lower-case letters, digits and dashes; to Fly all others are not ours",
    )
    machine_image: str = _setting(
        "",
        "the image of agents' machines, by its digest (`registry.example/agent@sha256:...`); needed with FLY_API_TOKEN",
    )
    machines_file: str = _setting("", "a TOML file that replaces the machines that ship with the package")
    machines_suspend_over_budget: bool = _setting(
        False, "suspend the machine of a user whose money is spent, until there is some again: `on` or `off`"
    )
    machines_reconcile_every_s: float = _setting(
        600.0,
        "between looks at Fly's lists for machines that differ from what is known of them, or belong to nobody; 0: none",
        unit="s",
        minimum=0,
    )
    machines_repair: bool = _setting(
        False, "mend what such a look finds, and not only tell of it: `on` or `off`"
    )
    machines_at_once: int = _setting(
        16, "users' machines worked on at once, per worker", unit="machines", minimum=1, maximum=64
    )

    vendors: Mapping[str, str] = dataclasses.field(
        default_factory=dict, metadata={"is_vendors": True}, repr=False
    )
    """The variables that surfaces declare: keys, upstream overrides, options. Unset ones are absent."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Read `environ`; an empty value counts as unset. Raises SettingError."""
        values: dict[str, Any] = {
            field.name: _read(field, environ[variable])
            for field in _fields()
            if environ.get(variable := field.name.upper())
        }
        # Stripped: a key read from a file ends in a line break, which no header can carry.
        vendors = {}
        for option in vendor_settings():
            given = environ.get(option.variable, "").strip()
            if given:
                _check_option(option, given)
                vendors[option.variable] = given
        settings = cls(**values, vendors=vendors)
        if settings.log_format not in {"console", "json"}:
            raise SettingError(f"LOG_FORMAT: given {settings.log_format!r}, expected console or json")
        if settings.log_level not in {"debug", "info", "warning", "error"}:
            raise SettingError(
                f"LOG_LEVEL: given {settings.log_level!r}, expected debug, info, warning or error"
            )
        _ = settings.notices_endpoint  # raises, where it cannot be used
        if settings.public_url and _PUBLIC_URL.fullmatch(settings.public_url) is None:
            raise SettingError(
                f"PUBLIC_URL: given {settings.public_url!r}, expected scheme and host as in https://proxy.example.com, "
                "no path and no slash at the end"
            )
        _ = settings.agentmail_webhook_keys
        if len(settings.bland_webhook_keys) > SECRETS_MAX:
            raise SettingError(
                f"BLAND_WEBHOOK_SECRET: expected {SECRETS_MAX} at most, separated by a space (what was given is not shown)"
            )
        if settings.hooks_secret and len(settings.hooks_secret) < HOOKS_SECRET_CHARS_MIN:
            raise SettingError(
                f"HOOKS_SECRET: expected {HOOKS_SECRET_CHARS_MIN} characters or more, as `openssl rand -base64 32` makes "
                "them (what was given is not shown)"
            )
        _check_machines(settings)
        _check_intervals(settings)
        return settings

    @property
    def notices_endpoint(self) -> Endpoint | None:
        """Where notices are sent; None: nowhere. Raises SettingError."""
        try:
            if not self.notices_url:
                return None
            url = parse_url(self.notices_url)
        except EndpointError as error:
            raise SettingError(f"NOTICES_URL: {error}") from None
        try:
            return Endpoint(url, parse_secrets(self.notices_secret))
        except EndpointError as error:
            given = "" if self.notices_secret else "unset, though NOTICES_URL is set; "
            raise SettingError(f"NOTICES_SECRET: {given}{error}") from None

    @property
    def agentmail_webhook_keys(self) -> tuple[bytes, ...]:
        """What verifies AgentMail's webhooks; none: nothing is taken. Raises SettingError."""
        if not self.agentmail_webhook_secret:
            return ()
        try:
            return parse_secrets(self.agentmail_webhook_secret)
        except EndpointError as error:
            raise SettingError(f"AGENTMAIL_WEBHOOK_SECRET: {error}") from None

    @property
    def bland_webhook_keys(self) -> tuple[bytes, ...]:
        """What verifies Bland's webhooks; none: nothing is taken."""
        return tuple(secret.encode() for secret in self.bland_webhook_secret.split())

    @property
    def plans_path(self) -> Path | None:
        return Path(self.plans_file) if self.plans_file else None

    @property
    def machines_path(self) -> Path | None:
        return Path(self.machines_file) if self.machines_file else None

    @property
    def prices_path(self) -> Path | None:
        return Path(self.prices_file) if self.prices_file else None


HOOKS_SECRET_CHARS_MIN = 32
ADMIN_TOKEN_CHARS_MIN = 32
FLY_NAME_CHARS_MAX = 62
APP_PREFIX_CHARS_MAX = FLY_NAME_CHARS_MAX - APP_HASH_CHARS
"""Of the name of an app at Fly: the rest says whose it is."""
NEEDED_FOR_MACHINES = ("fly_org", "machine_image", "public_url")
"""Without one of these a machine would not be ours, not be the same twice, or not find us."""
_PUBLIC_URL = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
_FLY_API_URL = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
"""Within Fly's own network its host has an underscore."""
_GATEWAY_URL = re.compile(r"https?://[^\s/?#]+(?:/[^\s/?#]+)*")
_APP_PREFIX = re.compile(rf"[a-z][a-z0-9-]{{0,{APP_PREFIX_CHARS_MAX - 1}}}")
_FLY_SCHEMES = frozenset({"FlyV1", "Bearer"})
"""What a token may be copied with, before a space."""
_SWITCH = {"on": True, "1": True, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One row of the table of settings."""

    variable: str
    default: str
    unit: str
    meaning: str


def _fields() -> list["dataclasses.Field[Any]"]:
    return [field for field in dataclasses.fields(Settings) if "is_vendors" not in field.metadata]


def _check_machines(settings: Settings) -> None:
    """Raises SettingError."""
    if settings.admin_token and len(settings.admin_token) < ADMIN_TOKEN_CHARS_MIN:
        raise SettingError(
            f"ADMIN_TOKEN: expected {ADMIN_TOKEN_CHARS_MIN} characters or more, as `openssl rand -base64 32` makes "
            "them (what was given is not shown)"
        )
    if _FLY_API_URL.fullmatch(settings.fly_api_url) is None:
        raise SettingError(
            f"FLY_API_URL: given {settings.fly_api_url!r}, expected scheme and host as in https://api.machines.dev, "
            "no path and no slash at the end"
        )
    if "{app}" not in settings.fly_gateway_url or _GATEWAY_URL.fullmatch(settings.fly_gateway_url) is None:
        raise SettingError(
            f"FLY_GATEWAY_URL: given {settings.fly_gateway_url!r}, expected an address with {{app}} in it as in "
            "https://{app}.fly.dev, no query and no slash at the end"
        )
    if _APP_PREFIX.fullmatch(settings.fly_app_prefix) is None:
        raise SettingError(
            f"FLY_APP_PREFIX: given {settings.fly_app_prefix!r}, expected a letter and then lower-case letters, digits and "
            f"dashes, {APP_PREFIX_CHARS_MAX} characters at most"
        )
    if not settings.fly_api_token:
        return
    if settings.fly_api_token in _FLY_SCHEMES:
        raise SettingError("FLY_API_TOKEN: given its scheme alone, expected a token")
    for name in NEEDED_FOR_MACHINES:
        if not getattr(settings, name):
            raise SettingError(
                f"{name.upper()}: unset, though FLY_API_TOKEN is set; agents' machines need it"
            )


BEATS_MIN = 2
"""Within the time after which a worker is dead: one that beats less often is taken for dead while it lives."""


def _check_intervals(settings: Settings) -> None:
    """What must happen within a time is looked at often enough for that. Raises SettingError."""
    if settings.changes_stale_after_s < settings.changes_poll_s:
        raise SettingError(
            f"CHANGES_STALE_AFTER_S: given {settings.changes_stale_after_s:g}, expected no less than CHANGES_POLL_S "
            f"({settings.changes_poll_s:g}): between two looks every request would be refused"
        )
    if settings.worker_dead_after_s < BEATS_MIN * settings.heartbeat_s:
        raise SettingError(
            f"WORKER_DEAD_AFTER_S: given {settings.worker_dead_after_s:g}, expected no less than twice HEARTBEAT_S "
            f"({settings.heartbeat_s:g}): workers that live would be taken for dead"
        )


def _read(field: "dataclasses.Field[Any]", text: str) -> Any:
    kind: Callable[[str], Any] = type(field.default)
    if kind is bool:
        if text.strip() not in _SWITCH:
            raise SettingError(f"{field.name.upper()}: given {text!r}, expected on or off")
        return _SWITCH[text.strip()]
    minimum, maximum = field.metadata["minimum"], field.metadata["maximum"]
    try:
        value = kind(text.strip())
    except ValueError:
        value = None
    highest = math.inf if maximum is None else maximum
    if value is None or (minimum is not None and not (math.isfinite(value) and minimum <= value <= highest)):
        expected = f"a number of {field.metadata['unit']} from {minimum:g}"
        expected += "" if maximum is None else f" to {maximum:g}"
        raise SettingError(f"{field.name.upper()}: given {text!r}, expected {expected}")
    return value


def _check_option(option: Option, given: str) -> None:
    if option.pattern and re.fullmatch(option.pattern, given) is None:
        expected = option.expected
    elif option.unit and not given.isdecimal():
        expected = f"a whole number of {option.unit}"
    else:
        return
    if option.is_secret:
        raise SettingError(f"{option.variable}: expected {expected} (what was given is not shown)")
    raise SettingError(f"{option.variable}: given {given!r}, expected {expected}")


def _written(default: Any) -> str:
    """A default as it would be set."""
    return ("on" if default else "off") if isinstance(default, bool) else str(default)


def vendor_settings() -> list[Option]:
    """What the surfaces declare."""
    rows = []
    for surface in SURFACES:
        upstream = surface.upstream
        rows.append(_key(upstream.key_env, f"the platform's key at {surface.name}; unset, it answers 503"))
        for operation in surface.operations:
            if operation.key_env:
                what = f"the platform's key for {operation.path}; unset, `{upstream.key_env}` is used"
                rows.append(_key(operation.key_env, what))
        rows.append(Option(upstream.url_env, upstream.base_url, f"where {surface.name} is reached (no path)"))
        for operation in surface.operations:
            if (socket := operation.socket) is not None:
                what = f"where the websocket of {surface.name} is (no path); unset, `{upstream.url_env}` where set"
                rows.append(Option(socket.url_env, socket.base_url, what))
        rows += surface.options
    return list({row.variable: row for row in rows}.values())  # two surfaces may have one vendor


def _key(variable: str, meaning: str) -> Option:
    return Option(
        variable,
        "",
        meaning,
        pattern=r"[!-~]+",
        expected="a key without blanks or line breaks",
        is_secret=True,
    )


def table() -> list[SettingRow]:
    """Every setting, in order: for README.md and `serve --help`."""
    own = [
        SettingRow(
            field.name.upper(), _written(field.default), field.metadata["unit"], field.metadata["meaning"]
        )
        for field in _fields()
    ]
    return own + [SettingRow(one.variable, one.default, one.unit, one.meaning) for one in vendor_settings()]
