"""The benchmark's programs in C do what is measured with them."""

import http.client
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import native
from bench.open_loop import raw_requests
from bench.traffic import (
    ANTHROPIC,
    BURST_EVENTS,
    ID_PLACE,
    RESPONSES_STORED,
    burst_events,
    long_request,
    small_request,
    whole_answer,
)

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
WITHIN_S = 20.0


@contextmanager
def vendor(folder: Path, kind: str) -> Iterator[int]:
    """Its port; afterwards the file `counts` has its connections and requests."""
    (folder / "answers").write_bytes(native.answers(kind))
    names = [str(folder / name) for name in ("port", "answers", "counts")]
    with subprocess.Popen([str(native.built("vendor")), *names]) as process:
        until_s = time.monotonic() + WITHIN_S
        while not (folder / "port").exists() or not (folder / "port").read_text():
            assert time.monotonic() < until_s
            time.sleep(0.01)
        try:
            yield int((folder / "port").read_text())
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(WITHIN_S) == 0


def asked(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, bytes]:
    connection.request("POST", path, body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_whole_answers_are_the_vendors_and_counted(tmp_path):
    with vendor(tmp_path, native.FIXED) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WITHIN_S)
        for body in (b"", small_request(ANTHROPIC), long_request(ANTHROPIC, 300_000)):
            assert asked(connection, ANTHROPIC.path, body) == (200, whole_answer(ANTHROPIC))
        assert asked(connection, "/nowhere", b"{}") == (404, b"")
        connection.close()
    assert (tmp_path / "counts").read_text().split() == ["1", "4"]


def test_ids_that_users_own_are_new_in_each_answer(tmp_path):
    with vendor(tmp_path, native.FIXED) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WITHIN_S)
        (_, first), (_, second) = [asked(connection, RESPONSES_STORED.path, b"{}") for _ in range(2)]
        connection.close()
    assert ID_PLACE.encode() not in first
    assert first != second
    assert len(first) == len(second) == len(whole_answer(RESPONSES_STORED))


def test_a_burst_has_every_event_in_a_chunk_of_its_own(tmp_path):
    with vendor(tmp_path, native.BURSTS) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WITHIN_S)
        answer = asked(connection, ANTHROPIC.path_of(is_streaming=True), b"{}")
        connection.close()
    assert answer == (200, b"".join(burst_events(ANTHROPIC)))


def test_paced_streams_are_all_finished_and_measured(tmp_path):
    with vendor(tmp_path, native.PACED) as port:
        path = ANTHROPIC.path_of(is_streaming=True)
        requests = raw_requests(path, ["token-a", "token-b"], small_request(ANTHROPIC, is_streaming=True))
        (tmp_path / "requests").write_bytes(native.requests_file(requests))
        client = [native.built("paced"), str(port), tmp_path / "requests", str(BURST_EVENTS), "8", "0.1"]
        done = subprocess.run(client, capture_output=True, text=True, check=True, timeout=WITHIN_S)
    figures = json.loads(done.stdout)
    assert figures["answers"] == 8
    assert figures["duration_s"] >= (BURST_EVENTS - 1) * native.PACE_S
    assert 0 < figures["first_byte_p50_ms"] <= figures["first_byte_p99_ms"]
    assert 0 <= figures["lateness_p50_ms"] <= figures["lateness_p99_ms"] < figures["duration_s"] * 1000
    assert (tmp_path / "counts").read_text().split() == ["8", "8"]


@pytest.mark.parametrize(("events", "path"), [("7", ""), (str(BURST_EVENTS), "/nowhere")])
def test_a_client_that_sees_what_it_should_not_fails(tmp_path, events, path):
    with vendor(tmp_path, native.PACED) as port:
        requests = raw_requests(path or ANTHROPIC.path_of(is_streaming=True), ["token"], b"{}")
        (tmp_path / "requests").write_bytes(native.requests_file(requests))
        client = [native.built("paced"), str(port), tmp_path / "requests", events, "1", "0.1"]
        done = subprocess.run(client, capture_output=True, text=True, check=False, timeout=WITHIN_S)
    assert (done.returncode, done.stdout) == (1, "")
    assert "7" in done.stderr or "404" in done.stderr


def test_what_cannot_be_compiled_is_said(tmp_path, monkeypatch):
    (tmp_path / "odd.c").write_text("int main(void) { return }")
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(native.NativeError, match="cannot be compiled"):
        native.built("odd")
