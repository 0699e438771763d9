"""What operators see: every metric name, and the one canonical line per exchange.

Labels are bounded (surface, operation, model of the price table, outcome, reason), never users or tokens.
With several workers the library's multi-process mode adds them up (PROMETHEUS_MULTIPROC_DIR).
"""

import asyncio
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from metering.admission import Caller
from metering.errors import Reason
from metering.ledger import Settlement
from metering.money import usd
from metering.prices import Priced, PriceTable
from metering.rate_state import RateState
from metering.store.writer import CommitStats, CommitTimes
from metering.usage import OUTPUT_UNITS, PROMPT_UNITS, SEARCH_UNITS
from proxy.counts import Buckets, Counts, Level, Spread
from proxy.exchange import Exchange
from proxy.surface import Surface

logger = logging.getLogger("automna_proxy.requests")
alarms = logging.getLogger("automna_proxy.alarms")

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
COMMIT_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
SHARED_METRICS = "PROMETHEUS_MULTIPROC_DIR"
"""The library's own variable, read as it reads it: several workers, each of which tells the metrics of all."""
MODEL_NAMES_MAX = 1_000
"""Names whose label is remembered; dated names share the label of their model."""

_UNITS = frozenset({*PROMPT_UNITS, *OUTPUT_UNITS, *SEARCH_UNITS})
"""Those that are labels of their own."""
Say = Callable[[str], None]
"""What gets the canonical lines."""
PATH_CHARS_MAX, SEGMENT_CHARS_MAX = 200, 24
"""Of a path that nobody serves, in a log line. Tokens and keys are longer than a segment may be."""
OWN = "own"
"""The surface of our own endpoints."""
OWN_EXCHANGE = "automna_proxy.exchange"
"""Where an ASGI scope has its `OwnExchange`."""
CLIENT_ERROR = 400
INTERNAL = "internal"
"""The outcome of what failed by a defect of ours; the ledger has what is known of it."""
OTHER = "other"
"""The label of what vendors or requests name and we do not know: names from outside must not make labels."""
_OWN_WORDS = frozenset(
    {
        "request",
        "surface",
        "status",
        "outcome",
        "ms",
        "gateway_token",
        "first_byte_ms",
        "cost_usd",
        "upstream_status",
        "client_left",
        "admitted_ms",
        "input_tokens",
        "output_tokens",
        "hold_usd",
        "estimated",
        "reason",
        "polls",
        "messages_up",
        "messages_down",
        "messages_dropped",
        "close_code",
    }
)
"""Fields of our own making: one word each, whatever happens."""
WORDS_MAX = 1_000
"""Other words remembered as they are written: operations, users and models come again."""
LAYOUTS_MAX = 1_000
"""Sets of fields, each with the look of its line: there are some dozens."""
_TIMES = ("ms", "admitted_ms", "first_byte_ms")
"""Fields with one decimal place. To round them first, and then to look for the shortest way to write that, takes twice as long."""
_AMBIGUOUS = re.compile(r'[\s="]')


@dataclass(slots=True)
class OwnExchange:
    """A request to an endpoint of our own, for its canonical line."""

    request_id: str
    method: str
    raw_path: bytes
    began_s: float
    """Monotonic."""
    status: int = 0
    operation: str | None = None
    caller: Caller | None = None
    rate: tuple[str, RateState] | None = None
    """The endpoint's own limit per minute, by name, and where the caller stands against it."""
    reason: Reason | None = None


