"""`automna-proxy machine`, before the simulated vendors: what is made, what is said where, and how it ends."""

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from automna_proxy.commands import machines
from metering.clock import SystemClock
from provisioning.lifecycle import GRACE_MS
from simulators.fly import ORG_SLUG, STALLING_IMAGE, VENDOR_KEY, fails
from tests.support.cli import WAIT_S, Cli, one_line
from tests.support.fly import fly_client
from tests.support.machines import Vendors, running_vendors

STAGES = (
    "creating app",
    "allocating ips",
    "creating integrations",
    "creating machine",
    "starting",
    "waiting for gateway",
    "ready",
)


@dataclass
class Operator:
    """Somebody with a shell, before the vendors."""

    vendors: Vendors
    cli: Cli

    async def run(self, *args: str) -> Any:
        """In a thread: the vendors are in this one."""
        return await asyncio.to_thread(self.cli.run, "machine", *args)

    async def ok(self, *args: str) -> str:
        result = await self.run(*args)
        assert (result.exit_code, result.exception) == (0, None), result.stderr
        return str(result.stdout)

    async def json(self, *args: str) -> Any:
        return json.loads(await self.ok(*args, "--json"))

    async def tokens(self) -> list[dict[str, Any]]:
        """Alice's, as `token list` shows them."""
        return (await asyncio.to_thread(self.cli.json, "token", "list", "alice"))["tokens"]  # type: ignore[no-any-return]

    async def refused(self, status: int, *args: str) -> str:
        """The one line of a command that ends with this status."""
        result = await self.run(*args)
        assert result.exit_code == status, (result.stdout, result.stderr)
        assert result.stdout == ""
        return one_line(result.stderr)

    async def spawned(self, *args: str, **how: Any) -> asyncio.subprocess.Process:
        environ = {
            name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "COLUMNS"}
        }
        pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, **how}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "automna_proxy", "machine", *args),
            env={**environ, **self.cli.env},
            **pipes,
        )


@asynccontextmanager
async def operator_in(folder: Path, **env: str) -> AsyncIterator[Operator]:
    async with running_vendors(clock=SystemClock()) as vendors:
        cli = Cli(folder / "store.db", vendors.variables(**env))
        await asyncio.to_thread(cli.ok, "user", "add", "alice", "--plan", "pro")
        yield Operator(vendors, cli)


@pytest.fixture
async def operator(tmp_path: Path) -> AsyncIterator[Operator]:
    async with operator_in(tmp_path) as operator:
        yield operator
        operator.vendors.assert_valid()


async def test_a_machine_is_made_without_a_server_and_its_stages_are_told_beside_the_answer(
    operator: Operator,
) -> None:
    result = await operator.run("provision", "alice")
    assert result.exit_code == 0, result.stderr
    app = operator.vendors.app.name
    assert result.stdout == f"machine of alice: ready at {operator.vendors.fly.url}/gateway/{app}\n"
    assert result.stderr.splitlines() == [f"automna-proxy: machine of alice: {stage}" for stage in STAGES]
    operator.vendors.assert_one_of_each()
    machine = await operator.json("status", "alice")
    assert (machine["user"], machine["status"], machine["app"]) == ("alice", "ready", app)
    (wished, *_) = (await operator.json("events", "alice"))["events"]
    assert (wished["event"], wished["details"]["actor"]) == ("wished", "cli")


async def test_provisioning_twice_gives_the_same_machine(operator: Operator) -> None:
    first = await operator.json("provision", "alice")
    again = await operator.json("provision", "alice")
    assert again == first
    operator.vendors.assert_one_of_each()


async def test_what_is_only_wished_is_made_by_the_next_command_that_waits(operator: Operator) -> None:
    assert await operator.ok("provision", "alice", "--no-wait") == "machine of alice: pending; wished for\n"
    operator.vendors.assert_nothing()
    assert (await operator.json("list", "--status", "pending"))["machines"][0]["user"] == "alice"
    await operator.ok("provision", "alice")
    operator.vendors.assert_one_of_each()


async def test_a_machine_is_stopped_started_and_suspended(operator: Operator) -> None:
    await operator.ok("provision", "alice")
    machine = operator.vendors.machine
    for command, status, state in (
        ("stop", "stopped", "stopped"),
        ("start", "ready", "started"),
        ("suspend", "suspended", "suspended"),
        ("start", "ready", "started"),
    ):
        told = await operator.json(command, "alice")
        assert (told["status"], operator.vendors.machine.state) == (status, state), command
        assert machine.is_cordoned is (state != "started")
    operator.vendors.assert_one_of_each()


async def test_a_rotated_machine_has_another_gateway_token_and_the_first_one_ends_in_a_moment(
    operator: Operator,
) -> None:
    await operator.ok("provision", "alice")
    before = operator.vendors.gateway_token()
    rotated = await operator.json("rotate", "alice")
    assert operator.vendors.gateway_token() != before
    tokens = await operator.tokens()
    (old,) = (token for token in tokens if token["id"] != rotated["token"])
    assert old["replaced_by"] == rotated["token"]
    ends_in = datetime.fromisoformat(old["expires_at"]) - datetime.fromisoformat(rotated["updated_at"])
    assert ends_in <= timedelta(milliseconds=GRACE_MS)


