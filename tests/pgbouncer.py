"""The real PgBouncer for tests: the installed one, or Debian's packages unpacked into a cache folder, uninstalled."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from local_stack.ports import LOCALHOST
from tests.ports import lasting_port

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "carillon-tests" / "pgbouncer"
_SECONDS = 120
# The C library and its loader belong together, and a program's loader is the system's.
_NOT_FETCHED = {"libc6"}


class NoPgBouncer(Exception):
    """Why there is none to be had here, in one sentence."""


@dataclass(frozen=True, slots=True)
class Program:
    """PgBouncer's program, and the folders of libraries that it needs beside the system's."""

    path: Path
    libraries: tuple[Path, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": ":".join(map(str, self.libraries))} if self.libraries else {}

    def version(self) -> str:
        """As it says it. Errors: NoPgBouncer if it does not run."""
        said = _run([str(self.path), "--version"], env={**os.environ, **self.environment})
        return said.splitlines()[0]


def find_pgbouncer() -> Program:
    """Errors: NoPgBouncer."""
    if installed := shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return Program(Path(installed))
    if not _CACHE.exists():
        _fetch()
    program = Program(_CACHE / "usr/sbin/pgbouncer", tuple(sorted({file.parent for file in _CACHE.rglob("*.so.*")})))
    program.version()
    return program


def _fetch() -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NoPgBouncer("pgbouncer is not installed, and this is no Debian to fetch it from")
    _CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE.parent) as name:
        packages, unpacked = Path(name) / "packages", Path(name) / "unpacked"
        packages.mkdir()
        try:
            _download(packages, lists=[])
        except NoPgBouncer:
            _download(packages, lists=_own_lists(Path(name)))
        for package in packages.glob("*.deb"):
            _run(["dpkg", "-x", str(package), str(unpacked)])
        try:
            unpacked.rename(_CACHE)
        except OSError:
            if not _CACHE.exists():  # where it does, another test process was first
                raise


def _own_lists(folder: Path) -> list[str]:
    """apt's options for package lists of our own, for a machine that has none: those of the system are root's."""
    for part in ("lists/partial", "archives/partial"):
        (folder / part).mkdir(parents=True)
    lists = ["-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder}", "-o", "APT::Sandbox::User="]
    _run(["apt-get", *lists, "update"])
    return lists


def _download(folder: Path, lists: list[str]) -> None:
    said = _run(["apt-cache", *lists, "depends", "--no-suggests", "--no-enhances", "pgbouncer"])
    libraries = set(re.findall(r"^  Depends: (lib\S+)$", said, re.MULTILINE)) - _NOT_FETCHED
    _run(["apt-get", *lists, "-o", "APT::Sandbox::User=", "download", "pgbouncer", *sorted(libraries)], cwd=folder)


def _run(command: list[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoPgBouncer(f"{command[0]} cannot be run: {error}") from None
    if done.returncode != 0:
        raise NoPgBouncer(f"{' '.join(command[:2])} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


class PgBouncer:
    """One PgBouncer in transaction mode before a PostgreSQL on this machine, with `pool_size` server connections for
    each login and database. `home` gets its files. `settings` are laid over ours. Start it with `argv` and
    `environment`."""

    def __init__(
        self,
        home: Path,
        program: Program,
        *,
        pool_size: int,
        logins: list[str],
        settings: Mapping[str, object] | None = None,
    ) -> None:
        home.mkdir(parents=True)
        self.port = lasting_port()
        self.environment = program.environment
        self._logins = [urlsplit(url) for url in logins]
        configuration = home / "pgbouncer.ini"
        configuration.write_text(self._configuration(home, pool_size, settings or {}))
        users = home / "users.txt"
        users.write_text("".join(f'"{each.username}" "{each.password}"\n' for each in self._logins))
        self.argv = [str(program.path), str(configuration)]
        if os.geteuid() == 0:  # as root it does not run
            self.argv[1:1] = ["-u", "nobody"]

    def url(self, url: str) -> str:
        """The same login and database, through this."""
        parts = urlsplit(url)
        return urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@{LOCALHOST}:{self.port}"))

    async def answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(LOCALHOST, self.port)
        except OSError:
            return False
        writer.close()
        return True

    def _configuration(self, home: Path, pool_size: int, others: Mapping[str, object]) -> str:
        settings: dict[str, object] = {
            "listen_addr": LOCALHOST,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": home / "users.txt",
            "pool_mode": "transaction",
            "default_pool_size": pool_size,
            "max_client_conn": 200,
            **others,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        return f"[databases]\n* = host={LOCALHOST} port={self._logins[0].port}\n[pgbouncer]\n" + "\n".join(lines) + "\n"
