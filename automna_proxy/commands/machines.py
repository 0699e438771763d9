"""`machine`: users' own machines. A command that waits works on the machine itself: it gets done beside a server, and without one."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Annotated, Any

import typer

from automna_proxy.commands.session import (
    CLOCK,
    CommandError,
    Json,
    Status,
    UserId,
    current_settings,
    with_store,
)
from automna_proxy.machines import machines_of, provisioner
from automna_proxy.progress import Teller, progress_of
from automna_proxy.settings import Settings
from automna_proxy.tables import Table, to_the_second
from automna_proxy.terminal import PROGRAM, note, say, show, show_json
from metering.clock import instant
from metering.store.store import Store
from metering.tasks import spawn, stop
from metering.users import Directory
from provisioning.fly import FlyError
from provisioning.instances import (
    DEPROVISIONING,
    ERROR,
    EVENTS_MAX,
    LISTED_MAX,
    READY,
    STATUSES,
    Event,
    Instance,
)
from provisioning.machines import Machine, MachineError, Machines, NoMachineError
from provisioning.reconcile import Reconciled
from provisioning.worker import Provisioner

app = typer.Typer(
    no_args_is_help=True, help="Users' own machines at Fly: made, changed, looked at, taken away."
)

ACTOR = "cli"
"""Who wished it, in a machine's history."""
LOOK_EVERY_S = 0.1
"""For what is new of a machine that a command waits for."""
NEW_AT_ONCE = 100
"""Events between two looks, at most."""
FAILURES_WAITED = 4
"""In a row, of taking away, which is never given up: then a command says so and ends."""
INTERRUPTED = 130
"""The exit status of what Ctrl-C ended, as shells have it."""

NoWait = Annotated[
    bool,
    typer.Option("--no-wait", help="Only wish it: a server makes it true, or the next command that waits."),
]
Wish = Callable[[Machines], Awaitable[Machine]]


