"""What passes on a websocket of events, as its declaration says: what a client may ask for, and what of a vendor's words
is about whom. Sans-I/O: whose an object is, others look up.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from metering.errors import Reason, Refused
from metering.objects import ObjectId
from proxy.ownership import ID_CHARS_MAX
from proxy.surface import EventSocket

CHOICES_MAX = 100
"""Items of one list in a client's message."""
TOLD_OF_MAX = 1_000
"""Objects that one message of a vendor's may be about: each is looked up."""


def asked(socket: EventSocket, text: str) -> dict[str, list[str]]:
    """The lists of a client's message, none of them empty but what it chose so. Raises Refused(BAD_REQUEST).

    A message is written anew from them (`as_message`): of a key that stands in it twice, a vendor may take the other.
    """
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise Refused(Reason.BAD_REQUEST, "Invalid JSON.") from None
    if not isinstance(message, dict) or message.get("type") != socket.asks:
        raise Refused(Reason.BAD_REQUEST, f"type: only {socket.asks!r} is understood here.")
    of_ids = {place.many for place in socket.ids}
    lists = {}
    for name, value in message.items():
        if name == "type" or value is None:
            continue
        if name not in of_ids and name not in socket.choices:
            raise Refused(Reason.BAD_REQUEST, f"{name[:ID_CHARS_MAX]}: not available through this proxy.")
        if not isinstance(value, list) or len(value) > CHOICES_MAX or not all(map(_is_word, value)):
            words = f"{name}: a list of at most {CHOICES_MAX} texts of 1 to {ID_CHARS_MAX} characters is expected."
            raise Refused(Reason.BAD_REQUEST, words)
        if value or name not in of_ids:  # no ids at all is what an empty list of them means
            lists[name] = value
    return lists


def as_message(socket: EventSocket, lists: Mapping[str, list[str]]) -> str:
    """What a client asked for, as it goes up."""
    return orjson.dumps({"type": socket.asks, **lists}).decode()


def named(socket: EventSocket, vendor: str, lists: Mapping[str, list[str]]) -> set[ObjectId]:
    """The objects that a client asked to hear of."""
    return {
        ObjectId(vendor, place.kind, each.lower() if place.is_caseless else each)
        for place in socket.ids
        for each in lists.get(place.many, ())
    }


def told_of(socket: EventSocket, vendor: str, message: Mapping[str, Any]) -> set[ObjectId] | None:
    """The objects that a vendor's message is about; None where what stands in their place is no id, or they are too many."""
    found = set()
    for holder in _objects(message, socket.contents):
        for place in socket.ids:
            many = holder.get(place.many)
            values = [holder[place.one]] if holder.get(place.one) is not None else []
            values += many if isinstance(many, list) else [] if many is None else [many]
            for value in values:
                if not _is_word(value):
                    return None
                found.add(ObjectId(vendor, place.kind, value.lower() if place.is_caseless else value))
    return found if len(found) <= TOLD_OF_MAX else None


def shown(socket: EventSocket, message: dict[str, Any], text: str) -> str:
    """A vendor's message as it goes down: as it came, but for the fields of our account."""
    if any(f'"{name}"' in text for name in socket.conceals):
        for holder in _objects(message, ()):
            for name, word in socket.conceals.items():
                if name in holder:
                    holder[name] = word
        return orjson.dumps(message).decode()
    return text


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= ID_CHARS_MAX


def _objects(message: Mapping[str, Any], without: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Every object in a message, not looking into some fields; never recursive."""
    level: list[Any] = [message]
    while level:
        node = level.pop()
        if isinstance(node, dict):
            yield node
            level += [value for name, value in node.items() if name not in without]
        elif isinstance(node, list):
            level += node
