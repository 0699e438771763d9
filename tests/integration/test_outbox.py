"""Webhooks to a real receiver: signed, again and again until they are taken, never more than is bounded."""

import asyncio
import base64
import hashlib
import hmac
import json
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from standardwebhooks import WebhookVerificationError

from automna_proxy.settings import Settings
from metering.clock import SystemClock, month_of
from metering.heartbeat import BEAT
from metering.ledger import Ledger, Reservation
from metering.money import CREDIT_NANOUSD
from metering.outbox import (
    CLAIM_S,
    COUNT_WAITING,
    GIVEN_UP_KEPT_S,
    OUTBOX_ATTEMPTS_MAX,
    OUTBOX_KEPT_S,
    SELECT_DUE,
    Message,
    Outbox,
    OutboxError,
    adding,
    new_message,
    retry_after_s,
)
from metering.prices import PriceTable
from metering.store.writer import Step, Unit
from metering.tasks import spawn, stop
from proxy import outbox as delivery
from proxy.outbox import OUTBOX_AT_ONCE, Courier, Endpoint, parse_secrets, webhook_client
from proxy.telemetry import Telemetry
from simulators.anthropic import AnthropicSimulator, streams
from tests.support.gateway import client_of, messages_body, running_gateway
from tests.support.ledger import Bench, intent, money, open_bench, settlement
from tests.support.process import serving
from tests.support.receiver import OTHER_SECRET, SECRET, Receiver, answers, receiving

NAME = "notices"
DAY_S = 86_400.0


class Stage:
    """An outbox, a receiver, and as many couriers as a test wants. The clock is the machine's, and can be advanced:
    the receiver refuses what is signed for another time."""

    def __init__(self, bench: Bench, receiver: Receiver, client: httpx.AsyncClient) -> None:
        self.bench = bench
        self.receiver = receiver
        self.client = client
        self.telemetry = Telemetry(PriceTable.load())
        self.outbox = Outbox(bench.store, bench.clock)

    def courier(self, *, url: str | None = None, secrets: str = SECRET) -> Courier:
        endpoint = Endpoint(url or self.receiver.url, parse_secrets(secrets))
        return Courier(
            self.outbox,
            {NAME: endpoint},
            client=self.client,
            telemetry=self.telemetry,
            clock=self.bench.clock,
        )

    async def add(self, number: int = 1, *, endpoint: str = NAME) -> Message:
        document = {"type": "test", "data": {"number": number, "text": "\u00fc \U0001f600"}}
        message = new_message("test", endpoint, document, self.bench.clock.now_ms())
        await self.bench.store.writer.submit(Unit((adding(message),)))
        return message

    async def row(self) -> Message:
        (message,) = await self.outbox.newest(at_most=10)
        return message

    def counted(self, outcome: str) -> float:
        found = self.telemetry.registry.get_sample_value(
            "automna_outbox_deliveries_total", {"outcome": outcome}
        )
        return found or 0.0


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(open_bench(folder))
        bench.clock.ms = SystemClock().now_ms()
        receiver = await stack.enter_async_context(receiving())
        client = await stack.enter_async_context(webhook_client([]))
        yield Stage(bench, receiver, client)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        yield stage


async def test_a_message_is_delivered_once_and_signed_as_the_standard_has_it(stage: Stage) -> None:
    message = await stage.add()
    courier = stage.courier()
    assert await courier.deliver_due() == 1
    assert await courier.deliver_due() == 0
    (received,) = stage.receiver.received
    received.verified()
    assert (received.id, received.body.decode(), received.target) == (
        message.id,
        message.body,
        "/hooks?of=automna",
    )
    assert received.headers["content-type"] == "application/json"
    by_hand = hmac.digest(
        base64.b64decode(SECRET.removeprefix("whsec_")),
        f"{received.id}.{received.headers['webhook-timestamp']}.{message.body}".encode(),
        hashlib.sha256,
    )
    assert received.headers["webhook-signature"] == f"v1,{base64.b64encode(by_hand).decode()}"
    row = await stage.row()
    assert (row.state, row.attempts, row.last_error) == ("delivered", 1, None)
    assert await stage.outbox.waiting() == 0
    assert stage.counted("delivered") == 1


