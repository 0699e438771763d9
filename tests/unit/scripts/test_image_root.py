"""What executes the Dockerfile refuses what it does not execute."""

from pathlib import Path

import pytest

from scripts.image_root import PROJECT, Builder, DockerfileError, Image, _Ignored, _pairs, _words, parse

IGNORED = "*\n!kept\n**/__pycache__\n"


def builder(folder: Path, steps: str) -> Builder:
    (folder / "Dockerfile").write_text(f"FROM python:3.11-slim-bookworm AS only\n{steps}\n")
    (folder / ".dockerignore").write_text(IGNORED)
    return Builder(folder / "out", context=folder)


def execute(folder: Path, step: str) -> Image:
    made = builder(folder, step)
    (stage,) = made._stages.values()
    return made._execute(Image(folder / "root"), stage.instructions[0])


@pytest.mark.parametrize(
    "step",
    [
        "RUN apt-get update",
        'RUN ["sh", 1]',
        "HEALTHCHECK NONE",
        "ADD kept /x",
        "COPY left-out /x",
        "COPY --chown=1:1 kept /x",
        "COPY kept* /x",
        "COPY kept",
        'ENV A="b c"',
        "ENV A=$(date)",
        "ENTRYPOINT automna-proxy",
        "run lower",
        "RUN \\",
    ],
)
def test_a_step_that_is_not_understood_is_an_error(tmp_path: Path, step: str) -> None:
    with pytest.raises(DockerfileError):
        execute(tmp_path, step)


@pytest.mark.parametrize(
    "base", ["debian:12", "python:latest", "python:3-slim-bookworm", "example.org/python:3.11"]
)
def test_a_base_that_is_not_the_official_python_is_an_error(tmp_path: Path, base: str) -> None:
    made = builder(tmp_path, "")
    with pytest.raises(DockerfileError, match="FROM"):
        made._base(base)


def test_the_projects_own_file_is_understood_and_names_one_base() -> None:
    stages = parse((PROJECT / "Dockerfile").read_text())
    assert [stage.name for stage in stages] == ["build", "fly", "serve"]
    assert [stage.base for stage in stages] == ["python:3.11-slim-bookworm"] * 2 + ["fly"]


def test_what_is_copied_leaves_caches_out(tmp_path: Path) -> None:
    made = builder(tmp_path, "")
    (tmp_path / "kept" / "__pycache__").mkdir(parents=True)
    (tmp_path / "kept" / "x.py").write_text("")
    made._copy(Image(tmp_path / "root", workdir="/src"), "kept kept")
    copied = [path.name for path in (tmp_path / "root" / "src" / "kept").rglob("*")]
    assert copied == ["x.py"]


@pytest.mark.parametrize("text", ["x\n", "*\n!a/b\n", "*\nplain\n"])
def test_forms_of_the_ignore_file_that_are_not_known_are_errors(text: str) -> None:
    with pytest.raises(DockerfileError):
        _Ignored(text)


def test_plain_forms_are_read() -> None:
    assert _words('["a", "b"]') == ("a", "b")
    assert _pairs("A=1 B=sqlite:////x") == {"A": "1", "B": "sqlite:////x"}
