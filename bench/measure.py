"""The measurements: what is sent, to whom, how often; and what one run yields."""

import contextlib
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from bench import inside, native, targets, wrk
from bench.beside import asking
from bench.books import Books, check_bound, check_count
from bench.machine import Cores, core_times, cpu_s, rss_mb
from bench.native import BURSTS, FIXED, PACED
from bench.open_loop import raw_requests
from bench.targets import PROXY, ROOT, Target
from bench.traffic import (
    ANTHROPIC,
    BURST_EVENTS,
    OPENAI_UNASKED,
    TRAFFICS,
    Traffic,
    huge_request,
    long_request,
    small_request,
)

USERS = 64
WARM_UP_S = 2.0
LATENCY_RATE = 300
CLIENT_ENDS_WITHIN_S = 60.0
"""Beyond its duration; then our own client hangs."""

OK = 200
STALL = "automna_loop_lag_seconds"
"""How late its event loop was at worst."""
NEW_ID = re.compile(rb"(?<=resp_)[0-9a-f]{32}")

Figures = dict[str, float]
"""One run, by name with the unit last."""


WRK, OPEN_LOOP, PACED_CLIENT = "wrk", "open_loop", "paced"


class Body(Enum):
    """How long a request is."""

    SMALL, LONG, HUGE = "2 KB", "100 KB", "5 MB"


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of load."""

    name: str
    title: str
    vendor: str
    client: str
    connections: int
    unit: str = "requests"
    body: Body = Body.SMALL
    is_compared: bool = True
    """Measured for every vendor, not for Anthropic alone."""

    has_beside: bool = False
    """Somebody else is served beside it, whose waiting is measured."""

    has_commits: bool = False
    """It is told how many group commits of the ledger it took."""

    @property
    def is_streaming(self) -> bool:
        return self.vendor != FIXED


@dataclass(frozen=True, slots=True)
class Measurement:
    """A kind of load on one vendor's endpoint."""

    shape: Shape
    traffic: Traffic

    @property
    def name(self) -> str:
        return self.shape.name if self.traffic is ANTHROPIC else f"{self.shape.name}:{self.traffic.name}"

    @property
    def title(self) -> str:
        return self.shape.title if self.traffic is ANTHROPIC else f"{self.shape.title}: {self.traffic.title}"

    def body(self) -> bytes:
        if self.shape.body is Body.SMALL:
            return small_request(self.traffic, is_streaming=self.shape.is_streaming)
        return (long_request if self.shape.body is Body.LONG else huge_request)(self.traffic)


SHAPES = (
    Shape("requests", "2 KB requests, 64 connections", FIXED, WRK, 64, has_commits=True),
    Shape("bursts", "bursts of 60-event streams, 16 connections", BURSTS, WRK, 16, "streams"),
    Shape(
        "latency",
        f"latency at {LATENCY_RATE} requests/s offered",
        FIXED,
        OPEN_LOOP,
        8,
        is_compared=False,
        has_commits=True,
    ),
    Shape("long", "100 KB requests, 16 connections", FIXED, WRK, 16, body=Body.LONG),
    Shape(
        "huge",
        "5 MB requests, 4 connections",
        FIXED,
        WRK,
        4,
        body=Body.HUGE,
        is_compared=False,
        has_beside=True,
    ),
    Shape(
        "paced", "400 paced streams, 50 events/s each", PACED, PACED_CLIENT, 400, "streams", is_compared=False
    ),
)


def measurement_of(shape: Shape, traffic: Traffic) -> Measurement | None:
    """None where it would measure what another one does: usage is asked for in streams only."""
    is_same = traffic is OPENAI_UNASKED and not shape.is_streaming
    return None if is_same or not (shape.is_compared or traffic is ANTHROPIC) else Measurement(shape, traffic)


MEASUREMENTS = tuple(
    measurement
    for traffic in TRAFFICS
    for shape in SHAPES
    if (measurement := measurement_of(shape, traffic)) is not None
)
"""Anthropic's come first: the figures that are followed from version to version."""


class ClientError(RuntimeError):
    """A load generator of our own failed, or saw what it should not."""


