"""The measurements: what is sent, to whom, how often; and what one run yields."""

import contextlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import targets, wrk
from bench.books import Books, check_count
from bench.machine import Cores, core_times, cpu_s, rss_mb
from bench.targets import ROOT, Target
from bench.traffic import PATH, long_request, small_request

USERS = 64
WARM_UP_S = 2.0
LATENCY_RATE = 300
CLIENT_ENDS_WITHIN_S = 60.0
"""Beyond its duration; then our own client hangs."""

Figures = dict[str, float]
"""One run, by name with the unit last."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A kind of load. `vendor`: `fixed` (nginx with one body), `bursts` or `paced`."""

    name: str
    title: str
    vendor: str
    body: Callable[[], bytes]
    client: str
    connections: int
    unit: str = "requests"


MEASUREMENTS = (
    Measurement("requests", "2 KB requests, 64 connections", "fixed", small_request, "wrk", 64),
    Measurement(
        "bursts",
        "bursts of 60-event streams, 16 connections",
        "bursts",
        lambda: small_request(stream=True),
        "wrk",
        16,
        "streams",
    ),
    Measurement(
        "latency", f"latency at {LATENCY_RATE} requests/s offered", "fixed", small_request, "open_loop", 8
    ),
    Measurement("long", "100 KB requests, 16 connections", "fixed", long_request, "wrk", 16),
    Measurement(
        "paced",
        "400 paced streams, 50 events/s each",
        "paced",
        lambda: small_request(stream=True),
        "paced",
        400,
        "streams",
    ),
)


