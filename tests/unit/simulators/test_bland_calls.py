"""The life of a call at the simulated Bland, on a clock that is turned, and what it costs."""

from decimal import Decimal

import pytest

from metering.clock import ManualClock, SystemClock
from simulators.bland import (
    BUILD,
    BYOT_KEY,
    FATES,
    SCALE,
    START,
    BlandSimulator,
    Fate,
    Tariff,
)
from tests.support.bland import OTHER, TO, as_platform, dialled

START_MS = 1_795_000_000_000
OWN = "+14155550777"


@pytest.fixture
async def vendor():
    async with BlandSimulator(clock=ManualClock(START_MS)) as simulator:
        yield simulator


@pytest.fixture
async def client(vendor):
    async with as_platform(vendor) as client:
        yield client


async def shown(client, call):
    return (await client.get(f"/calls/{call.call_id}")).json()


# --- states -------------------------------------------------------------------------------------------


async def test_a_call_is_new_queued_allocated_started_and_complete(client, vendor):
    call = await dialled(client, vendor)
    seen = []
    for seconds in (0, 1, 1):
        vendor.advance(seconds)
        seen.append((await shown(client, call))["queue_status"])
    vendor.pick_up(call)
    running = await shown(client, call)
    vendor.advance(90)
    vendor.end(call)
    over = await shown(client, call)
    seen += [running["queue_status"], over["queue_status"]]
    assert seen == ["new", "queued", "allocated", "started", "complete"]
    assert (running["completed"], running["status"], running["corrected_duration"]) == (False, None, None)
    assert (running["answered_by"], running["call_length"]) == ("human", None)
    assert running["end_at"] == "2026-11-18T11:36:42Z"  # where max_duration will cut it
    assert (over["completed"], over["status"], over["corrected_duration"]) == (True, "completed", "90")
    assert (over["call_length"], over["call_ended_by"], over["price"]) == (1.5, "ASSISTANT", 0.18)
    assert (over["started_at"], over["end_at"]) == ("2026-11-18T11:06:42Z", "2026-11-18T11:08:12Z")


@pytest.mark.parametrize("status", ["failed", "busy", "no-answer", "canceled", "unknown"])
async def test_a_call_may_end_without_having_been_connected(client, vendor, status):
    call = await dialled(client, vendor)
    vendor.end(call, status=status, error_message="no luck", error_queue_status="call_error")
    over = await shown(client, call)
    assert (over["status"], over["completed"], over["queue_status"]) == (status, True, "call_error")
    assert (over["corrected_duration"], over["call_length"], over["started_at"]) == ("0", 0.0, None)
    assert (over["price"], over["error_message"], over["call_ended_by"]) == (0.015, "no luck", None)
    assert over["transcripts"] == []


async def test_a_call_may_fail_after_it_was_connected(client, vendor):
    call = await dialled(client, vendor)
    vendor.end(call, status="failed", seconds=30, error_queue_status="complete_error")
    over = await shown(client, call)
    assert (over["status"], over["corrected_duration"], over["price"]) == ("failed", "30", 0.06)


async def test_a_voicemail_is_a_completed_call(client, vendor):
    call = await dialled(client, vendor)
    vendor.end(call, seconds=11, answered_by="voicemail", length_minutes=0.19)
    over = await shown(client, call)
    assert (over["status"], over["answered_by"]) == ("completed", "voicemail")
    assert (over["corrected_duration"], over["call_length"]) == ("11", 0.19)


async def test_max_duration_ends_a_call_to_the_second(client, vendor):
    call = await dialled(client, vendor, max_duration=0.5)
    vendor.advance(100)
    vendor.pick_up(call)
    vendor.advance(29.999)
    assert not call.is_over
    vendor.advance(500)
    assert (call.ended_ms, call.billed.seconds) == (START_MS + 130_000, 30)
    with pytest.raises(ValueError, match="cannot end"):
        vendor.end(call)
    assert len(vendor.billed) == 1


async def test_thirty_minutes_are_the_default(client, vendor):
    call = await dialled(client, vendor)
    vendor.pick_up(call)
    vendor.advance(24 * 3_600)
    assert call.billed.seconds == 1_800


async def test_a_call_is_stopped_once(client, vendor):
    connected, ringing = await dialled(client, vendor), await dialled(client, vendor, OTHER)
    vendor.pick_up(connected)
    vendor.advance(7.4)
    for call in (connected, ringing):
        assert (await client.post(f"/calls/{call.call_id}/stop")).status_code == 200
    assert (connected.status, connected.ended_by, connected.billed.seconds) == ("completed", "API", 7)
    assert (ringing.status, ringing.ended_by, ringing.billed.seconds) == ("canceled", None, 0)
    again = await client.post(f"/calls/{connected.call_id}/stop")
    assert (again.status_code, again.json()["message"]) == (400, "SID not found for the given c_id.")
    assert len(vendor.billed) == 2


