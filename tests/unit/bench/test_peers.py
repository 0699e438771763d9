"""Gateways of the field beside ours: what they may do to a benchmark, which is nothing but be told of."""

import json
import os
import shutil
import stat
import sys
from dataclasses import asdict, replace

import pytest

from bench.books import Books
from bench.machine import Cores
from bench.measure import MEASUREMENTS, Bench, nobody
from bench.peers.gateways import PEERS, PORTKEY
from bench.peers.runs import MEASURED, NOT_INSTALLED, PeerRuns
from bench.report import document, table
from bench.targets import Target

REQUESTS = MEASUREMENTS[0]
FIGURES = {"per_s": 4_000.0, "cpu_us": 250.0, "p50_ms": 1.0, "p99_ms": 2.0}
OURS = {
    "vendor": [FIGURES],
    "nginx": [{**FIGURES, "per_s": 40_000.0, "cpu_us": 25.0}],
    "automna-proxy": [FIGURES],
}
GATEWAY = """#!{python}
import http.client, http.server, sys
port, vendor, status, cut = sys.argv[1], sys.argv[2].removeprefix("http://"), int(sys.argv[3]), int(sys.argv[4])

class Gateway(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.headers["x-api-key"] == "sk-own" and self.headers["x-vendor"] == sys.argv[2], self.headers
        connection = http.client.HTTPConnection(vendor)
        connection.request("POST", self.path, body)
        answer = connection.getresponse().read()[cut:]
        connection.close()
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass

if not status:
    sys.exit("no such setting | at all")
http.server.ThreadingHTTPServer.request_queue_size = 128
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Gateway).serve_forever()
"""


@pytest.fixture
def gateway(tmp_path):
    """Makes a peer that answers with a status (0: it does not start), without the first so many bytes."""
    program = tmp_path / "gateway"
    program.write_text(GATEWAY.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def make(name, *, status=200, cut=0):
        return replace(
            PORTKEY,
            name=name,
            path="/v1/messages",
            program=str(program),
            arguments=("{port}", "{vendor}", str(status), str(cut)),
            environ={},
            token="sk-own",
            headers={"x-vendor": "{vendor}"},
        )

    return make


@pytest.fixture
def bench(tmp_path):
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("the benchmark needs two cores")
    return Bench(tmp_path, Cores.assign(cores), 1.0, 1, print)


def _beside(bench, peers, folder):
    """One round of these peers in the first measurement."""
    books = Books.open(folder / "books", users=2)
    with (
        bench.vendor(REQUESTS.shape, folder) as vendor,
        peers.guests(bench, REQUESTS, vendor, books) as run_all,
    ):
        run_all()


@pytest.mark.skipif(shutil.which("wrk") is None or shutil.which("cc") is None, reason="no wrk or no cc")
def test_a_peer_that_fails_is_told_of_and_the_others_run(tmp_path, bench, gateway, capsys):
    good, short = gateway("good"), gateway("short", cut=1)
    peers = PeerRuns([gateway("dead", status=0), gateway("wrong", status=500), short, good])
    _beside(bench, peers, tmp_path / "run")
    assert list(peers.runs) == ["short", "good"], peers.findings
    assert all(run["per_s"] > 0 and run["cpu_us"] > 0 for run in (peers.runs["short"] + peers.runs["good"]))
    assert peers.findings.keys() == {"dead", "wrong"}
    assert "no such setting / at all" in peers.findings["dead"]
    assert "wrong answered 500" in peers.findings["wrong"]
    assert "its answer is not the vendor's: 831 bytes instead of 832" in peers.notes["short"]
    assert "not the vendor's" not in peers.notes["good"]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in said] == ["dead", "wrong", "short", "good"]


def test_a_peer_that_is_not_installed_is_a_finding(tmp_path):
    said = []
    bench = Bench(tmp_path, Cores(0, 1, 1), 1.0, 1, said.append)
    vendor = Target("vendor", "http://127.0.0.1:1", has_mounts=False, pid=0)
    peers = PeerRuns([replace(PORTKEY, program="nowhere")])
    with peers.guests(bench, REQUESTS, vendor, Books(tmp_path, tmp_path / "tokens")) as run_all:
        run_all()
    assert (peers.runs, peers.findings) == ({}, {"Portkey": NOT_INSTALLED})
    assert said == [f"requests: Portkey: {NOT_INSTALLED}"]
    assert f"| Portkey: {NOT_INSTALLED} |" in table(REQUESTS, OURS, peers)


def test_every_peer_has_a_locked_version_and_is_kept_with_the_figures():
    assert all(peer.version()[0].isdigit() for peer in PEERS)
    assert json.dumps(asdict(PeerRuns()))
    with pytest.raises(ValueError, match="no version"):
        replace(PORTKEY, locked=("package.json", "(nothing of the kind)")).version()


def test_peers_take_part_in_measurements_that_there_are():
    assert set(MEASURED) <= {measurement.name for measurement in MEASUREMENTS}


def test_peers_are_rows_beside_ours_and_nginx_and_say_what_they_do():
    peers = PeerRuns([])
    peers.runs["slow"] = [{**FIGURES, "per_s": 100.0, "cpu_us": 10_000.0}]
    peers.note("slow", "1.2.3, meters nothing")
    peers.note("slow", "an answer was bad")
    peers.note("slow", "an answer was bad")
    peers.findings["slow"] = "did not finish"
    text = document({"requests": OURS}, {}, {"requests": peers})
    assert "| slow          | 100        | 10,000      |" in text
    assert (
        "- slow 1.2.3, meters nothing; an answer was bad; 1/40.0 of automna-proxy by rate, 1/40.0 by CPU; "
        "1/400.0 of nginx by rate, 1/400.0 by CPU; did not finish"
    ) in text
    assert "| slow: did not finish" not in text, "it has a row with figures"


def test_without_peers_there_is_nothing_of_them():
    with nobody() as run_all:
        run_all()
    assert document({"requests": OURS}, {}) == document({"requests": OURS}, {}, {"requests": PeerRuns([])})
