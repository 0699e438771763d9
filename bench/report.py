"""Tables of what was measured, where they are published, and whether it is above the floor."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import inside
from bench.compare import Rounds, comparison_table
from bench.measure import MEASUREMENTS, Figures, Measurement, median
from bench.peers.runs import PeerRuns
from bench.targets import PROXY
from bench.variants import VARIANTS

Runs = Mapping[str, Mapping[str, Sequence[Figures]]]
"""Measurement -> target -> its runs."""

FLOOR_PER_S = {"requests": 3_000.0, "bursts": 1_500.0}
"""Below this, `--check` fails: what the first version must hold on any machine of today."""
NGINX = "nginx"
NOBODY: Mapping[str, PeerRuns] = {}
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
"""Around what `make bench` writes."""

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("per_s", "per second", ",.0f"),
    ("cpu_us", "CPU us each", ",.0f"),
    ("p50_ms", "p50 ms", ",.2f"),
    ("p99_ms", "p99 ms", ",.2f"),
    ("first_byte_p50_ms", "first byte p50 ms", ",.2f"),
    ("first_byte_p99_ms", "p99 ms", ",.2f"),
    ("lateness_p50_ms", "event late p50 ms", ",.2f"),
    ("lateness_p99_ms", "p99 ms", ",.2f"),
    ("beside_p99_ms", "beside it p99 ms", ",.1f"),
    ("beside_max_ms", "longest ms", ",.1f"),
    ("stall_ms", "longest turn of the loop ms", ",.1f"),
    ("commits_each", "commits each", ",.2f"),
    ("units_a_commit", "units a commit", ",.1f"),
    ("rss_peak_mb", "peak MB", ",.0f"),
    ("core_share", "of its core", ".0%"),
    ("others_share", "others there", ".0%"),
    ("load_core_idle_share", "load core idle", ".0%"),
)
OURS_ALONE = {"stall_ms", "commits_each", "units_a_commit"}
"""What only our own process tells of itself."""
ALWAYS_SHORT = {"core_share", "others_share", "load_core_idle_share", "rss_peak_mb"}
"""Shown without their spread."""


def table(
    measurement: Measurement, ours: Mapping[str, Sequence[Figures]], peers: PeerRuns | None = None
) -> str:
    """A Markdown table: a row a target, medians with (lowest to highest) where there are several runs; ratios and, of
    peers, what they do or did wrong, below it."""
    peers = peers or PeerRuns()
    runs = {**ours, **peers.runs}
    columns = [column for column in COLUMNS if _is_told(column[0], runs)]
    rows = [["", *(heading for _, heading, _ in columns)]]
    for target, its_runs in runs.items():
        rows.append([target, *(_cell(key, form, its_runs) for key, _, form in columns)])
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    rows += [
        [f"{peer}: {said}", *("" for _ in columns)]
        for peer, said in peers.findings.items()
        if peer not in peers.runs
    ]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    below = [*_ratios(measurement, ours), *_peer_lines(ours, peers), *_phases(ours[PROXY])]
    return "\n".join([f"{measurement.title}", "", *lines, "", *below])


def _peer_lines(ours: Mapping[str, Sequence[Figures]], peers: PeerRuns) -> list[str]:
    """A list: each peer beside ours and nginx, what it does, and what it did wrong after a good round."""
    items = []
    for peer, note in peers.notes.items():
        its_runs = peers.runs.get(peer)
        ratios = [_beside(its_runs, other, ours[other]) for other in (PROXY, NGINX)] if its_runs else []
        stopped = [peers.findings[peer]] if its_runs and peer in peers.findings else []
        items.append(f"- {peer} " + "; ".join([note, *ratios, *stopped]))
    return ["", *items] if items else []


def _phases(ours: Sequence[Figures]) -> list[str]:
    """A table of the parts of a request's time, where the proxy took it."""
    rows = [
        f"| {part} | {_of(ours, part + inside.MEAN):,.3f} | {_of(ours, part + inside.P99):,.3f} |"
        for part in inside.PARTS
        if all(part + inside.MEAN in run for run in ours)
    ]
    return ["", "| of its time | mean ms | p99 ms |", "|---|---|---|", *rows] if rows else []


