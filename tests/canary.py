"""The canary: every secret that tests use carries one marker, and nothing that the suite writes may have it.

`hooks` (tests/canary_hooks.py) search what tests print and log, what programs that they start write, and why they
fail; fixtures search each test's database before it goes, and the server's log.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import psycopg
from psycopg import sql

# Put together here, so that no line of source has it: tracebacks show source.
MARKER = "".join(("Nightin", "gale", "7Q9z"))
_MASK = "[a secret]"
_TOKEN_SHAPED = r"(?<![\w-])eyJ[\w-]{16,}\.eyJ[\w-]{16,}\.[\w-]{40,}"
_PRIVATE_KEY = "-----BEGIN [A-Z ]*" + "PRIVATE KEY-----"
_AROUND = 60


def secret(name: str, length: int = 48) -> str:
    """A secret of that name: always the same, of characters that mean nothing in a URL, a token or a setting."""
    return f"{MARKER}x{name.encode().hex()}x{'0' * length}"[: max(length, len(MARKER) + 2 * len(name) + 2)]


def token(token_id: str) -> str:
    """A service token, `id.secret`."""
    return f"{token_id}.{secret(token_id)}"


def _in_base64(text: str) -> Iterator[str]:
    """How it looks inside something longer, at each of the three places where it may begin."""
    for lead in range(3):
        coded = base64.b64encode(b"\0" * lead + text.encode()).decode()
        # The first characters share bits with what stands before, the last with what follows.
        yield coded[(0, 2, 3)[lead] : len(coded) - 4]


_FORMS = [re.escape(MARKER), re.escape(MARKER.encode().hex()), *map(re.escape, _in_base64(MARKER))]
_MARKED = re.compile("|".join(_FORMS), re.IGNORECASE)
_SECRET = re.compile(f"{_MARKED.pattern}|{_TOKEN_SHAPED}|{_PRIVATE_KEY}", re.IGNORECASE)


def masked(text: str) -> str:
    """The text, with what is secret in it left out."""
    return _SECRET.sub(_MASK, text)


def leaks(text: str, *, shown_once: bool = False) -> list[str]:
    """What is secret in a text, each with what stands around it. `shown_once`: JWTs and keys that are made for whoever
    reads this are none, only what carries the marker."""
    pattern = _MARKED if shown_once else _SECRET
    return [
        masked(text[max(0, found.start() - _AROUND) : found.end()])[-2 * _AROUND :] for found in pattern.finditer(text)
    ]


def leaks_in_files(files: Iterable[Path]) -> list[str]:
    return [f"{file.name}: {leak}" for file in files if file.is_file() for leak in leaks(_text_of(file))]


def _text_of(file: Path) -> str:
    return file.read_text(errors="replace")


# Leaves, parents having no rows; by their size, since nobody has counted rows yet.
_TABLES = """
select c.relname from pg_class c where c.relnamespace = to_regnamespace('carillon') and c.relkind = 'r'
  and pg_relation_size(c.oid) > 0 order by 1"""


def leaks_in_database(admin_url: str) -> list[str]:
    """Every table of Carillon's: each row as text, bytes in hexadecimal."""
    with psycopg.connect(admin_url) as admin:
        tables = [name for (name,) in admin.execute(_TABLES).fetchall()]
        if not tables:
            return []
        rows = admin.execute(sql.SQL(" union all ").join(map(_marked_rows, tables)), {"pattern": "|".join(_FORMS)})
        return [f"carillon.{table}: {masked(row)[:200]}" for table, row in rows.fetchall()]


def _marked_rows(table: str) -> sql.Composed:
    return sql.SQL("(select {}, r::text from carillon.{} r where r::text ~* %(pattern)s limit 1)").format(
        sql.Literal(table), sql.Identifier(table)
    )


def check(leaks: list[str], where: str) -> None:
    """Errors: AssertionError that names each leak."""
    assert not leaks, f"secrets stand in {where}:\n" + "\n".join(f"  {leak}" for leak in leaks)
