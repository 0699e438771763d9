"""The command: what it prints where, with which exit status, on a real store."""

import asyncio
import csv
import fcntl
import io
import json
import os
import pty
import re
import signal
import sqlite3
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main

from automna_proxy import server
from automna_proxy.cli import app
from automna_proxy.commands.catalog import settings_markdown
from automna_proxy.settings import table
from metering.clock import SystemClock, month_of
from metering.deferred import DeferredWork, DeferredWorks
from metering.ledger import (
    NO_PERIOD,
    OPEN_REQUESTS,
    Hold,
    Intent,
    Ledger,
    Reservation,
)
from metering.notices import ENDPOINT, INSERT_NOTICE
from metering.objects import ObjectId, Objects
from metering.outbox import adding, new_message
from metering.store.database import Database
from metering.store.migrate import migrate
from metering.store.store import open_store
from metering.store.writer import Step, Unit
from metering.users import Directory, hash_of
from tests.support.cli import WAIT_S, Cli, one_line
from tests.support.price_tables import table_file


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """With a user on a migrated store."""
    cli = Cli(tmp_path / "store.db")
    cli.ok("user", "add", "alice", "--plan", "pro")
    return cli


@pytest.fixture
def fresh(tmp_path: Path) -> Cli:
    """Without a store."""
    return Cli(tmp_path / "store.db")


# --- the store ------------------------------------------------------------------------------------------


def test_the_first_user_makes_the_store_and_says_so_on_standard_error(fresh: Cli) -> None:
    done = fresh.process("user", "add", "alice", "--email", "a@example.com")
    assert (done.returncode, done.stdout) == (0, "added alice (plan free, active)\n")
    assert "made a new store at" in one_line(done.stderr)
    assert fresh.json("user", "show", "alice")["email"] == "a@example.com"


@pytest.mark.parametrize(
    "args",
    [
        ("user", "list"),
        ("user", "disable", "alice"),
        ("token", "create", "alice"),
        ("usage", "alice"),
        ("ledger", "verify"),
        ("ledger", "reprice", "--from", "2020-01-01", "--to", "2999-01-01"),
        ("ledger", "tail"),
        ("objects", "list"),
        ("objects", "sweep"),
        ("phone", "list"),
        ("phone", "assign", "alice", "+14155550100"),
    ],
)
def test_other_commands_make_no_store(fresh: Cli, args: tuple[str, ...]) -> None:
    result = fresh.run(*args)
    assert result.exit_code == 4
    assert "there is no store at" in one_line(result.stderr)
    assert "automna-proxy migrate" in result.stderr
    assert not fresh.path.exists()


def test_a_store_of_another_version_is_not_touched(fresh: Cli) -> None:
    sqlite3.connect(fresh.path).execute("CREATE TABLE other (x)").connection.close()
    result = fresh.run("user", "add", "alice")
    assert result.exit_code == 4
    assert "is not this version's" in one_line(result.stderr)