def _beside(its_runs: Sequence[Figures], other: str, others_runs: Sequence[Figures]) -> str:
    by_rate, by_cpu = (_of(others_runs, "per_s") / _of(its_runs, "per_s"), _of(its_runs, "cpu_us"))
    by_cpu /= max(_of(others_runs, "cpu_us"), 1e-9)
    return f"1/{by_rate:.1f} of {other} by rate, 1/{by_cpu:.1f} by CPU"


def _of(runs: Sequence[Figures], key: str) -> float:
    return median([run[key] for run in runs])


def _is_told(key: str, runs: Mapping[str, Sequence[Figures]]) -> bool:
    have = [key in run for one in runs.values() for run in one]
    return any(have) if key in OURS_ALONE else all(have)


def _cell(key: str, form: str, runs: Sequence[Figures]) -> str:
    if any(key not in run for run in runs):
        return "-"
    values = [run[key] for run in runs]
    middle = format(median(values), form)
    if len(values) == 1 or key in ALWAYS_SHORT:
        return middle
    return f"{middle} ({min(values):{form}} to {max(values):{form}})"


def _ratios(measurement: Measurement, runs: Mapping[str, Sequence[Figures]]) -> list[str]:
    """Against nginx in the same run. By CPU it is true where nginx could not be loaded fully."""
    ours, theirs = runs[PROXY], runs[NGINX]
    lines = []
    if measurement.shape.client == "wrk":
        lines.append(_beside(ours, NGINX, theirs))
    for key, words in (
        ("p50_ms", "p50"),
        ("p99_ms", "p99"),
        ("first_byte_p50_ms", "first byte p50"),
        ("first_byte_p99_ms", "first byte p99"),
        ("lateness_p99_ms", "event lateness p99"),
    ):
        if measurement.shape.client != "wrk" and key in ours[0]:
            lines.append(f"{words}: {_of(ours, key) - _of(theirs, key):+.2f} ms to nginx")
    if measurement.shape.client == "paced":
        lines.append(f"{_of(ours, 'cpu_us') / 1000:.2f} CPU s per 1,000 streams")
    return lines


def below_floor(runs: Runs) -> list[str]:
    """What is slower than the floor; a measurement that was not made does not count."""
    problems = []
    for name, floor in FLOOR_PER_S.items():
        if name not in runs:
            continue
        rate = median([run["per_s"] for run in runs[name][PROXY]])
        if rate < floor:
            problems.append(f"{name}: {rate:,.0f}/s, expected at least {floor:,.0f}/s")
    return problems


def document(runs: Runs, varied: Mapping[str, Rounds], peers: Mapping[str, PeerRuns] = NOBODY) -> str:
    """All tables."""
    tables = [table(one, runs[one.name], peers.get(one.name)) for one in MEASUREMENTS if one.name in runs]
    tables += [comparison_table(one.title, varied[one.name]) for one in VARIANTS if one.name in varied]
    return "\n\n".join(tables)


def circumstances(machine: Mapping[str, str], how: str) -> str:
    """Where and how it was measured."""
    lines = [f"- {key}: {value}" for key, value in machine.items()]
    return "\n".join([*lines, f"- runs: {how}, metering on, synchronous=FULL"])


def publish(document: Path, figures: str) -> None:
    """Put the figures where the last ones stand, between the marks. Raises ValueError where there are no marks."""
    text = document.read_text(encoding="utf-8")
    if len(re.findall(f"^{BEGIN}$.*^{END}$", text, re.MULTILINE | re.DOTALL)) != 1:
        raise ValueError(f"{document}: expected the figures' place once, between {BEGIN} and {END}")
    before, _, rest = text.partition(BEGIN)
    document.write_text(f"{before}{BEGIN}\n\n{figures}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
