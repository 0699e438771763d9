"""The peers' runs of one measurement, round by round beside ours. What fails there is a finding: it is said, and that peer
is out of the measurement."""

import contextlib
import http.client
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.books import Books
from bench.measure import WARM_UP_S, Bench, ClientError, Figures, Measurement, short
from bench.native import PACED
from bench.peers.gateways import HERE, PEERS, Peer
from bench.targets import LOOPBACK, Target, TargetError, free_port, started, wait_for_port
from bench.wrk import WrkError

MEASURED = ("requests", "bursts", "long", "paced")
"""Anthropic's measurements that peers take part in."""
STARTED_WITHIN_S = 120.0
"""LiteLLM imports for half a minute on a busy core."""
STOPPED_WITHIN_S = 10.0
FAILURES = (
    ClientError,
    WrkError,
    TargetError,
    OSError,
    http.client.HTTPException,
    subprocess.SubprocessError,
    ValueError,
)
"""What a peer may do to a measurement."""
NOT_INSTALLED = "not installed (`make peers`)"
SAID_MAX = 150
"""Characters of what is said of a failure, from its beginning and from its end."""


@dataclass(slots=True)
class PeerRuns:
    """What the peers did in one measurement; `guests` is its way into the measurement (bench/measure.py)."""

    peers: Sequence[Peer] = PEERS
    runs: dict[str, list[Figures]] = field(default_factory=dict)
    """By row, in the order of the table."""
    findings: dict[str, str] = field(default_factory=dict)
    """By row: why it has no figures, or none of the later rounds."""
    notes: dict[str, str] = field(default_factory=dict)
    """By row: what it does, and what was wrong with its answers."""

    @contextlib.contextmanager
    def guests(
        self, bench: Bench, measurement: Measurement, vendor: Target, books: Books
    ) -> Iterator[Callable[[], None]]:
        with contextlib.ExitStack() as stack:
            contests = [
                _Contest(
                    self, bench, measurement, vendor, books, peer, stack.enter_context(contextlib.ExitStack())
                )
                for peer in self.peers
            ]
            for one in contests:
                one.begin()

            def run_all() -> None:
                for one in contests:
                    one.run_once()

            yield run_all

    def note(self, row: str, words: str) -> None:
        """Once each."""
        said = self.notes.get(row)
        if said is None or words not in said:
            self.notes[row] = f"{said}; {words}" if said else words


@dataclass(slots=True)
class _Contest:
    """One peer in one measurement, with a process of its own, which ends when it is out."""

    found: PeerRuns
    bench: Bench
    measurement: Measurement
    vendor: Target
    books: Books
    peer: Peer
    server: contextlib.ExitStack
    """Ends the process."""
    target: Target | None = None
    """None when it is out."""

    def begin(self) -> None:
        """Start it, look at an answer, warm it up."""
        self.found.note(self.peer.name, f"{self.peer.version()}, {self.peer.does}")
        with self._failing():
            target = self.server.enter_context(self._started())
            self._look(target)
            self.bench.load(self.measurement, target, self.books, WARM_UP_S)
            self.target = target

    def run_once(self) -> None:
        if self.target is None:
            return
        with self._failing():
            figures = self.bench.counted(self.measurement, self.target, self.books)
            self._look(self.target)
            self._keep(figures)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """What goes wrong within is said, and the peer is out: what it still has to do must not disturb others."""
        try:
            yield
        except FAILURES as error:
            words = _brief(str(error))
            self.found.findings[self.peer.name] = words
            self.target = None
            self.server.close()
            self.bench.say(f"{self.measurement.name}: {self.peer.name}: {words}")

    def _keep(self, figures: Figures) -> None:
        self.found.runs.setdefault(self.peer.name, []).append(figures)
        if bad := round(figures.get("bad_answers", 0) + figures.get("broken", 0)):
            total = round(figures["answers"]) + bad
            self.found.note(self.peer.name, f"of {total:,} answers in a run {bad:,} were bad or broken")
        line = short(figures, self.measurement.shape.unit)
        self.bench.say(f"{self.measurement.name}: {self.peer.name}: {line}")

    def _look(self, target: Target) -> None:
        """Other bytes than the vendor's are said; another status ends it. Raises ClientError."""
        expected = self.bench.answer(self.measurement, self.vendor, self.books)
        answer = self.bench.answer(self.measurement, target, self.books)
        if self.measurement.shape.vendor != PACED and answer != expected:  # stamps differ
            sizes = f"{len(answer):,} bytes instead of {len(expected):,}"
            self.found.note(self.peer.name, f"its answer is not the vendor's: {sizes}")

    @contextlib.contextmanager
    def _started(self) -> Iterator[Target]:
        """Raises TargetError."""
        program = self.peer.installed()
        if program is None:
            raise TargetError(NOT_INSTALLED)
        folder = self.books.folder.parent / self.peer.name
        folder.mkdir()
        port = free_port()
        places = {"here": str(HERE), "port": str(port), "vendor": self.vendor.origin}
        arguments = [str(program), *(one.format(**places) for one in self.peer.arguments)]
        environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
        log = folder / "log"
        with started(
            arguments,
            core=self.bench.cores.proxy,
            log=log,
            environ=environ | _filled(self.peer.environ, places),
            folder=folder,
            stopped_within_s=STOPPED_WITHIN_S,
        ) as process:
            wait_for_port(port, process, log, within_s=STARTED_WITHIN_S)
            yield Target(
                self.peer.name,
                f"http://{LOOPBACK}:{port}",
                has_mounts=False,
                pid=process.pid,
                is_ours=False,
                path=self.peer.path,
                token=self.peer.token,
                headers=_filled(self.peer.headers, places),
            )


def _filled(values: Mapping[str, str], places: Mapping[str, str]) -> dict[str, str]:
    return {name: value.format(**places) for name, value in values.items()}


def _brief(words: str) -> str:
    """In one line, which may stand in a table."""
    line = " ".join(words.replace(f"{HERE}/", "").replace("|", "/").split())
    return line if len(line) <= 2 * SAID_MAX else f"{line[:SAID_MAX]} ... {line[-SAID_MAX:]}"
