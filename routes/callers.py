"""Who asks one of our own endpoints, and how often it may."""

from typing import NamedTuple

from starlette.requests import Request

from metering.admission import Caller
from metering.errors import Reason, Refused
from metering.rate_limits import RateLimits
from metering.terms import USER_SURFACE
from metering.values import immutable
from proxy.auth import Authenticator, TokenPlaces
from proxy.surface import BEARER, HeaderKey, Headers
from proxy.telemetry import OWN_EXCHANGE, OwnExchange

TOKEN_PLACES = TokenPlaces((BEARER, HeaderKey("authorization"), HeaderKey("x-api-key")))


class OwnRate(NamedTuple):
    """So many calls a minute of one kind of endpoint, beside the plan's requests: looking at one's limits must not use
    them up."""

    name: str
    """As the headers of an answer and the rate's state have it."""
    what: str
    per_minute: int


@immutable
class Callers:
    """Authenticates and counts whoever asks."""

    authenticator: Authenticator
    rate_limits: RateLimits

    async def identified(self, request: Request, operation: str) -> Caller:
        """Whose gateway token it is. Raises Refused: no token, or one whose scope does not include the operation."""
        headers: Headers = list(request.scope["headers"])
        caller = await self.authenticator.authenticate(TOKEN_PLACES.find(headers, b""))
        request.scope[OWN_EXCHANGE].caller = caller
        if caller.token is not None:
            caller.token.require(USER_SURFACE, operation)
        return caller

    def count(self, request: Request, rate: OwnRate, whose: str) -> None:
        """One more call of `whose`. Raises Refused: too many a minute."""
        own: OwnExchange = request.scope[OWN_EXCHANGE]
        state = self.rate_limits.hit(f"{rate.name}:{whose}", rate.per_minute)
        own.rate = (rate.name, state)
        if not state.is_allowed:
            raise Refused(
                Reason.RATE_LIMITED,
                f"Rate limit reached: {rate.per_minute} {rate.what} per minute.",
                retry_after_s=state.retry_after_s,
                facts={"limit": rate.per_minute},
            )
