"""`python -m bench`, which is `make bench`: what the documentation shows, in tables there, here and as JSON; or, with
--compare, kinds of traffic in alternating runs."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench.books import UncountedError
from bench.compare import Rounds, compare, comparison_table, traffics_named
from bench.machine import Cores, description, filesystem_of
from bench.measure import MEASUREMENTS, SHAPES, Bench, ClientError, Figures, nobody
from bench.native import NativeError
from bench.peers.runs import MEASURED, PeerRuns
from bench.report import FLOOR_PER_S, below_floor, circumstances, document, publish
from bench.targets import TargetError
from bench.traffic import ANTHROPIC, TRAFFICS, Traffic
from bench.variants import VARIANTS, vary
from bench.wrk import WrkError
from metering.clock import SystemClock, utc

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")
SECONDS, REPEATS = 5.0, 3
VARIED_SECONDS, VARIED_ROUNDS = 3.0, 5
"""Of the variants, which are compared as versions are."""
COMPARED_SECONDS, ROUNDS = 4.0, 7
"""Short runs, and many: what disturbs one round is in all of it."""
QUICK_SECONDS, QUICK_REPEATS = 2.0, 1
BELOW_FLOOR, CANNOT_MEASURE = 1, 2


def options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    variants = [variant.name for variant in VARIANTS]
    names = [one.name for one in MEASUREMENTS] + variants
    own = [one.name for one in MEASUREMENTS if one.traffic is ANTHROPIC] + variants
    parser.add_argument("--quick", action="store_true", help="one short run of each: does it work at all?")
    parser.add_argument(
        "--all", action="store_true", help="the other vendors' too, which takes three times as long"
    )
    parser.add_argument("--seconds", type=_seconds, help=f"of each run (default {SECONDS:g})")
    parser.add_argument("--repeats", type=_repeats, help=f"of each measurement (default {REPEATS})")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help=f"may be repeated: {', '.join(names)}"
    )
    compared = [shape.name for shape in SHAPES if shape.is_compared]
    parser.add_argument(
        "shapes",
        nargs="*",
        metavar="SHAPE",
        type=_one_of(compared),
        help=f"with --compare: {', '.join(compared)} (default the first two)",
    )
    parser.add_argument(
        "--compare",
        type=_traffics,
        metavar="TRAFFIC,...",
        help="alternate these in one run of one proxy: " + ",".join(one.name for one in TRAFFICS),
    )
    parser.add_argument("--rounds", type=_repeats, help=f"of a comparison (default {ROUNDS})")
    parser.add_argument(
        "--against",
        type=_folder,
        metavar="FOLDER",
        help="with --compare: another checkout of the proxy, run beside this one",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help=f"gateways of the field beside it, as far as `make peers` has installed them: {', '.join(MEASURED)}",
    )
    parser.add_argument(
        "--phases",
        action="store_true",
        help="the proxy takes the time of its phases, which is shown under each table, and costs it some",
    )
    floor = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in FLOOR_PER_S.items())
    parser.add_argument("--check", action="store_true", help=f"exit with status 1 below the floor: {floor}")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("/var/tmp"),
        help="where the ledgers lie, on a disk (default /var/tmp)",
    )
    chosen = parser.parse_args(arguments)
    if not chosen.compare and (chosen.shapes or chosen.rounds or chosen.against):
        parser.error("shapes, --rounds and --against are for --compare")
    usual_s = COMPARED_SECONDS if chosen.compare else SECONDS
    chosen.seconds = chosen.seconds or (QUICK_SECONDS if chosen.quick else usual_s)
    chosen.repeats = chosen.repeats or (QUICK_REPEATS if chosen.quick else REPEATS)
    chosen.rounds = chosen.rounds or (QUICK_REPEATS if chosen.quick else ROUNDS)
    chosen.shapes = [shape for shape in SHAPES if shape.name in (chosen.shapes or compared[:2])]
    is_part = chosen.quick or chosen.check or chosen.compare or chosen.phases
    chosen.is_documented = chosen.only is None and not is_part
    if chosen.only is None:
        chosen.only = list(FLOOR_PER_S) if chosen.check else names if chosen.all else own
        if chosen.phases:
            chosen.only = [name for name in chosen.only if name not in variants]
    if chosen.phases and (chosen.compare or set(variants).intersection(chosen.only)):
        parser.error("--phases is not for --compare and variants: what is compared is as it is served")
    if chosen.peers and (chosen.compare or not set(MEASURED).intersection(chosen.only)):
        parser.error(f"--peers is for {', '.join(MEASURED)}")
    return chosen


def _folder(text: str) -> Path:
    return Path(text).resolve()


def _traffics(text: str) -> list[Traffic]:
    try:
        return traffics_named(text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    """As `choices`, which argparse cannot do for what may be left out."""

    def name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text}: expected one of {', '.join(names)}")
        return text

    return name


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def _repeats(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise ValueError(text)
    return value


def main(arguments: Sequence[str]) -> int:
    chosen = options(arguments)
    machine = {**description(), "filesystem": filesystem_of(chosen.folder), "date": _today()}
    if machine["filesystem"].startswith(MEMORY_FILESYSTEMS):
        print(f"{chosen.folder} is {machine['filesystem']}: durability costs nothing there", file=sys.stderr)
        if not chosen.quick:  # which measures nothing
            return CANNOT_MEASURE
    peers = {name: PeerRuns() for name in MEASURED if chosen.peers}
    runs: dict[str, dict[str, list[Figures]]] = {}
    varied: dict[str, Rounds] = {}
    failure: Exception | None = None
    try:
        cores = Cores.assign(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores.load})
        with tempfile.TemporaryDirectory(prefix="automna-bench-", dir=chosen.folder) as folder:
            bench = Bench(Path(folder), cores, chosen.seconds, chosen.repeats, _say, chosen.phases)
            if chosen.compare:
                return _compare(bench, chosen, machine)
            for one in MEASUREMENTS:
                if one.name in chosen.only:
                    guests = peers[one.name].guests if one.name in peers else nobody
                    runs[one.name] = bench.run(one, guests)
            _vary(bench, chosen, varied)
    except (UncountedError, WrkError, ClientError, NativeError, TargetError, ValueError) as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        if not runs:
            return CANNOT_MEASURE
        failure = error  # what was measured before is shown all the same
    how = f"{chosen.repeats} runs of {chosen.seconds:g} s; variants: {QUICK_REPEATS if chosen.quick else VARIED_ROUNDS} rounds of {VARIED_SECONDS:g} s"
    how += ", phases timed" if chosen.phases else ""
    _show(machine, cores, how)
    text = document(runs, varied, peers)
    print(text)
    print(f"\n{_keep(machine, runs | varied, {name: asdict(one) for name, one in peers.items()})}")
    if failure is not None:
        return CANNOT_MEASURE
    if chosen.is_documented:
        publish(DOCUMENT, f"{circumstances(machine, how)}\n\n{text}")
    problems = below_floor(runs)
    for problem in problems:
        print(f"below the floor: {problem}", file=sys.stderr)
    return BELOW_FLOOR if problems and chosen.check else 0


def _vary(bench: Bench, chosen: argparse.Namespace, varied: dict[str, Rounds]) -> None:
    """Adds to `varied`, one after the other."""
    short = replace(bench, seconds=min(chosen.seconds, VARIED_SECONDS))
    rounds = QUICK_REPEATS if chosen.quick else VARIED_ROUNDS
    for one in VARIANTS:
        if one.name in chosen.only:
            varied[one.name] = vary(short, one.quick() if chosen.quick else one, rounds=rounds)


def _compare(bench: Bench, chosen: argparse.Namespace, machine: dict[str, str]) -> int:
    runs = {
        shape.name: compare(bench, shape, chosen.compare, rounds=chosen.rounds, against=chosen.against)
        for shape in chosen.shapes
    }
    _show(machine, bench.cores, f"{chosen.rounds} rounds, runs of {chosen.seconds:g} s")
    print("\n\n".join(comparison_table(shape.title, runs[shape.name]) for shape in chosen.shapes))
    print(f"\n{_keep(machine, runs)}")
    return 0


def _show(machine: dict[str, str], cores: Cores, how: str) -> None:
    machine["placement"] = f"proxies on core {cores.proxy}, vendor on {cores.vendor}, load on {cores.load}"
    print(f"\n{circumstances(machine, how)}\n")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _today() -> str:
    return utc(SystemClock().now_ms()).strftime("%Y-%m-%d %H:%M UTC")


def _keep(machine: dict[str, str], runs: object, peers: object = None) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{machine['date'].replace(' UTC', '').replace(' ', 'T').replace(':', '')}.json"
    path.write_text(
        json.dumps({"machine": machine, "runs": runs, "peers": peers}, indent=1), encoding="utf-8"
    )
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
