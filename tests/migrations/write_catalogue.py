"""Writes migrations/catalogue.txt, from the migrations and a PostgreSQL of its own; `make catalogue` calls it."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from local_stack.postgres import EmbeddedPostgres
from scheduler_service.store.catalogue import FILE, read_catalogue
from scheduler_service.store.database import Database
from scheduler_service.store.migrations import migrate


async def catalogue_text(url: str) -> str:
    """The file's contents, as the migrated database behind a URL has them."""
    database = Database(url, url)
    try:
        async with database.as_engine() as connection:
            lines = await read_catalogue(connection)
    finally:
        await database.close()
    return "".join(f"{line}\n" for line in dict.fromkeys(map(str, lines)))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres")
        try:
            server.start()
            server.create_database("carillon")
            url = server.url("carillon_admin")
            migrate(url)
            FILE.write_text(asyncio.run(catalogue_text(url)), encoding="utf-8")
        finally:
            server.remove()
    sys.stdout.write(f"wrote {FILE}\n")


if __name__ == "__main__":
    main()
