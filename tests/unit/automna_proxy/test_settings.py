"""Settings: read once, refused with words, and documented row by row."""

from pathlib import Path

import pytest

from automna_proxy.commands.catalog import settings_markdown
from automna_proxy.service import bounds_of
from automna_proxy.settings import SettingError, Settings, table

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
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_what_is_expected(variable, given, said):
    with pytest.raises(SettingError, match=f"^{variable}: given '{given}', {said}"):
        Settings.from_env({variable: given})


def test_the_engine_takes_its_bounds_from_the_settings_of_the_same_names():
    bounds = bounds_of(Settings.from_env({"DRAINS_MAX": "7", "CHECKPOINT_S": "9"}))
    assert (bounds.drains_max, bounds.checkpoint_s) == (7, 9)
