"""Which objects a request names, and which an answer hands out, as the declarations say.

A request that names another user's object is refused as if the object did not exist. An answer's new ids are
bound to its user before the bytes that carry them go down (see gate.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metering.errors import Reason, Refused
from metering.objects import ObjectId, Objects
from proxy.json_walk import values_at
from proxy.query import values_of
from proxy.surface import Chooses, Fills, HandsOut, Home, Inbound, Names, Surface

ID_CHARS_MAX = 512
"""Longer ones are no vendor's: they are refused before they are looked up."""
NAMED_MAX = 20_000
"""Objects that one request may name; a conversation of a million tokens has fewer items."""


async def check_owner(
    objects: Objects, vendor: str, user_id: str, names: Sequence[Names], inbound: Inbound
) -> bool:
    """Refuse a request that names what is not its user's; whether it names anything. Raises Refused:
    OBJECT_NOT_FOUND, BAD_REQUEST, STORE_UNAVAILABLE."""
    for name in names:
        if name.is_required and not any(ids_of(name, inbound)):
            where = name.query_param or name.body_field
            raise Refused(Reason.BAD_REQUEST, f"{where}: must be given.")
    named = [
        (ObjectId(vendor, name.kind, upstream_id.lower() if name.is_caseless else upstream_id), name)
        for name in names
        if not _is_absent(name, inbound)
        for upstream_id in ids_of(name, inbound)
    ]
    if not named:
        return False
    if len(named) > NAMED_MAX:
        raise Refused(Reason.BAD_REQUEST, f"The request names more than {NAMED_MAX:,} objects.")
    owners = await objects.owners({one for one, _ in named}, asking=user_id)
    for one, name in named:
        owner = owners.get(one)
        if owner != user_id and not (owner is None and name.may_be_unknown):
            raise Refused(
                Reason.OBJECT_NOT_FOUND,
                name.words.replace("{id}", one.upstream_id),
                facts={"kind": one.kind, **name.facts},
            )
    return True


async def fill(
    objects: Objects, vendor: str, user_id: str, fills: Sequence[Fills], inbound: Inbound
) -> dict[str, str]:
    """What stands for the user's own objects where a request names none, by field; what it does name must be theirs.
    Raises Refused: BAD_REQUEST, OBJECT_NOT_FOUND, STORE_UNAVAILABLE."""
    filled: dict[str, str] = {}
    for one in fills:
        if (given := inbound.fields.get(one.field)) is not None:
            if not isinstance(given, str):
                raise Refused(Reason.BAD_REQUEST, f"{one.field}: must be a text.")
            await check_owner(
                objects, vendor, user_id, (Names(one.kind, one.others, body_field=one.field),), inbound
            )
            continue
        own = await objects.first_of(vendor, one.kind, user_id)
        if own is None:
            raise Refused(Reason.BAD_REQUEST, one.words, facts={"kind": one.kind})
        filled[one.field] = own
    return filled


async def check_choice(
    objects: Objects, vendor: str, user_id: str, choice: Chooses, inbound: Inbound
) -> None:
    """Refuse a request that would make what has another owner. Raises Refused: FORBIDDEN, STORE_UNAVAILABLE."""
    upstream_id = choice.id_of(inbound.fields)
    if upstream_id is None:
        return
    one = ObjectId(vendor, choice.kind, upstream_id)
    if (await objects.owners({one})).get(one, user_id) != user_id:
        raise Refused(Reason.FORBIDDEN, choice.words, facts={"kind": choice.kind})


def handed_out(vendor: str, places: Sequence[HandsOut], answer: Any) -> list[ObjectId]:
    """The ids that a decoded body, or an event's data, carries; each once."""
    if not isinstance(answer, Mapping):
        return []
    found = [
        ObjectId(vendor, place.kind, value.lower() if place.is_caseless else value)
        for place in places
        for value in values_at(answer, tuple(place.path.split(".")))
        if isinstance(value, str) and 0 < len(value) <= ID_CHARS_MAX
    ]
    return list(dict.fromkeys(found))


def object_id(surfaces: Sequence[Surface], vendor: str, kind: str, upstream_id: str) -> ObjectId:
    """As it is bound: in lower case where a declaration says that ids of the kind are the same in any case."""
    places: list[HandsOut | Names | Home] = []
    for surface in surfaces:
        if surface.provider == vendor:
            places += surface.homes
            for operation in surface.operations:
                places += (*operation.hands_out, *operation.names)
    is_caseless = any(place.kind == kind and place.is_caseless for place in places)
    return ObjectId(vendor, kind, upstream_id.lower() if is_caseless else upstream_id)


def _is_absent(name: Names, inbound: Inbound) -> bool:
    """The usual case, told without a generator: the field at the top that would name something is not there."""
    top, _, below = name.body_field.partition(".")
    return bool(top) and (
        inbound.fields.get(top) is None
        or (bool(below) and not inbound.below(top).may_hold(below.rpartition(".")[2]))
    )


def ids_of(name: Names, inbound: Inbound) -> Iterator[str]:
    """What stands in a place where a request names objects. Raises Refused(BAD_REQUEST) where that is no id."""
    if name.path_param:
        values: Sequence[Any] = [inbound.path_params[name.path_param]]
    elif name.query_param:
        values = values_of(name.query_param, inbound.query)
    else:
        values = list(_in_body(name, inbound))
    for value in values:
        if not isinstance(value, str) or not 0 < len(value) <= ID_CHARS_MAX:
            where = name.path_param or name.query_param or name.body_field
            raise Refused(
                Reason.BAD_REQUEST, f"{where}: an id of at most {ID_CHARS_MAX} characters is expected."
            )
        yield value


def _in_body(name: Names, inbound: Inbound) -> Iterator[Any]:
    """Nulls name nothing."""
    *way, last = name.body_field.split(".")
    holders = values_at(inbound.fields, tuple(way)) if way else (inbound.fields,)
    for holder in holders:
        for item in holder if type(holder) is list else (holder,):
            value = item.get(last) if type(item) is dict else None
            if value is not None and (name.when is None or name.when(item)):
                if type(value) is list:
                    yield from value
                else:
                    yield value
