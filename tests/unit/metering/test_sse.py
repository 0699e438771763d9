"""The scanner finds the marked events of a stream in any framing and any chunking, and nothing else."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.sse import EventCutter, SseScanner

MARK = (b'"mark"',)
EMPTY_LINE = re.compile(rb"(?>\r\n|\r|\n){2}")


def scan(stream, cuts=(), *, markers=MARK, **options):
    """(type, data) of every event found in a stream cut at the given offsets."""
    scanner = SseScanner(markers, **options)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    found = [event for a, b in pairwise(edges) for event in scanner.feed(stream[a:b])]
    found += scanner.end()
    return [(event.type, event.data) for event in found]


FRAMINGS = [
    # what it shows                    stream                                             expected
    ("event and data", b'event: a\ndata: {"mark":1}\n\n', [(b"a", b'{"mark":1}')]),
    ("no blank after the colon", b'event:a\ndata:{"mark":1}\n\n', [(b"a", b'{"mark":1}')]),
    ("only one blank is dropped", b'data:  "mark" \n\n', [(b"", b' "mark" ')]),
    ("no event line", b'data: {"mark":1}\n\n', [(b"", b'{"mark":1}')]),
    ("several data lines", b'data: {"mark":\ndata: 1}\n\n', [(b"", b'{"mark":\n1}')]),
    ("CRLF", b'event: a\r\ndata: "mark"\r\n\r\ndata: x\r\n\r\n', [(b"a", b'"mark"')]),
    ("CR", b'event: a\rdata: "mark"\r\rdata: x\r\r', [(b"a", b'"mark"')]),
    (
        "mixed ends",
        b'event: a\r\ndata: "mark"\n\r\ndata: "mark"2\r\n\n',
        [(b"a", b'"mark"'), (b"", b'"mark"2')],
    ),
    ("a bare object", b'data: x\n\n{\n "mark": 1\n}\n\n', [(b"", b'{\n "mark": 1\n}')]),
    ("a bare object at the end", b'data: x\r\n\r\n{"mark":1}', [(b"", b'{"mark":1}')]),
    ("comments", b': "mark"\n\n: hi\ndata: "mark"\n\n', [(b"", b'"mark"')]),
    ("unmarked events", b'data: x\n\ndata: "mark"\n\ndata: y\n\n', [(b"", b'"mark"')]),
    ("more blank lines than needed", b'\n\ndata: x\n\n\n\n\ndata: "mark"\n\n\n', [(b"", b'"mark"')]),
    ("missing final blank line", b'data: x\n\ndata: "mark"\n', [(b"", b'"mark"')]),
    ("missing final line end", b'data: x\n\ndata: "mark"', [(b"", b'"mark"')]),
    ("byte order mark", b'\xef\xbb\xbfdata: "mark"\n\n', [(b"", b'"mark"')]),
    ("other fields", b'id: 3\nretry: 9\nfoo\ndata: "mark"\n\n', [(b"", b'"mark"')]),
    ("a marker in no data", b'event: "mark"\nid: 1\n\n', []),
    ("nothing", b"", []),
]
IDS = [row[0] for row in FRAMINGS]


@pytest.mark.parametrize(("_", "stream", "expected"), FRAMINGS, ids=IDS)
def test_a_framing_is_read_whole(_, stream, expected):
    assert scan(stream) == expected


@pytest.mark.parametrize(("_", "stream", "expected"), FRAMINGS, ids=IDS)
def test_a_framing_is_read_byte_by_byte(_, stream, expected):
    assert scan(stream, range(len(stream))) == expected


@pytest.mark.parametrize(("_", "stream", "expected"), FRAMINGS, ids=IDS)
def test_a_framing_is_read_cut_once_at_every_offset(_, stream, expected):
    for cut in range(len(stream) + 1):
        assert scan(stream, [cut]) == expected, cut


lines = st.sampled_from([b'data: "mark"', b"data: x", b": c", b"event: a", b"data:", b'id: "mark"', b"", b""])
streams = st.lists(st.tuples(lines, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=24).map(
    lambda rows: b"".join(line + end for line, end in rows)
)


@given(streams, st.lists(st.integers(min_value=0), max_size=12))
def test_any_chunking_of_any_lines_gives_the_same_events_as_reading_line_by_line(stream, cuts):
    assert scan(stream, cuts) == by_the_book(stream)


def by_the_book(stream):
    """The standard's own algorithm, one line at a time, for those events that hold the marker."""
    found, kind, data, raw = [], b"", [], b""
    for line in [*stream.splitlines(), b""]:  # The end of the stream ends the last event, as in `end`.
        raw += line + b"\n"
        if not line:
            if data and MARK[0] in raw:
                found.append((kind, b"\n".join(data)))
            kind, data, raw = b"", [], b""
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"event:"):
            kind = line[6:].removeprefix(b" ")
    return found


def test_an_event_tells_where_it_began_in_the_chunk_just_fed():
    scanner = SseScanner(MARK)
    assert [event.start for event in scanner.feed(b'data: x\n\ndata: "mark"\n\ndata: "mark"\n\n')] == [9, 23]


def test_an_event_that_began_in_an_earlier_chunk_starts_at_zero():
    scanner = SseScanner(MARK)
    scanner.feed(b"data: x\n\nda")
    assert [event.start for event in scanner.feed(b'ta: "mark"\n\ndata: "mark"\n\n')] == [0, 12]


