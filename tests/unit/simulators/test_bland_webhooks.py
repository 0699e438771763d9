"""Webhooks of the simulated Bland: what they say, how they are signed, and when and how often they come."""

import hashlib
import hmac

import httpx
import orjson
import pytest

from metering.clock import ManualClock
from simulators.bland import WEBHOOK_SECRET, BlandSimulator, Fate, Tamper
from simulators.script import Framing, Gate, Ready, Script, WaitFor, head
from simulators.server import SimulatorServer
from tests.support.bland import OTHER, TO, as_platform, dialled

START_MS = 1_795_000_000_000


class Receiver(SimulatorServer):
    """Answers 204, or as `next` says."""

    def __init__(self):
        super().__init__()
        self.next = []

    def answer(self, request):
        return self.next.pop(0) if self.next else Ready(head(204, ()))


def status(code):
    return Script(status=code, framing=Framing.LENGTH)


@pytest.fixture
async def vendor():
    async with BlandSimulator(clock=ManualClock(START_MS)) as simulator:
        yield simulator


@pytest.fixture
async def client(vendor):
    async with as_platform(vendor) as client:
        yield client


@pytest.fixture
async def receiver():
    async with Receiver() as server:
        yield server


def is_genuine(headers, body):
    expected = hmac.new(WEBHOOK_SECRET.encode(), body, hashlib.sha256).hexdigest()
    return headers.get("x-webhook-signature") == expected


# --- what is said -------------------------------------------------------------------------------------


async def test_a_completion_says_what_get_says(client, vendor):
    call = await dialled(client, vendor, metadata={"user": "ada"}, webhook="https://x.example/hook")
    told = vendor.end(call, seconds=11)
    assert told.body == (await client.get(f"/calls/{call.call_id}")).json()
    assert told.url == "https://x.example/hook"
    wanted = {"call_length": 0.1833333, "corrected_duration": "11", "status": "completed", "price": 0.022}
    assert {name: told.body[name] for name in wanted} == wanted
    kept = (await client.get(f"/postcall/webhooks/{call.call_id}")).json()["data"]
    assert [each["payload"] for each in kept] == [told.body]


async def test_a_completion_may_say_another_thing_than_what_is_so(client, vendor):
    call = await dialled(client, vendor)
    call.webhook_says.update(corrected_duration="3600", price=7.2)
    told = vendor.end(call, seconds=11)
    assert (told.body["corrected_duration"], told.body["price"]) == ("3600", 7.2)
    assert (await client.get(f"/calls/{call.call_id}")).json()["corrected_duration"] == "11"


async def test_events_of_a_running_call_are_told_where_they_are_wished_and_have_no_status(client, vendor):
    call = await dialled(client, vendor, webhook_events=["call", "tool"])
    await dialled(client, vendor, OTHER)
    vendor.pick_up(call)
    vendor.happen(call, "Looked it up", "tool", "performance")
    vendor.happen(call, "Slow", "latency")
    assert [post.body for post in vendor.posts] == [
        {"message": "Call connected", "call_id": call.call_id, "category": "call", "log_level": "info"},
        {"message": "Looked it up", "call_id": call.call_id, "category": "tool", "log_level": "performance"},
    ]
    events = (await client.get(f"/event_stream/{call.call_id}")).json()
    assert [event["category"] for event in events] == ["queue", "queue", "call", "tool", "latency"]
    assert {event["level"] for event in events} == {"info", "performance"}


async def test_what_comes_later_is_marked_and_repeats_the_completion(client, vendor):
    call = await dialled(client, vendor)
    completion = vendor.end(call, seconds=5)
    told = vendor.tell(call, "citations", is_retry=True, citations=[{"text": "x"}])
    extra = {"event_type": "citations", "isRetry": True, "citations": [{"text": "x"}]}
    assert told.body == {**completion.body, **extra}
    assert vendor.completion(call) is completion


# --- signatures ---------------------------------------------------------------------------------------


async def test_the_signature_is_that_of_the_raw_bytes_in_lower_case_hexadecimal(client, vendor):
    told = vendor.end(await dialled(client, vendor), seconds=5)
    headers, body = vendor.signed(told)
    assert is_genuine(headers, body)
    assert orjson.loads(body) == told.body
    assert headers["x-webhook-signature"] == headers["x-webhook-signature"].lower()
    other = BlandSimulator(webhook_secret="another")
    assert not is_genuine(*other.signed(told))


@pytest.mark.parametrize("tamper", Tamper)
async def test_what_was_tampered_with_is_not_genuine(client, vendor, tamper):
    told = vendor.end(await dialled(client, vendor), seconds=5)
    headers, body = vendor.signed(told, tamper=tamper)
    well, whole = vendor.signed(told)
    assert not is_genuine(headers, body)
    changes_body = tamper in (Tamper.ALTERED, Tamper.TRUNCATED, Tamper.SPACED)
    assert (body != whole) == changes_body
    assert (headers == well) == changes_body
    if tamper is Tamper.SPACED:
        assert is_genuine(headers, orjson.dumps(orjson.loads(body)))
    if tamper is Tamper.ALTERED:
        assert len(body) == len(whole)
        assert orjson.loads(body)["call_id"] != told.call_id


# --- delivered by the test ----------------------------------------------------------------------------