async def test_over_tls_only_a_receiver_that_the_machine_trusts_gets_it(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    await stage.add()
    async with receiving(tls=tls) as receiver:
        endpoint = Endpoint(receiver.url, parse_secrets(SECRET))
        for is_trusted in (False, True):
            if is_trusted:
                monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
            async with webhook_client([endpoint]) as stage.client:
                await stage.courier(url=receiver.url).deliver_due()
            assert len(receiver.received) == is_trusted
            if not is_trusted:
                assert "CERTIFICATE_VERIFY_FAILED" in ((await stage.row()).last_error or "")
            stage.bench.clock.advance(60)


async def test_while_one_secret_replaces_another_receivers_with_either_accept_it(stage: Stage) -> None:
    await stage.add()
    await stage.courier(secrets=f"{SECRET} {OTHER_SECRET}").deliver_due()
    (received,) = stage.receiver.received
    received.verified(SECRET).verified(OTHER_SECRET)
    with pytest.raises(WebhookVerificationError):
        received.verified("whsec_" + base64.b64encode(bytes(32)).decode())


@pytest.mark.parametrize("status", [302, 307, 400, 401, 404, 429, 500, 503])
async def test_what_is_no_2xx_is_tried_again_with_the_same_bytes(stage: Stage, status: int) -> None:
    message = await stage.add()
    stage.receiver.next(answers(status, "location: http://127.0.0.1:1/elsewhere"), answers(status))
    courier = stage.courier()
    assert await courier.deliver_due() == 1
    row = await stage.row()
    assert (row.state, row.attempts, row.last_error) == ("waiting", 1, f"answered {status}")
    assert await courier.deliver_due() == 0, "not before its pause is over"
    for pause_s in (retry_after_s(1), retry_after_s(2)):
        stage.bench.clock.advance(pause_s)
        assert await courier.deliver_due() == 1
    assert stage.receiver.bodies_by_id() == {message.id: {message.body.encode()}}
    assert len(stage.receiver.received) == 3
    assert {received.target for received in stage.receiver.received} == {"/hooks?of=automna"}
    assert (await stage.row()).state == "delivered"
    assert (stage.counted("failed"), stage.counted("delivered")) == (2, 1)


async def test_a_receiver_that_is_down_is_tried_for_about_a_day_and_then_given_up_loudly(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    message = await stage.add()
    began_ms = stage.bench.clock.now_ms()
    courier = stage.courier(url="http://127.0.0.1:1/nobody?key=hush")
    attempts = 0
    while (await stage.row()).state == "waiting":
        due_in_s = ((await stage.row()).due_at_ms - stage.bench.clock.now_ms()) / 1000
        stage.bench.clock.advance(due_in_s)
        attempts += await courier.deliver_due()
    assert attempts == OUTBOX_ATTEMPTS_MAX
    assert DAY_S / 2 < (stage.bench.clock.now_ms() - began_ms) / 1000 < DAY_S
    row = await stage.row()
    assert (row.state, row.attempts) == ("given up", OUTBOX_ATTEMPTS_MAX)
    assert "ConnectError" in (row.last_error or "")
    assert f"message {message.id} (test) is given up after 12 attempts" in caplog.text
    assert "hush" not in caplog.text + str(row)
    assert stage.counted("gave_up") == 1
    stage.bench.clock.advance(DAY_S)
    assert await courier.deliver_due() == 0


async def test_an_operator_has_what_was_given_up_sent_again_but_not_what_was_delivered(stage: Stage) -> None:
    message = await stage.add()
    stage.receiver.next(answers(410))
    courier = stage.courier()
    await courier.deliver_due()
    row = await stage.row()
    assert (row.state, row.last_error) == ("given up", "answered 410"), "Gone is gone at once"
    stage.bench.clock.advance(DAY_S)
    assert await courier.deliver_due() == 0
    await stage.outbox.retry(message.id)
    assert await courier.deliver_due() == 1
    assert (await stage.row()).state == "delivered"
    with pytest.raises(OutboxError, match="is delivered already"):
        await stage.outbox.retry(message.id)
    with pytest.raises(OutboxError, match="there is no message msg_x"):
        await stage.outbox.retry("msg_x")


async def test_a_receiver_that_says_nothing_is_left_after_a_while(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "ATTEMPT_TIMEOUT_S", 0.1)
    await stage.add()
    over = asyncio.Event()  # held here: nothing else holds the task that waits for it

    async def silence(writer: asyncio.StreamWriter) -> None:
        await over.wait()

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while not writer.is_closing():
            writer.write(b"x: y\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    for behaviour in (silence, drip):
        stage.receiver.next(behaviour)
        stage.bench.clock.advance(DAY_S)
        async with asyncio.timeout(60):
            await stage.courier().deliver_due()
        assert (await stage.row()).last_error == "no answer within 0.1 s"
    over.set()


async def test_a_huge_answer_is_not_read_and_counts_by_its_status(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"2000\r\n" + bytes(0x2000) + b"\r\n")
            await writer.drain()

    monkeypatch.setattr(delivery, "ANSWER_REST_S", 60.0)  # not what ends it here
    await stage.add()
    stage.receiver.next(flood)
    async with asyncio.timeout(60):
        assert await stage.courier().deliver_due() == 1
    assert stage.counted("delivered") == 1


async def test_an_answer_that_never_ends_counts_by_its_status(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")
        await asyncio.Event().wait()

    monkeypatch.setattr(delivery, "ANSWER_REST_S", 0.1)
    await stage.add()
    stage.receiver.next(endless)
    async with asyncio.timeout(60):
        assert await stage.courier().deliver_due() == 1
    assert stage.counted("delivered") == 1


async def test_two_workers_that_find_the_same_message_send_it_once(stage: Stage) -> None:
    sent = [await stage.add(number) for number in range(OUTBOX_AT_ONCE)]
    assert sum(await asyncio.gather(*(stage.courier().deliver_due() for _ in range(5)))) == len(sent)
    assert sorted(received.id for received in stage.receiver.received) == sorted(m.id for m in sent)


async def test_no_more_than_a_few_are_under_way_and_a_slow_one_is_nobody_elses_meanwhile(
    stage: Stage,
) -> None:
    for number in range(2 * OUTBOX_AT_ONCE):
        await stage.add(number)
    release = asyncio.Event()

    async def slow(writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(answers(200))

    stage.receiver.always = slow
    delivering = asyncio.get_running_loop().create_task(stage.courier().deliver_due())
    async with asyncio.timeout(60):
        while stage.receiver.open_now < OUTBOX_AT_ONCE:
            await asyncio.sleep(0.005)
    stage.bench.clock.advance(CLAIM_S - 1)
    others = await stage.outbox.due(NAME, at_most=100)
    assert len(others) == OUTBOX_AT_ONCE
    release.set()
    assert await delivering == OUTBOX_AT_ONCE
    assert stage.receiver.open_most == OUTBOX_AT_ONCE


async def test_a_silent_receiver_keeps_no_message_waiting_for_the_end_of_another_s_attempt(
    stage: Stage,
) -> None:
    never = asyncio.Event()

    async def silence(writer: asyncio.StreamWriter) -> None:
        await never.wait()

    stage.receiver.next(silence)
    await stage.add()
    delivering = asyncio.get_running_loop().create_task(stage.courier().keep_delivering())
    async with asyncio.timeout(8):
        while not stage.receiver.received:
            await asyncio.sleep(0.005)
        for number in range(10):
            await stage.add(number)
        while stage.counted("delivered") < 10:
            await asyncio.sleep(0.005)
    delivering.cancel()
    await asyncio.wait({delivering})
    assert [row.state for row in await stage.outbox.newest(at_most=99)].count("waiting") == 1


async def test_a_late_answer_of_an_attempt_does_not_undo_what_a_later_one_has_begun(stage: Stage) -> None:
    message = await stage.add()
    assert await stage.outbox.claim(message)
    stage.bench.clock.advance(CLAIM_S)
    (again,) = await stage.outbox.due(NAME, at_most=1)
    assert await stage.outbox.claim(again)
    before = await stage.row()
    await stage.outbox.failed(message, "late")
    assert not await stage.outbox.give_up(message, "late", attempts=1)
    assert await stage.row() == before
    await stage.outbox.delivered(message)
    assert (await stage.row()).state == "delivered"
    await stage.outbox.failed(again, "later still")
    assert (await stage.row()).state == "delivered"


async def test_a_process_that_dies_of_every_attempt_does_not_try_for_ever(stage: Stage) -> None:
    await stage.add()
    for _ in range(OUTBOX_ATTEMPTS_MAX):
        (message,) = await stage.outbox.due(NAME, at_most=1)
        assert await stage.outbox.claim(message)  # and dies
        stage.bench.clock.advance(DAY_S)
    assert await stage.courier().deliver_due() == 0
    row = await stage.row()
    assert (row.state, row.attempts) == ("given up", OUTBOX_ATTEMPTS_MAX)
    assert "no answer is known" in (row.last_error or "")
    assert stage.receiver.received == []


async def test_what_waits_for_a_clock_that_was_set_back_is_sent_now(stage: Stage) -> None:
    await stage.add()
    (message,) = await stage.outbox.due(NAME, at_most=1)
    assert await stage.outbox.claim(message)  # and dies
    stage.bench.clock.advance(-DAY_S)
    delivering = spawn(stage.courier().keep_delivering(), name="courier")
    try:
        async with asyncio.timeout(60):
            while (await stage.row()).state != "delivered":
                await asyncio.sleep(0.01)
    finally:
        await stop(delivering)
    assert len(stage.receiver.received) == 1


async def test_a_message_to_an_endpoint_that_is_not_set_waits(stage: Stage) -> None:
    await stage.add(endpoint="elsewhere")
    assert await stage.courier().deliver_due() == 0
    assert await stage.outbox.waiting() == 1


async def test_the_delivered_are_kept_for_a_week_and_the_given_up_for_three_months(stage: Stage) -> None:
    delivered, given_up, waiting = [await stage.add(number) for number in range(3)]
    await stage.outbox.delivered(delivered)
    await stage.outbox.give_up(given_up, "gone", attempts=0)

    async def left_after(seconds: float) -> set[str]:
        stage.bench.clock.advance(seconds + 1)
        await stage.outbox.forget_old()
        return {message.id for message in await stage.outbox.newest(at_most=9)}

    assert await left_after(0) == {delivered.id, given_up.id, waiting.id}
    assert await left_after(OUTBOX_KEPT_S) == {given_up.id, waiting.id}
    assert await left_after(GIVEN_UP_KEPT_S) == {waiting.id}


async def test_a_look_finds_its_messages_by_their_index(stage: Stage) -> None:
    for sql, params in ((SELECT_DUE, (NAME, 1, 4)), (COUNT_WAITING, ())):
        rows = await stage.bench.store.readers.rows(f"EXPLAIN QUERY PLAN {sql}", params)
        assert "outbox_waiting" in str(rows), rows


# --- the whole service -------------------------------------------------------------------------------


async def test_a_budget_that_is_used_up_is_told_once_per_threshold_by_the_running_service(
    tmp_path: Path,
) -> None:
    async with receiving() as receiver, AnthropicSimulator() as vendor:
        env = {"NOTICES_URL": receiver.url, "NOTICES_SECRET": SECRET}
        async with running_gateway(tmp_path, upstream=vendor.url, env=env, credits_per_month=100) as gateway:
            async with client_of(gateway, await gateway.new_token()) as client:
                for _ in range(200):
                    answer = await client.post("/v1/messages", json=messages_body(max_tokens=10))
                    if answer.status_code != 200:
                        break
            assert answer.status_code == 402
            await gateway.until(lambda: len(receiver.received) >= 3)
            await gateway.until(
                lambda: gateway.metric("automna_outbox_deliveries_total", outcome="delivered") == 3
            )
            await gateway.assert_clean()
            percents = sorted(
                json.loads(received.verified().body)["data"]["threshold_percent"]
                for received in receiver.received
            )
    assert percents == [50, 80, 100]


async def test_what_a_dead_worker_had_noted_is_told_of_once_it_is_buried(tmp_path: Path) -> None:
    async with receiving() as receiver:
        env = {"NOTICES_URL": receiver.url, "NOTICES_SECRET": SECRET}
        async with running_gateway(tmp_path, env=env, credits_per_month=100) as gateway:
            await gateway.new_token("ada")
            store, clock = gateway.service.store, gateway.clock
            dead = Ledger(store, clock, "wrk_dead")
            held = money(80, of=10**9, period=month_of(clock.now_ms()))
            reservation = await dead.reserve(intent(held))
            assert isinstance(reservation, Reservation)
            await dead.settle(reservation, settlement(80 * CREDIT_NANOUSD))
            params = ("wrk_dead", 1, "host", 1, clock.now_ms())
            await store.writer.submit(Unit((Step(BEAT, params),)))
            await gateway.until(lambda: len(receiver.received) == 2)
            await gateway.assert_clean()


async def test_a_stream_that_is_cut_for_the_budget_is_told_of_as_all_of_it(tmp_path: Path) -> None:
    async with receiving() as receiver, AnthropicSimulator() as vendor:
        vendor.next(streams(events=2_000))
        env = {"NOTICES_URL": receiver.url, "NOTICES_SECRET": SECRET, "OUTPUT_SLICE_TOKENS": "16"}
        async with running_gateway(tmp_path, upstream=vendor.url, env=env, credits_per_month=100) as gateway:
            async with client_of(gateway, await gateway.new_token()) as client:
                body = messages_body(stream=True, max_tokens=5_000)
                answer = await client.post("/v1/messages", json=body)
            assert "Monthly usage limit reached" in answer.text
            await gateway.until(lambda: len(receiver.received) == 3)
            entry = await gateway.only_entry()
            assert entry["outcome"] == "budget_ended"
            assert entry["cost_nanousd"] < 100 * CREDIT_NANOUSD
            told = [json.loads(received.body)["data"] for received in receiver.received]
    assert sorted(data["threshold_percent"] for data in told) == [50, 80, 100]
    assert {data["used_nanousd"] for data in told} == {entry["cost_nanousd"]}


async def test_two_workers_tell_each_threshold_once_and_a_stop_beside_a_silent_receiver_is_not_delayed(
    tmp_path: Path,
) -> None:
    async with receiving() as receiver, AnthropicSimulator() as vendor:
        env = {"NOTICES_URL": receiver.url, "NOTICES_SECRET": SECRET}

        async def silence(writer: asyncio.StreamWriter) -> None:
            await asyncio.Event().wait()

        receiver.always = silence
        async with serving(
            tmp_path, upstream=vendor.url, workers=2, env=env, credits_per_month=100
        ) as server:
            async with server.directory() as directory:
                await directory.add_user("u1", plan="test")
                token, _ = await directory.create_token("u1")
            for _ in range(200):
                async with server.client(token) as client:
                    answer = await client.post("/v1/messages", json=messages_body(max_tokens=10))
                    if answer.status_code != 200:
                        break
            await server.until(lambda: receiver.open_now == 3)
            server.signal(signal.SIGTERM)
            assert await server.exit_status(within_s=delivery.ATTEMPT_TIMEOUT_S - 5) == 0
            receiver.always = answers(204)
            state = "SELECT threshold_percent, attempts, delivered_at_ms IS NULL FROM notices JOIN outbox ON id = outbox_id"
            assert sorted(server.rows(state)) == [(50, 1, 1), (80, 1, 1), (100, 1, 1)]
            assert SECRET not in server.log()
            assert "of=automna" not in server.log()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (
            {"NOTICES_URL": "https://x.test/"},
            "NOTICES_SECRET: unset, though NOTICES_URL is set; expected whsec_",
        ),
        ({"NOTICES_URL": "http://x.test/hush"}, "NOTICES_URL: given http://x.test, expected an address"),
        ({"NOTICES_URL": "x.test/hush"}, "NOTICES_URL: given something else, expected an address"),
        ({"NOTICES_URL": "http://127.0.0.1.x.test/"}, "NOTICES_URL: given http://127.0.0.1.x.test, expected"),
        ({"NOTICES_URL": "https:///hush"}, "NOTICES_URL: given something else, expected an address"),
        ({"NOTICES_URL": "https://x.test/ hush"}, "NOTICES_URL: given https://x.test, expected an address"),
        ({"NOTICES_URL": "https://[hush/"}, "NOTICES_URL: given something else, expected an address"),
        *(
            ({"NOTICES_URL": "https://x.test/", "NOTICES_SECRET": secret}, "NOTICES_SECRET: expected whsec_")
            for secret in ("hush", "whsec_hush", "whsec_aHVzaA==", f"{SECRET} {SECRET} {SECRET}", SECRET[6:])
        ),
    ],
)
def test_an_endpoint_that_cannot_be_used_is_refused_at_the_start_without_showing_secrets(
    env: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=r"^NOTICES_") as error:
        Settings.from_env(env)
    assert str(error.value).startswith(said)
    assert "hush" not in str(error.value)
    assert SECRET[6:] not in str(error.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x", "http://[::1]:9/", "http://localhost/", "https://x.test/a?b=c"]
)
def test_https_or_loopback_is_an_endpoint_and_settings_never_show_it(url: str) -> None:
    settings = Settings.from_env({"NOTICES_URL": url, "NOTICES_SECRET": f"{SECRET}  {OTHER_SECRET}\n"})
    endpoint = settings.notices_endpoint
    assert endpoint is not None
    assert (endpoint.url, len(endpoint.keys)) == (url, 2)
    for shown in (repr(settings), repr(endpoint)):
        assert url not in shown
        assert SECRET not in shown
