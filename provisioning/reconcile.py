"""What Fly has beside what is on record: things that nobody knows, things that are gone, machines that are not as they should be.

A look reports. With `repairs` it mends, too, by wishing anew: a worker does what is to be done, under a claim, with the rows as they
are then. Only a volume of ours that nothing mounts, that is on no record and older than an hour, is deleted by the look itself.
"""

from collections.abc import Mapping
from typing import Any

from metering.clock import instant
from metering.values import immutable
from provisioning import names
from provisioning.changes import differences
from provisioning.errors import ProvisioningError
from provisioning.fly import FlyError, Machine, Trouble, Volume
from provisioning.instances import (
    DEPROVISIONING,
    GONE,
    MACHINE_KIND,
    STOPPED,
    SUSPENDED,
    VOLUME,
    Instance,
)
from provisioning.run import FAILED, OFF, STORE, Parts, Run

YOUNG_MS = 3_600_000
"""What changed within the last hour may be on its way."""
FINDINGS_MAX = 1_000
ACTOR = "reconcile"
WISHED = "wished anew"
MENDED = frozenset({"missing_machine", "failed_machine", "running_machine", "drift"})
"""Kinds of findings that a new wish mends."""


@immutable
class Finding:
    """Something that is not as it should be. `user_id`: whose, where that is known; `done`: what was done about it."""

    kind: str
    app: str
    what: str
    user_id: str | None = None
    done: str = ""

    @property
    def line(self) -> str:
        return f"{self.kind} in {self.app}: {self.what}" + (f"; {self.done}" if self.done else "")

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "app": self.app,
            "what": self.what,
            "user": self.user_id,
            "done": self.done,
        }


@immutable
class Reconciled:
    """What one look found."""

    looked_at: Mapping[str, int]
    findings: tuple[Finding, ...]

    def as_json(self) -> dict[str, Any]:
        return {"looked_at": dict(self.looked_at), "findings": [one.as_json() for one in self.findings]}


async def reconcile(parts: Parts, *, repairs: bool) -> Reconciled:
    """One look. Raises FlyError, Refused(STORE_UNAVAILABLE)."""
    return await _Look(parts, repairs=repairs).through_all()


class _Look:
    def __init__(self, parts: Parts, *, repairs: bool) -> None:
        self._parts = parts
        self._repairs = repairs
        self._findings: list[Finding] = []

    async def through_all(self) -> Reconciled:
        fly, instances = self._parts.fly, self._parts.machines.instances
        # Fly first: what is made after that is on record, but not in these lists, and is not looked for.
        apps = [name for name in await fly.apps() if name.startswith(self._parts.machines.app_prefix)]
        machines, volumes = await fly.org_machines(), await fly.org_volumes()
        for name in apps:
            in_it = [found for found in machines if found.app_name == name]
            one = await instances.of_app(name)
            if one is None or one.status == GONE:
                await self._unknown_app(name, in_it, one)
            elif one.is_settled:  # else it may be on its way
                await self._unknown_things(one, in_it, [each for app, each in volumes if app == name])
        count = 0
        async for one in instances.every():
            count += 1
            if one.status != GONE:
                await self._instance(one)
        looked_at = {
            "apps": len(apps),
            "machines": len(machines),
            "volumes": len(volumes),
            "instances": count,
        }
        return Reconciled(looked_at, tuple(self._findings[:FINDINGS_MAX]))

    async def _unknown_app(self, name: str, there: list[Machine], one: Instance | None) -> None:
        """One with our prefix that nobody has. It goes if it is that of a user whose machine is gone, and says that it is on this
        store's record: anything else may be another deployment's, or newer than the copy that this store was restored from."""
        store_id, before_ms = await self._parts.machines.store_id(), self._parts.clock.now_ms() - YOUNG_MS
        is_ours = all(found.metadata.get(STORE) == store_id for found in there)
        is_old = one is not None and one.is_settled and one.updated_at_ms < before_ms
        done = ""
        if self._repairs and one is not None and is_old and is_ours:
            wished = await self._parts.machines.instances.wish(one, GONE, status=DEPROVISIONING, actor=ACTOR)
            done = WISHED if wished else ""
        what = f"{len(there)} machines, on no record" + ("" if is_ours else "; not of this store")
        whose = None if one is None else one.user_id
        self._findings.append(Finding("unknown_app", name, what, whose, done))

    async def _unknown_things(self, one: Instance, machines: list[Machine], volumes: list[Volume]) -> None:
        instances = self._parts.machines.instances
        for found in machines:
            if not await instances.is_known(MACHINE_KIND, found.id):
                self._findings.append(Finding("unknown_machine", one.app_name, found.id, one.user_id))
        ours = {names.volume(number) for number in range(1, one.generation + 1)}
        before = instant(self._parts.clock.now_ms() - YOUNG_MS)
        for volume in volumes:
            if await instances.is_known(VOLUME, volume.id):
                continue
            is_idle = volume.name in ours and volume.machine_id is None and volume.created_at < before
            if self._repairs and is_idle:
                await self._parts.fly.delete_volume(one.app_name, volume.id)
            done = "deleted" if self._repairs and is_idle else ""
            self._findings.append(Finding("unknown_volume", one.app_name, volume.id, one.user_id, done))

    async def _instance(self, one: Instance) -> None:
        """What of it nobody can look up, and whether its machine is there, and as its template, plan and wish want it."""
        run = await self._run(one)
        self._findings += [
            Finding("lost", one.app_name, f"{each.kind} {each.name} may exist", one.user_id, "on record")
            for each in run.resources
            if each.state == "lost"
        ]
        if not one.is_settled or one.ready_at_ms is None:
            return
        row = run.live(MACHINE_KIND)
        try:
            found = (
                None
                if row is None or row.upstream_id is None
                else await self._parts.fly.machine(one.app_name, row.upstream_id)
            )
            kind, what = await self._difference(run, found)
        except FlyError as error:
            if error.trouble is Trouble.UNAUTHORIZED:
                raise
            kind, what = "unreachable", str(error)
        except ProvisioningError as error:
            kind, what = "not_configured", error.detail
        if kind in MENDED:
            await self._mend(one, Finding(kind, one.app_name, what, one.user_id))
        elif kind:
            self._findings.append(Finding(kind, one.app_name, what, one.user_id))

    async def _difference(self, run: Run, found: Machine | None) -> tuple[str, str]:
        """What is not as it should be, as a finding's kind and words; "" where nothing is."""
        if found is None:
            return "missing_machine", "it is not there any more"
        if found.state in FAILED:
            return "failed_machine", f"{found.id} is {found.state}"
        if run.instance.aim in {STOPPED, SUSPENDED} and found.state not in OFF:
            return "running_machine", f"{found.id} is {found.state}, and shall be {run.instance.aim}"
        if found.config is None:
            return "unreachable", f"the host of {found.id} cannot be asked"
        secret = await run.secret_of(found)
        changed = ["token"] if secret is None else differences(found.config, await run.config(secret))
        return ("drift", ", ".join(changed)) if changed else ("", "")

    async def _run(self, one: Instance) -> Run:
        """A run that only looks."""
        run = Run(self._parts, self._parts.machines.instances.unclaimed(one))
        await run.load()
        return run

    async def _mend(self, one: Instance, finding: Finding) -> None:
        done = ""
        if self._repairs and await self._parts.machines.instances.wish(one, one.desired, actor=ACTOR):
            done = WISHED
        self._findings.append(Finding(finding.kind, finding.app, finding.what, finding.user_id, done))