@pytest.mark.parametrize(
    "args", [("user", "list"), ("user", "add", "alice"), ("ledger", "verify"), ("migrate",)]
)
def test_a_store_of_a_later_version_asks_for_a_later_program(fresh: Cli, args: tuple[str, ...]) -> None:
    fresh.ok("migrate")
    with closing(sqlite3.connect(fresh.path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (999, 'later', 0)")
    result = fresh.run(*args)
    assert result.exit_code == 4
    assert "the store's schema is version 999, this program knows" in one_line(result.stderr)


def test_a_store_that_cannot_be_read_is_not_taken_for_one_of_another_version(fresh: Cli) -> None:
    """Of a read-only folder, SQLite can make no index of the write-ahead log; so it is when something stands in its place."""
    fresh.ok("migrate")
    fresh.path.with_name(f"{fresh.path.name}-wal").mkdir()
    result = fresh.run("user", "list")
    assert result.exit_code == 4
    assert "cannot be used: unable to open database file" in one_line(result.stderr)


def test_migrate_says_what_it_did(fresh: Cli) -> None:
    assert "applied 0001_foundation" in fresh.ok("migrate")
    assert "up to date" in fresh.ok("migrate")
    assert fresh.json("migrate") == {"store": str(fresh.path), "applied": []}


def test_a_file_that_is_no_store_is_status_4(fresh: Cli) -> None:
    fresh.path.write_bytes(b"no database " * 1_000)
    for args in (("user", "list"), ("migrate",)):
        result = fresh.run(*args)
        assert result.exit_code == 4
        assert "not a database" in one_line(result.stderr)


def test_a_store_that_stays_locked_is_status_4(cli: Cli) -> None:
    cli.env["STORE_BUSY_TIMEOUT_S"] = "0.05"
    other = sqlite3.connect(cli.path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        done = cli.process("user", "add", "bob")
        assert (done.returncode, done.stdout) == (4, "")
        assert "database is locked" in one_line(done.stderr)
        assert "alice" in cli.ok("user", "list"), "readers pass"
    finally:
        other.close()


# --- configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "args", "expected"),
    [
        ("DATABASE_URL", "mysql://x", ("user", "list"), "DATABASE_URL is 'mysql://x'; expected sqlite:///"),
        ("BODY_BYTES_MAX", "many", ("user", "list"), "BODY_BYTES_MAX: given 'many'"),
        ("PLANS_FILE", "/nowhere/plans.toml", ("plan", "list"), "/nowhere/plans.toml"),
        ("PLANS_FILE", "/nowhere/plans.toml", ("user", "add", "bob"), "/nowhere/plans.toml"),
        ("PRICES_FILE", "/nowhere/prices.json", ("prices", "show", "claude-x"), "/nowhere/prices.json"),
    ],
)
def test_a_wrong_setting_is_status_5_and_one_line(
    cli: Cli, variable: str, value: str, args: tuple[str, ...], expected: str
) -> None:
    cli.env[variable] = value
    done = cli.process(*args)
    assert (done.returncode, done.stdout) == (5, "")
    assert expected in one_line(done.stderr)


# --- users ------------------------------------------------------------------------------------------------


def test_an_unknown_plan_is_refused_with_those_there_are(fresh: Cli) -> None:
    result = fresh.run("user", "add", "alice", "--plan", "gold")
    assert result.exit_code == 2
    assert "given 'gold', expected one of free, lite, starter, pro, power, business" in one_line(
        result.stderr
    )
    assert not fresh.path.exists()


def test_a_user_is_added_once(cli: Cli) -> None:
    result = cli.run("user", "add", "alice")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "exists already" in one_line(result.stderr)


DRAFTED = "POST /v0/inboxes/{inbox_id}/drafts"
"""Schedules mail."""


def test_disable_says_what_still_runs_at_vendors(cli: Cli) -> None:
    async def begin() -> None:
        async with open_store(Database(cli.path)) as store:
            works = DeferredWorks(store, SystemClock())
            begun = (
                ("openai", "POST /v1/responses"),
                ("openai", "POST /v1/responses"),
                ("openai", "POST /x"),
                ("agentmail", DRAFTED),
            )
            for number, (surface, operation) in enumerate(begun):
                hold = Hold("user:alice", OPEN_REQUESTS, NO_PERIOD, 1, 10)
                intent = Intent(f"req_{number}", "alice", "tok", surface, operation, None, (hold,))
                assert isinstance(await Ledger(store, SystemClock(), "wrk_1").reserve(intent), Reservation)
                work = DeferredWork(intent.id, surface, operation, f"resp_{number}", "{}")
                await store.writer.submit(Unit((works.adding(work, poll_in_s=10.0),)))

    asyncio.run(begin())
    shown = cli.json("user", "disable", "alice")
    assert (shown["status"], shown["running_at_vendors"]) == (
        "disabled",
        [
            {"surface": "agentmail", "operation": DRAFTED, "count": 1, "is_ended": True},
            {"surface": "openai", "operation": "POST /v1/responses", "count": 2, "is_ended": True},
            {"surface": "openai", "operation": "POST /x", "count": 1, "is_ended": False},
        ],
    )
    assert cli.ok("user", "disable", "alice").splitlines()[1:] == [
        f"still running at agentmail: 1 of {DRAFTED}, which is ended",
        "still running at openai: 2 of POST /v1/responses, which is ended",
        "still running at openai: 1 of POST /x, which cannot be ended, and runs to its end",
    ]


def test_a_user_moves_between_plans_and_states(cli: Cli) -> None:
    assert cli.json("user", "set-plan", "alice", "lite")["plan"] == "lite"
    assert cli.json("user", "disable", "alice")["status"] == "disabled"
    assert cli.json("user", "enable", "alice")["status"] == "active"
    assert cli.run("user", "set-plan", "alice", "gold").exit_code == 2
    assert [user["plan"] for user in cli.json("user", "list")["users"]] == ["lite"]


def test_a_plan_may_stay_until_the_month_ends(cli: Cli) -> None:
    moved = cli.json("user", "set-plan", "alice", "free", "--at-period-end")
    assert (moved["plan"], moved["next_plan"]) == ("pro", "free")
    assert re.fullmatch(r"\d{4}-\d\d-01T00:00:00Z", moved["plan_until"])
    assert f"plan\tpro until {moved['plan_until']}, then free" in cli.ok("user", "show", "alice")
    assert cli.json("user", "set-plan", "alice", "pro")["next_plan"] is None


def test_a_plan_may_last_until_a_time(cli: Cli) -> None:
    args = ("user", "set-plan", "alice", "business", "--until", "2999-01-02", "--then", "lite")
    assert cli.ok(*args) == "moved alice (plan business until 2999-01-02T00:00:00Z, then lite, active)\n"
    assert [user["plan"] for user in cli.json("user", "list")["users"]] == ["business"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--until", "2999-01-01"), "expected --until TIME and --then PLAN together"),
        (("--then", "free"), "expected --until TIME and --then PLAN together"),
        (("--until", "2999-01-01", "--then", "free", "--at-period-end"), "expected one of them"),
        (("--until", "2999-01-01", "--then", "gold"), "given 'gold', expected one of free, lite"),
        (("--until", "2020-01-01", "--then", "free"), "--until: 2020-01-01 is not in the future"),
        (("--until", "soon", "--then", "free"), "--until: given 'soon', expected 12h"),
    ],
)
def test_a_plan_change_that_makes_no_sense_is_a_usage_error(
    cli: Cli, args: tuple[str, ...], expected: str
) -> None:
    result = cli.run("user", "set-plan", "alice", "lite", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in one_line(result.stderr)
    assert cli.json("user", "show", "alice")["plan"] == "pro"


# --- prepaid credit -----------------------------------------------------------------------------------------


def test_credit_is_granted_once_by_its_source(cli: Cli) -> None:
    args = ("credit", "grant", "alice", "--usd", "4.99", "--source", "stripe:evt_1", "--note", "thanks")
    assert cli.ok(*args) == (
        "granted USD 4.990000000 to alice (source stripe:evt_1); prepaid credit: 49,900 left of 49,900, 0 spent, "
        "0 held\n"
    )
    again = cli.ok(*args)
    assert again.startswith("granted already at ")
    assert "nothing is changed" in again
    assert cli.json(*args)["is_new"] is False
    shown = cli.json("user", "show", "alice")
    assert shown["prepaid_credit"]["left_nanousd"] == 4_990_000_000
    assert "prepaid credit\t49,900 left of 49,900" in cli.ok("user", "show", "alice")
    cli.ok("ledger", "verify")


def test_a_source_of_another_grant_is_status_1_and_says_which(cli: Cli) -> None:
    cli.ok("credit", "grant", "alice", "--credits", "5", "--source", "inv_1")
    result = cli.run("credit", "grant", "alice", "--credits", "6", "--source", "inv_1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "'inv_1' was granted already, USD 0.000500000 to alice" in one_line(result.stderr)


def test_credit_is_taken_back_as_far_as_there_is_any(cli: Cli) -> None:
    cli.ok("credit", "grant", "alice", "--credits", "50", "--source", "inv_1")
    result = cli.run("credit", "revoke", "alice", "--credits", "51", "--source", "re_1")
    assert result.exit_code == 1
    assert "cannot be taken back from alice: USD 0.005000000 of the prepaid credit is left" in one_line(
        result.stderr
    )
    done = cli.json("credit", "revoke", "alice", "--credits", "20", "--source", "re_1")
    assert (done["amount_nanousd"], done["prepaid_credit"]["left"]) == (-2_000_000, 30)
    listed = cli.json("credit", "list", "alice")
    assert [one["source"] for one in listed["grants"]] == ["re_1", "inv_1"]
    assert [(one["user"], one["granted"]) for one in listed["balances"]] == [("alice", 30)]


def test_credit_is_listed_for_people(cli: Cli) -> None:
    cli.ok("user", "add", "bob")
    assert cli.json("credit", "list") == {"balances": [], "grants": []}
    cli.ok("credit", "grant", "alice", "--credits", "50", "--source", "inv_1", "--note", "welcome")
    text = cli.ok("credit", "list")
    assert "alice\t50\t0\t0\t50\t0.005000000" in text
    assert "\talice\t0.005000000\tinv_1\twelcome" in text
    assert cli.json("credit", "list", "bob")["grants"] == []


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), "given neither, expected either --credits N or --usd X"),
        (("--credits", "1", "--usd", "1"), "given both, expected either"),
        (("--usd", "0"), "--usd: given '0', expected more than 0"),
        (("--usd", "1e3"), "--usd: given '1e3'"),
        (("--usd", "-1"), "--usd: given '-1'"),
    ],
)
def test_an_amount_that_makes_no_sense_is_a_usage_error(
    cli: Cli, args: tuple[str, ...], expected: str
) -> None:
    result = cli.run("credit", "grant", "alice", "--source", "inv_1", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in one_line(result.stderr)


def test_a_user_is_shown_with_credits_and_tokens(cli: Cli) -> None:
    cli.ok("token", "create", "alice", "--label", "laptop")
    shown = cli.json("user", "show", "alice")
    assert shown["credits"]["limit"] == 1_000_000
    assert [token["label"] for token in shown["tokens"]] == ["laptop"]
    text = cli.ok("user", "show", "alice")
    assert "plan\tpro" in text
    assert "laptop" in text


def test_a_plan_that_is_gone_is_shown_as_such(cli: Cli, tmp_path: Path) -> None:
    plans = tmp_path / "plans.toml"
    shipped = Path(server.__file__).parent.parent / "metering" / "plans.toml"
    plans.write_text(shipped.read_text().replace("[plans.pro]", "[plans.gold]"))
    cli.env["PLANS_FILE"] = str(plans)
    assert "pro (not in the plans file)" in cli.ok("user", "show", "alice")


@pytest.mark.parametrize(
    "args",
    [
        ("user", "show", "bob"),
        ("user", "set-plan", "bob", "pro"),
        ("user", "set-plan", "bob", "pro", "--at-period-end"),
        ("user", "disable", "bob"),
        ("user", "set-cap", "bob", "--none"),
        ("token", "show", "tok_1"),
        ("user", "enable", "bob"),
        ("credit", "grant", "bob", "--credits", "1", "--source", "inv_1"),
        ("credit", "list", "bob"),
        ("token", "create", "bob"),
        ("token", "list", "bob"),
        ("token", "revoke", "tok_1"),
        ("token", "rotate", "amp_123456"),
        ("usage", "bob"),
        ("ledger", "tail", "--user", "bob"),
        ("ledger", "show", "req_1"),
        ("objects", "list", "bob"),
        ("objects", "show", "openai", "response", "resp_1"),
        ("objects", "release", "openai", "response", "resp_1", "--yes"),
        ("phone", "assign", "bob", "+14155550100"),
        ("phone", "release", "+14155550100"),
        ("prices", "show", "claude-nothing"),
    ],
)
def test_what_is_not_there_is_status_3_and_named(cli: Cli, args: tuple[str, ...]) -> None:
    result = cli.run(*args)
    assert (result.exit_code, result.stdout) == (3, "")
    name = next(
        arg
        for arg in args
        if arg in {"bob", "tok_1", "amp_123456", "req_1", "resp_1", "+14155550100", "claude-nothing"}
    )
    assert name in one_line(result.stderr)


# --- tokens -----------------------------------------------------------------------------------------------


def test_create_prints_the_token_alone_on_standard_output(cli: Cli) -> None:
    done = cli.process("token", "create", "alice", "--label", "laptop", "--expires", "30d")
    assert done.returncode == 0
    assert re.fullmatch(r"amp_[A-Za-z0-9_-]{43}\n", done.stdout)
    assert "not shown again" in one_line(done.stderr)
    assert done.stdout.strip() not in done.stderr
    (token,) = cli.json("token", "list", "alice")["tokens"]
    assert token["prefix"] == done.stdout[:10]
    assert (token["label"], token["state"]) == ("laptop", "live")


def test_the_token_that_create_prints_is_the_one_that_works(cli: Cli) -> None:
    secret = cli.ok("token", "create", "alice").strip()

    async def look_up() -> str:
        async with open_store(Database(cli.path)) as store:
            credential = await Directory(store, SystemClock()).credential(hash_of(secret))
            assert credential is not None
            return credential.user_id

    assert asyncio.run(look_up()) == "alice"


def test_create_as_json_has_the_token_and_its_id(cli: Cli) -> None:
    created = cli.json("token", "create", "alice", "--expires", "2999-12-31")
    (listed,) = cli.json("token", "list", "alice")["tokens"]
    assert created.pop("token").startswith(listed["prefix"])
    assert created == listed
    assert listed["expires_at"] == "2999-12-31T00:00:00Z"


def test_rotate_prints_the_new_token_alone_and_lets_the_old_one_overlap(cli: Cli) -> None:
    old = cli.json("token", "create", "alice", "--label", "laptop")
    done = cli.process("token", "rotate", old["id"], "--overlap", "10m")
    assert done.returncode == 0
    assert re.fullmatch(r"amp_[A-Za-z0-9_-]{43}\n", done.stdout)
    assert old["token"] != done.stdout.strip()
    tokens = {token["id"]: token for token in cli.json("token", "list", "alice")["tokens"]}
    assert len(tokens) == 2
    assert tokens[old["id"]]["state"] == "live"
    assert tokens[old["id"]]["expires_at"] is not None
    assert all(token["label"] == "laptop" for token in tokens.values())


def test_rotate_without_overlap_ends_the_old_token_at_once(cli: Cli) -> None:
    old = cli.json("token", "create", "alice")
    new = cli.json("token", "rotate", old["prefix"])
    assert new["replaces"]["state"] == "expired"
    assert cli.run("token", "rotate", old["id"]).exit_code == 1


@pytest.mark.parametrize("by", ["id", "prefix", "token"])
def test_a_token_is_revoked_by_id_prefix_or_itself(cli: Cli, by: str) -> None:
    created = cli.json("token", "create", "alice")
    assert cli.ok("token", "revoke", created[by]) == f"revoked {created['id']} of alice\n"
    assert cli.json("token", "revoke", created[by])["state"] == "revoked", "twice is no error"


def test_an_error_never_repeats_a_token(cli: Cli) -> None:
    leaked = "amp_" + "s3cret" * 8
    for verb in ("revoke", "rotate"):
        result = cli.run("token", verb, leaked)
        assert result.exit_code == 3
        assert leaked[10:] not in result.output


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("create", "alice", "--expires", "3x"), "--expires: given '3x', expected 12h, 30d, 2w, YYYY-MM-DD"),
        (("create", "alice", "--expires", "99999d"), "--expires: given '99999d'"),
        (("create", "alice", "--expires", ""), "--expires: given ''"),
        (("create", "alice", "--expires", "2020-01-01"), "is not in the future"),
        (("create", "alice", "--expires", "0s"), "is not in the future"),
        (
            ("rotate", "tok_1", "--overlap", "2026-12-31"),
            "--overlap: given '2026-12-31', expected a number and a unit",
        ),
    ],
)
def test_times_that_make_no_sense_are_usage_errors(cli: Cli, args: tuple[str, ...], expected: str) -> None:
    result = cli.run("token", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in one_line(result.stderr)


def test_a_label_cannot_forge_lines_or_colours(cli: Cli) -> None:
    cli.ok("token", "create", "alice", "--label", "a\nb\x1b[31m\tc")
    lines = cli.ok("token", "list", "alice").splitlines()
    assert len(lines) == 2
    assert lines[1].split("\t")[2] == "a\\nb\\x1b[31m\\tc"


# --- tokens that are handed on, and caps ---------------------------------------------------------------------


def test_a_hook_is_set_and_its_token_is_the_same_every_time(cli: Cli) -> None:
    url = "https://alice.example/hooks/agent"

    def refused(*given: str, user: str = "alice") -> str:
        result = cli.run("user", "set-hook", user, *given)
        assert result.exit_code != 0
        return result.stderr

    assert "HOOKS_SECRET is not set" in refused(url)
    cli.env["HOOKS_SECRET"] = "x" * 40
    first, second = (cli.json("user", "set-hook", "alice", url) for _ in range(2))
    assert first == second == {"user": "alice", "url": url, "token": first["token"]}
    assert first["token"] in cli.ok("user", "set-hook", "alice", url)
    assert "expected a URL, or --none" in refused()
    assert "expected a URL, or --none" in refused(url, "--none")
    assert "expected an address that begins with https://" in refused("http://alice.example/hooks")
    assert "no user nobody" in refused(url, user="nobody")
    assert cli.json("user", "set-hook", "alice", "--none") == {"user": "alice", "url": None, "token": None}
    cli.env["HOOKS_SECRET"] = "short"
    assert "HOOKS_SECRET: expected 32 characters or more" in refused(url)


def test_a_child_is_made_with_its_terms_and_shown(cli: Cli) -> None:
    parent = cli.json("token", "create", "alice", "--label", "laptop")
    terms = (
        *("--surface", "anthropic", "--surface", "user", "--operation", "*", "--model", "claude-haiku-*"),
        *("--credits-per-day", "500", "--requests-per-month", "9", "--requests-per-minute", "3"),
    )
    child = cli.json("token", "create", "alice", "--parent", parent["token"], *terms)
    assert child["parent"] == parent["id"]
    assert child["scope"] == {
        "surfaces": ["anthropic", "user"],
        "operations": ["*"],
        "models": ["claude-haiku-*"],
    }
    assert child["limits"]["requests_per_minute"] == 3
    shown = cli.json("token", "show", child["token"])
    assert "token" not in shown
    assert [(cap["meter"], cap["limit"], cap["left"]) for cap in shown["caps"]] == [
        ("credits", 500, 500),
        ("requests", 9, 9),
    ]
    assert cli.json("token", "show", parent["id"])["living_descendants"] == 1
    facts = dict(line.split("\t") for line in cli.ok("token", "show", child["id"]).splitlines())
    assert facts["surfaces"] == "anthropic, user"
    assert facts["cap: credits per day"].startswith("0 of 500, 0 held, returns ")
    assert facts["requests per minute"] == "3"


def test_more_descendants_than_are_looked_at_are_not_passed_off_as_all(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = cli.json("token", "create", "alice")["id"]
    cli.ok("token", "create", "alice", "--parent", parent)
    for most, is_complete, fact in ((2, True, "1"), (1, False, "1 or more")):
        for module in ("metering.users", "automna_proxy.commands.tokens"):
            monkeypatch.setattr(f"{module}.TOKENS_LISTED_MAX", most)
        shown = cli.json("token", "show", parent)
        assert (shown["living_descendants"], shown["living_descendants_is_complete"]) == (1, is_complete)
        assert f"living descendants\t{fact}\n" in cli.ok("token", "show", parent)


def test_children_are_listed_below_their_parents(cli: Cli) -> None:
    one, two = (cli.json("token", "create", "alice", "--label", label) for label in ("one", "two"))
    cli.ok("token", "create", "alice", "--label", "below one", "--parent", one["id"], "--model", "a*")
    cli.ok(
        "token", "create", "alice", "--label", "below two", "--parent", two["id"], "--credits-per-day", "5000"
    )
    rows = [line.split("\t") for line in cli.ok("token", "list", "alice").splitlines()]
    assert rows[0] == ["prefix", "state", "label", "created", "expires", "parent", "may", "id"]
    assert [(row[2], row[5], row[6]) for row in rows[1:]] == [
        ("one", "", ""),
        ("below one", one["prefix"], "models a*"),
        ("two", "", ""),
        ("below two", two["prefix"], "5,000 credits a day"),
    ]


def test_revoking_a_parent_revokes_its_children(cli: Cli) -> None:
    parent = cli.json("token", "create", "alice")
    cli.ok("token", "create", "alice", "--parent", parent["id"])
    cli.ok("token", "revoke", parent["id"])
    assert {token["state"] for token in cli.json("token", "list", "alice")["tokens"]} == {"revoked"}


@pytest.mark.parametrize(
    ("args", "status", "expected"),
    [
        (("--parent", "tok_none"), 3, "there is no gateway token tok_none"),
        (("--parent", "BOB"), 1, "is not of user alice"),
        (("--parent", "ALICE", "--expires", "31d"), 1, "expected an expiry no later than the parent's, "),
        (("--credits-per-day", "-1"), 2, "caps[0].limit: given -1"),
        (("--model", ""), 2, "models: given [''], expected a list of 1 to 20 patterns"),
        (("--tokens-per-minute", "0"), 2, "limits.tokens_per_minute: given 0"),
    ],
)
def test_a_token_that_cannot_be_is_refused_and_says_why(
    cli: Cli, args: tuple[str, ...], status: int, expected: str
) -> None:
    cli.ok("user", "add", "bob")
    known = {
        "ALICE": cli.json("token", "create", "alice", "--expires", "30d")["id"],
        "BOB": cli.json("token", "create", "bob")["id"],
    }
    result = cli.run("token", "create", "alice", *(known.get(arg, arg) for arg in args))
    assert (result.exit_code, result.stdout) == (status, "")
    assert expected in one_line(result.stderr)


def test_a_users_caps_are_set_shown_and_taken_away(cli: Cli) -> None:
    cli.ok("user", "set-cap", "alice", "--credits-per-day", "2000", "--requests-per-month", "7")
    assert cli.json("user", "set-cap", "alice", "--credits-per-day", "3000")["caps"] == [
        {"meter": "credits", "period": "day", "limit": 3_000}
    ]
    (cap,) = cli.json("user", "show", "alice")["caps"]
    assert (cap["of"], cap["limit"], cap["used"], cap["left"]) == ("this account", 3_000, 0, 3_000)
    assert "cap: credits per day\t0 of 3,000, 0 held, returns " in cli.ok("user", "show", "alice")
    assert cli.ok("user", "set-cap", "alice", "--none") == "uncapped alice (plan pro, active)\n"
    assert cli.json("user", "show", "alice")["caps"] == []


@pytest.mark.parametrize("args", [(), ("--none", "--credits-per-day", "5")])
def test_caps_are_named_or_taken_away_but_not_both(cli: Cli, args: tuple[str, ...]) -> None:
    result = cli.run("user", "set-cap", "alice", *args)
    assert result.exit_code == 2
    assert "expected at least one cap, such as --credits-per-day N, or --none" in one_line(result.stderr)


# --- usage and the ledger -------------------------------------------------------------------------------------


def test_usage_is_what_was_booked(cli: Cli) -> None:
    cli.book(150_000)
    cli.book(50_000, model="claude-y")
    report = cli.json("usage", "alice", "--from", "2020-01-01", "--to", "2999-01-01")
    assert report["total"]["cost_nanousd"] == 200_000
    assert [group["model"] for group in report["groups"]] == ["claude-x", "claude-y"]
    lines = cli.ok("usage", "alice", "--from", "2020-01-01", "--by", "surface").splitlines()
    assert lines[1].split("\t") == ["anthropic", "2", "0", "0", "200000", "0", "0", "0", "2", "0.000200000"]
    assert len(lines) == 2


def test_usage_by_several_things_and_as_csv(cli: Cli) -> None:
    cli.book(150_000)
    cli.book(50_000, model="=claude-y")
    ever = ("usage", "alice", "--from", "2020-01-01", "--to", "2999-01-01")
    report = cli.json(*ever, "--by", "surface,model")
    assert [(group["surface"], group["model"], group["cost_nanousd"]) for group in report["groups"]] == [
        ("anthropic", "=claude-y", 50_000),
        ("anthropic", "claude-x", 150_000),
    ]
    lines = cli.ok(*ever, "--by", "token,model").splitlines()
    assert lines[0].split("\t")[:5] == ["token", "token prefix", "token label", "model", "requests"]
    assert lines[2].split("\t")[:5] == ["tok", "", "", "claude-x", "1"]
    text = cli.ok(*ever, "--by", "surface,model", "--csv")
    assert [(line["model"], line["cost_nanousd"]) for line in csv.DictReader(io.StringIO(text))] == [
        ("'=claude-y", "50000"),
        ("claude-x", "150000"),
    ]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--csv", "--json"), "given --json and --csv, expected one of them"),
        (("--by", "day,day"), "by: given 'day,day', expected up to 3 of day, month"),
        (("--from", "soon"), "from: given 'soon', expected YYYY-MM-DD"),
        (("--from", "2026-11-02", "--to", "2026-11-01"), "is not before"),
        (("--by", "hour"), "hour"),
    ],
)
def test_a_wrong_period_or_grouping_is_a_usage_error(cli: Cli, args: tuple[str, ...], expected: str) -> None:
    result = cli.run("usage", "alice", *args)
    assert result.exit_code == 2
    assert expected in result.stderr


