"""What is measured: a vendor alone, nginx before it, and the proxy before it, each a process on its core."""

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trustme
from prometheus_client.parser import text_string_to_metric_families

from bench import native
from bench.traffic import TRAFFICS, Traffic
from bench.wrk import find

LOOPBACK = "127.0.0.1"
VENDOR_KEY = "sk-bench"
VENDORS = ("ANTHROPIC", "OPENAI", "GEMINI")
"""As the names of their settings begin."""
PROXY = "automna-proxy"
STARTED_WITHIN_S, STOPPED_WITHIN_S, POLL_S = 15.0, 30.0, 0.02
ROOT = Path(__file__).parents[1]

NGINX = """
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    client_max_body_size 32m;
    client_body_buffer_size 256k;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{servers}
}}
"""
"""One worker, its log of requests off: as fast as it is."""

NGINX_PROXY = """
    upstream vendor {{
        server {upstream};
        keepalive 1024;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
{locations}
    }}
"""
NGINX_TLS = """
    upstream vendor {{
        server {upstream};
        keepalive 1024;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} ssl backlog=2048;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        location = /nginx_status {{ stub_status; }}
        location / {{
            proxy_pass http://vendor;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
"""
STATUS_PATH = "/nginx_status"
OWN_CONNECTIONS = 2
"""Ours, in the counts: whether the port is open, and the question for the counts."""
NGINX_PROXY_LOCATION = """
        location {mount}/ {{
            proxy_pass http://vendor/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header {gateway_header} "{scheme}{key}";
            proxy_buffering {buffering};
            proxy_read_timeout 600s;
        }}
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A server under load."""

    name: str
    origin: str
    """Without a path."""
    has_mounts: bool
    """Whether the vendors' paths begin below their mounts there."""
    pid: int
    is_ours: bool = True
    """Whether a bad answer ends the benchmark; a peer's is counted."""
    path: str = ""
    """Where it is asked, if that has nothing to do with the vendor's path."""
    token: str = ""
    """What all send, where it knows no users."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Beside those of the traffic."""

    def path_to(self, traffic: Traffic, *, is_streaming: bool) -> str:
        if self.path:
            return self.path
        path = traffic.path_of(is_streaming=is_streaming)
        return traffic.mount + path if self.has_mounts else path


class TargetError(RuntimeError):
    """A server did not start, or did not stop cleanly."""


@contextlib.contextmanager
def vendor(folder: Path, kind: str, *, core: int) -> Iterator[Target]:
    """The vendor, with answers of a kind (bench/native.py). Raises NativeError, TargetError."""
    folder.mkdir(parents=True)
    port_file, answers = folder / "port", folder / "answers"
    answers.write_bytes(native.answers(kind))
    arguments = [str(native.built("vendor")), str(port_file), str(answers), str(folder / "counts")]
    with _process(arguments, core=core, log=folder / "log") as process:
        _wait(lambda: port_file.exists() and bool(port_file.read_text()), process, folder / "log")
        origin = f"http://127.0.0.1:{int(port_file.read_text())}"
        yield Target("vendor", origin, has_mounts=False, pid=process.pid)


@contextlib.contextmanager
def nginx_proxy(folder: Path, vendor: Target, *, core: int, is_streaming: bool) -> Iterator[Target]:
    """A plain reverse proxy with the same mounts, which also replaces the keys. Streams are not buffered."""
    port = free_port()
    locations = "".join(
        NGINX_PROXY_LOCATION.format(
            mount=traffic.mount,
            gateway_header=traffic.gateway_header,
            scheme=traffic.scheme,
            key=VENDOR_KEY,
            buffering="off" if is_streaming else "on",
        )
        for traffic in {traffic.mount: traffic for traffic in TRAFFICS}.values()
    )
    servers = NGINX_PROXY.format(
        port=port, upstream=vendor.origin.removeprefix("http://"), locations=locations
    )
    with _nginx(folder, servers, port=port, core=core) as pid:
        yield Target("nginx", f"http://127.0.0.1:{port}", has_mounts=True, pid=pid)


@contextlib.contextmanager
def tls_vendor(folder: Path, vendor: Target, *, core: int) -> Iterator[tuple[Target, Path]]:
    """The same vendor behind TLS, and the file of the authority that vouches for it: nginx, because the vendor speaks none."""
    port, authority = free_port(), trustme.CA()
    folder.mkdir(parents=True)
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    authority.issue_cert(LOOPBACK).private_key_and_cert_chain_pem.write_to_path(str(folder / "vendor.pem"))
    servers = NGINX_TLS.format(
        port=port, upstream=vendor.origin.removeprefix("http://"), certificate=folder / "vendor.pem"
    )
    with _nginx(folder, servers, port=port, core=core) as pid:
        yield (
            Target("vendor", f"https://{LOOPBACK}:{port}", has_mounts=False, pid=pid),
            folder / "authority.pem",
        )


