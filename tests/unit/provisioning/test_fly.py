"""What Fly's refusals mean, and that a call says no more and no less than it knows."""

import pytest

from metering.clock import ManualClock
from metering.users import TOKEN_PREFIX
from provisioning.fly import ANSWER_BYTES_MAX, NONCE, Fly, FlyError, Trouble, fly_client
from provisioning.pacing import Pacer
from simulators import fly_errors
from simulators.fly import ORG_SLUG, VENDOR_KEY, FlySimulator, answers, drops, fails, loses_reply
from simulators.fly_behaviour import UNKNOWN
from simulators.fly_habits import Habits, Shortage
from tests.support.fly import DOCUMENT, config, made_app, made_machine
from tests.support.fly import fly_client as simulators_client

MEANINGS = [
    (fly_errors.unauthorized(), Trouble.UNAUTHORIZED),
    (fly_errors.not_found("machine"), Trouble.NOT_FOUND),
    (fly_errors.foreign_app("u"), Trouble.FOREIGN),
    (fly_errors.name_taken(), Trouble.EXISTS),
    (fly_errors.name_taken_here(), Trouble.EXISTS),
    (fly_errors.machine_name_taken("148e", "gw"), Trouble.EXISTS),
    (fly_errors.concurrent_update("148e"), Trouble.AGAIN),
    (fly_errors.leased("148e", "ada@fly", "soon"), Trouble.LEASED),
    (fly_errors.no_room(Shortage.REGION, "sjc"), Trouble.NO_ROOM_IN_REGION),
    (fly_errors.no_room(Shortage.ABORTED, "sjc"), Trouble.NO_ROOM_IN_REGION),
    (fly_errors.no_room(Shortage.HOST, "sjc-1"), Trouble.NO_ROOM_ON_HOST),
    (fly_errors.no_room(Shortage.VOLUME, "sjc-1"), Trouble.NO_ROOM_ON_HOST),
    (fly_errors.precondition("machine is starting"), Trouble.AGAIN),
    (fly_errors.not_reached("started", "created"), Trouble.AGAIN),
    (fly_errors.limited(b"slow down", None), Trouble.AGAIN),
    (fly_errors.invalid("config.image is missing"), Trouble.REFUSED),
    (fly_errors.unprocessable("Validation failed"), Trouble.REFUSED),
]


@pytest.fixture
async def place():
    openapi = DOCUMENT if DOCUMENT.exists() else None
    async with FlySimulator(openapi=openapi, habits=Habits(rates=None)) as simulator:
        async with fly_client(simulator.url, VENDOR_KEY) as client:
            yield simulator, Fly(client, Pacer(ManualClock(0)), org_slug=ORG_SLUG)
        assert simulator.invalid == []


@pytest.mark.parametrize(("refusal", "trouble"), MEANINGS, ids=lambda one: str(one)[:40])
async def test_each_refusal_means_one_thing(place, refusal, trouble):
    simulator, fly = place
    simulator.next(
        fails(
            refusal.status,
            refusal.more.get("error_type", UNKNOWN),
            message=refusal.message,
            body=refusal.more.get("body"),
        )
    )
    with pytest.raises(FlyError) as raised:
        await fly.create_app("u-ada", "net-ada")
    assert (raised.value.trouble, raised.value.status) == (trouble, refusal.status)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
async def test_a_failure_of_fly_may_have_been_a_success(place, status):
    simulator, fly = place
    simulator.next(fails(status, works=True))
    with pytest.raises(FlyError) as raised:
        await fly.create_app("u-ada", "net-ada")
    assert raised.value.trouble is Trouble.AGAIN
    assert [app.name for app in simulator.apps] == ["u-ada"]


@pytest.mark.parametrize("behaviour", [drops(), loses_reply()])
async def test_no_answer_is_trouble_that_may_go_better(place, behaviour):
    simulator, fly = place
    simulator.next(behaviour)
    with pytest.raises(FlyError) as raised:
        await fly.create_app("u-ada", "net-ada")
    assert (raised.value.trouble, raised.value.status) == (Trouble.AGAIN, None)


@pytest.mark.parametrize(("given", "after_s"), [("7", 7.0), ("9999", 60.0), ("soon", None), (None, None)])
async def test_what_fly_asks_us_to_wait_is_heeded_within_a_bound(place, given, after_s):
    simulator, fly = place
    simulator.next(fails(429, headers=None if given is None else {"Retry-After": given}))
    with pytest.raises(FlyError) as raised:
        await fly.create_app("u-ada", "net-ada")
    assert raised.value.after_s == after_s