def test_verify_is_0_for_a_clean_ledger(cli: Cli) -> None:
    cli.book(100)
    assert cli.ok("ledger", "verify").startswith("clean: 1 accounts, 1 reservations, 1 entries")
    assert cli.json("ledger", "verify")["is_clean"] is True


def test_verify_is_1_and_names_what_is_wrong(cli: Cli) -> None:
    cli.book(100)
    with sqlite3.connect(cli.path) as connection:
        connection.execute("UPDATE accounts SET spent = spent + 1")
    connection.close()
    done = cli.process("ledger", "verify")
    assert done.returncode == 1
    assert done.stdout.startswith("NOT CLEAN: 1 problems")
    assert "account user:alice money 2026-11" in done.stdout
    result = cli.run("ledger", "verify", "--json")
    assert (result.exit_code, json.loads(result.stdout)["problems_total"]) == (1, 1)


EVER = ("--from", "2020-01-01", "--to", "2999-01-01")


def test_reprice_corrects_what_was_booked_and_does_it_once(cli: Cli, tmp_path: Path) -> None:
    cli.book(150_000)
    cli.book(50_000)
    prices = table_file(tmp_path, "corrected", input_picousd=1_500, model="claude-x", vendor="anthropic")
    cli.env["PRICES_FILE"] = str(prices)
    dry = cli.json("ledger", "reprice", *EVER, "--dry-run")
    assert dry["total"] == {
        "entries": 2,
        "changed": 2,
        "old_nanousd": 200_000,
        "new_nanousd": 300_000,
        "difference_nanousd": 100_000,
    }
    assert (dry["is_dry_run"], dry["price_version"]) == (True, "corrected")
    assert cli.json("usage", "alice", *EVER)["total"]["cost_nanousd"] == 200_000
    lines = cli.ok("ledger", "reprice", *EVER).splitlines()
    assert [line.split("\t") for line in lines] == [
        ["model", "entries", "changed", "old_usd", "new_usd", "difference_usd"],
        ["claude-x", "2", "2", "0.000200000", "0.000300000", "0.000100000"],
    ]
    again = cli.json("ledger", "reprice", *EVER)
    assert (again["total"]["changed"], again["total"]["difference_nanousd"]) == (0, 0)
    assert cli.json("usage", "alice", *EVER)["total"]["cost_nanousd"] == 300_000
    assert cli.json("ledger", "verify")["entries"] == {"settle": 2, "adjust": 2}
    assert cli.json("ledger", "verify")["is_clean"] is True


