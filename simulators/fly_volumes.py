"""Volumes of the simulated Fly."""

import re
from collections.abc import Mapping

from metering.clock import instant
from simulators import fly_errors as errors
from simulators.fly_habits import Shortage
from simulators.fly_organization import Organization
from simulators.fly_state import OFF, Volume
from simulators.fly_turn import Call, Given, Handler, given

NAME = re.compile(r"[a-z0-9_]{1,30}")
SIZE_GB_DEFAULT, SIZE_GB_MAX = 3, 500
RETENTION_DAYS_MAX = 60
REGION_DEFAULT = "sjc"
ID_LENGTH = 17


class Volumes:
    """Their endpoints. A name is not unique: who asks for one again gets a second volume of it."""

    def __init__(self, organization: Organization) -> None:
        self._organization = organization
        self.routes: Mapping[str, Handler] = {
            "GET /apps/{app}/volumes": self._list,
            "POST /apps/{app}/volumes": self._create,
            "GET /apps/{app}/volumes/{volume}": lambda call: given(self._volume(call).as_json()),
            "PUT /apps/{app}/volumes/{volume}": self._update,
            "DELETE /apps/{app}/volumes/{volume}": self._delete,
            "PUT /apps/{app}/volumes/{volume}/extend": self._extend,
            "GET /apps/{app}/volumes/{volume}/snapshots": lambda call: given(self._volume(call).snapshots),
            "POST /apps/{app}/volumes/{volume}/snapshots": self._snapshot,
        }

    def _volume(self, call: Call) -> Volume:
        """Also one that was deleted within a day. Raises RefusedError."""
        app = self._organization.app(call.ids["app"])
        for volume in self._organization.app_volumes(app):
            if volume.id == call.ids["volume"]:
                return volume
        raise errors.not_found("volume")

    def _list(self, call: Call) -> Given:
        app = self._organization.app(call.ids["app"])
        return given([volume.as_json() for volume in self._organization.app_volumes(app)])

    def _create(self, call: Call) -> Given:
        organization, fields = self._organization, call.fields()
        app = organization.app(call.ids["app"])
        name, region = fields.get("name") or "", fields.get("region") or REGION_DEFAULT
        source = self._source(fields.get("source_volume_id"))
        size_gb = fields.get("size_gb") or (source.size_gb if source else SIZE_GB_DEFAULT)
        retention = fields.get("snapshot_retention") or 5
        if not NAME.fullmatch(name):
            raise errors.invalid("name may only contain lowercase letters, numbers and underscores")
        if not 1 <= size_gb <= SIZE_GB_MAX or not 1 <= retention <= RETENTION_DAYS_MAX:
            raise errors.invalid("size_gb or snapshot_retention is out of range")
        if organization.habits.shortages.get(region) is Shortage.VOLUME:
            raise errors.no_room(Shortage.VOLUME, region)
        now_ms = organization.now_ms()
        volume = Volume(
            id=f"vol_{organization.new_hex(ID_LENGTH)}",
            app=app,
            name=name,
            region=region,
            host=organization.next_host(region),
            size_gb=size_gb,
            created_ms=now_ms,
            updated_ms=now_ms,
            is_encrypted=fields.get("encrypted", True),
            snapshot_retention=retention,
            has_backup=fields.get("auto_backup_enabled", True),
        )
        organization.volumes[volume.id] = volume
        return given(volume.as_json())

    def _source(self, volume_id: str | None) -> Volume | None:
        """The one to fork. Raises RefusedError."""
        if not volume_id:
            return None
        source = self._organization.volumes.get(volume_id)
        if source is None or not source.exists:
            raise errors.not_found("source volume")
        return source

    def _update(self, call: Call) -> Given:
        volume, fields = self._volume(call), call.fields()
        volume.snapshot_retention = fields.get("snapshot_retention", volume.snapshot_retention)
        volume.has_backup = fields.get("auto_backup_enabled", volume.has_backup)
        volume.updated_ms = self._organization.now_ms()
        return given(volume.as_json())

    def _delete(self, call: Call) -> Given:
        """One of a machine stays bound to it until that is destroyed; the words are a guess."""
        volume = self._volume(call)
        if volume.is_attached:
            raise errors.precondition(f"volume is currently bound to machine {volume.machine_id}")
        if volume.exists:
            volume.deleted_ms = volume.updated_ms = self._organization.now_ms()
        return given(volume.as_json())

    def _extend(self, call: Call) -> Given:
        volume, size_gb = self._volume(call), call.fields().get("size_gb") or 0
        if not volume.size_gb < size_gb <= SIZE_GB_MAX:
            raise errors.invalid(f"size_gb must be more than {volume.size_gb}")
        volume.size_gb = size_gb
        volume.updated_ms = self._organization.now_ms()
        machine = self._organization.machines.get(volume.machine_id)
        needs_restart = machine is not None and machine.state not in OFF
        return given({"volume": volume.as_json(), "needs_restart": needs_restart})

    def _snapshot(self, call: Call) -> Given:
        volume, now_ms = self._volume(call), self._organization.now_ms()
        snapshot = {
            "id": f"vs_{self._organization.new_hex(ID_LENGTH)}",
            "created_at": instant(now_ms),
            "status": "created",
            "retention_days": volume.snapshot_retention,
        }
        volume.snapshots.append(snapshot)
        return given(snapshot)
