"""Who is being served, so that whoever loses access meanwhile is cut off: a user is disabled, a gateway token (or one that
it comes from) is revoked or expires, and for a websocket also when the plan has its surface no more.

Costs a request nothing but its place in a set. Workers hear of changes a few times a second (see auth.py); what ends by
itself, an expiry or a plan's time, is found by a look every LOOK_S.
"""

import asyncio
from collections.abc import Collection
from contextlib import suppress
from typing import Protocol

from metering.admission import Caller
from metering.errors import Reason, Refused
from proxy.auth import Authenticator
from proxy.remembered import AccessKey

LOOK_S = 0.5
"""Between two looks at those who are being served."""
LOOKED_AT_PER_TURN = 200
"""Of them, before other work gets its turn on the event loop."""
LOST = frozenset({Reason.UNAUTHENTICATED, Reason.FORBIDDEN, Reason.UNKNOWN_OPERATION})
"""Refusals that say that access is lost; others (a store in trouble) say nothing of it."""


class Guest(Protocol):
    """Somebody who is being served."""

    access_key: AccessKey

    def require_access(self, caller: Caller) -> None:
        """Raises Refused where the caller, as it is now, would not be let in to this."""

    def lose_access(self, refused: Refused) -> None:
        """Called once, with what would be answered now."""


class Access:
    """The guests of one worker."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._guests: set[Guest] = set()
        self._news = asyncio.Event()
        authenticator.on_changes.append(self._heard)

    def enter(self, guest: Guest) -> None:
        self._guests.add(guest)

    def leave(self, guest: Guest) -> None:
        """May be called for who has never entered."""
        self._guests.discard(guest)

    def _heard(self, _seq: int, changed: Collection[tuple[str, str]] | None) -> None:
        """Told when the authenticator has forgotten what they are about."""
        if self._guests and (changed is None or any(kind in {"user", "token"} for kind, _ in changed)):
            self._news.set()

    async def look(self) -> None:
        """Cut off whoever has lost access. Nobody, while the store cannot say who has."""
        has_news = self._news.is_set()
        self._news.clear()
        for index, guest in enumerate(list(self._guests)):
            if index % LOOKED_AT_PER_TURN == LOOKED_AT_PER_TURN - 1:
                await asyncio.sleep(0)
            if not has_news and not self._authenticator.may_end(guest.access_key):
                continue
            try:
                guest.require_access(await self._authenticator.let_in(guest.access_key))
            except Refused as refused:
                if refused.reason is Reason.STORE_UNAVAILABLE:
                    self._news.set()  # for the next look
                    return
                if refused.reason in LOST and guest in self._guests:
                    self._guests.discard(guest)
                    guest.lose_access(
                        Refused(refused.reason, refused.message)
                    )  # without the frames it passed

    async def keep_looking(self) -> None:
        """Look forever."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._news.wait()
            await self.look()
            if self._news.is_set():
                await asyncio.sleep(LOOK_S)
