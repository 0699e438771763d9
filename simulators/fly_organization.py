"""The organization at Fly: everything that it has, how time passes in it, and what its machines become meanwhile."""

import asyncio
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from metering.clock import Clock, instant
from simulators import fly_errors as errors
from simulators.fly_habits import FAILING_IMAGE, STALLING_IMAGE, Habits, Shortage
from simulators.fly_state import RESTING, App, Event, Lease, Machine, Running, Secret, State, Volume

ORG_SLUG = "platform"
LEASE_OWNER = "9af60c27-0000-4000-8000-simulated000@tokens.fly.io"
BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
EVENTS_KEPT_MAX = 1000
"""Of one machine."""
EVENT_TYPES = {
    State.CREATED: "launch",
    State.STARTED: "start",
    State.FAILED: "exit",
    State.STOPPED: "exit",
    State.DESTROYED: "destroy",
}
"""What brings a state, where it is not told as an update of the machine."""

Step = tuple[float, State]
"""A state, and how many seconds after the step before it."""


@dataclass(frozen=True, slots=True)
class Billed:
    """What is paid for, by its ids: machines (stopped ones for their disk), volumes, addresses of one's own."""

    machines: list[str]
    volumes: list[str]
    addresses: list[str]


class Organization:
    """Everything of the account, in order of creation. `foreign_apps`: names that another organization has."""

    def __init__(self, clock: Clock, *, habits: Habits, seed: int) -> None:
        self.habits = habits
        self.apps: dict[str, App] = {}
        self.machines: dict[str, Machine] = {}
        """Every one that there was."""
        self.volumes: dict[str, Volume] = {}
        """Every one that there was."""
        self.foreign_apps: set[str] = set()
        self.ahead_ms = 0
        """How far this account's time is ahead of its clock."""
        self._clock = clock
        self._random = random.Random(seed)
        self._counter = 0
        self._moving: dict[str, Machine] = {}
        self._leaving: list[App] = []
        self._waits: set[Wait] = set()
        self._hosts: dict[str, int] = {}

    # ids and places

    def now_ms(self) -> int:
        return self._clock.now_ms() + self.ahead_ms

    def new_hex(self, length: int) -> str:
        """So many hexadecimal digits."""
        return f"{self._random.getrandbits(length * 4):0{length}x}"

    def new_ulid(self, at_ms: int) -> str:
        """26 characters that sort by their time, and then by their making."""
        self._counter += 1
        number = at_ms << 80 | self._counter << 40 | self._random.getrandbits(40)
        return "".join(BASE32[number >> 5 * place & 31] for place in reversed(range(26)))

    def next_number(self) -> int:
        self._counter += 1
        return self._counter

    def next_host(self, region: str) -> str:
        """The region's hosts take turns."""
        turn = self._hosts.get(region, 0)
        self._hosts[region] = turn + 1
        return f"{region}-{turn % self.habits.hosts_per_region + 1}"

    # what there is

    def app(self, name: str) -> App:
        """One of our own. Raises RefusedError."""
        if name in self.foreign_apps:
            raise errors.foreign_app(name)
        if name not in self.apps:
            raise errors.not_found("app")
        return self.apps[name]

    def machine(self, ids: Mapping[str, str]) -> Machine:
        """By `app` and `machine`; also a destroyed one. Raises RefusedError."""
        app = self.app(ids["app"])
        machine = self.machines.get(ids["machine"])
        if machine is None or machine.app is not app:
            raise errors.not_found("machine")
        return machine

    def changeable(self, ids: Mapping[str, str], nonce: str) -> Machine:
        """One that who shows this nonce, or none (""), may change now. Raises RefusedError."""
        machine = self.machine(ids)
        if not machine.exists:
            raise errors.not_found("machine")
        self.check_lease(machine, nonce)
        return machine

    def app_machines(self, app: App) -> list[Machine]:
        """Destroyed ones, too."""
        return [machine for machine in self.machines.values() if machine.app is app]

    def app_volumes(self, app: App) -> list[Volume]:
        """Those that are listed: also for a day after their deletion."""
        now_ms = self.now_ms()
        mine = (volume for volume in self.volumes.values() if volume.app is app)
        return [volume for volume in mine if volume.is_listed(now_ms)]

    @property
    def billed(self) -> Billed:
        addresses = (address for app in self.apps.values() for address in app.addresses)
        return Billed(
            [machine.id for machine in self.machines.values() if machine.exists],
            [volume.id for volume in self.volumes.values() if volume.exists],
            [address.ip for address in addresses if address.kind == "v4"],
        )

    # apps

    def create_app(self, name: str, network: str) -> App:
        app = App(self.new_hex(16), self.next_number(), name, network, self.now_ms())
        self.apps[name] = app
        return app

    def delete_app(self, app: App) -> None:
        """With all that is in it; at once, unless the vendor takes its time."""
        if app.gone_ms is None:
            app.gone_ms = self.now_ms() + round(self.habits.app_delete_s * 1000)
            self._leaving.append(app)
            self.pass_time()

    def _take_away(self, app: App) -> None:
        del self.apps[app.name]
        for machine in self.app_machines(app):
            if machine.exists:
                self.become(machine, State.DESTROYED)
        for volume in self.app_volumes(app):
            volume.deleted_ms = volume.deleted_ms or self.now_ms()

    def set_secret(self, app: App, name: str, value: str | None) -> None:
        """None deletes. The version is counted by the caller, once for all that it changes."""
        now_ms = self.now_ms()
        if value is None:
            app.secrets.pop(name, None)
            return
        was = app.secrets.get(name)
        app.secrets[name] = Secret(name, value, was.created_ms if was else now_ms, now_ms)

    # machines in time

    def become(self, machine: Machine, *states: State | Step) -> None:
        """From now on a machine goes through these; what it was to become before is forgotten."""
        at_ms = self.now_ms()
        machine.schedule = []
        for each in states:
            seconds, state = each if isinstance(each, tuple) else (0.0, each)
            at_ms += round(seconds * 1000)
            machine.schedule.append((at_ms, state))
        self._moving[machine.id] = machine
        self.pass_time()

    def booting(self, machine: Machine, seconds: float, *, after_s: float = 0.0) -> list[Step]:
        """How a boot of so many seconds goes, by the machine's image."""
        image = str(machine.config.get("image"))
        last = State.FAILED if FAILING_IMAGE in image else State.STARTED
        starting = (after_s, State.STARTING)
        return [starting] if STALLING_IMAGE in image else [starting, (seconds, last)]

    def happen(self, machine: Machine, kind: str, source: str, at_ms: int) -> None:
        """An event of a machine."""
        machine.events.append(Event(self.new_ulid(at_ms), kind, machine.state.value, source, at_ms))
        if len(machine.events) > EVENTS_KEPT_MAX:
            del machine.events[0]
        machine.updated_ms = at_ms

    def pass_time(self) -> None:
        """Whatever is due by now happens, at the time at which it was due."""
        now_ms = self.now_ms()
        for machine in list(self._moving.values()):
            while machine.schedule and machine.schedule[0][0] <= now_ms:
                at_ms, state = machine.schedule.pop(0)
                self._enter(machine, state, at_ms)
            if not machine.schedule:
                self._moving.pop(machine.id, None)
        for app in [app for app in self._leaving if app.gone_ms is not None and app.gone_ms <= now_ms]:
            self._leaving.remove(app)
            self._take_away(app)
        for wait in list(self._waits):
            wait.look()

    def _enter(self, machine: Machine, state: State, at_ms: int) -> None:
        machine.state = state
        self.happen(machine, EVENT_TYPES.get(state, "update"), "flyd", at_ms)
        machine.state_event_id = machine.events[-1].id
        if state is State.STARTED:
            env = {**machine.secrets, **(machine.config.get("env") or {})}
            machine.running = Running(at_ms, machine.instance_id, str(machine.config.get("image")), env)
        else:
            machine.running = None
        if state is State.DESTROYED:
            self._let_go_of_volumes(machine.id)

    def _let_go_of_volumes(self, machine_id: str) -> None:
        for volume in self.volumes.values():
            if volume.machine_id == machine_id:
                volume.machine_id = ""

    # leases

    def lease_of(self, machine: Machine) -> Lease | None:
        """The one that holds now."""
        if machine.lease is not None and machine.lease.expires_ms <= self.now_ms():
            machine.lease = None
        return machine.lease

    def grant_lease(self, machine: Machine, ttl_s: int, description: str = "") -> Lease:
        expires_ms = self.now_ms() + ttl_s * 1000
        machine.lease = Lease(self.new_hex(12), LEASE_OWNER, description, expires_ms)
        return machine.lease

    def check_lease(self, machine: Machine, nonce: str) -> None:
        """Whether who shows this nonce, or none (""), may change a machine now. Raises RefusedError."""
        lease = self.lease_of(machine)
        if lease is None:
            if nonce and self.habits.refuses_stale_nonce:
                raise errors.not_leased()
        elif nonce != lease.nonce:
            raise errors.leased(machine.id, lease.owner, instant(lease.expires_ms // 1000 * 1000))

    # room

    def check_room(self, region: str, host: str, *, has_volume: bool) -> None:
        """Whether a machine may run there. Raises RefusedError."""
        for place in (region, host):
            shortage = self.habits.shortages.get(place)
            if shortage is not None and (has_volume or shortage is not Shortage.VOLUME):
                raise errors.no_room(shortage, place)

    def check_host(self, machine: Machine) -> None:
        """Whether a machine may run again where it is. Raises RefusedError."""
        shortage = self.habits.shortages.get(machine.host)
        if shortage is not None:
            raise errors.no_room(shortage, machine.host)

    # waiting

    def enter_wait(self, wait: "Wait") -> None:
        self._waits.add(wait)

    def leave_wait(self, wait: "Wait") -> None:
        self._waits.discard(wait)


class Wait:
    """A request that waits until a machine is in one of these states, or its time is over.

    `version`: only that instance counts; "" any. `after`: the id of an event, and only what came after it counts.
    """

    def __init__(
        self,
        organization: Organization,
        machine: Machine,
        wished: Iterable[str],
        *,
        timeout_s: int,
        version: str = "",
        after: str = "",
    ) -> None:
        self._organization = organization
        self._machine = machine
        self._wished = tuple(wished)
        self._version = version
        self._after = after
        self._until_ms = organization.now_ms() + timeout_s * 1000
        self._over: asyncio.Future[None] | None = None

    @property
    def is_reached(self) -> bool:
        machine = self._machine
        is_settled = "settled" in self._wished and not machine.schedule and machine.state in RESTING
        if not (is_settled or machine.state in self._wished):
            return False
        if self._version and self._version != machine.instance_id:
            return False
        return self._after < machine.state_event_id  # ids sort by time

    def look(self) -> None:
        """End the wait if there is nothing more to wait for."""
        if self._over is not None and not self._over.done() and self._is_over():
            self._over.set_result(None)

    def _is_over(self) -> bool:
        return self.is_reached or self._organization.now_ms() >= self._until_ms

    async def wait(self) -> None:
        self._over = asyncio.get_running_loop().create_future()
        self._organization.enter_wait(self)
        try:
            self.look()
            await self._over
        finally:
            self._organization.leave_wait(self)

    def outcome(self) -> dict[str, Any]:
        """What is answered when it is over. Raises RefusedError."""
        machine = self._machine
        if not self.is_reached:
            raise errors.not_reached(", ".join(self._wished), machine.state.value)
        return {
            "ok": True,
            "state": machine.state.value,
            "event_id": machine.state_event_id,
            "version": machine.instance_id,
        }
