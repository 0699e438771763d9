"""Metrics that cost a request little: it adds to plain numbers, and the library hears of them when somebody reads the metric.

An increment of the library's takes a lock and four calls, and a request would make twenty. A metric here stands in the registry
in the place of the library's, and tells that one what is new before it is read. Where other processes read it (multi-process
mode), nobody asks first: `tell` must be called.

All of it belongs to one thread, the event loop's.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Labels = tuple[str, ...]
"""The values of a metric's labels, in its order; empty where it has none."""
M = TypeVar("M", Counter, Gauge, "Buckets")


class _Told(Collector, Generic[M]):
    """In the place of a metric of the library."""

    def __init__(self, metric: M, registry: CollectorRegistry) -> None:
        self._metric: M = metric
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        return self._metric.describe()

    def collect(self) -> Iterable[Metric]:
        self.tell()
        return self._metric.collect()

    def tell(self) -> None:
        """Hand on what is new."""
        raise NotImplementedError


class _Children(dict[Labels, M]):
    """Label children, kept: looking one up through the library costs three times as much."""

    def __init__(self, metric: M) -> None:
        super().__init__()
        self._metric: M = metric

    def __missing__(self, labels: Labels) -> M:
        child: M = self._metric.labels(*labels) if labels else self._metric
        self[labels] = child
        return child


class _Numbers(dict[Labels, int]):
    """0 where nothing is new; but from its first look on there is such a child, since when it says itself."""

    def __init__(self, children: _Children[Counter]) -> None:
        super().__init__()
        self._children = children

    def __missing__(self, labels: Labels) -> int:
        self._children[labels]
        return 0


class Counts(_Told[Counter]):
    """A counter: `counts.new[labels] += 1`."""

    def __init__(self, metric: Counter, registry: CollectorRegistry) -> None:
        super().__init__(metric, registry)
        self._children = _Children(metric)
        self.new = _Numbers(self._children)

    def tell(self) -> None:
        for labels, number in self.new.items():
            self._children[labels].inc(number)
        self.new.clear()


class Buckets(Histogram):
    """The library's, which has no way of its own to add many observations at once."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """`counts`: how many fell into each bucket; `total`: their sum."""
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class _Seen:
    """Observations of one child."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last is for what is beyond all
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class _Observations(dict[Labels, _Seen]):
    def __init__(self, children: _Children[Buckets], bounds: Sequence[float]) -> None:
        super().__init__()
        self._children = children
        self._bounds = bounds

    def __missing__(self, labels: Labels) -> _Seen:
        self._children[labels]  # as of numbers
        seen = self[labels] = _Seen(self._bounds)
        return seen


class Spread(_Told[Buckets]):
    """A histogram: `spread.new[labels].observe(seconds)`. `bounds`: the upper ones of its buckets, without infinity."""

    def __init__(self, metric: Buckets, registry: CollectorRegistry, bounds: Sequence[float]) -> None:
        super().__init__(metric, registry)
        self._children = _Children(metric)
        self.new = _Observations(self._children, bounds)

    def tell(self) -> None:
        for labels, seen in self.new.items():
            self._children[labels].add(seen.counts, seen.total)
        self.new.clear()


class Level(_Told[Gauge]):
    """A gauge without labels, of what comes and goes. `on_change` is called after each."""

    def __init__(
        self, metric: Gauge, registry: CollectorRegistry, on_change: Callable[[], None] | None
    ) -> None:
        super().__init__(metric, registry)
        self._now = 0
        self._on_change = on_change

    def inc(self) -> None:
        self._now += 1
        if self._on_change is not None:
            self._on_change()

    def dec(self) -> None:
        self._now -= 1
        if self._on_change is not None:
            self._on_change()

    def tell(self) -> None:
        self._metric.set(self._now)
