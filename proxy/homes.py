"""What a user has at a vendor from their first request on: a part of the shared account that is theirs alone.

Made when it is first needed, once: two requests of a worker make it together, two workers by a name for it that the
vendor takes for the same thing. Bound like every other object before anybody hears of it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from urllib.parse import quote

import orjson

from metering.admission import OwnersChangedError
from metering.errors import Reason, Refused
from metering.objects import ObjectId, Objects, user_tag
from metering.store.writer import Declined
from metering.tasks import spawn
from proxy.mounted import Mounted
from proxy.side_calls import SideCalls
from proxy.surface import Home

KNOWN_MAX = 20_000
"""Homes remembered in this process, for as long as they are their user's."""
ATTEMPTS_MAX = 2
"""To find a home that is not released in the same instant."""


class Homes:
    """The homes of all users, as one worker sees them."""

    def __init__(self, objects: Objects, calls: SideCalls) -> None:
        self._objects = objects
        self._calls = calls
        self._known: OrderedDict[tuple[str, str, str], str] = OrderedDict()
        self._making: dict[tuple[str, str, str], asyncio.Task[str | Refused]] = {}

    async def of(self, mounted: Mounted, names: tuple[str, ...], user_id: str) -> Mapping[str, str]:
        """The ids of the user's homes of these names, made where there are none. Raises Refused."""
        return {name: await self._one(mounted, name, user_id) for name in names}

    async def _one(self, mounted: Mounted, name: str, user_id: str) -> str:
        key = (mounted.surface.provider, name, user_id)
        for _ in range(ATTEMPTS_MAX):
            found = self._known.get(key) or await self._together(mounted, key)
            one = _object(mounted, _home_of(mounted, name), found)
            if (await self._objects.owners([one], asking=user_id)).get(one) == user_id:
                return found
            self._known.pop(key, None)  # released since it was found
        raise OwnersChangedError

    async def _together(self, mounted: Mounted, key: tuple[str, str, str]) -> str:
        _, name, user_id = key
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = spawn(
                self._found_or_made(mounted, name, user_id), name=f"home {name}"
            )
            making.add_done_callback(lambda _: self._making.pop(key, None))
        found = await asyncio.shield(making)
        if isinstance(found, Refused):
            raise found
        if _home_of(mounted, name).may_end:
            return found
        self._known[key] = found
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return found

    async def _found_or_made(self, mounted: Mounted, name: str, user_id: str) -> str | Refused:
        """A refusal is handed to all who wait: nobody may be left, and then it is no defect."""
        home = _home_of(mounted, name)
        try:
            found = await self._objects.first_of(mounted.surface.provider, home.kind, user_id)
            return found or await self._make(mounted, home, user_id)
        except Refused as refused:
            return refused

    async def _make(self, mounted: Mounted, home: Home, user_id: str) -> str:
        outer = await self.of(mounted, home.within, user_id)
        path = home.path
        for name, upstream_id in outer.items():
            path = path.replace(f"{{{name}}}", quote(upstream_id, safe=""))
        body = orjson.dumps(home.body(user_tag(user_id)))
        made = (await self._calls.post(mounted, path.encode(), body)).get(home.id_field)
        if not isinstance(made, str) or not made:
            raise Refused(
                Reason.UPSTREAM_UNREACHABLE, f"{mounted.surface.name} made a {home.kind} without an id."
            )
        if isinstance(
            await self._objects.bind([_object(mounted, home, made)], user_id, f"home:{home.name}"), Declined
        ):
            raise Refused(
                Reason.INTERNAL, f"{mounted.surface.name} made a {home.kind} that is another user's."
            )
        return made


def _object(mounted: Mounted, home: Home, upstream_id: str) -> ObjectId:
    spelt = upstream_id.lower() if home.is_caseless else upstream_id
    return ObjectId(mounted.surface.provider, home.kind, spelt)


def _home_of(mounted: Mounted, name: str) -> Home:
    return next(home for home in mounted.surface.homes if home.name == name)
