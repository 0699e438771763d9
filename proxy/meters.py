"""Meters that any surface may use."""

from collections.abc import Callable

from metering.usage import Usage, UsageLine
from metering.values import immutable
from proxy.surface import PASS_ALL, AnswerHead, Demand, Inbound, Observer, Pricing


@immutable
class Free:
    """Costs nothing: lists, token counts. Rate limited, leaves a zero entry, holds no money.

    `models_of` names the models a request asks about, where it does, so that a plan's choice of models
    holds here too; it raises Refused as `Meter.read` may.
    """

    models_of: Callable[[Inbound, Pricing], tuple[str, ...]] | None = None

    @property
    def is_free(self) -> bool:
        return True

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        return Demand() if self.models_of is None else Demand(models=self.models_of(request, pricing))

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return NothingToRead()


@immutable
class PerRequest:
    """A vendor that sells by the request and bills those that succeed: one `unit` of `product`, its name in the price
    table.

    `kind`: of the request, in the setting `unbilled_option`: a list of kinds that the vendor does not bill.
    """

    product: str
    unit: str
    kind: str = ""
    unbilled_option: str = ""

    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:  # noqa: ARG002 - the protocol's
        if self.kind and self.kind in pricing.options[self.unbilled_option].replace(" ", "").split(","):
            return Demand()
        usage = Usage((UsageLine(self.product, {self.unit: 1}),), is_exact=False)
        return Demand(ceiling=usage, floor=usage)

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:  # noqa: ARG002 - the protocol's
        return NothingToRead(demand.ceiling.lines)


class NothingToRead:
    """Observes an answer that carries no usage: whole once it ended. `lines` are what it costs all the same."""

    __slots__ = ("_has_ended", "_lines")

    def __init__(self, lines: tuple[UsageLine, ...] = ()) -> None:
        self._lines = lines
        self._has_ended = False

    def feed(self, chunk: bytes) -> int:  # noqa: ARG002 - the protocol's
        return PASS_ALL

    def end(self) -> None:
        self._has_ended = True

    @property
    def is_complete(self) -> bool:
        return self._has_ended

    @property
    def at_boundary(self) -> bool:
        return False

    @property
    def error(self) -> str | None:
        return None

    def usage(self) -> Usage:
        return Usage(self._lines, is_exact=self._has_ended or not self._lines)
