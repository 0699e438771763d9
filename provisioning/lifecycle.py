"""One instance, from wish to ready, and back to nothing: the steps, in their order.

Theory of operation. A run begins at the top each time, whatever became of the one before: a step that has its thing on record does
nothing; any other **observes** what there is, **acts** where something is missing, and **records** what is there then. The row of a
thing is committed before the call that makes it, so whoever finds such a row without an id looks for the thing before making it. A
failure ends the run and says when the next begins (`follow`); there is no other way back.

    app -> addresses -> volume -> browser context -> mailbox -> machine -> boot -> gateway -> settled

A machine holds its gateway token in its environment, and nobody else does: it is minted just before the call that carries it, and
read from there afterwards. Which of a user's tokens a machine has, its hash says. One that is replaced lives until the machine
answers with the new one.

What fails before anybody could use the machine is taken away again, to the last thing; what fails later is left as it stands,
because a user's data lies there.
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal

import httpx

from metering.errors import Refused
from metering.objects import user_tag
from metering.store.writer import Step
from metering.users import INSERT_CHANGE, minting, replacing
from provisioning import names
from provisioning.changes import differences, merged
from provisioning.errors import AgainError, Code, FatalError, ProvisioningError, SupersededError, WaitingError
from provisioning.fly import App, FlyError, Machine, Trouble
from provisioning.instances import (
    ALLOCATING_IPS,
    APP,
    CONTEXT,
    CREATING_APP,
    CREATING_INTEGRATIONS,
    CREATING_MACHINE,
    ERROR,
    GONE,
    INBOX,
    IP,
    MACHINE_KIND,
    OF_APP,
    PENDING,
    POD,
    READY,
    RUNNING,
    STARTING,
    STOPPED,
    SUSPENDED,
    VOLUME,
    WAITING_FOR_GATEWAY,
    Claim,
    DeclinedError,
)
from provisioning.integrations import NameTakenError, context_object, inbox_object, pod_object
from provisioning.run import FAILED, GENERATION, OFF, PATIENCE_S, PLACEMENTS_PER_REGION, Parts, Run

logger = logging.getLogger(__name__)

ATTEMPTS_MAX = 8
"""Failures in a row after which what was wished is given up: with the pauses between, a minute and a half on average."""
BACKOFF_S, BACKOFF_S_MAX = 1.0, 60.0
"""Pauses double from one failure to the next, with full jitter."""
AWAY_BACKOFF_S_MAX = 300.0
"""Taking away is never given up."""
WAIT_S = 5.0
"""Of one wait at Fly for a state; then others get their turn."""
PROBE_EVERY_S, PROBE_TIMEOUT_S = 1.0, 10.0
PROBES_A_ROUND = 3
LOOK_EVERY_S = 2.0
"""Whether a deleted app is gone."""
AWAY_PATIENCE_S = 60.0
"""For a deleted app to be gone, before it is deleted once more."""
LEASED_AFTER_S = 20.0
"""Until a machine is asked for again whose lease another holds: in so many attempts any lease of ours has ended."""
LEASE_S = 60
"""Of a machine while it is changed: if we die, it ends by itself."""
REBUILDS_MAX = 1
"""Machines that end failed, after which another is not tried."""
ROUNDS_MAX = 50
"""Of one run that begins again from the top, because something is not as it was, or is wished otherwise."""
OVERLAP_S = 365 * 86_400
"""A replaced token ends when the machine has the new one, not by time."""
GRACE_MS = 5_000
"""And so long after that: nobody has said that Fly never tells of an old version for a moment."""
STARTED = "started"
ADDRESSES = ("shared_v4", "v6")
MAIL = "agentmail"
TOKEN_LABEL = "machine"

# Those before it in its line that live for longer than that.
SELECT_REPLACED = """
WITH RECURSIVE before (id, family) AS (
    SELECT id, family FROM gateway_tokens WHERE id = ?1
    UNION SELECT t.id, t.family FROM before b JOIN gateway_tokens t ON t.family = b.family AND t.successor_id = b.id)
