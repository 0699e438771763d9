"""The same load on the proxy as it is, and in other circumstances: with a history, with many users, with two workers,
with TLS to the vendor. Both run in turns, as in any comparison.

How many users there are and how long the ledger is must make no difference: what a request costs may not grow with either.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench import targets
from bench.books import Books
from bench.compare import Contestant, Rounds, alternate, check_books
from bench.measure import SHAPES, USERS, Bench, ClientError, Measurement
from bench.targets import Target
from bench.traffic import ANTHROPIC

REQUESTS = Measurement(SHAPES[0], ANTHROPIC)
FEW_USERS, MANY_USERS, MANY_ENTRIES = 10, 100_000, 1_000_000
QUICK_DIVISOR = 200
"""What a quick run is smaller by."""
VISIT_S, VISITS_MAX = 2.0, 10


@dataclass(frozen=True, slots=True)
class Circumstances:
    """One of the two that are compared."""

    name: str
    users: int = USERS
    tokens_sent: int | None = None
    """How long the load generator's list is. It must not differ where users do: a long one takes caches that others use."""
    entries: int = 0
    """In the ledger, from before."""
    workers: int = 1
    has_tls: bool = False


@dataclass(frozen=True, slots=True)
class Variant:
    """Circumstances beside the usual ones, which come first."""

    name: str
    title: str
    sides: tuple[Circumstances, Circumstances]

    def quick(self) -> "Variant":
        usual, varied = self.sides
        return replace(self, sides=(_smaller(usual), _smaller(varied)))


def _smaller(side: Circumstances) -> Circumstances:
    if side.tokens_sent is not None:
        tokens_sent = side.tokens_sent // QUICK_DIVISOR
        return _crowd(min(side.users, tokens_sent), tokens_sent)
    return _history(side.entries // QUICK_DIVISOR) if side.entries else side


def _crowd(users: int, tokens_sent: int) -> Circumstances:
    return Circumstances(f"{users:,}", users=users, tokens_sent=tokens_sent)


def _history(entries: int) -> Circumstances:
    return Circumstances(f"{entries:,}", entries=entries)


VARIANTS = (
    Variant(
        "history",
        "2 KB requests, by entries in the ledger",
        (Circumstances("none"), _history(MANY_ENTRIES)),
    ),
    Variant(
        "population",
        "2 KB requests, by users, all of them active",
        (_crowd(FEW_USERS, MANY_USERS), _crowd(MANY_USERS, MANY_USERS)),
    ),
    Variant(
        "workers",
        "2 KB requests, by workers (on the one core)",
        (Circumstances("one"), Circumstances("two", workers=2)),
    ),
    Variant(
        "tls",
        "2 KB requests, by the connection to the vendor",
        (Circumstances("plain"), Circumstances("TLS", has_tls=True)),
    ),
)


def vary(bench: Bench, variant: Variant, *, rounds: int) -> Rounds:
    """Both sides' runs. Raises UncountedError, WrkError, ClientError, TargetError."""
    folder = bench.folder / variant.name
    with contextlib.ExitStack() as stack:
        vendor = stack.enter_context(bench.vendor(REQUESTS.shape, folder))
        sides = [
            stack.enter_context(_side(bench, side, folder / f"side{number}", vendor))
            for number, side in enumerate(variant.sides)
        ]
        contestants = [contestant for contestant, _ in sides]
        runs = alternate(bench, variant.name, contestants, rounds=rounds)
        for contestant, reused in sides:
            if reused is not None:
                share = reused()
                runs[contestant.name] = [run | {"reused_share": share} for run in runs[contestant.name]]
    check_books(contestants)
    return runs


@contextlib.contextmanager
def _side(
    bench: Bench, side: Circumstances, folder: Path, vendor: Target
) -> Iterator[tuple[Contestant, Callable[[], float] | None]]:
    """And, where connections cost the most, how to learn which share of the requests opened none."""
    books = Books.open(folder, users=side.users, listed=side.tokens_sent)
    if side.entries:
        _give_history(bench, books, vendor, side.entries)
    with contextlib.ExitStack() as stack:
        environ, upstream, reused = books.environ, vendor, None
        if side.has_tls:
            upstream, authority = stack.enter_context(
                targets.tls_vendor(folder / "tls", vendor, core=bench.cores.vendor)
            )
            environ = {**environ, "SSL_CERT_FILE": str(authority)}
            reused = partial(targets.reuse_share, upstream, authority)
        proxy = stack.enter_context(
            targets.proxy(folder, upstream, core=bench.cores.proxy, environ=environ, workers=side.workers)
        )
        bench.check_answers(REQUESTS, vendor, (proxy,), books)
        if side.users > USERS:
            _visit_all(bench, books, proxy)
        yield Contestant(side.name, REQUESTS, proxy, books), reused


def _give_history(bench: Bench, books: Books, vendor: Target, entries: int) -> None:
    """Requests of each user, and then so many copies of what they left."""
    with targets.proxy(books.folder, vendor, core=bench.cores.proxy, environ=books.environ) as proxy:
        _visit_all(bench, books, proxy)
    books.add_history(entries)
    bench.say(f"a ledger of {entries:,} entries")


def _visit_all(bench: Bench, books: Books, proxy: Target) -> None:
    """Load until every user has asked: the first time is another one, with a look into the store. Raises ClientError."""
    users, seconds = books.users(), VISIT_S
    for _ in range(VISITS_MAX):
        before = books.users_who_asked()
        load = bench.load(REQUESTS, proxy, books.of_users_who_have_not_asked(), seconds)
        asked = books.users_who_asked()
        if asked == users:
            return
        seconds = max(VISIT_S, (users - asked) / max(1, asked - before) * load["duration_s"])
    raise ClientError(f"{asked} of {users} users have asked in {VISITS_MAX} runs")
