"""What an organization at Fly has: apps, addresses, secrets, volumes, machines; and how each is shown."""

import copy
import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metering.clock import MS_PER_DAY, instant

VERSIONS_KEPT_MAX = 100
"""Of one machine."""


class State(enum.StrEnum):
    """How a machine is."""

    CREATED = "created"
    STARTING = "starting"
    STARTED = "started"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    RESTARTING = "restarting"
    REPLACING = "replacing"
    FAILED = "failed"
    DESTROYING = "destroying"
    DESTROYED = "destroyed"


RESTING = frozenset(
    {State.CREATED, State.STARTED, State.STOPPED, State.SUSPENDED, State.FAILED, State.DESTROYED}
)
OFF = frozenset({State.CREATED, State.STOPPED, State.SUSPENDED, State.FAILED})
"""Nothing runs: such a machine is started, and destroyed without force."""


@dataclass(slots=True)
class Address:
    """One that an app is reached at. `kind` is what was asked for: v4, shared_v4, v6 or private_v6."""

    ip: str
    kind: str
    region: str
    network: str
    service_name: str
    created_ms: int

    def as_json(self) -> dict[str, Any]:
        return {
            "ip": self.ip,
            "region": self.region,
            "service_name": self.service_name,
            "shared": self.kind == "shared_v4",
            "created_at": instant(self.created_ms),
        }


@dataclass(slots=True)
class Secret:
    """One value of an app. Only its digest is shown."""

    name: str
    value: str
    created_ms: int
    updated_ms: int

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "digest": hashlib.sha256(self.value.encode()).hexdigest()[:16],
            "created_at": instant(self.created_ms),
            "updated_at": instant(self.updated_ms),
        }


@dataclass(slots=True)
class App:
    """`gone_ms`: from when on it does not exist, once it is deleted."""

    id: str
    number: int
    name: str
    network: str
    created_ms: int
    addresses: list[Address] = field(default_factory=list)
    secrets: dict[str, Secret] = field(default_factory=dict)
    secrets_version: int = 0
    gone_ms: int | None = None

    @property
    def is_public(self) -> bool:
        """The world finds it: it has an address that is not private."""
        return any(address.kind != "private_v6" for address in self.addresses)


@dataclass(slots=True)
class Volume:
    """`host` is shown as `zone`: a machine that mounts it runs there."""

    id: str
    app: App
    name: str
    region: str
    host: str
    size_gb: int
    created_ms: int
    updated_ms: int
    is_encrypted: bool = True
    snapshot_retention: int = 5
    has_backup: bool = True
    machine_id: str = ""
    deleted_ms: int | None = None
    snapshots: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_attached(self) -> bool:
        return bool(self.machine_id)

    @property
    def exists(self) -> bool:
        """It may be used, and is paid for."""
        return self.deleted_ms is None

    def is_listed(self, now_ms: int) -> bool:
        """Also for a day after its deletion."""
        return self.deleted_ms is None or now_ms < self.deleted_ms + MS_PER_DAY

    def overview(self) -> dict[str, Any]:
        """As the lists of the organization show it."""
        return {**self.as_json(), "app_name": self.app.name, "updated_at": instant(self.updated_ms)}

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "state": "created" if self.exists else "pending_destroy",
            "region": self.region,
            "zone": self.host,
            "size_gb": self.size_gb,
            "encrypted": self.is_encrypted,
            "snapshot_retention": self.snapshot_retention,
            "auto_backup_enabled": self.has_backup,
            "attached_machine_id": self.machine_id or None,
            "attached_alloc_id": None,
            "created_at": instant(self.created_ms),
            "host_status": "ok",
            "fstype": "ext4",
        }


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a machine."""

    id: str
    kind: str
    status: str
    source: str
    at_ms: int

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": self.kind,
            "status": self.status,
            "source": self.source,
            "timestamp": self.at_ms,
        }


@dataclass(slots=True)
class Lease:
    """Who alone may change a machine."""

    nonce: str
    owner: str
    description: str
    expires_ms: int


@dataclass(frozen=True, slots=True)
class Running:
    """What a started machine runs with: its configuration as it booted, and the secrets in its environment."""

    since_ms: int
    instance_id: str
    image: str
    env: Mapping[str, str]


@dataclass(slots=True)
class Machine:
    """`schedule`: the states that it will be in, and from when on. `prepared_ms`: before that its image is not there, and
    it cannot be started by hand. `secrets`: those of its app that it may see. `host_status`: what is said of its host; if not ok, its configuration is not shown as such."""

    id: str
    app: App
    name: str
    region: str
    host: str
    config: dict[str, Any]
    instance_id: str
    private_ip: str
    created_ms: int
    updated_ms: int
    secrets: Mapping[str, str]
    prepared_ms: int = 0
    state: State = State.CREATED
    state_event_id: str = ""
    """The event that brought the state."""
    events: list[Event] = field(default_factory=list)
    versions: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    schedule: list[tuple[int, State]] = field(default_factory=list)
    lease: Lease | None = None
    running: Running | None = None
    is_cordoned: bool = False
    host_status: str = "ok"

    @property
    def exists(self) -> bool:
        return self.state is not State.DESTROYED

    @property
    def is_off(self) -> bool:
        """Nothing runs, and nothing is going to."""
        return self.state in OFF and not self.schedule

    def keep_version(self) -> None:
        """Note the configuration as that of this instance."""
        self.versions.append((self.instance_id, copy.deepcopy(self.config)))
        del self.versions[:-VERSIONS_KEPT_MAX]

    @property
    def metadata(self) -> dict[str, str]:
        metadata: dict[str, str] = self.config.setdefault("metadata", {})
        return metadata

    @property
    def services(self) -> list[dict[str, Any]]:
        return self.config.get("services") or []

    def shown_config(self, *, tells_booleans: bool) -> dict[str, Any]:
        """A copy, with autostop in the older form where that has a word for it."""
        config = copy.deepcopy(self.config)
        for service in config.get("services") or []:
            autostop = service.get("autostop")
            if isinstance(autostop, bool):
                autostop = "stop" if autostop else "off"
            if autostop in ("off", "stop") and tells_booleans:
                autostop = autostop == "stop"
            if autostop is not None:
                service["autostop"] = autostop
        return config

    @property
    def outline(self) -> dict[str, Any]:
        """Of its configuration little, and no environment."""
        return {name: self.config[name] for name in ("image", "guest", "metadata") if name in self.config}

    def overview(self) -> dict[str, Any]:
        """As the lists of the organization show it."""
        return {
            "id": self.id,
            "app_name": self.app.name,
            "name": self.name,
            "state": self.state.value,
            "region": self.region,
            "instance_id": self.instance_id,
            "version": self.instance_id,
            "private_ip": self.private_ip,
            "config": self.outline,
            "created_at": instant(self.created_ms),
            "updated_at": instant(self.updated_ms),
        }

    def as_json(self, *, tells_booleans: bool) -> dict[str, Any]:
        if self.host_status == "ok":
            config = {"config": self.shown_config(tells_booleans=tells_booleans)}
        else:
            config = {"incomplete_config": self.outline}
        image, _, digest = str(self.config.get("image", "")).partition("@")
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state.value,
            "region": self.region,
            "instance_id": self.instance_id,
            "private_ip": self.private_ip,
            **config,
            "image_ref": {"repository": image, "digest": digest},
            "events": [event.as_json() for event in reversed(self.events)],
            "host_status": self.host_status,
            "created_at": instant(self.created_ms),
            "updated_at": instant(self.updated_ms),
        }
