"""`ledger` and `usage`: what was booked, and whether it adds up."""

import asyncio
from contextlib import aclosing, suppress
from dataclasses import asdict
from typing import Annotated, Any

import typer

from automna_proxy.commands.session import (
    CLOCK,
    CommandError,
    Json,
    Status,
    UserId,
    current_settings,
    with_store,
)
from automna_proxy.tables import Table, entries_table, entry_line, request_table, usage_table
from automna_proxy.terminal import note, say, show, show_json, show_text
from metering.exports import usage_csv
from metering.money import usd
from metering.prices import PriceTable
from metering.reports import (
    ENTRIES_MAX,
    GROUPINGS_MAX,
    USAGE_TIMEOUT_S,
    Entry,
    GroupBy,
    UsageReport,
    entries_since,
    groupings_of,
    newest_seq,
    period_of,
    request_report,
    tail,
    usage_of,
)
from metering.reprice import Repricing, Sums, reprice
from metering.store.store import Store
from metering.users import Directory
from metering.verify import Report, verify
from routes import SURFACES

FOLLOW_POLL_S = 0.5
"""Between two looks for new entries."""

app = typer.Typer(no_args_is_help=True, help="The ledger: every request, booked once.")


def usage(
    user_id: UserId,
    since: Annotated[
        str | None,
        typer.Option("--from", help="First instant: 2026-11-01 or RFC 3339, UTC.", show_default=False),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--to", help="End, not included: 2026-12-01 or RFC 3339.", show_default=False),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            metavar="NAMES", help=f"What a row stands for: up to {GROUPINGS_MAX} of {', '.join(GroupBy)}."
        ),
    ] = GroupBy.MODEL,
    *,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values, for spreadsheets.")] = False,
) -> None:
    """What a user used and cost, as the ledger has it. Without dates: the current month (UTC).

    Example: automna-proxy usage alice --from 2026-11-01 --to 2026-11-08 --by day,model
    """
    if as_json and as_csv:
        raise CommandError(Status.USAGE, "given --json and --csv, expected one of them")
    period, groupings = period_of(since, until, CLOCK.now_ms()), groupings_of(by)

    async def work(store: Store) -> UsageReport:
        await Directory(store, CLOCK).user(user_id)
        async with aclosing(store.readers.another(read_timeout_s=USAGE_TIMEOUT_S)) as readers:
            return await usage_of(readers, user_id, period, groupings)

    report = with_store(work)
    if as_json:
        show_json(report.as_json())
    elif as_csv:
        show_text(usage_csv(report))
    else:
        show(usage_table(report))


@app.command("verify")
def verify_ledger(as_json: Json = False) -> None:
    """Recompute every account and every charge from their rows. Exit status 1 when something is wrong.

    Safe beside a running server.
    """
    report = with_store(verify)
    if as_json:
        show_json(_report_as_json(report))
    else:
        reservations, entries = sum(report.reservations.values()), sum(report.entries.values())
        say(
            f"{'clean' if report.is_clean else f'NOT CLEAN: {report.problems_total} problems'}: "
            f"{report.accounts:,} accounts, {reservations:,} reservations, {entries:,} entries, "
            f"USD {usd(report.cost_nanousd)}"
        )
        for problem in report.problems:
            say(problem)
        if (unsaid := report.problems_total - len(report.problems)) > 0:
            note(f"{unsaid:,} further problems are not shown")
    if not report.is_clean:
        raise typer.Exit(Status.NO)


