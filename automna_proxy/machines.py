"""Agents' machines put together: the wishes on a store, and who makes them true at Fly, Browserbase and AgentMail."""

from automna_proxy.settings import Settings
from metering.clock import Clock
from metering.store.store import Store
from provisioning.machines import Machines


def machines_of(settings: Settings, store: Store, clock: Clock) -> Machines:
    """What may be wished and asked, with Fly or without."""
    return Machines(store, clock, app_prefix=settings.fly_app_prefix, gateway_url=settings.fly_gateway_url)