SELECT id FROM gateway_tokens WHERE id IN (SELECT id FROM before) AND id <> ?1 AND revoked_at_ms IS NULL
AND COALESCE(expires_at_ms, 9223372036854775807) > ?2"""
END_SOON = "UPDATE gateway_tokens SET expires_at_ms = ?2 WHERE id = ?1"
SET_HOOK_IF_NONE = """
INSERT INTO agent_hooks (user_id, url, set_at_ms) VALUES (?1, ?2, ?3) ON CONFLICT (user_id) DO NOTHING"""
DELETE_OWN_HOOK = "DELETE FROM agent_hooks WHERE user_id = ?1 AND url = ?2"


async def follow(parts: Parts, claim: Claim) -> None:
    """Bring the instance of a claim as near to its wish as can be now, and write down what is left for when.

    Raises SupersededError: another has it; Refused(STORE_UNAVAILABLE): nothing could be written, the next one begins where this
    one did.
    """
    for _ in range(ROUNDS_MAX):
        run = Run(parts, claim)
        if not await _goes_on(run):
            return
    await _failed(run, AgainError(Code.PROVIDER_UNAVAILABLE, "what was found changed again and again"))


async def _goes_on(run: Run) -> bool:
    """One round from the top; whether another is to follow at once."""
    claim, wished = run.claim, run.claim.wished
    try:
        await run.load()
        await (take_away(run) if run.goes_away else bring_up(run))
    except SupersededError:
        await claim.reread()
        if claim.wished == wished:
            raise
        return True  # something else is wished since
    except WaitingError as waiting:
        if not waiting.after_s:
            return True
        due_at_ms = run.parts.clock.now_ms() + round(waiting.after_s * 1000)
        await claim.write(due_at_ms=due_at_ms)
    except FlyError as error:
        if error.trouble is Trouble.NOT_FOUND and await _forgets_missing(run):
            return True
        await _failed(run, _meaning(error))
    except ProvisioningError as error:
        await _failed(run, error)
    except Refused:
        raise
    except Exception:
        logger.exception("machine of %s: a defect of ours", claim.instance.user_id)
        await _failed(run, AgainError(Code.INTERNAL, "a defect: see the log"))
    return False


async def bring_up(run: Run) -> None:
    """From wish to ready."""
    await app(run)
    await addresses(run)
    await volume(run)
    await browser_context(run)
    await mailbox(run)
    await machine(run)
    await boot(run)
    await gateway(run)
    await settle(run)


# --- the steps ---------------------------------------------------------------------------------------


async def app(run: Run) -> None:
    """An app of the user's own, alone in a private network. Its name is a hash of the user's id; where another organization has
    that already, the next one is taken."""
    if run.live(APP):
        return
    for name in run.app_names():
        await run.begin(CREATING_APP, run.claim.intending(APP, name), app_name=name)
        found = await _app_there(run, name)
        if found is Trouble.FOREIGN:
            await run.record(run.claim.ending(run.open_one(APP)), event="name_taken", details={"app": name})
            continue
        if found is not None and not await _is_ours(run, found):
            raise FatalError(Code.NOT_OURS, f"app {name} exists and is not {run.instance.user_id}'s")
        if found is None:
            await run.parts.fly.create_app(name, names.network(name))
        await run.made(APP, name, name)
        return
    raise FatalError(Code.NAME_TAKEN, "every name that the app may have is another organization's")


async def _app_there(run: Run, name: str) -> App | Literal[Trouble.FOREIGN] | None:
    """What has a name: None, nothing. Only of a look does FOREIGN mean that another organization has it."""
    try:
        return await run.parts.fly.app(name)
    except FlyError as error:
        if error.trouble is Trouble.FOREIGN:
            return Trouble.FOREIGN
        raise


async def _is_ours(run: Run, found: App) -> bool:
    """What exists under the user's name is taken for theirs only if it says so: its network, and every machine in it."""
    if found.network != names.network(found.name):
        return False
    return all(run.is_ours(one) for one in await run.parts.fly.machines(found.name))