async def test_an_updated_machine_has_the_image_that_is_set_by_now(operator: Operator) -> None:
    await operator.ok("provision", "alice")
    image = "registry.fly.io/agent@sha256:" + "ab12" * 16
    operator.cli.env["MACHINE_IMAGE"] = image
    result = await operator.run("update", "alice")
    assert result.exit_code == 0, result.stderr
    assert "machine of alice: updated: changed image" in result.stderr
    running = operator.vendors.machine.running
    assert running is not None
    assert running.image == image


async def test_deprovisioning_asks_and_leaves_nothing(operator: Operator) -> None:
    await operator.ok("provision", "alice")
    assert "expected --yes" in await operator.refused(2, "deprovision", "alice")
    operator.vendors.assert_one_of_each()
    assert await operator.ok("deprovision", "alice", "--yes") == "machine of alice: gone\n"
    operator.vendors.assert_nothing()
    assert (await operator.json("deprovision", "alice", "--yes"))["status"] == "gone"
    assert (await operator.json("status", "alice"))["resources"] == []
    tokens = await operator.tokens()
    assert [token["state"] for token in tokens] == ["revoked"]


async def test_what_is_given_up_ends_in_one_line_with_its_code_and_leaves_nothing(
    operator: Operator,
) -> None:
    operator.vendors.fly.next_on("POST /v1/apps/.*/volumes", fails(422))
    result = await operator.run("provision", "alice")
    assert (result.exit_code, result.stdout) == (1, "")
    last = result.stderr.splitlines()[-1]
    assert "did not come up: provider_refused (trying again does not help by itself); `" in last
    operator.vendors.assert_nothing()
    await operator.ok("provision", "alice")
    operator.vendors.assert_one_of_each()


async def test_a_key_that_fly_refuses_does_not_make_a_command_wait_for_ever(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "FAILURES_WAITED", 2)  # each waits longer than the one before
    operator.cli.env["FLY_API_TOKEN"] = "fm2_of_somebody_else"
    result = await operator.run("provision", "alice", "--json")
    assert (result.exit_code, json.loads(result.stdout)["status"]) == (1, "error")
    last = result.stderr.splitlines()[-1]
    assert (
        "did not come up: provider_unauthorized (trying again does not help by itself); what was made" in last
    )
    assert "fm2_of" not in result.stderr
    operator.vendors.assert_nothing()
    operator.cli.env["FLY_API_TOKEN"] = VENDOR_KEY
    await operator.ok("provision", "alice")
    operator.vendors.assert_one_of_each()
    operator.cli.env["FLY_API_TOKEN"] = "fm2_of_somebody_else"
    result = await operator.run("deprovision", "alice", "--yes")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is not gone: that failed 2 times in a row; the wish stands" in result.stderr.splitlines()[-1]


async def test_a_failure_that_passes_is_told_and_gone_through(operator: Operator) -> None:
    operator.vendors.fly.next_on("POST /v1/apps", fails(503))
    result = await operator.run("provision", "alice")
    assert result.exit_code == 0, result.stderr
    assert (
        "machine of alice: failed: code provider_unavailable, status creating_app, attempt 1" in result.stderr
    )
    operator.vendors.assert_one_of_each()


async def test_status_list_events_and_ticket_as_people_read_them(operator: Operator) -> None:
    await operator.ok("provision", "alice")
    app = operator.vendors.app.name
    shown = await operator.ok("status", "alice")
    assert "status\tready" in shown
    assert f"app\t{app}\t{app}\tlive" in shown
    header, row = (await operator.ok("list")).splitlines()
    assert header.startswith("user\tstatus\tdesired")
    assert row.startswith(f"alice\tready\trunning\tsjc\t{operator.vendors.machine.id}\t{app}\t")
    lines = (await operator.ok("events", "alice")).splitlines()
    assert lines[1].endswith("wished\tactor=cli  aim=running")
    assert [
        line.split("\t")[2] for line in (await operator.ok("events", "alice", "-n", "1")).splitlines()
    ] == [
        "event",
        "ready",
    ]
    result = await operator.run("ticket", "alice")
    assert result.stdout.count(".") == 2
    assert f"a way into {operator.vendors.fly.url}/gateway/{app}, until" in one_line(result.stderr)


async def test_a_machine_that_is_not_ready_gives_no_ticket(operator: Operator) -> None:
    await operator.ok("provision", "alice", "--no-wait")
    assert "the machine of alice is pending" in await operator.refused(1, "ticket", "alice")


@pytest.mark.parametrize("command", ["start", "stop", "suspend", "update", "rotate", "status", "ticket"])
async def test_without_a_machine_there_is_nothing_to_do(operator: Operator, command: str) -> None:
    assert "alice has no machine" in await operator.refused(3, command, "alice")


async def test_nobody_who_is_no_user_gets_a_machine(operator: Operator) -> None:
    assert "there is no user bob" in await operator.refused(3, "provision", "bob")
    assert "there is no user bob" in await operator.refused(3, "events", "bob")
    operator.vendors.assert_nothing()


