"""fly.toml says what the code and the Dockerfile say."""

import tomllib
from pathlib import Path

import pytest
import typer.main

from automna_proxy import container
from automna_proxy.cli import app
from automna_proxy.server import KILL_GRACE_S
from automna_proxy.settings import Settings, table
from metering.store.database import Database
from routes.health import health_routes
from scripts.image_root import Stage, parse

ROOT = Path(__file__).parents[3]
FLY = tomllib.loads((ROOT / "fly.toml").read_text(encoding="utf-8"))
STAGES = {stage.name: stage for stage in parse((ROOT / "Dockerfile").read_text(encoding="utf-8"))}
SERVICE = FLY["http_service"]
FLY_KILL_TIMEOUT_MAX_S = 300
"""Fly's documentation of fly.toml, `kill_timeout`."""


@pytest.fixture
def settings() -> Settings:
    return Settings.from_env(FLY["env"])


def told(stage: Stage, word: str) -> list[str]:
    return [instruction.rest for instruction in stage.instructions if instruction.word == word]


def serve_options() -> dict[str, str]:
    """What the command of fly.toml gives to `serve`, read by the command line itself."""
    command, *words = FLY["processes"]["app"].split()
    assert command == "serve"
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    context = serve.make_context("serve", words, resilient_parsing=False)
    return dict(context.params)


def test_every_variable_is_a_setting_and_none_is_a_secret() -> None:
    known = {row.variable for row in table()}
    assert set(FLY["env"]) <= known
    assert all(isinstance(value, str) for value in FLY["env"].values())
    assert [name for name in FLY["env"] if name.endswith(("_KEY", "_TOKEN", "_SECRET"))] == []


def test_the_store_lies_on_the_volume_that_the_image_gives_to_its_user(settings: Settings) -> None:
    folder = Database.from_url(settings.database_url).path.parent
    assert folder == container.DATA == Path(FLY["mounts"]["destination"])
    assert FLY["build"]["build-target"] == "fly"
    assert told(STAGES["fly"], "USER") == []


def test_the_image_agrees_with_the_step_down_about_the_user() -> None:
    assert told(STAGES["serve"], "USER") == [f"{container.SERVICE_ID}:{container.SERVICE_ID}"]
    owner = f'"-o", "{container.SERVICE_ID}", "-g", "{container.SERVICE_ID}", "{container.DATA}"'
    assert any(owner in step for step in told(STAGES["fly"], "RUN"))


def test_ports_are_those_that_the_server_listens_on(settings: Settings) -> None:
    assert serve_options()["port"] == SERVICE["internal_port"]
    assert told(STAGES["fly"], "EXPOSE") == [str(SERVICE["internal_port"])]
    (metrics,) = FLY["metrics"]
    assert metrics["port"] == settings.metrics_port != SERVICE["internal_port"]


def test_paths_are_those_that_the_server_answers() -> None:
    paths = {route.path for route in health_routes(None, None, metrics_token="", metrics_port=0)}  # type: ignore[arg-type]
    assert FLY["metrics"][0]["path"] in paths
    (check,) = SERVICE["checks"]
    assert check["path"] == "/readyz"
    assert check["path"] in paths


def test_fly_waits_until_streams_have_ended_and_the_ledger_is_flushed(settings: Settings) -> None:
    assert FLY["kill_signal"] == "SIGTERM" == told(STAGES["fly"], "STOPSIGNAL")[0]
    streams_s = settings.drain_notice_s + settings.drain_streams_s
    takes_s = streams_s + settings.store_busy_timeout_s + KILL_GRACE_S
    assert takes_s < FLY["kill_timeout"] <= FLY_KILL_TIMEOUT_MAX_S


def test_fly_does_not_close_connections_on_which_a_model_thinks(settings: Settings) -> None:
    assert SERVICE["http_options"]["idle_timeout"] > max(
        settings.idle_timeout_s, settings.first_byte_timeout_s
    )


def test_a_draining_machine_is_seen_within_the_notice(settings: Settings) -> None:
    (check,) = SERVICE["checks"]
    assert float(check["interval"].removesuffix("s")) <= settings.drain_notice_s


def test_there_is_one_machine_that_never_sleeps() -> None:
    assert (SERVICE["auto_stop_machines"], SERVICE["min_machines_running"]) == ("off", 1)
    assert SERVICE["force_https"] is True
    assert FLY["deploy"]["strategy"] == "rolling"
    assert SERVICE["concurrency"]["type"] == "requests"
    processes = [SERVICE, FLY["mounts"], *FLY["metrics"], *FLY["vm"], *FLY["restart"]]
    assert all(part["processes"] == list(FLY["processes"]) == ["app"] for part in processes)