async def addresses(run: Run) -> None:
    """By which the world finds the app."""
    if all(run.live(IP, kind) for kind in ADDRESSES):
        return
    await run.begin(ALLOCATING_IPS, *(run.claim.intending(IP, kind) for kind in ADDRESSES))
    fly, name = run.parts.fly, run.instance.app_name
    had = _by_kind(await fly.addresses(name))
    for kind in ADDRESSES:
        if kind not in had:
            try:
                had[kind] = await fly.assign_address(name, kind)
            except FlyError as error:
                if error.trouble not in {Trouble.EXISTS, Trouble.REFUSED, Trouble.AGAIN}:
                    raise
                # What was refused may be there, and so may be what a lost answer told of.
                had |= _by_kind(await fly.addresses(name))
                if kind not in had:
                    raise
        await run.made(IP, kind, had[kind])


def _by_kind(told: list[Mapping[str, Any]]) -> dict[str, str]:
    """The app's addresses by their kinds; private ones left out."""
    found = {}
    for one in told:
        ip = str(one.get("ip") or "")
        if one.get("shared"):
            found["shared_v4"] = ip
        elif ":" in ip and not ip.startswith("fd"):
            found["v6"] = ip
    return found


async def volume(run: Run) -> None:
    """Where the agent keeps what it knows. Names are not unique at Fly: what is there is looked for, one is taken, and others that
    lost answers left behind are deleted."""
    if run.live(VOLUME):
        return
    name, region = names.volume(run.instance.generation), run.region
    await run.begin(CREATING_INTEGRATIONS, run.claim.intending(VOLUME, name), region=region)
    fly, app_name = run.parts.fly, run.instance.app_name
    there = [one for one in await fly.volumes(app_name) if one.name == name]
    usable = [one for one in there if one.region == region or run.instance.ready_at_ms is not None]
    chosen = next((one for one in usable if one.machine_id), next(iter(usable), None))
    for one in there:
        if one is not chosen and one.machine_id is None:
            await fly.delete_volume(app_name, one.id)
    if chosen is None:
        try:
            chosen = await fly.create_volume(
                app_name, name, region=region, size_gb=run.template.volume_gb, guest=run.template.guest
            )
        except FlyError as error:
            await _elsewhere(run, error)
            raise
    await run.made(VOLUME, name, chosen.id, region=chosen.region)


async def browser_context(run: Run) -> None:
    """The browser profile in which the agent stays logged in. The vendor takes a name once and lists none: after a lost answer
    nobody can say what is called so, and another name is taken."""
    integrations = run.parts.integrations
    if not integrations.has_browser or run.live(CONTEXT):
        return
    lost = {one.name for one in run.resources if one.kind == CONTEXT and one.state == "lost"}
    for attempt in range(len(lost) + names.SALTS_MAX):
        name = names.context(run.instance.app_name, run.instance.generation, attempt)
        if name in lost:
            continue
        await run.begin(CREATING_INTEGRATIONS, run.claim.intending(CONTEXT, name))
        try:
            made = await integrations.make_context(name)
        except NameTakenError:
            one = run.open_one(CONTEXT, name)
            await run.record(
                run.claim.ending(one, is_lost=True), event="context_lost", details={"name": name}
            )
            continue
        await run.made(CONTEXT, name, made, bound=context_object(made))
        return
    raise FatalError(Code.BROWSER_REFUSED, "every name that the browser context may have is taken")


async def mailbox(run: Run) -> None:
    """The agent's own address, in the user's own part of the shared account: the one that the simple e-mail API uses, too. The vendor
    gives the same for the same name, however often it is asked."""
    integrations, user_id = run.parts.integrations, run.instance.user_id
    if not integrations.has_mail or run.live(INBOX):
        return
    tag = user_tag(user_id)
    pod_id = await run.parts.objects.first_of(MAIL, "pod", user_id)
    if pod_id is None:
        await run.begin(CREATING_INTEGRATIONS, run.claim.intending(POD, tag))
        pod_id = await integrations.make_pod(tag)
        await run.made(POD, tag, pod_id, bound=pod_object(pod_id))
    await run.begin(CREATING_INTEGRATIONS, run.claim.intending(INBOX, tag))
    inbox_id = await integrations.make_inbox(pod_id, tag)
    await run.made(INBOX, tag, inbox_id, bound=inbox_object(inbox_id))


