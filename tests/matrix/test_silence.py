"""What a client sees of a vendor that is silent for long before it begins, whatever it then says."""

import pytest
import pytest_asyncio

from simulators.script import Gate, Script, Send, WaitFor
from tests.matrix.caller import Caller
from tests.matrix.house import House
from tests.matrix.speeches import SPEECHES, STREAM, Speech

pytestmark = pytest.mark.asyncio(loop_scope="module")
COMMENT = b": waiting\n\n"
SILENCES = 3
STREAMS = [speech for speech in SPEECHES if speech.is_streaming]
WITHIN_S = 20.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory):
    async with House(tmp_path_factory.mktemp("silent")) as house:
        yield await house.gateway("soon spoken for"), house


async def asked(gateway, house, speech: Speech, script: Script) -> tuple[Caller, str]:
    user_id, token = await house.new_user(gateway)
    house.vendors[speech.dialect.vendor].next(script)
    caller = Caller()
    headers = [speech.dialect.key + token.encode(), b"anthropic-version: 2023-06-01"]
    await caller.ask(int(gateway.url.rpartition(":")[2]), speech.target, headers, speech.body())
    return caller, user_id


async def silences_pass(gateway, house) -> None:
    """Until another stream, of a surface with comments, has had some."""
    gate = Gate()
    other, _ = await asked(gateway, house, STREAM, Script(before=(WaitFor(gate),), steps=()))
    await gateway.until(lambda: other.body.count(COMMENT) >= SILENCES)
    gate.open()
    await other.finished(WITHIN_S)
    await other.leave(resets=False)


def body_of(speech: Speech, serial: str) -> tuple[list[bytes], list[bytes]]:
    """The vendor's events, and those that go down."""
    events = speech.events(serial, 40)
    return events, [event for event in events if speech.hidden is None or speech.hidden not in event]


@pytest.mark.parametrize("speech", STREAMS, ids=[speech.name for speech in STREAMS])
async def test_a_silent_stream_has_its_comments_where_its_clients_read_them_and_is_whole(gateway, speech):
    """Gemini's clients choke on a line that is no event: nothing is ever written ahead for them."""
    gateway, house = gateway
    gate = Gate()
    events, shown = body_of(speech, f"SimSilent{speech.dialect.vendor}{len(speech.name)}")
    kind = "application/json" if speech.is_list else "text/event-stream"
    script = Script(
        headers=(("Content-Type", kind),), before=(WaitFor(gate),), steps=tuple(map(Send, events))
    )
    caller, user_id = await asked(gateway, house, speech, script)
    await gate.reached()
    await silences_pass(gateway, house)
    comments = caller.body.count(COMMENT)
    assert bytes(caller.body) == COMMENT * comments
    assert (comments > 0) is (speech.dialect.vendor != "gemini")
    assert (caller.status == 200) is (comments > 0)
    gate.open()
    await caller.finished(WITHIN_S)
    assert caller.is_whole
    assert bytes(caller.body).rpartition(COMMENT)[2] == b"".join(shown)
    await gateway.assert_clean()
    rows = await gateway.service.store.readers.rows(
        "SELECT outcome, basis, cost_nanousd FROM entries WHERE user_id = ?1", (user_id,)
    )
    assert rows == [("completed", "reported", speech.exact_nanousd)]
    await caller.leave(resets=False)


@pytest.mark.parametrize("speech", STREAMS, ids=[speech.name for speech in STREAMS])
async def test_an_error_after_a_silence_is_an_event_where_the_head_is_out_and_else_its_status(
    gateway, speech
):
    gateway, house = gateway
    gate = Gate()
    error = speech.dialect.error_body(500)
    script = Script(
        status=500,
        headers=(("Content-Type", "application/json"),),
        before=(WaitFor(gate),),
        steps=(Send(error),),
    )
    caller, _ = await asked(gateway, house, speech, script)
    await gate.reached()
    await silences_pass(gateway, house)
    gate.open()
    await caller.finished(WITHIN_S)
    assert caller.is_whole
    if speech.dialect.vendor == "gemini":
        assert (caller.status, bytes(caller.body)) == (500, error)
    else:
        assert caller.status == 200
        assert bytes(caller.body).rpartition(COMMENT)[2].startswith(speech.dialect.event)
        assert b"Simulated" in caller.body
    await gateway.assert_clean()
    await caller.leave(resets=False)
