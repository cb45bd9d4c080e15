"""What may take a server's address: a copy of it in recovery, and one that lets nobody in."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import psycopg

from local_stack.ports import LOCALHOST
from local_stack.postgres import ADMIN, EmbeddedPostgres
from local_stack.postmaster import end, environment, poll
from tests.ports import lasting_port
from tests.serving import close_server

_READY_SECONDS = 60
_ASKING = """
select count(*) from pg_stat_activity
where usename in ('carillon_api', 'carillon_engine') and state_change > clock_timestamp() - interval '1.5 seconds'"""


class Standby:
    """A hot standby: it lets people read. `promote` makes it a primary."""

    def __init__(self, data: Path, port: int, admin_url: str) -> None:
        self.port = port
        self._data = data
        self._admin_url = admin_url

    @classmethod
    @contextmanager
    def copied(cls, server: EmbeddedPostgres) -> Iterator[Standby]:
        """Stops the server, and starts a copy that nobody streams to: it has all that was committed."""
        program = Path(f"/proc/{server.pid}/exe").readlink()
        pgdata = server.data_dir / "pgdata"
        owner = pgdata.stat()
        password, port = server.password, lasting_port()
        server.stop()
        copy = pgdata.with_name("standby")
        subprocess.run(["cp", "-a", str(pgdata), str(copy)], check=True)
        signal_file = copy / "standby.signal"
        signal_file.touch()
        os.chown(signal_file, owner.st_uid, owner.st_gid)
        account = {} if owner.st_uid == os.geteuid() else {"user": owner.st_uid, "group": owner.st_gid}
        options = {"port": port, "listen_addresses": LOCALHOST, "unix_socket_directories": "", "hot_standby": "on"}
        process = subprocess.Popen(
            [
                str(program),
                "-D",
                str(copy),
                *(part for each in options.items() for part in ("-c", "=".join(map(str, each)))),
            ],
            cwd=copy,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **account,  # type: ignore[call-overload]  # as subprocess takes them
        )
        standby = cls(copy, port, f"postgresql://{ADMIN}:{password}@{LOCALHOST}:{port}/postgres")
        try:
            poll(standby._answers, seconds=_READY_SECONDS)
            yield standby
        finally:
            end(process)
            shutil.rmtree(copy)

    def promote(self) -> None:
        with psycopg.connect(self._admin_url, autocommit=True) as admin:
            admin.execute("select pg_promote()")

    async def is_left_alone(self) -> bool:
        """Whether none of our connections has asked anything for a while, in which each loop would have."""
        with psycopg.connect(self._admin_url) as admin:
            return admin.execute(_ASKING).fetchall() == [(0,)]

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(self._admin_url):
            return True
        return False


class Refusing:
    """Speaks as much of PostgreSQL's protocol as one needs to refuse everybody. `asked`: how often it did."""

    def __init__(self, sqlstate: str, sentence: str) -> None:
        fields = {"S": "FATAL", "V": "FATAL", "C": sqlstate, "M": sentence}
        body = b"".join(f"{kind}{text}\0".encode() for kind, text in fields.items()) + b"\0"
        self._refusal = b"E" + struct.pack("!i", len(body) + 4) + body
        self._server: asyncio.Server | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self.asked = 0
        self.port = 0

    async def __aenter__(self) -> Refusing:
        self._server = await asyncio.start_server(self._accept, LOCALHOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        await close_server(self._server)
        await asyncio.gather(*self._asking, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._refuse(reader, writer))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                length, code = struct.unpack("!ii", await reader.readexactly(8))
                await reader.readexactly(length - 8)
                if code not in _NEGOTIATIONS:
                    break
                writer.write(b"N")
            self.asked += 1
            writer.write(self._refusal)
            await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


# The codes of requests for TLS and for GSSAPI.
_NEGOTIATIONS = (80877103, 80877104)
