"""The wheel alone is enough: built from a clean copy, installed where no source tree is, and the demo runs."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEP_TIMEOUT_S = 120
ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}

FACTS = """
import importlib, json
from importlib import resources
rooms = ("automna_proxy", "routes", "proxy", "provisioning", "metering", "simulators")
from metering.plans import load_plans
from metering.prices import PriceTable
from metering.store import migrations
from provisioning.template import Templates
print(json.dumps({
    "files": {room: importlib.import_module(room).__file__ for room in rooms},
    "plans": sorted(load_plans()),
    "price": PriceTable.load().model("anthropic", "claude-sonnet-4-5") is not None,
    "machine": [file.guest_path for file in Templates.load().of("pro").files],
    "migrations": sorted(entry.name for entry in resources.files(migrations).iterdir() if entry.name.endswith(".sql")),
}))
"""


def run(command, cwd, **environment):
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=STEP_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean_copy(folder):
    """What a fresh clone would hold, with what is not committed yet: nothing that git ignores."""
    listed = run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        ROOT,
        HOME=os.environ.get("HOME", "/"),
    )
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = clean_copy(folder / "source")
    run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", source],
        folder,
    )
    (built,) = (folder / "dist").iterdir()
    shutil.rmtree(source)
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `bin` of a fresh virtual environment with the wheel, and the dependencies of this one.

    Dependencies come by a .pth file, which adds to the path's end and is not read recursively: an editable
    install of the source tree here does not count there.
    """
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", folder], ROOT)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"]
    run([*pip, "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", wheel], folder)
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_every_room_and_its_data_come_from_the_wheel(installed, tmp_path):
    facts = json.loads(run([installed / "python", "-c", FACTS], tmp_path))
    for room, file in facts["files"].items():
        assert Path(file).is_relative_to(installed.parent), f"{room} comes from {file}"
    assert {"free", "pro", "business"} <= set(facts["plans"])
    assert facts["price"]
    assert facts["machine"] == ["/etc/automna/openclaw.json"]
    in_source = sorted(path.name for path in (ROOT / "metering" / "store" / "migrations").glob("*.sql"))
    assert facts["migrations"] == in_source != []


def test_every_module_of_the_source_tree_is_in_the_wheel(installed):
    (site_packages,) = installed.parent.glob("lib/python*/site-packages")
    rooms = ("automna_proxy", "routes", "proxy", "provisioning", "metering", "simulators")
    modules = [path.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("*.py")]
    assert len(modules) > 50
    assert [str(module) for module in modules if not (site_packages / module).is_file()] == []


def test_the_demo_runs_from_an_empty_folder(installed, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    said = run([installed / "automna-proxy", "demo", "--once"], empty, TMPDIR=str(tmp_path))
    assert "16 answers of the vendors (and 1 lost), 16 entries in the ledger" in said
    assert "FAILED" not in said
    assert list(empty.iterdir()) == []
