"""The lists of all machines and volumes of the simulated organization, page by page, the longest unchanged first."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from metering.clock import instant, ms_of
from simulators import fly_errors as errors
from simulators.fly_apps import check_org
from simulators.fly_machines import is_meant
from simulators.fly_organization import Organization
from simulators.fly_state import Machine, Volume
from simulators.fly_turn import Call, Given, Handler, given

PAGE_MAX = 1000
ListedT = TypeVar("ListedT", Machine, Volume)


class Lists:
    """Their endpoints. What is new is missing for a while, as the vendor says that it may be."""

    def __init__(self, organization: Organization) -> None:
        self._organization = organization
        self.routes: Mapping[str, Handler] = {
            "GET /orgs/{org}/machines": self._machines,
            "GET /orgs/{org}/volumes": self._volumes,
        }

    def _machines(self, call: Call) -> Given:
        meant = [machine for machine in self._organization.machines.values() if is_meant(machine, call)]
        page, more = self._page(call, meant)
        shown = [machine.overview() for machine in page]
        if call.is_asked("summary"):
            for each in shown:
                del each["config"]
        return given({"machines": shown, "error_regions": [], **more, "last_machine_id": _last_id(page)})

    def _volumes(self, call: Call) -> Given:
        now_ms, region = self._organization.now_ms(), call.asked("region")
        meant = [
            volume
            for volume in self._organization.volumes.values()
            if volume.is_listed(now_ms) and region in ("", volume.region)
        ]
        page, more = self._page(call, meant)
        shown = [volume.overview() for volume in page]
        return given({"volumes": shown, **more, "last_volume_id": _last_id(page)})

    def _page(self, call: Call, things: list[ListedT]) -> tuple[list[ListedT], dict[str, Any]]:
        """A page, and what is said of the next. Raises RefusedError."""
        check_org(call.ids["org"])
        limit = call.integer("limit", PAGE_MAX, least=1, most=PAGE_MAX)
        since = _since(call)
        until_ms = self._organization.now_ms() - round(self._organization.habits.org_list_lag_s * 1000)
        known = sorted((each for each in things if each.created_ms <= until_ms), key=_place)
        rest = [each for each in known if _place(each) > since]
        page = rest[:limit]
        more = {
            "last_updated_at": instant(page[-1].updated_ms) if page else "",
            "next_cursor": _cursor(page[-1]) if len(rest) > limit else "",
        }
        return page, more


def _place(thing: Machine | Volume) -> tuple[int, str]:
    return thing.updated_ms, thing.id


def _last_id(page: Sequence[Machine | Volume]) -> str:
    return page[-1].id if page else ""


def _cursor(thing: Machine | Volume) -> str:
    return base64.urlsafe_b64encode(f"{thing.updated_ms}:{thing.id}".encode()).decode()


def _since(call: Call) -> tuple[int, str]:
    """The place after which a page begins: the cursor's, else the instant's. Raises RefusedError."""
    cursor, updated_after = call.asked("cursor"), call.asked("updated_after")
    try:
        if cursor:
            at_ms, _, thing_id = base64.urlsafe_b64decode(cursor).decode().partition(":")
            return int(at_ms), thing_id
        if updated_after:
            at = datetime.fromisoformat(updated_after)
            return ms_of(at), "~"  # after every id of that instant
    except (ValueError, TypeError, binascii.Error) as error:
        raise errors.invalid("cursor or updated_after is not one") from error
    return -1, ""
