"""What is measured: a vendor alone, nginx before it, and the proxy before it, each a process on its core."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.traffic import MOUNT, answer_json
from bench.wrk import find

VENDOR_KEY = "sk-ant-bench"
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
        location {mount}/ {{
            proxy_pass http://vendor/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header x-api-key {key};
            proxy_buffering {buffering};
            proxy_read_timeout 600s;
        }}
    }}
"""

NGINX_VENDOR = """
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        default_type application/json;
        add_header request-id req_bench;
        location / {{ return 200 '{body}'; }}
    }}
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A server under load: its origin without a path, and the path where the Messages API starts."""

    name: str
    origin: str
    prefix: str
    pid: int


class TargetError(RuntimeError):
    """A server did not start, or did not stop cleanly."""


@contextlib.contextmanager
def nginx_vendor(folder: Path, *, core: int) -> Iterator[Target]:
    """The fastest vendor for unstreamed answers: one fixed body."""
    port = free_port()
    servers = NGINX_VENDOR.format(port=port, body=answer_json().decode().replace("'", "\\'"))
    with _nginx(folder, servers, port=port, core=core) as pid:
        yield Target("vendor", f"http://127.0.0.1:{port}", "", pid)


@contextlib.contextmanager
def nginx_proxy(folder: Path, vendor: Target, *, core: int, is_streaming: bool) -> Iterator[Target]:
    """A plain reverse proxy with the same mount, which also replaces the key. Streams are not buffered."""
    port = free_port()
    servers = NGINX_PROXY.format(
        port=port,
        upstream=vendor.origin.removeprefix("http://"),
        mount=MOUNT,
        key=VENDOR_KEY,
        buffering="off" if is_streaming else "on",
    )
    with _nginx(folder, servers, port=port, core=core) as pid:
        yield Target("nginx", f"http://127.0.0.1:{port}", MOUNT, pid)


@contextlib.contextmanager
def _nginx(folder: Path, servers: str, *, port: int, core: int) -> Iterator[int]:
    folder.mkdir(parents=True)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, servers=servers), encoding="utf-8")
    arguments = [find("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with _process([*arguments, "-e", str(folder / "error.log")], core=core, log=folder / "log") as process:
        _wait_for_port(port, process, folder / "log")
        yield process.pid


@contextlib.contextmanager
def stream_vendor(folder: Path, *, core: int, is_paced: bool) -> Iterator[Target]:
    """The vendor for streams: real chunks, an event each."""
    folder.mkdir(parents=True)
    port_file = folder / "port"
    arguments = [sys.executable, "-m", "bench.vendor", str(port_file), *(["--paced"] if is_paced else [])]
    with _process(arguments, core=core, log=folder / "log") as process:
        _wait(lambda: port_file.exists() and bool(port_file.read_text()), process, folder / "log")
        yield Target("vendor", f"http://127.0.0.1:{int(port_file.read_text())}", "", process.pid)


@contextlib.contextmanager
def proxy(folder: Path, vendor: Target, *, core: int, environ: Mapping[str, str]) -> Iterator[Target]:
    """automna-proxy as an operator runs it, one worker; its log of requests goes to a file.

    Raises TargetError when it does not start, or does not end with status 0.
    """
    port = free_port()
    settings = {**environ, "ANTHROPIC_API_KEY": VENDOR_KEY, "ANTHROPIC_UPSTREAM_URL": vendor.origin}
    arguments = [sys.executable, "-m", "bench.serve", str(port)]
    with _process(arguments, core=core, log=folder / "proxy.log", environ=settings) as process:
        _wait_for_port(port, process, folder / "proxy.log")
        yield Target("automna-proxy", f"http://127.0.0.1:{port}", MOUNT, process.pid)


@contextlib.contextmanager
def _process(
    arguments: list[str], *, core: int, log: Path, environ: Mapping[str, str] | None = None
) -> "Iterator[subprocess.Popen[bytes]]":
    """A process pinned to a core; on leaving it is told to stop, and must end with status 0."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [find("taskset"), "-c", str(core), *arguments],  # taskset becomes the process: the pid is its own
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
    if status:
        raise TargetError(f"{arguments[:3]} ended with status {status}: {_end_of(log)}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for_port(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    def is_open() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    _wait(is_open, process, log)


def _wait(is_ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Raises TargetError when the process has ended, or is not ready in time."""
    until_s = time.monotonic() + STARTED_WITHIN_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > until_s:
            raise TargetError(f"{process.args!r} did not start: {_end_of(log)}")
        time.sleep(POLL_S)


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2_000:]


def ask(target: Target, path: str, token: str, body: bytes) -> tuple[int, bytes]:
    """One request by itself: is the answer right at all?"""
    connection = http.client.HTTPConnection(target.origin.removeprefix("http://"), timeout=30)
    with contextlib.closing(connection):
        headers = {
            "x-api-key": token,
            "content-type": "application/json",
            "anthropic-version": "2023-06-01",
            "accept-encoding": "identity",
        }
        connection.request("POST", target.prefix + path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
