"""CSV is read back as what was reported, and nothing in it runs."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.exports import harmless, usage_csv
from metering.reports import GroupBy, Period, Sums, TokenName, UsageReport

SUMS = Sums(3, 1, 0, 10, 20, 30, 40, 711_001)
NUMBERS = ["3", "1", "0", "10", "20", "30", "40", "711001", "0.000711001"]
NUMBER_NAMES = [
    "requests",
    "estimated",
    "not_sent",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_tokens",
    "cost_nanousd",
    "cost_usd",
]


def report(by: tuple[GroupBy, ...], groups: dict[tuple[str, ...], Sums], **tokens: TokenName) -> UsageReport:
    return UsageReport("ada", Period(0, 1), by, groups, tokens)


def lines(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def test_a_header_then_a_line_for_each_group() -> None:
    by = (GroupBy.DAY, GroupBy.MODEL)
    groups = {("2026-11-20", "claude-x"): SUMS, ("2026-11-21", ""): Sums(cost_nanousd=-50)}
    assert lines(usage_csv(report(by, groups))) == [
        ["day", "model", *NUMBER_NAMES],
        ["2026-11-20", "claude-x", *NUMBERS],
        ["2026-11-21", "", *["0"] * 7, "-50", "-0.000000050"],
    ]


def test_lines_end_as_the_rfc_says_and_a_report_of_nothing_has_its_header() -> None:
    text = usage_csv(report((GroupBy.MODEL,), {}))
    assert text == ",".join(["model", *NUMBER_NAMES]) + "\r\n"


def test_gateway_tokens_have_their_prefix_and_label() -> None:
    by = (GroupBy.TOKEN, GroupBy.MODEL)
    named = report(by, {("tok_1", "m"): SUMS}, tok_1=TokenName("amp_123456", 'my "first", agent'))
    header, line = lines(usage_csv(named))
    assert header[:4] == ["token", "token_prefix", "token_label", "model"]
    assert line[:4] == ["tok_1", "amp_123456", 'my "first", agent', "m"]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+49 30", "'+49 30"),
        ("-2", "'-2"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1", "' =1"),
        ("\t=1", "\t'=1"),
        ("\r=1", "\r'=1"),
        ("x;=1", "x;'=1"),
        ("x\n=1", "x\n'=1"),
        ("\uff1d1", "'\uff1d1"),
        ('=cmd|"/c calc"!A1', '\'=cmd|"/c calc"!A1'),
        ("claude-x", "claude-x"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_a_cell_is_no_formula(cell: str, shown: str) -> None:
    assert harmless(cell) == shown


@given(st.text(alphabet=st.sampled_from("=+-@\t\r\n ;,\"'ab\uff1d"), max_size=12))
def test_no_label_is_a_formula_nor_breaks_its_line(label: str) -> None:
    """Whether cells end at commas or at semicolons."""
    text = usage_csv(report((GroupBy.TOKEN,), {("tok_1",): SUMS}, tok_1=TokenName("amp_1", label)))
    _, line = lines(text)
    assert line[3:] == NUMBERS
    assert line[2].replace("'", "") == label.replace("'", "")
    for part in line[2].replace("\t", ";").replace("\r", ";").replace("\n", ";").split(";"):
        assert not part.strip().startswith(("=", "+", "-", "@", "\uff1d"))