class Telemetry:
    """The metrics of one process and its canonical lines."""

    exchange: ClassVar[type[Exchange]] = Exchange
    """What is made of each request, for `finish` to read."""
    on_times: Callable[[CommitTimes], None] | None = None
    """Hears of each group commit's waits, where somebody takes them."""

    def __init__(
        self,
        prices: PriceTable,
        *,
        log_format: str = "console",
        say: Say = logger.info,
    ) -> None:
        """`say` gets the canonical lines, in that format, while their logger is enabled."""
        self.registry = CollectorRegistry()
        self._told: list[Counts | Spread | Level] = []
        """Metrics that are told what is new before they are read."""
        self._is_shared = bool(os.environ.get(SHARED_METRICS))
        self._will_tell = False
        self._prices = prices
        self._models: dict[tuple[str, str], str] = {}
        self._say = say
        is_json = log_format == "json"
        self._render = _as_json if is_json else _as_text
        self._usual_line = _no_line if is_json else _usual_line
        self._requests = self._counts(
            "automna_requests",
            "Exchanges by how they ended; status is what the client was told.",
            ["surface", "operation", "outcome", "status"],
        )
        self._seconds = self._spread(
            "automna_request_seconds",
            "From the request's head to the end of the exchange, by what became of it.",
            ["surface", "operation", "outcome"],
            LATENCY_BUCKETS_S,
        )
        self._first_byte = self._spread(
            "automna_first_byte_seconds",
            "From the request's head to the first byte of the vendor's answer passed on.",
            ["surface", "operation"],
            LATENCY_BUCKETS_S,
        )
        self._tokens = self._counts(
            "automna_usage_units",
            "What was used, by unit (tokens by bucket, searches).",
            ["surface", "model", "outcome", "unit"],
        )
        self._cost = self._counts(
            "automna_cost_nanousd",
            "What was booked, in nano-USD.",
            ["surface", "model", "outcome"],
        )
        self._refusals = self._counts(
            "automna_refusals",
            "Requests that were not served, by reason.",
            ["surface", "reason"],
        )
        self._estimates = self._counts(
            "automna_estimates",
            "Entries booked by an estimate, because the vendor's answer broke off before its counts.",
            ["surface", "outcome"],
        )
        self._account_alarms = Counter(
            "automna_upstream_account_alarms",
            "Vendor answers about the platform's own account (bad key, no balance, rate).",
            ["surface", "status"],
            registry=self.registry,
        )
        self._commit_seconds = self._spread(
            "automna_ledger_commit_seconds",
            "One group commit of the ledger, from its first statement to durable.",
            [],
            COMMIT_BUCKETS_S,
        )
        self._units = self._counts("automna_ledger_units", "Units of work committed.", [])
        self._failures = Counter(
            "automna_ledger_commit_failures", "Group commits that failed.", registry=self.registry
        )
        self._expired = Counter(
            "automna_reservations_expired",
            "Holds of dead workers, booked at their last checkpoint.",
            registry=self.registry,
        )
        self._malformed = Counter(
            "automna_malformed_requests",
            "Connections ended because of what came on them: no HTTP, too large a head, too many requests ahead.",
            registry=self.registry,
        )
        self._outbox_attempts = Counter(
            "automna_outbox_deliveries",
            "Attempts to deliver messages of the outbox, by what became of them.",
            ["outcome"],
            registry=self.registry,
        )
        self._orphans_bound = Counter(
            "automna_orphans_bound",
            "Objects at a vendor that had no owner and were bound to the user for whom they were made.",
            ["surface", "kind"],
            registry=self.registry,
        )
        self._orphans = Gauge(
            "automna_orphans",
            "Objects at a vendor that had no owner at the last sweep, and of which it is not known whose they are.",
            ["surface", "kind"],
            registry=self.registry,
            multiprocess_mode="livemostrecent",  # of the worker that swept last
        )
        self._other_prices = Counter(
            "automna_vendor_price_differences",
            "Entries whose vendor says itself what the work cost, and says something else than the price table.",
            ["surface"],
            registry=self.registry,
        )
        self._endings = Counter(
            "automna_endings",
            "Attempts to end work at a vendor whose user may do nothing any more, by what became of them.",
            ["surface", "outcome"],
            registry=self.registry,
        )
        self.outbox_waiting = Gauge(
            "automna_outbox_waiting",
            "Messages of the outbox that are neither delivered nor given up.",
            registry=self.registry,
            multiprocess_mode="livemax",  # all workers look at the same table
        )
        self.machines = Gauge(
            "automna_machines",
            "Users' own machines by their status, where this service makes them.",
            ["status"],
            registry=self.registry,
            multiprocess_mode="livemostrecent",  # all workers look at the same table
        )
        self.queue_units = self._gauge("automna_ledger_queue_units", "Units of work waiting for a commit.")
        self.store_in_trouble = self._gauge(
            "automna_store_in_trouble", "Workers whose last write to the store failed or hangs."
        )
        self.open_exchanges = self._level("automna_open_exchanges", "Requests between admission and settle.")
        self.open_streams = self._level("automna_open_streams", "Streamed answers being relayed.")
        self.open_sockets = self._gauge("automna_open_sockets", "Websockets between clients and vendors.")
        self.drains = self._gauge("automna_drains", "Vendor answers read on after their client left.")
        self.upstream_connections = self._gauge(
            "automna_upstream_connections", "Open connections to vendors."
        )
        self.loop_lag_s = Gauge(
            "automna_loop_lag_seconds",
            "How late the event loop was at worst within ten seconds; of several workers the worst.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, registry=self.registry, multiprocess_mode="livesum")

    def _level(self, name: str, meaning: str) -> Level:
        gauge = Gauge(name, meaning, registry=None, multiprocess_mode="livesum")
        level = Level(gauge, self.registry, self._tell_soon if self._is_shared else None)
        self._told.append(level)
        return level

    def _counts(self, name: str, meaning: str, labels: Sequence[str]) -> Counts:
        counts = Counts(Counter(name, meaning, labels, registry=None), self.registry)
        self._told.append(counts)
        return counts

    def _spread(self, name: str, meaning: str, labels: Sequence[str], bounds: Sequence[float]) -> Spread:
        buckets = Buckets(name, meaning, labels, buckets=bounds, registry=None)
        spread = Spread(buckets, self.registry, bounds)
        self._told.append(spread)
        return spread

    def _tell_soon(self) -> None:
        """Any worker may be asked for the metrics of all: they are told at the end of the turn, under load of many
        exchanges at once."""
        if self._will_tell:
            return
        try:
            asyncio.get_running_loop().call_soon(self._tell)
        except RuntimeError:
            self._tell()
        else:
            self._will_tell = True

    def _tell(self) -> None:
        self._will_tell = False
        for metric in self._told:
            metric.tell()

    def committed(self, stats: CommitStats) -> None:
        """After each group commit, good or not."""
        self._commit_seconds.new[()].observe(stats.seconds)
        if stats.is_ok:
            self._units.new[()] += stats.units
        else:
            self._failures.inc()
        if self._is_shared:
            self._tell_soon()

    def expired(self, reservations: int) -> None:
        self._expired.inc(reservations)

    def malformed(self) -> None:
        self._malformed.inc()

    def swept(self, surface: str, kind: str, *, bound: int, unknown: int) -> None:
        """After each sweep of a list."""
        self._orphans_bound.labels(surface, kind).inc(bound)
        self._orphans.labels(surface, kind).set(unknown)

    def told_other_price(self, surface: str) -> None:
        """A vendor's own price of what was just booked is another one."""
        self._other_prices.labels(surface).inc()

    def ending_attempt(self, surface: str, outcome: str) -> None:
        """`told`, `failed` (it is tried again) or `gave_up`."""
        self._endings.labels(surface, outcome).inc()

    def outbox_attempt(self, outcome: str) -> None:
        """`delivered`, `failed` (it is tried again) or `gave_up`."""
        self._outbox_attempts.labels(outcome).inc()

    def account_alarm(self, surface: str, status: int) -> None:
        """A vendor refused our own account: an operator must look."""
        self._account_alarms.labels(surface, str(status)).inc()
        alarms.error("vendor account alarm: %s answered %d about the platform's own account", surface, status)

    def finish(self, exchange: Exchange, ended_s: float) -> None:
        """Once per exchange, at its very end: metrics and the canonical line."""
        surface, began_s = exchange.surface.name, exchange.started_s
        operation = exchange.operation.name if exchange.operation is not None else "unknown"
        if exchange.refused is not None:
            self._refusals.new[surface, exchange.refused.reason.value] += 1
        outcome = _outcome(exchange)
        self._requests.new[surface, operation, outcome, str(exchange.status)] += 1
        self._seconds.new[surface, operation, outcome].observe(ended_s - began_s)
        if exchange.first_byte_s is not None:
            self._first_byte.new[surface, operation].observe(exchange.first_byte_s - began_s)
        tokens = self._count_booked(
            exchange.surface, exchange.priced, outcome, is_estimated=exchange.is_estimated
        )
        if self._is_shared:
            self._tell_soon()
        if logger.isEnabledFor(logging.INFO):
            line = self._usual_line(exchange, outcome, operation, ended_s, tokens)
            self._say(line or self._render(_fields(exchange, outcome, operation, ended_s, tokens)))

    def _count_booked(
        self, surface: Surface, priced: Priced | None, outcome: str, *, is_estimated: bool
    ) -> tuple[int, int]:
        """What the metrics say of an entry; its prompt tokens of all buckets and its output tokens, for the line."""
        if is_estimated:
            self._estimates.new[surface.name, outcome] += 1
        if priced is None or not priced.lines:
            return 0, 0
        name, provider, new = surface.name, surface.provider, self._tokens.new
        for line in reversed(priced.lines):
            model = self._models.get((provider, line.model)) or self._label(provider, line.model)
            for unit, count in line.counts.items():
                if count:
                    new[name, model, outcome, unit if unit in _UNITS else OTHER] += count
        self._cost.new[name, model, outcome] += priced.cost_nanousd  # by the first line's model
        uncached, read, written, output = priced.tokens
        return uncached + read + written, output

    def finish_deferred(
        self, surface: Surface, operation: str, request_id: str, settlement: Settlement, *, polls: int
    ) -> None:
        """Once per deferred work, when it has been booked: its cost, and the second line of its request."""
        priced, outcome = settlement.priced, settlement.outcome.value
        tokens = self._count_booked(surface, priced, outcome, is_estimated=not settlement.is_reported)
        if self._is_shared:
            self._tell_soon()
        if not logger.isEnabledFor(logging.INFO):
            return
        fields: dict[str, Any] = {
            "request": request_id,
            "surface": surface.name,
            "operation": operation,
            "outcome": outcome,
            "polls": polls,
        }
        fields["input_tokens"], fields["output_tokens"] = tokens
        fields["cost_usd"] = usd(priced.cost_nanousd)
        if not settlement.is_reported:
            fields["estimated"] = True
        if notes := (*settlement.notes, *priced.flags):
            fields["notes"] = ",".join(notes)
        self._say(self._render(fields))

    def finish_own(self, own: OwnExchange, ended_s: float, *, is_told: bool) -> None:
        """Once per request to an endpoint of our own."""
        operation = own.operation or "unknown"
        outcome = "refused" if own.status >= CLIENT_ERROR else "completed"
        if not own.status:
            outcome = INTERNAL
        if own.reason is not None:
            self._refusals.new[OWN, own.reason.value] += 1
        self._requests.new[OWN, operation, outcome, str(own.status)] += 1
        self._seconds.new[OWN, operation, outcome].observe(ended_s - own.began_s)
        if self._is_shared:
            self._tell_soon()
        if is_told and logger.isEnabledFor(logging.INFO):
            self._say(self._render(_own_fields(own, outcome, operation, ended_s)))

    def _label(self, provider: str, model: str) -> str:
        """A model's id in the price table, or OTHER; remembered."""
        known = self._prices.model(provider, model)
        label = known.id if known else OTHER
        if len(self._models) < MODEL_NAMES_MAX:
            self._models[provider, model] = label
        return label

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format; of all workers where there are several."""
        if self._is_shared:
            self._tell()
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library's
            return generate_latest(registry)
        return generate_latest(self.registry)


def _outcome(exchange: Exchange) -> str:
    """As the ledger has it, whatever we told the client about it; but a defect of ours is named as one."""
    refused = exchange.refused
    if refused is not None and refused.reason is Reason.INTERNAL:
        return INTERNAL
    if exchange.outcome is not None:
        return exchange.outcome.word
    # Without a refusal of its own: what it had to have made first was refused, and has a line that says why.
    is_refused = refused is not None or (exchange.admitted is None and exchange.status >= CLIENT_ERROR)
    return "refused" if is_refused else INTERNAL


def _fields(
    exchange: Exchange, outcome: str, operation: str, ended_s: float, tokens: tuple[int, int]
) -> dict[str, Any]:
    """The canonical line. Field names are part of the operators' contract (docs/operations.md has them all);
    no token, no key, no body."""
    caller, refused, began_s = exchange.caller, exchange.refused, exchange.started_s
    fields: dict[str, Any] = {
        "request": exchange.request_id,
        "surface": exchange.surface.name,
        "operation": operation,
        "status": exchange.status,
        "outcome": outcome,
        "ms": _ms(began_s, ended_s),
    }
    if caller is not None:
        fields["user"] = caller.user_id
        fields["gateway_token"] = caller.token_id
    if exchange.demand.models:
        fields["model"] = exchange.demand.models[0]
    if exchange.admitted is not None:
        _add_admitted(fields, exchange, tokens)
    if refused is not None:
        fields["reason"] = refused.reason.value
        fields.update(refused.facts)
    if exchange.client_left:
        fields["client_left"] = True
    if (tally := exchange.tally) is not None:
        fields["messages_up"], fields["messages_down"] = tally.up, tally.down
        fields["messages_dropped"] = tally.dropped
        if tally.close_code is not None:
            fields["close_code"] = tally.close_code
    if exchange.bytes_passed is not None:
        fields["bytes_up"], fields["bytes_down"] = exchange.bytes_passed
    if exchange.operation is None:
        fields["method"], fields["path"] = exchange.request.method, shown_path(exchange.request.raw_path)
    return fields


def _usual_line(
    exchange: Exchange, outcome: str, operation: str, ended_s: float, tokens: tuple[int, int]
) -> str | None:
    """The line of `_fields` as text, written at once, where it has the fields that most lines have; else None. A test compares
    the two."""
    caller, priced, began_s = exchange.caller, exchange.priced, exchange.started_s
    admitted_s, first_byte_s = exchange.admitted_s, exchange.first_byte_s
    models, status, upstream_id = (
        exchange.demand.models,
        exchange.upstream_status,
        exchange.upstream_request_id,
    )
    if caller is None or priced is None or admitted_s is None or first_byte_s is None or not models:
        return None
    if status is None or upstream_id is None or exchange.operation is None or exchange.refused is not None:
        return None
    is_odd = exchange.client_left or exchange.is_estimated or exchange.notes or priced.flags or exchange.cause
    if is_odd or exchange.tally is not None or exchange.bytes_passed is not None:
        return None
    return (
        f"request={exchange.request_id} surface={exchange.surface.name} operation={_perhaps_quoted(operation)} "
        f"status={exchange.status} outcome={outcome} ms={_ms(began_s, ended_s):.1f} user={_word(caller.user_id)} "
        f"gateway_token={caller.token_id} model={_perhaps_quoted(models[0])} "
        f"admitted_ms={_ms(began_s, admitted_s):.1f} first_byte_ms={_ms(began_s, first_byte_s):.1f} "
        f"input_tokens={tokens[0]} output_tokens={tokens[1]} cost_usd={usd(priced.cost_nanousd)} "
        f"upstream_status={status} upstream_request={_word(upstream_id)}"
    )


def _no_line(*_: object) -> None:
    """Of JSON, which is written of a dict in any case."""


def _add_admitted(fields: dict[str, Any], exchange: Exchange, tokens: tuple[int, int]) -> None:
    """What became of it after it was let in: at the vendor, and in the ledger."""
    admitted, priced, began_s = exchange.admitted, exchange.priced, exchange.started_s
    assert admitted is not None
    if exchange.admitted_s is not None:
        fields["admitted_ms"] = _ms(began_s, exchange.admitted_s)
    if exchange.first_byte_s is not None:
        fields["first_byte_ms"] = _ms(began_s, exchange.first_byte_s)
    if priced is not None:
        fields["input_tokens"], fields["output_tokens"] = tokens
        fields["cost_usd"] = usd(priced.cost_nanousd)
    if exchange.is_estimated:
        fields["estimated"] = True
        fields["hold_usd"] = usd(admitted.reservation.hold_nanousd)
    flags = priced.flags if priced is not None else ()
    if exchange.notes or flags:
        fields["notes"] = ",".join((*exchange.notes, *flags))
    if exchange.upstream_status is not None:
        fields["upstream_status"] = exchange.upstream_status
    if exchange.upstream_request_id is not None:
        fields["upstream_request"] = exchange.upstream_request_id
    if exchange.cause is not None:
        fields["cause"] = exchange.cause


def _own_fields(own: OwnExchange, outcome: str, operation: str, ended_s: float) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "request": own.request_id,
        "surface": OWN,
        "operation": operation,
        "status": own.status,
        "outcome": outcome,
        "ms": _ms(own.began_s, ended_s),
    }
    if own.caller is not None:
        fields["user"] = own.caller.user_id
        fields["gateway_token"] = own.caller.token_id
    if own.reason is not None:
        fields["reason"] = own.reason.value
    if own.operation is None:
        fields["method"], fields["path"] = own.method, shown_path(own.raw_path)
    return fields


def _ms(began_s: float, then_s: float) -> float:
    """In full: it is the line that shows one decimal place."""
    return (then_s - began_s) * 1_000


def shown_path(raw_path: bytes) -> str:
    """A path that nobody serves, for the log: enough to see what was meant. Whatever is as long as a secret is
    left out."""
    segments = raw_path.decode("latin-1").split("/")
    shown = "/".join(segment if len(segment) <= SEGMENT_CHARS_MAX else "..." for segment in segments)
    return shown[:PATH_CHARS_MAX]  # not before: half a secret is as short as a name


def _as_json(fields: dict[str, Any]) -> str:
    for key in _TIMES:
        if key in fields:
            fields[key] = round(fields[key], 1)
    return orjson.dumps(fields).decode()


def _as_text(fields: dict[str, Any]) -> str:
    """`fields` are the caller's no more: words take the place of what could be mistaken."""
    line, foreign = _layout(tuple(fields))
    for key in foreign:
        fields[key] = _word(str(fields[key]))
    return line % tuple(fields.values())


@lru_cache(maxsize=LAYOUTS_MAX)
def _layout(keys: tuple[str, ...]) -> tuple[str, list[str]]:
    """A line with these fields, its values left out; and those of the fields whose values are not of our own making."""
    forms = [f"{key}=%.1f" if key in _TIMES else f"{key}=%s" for key in keys]
    return " ".join(forms), [key for key in keys if key not in _OWN_WORDS]


def _word(text: str) -> str:
    """As `_perhaps_quoted`. Most ids are seen to be plain at once; each is another, and would only push the others out."""
    return text if text.isascii() and text.isidentifier() else _perhaps_quoted(text)


@lru_cache(maxsize=WORDS_MAX)
def _perhaps_quoted(text: str) -> str:
    """As it is, or quoted where it could be taken for more than one field, or for an order to the terminal."""
    return text if text.isprintable() and not _AMBIGUOUS.search(text) else json.dumps(text)
