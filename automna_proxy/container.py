"""What the image calls `automna-proxy`: the same command, as the service's user, on a volume that this user can write.

Platforms hand a fresh volume to root, whatever the image's user is, so an image for them has to start as root. This
module is all that runs as root: it gives the data folder to the service's user, becomes that user for good, and
only then starts the command. Started as anybody else it starts the command at once. It imports next to nothing:
every command waits for it.

The service can write the data folder, so what stands in it is not trusted: links are not followed, and only plain
files of root's with a single name change hands.
"""

import os
import stat
import sys
from pathlib import Path

SERVICE_ID = 10_001
"""User and group. High enough to be nobody on the host; named in the Dockerfile too."""
DATA = Path("/data")
COMMAND = Path(sys.executable).with_name("automna-proxy")
UMASK = 0o077
"""The store holds e-mail addresses and hashes of tokens: nobody else's to read."""


def main() -> None:
    """The entry point."""
    os.umask(UMASK)
    if os.geteuid() == 0:
        try:
            hand_over(DATA, SERVICE_ID)
            step_down(SERVICE_ID)
        except OSError as error:
            sys.exit(f"automna-proxy: cannot give {DATA} to user {SERVICE_ID} and become that user: {error}")
    os.execv(COMMAND, [str(COMMAND), *sys.argv[1:]])  # noqa: S606 - without a shell: signals reach the server


def hand_over(folder: Path, owner_id: int) -> None:
    """Give the folder and root's plain files directly in it to a user. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(descriptor, owner_id, owner_id)
        with os.scandir(descriptor) as found:
            names = [entry.name for entry in found if entry.is_file(follow_symlinks=False)]
        for name in names:
            _hand_over_file(descriptor, name, owner_id)
    finally:
        os.close(descriptor)


def _hand_over_file(folder: int, name: str, owner_id: int) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # never to wait for a pipe that was put there
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_uid == 0 and found.st_nlink == 1:
            os.fchown(descriptor, owner_id, owner_id)
    finally:
        os.close(descriptor)


def step_down(owner_id: int) -> None:
    """Become a user and keep no way back. Raises OSError."""
    os.setgroups([])
    os.setresgid(owner_id, owner_id, owner_id)
    os.setresuid(owner_id, owner_id, owner_id)
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise PermissionError("the way back to root is open")


if __name__ == "__main__":
    main()