def reuse_share(tls_vendor: Target, authority: Path) -> float:
    """Of the requests to that vendor since it began, the share that opened no connection."""
    context = ssl.create_default_context(cafile=str(authority))
    connection = http.client.HTTPSConnection(
        tls_vendor.origin.removeprefix("https://"), timeout=30, context=context
    )
    with contextlib.closing(connection):
        connection.request("GET", STATUS_PATH)
        told = connection.getresponse().read().decode()
    accepted, _, requests = (int(number) for number in told.splitlines()[2].split())
    return 1 - (accepted - OWN_CONNECTIONS) / (requests - 1)


@contextlib.contextmanager
def _nginx(folder: Path, servers: str, *, port: int, core: int) -> Iterator[int]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, servers=servers), encoding="utf-8")
    arguments = [find("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with _process([*arguments, "-e", str(folder / "error.log")], core=core, log=folder / "log") as process:
        wait_for_port(port, process, folder / "log")
        yield process.pid


@contextlib.contextmanager
def proxy(
    folder: Path,
    vendor: Target,
    *,
    core: int,
    environ: Mapping[str, str],
    tree: Path = ROOT,
    workers: int = 1,
) -> Iterator[Target]:
    """automna-proxy as an operator runs it; its log of requests goes to a file. All workers have one core.

    `tree`: the checkout whose code runs. Raises TargetError when it does not start, or does not end with status 0.
    """
    port = free_port()
    upstreams = {f"{name}_UPSTREAM_URL": vendor.origin for name in VENDORS}
    settings = {**environ, **upstreams, **{f"{name}_API_KEY": VENDOR_KEY for name in VENDORS}}
    more = [str(workers)] if workers > 1 else []  # which an older checkout does not know
    arguments = [sys.executable, "-m", "bench.serve", str(port), *more]
    with _process(arguments, core=core, log=folder / "proxy.log", environ=settings, tree=tree) as process:
        wait_for_port(port, process, folder / "proxy.log")
        yield Target(PROXY, f"http://127.0.0.1:{port}", has_mounts=True, pid=process.pid)


@contextlib.contextmanager
def _process(
    arguments: list[str],
    *,
    core: int,
    log: Path,
    environ: Mapping[str, str] | None = None,
    tree: Path = ROOT,
) -> "Iterator[subprocess.Popen[bytes]]":
    """A process pinned to a core; on leaving it is told to stop, and must end with status 0."""
    with started(
        arguments, core=core, log=log, environ={**os.environ, **(environ or {})}, folder=tree
    ) as process:
        yield process
    if process.returncode:
        raise TargetError(f"{arguments[:3]} ended with status {process.returncode}: {_end_of(log)}")


@contextlib.contextmanager
def started(
    arguments: list[str],
    *,
    core: int,
    log: Path,
    environ: Mapping[str, str],
    folder: Path,
    stopped_within_s: float = STOPPED_WITHIN_S,
) -> "Iterator[subprocess.Popen[bytes]]":
    """A process pinned to a core, with this environment alone; on leaving it is told to stop, and killed if it does not."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [find("taskset"), "-c", str(core), *arguments],  # taskset becomes the process: the pid is its own
            cwd=folder,
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(stopped_within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for_port(
    port: int, process: "subprocess.Popen[bytes]", log: Path, *, within_s: float = STARTED_WITHIN_S
) -> None:
    """Raises TargetError when the process has ended, or does not listen in time."""

    def is_open() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    _wait(is_open, process, log, within_s)


def _wait(
    is_ready: Callable[[], bool],
    process: "subprocess.Popen[bytes]",
    log: Path,
    within_s: float = STARTED_WITHIN_S,
) -> None:
    """Raises TargetError when the process has ended, or is not ready in time."""
    until_s = time.monotonic() + within_s
    while not is_ready():
        if process.poll() is not None or time.monotonic() > until_s:
            raise TargetError(f"{process.args!r} did not start: {_end_of(log)}")
        time.sleep(POLL_S)


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2_000:]


Sample = tuple[str, tuple[tuple[str, str], ...]]
"""The name of a sample of a metric, and its labels in their order."""
Samples = Mapping[Sample, float]


def metrics(target: Target) -> Samples:
    """What the proxy tells of itself now."""
    connection = http.client.HTTPConnection(target.origin.removeprefix("http://"), timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        told = connection.getresponse().read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
    }


def gauge(target: Target, name: str) -> float:
    """A value of the proxy's own metrics. Raises TargetError where it has none."""
    found = metrics(target).get((name, ()))
    if found is None:
        raise TargetError(f"/metrics of {target.name} has no {name}")
    return found


def ask(
    target: Target, traffic: Traffic, token: str, body: bytes, *, is_streaming: bool
) -> tuple[int, bytes]:
    """One request by itself: is the answer right at all?"""
    connection = http.client.HTTPConnection(target.origin.removeprefix("http://"), timeout=30)
    with contextlib.closing(connection):
        headers = {
            traffic.gateway_header: traffic.scheme + (target.token or token),
            "content-type": "application/json",
            "accept-encoding": "identity",
            **traffic.headers,
            **target.headers,
        }
        connection.request("POST", target.path_to(traffic, is_streaming=is_streaming), body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
