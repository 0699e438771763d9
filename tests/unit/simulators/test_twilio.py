"""The simulated Twilio, over real sockets: numbers that are looked for, bought once, and let go."""

import httpx
import pytest

from simulators.twilio import (
    ACCOUNT_SID,
    AUTH_TOKEN,
    FOREIGN_NAME,
    TwilioSimulator,
    drops,
    fails,
    loses_reply,
)

NUMBERS = "/IncomingPhoneNumbers.json"


@pytest.fixture
async def vendor():
    async with TwilioSimulator() as simulator:
        yield simulator


def as_account(vendor, sid=ACCOUNT_SID, token=AUTH_TOKEN, of=ACCOUNT_SID):
    url = f"{vendor.url}/2010-04-01/Accounts/{of}"
    return httpx.AsyncClient(base_url=url, auth=(sid, token), trust_env=False)


@pytest.fixture
async def client(vendor):
    async with as_account(vendor) as client:
        yield client


async def available(client, kind="Local", **asked):
    answer = await client.get(f"/AvailablePhoneNumbers/US/{kind}.json", params=asked)
    return [number["phone_number"] for number in answer.json()["available_phone_numbers"]]


async def listed(client, **asked):
    shown = (await client.get(NUMBERS, params=asked)).json()
    return [number["friendly_name"] for number in shown["incoming_phone_numbers"]]


@pytest.mark.parametrize(("sid", "token"), [(ACCOUNT_SID, "wrong"), ("ACwrong", AUTH_TOKEN), ("", "")])
async def test_the_accounts_id_and_token_are_asked_for(vendor, sid, token):
    async with as_account(vendor, sid, token) as client:
        answer = await client.get(NUMBERS)
    assert (answer.status_code, answer.json()["code"]) == (401, 20003)


async def test_a_number_is_found_bought_listed_renamed_and_let_go(client, vendor):
    (number,) = await available(client, AreaCode="725", Limit="1")
    assert number.startswith("+1725")
    bought = await client.post(NUMBERS, data={"PhoneNumber": number, "FriendlyName": "automna:ada"})
    sid = bought.json()["sid"]
    assert (bought.status_code, bought.json()["phone_number"], sid[:2]) == (201, number, "PN")
    assert number not in await available(client, AreaCode="725", Limit="5")
    assert await listed(client) == [FOREIGN_NAME, "automna:ada"]
    assert await listed(client, FriendlyName="automna:ada") == ["automna:ada"]
    assert await listed(client, FriendlyName="automna") == []
    assert await listed(client, PhoneNumber=number) == ["automna:ada"]
    await client.post(f"/IncomingPhoneNumbers/{sid}.json", data={"FriendlyName": "automna:bob"})
    assert (await client.get(f"/IncomingPhoneNumbers/{sid}.json")).json()["friendly_name"] == "automna:bob"
    gone = await client.delete(f"/IncomingPhoneNumbers/{sid}.json")
    assert (gone.status_code, gone.content) == (204, b"")
    again = await client.delete(f"/IncomingPhoneNumbers/{sid}.json")
    assert (again.status_code, again.json()["code"], again.json()["status"]) == (404, 20404, 404)
    assert (vendor.bought_total, vendor.released_total) == (1, 1)
    assert number in await available(client, AreaCode="725", Limit="5")


async def test_a_number_is_bought_once(client, vendor):
    wish = {"PhoneNumber": "+17255550123"}
    assert (await client.post(NUMBERS, data=wish)).status_code == 201
    taken = await client.post(NUMBERS, data=wish)
    assert (taken.status_code, taken.json()["code"]) == (400, 21422)
    assert vendor.bought_total == 1


async def test_an_area_may_be_sold_out(client, vendor):
    assert await available(client, AreaCode="212") == []
    assert (await client.post(NUMBERS, data={"AreaCode": "212"})).status_code == 400
    assert (await client.post(NUMBERS, data={"AreaCode": "725"})).json()["phone_number"][:5] == "+1725"
    assert (await available(client, "TollFree"))[0].startswith("+1800")
    assert len(await available(client)) == 50


async def test_a_list_is_cut_into_pages(client, vendor):
    for name in "abc":
        await client.post(NUMBERS, data={"FriendlyName": name})
    assert await listed(client, PageSize=3) == [FOREIGN_NAME, "a", "b"]
    first = (await client.get(NUMBERS, params={"PageSize": 3})).json()
    second = (await client.get(vendor.url + first["next_page_uri"])).json()
    assert [number["friendly_name"] for number in second["incoming_phone_numbers"]] == ["c"]
    assert second["next_page_uri"] is None


async def test_another_account_and_another_path_are_not_found(vendor):
    async with as_account(vendor, of="ACother") as client:
        assert (await client.get(NUMBERS)).status_code == 404


async def test_a_lost_reply_is_one_to_a_number_that_was_bought_and_a_dropped_request_is_not(client, vendor):
    vendor.next(loses_reply(), drops(), fails(500), fails(400, code=21404))
    for _ in range(2):
        with pytest.raises(httpx.TransportError):
            await client.post(NUMBERS, data={"AreaCode": "725", "FriendlyName": "automna:ada"})
    said = [(await client.post(NUMBERS, data={"AreaCode": "725"})) for _ in range(2)]
    assert [(answer.status_code, answer.json()["code"]) for answer in said] == [(500, 20500), (400, 21404)]
    assert vendor.bought_total == 1
    assert await listed(client, FriendlyName="automna:ada") == ["automna:ada"]