async def test_a_call_is_picked_up_once_and_handed_on_only_while_it_is_connected(client, vendor):
    call = await dialled(client, vendor)
    with pytest.raises(ValueError, match="not connected"):
        vendor.transfer(call, OTHER)
    with pytest.raises(ValueError, match="not over"):
        vendor.completion(call)
    vendor.pick_up(call)
    with pytest.raises(ValueError, match="is started"):
        vendor.pick_up(call)


async def test_a_call_may_be_dialled_later_and_called_off_before_for_nothing(client, vendor):
    at = {"start_time": "2026-11-18T12:06:40+01:00"}  # the hour of START_MS
    later = await dialled(client, vendor, start_time="2026-11-18T12:00:00Z")
    off = await dialled(client, vendor, OTHER, start_time="2026-11-18T12:00:00Z")
    past = await dialled(client, vendor, "+13105550133", **at)
    assert vendor.dialled == [past]
    vendor.advance(3_199)
    assert (await shown(client, later))["queue_status"] == "queued"
    await client.post(f"/calls/{off.call_id}/stop")
    vendor.advance(1)
    assert vendor.dialled == [past, later]
    assert (off.status, off.billed.price_usd) == ("canceled", 0)


async def test_a_voicemail_with_a_retry_dials_again_without_a_request(client, vendor):
    call = await dialled(client, vendor, retry={"wait": 30}, metadata={"user": "ada"})
    vendor.end(call, seconds=0, answered_by="voicemail")
    assert vendor.dialled == [call]
    vendor.advance(30)
    first, second = vendor.dialled
    assert (second.to, second.metadata, second.origin.request_number) == (TO, {"user": "ada"}, None)
    assert second.call_id != first.call_id
    assert len(vendor.answers) == 1
    vendor.end(second, seconds=5, answered_by="voicemail")
    vendor.advance(3_600)
    assert len(vendor.dialled) == len(vendor.billed) == 2


async def test_a_voicemail_may_be_followed_by_a_text(client, vendor):
    wish = {"action": "leave_message_and_sms", "message": "Call me"}
    vendor.end(await dialled(client, vendor, voicemail=wish), seconds=5, answered_by="voicemail")
    vendor.end(await dialled(client, vendor, OTHER, voicemail=wish), seconds=5)
    (text,) = vendor.texts
    assert (text.user_number, text.message, text.price_usd) == (TO, "Call me", Decimal("0.02"))


# --- calls that come in -------------------------------------------------------------------------------


async def test_an_inbound_call_has_the_settings_of_its_number(client, vendor):
    vendor.add_number(OWN, webhook="https://x.example/hook", max_duration=1, prompt="Be kind")
    call = vendor.receive("4155550777", TO)
    vendor.pick_up(call)
    vendor.advance(3_600)
    over = await shown(client, call)
    assert (over["inbound"], over["to"], over["from"]) == (True, OWN, TO)
    assert (over["corrected_duration"], over["price"]) == ("60", 0.12)
    assert vendor.completion(call).url == "https://x.example/hook"
    assert vendor.dialled == []
    assert vendor.billed == [call.billed]


async def test_an_inbound_call_that_nobody_took_costs_nothing(vendor):
    vendor.add_number(OWN, is_byot=False)
    call = vendor.receive(OWN, TO)
    vendor.end(call, status="no-answer")
    assert call.billed.price_usd == 0


# --- what a call costs --------------------------------------------------------------------------------

OUT, IN = True, False
OWN_TWILIO, BLANDS = True, False


@pytest.mark.parametrize(
    ("tariff", "talk_s", "transfer_s", "is_outbound", "is_byot", "usd"),
    [
        (Tariff(Decimal("0.09"), Decimal(0)), 11, 0, OUT, BLANDS, "0.017"),  # the vendor's own example
        (START, 60, 0, OUT, BLANDS, "0.140"),
        (BUILD, 60, 0, OUT, BLANDS, "0.120"),
        (SCALE, 60, 0, OUT, BLANDS, "0.110"),
        (BUILD, 1, 0, IN, BLANDS, "0.002"),
        (BUILD, 0, 0, IN, BLANDS, "0"),
        (BUILD, 7, 0, OUT, BLANDS, "0.015"),  # the minimum: 0.014 would be due
        (BUILD, 8, 0, OUT, BLANDS, "0.016"),
        (BUILD, 0, 0, OUT, BLANDS, "0.015"),
        (BUILD, 0, 0, OUT, OWN_TWILIO, "0"),
        (BUILD, 7, 0, OUT, OWN_TWILIO, "0.014"),
        (BUILD, 60, 60, OUT, BLANDS, "0.160"),
        (BUILD, 60, 60, OUT, OWN_TWILIO, "0.120"),
        (START, 30, 45, IN, BLANDS, "0.108"),  # 0.07 + 0.0375: half a thousandth goes up
    ],
)
def test_a_call_is_priced_by_the_second_with_a_minimum(tariff, talk_s, transfer_s, is_outbound, is_byot, usd):
    priced = tariff.price_usd(talk_s=talk_s, transfer_s=transfer_s, is_outbound=is_outbound, is_byot=is_byot)
    assert priced == Decimal(usd)