async def test_a_machine_that_was_never_ready_can_only_be_provisioned(operator: Operator) -> None:
    await operator.ok("provision", "alice", "--no-wait")
    assert "provision it first" in await operator.refused(1, "stop", "alice")


@pytest.mark.parametrize(
    "command", ["provision", "start", "stop", "suspend", "update", "rotate", "deprovision", "reconcile"]
)
async def test_without_a_token_of_fly_whatever_needs_it_says_so(operator: Operator, command: str) -> None:
    del operator.cli.env["FLY_API_TOKEN"]
    args = {"reconcile": (), "deprovision": ("alice", "--yes")}.get(command, ("alice",))
    line = await operator.refused(5, command, *args)
    assert "FLY_API_TOKEN is not set: machines need it, FLY_ORG, MACHINE_IMAGE and PUBLIC_URL" in line


@pytest.mark.parametrize("command", ["provision", "reconcile"])
async def test_an_image_that_may_be_another_one_tomorrow_is_a_matter_of_configuration(
    operator: Operator, command: str
) -> None:
    operator.cli.env["MACHINE_IMAGE"] = "registry.fly.io/agent:latest"
    line = await operator.refused(5, command, *(["alice"] if command == "provision" else []))
    assert "MACHINE_IMAGE: given 'registry.fly.io/agent:latest', expected an image by its digest" in line
    assert "alice has no machine" in await operator.refused(3, "status", "alice")


async def test_what_is_on_record_is_shown_without_fly(operator: Operator) -> None:
    await operator.ok("provision", "alice")
    del operator.cli.env["FLY_API_TOKEN"]
    assert (await operator.json("status", "alice"))["status"] == "ready"
    assert len((await operator.json("list"))["machines"]) == 1


async def test_an_unknown_status_is_wrong_usage(operator: Operator) -> None:
    assert "--status: given 'dead', expected one of pending" in await operator.refused(
        2, "list", "--status", "dead"
    )


async def test_reconciling_tells_what_belongs_to_nobody_and_ends_in_1(operator: Operator) -> None:
    await operator.ok("provision", "alice")
    assert (await operator.json("reconcile"))["findings"] == []
    stray = "automna-u-" + "0" * 20
    async with fly_client(operator.vendors.fly.url) as fly:
        made = await fly.post("/apps", json={"name": stray, "org_slug": ORG_SLUG})
        assert made.is_success
    result = await operator.run("reconcile", "--json")
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)["findings"]
    assert (finding["kind"], finding["app"], finding["done"]) == ("unknown_app", stray, "")
    assert "1 found that are not mended" in one_line(result.stderr)
    result = await operator.run("reconcile")
    assert stray in result.stdout


async def test_reconciling_wishes_anew_what_has_drifted(operator: Operator) -> None:
    await operator.ok("provision", "alice")
    operator.vendors.machine.config["env"]["OPENCLAW_GATEWAY_TOKEN"] = "amp_other"
    result = await operator.run("reconcile", "--repair", "--json")
    assert result.exit_code == 0, result.stderr
    (finding,) = json.loads(result.stdout)["findings"]
    assert (finding["kind"], finding["user"], finding["done"]) == ("drift", "alice", "wished anew")
    assert "amp_other" not in result.stdout
    await operator.ok("provision", "alice")
    assert operator.vendors.gateway_token() != "amp_other"


async def test_a_fly_that_fails_ends_reconciling_in_one_line(operator: Operator) -> None:
    operator.vendors.fly.next(fails(500))
    assert "Fly: " in await operator.refused(1, "reconcile")


# --- in a process of its own ------------------------------------------------------------------------------


async def test_ctrl_c_leaves_the_wish_standing_and_says_so(tmp_path: Path) -> None:
    image = f"registry.fly.io/{STALLING_IMAGE}@sha256:" + "5e1f" * 16
    async with operator_in(tmp_path, MACHINE_IMAGE=image) as operator:
        process = await operator.spawned("provision", "alice")
        assert process.stderr is not None
        try:
            async with asyncio.timeout(WAIT_S):
                while b"starting" not in await process.stderr.readline():
                    pass
                process.send_signal(signal.SIGINT)
                out, err = await process.communicate()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        assert (process.returncode, out) == (130, b"")
        assert b"the wish stands: a server goes on with it" in err
        assert b"Traceback" not in err
        machine = await operator.json("status", "alice")
        assert (machine["status"], machine["next_attempt_at"] is None) == ("starting", False)


async def test_on_a_terminal_what_is_done_stands_above_what_is_being_done(operator: Operator) -> None:
    ours, theirs = pty.openpty()
    process = await operator.spawned("provision", "alice", stderr=theirs)
    os.close(theirs)
    async with asyncio.timeout(WAIT_S):
        out, _ = await process.communicate()
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert process.returncode == 0
    assert out.decode().startswith("machine of alice: ready at ")
    for stage in STAGES[:-1]:
        assert f"✓\x1b[0m {stage}" in shown, shown
