"""What readers have in common of vendors that tell of their work as one JSON object, whoever asks for it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from metering.usage import Usage
from proxy.surface import PASS_ALL, Demand
from routes.counting import object_of


class ToldObject(ABC):
    """Reads such an object, of so many bytes at most."""

    __slots__ = ("_body", "_has_ended", "demand", "told")

    BODY_BYTES_MAX = 1024 * 1024

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.told: Mapping[str, Any] | None = None
        """Once it is read; None where it is none."""
        self._body = bytearray()
        self._has_ended = False

    def feed(self, chunk: bytes) -> int:
        if len(self._body) <= self.BODY_BYTES_MAX:
            self._body += chunk
        return PASS_ALL

    def end(self) -> None:
        self._has_ended = True
        found = object_of(bytes(self._body)) if len(self._body) <= self.BODY_BYTES_MAX else {}
        self.told = found if self.is_one(found) else None

    @staticmethod
    @abstractmethod
    def is_one(told: Mapping[str, Any]) -> bool:
        """Whether an object is such."""

    @abstractmethod
    def usage(self) -> Usage:
        """As Observer says."""

    @property
    def is_complete(self) -> bool:
        return self._has_ended and self.told is not None

    @property
    def at_boundary(self) -> bool:
        return False

    @property
    def error(self) -> str | None:
        return None


def instant_of(text: Any) -> datetime | None:
    """Of a text in ISO 8601; without a zone it is UTC."""
    if not isinstance(text, str):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