@pytest.mark.parametrize(("has_minimum", "nanousd"), [(False, 0), (True, 15_000_000)])
async def test_the_minimum_with_a_twilio_account_is_a_switch(has_minimum, nanousd):
    tariff = Tariff(Decimal("0.12"), Decimal("0.04"), has_minimum_with_byot=has_minimum)
    async with (
        BlandSimulator(clock=ManualClock(START_MS), tariff=tariff) as vendor,
        as_platform(vendor, encrypted_key=BYOT_KEY) as client,
    ):
        vendor.add_number(OWN)
        vendor.end(await dialled(client, vendor), status="busy")
        (billed,) = vendor.billed
        assert (billed.is_byot, billed.price_nanousd) == (True, nanousd)


async def test_a_transfer_is_part_of_the_call_at_a_rate_of_its_own(client, vendor):
    call = await dialled(client, vendor)
    vendor.pick_up(call)
    vendor.advance(24)
    vendor.transfer(call, OTHER)
    vendor.advance(36)
    vendor.end(call, ended_by="USER")
    over = await shown(client, call)
    assert (over["transferred_to"], over["corrected_duration"]) == (OTHER, "60")
    assert (over["pre_transfer_duration"], over["post_transfer_duration"]) == (0.4, 0.6)
    assert (over["price"], call.billed.transfer_s) == (0.072, 36)  # 24 s at 0.12, 36 s at 0.04
    assert over["warm_transfer_call"] is None


async def test_a_warm_transfer_is_a_call_more(client, vendor):
    call = await dialled(client, vendor)
    vendor.pick_up(call)
    proxy = vendor.transfer(call, OTHER, is_warm=True)
    vendor.end(proxy, seconds=60)
    vendor.end(call, seconds=60)
    over = await shown(client, call)
    assert over["warm_transfer_call"]["proxy_agent_calls"] == [{"call_id": proxy.call_id}]
    assert (await shown(client, proxy))["is_proxy_agent_call"]
    assert [each.call_id for each in vendor.billed] == [proxy.call_id, call.call_id]
    assert vendor.dialled == [call, proxy]


async def test_what_get_says_may_be_another_thing_than_what_is_so(client, vendor):
    call = await dialled(client, vendor)
    call.details_say["corrected_duration"] = "99"
    vendor.end(call, seconds=60)
    assert (await shown(client, call))["corrected_duration"] == "99"
    assert vendor.completion(call).body["corrected_duration"] == "60"
    assert vendor.billed[0].seconds == 60


# --- calls that go their way by themselves ------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status", "answered_by", "seconds"),
    [
        ("+12025550100", "completed", "human", 42),
        ("+12025550101", "busy", None, 0),
        ("+12025550102", "no-answer", "no-answer", 0),
        ("+12025550103", "completed", "voicemail", 19),
        ("+12025550104", "failed", None, 0),
        ("+12025550105", "completed", "human", 120),
    ],
)
async def test_a_call_to_a_number_with_a_fate_goes_by_itself(
    client, vendor, number, status, answered_by, seconds
):
    call = await dialled(client, vendor, number, max_duration=2)
    vendor.advance(0.199)
    assert (call.is_connected, call.is_over) == (False, False)
    vendor.advance(200)
    assert (call.status, call.answered_by, call.billed.seconds) == (status, answered_by, seconds)


async def test_calls_with_a_fate_happen_in_the_order_of_their_times(client, vendor):
    slow, quick = Fate(rings_s=9, talks_s=20), Fate(rings_s=1, talks_s=3)
    vendor.add_number(OWN)
    first, second = vendor.receive(OWN, TO, fate=slow), vendor.receive(OWN, OTHER, fate=quick)
    vendor.advance(60)
    assert [billed.call_id for billed in vendor.billed] == [second.call_id, first.call_id]
    assert [billed.seconds for billed in vendor.billed] == [3, 20]


async def test_with_the_machines_clock_nobody_has_to_turn_it():
    async with (
        BlandSimulator(
            clock=SystemClock(), fate_of=lambda _: Fate(rings_s=0, talks_s=0.01, seconds=5)
        ) as vendor,
        as_platform(vendor) as client,
    ):
        await dialled(client, vendor)
        await vendor.quiet()
        assert [billed.seconds for billed in vendor.billed] == [5]


async def test_calls_go_on_where_they_were_when_the_vendor_comes_back():
    clock = ManualClock(START_MS)
    vendor = BlandSimulator(clock=clock)
    vendor.add_number(OWN)
    async with vendor:
        call = vendor.receive(OWN, TO, fate=Fate(rings_s=1, talks_s=3))
    clock.advance(60)
    assert not call.is_over
    async with vendor:
        assert call.billed.seconds == 3


def test_every_fate_is_that_of_a_number_reserved_for_fiction():
    assert all(number.startswith("+120255501") for number in FATES)
