"""`python -m bench`: what may be asked for."""

import pytest

from bench.__main__ import QUICK_SECONDS, REPEATS, SECONDS, options
from bench.measure import MEASUREMENTS


def test_without_options_everything_is_measured_at_length():
    chosen = options([])
    assert chosen.only == [measurement.name for measurement in MEASUREMENTS]
    assert (chosen.seconds, chosen.repeats) == (SECONDS, REPEATS)


def test_a_quick_run_is_one_short_run_of_each():
    chosen = options(["--quick"])
    assert (chosen.seconds, chosen.repeats) == (QUICK_SECONDS, 1)


def test_seconds_that_are_given_hold_for_a_quick_run_too():
    assert options(["--quick", "--seconds", "5"]).seconds == 5.0


def test_a_check_measures_what_has_a_floor():
    assert options(["--check"]).only == ["requests", "bursts"]


def test_only_may_be_repeated():
    assert options(["--only", "long", "--only", "paced"]).only == ["long", "paced"]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--only", "nothing"],
        ["--seconds", "0"],
        ["--seconds", "nan"],
        ["--repeats", "-1"],
        ["--repeats", "x"],
    ],
)
def test_what_cannot_be_measured_is_refused(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        options(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err
