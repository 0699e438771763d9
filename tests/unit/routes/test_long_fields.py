"""Fields that are let go of once a request is priced: nobody asks for them after that."""

import orjson
import pytest

from metering.prices import PriceTable
from proxy.surface import LET_GO_BYTES_MAX, AnswerHead, Inbound, Pricing
from routes import SURFACES

CASES = [
    pytest.param(operation, id=f"{surface.name} {operation.name}")
    for surface in SURFACES
    for operation in surface.operations
    if operation.long_fields
]
each = pytest.mark.parametrize("operation", CASES)
LATER = (
    "edits_body", "edits_answer", "is_prepared", "is_about_scheduled", "homes", "fills", "chooses", "in_path",
)  # fmt: skip
"""Words by which a body is looked at behind its pricing."""
KINDS = (b"application/json", b"text/event-stream", b"")


class WithoutLong(dict):
    """Fields where nobody may ask for the long ones."""

    long_fields: tuple[str, ...] = ()

    def get(self, key, default=None):
        assert key not in self.long_fields
        return super().get(key, default)

    def __getitem__(self, key):
        assert key not in self.long_fields
        return super().__getitem__(key)

    def __contains__(self, key):
        assert key not in self.long_fields
        return super().__contains__(key)


def inbound_of(operation):
    path = operation.example.path
    model = path.rpartition("/")[2].partition(":")[0]
    query = path.partition("?")[2].encode()
    body = operation.example.body
    return Inbound(operation.method, {"model": model}, query, [], body, orjson.loads(body))


def test_those_of_conversations_are_declared():
    surfaces = {one.name for one in SURFACES if any(operation.long_fields for operation in one.operations)}
    assert surfaces == {"anthropic", "openai", "gemini"}


@each
def test_nobody_asks_for_them_when_a_request_is_priced(operation):
    inbound = inbound_of(operation)
    demand = operation.meter.read(inbound, Pricing(PriceTable.load(), 1_795_176_000_000, 2))
    fields = inbound.fields = WithoutLong(inbound.fields)
    fields.long_fields = operation.long_fields
    for kind in KINDS:
        operation.meter.observe(inbound, demand, AnswerHead(200, [(b"content-type", kind)]))
    for one in operation.hands_out:
        if one.when is not None:
            one.when(inbound)


@each
def test_no_declared_word_of_its_operation_needs_them_later(operation):
    assert [word for word in LATER if getattr(operation, word)] == []


@pytest.mark.parametrize("is_long", [False, True])
def test_the_fields_of_a_body_that_takes_long_to_parse_are_kept_for_another_step(is_long):
    body = orjson.dumps({"messages": "x" * (LET_GO_BYTES_MAX if is_long else 9), "stream": True})
    inbound = Inbound("POST", {}, b"", [], body, orjson.loads(body))
    walk = inbound.below("messages")
    inbound.let_go(("messages",))
    assert set(inbound.fields) == ({"messages", "stream"} if is_long else {"stream"})
    assert (inbound.below("messages") is walk) is is_long
    assert inbound.body == body
