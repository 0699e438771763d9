"""Credentials that are remembered, by what they were let in with; and which of them a change is about.

There may be hundreds of thousands, and a change comes every second somewhere: whoever is concerned is found by an index,
never by looking through all.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from metering.admission import Caller
from metering.users import Credential

AccessKey = bytes | str
"""By what somebody was let in: a gateway token, or the id of one, where a ticket stands for it."""


@dataclass(slots=True)
class Known:
    """What is remembered of a gateway token."""

    credential: Credential
    caller: Caller | None = None
    """Whoever has it, where that ends only by a word in the store."""

    @property
    def may_end(self) -> bool:
        """By itself, when its time is over or its plan's."""
        return self.credential.expires_at_ms is not None or self.credential.next_plan is not None


class Remembered:
    """The `known_max` that were asked for last."""

    def __init__(self, known_max: int) -> None:
        self._known_max = known_max
        self._known: OrderedDict[AccessKey, Known] = OrderedDict()
        self._of_token, self._of_user = _Keys(), _Keys()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def subjects(self) -> int:
        """Of how many tokens and users a change would be heard."""
        return len(self._of_token) + len(self._of_user)

    def peek(self, key: AccessKey) -> Known | None:
        """As `get`, which leaves it as old as it was."""
        return self._known.get(key)

    def get(self, key: AccessKey) -> Known | None:
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
        return known

    def put(self, key: AccessKey, credential: Credential) -> None:
        self._drop(key)
        self._known[key] = Known(credential)
        self._of_user.add(credential.user_id, key)
        for token_id in _line_of(credential):
            self._of_token.add(token_id, key)
        if len(self._known) > self._known_max:
            self._drop(next(iter(self._known)))

    def forget(self, changed: Iterable[tuple[str, str]]) -> None:
        """All that a change is about, as (kind, id): a token's also those that come from it."""
        for kind, subject in changed:
            keys = {"token": self._of_token, "user": self._of_user}.get(kind)
            for key in () if keys is None else keys.of(subject):
                self._drop(key)

    def clear(self) -> None:
        self._known.clear()
        self._of_token, self._of_user = _Keys(), _Keys()

    def _drop(self, key: AccessKey) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self._of_user.discard(known.credential.user_id, key)
            for token_id in _line_of(known.credential):
                self._of_token.discard(token_id, key)


def _line_of(credential: Credential) -> Iterator[str]:
    yield credential.token_id
    yield from credential.ancestors


class _Keys:
    """Keys by what they are about. Mostly one, which stands there by itself: a set for each would take more than all else."""

    def __init__(self) -> None:
        self._found: dict[str, AccessKey | set[AccessKey]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, subject: str, key: AccessKey) -> None:
        found = self._found.setdefault(subject, key)
        if isinstance(found, set):
            found.add(key)
        elif found != key:
            self._found[subject] = {found, key}

    def discard(self, subject: str, key: AccessKey) -> None:
        found = self._found.get(subject)
        if isinstance(found, set):
            found.discard(key)
            if not found:
                del self._found[subject]
        elif found == key:
            del self._found[subject]

    def of(self, subject: str) -> Collection[AccessKey]:
        found = self._found.get(subject)
        if found is None:
            return ()
        return tuple(found) if isinstance(found, set) else (found,)
