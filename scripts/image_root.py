"""Execute a Dockerfile where there is no Docker: its steps, in a folder of their own, as root, by `chroot`.

    python scripts/image_root.py [--target fly] FOLDER

Knows the instructions and the forms of them that this project's Dockerfile uses; any other is an error, so that
nothing is left out silently. The official Python image cannot be had here: this machine's Python, its libraries
and the few programs that the steps call stand in for it. Nothing is mounted: `/proc` and `/dev` are missing, which
a container has; whatever runs without them runs with them.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
BASE_PROGRAMS = ("ln", "install", "sleep")
"""What the steps, and an operator's hand on a machine that shall not serve, call beside Python."""
BASE_LIBRARIES = (
    *("libgcc_s.so.1", "libstdc++.so.6"),
    *("libpthread.so.0", "librt.so.1", "libdl.so.2", "libutil.so.1", "libresolv.so.2", "libm.so.6"),
)
"""What every Linux has, and compiled packages count on (PEP 599)."""
BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
STEP_TIMEOUT_S = 300
STDLIB_LEFT_OUT = (
    "test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "config-*",
    "idlelib",
    "turtledemo",
)
NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl/certs/ca-certificates.crt")
PIP_SETTINGS = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "cert", "timeout")
ENTER = """
import os, sys
root, workdir, user, group, *command = sys.argv[1:]
os.chroot(root)
os.chdir(workdir)
os.setgroups([])
os.setgid(int(group))
os.setuid(int(user))
os.execv(command[0], command)
"""
"""Becomes the process in the image: what is started has its id."""
_SHELL = re.compile(r"[`\\]|\$(?!\{\w+\})")


class DockerfileError(ValueError):
    """The Dockerfile says something that is not executed here."""


@dataclass(frozen=True)
class Instruction:
    """One line: `word` in capitals, and the rest."""

    word: str
    rest: str