async def machine(run: Run) -> None:
    """The machine itself: found or made, and as the template wants it."""
    fly, app_name, row = run.parts.fly, run.instance.app_name, run.live(MACHINE_KIND)
    if row is not None:
        assert row.upstream_id is not None
        found = await fly.machine(app_name, row.upstream_id)
        if found is None:
            await run.record(
                run.claim.ending(row), event="machine_missing", status=CREATING_MACHINE, patience_ms=None
            )
            raise WaitingError(0)
    else:
        await run.begin(CREATING_MACHINE, run.claim.intending(MACHINE_KIND, names.MACHINE))
        there = [one for one in await fly.machines(app_name) if one.name == names.MACHINE]
        found = there[0] if there else await _create(run)
        await _adopt(run, found)
        await run.made(MACHINE_KIND, names.MACHINE, found.id)
    run.seen = found
    await _conform(run, found)


async def _adopt(run: Run, found: Machine) -> None:
    """It is the user's, of this generation, and what it mounts is on record as the volume; or it is not taken."""
    if not run.is_ours(found):
        whose = run.instance.user_id
        raise FatalError(Code.NOT_OURS, f"machine {found.id} in {found.app_name} is not {whose}'s")
    if found.metadata.get(GENERATION) != str(run.instance.generation):  # of one that is gone
        await run.parts.fly.destroy_machine(found)
        raise WaitingError(LOOK_EVERY_S)
    mounts = (found.config or {}).get("mounts") or [{}]
    mounted, there = str(mounts[0].get("volume") or ""), run.live(VOLUME)
    if there is None or not mounted or mounted == there.upstream_id:
        return
    await run.record(run.claim.ending(there), event="volume_found", details={"id": mounted})
    await run.record(run.claim.intending(VOLUME, there.name))
    await run.made(VOLUME, there.name, mounted)


async def _create(run: Run) -> Machine:
    """A machine with a gateway token that was minted for it. Should an attempt before have made one after all, it is found by its
    name, and given another token."""
    config = await run.config(await _mint_another(run))
    try:
        made = await run.parts.fly.create_machine(
            run.instance.app_name, names.MACHINE, region=run.region, config=config
        )
    except FlyError as error:
        await _elsewhere(run, error)
        raise
    run.is_new = True
    return made


