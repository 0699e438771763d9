"""`python -m bench`, which is `make bench`: every measurement, a table, and the figures as JSON."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.books import UncountedError
from bench.machine import Cores, description, filesystem_of
from bench.measure import MEASUREMENTS, Bench, ClientError
from bench.report import FLOOR_PER_S, below_floor, document
from bench.targets import TargetError
from bench.wrk import WrkError
from metering.clock import SystemClock, utc

RESULTS = Path(__file__).parent / "results"
MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")
SECONDS, REPEATS = 8.0, 3
QUICK_SECONDS, QUICK_REPEATS = 2.0, 1
BELOW_FLOOR, CANNOT_MEASURE = 1, 2


def options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [measurement.name for measurement in MEASUREMENTS]
    parser.add_argument("--quick", action="store_true", help="one short run of each: does it work at all?")
    parser.add_argument("--seconds", type=_seconds, help=f"of each run (default {SECONDS:g})")
    parser.add_argument("--repeats", type=_repeats, help=f"of each measurement (default {REPEATS})")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help=f"may be repeated: {', '.join(names)}"
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
    chosen.seconds = chosen.seconds or (QUICK_SECONDS if chosen.quick else SECONDS)
    chosen.repeats = chosen.repeats or (QUICK_REPEATS if chosen.quick else REPEATS)
    if chosen.only is None:
        chosen.only = list(FLOOR_PER_S) if chosen.check else names
    return chosen


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
        return CANNOT_MEASURE
    try:
        cores = Cores.assign(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores.load})
        with tempfile.TemporaryDirectory(prefix="automna-bench-", dir=chosen.folder) as folder:
            bench = Bench(Path(folder), cores, chosen.seconds, chosen.repeats, _say)
            runs = {one.name: bench.run(one) for one in MEASUREMENTS if one.name in chosen.only}
    except (UncountedError, WrkError, ClientError, TargetError, ValueError) as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return CANNOT_MEASURE
    machine["placement"] = f"proxies on core {cores.proxy}, vendor on {cores.vendor}, load on {cores.load}"
    print("\n" + "\n".join(f"{key}: {value}" for key, value in machine.items()))
    print(f"{chosen.repeats} runs of {chosen.seconds:g} s, metering on, synchronous=FULL\n")
    print(document(runs))
    print(f"\n{_keep(machine, runs)}")
    problems = below_floor(runs)
    for problem in problems:
        print(f"below the floor: {problem}", file=sys.stderr)
    return BELOW_FLOOR if problems and chosen.check else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _today() -> str:
    return utc(SystemClock().now_ms()).strftime("%Y-%m-%d %H:%M UTC")


def _keep(machine: dict[str, str], runs: object) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{machine['date'].replace(' UTC', '').replace(' ', 'T').replace(':', '')}.json"
    path.write_text(json.dumps({"machine": machine, "runs": runs}, indent=1), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
