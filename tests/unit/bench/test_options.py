"""`python -m bench`: what may be asked for."""

import pytest

from bench.__main__ import COMPARED_SECONDS, QUICK_SECONDS, REPEATS, ROUNDS, SECONDS, options
from bench.measure import MEASUREMENTS

OWN = ["requests", "bursts", "latency", "long", "huge", "paced", "history", "population", "workers", "tls"]


def test_without_options_what_is_documented_is_measured_at_length():
    chosen = options([])
    assert chosen.only == OWN
    assert (chosen.seconds, chosen.repeats) == (SECONDS, REPEATS)
    assert chosen.is_documented


def test_all_is_that_and_the_other_vendors():
    chosen = options(["--all"])
    assert sorted(chosen.only) == sorted({*OWN, *(measurement.name for measurement in MEASUREMENTS)})
    assert chosen.is_documented


def test_a_quick_run_is_one_short_run_of_each():
    chosen = options(["--quick"])
    assert chosen.only == OWN
    assert options(["--quick", "--only", "long:gemini"]).only == ["long:gemini"]
    assert (chosen.seconds, chosen.repeats) == (QUICK_SECONDS, 1)


@pytest.mark.parametrize(
    "words", [["--quick"], ["--only", "requests"], ["--check"], ["--compare", "anthropic"]], ids=" ".join
)
def test_what_is_only_a_part_is_not_published(words):
    assert not options(words).is_documented


def test_seconds_that_are_given_hold_for_a_quick_run_too():
    assert options(["--quick", "--seconds", "5"]).seconds == 5.0


def test_a_check_measures_what_has_a_floor():
    assert options(["--check"]).only == ["requests", "bursts"]


def test_peers_are_asked_for_and_published():
    assert not options([]).peers
    chosen = options(["--peers"])
    assert chosen.peers
    assert chosen.is_documented
    assert chosen.only == OWN
    assert options(["--peers", "--only", "paced"]).only == ["paced"]


def test_phases_are_of_measurements_not_of_variants_and_not_published():
    chosen = options(["--phases"])
    assert chosen.only == ["requests", "bursts", "latency", "long", "huge", "paced"]
    assert not chosen.is_documented
    assert options(["--phases", "--only", "latency"]).only == ["latency"]
    assert not options([]).phases


def test_only_may_be_repeated():
    assert options(["--only", "long", "--only", "paced"]).only == ["long", "paced"]


def test_a_comparison_is_of_requests_and_bursts_unless_shapes_are_named():
    chosen = options(["--compare", "anthropic,openai,gemini"])
    assert [traffic.name for traffic in chosen.compare] == ["anthropic", "openai", "gemini"]
    assert [shape.name for shape in chosen.shapes] == ["requests", "bursts"]
    assert (chosen.seconds, chosen.rounds) == (COMPARED_SECONDS, ROUNDS)


def test_rounds_and_shapes_may_be_chosen():
    chosen = options(["--compare", "openai", "--rounds", "3", "--seconds", "2", "long"])
    assert [shape.name for shape in chosen.shapes] == ["long"]
    assert (chosen.seconds, chosen.rounds) == (2.0, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--only", "nothing"],
        ["--seconds", "0"],
        ["--seconds", "nan"],
        ["--repeats", "-1"],
        ["--repeats", "x"],
        ["--compare", "nobody"],
        ["--compare", "gemini", "paced"],
        ["--rounds", "3"],
        ["--peers", "--only", "latency"],
        ["--peers", "--compare", "anthropic"],
        ["--phases", "--compare", "anthropic"],
        ["--phases", "--only", "history"],
    ],
)
def test_what_cannot_be_measured_is_refused(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        options(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err
