"""`serve`: one process, or a supervisor with several workers on one socket; and how they stop.

SIGTERM or SIGINT: `/readyz` answers 503 for a notice period while requests are still served; then no new
connections, streams finish within their bound, the ledger is flushed, exit status 0.
"""

import gc
import logging
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from types import FrameType

import uvicorn

from automna_proxy.app import App
from automna_proxy.logs import configure_logging
from automna_proxy.service import check_configuration
from automna_proxy.settings import Settings
from metering.clock import Clock, SystemClock
from metering.store.database import Database
from metering.store.migrate import migrate
from metering.store.serving import serving
from proxy.downstream import bounded

logger = logging.getLogger(__name__)

BACKLOG = 2_048
RESTART_PAUSE_S = 0.5
"""Between the death of a worker and its successor: a worker that cannot start must not spin."""
GC_THRESHOLDS = (50_000, 20, 50)
"""New objects before a young collection, and how many of those before an older one. At 60 objects kept by
a request in flight, thousands of them fit below the first."""
MAPPED_FROM_BYTES = 2 * 1024 * 1024
"""Blocks of this size and above are mapped by themselves, until one is freed; twice as much stays of a heap whose end is free."""
STARTUP_FAILED = 3
"""uvicorn's exit status of a worker whose application did not start: its successor would not either."""
CLEAN_STATUSES = frozenset({0, -signal.SIGTERM})
"""Of a worker that was told to stop; one that had just been started dies of the signal, before it served anything."""
WATCH_S = 0.1
"""Between two looks at the workers."""
THREADS_END_WITHIN_S = 1.0
"""After the application's end: what a thread may still need to close its connection to the store."""
KILL_GRACE_S = 18.0
"""Beyond notice, streams and the store's busy timeout, for the flush; then a worker is killed."""


class ListenError(RuntimeError):
    """An address cannot be listened on; the message names it."""


class Server(uvicorn.Server):
    """uvicorn's server with a notice period before it stops."""

    def __init__(self, config: uvicorn.Config, app: App, *, notice_s: float, parent_pid: int | None) -> None:
        super().__init__(config)
        self._app = app
        self._notice_s = notice_s
        self._parent_pid = parent_pid
        self._stop_at_s: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: stop the notice. Third SIGINT: uvicorn's own force."""
        if self._stop_at_s is None:
            logger.warning("stopping: not ready for %g s, then finishing what runs", self._notice_s)
            self._app.start_draining()
            self._stop_at_s = time.monotonic() + self._notice_s
        elif not self.should_exit:
            self._stop_at_s = 0.0
        else:
            super().handle_exit(sig, frame)
            self._captured_signals.clear()  # raised again, they would make the exit status a failure

    async def on_tick(self, counter: int) -> bool:
        if self._parent_pid is not None and os.getppid() != self._parent_pid and self._stop_at_s is None:
            self.handle_exit(signal.SIGTERM, None)  # the supervisor was killed: nobody will stop us
        if self._stop_at_s is not None and time.monotonic() >= self._stop_at_s:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.stop_admitting()
        await super().shutdown(sockets)


def serve(settings: Settings, *, host: str, port: int, workers: int) -> int:
    """Migrate the store, then serve until told to stop. Returns the exit status.

    Raises SettingError, PriceFileError, before the store is touched; ListenError.
    """
    check_configuration(settings)
    configure_logging(settings)
    raise_descriptor_limit()
    database = Database.from_url(settings.database_url, busy_timeout_s=settings.store_busy_timeout_s)
    for name in migrate(database, SystemClock()):
        logger.info("migrated the store: %s", name)
    ports = [port, settings.metrics_port] if settings.metrics_port else [port]
    listeners = [listen(host, each) for each in ports]
    shown_host, shown_port = listeners[0].getsockname()[:2]
    logger.info("serving on http://%s:%d with %d worker(s)", shown_host, shown_port, workers)
    if workers == 1:
        return run_worker(settings, listeners)
    with serving(database):  # also while a worker that died has no successor yet
        return _supervise(listeners, workers, settings)


def raise_descriptor_limit() -> None:
    """Two descriptors a request (client, vendor) soon pass the usual soft limit of 1,024; take what is allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; `::` takes IPv4 too, whatever the machine's default is. Raises ListenError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family is socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on {host}:{port}: {error}") from error
    listener.setblocking(False)
    return listener


def make_server(settings: Settings, *, parent_pid: int | None = None, clock: Clock | None = None) -> Server:
    """A server for one worker, not yet running. `clock` replaces the machine's."""
    app = App(settings, clock=clock)
    config = uvicorn.Config(
        app,
        http=bounded(
            connections_max=settings.client_connections_max,
            head_bytes_max=settings.head_bytes_max,
            headers_max=settings.headers_max,
            client_stall_s=settings.client_stall_timeout_s,
            on_malformed=app.count_malformed,
            refusal=app.refusal,
            handle_of=app.handle_of,
        ),
        ws="none",
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks for a client's address
        backlog=BACKLOG,
        timeout_keep_alive=math.ceil(settings.keep_alive_s),
        timeout_graceful_shutdown=math.ceil(settings.drain_streams_s),
    )
    return Server(config, app, notice_s=settings.drain_notice_s, parent_pid=parent_pid)


