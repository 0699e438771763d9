"""Kinds of traffic, or versions of the proxy, compared: each in turn, round after round, under the same load.

What matters is CPU per request beside that of the first one (or of the other version) in the same round: on a machine that is not ours alone
single runs spread by a fifth, and neighbouring ones share what disturbed them.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import targets
from bench.books import Books
from bench.measure import USERS, WARM_UP_S, Bench, Figures, Measurement, Shape, measurement_of, median, short
from bench.targets import Target, TargetError
from bench.traffic import TRAFFICS, Traffic

Rounds = Mapping[str, Sequence[Figures]]
"""Contestant -> its run in each round."""
HERE, THERE = " (here)", " (there)"
"""Of two versions, this checkout and the other one."""
BOOKS_MADE_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Contestant:
    """One kind of traffic on one proxy."""

    name: str
    measurement: Measurement
    target: Target
    books: Books


def traffics_named(names: Sequence[str]) -> list[Traffic]:
    """Raises ValueError for a name that is nobody's."""
    known = {traffic.name: traffic for traffic in TRAFFICS}
    for name in names:
        if name not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}")
    return [known[name] for name in names]


def compare(
    bench: Bench, shape: Shape, traffics: Sequence[Traffic], *, rounds: int, against: Path | None
) -> dict[str, list[Figures]]:
    """Every contestant's runs; `against` is another checkout, compared with this one.

    Raises UncountedError, WrkError, ClientError, TargetError.
    """
    with _contestants(bench, shape, traffics, against) as contestants:
        runs = alternate(bench, shape.name, contestants, rounds=rounds)
    check_books(contestants)
    return runs


def alternate(
    bench: Bench, name: str, contestants: Sequence[Contestant], *, rounds: int
) -> dict[str, list[Figures]]:
    """Warm all up, then one after the other, forwards in one round and backwards in the next. Raises as `compare`."""
    runs: dict[str, list[Figures]] = {one.name: [] for one in contestants}
    for one in contestants:
        bench.load(one.measurement, one.target, one.books, WARM_UP_S)
    for number in range(rounds):
        for one in contestants if number % 2 == 0 else reversed(contestants):
            figures = bench.counted(one.measurement, one.target, one.books)
            runs[one.name].append(figures)
            bench.say(f"{name}: {one.name}: {short(figures, one.measurement.shape.unit)}")
    return runs


def check_books(contestants: Sequence[Contestant]) -> None:
    """All their ledgers add up, once nobody is served any more. Raises UncountedError."""
    for books in {one.books.folder: one.books for one in contestants}.values():
        books.check_clean()


@contextlib.contextmanager
def _contestants(
    bench: Bench, shape: Shape, traffics: Sequence[Traffic], against: Path | None
) -> Iterator[list[Contestant]]:
    """One vendor, and one proxy of each version; each contestant's answers checked."""
    folder = bench.folder / f"compare-{shape.name}"
    measurements = [found for traffic in traffics if (found := measurement_of(shape, traffic)) is not None]
    with contextlib.ExitStack() as stack:
        vendor = stack.enter_context(bench.vendor(shape, folder))
        versions = [("", targets.ROOT)] if against is None else [(THERE, against), (HERE, targets.ROOT)]
        contestants: list[Contestant] = []
        for version, tree in versions:
            books = _books_of(tree, folder / (version.strip(" ()") or "books"))
            proxy = stack.enter_context(
                targets.proxy(books.folder, vendor, core=bench.cores.proxy, environ=books.environ, tree=tree)
            )
            for measurement in measurements:
                bench.check_answers(measurement, vendor, (proxy,), books)
                contestants.append(Contestant(measurement.traffic.name + version, measurement, proxy, books))
        yield contestants


def _books_of(tree: Path, folder: Path) -> Books:
    """A store as the version in `tree` has it, with users. Raises TargetError."""
    if tree == targets.ROOT:
        return Books.open(folder, users=USERS)
    make = (
        f"import pathlib, bench.books; bench.books.Books.open(pathlib.Path({str(folder)!r}), users={USERS})"
    )
    made = subprocess.run(
        [sys.executable, "-c", make],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=BOOKS_MADE_WITHIN_S,
        check=False,
    )
    if made.returncode:
        raise TargetError(f"{tree}: no store could be made: {made.stderr[-1_000:]}")
    return Books(folder, folder / "tokens", tree)


def beside(rounds: Rounds, name: str) -> str:
    """What a contestant is measured by: its own traffic on the other version, or the first contestant."""
    if name.endswith((HERE, THERE)):
        return name.removesuffix(HERE).removesuffix(THERE) + THERE
    return next(iter(rounds))


def ratios(rounds: Rounds, name: str) -> list[float]:
    """CPU per request beside that, round by round."""
    other = rounds[beside(rounds, name)]
    return [one["cpu_us"] / another["cpu_us"] for one, another in zip(rounds[name], other, strict=True)]


def comparison_table(title: str, rounds: Rounds) -> str:
    """Medians and ratios, and every single run."""
    lines = [
        title,
        "",
        "| | per second, median | CPU us each, median | ratio, median (lowest to highest) | CPU us each, every run |",
        "|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for name, runs in rounds.items():
        found = ratios(rounds, name)
        single = " ".join(f"{run['cpu_us']:.0f}" for run in runs)
        rate, middle = (median([run[key] for run in runs]) for key in ("per_s", "cpu_us"))
        spread = f"{median(found):.3f} ({min(found):.3f} to {max(found):.3f})"
        notes += [
            f"{name}: {share:.2%} of the requests went on a connection that was open already"
            for share in {run["reused_share"] for run in runs if "reused_share" in run}
        ]
        lines.append(f"| {name} | {rate:,.0f} | {middle:.0f} | {spread} | {single} |")
    return "\n".join([*lines, "", *notes] if notes else lines)
