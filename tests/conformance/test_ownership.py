"""Whose is what: tested for every operation that names objects or hands them out, from the declarations alone."""

import orjson
import pytest

from metering.errors import Reason
from metering.objects import ObjectId, Objects
from metering.store.writer import Done
from proxy.ownership import handed_out
from proxy.surface import HandsOut, Inbound, Names, Operation, Surface
from routes import SURFACES
from simulators.script import Ready, head
from tests.conformance.test_surfaces import Stage, body_with, staged

NAMING = [
    pytest.param((surface, operation, name), id=f"{surface.name} {operation.name} {where}")
    for surface in SURFACES
    for operation in surface.operations
    if not operation.is_websocket
    for name in operation.names
    for where in [name.path_param or name.query_param or f"{name.body_field} {name.may_be_unknown}"]
]


def applicable(operation: Operation) -> list[HandsOut]:
    """Where the answer to the example itself hands out ids."""
    body = operation.example.body
    inbound = Inbound(operation.method, {}, b"", [], body, orjson.loads(body) if body else {})
    return [place for place in operation.hands_out if place.when is None or place.when(inbound)]


HANDING_OUT = [
    pytest.param((surface, operation), id=f"{surface.name} {operation.name}")
    for surface in SURFACES
    for operation in surface.operations
    if applicable(operation)
]
SOMEBODYS = "obj_of_somebody_else"
Naming = tuple[Surface, Operation, Names]
HandingOut = tuple[Surface, Operation]


async def bind(stage: Stage, kind: str, upstream_id: str, user_id: str) -> None:
    objects = Objects(stage.gateway.service.store, stage.gateway.clock)
    one = ObjectId(stage.surface.provider, kind, upstream_id)
    assert isinstance(await objects.bind([one], user_id, "req_before"), Done)


async def ask_for(stage: Stage, operation: Operation, name: Names, upstream_id: str, *, token: str):
    """The operation's example, with `upstream_id` in the place where it names an object."""
    path, body = operation.example.path, operation.example.body
    if name.path_param:
        _, params = stage.mounted.match(operation.method, path.partition("?")[0].encode())
        path = path.replace(params[name.path_param], upstream_id, 1)
    elif name.query_param:
        path = f"{path.partition('?')[0]}?{name.query_param}={upstream_id}"
    else:
        body = body_naming(operation, name, upstream_id)
    return await stage.ask(operation, path=path, body=body, token=token)


def body_naming(operation: Operation, name: Names, upstream_id: str) -> bytes:
    way, _, last = name.body_field.rpartition(".")
    if not way:
        return body_with(operation, last, upstream_id)
    reference = {last: upstream_id}
    # What may be unknown carries its own content: an id alone would be a reference to what is kept.
    item = {last: upstream_id, "type": "message", "role": "user", "content": "x"}
    candidates = [item] if name.may_be_unknown else [reference, item]
    holder = next(one for one in candidates if name.when is None or name.when(one))
    return body_with(operation, way, [holder])


async def owners(stage: Stage) -> dict[tuple[str, str], str]:
    rows = await stage.gateway.service.store.readers.rows(
        "SELECT kind, upstream_id, user_id FROM owned_objects WHERE vendor = ?1", (stage.surface.provider,)
    )
    return {(str(kind), str(upstream_id)): str(user_id) for kind, upstream_id, user_id in rows}


@pytest.mark.parametrize("case", NAMING)
async def test_an_object_of_another_user_does_not_exist(tmp_path, case: Naming):
    surface, operation, name = case
    async with staged(surface, tmp_path) as stage:
        await stage.gateway.new_token("u2")
        await bind(stage, name.kind, SOMEBODYS, "u2")
        answer = await ask_for(stage, operation, name, SOMEBODYS, token=stage.token)
        message = stage.assert_dialect(answer, Reason.OBJECT_NOT_FOUND, facts=name.facts)
        assert message == name.words.replace("{id}", SOMEBODYS)
        if name.path_param:
            spelled = await ask_for(stage, operation, name, "obj%5Fof%5fsomebody_else", token=stage.token)
            stage.assert_dialect(spelled, Reason.OBJECT_NOT_FOUND, facts=name.facts)
        assert len(stage.vendor.requests) == 0
        assert await stage.gateway.entries() == []


