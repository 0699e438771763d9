"""The machine: which cores there are, what a process and a core have used, and what to say about it all."""

import contextlib
import os
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where. With two cores, the vendor and the load share the second."""

    proxy: int
    vendor: int
    load: int

    @classmethod
    def assign(cls, available: set[int]) -> "Cores":
        """Raises ValueError when there is only one core: load and proxy on it would measure each other."""
        cores = sorted(available)
        if len(cores) < 2:
            raise ValueError(f"cores: {len(cores)} available, expected at least 2")
        return cls(proxy=cores[0], vendor=cores[1], load=cores[2] if len(cores) > 2 else cores[1])


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """What a core has done since boot, in seconds."""

    busy_s: float
    idle_s: float
    steal_s: float


def core_times(core: int, stat: str | None = None) -> CoreTimes:
    """From /proc/stat (proc(5)): user nice system idle iowait irq softirq steal."""
    text = Path("/proc/stat").read_text(encoding="ascii") if stat is None else stat
    line = next(line for line in text.splitlines() if line.startswith(f"cpu{core} "))
    user, nice, system, idle, iowait, irq, softirq, steal = (
        int(value) / TICKS_PER_S for value in line.split()[1:9]
    )
    return CoreTimes(user + nice + system + irq + softirq, idle + iowait, steal)


def cpu_s(pid: int) -> float:
    """User and system time of a process and of its living descendants (workers), all their threads, dead ones too."""
    return sum(_cpu_s(each) for each in (pid, *descendants(pid)))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def descendants(pid: int) -> list[int]:
    """The processes that it began, and theirs, as far as they live."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            for child in (task / "children").read_text(encoding="ascii").split():
                found += [int(child), *descendants(int(child))]
    return found


def rss_mb(pid: int, field: str = "VmRSS") -> float:
    """Resident memory in MB, of a process and of its living descendants together: `VmRSS` now, `VmHWM` at its highest."""
    return sum(_rss_mb(each, field) for each in (pid, *descendants(pid)))


def _rss_mb(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/{pid}/status: no {field}")


def filesystem_of(folder: Path) -> str:
    """Type and device of the filesystem that holds `folder`, such as `ext4 on /dev/vda`."""
    best, answer = -1, "unknown"
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        device, mount, kind = line.split()[:3]
        if folder.resolve().is_relative_to(mount) and len(mount) >= best:
            best, answer = len(mount), f"{kind} on {device}"
    return answer


def description() -> dict[str, str]:
    """What a reader needs to know of the machine to compare numbers."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": f"{platform.python_version()}, {_build()}",
    }


def _build() -> str:
    """Whether the interpreter was built with profile-guided optimisation: without it all is a third slower."""
    is_optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return "optimised build" if is_optimised else "plain build (no --enable-optimizations)"
