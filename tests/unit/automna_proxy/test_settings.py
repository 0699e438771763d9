"""Settings: read once, refused with words, and documented row by row."""

import re
from pathlib import Path

import pytest

from automna_proxy.commands.catalog import settings_markdown
from automna_proxy.service import bounds_of
from automna_proxy.settings import SettingError, Settings, table, vendor_settings
from provisioning.names import app_names

README = Path(__file__).resolve().parents[3] / "README.md"


def test_the_readme_shows_exactly_the_settings_there_are():
    text = README.read_text(encoding="utf-8")
    shown = text.split("<!-- settings -->")[1].split("<!-- /settings -->")[0]
    assert shown.strip().splitlines() == settings_markdown(table())


def test_every_setting_says_what_it_means_and_numbers_their_unit():
    for row in table():
        assert row.meaning, row
        is_number = row.default.replace(".", "").isdigit()
        assert bool(row.unit) == is_number, row


def test_an_empty_environment_gives_the_defaults():
    assert Settings.from_env({}) == Settings()


def test_an_empty_value_counts_as_unset():
    assert Settings.from_env({"BODY_BYTES_MAX": "", "ANTHROPIC_API_KEY": ""}) == Settings()


def test_values_are_read_in_their_unit():
    settings = Settings.from_env({"SETTLE_WAIT_S": "1.5", "BODY_BYTES_MAX": " 1000 ", "LOG_FORMAT": "json"})
    assert (settings.settle_wait_s, settings.body_bytes_max, settings.log_format) == (1.5, 1000, "json")


def test_only_the_variables_that_surfaces_declare_are_kept():
    settings = Settings.from_env({"ANTHROPIC_API_KEY": "k", "AWS_SECRET_ACCESS_KEY": "not ours"})
    assert settings.vendors == {"ANTHROPIC_API_KEY": "k"}


@pytest.mark.parametrize(
    ("variable", "given", "said"),
    [
        ("BODY_BYTES_MAX", "many", "expected a number of bytes from 1"),
        ("BODY_BYTES_MAX", "0", "expected a number of bytes from 1"),
        ("BODY_BYTES_MAX", "1.5", "expected a number of bytes from 1"),
        ("SETTLE_WAIT_S", "-1", "expected a number of s from 0"),
        ("SETTLE_WAIT_S", "nan", "expected a number of s from 0"),
        ("SETTLE_WAIT_S", "inf", "expected a number of s from 0"),
        ("LOG_FORMAT", "xml", "expected console or json"),
        ("PUBLIC_URL", "proxy.example.com", "expected scheme and host"),
        ("PUBLIC_URL", "https://proxy.example.com/", "expected scheme and host"),
        ("LOG_LEVEL", "loud", "expected debug, info, warning or error"),
        ("MACHINES_REPAIR", "yes", "expected on or off"),
        ("MACHINES_SUSPEND_OVER_BUDGET", "true", "expected on or off"),
        ("MACHINES_AT_ONCE", "0", "expected a number of machines from 1 to 64"),
        ("MACHINES_RECONCILE_EVERY_S", "-1", "expected a number of s from 0"),
        ("FLY_API_URL", "https://api.machines.dev/v1", "expected scheme and host"),
        ("FLY_API_URL", "api.machines.dev", "expected scheme and host"),
        ("FLY_GATEWAY_URL", "https://agents.fly.dev", "expected an address with {app} in it"),
        ("FLY_GATEWAY_URL", "https://{app}.fly.dev/", "expected an address with {app} in it"),
        ("FLY_GATEWAY_URL", "{app}.fly.dev", "expected an address with {app} in it"),
        ("FLY_GATEWAY_URL", "https://x.dev/{app}?a=1", "expected an address with {app} in it"),
        ("FLY_APP_PREFIX", "Automna-", "expected a letter and then lower-case letters"),
        ("FLY_APP_PREFIX", "-u-", "expected a letter and then lower-case letters"),
        ("FLY_APP_PREFIX", "a" * 43, "expected a letter and then lower-case letters"),
        ("AGENTMAIL_INBOXES_PER_USER", "few", "expected a whole number of inboxes"),
        ("ANTHROPIC_DEFAULT_INFERENCE_GEO", "eu", "expected global or us"),
        ("OPENAI_DEFAULT_SERVICE_TIER", "Priority", "expected default, priority or flex"),
        ("OPENAI_REGION", "mars", "expected two letters, as in eu"),
        ("BRAVE_UNBILLED", "local rich", "expected local, rich, or both with a comma"),
        ("BROWSERBASE_TICKET_ONCE", "2", "expected 0 or 1"),
        ("BLAND_DESTINATIONS", "1", "expected + and digits"),
        ("BLAND_NOT_DESTINATIONS", "+1242;+1246", "expected + and digits"),
        ("BLAND_NOT_DESTINATIONS", "+1242,1246", "expected + and digits"),
        ("BLAND_NOT_DESTINATIONS", "+1 242", "expected + and digits"),
        ("BLAND_NOT_DESTINATIONS", "+1242,", "expected + and digits"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_what_is_expected(variable, given, said):
    with pytest.raises(SettingError, match=f"^{variable}: given '{re.escape(given)}', {re.escape(said)}"):
        Settings.from_env({variable: given})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"CHANGES_POLL_S": "2"}, "CHANGES_STALE_AFTER_S: given 1, expected no less than CHANGES_POLL_S (2)"),
        (
            {"CHANGES_STALE_AFTER_S": "0.2"},
            "CHANGES_STALE_AFTER_S: given 0.2, expected no less than CHANGES_POLL_S (0.25)",
        ),
        ({"HEARTBEAT_S": "6"}, "WORKER_DEAD_AFTER_S: given 10, expected no less than twice HEARTBEAT_S (6)"),
        (
            {"WORKER_DEAD_AFTER_S": "1.9"},
            "WORKER_DEAD_AFTER_S: given 1.9, expected no less than twice HEARTBEAT_S (1)",
        ),
    ],
)
def test_what_is_looked_at_too_seldom_for_its_bound_is_refused(given, said):
    with pytest.raises(SettingError, match=f"^{re.escape(said)}: "):
        Settings.from_env(given)


