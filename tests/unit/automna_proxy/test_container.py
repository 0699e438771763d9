"""The step before the service: what changes hands, what does not, and that there is no way back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from automna_proxy import container
from automna_proxy.container import SERVICE_ID, hand_over, step_down

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away and step down")


def owners(folder: Path) -> dict[str, int]:
    return {path.name: path.lstat().st_uid for path in folder.iterdir()}


def in_a_child(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )


def test_the_folder_and_roots_plain_files_change_hands_and_nothing_else_does(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("not yours")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "ledger.db").write_text("")
    (folder / "lost+found").mkdir()
    (folder / "lost+found" / "x").write_text("")
    (folder / "link").symlink_to(outside)
    (folder / "second-name").hardlink_to(outside)
    (folder / "of-another").write_text("")
    os.chown(folder / "of-another", 1234, 1234)
    os.mkfifo(folder / "pipe")
    hand_over(folder, SERVICE_ID)
    assert folder.stat().st_uid == folder.stat().st_gid == SERVICE_ID
    assert owners(folder) == {
        "ledger.db": SERVICE_ID,
        "lost+found": 0,
        "link": 0,
        "second-name": 0,
        "of-another": 1234,
        "pipe": 0,
    }
    assert outside.stat().st_uid == (folder / "lost+found" / "x").stat().st_uid == 0


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="data"):
        hand_over(tmp_path / "data", SERVICE_ID)
    assert (tmp_path / "elsewhere").stat().st_uid == 0


def test_who_stepped_down_is_nobody_else_and_cannot_go_back() -> None:
    done = in_a_child(
        "import os\n"
        "from automna_proxy.container import step_down\n"
        "step_down(10_001)\n"
        "print(os.getresuid(), os.getresgid(), os.getgroups())\n"
        "try:\n"
        "    os.setuid(0)\n"
        "except PermissionError:\n"
        "    print('no way back')\n"
    )
    ids = f"({SERVICE_ID}, {SERVICE_ID}, {SERVICE_ID})"
    assert done.stdout.splitlines() == [f"{ids} {ids} []", "no way back"], done.stderr


def test_a_way_back_to_root_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("setgroups", "setresgid", "setresuid", "setuid"):
        monkeypatch.setattr(os, name, lambda *_: None)
    with pytest.raises(PermissionError, match="open"):
        step_down(SERVICE_ID)


def test_what_cannot_be_given_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "DATA", tmp_path / "absent")
    monkeypatch.setattr(os, "umask", lambda _: 0)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("the service was started as root"))
    with pytest.raises(SystemExit) as ended:
        container.main()
    said = str(ended.value.code)  # to standard error, with exit status 1
    assert said.startswith(f"automna-proxy: cannot give {tmp_path / 'absent'} to user {SERVICE_ID}")


def test_who_is_not_root_starts_the_command_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[object, list[str]]] = []
    monkeypatch.setattr(os, "umask", lambda _: 0)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "execv", lambda program, words: started.append((program, words)))
    monkeypatch.setattr(sys, "argv", ["automna-proxy", "user", "list"])
    container.main()
    assert started == [(container.COMMAND, [str(container.COMMAND), "user", "list"])]
