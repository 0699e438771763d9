"""What the proxy tells of a run itself, in its metrics: the group commits of its ledger, and the time of its phases.

Both are differences between two looks at `/metrics`, one before the run and one after it.
"""

from collections.abc import Iterator, Mapping, Sequence

from bench.targets import Sample, Samples
from proxy.exchange import PHASES

COMMIT_SECONDS, UNITS = "automna_ledger_commit_seconds", "automna_ledger_units_total"
PHASE_SECONDS = "automna_phase_seconds"
LEDGER = {
    "ledger: until the commit": "automna_ledger_wait_seconds",
    "ledger: commit": COMMIT_SECONDS,
    "ledger: until the loop heard": "automna_ledger_heard_seconds",
}
PARTS = (*PHASES, *LEDGER)
"""The parts of a request's time, in the order in which they are shown."""
MEAN, P99 = " mean_ms", " p99_ms"
"""After a part's name: what is told of it."""


def commits(before: Samples, after: Samples, *, answers: int) -> dict[str, float]:
    """How many group commits an answer took, and how many units of work shared one. Beats of the heart count as well: one a second."""
    made = _grown(before, after, (f"{COMMIT_SECONDS}_count", ()))
    units = _grown(before, after, (UNITS, ()))
    return {"commits_each": made / answers, "units_a_commit": units / made} if made else {}


def phase_times(before: Samples, after: Samples) -> dict[str, float]:
    """Of each part that any request had. The percentile is the histogram's: exact to its buckets."""
    figures = {}
    for part in PARTS:
        name, labels = (LEDGER[part], ()) if part in LEDGER else (PHASE_SECONDS, (("phase", part),))
        count = _grown(before, after, (f"{name}_count", labels))
        if count:
            figures[part + MEAN] = _grown(before, after, (f"{name}_sum", labels)) / count * 1000
            buckets = list(_buckets(before, after, f"{name}_bucket", labels))
            figures[part + P99] = quantile(buckets, 0.99) * 1000
    return figures


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """As Prometheus has it: evenly spread within its bucket, and what is beyond all bounds is the last one. `buckets`: each
    upper bound with how many are not above it."""
    rank, lower, below = share * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            is_last = bound == float("inf")
            return lower if is_last else lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    raise ValueError("quantile: the last bucket has less than all")


def _grown(before: Samples, after: Samples, sample: Sample) -> float:
    return after.get(sample, 0.0) - before.get(sample, 0.0)


def _buckets(
    before: Samples, after: Samples, name: str, labels: tuple[tuple[str, str], ...]
) -> Iterator[tuple[float, float]]:
    """By their bounds, upwards."""
    own = dict(labels)
    found: Mapping[float, Sample] = {
        float(dict(its)["le"]): (sample_name, its)
        for sample_name, its in after
        if sample_name == name and {key: value for key, value in its if key != "le"} == own
    }
    for bound in sorted(found):
        yield bound, _grown(before, after, found[bound])
