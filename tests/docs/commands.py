"""`grpcurl` and `curl` as docs/operations.md uses them, for machines that have neither: by buf and Python's own."""

from __future__ import annotations

import os
import sys
import urllib.request
from argparse import ArgumentParser
from pathlib import Path
from urllib.error import HTTPError

BUF = Path(sys.executable).with_name("buf")


def grpcurl(arguments: list[str]) -> int:
    """Becomes `buf curl`, with reflection. Options that are not known here are refused."""
    parser = ArgumentParser("grpcurl")
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d", default="{}")
    parser.add_argument("address")
    parser.add_argument("method")
    said = parser.parse_args(arguments)
    headers = [part for header in said.H for part in ("-H", header)]
    command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *headers, "-d", said.d]
    os.execv(BUF, [*command, f"http://{said.address}/{said.method}"])


def curl(arguments: list[str]) -> int:
    """Prints what answers, whatever its status."""
    parser = ArgumentParser("curl")
    parser.add_argument("-s", action="store_true")
    parser.add_argument("url")
    try:
        with urllib.request.urlopen(parser.parse_args(arguments).url, timeout=10) as answer:
            body = answer.read()
    except HTTPError as error:
        body = error.read()
    sys.stdout.write(body.decode())
    return 0


def install(folder: Path) -> None:
    """Puts both into a folder, to be first on the PATH."""
    for name in (grpcurl.__name__, curl.__name__):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.docs.commands {name} "$@"\n')
        program.chmod(0o755)


if __name__ == "__main__":
    sys.exit({"grpcurl": grpcurl, "curl": curl}[sys.argv[1]](sys.argv[2:]))