@dataclass(frozen=True)
class Stage:
    """From one FROM to the next."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Image:
    """What a stage makes: a folder, and how a process is started in it."""

    root: Path
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": BASE_PATH})
    workdir: str = "/"
    user: tuple[int, int] = (0, 0)
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    stop_signal: str = "SIGTERM"

    def start(
        self, *arguments: str, env: Mapping[str, str] | None = None, **how: Any
    ) -> "subprocess.Popen[bytes]":
        """The entry point with its usual arguments, or others, as an engine would start it."""
        command = [*self.entrypoint, *(arguments or self.cmd)]
        return self._popen(command, {**self.env, **(env or {})}, **how)

    def run(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """A step, to its end. Raises DockerfileError when it fails."""
        process = self._popen(command, {**self.env, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = process.communicate(timeout=STEP_TIMEOUT_S)
        if process.returncode:
            raise DockerfileError(
                f"{command}: exit status {process.returncode}\n{said.decode(errors='replace')}"
            )

    def _popen(self, command: Sequence[str], env: Mapping[str, str], **how: Any) -> "subprocess.Popen[bytes]":
        place = (str(self.root), self.workdir, *map(str, self.user))
        return subprocess.Popen(
            [sys.executable, "-I", "-c", ENTER, *place, self._find(command[0]), *command[1:]],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            **how,
        )

    def _find(self, program: str) -> str:
        if program.startswith("/"):
            return program
        for folder in self.env["PATH"].split(":"):
            if (self.root / folder.lstrip("/") / program).is_symlink() or (
                self.root / folder.lstrip("/") / program
            ).exists():
                return f"{folder}/{program}"
        raise DockerfileError(f"{program}: not in the image")


# --- reading --------------------------------------------------------------------------------------------


def parse(text: str) -> list[Stage]:
    """The stages. Raises DockerfileError."""
    args: dict[str, str] = {}
    stages: list[Stage] = []
    for line in text.splitlines():
        line = line.strip()  # noqa: PLW2901 - the line as it counts
        if not line or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.endswith("\\") or word != word.upper():
            raise DockerfileError(f"not understood: {line}")
        if word == "ARG" and not stages:
            name, _, value = rest.partition("=")
            args[name] = value
        elif word == "FROM":
            base, _, name = rest.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda found: args[found[1]], base)
            stages.append(Stage(name or str(len(stages)), base, ()))
        elif stages:
            last = stages[-1]
            stages[-1] = replace(last, instructions=(*last.instructions, Instruction(word, rest)))
        else:
            raise DockerfileError(f"before FROM: {line}")
    return stages


def _words(rest: str) -> tuple[str, ...]:
    """The exec form: a JSON list of strings."""
    try:
        words = json.loads(rest)
    except ValueError:
        words = None
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise DockerfileError(f"expected the exec form, a JSON list: {rest}")
    return tuple(words)


def _pairs(rest: str) -> dict[str, str]:
    if _SHELL.search(rest) or '"' in rest or "'" in rest:
        raise DockerfileError(f"ENV: expected plain NAME=VALUE: {rest}")
    return dict(pair.split("=", 1) for pair in rest.split())


class _Ignored:
    """`.dockerignore`: `*`, then `!NAME` of what is let in, then `**/NAME` of what is left out below."""

    def __init__(self, text: str) -> None:
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        if lines[:1] != ["*"]:
            raise DockerfileError(".dockerignore: expected * first")
        self._let_in = {line[1:] for line in lines[1:] if line.startswith("!")}
        self._left_out = {line.removeprefix("**/") for line in lines[1:] if line.startswith("**/")}
        if len(lines) != 1 + len(self._let_in) + len(self._left_out) or any(
            "/" in name for name in self._let_in
        ):
            raise DockerfileError(".dockerignore: expected *, !NAME and **/NAME")

    def is_in(self, name: str) -> bool:
        return name in self._let_in

    def left_out(self, _folder: str, names: list[str]) -> set[str]:
        return {name for name in names for pattern in self._left_out if fnmatchcase(name, pattern)}


# --- executing ------------------------------------------------------------------------------------------


class Builder:
    """Builds stages below `folder`, each once."""

    def __init__(self, folder: Path, *, context: Path = PROJECT) -> None:
        self._folder = folder
        self._context = context
        self._stages = {stage.name: stage for stage in parse((context / "Dockerfile").read_text())}
        self._ignored = _Ignored((context / ".dockerignore").read_text())
        self._built: dict[str, Image] = {}
        self._network = {
            name: value for name, value in os.environ.items() if name.upper().startswith(("PIP_", "HTTP"))
        }

    @property
    def default_target(self) -> str:
        return list(self._stages)[-1]

    def build(self, name: str) -> Image:
        """The image of a stage. Raises DockerfileError."""
        if name not in self._built:
            stage = self._stages[name]
            parent = self._base(stage.base)
            image = replace(parent, root=self._folder / name)
            # Linked, not copied: steps add files and replace them, none writes into one that is there.
            subprocess.run(["cp", "-al", parent.root, image.root], check=True)
            for instruction in stage.instructions:
                image = self._execute(image, instruction)
            self._built[name] = image
        return self._built[name]

    def _base(self, base: str) -> Image:
        """What a stage stands on: another, or the official image's stand-in."""
        if base in self._stages:
            return self.build(base)
        if not re.fullmatch(r"python:3\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", base):
            raise DockerfileError(
                f"FROM {base}: expected an official slim Python of one minor version, or a stage"
            )
        parent = Image(self._folder / "base")
        if not parent.root.exists():
            make_base(parent)
        return parent

    def _execute(self, image: Image, instruction: Instruction) -> Image:  # noqa: PLR0911 - a case each
        rest = instruction.rest
        match instruction.word:
            case "RUN":
                image.run(_words(rest), self._network)
            case "COPY":
                self._copy(image, rest)
            case "ENV":
                return replace(image, env={**image.env, **_pairs(rest)})
            case "WORKDIR":
                (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
                return replace(image, workdir=rest)
            case "USER":
                user, group = map(int, rest.split(":"))
                return replace(image, user=(user, group))
            case "ENTRYPOINT":
                return replace(image, entrypoint=_words(rest))
            case "CMD":
                return replace(image, cmd=_words(rest))
            case "STOPSIGNAL":
                return replace(image, stop_signal=rest)
            case "EXPOSE":
                int(rest)
            case _:
                raise DockerfileError(f"{instruction.word}: not executed here")
        return image

    def _copy(self, image: Image, rest: str) -> None:
        *options, sources, target = _copy_words(rest)
        folder = image.root / os.path.join(image.workdir, target).lstrip("/")  # noqa: PTH118 - a path in the image
        if options:
            (source,) = sources
            shutil.copytree(self.build(options[0]).root / source.lstrip("/"), folder, symlinks=True)
            return
        for source in sources:
            if not self._ignored.is_in(source):
                raise DockerfileError(f"COPY {source}: .dockerignore leaves it out")
            path = self._context / source
            if path.is_dir():
                shutil.copytree(path, folder, ignore=self._ignored.left_out)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / source)


def _copy_words(rest: str) -> tuple[Any, ...]:
    """(stage, sources, target), or (sources, target) from the project's folder."""
    words = rest.split()
    stage = [words.pop(0).removeprefix("--from=")] if words[0].startswith("--from=") else []
    if len(words) < 2 or any(word.startswith("--") or set(word) & set('*?["$') for word in words):
        raise DockerfileError(f"COPY: not understood: {rest}")
    return (*stage, words[:-1], words[-1])


# --- the stand-in for the official Python image ---------------------------------------------------------


