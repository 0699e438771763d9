"""Agents' machines put together: the wishes on a store, and whoever makes them true at Fly, Browserbase and AgentMail."""

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from automna_proxy.settings import Settings
from metering.clock import Clock
from metering.ids import new_id
from metering.objects import Objects
from metering.plans import load_plans
from metering.store.store import Store
from metering.users import Directory
from provisioning.fly import Fly, fly_client
from provisioning.integrations import Integrations, Vendor, vendor_client
from provisioning.machines import Machines
from provisioning.pacing import Pacer
from provisioning.run import Parts
from provisioning.template import Templates, check_image
from provisioning.worker import Provisioner
from proxy.surface import Upstream
from routes import agentmail, browserbase


def machines_of(settings: Settings, store: Store, clock: Clock) -> Machines:
    """What may be wished and asked, with Fly or without."""
    return Machines(store, clock, app_prefix=settings.fly_app_prefix, gateway_url=settings.fly_gateway_url)


@asynccontextmanager
async def provisioner(settings: Settings, store: Store, clock: Clock) -> AsyncIterator[Provisioner]:
    """One worker's hand in them, with connections of its own. FLY_API_TOKEN must be set.

    Raises TemplateError: MACHINES_FILE or MACHINE_IMAGE cannot be used; PlansFileError.
    """
    browser = _vendor(browserbase.SURFACE.upstream, settings.vendors)
    mail = _vendor(agentmail.SURFACE.upstream, settings.vendors)
    project_id = settings.vendors.get(browserbase.PROJECT_ENV, "")
    plans = load_plans(settings.plans_path) if settings.machines_suspend_over_budget else None
    templates = Templates.load(settings.machines_path)
    check_image(settings.machine_image)
    async with AsyncExitStack() as stack:
        at_fly = await stack.enter_async_context(fly_client(settings.fly_api_url, settings.fly_api_token))
        at_vendors = await stack.enter_async_context(
            vendor_client(*(vendor.base_url for vendor in (browser, mail) if vendor is not None))
        )
        parts = Parts(
            store=store,
            clock=clock,
            machines=machines_of(settings, store, clock),
            directory=Directory(store, clock),
            objects=Objects(store, clock),
            fly=Fly(at_fly, Pacer(clock), org_slug=settings.fly_org),
            integrations=Integrations(browser=browser, mail=mail, project_id=project_id, client=at_vendors),
            templates=templates,
            probes=await stack.enter_async_context(vendor_client(settings.fly_gateway_url)),
            image=settings.machine_image,
            proxy_url=settings.public_url,
            project_id=project_id,
            hooks_secret=settings.hooks_secret,
        )
        yield Provisioner(
            parts,
            new_id(f"mch_{socket.gethostname()[:20]}", clock.now_ms()),
            at_once=settings.machines_at_once,
            plans=plans,
            reconcile_every_s=settings.machines_reconcile_every_s,
            repairs=settings.machines_repair,
        )


def _vendor(upstream: Upstream, variables: Mapping[str, str]) -> Vendor | None:
    """As the surface of that vendor reaches it; None without its key."""
    key = variables.get(upstream.key_env)
    return None if key is None else Vendor(variables.get(upstream.url_env, upstream.base_url), key)
