"""The small parts that a wrong number could hide in."""

import json
import subprocess
import sys

import pytest

from bench.books import UncountedError, check_bound, check_count
from bench.compare import comparison_table, ratios
from bench.machine import Cores, core_times, cpu_s, descendants, rss_mb
from bench.measure import MEASUREMENTS, median
from bench.open_loop import percentile
from bench.report import BEGIN, END, below_floor, document, publish, table
from bench.traffic import (
    ANSWER_BYTES,
    ANTHROPIC,
    BURST_EVENTS,
    OPENAI_UNASKED,
    TRAFFICS,
    burst_events,
    huge_request,
    long_request,
    small_request,
    whole_answer,
)

STAT = """cpu  300 0 100 1000 20 0 6 4 0 0
cpu0 100 0 50 500 10 0 3 2 0 0
cpu1 200 0 50 500 10 0 3 2 0 0
"""


@pytest.mark.parametrize("entries", [100, 116])
def test_a_run_counts_when_the_ledger_has_each_answer_and_at_most_what_was_in_flight(entries):
    check_count(entries=entries, answers=100, in_flight_max=16)


@pytest.mark.parametrize("entries", [99, 117])
def test_a_run_is_worth_nothing_when_the_ledger_says_otherwise(entries):
    with pytest.raises(UncountedError):
        check_count(entries=entries, answers=100, in_flight_max=16)


def test_two_cores_are_one_for_the_proxy_and_one_for_vendor_and_load():
    assert Cores.assign({4, 2}) == Cores(proxy=2, vendor=4, load=4)
    assert Cores.assign({0, 1, 2}) == Cores(proxy=0, vendor=1, load=2)
    with pytest.raises(ValueError, match="at least 2"):
        Cores.assign({0})


def test_a_core_is_busy_with_everything_but_idling_and_stolen_time():
    times = core_times(1, STAT)
    assert times.busy_s / (times.busy_s + times.idle_s + times.steal_s) == pytest.approx(253 / 765)
    assert times.steal_s / times.idle_s == pytest.approx(2 / 510)


@pytest.mark.parametrize("bound", [9, 11])
def test_a_run_is_worth_nothing_when_ids_that_went_down_have_no_owner(bound):
    check_bound(bound=10, entries=5, ids_each=2)
    with pytest.raises(UncountedError):
        check_bound(bound=bound, entries=5, ids_each=2)


@pytest.mark.parametrize("traffic", TRAFFICS, ids=lambda traffic: traffic.name)
@pytest.mark.parametrize(("request_of", "size"), [(small_request, 2_048), (long_request, 100 * 1024)])
def test_requests_are_as_long_as_they_say_and_the_user_speaks_last(traffic, request_of, size):
    body = request_of(traffic)
    fields = json.loads(body)
    turns = fields.get("messages") or fields.get("input") or fields["contents"]
    assert len(body) == size
    assert turns[-1]["role"] == "user"


def test_a_huge_request_is_a_conversation_and_an_image():
    body = huge_request(ANTHROPIC)
    image, *_ = json.loads(body)["messages"][0]["content"]
    assert len(body) == 5_000_000
    assert len(image["source"]["data"]) == pytest.approx(len(body) / 2, rel=0.1)
    assert json.loads(body)["messages"][-1]["role"] == "user"


@pytest.mark.parametrize("traffic", TRAFFICS, ids=lambda traffic: traffic.name)
def test_answers_have_their_size_and_bursts_their_events(traffic):
    assert ANSWER_BYTES <= len(whole_answer(traffic)) < ANSWER_BYTES + 200
    assert len(burst_events(traffic)) == BURST_EVENTS == 60


def test_a_client_that_did_not_ask_gets_one_event_less():
    events = burst_events(OPENAI_UNASKED)
    left = OPENAI_UNASKED.passed(b"".join(events))
    assert left == b"".join(event for event in events if b'"choices":[],' not in event)
    assert left.count(b"\n\n") == BURST_EVENTS - 1


def test_every_measurement_has_a_name_of_its_own():
    names = [measurement.name for measurement in MEASUREMENTS]
    assert len(set(names)) == len(names)
    assert {"requests", "requests:openai", "bursts:openai-unasked", "long:gemini", "paced"} <= set(names)


