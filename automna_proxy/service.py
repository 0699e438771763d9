"""The composition root: everything one process needs, made once, in order, and taken down in reverse."""

import asyncio
import collections
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from automna_proxy.logs import CanonicalLines
from automna_proxy.machines import machines_of, provisioner
from automna_proxy.settings import SettingError, Settings
from metering.admission import Admission
from metering.clock import Clock, SystemClock
from metering.deferred import DeferredWorks
from metering.errors import Refused
from metering.heartbeat import OVERDUE, Heartbeat
from metering.hooks import Hooks
from metering.ids import new_id
from metering.ledger import Ledger
from metering.notices import ENDPOINT, Notices
from metering.objects import Objects
from metering.orphans import Orphans, Sweep
from metering.outbox import Outbox
from metering.plans import load_plans
from metering.prices import PriceTable
from metering.rate_limits import RateLimits
from metering.repeats import Repeats
from metering.return_addresses import ReturnAddresses
from metering.scheduled import ScheduledWorks
from metering.store.database import Database
from metering.store.serving import serving
from metering.store.store import Store, open_store
from metering.tasks import keep, stop
from metering.tickets import Tickets
from metering.users import Directory
from provisioning.instances import Instances
from provisioning.template import Templates, check_image
from proxy.access import Access
from proxy.arrivals import Arrivals
from proxy.auth import Authenticator
from proxy.bounds import Bounds
from proxy.deferral import Deferrals
from proxy.endings import Endings
from proxy.lingering import Lingering
from proxy.mounted import Mounted
from proxy.outbox import Courier, webhook_client
from proxy.phase_times import TimedTelemetry
from proxy.pipeline import Engine
from proxy.preparation import Preparation
from proxy.running import Running
from proxy.side_calls import SideCalls
from proxy.spliced_sockets import SplicedSockets
from proxy.sweep import Sweeper
from proxy.telemetry import Telemetry
from proxy.upstream import UpstreamClient
from routes import SURFACES
from routes.own import OwnContext

logger = logging.getLogger(__name__)

READY_WITHIN_S = 1.0
"""A store that takes longer to write a row is not ready."""
GAUGES_EVERY_S = 1.0
LAG_EVERY_S, LAGS_KEPT = 0.02, 10
"""Between two looks at how late the event loop is, and of how many seconds the worst is told."""
MACHINES_COUNTED_EVERY_S = 10.0
PRUNE_EVERY_S = 600.0
LEAVE_WITHIN_S = 1.0
"""To take our row out of the store at the end."""


@dataclass(slots=True)
class Service:
    """One worker's parts, as the app needs them."""

    settings: Settings
    engine: Engine
    mounted: tuple[Mounted, ...]
    own: OwnContext
    store: Store
    heartbeat: Heartbeat
    client: UpstreamClient
    telemetry: Telemetry
    is_draining: bool = False
    """Still serving, but not ready: the load balancer shall look elsewhere."""

    async def not_ready(self) -> str | None:
        """Why this worker should get no new traffic; None when it should."""
        if self.is_draining:
            return "draining"
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                await self.heartbeat.beat()
        except (Refused, TimeoutError):
            return "the store cannot be written"
        return None

    async def keep_gauges(self) -> None:
        """Gauges that are cheaper to read now and then than to keep."""
        lags = collections.deque[float](maxlen=LAGS_KEPT)
        while True:
            self.telemetry.queue_units.set(self.store.writer.queued_units)
            self.telemetry.store_in_trouble.set(self.store.writer.trouble is not None)
            self.telemetry.upstream_connections.set(self.client.open_connections)
            lags.append(await _worst_lag_s())
            self.telemetry.loop_lag_s.set(max(lags))


async def _worst_lag_s() -> float:
    """How late the event loop was at worst, over GAUGES_EVERY_S: what it does at a stretch is seen if a look falls due in it."""
    loop, worst_s = asyncio.get_running_loop(), 0.0
    for _ in range(round(GAUGES_EVERY_S / LAG_EVERY_S)):
        due_s = loop.time() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        worst_s = max(worst_s, loop.time() - due_s)
    return worst_s


async def keep_counting(instances: Instances, telemetry: Telemetry) -> None:
    """Tell how many machines are in each status."""
    while True:
        with suppress(Refused):  # the store has said what is wrong with it
            for status, count in (await instances.count_by_status()).items():
                telemetry.machines.labels(status).set(count)
        await asyncio.sleep(MACHINES_COUNTED_EVERY_S)


async def keep_pruning(hooks: Hooks) -> None:
    """Let go of rows that say what nobody asks any more."""
    while True:
        await asyncio.sleep(PRUNE_EVERY_S)
        hooks.prune()


