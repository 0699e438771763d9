"""What wrk writes, read."""

import pytest

from bench.wrk import WrkError, parse

OUTPUT = """Running 8s test @ http://127.0.0.1:4000
  1 threads and 64 connections
Requests/sec:   2500.00
BENCH {"answers":20000,"duration_s":8.000000,"bytes":9,"bad_statuses":0,"socket_errors":0,"p50_ms":1.5,"p99_ms":9.0}
"""


def test_the_figures_are_taken_from_the_scripts_line():
    result = parse(OUTPUT)
    assert (result.answers, result.per_s, result.p99_ms) == (20_000, 2_500.0, 9.0)
    assert result.is_clean


@pytest.mark.parametrize("trouble", ["bad_statuses", "socket_errors"])
def test_one_bad_answer_makes_a_run_unclean(trouble):
    assert not parse(OUTPUT.replace(f'"{trouble}":0', f'"{trouble}":1')).is_clean


def test_output_without_figures_is_an_error_that_shows_it():
    with pytest.raises(WrkError, match="unable to connect"):
        parse("unable to connect to 127.0.0.1\n")