def run_worker(settings: Settings, listeners: list[socket.socket], *, parent_pid: int | None = None) -> int:
    """Serve on sockets until told to stop, or until the process `parent_pid` is no longer our parent."""
    server = make_server(settings, parent_pid=parent_pid)
    calm_garbage_collector()
    keep_freed_memory()
    server.run(sockets=listeners)
    status = 0 if server.started else STARTUP_FAILED
    _leave_hanging_threads(status)
    return status


def _leave_hanging_threads(status: int) -> None:
    """End the process now if a thread will not: one that hangs in a system call of a broken disk would keep the
    interpreter from ever ending. Everything that could be flushed has been."""
    until_s = time.monotonic() + THREADS_END_WITHIN_S
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    for thread in others:
        if not thread.daemon:
            thread.join(max(0.0, until_s - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        logger.error("a thread hangs in the store: the process ends without it")
        logging.shutdown()
        os._exit(status)


def calm_garbage_collector() -> None:
    """Look for cycles rarely: requests make few, and a look at every 700 new objects cost a sixth of the CPU.

    What has been imported lives as long as the process: frozen, it is not looked at again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def keep_freed_memory() -> None:
    """Have the C library keep some megabytes of what is freed, where it would give back to the system what the next long body
    needs: a page fault for each of its pages. Its own rule, followed early: whenever a block is freed that was large enough to be
    mapped by itself, blocks up to that size come from the heap, of which twice as much is kept. (Another library than glibc
    only makes and drops a block that nobody has touched.)"""
    bytes(MAPPED_FROM_BYTES)


# --- several workers ------------------------------------------------------------------------------------


def _supervise(listeners: list[socket.socket], workers: int, settings: Settings) -> int:
    metrics_dir = tempfile.mkdtemp(prefix="automna-proxy-metrics-")
    supervisor = _Supervisor(listeners, workers, settings, metrics_dir)
    try:
        return supervisor.run()
    finally:
        shutil.rmtree(metrics_dir, ignore_errors=True)


class _Supervisor:
    """Keeps `workers` processes alive on the same sockets, passes signals on, waits for the last."""

    def __init__(
        self, listeners: list[socket.socket], workers: int, settings: Settings, metrics_dir: str
    ) -> None:
        self._listeners = listeners
        self._settings = settings
        self._environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": metrics_dir}
        self._metrics_dir = metrics_dir
        self._is_stopping = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._told: set[int] = set()
        self._workers = workers

    def run(self) -> int:
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._pass_on)
        while not self._is_stopping:
            for process in [dead for dead in self._processes if dead.poll() is not None]:
                self._processes.remove(process)
                self._bury(process)
                if process.returncode == STARTUP_FAILED:
                    logger.error("a worker could not start; stopping")
                    self._stop()
                    self._wait()
                    return STARTUP_FAILED
                logger.error(
                    "worker %d died with status %d; starting another", process.pid, process.returncode
                )
                time.sleep(RESTART_PAUSE_S)
            while len(self._processes) < self._workers and not self._is_stopping:
                self._processes.append(self._start())
            time.sleep(WATCH_S)
        self._stop()  # whoever was being started when the signal came was not told yet
        return self._wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        descriptors = [listener.fileno() for listener in self._listeners]
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "automna_proxy.worker", *map(str, [os.getpid(), *descriptors])],
            pass_fds=descriptors,
            env=self._environ,
        )

    def _pass_on(self, _signal: int, _frame: FrameType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        """Once each: a second signal would end a worker's notice."""
        self._is_stopping = True
        for process in self._processes:
            if process.pid not in self._told and process.poll() is None:
                self._told.add(process.pid)
                process.send_signal(signal.SIGTERM)

    def _wait(self) -> int:
        """Wait for all, bounded; the exit status: 0 when every worker stopped cleanly."""
        for listener in self._listeners:
            listener.close()
        settings = self._settings
        wait_s = settings.drain_notice_s + settings.drain_streams_s + settings.store_busy_timeout_s
        until_s = time.monotonic() + wait_s + KILL_GRACE_S
        statuses = []
        for process in self._processes:
            try:
                statuses.append(process.wait(max(0.0, until_s - time.monotonic())))
            except subprocess.TimeoutExpired:
                process.kill()
                statuses.append(process.wait())
        return 0 if set(statuses) <= CLEAN_STATUSES else 1

    def _bury(self, process: "subprocess.Popen[bytes]") -> None:
        """Let the metrics of a dead worker's gauges go; its counters stay."""
        from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415 - reads the variable on import

        mark_process_dead(process.pid, self._metrics_dir)  # type: ignore[no-untyped-call]  # the library's