def test_reprice_says_what_it_left_alone(cli: Cli) -> None:
    cli.book(100, model="claude-nobody-prices")
    done = cli.process("ledger", "reprice", *EVER)
    assert done.returncode == 0
    assert "1 requests have no price in the table" in done.stderr
    assert cli.json("ledger", "reprice", *EVER)["without_price"] == 1


@pytest.mark.parametrize(
    ("args", "status", "expected"),
    [
        (("--from", "2026-11-01"), 2, "--to"),
        (("--to", "2026-11-01"), 2, "--from"),
        (("--from", "2026-11-02", "--to", "2026-11-01"), 2, "is not before"),
        (("--from", "soon", "--to", "2026-11-01"), 2, "from: given 'soon'"),
    ],
)
def test_reprice_needs_a_time(cli: Cli, args: tuple[str, ...], status: int, expected: str) -> None:
    result = cli.run("ledger", "reprice", *args)
    assert (result.exit_code, result.stdout) == (status, "")
    assert expected in re.sub(r"\x1b\[[\d;]*m", "", result.stderr)


def test_tail_shows_the_newest_entries_oldest_first(cli: Cli) -> None:
    cli.ok("user", "add", "bob")
    for cost, user in ((1, "alice"), (2, "bob"), (3, "alice")):
        cli.book(cost, user=user)

    def costs(*args: str) -> list[int]:
        lines = cli.ok("ledger", "tail", "--json", *args).splitlines()
        return [json.loads(line)["cost_nanousd"] for line in lines]

    assert costs() == [1, 2, 3]
    assert costs("-n", "2") == [2, 3]
    assert costs("--user", "alice") == [1, 3]
    assert len(cli.ok("ledger", "tail").splitlines()) == 1 + 3
    assert cli.run("ledger", "tail", "-n", "0").exit_code == 2