def test_bounds_of_just_one_look_and_two_beats_are_taken():
    settings = Settings.from_env({"CHANGES_POLL_S": "1", "HEARTBEAT_S": "5"})
    assert (settings.changes_poll_s, settings.heartbeat_s) == (1.0, 5.0)


def test_switches_are_on_or_off():
    settings = Settings.from_env({"MACHINES_REPAIR": "on", "MACHINES_SUSPEND_OVER_BUDGET": " off "})
    assert (settings.machines_repair, settings.machines_suspend_over_budget) == (True, False)
    assert [Settings.from_env({"PHASE_TIMES": given}).phase_times for given in ("1", "0")] == [True, False]
    defaults = {row.variable: row.default for row in table()}
    assert defaults["MACHINES_REPAIR"] == "off", "as it would be set"


@pytest.mark.parametrize(
    "url",
    [
        "http://_api.internal:4280",
        "http://127.0.0.1:9001",
        "http://[fdaa::3]:4280",
        "https://api.machines.dev",
    ],
)
def test_the_machines_api_may_be_reached_within_the_vendors_own_network(url):
    assert Settings.from_env({"FLY_API_URL": url}).fly_api_url == url


def test_a_gateways_address_may_have_a_path():
    url = "http://127.0.0.1:9001/gateway/{app}"
    assert Settings.from_env({"FLY_GATEWAY_URL": url}).fly_gateway_url == url


def test_the_longest_prefix_leaves_room_for_whose_an_app_is():
    prefix = Settings.from_env({"FLY_APP_PREFIX": "a" * 42}).fly_app_prefix
    assert {len(name) for name in app_names(prefix, "alice")} == {62}


MACHINES = {
    "FLY_API_TOKEN": "fm2_secret",
    "FLY_ORG": "platform",
    "MACHINE_IMAGE": "registry.example/agent@sha256:" + "0" * 64,
    "PUBLIC_URL": "https://proxy.example.com",
}


@pytest.mark.parametrize("missing", ["FLY_ORG", "MACHINE_IMAGE", "PUBLIC_URL"])
def test_with_a_token_of_fly_all_must_be_set_that_a_machine_needs(missing):
    assert Settings.from_env(MACHINES).fly_api_token == "fm2_secret"
    with pytest.raises(SettingError, match=f"^{missing}: unset, though FLY_API_TOKEN is set"):
        Settings.from_env({**MACHINES, missing: ""})
    assert Settings.from_env({**MACHINES, missing: "", "FLY_API_TOKEN": ""}).fly_api_token == ""


def test_a_scheme_alone_is_no_token_of_fly():
    with pytest.raises(SettingError, match=r"^FLY_API_TOKEN: given its scheme alone"):
        Settings.from_env({**MACHINES, "FLY_API_TOKEN": "FlyV1 "})


def test_a_short_admin_token_is_refused_without_being_shown():
    assert Settings.from_env({"ADMIN_TOKEN": "x" * 32}).admin_token == "x" * 32
    with pytest.raises(SettingError, match=r"^ADMIN_TOKEN: expected 32 characters or more") as error:
        Settings.from_env({"ADMIN_TOKEN": "hunter" * 5})
    assert "hunter" not in str(error.value)


def test_what_surfaces_declare_takes_its_own_defaults_and_what_its_words_name():
    given = {option.variable: option.default for option in vendor_settings() if option.default}
    given |= {"BRAVE_UNBILLED": "local, rich", "OPENAI_REGION": "eu", "BLAND_DESTINATIONS": "+1, +44"}
    assert Settings.from_env(given).vendors == given


@pytest.mark.parametrize(
    "key", ["two words", "two\nlines", "schl\N{LATIN SMALL LETTER U WITH DIAERESIS}ssel"]
)
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key):
    with pytest.raises(SettingError, match=r"^BRAVE_SUGGEST_API_KEY: expected a key without blanks") as error:
        Settings.from_env({"BRAVE_SUGGEST_API_KEY": key})
    assert key not in str(error.value)


def test_secrets_are_in_no_representation():
    names = (
        "ADMIN_TOKEN",
        "METRICS_TOKEN",
        "HOOKS_SECRET",
        "BLAND_WEBHOOK_SECRET",
        "ANTHROPIC_API_KEY",
        "BLAND_BYOT_KEY",
    )
    shown = repr(Settings.from_env({**MACHINES, **dict.fromkeys(names, "hunter" * 6)}))
    assert "fm2_secret" not in shown
    assert "hunter" not in shown


def test_the_engine_takes_its_bounds_from_the_settings_of_the_same_names():
    bounds = bounds_of(Settings.from_env({"DRAINS_MAX": "7", "CHECKPOINT_S": "9"}))
    assert (bounds.drains_max, bounds.checkpoint_s) == (7, 9)