class ClientError(RuntimeError):
    """A load generator of our own failed, or saw what it should not."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how long; runs measurements one after the other."""

    folder: Path
    cores: Cores
    seconds: float
    repeats: int
    say: Callable[[str], None]

    def run(self, measurement: Measurement) -> dict[str, list[Figures]]:
        """All runs by target. Raises UncountedError, WrkError, ClientError, TargetError."""
        folder = self.folder / measurement.name
        books = Books.open(folder / "books", users=USERS)
        body = folder / "body"
        body.write_bytes(measurement.body())
        runs: dict[str, list[Figures]] = {}
        with self._targets(measurement, books) as all_targets:
            self._check_answers(measurement, all_targets, books, body)
            for target in all_targets:
                self._load(measurement, target, books, body, WARM_UP_S)
            for repeat in range(self.repeats):
                for target in all_targets[1 if repeat else 0 :]:  # the vendor alone: once
                    figures = self._counted(measurement, target, books, body)
                    runs.setdefault(target.name, []).append(figures)
                    self.say(f"{measurement.name}: {target.name}: {_short(figures, measurement.unit)}")
        books.check_clean()
        kinds = books.kinds()
        self.say(f"{measurement.name}: ledger clean, {kinds}")
        return runs

    @contextlib.contextmanager
    def _targets(self, measurement: Measurement, books: Books) -> Iterator[tuple[Target, Target, Target]]:
        folder, cores = self.folder / measurement.name, self.cores
        is_streaming = measurement.vendor != "fixed"
        with contextlib.ExitStack() as stack:
            if is_streaming:
                is_paced = measurement.vendor == "paced"
                vendor = stack.enter_context(
                    targets.stream_vendor(folder / "vendor", core=cores.vendor, is_paced=is_paced)
                )
            else:
                vendor = stack.enter_context(targets.nginx_vendor(folder / "vendor", core=cores.vendor))
            nginx = stack.enter_context(
                targets.nginx_proxy(folder / "nginx", vendor, core=cores.proxy, is_streaming=is_streaming)
            )
            proxy = stack.enter_context(
                targets.proxy(books.folder, vendor, core=cores.proxy, environ=books.environ)
            )
            yield vendor, nginx, proxy

    def _check_answers(
        self, measurement: Measurement, all_targets: tuple[Target, ...], books: Books, body: Path
    ) -> None:
        """Before anything is timed: the same bytes from all."""
        token = books.tokens.read_text(encoding="ascii").split()[0]
        answers = [targets.ask(target, PATH, token, body.read_bytes()) for target in all_targets]
        for target, (status, answer) in zip(all_targets, answers, strict=True):
            is_same = measurement.vendor == "paced" or answer == answers[0][1]  # stamps differ
            if status != 200 or not is_same:
                raise ClientError(f"{target.name} answered {status}: {answer[:500]!r}")

    def _counted(self, measurement: Measurement, target: Target, books: Books, body: Path) -> Figures:
        """A run between two readings of all clocks, and of the ledger where it is the proxy's."""
        is_proxy = target.name == "automna-proxy"
        settled = books.settled() if is_proxy else 0
        core = self.cores.proxy if target.name != "vendor" else self.cores.vendor
        process_s, own, load, began_s = (
            cpu_s(target.pid),
            core_times(core),
            core_times(self.cores.load),
            time.monotonic(),
        )
        figures = self._load(measurement, target, books, body, self.seconds)
        wall_s = time.monotonic() - began_s
        own_after, load_after = core_times(core), core_times(self.cores.load)
        process_s = cpu_s(target.pid) - process_s
        answers = round(figures["answers"])
        if is_proxy:
            entries = books.settled() - settled
            in_flight_max = measurement.connections if measurement.client == "wrk" else 0
            check_count(entries=entries, answers=answers, in_flight_max=in_flight_max)
            figures["entries"] = entries
        others_s = max(0.0, own_after.busy_s - own.busy_s - process_s)
        return figures | {
            "per_s": answers / figures["duration_s"],
            "cpu_us": process_s / answers * 1e6,
            "core_share": process_s / wall_s,
            "others_share": others_s / wall_s,
            "steal_share": (own_after.steal_s - own.steal_s) / wall_s,
            "load_core_idle_share": (load_after.idle_s - load.idle_s) / wall_s,
            "rss_mb": rss_mb(target.pid),
            "rss_peak_mb": rss_mb(target.pid, "VmHWM"),
        }

    def _load(
        self, measurement: Measurement, target: Target, books: Books, body: Path, seconds: float
    ) -> Figures:
        if measurement.client != "wrk":
            return self._own_client(measurement, target, books, body, seconds)
        load = wrk.Load(books.tokens, body, target.prefix + PATH, measurement.connections)
        result = wrk.run(target.origin, load, seconds=seconds, core=self.cores.load)
        if not result.is_clean:
            raise ClientError(f"{target.name}: not every answer was good: {result}")
        return {
            "answers": result.answers,
            "duration_s": result.duration_s,
            "p50_ms": result.p50_ms,
            "p99_ms": result.p99_ms,
        }

    def _own_client(
        self, measurement: Measurement, target: Target, books: Books, body: Path, seconds: float
    ) -> Figures:
        amount = LATENCY_RATE if measurement.client == "open_loop" else measurement.connections
        arguments = [
            wrk.find("taskset"),
            *("-c", str(self.cores.load), sys.executable, "-m", f"bench.{measurement.client}"),
            *(target.origin, target.prefix + PATH, str(books.tokens), str(body), str(amount), str(seconds)),
        ]
        finished = subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
            timeout=seconds + CLIENT_ENDS_WITHIN_S,
        )
        if finished.returncode:
            raise ClientError(f"{target.name}: {finished.stderr.strip()[-1_000:]}")
        figures: Figures = json.loads(finished.stdout)
        return figures


def _short(figures: Figures, unit: str) -> str:
    latency = next(
        (f", p99 {figures[key]:.2f} ms" for key in ("p99_ms", "first_byte_p99_ms") if key in figures), ""
    )
    return (
        f"{figures['per_s']:,.0f} {unit}/s, {figures['cpu_us']:,.0f} us CPU{latency} (load core idle "
        f"{figures['load_core_idle_share']:.0%}, others on its core {figures['others_share']:.0%})"
    )


def median(values: list[float]) -> float:
    """Raises ValueError for no values."""
    if not values:
        raise ValueError("median: no values")
    ranked = sorted(values)
    middle = len(ranked) // 2
    return ranked[middle] if len(ranked) % 2 else math.fsum(ranked[middle - 1 : middle + 1]) / 2
