"""What was made for a websocket's client that named nothing: it stays for a while after the client has left, for the same gateway
token's next one. Agents look whether a browser answers before they use it, and each look would be billed as a session.

Meanwhile a connection of our own keeps the vendor from ending it. Known to one worker: another makes its own.
"""

import asyncio
import logging
from dataclasses import dataclass
from urllib.parse import quote

from websockets.exceptions import ConnectionClosed

from metering.errors import Refused
from metering.objects import ObjectId
from metering.tasks import spawn
from proxy.handshakes import AnsweredError, VendorSide, dial
from proxy.mounted import Mounted
from proxy.side_calls import SideCalls
from proxy.surface import Operation
from proxy.upstream import CancelledUnsent, Origin, UpstreamClient, UpstreamError

logger = logging.getLogger(__name__)

Key = tuple[str, str]
"""The surface, and the id of the gateway token."""


@dataclass(eq=False)
class Held:
    """One object, with a client or waiting for one."""

    key: Key
    one: ObjectId
    mounted: Mounted
    operation: Operation
    """That makes such."""
    linger_s: float
    clients: int = 1
    """That it was made for, to begin with."""
    timer: asyncio.TimerHandle | None = None
    keeper: "asyncio.Task[None] | None" = None
    side: VendorSide | None = None


class Lingering:
    """Those of one worker. As many as there are sessions that were made so: plans bound them."""

    def __init__(
        self, calls: SideCalls, client: UpstreamClient, *, connect_s: float, ping_timeout_s: float
    ) -> None:
        self._calls = calls
        self._client = client
        self._connect_s = connect_s
        self._ping_timeout_s = ping_timeout_s
        self._held: dict[ObjectId, Held] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._held)

    def take(self, key: Key) -> ObjectId | None:
        """One that waits for its user's next client, for this one, who has entered it with that."""
        one = next((held.one for held in self._held.values() if held.key == key and not held.clients), None)
        if one is not None:
            self.entered(one)
        return one

    def made(self, held: Held) -> None:
        """One was made for a client that enters it now."""
        self._held[held.one] = held

    def entered(self, one: ObjectId) -> None:
        """One client more, whether it has named it or not."""
        held = self._held.get(one)
        if held is not None:
            held.clients += 1
            if held.timer is not None:
                held.timer.cancel()

    def keep(self, one: ObjectId, origin: Origin, target: str) -> None:
        """Keep it at the vendor beside its client: there is a websocket of it."""
        held = self._held.get(one)
        if held is not None and held.linger_s > 0 and held.keeper is None:
            held.keeper = spawn(self._keep(held, origin, target), name="lingering")

    def left(self, one: ObjectId) -> None:
        """One client less: it has left, or could not be connected. Without any it waits; what no connection of ours keeps is
        offered to nobody."""
        held = self._held.get(one)
        if held is None:
            return
        held.clients -= 1
        if held.clients:
            return
        if held.keeper is None:
            self._expire(held)
            return
        held.timer = asyncio.get_running_loop().call_later(held.linger_s, self._expire, held)

    def forget(self, one: ObjectId) -> None:
        """It has ended."""
        held = self._held.pop(one, None)
        if held is None:
            return
        if held.timer is not None:
            held.timer.cancel()
        if held.side is not None:
            held.side.transport.abort()

    def stop(self) -> None:
        """The vendor ends what nobody is connected to."""
        for one in list(self._held):
            self.forget(one)

    async def _keep(self, held: Held, origin: Origin, target: str) -> None:
        tls = self._client.tls() if origin.scheme == "https" else None
        try:
            held.side = await dial(origin, target, [], tls, self._connect_s, self._ping_timeout_s)
            if self._held.get(held.one) is not held:
                held.side.transport.abort()
            while True:
                await held.side.recv()  # whatever it says of what others do there
        except ConnectionClosed:
            pass
        except (UpstreamError, AnsweredError, CancelledUnsent) as error:
            logger.warning("%s is not kept for its user's next connection: %s", held.one, error)
        held.side = held.keeper = None
        if self._held.get(held.one) is held and not held.clients:  # nobody is there, nothing keeps it
            self._expire(held)

    def _expire(self, held: Held) -> None:
        self.forget(held.one)
        ending = spawn(self._end(held), name="end of what lingered")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, held: Held) -> None:
        ending = held.operation.ending
        if ending is None:
            return
        path = ending.path.replace("{id}", quote(held.one.upstream_id, safe=""))
        try:
            await self._calls.tell(held.mounted, ending.method, path.encode(), ending.body)
        except Refused as refused:  # the vendor ends it by itself, and a poll finds out
            logger.warning("%s was not ended at once: %s", held.one, refused)
