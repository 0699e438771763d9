"""Fly's Machines API, simulated: apps with their addresses and secrets, volumes, and machines that boot, sleep and go.

It keeps state: what one request makes, the next one finds. Facts about the vendor come from its documentation, its
OpenAPI document and its own clients; what none of them says is marked as a guess where it is decided, or is one of the
`Habits`. What an answer does comes as `simulators.vendor` says, and whether the work behind it is done as
`simulators.stateful` says.

Behind an app's address is a gateway (`simulators.fly_gateway`): who probes it sees what really reached the machine.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from metering.clock import Clock, SystemClock
from simulators import fly_errors as errors
from simulators import fly_gateway
from simulators.fly_apps import Apps
from simulators.fly_behaviour import (
    PLAIN,
    Behaviour,
    answers,
    answers_late,
    breaks_after,
    drops,
    fails,
    hangs,
    loses_reply,
    parse_simulate,
    stalls_after,
)
from simulators.fly_gateway import TOKEN, Gateways
from simulators.fly_habits import FAILING_IMAGE, STALLING_IMAGE, Habits, Rates, Shortage
from simulators.fly_life import Life
from simulators.fly_limits import Limits
from simulators.fly_lists import Lists
from simulators.fly_machines import Command, Machines, Ran
from simulators.fly_organization import ORG_SLUG, Billed, Organization, Wait
from simulators.fly_schema import PREFIX, OpenApi
from simulators.fly_state import Address, App, Lease, Machine, State, Volume
from simulators.fly_turn import Call, Handler, Turn, given
from simulators.fly_volumes import Volumes
from simulators.paths import decoded, found, routes
from simulators.script import Answer, Later, Ready, Script
from simulators.server import ReceivedRequest
from simulators.vendor import Options, RefusedError, VendorSimulator

__all__ = [
    "FAILING_IMAGE",
    "ORG_SLUG",
    "PLAIN",
    "STALLING_IMAGE",
    "TOKEN",
    "VENDOR_KEY",
    "Behaviour",
    "Billed",
    "Command",
    "FlySimulator",
    "Habits",
    "Invalid",
    "Ran",
    "Rates",
    "Shortage",
    "State",
    "answers",
    "answers_late",
    "breaks_after",
    "drops",
    "fails",
    "hangs",
    "loses_reply",
    "stalls_after",
]

VENDOR_KEY = "fm2_simulated_organization_token"
"""The platform's own token, of the whole organization; what `fly tokens create` puts before it is left out."""
TICK_S = 0.05
"""How often what is due happens though nobody asks."""
REFUSED_KEPT_MAX = 1000
"""Of those in `invalid` and in `limited`; others are only answered."""


@dataclass(frozen=True, slots=True)
class Invalid:
    """A request that does not fit the vendor's OpenAPI document, and what of it."""

    method: str
    target: str
    body: bytes
    problems: tuple[str, ...]