async def _elsewhere(run: Run, error: FlyError) -> None:
    """Where there is no room: another volume, which may lie on another host, then another region. Nothing is on it yet; a volume
    with a user's data stays where it is. Raises WaitingError(0), AgainError(NO_CAPACITY); returns where it was not for room."""
    if error.trouble not in {Trouble.NO_ROOM_IN_REGION, Trouble.NO_ROOM_ON_HOST}:
        return
    if run.instance.ready_at_ms is not None:
        raise AgainError(Code.NO_CAPACITY, str(error)) from error
    tried = run.instance.placements + 1
    if error.trouble is Trouble.NO_ROOM_IN_REGION:
        tried = -(-tried // PLACEMENTS_PER_REGION) * PLACEMENTS_PER_REGION
    is_everywhere = tried >= PLACEMENTS_PER_REGION * len(run.template.regions)
    there = run.live(VOLUME)
    if there is not None:
        assert there.upstream_id is not None
        await run.parts.fly.delete_volume(run.instance.app_name, there.upstream_id)
    gone = () if there is None else (run.claim.ending(there),)
    await run.record(
        *gone,
        event="no_room",
        details={"region": run.region},
        placements=0 if is_everywhere else tried,
        region=None,
    )
    if is_everywhere:
        raise AgainError(Code.NO_CAPACITY, str(error)) from error
    raise WaitingError(0) from error


async def _conform(run: Run, found: Machine) -> None:
    """Our fields of its configuration as the template wants them, and only ours; under its lease, by its version, and looked at
    again. Leaves the machine and its token's secret in `run`."""
    if found.config is None:
        raise AgainError(Code.PROVIDER_UNAVAILABLE, f"machine {found.id}: its host cannot be asked")
    secret = await run.secret_of(found)
    if secret is not None and not run.instance.rotates:
        wanted = await run.config(secret)
        changed = differences(found.config, wanted)
        if not changed:
            run.machine, run.secret = found, secret
            return
    async with run.parts.fly.leased(found, ttl_s=LEASE_S) as nonce:
        leased = await run.parts.fly.machine(found.app_name, found.id)
        if leased is None or leased.config is None:
            raise AgainError(Code.PROVIDER_UNAVAILABLE, f"machine {found.id} went while it was being changed")
        secret = await run.secret_of(leased)
        if secret is None or run.instance.rotates:
            secret = await _mint_another(run)
        wanted = await run.config(secret)
        changed = differences(leased.config, wanted)
        made = await run.parts.fly.update_machine(
            leased, merged(leased.config, wanted), nonce, launches=not run.rests(leased)
        )
        run.seen = made
    now = await run.parts.fly.machine(found.app_name, found.id)
    if now is None or now.config is None or now.version != made.version or differences(now.config, wanted):
        raise AgainError(Code.PROVIDER_UNAVAILABLE, f"machine {found.id} is not what it was changed to")
    await run.record(event="updated", details={"changed": changed}, patience_ms=None, rotates=0)
    run.machine, run.secret, run.is_changed = now, secret, True


async def _mint_another(run: Run) -> str:
    """A successor of the machine's token, or a new one where that is dead. Both hold until the machine answers with it."""
    now_ms, old = run.parts.clock.now_ms(), run.instance.token_id
    if old is not None:
        secret, token_id, succeeding = replacing(old, now_ms, overlap_s=OVERLAP_S)
        try:
            await run.record(*succeeding, token_id=token_id)
        except DeclinedError:
            logger.info("token %s is dead: the machine gets a new one", old)
        else:
            return secret
    secret, token_id, mint = minting(run.instance.user_id, now_ms, label=TOKEN_LABEL)
    await run.record(mint, token_id=token_id)
    return secret


async def boot(run: Run) -> None:
    """Started, this version of it, unless it is to rest or sleeps by itself. What takes long is looked at again and again, and not
    waited for: others may need this worker, and something else may be wished."""
    fly, found = run.parts.fly, run.machine
    if run.rests(found) or (run.is_proved(found) and found.state == STARTED):
        return
    if found.state != STARTED or run.instance.status not in {READY, WAITING_FOR_GATEWAY}:
        await run.begin(STARTING)
        if run.instance.patience_ms is None and not run.is_new:
            await fly.uncordon(found)
    until_ms = await run.patience(PATIENCE_S)
    if found.state in FAILED:
        await _rebuild(run, found)
    if found.state in OFF:
        await fly.start(found)
    if await fly.wait(found, STARTED, "failed", timeout_s=WAIT_S):
        looked = await fly.machine(found.app_name, found.id)
        if looked is not None and looked.state in FAILED:
            await _rebuild(run, looked)
        if looked is not None and looked.state == STARTED and looked.version == found.version:
            run.machine = run.seen = looked
            return
    if run.parts.clock.now_ms() >= until_ms:
        raise FatalError(Code.START_TIMEOUT, f"machine {found.id} is {found.state}", helps_later=True)
    raise WaitingError(PROBE_EVERY_S)


async def _rebuild(run: Run, found: Machine) -> None:
    """One that ended failed is taken away, and another made on its volume, once. Raises WaitingError(0), FatalError."""
    row = run.live(MACHINE_KIND)
    assert row is not None
    if run.instance.rebuilds >= REBUILDS_MAX:
        raise FatalError(Code.MACHINE_FAILED, f"machine {found.id} is {found.state}", helps_later=True)
    await run.parts.fly.destroy_machine(found)
    await run.record(
        run.claim.ending(row),
        event="machine_failed",
        details={"machine": found.id},
        status=CREATING_MACHINE,
        rebuilds=run.instance.rebuilds + 1,
        patience_ms=None,
    )
    raise WaitingError(0)


async def gateway(run: Run) -> None:
    """What runs in it answers. Which version did is on record: tickets are given out, and a replaced token is ended, by that."""
    if run.rests(run.machine) or run.is_proved(run.machine):
        return
    if run.instance.status != READY:
        await run.begin(WAITING_FOR_GATEWAY)
    until_ms = await run.patience(PATIENCE_S)
    for _ in range(PROBES_A_ROUND):
        if await _answers(run):
            await run.record(answered_version=run.machine.version)
            return
        if run.parts.clock.now_ms() >= until_ms:
            url = run.parts.machines.url_of(run.instance.app_name)
            raise FatalError(Code.GATEWAY_TIMEOUT, f"nothing answers at {url}", helps_later=True)
        await run.parts.pause(PROBE_EVERY_S)
    raise WaitingError(PROBE_EVERY_S)


async def _answers(run: Run) -> bool:
    url = run.parts.machines.url_of(run.instance.app_name) + run.template.probe_path
    try:
        async with run.parts.probes.stream(
            "GET", url, headers={"authorization": f"Bearer {run.secret}"}, timeout=PROBE_TIMEOUT_S
        ) as answer:
            return answer.is_success
    except httpx.HTTPError:
        return False


async def settle(run: Run) -> None:
    """At rest where that is wished; then on record: what was wished has come true, and tokens that were replaced are worth
    nothing any more."""
    await _rest(run)
    if run.instance.ready_at_ms is None:
        await _tidy_volumes(run)
    one, now_ms = run.instance, run.parts.clock.now_ms()
    status = {RUNNING: READY}.get(one.aim, one.aim)
    steps = await _ending_replaced(run)
    if run.parts.hooks_secret:
        steps.append(Step(SET_HOOK_IF_NONE, (one.user_id, run.hook_url, now_ms)))
    await run.record(
        *steps,
        event=status,
        status=status,
        done=one.wished,
        attempts=0,
        given_up=0,
        rotates=0,
        placements=0,
        rebuilds=0,
        error_code=None,
        is_retryable=0,
        patience_ms=None,
        due_at_ms=None,
        ready_at_ms=one.ready_at_ms or now_ms,
    )


async def _tidy_volumes(run: Run) -> None:
    """What a lost answer made after we had looked for it."""
    kept, name = run.live(VOLUME), names.volume(run.instance.generation)
    assert kept is not None
    for one in await run.parts.fly.volumes(run.instance.app_name):
        if one.name == name and one.id != kept.upstream_id and one.machine_id is None:
            await run.parts.fly.delete_volume(run.instance.app_name, one.id)


async def _ending_replaced(run: Run) -> list[Step]:
    """The steps that end the tokens which the machine's replaced: in a moment, for whatever of the old version still runs."""
    token_id, now_ms = run.instance.token_id, run.parts.clock.now_ms()
    if token_id is None:
        return []
    rows = await run.parts.store.readers.rows(SELECT_REPLACED, (token_id, now_ms + GRACE_MS))
    return [
        Step(sql, params)
        for (old,) in rows
        for sql, params in (
            (END_SOON, (str(old), now_ms + GRACE_MS)),
            (INSERT_CHANGE, ("token", str(old), now_ms)),
        )
    ]


async def _rest(run: Run) -> None:
    """Stopped or suspended, where that is wished, and cordoned, so that no request wakes it."""
    fly, found, aim = run.parts.fly, run.machine, run.instance.aim
    is_resting = run.instance.status == aim and found.state in OFF and not run.is_changed
    if aim not in {STOPPED, SUSPENDED} or is_resting:
        return
    if run.instance.patience_ms is None:
        await fly.cordon(found)
    until_ms = await run.patience(PATIENCE_S)
    if found.state in OFF or found.state in FAILED:
        return
    if found.state not in {"stopping", "suspending"}:
        await _turn_off(run, found, aim)
    await fly.wait(found, STOPPED, SUSPENDED, "failed", timeout_s=WAIT_S)
    looked = await fly.machine(found.app_name, found.id)
    if looked is not None and (looked.state in OFF or looked.state in FAILED):
        run.machine = looked
        return
    if run.parts.clock.now_ms() >= until_ms:
        raise AgainError(Code.PROVIDER_UNAVAILABLE, f"machine {found.id} does not stop")
    raise WaitingError(PROBE_EVERY_S)


async def _turn_off(run: Run, found: Machine, aim: str) -> None:
    """Not every machine can be suspended; stopped it costs as little."""
    if aim == SUSPENDED:
        try:
            await run.parts.fly.suspend(found)
        except FlyError as error:
            if error.trouble is not Trouble.REFUSED and error.status != httpx.codes.PRECONDITION_FAILED:
                raise
        else:
            return
    await run.parts.fly.stop(found)


async def _forgets_missing(run: Run) -> bool:
    """Whether something that is on record was deleted by somebody else, which is then forgotten: the next round makes it anew."""
    app_row, volume_row = run.live(APP), run.live(VOLUME)
    if app_row is None or run.goes_away:
        return False
    missing = []
    try:
        if await run.parts.fly.app(app_row.name) is None:
            missing = [one for one in run.resources if one.kind in OF_APP and one.state in {"intent", "live"}]
        elif volume_row is not None and run.live(MACHINE_KIND) is None:  # one that is mounted is there
            assert volume_row.upstream_id is not None
            found = await run.parts.fly.volume(app_row.name, volume_row.upstream_id)
            missing = [volume_row] if found is None else []
    except FlyError:
        return False
    if missing:
        gone = {"things": [f"{one.kind} {one.upstream_id or one.name}" for one in missing]}
        await run.record(
            *(run.claim.ending(one) for one in missing),
            event="missing",
            details=gone,
            status=PENDING,
            patience_ms=None,
        )
    return bool(missing)


# --- back to nothing ---------------------------------------------------------------------------------


async def take_away(run: Run) -> None:
    """Everything that was made for the instance: its token first (the wish did that, or this does), then the app with all that is
    in it, the browser context, the mailbox. The ledger stays. What is not there is done."""
    await _end_tokens(run)
    await _end_app(run)
    await _end_context(run)
    await _end_mailbox(run)
    one, now_ms = run.instance, run.parts.clock.now_ms()
    url = run.hook_url
    if one.desired == GONE:
        ended: dict[str, Any] = {"status": GONE, "done": one.wished, "error_code": None, "due_at_ms": None}
    elif one.wished > one.done:  # wished anew meanwhile
        ended = {"status": PENDING, "due_at_ms": now_ms}
    else:
        ended = {"due_at_ms": None}
    await run.record(
        Step(DELETE_OWN_HOOK, (one.user_id, url)),
        event="gone",
        is_undone=0,
        attempts=0,
        rotates=0,
        region=None,
        token_id=None,
        ready_at_ms=None,
        patience_ms=None,
        **ended,
    )


async def _end_tokens(run: Run) -> None:
    if run.instance.token_id is not None and run.instance.patience_ms is None:
        await run.record(*run.parts.machines.instances.revoking(run.instance.user_id))


async def _end_app(run: Run) -> None:
    """Deleting the app deletes its machines, volumes and addresses. It is over when its name is free. One that is on no record is
    looked for, too: a call of somebody who was taken for dead may have made it since."""
    mine = [one for one in run.resources if one.kind in OF_APP and one.state in {"intent", "live"}]
    is_made = {one.name: one.state == "live" for one in mine if one.kind == APP}
    for name in {run.instance.app_name: False, **is_made}:
        if not is_made.get(name) and not await _was_made(run, name):
            continue
        if run.instance.patience_ms is None:
            await run.parts.fly.delete_app(name)
        if await run.parts.fly.app(name) is not None:
            if run.parts.clock.now_ms() >= await run.patience(AWAY_PATIENCE_S):
                raise AgainError(Code.PROVIDER_UNAVAILABLE, f"app {name} was deleted, and is still there")
            raise WaitingError(LOOK_EVERY_S)
    if mine:
        await run.record(*(run.claim.ending(one) for one in mine))


async def _was_made(run: Run, name: str) -> bool:
    """Whether an app that is not on record as made is there, and the user's. Of one that is, FOREIGN would say that our key is
    wrong."""
    found = await _app_there(run, name)
    return found is not None and found is not Trouble.FOREIGN and await _is_ours(run, found)


async def _end_context(run: Run) -> None:
    integrations = run.parts.integrations
    for one in [each for each in run.resources if each.kind == CONTEXT and each.state in {"intent", "live"}]:
        if not integrations.has_browser:
            await run.lose(one)
            continue
        context_id = one.upstream_id
        if context_id is None:
            try:  # whether it was made, only its name can tell
                context_id = await integrations.make_context(one.name)
            except NameTakenError:
                await run.lose(one)
                continue
        if await run.was_made_for_it(context_object(context_id), is_bound=one.state == "live"):
            await integrations.delete_context(context_id)
            await run.forget(context_object(context_id))
        await run.record(run.claim.ending(one))


async def _end_mailbox(run: Run) -> None:
    """What the user had before the machine stays: only what was made for it goes."""
    integrations, user_id = run.parts.integrations, run.instance.user_id
    mine = [one for one in run.resources if one.kind in {INBOX, POD} and one.state in {"intent", "live"}]
    if not integrations.has_mail:
        for one in mine:
            await run.lose(one)
        return
    for one in [each for each in mine if each.kind == INBOX]:
        inbox_id = one.upstream_id
        if inbox_id is None:  # the same name gives the same, whether it was made or not
            pod_id = await run.parts.objects.first_of(MAIL, "pod", user_id)
            inbox_id = None if pod_id is None else await integrations.make_inbox(pod_id, one.name)
        is_bound = one.state == "live"
        if inbox_id is not None and await run.was_made_for_it(inbox_object(inbox_id), is_bound=is_bound):
            await integrations.delete_inbox(inbox_id)
            await run.forget(inbox_object(inbox_id))
        await run.record(run.claim.ending(one))
    for one in [each for each in mine if each.kind == POD]:
        pod_id = one.upstream_id or await integrations.make_pod(one.name)
        is_its = await run.was_made_for_it(pod_object(pod_id), is_bound=one.state == "live")
        if is_its and await integrations.delete_pod(pod_id):  # one with something else in it stays
            await run.forget(pod_object(pod_id))
        await run.record(run.claim.ending(one))


# --- failures ----------------------------------------------------------------------------------------

_MEANING: Mapping[Trouble, tuple[Code, bool]] = {
    Trouble.AGAIN: (Code.PROVIDER_UNAVAILABLE, True),
    Trouble.LEASED: (Code.PROVIDER_UNAVAILABLE, True),
    Trouble.NO_ROOM_IN_REGION: (Code.NO_CAPACITY, True),
    Trouble.NO_ROOM_ON_HOST: (Code.NO_CAPACITY, True),
    Trouble.EXISTS: (Code.PROVIDER_UNAVAILABLE, True),
    Trouble.NOT_FOUND: (Code.PROVIDER_UNAVAILABLE, True),
    Trouble.UNAUTHORIZED: (Code.PROVIDER_UNAUTHORIZED, False),
    Trouble.FOREIGN: (Code.PROVIDER_UNAUTHORIZED, False),
    Trouble.REFUSED: (Code.PROVIDER_REFUSED, False),
}
"""What a failure of Fly means for a run, and whether it is tried again."""


def _meaning(error: FlyError) -> ProvisioningError:
    code, is_tried = _MEANING[error.trouble]
    if not is_tried:
        return FatalError(code, str(error))
    after_s = LEASED_AFTER_S if error.trouble is Trouble.LEASED else error.after_s
    return AgainError(code, str(error), after_s=after_s)


async def _failed(run: Run, error: ProvisioningError) -> None:
    """Write down what failed, and when it is tried again; or that it is given up."""
    claim, one, now_ms = run.claim, run.claim.instance, run.parts.clock.now_ms()
    attempts = one.attempts + 1
    is_given_up = not run.goes_away and (isinstance(error, FatalError) or attempts >= ATTEMPTS_MAX)
    logger.log(
        logging.ERROR if is_given_up else logging.WARNING,
        "machine of %s, %s, attempt %d: %s: %s%s",
        one.user_id,
        one.status,
        attempts,
        error.code.value,
        error.detail,
        "; given up" if is_given_up else "",
    )
    details = {"code": error.code.value, "status": one.status, "attempt": attempts}
    if not is_given_up:
        most_s = AWAY_BACKOFF_S_MAX if run.goes_away else BACKOFF_S_MAX
        pause_s = run.parts.jitter.uniform(0, min(most_s, BACKOFF_S * 2**attempts))
        due_ms = now_ms + round(max(pause_s, getattr(error, "after_s", None) or 0.0) * 1000)
        await claim.write(
            event="failed", details=details, attempts=attempts, due_at_ms=due_ms, patience_ms=None
        )
        return
    was_ready = one.ready_at_ms is not None
    await claim.write(
        event=ERROR,
        details=details,
        status=one.status if run.still_serves else ERROR,
        done=one.wished,
        error_code=error.code.value,
        is_retryable=int(error.is_retryable),
        is_undone=int(not was_ready),
        attempts=0,
        given_up=one.given_up + 1,
        patience_ms=None,
        due_at_ms=None if was_ready else now_ms,
    )