@app.command()
def provision(user_id: UserId, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Make a user's machine, with all that belongs to it; or go on with one that is being made, or was given up.

    Twice is no error: a user has one machine. Its stages are told on standard error.

    Example: automna-proxy machine provision alice
    """
    _wish(
        user_id, lambda machines: machines.provision(user_id, actor=ACTOR), no_wait=no_wait, as_json=as_json
    )


@app.command()
def start(user_id: UserId, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Start a machine that was stopped or suspended, or is to be awake now."""
    _wish(user_id, lambda machines: machines.start(user_id, actor=ACTOR), no_wait=no_wait, as_json=as_json)


@app.command("stop")
def stop_machine(user_id: UserId, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Stop a machine until it is started: no request wakes it. Its volume stays."""
    _wish(user_id, lambda machines: machines.stop(user_id, actor=ACTOR), no_wait=no_wait, as_json=as_json)


@app.command()
def suspend(user_id: UserId, no_wait: NoWait = False, as_json: Json = False) -> None:
    """As `stop`, with what is in its memory."""
    _wish(user_id, lambda machines: machines.suspend(user_id, actor=ACTOR), no_wait=no_wait, as_json=as_json)


@app.command()
def update(user_id: UserId, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Bring a machine to what the template, MACHINE_IMAGE and its user's plan say by now. It boots again if anything differs.

    Example: automna-proxy machine list --json | jq -r '.machines[].user' | xargs -n1 automna-proxy machine update
    """
    _wish(user_id, lambda machines: machines.update(user_id, actor=ACTOR), no_wait=no_wait, as_json=as_json)


@app.command()
def rotate(user_id: UserId, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Give a machine a new gateway token. The old one holds until the machine answers with the new one."""
    _wish(user_id, lambda machines: machines.rotate(user_id, actor=ACTOR), no_wait=no_wait, as_json=as_json)


@app.command()
def deprovision(
    user_id: UserId,
    is_sure: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Take a user's machine away: its gateway token at once, then its volume and all else that was made for it. The ledger stays.

    What is on the volume is lost. Twice is no error.

    Example: automna-proxy machine deprovision alice --yes
    """
    if not is_sure:
        _ask(user_id)
    _wish(
        user_id, lambda machines: machines.deprovision(user_id, actor=ACTOR), no_wait=no_wait, as_json=as_json
    )


@app.command()
def status(user_id: UserId, as_json: Json = False) -> None:
    """Show a user's machine, and everything that was made for it.

    Example: automna-proxy machine status alice --json | jq -r .status
    """
    machine = _of(user_id)
    if as_json:
        show_json(machine.as_json(is_whole=True))
    else:
        _show(machine)


@app.command("list")
def list_machines(
    status: Annotated[str | None, typer.Option(help=f"Only those that are {', '.join(STATUSES)}.")] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=LISTED_MAX, help="Shown at most.")] = 100,
    as_json: Json = False,
) -> None:
    """List users' machines, by user id.

    Example: automna-proxy machine list --status error
    """
    if status is not None and status not in STATUSES:
        raise CommandError(Status.USAGE, f"--status: given {status!r}, expected one of {', '.join(STATUSES)}")
    settings = current_settings()

    async def work(store: Store) -> list[Machine]:
        return await machines_of(settings, store, CLOCK).all(status=status or "", at_most=limit)

    found = with_store(work)
    if as_json:
        show_json({"machines": [machine.as_json(is_whole=True) for machine in found]})
        return
    rows = [
        (
            one.instance.user_id,
            _status_in_words(one),
            one.instance.desired,
            one.instance.region,
            one.machine_id,
            one.instance.app_name,
            to_the_second(one.instance.updated_at_ms),
        )
        for one in found
    ]
    columns = ("user", "status", "desired", "region", "machine", "app", "updated")
    show(
        Table(
            "Machines",
            columns,
            rows,
            note="none",
            left_out_first=("updated", "region", "machine"),
        )
    )


@app.command()
def events(
    user_id: UserId,
    limit: Annotated[
        int, typer.Option("-n", "--limit", min=1, max=EVENTS_MAX, help="Of the newest, shown at most.")
    ] = 50,
    as_json: Json = False,
) -> None:
    """Show what happened to a user's machines, the oldest first: who wished what, what was made, what failed.

    Example: automna-proxy machine events alice -n 200
    """
    settings = current_settings()

    async def work(store: Store) -> list[Event]:
        await Directory(store, CLOCK).user(user_id)
        found = await machines_of(settings, store, CLOCK).events(user_id, at_most=limit)
        return list(reversed(found))

    found = with_store(work)
    if as_json:
        show_json({"events": [event.as_json() for event in found]})
        return
    rows = [
        (
            instant(event.created_at * 1000),
            event.machine_id,
            event.kind,
            "  ".join(f"{name}={value}" for name, value in event.details.items()) or None,
        )
        for event in found
    ]
    show(
        Table(
            f"Events of {user_id}'s machines",
            ("at", "machine", "event", "details"),
            rows,
            note="none",
            left_out_first=("machine",),
        )
    )


@app.command()
def ticket(user_id: UserId, as_json: Json = False) -> None:
    """Make a short-lived ticket to a user's machine, as `GET /api/user/gateway` does. It stands alone on standard output."""
    settings = current_settings()

    async def work(store: Store) -> tuple[Machine, str, int]:
        machines = machines_of(settings, store, CLOCK)
        machine = await _existing(machines, user_id)
        if machine.status != READY:
            raise CommandError(Status.NO, f"the machine of {user_id} is {_status_in_words(machine)}")
        return machine, *await machines.ticket(machine)

    machine, made, until_ms = with_store(work)
    if as_json:
        show_json({"url": machine.url, "ticket": made, "expires_at": instant(until_ms)})
    else:
        say(made)
    note(f"a way into {machine.url}, until {to_the_second(until_ms)}")


@app.command()
def reconcile(
    repairs: Annotated[
        bool, typer.Option("--repair", help="Mend what is found, as far as that is safe.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Look through Fly's lists for what differs from what is known here, is missing, or belongs to nobody.

    Exit status 1 when something is found that was not mended. Servers do it by themselves every MACHINES_RECONCILE_EVERY_S.

    Example: automna-proxy machine reconcile --repair
    """
    settings = _settings_with_fly()

    async def work(store: Store) -> Reconciled:
        async with AsyncExitStack() as stack:
            worker = await _worker(stack, settings, store)
            try:
                return await worker.reconcile(repairs=repairs)
            except FlyError as error:
                raise CommandError(Status.NO, f"Fly: {error}") from error

    found = with_store(work)
    if as_json:
        show_json(found.as_json())
    else:
        rows = [(one.kind, one.app, one.what, one.user_id, one.done or None) for one in found.findings]
        looked_at = ", ".join(f"{count:,} {what}" for what, count in found.looked_at.items())
        title = f"Not as it should be, of {looked_at}"
        show(Table(title, ("kind", "app", "what", "user", "done"), rows, note="none"))
    left = sum(not one.done for one in found.findings)
    if left:
        raise CommandError(Status.NO, f"{left:,} found that are not mended")


# --- wished, and waited for ------------------------------------------------------------------------------


def _wish(user_id: str, wish: Wish, *, no_wait: bool, as_json: bool) -> None:
    """Wish it, and work on it until it is true or given up. Raises CommandError."""
    settings = _settings_with_fly()
    wished: list[Machine] = []

    async def work(store: Store) -> Machine:
        machines = machines_of(settings, store, CLOCK)
        async with AsyncExitStack() as stack:
            worker = None if no_wait else await _worker(stack, settings, store)
            told = [event.number for event in await machines.events(user_id, at_most=1)]
            try:
                wished.append(await wish(machines))
            except NoMachineError as error:
                raise CommandError(Status.NOT_FOUND, str(error)) from error
            except MachineError as error:
                raise CommandError(Status.NO, str(error)) from error
            if worker is not None:
                with progress_of(user_id) as teller:
                    await _settled(worker, machines, user_id, teller, after=max(told, default=0))
            return await _existing(machines, user_id)

    try:
        machine = with_store(work)
    except KeyboardInterrupt:
        if wished:
            note(
                f"the wish stands: a server goes on with it, or the same again; `{PROGRAM} machine status {user_id}`"
            )
        raise typer.Exit(INTERRUPTED) from None
    failure = None if no_wait else _failure(machine)
    if as_json:
        show_json(machine.as_json(is_whole=True))
    elif failure is None:
        say(f"machine of {user_id}: {_outcome(machine, no_wait=no_wait)}")
    if failure is not None:
        raise CommandError(
            Status.NO, f"the machine of {user_id} {failure}; `{PROGRAM} machine events {user_id}`"
        )


async def _settled(
    worker: Provisioner, machines: Machines, user_id: str, teller: Teller, *, after: int
) -> None:
    """Work on it until nothing is to be done, or taking away fails again and again; and tell what happens meanwhile."""
    working = spawn(worker.work_on(user_id), name=f"machine of {user_id}")
    try:
        while True:
            is_last = working.done() or _fails_to_go((await _existing(machines, user_id)).instance)
            fresh = await machines.events(user_id, at_most=NEW_AT_ONCE)
            for event in reversed([one for one in fresh if one.number > after]):
                teller.tell(event)
                after = event.number
            if is_last:
                break
            await asyncio.wait({working}, timeout=LOOK_EVERY_S)
        if working.done():
            working.result()
    finally:
        await stop(working)


def _fails_to_go(one: Instance) -> bool:
    return one.status in {ERROR, DEPROVISIONING} and one.attempts >= FAILURES_WAITED


async def _worker(stack: AsyncExitStack, settings: Settings, store: Store) -> Provisioner:
    try:
        return await stack.enter_async_context(provisioner(settings, store, CLOCK))
    except ValueError as error:  # the template, the image, the plans
        raise CommandError(Status.CONFIGURATION, str(error)) from error


def _settings_with_fly() -> Settings:
    settings = current_settings()
    if not settings.fly_api_token:
        raise CommandError(
            Status.CONFIGURATION,
            "FLY_API_TOKEN is not set: machines need it, FLY_ORG, MACHINE_IMAGE and PUBLIC_URL, as `serve` does",
        )
    return settings


def _of(user_id: str) -> Machine:
    settings = current_settings()
    return with_store(lambda store: _existing(machines_of(settings, store, CLOCK), user_id))


async def _existing(machines: Machines, user_id: str) -> Machine:
    machine = await machines.of(user_id)
    if machine is None:
        raise CommandError(Status.NOT_FOUND, f"{user_id} has no machine")
    return machine


def _ask(user_id: str) -> None:
    """Raises CommandError when nobody says yes."""
    if not sys.stdin.isatty():
        raise CommandError(Status.USAGE, f"expected --yes to take {user_id}'s machine away")
    if not typer.confirm(
        f"All that is on the volume of {user_id}'s machine is lost. Take it away?", err=True
    ):
        raise CommandError(Status.NO, "nothing is changed")


# --- shown ---------------------------------------------------------------------------------------------


def _outcome(machine: Machine, *, no_wait: bool) -> str:
    if no_wait and not machine.instance.is_settled:
        return f"{_status_in_words(machine)}; wished for"
    return f"ready at {machine.url}" if machine.status == READY else _status_in_words(machine)


def _failure(machine: Machine) -> str | None:
    """What a command that waited ends with, where it did not come true."""
    one = machine.instance
    if one.status == ERROR:
        helps = "trying again may help" if one.is_retryable else "trying again does not help by itself"
        left = (
            ""
            if one.is_settled
            else "; what was made for it is still to be taken away, which a server goes on with"
        )
        return f"did not come up: {one.error_code} ({helps}){left}"
    if one.status == DEPROVISIONING:
        return f"is not gone: that failed {one.attempts} times in a row; the wish stands, and a server goes on with it"
    return None


def _status_in_words(machine: Machine) -> str:
    one = machine.instance
    words = one.status.replace("_", " ")
    if one.error_code is not None:
        words += f" ({one.error_code})"
    return f"{words}, over budget" if one.is_over_budget else words


def _show(machine: Machine) -> None:
    shown: dict[str, Any] = machine.as_json(is_whole=True)
    one = machine.instance
    facts = (
        ("status", _status_in_words(machine)),
        ("desired", one.desired),
        ("trying again helps", ("yes" if one.is_retryable else "no") if one.error_code else None),
        ("failed attempts", one.attempts or None),
        ("next attempt", shown["next_attempt_at"]),
        ("url", shown["url"]),
        ("region", one.region),
        ("app", one.app_name),
        ("machine", machine.machine_id),
        ("gateway token", one.token_id),
        ("begun", to_the_second(one.started_at_ms)),
        ("updated", to_the_second(one.updated_at_ms)),
    )
    title = f"Machine of {one.user_id}"
    show(Table(title, ("fact", "value"), [fact for fact in facts if fact[1] is not None]))
    rows = [(each.kind, each.name, each.upstream_id, each.state) for each in machine.resources]
    show(Table("Made for it", ("kind", "name", "id", "state"), rows, note="nothing"))
