"""The disk is full, for as long as it takes somebody to make room: nothing is lost, and nobody has to start anything.

The schedules' runs lie in a tablespace on a small file system of its own, which only root can make. Without it, see
`test_statements`, where the administrator plants the same error."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from tests.e2e.database_away.conftest import Taken
from tests.e2e.database_away.place import Place, is_told_to_wait, placed

_BYTES = 4 * 1024 * 1024
_PAGE = 4096


@pytest.fixture
def small_disk(taken: Taken) -> Iterator[Path]:
    """Where the server may write, and there is little room."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    owner = (taken.server.data_dir / "pgdata").stat()
    folder = Path(tempfile.mkdtemp(prefix="carillon-small-disk-", dir="/var/tmp"))  # where its user can enter
    options = f"size={_BYTES},mode=0700,uid={owner.st_uid},gid={owner.st_gid}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False)
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip("this machine lets nobody mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


async def test_a_disk_that_was_full_and_has_room_again(taken: Taken, small_disk: Path) -> None:
    space = f"small_{taken.name}"
    with psycopg.connect(taken.admin_url(), autocommit=True) as admin:
        admin.execute(f"create tablespace {space} location '{small_disk}'".encode())
        try:
            await _fill_and_make_room(taken, admin, space, small_disk)
        finally:
            _move(admin, "pg_default")
            admin.execute(f"drop tablespace {space}".encode())


async def _fill_and_make_room(
    taken: Taken, admin: psycopg.Connection[tuple[object, ...]], space: str, disk: Path
) -> None:
    async with placed(taken.urls, taken.admin_url) as place:
        # Beside the scheduler of this process, whose locks it may have to wait for.
        await asyncio.to_thread(_move, admin, space)
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):  # no room is left, whoever took the last of it
            while True:
                file.write(b"\0" * _PAGE)

        await is_told_to_wait(_until_refused(place), "the database is out of disk or memory", "nothing was kept")
        ballast.unlink()
        await place.goes_on()
        await place.is_ready()
        await place.trigger()
        await place.is_whole()


async def _until_refused(place: Place) -> None:
    """Calls go through until the pages that the table has are used up."""
    while True:
        await place.trigger(payload={"large": os.urandom(60_000).hex()})


def _move(admin: psycopg.Connection[tuple[object, ...]], space: str) -> None:
    admin.execute(f"alter table carillon.live_runs set tablespace {space}".encode())
    indexes = admin.execute(
        "select indexrelid::regclass::text from pg_index where indrelid = 'carillon.live_runs'::regclass"
    )
    for (index,) in indexes.fetchall():
        admin.execute(f"alter index {index} set tablespace {space}".encode())