@app.command("reprice")
def reprice_ledger(
    since: Annotated[
        str,
        typer.Option("--from", help="First instant: 2026-11-01 or RFC 3339, UTC.", show_default=False),
    ],
    until: Annotated[
        str,
        typer.Option("--to", help="End, not included: 2026-12-01 or RFC 3339.", show_default=False),
    ],
    is_dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare only; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Correct what requests of a time cost, by the price table in use. Appends entries, never edits.

    Each request is priced as of its own time; where that differs from what is booked, an `adjust` is appended
    to the accounts and periods that paid. A second run with the same table appends nothing. Estimates that are
    no usage times prices, and what the table cannot price, stay as they are. Safe beside a running server.

    Example: automna-proxy ledger reprice --from 2026-11-01 --to 2026-11-20 --dry-run
    """
    period = period_of(since, until, CLOCK.now_ms())
    table = PriceTable.load(current_settings().prices_path)
    providers = {surface.name: surface.provider for surface in SURFACES}

    async def work(store: Store) -> Repricing:
        return await reprice(store, table, providers, period, CLOCK, is_dry_run=is_dry_run)

    result = with_store(work)
    if as_json:
        show_json(_repricing_as_json(result))
        return
    show(_repricing_table(result))
    left_alone = (
        (result.not_from_usage, "were not priced by their usage"),
        (result.without_price, "have no price in the table"),
        (result.changed_meanwhile, "were booked anew meanwhile: run it again"),
    )
    for requests, reason in left_alone:
        if requests:
            note(f"{requests:,} requests {reason}")


@app.command("show")
def show_request(
    request_id: Annotated[
        str, typer.Argument(metavar="REQUEST", help="Its id: x-automna-request-id of its answer.")
    ],
    as_json: Json = False,
) -> None:
    """Show one request: what was held for it, and what was booked.

    Example: automna-proxy ledger show req_01a1f9ad9c09ad3b5e
    """
    report = with_store(lambda store: request_report(store.readers, request_id))
    if report is None:
        raise CommandError(
            Status.NOT_FOUND,
            f"the ledger has no request {request_id}: a request that was refused is in the log alone",
        )
    if as_json:
        show_json(report.as_json())
        return
    show(request_table(report))
    show(entries_table(report.entries, title="Entries"))


@app.command("tail")
def tail_ledger(
    count: Annotated[
        int, typer.Option("-n", "--count", min=1, max=ENTRIES_MAX, help="How many of the newest entries.")
    ] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on showing new ones until stopped.")
    ] = False,
    user_id: Annotated[
        str | None, typer.Option("--user", metavar="USER", help="Of this user only.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Show the newest entries, oldest first.

    Example: automna-proxy ledger tail --follow --json | jq -c '[.at, .user, .cost_usd]'
    """

    async def work(store: Store) -> None:
        if user_id is not None:
            await Directory(store, CLOCK).user(user_id)
        seq = await newest_seq(store.readers)
        entries = await tail(store.readers, count, user_id=user_id)
        if not follow:
            _show_entries(entries, as_json=as_json)
            return
        # An entry that came after the look at `seq` comes with the followed ones.
        _show_followed([entry for entry in entries if entry.seq <= seq], as_json=as_json)
        await _follow(store, seq, user_id, as_json=as_json)

    with suppress(KeyboardInterrupt):  # the one way to end following
        with_store(work)


async def _follow(store: Store, seq: int, user_id: str | None, *, as_json: bool) -> None:
    while True:
        entries = await entries_since(store.readers, seq)
        _show_followed([entry for entry in entries if user_id in {None, entry.user_id}], as_json=as_json)
        if entries:
            seq = entries[-1].seq
        if len(entries) < ENTRIES_MAX:
            await asyncio.sleep(FOLLOW_POLL_S)


def _show_entries(entries: list[Entry], *, as_json: bool) -> None:
    if as_json:
        _show_followed(entries, as_json=True)
    else:
        show(entries_table(entries))


def _show_followed(entries: list[Entry], *, as_json: bool) -> None:
    for entry in entries:
        if as_json:
            show_json(entry.as_json(), is_line=True)
        else:
            say(entry_line(entry))


def _repricing_table(result: Repricing) -> Table:
    columns = ("model", "entries", "changed", "old_usd", "new_usd", "difference_usd")
    verb = "would be" if result.is_dry_run else "were"
    return Table(
        f"Costs as they {verb} corrected by price table {result.price_version}",
        columns,
        [(model, *_repriced_cells(sums)) for model, sums in sorted(result.models.items())],
        total=("total", *_repriced_cells(result.total)),
        note="no request of that time has a usage with a price",
    )


def _repriced_cells(sums: Sums) -> tuple[int | str, ...]:
    costs = (sums.old_nanousd, sums.new_nanousd, sums.difference_nanousd)
    return (sums.entries, sums.changed, *map(usd, costs))


def _repricing_as_json(result: Repricing) -> dict[str, Any]:
    return {
        "price_version": result.price_version,
        "is_dry_run": result.is_dry_run,
        "models": [
            {"model": model or None, **_repriced_as_json(sums)}
            for model, sums in sorted(result.models.items())
        ],
        "total": _repriced_as_json(result.total),
        "not_from_usage": result.not_from_usage,
        "without_price": result.without_price,
        "changed_meanwhile": result.changed_meanwhile,
    }


def _repriced_as_json(sums: Sums) -> dict[str, Any]:
    return {**asdict(sums), "difference_nanousd": sums.difference_nanousd}


def _report_as_json(report: Report) -> dict[str, Any]:
    return {
        "is_clean": report.is_clean,
        "accounts": report.accounts,
        "reservations": dict(report.reservations),
        "entries": dict(report.entries),
        "cost_nanousd": report.cost_nanousd,
        "problems": list(report.problems),
        "problems_total": report.problems_total,
    }
