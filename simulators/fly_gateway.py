"""What runs in the machines of the simulated Fly, as the world reaches it at an app's own address.

It stands for an agent's gateway: let in is who shows the token that the machine has in its environment.
"""

import re

import orjson

from simulators.fly_life import Life
from simulators.fly_organization import Organization
from simulators.fly_state import App, Machine, Running, State
from simulators.fly_turn import Given, given
from simulators.script import Disconnect, Script
from simulators.server import ReceivedRequest
from simulators.vendor import RefusedError

PATH = re.compile(r"/gateway/(?P<app>[^/]+)(?:/.*)?")
TOKEN = "OPENCLAW_GATEWAY_TOKEN"
UNRESOLVED = Script(before=(Disconnect(),))
"""No app of this name, or none that has an address: nobody finds it, so there is no answer at all."""


class Gateways:
    """`/gateway/{app}/...` is what `https://{app}.fly.dev/...` would be."""

    def __init__(self, organization: Organization, life: Life) -> None:
        self._organization = organization
        self._life = life

    def app(self, name: str) -> App | None:
        """The app that the world finds by this name, if any."""
        app = self._organization.apps.get(name)
        return app if app is not None and app.is_public else None

    def answer(self, request: ReceivedRequest, app: App) -> Given:
        """What the machine says: which version answers, with which environment. Raises RefusedError: 502 until one that
        serves has been started long enough, 401 without its token."""
        machine = self._serving(app)
        running = machine.running
        if running is None or not self._answers(running):
            raise _unreachable("the machine does not answer yet")
        token = running.env.get(TOKEN, "")
        if not token or token not in _shown(request):
            raise RefusedError(401, "", body=orjson.dumps({"error": {"message": "Unauthorized"}}))
        return given(
            {
                "ok": True,
                "machine_id": machine.id,
                "instance_id": running.instance_id,
                "image": running.image,
                "env": dict(running.env),
            }
        )

    def _serving(self, app: App) -> Machine:
        """The one that requests go to; one that sleeps is woken if it says so. Raises RefusedError."""
        machines = [
            machine
            for machine in self._organization.app_machines(app)
            if machine.services and not machine.is_cordoned
        ]
        for machine in machines:
            if machine.running is not None:
                return machine
        for machine in machines:
            wakes = any(service.get("autostart") for service in machine.services)
            if wakes and machine.state in (State.STOPPED, State.SUSPENDED):
                self._life.start(machine)
                return machine
        raise _unreachable("no machine to serve this")

    def _answers(self, running: Running) -> bool:
        ready_ms = running.since_ms + round(self._organization.habits.gateway_s * 1000)
        return self._organization.now_ms() >= ready_ms


def _unreachable(message: str) -> RefusedError:
    return RefusedError(502, message)


def _shown(request: ReceivedRequest) -> tuple[str, str]:
    """The tokens that a request shows: as a bearer, and in its query."""
    authorization = request.header(b"authorization").decode("latin-1")
    return authorization.removeprefix("Bearer "), request.query.get("token", "")
