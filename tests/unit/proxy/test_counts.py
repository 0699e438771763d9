"""Metrics that are told late say what the library's own would have said."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from proxy.counts import Buckets, Counts, Level, Spread

BOUNDS = (0.1, 0.5, 1)
VALUES = (0.0, 0.1, 0.100001, 0.5, 0.7, 1, 1.5, 400)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def shown(registry: CollectorRegistry) -> list[str]:
    """Without the times at which children were made."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@pytest.mark.parametrize("labels", [(), ("a",), ("b",)])
def test_a_spread_is_the_librarys_histogram(registry, labels):
    own = CollectorRegistry()
    names = ["which"] if labels else []
    theirs = Histogram("seconds", "How long.", names, buckets=BOUNDS, registry=own)
    ours = Spread(Buckets("seconds", "How long.", names, buckets=BOUNDS, registry=None), registry, BOUNDS)
    for _ in range(2):  # what was told once is not told again
        for value in VALUES:
            (theirs.labels(*labels) if labels else theirs).observe(value)
            ours.new[labels].observe(value)
        assert shown(registry) == shown(own)
    assert shown(registry) == shown(own)


def test_counts_are_the_librarys_counter(registry):
    own = CollectorRegistry()
    theirs = Counter("requests", "How many.", ["surface", "status"], registry=own)
    ours = Counts(Counter("requests", "How many.", ["surface", "status"], registry=None), registry)
    assert shown(registry) == shown(own)
    for labels, number in [(("a", "200"), 1), (("b", "200"), 0), (("a", "200"), 4), (("a", "404"), 1)]:
        theirs.labels(*labels).inc(number)
        ours.new[labels] += number
        assert shown(registry) == shown(own)


def test_a_count_is_since_its_first_and_not_since_it_was_asked_for(registry, monkeypatch):
    ours = Counts(Counter("requests", "How many.", ["surface"], registry=None), registry)
    monkeypatch.setattr("time.time", lambda: 5.0)
    ours.new["a",] += 1
    monkeypatch.setattr("time.time", lambda: 9.0)
    assert registry.get_sample_value("requests_created", {"surface": "a"}) == 5.0


def test_one_sample_can_be_asked_for(registry):
    ours = Counts(Counter("requests", "How many.", registry=None), registry)
    ours.new[()] += 3
    (metric,) = registry.restricted_registry(["requests_total"]).collect()
    assert [sample.value for sample in metric.samples] == [3.0]


def test_a_level_is_what_came_less_what_went(registry):
    changes = []
    level = Level(Gauge("open", "Open now.", registry=None), registry, lambda: changes.append(1))
    level.inc()
    level.inc()
    level.dec()
    assert (registry.get_sample_value("open"), len(changes)) == (1.0, 3)
