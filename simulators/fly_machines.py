"""Machines of the simulated Fly: how they are made, shown, listed, given another configuration, destroyed, and asked to run
a command."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from simulators import fly_errors as errors
from simulators.fly_apps import check_secrets_version
from simulators.fly_organization import Organization
from simulators.fly_state import OFF, App, Machine, State, Volume
from simulators.fly_turn import OK, Call, Given, Handler, given
from simulators.fly_volumes import REGION_DEFAULT

METADATA = "metadata."
EVENTS_SHOWN, EVENTS_SHOWN_MAX = 20, 50
EXECUTED_KEPT_MAX = 10_000
UPDATABLE = OFF | {State.STARTED, State.STARTING}
"""Any other state is one that a change is going on in."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a machine is asked to run."""

    argv: tuple[str, ...]
    stdin: str
    timeout_s: int


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command came to."""

    exit_code: int = 0
    stdout: str = ""
    stderr: str = ""


class Machines:
    """Their endpoints. `commands` is what runs in a machine; `executed` every command that ran, with its machine."""

    def __init__(self, organization: Organization) -> None:
        self._organization = organization
        self.commands: Callable[[Machine, Command], Ran] = lambda _machine, _command: Ran()
        self.executed: list[tuple[str, Command]] = []
        one = "/apps/{app}/machines/{machine}"
        self.routes: Mapping[str, Handler] = {
            "GET /apps/{app}/machines": self._list,
            "POST /apps/{app}/machines": self._create,
            f"GET {one}": lambda call: given(self._shown(organization.machine(call.ids))),
            f"POST {one}": self._update,
            f"DELETE {one}": self._destroy,
            f"GET {one}/events": self._events,
            f"GET {one}/versions": self._versions,
            f"POST {one}/exec": self._exec,
        }

    def _shown(self, machine: Machine) -> dict[str, Any]:
        return machine.as_json(tells_booleans=self._organization.habits.tells_booleans)

    def _list(self, call: Call) -> Given:
        machines = self._organization.app_machines(self._organization.app(call.ids["app"]))
        shown = [self._shown(machine) for machine in machines if is_meant(machine, call)]
        if call.is_asked("summary"):
            for each in shown:
                each.pop("config", None)
        return given(shown)

    # made

    def _create(self, call: Call) -> Given:
        organization, fields = self._organization, call.fields()
        app, config = organization.app(call.ids["app"]), _config(fields)
        name = fields.get("name") or f"simulated-{organization.next_number()}"
        for other in organization.app_machines(app):
            if other.exists and other.name == name:
                raise errors.machine_name_taken(other.id, name)
        check_secrets_version(app, fields.get("min_secrets_version") or 0)
        region = fields.get("region") or REGION_DEFAULT
        volume = self._volume(app, region, config)
        host = volume.host if volume else organization.next_host(region)
        organization.check_room(region, host, has_volume=volume is not None)
        machine = self._made(app, name, region, host, config)
        if volume is not None:
            volume.machine_id = machine.id
        machine.secrets = {} if fields.get("skip_secrets") else _values(app)
        half_s = organization.habits.boot_s / 2
        machine.prepared_ms = organization.now_ms() + round(half_s * 1000)
        boot = [] if fields.get("skip_launch") else organization.booting(machine, half_s, after_s=half_s)
        organization.become(machine, State.CREATED, *boot)
        return self._with_nonce(machine, fields)

    def _made(self, app: App, name: str, region: str, host: str, config: dict[str, Any]) -> Machine:
        organization, now_ms = self._organization, self._organization.now_ms()
        machine = Machine(
            id=organization.new_hex(14),
            app=app,
            name=name,
            region=region,
            host=host,
            config=config,
            instance_id=organization.new_ulid(now_ms),
            private_ip=f"fdaa:0:{app.number:x}:a7b::{organization.next_number():x}:2",
            created_ms=now_ms,
            updated_ms=now_ms,
            secrets={},
        )
        machine.keep_version()
        organization.machines[machine.id] = machine
        return machine

    def _with_nonce(self, machine: Machine, fields: Mapping[str, Any]) -> Given:
        """The machine, with the lease that was asked for at once."""
        shown, ttl_s = self._shown(machine), fields.get("lease_ttl")
        if ttl_s:
            shown["nonce"] = self._organization.grant_lease(machine, ttl_s).nonce
        return given(shown)

    def _volume(self, app: App, region: str, config: Mapping[str, Any]) -> Volume | None:
        """The one that a new machine mounts: of its app and region, and nobody else's. Raises RefusedError."""
        mounts = config.get("mounts") or []
        if not mounts:
            return None
        if len(mounts) > 1 or not mounts[0].get("path"):
            raise errors.invalid("a machine has one mount at most, and that has a path")
        volume = self._organization.volumes.get(mounts[0].get("volume") or "")
        if volume is None or volume.app is not app or not volume.exists:
            raise errors.not_found("volume")
        if volume.region != region:
            raise errors.invalid(f"volume {volume.id} is in {volume.region}, not in {region}")
        if volume.is_attached:
            raise errors.precondition(f"volume {volume.id} is in use by machine {volume.machine_id}")
        return volume

    # changed

    def _update(self, call: Call) -> Given:
        organization, fields = self._organization, call.fields()
        machine, config = organization.changeable(call.ids, call.nonce), _config(fields)
        self._check_update(machine, fields, config)
        machine.config = config
        machine.instance_id = organization.new_ulid(organization.now_ms())
        machine.keep_version()
        machine.secrets = {} if fields.get("skip_secrets") else _values(machine.app)
        self._boot_again(machine, skips_launch=bool(fields.get("skip_launch")))
        return self._with_nonce(machine, fields)

    def _check_update(self, machine: Machine, fields: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Raises RefusedError."""
        is_stale = fields.get("current_version") not in (None, "", machine.instance_id)
        if is_stale or machine.state not in UPDATABLE:
            raise errors.concurrent_update(machine.id)
        for fixed in ("name", "region"):
            if fields.get(fixed) not in (None, "", getattr(machine, fixed)):
                raise errors.invalid(f"the {fixed} of a machine cannot be changed")
        if _mounted(config) != _mounted(machine.config):
            raise errors.invalid("the volume of a machine cannot be changed")
        check_secrets_version(machine.app, fields.get("min_secrets_version") or 0)
        self._organization.check_host(machine)

    def _boot_again(self, machine: Machine, *, skips_launch: bool) -> None:
        organization, update_s = self._organization, self._organization.habits.update_s
        if not skips_launch:
            boot = organization.booting(machine, update_s / 2, after_s=update_s / 2)
            organization.become(machine, State.REPLACING, *boot)
        elif not machine.is_off:
            organization.become(machine, State.REPLACING, (update_s, State.STOPPED))
        else:
            organization.happen(machine, "update", "user", organization.now_ms())

    def _destroy(self, call: Call) -> Given:
        machine = self._organization.changeable(call.ids, call.nonce)
        if machine.state not in OFF and not call.is_asked("force"):
            words = "unable to destroy machine, not currently stopped, suspended, failed or created"
            raise errors.precondition(words)
        if machine.state is not State.DESTROYING:
            destroyed = (self._organization.habits.destroy_s, State.DESTROYED)
            self._organization.become(machine, State.DESTROYING, destroyed)
        return OK

    # what is known of it, and what runs in it

    def _events(self, call: Call) -> Given:
        limit = call.integer("limit", EVENTS_SHOWN, least=1, most=EVENTS_SHOWN_MAX)
        events = self._organization.machine(call.ids).events
        return given([event.as_json() for event in reversed(events[-limit:])])

    def _versions(self, call: Call) -> Given:
        versions = self._organization.machine(call.ids).versions
        return given([{"version": version, "user_config": config} for version, config in reversed(versions)])

    def _exec(self, call: Call) -> Given:
        """200 also when the command failed. That a machine which does not run is 412 is a guess."""
        machine, fields = self._organization.machine(call.ids), call.fields()
        argv = fields.get("command") or (fields.get("cmd") or "").split()
        if not argv:
            raise errors.invalid("command is missing")
        if machine.state is not State.STARTED:
            raise errors.precondition(f"machine is {machine.state.value}, not started")
        command = Command(tuple(argv), fields.get("stdin") or "", fields.get("timeout") or 30)
        if len(self.executed) < EXECUTED_KEPT_MAX:
            self.executed.append((machine.id, command))
        ran = self.commands(machine, command)
        return given(
            {"exit_code": ran.exit_code, "exit_signal": 0, "stdout": ran.stdout, "stderr": ran.stderr}
        )


def is_meant(machine: Machine, call: Call) -> bool:
    """Whether a list is asked to have a machine in it."""
    query = call.request.query
    states = call.asked_list("state")
    wished = {name[len(METADATA) :]: value for name, value in query.items() if name.startswith(METADATA)}
    return (
        (machine.exists or call.is_asked("include_deleted"))
        and call.asked("region", machine.region) == machine.region
        and (not states or machine.state in states)
        and all(machine.metadata.get(name) == value for name, value in wished.items())
    )


def _config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The whole configuration that a request gives. Raises RefusedError."""
    config = fields.get("config")
    if not isinstance(config, dict) or not config.get("image"):
        raise errors.invalid("config.image is missing")
    return {**config, "metadata": dict(config.get("metadata") or {})}


def _mounted(config: Mapping[str, Any]) -> list[str]:
    return [mount.get("volume") or "" for mount in config.get("mounts") or []]


def _values(app: App) -> dict[str, str]:
    """The secrets of an app as a machine sees them from now on."""
    return {name: secret.value for name, secret in app.secrets.items()}
