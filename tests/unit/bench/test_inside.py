"""What the proxy tells of itself, read from its metrics: the real ones, of two moments."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bench import inside
from bench.inside import commits, phase_times, quantile
from metering.prices import PriceTable
from proxy.phase_times import TimedTelemetry


class Metrics:
    """As far as they are read here."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        bounds = (0.001, 0.01, 0.1)
        self.commits = Histogram(inside.COMMIT_SECONDS, "-", buckets=bounds, registry=self.registry)
        self.units = Counter("automna_ledger_units", "-", registry=self.registry)
        self.phases = Histogram(inside.PHASE_SECONDS, "-", ["phase"], buckets=bounds, registry=self.registry)

    def told(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = generate_latest(self.registry).decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def test_commits_are_those_of_the_run_by_its_answers():
    metrics = Metrics()
    metrics.commits.observe(0.5)
    metrics.units.inc(7)
    before = metrics.told()
    for _ in range(20):
        metrics.commits.observe(0.002)
    metrics.units.inc(80)
    assert commits(before, metrics.told(), answers=40) == {"commits_each": 0.5, "units_a_commit": 4.0}
    assert commits(before, before, answers=40) == {}


def test_phases_are_those_of_the_run_and_only_those_that_some_request_had():
    metrics = Metrics()
    metrics.phases.labels("admit").observe(5.0)
    metrics.phases.labels("relay").observe(5.0)
    before = metrics.told()
    for _ in range(100):
        metrics.phases.labels("admit").observe(0.005)
    metrics.commits.observe(0.0005)
    figures = phase_times(before, metrics.told())
    assert figures == pytest.approx(
        {
            "admit mean_ms": 5.0,
            "admit p99_ms": 1 + 9 * 0.99,
            "ledger: commit mean_ms": 0.5,
            "ledger: commit p99_ms": 0.99,
        }
    )


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((100, 100, 100), 0.99, 0.99),
        ((0, 100, 100), 0.5, 1.5),
        ((50, 100, 100), 0.99, 1.98),
        ((0, 0, 10), 0.5, 2.0),
    ],
    ids=["first", "middle", "across", "beyond all"],
)
def test_a_quantile_is_spread_evenly_within_its_bucket(counts, share, expected):
    bounds = (1.0, 2.0, float("inf"))
    assert quantile(list(zip(bounds, counts, strict=True)), share) == pytest.approx(expected)


def test_the_parts_are_those_of_which_the_proxy_tells():
    told = TimedTelemetry(PriceTable.load(), log_format="json", say=print).exposition().decode()
    for name in (inside.PHASE_SECONDS, *inside.LEDGER.values()):
        assert f"# TYPE {name} histogram" in told
