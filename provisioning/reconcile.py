"""What Fly has beside what is on record: things that nobody knows, things that are gone, machines that are not as they should be.

A look reports. With `repairs` it mends, too: it wishes anew what has drifted or gone, and deletes what is certainly ours, unknown, and
older than an hour.
"""

import logging
from collections.abc import Mapping
from typing import Any

from metering.clock import instant
from metering.values import immutable
from provisioning.changes import differences
from provisioning.fly import FlyError, Machine, Trouble
from provisioning.instances import GONE, MACHINE_KIND, VOLUME, Instance
from provisioning.run import Parts, Run

logger = logging.getLogger(__name__)

YOUNG_MS = 3_600_000
"""What changed within the last hour may be on its way."""
FINDINGS_MAX = 1_000
ACTOR = "reconcile"


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
        fly, machines = self._parts.fly, self._parts.machines
        # Fly first: what is made after that is on record, but not in these lists, and is not looked for.
        apps = [name for name in await fly.apps() if name.startswith(machines.app_prefix)]
        there, volumes = await fly.org_machines(), await fly.org_volumes()
        instances = {one.app_name: one for one in await machines.instances.all()}
        resources = await machines.instances.open_resources()
        known = {(one.kind, one.upstream_id) for one in resources if one.state == "live"}
        living = {name: one for name, one in instances.items() if one.status != GONE}
        for name in apps:
            if name not in living:
                await self._unknown_app(name, [each for each in there if each.app_name == name])
        for found in there:
            if found.app_name in living and (MACHINE_KIND, found.id) not in known:
                one = living[found.app_name]
                self._note(Finding("unknown_machine", found.app_name, found.id, one.user_id), one)
        for app_name, volume in volumes:
            if app_name in living and (VOLUME, volume.id) not in known:
                await self._unknown_volume(app_name, volume.id, volume.machine_id, living[app_name])
        for one in living.values():
            if one.is_settled and one.ready_at_ms is not None:
                await self._drift(one)
        self._findings += [
            Finding("lost", each.name, "a browser context of that name may exist at the vendor", each.user_id)
            for each in resources
            if each.state == "lost"
        ]
        looked_at = {
            "apps": len(apps),
            "machines": len(there),
            "volumes": len(volumes),
            "instances": len(instances),
        }
        return Reconciled(looked_at, tuple(self._findings[:FINDINGS_MAX]))

    def _note(self, finding: Finding, one: Instance) -> None:
        """Unless it may be on its way."""
        if one.is_settled:
            self._findings.append(finding)

    async def _unknown_app(self, name: str, there: list[Machine]) -> None:
        """One with our prefix that nobody has. It is deleted only if every machine in it says that it is one of ours."""
        whose = {found.metadata.get("automna_user", "") for found in there}
        is_certain = bool(whose) and "" not in whose
        done = ""
        if self._repairs and is_certain and self._is_old(there):
            await self._parts.fly.delete_app(name)
            done = "deleted"
        what = f"{len(there)} machines, on no record" + (
            "" if is_certain else "; not certainly ours: look yourself"
        )
        self._findings.append(Finding("unknown_app", name, what, done=done))

    def _is_old(self, there: list[Machine]) -> bool:
        before = instant(self._parts.clock.now_ms() - YOUNG_MS)
        return all(found.updated_at and found.updated_at < before for found in there)

    async def _unknown_volume(
        self, app_name: str, volume_id: str, machine_id: str | None, one: Instance
    ) -> None:
        done = ""
        if self._repairs and one.is_settled and machine_id is None:
            await self._parts.fly.delete_volume(app_name, volume_id)
            done = "deleted"
        self._note(Finding("unknown_volume", app_name, volume_id, one.user_id, done), one)

    async def _drift(self, one: Instance) -> None:
        """Whether a machine is there, and as the template and its user's plan want it."""
        run = await self._run(one)
        row = run.live(MACHINE_KIND)
        found = None
        try:
            if row is not None and row.upstream_id is not None:
                found = await self._parts.fly.machine(one.app_name, row.upstream_id)
        except FlyError as error:
            if error.trouble is Trouble.UNAUTHORIZED:
                raise
            self._findings.append(Finding("unreachable", one.app_name, str(error), one.user_id))
            return
        if found is None:
            await self._mend(
                one, Finding("missing_machine", one.app_name, "it is not there any more", one.user_id)
            )
        elif found.config is not None:
            secret = await run.secret_of(found)
            changed = ["token"] if secret is None else differences(found.config, await run.config(secret))
            if changed:
                await self._mend(one, Finding("drift", one.app_name, ", ".join(changed), one.user_id))

    async def _run(self, one: Instance) -> Run:
        """A run that only looks."""
        run = Run(self._parts, self._parts.machines.instances.unclaimed(one))
        await run.load()
        return run

    async def _mend(self, one: Instance, finding: Finding) -> None:
        done = ""
        if self._repairs and await self._parts.machines.instances.wish(one, one.desired, actor=ACTOR):
            done = "wished anew"
        self._findings.append(Finding(finding.kind, finding.app, finding.what, finding.user_id, done))