def test_only_the_final_blank_line_of_an_event_may_be_in_the_chunk():
    scanner = SseScanner(MARK)
    assert not scanner.feed(b'data: "mark"\n')
    assert [event.start for event in scanner.feed(b"\n")] == [0]


def test_the_line_feed_after_a_carriage_return_belongs_to_the_event_before():
    scanner = SseScanner(MARK)
    assert len(scanner.feed(b'data: "mark"\r\n\r')) == 1
    assert scanner.at_boundary
    assert [event.start for event in scanner.feed(b'\ndata: "mark"\r\n\r\n')] == [1]


@pytest.mark.parametrize(
    ("fed", "expected"),
    [
        (b"", True),
        (b"data: x\n\n", True),
        (b"data: x\r\n\r\n", True),
        (b"data: x\r\n\r", True),
        (b"data: x\n\n\n", True),
        (b"data: x\n", False),
        (b"data: x\n\nd", False),
        (b": comment\n", False),
    ],
)
def test_a_boundary_is_where_an_event_of_our_own_may_stand(fed, expected):
    whole, bytewise = SseScanner(MARK), SseScanner(MARK)
    whole.feed(fed)
    for byte in fed:
        bytewise.feed(bytes([byte]))
    assert (whole.at_boundary, bytewise.at_boundary) == (expected, expected)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_event_beyond_the_bound_is_skipped_and_counted_and_the_next_is_found(step):
    stream = b'data: "mark"' + b"x" * 200 + b'\n\ndata: "mark"\n\n'
    scanner = SseScanner(MARK, event_bytes_max=100)
    found = [event for at in range(0, len(stream), step) for event in scanner.feed(stream[at : at + step])]
    assert [event.data for event in found] == [b'"mark"']
    assert scanner.events_skipped == 1
    assert scanner.at_boundary


def test_a_skipped_event_keeps_no_more_than_its_last_byte():
    scanner = SseScanner(MARK, event_bytes_max=100)
    for _ in range(50):
        scanner.feed(b"x" * 50)
    assert len(scanner._pending) == 1
    assert not scanner.at_boundary


def test_markers_may_be_replaced_while_a_stream_is_read():
    scanner = SseScanner((b"one", b"two"))
    assert len(scanner.feed(b"data: one\n\ndata: two\n\n")) == 2
    scanner.markers = (b"two",)
    assert [event.data for event in scanner.feed(b"data: one\n\ndata: two\n\n")] == [b"two"]


# --- what only the newest event says ---------------------------------------------------------------------


def latest(stream, cuts=()):
    return [data for _, data in scan(stream, cuts, latest=b'"count"')]


def test_of_the_events_that_only_count_a_chunk_gives_out_the_last():
    stream = b'data: {"count":1}\n\ndata: {"count":2}\n\ndata: {"count":3}\n\ndata: x\n\n'
    assert latest(stream) == [b'{"count":3}']
    assert latest(stream, [20, 40]) == [b'{"count":1}', b'{"count":2}', b'{"count":3}']


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_marked_events_come_in_their_order_with_the_last_that_counts(end):
    events = [b'{"mark":1,"count":1}', b'{"count":2}', b'{"mark":2}', b'{"count":3}', b'{"mark":3}']
    stream = b"".join(b"data: " + event + end * 2 for event in events)
    expected = [event for event in events if event != b'{"count":2}']
    assert latest(stream) == expected
    assert latest(stream.replace(b'"mark":3', b'"mork":3')) == expected[:-1]
    assert latest(stream.replace(b'{"count":3}', b'{"mark":9,"count":3}')) == [
        *expected[:2], b'{"mark":9,"count":3}', b'{"mark":3}'
    ]  # fmt: skip


@given(
    st.lists(st.sampled_from(["mark", "count", "x"]), max_size=12), st.lists(st.integers(0, 500), max_size=6)
)
def test_however_it_is_cut_no_marked_event_is_missing_and_the_newest_count_is_known(kinds, cuts):
    events = [b'{"%s":%d}' % (kind.encode(), number) for number, kind in enumerate(kinds)]
    stream = b"".join(b"data: " + event + b"\r\n\r\n" for event in events)
    found = latest(stream, cuts)
    counts = [event for event in events if b"count" in event]
    assert [event for event in found if b"mark" in event] == [event for event in events if b"mark" in event]
    assert [event for event in found if b"count" in event][-1:] == counts[-1:]
    assert found == [event for event in events if event in found], "in their order, none twice"


@given(
    st.lists(st.sampled_from([b"data: 1", b":", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"]), max_size=12)
)
def test_cut_events_are_the_stream_again_and_each_ends_with_its_first_empty_line(pieces):
    stream = b"".join(pieces)
    events = EventCutter.events(stream)
    assert b"".join(events) == stream
    assert all(events)
    for event in events[:-1]:
        assert EMPTY_LINE.search(event).end() == len(event)
    if events:
        found = EMPTY_LINE.search(events[-1])
        assert found is None or found.end() == len(events[-1])


@given(
    st.lists(
        st.sampled_from([b"data: 1", b'data: "mark"', b"\n", b"\r\n", b"\n\n", b"\r\n\r\n"]), max_size=12
    )
)
def test_the_events_that_hold_a_marker_are_those_of_all_that_do(pieces):
    stream = b"".join(pieces)
    found = [stream[begin:end] for begin, end in EventCutter.holding(stream, MARK[0])]
    expected = [event for event in EventCutter.events(stream) if MARK[0] in event]
    assert [event.strip() for event in found] == [event.strip() for event in expected]