@pytest.mark.parametrize("case", NAMING)
async def test_an_object_of_nobody_looks_the_same_as_one_of_another_user(tmp_path, case: Naming):
    surface, operation, name = case
    async with staged(surface, tmp_path) as stage:
        answer = await ask_for(stage, operation, name, "obj_of_nobody", token=stage.token)
        if name.may_be_unknown:
            assert answer.status == 200
            return
        message = stage.assert_dialect(answer, Reason.OBJECT_NOT_FOUND, facts=name.facts)
        assert message == name.words.replace("{id}", "obj_of_nobody")
        assert len(stage.vendor.requests) == 0


@pytest.mark.parametrize("case", NAMING)
async def test_an_object_of_ones_own_is_reached(tmp_path, case: Naming):
    surface, operation, name = case
    async with staged(surface, tmp_path) as stage:
        await bind(stage, name.kind, SOMEBODYS, "u1")
        stage.vendor.answers_any_path_of = operation
        answer = await ask_for(stage, operation, name, SOMEBODYS, token=stage.token)
        assert answer.status == 200
        (request,) = stage.vendor.asked
        assert SOMEBODYS.encode() in request.target.encode() + request.body


@pytest.mark.parametrize("case", NAMING)
async def test_what_is_no_id_is_refused_before_it_is_looked_up(tmp_path, case: Naming):
    surface, operation, name = case
    async with staged(surface, tmp_path) as stage:
        answer = await ask_for(stage, operation, name, "x" * 600, token=stage.token)
        stage.assert_dialect(answer, Reason.BAD_REQUEST)
        assert len(stage.vendor.requests) == 0


def ids_of(surface: Surface, operation: Operation) -> set[tuple[str, str]]:
    """What the example's answer hands out."""
    answer = operation.example.answer
    if operation.example.answer_content_type.startswith("text/event-stream"):
        lines = [line.removeprefix(b"data:") for line in answer.splitlines() if line.startswith(b"data:")]
        texts = [line for line in lines if line.strip() != b"[DONE]"]
    else:
        texts = [answer]
    found = [handed_out(surface.provider, operation.hands_out, orjson.loads(text)) for text in texts]
    return {(one.kind, one.upstream_id) for ids in found for one in ids}


@pytest.mark.parametrize("case", HANDING_OUT)
async def test_what_is_handed_out_belongs_to_the_user_who_asked(tmp_path, case: HandingOut):
    surface, operation = case
    ids = ids_of(surface, operation)
    assert ids, "an example that hands out nothing"
    kinds = {place.kind for place in applicable(operation)}
    assert {kind for kind, _ in ids} == kinds, "an example that leaves out a kind"
    async with staged(surface, tmp_path) as stage:
        answer = await stage.ask(operation)
        assert answer.status == 200
        if operation.replies is None:
            assert answer.body == operation.example.answer
        found = await owners(stage)
        assert {key: owner for key, owner in found.items() if key in ids} == dict.fromkeys(ids, "u1")


@pytest.mark.parametrize("case", HANDING_OUT)
async def test_an_id_never_gets_a_second_owner_though_the_vendor_repeats_it(tmp_path, case: HandingOut):
    surface, operation = case
    new = list(ids_of(surface, operation))
    async with staged(surface, tmp_path) as stage:
        other = await stage.gateway.new_token("u2")
        named = stage.named_by_example(operation)
        for kind, upstream_id in new:
            if (kind, upstream_id) not in named:
                await bind(stage, kind, upstream_id, "u2")
        answer = await stage.ask(operation)
        assert answer.status in ({200, 502} if operation.chooses is None else {403})
        handed = [upstream_id for kind, upstream_id in new if (kind, upstream_id) not in named]
        assert handed, "an example that hands out nothing new"
        for upstream_id in handed:
            assert upstream_id.encode() not in answer.body
        found = await owners(stage)
        assert {found[key] for key in new if key not in named} == {"u2"}
        assert other


@pytest.mark.parametrize("case", HANDING_OUT)
async def test_an_answer_whose_ids_cannot_be_read_does_not_pass(tmp_path, case: HandingOut):
    surface, operation = case

    def place_of(place: HandsOut) -> bytes:
        return place.path.rpartition(".")[2].encode()

    async with staged(surface, tmp_path) as stage:
        broken = b'{"' + place_of(operation.hands_out[0]) + b'":"obj_secret'
        if operation.example.answer_content_type.startswith("text/event-stream"):
            broken = b"data: " + broken + b"\n\n"
        headers = [
            ("Content-Type", operation.example.answer_content_type),
            ("Content-Length", str(len(broken))),
        ]
        stage.vendor.answers_with = Ready(head(200, headers) + broken)
        answer = await stage.ask(operation)
        assert b"obj_secret" not in answer.body
        assert (b"obj_secret",) not in await owners(stage)
        await stage.gateway.entries()
