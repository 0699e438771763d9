"""The scripted server: what it writes, what it records, and every way an answer ends."""

import asyncio
import contextlib
import ssl

import httpx
import pytest
import trustme
import uvloop

from metering.tasks import spawn
from simulators.script import (
    AtRandom,
    Disconnect,
    Framing,
    Gate,
    Later,
    Pause,
    Ready,
    Reset,
    Script,
    Send,
    SendLate,
    Stall,
    WaitFor,
    head,
)
from simulators.server import SimulatorServer, State, read_record, running_in_thread

HELLO = (Send(b"hello "), Send(b"world"))
GET = b"GET /x?a=1&b=%20 HTTP/1.1\r\nHost: h\r\nX-One: 1\r\n\r\n"


class Scripted(SimulatorServer):
    """Answers every request with the same script."""

    def __init__(self, script, **options):
        super().__init__(**options)
        self.scripted = script

    def answer(self, request):
        return self.scripted


async def exchange_raw(simulator, sent=GET, *, until_eof=False):
    """The bytes that answer `sent`, up to the end of the connection or what comes in the first read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    writer.write(sent)
    received = await reader.read() if until_eof else await reader.read(65536)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return received


class Reader(asyncio.Protocol):
    """Keeps what each single read brought."""

    def __init__(self):
        self.reads = []
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        transport.write(GET)

    def data_received(self, data):
        self.reads.append(data)

    def connection_lost(self, exc):
        self.lost.set_result(exc)


async def reads_of(simulator):
    loop = asyncio.get_running_loop()
    _, reader = await loop.create_connection(Reader, "127.0.0.1", simulator.port)
    return reader, await asyncio.wait_for(reader.lost, 60)


@pytest.mark.parametrize("framing", list(Framing))
async def test_every_framing_delivers_the_body(framing):
    async with Scripted(Script(steps=HELLO, framing=framing)) as simulator, httpx.AsyncClient() as client:
        answer = await client.get(simulator.url)
    assert answer.content == b"hello world"
    assert ("content-length" in answer.headers) == (framing is Framing.LENGTH)
    assert simulator.exchanges[0].state is State.SENT


@pytest.mark.parametrize("known", [Script(steps=HELLO), Ready(head(200, [("Content-Length", "0")]))])
async def test_an_answer_may_be_known_only_later(known):
    gate = Gate()
    said = []

    def answer():
        said.append(gate.is_open)
        return known

    async with Scripted(Later(gate, answer)) as simulator, httpx.AsyncClient() as client:
        asked = [spawn(client.get(simulator.url), name="asked") for _ in range(2)]
        await simulator.until(lambda: len(simulator.exchanges) == 2)
        await gate.reached()
        assert (said, [exchange.state for exchange in simulator.exchanges]) == ([], [State.RUNNING] * 2)
        asked[0].cancel()
        await simulator.until(lambda: simulator.client_gone_total == 1)
        gate.open()
        assert (await asked[1]).is_success
        assert (await client.get(simulator.url)).is_success  # on the same connection
    assert said == [True, True]
    assert simulator.exchanges[1].sent_bytes > 0
    assert (simulator.connections_total, simulator.exchanges[2].state) == (2, State.SENT)


async def test_a_request_is_recorded_as_it_came():
    async with Scripted(Script()) as simulator, httpx.AsyncClient() as client:
        await client.post(simulator.url + "/a/b?c=d&e=", content=b'{"k": 1}', headers={"X-Tag": "T"})
    (request,) = simulator.requests
    assert (request.number, request.method, request.target) == (1, "POST", "/a/b?c=d&e=")
    assert (request.path, request.query) == ("/a/b", {"c": "d", "e": ""})
    assert (request.header(b"x-tag"), request.header(b"absent")) == (b"T", b"")
    assert request.json() == {"k": 1}


async def test_requests_on_one_connection_share_its_id_and_others_do_not():
    async with Scripted(Ready(head(200, [("Content-Length", "0")]))) as simulator:
        async with httpx.AsyncClient() as client:
            await client.get(simulator.url)
            await client.get(simulator.url)
        await exchange_raw(simulator)
    assert [request.connection_id for request in simulator.requests] == [1, 1, 2]
    assert (simulator.connections_total, simulator.connections_open) == (2, 0)


async def test_pipelined_requests_are_answered_in_order():
    class Echo(SimulatorServer):
        def answer(self, request):
            return Script(steps=(Send(request.target.encode()),), framing=Framing.LENGTH)

    sent = b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(5))
    sent += b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    async with Echo() as simulator:
        received = await exchange_raw(simulator, sent, until_eof=True)
    bodies = [part.rpartition(b"\r\n\r\n")[2] for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"/0", b"/1", b"/2", b"/3", b"/4", b"/last"]


async def test_each_piece_of_a_split_arrives_in_a_read_of_its_own():
    script = Script(steps=(Send(b"abcdefgh"),), split=3, framing=Framing.EOF)
    async with Scripted(script) as simulator:
        reader, _ = await reads_of(simulator)
    assert reader.reads[1:] == [b"abc", b"def", b"gh"]


async def test_each_piece_of_a_split_is_a_chunk_of_its_own():
    async with Scripted(Script(steps=(Send(b"abcd"),), split=3, closes=True)) as simulator:
        received = await exchange_raw(simulator, until_eof=True)
    assert received.endswith(b"\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n")


async def test_a_wire_split_cuts_head_and_framing_too():
    script = Script(steps=HELLO, closes=True)
    async with Scripted(script) as simulator:
        whole = await exchange_raw(simulator, until_eof=True)
        simulator.scripted = Script(steps=HELLO, closes=True, wire_split=1)
        reader, _ = await reads_of(simulator)
    assert reader.reads == [whole[i : i + 1] for i in range(len(whole))]


@pytest.mark.parametrize("seed", range(3))
async def test_a_random_split_does_not_change_the_body(seed):
    script = Script(steps=(Send(bytes(range(256)) * 20),), wire_split=AtRandom(seed))
    async with Scripted(script) as simulator, httpx.AsyncClient() as client:
        assert (await client.get(simulator.url)).content == bytes(range(256)) * 20


async def test_a_script_waits_at_its_gate():
    gate = Gate()
    script = Script(steps=(HELLO[0], WaitFor(gate), HELLO[1]))
    async with (
        Scripted(script) as simulator,
        httpx.AsyncClient() as client,
        client.stream("GET", simulator.url) as answer,
    ):
        chunks = answer.aiter_raw()
        assert await anext(chunks) == b"hello "
        await gate.reached()
        assert simulator.exchanges[0].state is State.RUNNING
        gate.open()
        assert await anext(chunks) == b"world"
        assert [rest async for rest in chunks] == []


async def test_late_bytes_are_asked_for_when_it_is_their_turn():
    gate, said = Gate(), [b"too early"]
    script = Script(steps=(Send(b"first "), WaitFor(gate), SendLate(lambda: said[0])))
    async with (
        Scripted(script) as simulator,
        httpx.AsyncClient() as client,
        client.stream("GET", simulator.url) as answer,
    ):
        await gate.reached()
        said[0] = b"in time"
        assert not gate.is_open
        gate.open()
        assert await answer.aread() == b"first in time"
    assert gate.is_open


async def test_a_pause_delays_what_follows():
    script = Script(steps=(HELLO[0], Pause(0.05), HELLO[1]))
    async with Scripted(script) as simulator, httpx.AsyncClient() as client:
        before_s = asyncio.get_running_loop().time()
        await client.get(simulator.url)
        assert asyncio.get_running_loop().time() - before_s >= 0.05


async def test_a_disconnect_leaves_the_body_unfinished():
    script = Script(steps=(HELLO[0], Disconnect(), HELLO[1]))
    async with Scripted(script) as simulator, httpx.AsyncClient() as client:
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            await client.get(simulator.url)
        await simulator.until(lambda: simulator.connections_open == 0)
    assert simulator.exchanges[0].state is State.BROKEN_OFF
    assert simulator.client_gone_total == 0


async def test_a_reset_breaks_the_connection():
    async with Scripted(Script(steps=(HELLO[0], Reset()))) as simulator:
        _, error = await reads_of(simulator)
    assert isinstance(error, ConnectionResetError)


async def test_a_connection_may_end_before_the_head_and_the_request_counts_as_seen():
    async with Scripted(Script(before=(Disconnect(),))) as simulator:
        assert await exchange_raw(simulator) == b""
    assert simulator.requests_total == 1
    assert simulator.requests[0].target == "/x?a=1&b=%20"


async def test_before_the_head_bytes_go_out_as_they_are():
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with Scripted(Script(before=(Send(early),), closes=True)) as simulator:
        assert (await exchange_raw(simulator, until_eof=True)).startswith(early + b"HTTP/1.1 200 OK\r\n")


async def test_a_client_that_leaves_a_stalled_answer_is_noticed():
    async with Scripted(Script(steps=(HELLO[0], Stall()))) as simulator:
        assert (await exchange_raw(simulator)).startswith(b"HTTP/1.1 200 OK")
        await simulator.until(lambda: simulator.client_gone_total == 1)
        assert simulator.exchanges[0].state is State.CLIENT_GONE
        assert simulator.connections_open == 0


async def test_the_declared_length_may_be_a_lie():
    async with (
        Scripted(Script(steps=HELLO, framing=Framing.LENGTH, length_bytes=50, closes=True)) as simulator,
        httpx.AsyncClient() as client,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(simulator.url)


async def test_an_answer_that_closes_does_not_announce_it():
    async with Scripted(Script(closes=True)) as simulator:
        received = await exchange_raw(simulator, until_eof=True)
    assert received.endswith(b"0\r\n\r\n")
    assert b"close" not in received.lower()


async def test_idle_connections_are_closed_on_demand_and_busy_ones_are_not():
    gate = Gate()
    async with Scripted(Script(steps=(WaitFor(gate),), closes=True)) as simulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
        busy = asyncio.gather(exchange_raw(simulator, until_eof=True))
        await gate.reached()
        await simulator.until(lambda: simulator.connections_open == 2)
        simulator.close_idle_connections()
        assert await reader.read() == b""
        assert simulator.connections_open == 1
        gate.open()
        await busy
        writer.close()
        await writer.wait_closed()


async def test_a_slow_reader_holds_the_script_up_and_loses_nothing():
    """The script must not run ahead of what the kernel takes: tests of back pressure look at `sent_bytes`."""
    steps = tuple(Send(b"x" * 100_000) for _ in range(200))
    async with Scripted(Script(steps=steps)) as simulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port, limit=1024)
        writer.write(GET)
        await simulator.until(lambda: simulator.requests_total == 1)
        exchange, before = simulator.exchanges[0], -1
        while exchange.sent_bytes != before:
            before = exchange.sent_bytes
            await asyncio.sleep(0.02)  # the kernel's buffers fill up: there is no event for it
        assert exchange.state is State.RUNNING
        assert exchange.sent_bytes < 20_000_000
        received = 0
        while received < 20_000_000:
            received += len(await reader.read(1_000_000))
        await simulator.until(lambda: exchange.state is State.SENT)
        writer.close()
        await writer.wait_closed()


async def test_a_big_ready_answer_is_sent_only_when_the_kernel_has_it():
    wire = head(200, [("Content-Length", "20000000")]) + b"x" * 20_000_000
    async with Scripted(Ready(wire)) as simulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port, limit=1024)
        writer.write(GET)
        await simulator.until(lambda: simulator.requests_total == 1)
        assert simulator.exchanges[0].state is State.RUNNING
        assert len(await reader.readexactly(len(wire))) == len(wire)
        await simulator.until(lambda: simulator.exchanges[0].state is State.SENT)
        writer.close()
        await writer.wait_closed()


async def test_stopping_breaks_what_runs_and_the_old_port_can_be_taken_again():
    simulator = Scripted(Script(steps=(HELLO[0], Stall())))
    await simulator.start()
    port = simulator.port
    running = asyncio.gather(exchange_raw(simulator, until_eof=True), return_exceptions=True)
    await simulator.until(lambda: simulator.requests_total == 1)
    await simulator.stop()
    await running
    assert simulator.exchanges[0].state is State.STOPPED
    with pytest.raises(ConnectionRefusedError):
        await exchange_raw(simulator)
    simulator.scripted = Script(steps=HELLO, closes=True)
    await simulator.start(port=port)
    assert b"world" in await exchange_raw(simulator, until_eof=True)
    await simulator.stop()


async def test_a_malformed_request_is_answered_400_and_not_counted():
    async with Scripted(Script()) as simulator:
        received = await exchange_raw(simulator, b"nonsense\r\n\r\n", until_eof=True)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert simulator.requests_total == 0


async def test_a_client_that_waits_for_100_continue_gets_it():
    async with Scripted(Script(closes=True)) as simulator:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        writer.write(b"ok")
        assert b"200 OK" in await reader.read()
        writer.close()
        await writer.wait_closed()
    assert simulator.requests[0].body == b"ok"


async def test_an_upgrade_is_not_accepted():
    asked = GET.replace(b"X-One: 1", b"Connection: Upgrade\r\nUpgrade: websocket")
    async with Scripted(Script()) as simulator:
        assert (await exchange_raw(simulator, asked, until_eof=True)).endswith(b"0\r\n\r\n")


async def test_without_a_record_only_the_counters_remain():
    async with Scripted(Script(closes=True), keeps_record=False) as simulator:
        await exchange_raw(simulator, until_eof=True)
    assert (simulator.requests_total, simulator.exchanges) == (1, [])


async def test_the_durable_record_tells_what_was_seen_and_how_it_ended(tmp_path):
    path = tmp_path / "record.jsonl"
    gate = Gate()
    async with Scripted(Script(steps=(WaitFor(gate),), closes=True), record_to=path) as simulator:
        running = asyncio.gather(exchange_raw(simulator, until_eof=True))
        await gate.reached()
        seen = {"event": "seen", "number": 1, "method": "GET", "target": "/x?a=1&b=%20"}
        assert read_record(path) == [seen]
        gate.open()
        await running
        assert read_record(path) == [seen, {"event": "ended", "number": 1, "state": "sent"}]


async def test_tls_is_served():
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with (
        Scripted(Script(steps=HELLO), tls=tls) as simulator,
        httpx.AsyncClient(verify=trusting) as client,
    ):
        assert simulator.url.startswith("https://")
        assert (await client.get(simulator.url)).content == b"hello world"


def test_a_caller_without_an_event_loop_runs_it_in_a_thread():
    simulator = Scripted(Script(steps=HELLO))
    with running_in_thread(simulator) as url:
        assert httpx.get(url).content == b"hello world"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_thread_that_cannot_listen_tells_its_caller(tmp_path):
    simulator = Scripted(Script(), record_to=tmp_path / "no" / "such" / "folder")
    with pytest.raises(FileNotFoundError), running_in_thread(simulator):
        pass


@pytest.mark.parametrize(
    ("steps", "state"),
    [(HELLO, State.SENT), ((*HELLO, Disconnect()), State.BROKEN_OFF), ((*HELLO, Reset()), State.BROKEN_OFF)],
)
def test_it_behaves_the_same_under_uvloop(steps, state):
    async def scenario():
        async with Scripted(Script(steps=steps, split=4, framing=Framing.EOF)) as simulator:
            reader, error = await reads_of(simulator)
            return simulator.exchanges[0].state, reader.reads, error

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        ended, reads, error = runner.run(scenario())
    assert ended is state
    assert isinstance(error, ConnectionResetError) == (Reset() in steps)
    if error is None:
        assert reads[1:] == [b"hell", b"o ", b"wo", b"rld"]


async def test_a_defect_of_a_script_is_heard_and_ends_the_connection():
    class Defective(SimulatorServer):
        def answer(self, request):
            raise LookupError("no such answer")

    heard = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context["exception"]))
    async with Defective() as simulator:
        assert await exchange_raw(simulator, until_eof=True) == b""
    assert isinstance(heard[0].__context__, LookupError)


async def test_a_body_above_the_bound_is_refused(monkeypatch):
    monkeypatch.setattr("simulators.server.REQUEST_BODY_BYTES_MAX", 3)
    post = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n1234"
    async with Scripted(Script()) as simulator:
        received = await exchange_raw(simulator, post, until_eof=True)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert simulator.requests_total == 0


async def test_more_pipelined_requests_than_the_bound_break_the_connection():
    async with Scripted(Script(before=(Stall(),))) as simulator:
        with contextlib.suppress(ConnectionResetError):  # RST or FIN, as the kernel likes
            assert await exchange_raw(simulator, GET * 18, until_eof=True) == b""
        await simulator.until(lambda: simulator.connections_open == 0)
    assert simulator.client_gone_total == 1