def make_base(image: Image) -> None:
    """A root with Python as /usr/local/bin/python, pip, and BASE_PROGRAMS; nothing else."""
    for folder in ("usr/local/bin", "usr/local/lib", "usr/bin", "etc", "root", "dev", "tmp"):
        (image.root / folder).mkdir(parents=True)
    for link in ("bin", "lib", "lib64"):
        (image.root / "usr" / link).mkdir(exist_ok=True)
        (image.root / link).symlink_to(f"usr/{link}")
    (image.root / "tmp").chmod(0o1777)
    (image.root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/sbin/nologin\n")
    (image.root / "etc" / "group").write_text("root:x:0:\n")
    (image.root / "dev" / "null").touch()  # a plain file: nodes cannot be made everywhere
    (image.root / "dev" / "null").chmod(0o666)
    for name in BASE_PROGRAMS:
        found = shutil.which(name)
        assert found is not None, name
        _install(image.root, Path(found).resolve(), Path("/usr/bin") / name)
    _copy_python(image)
    for file in map(Path, NETWORK_FILES):
        if file.exists():
            _install(image.root, file.resolve(), file)
    (image.root / "etc" / "pip.conf").write_text(_pip_settings())


def _copy_python(image: Image) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    stdlib = Path(
        sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix})
    )
    target = image.root / "usr" / "local" / "lib" / version
    shutil.copytree(stdlib, target, symlinks=False, ignore=shutil.ignore_patterns(*STDLIB_LEFT_OUT))
    executable = Path(os.path.realpath(sys.executable))
    _install(image.root, executable, Path("/usr/local/bin") / version)
    for name in ("python3", "python"):
        (image.root / "usr" / "local" / "bin" / name).symlink_to(version)
    for library in target.glob("lib-dynload/*.so"):
        _install_libraries(image.root, stdlib / library.relative_to(target))
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    for name in BASE_LIBRARIES:
        found = re.search(rf"^\s+{re.escape(name)} .*=> (\S+)$", known, re.MULTILINE)
        assert found is not None, name
        _install(image.root, Path(found[1]).resolve(), Path(found[1]))
    asked = image._popen(  # noqa: SLF001 - its own module
        ["python", "-c", "import site; print(site.getsitepackages()[0])"], image.env, stdout=subprocess.PIPE
    )
    where, _ = asked.communicate(timeout=STEP_TIMEOUT_S)
    packages = image.root / where.decode().strip().lstrip("/")
    for found in Path(sysconfig.get_path("purelib")).glob("pip*"):
        shutil.copytree(found, packages / found.name, ignore=shutil.ignore_patterns("__pycache__"))


def _install(root: Path, source: Path, target: Path) -> None:
    """A file at its place in the root, with the shared libraries that it needs."""
    placed = root / str(target).lstrip("/")
    if placed.exists():
        return
    placed.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, placed)
    if source.read_bytes()[:4] == b"\x7fELF" and ".so" not in source.name:
        _install_libraries(root, source)


def _install_libraries(root: Path, binary: Path) -> None:
    """At the paths where the loader of this machine finds them, or its usual folder when they lie elsewhere."""
    listed = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
    for found in re.findall(r"(/\S+) \(0x", listed):
        path = Path(found)
        is_usual = path.parts[1] in {"lib", "lib64"} or path.parts[1:3] in {("usr", "lib"), ("usr", "lib64")}
        target = path if is_usual else Path("/usr/local/lib") / path.name
        # The loader searches there without a cache when nothing else is said.
        _install(root, path.resolve(), target if is_usual else Path("/usr/lib") / path.name)


def _pip_settings() -> str:
    """The machine's way to the package index, whatever it is; folders of packages are linked or copied nowhere."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    lines = ["[global]"]
    for line in listed.splitlines():
        name, _, quoted = line.partition("=")
        key = name.rpartition(".")[2]
        if name.startswith(("global.", "install.")) and key in PIP_SETTINGS:
            values = [word for word in quoted.strip("'\"").split() if not _is_folder(word)]
            lines += [f"{key} = {' '.join(values)}"] if values else []
    return "\n".join(lines) + "\n"


def _is_folder(word: str) -> bool:
    return Path(word.removeprefix("file://")).is_dir()


# --- what was made --------------------------------------------------------------------------------------


def added_bytes(image: Image, base: Path) -> int:
    """What the image holds beyond its base."""
    return sum(_sizes(image.root)) - sum(_sizes(base))


def _sizes(root: Path) -> Iterator[int]:
    for folder, _, names in os.walk(root):
        for name in names:
            yield os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - quick, over many files


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--target", help="the stage; the last one otherwise")
    options = parser.parse_args()
    builder = Builder(options.folder.absolute())
    image = builder.build(options.target or builder.default_target)
    size = added_bytes(image, options.folder.absolute() / "base")
    print(f"{image.root}: {size / 1e6:.1f} MB beyond its base; {json.dumps([*image.entrypoint, *image.cmd])}")


if __name__ == "__main__":
    main()