@contextlib.contextmanager
def nobody(*_: object) -> Iterator[Callable[[], None]]:
    """No guests."""
    yield lambda: None


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how long; runs measurements one after the other."""

    folder: Path
    cores: Cores
    seconds: float
    repeats: int
    say: Callable[[str], None]
    has_phases: bool = False
    """The proxy takes the time of its phases."""

    def run(self, measurement: Measurement, guests: "Guests" = nobody) -> dict[str, list[Figures]]:
        """All runs of ours by target; guests have theirs at the end of each round. Raises UncountedError, WrkError,
        ClientError, TargetError."""
        folder, shape, cores = self.folder / measurement.name.replace(":", "-"), measurement.shape, self.cores
        books = Books.open(folder / "books", users=USERS)
        runs: dict[str, list[Figures]] = {}
        with contextlib.ExitStack() as stack:
            vendor = stack.enter_context(self.vendor(shape, folder))
            nginx = stack.enter_context(
                targets.nginx_proxy(
                    folder / "nginx", vendor, core=cores.proxy, is_streaming=shape.is_streaming
                )
            )
            proxy = stack.enter_context(
                targets.proxy(books.folder, vendor, core=cores.proxy, environ=self.environ(books))
            )
            self.check_answers(measurement, vendor, (nginx, proxy), books)
            all_targets = (vendor, nginx, proxy)
            for target in all_targets:
                self.load(measurement, target, books, WARM_UP_S)
            run_guests = stack.enter_context(guests(self, measurement, vendor, books))
            for repeat in range(self.repeats):
                for target in all_targets[1 if repeat else 0 :]:  # the vendor alone: once
                    figures = self.counted(measurement, target, books)
                    runs.setdefault(target.name, []).append(figures)
                    self.say(f"{measurement.name}: {target.name}: {short(figures, shape.unit)}")
                run_guests()
        books.check_clean()
        kinds = books.kinds()
        self.say(f"{measurement.name}: ledger clean, {kinds}")
        return runs

    def environ(self, books: Books) -> dict[str, str]:
        """The settings of a proxy that is measured."""
        return {**books.environ, "PHASE_TIMES": "on"} if self.has_phases else books.environ

    def vendor(self, shape: Shape, folder: Path) -> contextlib.AbstractContextManager[Target]:
        """The vendor that a kind of load needs; it answers every kind of traffic."""
        return targets.vendor(folder / "vendor", shape.vendor, core=self.cores.vendor)

    def check_answers(
        self, measurement: Measurement, vendor: Target, others: Sequence[Target], books: Books
    ) -> None:
        """Before anything is timed: what comes through is what the vendor sends. Raises ClientError."""
        expected = self.answer(measurement, vendor, books)
        for target in others:
            answer = self.answer(measurement, target, books)
            passed = measurement.traffic.passed(expected) if target.name == PROXY else expected
            if measurement.shape.vendor != PACED and answer != passed:  # stamps differ
                raise ClientError(f"{target.name} answered: {answer[:500]!r}")

    def answer(self, measurement: Measurement, target: Target, books: Books) -> bytes:
        """Of one request by itself, without its ids, which are new in each. Raises ClientError where it is no 200."""
        token = books.tokens.read_text(encoding="ascii").split()[0]
        is_streaming = measurement.shape.is_streaming
        status, answer = targets.ask(
            target, measurement.traffic, token, measurement.body(), is_streaming=is_streaming
        )
        if status != OK:
            raise ClientError(f"{target.name} answered {status}: {answer[:500]!r}")
        return NEW_ID.sub(b"", answer)

    def counted(self, measurement: Measurement, target: Target, books: Books) -> Figures:
        """A run between two readings of all clocks, and of the ledger where it is the proxy's."""
        is_proxy = target.name == PROXY
        ids_each = measurement.traffic.ids_each if is_proxy else 0
        settled, bound = books.settled() if is_proxy else 0, books.bound() if ids_each else 0
        is_told = is_proxy and (measurement.shape.has_commits or self.has_phases)
        told = targets.metrics(target) if is_told else {}
        core = self.cores.proxy if target.name != "vendor" else self.cores.vendor
        process_s, own, load, began_s = (
            cpu_s(target.pid),
            core_times(core),
            core_times(self.cores.load),
            time.monotonic(),
        )
        with contextlib.ExitStack() as stack:
            beside = stack.enter_context(asking(target.origin)) if measurement.shape.has_beside else None
            figures = self.load(measurement, target, books, self.seconds)
        if beside is not None:
            figures |= beside.figures()
            if is_proxy:
                figures["stall_ms"] = targets.gauge(target, STALL) * 1000
        wall_s = time.monotonic() - began_s
        own_after, load_after = core_times(core), core_times(self.cores.load)
        process_s = cpu_s(target.pid) - process_s
        answers = round(figures["answers"])
        if is_told:
            told_after = targets.metrics(target)
            if measurement.shape.has_commits:
                figures |= inside.commits(told, told_after, answers=answers)
            figures |= inside.phase_times(told, told_after) if self.has_phases else {}
        if is_proxy:
            entries = books.settled() - settled
            in_flight_max = measurement.shape.connections if measurement.shape.client == WRK else 0
            check_count(entries=entries, answers=answers, in_flight_max=in_flight_max)
            if ids_each:
                check_bound(bound=books.bound() - bound, entries=entries, ids_each=ids_each)
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

    def load(self, measurement: Measurement, target: Target, books: Books, seconds: float) -> Figures:
        """Load a target for so long, uncounted. Raises WrkError, ClientError."""
        shape, traffic = measurement.shape, measurement.traffic
        body = books.folder / f"body-{measurement.name.replace(':', '-')}"
        if not body.exists():
            body.write_bytes(measurement.body())
        tokens = books.tokens
        if target.token:
            tokens = body.with_suffix(f".{target.name}.token")
            tokens.write_text(f"{target.token}\n", encoding="ascii")
        load = wrk.Load(
            tokens,
            body,
            target.path_to(traffic, is_streaming=shape.is_streaming),
            traffic.gateway_header,
            traffic.scheme,
            {**traffic.headers, **target.headers},
            shape.connections,
        )
        if shape.client != WRK:
            return self._own_client(shape, target, load, seconds)
        result = wrk.run(target.origin, load, seconds=seconds, core=self.cores.load)
        if result.good_answers <= 0 or (target.is_ours and not result.is_clean):
            raise ClientError(f"{target.name}: not every answer was good: {result}")
        return {
            "answers": result.good_answers,
            "bad_answers": result.bad_statuses,
            "broken": result.socket_errors,
            "duration_s": result.duration_s,
            "p50_ms": result.p50_ms,
            "p99_ms": result.p99_ms,
        }

    def _own_client(self, shape: Shape, target: Target, load: wrk.Load, seconds: float) -> Figures:
        origin, body = target.origin, load.body
        if shape.client == PACED_CLIENT:
            requests = body.with_suffix(".requests")
            users = load.tokens.read_text(encoding="ascii").split()
            raw = raw_requests(load.path, users, body.read_bytes(), target.headers)
            requests.write_bytes(native.requests_file(raw))
            port = origin.rpartition(":")[2]
            amounts = (str(BURST_EVENTS), str(shape.connections), str(seconds))
            client = [str(native.built("paced")), port, str(requests), *amounts]
        else:
            asked = (origin, load.path, str(load.tokens), str(body), str(LATENCY_RATE), str(seconds))
            client = [sys.executable, "-m", "bench.open_loop", *asked]
        arguments = [wrk.find("taskset"), "-c", str(self.cores.load), *client]
        finished = subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
            timeout=seconds + CLIENT_ENDS_WITHIN_S,
        )
        if finished.returncode:
            raise ClientError(f"{origin}: {finished.stderr.strip()[-1_000:]}")
        figures: Figures = json.loads(finished.stdout)
        return figures


Guests = Callable[[Bench, Measurement, Target, Books], contextlib.AbstractContextManager[Callable[[], None]]]
"""Further servers before the same vendor: begins them, and gives what runs each of them once. Raises nothing: what
happens to guests is theirs to tell."""


def short(figures: Figures, unit: str) -> str:
    """One run in one line."""
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
