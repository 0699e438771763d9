"""The work of a gateway that is ended for users without access, looked for by the test."""

from metering.deferred import DeferredWorks
from proxy.endings import Endings
from proxy.side_calls import SideCalls
from tests.support.gateway import Gateway


def endings_of(gateway: Gateway) -> Endings:
    """As another worker has them, but that they look only when they are told to."""
    service = gateway.service
    return Endings(
        works=DeferredWorks(service.store, gateway.clock),
        mounted=service.mounted,
        calls=SideCalls(service.client),
        telemetry=service.telemetry,
    )
