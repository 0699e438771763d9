"""The life of a simulated machine: started, stopped, waited for, leased, labelled."""

from collections.abc import Mapping
from typing import Any

from simulators import fly_errors as errors
from simulators.fly_organization import Organization, Wait
from simulators.fly_state import OFF, Lease, Machine, State
from simulators.fly_turn import CREATED, EMPTY, OK, Call, Given, Handler, given

WAIT_S_MAX = 60
WAITED_FOR = ("started", "stopped", "suspended", "destroyed", "failed", "settled")
LEASE_S_DEFAULT = 30


class Life:
    """The endpoints of one machine that change how it is, without another configuration."""

    def __init__(self, organization: Organization) -> None:
        self._organization = organization
        one = "/apps/{app}/machines/{machine}"
        self.routes: Mapping[str, Handler] = {
            f"POST {one}/start": self._start,
            f"POST {one}/stop": self._stop,
            f"POST {one}/suspend": self._suspend,
            f"POST {one}/restart": self._restart,
            f"POST {one}/signal": self._signal,
            f"POST {one}/cordon": lambda call: self._cordon(call, is_cordoned=True),
            f"POST {one}/uncordon": lambda call: self._cordon(call, is_cordoned=False),
            f"GET {one}/wait": self._wait,
            f"GET {one}/lease": self._show_lease,
            f"POST {one}/lease": self._lease,
            f"DELETE {one}/lease": self._release,
            f"GET {one}/metadata": lambda call: given(self._organization.machine(call.ids).metadata),
            f"PUT {one}/metadata": lambda call: self._set_metadata(call, keeps=False),
            f"PATCH {one}/metadata": lambda call: self._set_metadata(call, keeps=True),
            f"GET {one}/metadata/{{key}}": self._value,
            f"POST {one}/metadata/{{key}}": self._set_value,
            f"DELETE {one}/metadata/{{key}}": self._delete_value,
        }

    def _changeable(self, call: Call) -> Machine:
        return self._organization.changeable(call.ids, call.nonce)

    # on and off

    def _start(self, call: Call) -> Given:
        machine = self._changeable(call)
        before = machine.state
        self.start(machine)
        return given({"previous_state": before.value, "migrated": False, "new_host": ""})

    def start(self, machine: Machine) -> None:
        """As the endpoint does, or the vendor's own proxy for a request to a machine that sleeps. Raises RefusedError."""
        organization = self._organization
        if machine.state in (State.STARTED, State.STARTING):
            return
        if machine.state is State.REPLACING:
            raise errors.precondition("machine getting replaced, refusing to start")
        is_prepared = machine.state is not State.CREATED or organization.now_ms() >= machine.prepared_ms
        if machine.state not in OFF or not is_prepared:
            words = f"unable to start machine from current state: '{machine.state.value}'"
            raise errors.precondition(words)
        organization.check_host(machine)
        organization.become(machine, *organization.booting(machine, organization.habits.start_s))

    def idle(self, machine: Machine) -> None:
        """As the vendor's own proxy does with one that nobody asks for."""
        wished = {service.get("autostop") for service in machine.services}
        stop_s = self._organization.habits.stop_s
        if machine.state is not State.STARTED or any(
            each.get("min_machines_running") for each in machine.services
        ):
            return
        if "suspend" in wished:
            self._organization.become(machine, State.SUSPENDING, (stop_s, State.SUSPENDED))
        elif wished & {"stop", True}:
            self._organization.become(machine, State.STOPPING, (stop_s, State.STOPPED))

    def _stop(self, call: Call) -> Given:
        machine, stop_s = self._changeable(call), self._organization.habits.stop_s
        if not machine.is_off:
            self._organization.become(machine, State.STOPPING, (stop_s, State.STOPPED))
        return OK

    def _suspend(self, call: Call) -> Given:
        machine, stop_s = self._changeable(call), self._organization.habits.stop_s
        if machine.state is not State.STARTED:
            words = f"unable to suspend machine from current state: '{machine.state.value}'"
            raise errors.precondition(words)
        self._organization.become(machine, State.SUSPENDING, (stop_s, State.SUSPENDED))
        return OK

    def _restart(self, call: Call) -> Given:
        machine, habits = self._changeable(call), self._organization.habits
        if machine.state is not State.STARTED:
            words = f"unable to restart machine from current state: '{machine.state.value}'"
            raise errors.precondition(words)
        boot = self._organization.booting(machine, habits.start_s, after_s=habits.stop_s)
        self._organization.become(machine, State.RESTARTING, *boot)
        return OK

    def _signal(self, call: Call) -> Given:
        machine = self._changeable(call)
        self._organization.happen(machine, "signal", "user", self._organization.now_ms())
        return OK

    def _cordon(self, call: Call, *, is_cordoned: bool) -> Given:
        self._changeable(call).is_cordoned = is_cordoned
        return OK

    # waited for

    def _wait(self, call: Call) -> Wait:
        machine = self._organization.machine(call.ids)
        wished = call.asked_list("state") or ["started"]
        version = call.asked("version") or call.asked("instance_id")
        if not set(wished) <= set(WAITED_FOR):
            raise errors.invalid(f"state must be one of {', '.join(WAITED_FOR)}")
        if "stopped" in wished and not version:
            raise errors.invalid("version is missing, which stopped needs")
        timeout_s = call.integer("timeout", WAIT_S_MAX, least=1, most=WAIT_S_MAX)
        after = call.asked("from_event_id")
        return Wait(self._organization, machine, wished, timeout_s=timeout_s, version=version, after=after)

    # leased

    def _show_lease(self, call: Call) -> Given:
        machine = self._organization.machine(call.ids)
        lease = self._organization.lease_of(machine)
        if lease is None:
            raise errors.not_found("lease")
        return given(_lease_json(machine, lease))

    def _lease(self, call: Call) -> Given:
        """A new lease; or, with the nonce of the one that holds, the same for longer."""
        organization, fields = self._organization, call.fields()
        machine, ttl_s = self._changeable(call), fields.get("ttl") or LEASE_S_DEFAULT
        lease = organization.lease_of(machine)
        if lease is None:
            lease = organization.grant_lease(machine, ttl_s, fields.get("description") or "")
        else:
            lease.expires_ms = organization.now_ms() + ttl_s * 1000
        return given(_lease_json(machine, lease), CREATED)

    def _release(self, call: Call) -> Given:
        machine = self._changeable(call)
        if self._organization.lease_of(machine) is None:
            raise errors.not_found("lease")
        machine.lease = None
        return OK

    # labelled

    def _set_metadata(self, call: Call, *, keeps: bool) -> Given:
        machine, fields = self._changeable(call), call.fields()
        if fields.get("machine_version") not in (None, "", machine.instance_id):
            raise errors.precondition("machine_version is not the current one")
        kept = machine.metadata if keeps else {}
        self._label(machine, {**kept, **(fields.get("metadata") or {})})
        return Given(status=EMPTY)

    def _value(self, call: Call) -> Given:
        machine, key = self._organization.machine(call.ids), call.ids["key"]
        if key not in machine.metadata:
            raise errors.not_found("metadata key")
        return given({"value": machine.metadata[key]})

    def _set_value(self, call: Call) -> Given:
        machine, value = self._changeable(call), call.fields().get("value")
        if not isinstance(value, str):
            raise errors.invalid("value is missing")
        self._label(machine, {**machine.metadata, call.ids["key"]: value})
        return Given(status=EMPTY)

    def _delete_value(self, call: Call) -> Given:
        machine = self._changeable(call)
        self._label(machine, {k: v for k, v in machine.metadata.items() if k != call.ids["key"]})
        return Given(status=EMPTY)

    def _label(self, machine: Machine, metadata: dict[str, str]) -> None:
        """It goes on running, and stays the same version."""
        machine.config["metadata"] = metadata
        self._organization.happen(machine, "update", "user", self._organization.now_ms())


def _lease_json(machine: Machine, lease: Lease) -> dict[str, Any]:
    data = {
        "nonce": lease.nonce,
        "expires_at": lease.expires_ms // 1000,
        "owner": lease.owner,
        "description": lease.description,
        "version": machine.instance_id,
    }
    return {"status": "success", "data": data}