def test_show_tells_what_was_held_for_a_request_and_what_was_booked(cli: Cli) -> None:
    for cost in (1, 2):
        cli.book(cost, user="alice")
    (_, wanted) = (json.loads(line) for line in cli.ok("ledger", "tail", "--json").splitlines())
    report = cli.json("ledger", "show", wanted["request_id"])
    assert (report["state"], report["user_id"], report["entries"]) == ("SETTLED", "alice", [wanted])
    assert report["hold_nanousd"] >= 2
    lines = cli.ok("ledger", "show", wanted["request_id"]).splitlines()
    assert "state\tSETTLED" in lines
    assert lines[-1].endswith("0.000000002")


def test_tail_follows_what_is_booked_meanwhile_until_it_is_stopped(cli: Cli) -> None:
    cli.ok("user", "add", "bob")
    cli.book(1)
    process = cli.spawn("ledger", "tail", "--follow", "--user", "alice", "--json")
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["cost_nanousd"] == 1
        cli.book(2, user="bob")
        cli.book(3)
        assert json.loads(process.stdout.readline())["cost_nanousd"] == 3
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_S)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        process.communicate()


def test_following_for_a_person_is_one_line_an_entry(cli: Cli) -> None:
    cli.book(711_001)
    process = cli.spawn("ledger", "tail", "-f")
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert "alice  settle/reported  claude-x  completed" in line
        assert "USD 0.000711001" in line
    finally:
        process.kill()
        process.communicate()