async def test_a_test_delivers_what_it_likes_as_often_as_it_likes(client, vendor, receiver):
    call = await dialled(client, vendor, webhook=f"{receiver.url}/hook?t=1")
    vendor.end(call, seconds=5)
    later = vendor.tell(call, "evals")
    assert receiver.requests == []
    assert (await vendor.deliver(later)).status_code == 204
    receiver.next = [status(204), status(503)]
    assert (await vendor.deliver(call, times=2)).status_code == 503
    assert [request.target for request in receiver.requests] == ["/hook?t=1"] * 3
    assert [request.json().get("event_type") for request in receiver.requests] == ["evals", None, None]
    assert all(
        is_genuine({k.decode(): v.decode() for k, v in request.headers}, request.body)
        for request in receiver.requests
    )
    await vendor.deliver(call, url=f"{receiver.url}/else", tamper=Tamper.UNSIGNED)
    last = receiver.requests[-1]
    assert (last.target, last.header(b"x-webhook-signature")) == ("/else", b"")


async def test_without_a_webhook_there_is_nowhere_to_deliver_to(client, vendor):
    call = await dialled(client, vendor)
    vendor.end(call, seconds=5)
    with pytest.raises(ValueError, match="no webhook"):
        await vendor.deliver(call)


# --- delivered by itself ------------------------------------------------------------------------------


@pytest.fixture
def by_itself(vendor):
    vendor.delivers = True
    return vendor


def attempts(vendor):
    return [(each.attempt, each.status) for each in vendor.courier.deliveries]


async def test_it_delivers_by_itself_once_when_it_is_answered_well(client, by_itself, receiver):
    call = await dialled(client, by_itself, webhook=receiver.url)
    by_itself.end(call, seconds=5)
    await by_itself.quiet()
    by_itself.advance(3_600)
    await by_itself.quiet()
    assert attempts(by_itself) == [(1, 204)]
    assert [request.json()["call_id"] for request in receiver.requests] == [call.call_id]


async def test_a_call_with_a_fate_is_told_without_being_asked(receiver):
    fate = Fate(rings_s=0, talks_s=0.01, seconds=5)
    async with BlandSimulator(fate_of=lambda _: fate) as vendor, as_platform(vendor) as client:
        await dialled(client, vendor, webhook=receiver.url)
        await vendor.quiet()
        (told,) = receiver.requests
        assert told.json()["corrected_duration"] == "5"


@pytest.mark.parametrize("code", [400, 404, 429, 500, 503])
async def test_what_is_not_answered_with_a_2xx_comes_again_on_its_time(client, by_itself, receiver, code):
    receiver.next = [status(code), status(code)]
    by_itself.courier.retry_delays_s = (1, 5, 30)
    by_itself.end(await dialled(client, by_itself, webhook=receiver.url), seconds=5)
    for wait_s, arrived in ((0, 1), (0.999, 1), (0.001, 2), (4.999, 2), (0.001, 3), (99, 3)):
        by_itself.advance(wait_s)
        await by_itself.until(lambda: not by_itself.courier._on_its_way)
        assert len(receiver.requests) == arrived
    assert attempts(by_itself) == [(1, code), (2, code), (3, 204)]
    assert len({request.body for request in receiver.requests}) == 1


async def test_it_gives_up_after_its_retries_also_where_there_is_no_answer(client, by_itself, receiver):
    await receiver.stop()
    by_itself.courier.retry_delays_s = (0, 0)
    by_itself.end(await dialled(client, by_itself, webhook=receiver.url), seconds=5)
    await by_itself.quiet()
    assert attempts(by_itself) == [(1, None), (2, None), (3, None)]


async def test_a_schedule_loses_doubles_delays_and_reorders(client, by_itself, receiver):
    by_itself.courier.schedule = lambda told: {
        "completion": (60.0,),  # after what follows it
        "citations": (0.0, 0.0),
        "evals": (),
    }[told.kind]
    call = await dialled(client, by_itself, webhook=receiver.url)
    by_itself.end(call, seconds=5)
    by_itself.tell(call, "citations")
    by_itself.tell(call, "evals")
    await by_itself.until(lambda: len(receiver.requests) == 2 and not by_itself.courier._on_its_way)
    assert not by_itself.is_quiet
    by_itself.advance(59.999)
    assert len(receiver.requests) == 2
    by_itself.advance(0.001)
    await by_itself.quiet()
    told = [request.json().get("event_type") for request in receiver.requests]
    assert told == ["citations", "citations", None]


async def test_stopping_gives_up_what_is_on_its_way(receiver):
    gate = Gate()
    receiver.next = [Script(before=(WaitFor(gate),))]
    async with BlandSimulator(clock=ManualClock(START_MS), delivers=True) as vendor:
        async with as_platform(vendor) as client:
            vendor.end(await dialled(client, vendor, webhook=receiver.url), seconds=5)
        await gate.reached()
    assert vendor.courier.deliveries == []
    assert vendor.is_quiet


async def test_a_call_that_came_in_is_told_to_the_webhook_of_its_number(by_itself, receiver):
    by_itself.add_number("+14155550777", webhook=receiver.url)
    call = by_itself.receive("+14155550777", TO)
    by_itself.end(call, seconds=20)
    await by_itself.quiet()
    (told,) = receiver.requests
    assert (told.json()["inbound"], told.json()["to"]) == (True, "+14155550777")


async def test_deliveries_need_an_event_loop_but_calls_do_not():
    vendor = BlandSimulator(clock=ManualClock(START_MS), delivers=True)
    vendor.add_number("+14155550777", webhook="http://127.0.0.1:1/")
    vendor.end(vendor.receive("+14155550777", TO), seconds=20)
    assert vendor.billed[0].seconds == 20
    await vendor.courier.stop()


async def test_a_transport_of_the_tests_own_may_be_used(client, vendor):
    call = await dialled(client, vendor, webhook="http://nowhere.example/hook")
    vendor.end(call, seconds=5)
    transport = httpx.MockTransport(lambda request: httpx.Response(202, content=request.content))
    async with httpx.AsyncClient(transport=transport) as own:
        answer = await vendor.deliver(call, client=own)
    assert (answer.status_code, answer.json()["call_id"]) == (202, call.call_id)