async def test_an_answer_that_is_no_json_says_nothing_of_what_was_done(place):
    simulator, fly = place
    simulator.next(answers(b"<html>"))
    with pytest.raises(FlyError) as raised:
        await fly.create_app("u-ada", "net-ada")
    assert raised.value.trouble is Trouble.AGAIN


async def test_an_answer_without_end_is_given_up(place):
    simulator, fly = place
    simulator.next(answers(b"x" * (ANSWER_BYTES_MAX + 1)))
    with pytest.raises(FlyError, match="more than"):
        await fly.create_app("u-ada", "net-ada")


async def test_an_error_never_carries_the_key(place):
    simulator, fly = place
    simulator.api_key = b"another"
    with pytest.raises(FlyError) as raised:
        await fly.app("u-ada")
    assert VENDOR_KEY not in str(raised.value)


async def test_an_error_that_quotes_what_was_sent_shows_no_secret_of_it(place):
    """Whoever refuses a configuration may repeat it: the gateway token stands in a machine's environment, and our words are logged."""
    simulator, fly = place
    await fly.create_app("u-ada", "net-ada")
    token = f"{TOKEN_PREFIX}{'s' * 43}"
    said = f"env OPENCLAW_GATEWAY_TOKEN={token} of {VENDOR_KEY}: is too long"
    for works in (
        fly.create_app("u-bob", "net-bob"),
        fly.create_machine("u-ada", "gw", region="sjc", config=config(token=token)),
    ):
        simulator.next(fails(422, message=said))
        with pytest.raises(FlyError, match="is too long") as raised:
            await works
        assert VENDOR_KEY not in str(raised.value)
    assert token not in str(raised.value)


@pytest.mark.parametrize(
    ("token", "sent"),
    [
        ("fm2_a", "Bearer fm2_a"),
        ("FlyV1 fm2_a", "FlyV1 fm2_a"),
        ("Bearer x", "Bearer x"),
        (" fm2_a\n", "Bearer fm2_a"),
    ],
)
async def test_a_token_is_taken_as_its_command_shows_it(token, sent):
    async with fly_client("http://127.0.0.1:1", token) as client:
        assert client.headers["authorization"] == sent


async def test_a_leased_machine_is_changed_by_its_nonce_and_let_go_of(place):
    simulator, fly = place
    async with simulators_client(simulator.url) as client:
        app = await made_app(client)
        made = await made_machine(client, app)
    simulator.advance(10)
    machine = await fly.machine("u-ada", made["id"])
    assert machine is not None
    async with fly.leased(machine, ttl_s=60) as nonce:
        with pytest.raises(FlyError) as raised:
            await fly.update_machine(machine, config(token="other"), "wrong", launches=True)
        assert raised.value.trouble is Trouble.LEASED
        await fly.update_machine(machine, config(token="other"), nonce, launches=True)
        asked = dict(simulator.requests[-1].headers)
        assert asked[NONCE.encode()] == nonce.encode()
        with pytest.raises(FlyError):  # by a version that is not the newest any more
            await fly.update_machine(machine, config(token="third"), nonce, launches=True)
    assert simulator.leases == {}


async def test_lists_of_the_organization_are_read_to_their_last_page(place):
    simulator, fly = place
    async with simulators_client(simulator.url) as client:
        for number in range(3):
            app = await made_app(client, f"u-{number}")
            await made_machine(client, app)
    assert sorted(one.app_name for one in await fly.org_machines()) == ["u-0", "u-1", "u-2"]
    assert sorted(await fly.apps()) == ["u-0", "u-1", "u-2"]
    assert all(one.config is None for one in await fly.org_machines())


async def test_what_is_not_there_is_none_and_deleting_it_is_done(place):
    _, fly = place
    assert await fly.app("u-nobody") is None
    await fly.delete_app("u-nobody")
    await fly.delete_volume("u-nobody", "vol_1")
    assert await fly.machine("u-nobody", "148e") is None


async def test_a_wait_that_runs_out_says_so(place):
    simulator, fly = place
    async with simulators_client(simulator.url) as client:
        app = await made_app(client)
        made = await made_machine(client, app, image="never-starts@sha256:0")
    machine = await fly.machine("u-ada", made["id"])
    assert machine is not None
    assert await fly.wait(machine, "started", timeout_s=1) is False