class FlySimulator(VendorSimulator[Behaviour, Turn]):
    """`https://api.machines.dev/v1` at `/v1` of a loopback port, and `https://{app}.fly.dev` at `/gateway/{app}`.

    Time is `clock`'s, and runs ahead of it by what `advance` adds. `habits` may be exchanged while it runs. `openapi` is
    the path of the vendor's document: what does not fit it is refused with 400 and kept in `invalid`. `seed` is that of
    all ids. Call its methods in its own event loop.
    """

    vendor_key = VENDOR_KEY
    behaviour_type = Behaviour
    turn_type = Turn
    parse_simulate = staticmethod(parse_simulate)

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        habits: Habits = Habits(),  # noqa: B008 - it cannot change
        openapi: Path | None = None,
        seed: int = 0,
        **options: Unpack[Options[Behaviour]],
    ) -> None:
        super().__init__(**options)
        self.organization = Organization(clock or SystemClock(), habits=habits, seed=seed)
        self.invalid: list[Invalid] = []
        self.limited: list[ReceivedRequest] = []
        """What was answered with 429 because it came too often."""
        self._openapi = None if openapi is None else OpenApi(openapi)
        self._limits = Limits()
        self._machines = Machines(self.organization)
        self._life = Life(self.organization)
        self._gateways = Gateways(self.organization, self._life)
        parts = (
            Apps(self.organization),
            Volumes(self.organization),
            self._machines,
            self._life,
            Lists(self.organization),
        )
        table: dict[str, tuple[str, Handler]] = {
            line: (line, handler) for part in parts for line, handler in part.routes.items()
        }
        self._routes = routes(table, PREFIX)
        self._ticking: asyncio.TimerHandle | None = None

    # what there is

    @property
    def apps(self) -> list[App]:
        """Those that exist, with their addresses and secrets."""
        return list(self.organization.apps.values())

    @property
    def machines(self) -> list[Machine]:
        """Those that exist; every one that there was is in `organization.machines`."""
        return [machine for machine in self.organization.machines.values() if machine.exists]

    @property
    def volumes(self) -> list[Volume]:
        """Those that exist; every one that there was is in `organization.volumes`."""
        return [volume for volume in self.organization.volumes.values() if volume.exists]

    @property
    def ips(self) -> dict[str, list[Address]]:
        """By app."""
        return {app.name: list(app.addresses) for app in self.apps}

    @property
    def secrets(self) -> dict[str, dict[str, str]]:
        """Names and values by app."""
        return {app.name: {name: secret.value for name, secret in app.secrets.items()} for app in self.apps}

    @property
    def leases(self) -> dict[str, Lease]:
        """Those that hold now, by machine."""
        held = {machine.id: self.organization.lease_of(machine) for machine in self.machines}
        return {machine_id: lease for machine_id, lease in held.items() if lease is not None}

    @property
    def billed(self) -> Billed:
        """What is paid for now."""
        return self.organization.billed

    @property
    def executed(self) -> list[tuple[str, Command]]:
        """Every command that ran, with the machine that it ran in."""
        return self._machines.executed

    # what a test makes happen

    def advance(self, seconds: float) -> None:
        """Let time pass for this organization, and do what is due then."""
        self.organization.ahead_ms += round(seconds * 1000)
        self.pass_time()

    def pass_time(self) -> None:
        """Do what is due by now; every request does so first, too."""
        self.organization.pass_time()
        self._happened()

    def set_habits(self, habits: Habits) -> None:
        self.organization.habits = habits

    def run_commands(self, commands: Callable[[Machine, Command], Ran]) -> None:
        """What commands in machines come to from now on: nothing and 0, unless told."""
        self._machines.commands = commands

    def fall_idle(self, machine: Machine) -> None:
        """Nobody has asked for a machine for long: it is stopped or suspended, if its services say so."""
        self._life.idle(machine)
        self._happened()

    def crash(self, machine: Machine) -> None:
        """What runs in a machine ends, and is not started again."""
        self.organization.become(machine, State.FAILED)
        self._happened()

    # running

    async def start(self, *, host: str = "127.0.0.1", port: int = 0) -> str:
        url = await super().start(host=host, port=port)
        self._tick()
        return url

    async def stop(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        await super().stop()

    def _tick(self) -> None:
        self.pass_time()
        self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    # answering

    def answer(self, request: ReceivedRequest) -> Answer:
        self.pass_time()
        return super().answer(request)

    def route(self, request: ReceivedRequest) -> Callable[[Turn], Answer]:
        path = decoded(request.path)
        gateway = fly_gateway.PATH.fullmatch(path)
        if gateway is not None:
            name = gateway["app"]
            return lambda turn: self._gateway(turn, name)
        self._check_fit(request)
        match = found(self._routes, request.method, path)
        if match is None:
            raise errors.no_route(path)
        (action, handler), ids = match
        self._check_token(request)
        self._check_rate(request, action, ids)
        return lambda turn: self._handle(turn, handler, ids)

    def authenticate(self, request: ReceivedRequest) -> None:
        """Done by `route`: before it is asked for, nothing may be counted, and a gateway has a token of its own."""

    def _check_fit(self, request: ReceivedRequest) -> None:
        problems = [] if self._openapi is None else self._openapi.problems(request)
        if problems:
            if len(self.invalid) < REFUSED_KEPT_MAX:
                self.invalid.append(Invalid(request.method, request.target, request.body, tuple(problems)))
            raise errors.invalid("; ".join(problems))

    def _check_token(self, request: ReceivedRequest) -> None:
        scheme, _, token = request.header(b"authorization").partition(b" ")
        if scheme not in (b"Bearer", b"FlyV1") or not token or self.api_key not in (None, token):
            raise errors.unauthorized()

    def _check_rate(self, request: ReceivedRequest, action: str, ids: Mapping[str, str]) -> None:
        habits = self.organization.habits
        if habits.rates is None or self._limits.allows(habits.rates, action, ids, self.organization.now_ms()):
            return
        if len(self.limited) < REFUSED_KEPT_MAX:
            self.limited.append(request)
        raise errors.limited(habits.limited_body, habits.limited_retry_after_s)

    def _handle(self, turn: Turn, handler: Handler, ids: Mapping[str, str]) -> Answer:
        if not turn.behaviour.takes_effect:
            return turn.give_nothing()
        answer = handler(Call(turn.request, ids))
        self._happened()
        if isinstance(answer, Wait):
            return Later(answer, lambda: self._waited(turn, answer))
        return turn.give(answer)

    def _waited(self, turn: Turn, wait: Wait) -> Script | Ready:
        try:
            return turn.give(given(wait.outcome()))
        except RefusedError as refusal:
            return self._refuse(turn.request, refusal)

    def _gateway(self, turn: Turn, name: str) -> Answer:
        if not turn.behaviour.takes_effect:
            return turn.give_nothing()
        app = self._gateways.app(name)
        return fly_gateway.UNRESOLVED if app is None else turn.give(self._gateways.answer(turn.request, app))