def bounds_of(settings: Settings) -> Bounds:
    """The engine's share of the settings: the fields of the same names."""
    return Bounds(**{name: getattr(settings, name) for name in Bounds.__slots__})


def check_configuration(settings: Settings) -> None:
    """Read what a worker will, so that what cannot be used is said before anything is changed. Raises SettingError,
    PriceFileError.
    """
    PriceTable.load(settings.prices_path)
    try:
        load_plans(settings.plans_path)
        for surface in SURFACES:
            Mounted(surface, settings.vendors, bounds_of(settings))
        if settings.fly_api_token:
            Templates.load(settings.machines_path)
            check_image(settings.machine_image)
    except ValueError as error:  # each names its file or variable
        raise SettingError(str(error)) from error


@asynccontextmanager
async def running_service(  # noqa: PLR0915 - a statement for each part
    settings: Settings, *, clock: Clock | None = None
) -> AsyncIterator[Service]:
    """A worker, from its first heartbeat to the last flush.

    The store must be migrated; it may be in trouble. Raises SettingError, PlansFileError, PriceFileError,
    DatabaseUrlError, ValueError (upstream override), StoreMovedError (there is no store), StoreInUseError (it is being
    restored).
    """
    clock = clock or SystemClock()
    plans, prices = load_plans(settings.plans_path), PriceTable.load(settings.prices_path)
    kind = TimedTelemetry if settings.phase_times else Telemetry
    telemetry = kind(prices, log_format=settings.log_format, say=CanonicalLines().say)
    database = Database.from_url(settings.database_url, busy_timeout_s=settings.store_busy_timeout_s)
    bounds = bounds_of(settings)
    async with AsyncExitStack() as stack:
        stack.enter_context(serving(database))
        store = await stack.enter_async_context(
            open_store(database, on_commit=telemetry.committed, on_times=telemetry.on_times)
        )
        worker_id = new_id(f"wrk_{socket.gethostname()[:20]}", clock.now_ms())
        ledger = Ledger(store, clock, worker_id)
        directory, rate_limits = Directory(store, clock), RateLimits(clock)
        objects = Objects(store, clock)
        client = UpstreamClient(connections_max=settings.upstream_connections_max)
        stack.push_async_callback(client.aclose)
        mounted = tuple(Mounted(surface, settings.vendors, bounds) for surface in SURFACES)
        works, calls = DeferredWorks(store, clock), SideCalls(client)
        endings = Endings(works=works, mounted=mounted, calls=calls, telemetry=telemetry)
        authenticator = Authenticator(
            directory,
            plans,
            clock,
            cache_max=settings.credential_cache_max,
            poll_s=settings.changes_poll_s,
            stale_after_s=settings.changes_stale_after_s,
            on_changes=objects.heard,
        )
        authenticator.on_changes.append(endings.heard)
        access = Access(authenticator)
        endpoint = settings.notices_endpoint
        notices = Notices(
            store, clock, plans=plans, charged=ledger.charged, endpoint=None if endpoint is None else ENDPOINT
        )

        def expired(worker_id: str, reservations: int) -> None:
            telemetry.expired(reservations)
            if worker_id != OVERDUE:
                notices.sweep_soon()  # for what the dead had noted

        heartbeat = Heartbeat(
            store,
            ledger,
            clock,
            interval_s=settings.heartbeat_s,
            dead_after_s=settings.worker_dead_after_s,
            on_expired=expired,
        )
        with suppress(Refused):  # it says itself what is wrong; until it works again this worker is not ready
            await authenticator.start()
            await heartbeat.beat()
        stack.push_async_callback(_leave, heartbeat)
        admission = Admission(ledger, rate_limits, clock, upgrade_url=settings.upgrade_url)
        running = Running(
            works=works,
            admission=admission,
            ledger=ledger,
            prices=prices,
            objects=objects,
            calls=calls,
            clock=clock,
        )
        hooks, repeats = Hooks(store, clock), Repeats(store, clock)
        deferrals = Deferrals(
            hooks=hooks,
            running=running,
            works=works,
            scheduled=ScheduledWorks(store, ledger, clock),
            mounted=mounted,
            ledger=ledger,
            prices=prices,
            client=client,
            telemetry=telemetry,
            clock=clock,
            tokens=rate_limits.tokens,
        )
        arrivals = Arrivals(
            mounted=mounted,
            admission=admission,
            works=works,
            objects=objects,
            orphans=Orphans(store, clock),
            directory=directory,
            plans=plans,
            prices=prices,
            calls=calls,
            readers=store.readers,
            clock=clock,
        )
        addresses = ReturnAddresses(store, clock)
        endpoints = {} if endpoint is None else {ENDPOINT: endpoint}
        courier = Courier(
            Outbox(store, clock),
            endpoints,
            client=await stack.enter_async_context(
                webhook_client(endpoints.values(), has_hooks=bool(settings.hooks_secret))
            ),
            telemetry=telemetry,
            clock=clock,
            hooks=hooks,
            hooks_secret=settings.hooks_secret,
        )
        lingering = Lingering(
            calls,
            client,
            connect_s=bounds.connect_timeout_s,
            ping_timeout_s=bounds.client_stall_timeout_s,
        )
        spliced = SplicedSockets(
            store=store,
            objects=objects,
            works=works,
            tickets=Tickets(store, objects, clock),
            calls=calls,
            authenticator=authenticator,
            telemetry=telemetry,
            lingering=lingering,
        )
        engine = Engine(
            bounds=bounds,
            authenticator=authenticator,
            admission=admission,
            ledger=ledger,
            prices=prices,
            client=client,
            telemetry=telemetry,
            clock=clock,
            objects=objects,
            deferrals=deferrals,
            preparation=Preparation(objects=objects, repeats=repeats, calls=calls, addresses=addresses),
            access=access,
            spliced=spliced,
        )
        stack.push_async_callback(engine.wait_until_idle)

        async def not_ready() -> str | None:
            return await service.not_ready()

        working = (
            await stack.enter_async_context(provisioner(settings, store, clock))
            if settings.fly_api_token
            else None
        )
        own = OwnContext(
            authenticator=authenticator,
            store=store,
            rate_limits=rate_limits,
            standing=admission.standing,
            clock=clock,
            telemetry=telemetry,
            not_ready=not_ready,
            bytes_per_output_token=settings.output_bytes_per_token,
            metrics_token=settings.metrics_token,
            metrics_port=settings.metrics_port,
            agentmail_webhook_keys=settings.agentmail_webhook_keys,
            bland_webhook_keys=settings.bland_webhook_keys,
            reported=deferrals.reported,
            reported_of=deferrals.reported_of,
            arrived=arrivals.heard,
            machines=machines_of(settings, store, clock),
            reconcile=None if working is None else working.reconcile,
            admin_token=settings.admin_token,
        )
        service = Service(settings, engine, mounted, own, store, heartbeat, client, telemetry)
        _in_background(stack, "changes", authenticator.follow_changes)
        _in_background(stack, "lost access", access.keep_looking)
        _in_background(stack, "spliced websockets", spliced.keep_looking)
        _in_background(stack, "heartbeat", heartbeat.run)
        _in_background(stack, "checkpoints", engine.keep_checkpointing)
        _in_background(stack, "deferred work", deferrals.keep_polling)
        sweeper = Sweeper(mounted=mounted, orphans=Orphans(store, clock), works=works, calls=calls)
        _in_background(stack, "arrivals", partial(arrivals.keep_looking, every_s=settings.sweep_every_s))
        _in_background(stack, "endings", endings.keep_ending)
        _in_background(
            stack, "sweeps", partial(sweeper.keep_sweeping, telemetry, every_s=settings.sweep_every_s)
        )
        _in_background(stack, "notices", notices.keep_looking)
        _in_background(stack, "idempotency keys", repeats.keep_pruning)
        _in_background(stack, "outbox", courier.keep_delivering)
        _in_background(stack, "pruning", partial(keep_pruning, hooks))
        _in_background(stack, "gauges", service.keep_gauges)
        if working is not None:
            _in_background(stack, "machines", working.keep_working)
            _in_background(
                stack,
                "machines counted",
                partial(keep_counting, machines_of(settings, store, clock).instances, telemetry),
            )
        yield service


async def swept_once(settings: Settings, store: Store, clock: Clock, *, is_dry: bool) -> list[Sweep]:
    """One look through the lists of all vendors, beside servers or without. Raises Refused, ValueError (upstream
    override)."""
    client = UpstreamClient(connections_max=1)
    try:
        sweeper = Sweeper(
            mounted=tuple(Mounted(surface, settings.vendors, bounds_of(settings)) for surface in SURFACES),
            orphans=Orphans(store, clock),
            works=DeferredWorks(store, clock),
            calls=SideCalls(client),
        )
        return await sweeper.sweep(is_dry=is_dry)
    finally:
        await client.aclose()


async def _leave(heartbeat: Heartbeat) -> None:
    """A store in trouble does not stop us from stopping: the others will find our count standing still."""
    try:
        async with asyncio.timeout(LEAVE_WITHIN_S):
            await heartbeat.leave()
    except (Refused, TimeoutError) as error:
        logger.warning("this worker's row stays behind: %s", error)


def _in_background(stack: AsyncExitStack, name: str, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    stack.push_async_callback(stop, keep(make, name=name))