def test_a_comparison_is_by_rounds_and_shows_every_run():
    def runs(*cpu_us):
        return [{"cpu_us": value, "per_s": 1e6 / value} for value in cpu_us]

    rounds = {"anthropic": runs(100.0, 200.0, 100.0), "gemini": runs(110.0, 180.0, 105.0)}
    assert ratios(rounds, "gemini") == pytest.approx([1.1, 0.9, 1.05])
    table = comparison_table("The same load", rounds)
    assert "| anthropic | 10,000 | 100 | 1.000 (1.000 to 1.000) | 100 200 100 |" in table
    assert "| gemini | 9,091 | 110 | 1.050 (0.900 to 1.100) | 110 180 105 |" in table


def test_versions_are_compared_by_the_same_traffic():
    names = ("openai (there)", "gemini (there)", "openai (here)", "gemini (here)")
    rounds = {
        name: [{"cpu_us": cpu_us}] for name, cpu_us in zip(names, (100.0, 200.0, 90.0, 220.0), strict=True)
    }
    assert [ratios(rounds, name) for name in names] == [[1.0], [1.0], [0.9], [1.1]]


def test_median_and_percentiles_are_of_the_ranked_values():
    assert median([9.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0]) == 2.5
    assert percentile([float(value) for value in range(100, 0, -1)], 99) == 100.0
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0


def _runs(per_s: float) -> dict[str, list[dict[str, float]]]:
    figures = {"per_s": per_s, "cpu_us": 1e6 / per_s, "p50_ms": 1.0, "p99_ms": 2.0}
    fast = {**figures, "per_s": 30_000.0, "cpu_us": 20.0}
    return {"vendor": [fast], "nginx": [fast], "automna-proxy": [figures, figures]}


def test_the_floor_is_held_by_what_was_measured_only():
    assert below_floor({"requests": _runs(3_000.0)}) == []
    assert below_floor({"requests": _runs(2_999.0)}) == ["requests: 2,999/s, expected at least 3,000/s"]


def test_the_table_shows_each_target_and_the_ratio_to_nginx():
    text = table(MEASUREMENTS[0], _runs(5_000.0))
    assert "| automna-proxy | 5,000 (5,000 to 5,000)" in text
    assert "1/6.0 of nginx by rate, 1/10.0 by CPU" in text


def test_the_table_shows_what_only_our_own_process_tells_and_a_dash_for_the_others():
    runs = _runs(5_000.0)
    runs["automna-proxy"] = [
        {**run, "commits_each": each, "units_a_commit": 2 / each}
        for run, each in zip(runs["automna-proxy"], (0.25, 0.5), strict=True)
    ]
    header, _, vendor, nginx, ours = table(MEASUREMENTS[0], runs).splitlines()[2:7]
    assert [cell.strip() for cell in header.split("|")[-3:-1]] == ["commits each", "units a commit"]
    assert [cell.strip() for cell in ours.split("|")[-3:-1]] == [
        "0.38 (0.25 to 0.50)",
        "6.0 (4.0 to 8.0)",
    ]
    for row in (vendor, nginx):
        assert [cell.strip() for cell in row.split("|")[-3:-1]] == ["-", "-"]


def test_phases_stand_under_the_table_where_they_were_timed():
    runs = _runs(5_000.0)
    assert "of its time" not in table(MEASUREMENTS[0], runs)
    runs["automna-proxy"] = [
        {**run, "admit mean_ms": mean_ms, "admit p99_ms": 4.0}
        for run, mean_ms in zip(runs["automna-proxy"], (1.0, 2.0), strict=True)
    ]
    text = table(MEASUREMENTS[0], runs)
    assert text.endswith("| of its time | mean ms | p99 ms |\n|---|---|---|\n| admit | 1.500 | 4.000 |")


def test_what_was_measured_is_published_in_the_place_of_the_last_figures(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"Before\n{BEGIN}\nold\n{END}\nAfter\n")
    publish(page, document({"requests": _runs(5_000.0)}, {}))
    publish(page, document({"requests": _runs(4_000.0)}, {}))
    text = page.read_text()
    assert "| automna-proxy | 4,000" in text
    assert "5,000" not in text
    assert text.startswith(f"Before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nAfter\n")


def test_a_page_without_a_place_for_figures_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Nothing here\n")
    with pytest.raises(ValueError, match="place"):
        publish(page, "figures")
    assert page.read_text() == "Nothing here\n"


def test_what_the_children_of_a_process_use_is_its_own():
    burns = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(30_000_000)); print(1, flush=True); input()'])"
    with subprocess.Popen(
        [sys.executable, "-c", burns], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert len(descendants(process.pid)) == 1
        assert cpu_s(process.pid) > 10 * cpu_s(descendants(process.pid)[0]) / 11 > 0.1
        assert rss_mb(process.pid) > rss_mb(descendants(process.pid)[0])
        process.stdin.write(b"\n")