# --- what is configured -----------------------------------------------------------------------------------


def test_plans_are_listed(cli: Cli) -> None:
    plans = cli.json("plan", "list")["plans"]
    assert [plan["name"] for plan in plans] == ["free", "lite", "starter", "pro", "power", "business"]
    lines = cli.ok("plan", "list").splitlines()
    assert lines[0].split("\t") == ["limit", *(plan["name"] for plan in plans)]
    assert lines[1].split("\t")[:2] == ["credits_per_month", "10000"]


def test_prices_are_shown_exactly(cli: Cli) -> None:
    shown = cli.json("prices", "show", "claude-haiku-4-5-20251001")
    (model,) = shown["models"]
    assert (model["provider"], model["model"]["id"]) == ("anthropic", "claude-haiku-4-5")
    assert model["periods"][0]["tiers"][0]["unit_prices_picousd"]["input_tokens"] == 1_000_000
    header, first, *_ = cli.ok("prices", "show", "claude-haiku-4-5").splitlines()
    prices = dict(zip(header.split("\t"), first.split("\t"), strict=True))
    assert (prices["when"], prices["input"], prices["output"], prices["cache_write_5m"]) == (
        "always",
        "1.00",
        "5.00",
        "1.25",
    )
    assert prices["web_searches"] == "0.01"


def test_prices_of_a_long_prompt_and_of_modifiers_are_shown(cli: Cli) -> None:
    lines = [line.split("\t")[0] for line in cli.ok("prices", "show", "claude-opus-4-6").splitlines()]
    assert "prompt > 200,000" in lines
    assert "inference_geo=us" in lines


def test_an_unknown_model_is_answered_with_similar_ones(cli: Cli) -> None:
    assert "did you mean claude-" in cli.run("prices", "show", "claude-haiku-4-6").stderr


def test_settings_are_listed_without_their_values(cli: Cli) -> None:
    cli.env["ANTHROPIC_API_KEY"] = "sk-ant-secret"
    shown = {row["variable"]: row for row in cli.json("settings")["settings"]}
    assert shown["ANTHROPIC_API_KEY"]["is_set"] is True
    assert shown["METRICS_TOKEN"]["is_set"] is False
    assert set(shown) == {row.variable for row in table()}
    for args in ((), ("--json",), ("--markdown",)):
        assert "sk-ant-secret" not in cli.ok("settings", *args)


def test_settings_as_markdown_is_a_row_for_each(cli: Cli) -> None:
    lines = cli.ok("settings", "--markdown").splitlines()
    assert lines == settings_markdown(table())
    assert len(lines) == len(table()) + 2
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in lines)


# --- running ------------------------------------------------------------------------------------------------


