"""How an answer behaves where the vendor keeps state.

It has two halves: the work (a message goes out, a browser is started) and the word of it. By default an error does no
work and everything else does, before the first byte of the answer: what then hangs, drops or breaks off is a reply lost
after the work.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from simulators import behaviour, vendor
from simulators.behaviour import Behaviours, Word
from simulators.script import Pause, Ready, Script, Waitable

UNAVAILABLE = 503


@dataclass(frozen=True, slots=True)
class Behaviour(behaviour.Behaviour):
    """`works`: whether the request takes effect; None: unless it is answered by an error or by a body given here."""

    works: bool | None = None

    @property
    def takes_effect(self) -> bool:
        return not self.is_error and self.raw is None if self.works is None else self.works


StatefulT = TypeVar("StatefulT", bound=Behaviour)


class StatefulBehaviours(Behaviours[StatefulT]):
    """The behaviours of one vendor by helper, with those that part the work from the word of it."""

    def hangs(self, *, gate: Waitable | None = None, works: bool = True, **more: Any) -> StatefulT:
        """The work at once, and then no answer, not even a head, until the gate opens or for ever.

        `works=False`: no work, then or later; what comes after the gate is 503.
        """
        return super().hangs(gate=gate, works=works, **more)

    def drops(self, *, is_reset: bool = False) -> StatefulT:
        """The connection ends where the head should be, and nothing was done."""
        return replace(super().drops(is_reset=is_reset), works=False)

    def loses_reply(self, *, is_reset: bool = False) -> StatefulT:
        """The work is done, and the connection ends where the head should be."""
        return replace(super().drops(is_reset=is_reset), works=True)

    def answers_late(self, seconds: float, **more: Any) -> StatefulT:
        """The ordinary answer, so many seconds after the work."""
        return self._kind(before=(Pause(seconds),), **more)


class Turn(vendor.Turn[StatefulT]):
    """One request with its behaviour, where there may be no work to tell of."""

    def give_nothing(self) -> Script | Ready:
        """Where no work is to be done: the behaviour's own error or body, else what comes after its silence."""
        if self.is_ordinary:
            self.behaviour = replace(self.behaviour, status=UNAVAILABLE)
        return self.json(b"")


WORKS: dict[str, Word] = {"works": lambda given, _: {"works": given == "1"}}
"""A word of the `x-simulate` header: `drop=1` loses the reply, `drop=1,works=0` the request."""