def test_serve_hands_its_options_on_and_ends_with_the_servers_status(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def serve(settings: Any, **options: Any) -> int:
        seen.append((settings.database_url, options))
        return 3

    monkeypatch.setattr(server, "serve", serve)
    assert cli.run("serve", "--host", "::1", "--port", "0", "--workers", "2").exit_code == 3
    assert seen == [(cli.env["DATABASE_URL"], {"host": "::1", "port": 0, "workers": 2})]


def test_serve_on_a_port_in_use_is_status_5_and_names_it(cli: Cli) -> None:
    with closing(server.listen("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = cli.process("serve", "--port", port)
        assert done.returncode == 5
        assert f"cannot listen on 127.0.0.1:{port}: " in one_line(done.stderr)
        cli.env["METRICS_PORT"] = port
        done = cli.process("serve", "--port", "0")
        assert done.returncode == 5
        assert f"cannot listen on 127.0.0.1:{port}: " in one_line(done.stderr)
    cli.env["METRICS_PORT"] = "70000"
    result = cli.run("serve")
    assert result.exit_code == 5
    assert "METRICS_PORT: given '70000', expected a number of port from 0 to 65535" in one_line(result.stderr)
    assert cli.run("serve", "--workers", "0").exit_code == 2


@pytest.mark.parametrize(
    ("variable", "given", "said"),
    [
        ("PLANS_FILE", "/none/plans.toml", "/none/plans.toml"),
        ("PRICES_FILE", "/none/prices.json", "/none/prices.json"),
        ("ANTHROPIC_UPSTREAM_URL", "https://vendor.example/path", "ANTHROPIC_UPSTREAM_URL"),
    ],
)
def test_serve_with_what_cannot_be_used_is_status_5_and_leaves_the_store_alone(
    fresh: Cli, variable: str, given: str, said: str
) -> None:
    """A store that was migrated by a server that cannot start would be refused by the version before."""
    fresh.env[variable] = given
    done = fresh.process("serve", "--port", "0")
    assert done.returncode == 5
    assert said in one_line(done.stderr)
    assert not fresh.path.exists()


def test_serve_with_machines_that_cannot_be_made_is_status_5(fresh: Cli) -> None:
    fresh.env |= {"FLY_API_TOKEN": "fo1_test", "FLY_ORG": "test", "PUBLIC_URL": "https://proxy.example.com"}
    fresh.env |= {"MACHINE_IMAGE": "registry.example/agent:latest"}
    done = fresh.process("serve", "--port", "0")
    assert done.returncode == 5
    assert "MACHINE_IMAGE" in one_line(done.stderr)
    assert not fresh.path.exists()


@pytest.mark.parametrize(("args", "is_once"), [(("demo",), False), (("demo", "--once"), True)])
def test_demo_ends_with_its_status(
    fresh: Cli, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], is_once: bool
) -> None:
    seen: list[bool] = []
    fake = SimpleNamespace(run=lambda *, once: seen.append(once) or 0)
    monkeypatch.setitem(sys.modules, "automna_proxy.demo", fake)
    assert fresh.run(*args).exit_code == 0
    assert seen == [is_once]


# --- how it speaks ------------------------------------------------------------------------------------------


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_command_and_option_explains_itself(fresh: Cli, command: tuple[str, ...]) -> None:
    fresh.ok(*command, "--help")
    found: Any = typer.main.get_command(app)
    for name in command:
        found = found.commands[name]
    assert found.help
    assert all(getattr(param, "help", None) for param in found.params), "an option without a word"


@pytest.mark.parametrize("command", [("token", "revoke"), ("user", "disable")], ids=" ".join)
def test_help_says_what_losing_access_does_to_requests_in_flight(
    fresh: Cli, command: tuple[str, ...]
) -> None:
    """As `tests/integration/test_lost_access.py` has it."""
    text = " ".join(fresh.ok(*command, "--help").split())
    assert "Streams and websockets are cut off; answers in one piece may finish" in text


@pytest.mark.parametrize(
    "args", [("plan", "list"), ("usage", "alice", "--csv"), ("token", "list", "alice", "--json")]
)
def test_an_answer_that_cannot_be_written_is_one_line(cli: Cli, args: tuple[str, ...]) -> None:
    """As on a full disk."""
    with Path("/dev/full").open("w") as full:
        process = cli.spawn(*args, stdout=full)
        _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert "cannot write to standard output: No space left on device" in one_line(said)


def test_an_answer_to_a_closed_output_is_not_taken_for_given(cli: Cli) -> None:
    process = cli.spawn("plan", "list", stdout=None, preexec_fn=lambda: os.close(1))
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert "cannot write to standard output: it is closed" in one_line(said)


def test_of_a_token_that_cannot_be_written_its_id_is_said(cli: Cli) -> None:
    """It lives, and only its id takes it away."""
    with Path("/dev/full").open("w") as full:
        process = cli.spawn("token", "create", "alice", stdout=full)
        _, said = process.communicate(timeout=WAIT_S)
    (token,) = cli.json("token", "list", "alice")["tokens"]
    made, failed = said.splitlines()
    assert process.returncode == 1
    assert token["id"] in made
    assert "cannot write to standard output" in failed


def test_help_says_what_the_exit_statuses_mean(fresh: Cli) -> None:
    text = " ".join(fresh.ok("--help").split())
    for words in ("0 done", "1 the answer is no", "2 wrong usage", "3 no such", "4 the store", "5 a setting"):
        assert words in text


def test_the_version_is_that_of_the_package(fresh: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automna_proxy.cli.version", lambda name: f"1.2.3 of {name}")
    assert fresh.ok("--version") == "automna-proxy 1.2.3 of automna-proxy\n"


def test_bytes_that_are_no_text_are_a_usage_error(cli: Cli) -> None:
    done = cli.process("usage", os.fsdecode(b"\xff"))
    assert done.returncode == 2
    assert "UTF-8" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("columns", "by"), [(40, "model"), (80, "model"), (160, "model"), (40, "token"), (160, "token,model")]
)
def test_a_terminal_gets_a_table_no_wider_than_itself(cli: Cli, columns: int, by: str) -> None:
    cli.book(711_001, model="claude-with-a-long-name-20261120")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = cli.spawn("usage", "alice", "--from", "2020-01-01", "--by", by, stdout=theirs, stdin=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65_536):
            shown += chunk
    except OSError:  # how Linux ends the reading of a terminal
        pass
    _, err = process.communicate(timeout=WAIT_S)
    os.close(ours)
    assert (process.returncode, err) == (0, "")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert "Usage of alice" in plain
    assert ("cache\n" in re.sub(r" +", "\n", plain)) == (columns == 160), "what is dispensable is left out"
    if columns > 40:
        assert "claude-with-a-long-name-20261120" in plain
        assert "0.000711001" in plain
    assert "─" in plain
    assert max(len(line) for line in plain.splitlines()) <= columns


def test_migrating_first_is_not_needed_beside_a_running_store(cli: Cli) -> None:
    """A server holds the store open, with its own writer, while commands come and go."""

    async def beside() -> None:
        database = Database(cli.path)
        assert migrate(database, SystemClock()) == []
        async with open_store(database) as store:
            directory = Directory(store, SystemClock())
            await directory.add_user("bob", plan="free")
            seq = await directory.last_change()
            done = await asyncio.to_thread(cli.process, "user", "disable", "bob")
            assert done.returncode == 0, done.stderr
            assert [(kind, subject) for _, kind, subject in await directory.changes_since(seq)] == [
                ("user", "bob")
            ]
            assert (await directory.user("bob")).status == "disabled"

    asyncio.run(beside())


# --- notices and the outbox --------------------------------------------------------------------------


def notice(cli: Cli, percent: int, *, user: str = "alice", is_sent: bool = True) -> str:
    """A threshold reached, as a server would write it; its message's id."""

    async def write() -> str:
        async with open_store(Database(cli.path)) as store:
            now_ms = SystemClock().now_ms()
            message = new_message("budget.threshold_reached", ENDPOINT, {"percent": percent}, now_ms)
            ident = message.id if is_sent else None
            params = (user, month_of(now_ms), percent, now_ms, percent * 10**9, 10**11, "pro", ident)
            steps = [Step(INSERT_NOTICE, params)] + ([adding(message)] if is_sent else [])
            await store.writer.submit(Unit(steps))
            return message.id

    return asyncio.run(write())


def test_notices_show_which_thresholds_were_reached_and_whether_they_were_told(cli: Cli) -> None:
    cli.ok("user", "add", "bob", "--plan", "pro")
    notice(cli, 50)
    notice(cli, 80, is_sent=False)
    notice(cli, 50, user="bob")
    rows = [line.split("\t")[1:] for line in cli.ok("notices", "list", "alice").splitlines()]
    assert ["alice", "50", "500000", "1000000", "pro", "waiting"] in rows
    assert ["alice", "80", "800000", "1000000", "pro", "not sent"] in rows
    shown = cli.json("notices", "list")["notices"]
    assert sorted((each["user"], each["threshold_percent"]) for each in shown) == [
        ("alice", 50),
        ("alice", 80),
        ("bob", 50),
    ]
    assert cli.run("notices", "list", "nobody").exit_code == 3


def test_the_outbox_shows_what_waits_and_sends_again_what_is_not_delivered(cli: Cli) -> None:
    first, second = notice(cli, 50), notice(cli, 80)
    with closing(sqlite3.connect(cli.path)) as store:
        store.execute(
            "UPDATE outbox SET gave_up_at_ms = 1, attempts = 12, last_error = 'x' WHERE id = ?", (first,)
        )
        store.execute("UPDATE outbox SET delivered_at_ms = 1, attempts = 1 WHERE id = ?", (second,))
        store.commit()
    states = {message["id"]: message["state"] for message in cli.json("outbox", "list")["messages"]}
    assert states == {first: "given up", second: "delivered"}
    assert f"{first}\tbudget.threshold_reached\tnotices\tgiven up\t12\tx" in cli.ok("outbox", "list")
    again = cli.json("outbox", "retry", first)
    assert (again["state"], again["attempts"]) == ("waiting", 0)
    delivered = cli.run("outbox", "retry", second)
    assert (delivered.exit_code, "is delivered already" in one_line(delivered.stderr)) == (1, True)
    unknown = cli.run("outbox", "retry", "msg_x")
    assert (unknown.exit_code, "no message msg_x" in one_line(unknown.stderr)) == (3, True)


def test_a_server_with_half_of_an_endpoint_does_not_start(cli: Cli) -> None:
    cli.env["NOTICES_URL"] = "https://x.test/hooks"
    refused = cli.run("serve")
    assert refused.exit_code == 5
    assert one_line(refused.stderr).startswith(
        "automna-proxy: NOTICES_SECRET: unset, though NOTICES_URL is set"
    )


# --- phone numbers ------------------------------------------------------------------------------------


def test_a_phone_number_is_assigned_listed_and_released(cli: Cli) -> None:
    cli.ok("user", "add", "bob", "--plan", "pro")
    number, other = "+14155550100", "+14155550101"
    assert cli.json("phone", "list") == {"phone_numbers": []}
    assert cli.ok("phone", "assign", "alice", number).strip() == f"{number} is alice's"
    for args in (("phone", "assign", "bob", number), ("phone", "assign", "alice", other)):
        refused = cli.run(*args)
        assert (refused.exit_code, number in one_line(refused.stderr)) == (1, True)
    assert cli.json("phone", "assign", "alice", other, "--replace")["replaced"] == number
    assert "in full" in one_line(cli.run("phone", "assign", "bob", "415").stderr)
    cli.ok("phone", "assign", "bob", number)
    (now,) = [one for one in cli.json("phone", "list")["phone_numbers"] if one["user"] == "bob"]
    assert (now["phone_number"], now["until"]) == (number, None)
    assert cli.ok("phone", "release", number).startswith(f"released {number}, which was bob's since ")
    shown = {(one["phone_number"], one["user"]) for one in cli.json("phone", "list")["phone_numbers"]}
    assert shown == {(other, "alice")}
    assert len(cli.ok("phone", "list", "--all").splitlines()) == 4
    assert cli.json("phone", "release", other) == {"user": "alice", "phone_number": other}


# --- objects ------------------------------------------------------------------------------------------

INBOX = ObjectId("agentmail", "inbox", "wren@agentmail.to")
RESPONSE = ObjectId("openai", "response", "resp_a1")


def bind(cli: Cli, *objects: ObjectId, user: str = "alice", gone: tuple[ObjectId, ...] = ()) -> None:
    """As a server does when a vendor hands them out, and when their user deletes some."""

    async def write() -> None:
        async with open_store(Database(cli.path)) as store:
            known = Objects(store, SystemClock())
            await known.bind(objects, user, "req_7")
            for one in gone:
                known.mark_gone(one, user)

    asyncio.run(write())


def test_objects_are_listed_with_their_owners(cli: Cli) -> None:
    cli.ok("user", "add", "bob", "--plan", "pro")
    bind(cli, INBOX, RESPONSE, gone=(INBOX,))
    bind(cli, RESPONSE._replace(upstream_id="resp_b"), user="bob")
    names, *rows = (line.split("\t") for line in cli.ok("objects", "list", "alice").splitlines())
    assert names == ["since", "user", "vendor", "kind", "id", "gone", "request"]
    shown = {row[4]: (row[1], row[2], row[3], bool(row[5]), row[6]) for row in rows}
    assert shown == {
        "wren@agentmail.to": ("alice", "agentmail", "inbox", True, "req_7"),
        "resp_a1": ("alice", "openai", "response", False, "req_7"),
    }

    def ids(*args: str) -> set[str]:
        return {each["id"] for each in cli.json("objects", "list", *args)["objects"]}

    assert ids() == {"wren@agentmail.to", "resp_a1", "resp_b"}
    assert ids("--vendor", "openai") == {"resp_a1", "resp_b"}
    assert ids("bob", "--kind", "response") == {"resp_b"}
    assert ids("--gone") == {"wren@agentmail.to"}
    assert len(ids("--limit", "2")) == 2


@pytest.mark.parametrize(
    ("upstream_id", "status"), [("wren@agentmail.to", 0), ("Wren@AgentMail.TO", 0), ("wrens@agentmail.to", 3)]
)
def test_an_address_is_found_in_any_case(cli: Cli, upstream_id: str, status: int) -> None:
    bind(cli, INBOX, gone=(INBOX,))
    result = cli.run("objects", "show", "agentmail", "inbox", upstream_id, "--json")
    assert result.exit_code == status
    if not status:
        shown = json.loads(result.stdout)
        assert (shown["user"], shown["id"], shown["request"]) == ("alice", INBOX.upstream_id, "req_7")
        assert shown["since"] <= shown["gone_at"]
        assert "user\talice" in cli.ok("objects", "show", "agentmail", "inbox", upstream_id)


def test_other_ids_are_found_as_they_are_written(cli: Cli) -> None:
    bind(cli, RESPONSE)
    assert cli.json("objects", "show", *RESPONSE)["gone_at"] is None
    assert cli.run("objects", "show", "openai", "response", "RESP_A1").exit_code == 3
    assert cli.run("objects", "release", "openai", "response", "RESP_A1", "--yes").exit_code == 3


def test_an_object_is_released_once_and_may_be_anothers_then(cli: Cli) -> None:
    bind(cli, INBOX)
    released = cli.ok("objects", "release", "agentmail", "inbox", "WREN@agentmail.to", "--yes")
    assert released.startswith("released agentmail inbox wren@agentmail.to, which was alice's since ")
    again = cli.run("objects", "release", *INBOX, "--yes")
    assert (again.exit_code, "it is released" in one_line(again.stderr)) == (3, True)
    bind(cli, INBOX, user="bob")
    assert cli.json("objects", "release", *INBOX, "--yes")["user"] == "bob"
    assert cli.json("ledger", "verify")["is_clean"]


def test_a_sweep_leaves_out_vendors_without_a_key_and_says_which_cannot_be_reached(cli: Cli) -> None:
    assert (cli.ok("objects", "sweep"), cli.json("objects", "sweep")) == ("", {"sweeps": []})
    cli.env |= {"AGENTMAIL_API_KEY": "k", "AGENTMAIL_UPSTREAM_URL": "http://127.0.0.1:9"}
    result = cli.run("objects", "sweep", "--dry-run")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "agentmail cannot be asked" in one_line(result.stderr)
    cli.env["AGENTMAIL_UPSTREAM_URL"] = "nowhere"
    assert cli.run("objects", "sweep").exit_code == 5


def test_an_object_of_a_user_with_a_request_under_way_is_not_released(cli: Cli) -> None:
    bind(cli, RESPONSE)

    async def hold() -> None:
        async with open_store(Database(cli.path)) as store:
            hold = Hold("user:alice", OPEN_REQUESTS, NO_PERIOD, 1, 10)
            intent = Intent("req_8", "alice", "tok", "openai", "POST /x", None, (hold,))
            assert isinstance(await Ledger(store, SystemClock(), "wrk_1").reserve(intent), Reservation)

    asyncio.run(hold())
    result = cli.run("objects", "release", *RESPONSE, "--yes")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "alice has requests under way" in one_line(result.stderr)
    assert cli.json("objects", "show", *RESPONSE)["user"] == "alice"


def test_without_a_terminal_nothing_is_released_unless_it_is_said(cli: Cli) -> None:
    bind(cli, RESPONSE)
    result = cli.run("objects", "release", *RESPONSE)
    assert (result.exit_code, "expected --yes" in one_line(result.stderr)) == (2, True)
    assert cli.json("objects", "show", *RESPONSE)["user"] == "alice"


@pytest.mark.parametrize(("said", "status", "left"), [("y", 0, 0), ("n", 1, 1), ("", 1, 1)])
def test_on_a_terminal_it_is_asked(cli: Cli, said: str, status: int, left: int) -> None:
    bind(cli, RESPONSE)
    ours, theirs = pty.openpty()
    process = cli.spawn("objects", "release", *RESPONSE, stdin=theirs)
    os.close(theirs)
    os.write(ours, f"{said}\n".encode())
    _, err = process.communicate(timeout=WAIT_S)
    os.close(ours)
    assert (process.returncode, "openai response resp_a1 is alice's. Release it?" in err) == (status, True)
    assert len(cli.json("objects", "list")["objects"]) == left
